"""What proofs of rerankers share that are measured on a collection: their command line, lists of hits, arms."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import _proof

from triptych.retrievers.base import Hit, Query
from triptych.tools.evaluation import datasets, ranking
from triptych.tools.evaluation.passages import corpus
from triptych.tools.evaluation.result import Arm

if TYPE_CHECKING:
    from triptych.rerankers.base import Ranking, Reranker

RUN = "run.bm25.trec"
METRICS = ("nDCG@10", "MRR@10")


@dataclass(frozen=True)
class Lists:
    """Queries with the hits of a first stage.

    Attributes:
        collection: with the queries that were chosen.
        hits: query id → hits, best first.
    """

    collection: datasets.Collection
    hits: Mapping[str, list[Hit]]

    @classmethod
    def of(cls, folder: Path, limit: int | None, top: int, seed: int) -> Lists:
        """The first `top` hits of the run in `folder`, for `limit` of its queries, drawn with `seed`."""
        collection = datasets.collection(folder, limit=limit, seed=seed)
        run = datasets.run_file(folder / RUN, collection)
        kept = {query: run[query][:top] for query in collection.queries if run.get(query)}
        items = corpus(collection, {key for rows in kept.values() for key, _ in rows}).items_of
        hits = {query: [Hit(item, score) for key, score in rows for item in items[key]] for query, rows in kept.items()}
        return cls(collection, hits)

    def before(self) -> Arm:
        """The first stage's own order."""
        return self.arm("run", {query: [hit.item.id for hit in hits] for query, hits in self.hits.items()}, {})

    def measured(self, system: str, reranker: Reranker, **settings: str | int | float | bool) -> Arm:
        """What the reranker makes of them, at what cost."""
        found: dict[str, Ranking] = {}
        start = time.perf_counter()
        for query, hits in self.hits.items():
            found[query] = reranker.rank(Query(self.collection.queries[query].text), hits)
        cost = {
            "s_per_query": (time.perf_counter() - start) / len(found),
            "calls": fmean(one.calls for one in found.values()),
            "repaired": fmean(one.repaired for one in found.values()),
            "ties": fmean(ties(one) for one in found.values()),
        }
        orders = {query: [hit.item.id for hit in one.hits] for query, one in found.items()}
        return self.arm(system, orders, cost, **settings)

    def arm(
        self,
        system: str,
        orders: Mapping[str, Sequence[str]],
        cost: Mapping[str, float],
        **settings: str | int | float | bool,
    ) -> Arm:
        """Values of these orders (passage ids, best first)."""
        judged = {query: self.collection.qrels[query] for query in orders}
        values = ranking.per_query(judged, orders, METRICS)
        return Arm(
            system=system,
            settings=settings,
            metrics={**ranking.means(values), **cost},
            per_query={name: dict(by_query) for name, by_query in values.items()},
        )


def ties(found: Ranking) -> float:
    """The share of hits that have the score of the hit before them."""
    scores = [hit.score for hit in found.hits]
    same = [one == other for one, other in pairwise(scores)]
    return fmean(same) if same else 0.0


def asked(description: str | None, limit: int, learns: bool = True) -> argparse.Namespace:
    """`--data FOLDER`, `--limit N`, `--seed N`, `--out FOLDER`, `--work FOLDER`, and `--train FILE` for what learns."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if learns:
        parser.add_argument("--train", type=Path, required=True, help="questions with passages, to learn from")
    parser.add_argument("--data", type=Path, required=True, help="the collection to measure on, with its BM25 run")
    parser.add_argument("--limit", type=int, default=limit, help="that many queries, drawn at random with the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.add_argument("--full", action=_proof.OneSize)
    parser.add_argument("--work", type=Path, help="where a search or a fit is kept, to go on from")
    return parser.parse_args()


def command(system: str, given: argparse.Namespace) -> str:
    """The line that makes this result again; files are told by their names."""
    train = [f"--train {given.train.name}"] if hasattr(given, "train") else []
    options = [*train, f"--data {given.data.name}", f"--limit {given.limit}"]
    return " ".join([f"python benchmarks/proofs/{system}.py", *options])


def pairs(path: Path, shuffle: int) -> list[tuple[str, str]]:
    """Question and answering passage of each line of a file of Natural Questions, in a drawn order."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    random.Random(shuffle).shuffle(rows)
    return [(row["question"], f"{row['passage']['title']}\n{row['passage']['text']}") for row in rows]
