"""The store on real servers: Milvus 2.3.5 (dense only, with users), `milvus-lite server` over TCP, and Milvus Lite in
its folder give the same answers. `make test-milvus` installs the first and runs this; nothing here runs without it."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from triptych import Settings, Triptych
from triptych.errors import BadInput, StoreError, Unsupported
from triptych.retrievers.base import Hit, Item, Query, Route, Source, Space, Where
from triptych.retrievers.filters import Equals, Filter, Range
from triptych.retrievers.stores import capabilities, table, vectors
from triptych.retrievers.stores.layouts import Items
from triptych.retrievers.stores.lite import client_of
from triptych.retrievers.stores.milvus import DEPTH, LEXICAL, LITE, MilvusStore
from triptych.retrievers.stores.vectors import VectorStore
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.text.hybrid import Hybrid, RandomTerms

sys.path.append(str(Path(__file__).parent))
from filter_oracle import filters, holds, items
from milvus_servers import USER, lite_server, milvus

pytestmark = pytest.mark.milvus

DENSE = Space("tiny", "dense", 4)
PRODUCTS = Space("products", "dense", 4, "ip")
OLD = "v2.3.5"
SECRET = "Pa55-of-the-tests"


@dataclass(frozen=True)
class Backend:
    """Where a store can be."""

    name: str
    uri: str = ""
    token: str = ""

    def store(self, folder: Path, *spaces: Space) -> MilvusStore:
        return MilvusStore(folder, spaces, self.uri, token=self.token)


@pytest.fixture(scope="session")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """With a password that stands nowhere else."""
    user, _, password = USER.partition(":")
    with milvus(tmp_path_factory.mktemp("milvus")) as uri:
        client = client_of(uri, 10, USER)
        client.update_password(user, password, SECRET)
        client.close()
        yield Backend("milvus", uri, f"{user}:{SECRET}")


@pytest.fixture(scope="session")
def tcp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with lite_server(tmp_path_factory.mktemp("lite")) as uri:
        yield Backend("tcp", uri)


@pytest.fixture(scope="session", params=["folder", "tcp", "milvus"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the three in turn."""
    if request.param == "folder":
        return Backend("folder")
    found: Backend = request.getfixturevalue({"tcp": "tcp_server", "milvus": "old_server"}[request.param])
    return found


