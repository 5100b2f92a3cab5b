"""A library whose encoder needs no weights and counts what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from triptych import Settings, Triptych
from triptych.retrievers.base import Encoder, Item, Query, Space
from triptych.retrievers.searchable import searchable_text
from triptych.tools.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from triptych.retrievers.base import Side


class Counting(Encoder):
    """A random unit vector for each text; `ids` are those of the items encoded so far."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.ids: list[str] = []

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        self.ids += [given.id for given in inputs if isinstance(given, Item)]
        texts = [searchable_text(given) if isinstance(given, Item) else given.text or "" for given in inputs]
        drawn = [np.random.default_rng(crc32(text.encode())).normal(size=self.space.dim) for text in texts]
        rows = np.array(drawn, np.float32).reshape(len(texts), self.space.dim)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class CountingStages(Stages):
    """The profile's stages with a `Counting` encoder."""

    def __init__(self, settings: Settings) -> None:
        from triptych.manifests.registry import card

        super().__init__(settings)
        self.counting = Counting(card(settings.encoder, "retriever").resolve().space)

    def encoder(self) -> Counting:
        return self.counting


def counted(name: str = "facts") -> tuple[Triptych, Counting]:
    """A session with the library `name` of the home folder, and its encoder."""
    settings = Settings.load()
    stages = CountingStages(settings)
    return Triptych(name, settings, stages=stages), stages.counting
