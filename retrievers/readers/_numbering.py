"""The numbers and bullets that Word puts before the paragraphs of its lists (ECMA-376, part 1, 17.9)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from docx.oxml.ns import nsmap

_W = f"{{{nsmap['w']}}}"
_LEVELS = 9
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"))
_ROMAN_ONES = ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")
_LONGEST = 60


@dataclass(frozen=True)
class _Level:
    """`text` holds `%1` to `%9` for the counters of the levels."""

    start: int = 1
    kind: str = "decimal"
    text: str = "%1."


class Numbering:
    """Counts through one document, so that paragraphs must come in their order."""

    def __init__(self, root: Any = None) -> None:
        self._levels: dict[str, list[_Level]] = {}  # of each kind of list, by its id
        self._lists: dict[str, str] = {}  # the kind of each list
        self._restarts: dict[str, dict[int, int]] = {}  # levels that a list begins anew, and at what
        self._counters: dict[str, list[int | None]] = {}
        for node in () if root is None else root:
            if node.tag == f"{_W}abstractNum":
                self._levels[node.get(f"{_W}abstractNumId", "")] = _levels(node)
            elif node.tag == f"{_W}num":
                number = node.get(f"{_W}numId", "")
                self._lists[number] = value(node, "abstractNumId")
                self._restarts[number] = {
                    whole(override.get(f"{_W}ilvl")): whole(value(override, "startOverride"))
                    for override in node.iterfind(f"{_W}lvlOverride")
                    if value(override, "startOverride")
                }

    def mark(self, number: str, depth: int) -> str:
        """What stands before the next paragraph of list `number` at `depth` (0-based): `-`, `2.`, `1.3`; or nothing."""
        kind = self._lists.get(number, "")
        levels = self._levels.get(kind)
        if not levels:
            return ""
        depth = min(max(depth, 0), _LEVELS - 1)
        counters = self._counters.setdefault(kind, [None] * _LEVELS)
        for level, start in self._restarts.pop(number, {}).items():
            if 0 <= level < _LEVELS:
                counters[level:] = [start - 1, *[None] * (_LEVELS - 1 - level)]
        before = counters[depth]
        counters[depth:] = [levels[depth].start if before is None else before + 1, *[None] * (_LEVELS - 1 - depth)]
        if levels[depth].kind in ("bullet", "none"):
            return "-" if levels[depth].kind == "bullet" else ""
        return re.sub(r"%([1-9])", lambda match: _counted(levels, counters, int(match[1]) - 1), levels[depth].text)


def value(parent: Any, name: str) -> str:
    """`w:val` of the child `w:name` of `parent`; empty if there is none."""
    child = parent.find(f"{_W}{name}")
    return "" if child is None else child.get(f"{_W}val", "")


def whole(text: str | None) -> int:
    """The number that an attribute states; 0 for anything else."""
    return int(text) if text and re.fullmatch(r"-?\d{1,6}", text, re.ASCII) else 0


def _levels(node: Any) -> list[_Level]:
    levels = [_Level()] * _LEVELS
    for level in node.iterfind(f"{_W}lvl"):
        depth = whole(level.get(f"{_W}ilvl"))
        if 0 <= depth < _LEVELS:
            start = whole(value(level, "start") or "1")
            levels[depth] = _Level(start, value(level, "numFmt") or "decimal", value(level, "lvlText")[:_LONGEST])
    return levels


def _counted(levels: list[_Level], counters: list[int | None], depth: int) -> str:
    counter = counters[depth]
    return _written(levels[depth].start if counter is None else counter, levels[depth].kind)


def _written(number: int, kind: str) -> str:
    """`number` as `kind` shows it; other kinds than these as digits."""
    if kind == "decimalZero":
        return f"{number:02d}"
    if kind in ("lowerLetter", "upperLetter") and 1 <= number <= 26 * 5:
        text = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)
    elif kind in ("lowerRoman", "upperRoman") and 1 <= number < 4000:
        text = _roman(number)
    else:
        return str(number)
    return text.upper() if kind.startswith("upper") else text


def _roman(number: int) -> str:
    text = ""
    for size, letters in _ROMAN:
        text, number = text + letters * (number // size), number % size
    return text + _ROMAN_ONES[number]
