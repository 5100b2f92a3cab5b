"""BM25 as sparse vectors: term weights of items, and term statistics of the whole library.

Robertson & Zaragoza 2009, doi:10.1561/1500000019, with the non-negative idf of Lucene. The inner product of the two
vectors below is the BM25 score:

    item term   tf·(k1+1) / (tf + k1·(1 - b + b·length/PIVOT))
    query term  count · ln(1 + (N - df + 0.5) / (df + 0.5))

Why not the BM25 function of the backend: Milvus Lite takes N, df and the mean length from each storage segment alone.
A file that changed lands in a small segment of its own, where every one of its terms looks common, and sinks below
everything else: on 100 queries of SciFact, with 20 of the relevant documents in such a segment, nDCG@10 fell from .686
to .662. Here N and df are those of the library, wherever a row is stored. The mean length is a constant, so that a
weight never changes once written. BM25 stays BM25, k1 and b absorb the difference: with constants from 60 to 150
nDCG@10 on SciFact and Cranfield stayed within .007 of the true mean's.
"""

from __future__ import annotations

import math
import sqlite3
import weakref
from collections import Counter
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING
from zlib import crc32

from ...errors import StoreError
from ..base import Space
from .databases import opened, remove

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

LEXICAL = Space("lexical", "sparse", 0, "bm25")
"""The space of a route that searches with the query's text."""

K1 = 1.2
B = 0.75
PIVOT = 128.0
"""Terms of an item of ordinary length. Single characters of unspaced scripts do not count."""

EMPTY = 0
"""Dimension of items without any term: backends refuse empty sparse vectors. No query of a library has it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS terms (term INTEGER PRIMARY KEY, df INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO state VALUES ('items', 0), ('open', 0);
"""
_ADD = "INSERT INTO terms VALUES (?, ?) ON CONFLICT (term) DO UPDATE SET df = df + excluded.df"
_QUERY_TERMS = 500
_VERSION = 1


def lacking(space: int) -> int:
    """What stands among the terms of an item that has no vector of the store's dense space number `space`."""
    return (1 << 32) + space


def dimension(term: str) -> int:
    """The sparse dimension of a term, 1 to 2**32 - 2 (its CRC-32; two terms of a library hardly ever share one)."""
    return crc32(term.encode("utf-8", "surrogatepass")) % 0xFFFFFFFE + 1


def item_weights(terms: Iterable[str]) -> dict[int, float]:
    """The sparse vector of an item, never empty; its dimensions are the item's distinct terms."""
    counts = Counter(terms)
    length = sum(count for term, count in counts.items() if len(term) > 1 or term.isascii())
    norm = K1 * (1 - B + B * length / PIVOT)
    return {dimension(term): n * (K1 + 1) / (n + norm) for term, n in counts.items()} or {EMPTY: 1.0}


class Lexicon:
    """How many items there are, and how many hold each term. Derived data: `rewrite` restores it from the store.

    Every change of the store is announced with `begin` and ended with `commit`; `interrupted` tells that a process
    died in between, so that the figures may be off. Safe from many threads and processes.

    Raises:
        StoreError: from every method, when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = RLock()
        try:
            self._db = _opened(path)
        except sqlite3.OperationalError as error:
            raise _failed(error) from error
        except sqlite3.DatabaseError:
            # Not a database any more. As derived data it may start empty and ask to be rewritten.
            remove(path)
            self._db = _opened(path)
            self.begin()
        weakref.finalize(self, self._db.close)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @property
    def items(self) -> int:
        """How many items the figures are about."""
        return self._state("items")

    @property
    def interrupted(self) -> bool:
        """Whether a change was begun and not committed."""
        return self._state("open") != 0

    def begin(self) -> None:
        """Announce a change of the store."""
        with self._using() as db:
            db.execute("UPDATE state SET value = 1 WHERE key = 'open'")

    def commit(self, added: Iterable[Iterable[int]], removed: Iterable[Iterable[int]]) -> None:
        """Book the sparse dimensions of the items that came and of those that went."""
        self._book(added, removed, afresh=False)

    def rewrite(self, vectors: Iterable[Iterable[int]]) -> None:
        """Count everything anew from the sparse dimensions of all items."""
        self._book(vectors, (), afresh=True)

    def query_weights(self, terms: Iterable[str]) -> dict[int, float]:
        """The sparse vector of a query; terms that no item holds are left out, so it may be empty."""
        counts = Counter(dimension(term) for term in terms)
        known = self.frequencies(list(counts))
        n = max(self.items, max(known.values(), default=0))
        return {term: counts[term] * math.log(1 + (n - df + 0.5) / (df + 0.5)) for term, df in known.items()}

    def frequencies(self, asked: Sequence[int]) -> dict[int, int]:
        """How many items hold each of these terms (sparse dimensions); those that none holds are left out."""
        found: dict[int, int] = {}
        with self._using() as db:
            for at in range(0, len(asked), _QUERY_TERMS):
                part = asked[at : at + _QUERY_TERMS]
                marks = ",".join("?" * len(part))
                found.update(db.execute(f"SELECT term, df FROM terms WHERE term IN ({marks})", part).fetchall())
        return found

    def lack(self, space: int) -> bool:
        """Whether an item may be without a vector of the dense space number `space`."""
        return self.interrupted or bool(self.frequencies([lacking(space)]))

    def differences(self, counts: Mapping[int, int], items: int) -> int:
        """How many terms have another frequency here than in `counts`; the number of items counts as one more."""
        with self._using() as db:
            known: dict[int, int] = dict(db.execute("SELECT term, df FROM terms").fetchall())
        off = sum(known.pop(term, 0) != n for term, n in counts.items() if term != EMPTY)
        return off + len(known) + (self.items != items)

    def _book(self, added: Iterable[Iterable[int]], removed: Iterable[Iterable[int]], *, afresh: bool) -> None:
        delta: Counter[int] = Counter()
        items = 0
        for sign, vectors in ((1, added), (-1, removed)):
            for vector in vectors:
                items += sign
                for term in vector:
                    delta[term] += sign
        changes = [(term, change) for term, change in delta.items() if change and term != EMPTY]
        with self._using() as db, _transaction(db):
            if afresh:
                db.execute("DELETE FROM terms")
                db.execute("UPDATE state SET value = 0 WHERE key = 'items'")
            db.executemany(_ADD, changes)
            gone = ((term,) for term, change in changes if change < 0)
            db.executemany("DELETE FROM terms WHERE term = ? AND df <= 0", gone)
            db.execute("UPDATE state SET value = value + ? WHERE key = 'items'", (items,))
            db.execute("UPDATE state SET value = 0 WHERE key = 'open'")

    def _state(self, key: str) -> int:
        with self._using() as db:
            return int(db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()[0])

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise _failed(error) from error


def _opened(path: Path) -> sqlite3.Connection:
    db = opened(path)
    try:
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_SCHEMA)
        if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:  # it does not count missing vectors yet
            db.execute("UPDATE state SET value = 1 WHERE key = 'open' AND EXISTS (SELECT 1 FROM terms)")
            db.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.Error:
        db.close()
        raise
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _failed(error: sqlite3.Error) -> StoreError:
    full = isinstance(error, sqlite3.OperationalError)
    return StoreError(
        f"The store's term statistics cannot be read or written: {error}.",
        "Check the disk's free space and the folder's rights, then run it again."
        if full
        else "Run `triptych rebuild`.",
    )
