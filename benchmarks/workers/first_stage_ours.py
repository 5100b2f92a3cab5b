"""Ours: the product's retriever over its Milvus Lite store, lexical alone or with the given vectors beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pymilvus  # noqa: F401 (ours loads it late; rivals' imports are not timed either)
from _first_stage import Asked, Data, Search, Told, measured, spans
from _worker import read

from triptych.retrievers._stored import BATCH
from triptych.retrievers.base import Encoder, Hit, Item, Query, Route, Source
from triptych.retrievers.scripts import latin_share
from triptych.retrievers.stores.lexicon import LEXICAL
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.text.hybrid import Hybrid


class Given(Encoder):
    """Answers with the prepared vectors, as the model that made them would, so that only the index is measured."""

    space = AllMiniLM.space

    def __init__(self, data: Data) -> None:
        self._items = dict(zip(data.ids, data.vectors, strict=True))
        self._queries = dict(zip(data.queries, data.query_vectors, strict=True))

    def reads(self, query: Query) -> bool:
        return latin_share(query.text or "") >= 0.5

    def encode(self, inputs: Any, side: str) -> np.ndarray:
        if side == "query":
            return np.stack([self._queries[query.text] for query in inputs])
        return np.stack([self._items[item.id] for item in inputs])


def lexical(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    retriever = BM25(MilvusStore(folder))
    fill(retriever, data, told)
    return {"bm25": lambda asked: ids(retriever.search(Query(asked.text), asked.k))}


def hybrid(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    store = MilvusStore(folder, [Given.space])
    retriever = Hybrid(store, Given(data))
    fill(retriever, data, told)

    def dense(asked: Asked) -> list[str]:
        return ids(store.search([Route(Given.space, vector=asked.vector)], asked.k))

    def lexical(asked: Asked) -> list[str]:
        return ids(store.search([Route(LEXICAL, text=asked.text)], asked.k))

    return {"dense": dense, "bm25": lexical, "hybrid": lambda asked: ids(retriever.search(Query(asked.text), asked.k))}


def fill(retriever: BM25 | Hybrid, data: Data, told: Told) -> None:
    for part in spans(len(data.ids), BATCH):
        rows = zip(data.ids[part], data.texts[part], strict=True)
        retriever.add([Item(id_, text, Source("")) for id_, text in rows])
        told(part.stop)
    retriever.store.settle()


def ids(hits: list[Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


if __name__ == "__main__":
    measured((), lexical if read()["routes"] == ["bm25"] else hybrid)
