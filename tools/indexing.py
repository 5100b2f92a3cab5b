"""Bringing files into a library: walk, compare, read, cut, encode, store, acknowledge.

Files are acknowledged one by one; encoding and storing run over many files at once, because small batches waste the
encoder. One bad file never stops the others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import Cancelled, Forbidden, MissingWeights, TimedOut, TriptychError, UnreadableFile
from ..progress import step
from ..retrievers.chunking import chunk
from ..retrievers.filters import iso
from ..retrievers.readers import read
from .catalog import FileRow
from .schemas import FileProblem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import stat_result
    from pathlib import Path

    from ..retrievers.base import Item, Retriever
    from ..retrievers.readers.base import Document, Limits
    from .catalog import Catalog
    from .roots import Found

BATCH = 512
"""Passages encoded and stored at once."""
_BLOCK = 1 << 20
_LATEST = (1 << 63) - 1

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What one run did."""

    files: int = 0
    indexed: int = 0
    unchanged: int = 0
    removed: int = 0
    items: int = 0
    problems: list[FileProblem] = field(default_factory=list)


@dataclass(frozen=True)
class _Read:
    """A file cut into items, waiting to be stored."""

    row: FileRow
    items: list[Item]


class Indexing:
    """One run over files, under the library's write lock.

    Args:
        retriever: adds and deletes passages.
        catalog: the library's catalogue.
        encoded: whether `retriever` writes dense vectors now.
        suspect: uris whose passages the store has lost: they are read again even if unchanged.
        limits: of what is read of a file, and the models that read it.
    """

    def __init__(
        self,
        retriever: Retriever,
        catalog: Catalog,
        *,
        encoded: bool,
        suspect: Iterable[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self._retriever = retriever
        self._catalog = catalog
        self._encoded = encoded
        self._suspect = frozenset(suspect)
        self._limits = limits
        self.tally = Tally()

    def run(self, found: Sequence[Found]) -> None:
        """Index `found`. Whatever stops it, what was acknowledged is whole and nothing else is left visible."""
        waiting: list[_Read] = []
        try:
            for done, file in enumerate(found):
                step(done, len(found), "files")
                self.tally.files += 1
                waiting += self._read_if_needed(file)
                if sum(len(one.items) for one in waiting) >= BATCH:
                    self._store(waiting)
                    waiting = []
            self._store(waiting)
            step(len(found), len(found), "files")
        except BaseException:
            clear_leftovers(self._retriever, self._catalog)
            raise

    def remove(self, rows: Iterable[FileRow]) -> None:
        """Take files out of the library."""
        for row in rows:
            delete_passages(self._retriever, self._catalog, list(self._catalog.live(row.uri)))
            self._catalog.forget(row.uri)
            self.tally.removed += 1

    def _read_if_needed(self, file: Found) -> Iterator[_Read]:
        try:
            if file.outside:
                raise Forbidden(f"`{file.uri}` links out of the indexed folder.", "Index the folder it leads to.")
            known = self._catalog.file(file.uri)
            if known and self._is_unchanged(known, file.path):
                self.tally.unchanged += 1
                return
            row = self._row(file)
            if known and not self._must_read(known) and known.content_hash == row.content_hash:
                self._catalog.put(replace(known, size=row.size, mtime_ns=row.mtime_ns))
                self.tally.unchanged += 1
                return
        except (TriptychError, OSError) as error:
            self._fail(FileRow(file.uri, "", 0, 0), error)
            return
        try:
            document = read(file.path, file.uri, self._limits)
            items = _dated(chunk(document, row.content_hash), row.mtime_ns)
            yield _Read(self._remarked(replace(row, mime=document.mime), document), items)
        except (Cancelled, TimedOut):  # says nothing of the file, whose passages stay as they are
            raise
        except (TriptychError, OSError) as error:
            self._fail(row, error)
        except Exception as error:  # a reader's own fault must not stop the other files; it is reported by name
            log.exception("A reader failed on %s", file.uri)
            self._fail(row, error)

    def _is_unchanged(self, known: FileRow, path: Path) -> bool:
        stat = path.stat()
        return not self._must_read(known) and (known.size, known.mtime_ns) == (stat.st_size, _changed(stat))

    def _must_read(self, known: FileRow) -> bool:
        gained_vectors = self._encoded and not known.encoded
        return known.error_type is not None or gained_vectors or known.uri in self._suspect

    def _row(self, file: Found) -> FileRow:
        stat = file.path.stat()
        return FileRow(file.uri, _sha256(file.path), stat.st_size, _changed(stat), encoded=self._encoded)

    def _store(self, files: Sequence[_Read]) -> None:
        """Write all passages, then acknowledge file by file."""
        items = [item for file in files for item in file.items]
        self._catalog.begin(items)
        for start in range(0, len(items), BATCH):
            self._retriever.add(items[start : start + BATCH])
        for file in files:
            replaced = self._catalog.acknowledge(file.row, [item.id for item in file.items])
            delete_passages(self._retriever, self._catalog, replaced)
            self.tally.indexed += 1
            self.tally.items += len(file.items)

    def _remarked(self, row: FileRow, document: Document) -> FileRow:
        """`row`; what its reader says was left out is reported, and remembered where a command can mend it."""
        note, mend = document.meta.get("note"), document.meta.get("mend")
        if not note:
            return row
        kind = (MissingWeights if mend else UnreadableFile).__name__
        problem = FileProblem(uri=row.uri, type=kind, message=f"`{row.uri}`: {note}", hint=mend or "")
        self.tally.problems.append(problem)
        if not mend:
            return row
        return replace(row, error_type=kind, error_message=problem.message, error_hint=problem.hint)

    def _fail(self, row: FileRow, error: Exception) -> None:
        problem = _problem(row.uri, error)
        self.tally.problems.append(problem)
        failed = replace(row, error_type=problem.type, error_message=problem.message, error_hint=problem.hint)
        delete_passages(self._retriever, self._catalog, self._catalog.acknowledge(failed, []))


def delete_passages(retriever: Retriever, catalog: Catalog, ids: Sequence[str]) -> int:
    """Delete `ids` from store and catalogue so that a crash in between is mended later; returns how many."""
    from ..retrievers.base import Where

    if not ids:
        return 0
    catalog.retiring(ids)
    for start in range(0, len(ids), BATCH):
        retriever.delete(Where(ids=tuple(ids[start : start + BATCH])))
    catalog.retired(ids)
    return len(ids)


def clear_leftovers(retriever: Retriever, catalog: Catalog) -> int:
    """Remove what an interrupted write left behind; returns how many passages."""
    return delete_passages(retriever, catalog, catalog.leftovers())


def _changed(stat: stat_result) -> int:
    """When a file was last changed, in nanoseconds that the catalogue's 64 bits hold (years 1677 to 2262)."""
    return max(-_LATEST, min(stat.st_mtime_ns, _LATEST))


def _dated(items: Sequence[Item], mtime_ns: int) -> list[Item]:
    """`items` with the time when their file was last changed, where that is a date of this era."""
    try:
        modified = iso("modified", datetime.fromtimestamp(mtime_ns // 10**9, UTC))
    except (ValueError, OverflowError, OSError):
        return list(items)
    return [replace(item, meta={**item.meta, "modified": modified}) for item in items]


def _sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            made.update(block)
    return made.hexdigest()


def _problem(uri: str, error: Exception) -> FileProblem:
    if isinstance(error, TriptychError):
        return FileProblem(uri=uri, type=type(error).__name__, message=error.message, hint=error.hint)
    reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    hint = "Check the file and its permissions, then index again."
    return FileProblem(uri=uri, type=UnreadableFile.__name__, message=f"`{uri}` cannot be read: {reason}.", hint=hint)
