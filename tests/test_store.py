"""The Milvus store: exact items, safe filters, one ranking wherever a row is stored, many processes, crashes."""

from __future__ import annotations

import gc
import json
import math
import random
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.errors import BadInput, StoreError
from triptych.retrievers.base import Hit, Item, MediaRef, Modality, Query, Route, Source, Space, Where
from triptych.retrievers.filters import filter_of
from triptych.retrievers.fusion import by_score, rrf
from triptych.retrievers.stores import lexicon, lite, table
from triptych.retrievers.stores.filters import expression
from triptych.retrievers.stores.milvus import LEXICAL, LITE, MilvusStore
from triptych.retrievers.text.analysis import analyse, terms
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.text.hybrid import Hybrid, RandomTerms

WORKER = Path(__file__).parent / "crash" / "store_worker.py"
DENSE = Space("tiny", "dense", 4)
BOUNDED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = "cat dog fox owl bee ant elk cow hen pig".split()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
fractions = st.floats(0, 1)
sources = st.builds(
    Source,
    uri=texts,
    start=st.integers(0, 2**40),
    end=st.integers(0, 2**40),
    page=st.none() | st.integers(1, 10**6),
    box=st.none() | st.tuples(fractions, fractions, fractions, fractions),
    start_s=st.none() | fractions,
    end_s=st.none() | fractions,
)
items = st.builds(
    Item,
    id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    text=texts,
    source=sources,
    modality=st.sampled_from(["text", "page", "image", "audio", "video"]),
    media=st.none() | st.builds(MediaRef, uri=texts, mime=texts, page=st.none() | st.integers(1, 9), start_s=fractions),
    meta=st.dictionaries(texts, plain_json, max_size=4),
)


def item(name: str, text: str, *, document: str = "d", uri: str = "root/a.txt", modality: Modality = "text") -> Item:
    return Item(name, text, Source(uri, 0, len(text)), modality, meta={"document": document, "title": "-"})


def unit(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, DENSE.dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, range(1, 11), k=rng.randint(3, 12))) for _ in range(count)]


def ids(hits: list[Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MilvusStore]:
    with MilvusStore(tmp_path / "library", [DENSE]) as made:
        yield made


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    """200 rows of random words and vectors, in several segments; half of one document; read only."""
    with MilvusStore(tmp_path_factory.mktemp("animals"), [DENSE]) as made:
        rows = [item(f"i{n:03}", text, document=f"d{n % 2}") for n, text in enumerate(sentences(200))]
        vectors = unit(200)
        for start, end in ((0, 120), (120, 190), (190, 200)):
            made.upsert(rows[start:end], {"tiny": vectors[start:end]})
            if end != 200:
                made.flush()
        yield made


# Items come back as they were


@BOUNDED
@given(given_items=st.lists(items, min_size=1, max_size=5, unique_by=lambda one: one.id))
def test_items_come_back_exactly(store: MilvusStore, given_items: list[Item]) -> None:
    store.upsert(given_items, {})
    wanted = [one.id for one in given_items]
    assert store.get([*wanted, "unknown"]) == given_items
    assert store.get(wanted[::-1]) == given_items[::-1]
    assert store.delete(Where(ids=tuple(wanted))) == len(wanted)
    assert store.count() == 0
    assert store.open()._terms().items == 0


def test_replacing_and_the_last_of_equal_ids(store: MilvusStore) -> None:
    store.upsert([item("a", "cat"), item("a", "dog")], {"tiny": unit(2)})
    store.upsert([item("a", "fox")], {"tiny": unit(1)})
    assert [one.text for one in store.get(["a"])] == ["fox"]
    assert store.count() == 1
    assert store.search([Route(LEXICAL, text="dog")], 5) == []
    assert ids(store.search([Route(LEXICAL, text="foxes")], 5)) == ["a"]


@pytest.mark.parametrize(
    "bad",
    [
        item("a", "x" * 70_000),
        item("a", "中" * 22_000),
        item("a", "half a pair \ud800"),
        item("", "no id"),
        item("i" * 300, "long id"),
        Item("a", "meta", Source("u"), meta={"when": object()}),
        Item("a", "meta", Source("u"), meta={"nan": math.nan}),
        Item("a", "meta", Source("u"), meta={"long": "x" * 70_000}),
    ],
)
def test_what_a_row_cannot_hold_is_refused_before_it_is_sent(store: MilvusStore, bad: Item) -> None:
    with pytest.raises(BadInput):
        store.upsert([item("good", "cat"), bad], {})
    assert store.count() == 0


@pytest.mark.parametrize(
    "vectors",
    [
        {"tiny": np.ones((1, 3))},
        {"tiny": np.ones((2, 4))},
        {"tiny": np.ones(4)},
        {"tiny": np.array([[1, 2, np.nan, 4]])},
        {"tiny": np.array([[1, 2, np.inf, 4]])},
        {"other": np.ones((1, 4))},
    ],
)
def test_wrong_vectors_are_refused(store: MilvusStore, vectors: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadInput):
        store.upsert([item("a", "cat")], vectors)
    assert store.count() == 0


# Filters

nasty = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        '"', "'", "\\", '\\"', '" or id != "', '"] or id in ["a', "%", "_", "a%", "d\n", "\r\n", "\t", "\0", "\x1b",
        "\u2028", '" or true or "', "root/a", 'x" ) || (1==1) || ("', "中", "😀", "\U0010ffff", "\ud7ff", "\ue000",
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def nasty_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MilvusStore, list[Item]]]:
    rng = random.Random(1)
    pool = [
        '"',
        "\\",
        "'",
        "a",
        "%",
        "_",
        "\n",
        "\r",
        "\t",
        "\0",
        "\x1b",
        " or ",
        "]",
        "中",
        "😀",
        "/",
        "\ud7ff",
        "\ue000",
    ]
    rows = []
    for n in range(60):
        name, document, uri = ("".join(rng.choices(pool, k=rng.randint(0, 3))) for _ in range(3))
        rows.append(item(f"{n}{name}", "cat", document=document, uri=uri))
    with MilvusStore(tmp_path_factory.mktemp("nasty"), [DENSE]) as made:
        made.upsert(rows, {"tiny": unit(60)})
        made.flush()
        made.upsert(rows[:20], {"tiny": unit(20)})
        yield made, rows


