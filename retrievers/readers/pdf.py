"""PDF: the text layer with its boxes, in reading order; a page without one is rendered and read as a picture."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import regex

from ... import progress
from ..base import MediaRef
from ._cells import with_cells
from ._layout import Row, reading_order, text_of, union
from ._pdf_text import Layer, image_boxes, rules, text_layer
from ._pdf_watch import check
from ._pictures import CAPTION, Found, Pictures
from ._table_blocks import carried, in_blocks
from ._tables import with_tables
from .base import Document, Limits, Reader, Section, file_name, name_words, one_line, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..base import Box, Modality

PDF = "application/pdf"
_pdfium = threading.RLock()  # the library is not safe for threads, not even on two documents
_MARGIN = 0.09  # of the page's height: where headers and footers stand
_RUNNING_PAGES = 3
_FINEST = 300 / 72  # pixels per point
_FEW = 20  # characters: a text layer with fewer says nothing about what the page shows
_STAMP = 200  # characters: as much as a header or footer that was stamped on a scan
_NO_TITLE = regex.compile(r"(?i)^(?:untitled|microsoft word\b.*|slide \d+|.*\.(?:docx?|pptx?|xlsx?|indd|tex|dvi|qxd))$")
_HEADING = 1.15  # of the size of body text
_LONGEST_HEADING = 120
_NEAR = 0.06  # of the page's height: from a picture to its caption
_LONGEST_CAPTION = 6  # rows


class PDFReader(Reader):
    """One section per heading and page. Text is NFC, with ligatures written out."""

    mimes = frozenset({PDF})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        data = file.read()
        if b"%%EOF" not in data[-2048:] and b"startxref" not in data[-2048:]:
            raise unreadable(uri, "is a truncated PDF, its end is missing", "Copy or download the file again.")
        check(data, uri, 1, limits.max_pages)
        with _opened(data, uri) as pdf:
            count = _count(pdf)
            if count > limits.max_pages:
                raise unreadable(
                    uri, f"has {count} pages, more than `max_pages` = {limits.max_pages}", "Split the file."
                )
            title = _title(pdf)
            pages = _with_heads(
                _without_running([_page(pdf, number, count, uri, limits) for number in range(1, count + 1)])
            )
        stripped = sum(page.stripped for page in pages)
        sections = tuple(_sections(pages, uri, Pictures(uri, limits)))
        if not sections:
            raise unreadable(uri, "has no text and no picture on any page", "Remove it, or give a file with content.")
        return Document(uri, title or file_name(uri), mime, sections, {"stripped": stripped, "pages": count})


def render(data: bytes, uri: str, page: int, edge: int) -> Image:
    """Page `page` (1-based) of the PDF `data` as RGB, its longer side `edge` pixels.

    Raises:
        UnreadableFile: not a readable PDF, or it has no such page.
    """
    check(data, uri, page, page)
    with _opened(data, uri) as pdf:
        count = _count(pdf)
        if not 1 <= page <= count:
            raise unreadable(uri, f"has no page `{page}`", f"It has {count}.")
        with _loaded(pdf, page, uri) as loaded:
            return _picture(loaded, edge)


@dataclass(frozen=True)
class _Page:
    """What one page holds: `rows` in reading order, `ocr` if they were recognised, `pictured` if an image is on it, and
    where those stand that may have a caption."""

    number: int
    rows: list[Row]
    ocr: bool
    pictured: bool
    stripped: int
    pictures: tuple[Box, ...] = ()


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
        layer = text_layer(page)
        images = _image_share(page) if layer.letters < _STAMP else 0.0
        picture = _picture(page, _ocr_edge(page, limits)) if _says_little(page, layer, images) else None
        drawn = rules(page) if layer.words else []
        pictures = tuple(image_boxes(page)) if layer.words else ()
    rows = with_tables(reading_order(with_cells(layer.words, drawn)))
    if picture is not None:
        from ._ocr import read_picture

        seen = read_picture(picture, limits.ocr_edge)
        if layer.garbled or sum(len(row.text) for row in seen) > layer.letters:
            return _Page(number, seen, True, images > 0, 0)
    return _Page(number, rows, False, images > 0, layer.stripped, pictures)


def _says_little(page: Any, layer: Layer, images: float) -> bool:
    """Whether the page must be looked at because its text layer does not say what it shows."""
    if layer.garbled:
        return True
    if layer.letters >= _STAMP or (layer.letters >= _FEW and images < 0.5):
        return False
    return images > 0 or _draws(page)


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


def _picture(page: Any, edge: int) -> Image:
    scale = edge / max(page.get_width(), page.get_height(), 1.0)
    with closing(page.render(scale=scale)) as bitmap:
        return cast("Image", bitmap.to_pil().convert("RGB"))


def _sections(pages: Sequence[_Page], uri: str, pictures: Pictures) -> Iterator[Section]:
    """Sections of all pages, its captioned pictures with each. A heading stays above what follows, also on the next
    pages, until one of its size."""
    body = _body_size(pages)
    path: list[tuple[float, str]] = []
    for page in pages:
        media = MediaRef(uri, PDF, page=page.number)
        if not page.rows:
            if page.pictured:
                words = f"{name_words(uri)} {page.number}"
                yield Section(words, "page", page.number, media=media, meta={"named": True})
            continue
        groups = [page.rows] if page.ocr else [block for g in _by_heading(page.rows, body) for block in in_blocks(g)]
        made = []
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
            made.append(Section(text, modality, page.number, headings, lines, media, meta=meta))
        for section in pictures.after(made, list(_captioned(page, made)), page.number):
            yield replace(section, media=media)


def _captioned(page: _Page, sections: Sequence[Section]) -> Iterator[Found]:
    """The pictures of a page that have a caption closely below or above them."""
    text = "".join(section.text for section in sections)
    starts = [n for n, row in enumerate(page.rows) if CAPTION.match(row.text) and not row.cells]
    for picture in page.pictures:
        near = [(gap, n) for n in starts if (gap := _distance(page.rows[n].box, picture)) <= _NEAR]
        if near:
            _, first = min(near)
            rows = list(_caption(page.rows[first:]))
            at = max(0, text.find(rows[0].text))
            yield Found(at, (text_of(rows)[0],), union([picture, *(row.box for row in rows)]))


def _caption(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of the caption that begins with the first: they follow it closely, in letters of its size."""
    yield rows[0]
    for row, following in pairwise(rows[:_LONGEST_CAPTION]):
        close = 0 < following.top - row.top <= 1.6 * row.size and abs(row.size - following.size) <= 0.1 * row.size
        if not close or following.cells or CAPTION.match(following.text):
            return
        yield following


