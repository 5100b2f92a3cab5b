"""What `--retriever NAME` stands for: a retriever, an encoder's vectors alone, or a profile as a library searches it.

Stores are temporary and always Milvus Lite, on whatever server the product's libraries are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ... import progress
from ...errors import BadInput, UnknownSystem, Unsupported
from ...manifests.registry import Card, card
from ...retrievers.base import Encoder, Hit, Item, MediaRef, Query, Route
from ...retrievers.fusion import best_first
from ...retrievers.stores.lexicon import LEXICAL
from ...retrievers.stores.milvus import MilvusStore, batched
from ...retrievers.stores.rows import checked
from ...retrievers.text.hybrid import Hybrid
from ...settings import Settings
from ..catalog import Catalog
from ..spaces import Spaces

if TYPE_CHECKING:
    from ..stages import Stages

_BATCH = 256
MOST_VECTOR_BYTES = 8 << 30
"""What the vectors of a multi-vector encoder may take: they are all in memory."""


class Searching(Protocol):
    """What a first stage can do."""

    def add(self, items: Sequence[Item]) -> None: ...

    def search(self, query: Query, k: int) -> list[Hit]: ...


@dataclass(frozen=True)
class FirstStage:
    """A first stage by its name.

    Attributes:
        system: its card; a profile's first stage is the hybrid retriever.
        settings: those that its models are loaded with.
        spaces: ids of encoders whose spaces are searched whether or not a library would gain them by itself.
    """

    name: str
    system: Card
    settings: Settings
    is_profile: bool = False
    spaces: tuple[str, ...] = ()

    @classmethod
    def named(cls, name: str, settings: Settings) -> FirstStage:
        """The retriever or encoder `name`, else the first stage of the profile `name`.

        `PROFILE+ENCODER` is the profile for a library that was told to have that encoder's space, too.

        Raises:
            UnknownSystem: it is neither.
        """
        profile, *spaces = name.split("+")
        if not spaces:
            try:
                return cls(name, card(name, "retriever"), settings)
            except UnknownSystem as unknown:
                hint = f"As a retriever: {unknown.hint} "
        else:
            hint = ""
        try:
            own = settings if profile == settings.profile else Settings.load(profile, home=settings.home)
        except BadInput as error:
            raise UnknownSystem(
                f"`{profile}` is neither a retriever nor a profile." if not spaces else f"`{profile}` is no profile.",
                f"{hint}As a profile: {error.message} {error.hint}",
            ) from None
        for space in spaces:
            card(space, "retriever")
        return cls(name, card("hybrid", "retriever"), own, is_profile=True, spaces=tuple(spaces))

    @contextmanager
    def opened(self, stages: Stages, files: Path) -> Iterator[Searching]:
        """Empty, with its models loaded.

        Args:
            files: the folder that the media of the items are in.

        Raises:
            MissingWeights: a model is not on this machine (a profile does without its encoder, and `stages` says so).
            Unsupported: a profile whose encoder has other vectors than dense ones.
        """
        kind = self.system.resolve()
        if not self.is_profile and not issubclass(kind, Encoder):
            yield kind.load(self.system, stages)
            return
        encoder = stages.encoder_or_none() if self.is_profile else kind.load(self.system, stages)
        if encoder is not None and encoder.space.kind != "dense":
            if self.is_profile:
                raise Unsupported(f"`{self.name}` has {encoder.space.kind} vectors.", "Choose a dense encoder.")
            yield Exhaustive(encoder)
            return
        own = [] if encoder is None else [encoder.space]
        with TemporaryDirectory(prefix="triptych-") as scratch, MilvusStore(Path(scratch), own) as store:
            if not self.is_profile and encoder is not None:
                yield Dense(store, encoder)
                return
            with closing(AsLibrary(Path(scratch), store, encoder, stages, files)) as library:
                library.add_spaces(self.spaces)
                yield library


class Dense:
    """One encoder's vectors alone, over `store`."""

    def __init__(self, store: MilvusStore, encoder: Encoder) -> None:
        self.store = store
        self.encoder = encoder

    def add(self, items: Sequence[Item]) -> None:
        for done, part in enumerate(batched(items, _BATCH)):
            progress.step(done * _BATCH, len(items), "passages")
            self.store.upsert(part, {self.encoder.space.name: self.encoder.encode(part, "document")})

    def search(self, query: Query, k: int) -> list[Hit]:
        [vector] = self.encoder.encode([query], "query")
        return self.store.search([Route(self.encoder.space, vector=vector)], k)


