"""The further spaces of one library: which it has, and that their vectors follow its items.

A space is named by its encoder. A library gains one when somebody asks for it (`triptych index PATH --space ID`), and
by itself among those of the profile: one of pictures as soon as there are pictures, one of other languages when one
passage in twenty is not English. The catalogue remembers each with the hash of its weights. Items never change, so
keeping up is comparing ids: what lacks a vector is encoded, from the store and not from the files, and a vector whose
item is gone is deleted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import BadInput, StoreError
from ..manifests.registry import card
from ..manifests.weights import hash_of
from ..progress import step
from ..retrievers.base import MODALITIES, Where
from ..retrievers.further import Further
from ..retrievers.scripts import english
from ..retrievers.stores.milvus import batched
from ..retrievers.stores.vectors import VectorStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from ..retrievers.base import Encoder, MediaRef
    from ..retrievers.stores.milvus import MilvusStore
    from .catalog import Catalog
    from .stages import Stages

FACT = "spaces"
BATCH = 256
SAMPLE = 1000
"""Passages that are looked at to tell a library's language."""
UNREAD_SHARE = 0.05


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
    _open: dict[str, VectorStore] = field(default_factory=dict)

    def marks(self) -> dict[str, str]:
        """The spaces that the library has: encoder id → the hash of its weights."""
        found: dict[str, str] = json.loads(self.catalog.fact(FACT) or "{}")
        return found

    def further(self) -> tuple[Further, ...]:
        """Those whose encoder can be loaded; what is missing is in the stages' note.

        Raises:
            StoreError: one was built with other weights than those of today.
        """
        found = []
        for name, built in self.marks().items():
            if built != _mark(name):
                raise StoreError(
                    f"The space of `{name}` was built with other weights than those that are here.",
                    "Run `triptych index --rebuild` on the library's folders.",
                )
            encoder = self.stages.further(name)
            if encoder is not None:
                found.append(Further(encoder, self._vectors(name), self.located))
        return tuple(found)

    def add(self, names: Iterable[str]) -> None:
        """Give the library the spaces of these encoders; `follow` fills them.

        Raises:
            UnknownSystem: no such encoder.
            BadInput: a system that is no encoder, or the library's own encoder.
            MissingWeights: of one of them.
        """
        known = self.marks()
        for name in names:
            if not hasattr(card(name, "retriever").resolve(), "encode") or name == self.stages.settings.encoder:
                raise BadInput(f"`{name}` gives no further space.", "Name an encoder; see `triptych systems`.")
            self.stages.further(name, required=True)
            known[name] = _mark(name)
        self.catalog.set_fact(FACT, json.dumps(known, sort_keys=True))

    def add_fitting(self) -> None:
        """Give the library the spaces of the profile that its contents call for, as far as their weights are here."""
        lacking = [name for name in self.stages.settings.further if name not in self.marks()]
        fitting = [name for name in lacking if self.stages.further(name) is not None and self._fits(name)]
        if fitting:
            self.add(fitting)

    def follow(self) -> int:
        """Encode what lacks a vector, delete vectors whose item is gone; answers how many vectors were made."""
        made = 0
        for one in self.further():
            wanted = self._wanted(one.encoder)
            if one.vectors.count() == wanted:
                continue
            here, there = self._ids(one.encoder), set(one.vectors.ids())
            one.delete(sorted(there - here))
            missing = sorted(here - there)
            for done, part in enumerate(batched(missing, BATCH)):
                step(done * BATCH, len(missing), f"vectors of {one.name}")
                made += one.add(self.store.get(part))
            one.vectors.settle()
        return made

    def off(self) -> dict[str, int]:
        """Space → passages that lack a vector, or have one and are gone; only spaces where there are some.

        Of a picture that can no longer be read a vector is not expected.
        """
        found = {}
        for one in self.further():
            here, there = self._ids(one.encoder), set(one.vectors.ids())
            wrong = there - here if one.encoder.looks else there ^ here
            if wrong:
                found[one.name] = len(wrong)
        return found

    def counts(self) -> dict[str, int]:
        """Space → items with a vector in it."""
        opened = [self._vectors(name) for name in self.marks()]
        return {vectors.space.name: vectors.count() for vectors in opened}

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
        marks = {name: _mark(name) for name in self.marks()}
        self.catalog.set_fact(FACT, json.dumps(marks, sort_keys=True))

    def close(self) -> None:
        """Let go of the collections."""
        for vectors in self._open.values():
            vectors.close()
        self._open.clear()

    def _vectors(self, name: str) -> VectorStore:
        if name not in self._open:
            settings, space = self.stages.settings, card(name, "retriever").resolve().space
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
        counts = self.catalog.counts()
        return sum(counts.get(kind, 0) for kind in encoder.modalities)

    def _ids(self, encoder: Encoder) -> set[str]:
        if set(encoder.modalities) == set(MODALITIES):
            return set(self.catalog.live())
        return set(self.store.ids(Where(modalities=encoder.modalities)))


def _mark(name: str) -> str:
    return ",".join(hash_of(weights) for weights in card(name, "retriever").weights)


def has_other_languages(texts: Sequence[str]) -> bool:
    """Whether more than `UNREAD_SHARE` of the passages are not English: then a multilingual space is worth having.

    In an English library such a space makes English questions worse (measured on Cranfield and SciFact).
    """
    return sum(not english(text) for text in texts) > UNREAD_SHARE * len(texts)
