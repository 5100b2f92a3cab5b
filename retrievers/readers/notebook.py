"""Jupyter notebooks: prose and code of each cell, text outputs cut short; pictures and traces are left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .base import Document, Section, clean, file_name, unreadable
from .markdown import headings_of

NOTEBOOK = "application/x-ipynb+json"

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LONGEST_OUTPUT = 2000
_LANGUAGE = re.compile(r"[\w+#-]{1,20}")


def is_notebook(value: Any) -> bool:
    """Whether parsed JSON is a notebook of format 4."""
    return isinstance(value, dict) and isinstance(value.get("cells"), list) and str(value.get("nbformat")) == "4"


def document(notebook: dict[str, Any], uri: str, stripped: int) -> Document:
    """The document of a parsed notebook. `cell` in the `meta` of a section is the number of its cell, from 1.

    Raises:
        UnreadableFile: no cell has text.
    """
    writer = _Writer(_language(notebook))
    sections = tuple(writer.sections(notebook["cells"]))
    if not sections:
        raise unreadable(uri, "has no cell with text", "Save the notebook with its content.")
    title = writer.title or file_name(uri)
    return Document(uri, title, NOTEBOOK, sections, {"stripped": stripped + writer.stripped})


class _Writer:
    def __init__(self, language: str) -> None:
        self._language = language
        self._path: list[tuple[int, str]] = []  # level and title of the headings above
        self.title = ""
        self.stripped = 0

    def sections(self, cells: Sequence[Any]) -> Iterator[Section]:
        for number, cell in enumerate(cells, 1):
            if not isinstance(cell, dict):
                continue
            source = self._text(cell.get("source"))
            kind = cell.get("cell_type")
            if kind == "code":
                parts = [_fenced(source, self._language)] if source.strip() else []
                parts += [_fenced(text, "output") for text in self._outputs(cell.get("outputs"))]
                found = [Section("\n\n".join(parts), headings=self._titles())] if parts else []
            elif kind == "markdown":
                found = list(self._prose(source))
            else:
                found = [Section(source, headings=self._titles())]
            yield from (
                Section(part.text.rstrip("\n") + "\n\n", headings=part.headings, meta={"cell": number})
                for part in found
                if part.text.strip()
            )

    def _prose(self, source: str) -> Iterator[Section]:
        """The parts of a cell of Markdown, cut at its headings."""
        headings = list(headings_of(source))
        edges = [*(start for start, _, _ in headings), len(source)]
        yield Section(source[: edges[0]], headings=self._titles())
        for (start, level, title), end in zip(headings, edges[1:], strict=True):
            self._path = [*((above, name) for above, name in self._path if above < level), (level, title)]
            self.title = self.title or title
            yield Section(source[start:end], headings=self._titles())

    def _titles(self) -> tuple[str, ...]:
        return tuple(title for _, title in self._path)

    def _outputs(self, outputs: Any) -> Iterator[str]:
        for output in outputs if isinstance(outputs, list) else ():
            if not isinstance(output, dict):
                continue
            data = output.get("data")
            said = output.get("text") or (data.get("text/plain") if isinstance(data, dict) else None)
            if output.get("output_type") == "error":
                said = f"{output.get('ename')}: {output.get('evalue')}"
            text = self._text(said).strip("\n")
            if len(text) > _LONGEST_OUTPUT:
                text = f"{text[:_LONGEST_OUTPUT]}\n… ({len(text) - _LONGEST_OUTPUT} more characters)"
            if text.strip():
                yield text

    def _text(self, value: Any) -> str:
        """A text, which notebooks keep as one string or as a list of lines."""
        whole = "".join(map(str, value)) if isinstance(value, list) else str(value or "")
        text, stripped = clean(_COLOUR.sub("", whole))
        self.stripped += stripped
        return text


def _fenced(text: str, name: str) -> str:
    """`text` between fences that it does not hold itself."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`{3,}", text)), default=0))
    return f"{fence}{name}\n{text.strip(chr(10))}\n{fence}"


def _language(notebook: dict[str, Any]) -> str:
    found = notebook.get("metadata")
    for key, name in (("language_info", "name"), ("kernelspec", "language")):
        part = found.get(key) if isinstance(found, dict) else None
        language = part.get(name) if isinstance(part, dict) else None
        if isinstance(language, str) and _LANGUAGE.fullmatch(language):
            return language
    return ""
