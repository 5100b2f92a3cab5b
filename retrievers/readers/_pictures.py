"""Pictures inside documents: each is found by the words that belong to it, its alternative text, its caption, the
headings above it, and where its pixels are in the file, the text that can be recognised in them.

Its words stay in the text of the document too; the picture's own section follows the section in which it stands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from itertools import accumulate
from typing import TYPE_CHECKING

import regex

from ... import progress
from ...errors import UnreadableFile
from ._rows import one_cell
from .base import Section

if TYPE_CHECKING:
    from ..base import Box
    from .base import Limits

CAPTION = regex.compile(
    r"\s*(?i:fig(?:ure|\.)?|photo(?:graph)?|picture|image|plate|map|chart|diagram|abb(?:ildung|\.)|[图圖図])"
    r"\s*\p{N}{1,3}(?:[.\-]\p{N}{1,3})*\s*(?:[.:)–—：。]|\s(?=\P{Ll})|$)"
)
"""What a line begins with that is a caption by its words alone."""

_LONGEST = 2000  # characters of an alternative text or caption
_SMALLEST = 64  # pixels: what is smaller is a mark or a line
_FEWEST_LETTERS = 2


@dataclass(frozen=True)
class Found:
    """A picture in a document.

    Attributes:
        at: offset in the text where it stands.
        words: its alternative text, title and caption, as the file has them.
        box: where it is shown on its page.
        pixels: the bytes of the picture, if the file holds them.
    """

    at: int
    words: tuple[str, ...]
    box: Box | None = None
    pixels: bytes = b""


class Pictures:
    """The pictures of one file. A picture that is used again with the same words is not listed again.

    After the pictures were read, `note` says which were not, and why.
    """

    def __init__(self, uri: str, limits: Limits) -> None:
        self._uri = uri
        self._limits = limits
        self._seen: set[tuple[bytes, tuple[str, ...]]] = set()
        self._read: dict[bytes, str] = {}
        self._damaged = self._left_out = self._count = 0

    @property
    def note(self) -> dict[str, str]:
        """What is added to the `meta` of the document."""
        said = []
        if self._left_out:
            limit = f"`max_pictures` = {self._limits.max_pictures}"
            said.append(f"{self._left_out} pictures in it beyond {limit}, whose own text was not read")
        if self._damaged:
            said.append(f"{self._damaged} pictures in it that are damaged or too large")
        return {"note": f"Not read: {'; '.join(said)}."} if said else {}

    def after(self, sections: Sequence[Section], found: Sequence[Found], page: int | None = None) -> Iterator[Section]:
        """`sections`, whose texts follow each other, each followed by those of its pictures that have words."""
        if not sections:
            for one in found:
                yield from self._section(one, (), page)
            return
        starts = list(accumulate((len(section.text) for section in sections), initial=0))
        own: dict[int, list[Found]] = {}
        for one in found:
            own.setdefault(max(0, min(bisect_right(starts, one.at), len(sections)) - 1), []).append(one)
        for number, section in enumerate(sections):
            made = [shown for one in own.get(number, ()) for shown in self._section(one, section.headings, page)]
            gap = "\n\n" if made and not section.text.endswith("\n\n") else ""
            yield replace(section, text=section.text + gap) if gap else section
            yield from made

    def _section(self, one: Found, headings: tuple[str, ...], page: int | None) -> Iterator[Section]:
        words = tuple(dict.fromkeys(filter(None, (one_cell(text[:_LONGEST])[0] for text in one.words))))
        key = sha256(one.pixels).digest(), words
        if key in self._seen or not (words or one.pixels):
            return
        self._seen.add(key)
        seen = self._recognised(key[0], one.pixels)
        text = "\n".join(filter(None, (*words, seen)))
        if sum(map(str.isalpha, text)) < _FEWEST_LETTERS:
            return
        self._count += 1
        lines = ((0, len(text), *one.box),) if one.box else ()
        meta = {"picture": self._count, **({"ocr": True} if seen else {})}
        yield Section(f"{text}\n\n", "image", page, headings, lines, meta=meta)

    def _recognised(self, digest: bytes, pixels: bytes) -> str:
        """The text in a picture, which is read once however often it is shown."""
        if not pixels:
            return ""
        if digest not in self._read:
            if len(self._read) >= self._limits.max_pictures:
                self._left_out += 1
                return ""
            progress.step(len(self._read), None, "pictures")
            self._read[digest] = self._text(pixels)
        return self._read[digest]

    def _text(self, pixels: bytes) -> str:
        from ._layout import text_of
        from ._ocr import read_picture
        from .detect import kind_of
        from .image import FORMATS, render

        try:
            mime = kind_of(BytesIO(pixels), self._uri, self._limits)
            if mime not in FORMATS:  # a drawing, which has no pixels to read
                return ""
            picture = render(BytesIO(pixels), self._uri, mime, 1, self._limits.ocr_edge, self._limits)
        except UnreadableFile:
            self._damaged += 1
            return ""
        if min(picture.size) < _SMALLEST:
            return ""
        return text_of(read_picture(picture, self._limits.ocr_edge))[0]
