"""An open library: its catalogue, its store, and the retriever over both. `library.py` puts the stages around it.

A library's folder holds `catalog.sqlite`, the Milvus Lite folder `milvus.db` (unless a server is used), and
`write.lock`, which one writer at a time holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..errors import BadInput, NotFound, StoreError
from ..manifests.registry import card
from ..retrievers.base import Query, Where
from ..retrievers.readers.base import Limits
from ..retrievers.readers.detect import archive_of
from ..retrievers.stores.lexicon import LEXICAL
from .attached import Attached
from .catalog import FILE, Catalog, FileRow
from .checking import verified
from .given import mark_of
from .indexing import ARCHIVES, Indexing
from .mending import Mending
from .operations import Clock
from .roots import Found, Roots, covers, existing, files_at, files_below
from .schemas import FileProblem, IndexOut, LibraryOut, RebuildOut, VerifyOut
from .spaces import BESIDE, Spaces
from .spaces import FACT as SPACES
from .writing import LOCK, clear_leftovers, delete_passages, writing

if TYPE_CHECKING:
    from ..retrievers.base import Encoder, Hit, Item, MediaRef, Space
    from ..retrievers.stores.milvus import MilvusStore
    from ..retrievers.text.hybrid import Hybrid
    from .stages import Stages

ROUTES = "routes"
"""The fact that names the spaces which searches ask; without it they ask all."""


def is_library(folder: Path) -> bool:
    """Whether a library was made in `folder`."""
    return (folder / FILE).is_file()


class Collection:
    """See the module. Reading is safe from many threads; writing takes the write lock."""

    def __init__(self, folder: Path, catalog: Catalog, store: MilvusStore, stages: Stages) -> None:
        self._folder = folder
        self._space = store.spaces[0]
        self._catalog = catalog
        self._store = store
        self._stages = stages
        self._retriever: Hybrid | None = None
        self._built_for: tuple[object, ...] | None = None
        self.spaces = Spaces(folder, catalog, store, stages, self.located)
        self.attached = Attached(folder, catalog, store, stages, self.spaces)
        self._lock = RLock()
        self._lost: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """That of its folder."""
        return self._folder.name

    @classmethod
    def open(cls, folder: Path, stages: Stages, *, rebuild: bool = False) -> Collection:
        """Open (or make) the library in `folder`, clear what a crash left, and count.

        Args:
            rebuild: whatever state the store is in, it will be thrown away by `index`: do not look at it.

        Raises:
            StoreError: it was built with another encoder, or the store cannot be opened.
        """
        from ..retrievers.stores.milvus import MilvusStore

        catalog = Catalog(folder)
        try:
            if not rebuild:
                _check_encoder(catalog, stages, folder.name)
            settings = stages.settings
            store = MilvusStore(
                folder,
                [_space(stages)],
                settings.store_uri,
                token=settings.store_token,
                shared=settings.store_collection,
            )
            made = cls(folder, catalog, store, stages)
            if not rebuild:
                made._mend()
        except BaseException:
            catalog.close()
            raise
        return made

    def index(
        self,
        paths: Sequence[Path],
        *,
        prune: bool,
        rebuild: bool,
        spaces: Sequence[str] = (),
        routes: Sequence[str] | None = None,
        retrievers: Sequence[str] = (),
    ) -> IndexOut:
        """See `Triptych.index`."""
        clock = Clock()
        targets = [existing(path) for path in paths]
        with writing(self._folder):
            opened = {row.uri for row in self._catalog.files() if row.mime in ARCHIVES} if rebuild else ()
            if rebuild:
                targets += self._start_anew()
            if spaces:
                self.spaces.add(spaces)
            new = self.attached.add(retrievers)
            if routes is not None:
                self._choose(routes)
            roots = self._with_roots_for(targets)
            found = list({file.uri: file for target in targets for file in files_below(target, roots)}.values())
            return self._bring(found, self._gone(targets, found, roots) if prune else [], clock, opened, new)

    def _choose(self, routes: Sequence[str]) -> None:
        """Remember the spaces that searches ask; none: all of them."""
        known = [LEXICAL.name, self._space.name, *self.spaces.counts()]
        unknown = next((name for name in routes if name not in known), None)
        if unknown is not None:
            raise BadInput(f"The library has no space `{unknown}`.", f"It has: {', '.join(known)}.")
        self._catalog.set_fact(ROUTES, ",".join(routes))

    def follow(self, changed: Mapping[Path, Iterable[Path]]) -> IndexOut:
        """Bring in what changed on disk: new and changed files are indexed, files that are gone are removed.

        Args:
            changed: paths, there or gone, by the indexed folder (or file) that they are in.
        """
        clock = Clock()
        with writing(self._folder):
            roots = self._with_roots_for(list(changed))
            found = {file.uri: file for top, paths in changed.items() for file in files_at(paths, top, roots)}
            uris = {roots.uri_of(path) for paths in changed.values() for path in paths}
            rows = [row for uri in uris for row in (*self._catalog.files(f"{uri}/"), self._catalog.file(uri)) if row]
            gone = {row.uri: row for row in rows if row.uri not in found and roots.find(row.uri) is None}
            return self._bring(list(found.values()), list(gone.values()), clock)

    def _bring(
        self, found: list[Found], gone: list[FileRow], clock: Clock, opened: Iterable[str] = (), new: Iterable[str] = ()
    ) -> IndexOut:
        """Index and remove, of archives also those in `opened`; and fill `new` retrievers. Only within `writing`."""
        clear_leftovers(self.retriever(), self._catalog)
        encoder = self._stages.encoder_or_none()
        self._remember_encoder(encoder)
        lost = self._catalog.files_of(self._missing())
        encoded, limits = encoder is not None, self._limits()
        run = Indexing(self.retriever(), self._catalog, encoded=encoded, suspect=lost, limits=limits, opened=opened)
        try:
            run.run(found)
            run.remove(gone)
        finally:
            self._store.settle()
            self.spaces.settle()
        self.spaces.add_fitting()
        self.spaces.follow()
        behind = self.attached.follow(new)
        self._lost = tuple(self._missing())
        tally = run.tally
        return IndexOut(
            library=self._folder.name,
            files=tally.files,
            indexed=tally.indexed,
            unchanged=tally.unchanged,
            removed=tally.removed,
            items=sum(self._catalog.counts().values()),
            problems=[*tally.problems, *behind, *self.spaces.refused()],
            ms=clock.total(),
        )

    def search(self, query: Query, k: int, where: Where | None, retriever: str | None = None) -> list[Hit]:
        """At most `k` hits of the first stage, best first; of the retriever that is named, where one is."""
        if retriever is not None:
            return self.attached.search(retriever, query, k, where, self.retriever)
        return self.retriever().search(query, k, where)

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Items by id, in the order asked; unknown ids are left out."""
        return self._store.get(ids)

    def successor(self, passage_id: str) -> str | None:
        """The passage that took the place of an outdated id, or None."""
        return self._catalog.successor(passage_id)

    def path_of(self, uri: str) -> Path:
        """The file that `uri` means."""
        return Roots(self._catalog.roots()).path_of(uri)

    def looks(self, retriever: str | None = None) -> bool:
        """Whether it can be asked with a picture: its own search, or one of its retrievers."""
        if retriever is not None and retriever in self.spaces.marks():
            found = self._stages.further(retriever, required=True)
            return found is not None and found.looks
        return any(one.encoder.looks for one in self.retriever().further)

    def located(self, media: MediaRef) -> MediaRef:
        """`media` with the path of its file as uri."""
        return replace(media, uri=str(self.path_of(media.uri)))

    def delete(self, where: Where) -> int:
        """Remove passages by id or by the start of their uri; returns how many."""
        with writing(self._folder):
            ids = list(where.ids) or [
                one for row in self._catalog.files(where.uri_prefix) for one in self._catalog.live(row.uri)
            ]
            known = self._catalog.live()
            unknown = next((one for one in ids if one not in known), None)
            if unknown is not None:
                raise NotFound(f"There is no passage `{unknown}`.", "Take ids from `search` or `retrieve`.")
            deleted = delete_passages(self.retriever(), self._catalog, ids)
            self._catalog.forget_empty()
            self._store.flush()
            self.attached.follow()
        return deleted

    def status(self) -> dict[str, Any]:
        """Counts, the store, health and problems: the fields of `StatusOut` that a library knows."""
        rows = self._catalog.files()
        counts = self._catalog.counts()
        stats, beside = self._store.stats(), self.attached.counts()
        return {
            "files": sum(row.was_read for row in rows),
            "items": sum(counts.values()),
            "by_modality": counts,
            "store": {
                "backend": stats.backend,
                "version": stats.version,
                "can": list(stats.can),
                "items": stats.items,
                "spaces": [*stats.spaces, *self.spaces.counts()],
                **({"retrievers": beside} if beside else {}),
            },
            "healthy": not self._lost,
            "problems": [_problem(row) for row in rows if row.error_type is not None],
        }

    def verify(self) -> VerifyOut:
        """Whether everything that was acknowledged is there as it was written; see `checking`."""
        with writing(self._folder):
            if self._catalog.leftovers():
                clear_leftovers(self.retriever(), self._catalog)
            return verified(self._folder.name, self._catalog, self._store, self._space.name, self.spaces, self.attached)

    def rebuild(self, targets: Sequence[Path], *, adopt: bool) -> RebuildOut:
        """Mend what is damaged; see `mending`. Only within `writing`.

        Args:
            targets: resolved files and folders to index as well.
            adopt: the catalogue is new: take over what the store has.
        """
        clock = Clock()
        _check_encoder(self._catalog, self._stages, self._folder.name)
        encoder = self._stages.encoder() if self._catalog.fact("encoder") else self._stages.encoder_or_none()
        self._remember_encoder(encoder)
        self.spaces.renew()
        self._with_roots_for(targets)
        remote = bool(self._stages.settings.store_uri)
        mending = Mending(self._catalog, self._store, self.retriever(), self._space.name, self._limits(), remote=remote)
        try:
            mending.run(targets, adopt=adopt)
            self.spaces.follow()
            self.attached.renew()
            mending.problems += [*self.attached.follow(), *self.spaces.refused()]
        finally:
            self._store.flush()
            self.spaces.settle()
        self._lost = tuple(self._missing())
        return mending.out(self._folder.name, sum(self._catalog.counts().values()), clock.total())

    def note(self, query: str | None = None) -> str | None:
        """What a reader of answers (to `query`) should know about the library, or None."""
        notes = [self._store.note(), self.spaces.note(query)]
        if self._lost:
            total = sum(self._catalog.counts().values())
            lost = f"The store lost {len(self._lost)} of {total} passages"
            notes.append(f"{lost}: run `triptych index` on its folders again.")
        return " ".join(filter(None, notes)) or None

    def warm(self) -> None:
        """Search once, so that the store has built what it builds on its first search."""
        self.search(Query(text="warm"), 1, None)

    def close(self) -> None:
        """Let go of the files."""
        self.attached.close()
        self.spaces.close()
        self._store.close()
        self._catalog.close()

    def retriever(self) -> Hybrid:
        """The hybrid retriever; made anew when the encoder's weights have come or the library's spaces change."""
        from ..retrievers.text.hybrid import Hybrid

        with self._lock:
            encoder = self._stages.encoder_or_none()
            wanted = (encoder is None, *map(self._catalog.fact, (SPACES, BESIDE, ROUTES)))
            if self._retriever is None or self._built_for != wanted:
                routes = self._catalog.fact(ROUTES)
                allowed = routes.split(",") if routes else None
                self._retriever = Hybrid(self._store, encoder, self.spaces.further(), allowed)
                self._built_for = wanted
            return self._retriever

    def _mend(self) -> None:
        """Unless somebody is writing now: clear what a crash left, and notice what the store has lost."""
        lock = FileLock(self._folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        try:
            if self._catalog.leftovers():
                clear_leftovers(self.retriever(), self._catalog)
            self._lost = tuple(self._missing())
        finally:
            lock.release()

    def _missing(self) -> list[str]:
        """Live passages that the store does not have: one count when all is well, ids only when it is not."""
        if self._store.count() == sum(self._catalog.counts().values()):
            return []
        present = set(self._store.ids())
        return [one for one in self._catalog.live() if one not in present]

    def _start_anew(self) -> list[Path]:
        """Empty store and catalogue; answers the files that were in them and are still there."""
        roots = Roots(self._catalog.roots())
        paths = [path for row in self._catalog.files() if (path := roots.find(row.uri)) is not None]
        known = list(dict.fromkeys(archive_of(path) or path for path in paths))
        self._store.erase()
        self.spaces.erase()
        self.attached.erase()
        self._catalog.start_anew()
        return known

    def _with_roots_for(self, targets: Sequence[Path]) -> Roots:
        for target in targets:
            roots = Roots(self._catalog.roots())
            if not roots.holds(target):
                folder = target if target.is_dir() else target.parent
                self._catalog.add_root(roots.label_for(folder), str(folder))
        return Roots(self._catalog.roots())

    def _gone(self, targets: Sequence[Path], found: Sequence[Found], roots: Roots) -> list[FileRow]:
        """Catalogued files below `targets` that were not found. (A target that is a file is there.)"""
        here = {file.uri for file in found}
        folders = [target for target in targets if target.is_dir()]
        below = [row for folder in folders for row in self._catalog.files(f"{roots.uri_of(folder)}/")]
        return [row for row in {row.uri: row for row in below}.values() if not covers(here, row.uri)]

    def _limits(self) -> Limits:
        settings = self._stages.settings
        return Limits(weights=settings.weights, speech=settings.speech, tags=settings.tags, archives=settings.archives)

    def _remember_encoder(self, encoder: Encoder | None) -> None:
        if encoder is not None and self._catalog.fact("encoder") is None:
            self._catalog.set_fact("encoder", _encoder_mark(self._stages))


def summary(folder: Path) -> LibraryOut:
    """A library's counts, from its catalogue alone; unhealthy when that cannot be read."""
    try:
        catalog = Catalog(folder)
    except StoreError:
        return LibraryOut(name=folder.name, files=0, items=0, healthy=False)
    try:
        files = sum(row.was_read for row in catalog.files())
        return LibraryOut(name=folder.name, files=files, items=sum(catalog.counts().values()), healthy=True)
    finally:
        catalog.close()


def _problem(row: FileRow) -> FileProblem:
    return FileProblem(
        uri=row.uri, type=row.error_type or "", message=row.error_message or "", hint=row.error_hint or ""
    )


def _encoder_mark(stages: Stages) -> str:
    """The encoder's id and the hash of its weights: equal marks mean comparable vectors."""
    wanted = stages.settings.encoder
    return f"{wanted} {mark_of(wanted, stages.settings)}"


def _space(stages: Stages) -> Space:
    """Of the profile's encoder: weights that the user brought, and endpoints, decide themselves how long vectors are.

    Raises:
        MissingWeights: only they know, and they are not here.
        BadInput: it looks at pictures.
    """
    system = card(stages.settings.encoder, "retriever")
    encoder = system.resolve() if system.weights else stages.encoder()
    if encoder.looks:
        hint = f"Name it in the setting `spaces`, or ask for it: `triptych index PATH --retriever {system.id}`."
        raise BadInput(f"The encoder `{system.id}` looks at pictures, and a library's own reads text.", hint)
    space: Space = encoder.space
    return space


def _check_encoder(catalog: Catalog, stages: Stages, name: str) -> None:
    built = catalog.fact("encoder")
    if built is not None and built != _encoder_mark(stages):
        raise StoreError(
            f"The library `{name}` was built with `{built.split()[0]}`; the profile's encoder is "
            f"`{stages.settings.encoder}`, or another version of it.",
            "Open it with that encoder (TRIPTYCH_ENCODER), or index the files into a new library.",
        )
