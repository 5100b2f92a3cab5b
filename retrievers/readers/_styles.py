"""What the paragraphs and runs of a Word document inherit from their styles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docx.oxml.ns import nsmap

from ._numbering import value, whole

_W = f"{{{nsmap['w']}}}"
_VAL = f"{_W}val"
_HEADING = re.compile(r"heading ([1-9])")
_SMALLEST = 2  # half points: nobody can read a letter of this size
_DEEPEST = 20


class Styles:
    """What paragraphs and runs inherit from their styles."""

    def __init__(self, root: Any) -> None:
        found = () if root is None else root.iterfind(f"{_W}style")
        self._styles = {node.get(f"{_W}styleId", ""): node for node in found}
        default = (
            id
            for id, node in self._styles.items()
            if node.get(f"{_W}default") == "1" and node.get(f"{_W}type") == "paragraph"
        )
        self._default = next(default, "")
        self._hiding: dict[str, bool | None] = {}

    def of(self, paragraph: Any) -> str:
        """The id of a paragraph's style."""
        properties = paragraph.find(f"{_W}pPr")
        return (value(properties, "pStyle") if properties is not None else "") or self._default

    def name(self, style: str) -> str:
        """The name of a style, in small letters."""
        node = self._styles.get(style)
        return "" if node is None else value(node, "name").lower()

    def level(self, paragraph: Any, style: str) -> int | None:
        """The level of a heading, 0 for the title of the document; None for other paragraphs."""
        own = paragraph.find(f"{_W}pPr/{_W}outlineLvl")
        if own is not None:
            return _outline(own)
        for node in self._chain(style):
            name = value(node, "name").lower()
            if name == "title":
                return 0
            if match := _HEADING.fullmatch(name):
                return int(match[1])
            outline = node.find(f"{_W}pPr/{_W}outlineLvl")
            if outline is not None:
                return _outline(outline)
        return None

    def list_of(self, paragraph: Any, style: str) -> tuple[str, int]:
        """The list that a paragraph belongs to (empty: none) and its depth there."""
        for node in (paragraph, *self._chain(style)):
            properties = node.find(f"{_W}pPr/{_W}numPr")
            if properties is not None:
                number = value(properties, "numId")
                if number or node is paragraph:
                    return ("" if number == "0" else number), whole(value(properties, "ilvl"))
        return "", 0

    def hides(self, run: Any, style: str) -> bool:
        """Whether a run is hidden: it or its styles say so, or its letters are too small to see."""
        properties = run.find(f"{_W}rPr")
        if properties is not None:
            own = _is_hiding(properties)
            if own is not None:
                return own
            if character := value(properties, "rStyle"):
                style_hides = self._style_hides(character)
                if style_hides is not None:
                    return style_hides
        return bool(self._style_hides(style))

    def _style_hides(self, style: str) -> bool | None:
        if style not in self._hiding:
            said = (_is_hiding(node.find(f"{_W}rPr")) for node in self._chain(style))
            self._hiding[style] = next((one for one in said if one is not None), None)
        return self._hiding[style]

    def _chain(self, style: str) -> Iterator[Any]:
        """The style and those it is based on."""
        for _ in range(_DEEPEST):
            node = self._styles.get(style)
            if node is None:
                return
            yield node
            style = value(node, "basedOn")


def _is_hiding(properties: Any) -> bool | None:
    """What the properties of a run say about being seen; None if they say nothing."""
    if properties is None:
        return None
    size = value(properties, "sz")
    if size and whole(size) <= _SMALLEST:
        return True
    vanish = properties.find(f"{_W}vanish")
    return None if vanish is None else vanish.get(_VAL, "1") not in ("0", "false", "off")


def _outline(node: Any) -> int | None:
    level = whole(node.get(_VAL)) + 1
    return level if 1 <= level <= 9 else None
