"""What the proofs of learned term weights share: their command line, k1 and b for a baseline and a system alike, and
weights made once."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import _proof
import numpy as np
from scipy import sparse

from triptych.retrievers.text.analysis import terms

K1 = (0.3, 0.6, 0.9, 1.2, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
B = (0.0, 0.2, 0.4, 0.6, 0.75, 0.9)


def asked(description: str | None, source: str, limit: int, queries: int | None = None) -> argparse.Namespace:
    """`--SOURCE PATH`, `--limit N`, `--full`, `--seeds N`, `--out FOLDER`, `--work FOLDER`, and maybe `--queries N`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{source}", type=Path, required=True, help="what is learned from and measured on")
    parser.add_argument("--limit", type=int, default=limit, help="so many of its texts")
    if queries is not None:
        parser.add_argument("--queries", type=int, default=queries, help="so many queries are measured")
    parser.add_argument("--full", action="store_true", help="all of it, larger batches, more epochs: for a GPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.add_argument("--work", type=Path, help="where fits are kept, to go on from")
    return parser.parse_args()


def command(system: str, given: argparse.Namespace, source: str, **usual: int) -> str:
    """The line that makes this result again; files are told by their names.

    Args:
        usual: what `--limit` and `--queries` are when nobody says; `--full` asks for all.
    """
    words = ["make", "prove", f"ID={system}", f"{source.upper()}={getattr(given, source).name}"]
    told = [f"{name.upper()}={getattr(given, name)}" for name, value in usual.items() if getattr(given, name) != value]
    return " ".join([*words, *(["FULL=1"] if given.full else told)])


@dataclass(frozen=True)
class Tuned:
    """The best of a grid: by what the counts were made, k1, b, and MRR@10 on the queries that it was chosen on."""

    made: Any
    k1: float
    b: float
    mrr: float


@contextmanager
def kept(work: Path | None, seed: int) -> Iterator[Path]:
    """The folder of one seed's fit: in `work`, or one that goes."""
    if work is not None:
        yield work / f"seed_{seed}"
        return
    with tempfile.TemporaryDirectory() as out:
        yield Path(out)


class Known:
    """Weights that were made before, in place of a model."""

    def __init__(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        self._weights = weights

    def weights(self, texts: Sequence[str]) -> list[dict[str, float]]:
        return [dict(self._weights[text]) for text in texts]


class Counts:
    """Counts of items, as far as `queries` ask for them.

    Args:
        counts: term → how often, of each item.
        right: the places of the items that each query wants.
    """

    def __init__(
        self, counts: Sequence[Mapping[Any, int]], queries: Sequence[Iterable[Any]], right: Sequence[Sequence[int]]
    ) -> None:
        self._right = right
        self._lengths = np.array([sum(one.values()) for one in counts], float)
        asked = [Counter(query) for query in queries]
        columns = {term: n for n, term in enumerate(sorted({term for one in asked for term in one}))}
        self._tf = _matrix(counts, columns)
        df = np.asarray((self._tf > 0).sum(0)).ravel()
        idf = np.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
        self._asked = _matrix(asked, columns) @ sparse.diags(idf)

    def mrr(self, k1: float, b: float) -> float:
        """MRR@10 of BM25 with Lucene's idf; among equals a right item stands last."""
        places = self._tf.tocoo()
        norm = k1 * (1 - b + b * self._lengths / max(self._lengths.mean(), 1e-9))
        weights = sparse.csr_matrix(
            (places.data / (places.data + norm[places.row]), (places.row, places.col)), places.shape
        )
        scores = (self._asked @ weights.T).toarray()
        values = []
        for row, right in zip(scores, self._right, strict=True):
            best = row[list(right)].max()
            rank = int((row >= best).sum())
            values.append(1 / rank if best > 0 and rank <= 10 else 0.0)
        return float(np.mean(values))


def _matrix(rows: Sequence[Mapping[Any, int]], columns: Mapping[Any, int]) -> Any:
    found = [(n, columns[term], float(tf)) for n, one in enumerate(rows) for term, tf in one.items() if term in columns]
    row, column, tf = zip(*found, strict=True) if found else ((), (), ())
    return sparse.csr_matrix((tf, (row, column)), shape=(len(rows), len(columns)))


def tuned(
    choices: Mapping[Any, Sequence[Mapping[Any, int]]], queries: Sequence[Iterable[Any]], right: Sequence[Sequence[int]]
) -> Tuned:
    """The best of all ways to count, k1 and b; of equals the first."""
    best = Tuned(None, 0.0, 0.0, -1.0)
    for made, counts in choices.items():
        counted = Counts(counts, queries, right)
        for k1, b in product(K1, B):
            found = counted.mrr(k1, b)
            if found > best.mrr:
                best = Tuned(made, k1, b, found)
    return best


def asked_terms(query: str) -> list[str]:
    """As a store reads a query."""
    return terms(query, "query")
