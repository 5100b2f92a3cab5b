"""The further spaces of one library: which it has, and that their vectors follow its items.

A space is named by its encoder. A library gains one when somebody asks for it (`triptych index PATH --space ID`), and
by itself among those of the profile: one of pictures as soon as there are pictures, one of other languages when one
passage in twenty is not English. The catalogue remembers each with the hash of its weights. Items never change, so
keeping up is comparing ids: what lacks a vector is encoded, from the store and not from the files, and a vector whose
item is gone is deleted.

A space may stand beside the library's own search (`triptych index PATH --retriever ID`): then only a search that names
it asks it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import BadInput, MissingWeights, StoreError, Unsupported
from ..manifests.registry import card
from ..progress import step
from ..retrievers.base import MODALITIES, Hit, Query, Where
from ..retrievers.further import Further
from ..retrievers.scripts import english
from ..retrievers.stores.milvus import batched
from ..retrievers.stores.vectors import VectorStore
from .catalog import REBUILD
from .given import mark_of
from .schemas import FileProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from ..errors import TriptychError
    from ..retrievers.base import Encoder, MediaRef
    from ..retrievers.stores.milvus import MilvusStore
    from .catalog import Catalog
    from .stages import Stages

FACT = "spaces"
BESIDE = "beside"
"""The fact that names the encoders whose spaces only a search that names them asks."""
BATCH = 256
SAMPLE = 1000
"""Passages that are looked at to tell a library's language."""
UNREAD_SHARE = 0.05

log = logging.getLogger(__name__)


