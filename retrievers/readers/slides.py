"""PowerPoint presentations: each slide is a page; its title, texts, tables, charts and diagrams, then its notes.

Read with python-pptx rather than markitdown, which has slide numbers in comments only and does not tell hidden slides.
A hidden slide is kept and marked (`hidden` in `meta`): it stands in the list of slides for everyone who opens the file.
Hidden shapes are left out. Texts follow each other from top to bottom and, at one height, from left to right; the title
comes first. A picture is found by its alternative text and the text in it (`_pictures`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from pptx.oxml import parse_xml
from pptx.oxml.ns import qn
from pptx.package import Package

from ... import progress
from ._pictures import Found, Pictures
from ._rows import as_table, one_cell
from ._zip import PPTX, check_xml, opened_zip
from .base import Document, Limits, Reader, Section, clean, file_name, parsing, unreadable

if TYPE_CHECKING:
    from ..base import Box

_A = qn("a:")
_C = qn("c:")
_NO_TITLE = ("powerpoint presentation", "presentation", "slide 1", "untitled")
_BAND = 0.05  # of the height of a slide: what begins within it stands side by side
_DEEPEST = 8
_MOST_COLUMNS = 100
_MOST_POINTS = 500
_NOTES = "Speaker notes"


class SlideReader(Reader):
    """One section per slide, and one for its notes."""

    mimes = frozenset({PPTX})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        with opened_zip(file, uri, limits) as archive:
            check_xml(archive, uri, limits)
        file.seek(0)
        with parsing(uri, "PowerPoint presentation"):
            package = Package.open(file)
            presentation = package.main_document_part.presentation
            count = len(presentation.slides)
            if count > limits.max_pages:
                what = f"has {count} slides, more than `max_pages` = {limits.max_pages}"
                raise unreadable(uri, what, "Split the file.")
            pictures = Pictures(uri, limits)
            deck = _Deck(presentation.slide_width or 1, presentation.slide_height or 1, pictures)
            sections = tuple(deck.sections(presentation.slides, count))
            title, _ = one_cell(package.core_properties.title or "")
        if not sections:
            raise unreadable(uri, "has no text on any slide", "Export it as PDF: pictures of text are read there.")
        title = "" if title.lower() in _NO_TITLE else title
        first = sections[0].headings[0] if sections[0].headings else ""
        meta = {"stripped": deck.stripped, "pages": count, **pictures.note}
        return Document(uri, title or first or file_name(uri), mime, sections, meta)


class _Deck:
    def __init__(self, width: int, height: int, pictures: Pictures) -> None:
        self._width, self._height = width, height
        self._band = _BAND * height
        self._pictures = pictures
        self._found: list[Found] = []
        self.stripped = 0

    def sections(self, slides: Any, count: int) -> Iterator[Section]:
        seen = set()
        for number, slide in enumerate(slides, 1):
            progress.step(number - 1, count, "slides")
            if slide.part.partname in seen:  # no program shows a slide twice; a hostile file may ask for it endlessly
                continue
            seen.add(slide.part.partname)
            meta = {"hidden": True} if slide.element.get("show") in ("0", "false") else {}
            titles, text = self._slide(slide)
            notes = self._notes(slide)
            shown = [Section(text + "\n\n" * bool(notes), "text", number, titles, meta=meta)] if text else []
            for section in self._pictures.after(shown, self._found, number):
                yield replace(section, meta={**section.meta, **meta})
            if notes:
                yield Section(
                    f"## {_NOTES}\n\n{notes}", "text", number, (*titles, _NOTES), meta={**meta, "notes": True}
                )

    def _slide(self, slide: Any) -> tuple[tuple[str, ...], str]:
        """The title of a slide, if it has one, and its text with the title as its first line."""
        self._found = []
        top = slide.shapes.title
        title = self._line(top.text_frame.text) if top is not None and top.has_text_frame else ""
        shapes = [shape for shape in slide.shapes if top is None or shape.element is not top.element]
        blocks = [f"# {title}"] * bool(title) + list(self._blocks(shapes, slide.part, 0))
        return (title,) * bool(title), "\n\n".join(blocks)

    def _notes(self, slide: Any) -> str:
        frame = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
        return "" if frame is None else self._paragraphs(frame._txBody, listed=False)

    def _blocks(self, shapes: Any, part: Any, depth: int) -> Iterator[str]:
        for shape in sorted(shapes, key=self._place):
            properties: Mapping[str, str] = next(shape.element.iter("{*}cNvPr"), {})
            if properties.get("hidden") in ("1", "true"):
                continue
            if hasattr(shape, "shapes"):
                if depth < _DEEPEST:
                    yield from self._blocks(shape.shapes, part, depth + 1)
                continue
            if shape.has_text_frame:
                text = self._paragraphs(shape.text_frame._txBody, listed=shape.is_placeholder)
            elif shape.has_table:
                text = self._table(shape.element.find(f".//{_A}tbl"))
            elif shape.has_chart:
                text = self._chart(shape.chart._chartSpace)
            else:
                text = self._diagram(shape.element, part)
            alternative = self._line(properties.get("descr", ""))
            if pixels := self._pixels(shape.element, part):
                self._found.append(Found(0, (alternative,), None if depth else self._box(shape), pixels))
            yield from (one for one in (text, alternative) if one)

    @staticmethod
    def _pixels(element: Any, part: Any) -> bytes:
        """The bytes of a picture; none where a shape is none, or its picture is not in the file."""
        fill = next(element.iter(f"{_A}blip"), None)
        related = None if fill is None else part.rels.get(fill.get(qn("r:embed")))
        return b"" if related is None or related.is_external else bytes(related.target_part.blob)

    def _box(self, shape: Any) -> Box | None:
        """Where a shape stands, as fractions of its slide."""
        edges = shape.left, shape.top, shape.width, shape.height
        if any(edge is None for edge in edges):
            return None
        left, top, width, height = edges
        across, down = ((left, left + width), self._width), ((top, top + height), self._height)
        (x0, x1), (y0, y1) = (tuple(min(max(at / size, 0.0), 1.0) for at in places) for places, size in (across, down))
        return x0, y0, x1, y1

    def _place(self, shape: Any) -> tuple[int, int]:
        """Bands from top to bottom, then left to right; what has no place comes last."""
        top, left = shape.top, shape.left
        return (1 << 40, 0) if top is None or left is None else (round(top / self._band), left)

    def _paragraphs(self, body: Any, *, listed: bool) -> str:
        """The paragraphs of a frame, one a line; bullets where they say so, or where several stand in a placeholder
        whose layout has them."""
        rows = [(node, self._words(node)) for node in body.iterfind(f"{_A}p")]
        rows = [(node, text) for node, text in rows if text]
        return "\n".join(_bullet(node, listed=listed and len(rows) > 1) + text for node, text in rows)

    def _words(self, paragraph: Any) -> str:
        parts = []
        for node in paragraph.iter(f"{_A}t", f"{_A}br"):
            parts.append("\n" if node.tag == f"{_A}br" else node.text or "")
        text, stripped = clean("".join(parts))
        self.stripped += stripped
        return text.strip()

    def _line(self, text: str) -> str:
        line, stripped = one_cell(text)
        self.stripped += stripped
        return line

    def _table(self, table: Any) -> str:
        """Rows of cells; a cell that reaches down is repeated, once around the text of the whole table at most."""
        rows: list[list[str]] = []
        left = sum(len(node.text or "") for node in table.iter(f"{_A}t"))
        for row in table.iterfind(f"{_A}tr"):
            texts: list[str] = []
            for cell in list(row.iterfind(f"{_A}tc"))[:_MOST_COLUMNS]:
                above = rows[-1][len(texts)] if rows and len(texts) < len(rows[-1]) else ""
                if cell.get("vMerge") in ("1", "true") and (left := left - len(above)) >= 0:
                    texts.append(above)
                else:
                    texts.append(self._line(" ".join(self._words(node) for node in cell.iter(f"{_A}p"))))
            rows.append(texts)
        rows = [texts for texts in rows if any(texts)]
        properties = table.find(f"{_A}tblPr")
        header = properties is not None and properties.get("firstRow") in ("1", "true")
        return as_table(rows, header=header) if rows else ""

    def _chart(self, chart: Any) -> str:
        """The title of a chart and its values as a table: a row per category, a column per series."""
        heading = chart.find(f"{_C}chart/{_C}title")
        title = "" if heading is None else self._line(" ".join(node.text or "" for node in heading.iter(f"{_A}t")))
        series = list(chart.iter(f"{_C}ser"))[: _MOST_COLUMNS - 1]
        names = ["".join(self._points(one.find(f"{_C}tx")).values()) for one in series]
        labels: dict[str, str] = {}
        values = []
        for one in series:
            for kind in ("cat", "xVal"):
                labels = {**self._points(one.find(f"{_C}{kind}")), **labels}
            values.append(next(filter(None, (self._points(one.find(f"{_C}{kind}")) for kind in ("val", "yVal"))), {}))
        places = list(dict.fromkeys(place for column in (labels, *values) for place in column))[:_MOST_POINTS]
        rows = [[labels.get(place, place), *(column.get(place, "") for column in values)] for place in places]
        return "\n\n".join(filter(None, (title, as_table([["", *names], *rows], header=True) if rows else "")))

    def _points(self, data: Any) -> dict[str, str]:
        """The saved values of a part of a chart by their index."""
        if data is None:
            return {}
        points = {node.get("idx", ""): self._line(node.findtext(f"{_C}v") or "") for node in data.iter(f"{_C}pt")}
        single = self._line(data.findtext(f"{_C}v") or "")
        return points or ({"": single} if single else {})

    def _diagram(self, element: Any, part: Any) -> str:
        """The texts of a diagram, one a line."""
        node = next(element.iter("{*}relIds"), None)
        related = None if node is None else part.rels.get(node.get(qn("r:dm")))
        if related is None or related.is_external:
            return ""
        texts = (self._words(paragraph) for paragraph in parse_xml(related.target_part.blob).iter(f"{_A}p"))
        return "\n".join(f"- {text}" for text in texts if text)


def _bullet(paragraph: Any, *, listed: bool) -> str:
    """What stands before a paragraph of a list."""
    properties = paragraph.find(f"{_A}pPr")
    level = 0
    if properties is not None:
        stated = properties.get("lvl", "0")
        level = int(stated) if stated in tuple("012345678") else 0
        if properties.find(f"{_A}buNone") is not None:
            return ""
        listed = listed or any(properties.find(f"{_A}{name}") is not None for name in ("buChar", "buAutoNum"))
    return "  " * level + "- " if listed or level else ""
