"""Token vectors of passages by item id, as they are or compressed: what the files of `_plaid_index` hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ...progress import step
from ..fusion import best_first
from ._plaid import Plaid, max_sims, read_arrays, unreadable
from ._residual import SAMPLED, Codec, centroids_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..fusion import Ranked
    from ._plaid import Depth

_DIGITS = 5


@dataclass(frozen=True)
class Whole:
    """Vectors as the network made them, passage after passage.

    Attributes:
        lengths: int64 (passages,).
        vectors: float32 (sum of the lengths, dim).
    """

    ids: tuple[str, ...]
    lengths: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, ids: Sequence[str], vectors: Sequence[np.ndarray]) -> Whole:
        """Of passages, at least one."""
        return cls(tuple(ids), np.array([len(one) for one in vectors], np.int64), np.concatenate(vectors))

    def without(self, gone: set[str]) -> Whole:
        """Those of other passages than `gone`."""
        kept = np.array([id_ not in gone for id_ in self.ids], bool)
        ids = tuple(id_ for id_ in self.ids if id_ not in gone)
        return Whole(ids, self.lengths[kept], self.vectors[np.repeat(kept, self.lengths)])

    def joined(self, more: Sequence[Whole]) -> Whole:
        """With others behind."""
        parts = [self, *more]
        ids = tuple(id_ for one in parts for id_ in one.ids)
        return Whole(
            ids, np.concatenate([one.lengths for one in parts]), np.concatenate([one.vectors for one in parts])
        )

    def search(self, query: np.ndarray, k: int, depth: Depth | None, among: np.ndarray | None) -> Ranked:
        """The best `k` by MaxSim with every passage; `depth` bounds nothing here."""
        scores = max_sims(self.vectors @ query.T, np.cumsum(self.lengths) - self.lengths)
        numbers = range(len(self.ids)) if among is None else np.flatnonzero(among).tolist()
        return _ranked({self.ids[n]: scores[n] for n in numbers})[:k]

    def arrays(self) -> dict[str, np.ndarray]:
        """For `np.savez`."""
        return {"ids": packed(self.ids), "lengths": self.lengths, "vectors": self.vectors}


@dataclass(frozen=True)
class Coded:
    """Compressed vectors.

    Attributes:
        ids: ascending, so that ties by number are ties by id.
        learned: how many vectors the index had when its centroids were learned.
    """

    ids: tuple[str, ...]
    plaid: Plaid
    learned: int

    @classmethod
    def of(cls, ids: Sequence[str], plaid: Plaid, learned: int) -> Coded:
        """Of passages in any order."""
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
        return cls(tuple(ids[n] for n in order), plaid.taking(order), learned)

    def without(self, gone: set[str]) -> Coded:
        """As `Whole.without`."""
        kept = np.array([id_ not in gone for id_ in self.ids], bool)
        ids = tuple(id_ for id_ in self.ids if id_ not in gone)
        return Coded(ids, self.plaid.without(kept), self.learned)

    def joined(self, more: Sequence[Whole]) -> Coded:
        """With others compressed as these are."""
        ids = [*self.ids, *(id_ for one in more for id_ in one.ids)]
        return Coded.of(ids, self.plaid.joined([_coded(self.plaid.codec, one) for one in more]), self.learned)

    def search(self, query: np.ndarray, k: int, depth: Depth | None, among: np.ndarray | None) -> Ranked:
        """The best `k` by the four stages."""
        found = self.plaid.search(query, k, depth, among)
        return _ranked({self.ids[n]: score for n, score in zip(found.passages, found.scores, strict=True)})

    def arrays(self) -> dict[str, np.ndarray]:
        """For `np.savez`."""
        return {"ids": packed(self.ids), "learned": np.array(self.learned), **self.plaid.arrays()}

    @property
    def lengths(self) -> np.ndarray:
        return self.plaid.lengths


P = TypeVar("P", Whole, Coded)


def learned(sources: Sequence[Whole | Path]) -> Coded:
    """Centroids and buckets of all vectors, and their codes. In memory are one source at a time, and the sample.

    Args:
        sources: at least one; paths of what `Whole.arrays` gave.
    """
    counts = [_count(source) for source in sources]
    total = sum(counts)
    centroids = centroids_for(total)
    chance = np.random.default_rng(0)
    drawn = np.sort(chance.choice(total, min(total, SAMPLED * centroids), replace=False))
    bounds = np.searchsorted(drawn, np.cumsum([0, *counts]))
    begins = np.cumsum([0, *counts])
    sample = [opened(source).vectors[drawn[bounds[n] : bounds[n + 1]] - begins[n]] for n, source in enumerate(sources)]
    codec = Codec.fit(np.concatenate(sample), k=centroids)
    ids: list[str] = []
    made: list[Plaid] = []
    for done, source in enumerate(sources):
        step(done, len(sources), "parts compressed")
        part = opened(source)
        ids += part.ids
        made.append(_coded(codec, part))
    return Coded.of(ids, made[0].joined(made[1:]), total)


def _coded(codec: Codec, part: Whole) -> Plaid:
    return Plaid(codec, codec.encode(part.vectors), part.lengths)


def _count(source: Whole | Path) -> int:
    lengths = source.lengths if isinstance(source, Whole) else read_arrays(source, "lengths")["lengths"]
    return int(lengths.sum())


def opened(source: Whole | Path) -> Whole:
    """What is in a file that `Whole.arrays` went into.

    Raises:
        StoreError: the file is damaged.
    """
    if isinstance(source, Whole):
        return source
    arrays = read_arrays(source, "ids", "lengths", "vectors")
    try:
        ids = unpacked(arrays["ids"])
    except ValueError as error:
        raise unreadable(source, error) from None
    return checked(source, Whole(ids, arrays["lengths"], arrays["vectors"]))


def checked(path: Path, part: P) -> P:
    """`part`, which was read from `path`.

    Raises:
        StoreError: it does not fit together.
    """
    fits = isinstance(part, Coded) or (part.vectors.ndim == 2 and part.lengths.sum() == len(part.vectors))
    if not fits or len(part.ids) != len(part.lengths) or not (part.lengths >= 1).all():
        raise unreadable(path, ValueError("its parts do not fit together"))
    return part


def _ranked(scores: dict[str, np.float32]) -> Ranked:
    """To five digits, so that equal passages stay equal."""
    return best_first({id_: round(float(score), _DIGITS) for id_, score in scores.items()})


def packed(ids: Sequence[str]) -> np.ndarray:
    """As an array of UTF-8 bytes."""
    return np.array([id_.encode("utf-8") for id_ in ids], np.bytes_)


def unpacked(array: np.ndarray) -> tuple[str, ...]:
    """What was `packed`.

    Raises:
        ValueError: it is something else.
    """
    if array.dtype.kind != "S" or array.ndim != 1:
        raise ValueError("its ids are no text")
    return tuple(one.decode("utf-8") for one in array.tolist())
