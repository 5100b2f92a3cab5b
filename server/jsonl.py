"""Passages that a user brings to `rerank` and `compress`: JSON Lines of `{id?, text, uri?}`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput

if TYPE_CHECKING:
    from ..tools.schemas import Given

HINT = 'Each line must be a JSON object like {"id": "a", "text": "…", "uri": "…"}; only `text` is required.'
NAMED = 5
"""How many bad lines a message names."""


def read(name: str) -> list[Given]:
    """The passages in file `name`, `-` for stdin.

    Raises:
        BadInput: no such file, no passages, or lines that are none; they are named by number.
    """
    shown = "stdin" if name == "-" else Path(name).name
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
    except OSError as error:
        raise BadInput(f"`{shown}` cannot be read: {error.strerror}.", "Give a JSONL file, or `-` for stdin.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadInput(f"Line {line} of `{shown}` is not UTF-8.", "Save the file as UTF-8.") from None
    return parse(text.split("\n"), shown)


def parse(lines: Iterable[str], shown: str) -> list[Given]:
    """The passages of `lines`; blank lines are skipped, bad ones are `BadInput`."""
    from pydantic import ValidationError

    from ..tools.schemas import Given

    found: list[Given] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(Given.model_validate(json.loads(line)))
        except (ValueError, RecursionError) as error:
            reason = _reason(error) if isinstance(error, ValidationError) else "not JSON"
            bad.append(f"line {number} ({reason})")
    if bad:
        raise BadInput(f"`{shown}` has {_listed(bad)}.", HINT)
    if not found:
        raise BadInput(f"`{shown}` holds no passages.", HINT)
    return found


def _reason(error: object) -> str:
    first = error.errors(include_url=False)[0]  # type: ignore[attr-defined]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"`{name}` is missing"
    if first["type"] == "extra_forbidden":
        return f"unknown key `{name}`"
    return f"`{name}` is not text" if name else "not an object"


def _listed(bad: Sequence[str]) -> str:
    more = f" and {len(bad) - NAMED} more bad lines" if len(bad) > NAMED else ""
    return f"a bad {', '.join(bad[:NAMED])}{more}"
