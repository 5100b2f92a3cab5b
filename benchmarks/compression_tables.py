"""Tables of what compression keeps: a compact one for each result, and those over all data sets of docs/compression.md.

▲ or ▼ behind a figure: it lies above or below that of the first refiner at the same size, and chance explains so much
less often than once in twenty times (`CHANCE`, the paired test of the result, not corrected for the number of tests).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triptych.tools.evaluation import report
from triptych.tools.evaluation.positions import THIRDS

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm, Comparison, Result

MEASURES = {"answers_kept": "answers kept", "evidence_kept": "evidence kept", "evidence_whole": "evidence kept whole"}
"""In the order of the columns."""
ALLOWED = ("max_tokens", "rate")
PLACED = {"evidence_whole": "evidence_kept"}
"""What stands for a measure that is not told by place."""
CHANCE = 0.05
RATE = 0.25
"""Of the tokens, where data sets stand side by side."""


@dataclass(frozen=True)
class Column:
    """A data set in the tables over all of them: its result, what is asked of it, and the metric that fits."""

    result: str
    what: str
    metric: str = "answers_kept"


COLUMNS = (
    Column("compress_multidoc20", "questions, 20 passages each"),
    Column("compress_qmsum", "meetings", "evidence_kept"),
    Column("compress_scifact", "claims, abstracts", "evidence_kept"),
    Column("compress_financebench", "filings, rows of tables", "evidence_whole"),
    Column("compress_xquad_zh", "Chinese, XQuAD"),
    Column("compress_cmrc2018_zh", "Chinese, CMRC"),
)


FEWER = {
    "longer": "LongLLMLingua and Prompt-SAW, which are slow, on fewer questions",
    "own": "LLMLingua-2 and CPC with small weights of our own (the authors' were not at hand), on fewer questions",
}
"""Further runs on the same data: how their names end → what they are for."""


def kept(one: Result) -> str:
    """A row for each system, a column for each measure that the data has and each size; `""` without figures.

    An arm without a limit stands in the columns of every size.
    """
    measures = [metric for metric in MEASURES if any(arm.metrics.get(metric) is not None for arm in one.arms)]
    sizes = list(dict.fromkeys(size for arm in one.arms if (size := _size(arm))))
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for arm in one.arms:
        size = _size(arm)
        cells = {(m, s): _marked(one, arm, m) for m in measures for s in ([size] if size else sizes)}
        rows.setdefault(arm.system, {}).update(cells)
    heads = [(metric, size) for metric in measures for size in sizes]
    if not heads:
        return ""
    return report.table(
        ["system", *(f"{MEASURES[metric]}, {size}" for metric, size in heads)],
        [[system, *(cells.get(head, "") for head in heads)] for system, cells in rows.items()],
    )


def legend(one: Result) -> str:
    """What the marks mean, `""` where nothing was tested."""
    against = sorted({row.baseline.partition(" (")[0] for row in one.comparisons})
    return f" (▲ above, ▼ below `{'` or `'.join(against)}` at the same size, p < {CHANCE:g})" if against else ""


def page(found: Sequence[Result]) -> Iterator[str]:
    """The paragraphs and tables over all data sets, at `RATE` of the tokens."""
    by_name = {one.name: one for one in found}
    columns, results = _present(by_name, "")
    if not columns:
        return
    yield f"**What is kept of the gold at {_times(RATE)}**{legend(results[0])}:"
    yield from _kept_and_time(columns, results)
    placed = [
        (one, f"{column.what}: {third}", metric)
        for column, one in zip(columns, results, strict=True)
        for third in THIRDS
        for metric in [f"{PLACED.get(column.metric, column.metric)}_{third}"]
        if any(metric in arm.metrics for arm in one.arms)
    ]
    if placed:
        yield f"**By the third of the contexts where the gold stands**, at {_times(RATE)}:"
        yield _side_by_side(*zip(*placed, strict=True))
    yield _on_what(results)
    for ending, what in FEWER.items():
        columns, results = _present(by_name, f"_{ending}")
        if columns:
            yield f"**{what}**, at {_times(RATE)}{legend(results[0])}:"
            yield from _kept_and_time(columns, results)
            yield _on_what(results)


def _present(by_name: Mapping[str, Result], ending: str) -> tuple[list[Column], list[Result]]:
    columns = [column for column in COLUMNS if f"{column.result}{ending}" in by_name]
    return columns, [by_name[f"{column.result}{ending}"] for column in columns]


def _kept_and_time(columns: Sequence[Column], results: Sequence[Result]) -> Iterator[str]:
    heads = [f"{column.what}: {MEASURES[column.metric]}" for column in columns]
    yield _side_by_side(results, heads, [column.metric for column in columns])
    yield f"**Milliseconds a question** (p50) at {_times(RATE)}, in the same runs:"
    yield _side_by_side(results, [column.what for column in columns], ["ms_p50"] * len(columns))


def _on_what(results: Sequence[Result]) -> str:
    return "On what: " + "; ".join(report.sizes(data) for one in results for data in one.data) + "."


def _side_by_side(results: Sequence[Result], heads: Sequence[str], metrics: Sequence[str]) -> str:
    """A row for each system, a column for each result and its metric."""
    arms = [{arm.system: arm for arm in one.arms if arm.settings.get("rate", RATE) == RATE} for one in results]
    rows = [
        [
            system,
            *(
                _marked(one, known[system], metric) if system in known else ""
                for one, known, metric in zip(results, arms, metrics, strict=True)
            ),
        ]
        for system in dict.fromkeys(system for known in arms for system in known)
    ]
    return report.table(["system", *heads], rows)


def _marked(one: Result, arm: Arm, metric: str) -> str:
    """The figure, a mark where the paired test finds a difference, and the status where it is not `ok`."""
    test = _test(one, arm, metric)
    mark = ("▲" if test.difference > 0 else "▼") if test and test.p < CHANCE else ""
    value = [report.figure(arm.metrics[metric]) + mark] if metric in arm.metrics else []
    return " ".join([*value, *([arm.status] if arm.status != "ok" else [])])


def _test(one: Result, arm: Arm, metric: str) -> Comparison | None:
    """The paired test of `arm` at its own size; an arm without a size has none."""
    rows = [row for row in one.comparisons if row.arm == arm.label and row.metric == metric]
    return rows[0] if rows and _size(arm) else None


def _size(arm: Arm) -> str:
    """How much an arm may keep, in words; `""` for all."""
    told = [
        _times(arm.settings[key]) if key == "rate" else f"{arm.settings[key]:,} tokens"
        for key in ALLOWED
        if key in arm.settings
    ]
    return ", ".join(told)


def _times(rate: float | int | str | bool) -> str:
    """A rate as the factor by which texts become shorter.

    >>> _times(0.25), _times(0.3)
    ('4×', '3.33×')
    """
    return f"{1 / float(rate):.3g}×"