@BOUNDED
@given(data=st.data())
def test_filters_find_only_what_they_say(nasty_store: tuple[MilvusStore, list[Item]], data: st.DataObject) -> None:
    made, rows = nasty_store
    known_ids, known_documents = [one.id for one in rows], [one.meta["document"] for one in rows]
    where = Where(
        ids=tuple(data.draw(st.lists(nasty | st.sampled_from(known_ids), max_size=3))),
        documents=tuple(data.draw(st.lists(nasty | st.sampled_from(known_documents), max_size=3))),
        uri_prefix=data.draw(nasty | st.sampled_from([one.source.uri for one in rows])),
    )
    wanted = {one.id for one in rows if matches(one, where)}
    assert set(made.ids(where)) == wanted
    assert made.count(where) == len(wanted)
    assert set(ids(made.search([Route(LEXICAL, text="cat")], 100, where))) == wanted
    both = [Route(LEXICAL, text="cat"), Route(DENSE, vector=unit(1)[0])]
    assert set(ids(made.search(both, 100, where))) == wanted


@BOUNDED
@given(document=nasty, prefix=nasty)
def test_delete_removes_only_what_it_says(store: MilvusStore, document: str, prefix: str) -> None:
    rows = [item("a", "cat"), item("b", "dog", document=document), item("c", "fox", uri=f"{prefix}!")]
    store.upsert(rows, {})
    for where in (Where(documents=(document,)), Where(uri_prefix=prefix)):
        if where == Where():
            continue
        gone = {one.id for one in rows if matches(one, where)}
        assert store.delete(where) == len(gone)
        rows = [one for one in rows if one.id not in gone]
        assert store.ids() == [one.id for one in rows]
    store.delete(Where(ids=("a", "b", "c")))


def matches(one: Item, where: Where) -> bool:
    return (
        (not where.ids or one.id in where.ids)
        and (not where.documents or one.meta["document"] in where.documents)
        and one.source.uri.startswith(where.uri_prefix)
    )


def test_deleting_everything_by_mistake(store: MilvusStore) -> None:
    store.upsert([item("a", "cat")], {})
    for everything in (Where(), Where(filter=filter_of({}))):
        with pytest.raises(BadInput):
            store.delete(everything)
    assert store.count() == 1


def test_half_a_surrogate_pair_in_a_filter() -> None:
    with pytest.raises(BadInput):
        expression(Where(documents=("\ud800",)))


# Ranking


def test_lexical_scores_are_bm25_over_the_whole_library(animals: MilvusStore) -> None:
    """The same as the formula over all rows, though the last ten stand in the log and others in two segments."""
    rows = {one.id: terms("-\n" + one.text) for one in animals.items()}
    df = Counter(term for found in rows.values() for term in set(found))
    query = terms("cats or dogs, and a pig pig", "query")
    expected = {}
    for name, found in rows.items():
        norm = lexicon.K1 * (1 - lexicon.B + lexicon.B * len(found) / lexicon.PIVOT)
        parts = [
            math.log(1 + (len(rows) - df[term] + 0.5) / (df[term] + 0.5))
            * found.count(term) * (lexicon.K1 + 1) / (found.count(term) + norm)
            for term in query if term in found
        ]  # fmt: skip
        if parts:
            expected[name] = sum(parts)
    hits = animals.search([Route(LEXICAL, text="cats or dogs, and a pig pig")], 200)
    assert {hit.item.id: pytest.approx(hit.score, rel=1e-5) for hit in hits} == expected
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert min(hit.score for hit in hits) > 0


