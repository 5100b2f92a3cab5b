"""The store: what ours costs over the bare pymilvus calls it makes, with and without an index of vectors, by size, and
the same on a Milvus server.

The vectors are MiniLM's, of real passages and of seeded copies (see `first_stage`): good for cost, and for comparing an
index with exact search, and for nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import OURS, Cell, Outcome, Plan
from groups.first_stage import QUERIES, collections, grown, grown_folder, prepare, synthetic

from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

SIZES, QUICK_SIZES = (5_000, 20_000, 100_000), (2_000,)
QUICK_QUERIES = 20
FOLDERS = 100
BACKENDS = ("milvus_lite", "milvus_2.3.5")
ROUTES = ("dense", "filtered", "hybrid")


def cells(plan: Plan) -> list[Cell]:
    """First the data, then both backends, from small to large. The server takes part where it is installed."""
    real = collections(plan)
    found = [prepare(plan, data) for data in real]
    for items in sizes(plan):
        found.append(grown(plan, real, items))
        for backend in backends():
            job = {
                "data": str(grown_folder(plan, real, items)), "queries": QUICK_QUERIES if plan.quick else QUERIES,
                "milvus": "" if backend == BACKENDS[0] else "here",
            }  # fmt: skip
            found.append(Cell(f"{backend}_{items}", OURS, "store_overhead.py", job))
    return found


def sizes(plan: Plan) -> tuple[int, ...]:
    """Passages."""
    return QUICK_SIZES if plan.quick else SIZES


def backends() -> tuple[str, ...]:
    """Those that are here."""
    folder = os.environ.get("MILVUS_ENV")
    return BACKENDS if folder and Path(folder, ".installed").is_file() else BACKENDS[:1]


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm for each backend, size, index and route."""
    real = collections(plan)
    arms = [
        arm
        for items in sizes(plan)
        for backend in backends()
        for arm in arms_of(backend, items, outcomes[f"{backend}_{items}"], outcomes[f"prepare_{items}"])
    ]
    return Result(
        name="bench_store",
        kind="store",
        title="The store: an index or none, ours over bare pymilvus, Milvus Lite and a server",
        command=command,
        seed=plan.seed,
        data=tuple(synthetic(real, sizes(plan))),
        environment=environment(),
        arms=tuple(arms),
        notes=(
            "ms: one query at a time, warm, the best 10, items included. overhead: our median time over that of the "
            "bare pymilvus calls for the same (raw_ms_p50), asked query by query in one process on one collection. "
            f"filtered: only passages of one folder of {FOLDERS}. recall@10: the share of the exact 10 nearest that "
            "were found. add_s: writing all passages, with term statistics; index_s: making the index.",
            "index none: exact search over all vectors, with which `filtered` is compared. From 10,000 passages on the "
            "store makes an HNSW index. Milvus 2.3.5 has no sparse vectors, and so no hybrid search.",
        ),
    )


def arms_of(backend: str, items: int, outcome: Outcome, prepared: Outcome) -> Iterator[Arm]:
    """What one process measured."""
    exact = list(prepared.data.get("exact", {}).values())
    built = {name: outcome.data[name] for name in ("add_s", "index_s", "peak_rss_mb") if name in outcome.data}
    flat, last = (outcome.data.get(phase, {}) for phase in ("flat", "indexed"))
    is_indexed = outcome.data.get("index") == "HNSW"
    for index, told in ((("none", flat),) if is_indexed else ()) + (("HNSW" if is_indexed else "none", last),):
        for route in ROUTES:
            if route not in told and outcome.status == "ok":
                continue
            yield Arm(
                system="triptych",
                settings={"backend": backend, "items": items, "index": index, "route": route},
                status=outcome.status,
                reason=outcome.reason,
                metrics={
                    **built,
                    **metrics(told, route, exact if route == "dense" else flat.get(route, {}).get("run")),
                },
            )


def metrics(told: Mapping[str, Any], route: str, exact: Sequence[Sequence[str]] | None) -> dict[str, float]:
    """Times, the ratio to the bare calls, and how much of the exact answer was found."""
    import numpy as np

    if route not in told or not told[route]["ms"]:
        return {}
    p50, p95 = np.percentile(told[route]["ms"], [50, 95])
    found = {"ms_p50": float(p50), "ms_p95": float(p95)}
    raw = told.get(f"raw_{route}")
    if raw:
        found["raw_ms_p50"] = float(np.median(raw["ms"]))
        found["overhead"] = found["ms_p50"] / found["raw_ms_p50"] - 1
    if exact:
        pairs = zip(told[route]["run"], exact, strict=False)
        found["recall@10"] = float(np.mean([len({*run} & {*right}) / len(right) for run, right in pairs]))
    return found
