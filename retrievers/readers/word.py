"""Word documents: headings, paragraphs, lists with the numbers that Word shows, tables, text boxes, notes.

Read from the XML that python-docx opens: markitdown shows hidden text and drops the numbers of headings, and
python-docx's own paragraphs leave out tracked insertions, content controls, text boxes and footnotes. Left out are
hidden text, tracked deletions, comments, headers and footers (they run on every page). A picture is found by its
alternative text, its caption and the text in it (`_pictures`). A footnote stands below the paragraph or table that
refers to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.package import OpcPackage
from docx.oxml.ns import nsmap, qn
from docx.oxml.parser import parse_xml

from ... import progress
from ._numbering import Numbering, value, whole
from ._pictures import CAPTION, Found, Pictures
from ._rows import as_table, one_cell
from ._styles import Styles
from ._zip import DOCX, check_xml, opened_zip
from .base import Document, Limits, Reader, by_headings, clean, file_name, parsing, unreadable

_W = f"{{{nsmap['w']}}}"
_VAL = f"{_W}val"
_TEXTS = frozenset((qn("w:t"), qn("m:t")))
_MARKS = {f"{_W}tab": "\t", f"{_W}ptab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_BOX = f"{_W}txbxContent"
_PICTURE = qn("wp:docPr")
_FILL = qn("a:blip")
_EMBEDDED = qn("r:embed")
_EITHER = "}AlternateContent"
_NOTES = {f"{_W}footnoteReference": RELATIONSHIP_TYPE.FOOTNOTES, f"{_W}endnoteReference": RELATIONSHIP_TYPE.ENDNOTES}
_UNSHOWN = frozenset(
    f"{_W}{name}"
    for name in "del moveFrom delText instrText delInstrText pPr rPr tblPr tblGrid trPr tcPr sectPr rt".split()
)
_AROUND = frozenset(f"{_W}{name}" for name in "sdt sdtContent customXml smartTag ins moveTo".split())
_NO_TITLE = re.compile(r"(?i)word document|untitled|microsoft word\b.*|.*\.docx?")
_MOST_COLUMNS = 100
_LONGEST_CELL = 1500
_STEP = 500


class WordReader(Reader):
    """One section per heading; there are no pages, which only printing makes."""

    mimes = frozenset({DOCX})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        with opened_zip(file, uri, limits) as archive:
            check_xml(archive, uri, limits)
        file.seek(0)
        with parsing(uri, "Word document"):
            package = OpcPackage.open(file)
            word = _Word(package.main_document_part)
            word.take(word.body)
            title = word.title or _stated_title(package)
        text = "".join(word.parts)
        pictures = Pictures(uri, limits)
        parts = list(by_headings(text, word.headings)) if text.strip() else []
        sections = tuple(pictures.after(parts, word.pictures))
        if not sections:
            raise unreadable(uri, "has no text that is shown", "Save the document with its content.")
        first = word.headings[0][2] if word.headings else ""
        meta = {"stripped": word.stripped, **pictures.note}
        return Document(uri, title or first or file_name(uri), mime, sections, meta)


def _stated_title(package: Any) -> str:
    if not any(rel.reltype == RELATIONSHIP_TYPE.CORE_PROPERTIES for rel in package.rels.values()):
        return ""
    title, _ = one_cell(package.core_properties.title or "")
    return "" if _NO_TITLE.fullmatch(title) else title


@dataclass
class _Inline:
    """The text of a paragraph or cell, and what it refers to."""

    parts: list[str] = field(default_factory=list)
    boxes: list[Any] = field(default_factory=list)
    notes: list[tuple[str, str, str]] = field(default_factory=list)  # its mark, its part, its id
    pictures: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


class _Word:
    """The text written so far, and where its headings are."""

    def __init__(self, main: Any) -> None:
        self._main = main
        self._styles = Styles(self._part(RELATIONSHIP_TYPE.STYLES))
        self._numbering = Numbering(self._part(RELATIONSHIP_TYPE.NUMBERING))
        self._notes = {name: _notes(self._part(name)) for name in _NOTES.values()}
        self._marks: dict[tuple[str, str], str] = {}
        self.parts: list[str] = []
        self.headings: list[tuple[int, int, str]] = []
        self.title = ""
        self.stripped = 0
        self.pictures: list[Found] = []
        self._uncaptioned = 0  # so many of the last pictures may have their caption in the next paragraph
        self._caption = ""  # the paragraph before, if it is a caption by its style
        self._length = 0
        self._blocks = 0
        self._in_list = False

    @property
    def body(self) -> Any:
        root = _element(self._main)
        body = root.find(f"{_W}body")
        return root if body is None else body

    def _part(self, kind: str) -> Any:
        """The root of the part that the document relates to as `kind`; None if it has none."""
        found = (rel for rel in self._main.rels.values() if rel.reltype == kind and not rel.is_external)
        rel = next(found, None)
        return None if rel is None else _element(rel.target_part)

    def take(self, parent: Any) -> None:
        """Write the paragraphs and tables below `parent`."""
        for node in parent:
            if node.tag == f"{_W}p":
                self._paragraph(node)
            elif node.tag == f"{_W}tbl":
                self._table(node)
            elif node.tag in _AROUND:
                self.take(node)
            elif str(node.tag).endswith(_EITHER):
                self.take(_shown_half(node))

    def _paragraph(self, node: Any) -> None:
        self._blocks += 1
        if self._blocks % _STEP == 0:
            progress.step(self._blocks, None, "paragraphs")
        if not len(node):
            return
        style = self._styles.of(node)
        inline = _Inline()
        self._inline(node, inline, style)
        mark, depth = self._mark(node, style)
        text = inline.text.strip("\n ")
        level = self._styles.level(node, style)
        if text.strip() and level is not None:
            title, stripped = one_cell(f"{mark} {text}" if mark != "-" else text)
            self.stripped += stripped
            if level == 0 and not self.title:
                self.title = title
            self._write(f"{'#' * max(1, level)} {title}", heading=(level, title))
        elif text.strip():
            item = f"{'  ' * depth}{mark} {text}" if mark else text
            self._write(item, in_list=bool(mark))
        self._take_pictures(inline, text, style)
        self._write_notes(inline)
        for box in inline.boxes:
            self.take(box)

    def _take_pictures(self, inline: _Inline, text: str, style: str) -> None:
        """Keep the pictures of a paragraph, with the caption that stands above or below them."""
        is_caption = self._styles.name(style) == "caption"
        if text.strip() and (is_caption or CAPTION.match(text)) and self._uncaptioned:
            last = self.pictures[-self._uncaptioned :]
            self.pictures[-self._uncaptioned :] = [replace(one, words=(*one.words, text)) for one in last]
            self._uncaptioned, is_caption = 0, False
        found = [Found(self._length, (node.get("descr") or "",), pixels=self._pixels(node)) for node in inline.pictures]
        if found and self._caption:
            found = [replace(one, words=(*one.words, self._caption)) for one in found]
        if found or text.strip():
            self._uncaptioned = 0 if self._caption else len(found)
            self._caption = text if is_caption and not found else ""
        self.pictures += found

    def _pixels(self, picture: Any) -> bytes:
        """The bytes of the picture that `picture` describes; none where they are not in the file."""
        fill = next(iter(picture.getparent().iter(_FILL)), None)
        rel = None if fill is None else self._main.rels.get(fill.get(_EMBEDDED))
        return b"" if rel is None or rel.is_external else bytes(rel.target_part.blob)

    def _mark(self, node: Any, style: str) -> tuple[str, int]:
        """The bullet or number of a paragraph, and how deep in its list it is."""
        number, depth = self._styles.list_of(node, style)
        return (self._numbering.mark(number, depth), min(max(depth, 0), 8)) if number else ("", 0)

    def _inline(self, parent: Any, into: _Inline, style: str) -> None:
        """Collect what a paragraph shows; `style` is the paragraph's."""
        for node in parent:
            tag = node.tag
            if tag in _TEXTS:
                into.parts.append(node.text or "")
            elif tag in _MARKS:
                into.parts.append(_MARKS[tag])
            elif tag in _UNSHOWN or not isinstance(tag, str):
                continue
            elif tag == f"{_W}r":
                if not self._styles.hides(node, style):
                    self._inline(node, into, style)
            elif tag in _NOTES:
                into.parts.append(self._refer(_NOTES[tag], node.get(f"{_W}id", ""), into))
            elif tag == _BOX:
                into.boxes.append(node)
            elif tag == _PICTURE:
                if node.get("hidden") not in ("1", "true"):
                    into.pictures.append(node)
                    into.parts.append(f" {node.get('descr')} " if node.get("descr") else "")
            else:
                self._inline(_shown_half(node) if tag.endswith(_EITHER) else node, into, style)

    def _refer(self, kind: str, id: str, into: _Inline) -> str:
        """The mark of a note where the text refers to it: numbered in the order of the text."""
        key = (kind, id)
        if key not in self._marks:
            number = 1 + sum(kind == other for other, _ in self._marks)
            self._marks[key] = f"[^{number}]" if kind == RELATIONSHIP_TYPE.FOOTNOTES else f"[^e{number}]"
            into.notes.append((self._marks[key], kind, id))
        return self._marks[key]

    def _write_notes(self, inline: _Inline) -> None:
        for mark, kind, id in inline.notes:
            note = _Inline()
            for paragraph in self._notes[kind].get(id, ()):
                self._inline(paragraph, note, self._styles.of(paragraph))
                note.parts.append(" ")
            self._write(f"{mark}: {' '.join(note.text.split())}")

    def _table(self, node: Any) -> None:
        rows = [list(_within(row, "tc")) for row in _within(node, "tr") if not _is_deleted(row)]
        if max(map(len, rows), default=0) < 2 or any(_letters(cell) > _LONGEST_CELL for row in rows for cell in row):
            for row in rows:  # a table that arranges the page
                for cell in row:
                    self.take(cell)
            return
        inline = _Inline()
        texts = self._spread(rows, inline)
        if texts:
            self._write(as_table(texts, header=_has_header(node)))
        self._take_pictures(inline, " ".join(filter(None, texts[0])) if texts else "", "")
        self._write_notes(inline)

    def _spread(self, rows: Sequence[Sequence[Any]], inline: _Inline) -> list[list[str]]:
        """Cell texts, all rows of one width: a cell that reaches down repeated, one that reaches across followed by
        empty ones. What is repeated is at most as much text as the table has."""
        made: list[list[str]] = []
        hanging: dict[int, str] = {}
        left = sum(_letters(cell) for row in rows for cell in row)
        for row in rows:
            texts: list[str] = []
            for cell in row:
                properties = cell.find(f"{_W}tcPr")
                merge = None if properties is None else properties.find(f"{_W}vMerge")
                across = 1 if properties is None else whole(value(properties, "gridSpan"))
                if merge is not None and merge.get(_VAL) != "restart":
                    text = hanging.get(len(texts), "")
                    left -= len(text)
                    text = text if left >= 0 else ""
                else:
                    text = self._cell(cell, inline)
                    hanging[len(texts)] = "" if merge is None else text
                texts += [text, *[""] * min(across - 1, _MOST_COLUMNS)]
            made.append(texts[:_MOST_COLUMNS])
        width = max(map(len, made), default=0)
        return [[*texts, *[""] * (width - len(texts))] for texts in made if any(texts)]

    def _cell(self, cell: Any, inline: _Inline) -> str:
        """The text of a cell as one line, with tables inside it."""
        parts = []
        for paragraph in cell.iter(f"{_W}p"):
            style = self._styles.of(paragraph)
            own = _Inline(notes=inline.notes, pictures=inline.pictures)
            self._inline(paragraph, own, style)
            mark, _ = self._mark(paragraph, style)
            if own.text.strip():
                parts.append(f"{mark} {own.text}" if mark else own.text)
        text, stripped = clean(" ".join(parts))
        self.stripped += stripped
        return " ".join(text.split())

    def _write(self, text: str, heading: tuple[int, str] | None = None, *, in_list: bool = False) -> None:
        """Append a block, set apart from the one before by a blank line, inside a list by a line end."""
        text, stripped = clean(text)
        self.stripped += stripped
        if not text.strip():
            return
        gap = "" if not self.parts else "\n" if in_list and self._in_list else "\n\n"
        if heading:
            self.headings.append((self._length + len(gap), *heading))
        self.parts += [gap, text]
        self._length += len(gap) + len(text)
        self._in_list = in_list


