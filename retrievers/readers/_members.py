"""What a zip or tar file holds: its members by names that were checked, and what was left out and why."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from tarfile import BLOCKSIZE, HeaderError, ReadError, TarFile, TarInfo
from typing import IO, BinaryIO, cast
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from ._unpacking import BLOCK, Frugal, Room, sliced
from .base import clean, parsing

_ZIP_READ = 8_000_000  # bytes of a zip's directory, which is read as a whole
_TAR_READ = 100_000  # bytes of one extended header of a tar
_DOCUMENT = {"[Content_Types].xml", "META-INF/container.xml", "mimetype"}  # Office, EPUB, OpenDocument
_METHODS = (ZIP_STORED, ZIP_DEFLATED, ZIP_BZIP2)
_LOCKED, _UTF8 = 0x1, 0x800  # flags of a member
_LONGEST_NAME = 1000  # bytes
_DEEPEST_NAME = 100  # folders
_SHOWN_NAME = 200
_DRIVE = re.compile("[A-Za-z]:")

_OUTSIDE = "whose names lead out of it or are no names of files"
_NO_FILE = "that are links, devices or sparse files"
_ENCRYPTED = "that are encrypted"
_PACKED = "that are packed by a method not known here"
_TWICE = "whose names stand in it twice, or are both file and folder"
MEND = {
    _OUTSIDE: "Pack it anew with relative names.",
    _NO_FILE: "Pack the files themselves.",
    _ENCRYPTED: "Pack it anew without a password.",
    _PACKED: "Pack it anew.",
    _TWICE: "Pack it anew.",
}
"""What to do about members that were left out, by the reason."""


@dataclass(frozen=True)
class Member:
    """A file in an archive, of `size` bytes, and what makes them."""

    size: int
    blocks: Callable[[], Iterator[bytes]]


@dataclass
class Listed:
    """Members by name; of those left out how many, and the name of one, by the reason (see `MEND`)."""

    members: dict[str, Member] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    such_as: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, member: Member) -> None:
        """Of two members with one name the later counts, as it does where archives are unpacked."""
        safe = safe_name(name)
        if safe is None:
            self.leave(_OUTSIDE, name)
            return
        if safe in self.members:
            self.leave(_TWICE, safe)
        self.members[safe] = member

    def leave(self, why: str, name: str) -> None:
        """Leave a member out."""
        self.left_out[why] += 1
        self.such_as.setdefault(why, " ".join(clean(name)[0].split())[:_SHOWN_NAME])

    def leave_clashes(self) -> None:
        """Leave members out that stand inside another member, as if that were a folder."""
        for name in [name for name in self.members if any(above in self.members for above in folders_of(name))]:
            del self.members[name]
            self.leave(_TWICE, name)


def in_zip(file: BinaryIO, uri: str, room: Room) -> Listed:
    """The members of a zip archive. Their sizes are those that it states; none gives more than it states.

    Raises:
        UnreadableFile: damaged, or there is no room.
    """
    listed = Listed()
    with parsing(uri, "ZIP archive"):
        archive = _zip(file)
        for info in archive.infolist():
            room.take_member(uri)
            room.take(info.file_size, uri)
            name, kind = _zip_name(info), stat.S_IFMT(info.external_attr >> 16)
            if name.endswith(("/", "\\")):
                continue
            if kind not in (0, stat.S_IFREG):
                listed.leave(_NO_FILE, name)
            elif info.flag_bits & _LOCKED:
                listed.leave(_ENCRYPTED, name)
            elif info.compress_type not in _METHODS:
                listed.leave(_PACKED, name)
            else:
                listed.add(name, Member(info.file_size, partial(_of_zip, archive, info)))
    listed.leave_clashes()
    return listed


def in_tar(file: BinaryIO, uri: str, room: Room) -> Listed:
    """The members of a tar archive that is not compressed; as `in_zip`. Their bytes are not taken from `room`."""
    listed, frugal = Listed(), Frugal(file, _TAR_READ)
    with parsing(uri, "tar archive"):
        archive = TarFile(fileobj=cast("IO[bytes]", frugal), mode="r")
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all and their headers
            archive.pax_headers = {}
            room.take_member(uri)
            if info.isreg() and not info.issparse():
                listed.add(info.name, Member(info.size, partial(sliced, file, info.offset_data, info.size)))
            elif not info.isdir():
                listed.leave(_NO_FILE, info.name)
        if frugal.last.strip(b"\0"):
            raise ReadError("where the archive should go on or end, it does neither")
    listed.leave_clashes()
    return listed


def is_document(file: BinaryIO) -> bool:
    """Whether the zip in `file` belongs to the readers: it is a document, or damaged, which they say."""
    try:
        return not _DOCUMENT.isdisjoint(_zip(file).namelist())
    except Exception:  # on hostile bytes it raises whatever they make it trip over
        return True
    finally:
        file.seek(0)


def is_tar(head: bytes) -> bool:
    """Whether a tar archive begins with `head`: its first header has the right checksum."""
    try:
        TarInfo.frombuf(head[:BLOCKSIZE], "utf-8", "surrogateescape")
    except (HeaderError, ValueError, OverflowError):
        return False
    return True


def safe_name(name: str) -> str | None:
    """`name` as a uri shows it; None where it is absolute, leads out of the archive, or is no name of a file.

    >>> safe_name("./a\\\\b//c.md"), safe_name("../a"), safe_name("/etc/a"), safe_name("C:a")
    ('a/b/c.md', None, None, None)
    """
    shown = re.sub(r"[\n\t]", " ", clean(name)[0].replace("\\", "/"))
    parts = [part for part in shown.split("/") if part not in ("", ".")]
    safe = "/".join(parts)
    if shown.startswith("/") or _DRIVE.match(safe) or any(part.strip() in ("", ".", "..") for part in parts):
        return None
    return safe if 1 <= len(parts) <= _DEEPEST_NAME and len(safe.encode()) <= _LONGEST_NAME else None


def folders_of(name: str) -> list[str]:
    """The folders that `name` is in, outermost first.

    >>> folders_of("a/b/c.md")
    ['a', 'a/b']
    """
    return list(accumulate(name.split("/")[:-1], "{}/{}".format))


def _zip(file: BinaryIO) -> ZipFile:
    return ZipFile(cast("IO[bytes]", Frugal(file, _ZIP_READ)))


def _zip_name(info: ZipInfo) -> str:
    """The name, also where it is in UTF-8 and the archive does not say so."""
    if info.flag_bits & _UTF8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _of_zip(archive: ZipFile, info: ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as part:
        while block := part.read(BLOCK):
            yield block
