"""A result as Markdown that can be read in a terminal: what was measured on what, the arms, the paired tests, notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .positions import METRICS as BY_PLACE
from .positions import THIRDS
from .result import DIGITS

if TYPE_CHECKING:
    from .result import Arm, Comparison, DataInfo, Result

HASH = 12
"""So many characters of a hash are shown; the JSON file has them all."""

_SHOWN = {"commit", "uncommitted_changes", "date", "processor", "cores", "threads", "memory_gb", "gpu"}


def markdown(result: Result, heading: str = "#") -> str:
    """The whole result except the values of single queries, which only the JSON file has.

    Args:
        heading: Markdown's mark for the level of the title.
    """
    return "\n\n".join(_parts(result, heading)) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A Markdown table, padded so that its columns line up; the first `text` columns are words, the others figures.

    >>> print(table(["system", "nDCG@10"], [["bm25", "0.691"]]))
    | system | nDCG@10 |
    | ------ | ------: |
    | bm25   |   0.691 |
    """
    cells = [[_cell(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]
    rule = [("-" * (width - 1) + ":") if column >= text else "-" * width for column, width in enumerate(widths)]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join("| " + " | ".join(_padded(line, widths, text)) + " |" for line in lines)


def figure(value: float | int | None) -> str:
    """A figure with the digits that can matter: three behind the point up to 1, three in all above it.

    It is rounded first as the file has it, so that nothing is shown otherwise than what is read back.

    >>> [figure(value) for value in (0.6919, 1, 1.0, 12.345, 1128.4, 0.00042, None)]
    ['0.692', '1', '1.000', '12.3', '1,128', '0.0004', '–']
    """
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    value = round(value, DIGITS)
    size = abs(value)
    if not size:
        return "0.000"
    if size <= 1:
        return f"{value:.3f}" if size >= 0.001 else f"{value:.4f}"
    return f"{value:,.{2 if size < 10 else 1 if size < 100 else 0}f}"


def chance(p: float) -> str:
    """A p value; the smallest ones are never shown as 0."""
    return "< 0.001" if p < 0.001 else f"{round(p, DIGITS):.3f}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + figure(value)


def told(value: Any) -> str:
    """A setting, or a part of the environment, in words.

    >>> told({"torch": "2.13.0", "items": [1000, True]})
    'torch 2.13.0, items 1,000, yes'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {told(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(told, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def varying(arms: Sequence[Arm]) -> list[str]:
    """Settings that tell the arms apart, in the order of first appearance."""
    return [
        key for key in _first(arm.settings for arm in arms) if len({str(arm.settings.get(key)) for arm in arms}) > 1
    ]


def metrics(arms: Iterable[Arm]) -> list[str]:
    """Metrics of the arms, in the order of first appearance."""
    return _first(arm.metrics for arm in arms)


def reasons(arms: Sequence[Arm]) -> str:
    """Why arms failed or stopped early, as a list; `""` where none did."""
    short = [(arm.label, arm.status, _line(arm.reason or "no reason given").replace("`", "'")) for arm in arms]
    return "\n".join(f"- {label}: **{status}**, `{reason}`" for label, status, reason in short if status != "ok")


def sizes(data: DataInfo) -> str:
    """Name and sizes, and whether it is synthetic.

    >>> from triptych.tools.evaluation.result import DataInfo
    >>> sizes(DataInfo(name="scifact", sha256="0" * 64, sizes={"queries": 300, "passages": 5183}))
    '`scifact` (300 queries, 5,183 passages)'
    """
    parts = [f"{number:,} {what}" for what, number in data.sizes.items()]
    parts += ["synthetic: good for cost, not for quality"] if data.synthetic else []
    return f"`{data.name}` ({', '.join(parts)})" if parts else f"`{data.name}`"


def machine(environment: Mapping[str, Any]) -> str:
    """Hardware in one line."""
    parts = [str(environment.get("processor") or "unknown processor")]
    parts += [f"{environment[key]} {key}" for key in ("cores", "threads") if environment.get(key)]
    parts += [f"{environment['memory_gb']:g} GB"] if environment.get("memory_gb") else []
    return ", ".join([*parts, str(environment.get("gpu") or "no GPU")])


def by_place(arms: Sequence[Arm]) -> list[str]:
    """What is kept by the third of the contexts where it stands: a line of introduction and a table, or nothing."""
    names = [name for name in BY_PLACE if name in metrics(arms)]
    told = [arm for arm in arms if any(name in arm.metrics for name in names)]
    if not told:
        return []
    settings = varying(told)
    rows = [
        [arm.system, *_settings(arm, settings), *(figure(arm.metrics[n]) if n in arm.metrics else "" for n in names)]
        for arm in told
    ]
    head = ["system", *settings, *names]
    return [
        f"By the third of the contexts where it stands ({', '.join(THIRDS)}):",
        table(head, rows, 1 + len(settings)),
    ]


def _parts(result: Result, heading: str) -> Iterator[str]:
    yield f"{heading} {result.title}"
    yield _header(result)
    yield _arms(result.arms)
    yield from filter(None, (_same(result.arms), reasons(result.arms), *by_place(result.arms)))
    if result.comparisons:
        yield from _comparisons(result.comparisons)
    if result.notes:
        yield "\n".join(f"- {_line(note)}" for note in result.notes)


def _header(result: Result) -> str:
    made = result.environment
    commit = str(made.get("commit", "unknown"))[:HASH] + (" with changes" if made.get("uncommitted_changes") else "")
    counts = [len(values) for arm in result.arms for values in arm.per_query.values()]
    facts = [f"seed {result.seed}", f"commit {commit}", f"{made.get('date', 'no date')}"]
    facts = [f"n = {max(counts):,}", *facts] if counts else facts
    rest = {key: value for key, value in made.items() if key not in _SHOWN and value not in (None, "", {}, [])}
    lines = [
        *(f"{sizes(data)}, sha256 {data.sha256[:HASH]}" for data in result.data),
        f"{result.kind}: {', '.join(facts)}",
        machine(made),
        "; ".join(f"{key} {told(value)}" for key, value in rest.items()),
        f"`{result.command}`",
    ]
    return "\n".join(f"- {_line(line)}" for line in lines if line)


def _arms(arms: Sequence[Arm]) -> str:
    settings, names = varying(arms), [name for name in metrics(arms) if name not in BY_PLACE]
    queries = [max((len(values) for values in arm.per_query.values()), default=0) for arm in arms]
    told_n = len({n for n in queries if n}) > 1  # as when a slow system was given fewer queries
    told_status = any(arm.status != "ok" for arm in arms)
    head = ["system", *settings, *(["status"] if told_status else []), *(["n"] if told_n else []), *names]
    rows = [
        [arm.system, *_settings(arm, settings)]
        + ([arm.status] if told_status else [])
        + ([f"{n:,}" if n else ""] if told_n else [])
        + [figure(arm.metrics[name]) if name in arm.metrics else "" for name in names]
        for arm, n in zip(arms, queries, strict=True)
    ]
    return table(head, rows, text=1 + len(settings) + told_status)


def _settings(arm: Arm, keys: Sequence[str]) -> list[str]:
    return [told(arm.settings.get(key, "")) for key in keys]


def _same(arms: Sequence[Arm]) -> str:
    """The settings that all arms share."""
    apart = varying(arms)
    shared = {key: value for arm in arms for key, value in arm.settings.items() if key not in apart}
    return f"All of them: {told(shared)}." if shared else ""


def _comparisons(rows: Sequence[Comparison]) -> Iterator[str]:
    """One table for each baseline."""
    for baseline in dict.fromkeys(row.baseline for row in rows):
        yield f"Paired against {baseline} (difference of means; p of the randomisation test):"
        yield table(
            ["system", "metric", "difference", "95 % interval", "p", "n"],
            [_tested(row) for row in rows if row.baseline == baseline],
            text=2,
        )


def _tested(row: Comparison) -> list[str]:
    interval = " to ".join(map(signed, row.interval))
    return [row.arm, row.metric, signed(row.difference), interval, chance(row.p), f"{row.n:,}"]


def _first(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", r"\|")


def _padded(cells: Sequence[str], widths: Sequence[int], text: int) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        yield cell.rjust(width) if column >= text else cell.ljust(width)