def test_a_changed_document_keeps_its_rank(store: MilvusStore) -> None:
    """Term statistics are those of the library: a row that is written again, alone in its segment, scores the same."""
    rows = [item(f"i{n:02}", text) for n, text in enumerate(sentences(60, 3))]
    store.upsert(rows, {})
    store.flush()
    before = store.search([Route(LEXICAL, text="cat elk")], 60)
    store.upsert(rows[7:9], {})
    store.flush()
    after = store.search([Route(LEXICAL, text="cat elk")], 60)
    assert [(hit.item.id, round(hit.score, 5)) for hit in after] == [
        (hit.item.id, round(hit.score, 5)) for hit in before
    ]


def test_dense_scores_are_cosines(animals: MilvusStore) -> None:
    vectors, query = unit(200), unit(1, 9)[0]
    hits = animals.search([Route(DENSE, vector=query)], 200)
    cosines = vectors @ query
    assert ids(hits) == [f"i{n:03}" for n in np.argsort(-cosines)]
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_our_rank_fusion_is_milvus_own(animals: MilvusStore, seed: int) -> None:
    lexical = Route(LEXICAL, text=sentences(1, seed + 50)[0])
    dense = Route(DENSE, vector=unit(1, seed + 50)[0])
    fused = animals.search([lexical, dense], 200)
    ours = rrf([animals.search([lexical], 200), animals.search([dense], 200)])
    # Milvus breaks ties inside a route by its own order, so those rows may swap neighbouring ranks.
    lexical_scores = [round(hit.score, 5) for hit in animals.search([lexical], 200)]
    if len(set(lexical_scores)) == len(lexical_scores):
        assert ids(fused) == ids(ours)
    theirs = {hit.item.id: hit.score for hit in fused}
    assert set(theirs) == {hit.item.id for hit in ours}
    tied = Counter(lexical_scores).most_common(1)[0][1]
    for hit in ours:
        assert theirs[hit.item.id] == pytest.approx(hit.score, abs=1e-6 + (tied - 1) / 60**2)


def test_rank_fusion_without_ties_is_exact(store: MilvusStore) -> None:
    rows = [item(f"i{n:02}", " ".join(["cat"] * (n + 1) + ["dog"] * (40 - n))) for n in range(40)]
    vectors = unit(40, 4)
    store.upsert(rows, {"tiny": vectors})
    lexical, dense = Route(LEXICAL, text="cat"), Route(DENSE, vector=unit(1, 5)[0])
    fused, ours = store.search([lexical, dense], 40), rrf([store.search([lexical], 40), store.search([dense], 40)])
    assert ids(fused) == ids(ours)
    assert [hit.score for hit in fused] == pytest.approx([hit.score for hit in ours], abs=1e-7)


def test_a_small_k_is_the_head_of_a_large_one(animals: MilvusStore) -> None:
    routes = [Route(LEXICAL, text="cat owl"), Route(DENSE, vector=unit(1, 6)[0])]
    large = animals.search(routes, 60)
    for k in (1, 2, 10, 50):
        assert animals.search(routes, k) == large[:k]
        assert animals.search(routes[:1], k) == animals.search(routes[:1], 60)[:k]
    assert len(animals.search(routes, 5000)) == 200


def test_weighted_fusion_follows_the_weights(animals: MilvusStore) -> None:
    def top(weight: float) -> str:
        routes = [
            Route(LEXICAL, text="cat", weight=weight),
            Route(DENSE, vector=unit(1, 7)[0], weight=1 - weight),
        ]
        return ids(animals.search(routes, 1, fusion="weighted"))[0]

    assert top(0.0) == ids(animals.search([Route(DENSE, vector=unit(1, 7)[0])], 1))[0]
    assert top(1.0) in ids(animals.search([Route(LEXICAL, text="cat")], 1))
    with pytest.raises(BadInput):
        top(3.0)


def test_ties_are_broken_by_id(store: MilvusStore) -> None:
    names = [f"i{n:03}" for n in range(120)]
    shuffled = random.Random(0).sample(names, len(names))
    store.upsert([item(name, "cat") for name in shuffled], {"tiny": np.ones((120, 4), np.float32)})
    assert ids(store.search([Route(LEXICAL, text="cat")], 7)) == names[:7]
    assert ids(store.search([Route(DENSE, vector=np.ones(4, np.float32))], 7)) == names[:7]


@pytest.mark.parametrize("k", [0, -1, 16_385])
def test_k_outside_its_range(animals: MilvusStore, k: int) -> None:
    with pytest.raises(BadInput, match=f"`{k}`"):
        animals.search([Route(LEXICAL, text="cat")], k)


@pytest.mark.parametrize(
    "route",
    [
        Route(DENSE, vector=np.ones(3)),
        Route(DENSE, vector=np.full(4, np.nan)),
        Route(DENSE),
        Route(LEXICAL),
        Route(Space("other", "dense", 4), vector=np.ones(4)),
    ],
)
def test_routes_that_cannot_be_searched(animals: MilvusStore, route: Route) -> None:
    with pytest.raises(BadInput):
        animals.search([route], 3)
    with pytest.raises(BadInput):
        animals.search([], 3)


