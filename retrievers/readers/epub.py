"""EPUB books: their chapters in the order of the spine, each read as HTML is.

A chapter without a heading of its own begins with its title in the table of contents. `chapter` in `meta` is its
place in the spine, from 1. The table of contents is not read as text; of pictures, only their alternative text and
captions are.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

from ... import progress
from ._pictures import Pictures
from ._rows import one_cell
from ._zip import EPUB, opened_zip, read_part
from .base import Document, Limits, Reader, Section, file_name, parsing, unreadable
from .html import sections_of, stated_charset
from .text import read_text

if TYPE_CHECKING:
    from zipfile import ZipFile

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONT_METHODS = ("/embedding", "#RC")  # fonts are made unusable outside the book; its text is not
_PAGES = ("application/xhtml+xml", "text/html")
_NCX = "application/x-dtbncx+xml"


class EpubReader(Reader):
    """Sections by heading, over all chapters."""

    mimes = frozenset({EPUB})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        with opened_zip(file, uri, limits) as archive, parsing(uri, "EPUB"):
            book = _Book(archive, uri, limits)
            sections = tuple(book.sections())
        if not sections:
            raise unreadable(uri, "has no chapter with text", "Open it in a reader and check that it is whole.")
        first = next((section.headings[0] for section in sections if section.headings), "")
        return Document(uri, book.title or first or file_name(uri), mime, sections, {"stripped": book.stripped})


class _Book:
    def __init__(self, archive: ZipFile, uri: str, limits: Limits) -> None:
        self._archive = archive
        self._uri = uri
        self._limits = limits
        self._pictures = Pictures(uri, limits)
        self.stripped = 0
        if _ENCRYPTION in archive.namelist() and self._is_locked():
            raise unreadable(uri, "is encrypted (DRM)", "Give a copy without protection.")
        where = self._xml(_CONTAINER).find(".//{*}rootfile").get("full-path")
        self._package = self._xml(where)
        self._folder = posixpath.dirname(where)
        self._items = {item.get("id"): item for item in self._package.iterfind("{*}manifest/{*}item")}
        self.title, _ = one_cell(self._package.findtext("{*}metadata/{*}title") or "")

    def sections(self) -> Iterator[Section]:
        names = list(dict.fromkeys(ref.get("idref") for ref in self._package.iterfind("{*}spine/{*}itemref")))
        contents = self._contents()
        for number, name in enumerate(names, 1):
            progress.step(number - 1, len(names), "chapters")
            item = self._items.get(name)
            if item is None or item.get("media-type") not in _PAGES or "nav" in item.get("properties", "").split():
                continue
            path = self._path(self._folder, item.get("href", ""))
            yield from self._chapter(path, number, contents.get(path, ""))

    def _chapter(self, path: str, number: int, listed: str) -> Iterator[Section]:
        content = BytesIO(read_part(self._archive, path, self._uri, self._limits))
        if not content.getvalue().strip():
            return
        source, stripped = read_text(content, self._uri, stated_charset(content))
        _, sections, more = sections_of(source, self._uri, self._limits, self._pictures)
        self.stripped += stripped + more
        if listed and sections and not any(section.headings for section in sections):
            first = replace(sections[0], text=f"# {listed}\n\n{sections[0].text}", headings=(listed,))
            sections = (first, *sections[1:])
        for section in sections:
            text = section.text.rstrip("\n") + "\n\n" if section is sections[-1] else section.text
            yield replace(section, text=text, meta={**section.meta, "chapter": number})

    def _contents(self) -> dict[str, str]:
        """The titles of chapters in the table of contents, by the path of their file."""
        found: dict[str, str] = {}
        for item in self._items.values():
            path = self._path(self._folder, item.get("href", ""))
            if item.get("media-type") == _NCX:
                points = self._xml(path).iterfind(".//{*}navPoint")
                links = ((point.find("{*}content"), point.findtext("{*}navLabel/{*}text")) for point in points)
                pairs = [(node.get("src", ""), label or "") for node, label in links if node is not None]
            elif "nav" in item.get("properties", "").split():
                pairs = self._links(path)
            else:
                continue
            for target, label in pairs:
                found.setdefault(self._path(posixpath.dirname(path), target), one_cell(label)[0])
        return found

    def _links(self, path: str) -> list[tuple[str, str]]:
        from bs4 import BeautifulSoup

        page = BeautifulSoup(read_part(self._archive, path, self._uri, self._limits).lstrip(), "html.parser")
        return [(str(link["href"]), link.get_text()) for link in page.select("nav a[href]")]

    def _is_locked(self) -> bool:
        methods = self._xml(_ENCRYPTION).iterfind(".//{*}EncryptionMethod")
        return any(not method.get("Algorithm", "").endswith(_FONT_METHODS) for method in methods)

    def _xml(self, path: str) -> Any:
        """The root of an XML part. Entities are refused, so that none can grow."""
        from defusedxml.ElementTree import fromstring

        return fromstring(read_part(self._archive, path, self._uri, self._limits))

    @staticmethod
    def _path(folder: str, href: str) -> str:
        return posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))
