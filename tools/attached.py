"""The retrievers of one library beside its own search, each asked only when it is named.

A library gains one when somebody asks for it (`triptych index PATH --retriever ID`). An encoder becomes a further
space (see `spaces`). A system with an index of its own has a folder in the library, `retrievers/ID` (see `own_index`),
and is remembered in the catalogue with the hash of its weights. Both follow the library by comparing ids.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import Cancelled, MissingWeights, NotFound, StoreError, TimedOut, TriptychError
from ..manifests.registry import card
from ..progress import step
from ..retrievers.base import Encoder, Hit, Route, Where
from ..retrievers.stores.milvus import batched
from .catalog import REBUILD
from .own_index import OwnIndex
from .schemas import FileProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ..retrievers.base import Item, Query
    from ..retrievers.stores.milvus import MilvusStore
    from ..retrievers.text.hybrid import Hybrid
    from .catalog import Catalog
    from .spaces import Spaces
    from .stages import Stages

OWN = "hybrid"
"""The card of a library's own search."""
FACT = FOLDER = "retrievers"
BATCH = 4096
"""Items that are handed over at once: a system makes batches of its own."""

log = logging.getLogger(__name__)


@dataclass
class Attached:
    """See the module. What writes does so under the library's write lock, which the caller holds."""

    folder: Path
    catalog: Catalog
    store: MilvusStore
    stages: Stages
    spaces: Spaces
    _indexes: dict[str, OwnIndex] = field(default_factory=dict)

    def marks(self) -> dict[str, str]:
        """Those with an index of their own: id → the hash of their weights."""
        found: dict[str, str] = json.loads(self.catalog.fact(FACT) or "{}")
        return found

    def names(self) -> tuple[str, ...]:
        """Every system that the library can be searched with."""
        return (OWN, self.stages.settings.encoder, *self.spaces.marks(), *self.marks())

    def add(self, names: Iterable[str]) -> list[str]:
        """Give the library these retrievers, and answer those that it did not have; `follow` fills them.

        Raises:
            UnknownSystem: no such retriever.
            MissingWeights: of one of them.
        """
        new = []
        for name in dict.fromkeys(names):
            kind = card(name, "retriever").resolve()
            if name in self.names():
                continue
            if issubclass(kind, Encoder):
                self.spaces.add([name], beside=True)
            else:
                self._start(name)
            new.append(name)
        return new

    def search(self, name: str, query: Query, k: int, where: Where | None, own: Callable[[], Hybrid]) -> list[Hit]:
        """The best `k` items by the retriever `name` alone, with its own scores.

        Args:
            own: the library's own search.

        Raises:
            UnknownSystem: no such retriever.
            NotFound: the library does not have it.
            StoreError: it was built with other weights or settings than those of today.
            MissingWeights: they are not here.
            Unsupported: it does not read such a query.
        """
        card(name, "retriever")
        if name == OWN:
            return own().search(query, k, where)
        if name == self.stages.settings.encoder:
            encoder = self.stages.encoder()
            return self.store.search([Route(encoder.space, vector=encoder.encode([query], "query")[0])], k, where)
        if name in self.spaces.marks():
            return self.spaces.search(name, query, k, where)
        if name not in self.marks():
            known = ", ".join(f"`{one}`" for one in self.names())
            raise NotFound(
                f"The library `{self.folder.name}` has no retriever `{name}`; it has {known}.",
                f"Add it: `triptych index PATH --retriever {name}` with the same --library.",
            )
        self._check(name)
        hits = self._index(name).retriever().search(query, k, where)
        return self.store.hits([(hit.item.id, hit.score) for hit in hits])  # with the library's own items

    def follow(self, asked: Iterable[str] = ()) -> list[FileProblem]:
        """Bring every index up to the library's items; answers what is wrong with those that could not be.

        Args:
            asked: those that were added just now: what goes wrong with one of these is raised, and the library does
                not have it then.
        """
        problems, spaces = [], self.spaces.beside()
        for name in (*spaces, *self.marks()):
            try:
                if name in spaces:
                    self.spaces.follow_one(name)
                else:
                    self._follow(name)
            except (Cancelled, TimedOut):  # says nothing of the system: the next `index` goes on
                raise
            except TriptychError as error:
                if name in asked:
                    self._forget(name)
                    raise
                problems.append(_problem(name, error))
        return problems

    def off(self) -> dict[str, int]:
        """Retriever → items that its index lacks, or has and are gone; only those where there are some."""
        return {name: wrong for name in (*self.spaces.beside(), *self.marks()) if (wrong := self._off(name))}

    def counts(self) -> dict[str, int]:
        """Every system that only a search that names it asks → items that it has."""
        return {**self.spaces.counts_beside(), **{name: self._count(name) for name in self.marks()}}

    def renew(self) -> None:
        """Throw away what was built with other weights, or is not what it should be; `follow` makes it anew."""
        for name, mark in self.marks().items():
            if mark == self.spaces.mark(name) and not self._off(name):
                continue
            try:
                self._index(name).retriever()
            except MissingWeights as error:  # nothing could fill it again
                log.info("the index of %s stays as it is: %s", name, error.message)
                continue
            except StoreError as error:
                log.info("the index of %s is made anew: %s", name, error.message)
            self._empty(name)

    def erase(self) -> None:
        """Throw all indexes away; the library still has the retrievers, as their weights are today."""
        for name in self.marks():
            self._empty(name)

    def close(self) -> None:
        """Let go of all files."""
        for index in self._indexes.values():
            index.close()

    def _follow(self, name: str) -> None:
        self._check(name)
        index = self._index(name)
        had, doubt, here = index.has(), index.doubt(), self._wanted(name)
        gone, missing = (had | doubt) - here, here - (had - doubt)
        if not gone and not missing:
            return
        retriever, kept = index.retriever(), had & here - doubt
        index.begin(gone | missing)
        for part in batched(sorted(gone), BATCH):
            retriever.delete(Where(ids=tuple(part)))
        for done, items in enumerate(self._items(missing)):
            step(done * BATCH, len(missing), f"passages of {name}")
            retriever.add(items)
            kept |= {item.id for item in items}
        index.end(kept)

    def _items(self, ids: set[str]) -> Iterator[list[Item]]:
        """`ids` as the store has them, the passages of a document next to each other and in order."""
        uris = {one.id: one.uri for one in self.catalog.expected().values() if one.id in ids}
        for part in batched(sorted(ids, key=lambda id_: (uris.get(id_, ""), id_)), BATCH):
            found = self.store.get(part)
            yield sorted(found, key=lambda item: (item.source.uri, item.meta.get("ordinal", 0), item.id))

    def _wanted(self, name: str) -> set[str]:
        """The ids of the library's items that such a system indexes: whatever has a text, if it reads texts."""
        modalities = card(name, "retriever").modalities
        return set(self.catalog.live()) if "text" in modalities else set(self.store.ids(Where(modalities=modalities)))

    def _off(self, name: str) -> int:
        here, index, wrong = self._wanted(name), self._index(name), 0
        try:
            if name in self.spaces.beside():
                return self.spaces.off_one(name)
            had = index.has()
            wrong = len((had ^ here) | index.doubt())
            self._check(name)
            return wrong or abs(len(had) - index.retriever().stats().items)
        except MissingWeights:
            return wrong
        except StoreError:
            return max(1, len(here))

    def _count(self, name: str) -> int:
        try:
            return len(self._index(name).has())
        except StoreError as error:
            log.warning("%s", error)
            return 0

    def _start(self, name: str) -> None:
        """An empty index, with its models loaded."""
        index = self._index(name)
        index.clear()
        try:
            index.retriever()
        except BaseException:
            index.clear()
            raise
        self._remember({**self.marks(), name: self.spaces.mark(name)})

    def _empty(self, name: str) -> None:
        self._remember({**self.marks(), name: self.spaces.mark(name)})
        self._index(name).clear()

    def _forget(self, name: str) -> None:
        if name in self.spaces.marks():
            self.spaces.remove(name)
            return
        self._remember({one: mark for one, mark in self.marks().items() if one != name})
        self._index(name).clear()

    def _remember(self, marks: dict[str, str]) -> None:
        self.catalog.set_fact(FACT, json.dumps(marks, sort_keys=True))

    def _index(self, name: str) -> OwnIndex:
        if name not in self._indexes:
            home = self.folder / FOLDER / name
            self._indexes.setdefault(name, OwnIndex(card(name, "retriever"), home, self.stages))
        return self._indexes[name]

    def _check(self, name: str) -> None:
        if self.marks()[name] != self.spaces.mark(name):
            what = "other weights or settings than today's"
            raise StoreError(f"The retriever `{name}` was built with {what}.", REBUILD)


def _problem(name: str, error: TriptychError) -> FileProblem:
    log.warning("The retriever %s could not follow: %s", name, error.message)
    return FileProblem(uri=f"{FOLDER}/{name}", type=type(error).__name__, message=error.message, hint=error.hint)
