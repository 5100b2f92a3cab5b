"""What a filter means, said again in plain Python, and filters and items to try it on."""

from __future__ import annotations

import operator
import random
from typing import Any

from hypothesis import strategies as st

from triptych.retrievers.base import MODALITIES, Item, Source
from triptych.retrievers.filters import (
    BUILT_IN,
    MAX_LIST,
    MAX_TEXT,
    AllOf,
    AnyOf,
    Equals,
    Filter,
    Not,
    OneOf,
    Prefix,
    Range,
)

COMPARED = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
KEYS = ["author", "year", "draft", "tags", "a.b-c_D", "missing"]
NASTY = [
    '"', "'", "\\", '\\"', '" or id != "', '"] or id in ["a', "%", "a%", "d\n", "\r\n", "\t", "\0", "\x1b", "\u2028",
    '" or true or "', 'x" ) || (1==1) || ("', "facets", 'facets["s_author"]', "s_author", "true", "1", "1.0", "null",
    "中", "中文", "😀", "\U0010ffff", "\ud7ff", "\ue000", "{}", "[]", "$meta", "Bob", "Bobby", "",
]  # fmt: skip
NUMBERS = [0, -0.0, 1, 1.0, -1, 0.1, 5, 5.5, 2024, 2**53, 2**53 + 2, -(2**40), 1e300, 1e-300, 5e-324, -1.7e308, 10**400]
DATES = ["2023-12-31T23:59:59Z", "2024-05-01T00:00:00Z", "2024-05-01T08:00:30Z", "2024-06-01T00:00:00Z"]

words = st.sampled_from([*MODALITIES, *DATES])
texts = words | st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(NASTY)
numbers = st.sampled_from(NUMBERS[:-1]) | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9)
days = st.sampled_from([*DATES, "2024", "2024-05", "2024-05-01", "2023-12-31", "2024-05-01T10:00:30.5+02:00"])
scalars = texts | numbers | st.booleans()
keys, built_in = st.sampled_from(KEYS), st.sampled_from(BUILT_IN)


@st.composite
def ranges(draw: Any) -> Range:
    field = draw(st.sampled_from([*KEYS, *BUILT_IN]))
    kinds = [days] if field == "modified" else [texts] if field in BUILT_IN else [numbers, texts, days]
    kind = draw(st.sampled_from(kinds))
    low, high = draw(st.sampled_from(["ge", "gt", None])), draw(st.sampled_from(["le", "lt", None]))
    ends = [end for end in (low, high) if end] or ["ge"]
    return Range(field, **{end: draw(kind) for end in ends})


leaves = (
    st.builds(Equals, keys, scalars)
    | st.builds(OneOf, keys, st.lists(scalars, max_size=4))
    | st.builds(Equals, built_in, texts)
    | st.builds(OneOf, built_in, st.lists(texts, max_size=4))
    | st.builds(Prefix, keys | built_in, texts)
    | ranges()
)
filters = st.recursive(
    leaves,
    lambda inner: (
        st.builds(Not, inner)
        | st.lists(inner, max_size=3).map(lambda parts: AllOf(*parts))
        | st.lists(inner, max_size=3).map(lambda parts: AnyOf(*parts))
    ),
    max_leaves=6,
)


def holds(wanted: Filter, item: Item) -> bool:
    match wanted:
        case AllOf(parts):
            return all(holds(part, item) for part in parts)
        case AnyOf(parts):
            return any(holds(part, item) for part in parts)
        case Not(part):
            return not holds(part, item)
        case Equals(field, value):
            return any(same(value, one) for one in values_of(item, field))
        case OneOf(field, values):
            return any(same(value, one) for one in values_of(item, field) for value in values)
        case Prefix(field, prefix):
            own = value_of(item, field)
            return isinstance(own, str) and own.startswith(prefix)
        case Range(field):
            own = value_of(item, field)
            return all(type(own) is type(bound) and COMPARED[end](own, bound) for end, bound in wanted.bounds)
    raise AssertionError(wanted)


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def value_of(item: Item, field: str) -> Any:
    if field in BUILT_IN:
        own = {"id": item.id, "uri": item.source.uri, "modality": item.modality}.get(field, item.meta.get(field, ""))
        return own or None
    return readable(item.meta.get(field))


def values_of(item: Item, field: str) -> list[Any]:
    many = item.meta.get(field) if field not in BUILT_IN else None
    if isinstance(many, list):
        return [readable(one) for one in many] if len(many) <= MAX_LIST else []
    return [value_of(item, field)]


def readable(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return float(value) if abs(value) < 10**300 or isinstance(value, float) else None
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else None


def items(count: int, seed: int = 0) -> list[Item]:
    """Items with metadata of every type, nasty texts and missing values; ids, uris and documents are nasty too."""
    rng = random.Random(seed)

    def value() -> Any:
        return rng.choice([rng.choice(NASTY), rng.choice(NASTY) + rng.choice(NASTY), rng.choice(NUMBERS), True, False])

    def anything() -> Any:
        odd = [None, {"inner": 1}, "x" * (MAX_TEXT + 1), ["t"] * (MAX_LIST + 1), [], [[1]]]
        many = [value() for _ in range(rng.randint(0, 4))]
        return rng.choices([value(), many, rng.choice(odd)], [6, 2, 1])[0]

    rows = []
    for n in range(count):
        meta = {key: anything() for key in KEYS[:-1] if rng.random() < 0.7}
        meta |= {"document": rng.choice(NASTY)} if rng.random() < 0.8 else {}
        meta |= {"modified": rng.choice(DATES)} if rng.random() < 0.8 else {}
        meta |= {"no key": 1, "中": "x", '"] or id != "': "x"}
        source = Source("".join(rng.choices(NASTY, k=2)))
        rows.append(Item(f"{n}{rng.choice(NASTY)}", "cat", source, rng.choice(MODALITIES), meta=meta))
    return rows
