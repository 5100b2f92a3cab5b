"""Bytes out of archives, within limits: expanded, copied, counted."""

from __future__ import annotations

import lzma
from bz2 import BZ2File
from contextlib import ExitStack
from dataclasses import dataclass
from gzip import GzipFile
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, cast

from ...progress import step
from .base import Limits, parsing, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 1 << 20
_SMALL = 10_000_000  # bytes; what expands to less is no bomb, whatever its ratio
_XZ_MEMORY = 128_000_000  # twice what `xz -9` asks for
_HINT = "Unpack it and index the folder."


@dataclass
class Room:
    """What may still come out of an archive and all archives inside it: so many `members`, and so many `bytes`, under
    the limit `name` = `most`."""

    members: int
    bytes: int
    name: str
    most: int

    @classmethod
    def of(cls, size: int, limits: Limits) -> Room:
        """For an archive of `size` bytes."""
        by_ratio = max(_SMALL, limits.max_ratio * size)
        if by_ratio < limits.max_unpacked:
            return cls(limits.max_members, by_ratio, "max_ratio", limits.max_ratio)
        return cls(limits.max_members, limits.max_unpacked, "max_unpacked", limits.max_unpacked)

    def take(self, size: int, uri: str) -> None:
        """Use up `size` bytes.

        Raises:
            UnreadableFile: there is not so much room.
        """
        if size > self.bytes:
            raise unreadable(uri, f"expands to more than `{self.name}` = {self.most} allows", _HINT)
        self.bytes -= size

    def take_member(self, uri: str) -> None:
        """Use up the place of one member, as `take`."""
        if self.members < 1:
            raise unreadable(uri, "has more members than `max_members` allows", _HINT)
        self.members -= 1


class Frugal:
    """A file that is never read by more than `most` bytes at once: how large a header is, the archive says itself.

    Attributes:
        last: what was read last.
    """

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most
        self.last = b""
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """As any file, but for the limit.

        Raises:
            ValueError: `size`, or where that is not given the rest of the file, is above the limit.
        """
        if size > self._most:
            raise ValueError(f"`{size}` bytes at once")
        data = self._file.read(size if size >= 0 else self._most + 1)
        if len(data) > self._most:
            raise ValueError(f"more than `{self._most}` bytes at once")
        self.last = data
        return data


def poured(blocks: Iterator[bytes], uri: str, what: str, room: Room | None = None) -> BinaryIO:
    """The bytes of `blocks`, taken from `room`, in a file that has no name and is gone when it is closed.

    Raises:
        UnreadableFile: they cannot be made: `uri` is a damaged `what`; or there is no room.
    """
    with ExitStack() as closing:
        made = cast("BinaryIO", closing.enter_context(TemporaryFile()))
        while True:
            step(made.tell(), None, "bytes unpacked")
            with parsing(uri, what):
                block = next(blocks, None)
            if block is None:
                break
            if room is not None:
                room.take(len(block), uri)
            made.write(block)
        made.seek(0)
        closing.pop_all()
    return made


def expanded(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """What `file` holds, compressed by `kind`: `gzip`, `bzip2` or `xz`."""
    if kind == "xz":
        yield from _expanded_xz(file)
        return
    with GzipFile(fileobj=file) if kind == "gzip" else BZ2File(file) as expanding:
        while block := expanding.read(BLOCK):
            yield block


def _expanded_xz(file: BinaryIO) -> Iterator[bytes]:
    """Unlike `LZMAFile`, within `_XZ_MEMORY`: how much it takes to expand a file, the file says itself."""
    data = file.read(BLOCK)
    while data:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
        while not decoder.eof:
            if decoder.needs_input:
                data = data or file.read(BLOCK)
                if not data:
                    raise EOFError("the end is missing")
            yield decoder.decompress(data, BLOCK)
            data = b""
        data = decoder.unused_data.lstrip(b"\0") or file.read(BLOCK).lstrip(b"\0")


def sliced(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """The `size` bytes of `file` from `start` on."""
    file.seek(start)
    while size:
        block = file.read(min(size, BLOCK))
        if not block:
            raise EOFError("the end is missing")
        size -= len(block)
        yield block


def size_of(file: BinaryIO) -> int:
    """How many bytes `file` has; it stays where it stands."""
    at, size = file.tell(), file.seek(0, 2)
    file.seek(at)
    return size
