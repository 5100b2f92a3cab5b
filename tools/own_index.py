"""The index of one system in a library's folder: the system over it, and which items it has.

A retriever cannot say which items it has, so a list beside its files does. It is written last; while the index changes,
a second list names the items that are in doubt, so that whatever stops the work only those are brought in again.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any

from ..errors import StoreError, TriptychError
from ..retrievers.stores import lite
from ..retrievers.stores.milvus import LITE, MilvusStore
from ..retrievers.stores.vectors import VectorStore
from .catalog import REBUILD

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ..manifests.registry import Card
    from ..retrievers.base import Retriever
    from .stages import Stages

INDEX, HAS, DOUBT = "index", "items.json", "changing.json"

log = logging.getLogger(__name__)


@dataclass
class OwnIndex:
    """See the module. Nothing is opened before `retriever`.

    Args:
        folder: holds the index and the two lists.
    """

    system: Card
    folder: Path
    stages: Stages
    _held: Any = None
    _state: tuple[int, int] | None = None
    _lock: RLock = field(default_factory=RLock)

    def retriever(self) -> Retriever:
        """The system over the index, as the last writer of any process left it.

        Raises:
            MissingWeights: the system's.
            StoreError: the index cannot be opened.
        """
        with self._lock:
            state = self._written()
            if self._held is None or self._state != state:
                self.close()
                (self.folder / INDEX).mkdir(parents=True, exist_ok=True)
                self._held = self.system.resolve().load(self.system, self.stages, self.folder / INDEX)
                self._state = state
            held: Retriever = self._held
            return held

    def has(self) -> set[str]:
        """The ids of the items that it has, those in doubt included.

        Raises:
            StoreError: the list is damaged.
        """
        return self._read(HAS)

    def doubt(self) -> set[str]:
        """The ids of the items that a change which nothing ended was about."""
        return self._read(DOUBT)

    def begin(self, ids: Iterable[str]) -> None:
        """The index changes now, in the items `ids`."""
        self._write(DOUBT, ids)

    def end(self, ids: Iterable[str]) -> None:
        """Make what the retriever was given last, and remember that it has `ids`."""
        with self._lock:
            self.retriever().save(self.folder / INDEX)
            self._write(HAS, ids)
            self._state = self._written()
            (self.folder / DOUBT).unlink(missing_ok=True)

    def clear(self) -> None:
        """Throw the index away, whatever state it is in.

        Raises:
            StoreError: its folder cannot be removed.
        """
        with self._lock:
            if self.folder.exists() and self.stages.settings.store_uri:
                self._erase_remote()
            self.close()
            lite.close(self.folder / INDEX / LITE)
            if not self.folder.exists():
                return
            try:
                shutil.rmtree(self.folder)
            except OSError as error:
                raise StoreError(
                    f"The folder of the retriever `{self.system.id}` cannot be removed: {error.strerror}.",
                    "Check its rights.",
                ) from error

    def close(self) -> None:
        """Let go of the files; the next call opens them again."""
        with self._lock:
            for store in self._stores():
                store.close()
            self._held = None

    def _erase_remote(self) -> None:
        """On a server, the folder is not where the vectors are."""
        try:
            self.retriever()
            for store in self._stores():
                store.erase()
        except TriptychError as error:
            log.warning("what %s has on the server stays there: %s", self.system.id, error)

    def _stores(self) -> list[MilvusStore | VectorStore]:
        held = [getattr(self._held, name, None) for name in ("store", "vectors")]
        return [store for store in held if isinstance(store, MilvusStore | VectorStore)]

    def _written(self) -> tuple[int, int] | None:
        path = self.folder / HAS
        if not path.is_file():
            return None
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_ino

    def _read(self, file: str) -> set[str]:
        path = self.folder / file
        if not path.is_file():
            return set()
        try:
            return {str(one) for one in json.loads(path.read_text("utf-8"))}
        except (ValueError, TypeError) as error:
            raise StoreError(f"The list `{file}` of the retriever `{self.system.id}` is damaged.", REBUILD) from error

    def _write(self, file: str, ids: Iterable[str]) -> None:
        draft = self.folder / f"{file}.draft"
        draft.write_text(json.dumps(sorted(ids)), "utf-8")
        draft.replace(self.folder / file)
