"""JSON and JSON lines: one line per value with the path that leads to it, keys as headings, records as tables.

Numbers stay as they are written; of long arrays of numbers only the beginning is shown. What does not parse is read as
plain text. A Jupyter notebook is JSON too and is handed to its own module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from ... import progress
from . import notebook
from ._rows import Allowance, TableRow, block, blocks, one_cell
from .base import Document, Limits, Reader, Section, clean, file_name, unreadable
from .text import read_text

JSON = "application/json"
LINES = "application/x-ndjson"

_LONGEST_KEY = 60
_KEYS_SHOWN = 8  # of a path, counted from its end
_LONGEST_ARRAY = 200  # characters of an array that stands on one line
_MOST_NUMBERS = 32
_MOST_COLUMNS = 40
_LONGEST_CELL = 300
_STEP = 1000
_SAMPLED = 20
_BEGINNING = re.compile(
    r"""\s*(?:\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})|\[\s*(?:[{\["\]]|-?\d[\d.eE+-]*\s*[,\]]|true|false|null))"""
)
_VALUE = re.compile(r"[\[{,]")

_Path = tuple["_Path", str] | None
"""The keys that lead to a value, the last one first."""


class Number(str):
    """A number as it is written: none is rounded, none is too long to parse."""


class DataReader(Reader):
    """One section per key of the outermost object, after one for its plain values; blocks of records for an array."""

    mimes = frozenset({JSON, LINES})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        text, stripped = read_text(file, uri)
        writer = _Writer(uri, limits)
        if mime == LINES:
            sections = tuple(writer.lines(text))
        else:
            found, value = _parsed(text, uri, limits)
            if not found:
                return Document(uri, file_name(uri), "text/plain", (Section(text),), {"stripped": stripped})
            if notebook.is_notebook(value):
                return notebook.document(value, uri, stripped)
            sections = tuple(writer.sections(value))
        if not sections:
            raise unreadable(uri, "holds no value", "Remove it, or give a file with content.")
        return Document(uri, file_name(uri), mime, sections, {"stripped": stripped + writer.stripped, **writer.meta})


def kind_of(head: str, suffix: str, *, is_whole: bool) -> str | None:
    """The MIME type of the JSON that begins with `head`; None if it is none. A single value is JSON by name only."""
    begins = head.lstrip()[:1]
    if begins not in ("{", "["):
        return JSON if suffix == ".json" and begins else None
    lines = [line for line in head.split("\n") if line.strip()]
    if not is_whole and len(lines) > 1:
        lines = lines[:-1]
    if suffix in (".jsonl", ".ndjson") or (len(lines) > 1 and all(map(_is_record, lines[:_SAMPLED]))):
        return LINES
    return JSON if suffix in (".json", ".ipynb", ".geojson") or _BEGINNING.match(head) else None


def _is_record(line: str) -> bool:
    try:
        return _is_container(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _parsed(text: str, uri: str, limits: Limits) -> tuple[bool, Any]:
    """Whether `text` is JSON, and its value.

    Raises:
        UnreadableFile: it holds more than `max_values`, counted before any is made.
    """
    values = sum(1 for _ in _VALUE.finditer(text))
    if values > limits.max_values:
        what = f"has about {values} values, more than `max_values` = {limits.max_values}"
        raise unreadable(uri, what, "Split the file, or save it as JSON lines.")
    try:
        return True, json.loads(text, parse_int=Number, parse_float=Number, parse_constant=Number)
    except (ValueError, RecursionError):
        return False, None


class _Writer:
    """Values as text, at most as much as a file may have bytes."""

    def __init__(self, uri: str, limits: Limits) -> None:
        self._uri = uri
        self._limits = limits
        self._left = limits.max_bytes
        self.meta: Mapping[str, str] = {}
        self.stripped = 0

    def sections(self, value: Any) -> Iterator[Section]:
        if not isinstance(value, dict):
            yield from self._array(value, ()) if isinstance(value, list) else self._plain({"value": value}, ())
            return
        plain = {key: one for key, one in value.items() if not (_is_container(one) and one)}
        if plain:
            yield from self._plain(plain, ())
        for key, one in value.items():
            if isinstance(one, list):
                yield from self._array(one, (self._title(key),))
            elif isinstance(one, dict) and one:
                yield from self._plain(one, (self._title(key),))

    def lines(self, text: str) -> Iterator[Section]:
        """JSON lines: a table if all are flat records, else a section per line. A damaged line is kept as it is."""
        allowance = Allowance(self._limits)
        found: dict[int, Any] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if number % _STEP == 0:
                progress.step(number, None, "lines")
            if not line.strip():
                continue
            if not allowance.allows(1 + sum(1 for _ in _VALUE.finditer(line)), f"line {number}"):
                break
            parsed, value = _parsed(line, self._uri, self._limits)
            found[number] = value if parsed else line
        yield from self._records(found, (), "lines")
        yield from allowance.remark()
        self.meta = allowance.meta

    def _array(self, values: Sequence[Any], titles: tuple[str, ...]) -> Iterator[Section]:
        if any(isinstance(value, dict) for value in values):
            yield from self._records(dict(enumerate(values)), titles, "items")
        elif values:
            yield from self._plain({"": values} if titles else {"values": values}, titles)

    def _records(self, values: Mapping[int, Any], titles: tuple[str, ...], unit: str) -> Iterator[Section]:
        """Values by their number: rows of one table if they are flat and alike, else each under its own heading."""
        names = _columns(values.values())
        if names:
            places = {name: column for column, name in enumerate(names)}
            rows = [
                TableRow(number, {places[key]: self._cell(one) for key, one in value.items() if one not in ("", None)})
                for number, value in values.items()
            ]
            shown = {column: self._title(name) for name, column in places.items()}
            yield from blocks([row for row in rows if row.cells], titles, unit, names=shown)
            return
        for number, value in values.items():
            text = "\n".join(self._leaves(value, None)) if _is_container(value) else self._text(value)
            if text.strip():
                yield block(text, titles, unit, number, number)

    def _plain(self, value: Mapping[str, Any], titles: tuple[str, ...]) -> Iterator[Section]:
        text = "\n".join(self._leaves(value, None))
        if text.strip():
            yield Section(f"# {titles[-1]}\n\n{text}\n\n" if titles else f"{text}\n\n", headings=titles)

    def _leaves(self, value: Any, path: _Path) -> Iterator[str]:
        """`path: value` for every value below `value`, in order, without recursion."""
        stack: list[tuple[_Path, Any]] = [(path, value)]
        done = 0
        while stack:
            path, value = stack.pop()
            done += 1
            if done % _STEP == 0:
                progress.step(done, None, "values")
            written = self._inline(value)
            if written is not None:
                name = _shown(path)
                yield self._spend(f"{name}: {written}" if name else written)
            elif isinstance(value, dict):
                stack += [((path, key if path is None else f".{key}"), one) for key, one in reversed(value.items())]
            else:
                stack += [((path, f"[{n}]"), one) for n, one in reversed(list(enumerate(value)))]

    def _inline(self, value: Any) -> str | None:
        """The value on one line; None for a container that has to be taken apart."""
        if not _is_container(value):
            return self._text(value)
        if not value:
            return "[]" if isinstance(value, list) else "{}"
        if isinstance(value, dict):
            return None
        if len(value) > _MOST_NUMBERS and all(isinstance(one, Number) for one in value):
            return f"{', '.join(value[:_MOST_NUMBERS])}, … ({len(value)} numbers)"
        if any(_is_container(one) for one in value):
            return None
        texts = [self._text(one) for one in value]
        return ", ".join(texts) if sum(map(len, texts)) <= _LONGEST_ARRAY else None

    def _text(self, value: Any) -> str:
        if value is None or isinstance(value, bool):
            return json.dumps(value)
        text, stripped = clean(str(value))
        self.stripped += stripped
        return text

    def _cell(self, value: Any) -> str:
        return self._spend(one_cell(self._text(value))[0])

    def _title(self, key: str) -> str:
        title, stripped = one_cell(key)
        self.stripped += stripped
        return title[:_LONGEST_KEY] or "(no name)"

    def _spend(self, text: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            what = f"becomes a text of more than `max_bytes` = {self._limits.max_bytes} characters"
            raise unreadable(self._uri, what, "Split the file, or shorten its keys.")
        return text


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _columns(values: Any) -> list[str]:
    """The keys of flat records, several of them and alike; none for other values."""
    records = list(values)
    if len(records) < 2 or not all(isinstance(record, dict) and record for record in records):
        return []
    names: dict[str, int] = {}
    for record in records:
        for key, one in record.items():
            names[key] = names.get(key, 0) + 1
            if _is_container(one) or len(str(one)) > _LONGEST_CELL or len(names) > _MOST_COLUMNS:
                return []
    return list(names) if sum(names.values()) * 2 >= len(names) * len(records) else []


def _shown(path: _Path) -> str:
    """The last keys of a path, each cut to a readable length."""
    keys: list[str] = []
    while path is not None and len(keys) < _KEYS_SHOWN:
        path, key = path
        keys.append(one_cell(key)[0][:_LONGEST_KEY])
    return "…" * (path is not None) + "".join(reversed(keys))
