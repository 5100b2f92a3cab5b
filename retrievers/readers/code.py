"""Source code cut at its definitions by tree-sitter: texts are the file's own, headings the definitions around them.

The grammars come as packages; a bundle that fetches them when it runs would break the promise that nothing is. A
definition begins with the comments and decorators above it. A function is cut further only if it is longer than a
passage. A file that is mostly not in its language, or larger than what people write, is read as plain text.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from itertools import pairwise
from pathlib import PurePosixPath
from typing import BinaryIO

from ..chunking import CHUNK_PIECES, pieces
from . import _grammars
from ._child import Child
from .base import Document, Limits, Reader, Section, file_name
from .text import read_text

_SUFFIXES = {
    "text/x-python": ".py .pyi .pyw",
    "text/javascript": ".js .mjs .cjs .jsx",
    "text/x-typescript": ".ts .mts .cts",
    "text/x-tsx": ".tsx",
    "text/x-java": ".java",
    "text/x-go": ".go",
    "text/x-rust": ".rs",
    "text/x-c": ".c",
    "text/x-c++": ".cc .cpp .cxx .c++ .h .hh .hpp .hxx .ipp .inl",
}
_BY_SUFFIX = {suffix: mime for mime, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_SHEBANG = re.compile(r"#!\S*(?:/env\s+(?:-\S+\s+)*)?\S*?\b(python|node)[\d.]*\b")
_BY_SHEBANG = {"python": "text/x-python", "node": "text/javascript"}
_FEEDS = bytes.maketrans(b"\x0b\x0c", b"  ")  # an editor ends no line there, and lines are counted as it does
_WORD = re.compile(r"\w")
_LARGEST = 1_000_000
_SECONDS = 10.0

Definition = tuple[int, int, str, bool]
log = logging.getLogger(__name__)


def language_of(head: str, uri: str) -> str | None:
    """The MIME type of a source file, which only its name or its first line can tell; None for other files."""
    if found := _SHEBANG.match(head):
        return _BY_SHEBANG[found[1]]
    return _BY_SUFFIX.get(PurePosixPath(uri).suffix.lower())


class CodeReader(Reader):
    """One section per definition and per stretch between them; `line` in `meta` is its first line, from 1."""

    mimes = frozenset(_grammars.LANGUAGES)

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        data = file.read()
        if b"\0" not in data:
            data = data.translate(_FEEDS)
        text, stripped = read_text(BytesIO(data), uri)
        found = _definitions(text, mime) if len(text) <= _LARGEST else None
        kind = "text/plain" if found is None else mime
        return Document(uri, file_name(uri), kind, tuple(sections(text, found or ())), {"stripped": stripped})


def sections(text: str, definitions: Sequence[Definition]) -> list[Section]:
    """`text` cut where a definition (offsets in characters, outer before inner) begins or ends."""
    begins: list[tuple[int, tuple[str, ...]]] = []
    for start, end, titles in _stretches(text, definitions):
        if begins and not _WORD.search(text, start, end):
            continue  # a blank line or a bracket goes with what is above
        if begins and not text[begins[-1][0] : start].strip():
            begins[-1] = (begins[-1][0], titles)
        else:
            begins.append((start, titles))
    made, line = [], 1
    for (start, titles), (end, _) in pairwise([*begins, (len(text), ())]):
        made.append(Section(text[start:end], headings=titles, meta={"line": line}))
        line += text.count("\n", start, end)
    return made


def _stretches(text: str, definitions: Sequence[Definition]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """What lies between one edge of a definition and the next, with the titles of those around it; all of `text`."""
    position = 0
    around: list[tuple[int, str, bool]] = []  # where they end
    for start, end, title, is_function in [*definitions, (len(text), len(text), "", False)]:
        start = max(start, position)
        while around and around[-1][0] <= start:
            yield position, around[-1][0], tuple(name for _, name, _ in around)
            position = around.pop()[0]
        if any(whole for _, _, whole in around):
            continue
        yield position, start, tuple(name for _, name, _ in around)
        position = start
        end = min(end, around[-1][0]) if around else end
        around.append((end, title, is_function and pieces(text[start:end]) <= CHUNK_PIECES))


def _definitions(text: str, mime: str) -> list[Definition] | None:
    """The definitions in `text`, offsets in characters; None if it is not mostly in its language."""
    source = text.encode()
    found = _parser().ask(mime, source)
    if found is None or len(source) == len(text):
        return found
    places = sorted({place for start, end, _, _ in found for place in (start, end)})
    characters, before, count = {}, 0, 0
    for place in places:
        count += len(source[before:place].decode())
        characters[place], before = count, place
    return [(characters[start], characters[end], title, whole) for start, end, title, whole in found]


class _Parser(Child):
    """The program that parses."""

    def __init__(self) -> None:
        super().__init__(_grammars)

    def ask(self, mime: str, source: bytes) -> list[Definition] | None:
        """The definitions in `source`; None if it is not mostly in its language or takes too much to parse."""
        request = json.dumps({"mime": mime, "size": len(source)}).encode() + b"\n" + source
        with self.lock:
            answer = self.answer(request, _SECONDS)
            if answer:
                found: list[Definition] | None = json.loads(answer)
                return found
            self.end()
        log.warning("A source file takes too much to parse; it is read as plain text.")
        return None


@cache
def _parser() -> _Parser:
    return _Parser()
