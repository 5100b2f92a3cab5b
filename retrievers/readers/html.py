"""HTML: what a browser would show, as plain text with headings and tables in the manner of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, BinaryIO

from ._pictures import Found, Pictures
from ._rows import as_table
from .base import Document, Limits, Reader, Section, by_headings, clean, file_name, one_line, unreadable
from .text import read_text

_CHARSET = re.compile(rb"""<(?:meta[^>]+charset|\?xml[^>]+encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_PROLOG = re.compile(r"\s*<\?xml[^>]*>")
_UNSHOWN = frozenset(
    "head script style template noscript svg math iframe object embed canvas audio video select datalist".split()
)
_HIDDEN_STYLE = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d]))", re.IGNORECASE)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure "
    "footer form header hr html li main nav ol p pre search section summary table tbody td tfoot th thead tr ul".split()
)
_CLOSE = frozenset(("li", "dt", "dd", "tr", "caption", "summary"))  # one line end, not a blank line, around them
_DEEPEST_LIST = 8
_MOST_COLUMNS = 100
_MOST_SPANNED = 100
_LONGEST_CELL = 1500
_FEWEST_WORDS = 4  # of a picture outside a figure; shorter ones name icons and portraits
_GAPS = ("", " ", "\n", "\n\n")


class HTMLReader(Reader):
    """One section per heading. Scripts, comments and everything hidden are left out."""

    mimes = frozenset({"text/html"})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        source, stripped = read_text(file, uri, stated_charset(file))
        title, sections, more = sections_of(source, uri, limits, Pictures(uri, limits))
        if not sections:
            raise unreadable(uri, "has no text that a browser would show", "Save the page with its content.")
        return Document(uri, title or file_name(uri), mime, sections, {"stripped": stripped + more})


def stated_charset(file: BinaryIO) -> str | None:
    """The encoding that the page in `file` states at its start. Leaves `file` there."""
    stated = _CHARSET.search(file.read(4096))
    file.seek(0)
    return stated[1].decode("ascii") if stated else None


def sections_of(
    source: str, uri: str, limits: Limits, pictures: Pictures | None = None
) -> tuple[str, tuple[Section, ...], int]:
    """The title (else the first heading, else nothing) and the sections of a page, none where it shows nothing; and
    how many invisible characters were removed. With `pictures`, those that are captioned or described have sections of
    their own, of the words alone: their pixels are in other files, which are not opened.

    Raises:
        UnreadableFile: it has more than `max_values` tags and attributes, each of which takes a kilobyte to parse.
    """
    from bs4 import BeautifulSoup

    parts = source.count("<") + source.count("=")
    if parts > limits.max_values:
        what = f"has about {parts} tags and attributes, more than `max_values` = {limits.max_values}"
        raise unreadable(uri, what, "Split the page, or save its text.")
    source = _PROLOG.sub("", source, count=1)
    soup = BeautifulSoup(_closed(source) if "<" in source else f"<p>{source}", "html.parser")
    page = _Page()
    for step, node in _walk(soup, _arranging(soup)):
        page.take(step, node)
    sections, stripped = page.sections()
    if pictures:
        sections = tuple(pictures.after(sections, page.pictures))
    named = one_line(soup.title.get_text()) if soup.title else ""
    first = sections[0].headings[0] if sections and sections[0].headings else ""
    return named or first, sections, stripped


def _closed(source: str) -> str:
    """`source` without openings that never close: the parser would read to the end for each of them."""
    comment = source.find("<!--", source.rfind("-->") + 1)
    if comment >= 0:
        source = source[:comment]
    last = source.rfind(">") + 1
    return source[:last] + source[last:].replace("<", "&lt;")


