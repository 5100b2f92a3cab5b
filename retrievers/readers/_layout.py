"""From words with boxes to lines in reading order: rows of a table stay whole, columns of prose follow each other.

Positions are in one unit for both axes (points or pixels), origin top left, in the direction of reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import regex

from ._rows import as_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..base import Box
    from .base import Line

_CELL_GAP = 1.5  # of the letter size: wider than a justified space, narrower than the padding of a table
_NARROW_CELL_GAP = 0.5  # in a row that has a wider gap already: a number set right, beside a word set left
_GUTTER = 0.8  # of the letter size
_COLUMN_ROWS = 4
_COLUMN_LETTERS = 18
_HYPHENATED = regex.compile(r"(\p{L}{2,})[-‐\u00AD]$")
_TERMINAL = regex.compile(r"[.!?。！？:：;；][\"'”’)）」』]*$")
Cell = tuple[int, int, int, int]
"""`left, top, right, bottom` of a cell: the rules around it, rounded."""

_WIDE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303F\uFF01-\uFF60]")


@dataclass(frozen=True)
class Word:
    """A run of characters on one line, in the units above; `box` is where it is shown, as fractions."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    box: Box
    bold: bool = False
    turned: bool = False  # runs up or down the page, like the label of an axis
    cell: Cell | None = None  # holds all words of this cell of a ruled table


@dataclass(frozen=True)
class Row:
    """A line of text, its words from left to right; or a row of a table, which may have been several lines.

    Attributes:
        cells: texts of a row of a table, one for each column, some empty.
        lefts: where the columns of its table begin: the same for all its rows.
        heads: it names the columns.
        carried: it stands on another page, and is repeated here to name the columns.
    """

    words: tuple[Word, ...]
    cells: tuple[str, ...] = ()
    lefts: tuple[float, ...] = ()
    heads: bool = False
    carried: bool = False

    @property
    def top(self) -> float:
        return min(word.top for word in self.words)

    @property
    def bottom(self) -> float:
        return max(word.bottom for word in self.words)

    @property
    def width(self) -> float:
        return max(word.right for word in self.words) - self.words[0].left

    @property
    def size(self) -> float:
        return median(word.size for word in self.words)

    @property
    def bold(self) -> bool:
        return all(word.bold for word in self.words)

    @property
    def box(self) -> Box:
        return union([word.box for word in self.words])

    @property
    def text(self) -> str:
        """The words, a space between them, a tab where the gap is that of a column; a row of a table as Markdown."""
        if self.cells:
            return as_table([self.cells], header=False)
        return "\t".join(map(joined, self.segments))

    @property
    def segments(self) -> list[list[Word]]:
        """The words, parted where the gap is that of a column."""
        gaps = [self._gap(before, word) for before, word in pairwise(self.words)]
        widest = _CELL_GAP if max(gaps, default=0.0) <= _CELL_GAP else _NARROW_CELL_GAP
        parts = [[self.words[0]]]
        for gap, word in zip(gaps, self.words[1:], strict=True):
            if gap > widest:
                parts.append([])
            parts[-1].append(word)
        return parts

    @staticmethod
    def _gap(before: Word, word: Word) -> float:
        """The space between two words, in letter sizes; endless between cells."""
        if before.cell or word.cell:
            return float("inf")
        return (word.left - before.right) / max(before.size, word.size, 1e-6)


