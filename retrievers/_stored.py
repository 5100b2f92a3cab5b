"""What the retrievers over one store share: folders of their own, checked queries, batches."""

from __future__ import annotations

import atexit
import shutil
import threading
import weakref
from pathlib import Path
from queue import SimpleQueue
from tempfile import mkdtemp
from typing import TYPE_CHECKING, TypeVar

from ..errors import BadInput
from .base import Hit, Query, Retriever, Route, StoreStats, Where
from .stores import lite
from .stores.lexicon import LEXICAL
from .stores.milvus import LITE, MilvusStore
from .stores.weighed import Weighed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .base import Space
    from .stores.weighed import Weighing

S = TypeVar("S", bound=MilvusStore)

BATCH = 256
"""Items that are encoded and written between two reports of progress."""


def store_in(folder: Path | None, spaces: Sequence[Space], uri: str = "", token: str = "") -> MilvusStore:
    """A store in `folder`, or in a temporary one that goes when the store does."""
    if folder is not None:
        return MilvusStore(folder, spaces, uri, token=token)
    return _temporary(lambda made: MilvusStore(made, spaces))


def weighed_in(folder: Path | None, weighing: Weighing, uri: str = "", token: str = "") -> Weighed:
    """As `store_in`, a store whose words `weighing` weighs."""
    if folder is not None:
        return Weighed(folder, weighing, uri, token=token)
    return _temporary(lambda made: Weighed(made, weighing))


def _temporary(make: Callable[[Path], S]) -> S:
    folder = Path(mkdtemp(prefix="triptych-"))
    store = make(folder)
    _temporaries.holds(store, folder)
    return store


class _Temporaries:
    """Folders that go when their store does.

    A store may be collected at any moment and in any thread, one that holds the very locks which closing a database
    wants. So the finaliser only puts the folder into a queue, and a thread of its own closes and removes.
    """

    def __init__(self) -> None:
        self._gone: SimpleQueue[Path | None] = SimpleQueue()
        self._folders: set[Path] = set()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def holds(self, store: object, folder: Path) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._reap, name="temporary-stores", daemon=True)
                self._thread.start()
                atexit.register(self._end)
            self._folders.add(folder)
        weakref.finalize(store, self._gone.put, folder).atexit = False

    def _reap(self) -> None:
        while (folder := self._gone.get()) is not None:
            _remove(folder)
            self._folders.discard(folder)

    def _end(self) -> None:
        """At the end of the process, of every store that is still there."""
        self._gone.put(None)
        if self._thread is not None:
            self._thread.join()
        for folder in self._folders:
            _remove(folder)


_temporaries = _Temporaries()


def _remove(folder: Path) -> None:
    lite.close(folder / LITE)
    shutil.rmtree(folder, ignore_errors=True)


class ByWords(Retriever):
    """A retriever that is one store's lexical route; what it adds, and how words weigh, its subclasses say.

    Args:
        store: opened on first use.
    """

    def __init__(self, store: MilvusStore) -> None:
        self.store = store

    def delete(self, where: Where) -> int:
        return self.store.delete(where)

    def search(self, query: Query, k: int, where: Where | None = None) -> list[Hit]:
        return self.store.search([Route(LEXICAL, text=text_of(query))], k, where)

    def stats(self) -> StoreStats:
        return self.store.stats()

    def save(self, folder: Path) -> None:
        """Write items and counts into `folder`; a model is not saved."""
        self.store.save(folder)


def text_of(query: Query) -> str:
    """The query's text.

    Raises:
        BadInput: it has none, or only white space.
    """
    if query.text is None or not query.text.strip():
        raise BadInput("The query has no text.", "Ask with at least one word.")
    return query.text
