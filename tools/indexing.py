"""Bringing files into a library: walk, compare, read, cut, encode, store, acknowledge.

Files are acknowledged one by one (see `writing`), and their passages never stand in memory all at once. One bad file
never stops the others. What is in an archive that is opened is a file as any other; it is looked at when the archive
has changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from ..errors import Cancelled, Forbidden, MissingWeights, NotFound, TimedOut, TriptychError, UnreadableFile
from ..progress import step
from ..retrievers.chunking import chunks
from ..retrievers.filters import iso
from ..retrievers.readers import archive as archives
from ..retrievers.readers import read, read_open
from ..retrievers.readers.base import Limits
from .catalog import FileRow, digest
from .roots import covers, is_wanted_inside
from .schemas import FileProblem
from .writing import Writer, clear_leftovers, delete_passages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import stat_result
    from pathlib import Path

    from ..retrievers.base import Item, Retriever
    from ..retrievers.readers.archive import Archive
    from ..retrievers.readers.base import Document
    from .catalog import Catalog
    from .roots import Found

ARCHIVES = frozenset(archives.MIMES.values())
"""MIME types of the rows of archives that were opened: these are opened again."""

_BLOCK = 1 << 20
_LATEST = (1 << 63) - 1

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What one run did. An archive that is opened is a file, and so is each file in it."""

    files: int = 0
    indexed: int = 0
    unchanged: int = 0
    removed: int = 0
    items: int = 0
    problems: list[FileProblem] = field(default_factory=list)


