"""bm25s as its own first example shows it: English stop words, the Snowball stemmer, an index in memory."""

from pathlib import Path

import bm25s
import Stemmer
from _first_stage import Asked, Data, Search, Told, measured


def build(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    stemmer = Stemmer.Stemmer("english")
    retriever = bm25s.BM25()
    corpus = bm25s.tokenize(data.texts, stopwords="en", stemmer=stemmer, show_progress=False)
    retriever.index(corpus, show_progress=False)

    def search(asked: Asked) -> list[str]:
        tokens = bm25s.tokenize([asked.text], stopwords="en", stemmer=stemmer, show_progress=False)
        k = min(asked.k, len(data.ids))
        rows, scores = retriever.retrieve(tokens, k=k, show_progress=False)
        return [data.ids[row] for row, score in zip(rows[0], scores[0], strict=True) if score > 0]

    return {"bm25": search}


if __name__ == "__main__":
    measured(("bm25",), build)
