"""Contract of the readers: a file becomes a document, a document is sections, and a section is text that knows where
it stands. The words that readers share (cleaning, titles, errors about files) are here too."""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import regex

from ...errors import TriptychError, UnreadableFile

if TYPE_CHECKING:
    from pathlib import Path

    from ..base import MediaRef, Modality

Line = tuple[int, int, float, float, float, float]
"""`start, end, x0, y0, x1, y1`: where the characters `text[start:end]` stand, as fractions of the page or image."""


@dataclass(frozen=True)
class Limits:
    """How much of one file is read before it is refused, and which models may read it.

    Attributes:
        max_bytes: size of the file, unless it is sound or video.
        max_media_bytes: size of a sound or video file.
        max_seconds: of sound or video; what comes after is not read, and the document's `note` says so.
        max_frames: a video of at most so many is looked at frame by frame, of a longer one at so many key frames.
        max_scenes: of a video; more make the shortest of them longer.
        max_pixels: width times height of an image, before decoding.
        max_pages: pages of a PDF.
        ocr_edge: longest edge in pixels of what text recognition sees; larger pictures are scaled down to it (very
            long ones are cut into tiles first).
        max_entries: files inside a zip-based format (Office, EPUB).
        max_expanded: their bytes when expanded; sheets, which are read row by row, are not counted.
        max_ratio: expanded bytes to bytes of the file.
        archives: archives are opened, also those that were not opened before.
        max_members: files inside an archive that is opened, and inside the archives in it.
        max_unpacked: their bytes, which `max_ratio` bounds too.
        max_nesting: how many archives inside each other are opened.
        max_xml: bytes of one XML part that is read as a whole.
        max_rows: rows of all tables of a file, or records; what comes after is not read, and the text says so.
        max_values: cells of tables, values of a data file.
        max_pictures: pictures inside a document whose own text is recognised; of others, only the words around them.
        weights: folder of the pulled models; None where there are none.
        speech: the model that recognises speech; `"none"` for not at all.
        tags: the models that name what pictures show, if there is a folder of weights; `"none"` for not at all.
    """

    max_bytes: int = 64_000_000
    max_media_bytes: int = 4_000_000_000
    max_seconds: int = 14_400
    max_frames: int = 3000
    max_scenes: int = 500
    max_pixels: int = 64_000_000
    max_pages: int = 2000
    ocr_edge: int = 2000
    max_entries: int = 10_000
    max_expanded: int = 256_000_000
    max_ratio: int = 200
    archives: bool = False
    max_members: int = 50_000
    max_unpacked: int = 4_000_000_000
    max_nesting: int = 2
    max_xml: int = 32_000_000
    max_rows: int = 50_000
    max_values: int = 1_000_000
    max_pictures: int = 50
    weights: Path | None = None
    speech: str = "none"
    tags: str = "image_tags"