class _Unread(Exception):
    """A file could not be read, for `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Indexing:
    """One run over files, under the library's write lock.

    Args:
        retriever: adds and deletes passages.
        catalog: the library's catalogue.
        encoded: whether `retriever` writes dense vectors now.
        suspect: uris whose passages the store has lost: they are read again even if unchanged.
        intact: for mending: digest by id of the passages that the store has as they should be. They are not encoded
            again, and stay where their file can no longer be read.
        limits: of what is read of a file, and the models that read it.
        opened: uris of archives that are opened whatever `limits` say.
    """

    def __init__(
        self,
        retriever: Retriever,
        catalog: Catalog,
        *,
        encoded: bool,
        suspect: Iterable[str] = (),
        intact: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        opened: Iterable[str] = (),
    ) -> None:
        self._retriever = retriever
        self._catalog = catalog
        self._encoded = encoded
        self._suspect = frozenset(suspect)
        self._intact = intact
        self._limits = limits or Limits()
        self._opened = frozenset(opened)
        self._writer = Writer(retriever, catalog, self._acknowledged)
        self.tally = Tally()

    def run(self, found: Sequence[Found]) -> None:
        """Index `found`. Whatever stops it, what was acknowledged is whole and nothing else is left visible."""
        try:
            for done, file in enumerate(found):
                step(done, len(found), "files")
                self.tally.files += 1
                self._bring(file)
            self._writer.flush()
            step(len(found), len(found), "files")
        except BaseException:
            clear_leftovers(self._retriever, self._catalog)
            raise

    @property
    def written(self) -> int:
        """Passages that were encoded and stored."""
        return self._writer.written

    def remove(self, rows: Iterable[FileRow]) -> None:
        """Take files out of the library."""
        for row in rows:
            delete_passages(self._retriever, self._catalog, list(self._catalog.live(row.uri)))
            self._catalog.forget(row.uri)
            self.tally.removed += 1

    def keep_intact(self, known: FileRow, problem: FileProblem) -> None:
        """Of a file that cannot be read any more, keep the passages that are intact; what it lost is a problem."""
        intact = self._intact or {}
        live = self._catalog.live(known.uri)
        lost = [one for one, text in live.items() if intact.get(one) != text]
        delete_passages(self._retriever, self._catalog, lost)
        if not lost:
            return
        message = f"{len(lost)} of {len(live)} passages of `{known.uri}` are lost. {problem.message}"
        reported = FileProblem(uri=known.uri, type=NotFound.__name__, message=message, hint=problem.hint)
        self.tally.problems.append(reported)
        self._catalog.put(_with_problem(known, reported))

    def _bring(self, file: Found) -> None:
        try:
            with _reading(file.uri):
                row = self._row_to_read(file)
                archive = None if row is None else self._archive(file)
        except _Unread as failed:
            self._fail(self._catalog.file(file.uri) or FileRow(file.uri, "", 0, 0), failed.error)
            return
        if row is None:
            self._leave(file.uri)
        elif archive is None:
            self._read(row, partial(read, file.path, file.uri, self._limits))
        else:
            self._unpack(archive, row)

    def _archive(self, file: Found) -> Archive | None:
        """The archive in `file`, None where it is none or nobody asked for it to be opened."""
        known = self._catalog.file(file.uri)
        asked = self._limits.archives or file.uri in self._opened or (known is not None and known.mime in ARCHIVES)
        return archives.at(file.path, file.uri, self._limits) if asked else None

    def _leave(self, uri: str) -> None:
        """Count a file that has not changed, and what is in it."""
        known = self._catalog.file(uri)
        inside = len(self._catalog.inside(uri)) if known is not None and known.mime in ARCHIVES else 0
        self.tally.files += inside
        self.tally.unchanged += 1 + inside

    def _unpack(self, archive: Archive, row: FileRow) -> None:
        """Bring in the files in `archive`, which is closed then; those that it has no longer go."""
        with archive:
            wanted = [name for name in archive.names if _is_wanted(archive, name)]
            for done, name in enumerate(wanted):
                step(done, len(wanted), f"files in {row.uri}")
                self.tally.files += 1
                self._bring_member(archive, name, replace(row, uri=f"{row.uri}/{name}"))
            for message, hint in archive.left_out():
                kind = UnreadableFile.__name__
                self.tally.problems.append(FileProblem(uri=row.uri, type=kind, message=message, hint=hint))
        here = {f"{row.uri}/{name}" for name in wanted}
        self.remove(known for known in self._catalog.inside(row.uri) if not covers(here, known.uri))
        self._writer.end(replace(row, mime=archive.mime), [])

    def _bring_member(self, archive: Archive, name: str, row: FileRow) -> None:
        try:
            with _reading(row.uri):
                file = archive.opened(name)
        except _Unread as failed:
            self._fail(replace(row, content_hash="", size=archive.size(name)), failed.error)
            return
        with file:
            row = replace(row, content_hash=_hashed(file), size=archive.size(name))
            file.seek(0)
            if self._has(row):
                self._leave(row.uri)
                return
            try:
                with _reading(row.uri):
                    inner = archive.inner(file, row.uri)
            except _Unread as failed:
                self._fail(row, failed.error)
                return
            if inner is None:
                self._read(row, partial(read_open, file, row.uri, self._limits))
            else:
                self._unpack(inner, row)

    def _read(self, row: FileRow, reader: Callable[[], Document]) -> None:
        ids: list[str] = []
        try:
            with _reading(row.uri):
                document = reader()
            row = replace(row, mime=document.mime)
            for item in _one_by_one(chunks(document, row.content_hash), row.uri):
                ids.append(item.id)
                dated = _dated(item, row.mtime_ns)
                self._writer.put(dated, stored=self._is_intact(dated))
        except _Unread as failed:
            self._writer.discard(ids)
            self._fail(row, failed.error)
        else:
            self.remove(self._catalog.inside(row.uri))  # what it had as an archive, if it was one
            self._writer.end(self._remarked(row, document), ids)

    def _row_to_read(self, file: Found) -> FileRow | None:
        """The file's row, None where the library has it as it is."""
        if file.outside:
            raise Forbidden(f"`{file.uri}` links out of the indexed folder.", "Index the folder it leads to.")
        known = self._catalog.file(file.uri)
        if known and self._is_unchanged(known, file.path):
            return None
        row = self._row(file)
        return None if self._has(row) else row

    def _has(self, row: FileRow) -> bool:
        """Whether the library has the file with the same content; then the rest is brought up to date."""
        known = self._catalog.file(row.uri)
        if known is None or self._must_read(known) or known.content_hash != row.content_hash:
            return False
        self._catalog.put(replace(known, size=row.size, mtime_ns=row.mtime_ns))
        return True

    def _is_unchanged(self, known: FileRow, path: Path) -> bool:
        stat = path.stat()
        return not self._must_read(known) and (known.size, known.mtime_ns) == (stat.st_size, changed(stat))

    def _must_read(self, known: FileRow) -> bool:
        inside = self._catalog.inside(known.uri) if known.mime in ARCHIVES else ()
        return any(self._is_wrong(row) for row in (known, *inside))

    def _is_wrong(self, known: FileRow) -> bool:
        gained_vectors = self._encoded and not known.encoded
        return known.error_type is not None or gained_vectors or known.uri in self._suspect

    def _is_intact(self, item: Item) -> bool:
        return self._intact is not None and self._intact.get(item.id) == digest(item)

    def _row(self, file: Found) -> FileRow:
        stat = file.path.stat()
        return FileRow(file.uri, sha256(file.path), stat.st_size, changed(stat), encoded=self._encoded)

    def _acknowledged(self, row: FileRow, items: int) -> None:
        self.tally.indexed += 1
        self.tally.items += items

    def _remarked(self, row: FileRow, document: Document) -> FileRow:
        """`row`; what its reader says was left out is reported, and remembered where a command can mend it."""
        note, mend = document.meta.get("note"), document.meta.get("mend")
        if not note:
            return row
        kind = (MissingWeights if mend else UnreadableFile).__name__
        problem = FileProblem(uri=row.uri, type=kind, message=f"`{row.uri}`: {note}", hint=mend or "")
        self.tally.problems.append(problem)
        return _with_problem(row, problem) if mend else row

    def _fail(self, row: FileRow, error: Exception) -> None:
        problem = _problem(row.uri, error)
        inside = self._catalog.inside(row.uri)
        if self._intact is not None:
            for known in (self._catalog.file(row.uri) or row, *inside):
                self.keep_intact(known, problem)
            return
        self.remove(inside)
        self.tally.problems.append(problem)
        delete_passages(self._retriever, self._catalog, self._catalog.acknowledge(_with_problem(row, problem), []))


