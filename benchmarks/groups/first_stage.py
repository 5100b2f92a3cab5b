"""First stage: ours against search libraries and vector stores on the same machine, with the same MiniLM vectors.

Quality is measured on real collections only. Cost is measured at fixed sizes; the passages that the collections cannot
give are seeded copies, good for cost and for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import envs
from cells import OURS, Cell, Outcome, Plan, text_collections

from triptych.manifests.weights import hash_of
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.tools.evaluation import compare, datasets, ranking
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result

K_QUALITY, K_COST = 100, 10
SIZES, QUICK_SIZES = (1_000, 20_000, 100_000), (1_000,)
QUERIES, QUICK_QUERIES = 120, 50
ASK_S, QUICK_ASK_S = 120.0, 10.0
"""After so long, no further queries of a cost cell are asked; the result says how many were."""
METRICS = ("nDCG@10", "MRR@10", "recall@100")


class System(NamedTuple):
    """One build: its environment, its worker, its routes."""

    env: str
    worker: str
    routes: tuple[str, ...]


SYSTEMS = {
    "ours_lexical": System(OURS, "first_stage_ours.py", ("bm25",)),
    "ours": System(OURS, "first_stage_ours.py", ("dense", "hybrid")),
    "bm25s": System("bm25s", "first_stage_bm25s.py", ("bm25",)),
    "rank_bm25": System("rank_bm25", "first_stage_rank_bm25.py", ("bm25",)),
    "pyserini": System("pyserini", "first_stage_pyserini.py", ("bm25",)),
    "chroma": System("chroma", "first_stage_chroma.py", ("dense",)),
    "lancedb": System("lancedb", "first_stage_lancedb.py", ("bm25", "dense", "hybrid")),
    "qdrant": System("qdrant", "first_stage_qdrant.py", ("dense",)),
}
OUR_IDS = {"bm25": "bm25", "dense": "all_minilm_l6_v2", "hybrid": "hybrid"}


def cells(plan: Plan) -> list[Cell]:
    """First the data, then quality, then cost from small to large."""
    real = {data.info.name: data for data in collections(plan)}
    return [
        *(prepare(plan, data) for data in real.values()),
        *(cell for data in real.values() for cell in _quality_cells(plan, data)),
        *_cost(plan, list(real.values())),
    ]


def collections(plan: Plan) -> list[datasets.Collection]:
    """The plan's collections of text, with the queries that are asked."""
    return text_collections(plan, QUICK_QUERIES if plan.quick else None)


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """Arms of quality by collection, with tests against our hybrid; then arms of cost by size."""
    real = collections(plan)
    quality = {data.info.name: list(_quality(data, outcomes)) for data in real}
    comparisons = [one for arms in quality.values() for one in _tested(arms, plan.seed)]
    cost = [arm for items in _sizes(plan) for arm in _costs(items, outcomes)]
    return Result(
        name="bench_first_stage",
        kind="first_stage",
        title="First stage: quality on real collections, and cost by size",
        command=command,
        seed=plan.seed,
        data=(*(data.info for data in real), *_synthetic(plan, real)),
        environment=environment(),
        arms=(*(arm for arms in quality.values() for arm in arms), *cost),
        comparisons=tuple(comparisons),
        notes=NOTES,
    )


NOTES = (
    "Every system was given the same strings (title and text) and the same MiniLM vectors, made once by our encoder: "
    "no time here holds any encoding. Each ran alone in a process of its own, with its own defaults and as many "
    "threads as it likes.",
    "Ours, qdrant, chroma, lancedb and pyserini write their index to disk; bm25s and rank-bm25 keep it in memory. "
    "qdrant searches exactly, so do lancedb without an index and ours below 10,000 passages; chroma's default is HNSW, "
    "and ours from 10,000 on.",
    "Arms with `items` measure cost, on synthetic data wherever the collections are too small: they say nothing of "
    "quality. build_s: from the first passage to the first query; ms: one query at a time, warm, the best 10; "
    "agreement@10: the share of the exact 10 nearest that were found; peak_rss_mb: the most memory of the process, "
    "index_rss_mb: what of it came after the data had been read.",
    "Our dense and hybrid routes share one index and so one build time and one peak of memory; so do lancedb's three.",
)


# --- cells -----------------------------------------------------------------------------------------------------------


def prepare(plan: Plan, data: datasets.Collection) -> Cell:
    """Encodes a collection."""
    job = {"collection": str(data.folder), "sha256": data.info.sha256, "into": str(folder_of(plan, data))}
    return Cell(f"prepare_{data.info.name}", OURS, "first_stage_prepare.py", job)


def _quality_cells(plan: Plan, data: datasets.Collection) -> Iterator[Cell]:
    for key in SYSTEMS:
        job = {"data": str(folder_of(plan, data)), "k": K_QUALITY, "ask": list(data.queries)}
        yield _measure(f"quality_{data.info.name}_{key}", key, job)


def _cost(plan: Plan, real: Sequence[datasets.Collection]) -> Iterator[Cell]:
    for items in _sizes(plan):
        yield grown(plan, real, items)
        into = str(grown_folder(plan, real, items))
        for key in SYSTEMS:
            job = {"data": into, "k": K_COST, "ask_s": QUICK_ASK_S if plan.quick else ASK_S}
            yield _measure(f"cost_{items}_{key}", key, job)


