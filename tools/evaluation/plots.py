"""Plots of a result, by matplotlib on figures of their own: no window, no pyplot, and no setting is left changed.

The same result gives the same bytes with the same matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import metrics, sizes, varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import Arm, Result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
"""Told apart with any kind of colour vision (Okabe and Ito 2008, jfly.uni-koeln.de/color; their yellow, too light for
a line on white, is a grey here). Marker and dash tell the lines apart too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p")
DASHES = ("-", "--", "-.", ":")

QUALITY, ITEMS, SEED = "nDCG@10", "items", "seed"
KEPT = {
    "answers_kept": ("kept", "share of the answers kept"),
    "evidence_kept": ("evidence", "share of the evidence kept"),
    "evidence_whole": ("whole", "share of the evidence kept whole"),
}
"""Metric → what its plots are called, and its axis."""
SIZES = {"max_tokens": "tokens allowed", "rate": "share of the tokens allowed"}
TIMES = {"ms_p50": "milliseconds a query, median", "s_per_query": "seconds a query"}

LEAST_SPAN = 0.1
"""Of an axis of nDCG, so that a hair's breadth does not look like a gulf."""

WIDTH, HEIGHT = 8.0, 4.2
"""Inches."""

Point = tuple[float, float]
Series = Mapping[str, Sequence[Point]]


def draw(result: Result, folder: Path) -> list[Path]:
    """Write every plot that the result has the figures for, each as SVG and PNG; answers the files.

    Answers and evidence kept against tokens (`compress`, `pipeline`) and against latency (`compress`), nDCG@10 against
    latency (`retrieval`, `rerank`), the first metric of arms side by side (`proof`), and latency against library size,
    where arms have the setting `items`. A figure that is missing has no point.
    """
    files: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in _plots(result):
        files += _written(result, plot, folder / f"{result.name}_{name}")
    return files


def _plots(result: Result) -> Iterator[tuple[str, Callable[[Axes], None]]]:
    arms = result.arms
    if result.kind in ("compress", "pipeline"):
        for metric, (name, _) in KEPT.items():
            for size in SIZES:
                if found := _series(arms, size, metric):
                    unlimited = {
                        arm.system: arm.metrics.get(metric) for arm in arms if not arm.settings.keys() & SIZES.keys()
                    }
                    yield f"{name}_{size}", partial(_kept, metric, size, found, unlimited)
    if result.kind == "compress":
        for metric, (name, _) in KEPT.items():
            if found := _traded(arms, "ms_p50", metric):
                yield f"{name}_ms_p50", partial(_kept_in, metric, "ms_p50", found)
    if result.kind in ("retrieval", "rerank"):
        for time in TIMES:
            if points := _points(arms, time, QUALITY):
                yield f"quality_{time}", partial(_quality, time, points)
    if result.kind == "proof" and (names := metrics(arms)):
        yield "arms", partial(_side_by_side, names[0], arms)
    for metric in metrics(arms):
        if metric.endswith("ms_p50") and (found := _series(arms, ITEMS, metric)):
            yield f"{metric}_items", partial(_growth, metric, found)


def _series(arms: Sequence[Arm], setting: str, metric: str) -> dict[str, list[Point]]:
    """Line by line, (setting, metric) of every arm that has both; one line for each system and its other settings."""
    told = [key for key in varying(arms) if key not in (setting, *SIZES)]
    found: dict[str, list[Point]] = {}
    for arm in arms:
        x, y = arm.settings.get(setting), arm.metrics.get(metric)
        if isinstance(x, int | float) and y is not None:
            found.setdefault(_label(arm, told), []).append((float(x), float(y)))
    return {label: sorted(points) for label, points in found.items()}


def _traded(arms: Sequence[Arm], across: str, up: str) -> dict[str, list[Point]]:
    """Line by line, both metrics of every arm that has them, in the order of the arms; one line for each system."""
    told = [key for key in varying(arms) if key not in SIZES]
    found: dict[str, list[Point]] = {}
    for arm in arms:
        x, y = arm.metrics.get(across), arm.metrics.get(up)
        if x is not None and y is not None:
            found.setdefault(_label(arm, told), []).append((float(x), float(y)))
    return found


def _points(arms: Sequence[Arm], across: str, up: str) -> dict[str, list[Point]]:
    """One point for each arm that has both metrics."""
    told = varying(arms)
    pairs = {_label(arm, told): (arm.metrics.get(across), arm.metrics.get(up)) for arm in arms}
    return {label: [(float(x), float(y))] for label, (x, y) in pairs.items() if x is not None and y is not None}


def _label(arm: Arm, settings: Sequence[str]) -> str:
    """System and those of the settings; an arm that ran out of time says so, since it stands for fewer queries."""
    parts = ", ".join([arm.system, *(f"{key} {arm.settings[key]}" for key in settings if key in arm.settings)])
    return parts if arm.status == "ok" else f"{parts} ({arm.status})"


