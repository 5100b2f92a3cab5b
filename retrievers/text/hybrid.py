"""Hybrid. Reciprocal Rank Fusion. Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114

BM25 and one dense encoder over one store: each route gives its best 100 or more, and an item's score is the sum of
1 / (60 + rank). Milvus' own hybrid search does the fusing. Without an encoder (its weights are not here yet) it is
BM25 alone, with BM25's scores; items added in that time are found by the dense route once they are added again. So it
is for a query in a script that the encoder cannot read: its vectors would only push right answers down. On a server
without sparse vectors it is the dense route alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np

from ... import progress
from ...errors import StoreError
from ..base import Encoder, Hit, Item, Query, Retriever, Route, Side, Space, StoreStats, Where
from ..searchable import searchable_text
from ..stores.lexicon import LEXICAL
from ..stores.milvus import MilvusStore, batched
from ._stored import BATCH, store_in, text_of
from .analysis import terms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ..parts import Parts


class Hybrid(Retriever):
    """BM25 and `encoder` over `store`.

    Args:
        store: has the encoder's space.
        encoder: None for BM25 alone.
    """

    def __init__(self, store: MilvusStore, encoder: Encoder | None) -> None:
        if encoder is not None and encoder.space not in store.spaces:
            raise StoreError(
                f"The store has no space `{encoder.space.name}`.",
                "Index anew with this encoder, or open with the old one.",
            )
        self.store = store
        self.encoder = encoder

    @classmethod
    def load(cls, card: Card, parts: Parts, folder: Path | None = None) -> Hybrid:
        """With the profile's encoder, over a store in `folder` or in a temporary one.

        Raises:
            MissingWeights: the encoder's weights are not on this machine.
        """
        encoder = parts.encoder()
        settings = parts.settings
        return cls(store_in(folder, [encoder.space], settings.store_uri, settings.store_token), encoder)

    @classmethod
    def tiny(cls, seed: int = 0) -> Hybrid:
        """Random term vectors over an empty temporary store."""
        encoder = RandomTerms(seed)
        return cls(store_in(None, [encoder.space]), encoder)

    @property
    def mode(self) -> Literal["hybrid", "lexical"]:
        """How it searches."""
        return "lexical" if self.encoder is None else "hybrid"

    def add(self, items: Sequence[Item]) -> None:
        for done, part in enumerate(batched(items, BATCH)):
            progress.step(done * BATCH, len(items), "passages")
            vectors = {} if self.encoder is None else {self.encoder.space.name: self.encoder.encode(part, "document")}
            self.store.upsert(part, vectors)

    def delete(self, where: Where) -> int:
        return self.store.delete(where)

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        routes = [Route(LEXICAL, text=text_of(query))]
        if self.encoder is not None and (self.encoder.reads(query) or not self.store.lexical):
            routes.append(Route(self.encoder.space, vector=self.encoder.encode([query], "query")[0]))
        return self.store.search(routes, k, where)

    def stats(self) -> StoreStats:
        return self.store.stats()

    def save(self, folder: Path) -> None:
        """Write the items and vectors into `folder`; the encoder is not saved."""
        self.store.save(folder)

    @classmethod
    def open(cls, folder: Path, encoder: Encoder | None = None) -> Hybrid:
        """What was saved in `folder`; BM25 alone unless the encoder that it was built with is given."""
        return cls(MilvusStore.existing(folder), encoder)


class RandomTerms(Encoder):
    """For `tiny`: the sum of a fixed random vector per term, so that texts with common words are near each other."""

    space = Space("random_terms", "dense", 16)

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        texts = [searchable_text(given) if isinstance(given, Item) else given.text or "" for given in inputs]
        summed = np.array([self._sum(text) for text in texts], np.float32).reshape(len(texts), self.space.dim)
        unit: np.ndarray = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return unit

    def _sum(self, text: str) -> np.ndarray:
        found = [crc32(term.encode("utf-8", "surrogatepass")) for term in terms(text, "query")]
        drawn = [np.random.default_rng((self._seed, term)).normal(size=self.space.dim) for term in (0, *found)]
        summed: np.ndarray = np.sum(drawn, axis=0)
        return summed
