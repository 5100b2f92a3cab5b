"""Hybrid. Reciprocal Rank Fusion. Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114

BM25 and one dense encoder over one store: each route gives its best 100 or more, and an item's score is the sum of
1 / (60 + rank). Milvus' own hybrid search does the fusing. Without an encoder (its weights are not here yet) it is
BM25 alone, with BM25's scores; items added in that time are found by the dense route once they are added again. So it
is for a query in a script that the encoder cannot read: its vectors would only push right answers down. On a server
without sparse vectors it is the dense route alone.

A library may have further spaces (see `further`), each a route of its own for the queries that its encoder reads: one
of many languages, one of pictures. Then every route gives its list, and the lists are fused here in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np

from ... import progress
from ...errors import StoreError, Unsupported
from .._stored import BATCH, store_in, text_of
from ..base import Encoder, Hit, Item, Query, Retriever, Route, Side, Space, StoreStats, Where
from ..fusion import Ranked, by_rank
from ..languages import across, by_language
from ..scripts import english
from ..searchable import searchable_text
from ..stores.lexicon import LEXICAL
from ..stores.milvus import DEPTH, MilvusStore, batched
from .analysis import terms

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ..further import Further
    from ..parts import Parts


class Hybrid(Retriever):
    """BM25 and `encoder` over `store`, and `further` spaces beside it.

    Args:
        store: has the encoder's space.
        encoder: None for BM25 alone.
        routes: names of the spaces that are asked; None for all.
    """

    def __init__(
        self,
        store: MilvusStore,
        encoder: Encoder | None,
        further: Sequence[Further] = (),
        routes: Collection[str] | None = None,
    ) -> None:
        if encoder is not None and encoder.space not in store.spaces:
            raise StoreError(
                f"The store has no space `{encoder.space.name}`.",
                "Index anew with this encoder, or open with the old one.",
            )
        self.store = store
        self.encoder = encoder
        self.further = tuple(further)
        self._routes = routes

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
            for one in self.further:
                one.add(part)

    def delete(self, where: Where) -> int:
        ids = self.store.ids(where) if self.further else []
        deleted = self.store.delete(where)
        for one in self.further:
            one.delete(ids)
        return deleted

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        """See `Retriever`.

        Raises:
            Unsupported: no route reads such a query.
        """
        routes = self._base_routes(query) if query.media is None or query.text is not None else []
        asked = [one for one in self.further if self._may(one.name) and one.encoder.reads(query)]
        if not asked:
            if not routes:
                raise Unsupported("Nothing in this library reads such a query.", "Ask with words.")
            return self.store.search(routes, k, where)
        depth = max(k, DEPTH)
        lists = self.store.lists(routes, depth, where) if routes else {}
        lists |= {one.name: one.search(query, depth, where) for one in asked}
        many = next((one.name for one in asked if one.encoder.many_languages), None)
        if many is not None:
            lists = self._by_language(query.text or "", lists, many)
        fused = [[id_ for id_, _ in ranked] for ranked in lists.values()]
        ranked = next(iter(lists.values())) if len(lists) == 1 else by_rank(fused)
        return self.store.hits(ranked[:k])

    def _by_language(self, text: str, lists: dict[str, Ranked], many: str) -> dict[str, Ranked]:
        """`lists` with those of words, of the base encoder and of the space `many` fused into one."""
        ids = {name: [id_ for id_, _ in ranked] for name, ranked in lists.items()}
        base = self.encoder.space.name if self.encoder is not None else ""
        dense = ids.get(base, []) if english(text) else []
        texts = {item.id: item.text for item in self.store.get(list({id_ for found in ids.values() for id_ in found}))}
        own = {id_ for id_, passage in texts.items() if not across(text, passage)}
        fused = by_language(ids.get(LEXICAL.name, []), dense, ids[many], own)
        rest = {name: ranked for name, ranked in lists.items() if name not in (LEXICAL.name, base, many)}
        return {many: fused, **rest}

    def _base_routes(self, query: Query) -> list[Route]:
        routes = [Route(LEXICAL, text=text_of(query))] if self._may(LEXICAL.name) else []
        encoder = self.encoder
        if encoder is not None and self._may(encoder.space.name) and (encoder.reads(query) or not self.store.lexical):
            routes.append(Route(encoder.space, vector=encoder.encode([query], "query")[0]))
        return routes

    def _may(self, space: str) -> bool:
        return self._routes is None or space in self._routes

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