def test_rows_without_vectors_wait_for_them(store: MilvusStore) -> None:
    rows = [item("a", "cat"), item("b", "dog")]
    dense, lexical = Route(DENSE, vector=np.ones(4)), Route(LEXICAL, text="cat")
    store.upsert(rows, {})
    assert store.search([dense], 5) == []
    assert ids(store.search([lexical, dense], 5)) == ["a"]
    store.upsert(rows[1:], {"tiny": np.ones((1, 4), np.float32)})
    assert ids(store.search([dense], 5)) == ["b"]
    assert ids(store.search([lexical, dense], 5)) == ["a", "b"]
    assert ids(store.search([Route(LEXICAL, text="unheard"), dense], 5)) == ["b"]
    assert store.search([Route(LEXICAL, text="unheard")], 5) == []


def test_a_store_without_dense_spaces(tmp_path: Path) -> None:
    with MilvusStore(tmp_path / "library") as made:
        made.upsert([item("a", "cat")], {})
        made.flush()
        assert ids(made.search([Route(LEXICAL, text="cat")], 3)) == ["a"]
    with MilvusStore(tmp_path / "library") as made:
        assert ids(made.search([Route(LEXICAL, text="cat")], 3)) == ["a"]


def test_counts_are_exact(store: MilvusStore) -> None:
    assert (store.stats().items, dict(store.stats().by_modality)) == (0, {})
    kinds: list[Modality] = ["text", "page", "page", "image"]
    store.upsert([item(f"i{n}", "cat", modality=kind, document=kind) for n, kind in enumerate(kinds)], {})
    store.flush()
    store.upsert([item("i0", "dog", document="text")], {})
    stats = store.stats()
    assert (stats.items, stats.backend, stats.spaces) == (4, "milvus-lite", ("lexical", "tiny"))
    assert (stats.version.partition("-")[0], stats.can) == ("milvus_lite", ("sparse", "hybrid"))
    assert dict(stats.by_modality) == Counter(kinds)
    assert store.per_document() == Counter(kinds)
    assert sorted(one.id for one in store.items(Where(modalities=("page",)))) == ["i1", "i2"]


# Opening


