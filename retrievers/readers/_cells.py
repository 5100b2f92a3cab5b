"""Cells of tables that have rules: the words between two rules across and two rules down the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import regex

from ._layout import Cell, Row, Word, rows_of, union

if TYPE_CHECKING:
    from ..base import Box

_MOST_LINES = 12  # of a cell
_FEWEST_LINES = 3  # in all cells alike: rows that no rules part
_NUMBER = regex.compile(
    r"[^\p{L}\d]{0,4}\d[\d.,:/'’ \u00A0-]*(?:[^\p{L}\d]{0,3}|\p{L}{1,3}\.?|[eE][+-]?\d+)|[-–—]+|n/?a"
)

_Column = tuple[int, int]


def is_number(text: str) -> bool:
    """Whether a cell holds a number, with a sign or unit perhaps, or a dash in its place."""
    return bool(_NUMBER.fullmatch(text))


def with_cells(words: Sequence[Word], rules: Sequence[Box]) -> list[Word]:
    """`words` with those of a ruled table gathered into cells, so that a row with wrapped cells is still one row.

    `rules` are the lines and frames drawn on the page, in the units of `Word.left`.
    """
    flat = [((y0 + y1) / 2, x0, x1) for x0, y0, x1, y1 in rules if x1 - x0 > 3 >= y1 - y0]
    tall = [((x0 + x1) / 2, y0, y1) for x0, y0, x1, y1 in rules if y1 - y0 > 3 >= x1 - x0]
    for x0, y0, x1, y1 in rules:
        if min(x1 - x0, y1 - y0) > 3:
            flat += [(y0, x0, x1), (y1, x0, x1)]
            tall += [(x0, y0, y1), (x1, y0, y1)]
    if len(flat) < 2 or len(tall) < 3:
        return list(words)
    bands: dict[tuple[int, int], dict[tuple[int, int], list[Word]]] = {}
    rest: list[Word] = []
    for word in words:
        across, down = (word.left + word.right) / 2, (word.top + word.bottom) / 2
        band, column = _between(down, across, flat), _between(across, down, tall)
        if band and column:
            bands.setdefault(band, {}).setdefault(column, []).append(word)
        else:
            rest.append(word)
    for band, cells in bands.items():
        rest += _gathered(band, cells)
    return rest


def _gathered(band: tuple[int, int], cells: Mapping[_Column, list[Word]]) -> list[Word]:
    """The words between two rules across, one for each cell; as they are where those are no cells."""
    lines = {column: rows_of(words) for column, words in cells.items()}
    inside = list(chain(*cells.values()))
    if len(cells) < 2:
        return inside
    if _are_rows(list(lines.values())):
        return list(_by_lines(band, inside, list(cells)))
    if max(map(len, lines.values())) > _MOST_LINES:
        return inside
    top, bottom = min(word.top for word in inside), max(word.bottom for word in inside)
    return [_cell(rows, top, bottom, (left, band[0], right, band[1])) for (left, right), rows in lines.items()]


def _are_rows(columns: Sequence[Sequence[Row]]) -> bool:
    """Whether lines are rows that no rules part: a number does not wrap, and cells rarely wrap all alike."""
    if any(len(lines) > 1 and all(is_number(line.text) for line in lines) for lines in columns):
        return True
    return len({len(lines) for lines in columns}) == 1 and len(columns[0]) >= _FEWEST_LINES


def _by_lines(band: tuple[int, int], words: Sequence[Word], columns: Sequence[_Column]) -> Iterator[Word]:
    """Each line of `words` as a row of cells, which touches the next."""
    lines = rows_of(words)
    edges = [band[0], *(round((a.bottom + b.top) / 2) for a, b in pairwise(lines)), band[1]]
    for line, above, below in zip(lines, edges, edges[1:], strict=False):
        for left, right in columns:
            own = [word for word in line.words if left <= (word.left + word.right) / 2 < right]
            if own:
                yield _cell([Row(tuple(own))], line.top, line.bottom, (left, above, right, below))


def _between(at: float, along: float, rules: Sequence[tuple[float, float, float]]) -> tuple[int, int] | None:
    """The nearest rules on both sides of `at` among those that reach over `along`."""
    near = [position for position, low, high in rules if low - 1 <= along <= high + 1]
    before, after = [p for p in near if p <= at], [p for p in near if p > at]
    return (round(max(before)), round(min(after))) if before and after else None


def _cell(rows: Sequence[Row], top: float, bottom: float, cell: Cell) -> Word:
    words = [word for row in rows for word in row.words]
    left, right = min(word.left for word in words), max(word.right for word in words)
    text = " ".join(row.text for row in rows)
    bold = all(word.bold for word in words)
    return Word(text, left, top, right, bottom, rows[0].size, union([w.box for w in words]), bold, cell=cell)
