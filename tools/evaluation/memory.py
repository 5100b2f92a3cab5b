"""How much memory a piece of work takes."""

from __future__ import annotations

import ctypes
import gc
import sys
from threading import Event, Thread

EVERY_S = 0.02


class PeakMemory:
    """The largest resident memory of this process inside a `with` block, looked at every 20 ms.

    Before the block begins, unused memory goes back to the system, so that what came before counts as little as can be.

    Attributes:
        mb: in MiB, of the whole process: Python, libraries, and what they keep for themselves included.
    """

    def __init__(self) -> None:
        import psutil

        self.mb = 0.0
        self._process = psutil.Process()
        self._done = Event()
        self._thread = Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        _give_back()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        self.mb = max(self.mb, self._process.memory_info().rss / 2**20)


def _give_back() -> None:
    """Free what is unused; glibc keeps freed memory unless it is asked to return it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