def _is_wanted(archive: Archive, name: str) -> bool:
    """As for files in folders: no hidden ones, no package folders, no empty `__init__.py`."""
    return is_wanted_inside(name) and not (name.split("/")[-1] == "__init__.py" and archive.size(name) == 0)


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Within this block, what goes wrong is the file's fault, and no other file's."""
    try:
        yield
    except (Cancelled, TimedOut):  # says nothing of the file, whose passages stay as they are
        raise
    except (TriptychError, OSError) as error:
        raise _Unread(error) from error
    except Exception as error:  # a reader's own fault must not stop the other files; it is reported by name
        log.exception("A reader failed on %s", uri)
        raise _Unread(error) from error


def _one_by_one(items: Iterator[Item], uri: str) -> Iterator[Item]:
    """`items`; only what goes wrong in making them is the file's fault, not what is done with them."""
    while True:
        with _reading(uri):
            item = next(items, None)
        if item is None:
            return
        yield item


def _with_problem(row: FileRow, problem: FileProblem) -> FileRow:
    return replace(row, error_type=problem.type, error_message=problem.message, error_hint=problem.hint)


def changed(stat: stat_result) -> int:
    """When a file was last changed, in nanoseconds that the catalogue's 64 bits hold (years 1677 to 2262)."""
    return max(-_LATEST, min(stat.st_mtime_ns, _LATEST))


def _dated(item: Item, mtime_ns: int) -> Item:
    """`item` with the time when its file was last changed, where that is a date of this era."""
    try:
        modified = iso("modified", datetime.fromtimestamp(mtime_ns // 10**9, UTC))
    except (ValueError, OverflowError, OSError):
        return item
    return replace(item, meta={**item.meta, "modified": modified})


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return _hashed(file)


def _hashed(file: BinaryIO) -> str:
    made = hashlib.sha256()
    while block := file.read(_BLOCK):
        made.update(block)
    return made.hexdigest()


def _problem(uri: str, error: Exception) -> FileProblem:
    if isinstance(error, TriptychError):
        return FileProblem(uri=uri, type=type(error).__name__, message=error.message, hint=error.hint)
    reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    hint = "Check the file and its permissions, then index again."
    return FileProblem(uri=uri, type=UnreadableFile.__name__, message=f"`{uri}` cannot be read: {reason}.", hint=hint)
