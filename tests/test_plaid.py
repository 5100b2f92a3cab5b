"""PLAID: four stages, each on fewer passages; what it finds is what exhaustive MaxSim finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, StoreError
from triptych.retrievers.stores.vectors import max_sim
from triptych.retrievers.text._plaid import Depth, Plaid, max_sims
from triptych.retrievers.text._residual import Codes

DIM = 16
ALL = Depth(10**6, -1.0, 10**6)
"""Nothing is pruned."""


def words(seed: int = 0, n: int = 200) -> np.ndarray:
    """A vocabulary of unit vectors."""
    rows = np.random.default_rng(seed).normal(size=(n, DIM))
    found: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def passages(n: int, seed: int = 0) -> list[np.ndarray]:
    """Passages of 3 to 12 words, each word a little different in each."""
    chance, known = np.random.default_rng(seed), words()
    made = []
    for _ in range(n):
        rows = known[chance.integers(0, len(known), chance.integers(3, 13))]
        rows = rows + 0.1 * chance.normal(size=rows.shape)
        made.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return made


def query(seed: int, size: int = 4) -> np.ndarray:
    found: np.ndarray = words()[np.random.default_rng(1000 + seed).integers(0, 200, size)]
    return found


GIVEN = passages(400)
PLAID = Plaid.build(GIVEN, bits=2)


def decoded(plaid: Plaid) -> list[np.ndarray]:
    bounds = np.cumsum(plaid.lengths)[:-1]
    return np.split(plaid.codec.decode(plaid.codes), bounds)


def oracle(asked: np.ndarray, vectors: list[np.ndarray], k: int) -> list[int]:
    """By a plain double loop, ties by number."""
    scores = [sum(max(float(q @ d) for d in one) for q in asked) for one in vectors]
    return sorted(range(len(scores)), key=lambda n: (-round(scores[n], 5), n))[:k]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 99))
def test_max_sims_equal_the_double_loop(lengths: list[int], q: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    documents = [chance.normal(size=(length, 4)).astype(np.float32) for length in lengths]
    asked = chance.normal(size=(q, 4)).astype(np.float32)
    starts = np.cumsum(lengths) - lengths
    found = max_sims(np.concatenate(documents) @ asked.T, starts)
    wanted = [sum(max(float(a @ b) for b in one) for a in asked) for one in documents]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(found, [max_sim(asked, one, "ip") for one in documents], atol=1e-4)


def test_without_pruning_it_is_exhaustive() -> None:
    vectors = decoded(PLAID)
    for seed in range(5):
        found = PLAID.search(query(seed), 10, ALL)
        assert found.passages.tolist() == oracle(query(seed), vectors, 10)
        assert found.kept == (400, 400, 400, 400)
        assert (np.diff(found.scores) <= 0).all()


def test_the_passage_that_a_query_is_taken_from_comes_first_though_few_are_scored() -> None:
    for number in range(0, 400, 10):
        found = PLAID.search(GIVEN[number][:3], 5, Depth(1, 0.5, 64))
        assert found.passages[0] == PLAID.search(GIVEN[number][:3], 5, ALL).passages[0] == number
        assert found.kept[3] <= 16


def test_each_stage_looks_at_what_the_one_before_kept() -> None:
    asked, depth = query(3), Depth(2, 0.5, 40)
    found = PLAID.search(asked, 5, depth)
    assert found.kept[0] == 400 > found.kept[1] > found.kept[2] == 40 > found.kept[3] == 10
    near = np.argsort(-(asked @ PLAID.codec.centroids.T), axis=1)[:, :2]
    cells = np.split(PLAID.codes.cells, np.cumsum(PLAID.lengths)[:-1])
    named = [n for n, own in enumerate(cells) if np.isin(own, near).any()]
    assert found.kept[1] == len(named)
    assert set(found.passages.tolist()) <= set(named)


def test_depths_are_the_published_ones() -> None:
    assert Depth.of(10) == (1, 0.5, 256)
    assert Depth.of(11) == Depth.of(100) == (2, 0.45, 1024)
    assert Depth.of(101) == (4, 0.4, 4096)
    assert Depth.of(2000) == (4, 0.4, 8000)


def test_a_query_that_is_near_to_no_centroid_is_still_answered() -> None:
    found = PLAID.search(query(0), 3, Depth(1, 2.0, 50))
    assert len(found.passages) == 3


def test_more_is_asked_than_there_is() -> None:
    small = Plaid.build(GIVEN[:1])
    assert small.search(query(0), 10).passages.tolist() == [0]
    assert len(PLAID.search(query(0), 1000, ALL).passages) == 400


def test_only_some_passages_count() -> None:
    among = np.zeros(400, bool)
    among[[7, 8, 300]] = True
    found = PLAID.search(query(1), 10, ALL, among)
    assert sorted(found.passages.tolist()) == [7, 8, 300]
    assert PLAID.search(query(1), 10, ALL, np.zeros(400, bool)).passages.tolist() == []


def test_passages_come_and_go() -> None:
    more = PLAID.with_more(passages(20, seed=5))
    assert len(more) == 420
    assert more.search(query(2), 420, ALL).passages.max() == 419
    kept = np.ones(420, bool)
    kept[:400] = False
    assert decoded(more.without(kept))[0].shape == passages(20, seed=5)[0].shape
    wanted = [n - 400 for n in more.search(query(2), 420, ALL).passages.tolist() if n >= 400]
    assert more.without(kept).search(query(2), 20, ALL).passages.tolist() == wanted


def test_it_is_saved_and_opened(tmp_path: Path) -> None:
    PLAID.save(tmp_path / "plaid.npz")
    opened = Plaid.open(tmp_path / "plaid.npz")
    assert opened.search(query(4), 10).passages.tolist() == PLAID.search(query(4), 10).passages.tolist()
    assert opened.nbytes == PLAID.nbytes <= (tmp_path / "plaid.npz").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["plaid.npz"]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "plaid.npz"
    with pytest.raises(StoreError, match=r"`plaid\.npz` cannot be read"):
        Plaid.open(path)
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(StoreError, match="cannot be read"):
        Plaid.open(path)
    cut = Plaid(PLAID.codec, Codes(PLAID.codes.cells[:-1], PLAID.codes.residuals), PLAID.lengths)
    cut.save(path)
    with pytest.raises(StoreError, match="do not fit together"):
        Plaid.open(path)


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(BadInput, match="k is `0`"):
        PLAID.search(query(0), 0)
    with pytest.raises(BadInput, match=r"shape `\(4, 8\)`"):
        PLAID.search(query(0)[:, :8], 3)
    with pytest.raises(BadInput, match=r"shape `\(0, 16\)`"):
        PLAID.search(query(0)[:0], 3)
    with pytest.raises(BadInput, match="has no vectors"):
        Plaid.build([GIVEN[0], GIVEN[0][:0]])
    with pytest.raises(BadInput, match="has no vectors"):
        Plaid.build([])
