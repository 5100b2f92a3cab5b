"""What the proofs share: their command line, and where their results go."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from triptych.errors import BadInput
from triptych.refiners.base import Budget
from triptych.refiners.tokens import count
from triptych.retrievers.base import Query
from triptych.retrievers.loading import computed_in, dtype
from triptych.settings import Settings
from triptych.tools.evaluation import datasets, plots, report
from triptych.tools.evaluation.result import Arm, DataInfo, Result
from triptych.tools.evaluation.survival import Facts
from triptych.tools.stages import Stages

if TYPE_CHECKING:
    from triptych.refiners.base import Refined, Refiner

BENCHMARKS = Path(__file__).resolve().parent.parent
RESULTS = BENCHMARKS / "results" / "systems"
STATION = BENCHMARKS / "data" / "station"
HOME = BENCHMARKS.parent / ".triptych"


def asked(description: str | None) -> argparse.Namespace:
    """`--questions FILE`, `--limit N`, `--seed N`, `--out FOLDER`; a proof reads of them what it needs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, default=STATION, help="a question file; our own without one")
    parser.add_argument("--limit", type=int, help="that many questions, drawn at random with the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--full", action=OneSize)
    return parser.parse_args()


class OneSize(argparse.Action):
    """`--full` of a proof that has no larger course, most of them because nothing is learned.

    Raises:
        BadInput: it is asked for.
    """

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        raise BadInput(f"`{Path(parser.prog).stem}` has no larger course.", "Run it without `FULL=1` (`--full`).")


def named(system: str, given: argparse.Namespace) -> str:
    """What the result is called: that of the larger course takes no other's place."""
    return f"{system}_full" if given.full else system


def device() -> str:
    """What networks compute on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(setting: str) -> str:
    """What they compute in, for the report."""
    on = device()
    return computed_in(setting) if on == "cpu" else str(dtype(setting, on)).removeprefix("torch.")


def command(system: str, given: argparse.Namespace) -> str:
    """The line that makes this result again; files are told by their names."""
    words = ["make", "prove", f"ID={system}"]
    words += [f"QUESTIONS={given.questions.name}"] if given.questions != STATION else []
    words += [f"LIMIT={given.limit}"] if given.limit else []
    return " ".join(words)


def stages() -> Stages:
    """The stages of the embedded profile, with the weights of `TRIPTYCH_HOME` or of the checkout."""
    settings = Settings.load("embedded")
    return Stages(settings if settings.weights.is_dir() else Settings.load("embedded", home=HOME))


def survival(
    system: str,
    refiner: Refiner,
    rate: float,
    rows: Sequence[datasets.Question],
    judge: Callable[[datasets.Question, Refined], float] | None = None,
) -> Arm:
    """What is kept of the answers at `rate` of the tokens.

    Args:
        judge: what is told beside it, as `answer_logprob`.
    """
    kept: dict[str, float | None] = {}
    judged: dict[str, float | None] = {}
    used, seconds = [], []
    for question in rows:
        hits = question.hits()
        original = sum(count(hit.item.text) for hit in hits)
        start = time.perf_counter()
        refined = refiner.refine(Query(question.text), hits, Budget(max(1, int(rate * original))))
        seconds.append(time.perf_counter() - start)
        kept[question.id] = Facts.of(question).kept(refined.passages)["answers_kept"]
        used.append(refined.used / original)
        if judge is not None:
            judged[question.id] = judge(question, refined)
    known = [value for value in kept.values() if value is not None]
    metrics: dict[str, float | int | None] = {
        "answers_kept": float(np.mean(known)),
        "rate_achieved": float(np.mean(used)),
        "ms_p50": float(np.percentile(seconds, 50)) * 1000,
    }
    if judged:
        metrics["answer_logprob"] = float(np.mean([value for value in judged.values() if value is not None]))
    by_query = {"answers_kept": kept, **({"answer_logprob": judged} if judged else {})}
    return Arm(system=system, settings={"rate": rate}, metrics=metrics, per_query=by_query)


def own(name: str, texts: list[str], **sizes: int) -> DataInfo:
    """Data that a proof makes itself."""
    return DataInfo(
        name=name, sha256=hashlib.sha256("\n".join(texts).encode()).hexdigest(), sizes=sizes, synthetic=True
    )


def over_seeds(arms: Sequence[Arm]) -> Arm:
    """One arm for several of the same system that differ in the setting `seed`.

    Its metrics are means, beside each the sample's standard deviation as `NAME_sd`; its values per query are means, so
    that a paired test over queries has the seeds' chance averaged out.
    """
    first = arms[0]
    metrics: dict[str, float | int | None] = {}
    for name in first.metrics:
        values = [value for arm in arms if (value := arm.metrics.get(name)) is not None]
        metrics[name] = float(np.mean(values)) if values else None
        if len(values) > 1:
            metrics[f"{name}_sd"] = float(np.std(values, ddof=1))
    per_query: dict[str, dict[str, float | None]] = {}
    for name, by_query in first.per_query.items():
        rows = {query: [arm.per_query[name].get(query) for arm in arms] for query in by_query}
        per_query[name] = {query: _mean(found) for query, found in rows.items()}
    settings = {key: value for key, value in first.settings.items() if key != "seed"}
    return Arm(system=first.system, settings=settings, metrics=metrics, per_query=per_query)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of what is defined in all of them, else None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def write(result: Result, out: Path) -> None:
    """Into the results with its plot, and as a table to stdout."""
    path = result.write(out)
    plots.draw(result, out)
    sys.stdout.write(f"{report.markdown(result)}\n{path.parent.name}/{path.name}\n")
