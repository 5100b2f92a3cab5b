"""What a library holds, by our own count: roots, files, and the passages each file was cut into.

The store keeps the passages; this catalogue (SQLite) says which of them are acknowledged, so that a crash leaves
nothing half visible and a store that lost rows is noticed. A passage is in one of four states:

    pending    being written; not yet acknowledged
    live       acknowledged: the store must have it
    retiring   replaced or deleted; the store may still have it
    retired    gone from the store; kept so that an outdated id can name its successor

Writing a file is: pending rows → store upsert → one transaction (pending → live, old live → retiring) → store
delete → retired. `leftovers` gives what a crash left in between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from ..errors import MissingWeights, NotFound, StoreError
from ..retrievers.chunking import passage_id
from ..retrievers.stores.databases import opened

if TYPE_CHECKING:
    from ..retrievers.base import Item

FORMAT = 1
FILE = "catalog.sqlite"
REBUILD = "Run `triptych rebuild` with the same --library."
_CHUNK = 500
_AFTER = "0"
"""The character after `/`: what begins with `uri/` sorts before `uri0`."""

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS roots (label TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS files (
    uri TEXT PRIMARY KEY, content_hash TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    mime TEXT NOT NULL, encoded INTEGER NOT NULL, error_type TEXT, error_message TEXT, error_hint TEXT
);
CREATE TABLE IF NOT EXISTS passages (
    id TEXT PRIMARY KEY, uri TEXT NOT NULL, ordinal INTEGER NOT NULL, modality TEXT NOT NULL, digest TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'live', 'retiring', 'retired'))
);
CREATE INDEX IF NOT EXISTS passages_by_uri ON passages (uri, state);
CREATE INDEX IF NOT EXISTS passages_by_state ON passages (state, modality);
"""


@dataclass(frozen=True)
class FileRow:
    """One file as it was last read; with `error_type` it could not be, and has no passages.

    An archive that was opened has no passages of its own: each file in it has a row, whose uri is the archive's with
    the file's name below it, and whose `mtime_ns` is the archive's.

    With `MissingWeights` it was read as far as that goes, with `NotFound` it is gone and some of its passages are
    lost: it has passages, and is read again next time.

    Attributes:
        content_hash: hex SHA-256 of the bytes; `""` where that is not known.
        encoded: its passages have dense vectors.
    """

    uri: str
    content_hash: str
    size: int
    mtime_ns: int
    mime: str = ""
    encoded: bool = False
    error_type: str | None = None
    error_message: str | None = None
    error_hint: str | None = None

    @property
    def was_read(self) -> bool:
        """Whether it has passages."""
        return self.error_type in (None, MissingWeights.__name__, NotFound.__name__)


@dataclass(frozen=True)
class Expected:
    """A live passage: what the store must have.

    Attributes:
        digest: of its text.
        encoded: it has a dense vector.
    """

    id: str
    uri: str
    digest: str
    encoded: bool