def _walk(root: Any, arranging: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """What is shown below `root`, without recursion: (`open` or `close`, tag), (`text`, string), (`table`, grid).

    `arranging` are the ids of tables that hold other tables: they arrange the page and are walked through.
    """
    from bs4.element import NavigableString, PreformattedString, Tag

    stack = [(root, iter(root.contents))]
    while stack:
        parent, children = stack[-1]
        node = next(children, None)
        if node is None:
            stack.pop()
            if parent is not root:
                yield "close", parent
        elif isinstance(node, Tag):
            if not _is_shown(node):
                continue
            grid = _grid(node) if node.name == "table" and id(node) not in arranging else None
            if grid:
                yield "table", grid
                continue
            yield "open", node
            stack.append((node, iter(node.contents)))
        elif isinstance(node, NavigableString) and not isinstance(node, PreformattedString):
            yield "text", str(node)


def _arranging(soup: Any) -> frozenset[int]:
    """Ids of the tables that hold another table."""
    stack, found = [(soup, 0)], set()
    while stack:
        node, around = stack.pop()
        if node.name == "table":
            found.add(around)
            around = id(node)
        stack.extend((child, around) for child in node.contents if hasattr(child, "contents"))
    return frozenset(found)


def _is_shown(tag: Any) -> bool:
    if tag.name in _UNSHOWN or tag.has_attr("hidden") or tag.get("aria-hidden") == "true":
        return False
    return not (tag.name == "input" or _HIDDEN_STYLE.search(str(tag.get("style", ""))))


class _Page:
    """The text written so far, and where its headings are."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.stripped = 0
        self.headings: list[tuple[int, int, str]] = []
        self.gap = ""  # what the next text is set apart with
        self.title: list[str] | None = None  # of the heading that is open
        self.lists: list[int | None] = []  # of open lists: the next number, or None for bullets
        self.literal = 0  # depth of <pre>
        self.bullet = ""  # stands before the next text
        self.pictures: list[Found] = []
        self.figure: int | None = None  # the number of its first picture, while a figure is open
        self.caption: int | None = None  # where its caption begins in `parts`, while it is open
        self.said = ""  # its caption

    def sections(self) -> tuple[tuple[Section, ...], int]:
        return tuple(by_headings("".join(self.parts), self.headings)), self.stripped

    def take(self, step: str, node: Any) -> None:
        if step == "text":
            self.write(node)
        elif step == "table":
            self.apart("\n\n")
            self.put(_table(node))
            self.apart("\n\n")
        elif step == "open":
            self.open(node)
        else:
            self.close(node)

    def open(self, tag: Any) -> None:
        name = tag.name
        if name in _HEADINGS:
            self.close(tag)  # the one before, if its end tag is missing
            self.title = []
        elif name == "br":
            self.apart("\n")
        elif name == "img":
            self.see(tag)
            self.write(f" {tag.get('alt', '')} ")
        elif name in ("ul", "ol"):
            self.apart("\n" if self.lists else "\n\n")
            self.lists.append(_number(tag.get("start", "1")) if name == "ol" else None)
        elif name == "li":
            self.bullet = ""
            self.apart("\n")
            self.bullet = "  " * min(len(self.lists) - 1, _DEEPEST_LIST) + self.next_bullet()
        elif name == "pre":
            self.apart("\n\n")
            self.put("```\n")
            self.literal += 1
        elif name in _BLOCKS:
            self.apart("\n" if name in _CLOSE else "\n\n")
        if name == "figure":
            self.figure, self.said = len(self.pictures), ""
        elif name == "figcaption":
            self.caption = len(self.parts)

    def see(self, tag: Any) -> None:
        """Keep a picture if it stands in a figure, or its words are more than a label."""
        words = tuple(str(tag.get(name, "")) for name in ("alt", "title"))
        if self.figure is not None or len(" ".join(words).split()) >= _FEWEST_WORDS:
            self.pictures.append(Found(self.length, words))

    def close(self, tag: Any) -> None:
        name = tag.name
        if name in _HEADINGS and self.title is not None:
            title, self.title = " ".join("".join(self.title).split()), None
            if title:
                self.apart("\n\n")
                self.put("#" * int(name[1]) + " ", begins=(int(name[1]), title))
                self.put(title)
                self.apart("\n\n")
        elif name in ("ul", "ol"):
            del self.lists[-1:]
            self.apart("\n" if self.lists else "\n\n")
        elif name == "pre":
            self.literal -= 1
            self.put("" if self.parts[-1].endswith("\n") else "\n")
            self.put("```")
            self.apart("\n\n")
        elif name in ("td", "th"):
            self.write(" ")
        elif name in _BLOCKS:
            self.apart("\n" if name in _CLOSE else "\n\n")
        if name == "figcaption" and self.caption is not None:
            self.said, self.caption = "".join(self.parts[self.caption :]), None
        elif name == "figure" and self.figure is not None:
            inside = self.pictures[self.figure :]
            self.pictures[self.figure :] = [replace(one, words=(*one.words, self.said)) for one in inside]
            self.figure = None

    def next_bullet(self) -> str:
        number = self.lists[-1] if self.lists else None
        if number is None:
            return "- "
        self.lists[-1] = number + 1
        return f"{number}. "

    def apart(self, gap: str) -> None:
        """What comes next stands at least this far from what is written."""
        if _GAPS.index(gap) > _GAPS.index(self.gap) and not self.bullet:
            self.gap = gap

    def write(self, text: str) -> None:
        """Text of the page: white space collapsed, except in <pre>."""
        text, lost = clean(text)
        self.stripped += lost
        if self.title is not None:
            self.title.append(text)
        elif self.literal:
            self.put(text)
        else:
            words = " ".join(text.split())
            if text[:1].isspace():
                self.apart(" ")
            if words:
                self.put(words)
            if words and text[-1:].isspace():
                self.apart(" ")

    def put(self, text: str, begins: tuple[int, str] | None = None) -> None:
        """Append `text` after the gap that is due; a heading `begins` there."""
        if not text:
            return
        gap, text = (self.gap if self.parts else ""), self.bullet + text
        self.gap = self.bullet = ""
        ends = self.parts[-1][-1:] if self.parts else ""
        if gap and not (gap == " " and (ends.isspace())):
            self.parts.append(gap)
            self.length += len(gap)
        if begins:
            self.headings.append((self.length, *begins))
        self.parts.append(text)
        self.length += len(text)


def _number(value: Any) -> int:
    return int(value) if re.fullmatch(r"\d{1,6}", str(value)) else 1


@dataclass
class _Cell:
    header: bool
    across: int = 1
    down: int = 1
    parts: list[str] = field(default_factory=list)

    @cached_property
    def text(self) -> str:
        return " ".join(clean("".join(self.parts))[0].split())


@dataclass(frozen=True)
class _Grid:
    """A table of data."""

    caption: str
    rows: list[list[_Cell]]


def _grid(table: Any) -> _Grid | None:
    """The cells of a table of data; None for one that only arranges the page (one column, or pages of text inside).

    It goes by what opens, so that cells and rows without an end tag are cells and rows.
    """
    if table.get("role") in ("presentation", "none"):
        return None
    caption = _Cell(False)
    rows: list[list[_Cell]] = []
    parts = caption.parts
    for step, node in _walk(table):
        if step == "text":
            parts.append(node)
        elif step == "open" and node.name == "tr":
            rows.append([])
        elif step == "open" and node.name in ("td", "th"):
            across, down = (min(max(_number(node.get(name)), 1), _MOST_SPANNED) for name in ("colspan", "rowspan"))
            cell = _Cell(node.name == "th", across, down)
            rows = rows or [[]]
            rows[-1].append(cell)
            parts = cell.parts
        elif step == "open" and node.name == "img":
            parts.append(f" {node.get('alt', '')} ")
        elif node.name == "br" or node.name in _BLOCKS:
            parts.append(" ")
    rows = [row for row in _spread(rows) if any(cell.text for cell in row)]
    is_data = (
        max(map(len, rows), default=0) > 1 and max(len(cell.text) for row in rows for cell in row) <= _LONGEST_CELL
    )
    return _Grid(caption.text, rows) if is_data else None


def _spread(rows: list[list[_Cell]]) -> Iterator[list[_Cell]]:
    """Rows with cells that reach down repeated in each row, and cells that reach across followed by empty ones.

    What is repeated is at most as much text as the table has.
    """
    hanging: dict[int, tuple[int, _Cell]] = {}  # column: rows still to fill, with what
    left_to_repeat = sum(len(cell.text) for row in rows for cell in row)
    for row in rows:
        wide: list[_Cell] = []
        for cell in [*row, None]:
            while (column := len(wide)) in hanging:
                left, above = hanging.pop(column)
                left_to_repeat -= len(above.text)
                wide.append(above if left_to_repeat >= 0 else _Cell(above.header))
                if left > 1:
                    hanging[column] = (left - 1, above)
            for part in [cell, *[_Cell(cell.header)] * (cell.across - 1)] if cell else []:
                if cell and cell.down > 1 and len(wide) < _MOST_COLUMNS:
                    hanging[len(wide)] = (cell.down - 1, part)
                wide.append(part)
        yield wide[:_MOST_COLUMNS]


def _table(grid: _Grid) -> str:
    """Caption, then rows as Markdown; a rule below the first row if all its cells are headers."""
    rows = [[cell.text for cell in row] for row in grid.rows]
    table = as_table(rows, header=all(cell.header for cell in grid.rows[0]))
    return f"{grid.caption}\n\n" * bool(grid.caption) + table
