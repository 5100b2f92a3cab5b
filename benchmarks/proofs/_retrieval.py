"""What proofs of retrievers share that are measured on a collection: their command line, and one retriever's arm."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import _proof
import numpy as np

from triptych.retrievers.base import Hit, Item, Query
from triptych.tools.evaluation import ranking
from triptych.tools.evaluation.result import Arm

if TYPE_CHECKING:
    from triptych.retrievers.base import Retriever

METRICS = ("nDCG@10", "recall@100")
TOP = 100


@dataclass(frozen=True)
class Task:
    """Items to find, queries by id, and which items each wants: query id → item id → grade."""

    items: Sequence[Item]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]

    def measured(self, system: str, retriever: Retriever, folder: Path, **settings: str | int | float) -> Arm:
        """What `retriever`, empty as yet, makes of them.

        Args:
            folder: its index, whose size is told.
        """
        start = time.perf_counter()
        retriever.add(self.items)
        retriever.save(folder)
        build_s = time.perf_counter() - start
        hits, seconds = self.asked(retriever)
        cost = {
            "build_s": build_s,
            "ms_p50": float(np.percentile(seconds, 50)) * 1000,
            "bytes_per_passage": size(folder) / len(self.items),
        }
        return self.arm(system, {key: [hit.item.id for hit in found] for key, found in hits.items()}, cost, **settings)

    def asked(self, retriever: Retriever, k: int = TOP) -> tuple[dict[str, list[Hit]], list[float]]:
        """The hits of every query, and the seconds that each took."""
        found, seconds = {}, []
        for key, text in self.queries.items():
            start = time.perf_counter()
            found[key] = retriever.search(Query(text), k)
            seconds.append(time.perf_counter() - start)
        return found, seconds

    def arm(
        self,
        system: str,
        orders: Mapping[str, Sequence[str]],
        cost: Mapping[str, float] | None = None,
        **settings: str | int | float,
    ) -> Arm:
        """Values of these orders (item ids, best first)."""
        judged = {query: self.qrels[query] for query in self.queries}
        values = ranking.per_query(judged, orders, METRICS)
        return Arm(
            system=system,
            settings=settings,
            metrics={**ranking.means(values), **(cost or {})},
            per_query={name: dict(by_query) for name, by_query in values.items()},
        )


def size(folder: Path) -> int:
    """Bytes of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def asked(description: str | None, limit: int | None = None) -> argparse.Namespace:
    """`--data FOLDER`, `--limit N`, `--seeds N`, `--out FOLDER`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the collection to measure on")
    parser.add_argument("--limit", type=int, default=limit, help="that many queries, drawn at random")
    parser.add_argument("--seeds", type=int, default=3, help="how many draws are averaged")
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.add_argument("--full", action=_proof.OneSize)
    return parser.parse_args()


def command(system: str, given: argparse.Namespace) -> str:
    """The line that makes this result again; the folder is told by its name."""
    words = ["make", "prove", f"ID={system}", f"DATA={given.data.name}"]
    return " ".join([*words, *([f"LIMIT={given.limit}"] if given.limit else [])])
