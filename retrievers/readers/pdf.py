"""PDF: the text layer with its boxes, in reading order; a page without one is rendered and read as a picture."""

from __future__ import annotations

import ctypes
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from unicodedata import normalize

import regex

from ... import progress
from ..base import Box, MediaRef
from ._layout import Row, Word, reading_order, text_of, union, with_cells
from .base import Document, Limits, Reader, Section, clean, file_name, name_words, one_line, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..base import Modality

PDF = "application/pdf"
_pdfium = threading.RLock()  # the library is not safe for threads, not even on two documents
_HYPHEN = "\x02"  # what the library gives for a hyphen at the end of a line
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ft", "ﬆ": "st"})
_SPECK = 0.001  # of the page's height: text that small is not meant for readers
_MARGIN = 0.09  # of the page's height: where headers and footers stand
_RUNNING_PAGES = 3
_MOST_OBJECTS = 20_000
_MOST_RULES = 1000
_FINEST = 300 / 72  # pixels per point
_FEW = 20  # characters: a text layer with fewer says nothing about what the page shows
_STAMP = 200  # characters: as much as a header or footer that was stamped on a scan
_NO_TITLE = regex.compile(r"(?i)^(?:untitled|microsoft word\b.*|slide \d+|.*\.(?:docx?|pptx?|xlsx?|indd|tex|dvi|qxd))$")
_HEADING = 1.15  # of the size of body text
_LONGEST_HEADING = 120


class PDFReader(Reader):
    """One section per heading and page. Text is NFC, with ligatures written out."""

    mimes = frozenset({PDF})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        data = file.read()
        if b"%%EOF" not in data[-2048:] and b"startxref" not in data[-2048:]:
            raise unreadable(uri, "is a truncated PDF, its end is missing", "Copy or download the file again.")
        with _opened(data, uri) as pdf:
            count = _count(pdf)
            if count > limits.max_pages:
                raise unreadable(
                    uri, f"has {count} pages, more than `max_pages` = {limits.max_pages}", "Split the file."
                )
            title = _title(pdf)
            pages = _without_running([_page(pdf, number, count, uri, limits) for number in range(1, count + 1)])
        stripped = sum(page.stripped for page in pages)
        sections = tuple(_sections(pages, uri))
        if not sections:
            raise unreadable(uri, "has no text and no picture on any page", "Remove it, or give a file with content.")
        return Document(uri, title or file_name(uri), mime, sections, {"stripped": stripped, "pages": count})


def render(data: bytes, uri: str, page: int, edge: int) -> Image:
    """Page `page` (1-based) of the PDF `data` as RGB, its longer side `edge` pixels.

    Raises:
        UnreadableFile: not a readable PDF, or it has no such page.
    """
    with _opened(data, uri) as pdf:
        count = _count(pdf)
        if not 1 <= page <= count:
            raise unreadable(uri, f"has no page `{page}`", f"It has {count}.")
        with _loaded(pdf, page, uri) as loaded:
            return _picture(loaded, edge)


@dataclass(frozen=True)
class _Page:
    """What one page holds: `rows` in reading order, `ocr` if they were recognised, `pictured` if an image is on it."""

    number: int
    rows: list[Row]
    ocr: bool
    pictured: bool
    stripped: int


@contextmanager
def _opened(data: bytes, uri: str) -> Iterator[Any]:
    import pypdfium2

    with _pdfium:
        try:
            pdf = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            raise _unopened(uri, str(error)) from None
    try:
        yield pdf
    finally:
        with _pdfium:
            pdf.close()


def _unopened(uri: str, why: str) -> Exception:
    if "password" in why.lower() or "security" in why.lower():
        return unreadable(uri, "is an encrypted PDF", "Save it without a password, then index it again.")
    return unreadable(uri, "is a damaged PDF", "Open it in a PDF viewer and save it anew, or download it again.")


def _count(pdf: Any) -> int:
    with _pdfium:
        return len(pdf)


