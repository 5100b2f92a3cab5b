"""A program of ours that does for a reader what may take for ever or all memory, and may die of it."""

from __future__ import annotations

import atexit
import subprocess
import sys
from threading import Lock, Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


class Child:
    """The module `program` as a program of its own, started when first asked and again after it was ended or died.

    Attributes:
        lock: held by whoever talks to it.
    """

    def __init__(self, program: ModuleType) -> None:
        self.lock = Lock()
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def answer(self, request: bytes, seconds: float) -> bytes:
        """The next line that it writes, after `request`; empty if it died or took longer. Only under `lock`."""
        self._process = process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        watch = Timer(seconds, process.kill)
        watch.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            watch.cancel()

    def end(self) -> None:
        """End it. Only under `lock`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def close(self) -> None:
        """End it."""
        with self.lock:
            self.end()

    def _started(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-P", str(self._program.__file__)]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
