"""What compression keeps or drops: units (a sentence, a list item, a table row, a line of code, JSON), and last words.

All spans are half-open character offsets in the item's text, without surrounding white space, and never end inside a
grapheme.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import regex

from ..retrievers.chunking import sentences
from . import json_units

if TYPE_CHECKING:
    from ..retrievers.base import Item

Kind = Literal["sentence", "row", "JSON value"]

_FENCE = regex.compile(r"\s*(?:```|~~~)")
_JSON_FENCE = regex.compile(r"(?i)\s*(?:```+|~~~+)\s*json")
_PIPES = regex.compile(r"\s*\|")
_RULE = regex.compile(r"\s*\|?[\s:|-]*-[\s:|-]*\|[\s:|-]*$")
_COLUMNS = regex.compile(r"\t|\S {3,}\S")
_CODE = regex.compile(r".*[{};]\s*$|\s*\"[^\"]+\"\s*:\s*\S")
_CODE_MIME = regex.compile(r"text/(?:x-|css|csv)|application/(?:json|xml|javascript|toml|yaml|sql)")
_INDENTED = regex.compile(r"(?: {4}|\t)")

_CLAUSE = "，、；：。！？"
_WORD = regex.compile(rf"[^\s{_CLAUSE}]*[{_CLAUSE}]+[\"'”’」』）】》]*|[^\s{_CLAUSE}]+")
_GRAPHEME = regex.compile(r"\X")
_JOINED = regex.compile(
    "[" + "".join(rf"\p{{GCB={kind}}}" for kind in ("Extend", "SpacingMark", "ZWJ", "Prepend")) + "]"
)
"""Characters that can make a grapheme of a space or a punctuation mark and what stands beside it."""


@dataclass(frozen=True)
class Unit:
    """`text[start:end]`, kept or dropped before any of its words are.

    Attributes:
        whole: never cut into words: a table row, a line of code, an item without text.
        needs: units without which this one cannot be read: the head of its table, the fences of its code block, the
            brackets of its array.
        kind: what it is called when it does not fit. Between JSON values stands a comma, and nothing else.
    """

    start: int
    end: int
    whole: bool = False
    needs: tuple[int, ...] = ()
    kind: Kind = "sentence"


def units(item: Item) -> tuple[Unit, ...]:
    """The units of an item in reading order; one empty unit where there is no text but something to show."""
    text = item.text
    if json_units.is_json(text):
        return _json(text)
    if json_units.are_lines(text):
        return tuple(Unit(*span, whole=True, kind="row") for span in _lines(text))
    spans = _fenced(text, [_stripped(text, start, end) for start, end in sentences(text)])
    if not spans:
        return (Unit(0, 0, whole=True),) if item.media is not None else ()
    in_code = bool(_CODE_MIME.match(str(item.meta.get("mime", ""))))
    needs = _needs(text, spans)
    return tuple(
        _unit(start, end, in_code or n in needs or _is_whole(text, start, end), needs.get(n, ()))
        for n, (start, end) in enumerate(spans)
    )


def _unit(start: int, end: int, whole: bool, needs: tuple[int, ...]) -> Unit:
    return Unit(start, end, whole, needs, "row" if whole else "sentence")


def _json(text: str) -> tuple[Unit, ...]:
    """The brackets and the elements of an array; any other value, or an empty array, as one unit."""
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    found = list(json_units.elements(text)) if json_units.is_array(text) else []
    if not found:
        return (Unit(first, last, whole=True, kind="JSON value"),)
    brackets = (0, len(found) + 1)
    values = [Unit(start, end, True, brackets, "JSON value") for start, end in found]
    opening = Unit(first, first + 1, True, brackets, "JSON value")
    return (opening, *values, Unit(last - 1, last, True, brackets, "JSON value"))


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the lines that hold something, without white space around them."""
    for line in regex.finditer(r"[^\n]+", text):
        start, end = line.span()
        if line.group().strip():
            yield end - len(line.group().lstrip()), start + len(line.group().rstrip())


def _fenced(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """`spans`, those inside a fence that is marked as JSON as one."""
    made: list[tuple[int, int]] = []
    inside = merged = False
    for start, end in spans:
        fence = _FENCE.match(text, start, end)
        if inside and merged and not fence and not _FENCE.match(text, *made[-1]):
            made[-1] = (made[-1][0], end)
            continue
        if fence:
            inside, merged = not inside, bool(_JSON_FENCE.match(text, start, end))
        made.append((start, end))
    return made


def words(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of the words of `text[start:end]`: runs without white space, in Chinese and Japanese clauses."""
    if not _JOINED.search(text, start, end):
        yield from (match.span() for match in _WORD.finditer(text, start, end))
        return
    first = start
    for match in _GRAPHEME.finditer(text, start, end):
        blank = match.group().isspace()
        if blank and match.start() > first:
            yield first, match.start()
        elif match.group() in _CLAUSE:
            yield first, match.end()
        if blank or match.group() in _CLAUSE:
            first = match.end()
    if first < end:
        yield first, end


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    if _JOINED.search(text, start, end):
        found = list(words(text, start, end))
        return found[0][0], found[-1][1]
    part = text[start:end]
    return end - len(part.lstrip()), start + len(part.rstrip())


def _is_whole(text: str, start: int, end: int) -> bool:
    line = text[text.rfind("\n", 0, start) + 1 : end]
    return bool(_PIPES.match(line) or _INDENTED.match(line) or _COLUMNS.search(line) or _CODE.fullmatch(line))


def _needs(text: str, spans: list[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """For each table row and line of a fenced block: the units it needs (its table's head, the block's fences)."""
    needs: dict[int, tuple[int, ...]] = {}
    head: tuple[int, ...] = ()
    fence: int | None = None
    for n, (start, end) in enumerate(spans):
        if _FENCE.match(text, start, end):
            if fence is not None:
                needs.update(dict.fromkeys(range(fence, n), (fence, n)))
            needs[n] = () if fence is None else (fence,)
            fence = n if fence is None else None
        elif fence is not None:
            needs[n] = (fence,)
        elif n and _RULE.match(text, start, end) and _PIPES.match(text, spans[n - 1][0]):
            head = (n - 1, n)
            needs.update({n - 1: head, n: head})
        elif _PIPES.match(text, start, end):
            needs[n] = head
        else:
            head = ()
    return needs
