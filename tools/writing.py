"""Passages on their way into a library, and out of it, so that whatever stops the work no file is ever half there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ..errors import StoreError
from ..progress import step
from ..retrievers.base import Where

if TYPE_CHECKING:
    from pathlib import Path

    from ..retrievers.base import Item, Retriever
    from .catalog import Catalog, FileRow

BATCH = 512
"""Passages encoded and stored at once, and the most that are held in memory, however large a file is."""

LOCK = "write.lock"
LOCK_WAIT_S = 600.0
_ASK_S = 0.5


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The right to write to the library in `folder`; who waits for it says so through `progress`.

    Raises:
        StoreError: another process has had it for `LOCK_WAIT_S`.
    """
    lock = FileLock(folder / LOCK)
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        step(0, None, "waiting for another writer")
        try:
            lock.acquire(timeout=min(_ASK_S, LOCK_WAIT_S))
            break
        except Timeout:
            if time.monotonic() < until:
                continue
            raise StoreError(
                f"Another process has been writing to `{folder.name}` for {LOCK_WAIT_S:.0f} seconds.",
                "Wait until it is done, then try again.",
            ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass
class Writer:
    """Writes passages in batches over many files, because small batches waste the encoder.

    A file is acknowledged once all of its passages are in the store. Until then those already written are `pending`
    in the catalogue: `clear_leftovers` takes them out again.

    Args:
        acknowledged: told each file that is whole, and how many passages it has.

    Attributes:
        written: passages that went into the store.
    """

    retriever: Retriever
    catalog: Catalog
    acknowledged: Callable[[FileRow, int], None]
    written: int = 0
    _batch: list[Item] = field(default_factory=list)
    _stored: set[str] = field(default_factory=set)
    _ended: list[tuple[FileRow, list[str]]] = field(default_factory=list)

    def put(self, item: Item, *, stored: bool = False) -> None:
        """Take one passage; with `stored` the store already has it as it is."""
        self._batch.append(item)
        if stored:
            self._stored.add(item.id)
        if len(self._batch) >= BATCH:
            self._write()

    def end(self, row: FileRow, ids: Sequence[str]) -> None:
        """All passages of a file, `ids`, were put."""
        self._ended.append((row, list(ids)))

    def discard(self, ids: Sequence[str]) -> None:
        """Take passages of a file back that will not be ended; those of its former version stay."""
        gone = set(ids)
        self._batch = [item for item in self._batch if item.id not in gone]
        delete_passages(self.retriever, self.catalog, self.catalog.pending(ids))

    def flush(self) -> None:
        """Write and acknowledge what is waiting."""
        self._write()

    def _write(self) -> None:
        self.catalog.begin(self._batch)
        new = [item for item in self._batch if item.id not in self._stored]
        if new:
            self.retriever.add(new)
            self.written += len(new)
        for row, ids in self._ended:
            delete_passages(self.retriever, self.catalog, self.catalog.acknowledge(row, ids))
            self.acknowledged(row, len(ids))
        self._batch, self._stored, self._ended = [], set(), []


def delete_passages(retriever: Retriever, catalog: Catalog, ids: Sequence[str]) -> int:
    """Delete `ids` from store and catalogue so that a crash in between is mended later; returns how many."""
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
