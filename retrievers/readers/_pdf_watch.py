"""The process in which PDF pages are tried before they are read here (`_pdf_probe`), and when it is given up."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from threading import Lock, Timer

from ... import progress
from . import _pdf_probe
from .base import unreadable

_SECONDS = 15.0  # for one page; sound ones take a hundredth of a second
_MOST_CHARACTERS = 500_000  # on one page


def check(data: bytes, uri: str, first: int, last: int) -> None:
    """Return if pages `first` to `last` (from 1, both included; fewer if there are fewer) of the PDF `data` can be
    parsed. A file that does not open, or a page that does not, is for the caller to find.

    Raises:
        UnreadableFile: a page takes more time or memory than any that is meant to be read, or has more characters.
    """
    number = _probe().tried(data, first, last)
    if number is not None:
        what = f"has a page, `{number}`, that takes too much to read"
        raise unreadable(uri, what, "Print it to a new PDF, or take the page out.")


class _Probe:
    """The program that tries pages, started when it is first asked and again after it died of a file."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def tried(self, data: bytes, first: int, last: int) -> int | None:
        """The first page that takes too much; None if all are sound."""
        request = json.dumps({"size": len(data), "first": first, "last": last}).encode() + b"\n" + data
        with self._lock:
            self._process = process = self._process or _started()
            number, sound = first, False
            try:
                while not sound:
                    line = _answer(process, request if number == first else b"")
                    sound = line == b"\n"
                    if not sound and (not line.strip().isdigit() or int(line) > _MOST_CHARACTERS):
                        return number
                    if not sound:
                        progress.step(number - first, None, "pages tried")
                        number += 1
                return None
            finally:
                if not sound:
                    self._close()

    def close(self) -> None:
        """End the program."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", str(Path(_pdf_probe.__file__))]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)


def _answer(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The next line of the answer, after `request` is sent; empty if the program died or took too long."""
    assert process.stdin is not None and process.stdout is not None
    watch = Timer(_SECONDS, process.kill)
    watch.start()
    try:
        process.stdin.write(request)
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return b""
    finally:
        watch.cancel()


@cache
def _probe() -> _Probe:
    return _Probe()
