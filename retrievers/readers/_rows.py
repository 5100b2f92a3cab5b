"""Tables as text: rows in the manner of Markdown, in blocks that each repeat the header and say which rows they hold.

A block is what fits into one passage, so that a row found alone still has the names of its columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from ..chunking import CHUNK_PIECES, UNIT_PIECES, pieces
from .base import Limits, Section, clean

_MOST_COLUMNS = 40
_WIDEST_HEADER = CHUNK_PIECES // 3  # word pieces: what the header may take of every block
_LONGEST_NAME = 80
_SAMPLED = 200
_HEADING = 12  # word pieces of a block's heading
_NUMBER = re.compile(r"[^\w\s]{0,3}\s?\d[\d.,:/\s'’-]*\s?[^\w\s]{0,2}")
_YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True)
class TableRow:
    """A row: its number as its program shows it, and the texts of its cells by column (0-based), empty ones left out.
    A text is one line. `hidden` counts the hidden rows above it: they do not part a table, empty ones do."""

    number: int
    cells: Mapping[int, str]
    hidden: int = 0


class Allowance:
    """Counts the rows and values of one file. `spent` says what was left out, once a limit is reached."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rows = self._values = 0
        self.spent = ""

    def take(self, rows: Iterable[TableRow]) -> Iterator[TableRow]:
        """`rows`, until a limit is reached."""
        for row in rows:
            if not self.allows(len(row.cells), f"row {row.number}"):
                return
            yield row

    def allows(self, values: int, name: str) -> bool:
        """Whether one more row, called `name`, of so many values may be read."""
        if self._rows >= self._limits.max_rows:
            self._stop(name, "max_rows", self._limits.max_rows)
        elif self._values + values > self._limits.max_values:
            self._stop(name, "max_values", self._limits.max_values)
        self._rows += 1
        self._values += values
        return not self.spent

    def _stop(self, name: str, limit: str, value: int) -> None:
        self.spent = self.spent or f"Not read: {name} and what follows it, beyond `{limit}` = {value}."

    def remark(self, page: int | None = None) -> Iterator[Section]:
        """A section that says what was left out, if anything was."""
        if self.spent:
            yield Section(f"({self.spent})", page=page, meta={"cut": True})

    @property
    def meta(self) -> dict[str, str]:
        """What is added to the `meta` of the document."""
        return {"note": self.spent} if self.spent else {}


def one_cell(text: str) -> tuple[str, int]:
    """`text` as one line, cleaned, and how many invisible characters were removed."""
    kept, stripped = clean(text)
    return " ".join(kept.split()), stripped


def as_table(rows: Sequence[Sequence[str]], *, header: bool) -> str:
    """Cells (each one line) as the rows of a Markdown table, with a rule below the first row if it is a `header`."""
    lines = ["| {} |".format(" | ".join(cell.replace("|", "\\|") for cell in row)) for row in rows]
    if header:
        lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def regions(rows: Iterable[TableRow]) -> Iterator[list[TableRow]]:
    """Runs of rows without an empty row among them."""
    full = (row for row in rows if row.cells)
    for _, run in groupby(enumerate(full), key=lambda pair: pair[1].number - pair[1].hidden - pair[0]):
        yield [row for _, row in run]


def blocks(
    rows: Sequence[TableRow],
    titles: tuple[str, ...] = (),
    unit: str = "rows",
    page: int | None = None,
    names: Mapping[int, str] | None = None,
) -> Iterator[Section]:
    """A region of a table as sections under headings that show the last of `titles` and which `unit` they hold.

    Leading rows of one cell are lines above the table; the row after them is the header if it names columns, unless
    the `names` of the columns are known. Where rows would be too long to read as rows, each is written as lines
    `column: value`. No rows, no sections.
    """
    if not rows:
        return
    start = 0 if names else next((n for n, row in enumerate(rows) if len(row.cells) > 1), len(rows))
    if start == len(rows):
        yield from _packed(rows, lambda row: next(iter(row.cells.values())), "", titles, unit, page)
        return
    above, table = rows[:start], rows[start:]
    if names is None and _names_columns(table):
        names, body = table[0].cells, table[1:]
    else:
        body = table
    form = _Form(body, names)
    lead = "".join(f"{next(iter(row.cells.values()))}\n" for row in above)
    yield from _packed(body, form.row, form.head, titles, unit, page, lead, rows[0].number)


class _Form:
    """How the rows of one table are written: as rows, or as records."""

    def __init__(self, body: Sequence[TableRow], names: Mapping[int, str] | None) -> None:
        used = {column for row in body for column in row.cells}
        self._columns = sorted(used | set(names or ()))
        self._names = names
        self.row: Callable[[TableRow], str] = self._record
        self.head = ""
        if len(self._columns) > _MOST_COLUMNS:
            return
        head = as_table([[(names or {}).get(column, "") for column in self._columns]], header=True)
        typical = median(pieces(self._line(row)) for row in body[:_SAMPLED])
        if typical > UNIT_PIECES or (names and pieces(head) > _WIDEST_HEADER):
            return
        self.row = self._line
        self.head = f"{head}\n" if names else ""

    def _line(self, row: TableRow) -> str:
        return as_table([[row.cells.get(column, "") for column in self._columns]], header=False)

    def _record(self, row: TableRow) -> str:
        lines = [f"{self._name(column)}: {text}" for column, text in sorted(row.cells.items())]
        return "\n".join(lines) + "\n"

    def _name(self, column: int) -> str:
        return ((self._names or {}).get(column) or f"column {column + 1}")[:_LONGEST_NAME]


def _packed(
    rows: Sequence[TableRow],
    write: Callable[[TableRow], str],
    head: str,
    titles: tuple[str, ...],
    unit: str,
    page: int | None,
    lead: str = "",
    first: int | None = None,
) -> Iterator[Section]:
    """Blocks of as many rows as fit into a passage below heading and `head`; the first begins with `lead`."""
    room = CHUNK_PIECES - _HEADING - pieces(head)
    first = rows[0].number if first is None else first
    lines: list[str] = []
    size, last = pieces(lead), first
    for row in rows:
        line = write(row)
        cost = pieces(line)
        if lines and size + cost > room:
            yield block(lead + head + "\n".join(lines), titles, unit, first, last, page)
            lines, size, lead, first = [], 0, "", row.number
        lines.append(line)
        size, last = size + cost, row.number
    yield block(lead + head + "\n".join(lines), titles, unit, first, last, page)


def block(text: str, titles: tuple[str, ...], unit: str, first: int, last: int, page: int | None = None) -> Section:
    """A section under a heading that shows the last of `titles` and a range of `unit`."""
    span = f"{unit} {first}–{last}" if last > first else f"{unit.removesuffix('s')} {first}"
    shown = f"{titles[-1]}, {span}" if titles else span.capitalize()
    return Section(f"# {shown}\n\n{text.rstrip()}\n\n", "text", page, (*titles, span), meta={"rows": [first, last]})


def _names_columns(table: Sequence[TableRow]) -> bool:
    """Whether the first row names the columns of the others: it is as wide as they are, and words or years."""
    first = table[0].cells
    widest = max(len(row.cells) for row in table[1 : 1 + _SAMPLED]) if len(table) > 1 else 0
    if not widest or len(first) < 2 or 2 * len(first) < widest:
        return False
    numbers = [text for text in first.values() if _NUMBER.fullmatch(text)]
    return len(numbers) < len(first) and all(_YEAR.fullmatch(text) for text in numbers)
