"""The plot of `bench_text_systems`: quality against what a query takes, and against the size of the index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.tools.evaluation.plots import COLOURS, LEAST_SPAN, MARKERS, QUALITY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from triptych.tools.evaluation.result import Arm, Result

COSTS = {
    "cpu_ms_p50": "milliseconds of the processor a query, median",
    "bytes_per_passage": "bytes of the index a passage",
}
"""Metric → its axis, which is logarithmic."""
WIDTH, HEIGHT = 9.6, 3.1
"""Inches; the height is that of one collection."""


def draw(found: Result, folder: Path) -> list[Path]:
    """Write `NAME.svg` into `folder`: a row of panels for each collection, a column for each cost.

    An arm without one of the figures has no point there; without any point there is no file. The same result gives the
    same bytes with the same matplotlib.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    shown = [arm for arm in found.arms if _value(arm, QUALITY) and any(_value(arm, cost) for cost in COSTS)]
    rows = list(dict.fromkeys(str(arm.settings["data"]) for arm in shown))
    if not rows:
        return []
    looks = {label: number for number, label in enumerate(dict.fromkeys(map(_label, shown)))}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found.name}.svg"
    with style.context(["default", {"svg.hashsalt": found.name}]):
        page = Figure(figsize=(WIDTH, HEIGHT * len(rows)), layout="constrained")
        panels = page.subplots(len(rows), len(COSTS), sharey="row", sharex="col", squeeze=False)
        for name, row in zip(rows, panels, strict=True):
            own = [arm for arm in shown if arm.settings["data"] == name]
            for cost, axes in zip(COSTS, row, strict=True):
                _panel(axes, own, cost, looks)
            row[0].set_ylabel(f"{name}: {QUALITY}")
        for cost, axes in zip(COSTS, panels[-1], strict=True):
            axes.set_xlabel(COSTS[cost], fontsize=9)
        _legend(page, panels, looks)
        page.savefig(path, metadata={"Date": None, "Creator": None})
    return [path]


def _panel(axes: Axes, arms: Sequence[Arm], cost: str, looks: dict[str, int]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    ys = [y for arm in arms if (y := _value(arm, QUALITY))]
    for arm in arms:
        x, y, number = _value(arm, cost), _value(arm, QUALITY), looks[_label(arm)]
        if x and y:
            axes.plot(
                [x], [y], marker=MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)],
                linestyle="none", markersize=7, markeredgecolor="white", markeredgewidth=0.6, label=_label(arm),
            )  # fmt: skip
    room = max(0.0, LEAST_SPAN - (max(ys) - min(ys))) / 2 + 0.015
    axes.set_ylim(min(ys) - room, max(ys) + room)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.9g}")
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(page: Any, panels: Any, looks: dict[str, int]) -> None:
    """Beside the panels, each label once."""
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [label for label in looks if label in handles]
    page.legend([handles[label] for label in order], order, loc="outside right upper", frameon=False, fontsize=8)


def _label(arm: Arm) -> str:
    """Its system, what it is fused with, and where its vectors are; fewer queries are told."""
    other = arm.settings.get("with")
    name = f"BM25 + {other}" if other else arm.system
    place = arm.settings.get("vectors")
    return name + (f", {place}" if place and not other else "")


def _value(arm: Arm, metric: str) -> float | None:
    value = arm.metrics.get(metric)
    return None if value is None else float(value)
