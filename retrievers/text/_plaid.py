"""PLAID: the best passages by MaxSim, most of which are never decompressed.

Santhanam, Khattab, Potts and Zaharia 2022, arXiv:2205.09707. Four stages, each on fewer passages than the one before:
(1) the passages that have a vector in one of the cells nearest to a query vector; (2) MaxSim of the centroids in their
vectors' place, without centroids that no query vector is near to; (3) the same with all centroids; (4) MaxSim of the
decompressed vectors. Passages are told by their number, from 0, in the order they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from ...errors import BadInput, StoreError
from ._residual import Codec, Codes

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("centroids", "cuts", "middles", "cells", "residuals", "lengths")
REBUILD = "Build the index again: `triptych rebuild` with the same --library."


class Depth(NamedTuple):
    """How far each stage looks.

    Attributes:
        cells: for each query vector.
        threshold: of stage 2: a centroid's highest inner product with a query vector, below which it does not count.
        passages: that stage 2 keeps; stage 3 keeps a fourth of them.
    """

    cells: int
    threshold: float
    passages: int

    @classmethod
    def of(cls, k: int) -> Depth:
        """The published defaults for the best `k`."""
        if k <= 10:
            return cls(1, 0.5, 256)
        return cls(2, 0.45, 1024) if k <= 100 else cls(4, 0.4, max(4 * k, 4096))


class Found(NamedTuple):
    """The answer to a query.

    Attributes:
        passages: int64 (≤ k,), best first, ties by number.
        scores: float32 (≤ k,): MaxSim with the decompressed vectors.
        kept: how many passages each of the four stages looked at.
    """

    passages: np.ndarray
    scores: np.ndarray
    kept: tuple[int, int, int, int]


@dataclass(frozen=True)
class Plaid:
    """Compressed token vectors of passages with an inverted list of each cell.

    Attributes:
        codes: of all vectors, passage after passage.
        lengths: int64 (passages,): vectors of each; at least 1.
    """

    codec: Codec
    codes: Codes
    lengths: np.ndarray

    @classmethod
    def build(cls, vectors: Sequence[np.ndarray], bits: int = 2, k: int | None = None, seed: int = 0) -> Plaid:
        """An index of passages.

        Args:
            vectors: of each passage: float32 (≥ 1, dim), of unit length.
            bits, k, seed: see `Codec.fit`.

        Raises:
            BadInput: no passages, or one without vectors.
        """
        together, lengths = _together(vectors)
        codec = Codec.fit(together, bits, k, seed)
        return cls(codec, codec.encode(together), lengths)

    def with_more(self, vectors: Sequence[np.ndarray]) -> Plaid:
        """This index with further passages behind, compressed with the centroids and buckets that are there."""
        together, lengths = _together(vectors)
        return self.joined([Plaid(self.codec, self.codec.encode(together), lengths)])

    def joined(self, more: Sequence[Plaid]) -> Plaid:
        """This index with the passages of others of the same codec behind, in their order."""
        parts = [self, *more]
        codes = Codes(
            np.concatenate([one.codes.cells for one in parts]), np.concatenate([one.codes.residuals for one in parts])
        )
        return replace(self, codes=codes, lengths=np.concatenate([one.lengths for one in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Of everything that is saved."""
        codec = self.codec
        return int(sum(one.nbytes for one in (codec.centroids, codec.cuts, codec.middles, self.lengths, self.codes)))

    def search(self, query: np.ndarray, k: int, depth: Depth | None = None, among: np.ndarray | None = None) -> Found:
        """The best `k` passages, or all that count where these are fewer.

        Where no more count than the last stage may look at, it looks at all of them: a narrow filter is exact.

        Args:
            query: float32 (q, dim), of unit length.
            depth: default: `Depth.of(k)`.
            among: bool (passages,): which of them count; default: all.

        Raises:
            BadInput: k below 1, or a query of another dimension or without vectors.
        """
        if k < 1:
            raise BadInput(f"k is `{k}`.", "Ask for 1 or more.")
        if query.ndim != 2 or not len(query) or query.shape[1] != self.codec.dim:
            raise BadInput(f"The query's vectors have the shape `{query.shape}`.", f"Give (n, {self.codec.dim}).")
        depth = depth or Depth.of(k)
        last = max(depth.passages // 4, k)
        if among is not None and np.count_nonzero(among) <= last:
            first = second = third = np.flatnonzero(among)
        else:
            similar = query @ self.codec.centroids.T  # (q, centroids)
            first = self._candidates(similar, depth.cells, k, among)
            counts = similar.max(axis=0) >= depth.threshold
            second = _best(first, self._by_centroids(similar, first, counts), max(depth.passages, k))
            third = _best(second, self._by_centroids(similar, second), last)
        scores = self.exact(query, third)
        order = np.lexsort((third, -scores))[:k]
        return Found(third[order], scores[order], (len(self), len(first), len(second), len(third)))

    def exact(self, query: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """Float32 (passages,): MaxSim of `query` with the decompressed vectors of each."""
        rows, starts = self._rows(passages)
        vectors = self.codec.decode(Codes(self.codes.cells[rows], self.codes.residuals[rows]))
        return max_sims(vectors @ query.T, starts)

    def without(self, kept: np.ndarray) -> Plaid:
        """This index with only the passages of a bool (passages,), which are then counted anew."""
        return self.taking(np.flatnonzero(kept))

    def taking(self, passages: np.ndarray) -> Plaid:
        """This index with these passages (numbers, each once) alone, in this order."""
        rows, _ = self._rows(passages)
        codes = Codes(self.codes.cells[rows], self.codes.residuals[rows])
        return replace(self, codes=codes, lengths=self.lengths[passages])

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `of` needs, by `NAMES`."""
        codec, codes = self.codec, self.codes
        arrays = (codec.centroids, codec.cuts, codec.middles, codes.cells, codes.residuals, self.lengths)
        return dict(zip(NAMES, arrays, strict=True))

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Plaid:
        """What `arrays` gave.

        Raises:
            KeyError: one is not there.
            ValueError: they do not fit together.
        """
        centroids, cuts, middles, cells, residuals, lengths = (arrays[name] for name in NAMES)
        whole = centroids.ndim == residuals.ndim == 2 and len(middles) == len(cuts) + 1 and len(cells) == len(residuals)
        if not whole or lengths.sum() != len(cells) or cells.max(initial=0) >= len(centroids):
            raise ValueError("its parts do not fit together")
        return cls(Codec(centroids, cuts, middles), Codes(cells, residuals), lengths)

    def save(self, path: Path) -> None:
        """Into one `.npz` file."""
        write_arrays(path, self.arrays())

    @classmethod
    def open(cls, path: Path) -> Plaid:
        """What was saved in `path`.

        Raises:
            StoreError: the file is not there, or not what `save` writes.
        """
        arrays = read_arrays(path)
        try:
            return cls.of(arrays)
        except (KeyError, ValueError) as error:
            raise unreadable(path, error) from None

    def _candidates(self, similar: np.ndarray, cells: int, k: int, among: np.ndarray | None) -> np.ndarray:
        """Stage 1: the passages in the `cells` nearest cells of each query vector, ascending; where fewer than `k` of
        them count, in four times as many cells, and so on."""
        while True:
            cells = min(cells, similar.shape[1])
            near = np.unique(np.argpartition(-similar, cells - 1, axis=1)[:, :cells])
            lists = [self._lists[1][self._lists[0][cell] : self._lists[0][cell + 1]] for cell in near]
            found = np.unique(np.concatenate(lists))
            if among is not None:
                found = found[among[found]]
            if len(found) >= k or cells == similar.shape[1]:
                return found
            cells *= 4

    def _by_centroids(self, similar: np.ndarray, passages: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """Stages 2 and 3: MaxSim with centroids; a passage without any that counts comes last."""
        rows, starts = self._rows(passages)
        cells = self.codes.cells[rows]
        if counts is None:
            return max_sims(np.ascontiguousarray(similar.T)[cells], starts)
        kept = counts[cells]
        owner = np.repeat(np.arange(len(passages)), self.lengths[passages])[kept]
        scores = np.full(len(passages), -np.inf, np.float32)
        if len(owner):
            found, begins = np.unique(owner, return_index=True)
            scores[found] = max_sims(np.ascontiguousarray(similar.T)[cells[kept]], begins)
        return scores

    def _rows(self, passages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of these passages' vectors, and where each passage begins among them."""
        lengths = self.lengths[passages]
        starts = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(self._begins[passages] - starts, lengths), starts

    @cached_property
    def _begins(self) -> np.ndarray:
        made: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return made

    @cached_property
    def _lists(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each cell's list begins (centroids + 1,), and the lists: the passages of each cell, each once."""
        owners = np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)
        pairs = np.unique(self.codes.cells.astype(np.int64) * len(self) + owners)
        bounds = np.searchsorted(pairs, np.arange(len(self.codec.centroids) + 1) * len(self))
        return bounds, pairs % len(self)


def max_sims(products: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """MaxSim of each passage: the sum, over query vectors, of the highest inner product with one of its vectors.

    Args:
        products: float32 (vectors, q), passage after passage.
        starts: where each passage's vectors begin.
    """
    if not len(starts):
        return np.zeros(0, np.float32)
    best: np.ndarray = np.maximum.reduceat(products, starts, axis=0).sum(axis=1, dtype=np.float32)
    return best


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Into one `.npz` file, whole or not at all."""
    scratch = path.with_name(f"{path.name}.part")
    with scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    scratch.replace(path)


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file, or those of these names.

    Raises:
        StoreError: the file is not there, damaged, or lacks one.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, BadZipFile, ZlibError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> StoreError:
    """What a damaged file is told as."""
    return StoreError(f"`{path.name}` cannot be read: {error}.", REBUILD)


def _best(passages: np.ndarray, scores: np.ndarray, size: int) -> np.ndarray:
    """The `size` passages with the highest scores, ascending."""
    return np.sort(passages[np.lexsort((passages, -scores))[:size]])


def _together(vectors: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(one) for one in vectors], np.int64)
    if not len(lengths) or not lengths.all():
        raise BadInput("A passage has no vectors.", "Give every passage one or more.")
    return np.concatenate([np.asarray(one, np.float32) for one in vectors]), lengths