def test_nothing_heavy_is_imported_and_nothing_opened_before_the_first_call(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from triptych.retrievers.stores.milvus import MilvusStore;"
        f"MilvusStore(Path({str(tmp_path / 'library')!r}));"
        "assert not {'pymilvus', 'milvus_lite', 'grpc', 'pandas', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (tmp_path / "library").exists()


def test_reopening_and_erasing(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    with MilvusStore(folder, [DENSE]) as made:
        made.upsert([item("a", "cat"), item("b", "dog")], {"tiny": unit(2)})
    made.open()
    assert made.count() == 2
    assert ids(made.search([Route(LEXICAL, text="cat"), Route(DENSE, vector=unit(1)[0])], 5)) == ["a", "b"]
    made.erase()
    assert made.count() == 0
    assert made.search([Route(LEXICAL, text="cat")], 5) == []
    made.upsert([item("c", "owl")], {})
    made.close()
    with MilvusStore(folder, [DENSE]) as again:
        assert again.ids() == ["c"]


def test_another_encoder_is_refused_and_may_begin_anew(tmp_path: Path) -> None:
    with MilvusStore(tmp_path, [DENSE]) as made:
        made.upsert([item("a", "cat")], {})
    other = MilvusStore(tmp_path, [Space("other", "dense", 8)])
    with pytest.raises(StoreError, match="--rebuild"):
        other.open()
    other.erase()
    assert other.count() == 0
    other.close()


@pytest.mark.parametrize(
    "content",
    [
        '{"format": 99, "collection": "x", "spaces": []}',
        '{"format": 1, "collection": "x", "spaces": []}',
        '{"format": 2, "collection": "x", "spaces": []}',
        *("{", "[]", "\0"),
    ],
)
def test_another_or_damaged_description(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    made = MilvusStore(tmp_path, [DENSE])
    with pytest.raises(StoreError, match="--rebuild"):
        made.open()
    made.erase()
    assert made.count() == 0
    made.close()


def test_a_damaged_manifest_can_be_erased(tmp_path: Path) -> None:
    made = MilvusStore(tmp_path, [DENSE]).open()
    made.upsert([item("a", "cat")], {})
    made.close()
    for manifest in (tmp_path / LITE).rglob("manifest.json*"):
        manifest.write_text("{")
    with pytest.raises(StoreError) as caught:
        made.open()
    assert str(tmp_path) not in str(caught.value)
    made.erase()
    made.upsert([item("b", "dog")], {})
    assert made.ids() == ["b"]
    made.close()


def test_a_lost_segment_shows_in_the_count(tmp_path: Path) -> None:
    made = MilvusStore(tmp_path, [DENSE]).open()
    made.upsert([item("a", "cat")], {})
    made.flush()
    made.upsert([item("b", "dog")], {})
    made.close()
    sorted((tmp_path / LITE).rglob("data_*.parquet"))[0].unlink()
    made.open()
    assert (made.count(), made.ids(), made.per_document()) == (1, ["b"], {"d": 1})
    made.close()


@pytest.mark.parametrize("harm", ["interrupt", "garbage", "remove"])
def test_term_statistics_are_mended_at_the_next_write(tmp_path: Path, harm: str) -> None:
    made = MilvusStore(tmp_path, [DENSE]).open()
    made.upsert([item("a", "cat"), item("b", "cat dog")], {})
    made._terms().begin()
    made.close()
    if harm == "garbage":
        (tmp_path / "lexicon.sqlite").write_bytes(b"no database at all" * 100)
    elif harm == "remove":
        (tmp_path / "lexicon.sqlite").unlink()
        broken = lexicon.Lexicon(tmp_path / "lexicon.sqlite")
        broken.begin()
        broken.close()
    made.open()
    made.upsert([item("c", "fox")], {})
    assert made._terms().items == 3
    assert ids(made.search([Route(LEXICAL, text="cat")], 5)) == ["a", "b"]
    made.close()


def test_many_threads_open_one_new_folder_once(tmp_path: Path) -> None:
    stores = [MilvusStore(tmp_path, [DENSE]) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(MilvusStore.open, stores))
    stores[0].upsert([item("a", "cat")], {})
    assert [one.count() for one in stores] == [1] * 8
    assert len({id(one._connection.link.client) for one in stores}) == 1
    for one in stores:
        one.close()
    assert not lite.address_file(tmp_path / LITE).exists()


def test_eight_threads_answer_as_one(animals: MilvusStore) -> None:
    def ask(n: int) -> list[tuple[str, float]]:
        routes = [Route(LEXICAL, text=sentences(1, n)[0]), Route(DENSE, vector=unit(1, n)[0])]
        return [(hit.item.id, hit.score) for hit in animals.search(routes, 20)]

    serial = [ask(n) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == serial


def test_writers_and_readers_at_once(store: MilvusStore) -> None:
    def write(n: int) -> None:
        store.upsert([item(f"w{n}-{m}", "cat dog", document=f"w{n}") for m in range(5)], {"tiny": unit(5, n)})
        if n % 3 == 0:
            store.flush()

    def read(n: int) -> int:
        return len(store.search([Route(LEXICAL, text="cat")], 100))

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda n: read(n) if n % 2 else write(n), range(24)))
    assert store.count() == 60 == store._terms().items
    assert all(found is None or found % 5 == 0 for found in seen)


def test_an_unreachable_server_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = MilvusStore(tmp_path, [DENSE], f"http://user:secret@127.0.0.1:{port}")
    with pytest.raises(StoreError, match=f"127.0.0.1:{port}") as caught:
        made.open()
    assert "secret" not in str(caught.value)


# Several processes


class Worker:
    """Another process with the same store (see `crash/store_worker.py`)."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        assert self.answer() == "ready"

    def send(self, **command: object) -> None:
        self.stdin.write(json.dumps(command) + "\n")
        self.stdin.flush()

    def answer(self) -> Any:
        return json.loads(self.stdout.readline())

    def __call__(self, **command: object) -> Any:
        self.send(**command)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.stdin.close()
        self.process.wait(30)
        self.stdout.close()


def test_a_second_process_searches_and_writes_and_takes_over(tmp_path: Path) -> None:
    first = Worker(tmp_path)
    first(op="add", items=[["a", "cat", "da"], ["b", "dog", "db"]])
    with MilvusStore(tmp_path, [DENSE]) as second:
        assert not second._connection.link.holds
        assert ids(second.search([Route(LEXICAL, text="cat")], 5)) == ["a"]
        second.upsert([item("c", "cat fox")], {"tiny": unit(1)})
        assert {name for name, _ in first(op="search", text="cat")} == {"a", "c"}
        assert (first(op="delete", document="db"), second.count()) == (1, 2)

        first.kill()
        assert ids(second.search([Route(LEXICAL, text="cat")], 5)) == ["a", "c"]
        assert second._connection.link.holds
        second.upsert([item("d", "owl")], {})
        assert second._terms().items == 3

        third = Worker(tmp_path)
        assert third(op="search", text="owl")[0][0] == "d"
        third(op="add", items=[["e", "bee", "de"]])
        assert ids(second.search([Route(LEXICAL, text="bee")], 5)) == ["e"]
    assert third(op="count") == 4
    third(op="add", items=[["f", "ant", "df"]])
    third.end()
    with MilvusStore(tmp_path, [DENSE]) as last:
        assert last.ids() == ["a", "c", "d", "e", "f"]


def test_an_address_that_belongs_to_somebody_else_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lite, "_PATIENCE_S", 1.0)
    holder = Worker(tmp_path / "mine")
    with MilvusStore(tmp_path / "other", [DENSE]) as other:
        other.upsert([item("x", "not yours")], {})
        address = lite.address_file(tmp_path / "mine" / LITE)
        right = address.read_text()
        mine = MilvusStore(tmp_path / "mine", [DENSE])
        for wrong in (json.dumps({"url": other._connection.link.url}), '{"url": "http://192.0.2.1:19530"}', "{", ""):
            address.write_text(wrong)
            with pytest.raises(StoreError, match="another process"):
                mine.open()
        address.write_text(right)
        assert mine.count() == 0
        mine.close()
    holder.end()


def test_kill_nine_while_writing_loses_nothing_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(5)
    acknowledged: dict[str, int] = {}
    for n in range(5):
        worker = Worker(tmp_path)
        worker.send(op="stream", name=f"r{n}")
        acknowledged[f"r{n}"] = worker.answer()
        until = time.monotonic() + rng.uniform(0.0, 0.6)
        while time.monotonic() < until:
            acknowledged[f"r{n}"] = worker.answer()
        worker.process.kill()
        for line in worker.stdout:
            acknowledged[f"r{n}"] = json.loads(line)
        worker.end()
        assert isinstance(acknowledged[f"r{n}"], int), acknowledged
    with MilvusStore(tmp_path, [DENSE]) as made:
        present = set(made.ids())
        for name, count in acknowledged.items():
            assert {f"{name}-{n}" for n in range(count)} <= present
        assert len(present) <= sum(acknowledged.values()) + 10 * len(acknowledged)
        made.upsert([item("last", "cat")], {})
        assert made._terms().items == made.count() == len(present) + 1
        for name, count in acknowledged.items():
            assert ids(made.search([Route(LEXICAL, text=f"word{count - 1}")], 9, Where(ids=(f"{name}-{count - 1}",))))


def test_a_full_disk_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    size = 20_000
    worker(op="add", items=[["a", "cat", "da"]])
    worker(op="limit", bytes=150_000)
    failed: Any = None
    added = ["a"]
    for n in range(40):
        answer = worker(op="add", items=[[f"b{n}", "dog " * (size // 4), f"db{n}"]])
        if answer != 1:
            failed = answer
            break
        added.append(f"b{n}")
    assert failed["error"]["type"] == "StoreError"
    assert "disk space" in failed["error"]["hint"]
    assert str(tmp_path) not in json.dumps(failed)
    assert worker(op="count") == len(added)
    worker(op="limit", bytes=100_000_000)
    assert worker(op="add", items=[["c", "fox", "dc"]]) == 1
    worker.kill()
    with MilvusStore(tmp_path, [DENSE]) as made:
        assert set(made.ids()) >= {*added, "c"}
        assert ids(made.search([Route(LEXICAL, text="fox")], 3)) == ["c"]


def wait_for(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_server_by_its_address(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "server"), "--host"]
    server = subprocess.Popen([*command, "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        made = MilvusStore(tmp_path / "library", [DENSE], f"http://127.0.0.1:{port}")
        with made, MilvusStore(tmp_path / "library", [DENSE], f"http://127.0.0.1:{port}") as second:
            made.upsert([item("a", "cat"), item("b", "dog")], {"tiny": unit(2)})
            routes = [Route(LEXICAL, text="cat"), Route(DENSE, vector=unit(1)[0])]
            assert ids(second.search(routes, 5)) == ["a", "b"]
            assert second.delete(Where(ids=("b",))) == 1
            made.erase()
            assert second.count() == 0
            second.upsert([item("c", "owl")], {})
            assert made.ids() == ["c"]
        assert not (tmp_path / "library" / LITE).exists()
    finally:
        server.kill()
        server.wait()


# Analysis and the retrievers over the store


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The API_KEY of parseHTML_v2", "api_key api key parsehtml_v2 pars html"),
        ("COVID-19, e-mail; HTMLParser's APIs", "covid19 covid 19 email e mail htmlparser html parser api"),
        ("1,000 genomes 3.14 v1.2.3 2.5mg", "1000 genom 3.14 v1.2.3 2.5 mg"),
        ("running runners ran don’t", "run runner ran don't"),
        ("STRASSE straße ﬁne café", "strass strass fine café"),
        ("茶道文化 API接口", "茶道 道文 文化 茶 道 文 化 api 接口 接 口"),
        ("हिन्दी में", "हिन्दी में"),
        ("", ""),
        ("the of and", ""),
        ("😀 — … \0", ""),
    ],
)
def test_terms(text: str, found: str) -> None:
    assert sorted(analyse(text).split()) == sorted(found.split())


def test_queries_leave_out_single_characters_unless_they_stand_alone() -> None:
    assert analyse("茶道 书", "query") == "茶道 书"


@given(texts)
def test_analysis_is_total_and_queries_find_their_own_text(text: str) -> None:
    document, query = terms(text), terms(text, "query")
    assert set(query) <= set(document)
    assert all(term and not term.isspace() for term in document)
    assert terms(text) == document


@given(st.lists(st.text(min_size=1, max_size=8), max_size=30))
def test_item_vectors_are_fit_for_milvus(found: list[str]) -> None:
    weights = lexicon.item_weights(found)
    assert weights
    assert all(0 <= dim < 2**32 - 1 and 0 < weight < lexicon.K1 + 1 + 1e-9 for dim, weight in weights.items())


@pytest.mark.parametrize("system", [BM25, Hybrid])
def test_retrievers_find_save_and_open(system: type[BM25] | type[Hybrid], tmp_path: Path) -> None:
    made = system.tiny(1)
    assert made.search(Query("cat"), 3) == []
    rows = [item(f"i{n}", text, document=f"d{n}") for n, text in enumerate(sentences(30))]
    made.add(rows)
    hits = made.search(Query("cats and owls"), 10)
    assert hits
    assert len(made.search(Query("cats and owls"), 100)) <= 30
    made.save(tmp_path / "saved")
    opened = (
        Hybrid.open(tmp_path / "saved", made.encoder) if isinstance(made, Hybrid) else BM25.open(tmp_path / "saved")
    )
    assert opened.search(Query("cats and owls"), 10) == hits
    assert made.delete(Where(documents=("d0", "d1"))) == 2
    assert (made.stats().items, opened.stats().items) == (28, 30)
    opened.store.close()
    for bad in (Query(""), Query(" \n"), Query(None)):
        with pytest.raises(BadInput):
            made.search(bad, 3)
    with pytest.raises(BadInput):
        made.search(Query("cat"), 0)


def test_hybrid_without_its_encoder_is_bm25_until_the_items_come_again(tmp_path: Path) -> None:
    encoder = RandomTerms(0)
    rows = [item(f"i{n}", text) for n, text in enumerate(sentences(20))]
    with MilvusStore(tmp_path, [encoder.space]) as made:
        before = Hybrid(made, None)
        before.add(rows)
        assert before.mode == "lexical"
        plain = before.search(Query("cat owl"), 5)
        after = Hybrid(made, encoder)
        assert ids(after.search(Query("cat owl"), 5)) == ids(plain)
        after.add(rows)
        assert len(after.search(Query("cat owl"), 20)) == 20 > len(before.search(Query("cat owl"), 20))
        with pytest.raises(StoreError):
            Hybrid(MilvusStore(tmp_path / "other"), encoder)


def test_titles_and_headings_are_searched_and_never_become_text(store: MilvusStore) -> None:
    one = Item("a", "plain words", Source("root/x.txt"), meta={"title": "Handbook", "headings": ["Travel costs"]})
    BM25(store).add([one])
    for query in ("handbook", "travel", "plain"):
        assert BM25(store).search(Query(query), 3)[0].item == one


def test_ranks_of_several_lists() -> None:
    a, b, c = (item(name, name) for name in "abc")
    first, second = [Hit(b, 9.0), Hit(a, 3.0)], [Hit(c, 0.2), Hit(a, 0.1)]
    assert [(hit.item.id, hit.score) for hit in rrf([first, second])] == [("a", 2 / 62), ("b", 1 / 61), ("c", 1 / 61)]
    assert ids(rrf([first, second], weights=[0.0, 1.0]))[:1] == ["c"]
    assert rrf([]) == rrf([[], []]) == []
    with pytest.raises(BadInput):
        rrf([first], weights=[1.0, 2.0])
    with pytest.raises(BadInput):
        rrf([first], k=-1)


def test_weighted_scores_are_shares_of_the_way_from_the_least_to_the_best() -> None:
    words, meaning = [("a", 8.0), ("b", 2.0)], [("c", 0.6), ("a", 0.2), ("d", -1.0)]
    fused = by_score([words, meaning], [0.25, 0.75], [0.0, -1.0])
    assert dict(fused) == pytest.approx({"a": 0.25 + 0.75 * 1.2 / 1.6, "b": 0.25 / 4, "c": 0.75, "d": 0.0})
    assert [id_ for id_, _ in fused] == ["a", "c", "b", "d"]
    assert by_score([[("b", 3.0), ("a", 3.0)], []], [1.0, 1.0], [0.0, 0.0]) == [("a", 1.0), ("b", 1.0)]
    assert by_score([[("a", -0.5)]], [1.0], [0.0]) == [("a", 0.0)]


# An index of vectors


CLOUD = Space("cloud", "dense", 24)


def cloud(rows: int, seed: int = 0) -> np.ndarray:
    """Vectors around some centres, as those of texts are, of unit length."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(20, CLOUD.dim))[rng.integers(0, 20, rows)] + rng.normal(scale=0.7, size=(rows, CLOUD.dim))
    unit_: np.ndarray = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return unit_


def exact(vectors: np.ndarray, query: np.ndarray, k: int, among: Sequence[int] | None = None) -> list[str]:
    rows = np.arange(len(vectors)) if among is None else np.array(among)
    return [f"i{rows[n]:04}" for n in np.argsort(-(vectors[rows] @ query), kind="stable")[:k]]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MilvusStore, np.ndarray]]:
    """A store whose vectors have an index, with rows written before and after it was made."""
    vectors, folder = cloud(3000), tmp_path_factory.mktemp("indexed")
    patch = pytest.MonkeyPatch()
    patch.setattr(table, "LARGE", 2000)
    patch.setattr(table, "_FEW", 50)
    with MilvusStore(folder, [CLOUD]) as store:
        rows = [item(f"i{n:04}", f"fox {n % 7}", uri=f"root/{n % 100}/{n % 3}.txt") for n in range(3000)]
        store.upsert(rows[:2500], {"cloud": vectors[:2500]})
        assert store._table._index_of("cloud") == "FLAT"
        store.settle()
        assert store._table._index_of("cloud") == "HNSW"
        store.upsert(rows[2500:], {"cloud": vectors[2500:]})
        store.settle()
        yield store, vectors
    patch.undo()


