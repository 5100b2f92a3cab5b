"""Filters: typed, checked, and on Milvus Lite the same answers as plain Python gives (other servers: see
`test_store_servers`)."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych import Settings, Triptych
from triptych.errors import BadInput
from triptych.retrievers.base import Item, Route, Source, Space, Where
from triptych.retrievers.filters import (
    MAX_DEPTH,
    MAX_LEAVES,
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
    filter_of,
)
from triptych.retrievers.stores.filters import expression, facets
from triptych.retrievers.stores.milvus import LEXICAL, MilvusStore
from triptych.tools import calls
from triptych.tools.arguments import SearchArguments, parse
from triptych.tools.schemas import SearchOut

sys.path.append(str(Path(__file__).parent))
from filter_oracle import NASTY, filters, holds, items, texts

DENSE = Space("tiny", "dense", 4)
ITEMS = items(80)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    """Rows in a segment, and some of them written again into the log."""
    with MilvusStore(tmp_path_factory.mktemp("filtered"), [DENSE]) as made:
        made.upsert(ITEMS, {"tiny": np.ones((len(ITEMS), 4))})
        made.flush()
        made.upsert(ITEMS[:20], {"tiny": np.ones((20, 4))})
        yield made


def found(store: MilvusStore, where: Where) -> set[str]:
    return set(store.ids(where))


@settings(max_examples=300)
@given(wanted=filters)
def test_filters_mean_what_they_say(store: MilvusStore, wanted: Filter) -> None:
    assert found(store, Where(filter=wanted)) == {one.id for one in ITEMS if holds(wanted, one)}


@given(wanted=filters, prefix=texts)
def test_filters_join_the_other_parts_and_bound_searches(store: MilvusStore, wanted: Filter, prefix: str) -> None:
    where = Where(modalities=("text", "page"), uri_prefix=prefix, filter=wanted)
    expected = {
        one.id
        for one in ITEMS
        if one.modality in where.modalities and one.source.uri.startswith(prefix) and holds(wanted, one)
    }
    assert store.count(where) == len(expected)
    lexical, dense = Route(LEXICAL, text="cat"), Route(DENSE, vector=np.ones(4))
    for routes in ([lexical], [dense], [lexical, dense]):
        assert {hit.item.id for hit in store.search(routes, 100, where)} == expected


@given(text=texts, field=st.sampled_from(["id", "uri", "document", "author", "tags"]))
def test_no_text_leaves_its_quotes(store: MilvusStore, text: str, field: str) -> None:
    """Nothing that a value says widens the filter, also not where a delete would use it."""
    for wanted in (Equals(field, text), OneOf(field, [text, "x"]), Prefix(field, text), Range(field, ge=text, le=text)):
        narrowed = AllOf(Equals("id", ITEMS[0].id), wanted)
        assert found(store, Where(filter=narrowed)) <= {ITEMS[0].id}
        assert found(store, Where(filter=wanted)) == {one.id for one in ITEMS if holds(wanted, one)}


@pytest.mark.parametrize(
    "field", [*(word for word in NASTY if not re.fullmatch(r"\w+", word, re.ASCII)), "x" * 65, "1"]
)
def test_no_text_becomes_a_field(field: str) -> None:
    for make in (Equals, Prefix, Range):
        with pytest.raises(BadInput, match="no field"):
            make(field, "x")
    with pytest.raises(BadInput, match="no field"):
        OneOf(field, ["x"])


def test_a_key_that_looks_like_one_of_ours_stands_in_quotes(tmp_path: Path) -> None:
    one = Item("a", "cat", Source("u"), meta={"s_author": "x", "facets": "y", "lexical": "z", "text": "t"})
    with MilvusStore(tmp_path, [DENSE]) as made:
        made.upsert([one], {})
        for key, value in one.meta.items():
            assert made.ids(Where(filter=Equals(key, value))) == ["a"]
            assert made.ids(Where(filter=Not(Equals(key, value)))) == []
        assert made.delete(Where(filter=Equals("author", "x"))) == 0
        assert made.delete(Where(filter=Equals("text", "t"))) == 1


def test_dates() -> None:
    noon = datetime(2024, 5, 1, 12, 0, 30, 500_000, tzinfo=UTC)
    assert Range("modified", ge=noon) == Range("modified", ge="2024-05-01T12:00:30Z")
    assert Range("modified", lt=noon.astimezone(timezone(timedelta(hours=8)))).lt == "2024-05-01T12:00:30Z"
    day = date(2024, 5, 1)
    at = {"before": "2024-04-30T23:59:59Z", "on": "2024-05-01T23:59:59Z", "after": "2024-05-02T00:00:00Z"}
    rows = {name: Item(name, "-", Source("u"), meta={"modified": text}) for name, text in at.items()}
    rows["unknown"] = Item("unknown", "-", Source("u"))
    for bounds, names in (
        ({"ge": day}, {"on", "after"}),
        ({"gt": day}, {"after"}),
        ({"le": day}, {"before", "on"}),
        ({"lt": day}, {"before"}),
        ({"ge": day, "le": day}, {"on"}),
    ):
        assert {name for name, row in rows.items() if holds(Range("modified", **bounds), row)} == names
        texts = {end: bound.isoformat() for end, bound in bounds.items()}
        assert Range("modified", **texts) == Range("modified", **bounds)
    assert {name for name, row in rows.items() if holds(Range("modified", le="2024"), row)} == set(at)
    assert {name for name, row in rows.items() if holds(Range("modified", gt="2024-04"), row)} == {"on", "after"}
    with pytest.raises(BadInput, match="no zone"):
        Range("modified", ge=noon.replace(tzinfo=None))
    for wrong in ("yesterday", "", "2024-13-45T00:00:00Z", 2024):
        with pytest.raises(BadInput):
            Range("modified", ge=wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Equals("year", float("nan")),
        lambda: Equals("year", 10**400),
        lambda: Equals("author", "x" * (MAX_TEXT + 1)),
        lambda: Equals("author", None),  # type: ignore[arg-type]
        lambda: Equals("author", ["x"]),  # type: ignore[arg-type]
        lambda: OneOf("year", list(range(MAX_LIST + 1))),
        lambda: Prefix("year", 3),  # type: ignore[arg-type]
        lambda: Range("year"),
        lambda: Range("year", ge=1, le="2"),
        lambda: Range("draft", ge=True),
        lambda: AllOf("author"),  # type: ignore[arg-type]
        lambda: AnyOf(*[Equals("year", 1)] * (MAX_LEAVES + 1)),
    ],
)
def test_what_cannot_be_compared_is_refused(make: Any) -> None:
    with pytest.raises(BadInput):
        make()


def test_depth_is_bounded() -> None:
    wanted: Filter = Equals("year", 1)
    for _ in range(MAX_DEPTH - 1):
        wanted = Not(wanted)
    with pytest.raises(BadInput, match="levels"):
        Not(wanted)
    hostile: Any = {"year": 1}
    for _ in range(5_000):
        hostile = {"not": hostile}
    with pytest.raises(BadInput, match="levels"):
        filter_of(hostile)


def test_the_widest_filters_are_answered(store: MilvusStore) -> None:
    wide = AnyOf(*(Equals("year", n) for n in range(MAX_LEAVES)))
    listed = OneOf("year", list(range(MAX_LIST)))
    expected = {one.id for one in ITEMS if holds(wide, one)}
    assert found(store, Where(filter=wide)) == found(store, Where(filter=listed)) == expected != set()


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(BadInput, match="Unicode"):
        expression(Where(filter=Equals("author", "\ud800")))


def test_facets_hold_what_can_be_filtered_by() -> None:
    meta = {"a": "x", "b": 2, "c": True, "d": ["x", 2, False, None], "e": None, "f": {"g": 1}, "no key": 1, "uri": "x"}
    assert facets(meta) == {"s_a": "x", "n_b": 2.0, "b_c": True, "l_d": ["sx", "n2.0", "bfalse"]}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, AllOf()),
        ({"author": "Bob"}, AllOf(Equals("author", "Bob"))),
        ({"author": ["Ann", "Bob"]}, AllOf(OneOf("author", ["Ann", "Bob"]))),
        ({"uri": {"prefix": "a/"}}, AllOf(Prefix("uri", "a/"))),
        ({"year": {"ge": 2020, "lt": 2024}}, AllOf(Range("year", ge=2020, lt=2024))),
        ({"modified": {"le": "2024-05-01"}}, AllOf(Range("modified", le=date(2024, 5, 1)))),
        ({"not": {"draft": True}}, AllOf(Not(AllOf(Equals("draft", True))))),
        ({"any": [{"a": 1}, {"b": 2}]}, AllOf(AnyOf(AllOf(Equals("a", 1)), AllOf(Equals("b", 2))))),
        ({"all": []}, AllOf(AllOf())),
    ],
)
def test_filters_from_json(given: Any, wanted: Filter) -> None:
    assert filter_of(json.loads(json.dumps(given))) == wanted


@pytest.mark.parametrize(
    "given",
    [
        *("x", [], None, 3, {"year": {}}, {"year": {"ge": 1, "prefix": "x"}}, {"year": {"between": [1, 2]}}),
        *({"any": {"a": 1}}, {"not": [{"a": 1}]}, {"a b": 1}, {"a": None}, {"a": [[1]]}, {"year": {"ge": [1]}}),
    ],
)
def test_json_that_is_no_filter(given: Any) -> None:
    with pytest.raises(BadInput):
        filter_of(given)


def test_a_library_filters_by_the_time_of_its_files(bare_home: Path, tmp_path: Path) -> None:
    """From the file to the tools' `where`; without weights, so by words alone."""
    for name, year in (("old.txt", 2019), ("new.txt", 2024)):
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"The ferry of {name} leaves at nine.")
        seconds = (year - 1970) * 31_556_952 + 10_000_000
        os.utime(path, (seconds, seconds))
    with Triptych("dated", Settings.load()) as library:
        library.index(tmp_path / "files")

        def names(where: dict[str, Any]) -> set[str]:
            given = parse(SearchArguments, {"query": "ferry", "where": where})
            result = calls.search(library, given).result
            assert isinstance(result, SearchOut)
            return {hit.title for hit in result.hits}

        assert names({}) == {"old.txt", "new.txt"}
        assert names({"modified": {"ge": "2020"}}) == {"new.txt"}
        assert names({"modified": {"le": "2019"}}) == {"old.txt"}
        assert names({"not": {"modified": {"ge": "2020"}}}) == {"old.txt"}
        assert names({"mime": {"prefix": "text/"}, "uri": {"prefix": "files/o"}}) == {"old.txt"}
        with pytest.raises(BadInput, match="no field"):
            names({'a" or "': 1})
        found = library.search("ferry", where=Where(filter=Range("modified", ge=date(2024, 1, 1))))
        assert [hit.title for hit in found.hits] == ["new.txt"]
        modified = library.fetch(found.hits[0].id).metadata["modified"]
        assert re.fullmatch(r"2024-\d\d-\d\dT\d\d:\d\d:\d\dZ", modified)