def _element(part: Any) -> Any:
    """The root of a part, which python-docx has parsed or not."""
    element = getattr(part, "element", None)
    return parse_xml(part.blob) if element is None else element


def _notes(root: Any) -> dict[str, list[Any]]:
    """The paragraphs of each note by its id."""
    return {} if root is None else {note.get(f"{_W}id", ""): list(note.iter(f"{_W}p")) for note in root}


def _shown_half(node: Any) -> Any:
    """Of content that is stored twice, for new and for old programs, the first."""
    return next((child for child in node if isinstance(child.tag, str)), ())


def _within(parent: Any, name: str) -> Iterator[Any]:
    """The children `w:name` of `parent`, also inside content controls and tracked insertions."""
    for node in parent:
        if node.tag == f"{_W}{name}":
            yield node
        elif node.tag in _AROUND:
            yield from _within(node, name)


def _is_deleted(row: Any) -> bool:
    return any(row.find(f"{_W}trPr/{_W}{name}") is not None for name in ("del", "hidden"))


def _letters(cell: Any) -> int:
    return sum(len(node.text or "") for node in cell.iter(f"{_W}t"))


def _has_header(table: Any) -> bool:
    """Whether the first row is set apart: it is repeated on every page, or the table's style has a first row."""
    first = next(_within(table, "tr"))
    if first.find(f"{_W}trPr/{_W}tblHeader") is not None:
        return True
    look = table.find(f"{_W}tblPr/{_W}tblLook")
    if look is None:
        return False
    bits = look.get(_VAL, "0")
    return look.get(f"{_W}firstRow") in ("1", "true", "on") or bool(
        re.fullmatch(r"[0-9A-Fa-f]{1,4}", bits) and int(bits, 16) & 0x20
    )