def _distance(caption: Box, picture: Box) -> float:
    """How far a caption stands below or above a picture, as a fraction of the page; endless if it is elsewhere."""
    if min(caption[2], picture[2]) <= max(caption[0], picture[0]):
        return math.inf
    return max(caption[1] - picture[3], picture[1] - caption[3], 0.0)


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


def _with_heads(pages: Sequence[_Page]) -> list[_Page]:
    """Pages that begin inside a table, with its head."""
    kept: list[_Page] = []
    for page in pages:
        goes_on = kept and not page.ocr and not kept[-1].ocr
        kept.append(replace(page, rows=carried(kept[-1].rows, page.rows, _MARGIN)) if goes_on else page)
    return kept


def _running_key(row: Row) -> tuple[str, int] | None:
    """What a header or footer has on every page: its words and its height; None for a row further inside or of a table
    (rows with different numbers, at one height on several pages, are not the same row)."""
    middle = (row.box[1] + row.box[3]) / 2
    if row.cells or _MARGIN < middle < 1 - _MARGIN:
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
    if row.cells or len(text) > _LONGEST_HEADING or "\t" in text or len(regex.findall(r"\p{L}", text)) < 2:
        return False
    if row.size >= _HEADING * body:
        return True
    return row.bold and row.size >= 0.95 * body and len(text) <= 80 and not regex.search(r"[.,;:，。；：]$", text)


def _rank(row: Row, body: float) -> float:
    """What orders headings: the letter size, in steps of a twelfth of body text."""
    return round(12 * row.size / max(body, 1e-6))
