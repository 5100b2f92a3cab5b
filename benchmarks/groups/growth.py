"""Growth: what our own library costs at one, ten and a hundred times a size, and the exponents fitted to that.

An exponent is the slope of the least-squares line through log cost and log size: 1 means twice the passages, twice the
cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cells import OURS, Cell, Outcome, Plan, text_collections

from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result

SIZES, QUICK_SIZES = (200, 2_000, 20_000), (20, 200, 2_000)
QUERIES = 100
RETRIEVED, QUICK_RETRIEVED = 30, 5
BUDGET = 2_000
FITTED = {
    "index_exponent": "index_s",
    "store_exponent": "store_s",
    "query_exponent": "ms_p50",
    "retrieve_exponent": "retrieve_ms_p50",
    "disk_exponent": "disk_mb",
}


def cells(plan: Plan) -> list[Cell]:
    """One library for each size, small ones first."""
    pool = text_collections(plan)
    job = {
        "pool": [str(data.folder) for data in pool], "sha256": [data.info.sha256 for data in pool], "seed": plan.seed,
        "queries": QUERIES, "budget": BUDGET, "retrieved": QUICK_RETRIEVED if plan.quick else RETRIEVED,
    }  # fmt: skip
    return [Cell(f"library_{items}", OURS, "growth_library.py", {**job, "items": items}) for items in sizes(plan)]


def sizes(plan: Plan) -> tuple[int, ...]:
    """Passages, one, ten and a hundred times."""
    return QUICK_SIZES if plan.quick else SIZES


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm for each size, and one with the exponents."""
    arms = [arm(items, outcomes[f"library_{items}"]) for items in sizes(plan)]
    fitted = exponents(arms)
    return Result(
        name="bench_growth",
        kind="growth",
        title="Growth: what a library costs by its size",
        command=command,
        seed=plan.seed,
        data=tuple(data_of(plan)),
        environment=environment(),
        arms=(*arms, fitted),
        notes=(
            "Each passage is a file of four sentences drawn from the collections. index_s: from files to a library "
            "that can be searched; encode_s: the encoder's part of it; store_s: the rest (reading, cutting, term "
            "statistics, store, catalogue). ms: hybrid search for the best 10, one query at a time, warm, query "
            "vectors known. retrieve_ms: search, rerank, compress to "
            f"{BUDGET:,} tokens.",
            f"Exponents: slopes of log cost on log passages over {len(arms)} sizes. Fixed costs make them smaller.",
        ),
    )


def arm(items: int, outcome: Outcome) -> Arm:
    """The figures of one size."""
    data = outcome.data
    found = {name: data[name] for name in ("passages", "index_s", "encode_s") if name in data}
    if "index_s" in found and "encode_s" in found:
        found["store_s"] = data["index_s"] - data["encode_s"]
    elif "encoded" in data:  # it was stopped on the way
        found |= {name: data[name] for name in ("encoded", "so_far_s")}
    found |= {**percentiles("ms", data.get("search_ms")), **percentiles("retrieve_ms", data.get("retrieve_ms"))}
    found |= {name: data[name] for name in ("disk_mb", "peak_rss_mb") if name in data}
    return Arm(
        system="triptych", settings={"items": items}, status=outcome.status, reason=outcome.reason, metrics=found
    )


def exponents(arms: Sequence[Arm]) -> Arm:
    """The slopes over all sizes that were measured to the end; it takes two."""
    whole = [one for one in arms if one.status == "ok"]
    if len(whole) < 2:
        reason = f"{len(whole)} of {len(arms)} sizes were measured"
        return Arm(system="triptych", settings={"fit": "exponent"}, status="failed", reason=reason)
    passages = [one.metrics["passages"] for one in whole]
    metrics = {name: slope(passages, [one.metrics[cost] for one in whole]) for name, cost in FITTED.items()}
    return Arm(system="triptych", settings={"fit": "exponent"}, metrics=metrics)


def slope(sizes: Sequence[Any], costs: Sequence[Any]) -> float:
    """The exponent of `costs` (each above 0) against `sizes`.

    >>> round(slope([10, 100, 1000], [3, 30, 300]), 6)
    1.0
    """
    import numpy as np

    return float(np.polyfit(np.log(np.array(sizes, float)), np.log(np.array(costs, float)), 1)[0])


def percentiles(name: str, values: Sequence[float] | None) -> dict[str, float]:
    """`{NAME_p50, NAME_p95}`, or nothing."""
    import numpy as np

    if not values:
        return {}
    p50, p95 = np.percentile(values, [50, 95])
    return {f"{name}_p50": float(p50), f"{name}_p95": float(p95)}


def data_of(plan: Plan) -> list[DataInfo]:
    """The libraries, which are made of the collections' sentences."""
    sha256 = hashlib.sha256("".join(data.info.sha256 for data in text_collections(plan)).encode()).hexdigest()
    return [
        DataInfo(name=f"{items}_passages", sha256=sha256, sizes={"passages": items}, synthetic=True)
        for items in sizes(plan)
    ]
