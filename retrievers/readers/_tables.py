"""Tables on a page with a text layer: rows of ruled cells, and rows without rules whose columns stand below each other.

A table that is missed stays a run of lines with tabs; prose that is taken for a table is scrambled. So whatever is
in doubt is left as it is. Positions are those of `_layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

import regex

from ._cells import is_number
from ._layout import Row, Word, joined

_Cells = list[list[Word]]
"""The cells of a column that are not empty, from top to bottom."""

_Placed = list[tuple[int, list[Word]]]
"""The cells of a row and their columns."""

_YEAR = regex.compile(r"(?:FY ?)?(?:19|20)\d\d(?:[/–-]\d{2,4})?\*?")
_BEFORE_NUMBER = regex.compile(r"(?:(?:[A-Z]{0,2}\p{Sc}|[-–(<>~±])\s?)+")
_AFTER_NUMBER = regex.compile(r"[)%*†‡]+")
_MARKER = regex.compile(r"\W{1,2}|[(\[]?(?:\d{1,3}|\p{L}|[ivxlc]{1,6})[.)\]]")
_LEADERS = regex.compile(r"\.{4,}|(?:\. ){4,}")

_FEWEST_ROWS = 3
_FEWEST_ROWS_OF_WORDS = 4
_FEWEST_COLUMNS_OF_WORDS = 3
_MOST_ROWS_BETWEEN = 3  # rows of one cell between two others
_FARTHEST = 2.0  # between two rows, in letter sizes
_GUTTER = 0.5  # of the letter size
_SPANNED = 0.1  # of the rows may have a cell that reaches over a gutter
_LONGEST_WORDS = 40  # characters, the median of a column other than the first
_LONGEST_FIRST = 70
_FILLED = 0.6  # of the cells, at least
_ALIGNED = 0.7  # of the cells of a column begin, end or have their middle below each other
_TITLE = 0.6  # of the width of a table
_LOWER = 0.3  # of the cells of a first column of words begin small, at most: lines of prose do more often
_FULL = 0.7  # of the width of a column: as much as lines of prose fill


def with_tables(rows: Sequence[Row]) -> list[Row]:
    """`rows` in reading order with those of tables made rows of cells. All words stay, in the same order of rows."""
    made: list[Row] = []
    for is_ruled, run in _by_rules(rows):
        made += _ruled(run) if is_ruled else _aligned(run)
    return made


def _by_rules(rows: Sequence[Row]) -> Iterator[tuple[bool, list[Row]]]:
    """Runs of rows: those of one ruled table, and all that is between two of them."""
    plain: list[Row] = []
    start = 0
    while start < len(rows):
        end = _end_of_ruled(rows, start)
        if end - start > 1:
            yield False, plain
            yield True, list(rows[start:end])
            plain, start = [], end
        else:
            plain.append(rows[start])
            start += 1
    yield False, plain


def _end_of_ruled(rows: Sequence[Row], start: int) -> int:
    """Where the ruled table that begins at `start` ends: a row of one cell may stand between others."""
    end = start
    if not _is_ruled(rows[start]):
        return end
    end += 1
    while end < len(rows):
        after = next((n for n in range(end, min(end + _MOST_ROWS_BETWEEN + 1, len(rows))) if _is_ruled(rows[n])), None)
        if after is None or not _goes_on(rows[end - 1], rows[end:after], rows[after]):
            break
        end = after + 1
    return end


def _is_ruled(row: Row) -> bool:
    return all(word.cell for word in row.words)


def _goes_on(row: Row, between: Sequence[Row], following: Row) -> bool:
    """Whether two rows of ruled cells are of one table, with what stands between them."""
    low, high = max(w.cell[3] for w in row.words if w.cell), min(w.cell[1] for w in following.words if w.cell)
    cells = [word.cell for one in (row, following) for word in one.words if word.cell]
    left, right = min(cell[0] for cell in cells) - 2, max(cell[2] for cell in cells) + 2
    inside = all(w.left >= left and w.right <= right and low - 2 <= w.top <= high + 2 for r in between for w in r.words)
    reach = 2.0 if not between else 4 * len(between) * row.size
    return bool(inside and _edges(row) & _edges(following) and abs(high - low) <= reach)


def _edges(row: Row) -> set[int]:
    """Where the cells of a row begin, all as wide apart as a rule is thick."""
    return {edge + shift for word in row.words if word.cell for edge in (word.cell[0],) for shift in (-1, 0, 1)}


def _ruled(rows: Sequence[Row]) -> list[Row]:
    """The rows of a ruled table; a cell that reaches over several columns stands in the first of them."""
    lefts: list[float] = []
    for edge in sorted(word.cell[0] for row in rows for word in row.words if word.cell):
        if not lefts or edge - lefts[-1] > 3:
            lefts.append(edge)
    if len(lefts) < 2:
        return list(rows)
    placed = [
        [(_column(lefts, word.cell[0] if word.cell else word.left), [word]) for word in row.words] for row in rows
    ]
    return _table(rows, placed, lefts)


def _column(lefts: Sequence[float], left: float) -> int:
    """The last column that begins at or before `left`."""
    return max([n for n, edge in enumerate(lefts) if edge <= left + 3], default=0)


def _table(rows: Sequence[Row], placed: Sequence[_Placed], lefts: Sequence[float]) -> list[Row]:
    """`rows` with their words as cells; the first is the head if it names columns."""
    texts = []
    for parts in placed:
        cells: list[list[Word]] = [[] for _ in lefts]
        for column, words in parts:
            cells[column] += words
        texts.append([joined(words) if words else "" for words in cells])
    used = [n for n in range(len(lefts)) if any(row[n] for row in texts)]
    lefts = tuple(lefts[n] for n in used)
    texts = [[row[n] for n in used] for row in texts]
    heads = _names_columns(rows, texts)
    return [
        Row(row.words, tuple(cells), lefts, heads=heads and n == 0)
        for n, (row, cells) in enumerate(zip(rows, texts, strict=True))
    ]


def _names_columns(rows: Sequence[Row], texts: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: it fills most of them, with words or years."""
    first = [text for text in texts[0] if text]
    if len(rows) < 2 or len(first) < 2 or len(first) < len(texts[0]) - 1:
        return False
    numbers = [text for text in first if is_number(text)]
    return len(numbers) < len(texts[0]) and all(_YEAR.fullmatch(text) for text in numbers)