@contextmanager
def _loaded(pdf: Any, number: int, uri: str) -> Iterator[Any]:
    """Page `number`, to be used only inside the block, where the library is ours."""
    import pypdfium2

    with _pdfium:
        try:
            with closing(pdf[number - 1]) as page:
                yield page
        except pypdfium2.PdfiumError:
            raise unreadable(uri, f"is a damaged PDF, page `{number}` cannot be read", "Save it anew.") from None


def _title(pdf: Any) -> str:
    with _pdfium:
        title = one_line(pdf.get_metadata_value("Title"))
    return "" if _NO_TITLE.match(title) else title


def _page(pdf: Any, number: int, count: int, uri: str, limits: Limits) -> _Page:
    progress.step(number - 1, count, "pages")
    with _loaded(pdf, number, uri) as page:
        layer = _text_layer(page)
        images = _image_share(page) if layer.letters < _STAMP else 0.0
        picture = _picture(page, _ocr_edge(page, limits)) if _says_little(page, layer, images) else None
        rules = _rules(page) if layer.words else []
    rows = reading_order(with_cells(layer.words, rules))
    if picture is not None:
        from ._ocr import read_picture

        seen = read_picture(picture, limits.ocr_edge)
        if layer.garbled or sum(len(row.text) for row in seen) > layer.letters:
            return _Page(number, seen, True, images > 0, 0)
    return _Page(number, rows, False, images > 0, layer.stripped)


@dataclass(frozen=True)
class _Layer:
    """The text layer: words in the order of the file, letters in them, invisible characters removed, and whether its
    codes have no meaning (a font without a map to Unicode)."""

    words: list[Word]
    letters: int
    stripped: int
    garbled: bool


def _says_little(page: Any, layer: _Layer, images: float) -> bool:
    """Whether the page must be looked at because its text layer does not say what it shows."""
    if layer.garbled:
        return True
    if layer.letters >= _STAMP or (layer.letters >= _FEW and images < 0.5):
        return False
    return images > 0 or _draws(page)


def _text_layer(page: Any) -> _Layer:
    with closing(page.get_textpage()) as text:
        place = _placing(page)
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
    return _Layer(words, letters, stripped, unknown > 0.3 * max(letters, 1))


@dataclass
class _Run:
    """Characters that stand next to each other on the page, being collected."""

    first: int
    turned: bool
    box: Box
    characters: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Placing:
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


def _placing(page: Any) -> _Placing:
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
    return _Placing(
        (ax - e) / 1000, (ay - f) / 1000, (cx - e) / 1000, (cy - f) / 1000, e, f, max(width, 1), max(height, 1), turn
    )


def _runs(text: Any, place: _Placing) -> Iterator[_Run]:
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


def _word(text: Any, run: _Run, string: str, place: _Placing) -> Word | None:
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


def _image_share(page: Any) -> float:
    """The part of the page that its largest image covers."""
    import pypdfium2.raw as raw

    area = max(page.get_width() * page.get_height(), 1.0)
    shares = [0.0]
    for item in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=4):
        left, bottom, right, top = item.get_bounds()
        shares.append(1.0 if item.level else (right - left) * (top - bottom) / area)
    return min(1.0, max(shares))


def _draws(page: Any) -> bool:
    """Whether anything but text is drawn on the page: letters may be outlines."""
    import pypdfium2.raw as raw

    return any(item.type != raw.FPDF_PAGEOBJ_TEXT for item in page.get_objects(max_depth=1))


def _ocr_edge(page: Any, limits: Limits) -> int:
    """Pixels of the longer side for recognition: more for a page that is a long strip, which is read in tiles."""
    short, long = sorted((page.get_width(), page.get_height()))
    wanted = min(limits.ocr_edge * max(1.0, long / max(short, 1.0) / 1.5), long * _FINEST)
    return max(1, int(min(wanted, math.sqrt(limits.max_pixels * long / max(short, 1.0)))))


def _rules(page: Any) -> list[Box]:
    """Boxes of the lines and frames drawn on the page; none where there are so many that it is a drawing."""
    import pypdfium2.raw as raw

    if raw.FPDFPage_CountObjects(page) > _MOST_OBJECTS:
        return []
    place = _placing(page)
    paths = page.get_objects(filter=[raw.FPDF_PAGEOBJ_PATH], max_depth=1)
    boxes = [place.box(*path.get_bounds()) for path in paths]
    return boxes if len(boxes) <= _MOST_RULES else []


