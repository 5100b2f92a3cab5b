"""Vectors of further spaces: a collection beside the items, MaxSim equal to an oracle, filters as in the base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from triptych.errors import BadInput
from triptych.retrievers.base import Item, Modality, Route, Source, Space, Where
from triptych.retrievers.filters import filter_of
from triptych.retrievers.stores import vectors as module
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.stores.vectors import VectorStore, max_sim

DENSE = Space("visual", "dense", 6)
TOKENS = Space("tokens", "multi", 5, "ip")
COSINE = Space("late", "multi", 5, "cosine")


def item(n: int, modality: Modality = "text") -> Item:
    meta = {"document": f"d{n % 3}", "year": 2000 + n % 5}
    return Item(f"i{n:03}", f"text {n}", Source(f"root/{'a' if n % 2 else 'b'}/{n}.txt", 0, 6), modality, meta=meta)


def tokens(n: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(int(rng.integers(1, 9)), 5)).astype(np.float32) for _ in range(n)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "library"


def oracle(query: np.ndarray, given: dict[str, np.ndarray], k: int, metric: str) -> list[str]:
    """Plain MaxSim over everything, ties by id."""
    scored = []
    for id_, rows in given.items():
        best = [max(_similarity(left, right, metric) for right in rows) for left in query]
        scored.append((-round(sum(best), 4), id_))
    return [id_ for _, id_ in sorted(scored)][:k]


def _similarity(left: np.ndarray, right: np.ndarray, metric: str) -> float:
    scale = float(np.linalg.norm(left) * np.linalg.norm(right)) if metric == "cosine" else 1.0
    return float(left @ right) / scale


@pytest.mark.parametrize("held", [0, 2**20])
@pytest.mark.parametrize("space", [TOKENS, COSINE])
def test_max_sim_finds_what_an_oracle_finds(
    folder: Path, space: Space, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", held)
    monkeypatch.setattr(module, "_FIRST_LIST", 4)  # so that lists have to grow
    given = tokens(60)
    store = VectorStore(folder, space)
    store.upsert([item(n) for n in range(60)], given)
    by_id = {f"i{n:03}": rows for n, rows in enumerate(given)}
    for seed in range(12):
        query = np.random.default_rng(100 + seed).normal(size=(3, 5)).astype(np.float32)
        found = store.search(query, 7)
        assert [id_ for id_, _ in found] == oracle(query, by_id, 7, space.metric)
        assert found[0][1] == pytest.approx(max_sim(query, by_id[found[0][0]], space.metric), abs=1e-4)
    store.close()


@pytest.mark.parametrize("held", [0, 2**20])
def test_max_sim_under_a_filter(folder: Path, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", held)
    given = tokens(40, seed=3)
    store = VectorStore(folder, TOKENS)
    store.upsert([item(n) for n in range(40)], given)
    query = np.random.default_rng(5).normal(size=(4, 5)).astype(np.float32)
    kept = {f"i{n:03}": given[n] for n in range(40) if n % 5 == 2 and n % 2}
    where = Where(uri_prefix="root/a/", filter=filter_of({"year": 2002}))
    assert [id_ for id_, _ in store.search(query, 40, where)] == oracle(query, kept, 40, "ip")
    store.close()


def test_fewer_candidates_than_items_still_give_k(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 0)
    monkeypatch.setattr(module, "_FIRST_LIST", 4)
    monkeypatch.setattr(module, "MOST_CANDIDATES", 5)
    store = VectorStore(folder, TOKENS)
    store.upsert([item(n) for n in range(50)], tokens(50))
    query = np.ones((2, 5), np.float32)
    assert len(store.search(query, 3)) == 3
    assert store.search(query, 3)[0] == pytest.approx(store.search(query, 50)[0])
    store.close()


def test_what_is_held_follows_every_write(folder: Path) -> None:
    given = {f"i{n:03}": rows for n, rows in enumerate(tokens(12))}
    store = VectorStore(folder, TOKENS)
    store.upsert([item(n) for n in range(8)], list(given.values())[:8])
    query = np.random.default_rng(7).normal(size=(3, 5)).astype(np.float32)

    def found() -> list[str]:
        return [id_ for id_, _ in store.search(query, 20)]

    assert found() == found() == oracle(query, dict(list(given.items())[:8]), 20, "ip")
    store.search(query, 20, Where(ids=("i001",)))
    store.upsert([item(n) for n in range(8, 12)], list(given.values())[8:])
    assert found() == oracle(query, given, 20, "ip")
    store.delete(Where(ids=("i003", "i009")))
    assert found() == oracle(query, {k: v for k, v in given.items() if k not in ("i003", "i009")}, 20, "ip")
    turned = -given["i000"]
    store.upsert([item(0)], [turned])
    assert dict(store.search(query, 20))["i000"] == pytest.approx(max_sim(query, turned, "ip"), abs=1e-4)
    store.erase()
    assert found() == []
    store.close()


def test_an_item_that_comes_again_with_fewer_vectors(folder: Path) -> None:
    store = VectorStore(folder, TOKENS)
    store.upsert([item(1)], [np.eye(5, dtype=np.float32)])
    store.upsert([item(1)], [np.eye(5, dtype=np.float32)[:2]])
    assert store.vectors(["i001"])["i001"].tolist() == np.eye(5)[:2].tolist()
    assert (store.count(), store.ids()) == (1, ["i001"])
    store.close()


def test_a_dense_space_stands_beside_the_items(folder: Path) -> None:
    base, store = MilvusStore(folder, [Space("tiny", "dense", 4)]), VectorStore(folder, DENSE)
    rows = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    base.upsert([item(n, "image") for n in range(20)], {"tiny": np.ones((20, 4), np.float32)})
    store.upsert([item(n, "image") for n in range(10)], rows[:10])
    cosine = rows[:10] @ rows[3] / (np.linalg.norm(rows[:10], axis=1) * np.linalg.norm(rows[3]))
    found = store.search(rows[3], 4)
    assert [id_ for id_, _ in found] == [f"i{n:03}" for n in np.argsort(-cosine)[:4]]
    assert found[0] == ("i003", pytest.approx(1.0, abs=1e-5))
    assert next(id_ for id_, _ in store.search(rows[3], 9, Where(documents=("d0",)))) == "i003"
    store.delete(Where(ids=("i003",)))
    assert store.count() == 9 and base.count() == 20
    store.erase()
    assert store.count() == 0 and base.count() == 20
    assert len(base.search([Route(base.spaces[0], np.ones(4, np.float32))], 5)) == 5
    base.close()
    store.close()


def test_vectors_outlive_their_process(folder: Path) -> None:
    first = VectorStore(folder, DENSE)
    first.upsert([item(1)], np.ones((1, 6), np.float32))
    first.close()
    again = VectorStore(folder, DENSE)
    assert again.search(np.ones(6, np.float32), 3) == [("i001", pytest.approx(1.0))]
    again.close()


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (DENSE, np.ones((1, 5), np.float32)),
        (DENSE, np.full((1, 6), np.nan, np.float32)),
        (TOKENS, [np.ones((0, 5), np.float32)]),
        (TOKENS, [np.ones((2, 4), np.float32)]),
        (TOKENS, [np.ones((5000, 5), np.float32)]),
        (TOKENS, [np.ones((1, 5), np.float32)] * 2),
    ],
)
def test_wrong_vectors_are_refused_before_anything_is_written(folder: Path, space: Space, given: object) -> None:
    store = VectorStore(folder, space)
    with pytest.raises(BadInput):
        store.upsert([item(1)], given)
    assert store.count() == 0
    store.close()


def test_bad_questions(folder: Path) -> None:
    with pytest.raises(BadInput, match="cannot be a collection"):
        VectorStore(folder, Space("Bad name", "dense", 4))
    store = VectorStore(folder, DENSE)
    with pytest.raises(BadInput):
        store.search(np.ones(5, np.float32), 3)
    with pytest.raises(BadInput):
        store.search(np.ones(6, np.float32), 0)
    with pytest.raises(BadInput):
        store.delete(Where())
    with pytest.raises(BadInput, match="twice"):
        store.upsert([item(1), item(1)], np.ones((2, 6), np.float32))
    store.close()
