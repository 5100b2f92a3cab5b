"""Formats that are zip archives inside (Office, EPUB): told apart by what they hold, measured before anything is
expanded. Other archives are named here, and opened where that was asked for (see `archive`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from .base import Limits, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zipfile import ZipInfo

    from ...errors import UnreadableFile

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
EPUB = "application/epub+zip"

_ENTRY = b"PK\x01\x02"
_SMALL = 1_000_000  # bytes; what expands to less is no bomb, whatever its ratio
_CONTENT_TYPES = "[Content_Types].xml"
_MAIN_PARTS = (
    (re.compile(rb"(?:wordprocessingml|ms-word)\.(?:document|template)[\w.]*\.main\+xml"), DOCX),
    (re.compile(rb"(?:presentationml|ms-powerpoint)\.(?:presentation|slideshow|template)[\w.]*\.main\+xml"), PPTX),
    (re.compile(rb"(?:spreadsheetml|ms-excel)\.(?:sheet|template)(?:\.macroEnabled)?\.main\+xml"), XLSX),
)
_SHEET = re.compile(r"/?xl/worksheets/[^/]+$", re.IGNORECASE)
_XML = re.compile(r"\.(?:xml|rels|vml)$", re.IGNORECASE)
_SHEET_ID = b"sheetId="
_DTD = tuple(mark.encode(code) for mark in ("<!DOCTYPE", "<!ENTITY") for code in ("ascii", "utf-16-le", "utf-16-be"))


def opened_zip(file: BinaryIO, uri: str, limits: Limits) -> ZipFile:
    """The archive in `file`. Its sizes are those that it states, and no part ever gives more than it states.

    Raises:
        UnreadableFile: damaged, encrypted, or above `max_entries`, `max_expanded` or `max_ratio`.
    """
    data = file.read()
    file.seek(0)
    entries = data.count(_ENTRY)
    if entries > limits.max_entries:
        raise _above(uri, f"has {entries} entries", "max_entries", limits.max_entries)
    try:
        archive = ZipFile(file)
        parts = archive.infolist()
    except Exception as error:  # on hostile bytes it raises whatever they make it trip over
        raise damaged(uri) from error
    if any(part.flag_bits & 1 for part in parts):
        raise unreadable(uri, "is encrypted", "Save it without a password.")
    if any(part.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for part in parts):
        raise unreadable(uri, "is packed in a way that its format does not allow", "Save it anew.")
    total = sum(part.file_size for part in parts)
    if total > _SMALL and total > limits.max_ratio * len(data):
        raise _above(
            uri, f"would expand to {total} bytes, {total // len(data)} times its size", "max_ratio", limits.max_ratio
        )
    whole = sum(part.file_size for part in parts if not _SHEET.match(part.filename))
    if whole > limits.max_expanded:
        raise _above(uri, f"would expand to {whole} bytes", "max_expanded", limits.max_expanded)
    return archive


def kind_of_zip(file: BinaryIO, uri: str, limits: Limits) -> str:
    """The MIME type of the zip-based document in `file`, by the parts that it holds. Leaves `file` at its start.

    Raises:
        UnreadableFile: as `opened_zip`; or it is no such document, but an archive.
    """
    with opened_zip(file, uri, limits) as archive:
        names = set(archive.namelist())
        stated = read_part(archive, "mimetype", uri, limits) if "mimetype" in names else b""
        types = read_part(archive, _CONTENT_TYPES, uri, limits) if _CONTENT_TYPES in names else b""
    file.seek(0)
    if stated.strip() == EPUB.encode() or (not types and "META-INF/container.xml" in names):
        return EPUB
    found = next((mime for main, mime in _MAIN_PARTS if main.search(types)), None)
    if found:
        return found
    if stated.startswith(b"application/vnd.oasis.opendocument"):
        raise unreadable(uri, "is an OpenDocument file", "Save it as .docx, .pptx, .xlsx or PDF.")
    if types:
        raise unreadable(uri, "is an Office file of a kind not known here", "Save it as .docx, .pptx, .xlsx or PDF.")
    raise archived(uri, "ZIP")


def archived(uri: str, name: str) -> UnreadableFile:
    """The error for an archive of format `name` that is not opened."""
    from .archive import MIMES

    if name in MIMES:
        hint = "Run `triptych index PATH --archives`, or unpack it and index the folder."
        return unreadable(uri, f"is an archive ({name}), and archives are not opened unless asked", hint)
    return unreadable(uri, f"is an archive of a kind that is not opened ({name})", "Unpack it and index the folder.")


def damaged(uri: str) -> UnreadableFile:
    from . import READABLE

    what = "looks like an Office file, an EPUB or a ZIP archive, but is damaged or truncated"
    return unreadable(uri, what, f"Copy it again, or save it anew. Readable are: {READABLE}.")


def check_xml(archive: ZipFile, uri: str, limits: Limits) -> None:
    """Refuse what an XML parser should not see: parts above `max_xml` (sheets excepted) and any that has a DTD, which
    Office formats do not allow and entity bombs need."""
    for part in _xml_parts(archive):
        if _SHEET.match(part.filename):
            continue
        content = read_part(archive, part.filename, uri, limits)
        if content.count(_SHEET_ID) > limits.max_pages:
            raise _above(uri, f"has {content.count(_SHEET_ID)} sheets", "max_pages", limits.max_pages)
        if any(mark in content for mark in _DTD):
            raise unreadable(uri, f"defines XML entities in `{part.filename}`", "Save it anew in an Office program.")


def read_part(archive: ZipFile, name: str, uri: str, limits: Limits) -> bytes:
    """The bytes of one part.

    Raises:
        UnreadableFile: there is no such part, it is damaged, or above `max_xml`.
    """
    try:
        size = archive.getinfo(name).file_size
        if size <= limits.max_xml:
            return archive.read(name)
    except Exception as error:  # as above
        raise damaged(uri) from error
    raise _above(uri, f"has a part of {size} bytes, `{name}`", "max_xml", limits.max_xml)


def _xml_parts(archive: ZipFile) -> Iterator[ZipInfo]:
    return (part for part in archive.infolist() if _XML.search(part.filename))


def _above(uri: str, what: str, name: str, limit: int) -> UnreadableFile:
    return unreadable(uri, f"{what}, more than `{name}` = {limit}", "Split the file, or raise the limit.")