def test_an_index_finds_what_exact_search_finds(indexed: tuple[MilvusStore, np.ndarray]) -> None:
    store, vectors = indexed
    recalls = []
    for query in cloud(50, seed=9):
        found = [hit.item.id for hit in store.search([Route(CLOUD, query)], 10)]
        recalls.append(len({*found} & {*exact(vectors, query, 10)}) / 10)
    assert sum(recalls) / len(recalls) >= 0.98


@pytest.mark.parametrize("prefix", ["root/7/", "root/1"])
def test_a_filter_loses_nothing_to_the_index(indexed: tuple[MilvusStore, np.ndarray], prefix: str) -> None:
    store, vectors = indexed
    among = [n for n in range(3000) if f"root/{n % 100}/".startswith(prefix)]
    where = Where(uri_prefix=prefix)
    recalls = []
    for query in cloud(20, seed=11):
        found = [hit.item.id for hit in store.search([Route(CLOUD, query)], 10, where)]
        assert len(found) == 10
        recalls.append(len({*found} & {*exact(vectors, query, 10, among)}) / 10)
    assert sum(recalls) / len(recalls) >= 0.98
    fused = store.search([Route(CLOUD, vectors[7]), Route(LEXICAL, text="fox")], 10, where)
    assert all(hit.item.source.uri.startswith(prefix) for hit in fused) and len(fused) == 10


