"""Filters in Milvus' expression language, safe for any text, with one meaning on every backend.

Quoting is ours, because Milvus Lite has no templates. Backends differ where a value is missing or of another type (in
Milvus Lite `not` of a missing JSON value is neither true nor false; it also takes `true` for `1`), so metadata is not
compared as it is: a row has *facets*, a flat JSON object made of it, whose keys say the type (`s_author`, `n_year`,
`b_draft`, and `l_tags` for lists of strings that `_token` makes). Every condition on one is guarded by `exists`.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from ..filters import BUILT_IN, KEY, MAX_LIST, MAX_TEXT, AllOf, AnyOf, Equals, Not, OneOf, Prefix, Range, number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..base import Where
    from ..filters import Filter

FACETS = "facets"
"""The JSON field of a row that metadata is filtered by."""

_ALWAYS, _NEVER = 'id != ""', 'id == ""'
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

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
        parts.append(_starts("uri", where.uri_prefix))
    if where.filter is not None:
        parts.append(_compiled(where.filter))
    return " and ".join(parts)


def facets(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What of an item's metadata can be filtered by, flat and typed."""
    found: dict[str, Any] = {}
    for key, value in meta.items():
        if isinstance(key, str) and KEY.fullmatch(key) and key not in BUILT_IN:
            found.update(_facet(key, value))
    return found


def _facet(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list | tuple):
        tokens = [_token(part) for part in map(_scalar, value) if part is not None]
        return {f"l_{key}": tokens} if 0 < len(value) <= MAX_LIST else {}
    part = _scalar(value)
    return {} if part is None else {f"{_letter(part)}_{key}": part}


def _scalar(value: Any) -> str | float | bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return number_of(value)
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else None


def _letter(value: str | float | bool) -> str:
    return {bool: "b", float: "n", str: "s"}[type(value)]


def _token(value: str | float | bool) -> str:
    """A scalar as text that no other scalar has."""
    return f"{_letter(value)}{value if isinstance(value, str) else _word(value)}"


def _compiled(wanted: Filter) -> str:
    match wanted:
        case Equals(field, value):
            return _among(field, [value])
        case OneOf(field, values):
            return _among(field, values)
        case Prefix(field, prefix):
            return _on(field, "s", lambda name: _starts(name, prefix) if prefix else "")
        case Range(field):
            bounds = wanted.bounds
            return _on(
                field,
                _letter(bounds[0][1]),
                lambda name: " and ".join(f"{name} {_SIGNS[end]} {_literal(bound)}" for end, bound in bounds),
            )
        case AllOf(parts):
            return _joined(parts, " and ", _ALWAYS)
        case AnyOf(parts):
            return _joined(parts, " or ", _NEVER)
        case Not(part):
            return f"not ({_compiled(part)})"
    raise BadInput(f"`{type(wanted).__name__}` is no filter.", "Combine those of `filters`.")


def _joined(parts: Sequence[Filter], word: str, neutral: str) -> str:
    return f"({word.join(map(_compiled, parts))})" if parts else neutral


def _among(field: str, values: Sequence[Any]) -> str:
    if field in BUILT_IN:
        texts = [value for value in values if value]
        return f"{field} in [{', '.join(map(quoted, texts))}]" if texts else _NEVER
    if not values:
        return _NEVER
    by_type = [[value for value in values if _letter(value) == letter] for letter in "snb"]
    tokens = ", ".join(quoted(_token(value)) for value in values)
    parts = [_on(field, _letter(own[0]), partial(_is_one_of, own)) for own in by_type if own]
    parts.append(_on(field, "l", lambda name: f"json_contains_any({name}, [{tokens}])"))
    return f"({' or '.join(parts)})"


def _is_one_of(values: Sequence[Any], name: str) -> str:
    # Not `in`, which Milvus Lite refuses for a JSON path.
    return f"({' or '.join(f'{name} == {_literal(value)}' for value in values)})"


def _on(field: str, letter: str, condition: Callable[[str], str]) -> str:
    """`condition` on the value of `field`, false where there is none of that type."""
    if field in BUILT_IN:
        name, there = field, f'{field} != ""'
    else:
        name = f'{FACETS}["{letter}_{field}"]'
        there = f"(exists {name})"  # in Milvus 2.3 `exists` would take a following `and` for its own
    said = condition(name)
    return f"({there} and {said})" if said else f"({there})"


def _starts(name: str, prefix: str) -> str:
    # A range, not `like`: there is no portable way to escape its wildcards.
    after = _after(prefix)
    from_here = f"{name} >= {quoted(prefix)}"
    return from_here if after is None else f"{from_here} and {name} < {quoted(after)}"


def _literal(value: str | float | bool) -> str:
    return quoted(value) if isinstance(value, str) else _word(value)


def _word(value: float | bool) -> str:
    return json.dumps(value if isinstance(value, bool) else value + 0.0)  # which makes 0.0 of -0.0


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
