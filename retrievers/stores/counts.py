"""What is counted in each item of a store, and whether the weights that were made of it are still right.

In a file beside the store, so that weights can be made anew without analysing any text again, and so that counts which
stand in no text (those of a model) are not lost.
"""

from __future__ import annotations

import sqlite3
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np

from ...errors import StoreError
from .databases import opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS counts (id TEXT PRIMARY KEY, terms BLOB NOT NULL, counts BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY CHECK (one = 0), weighing TEXT NOT NULL, mean REAL);
"""
_KEEP = "INSERT OR REPLACE INTO counts VALUES (?, ?, ?)"
_STATE = "INSERT OR REPLACE INTO state VALUES (0, ?, ?)"
_TYPE = np.dtype("<u4")
_ASKED = 500


@dataclass(frozen=True)
class State:
    """What the rows of a store were weighed with.

    Attributes:
        weighing: its description.
        mean: the mean length that it was given; None: something has changed since, and the weights are stale.
    """

    weighing: str
    mean: float | None


class Counts:
    """By item id: term's sparse dimension → how often. Safe from many threads and processes.

    Raises:
        StoreError: from every method, when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = RLock()
        try:
            self._db = opened(path)
        except sqlite3.Error as error:
            raise _failed(error) from error
        weakref.finalize(self, self._db.close)
        with self._using() as db:
            db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def state(self) -> State | None:
        """None before the first write."""
        with self._using() as db:
            row = db.execute("SELECT weighing, mean FROM state").fetchone()
        return None if row is None else State(*row)

    def set_state(self, state: State) -> None:
        """Write down what the rows are weighed with."""
        with self._using() as db:
            db.execute(_STATE, (state.weighing, state.mean))

    def put(self, counts: Mapping[str, Mapping[int, int]]) -> None:
        """Keep these, instead of what was known of the same ids."""
        rows = [(id_, _packed(found.keys()), _packed(found.values())) for id_, found in counts.items()]
        with self._using() as db, db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(_KEEP, rows)

    def remove(self, ids: Iterable[str]) -> None:
        """Forget these."""
        with self._using() as db, db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("DELETE FROM counts WHERE id = ?", ((id_,) for id_ in ids))

    def clear(self) -> None:
        """Forget everything."""
        with self._using() as db:
            db.executescript("DELETE FROM counts; DELETE FROM state;")

    def ids(self) -> set[str]:
        """Of all items that something is known of."""
        with self._using() as db:
            return {row[0] for row in db.execute("SELECT id FROM counts")}

    def of(self, ids: Sequence[str]) -> dict[str, dict[int, int]]:
        """The counts of `ids`; an unknown one is left out."""
        found: dict[str, dict[int, int]] = {}
        with self._using() as db:
            for at in range(0, len(ids), _ASKED):
                part = ids[at : at + _ASKED]
                marks = ",".join("?" * len(part))
                rows = db.execute(f"SELECT id, terms, counts FROM counts WHERE id IN ({marks})", part)
                found.update((id_, _unpacked(terms, counts)) for id_, terms, counts in rows)
        return found

    def all(self) -> Iterator[dict[int, int]]:
        """The counts of every item, read in pages."""
        last = ""
        while True:
            with self._using() as db:
                rows = db.execute(
                    "SELECT id, terms, counts FROM counts WHERE id > ? ORDER BY id LIMIT ?", (last, _ASKED)
                ).fetchall()
            if not rows:
                return
            yield from (_unpacked(terms, counts) for _, terms, counts in rows)
            last = rows[-1][0]

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise _failed(error) from error


def _packed(numbers: Iterable[int]) -> bytes:
    return np.fromiter(numbers, _TYPE).tobytes()


def _unpacked(terms: bytes, counts: bytes) -> dict[int, int]:
    return dict(zip(np.frombuffer(terms, _TYPE).tolist(), np.frombuffer(counts, _TYPE).tolist(), strict=True))


def _failed(error: sqlite3.Error) -> StoreError:
    return StoreError(
        f"What is counted in the store's items cannot be read or written: {error}.",
        "Check the disk's free space and the folder's rights; if the file is damaged, index anew.",
    )