def test_rows_without_a_vector_are_not_found_by_one(tmp_path: Path) -> None:
    with MilvusStore(tmp_path, [DENSE]) as store:
        store.upsert([item("a", "cat"), item("b", "dog")], {"tiny": unit(2)})
        assert store._leg(Route(DENSE, unit(1)[0]), None).filter == ""  # type: ignore[union-attr]
        store.upsert([item("c", "cow")], {})
        assert {hit.item.id for hit in store.search([Route(DENSE, unit(1)[0])], 5)} == {"a", "b"}
        store.upsert([item("c", "cow")], {"tiny": unit(1, seed=4)})
        assert store._leg(Route(DENSE, unit(1)[0]), None).filter == ""  # type: ignore[union-attr]
        assert len(store.search([Route(DENSE, unit(1)[0])], 5)) == 3
    with sqlite3.connect(tmp_path / "lexicon.sqlite") as old:  # as before missing vectors were counted
        old.execute("PRAGMA user_version = 0")
    old.close()
    with MilvusStore(tmp_path, [DENSE]) as store:
        assert store._leg(Route(DENSE, unit(1)[0]), None).filter == "has_tiny == true"  # type: ignore[union-attr]
        store.upsert([item("d", "elk")], {"tiny": unit(1)})
        assert store._leg(Route(DENSE, unit(1)[0]), None).filter == ""  # type: ignore[union-attr]


# --- temporary stores ------------------------------------------------------------------------------------------------


def gone(folder: Path) -> bool:
    """Within ten seconds."""
    until = time.monotonic() + 10
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return not folder.exists()


def test_a_temporary_store_goes_with_its_retriever_even_while_the_stores_are_locked() -> None:
    found = BM25.tiny()
    found.add([item("a", "some words")])
    folder = found.store.folder
    with lite._links_lock:  # whoever holds it may be the thread that collects the store
        del found
        gc.collect()
    assert gone(folder)


def test_temporary_stores_that_are_left_go_at_the_end_of_the_process() -> None:
    script = (
        "from triptych.retrievers.text.bm25 import BM25; from triptych.retrievers.base import Item, Source;"
        "one = BM25.tiny(); one.add([Item('a', 'words', Source('a.md'))]); print(one.store.folder)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert not Path(done.stdout.strip()).exists()
