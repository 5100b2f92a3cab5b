"""Latency: what a warm `retrieve` costs, stage by stage, and how fast a library is indexed; in both number formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cells import OURS, Cell, Outcome, Plan

from triptych.errors import BadInput
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

PRECISIONS = ("auto", "float32")
BUDGET = 2000
FULL = {"passages": 1400, "queries": 60, "warm_up": 3, "rounds": 3}
QUICK = {"passages": 100, "queries": 6, "warm_up": 1, "rounds": 1}
QUICK_PRECISIONS = PRECISIONS[:1]
STAGES = ("total", "search", "rerank", "compress")
BAR_MS = {"p50": 3000, "p95": 6000}
BAR_RATIO = 0.8


def cells(plan: Plan) -> list[Cell]:
    """One per precision: models are loaded once in each."""
    data = collection(plan)
    job = {
        **(QUICK if plan.quick else FULL),
        "collection": str(data.folder),
        "sha256": data.info.sha256,
        "budget": BUDGET,
        "seed": plan.seed,
    }
    precisions = QUICK_PRECISIONS if plan.quick else PRECISIONS
    return [Cell(name, OURS, "latency_retrieve.py", {**job, "precision": name}) for name in precisions]


def collection(plan: Plan) -> datasets.Collection:
    """The plan's collection with the most texts, and the queries that are asked.

    Raises:
        BadInput: none of them has a text.
    """
    asked = QUICK if plan.quick else FULL
    limit = asked["queries"] + asked["warm_up"]
    found = [datasets.collection(folder, limit=limit, seed=plan.seed) for folder in plan.data]
    largest = max(found, key=_texts, default=None)
    if largest is None or not _texts(largest):
        raise BadInput(f"{len(found)} collections, `0` texts.", "Give --data a collection with texts.")
    return largest


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """One arm per precision."""
    data = collection(plan)
    return Result(
        name="bench_latency",
        kind="latency",
        title=f"A warm retrieve and the indexing of a library: {data.info.name}",
        command=command,
        seed=plan.seed,
        data=(data.info,),
        environment=environment(),
        arms=tuple(_arm(precision, outcome) for precision, outcome in outcomes.items()),
        notes=tuple(_notes(outcomes)),
    )


def _texts(data: datasets.Collection) -> int:
    return sum(bool(row.text.strip()) for row in data.passages.values())


def _arm(precision: str, outcome: Outcome) -> Arm:
    data = outcome.data
    chosen = {key: data["settings"][key] for key in ("reranker", "refiner", "depth")} if "settings" in data else {}
    return Arm(
        system="triptych",
        settings={"precision": precision, "max_tokens": BUDGET, **chosen},
        status=outcome.status,
        reason=outcome.reason,
        metrics=dict(_metrics(data)),
    )


def _metrics(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Whatever the worker had come to."""
    import numpy as np

    if asked := data.get("retrieve"):
        for stage in STAGES:
            for name, percent in (("p50", 50), ("p95", 95)):
                yield f"{stage}_ms_{name}", float(np.percentile(asked["ms"][stage], percent))
        yield "queries", len(asked["used"])
        yield "tokens_used", float(np.mean(asked["used"]))
    if indexing := data.get("indexing"):
        yield "passages", indexing["passages"]
        yield "index_passages_per_s", indexing["passages"] / indexing["seconds"]
    if rounds := data.get("rounds"):
        for name in ("encoder_per_s", "index_per_s", "ratio"):
            told = "index_ratio" if name == "ratio" else f"cut_passages_{name}"
            yield told, float(np.median([one[name] for one in rounds]))
    if parsing := data.get("parsing"):
        yield from parsing.items()
    if "peak_rss_mb" in data:
        yield "peak_rss_mb", data["peak_rss_mb"]


def _notes(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield (
        f"The bars: a warm retrieve at or below {BAR_MS['p50']:,} ms (p50) and {BAR_MS['p95']:,} ms (p95); an "
        f"index_ratio of {BAR_RATIO} or more."
    )
    yield (
        f"Every block that retrieve gave was counted again: above its budget of {BUDGET:,} tokens, or not what was "
        "reported, and the arm would have failed. Evidence below the relevance floor never fills the budget."
    )
    yield (
        "index_passages_per_s: the whole way from files to a library. index_ratio: of passages that are cut already, "
        "encoder, lexicon and store (cut_passages_index_per_s) over the encoder alone (cut_passages_encoder_per_s), in "
        "turns, the median of the rounds. peak_rss_mb: of the process up to the last query."
    )
    computed = {name: outcome.data["dtype"] for name, outcome in outcomes.items() if "dtype" in outcome.data}
    if computed:
        told = ", ".join(f"`{name}` computes in {dtype}" for name, dtype in computed.items())
        yield f"On this machine {told}."
    loads = {name: outcome.data["load_average"] for name, outcome in outcomes.items() if "load_average" in outcome.data}
    if loads:
        told = ", ".join(f"{load:.1f} (`{name}`)" for name, load in loads.items())
        yield f"Load average after the last query: {told}; above the number of cores, others were at work."
