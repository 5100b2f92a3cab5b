"""What proofs of dense retrievers share: their command line, rankings by inner product, arms over several seeds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import _proof
import numpy as np

from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.text.bm25 import BM25
from triptych.tools.evaluation import ranking
from triptych.tools.evaluation.result import Arm

if TYPE_CHECKING:
    from triptych.retrievers.base import Encoder

METRICS = ("MRR@10", "recall@1")
SEEDS = (0, 1, 2)
TOP = 10


def asked(description: str | None, limit: int) -> argparse.Namespace:
    """`--train FILE`, `--data FOLDER`, `--limit N`, `--seeds N`, `--rate R`, `--full`, `--out FOLDER`, `--work FOLDER`.

    A proof reads of them what it needs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="questions with passages, to learn from and to measure on")
    parser.add_argument("--data", type=Path, help="a collection, to learn from and to measure on")
    parser.add_argument("--limit", type=int, default=limit, help="so many questions are learned from")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how often each arm is trained")
    parser.add_argument("--rate", type=float, help="try a learning rate on the questions kept for that")
    parser.add_argument("--full", action="store_true", help="all questions, more epochs, larger batches; for a GPU")
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.add_argument("--work", type=Path, help="where fits are kept, to go on from")
    return parser.parse_args()


def command(system: str, given: argparse.Namespace) -> str:
    """The line that makes this result again; files are told by their names."""
    source = f"TRAIN={given.train.parent.name}/{given.train.name}" if given.train else f"DATA={given.data.name}"
    return f"make prove ID={system} {source} {'FULL=1' if given.full else f'LIMIT={given.limit}'}"


def tried(given: argparse.Namespace, on: str) -> str:
    """Where the learning rate was tried."""
    return "that of the smaller run" if given.full else f"tried on {on}"


def item(key: str, title: str, text: str) -> Item:
    """A passage."""
    return Item(key, text, Source(key), meta={"title": title})


def lexical(items: Sequence[Item]) -> BM25:
    """BM25 over `items`."""
    search = BM25.tiny()
    search.add(items)
    search.store.flush()
    return search


def by_words(search: BM25, queries: Mapping[str, str], top: int = TOP) -> dict[str, list[Item]]:
    """What BM25 finds for each query, best first."""
    return {key: [hit.item for hit in search.search(Query(text), top)] for key, text in queries.items()}


def by_vectors(encoder: Encoder, queries: Mapping[str, str], items: Sequence[Item]) -> dict[str, list[Item]]:
    """The items of the largest inner product with each query, best first."""
    scores = encoder.encode([Query(text) for text in queries.values()], "query") @ encoder.encode(items, "document").T
    best = (np.argsort(-row, kind="stable")[:TOP] for row in scores)
    return {key: [items[place] for place in row] for key, row in zip(queries, best, strict=True)}


def arms(
    system: str,
    found: Mapping[str, Sequence[Item]],
    gold: Mapping[str, str],
    splits: Mapping[str, Sequence[str]],
    start: float,
    **settings: str | int | float | bool,
) -> dict[str, Arm]:
    """Of each split, the arm of these rankings.

    Args:
        gold: query id → the passage that answers.
        splits: name → query ids.
        start: when the arm was begun, by `time.perf_counter`.
    """
    seconds = time.perf_counter() - start
    made = {}
    for name, keys in splits.items():
        orders = {key: [one.id for one in found[key]] for key in keys}
        values = ranking.per_query({key: {gold[key]: 1} for key in keys}, orders, METRICS)
        made[name] = Arm(
            system=system,
            settings={"split": name, **settings},
            metrics={**ranking.means(values), "seconds": seconds},
            per_query={metric: dict(by_query) for metric, by_query in values.items()},
        )
    return made
