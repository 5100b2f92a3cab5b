"""Tables of docs/reranking.md: what the prompted rerankers made of `trec_dl19` here, beside what others published."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from triptych.tools.evaluation import report

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm, Comparison, Result

PUBLISHED = Path(__file__).with_name("published.toml")
RESULT = "rerank_trec_dl19_run_bm25_lm_"
"""How the names of the results begin; `top20` and the like follow."""
ORDERS = f"{RESULT}orders"
METRIC = "nDCG@10"


class Published(NamedTuple):
    """A figure of somebody else's, over the first 100 of BM25."""

    system: str
    value: float
    model: str
    source: str


def published() -> list[Published]:
    """All of `published.toml`."""
    return [Published(**row) for row in tomllib.loads(PUBLISHED.read_text("utf-8"))["figure"]]


def page(found: Sequence[Result]) -> Iterator[str]:
    """A table for each result over one depth, each followed by what others published; then one over orders."""
    for one in found:
        if one.name.startswith(f"{RESULT}top"):
            yield f"**{METRIC} with {_model(one)}**, {_depth(one)}, n = {_queries(one)}:"
            yield _beside(one)
    if orders := next((one for one in found if one.name == ORDERS), None):
        yield f"**{METRIC} by the order that comes in**, {_depth(orders)}, n = {_queries(orders)}:"
        yield _by_order(orders)


def _beside(one: Result) -> str:
    known = published()
    rows: list[list[str]] = []
    for arm in one.arms:
        others = [row for row in known if row.system == arm.system]
        texts = [f"{row.value:.3f} ({row.model}; {row.source})" for row in others]
        rows.append([arm.system, "; ".join(texts), report.figure(arm.metrics[METRIC]), _chance(one, arm)])
    return report.table(["system", "published: other models, other hardware", "here", "p against run"], rows, text=2)


def _by_order(one: Result) -> str:
    orders = list(dict.fromkeys(str(arm.settings["order"]) for arm in one.arms))
    figures = {(arm.system, arm.settings["order"]): report.figure(arm.metrics[METRIC]) for arm in one.arms}
    systems = list(dict.fromkeys(arm.system for arm in one.arms))
    rows = [[system, *(figures.get((system, order), "") for order in orders)] for system in systems]
    return report.table(["system", *orders], rows, text=1)


def _chance(one: Result, arm: Arm) -> str:
    """p of the paired test of the arm's figure against the run's; `""` for the run itself."""
    rows: list[Comparison] = [
        row for row in one.comparisons if row.metric == METRIC and row.arm.partition(" (")[0] == arm.system
    ]
    return report.chance(rows[0].p) if rows else ""


def _model(one: Result) -> str:
    [told] = [note for note in one.notes if note.startswith("Language model: `")]
    return told.removeprefix("Language model: `").partition("/")[0]


def _depth(one: Result) -> str:
    [told] = [note for note in one.notes if note.startswith("Up to ")]
    return f"the first {told.split()[2]} of BM25"


def _queries(one: Result) -> int:
    return max(len(values) for arm in one.arms for values in arm.per_query.values())
