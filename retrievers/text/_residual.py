"""Residual compression of token vectors: the nearest centroid's number, and 1, 2 or 4 bits for each dimension.

After ColBERTv2, Santhanam et al. 2022, arXiv:2112.01488, section 3.3. A vector is its nearest centroid plus a residual;
each dimension of the residual is told only by which quantile of all residuals it falls into, and read back as the
middle of that quantile. What is read back has unit length again. Everything here is numpy and follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...errors import BadInput
from ...progress import step

BITS = (1, 2, 4)
ITERATIONS = 4
"""Of k-means: the published default."""
SAMPLED = 32
"""Vectors for each centroid that k-means looks at, at most."""
_AT_ONCE = 4096
"""Vectors that are compared with all centroids in one product."""


class Codes(NamedTuple):
    """Compressed vectors.

    Attributes:
        cells: (n,) the centroid of each, uint16 where that is enough, else uint32.
        residuals: uint8 (n, dim * bits / 8), the first dimension in the highest bits.
    """

    cells: np.ndarray
    residuals: np.ndarray

    @property
    def nbytes(self) -> int:
        return int(self.cells.nbytes + self.residuals.nbytes)


@dataclass(frozen=True)
class Codec:
    """What turns vectors into codes and back.

    Attributes:
        centroids: float32 (k, dim), of unit length.
        cuts: float32 (2**bits - 1,), ascending: where one bucket ends and the next begins.
        middles: float32 (2**bits,): what a residual in each bucket is read back as.
    """

    centroids: np.ndarray
    cuts: np.ndarray
    middles: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, bits: int = 2, k: int | None = None, seed: int = 0) -> Codec:
        """Learn centroids and buckets.

        Args:
            vectors: float32 (n, dim), of unit length.
            bits: for each dimension, one of `BITS`; `dim * bits` has to fill whole bytes.
            k: how many centroids; default: `centroids_for(n)`.

        Raises:
            BadInput: no vectors, vectors that are not finite, or other bits.
            Cancelled, TimedOut: see `progress`.
        """
        if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
            raise BadInput(f"Vectors of shape `{vectors.shape}` cannot be compressed.", "Give some, all finite.")
        if bits not in BITS or vectors.shape[1] * bits % 8:
            raise BadInput(f"`{bits}` bits for {vectors.shape[1]} dimensions.", f"Use one of {BITS}, in whole bytes.")
        chance = np.random.default_rng(seed)
        k = min(k or centroids_for(len(vectors)), len(vectors))
        sample = vectors[np.sort(chance.choice(len(vectors), min(len(vectors), SAMPLED * k), replace=False))]
        centroids = k_means(sample, k, chance)
        return cls(centroids, *_buckets(sample, centroids, bits))

    def with_bits(self, bits: int, vectors: np.ndarray) -> Codec:
        """The same centroids with other buckets, learned from float32 (n, dim)."""
        return Codec(self.centroids, *_buckets(vectors, self.centroids, bits))

    @property
    def bits(self) -> int:
        return len(self.middles).bit_length() - 1

    @property
    def dim(self) -> int:
        return int(self.centroids.shape[1])

    def encode(self, vectors: np.ndarray) -> Codes:
        """Codes of float32 (n, dim)."""
        cells = nearest(vectors, self.centroids).astype(np.uint16 if len(self.centroids) <= 2**16 else np.uint32)
        residuals = np.empty((len(vectors), self.dim * self.bits // 8), np.uint8)
        for start in range(0, len(vectors), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            left = vectors[rows] - self.centroids[cells[rows]]
            residuals[rows] = pack(np.searchsorted(self.cuts, left, side="left").astype(np.uint8), self.bits)
        return Codes(cells, residuals)

    def decode(self, codes: Codes) -> np.ndarray:
        """Float32 (n, dim), of unit length."""
        left = self._by_byte[codes.residuals].reshape(len(codes.cells), self.dim)
        return _unit(self.centroids[codes.cells] + left)

    @cached_property
    def _by_byte(self) -> np.ndarray:
        """(256, 8 / bits): the residuals that each byte holds."""
        made: np.ndarray = self.middles[unpack(np.arange(256, dtype=np.uint8)[:, None], self.bits)]
        return made


def centroids_for(n: int) -> int:
    """16 times the square root of `n` vectors, rounded down to a power of two (PLAID's rule), at most a fourth of `n`.

    >>> centroids_for(1_000_000), centroids_for(100), centroids_for(1)
    (8192, 16, 1)
    """
    wanted = min(16 * n**0.5, n / 4)
    return 1 << max(0, int(wanted).bit_length() - 1)


def pack(buckets: np.ndarray, bits: int) -> np.ndarray:
    """Numbers below 2**bits, uint8 (n, dim), as uint8 (n, dim * bits / 8)."""
    each = 8 // bits
    grouped = buckets.reshape(*buckets.shape[:-1], buckets.shape[-1] // each, each)
    shifts = np.arange(each - 1, -1, -1, dtype=np.uint8) * np.uint8(bits)
    made: np.ndarray = np.bitwise_or.reduce(grouped << shifts, axis=-1)
    return made


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The opposite of `pack`.

    >>> unpack(pack(np.array([[3, 0, 1, 2]], np.uint8), 2), 2).tolist()
    [[3, 0, 1, 2]]
    """
    each = 8 // bits
    shifts = np.arange(each - 1, -1, -1, dtype=np.uint8) * np.uint8(bits)
    made: np.ndarray = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return made.reshape(*packed.shape[:-1], packed.shape[-1] * each)


def k_means(vectors: np.ndarray, k: int, chance: np.random.Generator, iterations: int = ITERATIONS) -> np.ndarray:
    """Float32 (k, dim) centroids of unit length; nearness is the inner product (spherical k-means).

    It starts from `k` drawn vectors. A centroid that nothing is near moves to one of the vectors that are worst served.
    """
    centroids: np.ndarray = vectors[np.sort(chance.choice(len(vectors), k, replace=False))].astype(np.float32)
    for done in range(iterations):
        step(done, iterations, "rounds of k-means")
        best, closeness = _assigned(vectors, centroids)
        order = np.argsort(best, kind="stable")
        filled, starts = np.unique(best[order], return_index=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0)
        centroids = centroids.copy()
        centroids[filled] = sums
        empty = np.setdiff1d(np.arange(k), filled)
        centroids[empty] = vectors[np.argsort(closeness, kind="stable")[: len(empty)]]
        centroids = _unit(centroids)
    return centroids


def _buckets(vectors: np.ndarray, centroids: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Where quantiles of all residuals of `vectors` begin, and their middles."""
    left = (vectors - centroids[nearest(vectors, centroids)]).ravel()
    steps = 2**bits
    cuts = np.quantile(left, np.arange(1, steps) / steps)
    middles = np.quantile(left, (np.arange(steps) + 0.5) / steps)
    return cuts.astype(np.float32), middles.astype(np.float32)


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Int64 (n,): the centroid with the highest inner product with each vector."""
    return _assigned(vectors, centroids)[0]


def _assigned(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each vector, and their inner product."""
    best, closeness = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _AT_ONCE):
        if start:
            step(start, len(vectors), "vectors")
        products = vectors[start : start + _AT_ONCE] @ centroids.T
        rows = best[start : start + _AT_ONCE] = products.argmax(axis=1)
        closeness[start : start + _AT_ONCE] = np.take_along_axis(products, rows[:, None], 1)[:, 0]
    return best, closeness


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    made: np.ndarray = (rows / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return made
