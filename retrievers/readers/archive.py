"""Archives (zip, tar, and what gzip, bzip2 and xz compress): their members one by one, for the readers of files.

Who opens an archive was asked to. Nothing is written but temporary files without a name, which end with their use; a
member's name is part of its uri and never a path on this machine; links, devices and names that lead out are left out.
Sizes are bounded before anything is read where the archive states them, else while it is read.

A member's uri is the archive's with its name below it, as if the archive were a folder: `docs/a.zip/2024/b.pdf`. While
`docs/a.zip` is a file, no file can have that uri.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from ._members import MEND, Listed, Member, folders_of, in_tar, in_zip, is_document, is_tar
from ._unpacking import Room, expanded, poured, size_of, sliced
from .base import Limits, file_name, unreadable
from .detect import ARCHIVES, ZIP, archive_of, regular
from .plugins import plugin_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from ...errors import UnreadableFile

MIMES = {
    "ZIP": "application/zip",
    "tar": "application/x-tar",
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}
"""What can be opened, by the name of its format."""

_HEAD = 65_536
_SUFFIXES = (".gz", ".bz2", ".xz")


class Archive:
    """The archive in `file`, which it closes. One thread at a time.

    Args:
        kind: as `kind_of` has it.
        room, depth: of an archive inside another: what is left of the room of that one, and how deep it is.

    Raises:
        UnreadableFile: damaged, or above `max_members`, `max_unpacked` or `max_ratio`.
    """

    def __init__(
        self, file: BinaryIO, kind: str, uri: str, limits: Limits, room: Room | None = None, depth: int = 1
    ) -> None:
        self.uri = uri
        self.mime = MIMES[kind]
        self._limits = limits
        self._depth = depth
        self._room = room or Room.of(size_of(file), limits)
        with ExitStack() as closing:
            closing.enter_context(file)
            if kind == "tar":
                self._room.take(size_of(file), uri)
            elif kind != "ZIP":
                file = closing.enter_context(poured(expanded(file, kind), uri, f"{kind} file", self._room))
            self._listed = self._list(file, kind)
            self._closing = closing.pop_all()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._closing.close()

    @property
    def names(self) -> list[str]:
        """The members in the archive's order, with forward slashes and without what cannot be seen."""
        return list(self._listed.members)

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._listed.members[name].size

    def left_out(self) -> Iterator[tuple[str, str]]:
        """What of the archive is not among `names`, and how to mend that."""
        for why, count in self._listed.left_out.items():
            such_as = self._listed.such_as[why]
            yield f"`{self.uri}` has members {why} ({count}), such as `{such_as}`: left out.", MEND[why]

    def opened(self, name: str) -> BinaryIO:
        """A copy of the member `name` in a file that has no name; the caller closes it.

        Raises:
            UnreadableFile: damaged, or above `max_media_bytes`.
        """
        member, uri = self._listed.members[name], f"{self.uri}/{name}"
        if member.size > self._limits.max_media_bytes:
            what = f"has {member.size} bytes, more than `max_media_bytes` = {self._limits.max_media_bytes}"
            raise unreadable(uri, what, "Split the file, or raise the limit.")
        return poured(member.blocks(), uri, "file in an archive")

    def inner(self, file: BinaryIO, uri: str) -> Archive | None:
        """The archive in `file`, a copy of a member; None where that is no archive.

        Raises:
            UnreadableFile: deeper than `max_nesting`; or as for any archive.
        """
        kind = kind_of(file, uri)
        if kind is None:
            return None
        if self._depth >= self._limits.max_nesting:
            what = f"is an archive in an archive, deeper than `max_nesting` = {self._limits.max_nesting}"
            raise unreadable(uri, what, "Unpack it and index the folder.")
        return Archive(file, kind, uri, self._limits, self._room, self._depth + 1)

    def _list(self, file: BinaryIO, kind: str) -> Listed:
        if kind == "ZIP":
            return in_zip(file, self.uri, self._room)
        if kind == "tar" or is_tar(_head(file)):
            return in_tar(file, self.uri, self._room)
        self._room.take_member(self.uri)
        name, size = PurePosixPath(file_name(self.uri)), size_of(file)
        short = name.stem if name.suffix.lower() in _SUFFIXES else name.name
        return Listed({short: Member(size, lambda: sliced(file, 0, size))})


def kind_of(file: BinaryIO, uri: str) -> str | None:
    """The format of the archive in `file`; None where that is something else, or a plug-in reads it.

    Leaves `file` at its start.
    """
    head = _head(file)
    if head.startswith(ZIP):
        kind = None if is_document(file) else "ZIP"
    elif is_tar(head):
        kind = "tar"
    else:
        kind = next((name for magic, name in ARCHIVES if magic.match(head)), None)
    return kind if kind in MIMES and plugin_for(head, uri) is None else None


def at(path: Path, uri: str, limits: Limits) -> Archive | None:
    """The archive in the file at `path`, which the caller has resolved and allowed; None where that is no archive.

    Raises:
        UnreadableFile: it cannot be opened; or as for any archive.
    """
    with ExitStack() as closing:
        file = closing.enter_context(regular(path, uri))
        kind = kind_of(file, uri)
        if kind is None:
            return None
        closing.pop_all()
    return Archive(file, kind, uri, limits)


def member_at(path: Path, uri: str, limits: Limits) -> BinaryIO:
    """A copy of the member at `path`, one of whose parents is the archive; the caller closes it.

    Raises:
        UnreadableFile: there is no such member; or as for any archive.
    """
    outer = archive_of(path)
    archive = None if outer is None else at(outer, uri, limits)
    if outer is None or archive is None:
        raise _lost(uri)
    return _descended(archive, path.relative_to(outer).as_posix(), uri)


def _descended(archive: Archive, wanted: str, uri: str) -> BinaryIO:
    with archive, ExitStack() as closing:
        names = set(archive.names)
        name = next((name for name in (*folders_of(wanted), wanted) if name in names), None)
        if name is None:
            raise _lost(uri)
        file = closing.enter_context(archive.opened(name))
        if name == wanted:
            closing.pop_all()
            return file
        inner = archive.inner(file, uri)
        if inner is None:
            raise _lost(uri)
        return _descended(inner, wanted[len(name) + 1 :], uri)


def _head(file: BinaryIO) -> bytes:
    head = file.read(_HEAD)
    file.seek(0)
    return head


def _lost(uri: str) -> UnreadableFile:
    return unreadable(uri, "is not in its archive any more", "Index it again.")