class Catalog:
    """The catalogue of the library in `folder`. Safe from many threads and processes.

    Raises:
        StoreError: the file is no catalogue, or of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = opened(folder / FILE)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TABLES)
            self._db.execute("INSERT OR IGNORE INTO facts VALUES ('format', ?)", (str(FORMAT),))
            found = int(self.fact("format") or 0)
        except (sqlite3.DatabaseError, ValueError, OSError) as error:  # a damaged text is a ValueError
            raise _broken(folder.name, error) from error
        if found != FORMAT:
            raise StoreError(
                f"The library `{folder.name}` has format `{found}`; this version reads `{FORMAT}`.",
                "Update triptych, or index the files into a new library.",
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def fact(self, name: str) -> str | None:
        """A stored fact about the library, or None."""
        row = self._one("SELECT value FROM facts WHERE name = ?", name)
        return None if row is None else str(row["value"])

    def set_fact(self, name: str, value: str) -> None:
        """Store a fact about the library."""
        self._run(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value
        )

    def roots(self) -> dict[str, str]:
        """Absolute folder by label."""
        return {row["label"]: row["path"] for row in self._all("SELECT label, path FROM roots ORDER BY label")}

    def add_root(self, label: str, path: str) -> None:
        """Remember a root."""
        self._run("INSERT INTO roots VALUES (?, ?)", label, path)

    def file(self, uri: str) -> FileRow | None:
        """The row of `uri`, or None."""
        row = self._one("SELECT * FROM files WHERE uri = ?", uri)
        return None if row is None else _file_row(row)

    def files(self, prefix: str = "") -> list[FileRow]:
        """Rows of all files whose uri starts with `prefix`, by uri."""
        rows = self._all("SELECT * FROM files WHERE substr(uri, 1, ?) = ? ORDER BY uri", len(prefix), prefix)
        return [_file_row(row) for row in rows]

    def inside(self, uri: str) -> list[FileRow]:
        """Rows of all files inside the archive (or folder) `uri`, by uri."""
        rows = self._all("SELECT * FROM files WHERE uri > ? AND uri < ? ORDER BY uri", f"{uri}/", f"{uri}{_AFTER}")
        return [_file_row(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Live passages by modality."""
        rows = self._all("SELECT modality, count(*) AS n FROM passages WHERE state = 'live' GROUP BY modality")
        return {row["modality"]: row["n"] for row in rows}

    def live(self, uri: str | None = None) -> dict[str, str]:
        """Digest by id of the live passages (of `uri`), in the order of the text."""
        query = "SELECT id, digest FROM passages WHERE state = 'live'"
        rows = self._all(f"{query} AND uri = ? ORDER BY ordinal", uri) if uri else self._all(f"{query} ORDER BY id")
        return {row["id"]: row["digest"] for row in rows}

    def expected(self) -> dict[str, Expected]:
        """Every live passage, by id."""
        rows = self._all(
            "SELECT id, passages.uri, digest, coalesce(encoded, 0) AS encoded FROM passages "
            "LEFT JOIN files ON files.uri = passages.uri WHERE state = 'live'"
        )
        return {row["id"]: Expected(row["id"], row["uri"], row["digest"], bool(row["encoded"])) for row in rows}

    def faults(self) -> list[str]:
        """What is wrong with the catalogue itself: damaged pages, and passages that contradict their files.

        A passage's id is the hash of its file's uri and content and of its own place, so that a change of any of them
        shows.
        """
        try:
            found = [str(row[0]) for row in self._all("PRAGMA integrity_check(20)")]
            rows = self._all(
                "SELECT id, passages.uri, ordinal, content_hash FROM passages "
                "LEFT JOIN files ON files.uri = passages.uri WHERE state = 'live'"
            )
        except StoreError as error:
            return [error.message]
        homeless = {str(row["uri"]) for row in rows if row["content_hash"] is None}
        odd = {
            str(row["uri"])
            for row in rows
            if row["content_hash"] and passage_id(row["uri"], row["content_hash"], row["ordinal"]) != row["id"]
        }
        return [
            *(line for line in found if line != "ok"),
            *(f"`{uri}` has passages and is not among the files" for uri in sorted(homeless)),
            *(f"`{uri}` has passages of another version of the file" for uri in sorted(odd)),
        ]

    def files_of(self, ids: Sequence[str]) -> set[str]:
        """The uris of the files that hold the live passages `ids`."""
        return {row["uri"] for rows in self._by_ids("SELECT uri FROM passages WHERE id IN ({})", ids) for row in rows}

    def leftovers(self) -> list[str]:
        """Ids that an interrupted write left pending or retiring."""
        return [row["id"] for row in self._all("SELECT id FROM passages WHERE state IN ('pending', 'retiring')")]

    def pending(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that were begun and are not acknowledged."""
        query = "SELECT id FROM passages WHERE state = 'pending' AND id IN ({})"
        return [row["id"] for rows in self._by_ids(query, ids) for row in rows]

    def successor(self, passage_id: str) -> str | None:
        """The live passage that stands where the retired `passage_id` stood, or None."""
        row = self._one("SELECT uri, ordinal FROM passages WHERE id = ? AND state != 'live'", passage_id)
        if row is None:
            return None
        near = "SELECT id FROM passages WHERE uri = ? AND state = 'live' ORDER BY abs(ordinal - ?), ordinal LIMIT 1"
        found = self._one(near, row["uri"], row["ordinal"])
        return None if found is None else str(found["id"])

    def begin(self, items: Sequence[Item]) -> None:
        """Announce passages that are about to be written; those already live stay so."""
        rows = [(item.id, item.source.uri, item.meta["ordinal"], item.modality, digest(item)) for item in items]
        with self._transaction():
            self._db.executemany(
                "INSERT INTO passages VALUES (?, ?, ?, ?, ?, 'pending') ON CONFLICT (id) DO UPDATE SET "
                "state = CASE WHEN state = 'live' THEN 'live' ELSE 'pending' END, digest = excluded.digest",
                rows,
            )

    def adopt(self, items: Sequence[Item]) -> None:
        """Take over passages that the store has: they are live."""
        rows = [(item.id, item.source.uri, item.meta["ordinal"], item.modality, digest(item)) for item in items]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO passages VALUES (?, ?, ?, ?, ?, 'live')", rows)

    def acknowledge(self, row: FileRow, ids: Sequence[str]) -> list[str]:
        """The store has all of `ids`: they are live, whatever else `row.uri` had is retiring (returned)."""
        keep = set(ids)
        with self._transaction():
            old = [
                found["id"]
                for found in self._db.execute("SELECT id FROM passages WHERE uri = ? AND state = 'live'", (row.uri,))
                if found["id"] not in keep
            ]
            self._set_state(ids, "live")
            self._set_state(old, "retiring")
            self._put(row)
        return old

    def retiring(self, ids: Sequence[str]) -> None:
        """Announce that `ids` are about to be deleted."""
        with self._transaction():
            self._set_state(ids, "retiring")

    def retired(self, ids: Sequence[str]) -> None:
        """The store no longer has `ids`. Those never acknowledged are forgotten."""
        with self._transaction():
            for part in _parts(ids):
                marks = ",".join("?" * len(part))
                self._db.execute(f"DELETE FROM passages WHERE state = 'pending' AND id IN ({marks})", part)
                self._db.execute(f"UPDATE passages SET state = 'retired' WHERE id IN ({marks})", part)

    def put(self, row: FileRow) -> None:
        """Insert or replace a file's row."""
        with self._transaction():
            self._put(row)

    def forget(self, uri: str) -> None:
        """Remove a file's row (its passages are retired by the caller)."""
        self._run("DELETE FROM files WHERE uri = ?", uri)

    def start_anew(self) -> None:
        """Forget files, passages and the encoder; roots stay, and old ids still lead to their successors."""
        with self._transaction():
            self._db.execute("DELETE FROM files")
            self._db.execute("DELETE FROM facts WHERE name = 'encoder'")
            self._db.execute("DELETE FROM passages WHERE state = 'pending'")
            self._db.execute("UPDATE passages SET state = 'retired'")

    def forget_empty(self) -> None:
        """Remove the rows of readable files that have no live passage left; an archive has those of what is in it."""
        self._run(
            "DELETE FROM files WHERE error_type IS NULL AND uri NOT IN (SELECT uri FROM passages WHERE state = 'live') "
            "AND NOT EXISTS (SELECT 1 FROM passages AS held WHERE held.state = 'live' "
            "AND held.uri > files.uri || '/' AND held.uri < files.uri || ?)",
            _AFTER,
        )

    def _put(self, row: FileRow) -> None:
        values = (
            row.uri, row.content_hash, row.size, row.mtime_ns, row.mime, int(row.encoded),
            row.error_type, row.error_message, row.error_hint,
        )  # fmt: skip
        self._db.execute(f"INSERT OR REPLACE INTO files VALUES ({','.join('?' * len(values))})", values)

    def _set_state(self, ids: Sequence[str], state: str) -> None:
        self._db.executemany("UPDATE passages SET state = ? WHERE id = ?", [(state, one) for one in ids])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise _failed(error) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _run(self, query: str, *values: object) -> None:
        with self._transaction():
            self._db.execute(query, values)

    def _all(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except (sqlite3.Error, UnicodeError) as error:
                raise _failed(error) from error

    def _one(self, query: str, *values: object) -> sqlite3.Row | None:
        return next(iter(self._all(query, *values)), None)

    def _by_ids(self, query: str, ids: Sequence[str]) -> Iterator[list[sqlite3.Row]]:
        for part in _parts(ids):
            yield self._all(query.format(",".join("?" * len(part))), *part)


def folders_of(library: Path) -> list[Path]:
    """The folders that the files of the library in the folder `library` are in.

    Raises:
        StoreError: the catalogue cannot be read.
    """
    with closing(Catalog(library)) as catalog:
        return [Path(path) for path in catalog.roots().values()]


def digest(item: Item) -> str:
    """A short hash of an item's text, to notice a store that changed it."""
    return blake2b(item.text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _parts(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _CHUNK):
        yield list(ids[start : start + _CHUNK])


def _file_row(row: sqlite3.Row) -> FileRow:
    return FileRow(**{**dict(row), "encoded": bool(row["encoded"])})


def _failed(error: Exception) -> StoreError:
    busy = isinstance(error, sqlite3.OperationalError) and "decode" not in str(error)
    mend = "Check the disk's free space, then run it again." if busy else REBUILD
    return StoreError(f"The library's catalogue failed: {error}.", mend)


def _broken(name: str, error: Exception) -> StoreError:
    return StoreError(
        f"The catalogue of the library `{name}` cannot be read: {error}.", f"Check the folder's rights. {REBUILD}"
    )
