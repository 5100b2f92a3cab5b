"""Filters over items: small typed expressions that every backend answers alike.

    >>> Range("modified", le=date(2024, 5, 1)).bounds
    [('le', '2024-05-01~')]
    >>> AllOf(Equals("modality", "page"), Not(OneOf("author", ["Ann", "Bob"]))).parts[0]
    Equals(field='modality', value='page')

A field is `id`, `uri`, `document`, `modality`, `modified` or else a key of `Item.meta`. What a leaf says holds only of
items that have the field with a value of that type: numbers are compared with numbers (`5` is `5.0`), text with text by
code point, true and false with themselves. A field whose value is a list has every element as a value for `Equals` and
`OneOf`, and none for `Prefix` and `Range`. `Not` holds wherever the leaf does not, also where the field is missing.
Built-in fields are text, and an empty one is missing. Not to be filtered by, as if they were missing: nested objects,
null, text above `MAX_TEXT` characters, lists above `MAX_LIST` elements, and numbers too large for a float.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from ..errors import BadInput

BUILT_IN = ("id", "uri", "document", "modality", "modified")
"""Fields that every item has, as text; `modified` may be empty."""

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
"""Keys of metadata that can be filtered by. Nothing else ever stands in an expression outside of quotes."""

_DAY = re.compile(r"\d{4}(-\d\d(-\d\d)?)?~?")  # with a tilde it is after every time of that day

MAX_TEXT = 1_000
MAX_LIST = 256
MAX_DEPTH = 12
MAX_LEAVES = 256

Scalar = str | int | float | bool | date
"""A value: `datetime` (with a time zone, to the second) and `date` stand for their ISO text in UTC."""


class Filter:
    """Base of all expressions."""


@dataclass(frozen=True)
class Equals(Filter):
    """`field` is `value`."""

    field: str
    value: Scalar

    def __post_init__(self) -> None:
        _check_field(self.field)
        object.__setattr__(self, "value", plain(self.field, self.value))


@dataclass(frozen=True, init=False)
class OneOf(Filter):
    """`field` is one of `values`; of none, when there are none."""

    field: str
    values: tuple[Scalar, ...]

    def __init__(self, field: str, values: Sequence[Scalar]) -> None:
        _check_field(field)
        if len(values) > MAX_LIST:
            raise BadInput(f"The filter on `{field}` has `{len(values)}` values.", f"Give at most {MAX_LIST}.")
        object.__setattr__(self, "field", field)
        object.__setattr__(self, "values", tuple(plain(field, value) for value in values))


@dataclass(frozen=True)
class Prefix(Filter):
    """`field` is text that starts with `prefix`; any text at all, when that is empty."""

    field: str
    prefix: str

    def __post_init__(self) -> None:
        _check_field(self.field)
        if not isinstance(plain(self.field, self.prefix), str):
            raise BadInput(f"The prefix of `{self.field}` is `{self.prefix}`.", "It must be text.")


@dataclass(frozen=True)
class Range(Filter):
    """`field` lies between bounds: at least `ge` or above `gt`, and at most `le` or below `lt`.

    All bounds are numbers, or all are text or dates. Those of `modified` are dates or times, as text or not: `2024`,
    `2024-05`, `2024-05-01`, `2024-05-01T10:00:00+02:00`. A date as `le` or `gt` means the end of that day, or year.
    """

    field: str
    ge: Scalar | None = None
    gt: Scalar | None = None
    le: Scalar | None = None
    lt: Scalar | None = None

    def __post_init__(self) -> None:
        _check_field(self.field)
        for end, bound in self.bounds:
            object.__setattr__(self, end, _bound(self.field, end, bound))
        kinds = {type(bound) for _, bound in self.bounds}
        if bool in kinds or len(kinds) != 1:
            raise BadInput(
                f"The range of `{self.field}` is `{dict(self.bounds)}`.",
                "Give one or more bounds, all numbers or all text.",
            )

    @property
    def bounds(self) -> list[tuple[str, Any]]:
        """The bounds there are: `ge`, `gt`, `le` or `lt`, each with its text or float."""
        return [(end, getattr(self, end)) for end in ("ge", "gt", "le", "lt") if getattr(self, end) is not None]


@dataclass(frozen=True, init=False)
class AllOf(Filter):
    """Every part holds; true, when there is none."""

    parts: tuple[Filter, ...]

    def __init__(self, *parts: Filter) -> None:
        object.__setattr__(self, "parts", parts)
        _check_size(self)


@dataclass(frozen=True, init=False)
class AnyOf(Filter):
    """At least one part holds; false, when there is none."""

    parts: tuple[Filter, ...]

    def __init__(self, *parts: Filter) -> None:
        object.__setattr__(self, "parts", parts)
        _check_size(self)


@dataclass(frozen=True)
class Not(Filter):
    """`part` does not hold."""

    part: Filter

    def __post_init__(self) -> None:
        _check_size(self)


def plain(field: str, value: Any) -> str | float | bool:
    """`value` as backends compare it: text, a float, or true or false.

    Raises:
        BadInput: another type, NaN, infinity, too large a number, text that is too long, a time without a zone; what
            is not text for a built-in field.
    """
    found = _plain(field, value)
    if field in BUILT_IN and not isinstance(found, str):
        raise BadInput(f"The filter on `{field}` has the value `{value}`.", "Give text.")
    return found


def _plain(field: str, value: Any) -> str | float | bool:
    match value:
        case bool():
            return value
        case int() | float():
            number = number_of(value)
            if number is None:
                raise BadInput(f"The filter on `{field}` has a number without a finite float.", "Use a smaller one.")
            return number
        case str():
            return _checked_text(field, value)
        case datetime():
            return iso(field, value)
        case date():
            return value.isoformat()
    raise BadInput(
        f"The filter on `{field}` has a value of type `{type(value).__name__}`.",
        "Use text, numbers, booleans or dates.",
    )


def number_of(value: float) -> float | None:
    """`value` as a finite float, None where there is none."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def iso(field: str, moment: datetime) -> str:
    """`moment` in UTC, to the second, as `modified` is written: text that sorts as time does.

    >>> iso("modified", datetime.fromisoformat("2024-05-01T10:00:30.5+02:00"))
    '2024-05-01T08:00:30Z'
    """
    if moment.tzinfo is None:
        raise BadInput(f"The time `{moment.isoformat()}` for `{field}` has no zone.", "Add one, such as `+00:00`.")
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _checked_text(field: str, text: str) -> str:
    if len(text) > MAX_TEXT:
        raise BadInput(
            f"The filter on `{field}` has a text of `{len(text)}` characters.", f"Give at most {MAX_TEXT:,}."
        )
    return text


