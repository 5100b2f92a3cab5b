"""SQLite files that several processes open at once."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

WAIT_S = 30.0
_PAUSE_S = 0.02


def opened(path: Path) -> sqlite3.Connection:
    """The database at `path`, made if it is not there, with a write-ahead log, so that readers and a writer coexist.

    Raises:
        sqlite3.Error: the file is no database, or somebody kept it locked for `WAIT_S`.
    """
    db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        _keep_a_log(db)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _keep_a_log(db: sqlite3.Connection) -> None:
    """Turn the log on. Where two do so in a new file, SQLite turns one away at once, whatever its timeout."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def remove(path: Path) -> None:
    """Take away the database at `path` and the files that SQLite put beside it."""
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