def _picture(page: Any, edge: int) -> Image:
    scale = edge / max(page.get_width(), page.get_height(), 1.0)
    with closing(page.render(scale=scale)) as bitmap:
        return cast("Image", bitmap.to_pil().convert("RGB"))


def _sections(pages: Sequence[_Page], uri: str) -> Iterator[Section]:
    """Sections of all pages. A heading stays above what follows, also on the next pages, until one of its size."""
    body = _body_size(pages)
    path: list[tuple[float, str]] = []
    for page in pages:
        media = MediaRef(uri, PDF, page=page.number)
        if not page.rows:
            if page.pictured:
                words = f"{name_words(uri)} {page.number}"
                yield Section(words, "page", page.number, media=media, meta={"named": True})
            continue
        groups = [page.rows] if page.ocr else _by_heading(page.rows, body)
        for index, group in enumerate(groups):
            heading = [] if page.ocr else _heading(group, body)
            if heading:
                size = _rank(heading[0], body)
                path = [*((s, t) for s, t in path if s > size), (size, " ".join(row.text for row in heading))]
            text, lines = text_of(group)
            text += "\n\n" if index + 1 < len(groups) else ""
            modality: Modality = "page" if page.ocr else "text"
            meta = {"ocr": True} if page.ocr else {}
            headings = () if page.ocr else tuple(title for _, title in path)
            yield Section(text, modality, page.number, headings, lines, media, meta=meta)


def _without_running(pages: list[_Page]) -> list[_Page]:
    """Pages without headers and footers that earlier pages have in the same place (page numbers may differ)."""
    seen: Counter[tuple[str, int]] = Counter(key for page in pages for key in map(_running_key, page.rows) if key)
    met: set[tuple[str, int]] = set()
    kept = []
    for page in pages:
        rows = []
        for row in page.rows:
            key = _running_key(row)
            if key is None or seen[key] < _RUNNING_PAGES or key not in met:
                rows.append(row)
            if key:
                met.add(key)
        kept.append(replace(page, rows=rows))
    return kept


def _running_key(row: Row) -> tuple[str, int] | None:
    """What a header or footer has on every page: its words and its height; None for a row further inside."""
    middle = (row.box[1] + row.box[3]) / 2
    if _MARGIN < middle < 1 - _MARGIN:
        return None
    return regex.sub(r"\d+", "0", row.text), round(100 * middle)


def _body_size(pages: Sequence[_Page]) -> float:
    """The letter size that most characters of the text layer have."""
    sizes: Counter[float] = Counter()
    for page in pages:
        for row in page.rows if not page.ocr else ():
            sizes[round(row.size, 1)] += len(row.text)
    return sizes.most_common(1)[0][0] if sizes else 0.0


def _by_heading(rows: Sequence[Row], body: float) -> list[list[Row]]:
    """Rows in groups that each begin with their heading, which may take several rows of one size."""
    groups: list[list[Row]] = [[]]
    for row in rows:
        begins = _is_heading(row, body)
        goes_on = groups[-1] and _is_heading(groups[-1][-1], body) and _rank(groups[-1][-1], body) == _rank(row, body)
        if begins and groups[-1] and not goes_on:
            groups.append([])
        groups[-1].append(row)
    return groups


def _heading(group: Sequence[Row], body: float) -> list[Row]:
    return list(takewhile(lambda row: _is_heading(row, body), group))


def _is_heading(row: Row, body: float) -> bool:
    """Larger than body text, or bold and alone on a short line that is not a sentence."""
    text = row.text
    if len(text) > _LONGEST_HEADING or "\t" in text or len(regex.findall(r"\p{L}", text)) < 2:
        return False
    if row.size >= _HEADING * body:
        return True
    return row.bold and row.size >= 0.95 * body and len(text) <= 80 and not regex.search(r"[.,;:，。；：]$", text)


def _rank(row: Row, body: float) -> float:
    """What orders headings: the letter size, in steps of a twelfth of body text."""
    return round(12 * row.size / max(body, 1e-6))
