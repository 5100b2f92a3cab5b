"""Readers: a file becomes a document whose text knows where it stands.

`read` goes by what a file holds, never by its name alone; a reader is loaded when its first file comes.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import MissingExtra
from .base import Document, Limits, Reader

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_OFFICE = "application/vnd.openxmlformats-officedocument"
_READERS = {
    "text/plain": "text:TextReader",
    "text/markdown": "markdown:MarkdownReader",
    "text/html": "html:HTMLReader",
    "application/pdf": "pdf:PDFReader",
    "image/png": "image:ImageReader",
    "image/jpeg": "image:ImageReader",
    "image/webp": "image:ImageReader",
    "image/gif": "image:ImageReader",
    "image/tiff": "image:ImageReader",
    "image/bmp": "image:ImageReader",
    **dict.fromkeys(("text/vtt", "application/x-subrip"), "subtitles:SubtitleReader"),
    "text/csv": "table:TableReader",
    "text/tab-separated-values": "table:TableReader",
    "application/json": "data:DataReader",
    "application/x-ndjson": "data:DataReader",
    "message/rfc822": "mail:MailReader",
    "application/epub+zip": "epub:EpubReader",
    f"{_OFFICE}.wordprocessingml.document": "word:WordReader",
    f"{_OFFICE}.presentationml.presentation": "slides:SlideReader",
    f"{_OFFICE}.spreadsheetml.sheet": "sheets:SheetReader",
    **dict.fromkeys(("text/x-python", "text/javascript", "text/x-typescript", "text/x-tsx"), "code:CodeReader"),
    **dict.fromkeys(("text/x-java", "text/x-go", "text/x-rust", "text/x-c", "text/x-c++"), "code:CodeReader"),
    **dict.fromkeys(("audio/wav", "audio/mpeg", "audio/aac", "audio/flac", "audio/ogg"), "audio:AudioReader"),
    **dict.fromkeys(("audio/mp4", "audio/aiff", "audio/amr", "audio/basic", "audio/x-caf"), "audio:AudioReader"),
    **dict.fromkeys(("video/mp4", "video/quicktime", "video/3gpp", "video/webm"), "video:VideoReader"),
    **dict.fromkeys(("video/x-matroska", "video/ogg", "video/x-msvideo", "video/x-ms-asf"), "video:VideoReader"),
    **dict.fromkeys(("video/x-flv", "video/mpeg", "video/mp2t"), "video:VideoReader"),
}
_OF_OFFICE = {"word": "python-docx", "slides": "python-pptx", "sheets": "openpyxl"}
READABLE = (
    "plain text, Markdown, HTML, PDF, Word (.docx), PowerPoint (.pptx), Excel (.xlsx), EPUB, CSV, TSV, JSON, "
    "JSON lines, notebooks, mail (.eml), source code, subtitles (SRT, WebVTT), PNG, JPEG, WebP, GIF, TIFF, BMP, "
    "sound (WAV, MP3, FLAC, Ogg, M4A, AIFF) and video (MP4, MOV, MKV, WebM, AVI, MPEG)"
)


def read(path: Path, uri: str, limits: Limits | None = None) -> Document:
    """The document in the file at `path`, which the caller has resolved and allowed; `uri` names it everywhere.

    The file is opened once, and only if it is a regular file (a link put there meanwhile is not followed). A path
    below an archive is that of a file in it.

    Raises:
        UnreadableFile: missing, not permitted, not a file, empty, above a limit, of an unknown kind, damaged.
        MissingExtra: the packages that read this kind are not installed.
    """
    from .detect import opened

    limits = limits or Limits()
    with opened(path, uri, limits) as file:
        return _read(file, uri, limits)


def read_open(file: BinaryIO, uri: str, limits: Limits | None = None) -> Document:
    """As `read`, the document in an open file, which is closed then."""
    from .detect import taken

    limits = limits or Limits()
    with taken(file, uri, limits) as own:
        return _read(own, uri, limits)


def _read(file: BinaryIO, uri: str, limits: Limits) -> Document:
    from .detect import kind_of

    mime = kind_of(file, uri, limits)
    if mime not in _READERS:
        from . import plugins

        return plugins.read(file, uri, mime, limits)
    return _reader(_READERS[mime]).read(file, uri, mime, limits)


@cache
def _reader(entry: str) -> Reader:
    module, name = entry.split(":")
    try:
        reader: Reader = getattr(import_module(f".{module}", __package__), name)()
    except ModuleNotFoundError as error:
        if module not in _OF_OFFICE:
            raise
        what = f"The package `{_OF_OFFICE[module]}` is not installed (no module `{error.name}`)."
        raise MissingExtra(what, "Run `pip install 'triptych[office]'`.") from None
    return reader
