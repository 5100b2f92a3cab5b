"""What compression keeps or drops: units (a sentence, a list item, a table row, a line of code) and, last, words.

All spans are half-open character offsets in the item's text, without surrounding white space, and never end inside a
grapheme.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex

from ..retrievers.chunking import sentences

if TYPE_CHECKING:
    from ..retrievers.base import Item

_FENCE = regex.compile(r"\s*(?:```|~~~)")
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
        needs: units without which this one cannot be read: the head of its table, the fences of its code block.
    """

    start: int
    end: int
    whole: bool = False
    needs: tuple[int, ...] = ()


def units(item: Item) -> tuple[Unit, ...]:
    """The units of an item in reading order; one empty unit where there is no text but something to show."""
    text = item.text
    spans = [_stripped(text, start, end) for start, end in sentences(text)]
    if not spans:
        return (Unit(0, 0, whole=True),) if item.media is not None else ()
    in_code = bool(_CODE_MIME.match(str(item.meta.get("mime", ""))))
    needs = _needs(text, spans)
    return tuple(
        Unit(start, end, in_code or n in needs or _is_whole(text, start, end), needs.get(n, ()))
        for n, (start, end) in enumerate(spans)
    )


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
