"""Opening a file safely, and telling its kind from its bytes."""

from __future__ import annotations

import os
import re
import stat
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from .base import Limits, unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from ...errors import UnreadableFile

_HEAD = 65_536
_MARKDOWN = (".md", ".markdown", ".mdown", ".mkd")
_HTML = (".html", ".htm", ".xhtml")
_MAGIC = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"II\*\0|MM\0\*"), "image/tiff"),
    (re.compile(rb"BM....\0{4}....[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}", re.DOTALL), "image/bmp"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*%PDF-\d"), "application/pdf"),
)
_OTHER_TEXT = ((b"{\\rtf", "RTF"), (b"%!PS", "PostScript"))  # written in ASCII, but not to be read as it stands
_HTML_START = re.compile(r"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_HTML_TAG = re.compile(r"<(?:p|div|h[1-6]|table|ul|ol|span|a|br|title|article|section)\b[^>]*>", re.IGNORECASE)


def opened(path: Path, uri: str, limits: Limits) -> BinaryIO:
    """The bytes of the regular file at `path`, opened once; pipes, devices and links are refused, never waited for.

    Raises:
        UnreadableFile: it cannot be opened, is not a regular file, is empty, or larger than `limits.max_bytes`.
    """
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        _check_kind(os.lstat(path).st_mode, uri)
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            _check_kind(status.st_mode, uri)
            if status.st_size > limits.max_bytes:
                raise _too_large(uri, status.st_size, limits)
            data = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise _unopened(uri, error) from None
    if not data:
        raise unreadable(uri, "is empty", "Remove it, or give a file with content.")
    if len(data) > limits.max_bytes:
        raise _too_large(uri, len(data), limits)
    return BytesIO(data)


def kind_of(file: BinaryIO, uri: str) -> str:
    """The MIME type of `file` by its first bytes; the name only tells Markdown and HTML from other text.

    Leaves `file` at its start.

    Raises:
        UnreadableFile: a kind that no reader takes; the hint lists those that are readable.
    """
    head = file.read(_HEAD)
    file.seek(0)
    for magic, mime in _MAGIC:
        if magic.match(head):
            return mime
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix == ".pdf" and b"%PDF-" in head[:1024]:
        return "application/pdf"
    from .text import encoding_of, is_text

    other = next((name for start, name in _OTHER_TEXT if head.startswith(start)), None)
    encoding = encoding_of(head) if other is None and is_text(head) else None
    if encoding is None:
        raise _unknown(uri, other or _name_of(head))
    text = head.decode(encoding, errors="replace").lstrip("\ufeff")
    if suffix in _MARKDOWN:
        return "text/markdown"
    if _HTML_START.match(text) or (suffix in _HTML and _HTML_TAG.search(text)):
        return "text/html"
    return "text/plain"


def _check_kind(mode: int, uri: str) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    raise unreadable(uri, f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file", "Give a regular file.")


def _too_large(uri: str, size: int, limits: Limits) -> UnreadableFile:
    what = f"is too large: {size} bytes, more than `max_bytes` = {limits.max_bytes}"
    return unreadable(uri, what, "Split the file, or raise the limit.")


def _unopened(uri: str, error: OSError) -> UnreadableFile:
    if isinstance(error, FileNotFoundError):
        return unreadable(uri, "does not exist", "Check the path.")
    if isinstance(error, PermissionError):
        return unreadable(uri, "may not be read", "Give this user the permission to read it.")
    return unreadable(uri, f"cannot be read ({error.strerror or 'input/output error'})", "Check the disk and the path.")


def _unknown(uri: str, name: str | None) -> UnreadableFile:
    from . import READABLE

    what = f"is not of a readable kind (it looks like {name})" if name else "is not of a readable kind"
    return unreadable(uri, what, f"Readable are: {READABLE}.")


def _name_of(head: bytes) -> str | None:
    """What the bytes look like, for the error message."""
    from puremagic import PureError, magic_string

    try:
        matches = magic_string(head)
    except (PureError, ValueError):
        return None
    return next((match.name for match in matches if match.name), None)