def _kept(metric: str, size: str, series: Series, unlimited: Mapping[str, float | int | None], axes: Axes) -> None:
    _lines(axes, series)
    for label, level in unlimited.items():
        if level is not None:
            axes.axhline(level, color="#8C8C8C", linewidth=1, linestyle=(0, (1, 1)), label=_drawable(label))
    _shares(axes, metric)
    axes.set_xlabel(SIZES[size])
    _ticks(axes, series, log=size == "max_tokens")


def _kept_in(metric: str, time: str, series: Series, axes: Axes) -> None:
    _lines(axes, series)
    _shares(axes, metric)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.set_xlabel(TIMES[time])


def _shares(axes: Axes, metric: str) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(KEPT[metric][1])


def _quality(time: str, points: Series, axes: Axes) -> None:
    _lines(axes, points)
    xs = [x for [(x, _)] in points.values()]
    if 0 < min(xs) and max(xs) > 30 * min(xs):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(_plain)
    ys = [y for [(_, y)] in points.values()]
    room = max(0.0, LEAST_SPAN - (max(ys) - min(ys))) / 2 + 0.01
    axes.set_ylim(min(ys) - room, max(ys) + room)
    axes.set_ylabel(QUALITY)
    axes.set_xlabel(TIMES[time])


def _side_by_side(metric: str, arms: Sequence[Arm], axes: Axes) -> None:
    """A row for each system and its settings: a ring for each seed, and a dot for an arm that stands for all."""
    told = [key for key in varying(arms) if key != SEED]
    rows: dict[str, list[tuple[float, bool]]] = {}
    for arm in arms:
        if (value := arm.metrics.get(metric)) is not None:
            rows.setdefault(_label(arm, told), []).append((float(value), SEED in arm.settings))
    for place, points in enumerate(rows.values()):
        for value, single in points:
            axes.plot([value], [place], "o", color=COLOURS[0], fillstyle="none" if single else "full")
    axes.set_yticks(range(len(rows)), [_drawable(label) for label in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(metric)
    if (page := axes.get_figure(root=True)) is not None:
        page.set_figheight(max(HEIGHT, 1.2 + 0.24 * len(rows)))


def _growth(metric: str, series: Series, axes: Axes) -> None:
    _lines(axes, series)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_plain)
    axes.set_ylabel(TIMES.get(metric, metric.replace("_", " ")))
    axes.set_xlabel("items in the library")
    _ticks(axes, series, log=True)


def _ticks(axes: Axes, series: Series, *, log: bool) -> None:
    """Ticks at the values that were measured, and nowhere else."""
    from matplotlib.ticker import NullLocator

    values = sorted({x for points in series.values() for x, _ in points})
    if log:
        axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, [_plain(value) for value in values])


def _plain(value: float, _position: float = 0) -> str:
    return f"{value:,.9g}"


def _lines(axes: Axes, series: Series) -> None:
    for number, (label, points) in enumerate(series.items()):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=_drawable(label),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)] if len(points) > 1 else "none",
            linewidth=1.6,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )


def _written(result: Result, plot: Callable[[Axes], None], stem: Path) -> list[Path]:
    """Draw, and write `stem.svg` and `stem.png`."""
    from matplotlib import style
    from matplotlib.figure import Figure

    # The salt makes ids in the SVG, which are random without it.
    with style.context(["default", {"svg.hashsalt": result.name}]):
        page = Figure(figsize=(WIDTH, HEIGHT), dpi=150, layout="constrained")
        axes = page.subplots()
        plot(axes)
        axes.grid(True, color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(_title(result), loc="left", fontsize=9.5, parse_math=False)
        _legend(page, axes)
        files = [stem.with_name(f"{stem.name}.{form}") for form in ("svg", "png")]
        for path, nameless in zip(files, ({"Date": None, "Creator": None}, {"Software": None}), strict=True):
            page.savefig(path, metadata=nameless)
    return files


def _legend(page: Any, axes: Axes) -> None:
    """Beside the axes, where it covers nothing; a long one makes the page higher."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    wrapped = [textwrap.fill(label, 30, subsequent_indent="  ") for label in labels]
    rows = sum(label.count("\n") + 1 for label in wrapped)
    page.set_figheight(max(HEIGHT, 0.3 + 0.14 * rows + 0.08 * len(wrapped)))
    legend = page.legend(handles, wrapped, loc="outside right upper", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _title(result: Result) -> str:
    data = "; ".join(sizes(one).replace("`", "") for one in result.data)
    lines = [line for text in (result.title, data) for line in textwrap.wrap(text, 60)]
    return _drawable("\n".join(lines))


def _drawable(text: str) -> str:
    """`text` with `?` for what the font has no sign for, such as Chinese in the name of a data set."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(sign if sign == "\n" or ord(sign) in known else "?" for sign in text)
