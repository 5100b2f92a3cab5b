"""Filters in Milvus' expression language, safe for any text: quoting is ours, because Milvus Lite has no templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BadInput

if TYPE_CHECKING:
    from ..base import Where

# Both grammars end a string at its quote or a line break, know these escapes, and take every other character as it is.
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def expression(where: Where | None) -> str:
    """`where` as a Milvus filter; `""` when there is nothing to filter."""
    if where is None:
        return ""
    parts = [
        f"{field} in [{', '.join(map(quoted, values))}]"
        for field, values in (("id", where.ids), ("document", where.documents), ("modality", where.modalities))
        if values
    ]
    if where.uri_prefix:
        # A range, not `like`: there is no portable way to escape its wildcards.
        parts.append(f"uri >= {quoted(where.uri_prefix)}")
        after = _after(where.uri_prefix)
        if after is not None:
            parts.append(f"uri < {quoted(after)}")
    return " and ".join(parts)


def quoted(value: str) -> str:
    """`value` as a string literal."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"`{value!a}` is not valid Unicode.", "It has half of a surrogate pair.") from None
    return f'"{value.translate(_ESCAPES)}"'


def _after(prefix: str) -> str | None:
    """The least string above every string that starts with `prefix`."""
    for at in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[at]) + 1
        if code == 0xD800:
            code = 0xE000
        if code <= 0x10FFFF:
            return prefix[:at] + chr(code)
    return None
