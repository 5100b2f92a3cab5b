"""Readers: a file becomes a document whose text knows where it stands.

`read` goes by what a file holds, never by its name alone; a reader is loaded when its first file comes.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from .base import Document, Limits, Reader

if TYPE_CHECKING:
    from pathlib import Path

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
}
READABLE = "plain text, Markdown, HTML, PDF, PNG, JPEG, WebP, GIF, TIFF, BMP"


def read(path: Path, uri: str, limits: Limits | None = None) -> Document:
    """The document in the file at `path`, which the caller has resolved and allowed; `uri` names it everywhere.

    The file is opened once, and only if it is a regular file (a link put there meanwhile is not followed).

    Raises:
        UnreadableFile: missing, not permitted, not a file, empty, above a limit, of an unknown kind, damaged.
    """
    from .detect import kind_of, opened

    limits = limits or Limits()
    file = opened(path, uri, limits)
    mime = kind_of(file, uri)
    return _reader(_READERS[mime]).read(file, uri, mime, limits)


@cache
def _reader(entry: str) -> Reader:
    module, name = entry.split(":")
    reader: Reader = getattr(import_module(f".{module}", __package__), name)()
    return reader