class Exhaustive:
    """One multi-vector encoder alone: MaxSim with every item, in memory, so the order is exact.

    A store would give the same order, or for large collections the best of a shortlist (see `stores.vectors`); its
    times are others.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._items: dict[str, Item] = {}
        self._vectors: dict[str, np.ndarray] = {}
        self._bytes = 0

    def add(self, items: Sequence[Item]) -> None:
        """Encode and keep.

        Raises:
            BadInput: vectors that no store would take: of another dimension, or not finite.
            Unsupported: they would take more memory than `MOST_VECTOR_BYTES`.
        """
        for done, part in enumerate(batched(items, _BATCH)):
            progress.step(done * _BATCH, len(items), "passages")
            for item, given in zip(part, self.encoder.encode(part, "document"), strict=True):
                vectors = self._unit(checked(given, self.encoder.space, len(given)))
                self._items[item.id], self._vectors[item.id] = item, vectors
                self._bytes += vectors.nbytes
            if self._bytes > MOST_VECTOR_BYTES:
                raise Unsupported(
                    f"The vectors of `{self.encoder.space.name}` take more than {MOST_VECTOR_BYTES >> 30} GB.",
                    "Measure on fewer passages.",
                )

    def search(self, query: Query, k: int) -> list[Hit]:
        [given] = self.encoder.encode([query], "query")
        asked = self._unit(np.asarray(given, np.float32))
        scores = {key: float((asked @ vectors.T).max(axis=1).sum()) for key, vectors in self._vectors.items()}
        return [Hit(self._items[key], score) for key, score in best_first(scores)[:k]]

    def _unit(self, rows: np.ndarray) -> np.ndarray:
        if self.encoder.space.metric != "cosine":
            return rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: np.ndarray = rows / np.where(lengths > 0, lengths, 1.0)
        return unit


class AsLibrary:
    """A profile's first stage with the spaces that a library of these items has: by the library's own rule.

    Args:
        folder: scratch, for the catalogue and the vectors of further spaces.
        files: the folder that the media of the items are in.
    """

    def __init__(self, folder: Path, store: MilvusStore, encoder: Encoder | None, stages: Stages, files: Path) -> None:
        def located(media: MediaRef) -> MediaRef:
            return replace(media, uri=str(files / media.uri))

        self.store = store
        self.encoder = encoder
        self._catalog = Catalog(folder)
        self._spaces = Spaces(folder, self._catalog, store, stages, located)
        self._hybrid = Hybrid(store, encoder)

    def asked(self, queries: Iterable[Query]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the spaces that at least one of `queries` asks, and of those that none does."""
        queries = list(queries)
        encoders = [*([self.encoder] if self.encoder else []), *(one.encoder for one in self._hybrid.further)]
        reads = {encoder.space.name: any(map(encoder.reads, queries)) for encoder in encoders}
        asked = tuple(name for name, some in reads.items() if some)
        return (LEXICAL.name, *asked), tuple(name for name, some in reads.items() if not some)

    def add_spaces(self, names: Sequence[str]) -> None:
        """As `triptych index --space`.

        Raises:
            BadInput: a system that is no encoder, or the profile's own.
            MissingWeights: of one of them.
        """
        self._spaces.add(names)

    def add(self, items: Sequence[Item]) -> None:
        self._hybrid.add(items)
        self._catalog.adopt([replace(item, meta={"ordinal": 0, **item.meta}) for item in items])
        self._spaces.add_fitting()
        self._spaces.follow()
        self._spaces.settle()
        self._hybrid = Hybrid(self.store, self.encoder, self._spaces.further())

    def search(self, query: Query, k: int) -> list[Hit]:
        return self._hybrid.search(query, k)

    def close(self) -> None:
        self._spaces.close()
        self._catalog.close()
