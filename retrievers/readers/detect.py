"""Opening a file safely, and telling its kind from its bytes."""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from ...errors import UnreadableFile
from .base import Limits, unreadable
from .plugins import plugin_for

if TYPE_CHECKING:
    from pathlib import Path

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
_MPEG = rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd](?=.{0,2048}?\0)"  # Russian text begins like it, but holds no zero
_ADTS = rb"\xff[\xf0\xf1\xf8\xf9](?=.{0,2048}?\0)"
_MEDIA = tuple(
    (re.compile(magic, re.DOTALL), mime)
    for magic, mime in (
        (rb"(?:RIFF|RF64)....WAVE", "audio/wav"),
        (rb"fLaC[\0\x80]", "audio/flac"),
        (rb"OggS\0(?=.{0,400}\x80theora)", "video/ogg"),
        (rb"OggS\0", "audio/ogg"),
        (rb"FORM....AIF[FC]", "audio/aiff"),
        (rb"#!AMR", "audio/amr"),
        (rb"\.snd\0", "audio/basic"),
        (rb"caff\0\x01", "audio/x-caf"),
        (_ADTS, "audio/aac"),
        (_MPEG, "audio/mpeg"),
        (rb"\0...ftyp(?:M4[ABP] |F4A )", "audio/mp4"),
        (rb"\0...ftyp3g", "video/3gpp"),
        (rb"\0...ftypqt  |\0...(?:moov|mdat|wide|free|skip)", "video/quicktime"),
        (rb"\0...ftyp(?!hei|hev|mif1|msf1|avi[fs]|jxl |crx )", "video/mp4"),
        (rb"\x1a\x45\xdf\xa3(?=.{0,64}webm)", "video/webm"),
        (rb"\x1a\x45\xdf\xa3", "video/x-matroska"),
        (rb"RIFF....AVI ", "video/x-msvideo"),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
        (rb"FLV\x01", "video/x-flv"),
        (rb"\0\0\x01\xba", "video/mpeg"),
        (rb"G.{187}G.{187}G", "video/mp2t"),
    )
)
ZIP = b"PK\x03\x04", b"PK\x05\x06"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_LOCKED = "EncryptedPackage".encode("utf-16-le")
ARCHIVES = (
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "7z"),
    (re.compile(rb"Rar!\x1a\x07"), "RAR"),
    (re.compile(rb"\x1f\x8b\x08"), "gzip"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\0"), "xz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "zstd"),
    (re.compile(rb".{257}ustar", re.DOTALL), "tar"),
)
_OTHER_TEXT = ((b"{\\rtf", "RTF"), (b"%!PS", "PostScript"))  # written in ASCII, but not to be read as it stands
_NEWLINE = re.compile("\r\n?")
_HTML_START = re.compile(r"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_HTML_TAG = re.compile(r"<(?:p|div|h[1-6]|table|ul|ol|span|a|br|title|article|section)\b[^>]*>", re.IGNORECASE)


def opened(path: Path, uri: str, limits: Limits) -> BinaryIO:
    """The bytes of the regular file at `path`, opened once; pipes, devices and links are refused, never waited for.

    Below the path of an archive stands what is in the archive (see `archive`). The caller closes what it gets.

    Raises:
        UnreadableFile: it cannot be opened, is not a regular file, is empty, or larger than `limits` allow.
    """
    if archive_of(path) is None:
        return taken(regular(path, uri), uri, limits)
    from .archive import member_at

    return taken(member_at(path, uri, limits), uri, limits)


def archive_of(path: Path) -> Path | None:
    """The file that is a parent of `path`, as if it were a folder: an archive. None where there is no such file."""
    if os.path.lexists(path):
        return None
    return next((parent for parent in path.parents if os.path.isfile(parent)), None)  # noqa: PTH113


def regular(path: Path, uri: str) -> BinaryIO:
    """The regular file at `path`, opened once; pipes, devices and links are refused, never waited for.

    Raises:
        UnreadableFile: it cannot be opened, or is not a regular file.
    """
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        _check_kind(os.lstat(path).st_mode, uri)
        with ExitStack() as closing:
            file = closing.enter_context(open(os.open(path, flags), "rb"))  # noqa: PTH123
            _check_kind(os.fstat(file.fileno()).st_mode, uri)
            closing.pop_all()
    except OSError as error:
        raise _unopened(uri, error) from None
    return file


def taken(file: BinaryIO, uri: str, limits: Limits) -> BinaryIO:
    """The open `file` as readers take it. Its bytes are in memory, so that it may change meanwhile; only sound and
    video, which can be large, are the open file itself. The caller closes what it gets, and only that.

    Raises:
        UnreadableFile: as `opened`.
    """
    with ExitStack() as closing:
        closing.enter_context(file)
        try:
            media = _media_kind(file.read(_HEAD)) is not None
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            most = "max_media_bytes" if media else "max_bytes"
            _check_bytes(file, uri, size, most, limits)
            if media:
                closing.pop_all()
                return file
            data = file.read(limits.max_bytes + 1)
        except OSError as error:
            raise _unopened(uri, error) from None
    if not data:
        raise unreadable(uri, "is empty", "Remove it, or give a file with content.")
    _check_bytes(BytesIO(data), uri, len(data), most, limits)
    return BytesIO(data)


def kind_of(file: BinaryIO, uri: str, limits: Limits | None = None) -> str:
    """The MIME type of `file` by what it holds; the name only tells one kind of text from another.

    Leaves `file` at its start.

    Raises:
        UnreadableFile: a kind that no reader takes; the hint lists those that are readable.
    """
    head = file.read(_HEAD)
    file.seek(0)
    for magic, mime in _MAGIC:
        if magic.match(head):
            return mime
    if media := _media_kind(head):
        return media
    try:
        kind = _zipped(file, head, uri, limits or Limits()) or _text_kind(head, uri)
    except UnreadableFile:
        if plugin := plugin_for(head, uri):
            return plugin
        raise
    return (plugin_for(head, uri) or kind) if kind == "text/plain" else kind


def _zipped(file: BinaryIO, head: bytes, uri: str, limits: Limits) -> str | None:
    """The kind of an Office file or EPUB; None for what is no archive and no Office file of old.

    Raises:
        UnreadableFile: an archive, or an Office file that is encrypted or of a format before 2007.
    """
    if head.startswith(ZIP):
        from ._members import is_document
        from ._zip import archived, kind_of_zip

        if not is_document(file):
            raise archived(uri, "ZIP")
        return kind_of_zip(file, uri, limits)
    if head.startswith(_OLE):
        data = file.read()
        file.seek(0)
        if _LOCKED in data:
            raise unreadable(uri, "is an encrypted Office file", "Save it without a password.")
        what = "is an Office file or message of the format before 2007"
        raise unreadable(uri, what, "Save it as .docx, .pptx, .xlsx, .eml or PDF.")
    if name := next((name for magic, name in ARCHIVES if magic.match(head)), None):
        from ._zip import archived

        raise archived(uri, name)
    return None


def _text_kind(head: bytes, uri: str) -> str:
    """The kind of a text: by its structure where that is plain, then by its name."""
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix == ".pdf" and b"%PDF-" in head[:1024]:
        return "application/pdf"
    from .text import encoding_of, is_text

    other = next((name for start, name in _OTHER_TEXT if head.startswith(start)), None)
    encoding = encoding_of(head) if other is None and is_text(head) else None
    if encoding is None:
        raise _unknown(uri, other or _name_of(head))
    text = _NEWLINE.sub("\n", head.decode(encoding, errors="replace").lstrip("\ufeff"))
    if suffix in _MARKDOWN:
        return "text/markdown"
    if _HTML_START.match(text):
        return "text/html"
    from . import _subtitles, code, data, mail, table

    if subtitles := _subtitles.kind_of(text):
        return subtitles

    if language := code.language_of(text, uri):
        return language
    if suffix in _HTML and _HTML_TAG.search(text):
        return "text/html"
    if mail.is_mail(text):
        return mail.MAIL
    is_whole = len(head) < _HEAD
    return (
        data.kind_of(text, suffix, is_whole=is_whole) or table.kind_of(text, suffix, is_whole=is_whole) or "text/plain"
    )


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


def _media_kind(head: bytes) -> str | None:
    """The kind of sound or video that begins with `head`, behind the tags that may stand before it."""
    if re.match(rb"ID3[\x02-\x04]", head) and len(head) > 10:
        length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return next((mime for magic, mime in _MEDIA if magic.match(head, 10 + length)), "audio/mpeg")
    return next((mime for magic, mime in _MEDIA if magic.match(head)), None)


def _check_bytes(file: BinaryIO, uri: str, size: int, most: str, limits: Limits) -> None:
    if size > getattr(limits, most):
        from ._zip import archived
        from .archive import kind_of as kind_of_archive

        if kind := kind_of_archive(file, uri):
            raise archived(uri, kind)
        what = f"is too large: {size} bytes, more than `{most}` = {getattr(limits, most)}"
        raise unreadable(uri, what, "Split the file, or raise the limit.")


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