def grown(plan: Plan, real: Sequence[datasets.Collection], items: int) -> Cell:
    """Makes `items` passages out of the collections."""
    job = {
        "pool": [str(folder_of(plan, data)) for data in real], "items": items, "queries": QUERIES, "k": K_COST,
        "seed": plan.seed, "into": str(grown_folder(plan, real, items)),
    }  # fmt: skip
    return Cell(f"prepare_{items}", OURS, "first_stage_prepare.py", job)


def grown_folder(plan: Plan, real: Sequence[datasets.Collection], items: int) -> Path:
    """Where they lie."""
    pool = [str(folder_of(plan, data)) for data in real]
    return plan.cache / "first_stage" / f"{items}-{_digest([pool, plan.seed])}"


def _measure(name: str, key: str, job: dict[str, Any]) -> Cell:
    env, worker, routes = SYSTEMS[key]
    return Cell(name, env, worker, {**job, "routes": list(routes)})


def folder_of(plan: Plan, data: datasets.Collection) -> Path:
    """Where a collection's prepared data lies; other passages, queries or weights: another folder."""
    return plan.cache / "first_stage" / f"{data.info.name}-{_digest([data.info.sha256, hash_of(WEIGHTS)])}"


def _sizes(plan: Plan) -> tuple[int, ...]:
    return QUICK_SIZES if plan.quick else SIZES


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


# --- arms ------------------------------------------------------------------------------------------------------------


def _quality(data: datasets.Collection, outcomes: Mapping[str, Outcome]) -> Iterator[Arm]:
    name = data.info.name
    for key, system in SYSTEMS.items():
        outcome = outcomes[f"quality_{name}_{key}"]
        for route in system.routes:
            run = outcome.data.get(route, {}).get("run", {})
            whole = len(run) == len(data.queries)  # a part of the queries is not comparable with all of them
            values = ranking.per_query(data.qrels, run, METRICS) if whole else {}
            yield _arm(key, route, {"data": name}, outcome, ranking.means(values) if values else {}, values)


def _tested(arms: Sequence[Arm], seed: int) -> Iterator[Any]:
    [baseline] = [arm for arm in arms if arm.system == OUR_IDS["hybrid"]]
    return compare.against(arms, baseline, METRICS, seed)


def _costs(items: int, outcomes: Mapping[str, Outcome]) -> Iterator[Arm]:
    exact = outcomes[f"prepare_{items}"].data.get("exact", {})
    for key, system in SYSTEMS.items():
        outcome = outcomes[f"cost_{items}_{key}"]
        for route in system.routes:
            yield _arm(key, route, {"items": items}, outcome, _cost_metrics(outcome.data, route, exact, items))


def _arm(
    key: str, route: str, settings: dict[str, Any], outcome: Outcome, metrics: Mapping[str, float | None],
    values: Mapping[str, Mapping[str, float]] | None = None,
) -> Arm:  # fmt: skip
    env = SYSTEMS[key].env
    return Arm(
        system=OUR_IDS[route] if env == OURS else envs.rivals()[env].system,
        settings={**settings, "route": route},
        status=outcome.status,
        reason=outcome.reason,
        metrics=dict(metrics),
        per_query={metric: dict(by_query) for metric, by_query in (values or {}).items()},
    )


def _cost_metrics(data: Mapping[str, Any], route: str, exact: Mapping[str, list[str]], items: int) -> dict[str, Any]:
    """What is known; of a cell that was stopped, less."""
    import numpy as np

    found: dict[str, Any] = {}
    if "build_s" in data:
        found["build_s"] = data["build_s"]
    elif "added" in data:
        found["added"] = data["added"]
    asked = data.get(route)
    if asked:
        p50, p95 = np.percentile(asked["ms"], [50, 95])
        found |= {"ms_p50": float(p50), "ms_p95": float(p95), "queries": len(asked["ms"])}
    if asked and route == "dense" and exact:
        shares = [len({*exact[key]} & {*rows}) / len(exact[key]) for key, rows in asked["run"].items()]
        found["agreement@10"] = float(np.mean(shares))
    if "peak_rss_mb" in data:
        found |= {"peak_rss_mb": data["peak_rss_mb"], "index_rss_mb": data["peak_rss_mb"] - data["start_rss_mb"]}
    return found


def _synthetic(plan: Plan, real: Sequence[datasets.Collection]) -> Iterator[DataInfo]:
    return synthetic(real, _sizes(plan))


def synthetic(real: Sequence[datasets.Collection], sizes_: Sequence[int]) -> Iterator[DataInfo]:
    """What `grown` makes."""
    passages = sum(len(data.passages) for data in real)
    sha256 = hashlib.sha256("".join(data.info.sha256 for data in real).encode()).hexdigest()
    for items in sizes_:
        sizes = {"passages": items, "copies": max(items - passages, 0), "queries": QUERIES}
        yield DataInfo(name=f"{items}_items", sha256=sha256, sizes=sizes, synthetic=items > passages)