@dataclass(frozen=True)
class Section:
    """A run of text under one heading.

    The texts of all sections of a document, or of one page where it has pages, follow each other without a gap:
    joined they are the extracted text that offsets in `Source` count in. A section that has a heading begins with
    the line that shows it.

    Attributes:
        page: 1-based.
        headings: titles above the text, outermost first.
        lines: sorted, without overlap; empty where the format has no layout.
        media: what can be shown for this section.
        start_s, end_s: seconds, for audio and video.
        meta: JSON-serialisable, copied to each item that begins in it (`ocr`: the text was recognised in a picture;
            `named`: there was no text, the words are those of the file name; `hidden`, `notes`: a hidden slide, the
            notes of a slide; `rows`: the first and last row, record or line that a block of a table holds; `line`: the
            number of its first line in a file of code, from 1, where an item gains `last_line`; `chapter`, `cell`:
            its place in a book or notebook, from 1; `picture`: the number of a picture inside a document, from 1, with
            the words that belong to it; `cut`: it says which limit ended the reading; `tags`: what a picture or key
            frame shows, `[[name, how sure], …]`; `taken`, `latitude`, `longitude`: when and where a picture was taken,
            as its file says, the time without a `Z` where it does not say of which zone).
    """

    text: str
    modality: Modality = "text"
    page: int | None = None
    headings: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    media: MediaRef | None = None
    start_s: float | None = None
    end_s: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """What a reader makes of one file. `meta["stripped"]` counts the invisible characters that `clean` removed;
    `meta["note"]` says what of the file was not read."""

    uri: str
    title: str
    mime: str
    sections: tuple[Section, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


class Reader(ABC):
    """Reads the formats `mimes`. Stateless: one instance serves all threads."""

    mimes: frozenset[str]

    @abstractmethod
    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        """The document in `file` (seekable, at its start, already within `limits.max_bytes`).

        Raises:
            UnreadableFile: damaged, encrypted, empty of content, or above one of `limits`.
        """


def unreadable(uri: str, what: str, hint: str) -> UnreadableFile:
    """An error about the file `uri`, which `what` describes."""
    return UnreadableFile(f"`{uri}` {what}.", hint)


@contextmanager
def parsing(uri: str, what: str) -> Iterator[None]:
    """Within this block, whatever a parser trips over in hostile bytes is an error about the file `uri`, a `what`."""
    try:
        yield
    except TriptychError:
        raise
    except Exception as error:
        raise unreadable(uri, f"is a damaged or truncated {what}", "Copy it again, or save it anew.") from error


def file_name(uri: str) -> str:
    """The last part of `uri`."""
    return PurePosixPath(uri).name or uri


def name_words(uri: str) -> str:
    """The words of the file's name, for a picture without text.

    >>> name_words("trip/oslo_harbour-2024.jpg")
    'oslo harbour 2024'
    """
    return re.sub(r"[\W_]+", " ", PurePosixPath(uri).stem).strip() or file_name(uri)


def one_line(text: str) -> str:
    """`text` with entities resolved, cleaned, and white space collapsed: a title, a cell, a caption."""
    return " ".join(clean(html.unescape(text))[0].split())


def by_headings(text: str, headings: Sequence[tuple[int, int, str]]) -> Iterator[Section]:
    """`text` cut at its headings, each given as offset, level (1 is the highest) and title, in order."""
    starts = [start for start, _, _ in headings] + [len(text)]
    if text[: starts[0]]:
        yield Section(text[: starts[0]])
    path: list[tuple[int, str]] = []
    for (start, level, title), end in zip(headings, starts[1:], strict=True):
        path = [*((above, name) for above, name in path if above < level), (level, title)]
        yield Section(text[start:end], headings=tuple(name for _, name in path))


_NEWLINE = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_FLAG = "\U0001f3f4(?:{})\U000e007f".format(
    "|".join("".join(chr(0xE0000 + ord(letter)) for letter in land) for land in ("gbeng", "gbsct", "gbwls"))
)
_INVISIBLE = re.compile(
    f"(?P<flag>{_FLAG})|["
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINED = r"[\p{L}\p{M}--[\p{Latin}\p{Greek}\p{Cyrillic}\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]]"
_MEANT = regex.compile(
    rf"""(?V1)
      (?<=[\p{{Extended_Pictographic}}\p{{Emoji_Modifier}}]\uFE0F?) \u200D (?=\p{{Extended_Pictographic}})
    | (?<={_JOINED}) [\u200C\u200D] (?={_JOINED})
    | (?<=[[\p{{Emoji}}\p{{Extended_Pictographic}}]--[0-9#*]]) [\uFE0E\uFE0F]
    | (?<=[0-9#*]) \uFE0F (?=\u20E3)
    | (?<=\p{{Han}}) [\uFE00-\uFE0F\U000E0100-\U000E01EF]
    | (?<=\p{{Mongolian}}) [\u180B-\u180F]
    """,
    regex.VERBOSE,
)


def clean(text: str) -> tuple[str, int]:
    """`text` without what a reader cannot see, and how many characters that took away.

    Line ends become `\\n`. Removed are control and format characters (zero width, bidirectional, tags, soft hyphens,
    byte-order marks), lone surrogates and stray variation selectors. Kept are joiners and selectors where they
    change what is seen: inside emoji, between letters of scripts that join, after an ideograph. The text is not
    normalised otherwise: offsets and quotations are those of the file.

    >>> clean("a\\u200bb\\r\\nc\\x00")
    ('ab\\nc', 2)
    """
    text = _NEWLINE.sub("\n", text)
    kept, before = _INVISIBLE.sub(_what_is_meant, text), text
    while len(kept) < len(before):  # what stood next to a removed character may have lost its meaning
        kept, before = _INVISIBLE.sub(_what_is_meant, kept), kept
    return kept, len(text) - len(kept)


def _what_is_meant(match: re.Match[str]) -> str:
    return match.group() if match["flag"] or _MEANT.match(match.string, match.start()) else ""
