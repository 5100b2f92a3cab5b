"""What the workers of the group `rerank_speed` share: queries with passages, turns, and how far scores agree.

Job: `collection` (a folder), `passages`, `queries`, `systems` (by name), `reference` (a name), `seed`.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _worker import Out

from triptych import Settings
from triptych.refiners.relevance import bm25
from triptych.retrievers.loading import set_threads
from triptych.tools.evaluation import datasets

TOP = 10
POOL = 1000
"""Passages of the collection that the first stage chooses among."""
CHARACTERS = 1200
"""Of a passage, for all: nobody has to cut or to read in windows."""
Score = Callable[[str, list[str]], list[float]]
"""A query and passages → their scores."""


def measured(job: dict[str, Any], out: Out, made: Callable[[str, dict[str, Any]], Score]) -> None:
    """Build every system of the job, and have them take turns, query by query; everything is put into `out`."""
    out.put("threads", set_threads(Settings.load().threads))
    asked = texts_of(job)
    out.put("passages", job["passages"])
    out.put("reference", job["reference"])
    systems = {name: made(name, told) for name, told in job["systems"].items()}
    for score in systems.values():
        score(asked[0][0], asked[0][1][:2])
    found: dict[str, list[list[float]]] = {name: [] for name in systems}
    per_s: dict[str, list[float]] = {name: [] for name in systems}
    cpu_s: dict[str, list[float]] = {name: [] for name in systems}
    for number, (query, passages) in enumerate(asked, start=1):
        for name, score in systems.items():
            start, cpu = time.perf_counter(), time.process_time()
            found[name].append(score(query, passages))
            per_s[name].append(len(passages) / (time.perf_counter() - start))
            cpu_s[name].append(time.process_time() - cpu)
        out.put("queries", number)
        out.put("cpu_s", cpu_s)
        out.put("per_s", per_s)
        out.put("agreement", agreement({name: np.array(one) for name, one in found.items()}, job["reference"]))
        out.put("load_average", os.getloadavg()[0])


def texts_of(job: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Queries, each with the passages that BM25 puts first among `POOL` drawn by the seed."""
    data = datasets.collection(Path(job["collection"]), limit=job["queries"], seed=job["seed"])
    whole = [f"{row.title}\n{row.text}".strip()[:CHARACTERS] for row in data.passages.values() if row.text.strip()]
    drawn = [whole[number] for number in np.random.default_rng(job["seed"]).permutation(len(whole))[:POOL]]
    return [(query.text, first(query.text, drawn, job["passages"])) for query in data.queries.values()]


def first(query: str, passages: Sequence[str], n: int) -> list[str]:
    """The best `n` by BM25, best first."""
    return [passages[number] for number in np.argsort(-bm25(query, passages), kind="stable")[:n]]


def agreement(scores: Mapping[str, np.ndarray], reference: str) -> dict[str, dict[str, float]]:
    """By system, of scores (queries, passages), against the reference: the largest difference, the mean share of its
    first ten that are among the first ten, and the shares of queries with the same first ten, in any and in its order.
    """
    wanted = scores[reference]
    told = {}
    for name, found in scores.items():
        tops = [(_top(one), _top(other)) for one, other in zip(found, wanted, strict=True)]
        shared = [len({*one} & {*other}) / len(other) for one, other in tops]
        told[name] = {
            "largest_difference": float(np.abs(found - wanted).max()),
            "top10": float(np.mean(shared)),
            "same_top10": float(np.mean([share == 1 for share in shared])),
            "same_order10": float(np.mean([one == other for one, other in tops])),
        }
    return told


def _top(scores: np.ndarray) -> list[int]:
    found: list[int] = np.argsort(-scores, kind="stable")[:TOP].tolist()
    return found
