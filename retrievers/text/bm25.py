"""BM25. The Probabilistic Relevance Framework: BM25 and Beyond. Robertson & Zaragoza 2009, doi:10.1561/1500000019

Lexical search over a store, without any model: terms as `analysis` makes them, weights as `lexicon` gives them
(k1 = 1.2, b = 0.75, a constant mean length, Lucene's non-negative idf). Titles and headings count as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import progress
from ..base import Hit, Item, Query, Retriever, Route, StoreStats, Where
from ..stores.lexicon import LEXICAL
from ..stores.milvus import MilvusStore, batched
from ._stored import BATCH, store_in, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ..parts import Parts


class BM25(Retriever):
    """The lexical route of `store`.

    Args:
        store: opened on first use; its dense spaces, if it has any, stay empty.
    """

    def __init__(self, store: MilvusStore) -> None:
        self.store = store

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None) -> BM25:
        """Over a store in `folder`, or in a temporary folder that goes when the retriever does."""
        return cls(store_in(folder, (), parts.settings.store_uri, parts.settings.store_token))

    @classmethod
    def tiny(cls, seed: int = 0) -> BM25:
        """Over an empty temporary store."""
        return cls(store_in(None, ()))

    def add(self, items: Sequence[Item]) -> None:
        for done, part in enumerate(batched(items, BATCH)):
            progress.step(done * BATCH, len(items), "passages")
            self.store.upsert(part, {})

    def delete(self, where: Where) -> int:
        return self.store.delete(where)

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        return self.store.search([Route(LEXICAL, text=text_of(query))], k, where)

    def stats(self) -> StoreStats:
        return self.store.stats()

    def save(self, folder: Path) -> None:
        self.store.save(folder)

    @classmethod
    def open(cls, folder: Path) -> BM25:
        return cls(MilvusStore.existing(folder))
