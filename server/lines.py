"""Lines of stdin that are never longer than a limit: one that is gets read to its end, but not kept.

In its place the server sees a small request with the same id, which it answers with an error, so that the client does
not wait for ever.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TOO_LONG = "triptych/too-long"
"""The method that a request which was too long is answered by."""
_PART = 65_536
_HEAD = 4096
_ID = re.compile(rb'"id"\s*:\s*(-?\d{1,18}|"[^"\\]{0,200}")')


class Lines(io.RawIOBase):
    """Raw bytes from `read`, line by line.

    Args:
        read: gives at most so many bytes, none at the end (`os.read` of a descriptor).
        most: bytes of a line, its end not counted.
    """

    def __init__(self, read: Callable[[int], bytes], most: int) -> None:
        self._read = read
        self._most = most
        self._line = bytearray()
        self._ready = bytearray()
        self._skipping = False
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._ready and not self._ended:
            self._take(self._read(_PART))
        given = bytes(self._ready[: len(into)])
        del self._ready[: len(given)]
        into[: len(given)] = given
        return len(given)

    def _take(self, part: bytes) -> None:
        if not part:
            self._ended = True
            self._ready += b"" if self._skipping else self._line
            self._line.clear()
            return
        *whole, rest = part.split(b"\n")
        for piece in whole:
            self._add(piece)
            if not self._skipping:
                self._ready += self._line + b"\n"
            self._skipping = False
            self._line.clear()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        if self._skipping:
            return
        self._line += piece
        if len(self._line) > self._most:
            self._ready += instead_of(bytes(self._line[:_HEAD]), bytes(self._line[-_HEAD:])) + b"\n"
            self._line.clear()
            self._skipping = True


def instead_of(*parts: bytes) -> bytes:
    """A request to `TOO_LONG` with the id that stands in one of `parts`; without an id a notification."""
    found = next((match.group(1) for part in parts if (match := _ID.search(part))), None)
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": TOO_LONG}
    if found is not None:
        message["id"] = json.loads(found)
    return json.dumps(message).encode()


def claim_stdin(most: int) -> None:
    """From now on `sys.stdin` gives such lines, and descriptor 0 is empty for libraries and children."""
    private = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    lines = Lines(lambda size: os.read(private, size), most)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(lines, _PART), encoding="utf-8", errors="replace")
