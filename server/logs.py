"""Logs of a server: on stderr, one line each, as text or as JSON, and never a word of a document.

What an exception says can hold what the user's files hold, so of an unexpected one only its type and where it was
raised are written.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import PurePath
from types import TracebackType
from typing import Any

LONGEST = 2000
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Lines(logging.Formatter):
    """`LEVEL logger: message`, and for an exception its type and frames on one line more each."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname} {record.name}: {said(record)}"
        return "\n  ".join([line, *raised(record.exc_info)])


class JSONLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and `raised` where there is an exception."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": said(record),
        }
        found = raised(record.exc_info)
        return json.dumps({**row, **({"raised": found} if found else {})}, ensure_ascii=False)


def said(record: logging.LogRecord) -> str:
    """The record's message in one line of at most `LONGEST` characters.

    An exception among the arguments is named by its type, unless it is one of ours, which speak for themselves.
    """
    from ..errors import TriptychError

    given = record.args if isinstance(record.args, tuple) else (record.args,) if record.args else ()
    shown = tuple(
        type(one).__name__ if isinstance(one, BaseException) and not isinstance(one, TriptychError) else one
        for one in given
    )
    try:
        text = str(record.msg) % shown if shown else str(record.msg)
    except (TypeError, ValueError):
        text = record.getMessage()
    return " ".join(text.split())[:LONGEST]


def raised(info: ExcInfo | None) -> list[str]:
    """An exception and those behind it, each as type and frames `file:line function`, without what they say."""
    error = info[1] if info else None
    found: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{PurePath(one.filename).name}:{one.lineno} {one.name}" for one in reversed(frames[-12:]))
        found.append(f"{type(error).__name__} at {where or 'no frame'}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def begin(*, as_json: bool = False, level: int = logging.WARNING) -> None:
    """Send all logs to stderr in our form, in place of whatever was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines() if as_json else Lines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