def _aligned(rows: Sequence[Row]) -> Iterator[Row]:
    """`rows`, those of tables without rules made rows of cells."""
    start = 0
    while start < len(rows):
        end = _end_of_run(rows, start)
        table = _without_rules(rows[start:end]) if end - start >= _FEWEST_ROWS else []
        if table:
            yield from table
        else:
            end = max(end, start + 1)
            yield from rows[start:end]
        start = end


def _end_of_run(rows: Sequence[Row], start: int) -> int:
    """Where the run of rows with several cells that begins at `start` ends, rows of one cell between them included."""
    end = start
    for index in range(start, len(rows)):
        row = rows[index]
        if row.words[0].turned or (index > start and not _is_below(rows[index - 1], row)):
            break
        if len(row.segments) > 1:
            end = index + 1
        elif index == start or index - end >= _MOST_ROWS_BETWEEN:
            break
    return end


def _is_below(row: Row, following: Row) -> bool:
    size = min(row.size, following.size)
    close = -size < following.top - row.bottom <= _FARTHEST * size
    return following.top > row.top and close and max(row.size, following.size) <= 1.3 * size


def _without_rules(rows: Sequence[Row]) -> list[Row]:
    """The table that `rows` are; none where they are anything else."""
    segments = [row.segments for row in rows]
    skipped = max(range(3), key=lambda n: (len(_gutters(rows[n:], segments[n:])), -n))
    gutters = _gutters(rows[skipped:], segments[skipped:])
    if not gutters or any(_is_line(parts[0], rows, gutters) for parts in segments if len(parts) == 1):
        return []
    placed = [[(_place(words, gutters), words) for words in parts] for parts in segments]
    columns = _columns(placed, len(gutters) + 1)
    if not _is_table([parts for parts in placed if len(parts) > 1][skipped:], columns):
        return []
    kept = _with_signs(placed, len(columns))
    lefts = [min(words[0].left for words in column) for column in columns]
    return [*rows[:skipped], *_unwrapped(_table(rows[skipped:], kept[skipped:], lefts))]


def _gutters(rows: Sequence[Row], segments: Sequence[Sequence[Sequence[Word]]]) -> list[float]:
    """Middles of the gaps that nearly all rows of several cells leave free."""
    spans = sorted((words[0].left, words[-1].right) for parts in segments if len(parts) > 1 for words in parts)
    count = sum(len(parts) > 1 for parts in segments)
    if count < _FEWEST_ROWS - 1:
        return []
    edges = sorted([(left, 1) for left, _ in spans] + [(right, -1) for _, right in spans])
    free, found, least = int(_SPANNED * count), [], _GUTTER * median(row.size for row in rows)
    depth, begins = 0, edges[0][0]
    for at, step in edges:
        if depth <= free and depth + step > free:
            found.append((begins, at))
        depth += step
        if depth <= free and step < 0:
            begins = at
    return [(low + high) / 2 for low, high in found if high - low >= least and low > spans[0][0]]


def _is_line(words: Sequence[Word], rows: Sequence[Row], gutters: Sequence[float]) -> bool:
    """Whether the only cell of a row is a line of text across the columns, rather than the title of a few rows."""
    left, right = min(row.words[0].left for row in rows), max(row.words[-1].right for row in rows)
    across = any(words[0].left < gutter < words[-1].right for gutter in gutters)
    is_title = words[0].left <= left + 2 * words[0].size and words[-1].right - left <= _TITLE * (right - left)
    return across and not is_title