@dataclass
class Spaces:
    """See the module. What writes does so under the library's write lock, which the caller holds.

    Attributes:
        located: a media reference of the library as one whose `uri` is a path on this machine.
    """

    folder: Path
    catalog: Catalog
    store: MilvusStore
    stages: Stages
    located: Callable[[MediaRef], MediaRef]
    _refused: list[FileProblem] = field(default_factory=list)
    _open: dict[str, VectorStore] = field(default_factory=dict)

    def marks(self) -> dict[str, str]:
        """The spaces that the library has: encoder id → the hash of its weights."""
        found: dict[str, str] = json.loads(self.catalog.fact(FACT) or "{}")
        return found

    def beside(self) -> tuple[str, ...]:
        """The encoders whose spaces only a search that names them asks."""
        return tuple(filter(None, (self.catalog.fact(BESIDE) or "").split(",")))

    def further(self) -> tuple[Further, ...]:
        """Those of the library's own search whose encoder can be loaded; what is missing is in the stages' note.

        Raises:
            StoreError: one was built with other weights than those of today.
        """
        beside = self.beside()
        found = (self._further(name) for name in self.marks() if name not in beside)
        return tuple(one for one in found if one is not None)

    def is_stale(self, name: str) -> bool:
        """Whether a space was built with other weights than those of today."""
        return self.marks()[name] != self.mark(name)

    def search(self, name: str, query: Query, k: int, where: Where | None) -> list[Hit]:
        """The best `k` items by the space of the encoder `name` alone, with its own scores.

        Raises:
            StoreError: it was built with other weights than those of today.
            MissingWeights: the encoder's.
            Unsupported: it does not read such a query.
        """
        one = self._further(name, required=True)
        if one is None or not one.encoder.reads(query):
            raise Unsupported(f"`{name}` does not read such a query.", "Search without `--retriever`.")
        return self.store.hits(one.search(query, k, where))

    def add(self, names: Iterable[str], *, beside: bool = False) -> None:
        """Give the library the spaces of these encoders; `follow` fills them.

        Args:
            beside: only a search that names them asks them; one that the library's own search asks already stays so.

        Raises:
            UnknownSystem: no such encoder.
            BadInput: a system that is no encoder, or the library's own encoder.
            MissingWeights: of one of them.
        """
        known, apart = self.marks(), self.beside()
        for name in names:
            if not hasattr(card(name, "retriever").resolve(), "encode") or name == self.stages.settings.encoder:
                raise BadInput(f"`{name}` gives no further space.", "Name an encoder; see `triptych systems`.")
            self.stages.further(name, required=True)
            if beside and name not in known:
                apart = (*apart, name)
            elif not beside:
                apart = tuple(other for other in apart if other != name)
            known.setdefault(name, self.mark(name))
        self.catalog.set_fact(BESIDE, ",".join(apart))
        self.catalog.set_fact(FACT, json.dumps(known, sort_keys=True))

    def renew(self) -> None:
        """Throw the vectors of spaces away that were built with other weights; `follow` makes them anew."""
        marks = self.marks()
        for name in filter(self.is_stale, tuple(marks)):
            try:
                self.stages.further(name, required=True)
            except MissingWeights as error:  # nothing could fill it again
                log.info("the space of %s stays as it is: %s", name, error.message)
                continue
            self._vectors(name).erase()
            marks[name] = self.mark(name)
        self.catalog.set_fact(FACT, json.dumps(marks, sort_keys=True))

    def add_fitting(self) -> None:
        """Give the library the spaces of the profile that its contents call for, as far as their weights are here."""
        lacking = [name for name in self.stages.settings.further if name not in self.marks()]
        fitting = [name for name in lacking if self.stages.further(name) is not None and self._fits(name)]
        if fitting:
            self.add(fitting)

    def follow(self) -> int:
        """Encode what lacks a vector, delete vectors whose item is gone; answers how many vectors were made.

        Spaces beside the library's own search are left to `follow_one`.
        """
        behind = (one for one in self.further() if one.vectors.count() != self._wanted(one.encoder))
        return sum(map(self._followed, behind))

    def follow_one(self, name: str) -> int:
        """`follow`, of one encoder's space.

        Raises:
            StoreError: it was built with other weights than those of today.
            MissingWeights: the encoder's.
            BadInput: the encoder gives vectors that no store takes; what came before is kept.
        """
        one = self._further(name, required=True)
        return 0 if one is None else self._followed(one)

    def refused(self) -> list[FileProblem]:
        """The passages that have no vector because their picture cannot be read, since this was last asked."""
        told, self._refused = self._refused, []
        return told

    def remove(self, name: str) -> None:
        """Take a space from the library."""
        self._vectors(name).erase()
        left = {one: mark for one, mark in self.marks().items() if one != name}
        self.catalog.set_fact(BESIDE, ",".join(one for one in self.beside() if one != name))
        self.catalog.set_fact(FACT, json.dumps(left, sort_keys=True))

    def off(self) -> dict[str, int]:
        """Space → passages that lack a vector, or have one and are gone; only spaces where there are some.

        Of a picture that can no longer be read a vector is not expected. Of spaces beside the library's own search: see
        `off_one`.
        """
        return {one.name: wrong for one in self.further() if (wrong := self._off(one))}

    def off_one(self, name: str) -> int:
        """`off`, of one encoder's space.

        Raises:
            StoreError: it was built with other weights than those of today.
            MissingWeights: the encoder's.
        """
        one = self._further(name, required=True)
        return 0 if one is None else self._off(one)

    def counts(self) -> dict[str, int]:
        """Space → items with a vector in it."""
        opened = [self._vectors(name) for name in self.marks()]
        return {vectors.space.name: vectors.count() for vectors in opened}

    def counts_beside(self) -> dict[str, int]:
        """Encoder beside the library's own search → items with a vector of it."""
        return {name: self._vectors(name).count() for name in self.beside()}

    def note(self, query: str | None) -> str | None:
        """What to do where `query` is in a language that the library is not searched in, or None."""
        many = [name for name in self.stages.settings.further if card(name, "retriever").resolve().many_languages]
        if query is None or english(query) or not many or set(many) & self.marks().keys():
            return None
        return f"This library is searched in English. `triptych index PATH --space {many[0]}` adds other languages."

    def settle(self) -> None:
        """See `MilvusStore.settle`."""
        for vectors in self._open.values():
            vectors.settle()

    def erase(self) -> None:
        """Throw all vectors of all spaces away; the library still has the spaces, as the encoders are today."""
        for name in self.marks():
            self._vectors(name).erase()
        marks = {name: self.mark(name) for name in self.marks()}
        self.catalog.set_fact(FACT, json.dumps(marks, sort_keys=True))

    def close(self) -> None:
        """Let go of the collections."""
        for vectors in self._open.values():
            vectors.close()
        self._open.clear()

    def _off(self, one: Further) -> int:
        here, there = self._ids(one.encoder), set(one.vectors.ids())
        return len(there - here if one.encoder.looks else there ^ here)

    def _followed(self, one: Further) -> int:
        """Bring one space up to the library's items; answers how many vectors were made."""
        here, there, made = self._ids(one.encoder), set(one.vectors.ids()), 0
        one.delete(sorted(there - here))
        missing = sorted(here - there)
        for done, part in enumerate(batched(missing, BATCH)):
            step(done * BATCH, len(missing), f"vectors of {one.name}")
            made += one.add(self.store.get(part))
        one.vectors.settle()
        self._refused += [_problem(one.name, item.source.uri, error) for item, error in one.refused]
        return made

    def _further(self, name: str, *, required: bool = False) -> Further | None:
        if self.is_stale(name):
            raise StoreError(
                f"The space of `{name}` was built with other weights than those that are here.",
                REBUILD,
            )
        encoder = self.stages.further(name, required=required)
        return None if encoder is None else Further(encoder, self._vectors(name), self.located)

    def mark(self, name: str) -> str:
        """What decides the vectors of a system today, see `given.mark_of`."""
        return mark_of(name, self.stages.settings)

    def _vectors(self, name: str) -> VectorStore:
        if name not in self._open:
            settings, system = self.stages.settings, card(name, "retriever")
            brought = None if system.weights else self.stages.further(name)  # weights of one's own may have any size
            space = (brought or system.resolve()).space
            self._open[name] = VectorStore(
                self.folder,
                space,
                settings.store_uri,
                token=settings.store_token,
                shared=settings.store_collection,
            )
        return self._open[name]

    def _fits(self, name: str) -> bool:
        encoder = self.stages.further(name)
        if encoder is None:
            return False
        if encoder.looks:
            return self._wanted(encoder) > 0
        seen = [item.text for item in islice(self.store.items(), SAMPLE)]  # ids are hashes: the first are a sample
        return has_other_languages(seen)

    def _wanted(self, encoder: Encoder) -> int:
        if encoder.pages:
            return len(self._ids(encoder))
        counts = self.catalog.counts()
        return sum(counts.get(kind, 0) for kind in encoder.modalities)

    def _ids(self, encoder: Encoder) -> set[str]:
        if encoder.pages:  # which passage is the first of its page, only the passages know
            return {item.id for item in self.store.items() if encoder.encodes(item)}
        if set(encoder.modalities) == set(MODALITIES):
            return set(self.catalog.live())
        return set(self.store.ids(Where(modalities=encoder.modalities)))


def _problem(name: str, uri: str, error: TriptychError) -> FileProblem:
    message = f"`{name}` has no vector of it: {error.message}"
    return FileProblem(uri=uri, type=type(error).__name__, message=message, hint=error.hint)


def has_other_languages(texts: Sequence[str]) -> bool:
    """Whether more than `UNREAD_SHARE` of the passages are not English: then a multilingual space is worth having.

    In an English library such a space makes English questions worse (measured on Cranfield and SciFact).
    """
    return sum(not english(text) for text in texts) > UNREAD_SHARE * len(texts)
