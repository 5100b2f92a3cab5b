"""The text layer of a PDF page: words with their boxes, and the rules drawn on the page. The caller holds the library,
which is not safe for threads (`pdf`)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from ._layout import Word, union
from .base import clean

if TYPE_CHECKING:
    from ..base import Box

_HYPHEN = "\x02"  # what the library gives for a hyphen at the end of a line
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ft", "ﬆ": "st"})
_SPECK = 0.001  # of the page's height: text that small is not meant for readers
_MOST_OBJECTS = 20_000
_MOST_RULES = 1000
_MOST_PICTURES = 50
_SMALLEST = 0.05  # of the page's width and height


@dataclass(frozen=True)
class Layer:
    """The text layer: words in the order of the file, letters in them, invisible characters removed, and whether its
    codes have no meaning (a font without a map to Unicode)."""

    words: list[Word]
    letters: int
    stripped: int
    garbled: bool


def text_layer(page: Any) -> Layer:
    with closing(page.get_textpage()) as text:
        place = placing(page)
        words: list[Word] = []
        stripped = letters = unknown = 0
        for run in _runs(text, place):
            string, lost = clean(normalize("NFC", "".join(run.characters).translate(_LIGATURES)))
            string = " ".join(string.split())
            stripped += lost
            word = _word(text, run, string, place)
            if word is not None:
                words.append(word)
                letters += len(string)
                unknown += sum(c == "\ufffd" or "\ue000" <= c <= "\uf8ff" for c in string)
    return Layer(words, letters, stripped, unknown > 0.3 * max(letters, 1))


@dataclass
class _Run:
    """Characters that stand next to each other on the page, being collected."""

    first: int
    turned: bool
    box: Box
    characters: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Placing:
    """From page space (points, origin bottom left, before rotation) to what is shown (points, origin top left)."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float
    width: float
    height: float
    rotation: float

    def box(self, left: float, bottom: float, right: float, top: float) -> Box:
        xs = self.a * left + self.c * bottom + self.e, self.a * right + self.c * top + self.e
        ys = self.b * left + self.d * bottom + self.f, self.b * right + self.d * top + self.f
        return min(xs), min(ys), max(xs), max(ys)


def placing(page: Any) -> Placing:
    import pypdfium2.raw as raw

    width, height = page.get_width(), page.get_height()
    fine = 1000  # the library answers in whole pixels

    def shown(x: float, y: float) -> tuple[float, float]:
        across, down = ctypes.c_int(), ctypes.c_int()
        size = max(1, round(width * fine)), max(1, round(height * fine))
        raw.FPDF_PageToDevice(page, 0, 0, *size, 0, x, y, across, down)
        return across.value / fine, down.value / fine

    (e, f), (ax, ay), (cx, cy) = shown(0, 0), shown(1000, 0), shown(0, 1000)
    turn = math.radians(page.get_rotation())
    return Placing(
        (ax - e) / 1000, (ay - f) / 1000, (cx - e) / 1000, (cy - f) / 1000, e, f, max(width, 1), max(height, 1), turn
    )


def _runs(text: Any, place: Placing) -> Iterator[_Run]:
    """Words as the file's order, white space and gaps part them; text that is turned keeps its spaces."""
    import pypdfium2.raw as raw

    code_of, box_of, angle_of = raw.FPDFText_GetUnicode, raw.FPDFText_GetLooseCharBox, raw.FPDFText_GetCharAngle
    rectangle = raw.FS_RECTF()
    run: _Run | None = None
    half = ""
    for index in range(raw.FPDFText_CountChars(text)):
        character, half = _character(half, code_of(text, index))
        if not character or (character.isspace() and (run is None or not run.turned or character in "\r\n")):
            if run is not None and not half:
                yield run
                run = None
            continue
        box_of(text, index, rectangle)
        box = place.box(rectangle.left, rectangle.bottom, rectangle.right, rectangle.top)
        turned = math.cos(angle_of(text, index) - place.rotation) < 0.95
        if run is not None and (run.turned != turned or not (turned or _touch(run.box, box))):
            yield run
            run = None
        if run is None:
            run = _Run(index, turned, box)
        run.characters.append(character)
        run.box = union([run.box, box])
        if character == "-" and code_of(text, index) == ord(_HYPHEN):
            yield run
            run = None
    if run is not None:
        yield run


def _character(half: str, code: int) -> tuple[str, str]:
    """The character of `code`, or the first half of a surrogate pair kept for the next call."""
    if 0xD800 <= code < 0xDC00:
        return "", chr(code)
    if 0xDC00 <= code < 0xE000 and half:
        return (half + chr(code)).encode("utf-16", "surrogatepass").decode("utf-16"), ""
    return {_HYPHEN: "-", "\0": ""}.get(chr(code), chr(code)), ""


def _touch(before: Box, box: Box) -> bool:
    """Whether the character in `box` goes on with the word in `before`."""
    size = box[3] - box[1]
    gap = box[0] - before[2]
    same_line = min(before[3], box[3]) - max(before[1], box[1]) >= 0.4 * min(size, before[3] - before[1])
    return same_line and -size <= gap <= 0.3 * size


def _word(text: Any, run: _Run, string: str, place: Placing) -> Word | None:
    """The run as a word; None if nothing of it can be seen: no text, off the page, or smaller than a speck."""
    import pypdfium2.raw as raw

    matrix = raw.FS_MATRIX()
    raw.FPDFText_GetMatrix(text, run.first, matrix)
    size = raw.FPDFText_GetFontSize(text, run.first) * math.hypot(matrix.c, matrix.d)
    left, top, right, bottom = run.box
    off = right <= 0 or bottom <= 0 or left >= place.width or top >= place.height
    if not string or off or size < _SPECK * place.height:
        return None
    x0, x1 = (min(max(x / place.width, 0.0), 1.0) for x in (left, right))
    y0, y1 = (min(max(y / place.height, 0.0), 1.0) for y in (top, bottom))
    return Word(string, left, top, right, bottom, size, (x0, y0, x1, y1), _is_bold(text, run.first), run.turned)


def _is_bold(text: Any, index: int) -> bool:
    import pypdfium2.raw as raw

    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    raw.FPDFText_GetFontInfo(text, index, name, len(name), flags)
    return raw.FPDFText_GetFontWeight(text, index) >= 600 or b"bold" in name.value.lower()


def image_boxes(page: Any) -> list[Box]:
    """Where pictures are drawn on the page, as fractions of it; marks and lines, which are small, are left out."""
    import pypdfium2.raw as raw

    if raw.FPDFPage_CountObjects(page) > _MOST_OBJECTS:
        return []
    place = placing(page)
    size = place.width, place.height, place.width, place.height
    found = []
    for item in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=1):
        x0, y0, x1, y1 = (
            min(max(at / side, 0.0), 1.0) for at, side in zip(place.box(*item.get_bounds()), size, strict=True)
        )
        if x1 - x0 >= _SMALLEST and y1 - y0 >= _SMALLEST:
            found.append((x0, y0, x1, y1))
    return found[:_MOST_PICTURES]


def rules(page: Any) -> list[Box]:
    """Boxes of the lines and frames drawn on the page; none where there are so many that it is a drawing."""
    import pypdfium2.raw as raw

    if raw.FPDFPage_CountObjects(page) > _MOST_OBJECTS:
        return []
    place = placing(page)
    paths = page.get_objects(filter=[raw.FPDF_PAGEOBJ_PATH], max_depth=1)
    boxes = [place.box(*path.get_bounds()) for path in paths]
    return boxes if len(boxes) <= _MOST_RULES else []
