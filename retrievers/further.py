"""A further space of a library: who encodes it, and the collection beside the base one that holds its vectors."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import Forbidden, NotFound, UnreadableFile
from .base import Encoder, Item, MediaRef, Query, Where

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..errors import TriptychError
    from .fusion import Ranked
    from .stores.vectors import VectorStore

log = logging.getLogger(__name__)
UNREADABLE = (UnreadableFile, NotFound, Forbidden)
"""What is raised for a picture that cannot be read: about that item alone. Everything else is about the encoder."""


@dataclass(frozen=True)
class Further:
    """One space beside the base collection.

    Attributes:
        located: a media reference of the library as one whose `uri` is a path on this machine.
        refused: the items that `add` could not have encoded, and why.
    """

    encoder: Encoder
    vectors: VectorStore
    located: Callable[[MediaRef], MediaRef]
    refused: list[tuple[Item, TriptychError]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The space's."""
        return self.encoder.space.name

    def add(self, items: Sequence[Item]) -> int:
        """Encode and keep those of `items` that can have a vector; answers how many have one now.

        An item whose picture cannot be read any more has none, and is among the `refused`.
        """
        wanted = list({item.id: item for item in items if self.encoder.encodes(item)}.values())
        if not wanted:
            return 0
        kept, vectors = self._encoded(wanted)
        if kept:
            self.vectors.upsert(kept, vectors)
        return len(kept)

    def delete(self, ids: Sequence[str]) -> None:
        """Throw the vectors of `ids` away."""
        if ids:
            self.vectors.delete(Where(ids=tuple(ids)))

    def search(self, query: Query, k: int, where: Where | None = None) -> Ranked:
        """The best `k` ids of this space alone."""
        [vector] = self.encoder.encode([query], "query")
        return self.vectors.search(vector, k, where)

    def _encoded(self, items: Sequence[Item]) -> tuple[list[Item], Any]:
        if not self.encoder.looks:
            return list(items), self.encoder.encode(items, "document")
        try:
            return list(items), self.encoder.encode([self._with_path(item) for item in items], "document")
        except UNREADABLE:
            return self._encoded_one_by_one(items)

    def _encoded_one_by_one(self, items: Sequence[Item]) -> tuple[list[Item], list[Any]]:
        """Without those that cannot be read: a batch does not say which of it these are."""
        kept, vectors = [], []
        for item in items:
            try:
                vectors += list(self.encoder.encode([self._with_path(item)], "document"))
                kept.append(item)
            except UNREADABLE as error:
                self.refused.append((item, error))
                log.warning("no vector of %s: %s", item.source.uri, error.message)
        return kept, vectors

    def _with_path(self, item: Item) -> Item:
        return item if item.media is None else replace(item, media=self.located(item.media))
