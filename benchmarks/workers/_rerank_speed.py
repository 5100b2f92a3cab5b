"""What the workers of the group `rerank_speed` share: passages and queries, turns, and how far scores agree.

Job: `collection` (a folder), `passages`, `queries`, `rounds`, `systems` (by name), `reference` (a name), `seed`.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _worker import Out

from triptych import Settings
from triptych.retrievers.loading import set_threads
from triptych.tools.evaluation import datasets

TOP = 10
Score = Callable[[str, list[str]], list[float]]
"""A query and passages → their scores."""


def measured(job: dict[str, Any], out: Out, made: Callable[[str, dict[str, Any]], Score]) -> None:
    """Build every system of the job, and have them take turns; everything is put into `out`."""
    out.put("threads", set_threads(Settings.load().threads))
    queries, passages = texts_of(job)
    out.put("queries", len(queries))
    out.put("passages", len(passages))
    out.put("reference", job["reference"])
    systems = {name: made(name, asked) for name, asked in job["systems"].items()}
    for score in systems.values():
        score(queries[0], passages[:2])
    per_s: dict[str, list[float]] = {name: [] for name in systems}
    cpu_s: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(job["rounds"]):
        scores: dict[str, np.ndarray] = {}
        for name, score in systems.items():
            start, cpu = time.perf_counter(), time.process_time()
            scores[name] = np.array([score(query, passages) for query in queries])
            per_s[name].append(len(queries) * len(passages) / (time.perf_counter() - start))
            cpu_s[name].append(time.process_time() - cpu)
        out.put("cpu_s", cpu_s)
        out.put("per_s", per_s)
        if not number:
            out.put("agreement", agreement(scores, job["reference"]))
        out.put("load_average", os.getloadavg()[0])


def texts_of(job: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Queries, and passages drawn by the seed."""
    data = datasets.collection(Path(job["collection"]), limit=job["queries"], seed=job["seed"])
    found = [f"{row.title}\n{row.text}".strip() for row in data.passages.values() if row.text.strip()]
    order = np.random.default_rng(job["seed"]).permutation(len(found))[: job["passages"]]
    return [query.text for query in data.queries.values()], [found[number] for number in order]


def agreement(scores: Mapping[str, np.ndarray], reference: str) -> dict[str, dict[str, float]]:
    """By system, of scores (queries, passages): the largest difference to the reference's, and how alike tops are."""
    wanted = scores[reference]
    return {
        name: {
            "largest_difference": float(np.abs(found - wanted).max()),
            "top10": float(np.mean([_shared(*pair) for pair in zip(found, wanted, strict=True)])),
        }
        for name, found in scores.items()
    }


def _shared(found: np.ndarray, wanted: np.ndarray) -> float:
    tops = [set(np.argsort(-one, kind="stable")[:TOP].tolist()) for one in (found, wanted)]
    return len(tops[0] & tops[1]) / len(tops[1])
