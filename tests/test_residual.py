"""Residual codes: packing is exact, quantiles are what a loop finds, and more bits keep more of a vector."""

from __future__ import annotations

from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, Cancelled
from triptych.progress import reporting
from triptych.retrievers.text._residual import BITS, Codec, centroids_for, k_means, nearest, pack, unpack


def unit(n: int, dim: int = 16, seed: int = 0, themes: int = 8) -> np.ndarray:
    """Unit vectors around a few directions, as token vectors are."""
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(themes, dim))[chance.integers(0, themes, n)] + 0.3 * chance.normal(size=(n, dim))
    found: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


@given(st.sampled_from(BITS), st.integers(0, 5), st.integers(1, 4), st.data())
def test_packing_and_unpacking_give_the_same_numbers(bits: int, n: int, wide: int, data: st.DataObject) -> None:
    dim = wide * 8 // bits
    drawn = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=n * dim, max_size=n * dim))
    buckets = np.array(drawn, np.uint8).reshape(n, dim)
    packed = pack(buckets, bits)
    assert packed.shape == (n, wide)
    assert np.array_equal(unpack(packed, bits), buckets)


def test_the_first_dimension_has_the_highest_bits() -> None:
    assert pack(np.array([[1, 0, 0, 0, 0, 0, 0, 0]], np.uint8), 1).tolist() == [[128]]
    assert pack(np.array([[3, 0, 0, 1]], np.uint8), 2).tolist() == [[193]]


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_those_of_a_plain_loop(bits: int) -> None:
    vectors = unit(60)
    codec = Codec.fit(vectors, bits, k=4)
    codes = codec.encode(vectors)
    assert (codec.bits, codec.dim, codes.residuals.shape) == (bits, 16, (60, 16 * bits // 8))
    decoded = codec.decode(codes)
    for row, vector in enumerate(vectors):
        cell = max(range(4), key=lambda n: float(codec.centroids[n] @ vector))
        assert codes.cells[row] == cell
        left = vector - codec.centroids[cell]
        read = [codec.centroids[cell][d] + codec.middles[sum(left[d] > cut for cut in codec.cuts)] for d in range(16)]
        np.testing.assert_allclose(decoded[row], np.array(read) / np.linalg.norm(read), atol=1e-5)


def test_buckets_are_filled_alike() -> None:
    vectors = unit(400)
    codec = Codec.fit(vectors, 2, k=8)
    counts = np.bincount(unpack(codec.encode(vectors).residuals, 2).ravel(), minlength=4) / vectors.size
    np.testing.assert_allclose(counts, 0.25, atol=0.05)
    assert (np.diff(codec.cuts) > 0).all()
    assert (np.diff(codec.middles) > 0).all()


def test_more_bits_keep_more_and_centroids_alone_the_least() -> None:
    vectors = unit(500)
    kept = [(vectors * codec.decode(codec.encode(vectors))).sum(1).mean() for codec in _codecs(vectors)]
    centroids = _codecs(vectors)[0].centroids
    alone = (vectors * centroids[nearest(vectors, centroids)]).sum(1).mean()
    assert alone < kept[0] < kept[1] < kept[2]
    assert kept[2] > 0.99


def _codecs(vectors: np.ndarray) -> list[Codec]:
    return [Codec.fit(vectors, bits, k=16) for bits in BITS]


def test_a_vector_takes_two_bytes_and_its_bits() -> None:
    vectors = unit(100, dim=128)
    assert Codec.fit(vectors, 1, k=8).encode(vectors).nbytes == 100 * (2 + 16)
    assert Codec.fit(vectors, 2, k=8).encode(vectors).nbytes == 100 * (2 + 32)


def test_the_same_seed_gives_the_same_codec() -> None:
    vectors = unit(300)
    one, two, other = (Codec.fit(vectors, 2, k=8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.centroids, two.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


def test_k_means_finds_the_directions_and_leaves_no_cell_empty() -> None:
    vectors = unit(300, themes=4)
    centroids = k_means(vectors, 4, np.random.default_rng(0), iterations=20)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert (vectors @ centroids.T).max(axis=1).mean() > 0.9
    twice = np.repeat(unit(5), 20, axis=0)  # five different vectors for eight centroids
    assert np.isfinite(k_means(twice, 8, np.random.default_rng(0))).all()


def test_one_vector_and_equal_vectors_can_be_compressed() -> None:
    for vectors in (unit(1), np.repeat(unit(1), 9, axis=0)):
        codec = Codec.fit(vectors)
        np.testing.assert_allclose(codec.decode(codec.encode(vectors)), vectors, atol=1e-5)
    assert [centroids_for(n) for n in (1, 3, 4, 64)] == [1, 1, 1, 16]


def test_what_cannot_be_compressed_is_refused() -> None:
    with pytest.raises(BadInput, match=r"shape `\(0, 16\)`"):
        Codec.fit(unit(1)[:0])
    with pytest.raises(BadInput, match="cannot be compressed"):
        Codec.fit(np.full((4, 16), np.nan, np.float32))
    with pytest.raises(BadInput, match="`3` bits"):
        Codec.fit(unit(4), 3)
    with pytest.raises(BadInput, match="`1` bits for 6 dimensions"):
        Codec.fit(unit(4, dim=6), 1)


def test_it_stops_between_rounds() -> None:
    cancelled = Event()
    with reporting(lambda done, total, what: cancelled.set() if done else None, cancelled=cancelled):
        with pytest.raises(Cancelled):
            Codec.fit(unit(100))