def _place(words: Sequence[Word], gutters: Sequence[float]) -> int:
    """The first column in which a good part of the words stands."""
    least = words[0].left + 0.25 * min(words[-1].right - words[0].left, 4 * words[0].size)
    return sum(gutter < least for gutter in gutters)


def _columns(placed: Sequence[_Placed], count: int) -> list[_Cells]:
    """The cells of each column, of rows with several cells."""
    columns: list[_Cells] = [[] for _ in range(count)]
    for parts in placed:
        for column, words in parts if len(parts) > 1 else ():
            columns[column].append(words)
    return columns


def _is_table(body: Sequence[_Placed], columns: Sequence[_Cells]) -> bool:
    """Whether cells so placed are those of a table, beyond doubt."""
    texts = [[joined(words) for words in column] for column in columns]
    count = len(body)
    if count < _FEWEST_ROWS - 1 or any(not column for column in columns):
        return False
    if (
        sum(map(len, columns)) < 0.6 * len(columns) * count
        or sum(map(bool, map(_LEADERS.search, texts[0]))) > count / 4
    ):
        return False
    lengths = [median(map(len, column)) for column in texts]
    if lengths[0] > _LONGEST_FIRST or max(lengths[1:]) > _LONGEST_WORDS:
        return False
    if len(columns) == 2 and _share(texts[0], _MARKER.fullmatch) > 0.5:
        return False
    numeric = [column for column in texts[1:] if _share(column[1:] or column, is_number) >= 0.6]
    if not all(_is_aligned(column) for column in columns[1:]):
        return False
    if numeric:
        return True
    is_small = len(columns) < _FEWEST_COLUMNS_OF_WORDS or count < _FEWEST_ROWS_OF_WORDS
    if is_small or _share(texts[0], lambda text: text[0].islower()) > _LOWER:
        return False
    return not any(_is_prose(column) for column in columns) and all(len(column) >= 0.75 * count for column in columns)


def _share(texts: Sequence[str], holds: Callable[[str], object]) -> float:
    return sum(bool(holds(text)) for text in texts) / max(len(texts), 1)


def _is_aligned(column: Sequence[Sequence[Word]]) -> bool:
    """Whether most cells begin, end, or have their middle at one place."""
    size = median(words[0].size for words in column)
    ends = [(words[0].left, words[-1].right) for words in column]
    sides = [left for left, _ in ends], [right for _, right in ends], [(left + right) / 2 for left, right in ends]
    return any(sum(abs(at - median(side)) <= size for at in side) >= _ALIGNED * len(side) for side in sides)


def _is_prose(column: Sequence[Sequence[Word]]) -> bool:
    """Whether the cells are lines that fill their column, or go on in the next line."""
    widths = [words[-1].right - words[0].left for words in column]
    full = sum(width >= _FULL * max(widths) for width in widths)
    texts = [joined(words) for words in column]
    letters = median(sum(c.isalpha() for c in text) for text in texts)
    broken = sum(text.endswith(("-", ",", " of", " the", " and", " a")) for text in texts)
    return letters >= 12 and (2 * full >= len(column) or 3 * broken >= len(column))


def _with_signs(placed: Sequence[_Placed], count: int) -> list[_Placed]:
    """Cells with signs of currency put before the number they belong to, and marks after it behind it."""
    columns = _columns(placed, count)
    texts = [[joined(words) for words in column] for column in columns]
    target = list(range(count))
    for n in range(count):
        if n + 1 < count and texts[n] and _share(texts[n], _BEFORE_NUMBER.fullmatch) == 1:
            target[n] = n + 1
        elif n and texts[n] and _share(texts[n], _AFTER_NUMBER.fullmatch) == 1:
            target[n] = n - 1
    return [[(target[column], words) for column, words in parts] for parts in placed]


def _unwrapped(rows: Sequence[Row]) -> Iterator[Row]:
    """`rows`, the further lines of a cell with its first: where lines stand closer than full rows do."""
    steps = [after.top - before.top for before, after in pairwise(rows)]
    tight = 1.25 * min(steps)
    most = max(_filled(row) for row in rows)
    is_spaced = all(step > tight for step, row in zip(steps, rows[1:], strict=True) if _filled(row) == most)
    current = rows[0]
    for step, row in zip(steps, rows[1:], strict=True):
        if _continues(current, row, near=is_spaced and step <= tight):
            cells = tuple(" ".join(filter(None, pair)) for pair in zip(current.cells, row.cells, strict=True))
            current = replace(current, words=(*current.words, *row.words), cells=cells)
        else:
            yield current
            current = row
    yield current


def _filled(row: Row) -> int:
    return sum(map(bool, row.cells))


def _continues(row: Row, following: Row, *, near: bool) -> bool:
    """Whether `following` is the rest of `row`: it has cells only where `row` has them, and no number."""
    pairs = list(zip(row.cells, following.cells, strict=True))
    if row.heads or any(after and (not before or is_number(after)) for before, after in pairs):
        return False
    if near:
        return True
    return not following.cells[0] and all(after[0].islower() for after in following.cells if after)
