"""What of an item is searched: its title, the headings it stands under, and its text.

Both routes of the hybrid retriever (lexical and dense) and the reranker read this one string, so that a passage is
found by its document's name as well as by its words.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Item


def searchable_text(item: Item) -> str:
    """Title, headings and text, one per line; repeated lines and a heading that the text starts with are left out.

    Without a title the file's name serves, without its suffix and with `_` and `-` read as spaces.
    The text itself comes last and whole: `searchable_text(item)[-len(item.text):] == item.text`.
    """
    lines: list[str] = []
    for line in (_title(item), *item.meta.get("headings", ())):
        line = str(line).strip()
        if line and line not in lines and not item.text.lstrip(" #").startswith(line):
            lines.append(line)
    return "\n".join([*lines, item.text])


def _title(item: Item) -> str:
    given = item.meta.get("title")
    if given:
        return str(given)
    return PurePosixPath(item.source.uri).stem.replace("_", " ").replace("-", " ")
