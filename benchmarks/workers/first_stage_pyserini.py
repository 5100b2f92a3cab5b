"""Pyserini: Lucene's BM25 with Anserini's defaults (k1 = 0.9, b = 0.4, Porter stemmer), an index on disk."""

from pathlib import Path

from _first_stage import Asked, Data, Search, Told, measured, spans
from pyserini.index.lucene import LuceneIndexer
from pyserini.search.lucene import LuceneSearcher

BATCH = 1000


def build(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    indexer = LuceneIndexer(str(folder))
    for part in spans(len(data.ids), BATCH):
        rows = zip(data.ids[part], data.texts[part], strict=True)
        indexer.add_batch_dict([{"id": id_, "contents": text} for id_, text in rows])
        told(part.stop)
    indexer.close()
    searcher = LuceneSearcher(str(folder))

    def search(asked: Asked) -> list[str]:
        return [hit.docid for hit in searcher.search(asked.text, k=asked.k)]

    return {"bm25": search}


if __name__ == "__main__":
    measured(("bm25",), build)
