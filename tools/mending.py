"""Mending a damaged library from its own files, without encoding again what is intact.

What is wrong is found as `verify` finds it. A passage with the right text and a wrong vector is encoded again from its
text; one whose text is lost is read again from its file, where the other passages of that file stay as they are; rows
that belong to no file go, and term statistics are counted anew. Only a store that cannot be read at all is made anew,
from the catalogue's list of files.

A damaged catalogue is put aside (`catalog.sqlite.damaged`) and made anew from what the store holds: ids, uris, texts.
Since nothing says any more that these are right, every file is read, and passages that are the same keep their vectors.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NotFound, StoreError
from ..progress import step
from ..retrievers.base import Where
from ..retrievers.readers.detect import archive_of
from ..retrievers.stores.auditing import Audit
from .catalog import FILE, REBUILD, Catalog, FileRow
from .checking import BY_SOURCE, Findings, examined
from .indexing import Indexing
from .roots import Found, Roots, files_below
from .schemas import FileProblem, RebuildOut
from .writing import BATCH

if TYPE_CHECKING:
    from ..retrievers.base import Item
    from ..retrievers.readers.base import Limits
    from ..retrievers.stores.milvus import MilvusStore
    from ..retrievers.text.hybrid import Hybrid

ASIDE = ".damaged"
ADOPTING = "adopting"
"""The fact that a catalogue is new and does not yet have everything that the store has."""
log = logging.getLogger(__name__)

_FACTS = {  # what the facts that are worth saving look like where they are undamaged
    "encoder": re.compile(r"[a-z0-9_]+ [0-9a-f,]*"),
    "spaces": re.compile(r'\{("[a-z0-9_]+": "[ -!#-\[\]-~]*"(, )?)*\}'),
    "routes": re.compile(r"[a-z0-9_,]*"),
    "beside": re.compile(r"[a-z0-9_,]*"),
    "retrievers": re.compile(r'\{("[a-z0-9_]+": "[0-9a-f,]*"(, )?)*\}'),
}
_GONE = "The file is gone."
_RESTORE = "Put it back and index its folder again, or forget it with `triptych index PATH --prune`."


class Mending:
    """One rebuild, under the library's write lock.

    Args:
        space: the dense space of every passage.
        remote: the store is on a server, where "cannot be read" does not mean "damaged".

    Attributes:
        anew: whether the store had to be thrown away.
        encoded: passages that were encoded.
        files: files that were read.
        problems: what is lost for good.
    """

    def __init__(
        self, catalog: Catalog, store: MilvusStore, retriever: Hybrid, space: str, limits: Limits, *, remote: bool
    ) -> None:
        self._remote = remote
        self._catalog = catalog
        self._store = store
        self._retriever = retriever
        self._space = space
        self._limits = limits
        self.anew = False
        self.encoded = 0
        self.files = 0
        self.problems: list[FileProblem] = []

    def run(self, targets: Sequence[Path], *, adopt: bool) -> None:
        """Mend, and index `targets`.

        Args:
            adopt: the catalogue is new: take over what the store has.

        Raises:
            StoreError: the store cannot be read, and is on a server or known to no file.
        """
        try:
            if adopt:
                self._adopt()
            found = examined(self._catalog, self._store, self._space)
        except StoreError:
            if self._remote or (adopt and not targets):
                raise
            self._make_anew(targets)
        else:
            self._mend(found, targets, every=adopt)
        self._catalog.set_fact(ADOPTING, "")

    def out(self, name: str, items: int, ms: dict[str, float]) -> RebuildOut:
        """What was done, for the library `name` with `items` passages now."""
        return RebuildOut(
            library=name,
            anew=self.anew,
            items=items,
            kept=max(0, items - self.encoded),
            encoded=self.encoded,
            files=self.files,
            problems=self.problems,
            ms=ms,
        )

    def _mend(self, found: Findings, targets: Sequence[Path], *, every: bool) -> None:
        if found.terms:
            self._store.recount()
        for part in _parts(found.extra):
            self._store.delete(Where(ids=tuple(part)))
        self._encode_again(found)
        broken = {found.uris[one] for one, faults in found.faults.items() if faults & BY_SOURCE}
        suspect = {row.uri for row in self._catalog.files()} if every else broken
        self._index(suspect, found.intact, targets)

    def _encode_again(self, found: Findings) -> None:
        """Passages of which the store has the text, and not the right vectors."""
        wrong = [one for one, faults in found.faults.items() if not faults & BY_SOURCE]
        digests = self._catalog.live() if wrong else {}
        for part in _parts(wrong):
            step(self.encoded, len(wrong), "passages")
            items = self._store.get(part)
            self._retriever.add(items)
            self.encoded += len(items)
            found.intact.update((item.id, digests[item.id]) for item in items)

    def _make_anew(self, targets: Sequence[Path]) -> None:
        self.anew = True
        known = self._catalog.files()
        self._store.erase()
        mark = self._catalog.fact("encoder")
        self._catalog.start_anew()
        if mark is not None:
            self._catalog.set_fact("encoder", mark)
        for row in known:
            self._catalog.put(row)
        self._index({row.uri for row in known}, {}, targets)

    def _index(self, suspect: Iterable[str], intact: dict[str, str], targets: Sequence[Path]) -> None:
        roots = Roots(self._catalog.roots())
        known = {uri: roots.find(uri) for uri in sorted(suspect)}
        asked = [file for target in targets for file in files_below(target, roots)]
        here = [_whole(uri, path) for uri, path in known.items() if path is not None]
        run = Indexing(
            self._retriever,
            self._catalog,
            encoded=self._retriever.encoder is not None,
            suspect=known,
            intact=intact,
            limits=self._limits,
            opened={file.uri for file in here if file.uri not in known},
        )
        run.run(list({file.uri: file for file in (*here, *asked)}.values()))
        for row in (self._catalog.file(uri) for uri, path in known.items() if path is None):
            if row is not None:
                self._miss(run, row)
        self.files += run.tally.indexed
        self.encoded += run.written
        self.problems += run.tally.problems

    def _miss(self, run: Indexing, row: FileRow) -> None:
        """`row`'s file is gone: what of it is intact stays."""
        if self._catalog.live(row.uri) and row.content_hash:
            run.keep_intact(row, FileProblem(uri=row.uri, type=NotFound.__name__, message=_GONE, hint=_RESTORE))
            return
        if self._catalog.live(row.uri):
            message = f"`{row.uri}` is gone: its passages stay, but nothing shows that they are right."
        else:
            self._catalog.forget(row.uri)
            if not row.was_read:
                return
            message = f"`{row.uri}` is gone, and all of its passages are lost."
        run.tally.problems.append(FileProblem(uri=row.uri, type=NotFound.__name__, message=message, hint=_RESTORE))

    def _adopt(self) -> None:
        """Write down what the store has, file by file, as if it had been acknowledged."""
        bare: dict[str, bool] = {}
        waiting: list[Item] = []
        for row in Audit(self._store).rows():
            if row.item is None or "ordinal" not in row.item.meta:
                continue  # unreadable rows belong to no file: they are cleared away, and read again
            waiting.append(row.item)
            bare[row.uri] = bare.get(row.uri, False) or self._space not in row.spaces
            if len(waiting) == BATCH:
                self._catalog.adopt(waiting)
                waiting = []
        self._catalog.adopt(waiting)
        for uri, lacks in bare.items():
            self._catalog.put(FileRow(uri, "", 0, 0, encoded=not lacks))