def _bound(field: str, end: str, value: Any) -> str | float | bool:
    if field == "modified" and isinstance(value, str) and not _DAY.fullmatch(value):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise BadInput(f"`{value[:80]}` is no time to compare `{field}` with.", "Write `2024-05-01`.") from None
    text = plain(field, value)
    is_day = isinstance(text, str) and not isinstance(value, datetime) and (field == "modified" or text is not value)
    return f"{text.rstrip('~')}~" if isinstance(text, str) and is_day and end in ("le", "gt") else text


def _check_field(field: Any) -> None:
    if not isinstance(field, str) or not KEY.fullmatch(field):
        raise BadInput(
            f"`{str(field)[:80]}` is no field to filter by.",
            f"Use {', '.join(BUILT_IN)}, or a key of the metadata: letters, digits, `_`, `.` and `-`, at most 64.",
        )


def _check_size(filter_: Filter) -> None:
    depth, leaves = _size(filter_)
    if depth > MAX_DEPTH or leaves > MAX_LEAVES:
        raise BadInput(
            f"The filter has `{leaves}` conditions in {depth} levels.",
            f"At most {MAX_LEAVES} in {MAX_DEPTH}; many values of one field go into one list.",
        )


def _size(filter_: Any) -> tuple[int, int]:
    if not isinstance(filter_, Filter):
        raise BadInput(f"`{filter_!r:.80}` is no filter.", "Combine filters with AllOf, AnyOf and Not.")
    parts = getattr(filter_, "parts", ()) or ((filter_.part,) if isinstance(filter_, Not) else ())
    sizes = [_size(part) for part in parts]
    return 1 + max((depth for depth, _ in sizes), default=0), sum(leaves for _, leaves in sizes) or 1


_ENDS = {"prefix", "ge", "gt", "le", "lt"}


def filter_of(given: Any) -> Filter:
    """The filter that a JSON object says: fields with what they must be, all of which must hold.

    A field has a value, a list (one of them), or an object with `prefix`, or with `ge`, `gt`, `le`, `lt`. Besides
    fields there may be `all` and `any` with a list of objects, and `not` with one.

    >>> filter_of({"author": "Bob", "year": {"ge": 2020}})
    AllOf(parts=(Equals(field='author', value='Bob'), Range(field='year', ge=2020.0, gt=None, le=None, lt=None)))

    Raises:
        BadInput: anything else.
    """
    return _every(given, MAX_DEPTH)


def _every(given: Any, levels: int) -> Filter:
    if not isinstance(given, Mapping):
        raise BadInput(f"The filter is `{str(given)[:80]}`.", 'Give an object such as {"author": "Bob"}.')
    if not levels:
        raise BadInput(f"The filter has more than `{MAX_DEPTH}` levels.", "Say it with fewer.")
    return AllOf(*(_entry(str(name), wanted, levels - 1) for name, wanted in given.items()))


def _entry(name: str, wanted: Any, levels: int) -> Filter:
    if name == "not":
        return Not(_every(wanted, levels))
    if name in ("all", "any"):
        if not isinstance(wanted, list):
            raise BadInput(f"`{name}` of the filter is `{str(wanted)[:80]}`.", "Give a list of objects.")
        return (AllOf if name == "all" else AnyOf)(*(_every(part, levels) for part in wanted))
    if isinstance(wanted, list):
        return OneOf(name, wanted)
    if not isinstance(wanted, Mapping):
        return Equals(name, wanted)
    unknown = next((str(end) for end in wanted if end not in _ENDS), None)
    if unknown is not None or not wanted or ("prefix" in wanted and len(wanted) > 1):
        raise BadInput(
            f"The filter on `{name[:80]}` says `{unknown or dict(wanted)}`.", "Use `prefix`, or `ge`, `gt`, `le`, `lt`."
        )
    return Prefix(name, wanted["prefix"]) if "prefix" in wanted else Range(name, **wanted)
