"""CSV and TSV: rows as tables with their header, numbered as a spreadsheet numbers them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import BinaryIO

from ... import progress
from ._rows import Allowance, TableRow, blocks, one_cell, regions
from .base import Document, Limits, Reader, Section, file_name, unreadable
from .text import read_text

CSV = "text/csv"
TSV = "text/tab-separated-values"

_DELIMITERS = ",;\t|"
_HEAD = 65_536
_SAMPLED = 50
_FEWEST_ROWS = 4
_FEWEST_COLUMNS = 3
_LONGEST_CELL = 60
_STEP = 1000


class TableReader(Reader):
    """Sections of as many rows as fit into a passage. A cell that is too long for CSV makes the file plain text."""

    mimes = frozenset({CSV, TSV})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        text, stripped = read_text(file, uri)
        delimiter = _delimiter(text[:_HEAD]) or ","
        allowance = Allowance(limits)
        try:
            found = [
                section for region in regions(allowance.take(_rows(text, delimiter))) for section in blocks(region)
            ]
        except csv.Error:
            return Document(uri, file_name(uri), "text/plain", (Section(text),), {"stripped": stripped})
        if not found:
            raise unreadable(uri, "has no cell with a value", "Remove it, or give a file with content.")
        return Document(
            uri, file_name(uri), mime, (*found, *allowance.remark()), {"stripped": stripped, **allowance.meta}
        )


def _rows(text: str, delimiter: str) -> Iterator[TableRow]:
    for number, cells in enumerate(csv.reader(StringIO(text), delimiter=delimiter), 1):
        if number % _STEP == 0:
            progress.step(number, None, "rows")
        shown = ((column, one_cell(cell)[0]) for column, cell in enumerate(cells))
        yield TableRow(number, {column: cell for column, cell in shown if cell})


def kind_of(head: str, suffix: str, *, is_whole: bool) -> str | None:
    """The MIME type of the table that begins with `head`; None if it is not one.

    A text whose name does not say that it is a table must look like one beyond doubt: several rows of several short
    cells, all of one width.
    """
    named = suffix in (".csv", ".tsv", ".tab")
    delimiter = _delimiter(head, named=named, is_whole=is_whole)
    if delimiter is None and not named:
        return None
    return TSV if (delimiter or suffix) in ("\t", ".tsv", ".tab") else CSV


def _delimiter(head: str, *, named: bool = True, is_whole: bool = False) -> str | None:
    """What parts the columns: the mark by which most rows have the same width, the greatest of these."""
    widths = {mark: _width(head, mark, named=named, is_whole=is_whole) for mark in _DELIMITERS}
    best = max(_DELIMITERS, key=lambda mark: widths[mark])
    return best if widths[best] else None


def _width(head: str, delimiter: str, *, named: bool, is_whole: bool) -> int:
    """How many columns the rows of `head` have; 0 if they do not agree."""
    lines = head.split("\n")[: _SAMPLED + 1]
    if not is_whole or len(lines) > _SAMPLED:
        lines = lines[:-1]  # it may be cut off
    try:
        rows = [row for row in csv.reader((f"{line}\n" for line in lines), delimiter=delimiter) if row]
    except csv.Error:
        return 0
    widths = [len(row) for row in rows]
    width = max(set(widths), key=widths.count, default=0)
    if named:
        return width if width > 1 and 2 * widths.count(width) >= len(widths) else 0
    is_plain = len(rows) < _FEWEST_ROWS or width < _FEWEST_COLUMNS or len(set(widths)) > 1
    return 0 if is_plain or not _are_short(rows) else width


def _are_short(rows: Sequence[Sequence[str]]) -> bool:
    lengths = [len(cell) for row in rows for cell in row]
    return sum(lengths) / len(lengths) <= _LONGEST_CELL / 2 and max(lengths) <= 4 * _LONGEST_CELL