def unit(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, DENSE.dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def passage(name: str, text: str = "cat", **meta: Any) -> Item:
    return Item(name, text, Source("root/a.txt", 0, len(text)), meta=meta)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


# Filters

FILTERED = items(80)


@pytest.fixture(scope="module")
def filtered(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    with backend.store(tmp_path_factory.mktemp("filtered"), DENSE) as made:
        made.upsert(FILTERED, {"tiny": np.ones((len(FILTERED), 4))})
        made.upsert(FILTERED[:20], {"tiny": np.ones((20, 4))})
        yield made


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(wanted=filters)
def test_filters_answer_as_plain_python(filtered: MilvusStore, wanted: Filter) -> None:
    """Through searches, because a server makes every query for the newest state wait."""
    expected = {one.id for one in FILTERED if holds(wanted, one)}
    found = filtered.search([Route(DENSE, vector=np.ones(4))], 100, Where(filter=wanted))
    assert set(ids(found)) == expected


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(wanted=filters)
def test_ids_and_counts_are_filtered_alike(filtered: MilvusStore, wanted: Filter) -> None:
    expected = {one.id for one in FILTERED if holds(wanted, one)}
    where = Where(filter=wanted)
    assert set(filtered.ids(where)) == expected
    assert filtered.count(where) == len(expected)


def test_a_hostile_value_deletes_nothing_else(backend: Backend, tmp_path: Path) -> None:
    with backend.store(tmp_path, DENSE) as made:
        made.upsert([passage("kept", author="Ann")], {"tiny": unit(1)})
        for text in ('" or id != "', '"] or id in ["kept', "\\", '\\" or true or "', "x\n\r\t\0", "中😀"):
            rows = [passage("b", author=text, document=text), passage("c", tags=[text, "x"])]
            made.upsert(rows, {"tiny": unit(2)})
            assert made.delete(Where(documents=(text,), filter=Equals("author", text))) == 1
            assert made.ids() == ["c", "kept"]
            assert made.delete(Where(filter=Equals("tags", text))) == 1
            assert made.delete(Where(uri_prefix=text)) == 0
            assert made.ids() == ["kept"]


# Ranking against numpy


def ranked_by(scores: np.ndarray) -> list[str]:
    return [f"i{n:03}" for n in np.argsort(-scores, kind="stable")]


def fused_by_rank(*scores: np.ndarray) -> list[tuple[str, float]]:
    """RRF with numpy: scores without ties, an item that a route does not give has NaN there."""
    total = np.zeros(len(scores[0]))
    for route in scores:
        order = np.argsort(-np.where(np.isnan(route), -np.inf, route), kind="stable")
        ranks = np.empty(len(route))
        ranks[order] = np.arange(1, len(route) + 1)
        total += np.where(np.isnan(route), 0.0, 1 / (60 + ranks))
    return best(total)


def fused_by_score(weights: list[float], least: list[float], *scores: np.ndarray) -> list[tuple[str, float]]:
    total = np.zeros(len(scores[0]))
    for weight, floor, route in zip(weights, least, scores, strict=True):
        total += weight * np.nan_to_num(np.clip((route - floor) / (np.nanmax(route) - floor), 0, None))
    return best(total)


def best(total: np.ndarray) -> list[tuple[str, float]]:
    return [(f"i{n:03}", float(total[n])) for n in np.argsort(-total, kind="stable") if total[n] > 0]


def same(hits: list[Hit], expected: list[tuple[str, float]]) -> bool:
    """Scores agree, and so does the order wherever float32 can tell two scores apart."""
    found = {hit.item.id: hit.score for hit in hits}
    wanted = dict(expected)
    assert found == pytest.approx(wanted, abs=2e-6)
    assert [wanted[id_] for id_ in found] == pytest.approx([score for _, score in expected], abs=2e-6)
    return True


ROWS = 90
VECTORS, PRODUCT_VECTORS = unit(ROWS), unit(ROWS, 1) * np.linspace(0.5, 2, ROWS, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def measured(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    """No two rows have the same BM25 score for `cat`; the last ten have no such word."""
    texts = [" ".join(["cat"] * (n + 1) + ["dog"] * (ROWS - n)) if n < ROWS - 10 else "dog" for n in range(ROWS)]
    with backend.store(tmp_path_factory.mktemp("measured"), DENSE) as made:
        made.upsert([passage(f"i{n:03}", text) for n, text in enumerate(texts)], {"tiny": VECTORS})
        made.flush()
        yield made


def test_dense_scores_are_cosines(measured: MilvusStore) -> None:
    for seed in range(5):
        query = unit(1, seed + 10)[0]
        hits = measured.search([Route(DENSE, vector=query)], ROWS)
        assert same(hits, [(f"i{n:03}", float((VECTORS @ query)[n])) for n in np.argsort(-(VECTORS @ query))])
        assert measured.search([Route(DENSE, vector=query)], 7) == hits[:7]


def without_hybrid(made: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made._connection._found
    assert found is not None
    monkeypatch.setattr(made._connection, "_found", replace(found, backend=replace(found.backend, hybrid=False)))


@pytest.mark.parametrize("who", ["backend", "ours"])
@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_two_dense_routes_fuse_as_numpy_does(
    measured: MilvusStore, monkeypatch: pytest.MonkeyPatch, who: str, fusion: Any
) -> None:
    if who == "ours":
        without_hybrid(measured, monkeypatch)
    for seed in range(5):
        queries = unit(2, seed + 20)
        scores = [VECTORS @ query for query in queries]
        routes = [Route(DENSE, vector=query, weight=weight) for query, weight in zip(queries, (0.3, 0.7), strict=True)]
        hits = measured.search(routes, ROWS, fusion=fusion)
        if fusion == "rrf":
            assert same(hits, fused_by_rank(*scores))
        else:
            assert same(hits, fused_by_score([0.3, 0.7], [-1, -1], *scores))
        assert measured.search(routes, 5, fusion=fusion) == hits[:5]


@pytest.mark.parametrize("who", ["backend", "ours"])
def test_words_and_vectors_fuse_as_numpy_does(
    measured: MilvusStore, backend: Backend, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    lexical, query = Route(LEXICAL, text="cat", weight=0.6), unit(1, 30)[0]
    dense = Route(DENSE, vector=query, weight=0.4)
    if backend.name == "milvus":
        assert measured.search([lexical, dense], ROWS) == measured.search([dense], ROWS)
        with pytest.raises(Unsupported, match=OLD):
            measured.search([lexical], ROWS)
        return
    if who == "ours":
        without_hybrid(measured, monkeypatch)
    bm25 = {hit.item.id: hit.score for hit in measured.search([lexical], ROWS)}
    scores = np.array([bm25.get(f"i{n:03}", np.nan) for n in range(ROWS)])
    assert np.isnan(scores).sum() == 10
    assert same(measured.search([lexical, dense], ROWS), fused_by_rank(scores, VECTORS @ query))
    weighted = measured.search([lexical, dense], ROWS, fusion="weighted")
    assert same(weighted, fused_by_score([0.6, 0.4], [0, -1], scores, VECTORS @ query))


def test_inner_products(backend: Backend, tmp_path: Path) -> None:
    with backend.store(tmp_path, PRODUCTS) as made:
        made.upsert([passage(f"i{n:03}") for n in range(ROWS)], {"products": PRODUCT_VECTORS})
        queries = unit(2, 40)
        scores = [PRODUCT_VECTORS @ query for query in queries]
        hits = made.search([Route(PRODUCTS, vector=queries[0])], ROWS)
        assert same(hits, [(f"i{n:03}", float(scores[0][n])) for n in np.argsort(-scores[0])])
        routes = [Route(PRODUCTS, vector=query, weight=0.5) for query in queries]
        fused = made.search(routes, ROWS, fusion="weighted")
        total = sum(0.5 * np.clip(score / score.max(), 0, None) for score in scores)
        assert {hit.item.id: hit.score for hit in fused} == pytest.approx(
            {f"i{n:03}": float(total[n]) for n in range(ROWS)}, abs=2e-6
        )


def test_ties_are_broken_by_id(backend: Backend, tmp_path: Path) -> None:
    names = [f"i{n:03}" for n in range(DEPTH + 20)]
    with backend.store(tmp_path, DENSE) as made:
        shuffled = random.Random(0).sample(names, len(names))
        made.upsert([passage(name) for name in shuffled], {"tiny": np.ones((len(names), 4), np.float32)})
        assert ids(made.search([Route(DENSE, vector=np.ones(4, np.float32))], 7)) == names[:7]


# Writing, counting, reading in pages


def test_items_come_back_and_every_page_is_read(backend: Backend, tmp_path: Path) -> None:
    """More rows than a page, in random order and in several writes: all come back once, by id."""
    rng = random.Random(1)
    names = [f"{rng.randrange(10**9):09}-{n}" for n in range(4_500)]
    with backend.store(tmp_path, DENSE) as made:
        for at in range(0, len(names), 1_500):
            part = names[at : at + 1_500]
            made.upsert([passage(name, text=f"text {name}", n=1) for name in part], {"tiny": unit(len(part))})
        made.upsert([passage(names[7], text="again 中\0\"'\\", document="d")], {})
        assert made.count() == len(names)
        assert made.ids() == sorted(names)
        assert [one.text for one in made.get([names[7], "unknown", names[8]])] == [
            "again 中\0\"'\\",
            f"text {names[8]}",
        ]
        assert made.count(Where(filter=Range("n", ge=1))) == len(names) - 1
        assert made.delete(Where(ids=tuple(names[:1_200]))) == 1_200
        assert made.ids() == sorted(names[1_200:])
        assert made.per_document() == {"": len(names) - 1_200}


def test_rows_without_vectors_wait_for_them(backend: Backend, tmp_path: Path) -> None:
    dense = Route(DENSE, vector=np.ones(4))
    with backend.store(tmp_path, DENSE) as made:
        made.upsert([passage("a"), passage("b")], {})
        assert made.search([dense], 5) == []
        made.upsert([passage("b")], {"tiny": np.ones((1, 4), np.float32)})
        assert ids(made.search([dense], 5)) == ["b"]
        assert made.count() == 2


def test_reopening_erasing_and_two_stores_at_once(backend: Backend, tmp_path: Path) -> None:
    made = backend.store(tmp_path / "library", DENSE)
    with made, backend.store(tmp_path / "library", DENSE) as second:
        made.upsert([passage("a"), passage("b")], {"tiny": unit(2)})
        assert len(second.search([Route(DENSE, vector=unit(1)[0])], 5)) == 2
        assert second.delete(Where(ids=("b",))) == 1
        assert made.ids() == ["a"]
        made.erase()
        assert second.count() == 0
        second.upsert([passage("c")], {"tiny": unit(1)})
        assert made.ids() == ["c"]
    assert made.count() == 1
    made.close()
    assert (tmp_path / "library" / LITE).exists() == (backend.name == "folder")
    with pytest.raises(StoreError, match="--rebuild"):
        backend.store(tmp_path / "library", PRODUCTS).open()


def test_libraries_do_not_see_one_another(backend: Backend, tmp_path: Path) -> None:
    with backend.store(tmp_path / "one", DENSE) as one, backend.store(tmp_path / "two", DENSE) as two:
        one.upsert([passage("a"), passage("b")], {"tiny": unit(2)})
        two.upsert([passage("a", text="other")], {"tiny": unit(1)})
        two.erase()
        assert one.ids() == ["a", "b"]
        assert two.count() == 0


def test_saving_into_a_folder(backend: Backend, tmp_path: Path) -> None:
    """What was on a server without words can be searched by words in the copy."""
    with backend.store(tmp_path / "library", DENSE) as made:
        made.upsert([passage("a", text="cat", author="Ann"), passage("b", text="dog")], {"tiny": unit(2)})
        made.save(tmp_path / "copy")
    with MilvusStore.existing(tmp_path / "copy") as copy:
        assert ids(copy.search([Route(LEXICAL, text="dog")], 5)) == ["b"]
        assert ids(copy.search([Route(DENSE, vector=unit(2)[0])], 1)) == ["a"]
        assert copy.ids(Where(filter=Equals("author", "Ann"))) == ["a"]


def test_many_threads_answer_as_one(measured: MilvusStore) -> None:
    def ask(n: int) -> list[Hit]:
        return measured.search([Route(DENSE, vector=unit(1, n)[0])], 10)

    serial = [ask(n) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == serial


# What a backend can do


def test_capabilities_are_those_seen(measured: MilvusStore, backend: Backend) -> None:
    stats = measured.stats()
    if backend.name == "milvus":
        assert stats.version.startswith(OLD)
        assert (stats.backend, stats.can, stats.spaces) == ("milvus", (), ("tiny",))
        assert f"(Milvus {stats.version}): search is dense only" in (measured.note() or "")
    else:
        assert stats.version.startswith("milvus_lite-")
        assert (stats.backend, stats.can, stats.spaces) == ("milvus-lite", ("sparse", "hybrid"), ("lexical", "tiny"))
        assert measured.note() is None


def test_they_are_asked_once_for_each_version(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def probe(client: Any, version: str) -> capabilities.Capabilities:
        asked.append(version)
        return capabilities.probed(client, version)

    monkeypatch.setattr("triptych.retrievers.stores.connection.probed", probe)
    for _ in range(2):
        with backend.store(tmp_path, DENSE):
            assert len(asked) == 1
    text = (tmp_path / Items(()).file).read_text()
    (tmp_path / Items(()).file).write_text(text.replace('"version": "', '"version": "older '))
    with backend.store(tmp_path, DENSE) as made:
        made.upsert([passage("a")], {"tiny": unit(1)})
        assert (len(asked), made.count()) == (2, 1)
    assert (tmp_path / Items(()).file).read_text() == text


def test_a_server_that_lies_about_its_version_survives_the_question(old_server: Backend) -> None:
    """It accepts a sparse field, and would crash if the collection were loaded."""
    client = client_of(old_server.uri, 10, old_server.token)
    before = set(client.list_collections())
    found = capabilities.probed(client, "v2.5.1")
    assert found.names == ()
    assert set(client.list_collections()) == before
    assert client.get_server_version().startswith(OLD)
    client.close()


def test_words_alone_need_a_newer_server(old_server: Backend, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no sparse vectors") as caught:
        BM25(old_server.store(tmp_path)).add([passage("a")])
    assert "2.4" in caught.value.hint
    with old_server.store(tmp_path / "hybrid", RandomTerms.space) as made:
        with_encoder, without = Hybrid(made, RandomTerms(0)), Hybrid(made, None)
        with_encoder.add([passage("a", "cat"), passage("b", "dog")])
        assert ids(with_encoder.search(Query("cat"), 1)) == ["a"]
        with pytest.raises(Unsupported, match="no search by words"):
            without.search(Query("cat"), 1)


def test_several_dense_spaces_need_a_newer_server(old_server: Backend, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="multiple vector fields"):
        old_server.store(tmp_path, DENSE, PRODUCTS).open()


# Tokens


def test_a_wrong_token_is_refused_and_not_shown(
    old_server: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for token in ("", "root:Wr0ngSecret", "nobody:Wr0ngSecret"):
            with pytest.raises(StoreError, match="refuses") as caught:
                MilvusStore(tmp_path, [DENSE], old_server.uri, token=token).open()
            assert "Wr0ngSecret" not in str(caught.value)
    assert "Wr0ngSecret" not in caplog.text


def test_a_library_on_an_old_server_says_what_it_lacks(
    old_server: Backend,
    tmp_path: Path,
    tmp_home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIPTYCH_STORE_URI", old_server.uri)
    monkeypatch.setenv("TRIPTYCH_STORE_TOKEN", old_server.token)
    source = tmp_path / "files"
    source.mkdir()
    (source / "cats.txt").write_text("The cat sleeps on the warm stove.")
    (source / "trains.txt").write_text("The night train to Oslo leaves at nine.")
    with caplog.at_level(logging.DEBUG), Triptych("far", Settings.load()) as library:
        library.index(source)
        evidence = library.retrieve("When does the train go?", 500)
        found, status = library.search("When does the train go?"), library.status()
    assert evidence.passages[0].uri.endswith("trains.txt")
    assert all("search is dense only" in (note or "") for note in (evidence.note, found.note, status.note))
    assert status.store["version"].startswith(OLD)
    assert (status.store["can"], status.store["spaces"]) == ([], ["minilm"])
    assert status.healthy
    shown = [caplog.text, repr(library.settings), *(one.model_dump_json() for one in (evidence, found, status))]
    assert not any(SECRET in text for text in shown)
    written = [path for path in (tmp_home / "libraries").rglob("*") if path.is_file()]
    assert written
    assert not any(SECRET.encode() in path.read_bytes() for path in written)


@pytest.mark.parametrize("uri", ["milvus.db", "localhost:19530", "http://", "ftp://host", "http://user:pass word@x"])
def test_an_address_that_no_server_has(tmp_path: Path, uri: str) -> None:
    with pytest.raises(BadInput, match="URI"):
        MilvusStore(tmp_path, [DENSE], uri)


# Further spaces


def further_items(n: int) -> list[Item]:
    return [passage(f"i{row:02}", "cat", year=2000 + row % 4, document=f"d{row % 3}") for row in range(n)]


def closest(query: np.ndarray, given: dict[str, np.ndarray], k: int) -> list[str]:
    """By MaxSim, ties by id."""
    return sorted(given, key=lambda id_: (-round(float((query @ given[id_].T).max(axis=1).sum()), 4), id_))[:k]


def test_token_vectors_answer_as_an_oracle(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "HELD_BYTES", 0)
    monkeypatch.setattr(vectors, "_FIRST_LIST", 8)  # so that lists have to grow
    rng, space = np.random.default_rng(2), Space("late", "multi", 4, "ip")
    given = {one.id: rng.normal(size=(rng.integers(1, 6), 4)).astype(np.float32) for one in further_items(40)}
    made = VectorStore(tmp_path, space, backend.uri, token=backend.token)
    made.upsert(further_items(40), list(given.values()))
    for seed in range(4):
        query = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
        assert [id_ for id_, _ in made.search(query, 5)] == closest(query, given, 5)
        kept = {f"i{row:02}": given[f"i{row:02}"] for row in range(40) if row % 4 == 1}
        found = made.search(query, 40, Where(filter=Equals("year", 2001)))
        assert [id_ for id_, _ in found] == closest(query, kept, 40)
    made.upsert(further_items(1), [np.zeros((1, 4), np.float32) + 9])
    assert made.search(np.ones((1, 4), np.float32), 1)[0][0] == "i00"
    made.delete(Where(documents=("d0",)))
    assert made.count() == 26
    made.close()


def test_a_dense_space_stands_beside_the_items(backend: Backend, tmp_path: Path) -> None:
    space, rows = Space("visual", "dense", 6), np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    with backend.store(tmp_path, DENSE) as base:
        base.upsert(further_items(20), {"tiny": unit(20)})
        made = VectorStore(tmp_path, space, backend.uri, token=backend.token)
        made.upsert(further_items(20)[:10], rows[:10])
        assert made.search(rows[3], 1) == [("i03", pytest.approx(1.0, abs=1e-5))]
        assert made.search(rows[3], 9, Where(documents=("d0",)))[0][0] == "i03"
        assert (made.count(), base.count()) == (10, 20)
        made.erase()
        assert (made.count(), base.count()) == (0, 20)
        made.close()


def test_a_large_collection_has_an_index(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LARGE", 500)
    monkeypatch.setattr(table, "_FEW", 20)
    space, rng = Space("cloud", "dense", 16), np.random.default_rng(0)
    rows = rng.normal(size=(1200, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made = [passage(f"i{n:04}", "cat", group=n % 50) for n in range(1200)]
    with backend.store(tmp_path, space) as store:
        store.upsert(made, {"cloud": rows})
        store.settle()
        assert store._table._index_of("cloud") == "HNSW"
        hits = found = 0
        for n in range(0, 1200, 60):
            exact = {f"i{row:04}" for row in np.argsort(-(rows @ rows[n]))[:10]}
            found += len(exact & set(ids(store.search([Route(space, vector=rows[n])], 10))))
            among = np.arange(n % 50, 1200, 50)
            exact = {f"i{row:04}" for row in among[np.argsort(-(rows[among] @ rows[n]))[:10]]}
            wanted = Where(filter=Equals("group", n % 50))
            hits += len(exact & set(ids(store.search([Route(space, vector=rows[n])], 10, wanted))))
        assert found / 200 >= 0.98
        assert hits / 200 >= 0.98


# Tenants


@pytest.fixture(params=["tcp", "milvus"])
def server(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue({"tcp": "tcp_server", "milvus": "old_server"}[request.param])
    return found


def test_libraries_that_share_a_collection_never_meet(server: Backend, tmp_path: Path) -> None:
    space, late = Space("shared", "dense", 4), Space("shared_late", "multi", 4, "ip")

    def library(name: str) -> tuple[MilvusStore, VectorStore]:
        return (
            MilvusStore(tmp_path / name, [space], server.uri, token=server.token, shared="team"),
            VectorStore(tmp_path / name, late, server.uri, token=server.token, shared="team"),
        )

    (ann, ann_late), (bob, bob_late) = library("ann"), library("bob")
    mine = [passage(f"i{n}", f"cat {n}", owner="ann") for n in range(6)]
    his = [passage(f"i{n}", f"cat dog {n}", owner="bob") for n in range(3)]  # the same ids
    ann.upsert(mine, {"shared": unit(6)})
    bob.upsert(his, {"shared": unit(3, seed=5)})
    ann_late.upsert(mine, [np.ones((2, 4), np.float32)] * 6)
    bob_late.upsert(his, [np.ones((1, 4), np.float32)] * 3)
    assert ann._connection.collection == bob._connection.collection
    assert ann._connection.tenant != bob._connection.tenant
    assert (ann.count(), bob.count(), ann_late.count(), bob_late.count()) == (6, 3, 6, 3)
    for store, owner, k in ((ann, "ann", 6), (bob, "bob", 3)):
        hits = store.search([Route(space, vector=unit(1)[0])], 50)
        assert ({hit.item.meta["owner"] for hit in hits}, len(hits)) == ({owner}, k)
        every = Where(filter=Equals("owner", "ann"))
        assert len(store.ids(every)) == (6 if owner == "ann" else 0)
        assert store.ids(Where(filter=Range("owner", ge=""))) == [f"i{n}" for n in range(k)]
        if store.lexical:
            fused = store.search([Route(LEXICAL, text="cat"), Route(space, vector=unit(1)[0])], 50)
            assert ({hit.item.meta["owner"] for hit in fused}, len(fused)) == ({owner}, k)
    assert len(ann_late.search(np.ones((1, 4), np.float32), 50)) == 6
    assert bob.delete(Where(uri_prefix="root/")) == 3
    bob_late.erase()
    assert (ann.count(), ann_late.count(), bob.count(), bob_late.count()) == (6, 6, 0, 0)
    ann.erase()
    bob.upsert(his, {"shared": unit(3)})
    assert (ann.count(), bob.count()) == (0, 3)
    for one in (ann, ann_late, bob, bob_late):
        one.close()
    with MilvusStore(tmp_path / "bob", [space], server.uri, token=server.token, shared="team") as again:
        assert [one.meta["owner"] for one in again.get(["i0", "i1"])] == ["bob", "bob"]


def test_no_text_of_a_user_becomes_a_name(tmp_path: Path, server: Backend) -> None:
    for name in ("../x", "a b", 'x" or ""="', "1st", "ä"):
        with pytest.raises(BadInput, match="cannot share"):
            MilvusStore(tmp_path, [DENSE], server.uri, shared=name)
    with pytest.raises(BadInput, match="without a server"):
        MilvusStore(tmp_path, [DENSE], shared="team")