def sound_catalog(folder: Path, targets: Sequence[Path]) -> bool:
    """Make sure that `folder` has a catalogue that can be used; answers whether it is a new one.

    Args:
        targets: where the files lie, in case the catalogue cannot say it any more.

    Raises:
        StoreError: it is damaged and nothing says where the files lie; or it is of a newer format.
    """
    problem = _problem_of(folder)
    if problem is None:
        with closing(Catalog(folder)) as catalog:
            return bool(catalog.fact(ADOPTING))
    named = _salvaged(folder, "SELECT label, path FROM roots")
    roots = {label: path for label, path in named.items() if "\0" not in path and Path(path).is_dir()}
    facts = _salvaged(folder, "SELECT name, value FROM facts")
    if not roots and not targets:
        raise StoreError(
            f"The catalogue of the library `{folder.name}` is damaged, and does not say where its files lie: {problem}",
            "Name the folders that were indexed: `triptych rebuild PATH… --library NAME`.",
        )
    for end in ("", "-wal", "-shm"):
        part = folder / f"{FILE}{end}"
        if part.exists():
            part.replace(folder / f"{FILE}{ASIDE}{end}")
    with closing(Catalog(folder)) as catalog:
        catalog.set_fact(ADOPTING, "yes")
        for label, path in roots.items():
            catalog.add_root(label, path)
        for name, value in facts.items():
            if name in _FACTS and _FACTS[name].fullmatch(value):
                catalog.set_fact(name, value)
    return True


def _problem_of(folder: Path) -> str | None:
    """What is wrong with the catalogue, None when nothing is."""
    if not (folder / FILE).exists():
        return "it is gone."
    try:
        with closing(Catalog(folder)) as catalog:
            return next((f"{fault}." for fault in catalog.faults()), None)
    except StoreError as error:
        if error.hint.endswith(REBUILD):
            return error.message
        raise


def _salvaged(folder: Path, query: str) -> dict[str, str]:
    """The pairs that a damaged catalogue still gives, none where it gives nothing."""
    for file in (folder / FILE, folder / f"{FILE}{ASIDE}"):
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
                return {str(name): str(value) for name, value in db.execute(query).fetchall()}
        except (sqlite3.Error, UnicodeError) as error:
            log.info("nothing to be had from %s: %s", file.name, error)
    return {}


def _whole(uri: str, path: Path) -> Found:
    """The file `uri` at `path`, or the archive that it is in."""
    archive = archive_of(path)
    if archive is None:
        return Found(uri, path)
    depth = len(path.relative_to(archive).parts)
    return Found("/".join(uri.split("/")[:-depth]), archive)


def _parts(ids: Sequence[str]) -> Iterable[list[str]]:
    for start in range(0, len(ids), BATCH):
        yield list(ids[start : start + BATCH])