def joined(words: Sequence[Word]) -> str:
    """The texts of neighbouring words, a space between them unless both are ideographs."""
    parts = [words[0].text]
    for before, word in pairwise(words):
        gap = (word.left - before.right) / max(before.size, word.size, 1e-6)
        close = gap < 0.2 and _WIDE.match(word.text) and _WIDE.match(before.text[-1])
        parts += ["" if close else " ", word.text]
    return "".join(parts)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around `boxes` (at least one)."""
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def reading_order(words: Sequence[Word]) -> list[Row]:
    """Rows from top to bottom; where prose stands in columns, one column after the other; text that runs up or down
    the page comes last."""
    turned = [Row((word,)) for word in words if word.turned]
    return [*_in_columns([word for word in words if not word.turned]), *turned]


def _in_columns(words: Sequence[Word]) -> list[Row]:
    rows = rows_of(words)
    split = _columns(rows)
    if split is None:
        return rows
    first, last, x = split
    inside = [word for row in rows[first:last] for word in row.words]
    left = [word for word in inside if word.right <= x]
    right = [word for word in inside if word.right > x]
    return [*rows[:first], *_in_columns(left), *_in_columns(right), *_in_columns(_words(rows[last:]))]


def text_of(rows: Sequence[Row]) -> tuple[str, tuple[Line, ...]]:
    """The rows as text and where each stands: a blank line between paragraphs, words broken at a line end mended."""
    parts: list[str] = []
    lines: list[Line] = []
    length = 0
    pitch = _pitch(rows)
    texts = [row.text for row in rows]
    for index, row in enumerate(rows):
        text, joiner = texts[index], ""
        if index + 1 < len(rows):
            joiner = "\n\n" if _new_paragraph(row, rows[index + 1], pitch) else "\n"
            if row.heads and joiner == "\n":
                joiner = f"\n{'|' + '---|' * len(row.cells)}\n"
            if joiner == "\n" and _HYPHENATED.search(text) and texts[index + 1][0].islower():
                text, joiner = _without_hyphen(text, texts[index + 1], texts), ""
        if not row.carried:
            lines.append((length, length + len(text), *row.box))
        parts += [text, joiner]
        length += len(text) + len(joiner)
    return "".join(parts), tuple(lines)


def _without_hyphen(text: str, following: str, texts: Sequence[str]) -> str:
    """`text` without its last hyphen, unless the page has the two halves with a hyphen between them elsewhere."""
    halves = regex.search(r"\p{L}+.$", text), regex.match(r"\p{L}+", following)
    word = "".join(half.group() for half in halves if half)
    return text if any(word in other for other in texts) else text[:-1]


def _words(rows: Sequence[Row]) -> list[Word]:
    return [word for row in rows for word in row.words]


def rows_of(words: Sequence[Word]) -> list[Row]:
    """Words whose heights overlap by half, as rows from top to bottom."""
    groups: list[tuple[float, float, list[Word]]] = []
    for word in sorted(words, key=lambda w: (w.top + w.bottom, w.left)):
        best, share = -1, 0.5
        for index in range(max(0, len(groups) - 6), len(groups)):
            top, bottom, _ = groups[index]
            height = max(min(bottom - top, word.bottom - word.top), 1e-6)
            overlap = (min(bottom, word.bottom) - max(top, word.top)) / height
            if overlap >= share:
                best, share = index, overlap
        if best < 0:
            groups.append((word.top, word.bottom, [word]))
            continue
        top, bottom, members = groups[best]
        members.append(word)
        weight = 1 / len(members)
        groups[best] = (top + (word.top - top) * weight, bottom + (word.bottom - bottom) * weight, members)
    rows = [Row(tuple(sorted(members, key=lambda w: (w.left, w.top)))) for _, _, members in groups]
    return sorted(rows, key=lambda row: (row.top + row.bottom, row.words[0].left))


def _columns(rows: Sequence[Row]) -> tuple[int, int, float] | None:
    """Rows `first:last` that stand in two columns of prose, and where they part; the longest such run."""
    best: tuple[int, int, float] | None = None
    for x in _gaps(rows):
        for first, last in _runs(rows, x):
            if (best is None or last - first > best[1] - best[0]) and _is_prose(rows[first:last], x):
                best = (first, last, x)
    return best


def _gaps(rows: Sequence[Row]) -> list[float]:
    """Middles of the gaps that at least three rows share, the most frequent first."""
    counts: dict[int, list[float]] = {}
    for row in rows:
        for before, word in pairwise(row.words):
            if word.left - before.right >= _GUTTER * row.size:
                middle = (word.left + before.right) / 2
                counts.setdefault(round(middle / (2 * row.size)), []).append(middle)
    frequent = sorted((c for c in counts.values() if len(c) >= 3), key=len, reverse=True)
    return [median(c) for c in frequent[:12]]


def _runs(rows: Sequence[Row], x: float) -> list[tuple[int, int]]:
    """Longest runs of rows that leave a gutter free at `x`."""
    runs: list[tuple[int, int]] = []
    start = 0
    for index, row in enumerate([*rows, None]):
        if row is None or not _free(row, x):
            if index - start >= _COLUMN_ROWS:
                runs.append((start, index))
            start = index + 1
    return runs


def _free(row: Row, x: float) -> bool:
    if any(word.left < x < word.right for word in row.words):
        return False
    before = max((word for word in row.words if word.right <= x), key=lambda word: word.right, default=None)
    after = min((word for word in row.words if word.left >= x), key=lambda word: word.left, default=None)
    if before is None or after is None:
        return True
    if before.cell and after.cell:  # a table is not two columns of prose, whatever its cells say
        return False
    return after.left - before.right >= _GUTTER * row.size


def _is_prose(rows: Sequence[Row], x: float) -> bool:
    """Whether both sides of `x` are full lines of letters, not cells of a table."""
    words = _words(rows)
    sides = [w for w in words if w.right <= x], [w for w in words if w.right > x]
    return all(_is_column(rows_of(side)) for side in sides)


def _is_column(rows: Sequence[Row]) -> bool:
    if len(rows) < _COLUMN_ROWS:
        return False
    texts = [row.text for row in rows]
    letters = [sum(2 if _WIDE.match(c) else 1 for c in text if c.isalpha()) for text in texts]
    width = max(row.width for row in rows)
    full = sum(row.width >= 0.7 * width for row in rows)
    cells = sum("\t" in text for text in texts)
    return median(letters) >= _COLUMN_LETTERS and full * 2 >= len(rows) and cells * 3 <= len(rows)


def _pitch(rows: Sequence[Row]) -> float:
    """The usual distance between the tops of neighbouring rows."""
    steps = [b.top - a.top for a, b in pairwise(rows) if b.top > a.top]
    return median(steps) if steps else 0.0


def _new_paragraph(row: Row, following: Row, pitch: float) -> bool:
    if row.cells or following.cells:
        return row.lefts != following.lefts or following.heads
    if "\t" in row.text and "\t" in following.text and following.top > row.top:
        return False
    if following.top < row.top:
        return bool(_TERMINAL.search(row.text))
    if not 0.8 <= row.size / max(following.size, 1e-6) <= 1.25:
        return True
    step = following.top - row.top
    sizes = row.size, following.size
    return (step > 1.35 * pitch and step > 1.5 * min(sizes)) or step > 3 * max(sizes)
