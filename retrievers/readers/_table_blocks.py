"""Tables that are longer than a passage or than a page: cut into blocks, each with the head of its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from ..chunking import CHUNK_PIECES, pieces

if TYPE_CHECKING:
    from ._layout import Row

_WHOLE = CHUNK_PIECES // 2  # word pieces: a longer table is cut into blocks
_WIDEST_HEAD = CHUNK_PIECES // 3


def in_blocks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """`rows` cut where a long table begins and ends, and inside it into blocks that fit into a passage, each with the
    table's head."""
    block: list[Row] = []
    for table in _tables(rows):
        sizes = [pieces(row.text) for row in table]
        if not table[0].cells or sum(sizes) <= _WHOLE:
            block += table
            continue
        if block:
            yield block
        blocks = list(_cut(table, sizes))
        yield from blocks[:-1]
        block = blocks[-1]
    if block:
        yield block


def _tables(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Runs of rows of one table, or of none."""
    run: list[Row] = []
    for row in rows:
        if run and (row.heads or row.lefts != run[-1].lefts):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _cut(table: Sequence[Row], sizes: Sequence[int]) -> Iterator[list[Row]]:
    """The rows in blocks of about one size."""
    head = [table[0]] if table[0].heads and sizes[0] <= _WIDEST_HEAD else []
    above = sum(sizes[: len(head)]) + (4 * len(table[0].cells) + 1) * len(head)
    body = sum(sizes) - sum(sizes[: len(head)])
    count = ceil(body / (CHUNK_PIECES - above))
    block: list[Row] = []
    size = done = cuts = 0
    for row, cost in zip(table[len(head) :], sizes[len(head) :], strict=True):
        if block and (above + size + cost > CHUNK_PIECES or done + cost / 2 > (cuts + 1) * body / count):
            yield [*head, *block]
            block, size, cuts = [], 0, cuts + 1
        block.append(row)
        size += cost
        done += cost
    yield [*head, *block]


def carried(before: Sequence[Row], rows: Sequence[Row], margin: float) -> list[Row]:
    """`rows` of a page, with the head of the table that they go on with from the page `before`, if they do.

    `margin` is the part of the page's height where headers and footers stand.
    """
    first = next((n for n, row in enumerate(rows) if row.cells or not _is_margin(row, margin)), len(rows))
    inner = [row for row in before if not _is_margin(row, margin) or row.cells]
    last = list(_tables(inner))[-1:]
    if not last or not last[0][0].heads or first == len(rows) or rows[first].heads:
        return list(rows)
    head, row = last[0][0], rows[first]
    if len(row.lefts) != len(head.lefts) or any(
        abs(a - b) > 2 * row.size for a, b in zip(row.lefts, head.lefts, strict=True)
    ):
        return list(rows)
    return [*rows[:first], replace(head, lefts=row.lefts, carried=True), *rows[first:]]


def _is_margin(row: Row, margin: float) -> bool:
    return not margin < (row.box[1] + row.box[3]) / 2 < 1 - margin
