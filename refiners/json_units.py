"""JSON inside evidence: a text that is JSON stays JSON. An array loses elements, any other value is kept or dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

LONGEST = 1_000_000
"""Characters of the longest text that is parsed to see whether it is JSON."""

_BEGINS = re.compile(r"\s*[{\[]")
_BETWEEN = re.compile(r"\s*(,?)\s*")
_DECODER = json.JSONDecoder()

Span = tuple[int, int]


def is_json(text: str) -> bool:
    """Whether `text` is one JSON object or array."""
    return _parses(text, 0) == len(text.rstrip())


def is_array(text: str) -> bool:
    """Whether `text`, which is JSON, is an array."""
    return text.lstrip().startswith("[")


def are_lines(text: str) -> bool:
    """Whether `text` is several lines, each a JSON object or array."""
    lines = [line for line in text.split("\n") if line.strip()] if _BEGINS.match(text) else []
    return len(lines) > 1 and all(map(is_json, lines))


def elements(text: str) -> Iterator[Span]:
    """Spans of the elements of the JSON array `text`, in order."""
    at = text.index("[") + 1
    end = text.rindex("]")
    while (at := _past(text, at)) < end:
        _, stop = _DECODER.raw_decode(text, at)
        yield at, stop
        at = stop


def _past(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _parses(text: str, start: int) -> int:
    """Where the value that begins at `start` ends, -1 where there is none."""
    if len(text) > LONGEST or not (begins := _BEGINS.match(text, start)):
        return -1
    try:
        return _DECODER.raw_decode(text, begins.end() - 1)[1]
    except (ValueError, RecursionError):
        return -1
