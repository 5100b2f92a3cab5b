"""`triptych eval compress`: what of a question's contexts survives compression, at what cost.

One arm for every system and size, with models and caches of its own, so that its time is its own too. Memory is that of
the whole process: the baselines run first, and a later arm's `peak_rss_mb` holds what libraries keep from earlier ones.
Budgets count the tokens of the passages with a blank line between them, anew by the tokenizer and not as the system
says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from ...errors import Cancelled, TimedOut
from ...manifests import weights
from ...manifests.registry import card, cards
from ...progress import step
from ...refiners.base import Budget, plain
from ...refiners.tokens import count
from ...rerankers.base import measured
from ...retrievers.base import Query
from ..stages import Stages
from .baselines import NO_COMPRESSION, baselines
from .compare import against
from .environment import environment
from .memory import PeakMemory
from .positions import METRICS as BY_PLACE
from .positions import THIRDS, Places
from .result import Arm, Result, file_name
from .retrieval import precision_of
from .survival import Facts

if TYPE_CHECKING:
    from ...refiners.base import Refined, Refiner
    from ...retrievers.base import Hit
    from ...settings import Settings
    from .datasets import Question, Questions
    from .result import Comparison

KEPT = ("answers_kept", "evidence_kept", "evidence_whole", "numbers_kept", "entities_kept")
COMPARED = ("answers_kept", "evidence_kept", "evidence_whole", "numbers_kept")
"""What is kept query by query, and tested against the first refiner."""
ALL = "all"
"""Stands for every refiner of text whose weights are here."""

Build = Callable[[Stages], "Refiner"]


@dataclass(frozen=True)
class _Size:
    """How much may stay: `max_tokens` tokens, or the share `rate` of what a question has."""

    max_tokens: int | None = None
    rate: float | None = None

    @property
    def settings(self) -> dict[str, str | int | float | bool]:
        return {key: value for key, value in vars(self).items() if value is not None}

    def of(self, original: int) -> int:
        """The budget for a question of `original` tokens."""
        return self.max_tokens if self.max_tokens is not None else max(1, int((self.rate or 1.0) * original))


@dataclass(frozen=True)
class _Case:
    """A question, its hits in the order that every arm gets, and the tokens of their texts."""

    question: Question
    hits: Sequence[Hit]
    facts: Facts
    places: Places
    original: int


@dataclass(frozen=True)
class _Seen:
    """One compression: its budget, the tokens that came back, seconds, and what was kept."""

    case: _Case
    budget: int
    used: int
    seconds: float
    kept: dict[str, float | None]


def evaluate(
    questions: Questions,
    refiners: Sequence[str],
    *,
    budgets: Sequence[int],
    rates: Sequence[float],
    reranker: str | None,
    settings: Settings,
    seed: int,
    command: str,
    name: str = "",
    notes: Sequence[str] = (),
) -> Result:
    """Measure `refiners` and the baselines at every size.

    Args:
        refiners: ids, or `ALL`; the first is what all others are tested against, size by size.
        budgets: in tokens of `settings.tokenizer`.
        rates: shares of a question's own tokens, above 0 up to 1.
        reranker: puts the contexts in its order first, the same for all arms, and gives the hits their scores; None
            leaves them as the data has them, all scored alike.
        name: added to the result's own.
        notes: added to the result's own.

    Raises:
        UnknownSystem: an id that no card has.
        MissingWeights: of a system's card, or of the encoder that `dense_sentences` needs. Nothing is measured then.
    """
    chosen, left_out = _chosen(refiners, settings)
    _check(chosen, reranker, settings)
    cases, ordering = _cases(questions, reranker, settings)
    sizes = [*(_Size(max_tokens=n) for n in dict.fromkeys(budgets)), *(_Size(rate=r) for r in dict.fromkeys(rates))]
    found = _arms(chosen, sizes, cases, settings, seed)
    whole = found.pop((NO_COMPRESSION, None))
    arms: list[Arm] = [whole]
    comparisons: list[Comparison] = []
    for size in sizes:
        same = [found[name, size] for name in dict.fromkeys((*chosen, *baselines(seed))) if name != NO_COMPRESSION]
        comparisons += against([whole, *same], same[0], COMPARED, seed)
        arms += same
    return Result(
        name=file_name("compress", questions.info.name, *filter(None, (reranker, name))),
        kind="compress",
        title=f"What survives compression: {questions.info.name}",
        command=command,
        seed=seed,
        data=(questions.info,),
        environment=environment(("llmlingua",), precision_of(settings)),
        arms=tuple(arms),
        comparisons=tuple(row for row in comparisons if row.n),
        notes=(*_notes(settings, ordering, cases, left_out), *notes),
    )


def _chosen(refiners: Sequence[str], settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The refiners to measure, the profile's first among those that `ALL` adds, and those whose weights it misses."""
    if ALL not in refiners:
        return tuple(dict.fromkeys(refiners)), ()
    known = [one for one in cards().values() if one.role == "refiner" and one.family == "hard"]
    missing = [one.id for one in known if any(weights.state(w, settings.weights) != "present" for w in one.weights)]
    there = sorted((one.id for one in known if one.id not in missing), key=lambda name: name != settings.refiner)
    wanted = dict.fromkeys(name for given in refiners for name in (there if given == ALL else [given]))
    return tuple(wanted), tuple(name for name in missing if name not in wanted)


def _check(refiners: Sequence[str], reranker: str | None, settings: Settings) -> None:
    """Every id is known and its weights are here, before anything is loaded."""
    cards = [card(name, "refiner") for name in refiners]
    cards += [card(reranker, "reranker")] if reranker else []
    cards += [card(settings.encoder, "retriever")]
    for name in dict.fromkeys(name for one in cards for name in one.weights):
        weights.folder(name, settings.weights)


def _arms(
    refiners: Sequence[str], sizes: Sequence[_Size], cases: Sequence[_Case], settings: Settings, seed: int
) -> dict[tuple[str, _Size | None], Arm]:
    """By system and size, baselines first: what a large model's libraries keep is not charged to those without one."""
    systems: dict[str, Build] = {**baselines(seed), **{name: _refiner(name) for name in refiners}}
    wanted = [(name, size) for name in systems for size in (sizes if name != NO_COMPRESSION else [None])]
    return {
        (name, size): _arm(
            name, systems[name], size, cases, settings, _Counter(n * len(cases), len(wanted) * len(cases))
        )
        for n, (name, size) in enumerate(wanted)
    }


def _refiner(name: str) -> Build:
    return lambda stages: stages.refiner(name)


def _cases(questions: Questions, reranker: str | None, settings: Settings) -> tuple[list[_Case], str]:
    """The questions made ready, and a note on their order."""
    ranked = Stages(settings).reranker(reranker) if reranker else None
    cases, seconds = [], []
    for done, question in enumerate(questions.rows):
        step(done, len(questions.rows), "questions")
        hits: Sequence[Hit] = question.hits()
        if ranked is not None:
            start = time.perf_counter()
            hits = measured(ranked.rank(Query(question.text), hits)).hits
            seconds.append(time.perf_counter() - start)
        original = count("\n\n".join(hit.item.text for hit in hits), settings.tokenizer)
        cases.append(_Case(question, hits, Facts.of(question), Places.of(question, hits), original))
    if not reranker:
        return cases, "Contexts stand in the order of the data, all with the same score."
    return cases, f"Contexts stand in the order of `{reranker}`, which took {_ms(seconds, 50):,.0f} ms (median) apart."


def _arm(
    name: str, build: Build, size: _Size | None, cases: Sequence[_Case], settings: Settings, done: _Counter
) -> Arm:
    """One system at one size (None: no limit); a system that fails is reported with its error."""
    told = size.settings if size else {}
    try:
        with PeakMemory() as memory:
            refiner = build(Stages(settings))
            seen = [_compressed(refiner, case, size, settings, done) for case in cases]
    except (Cancelled, TimedOut):
        raise
    except Exception as error:  # a system's own fault must not stop the others; it is reported by name
        return Arm(system=name, settings=told, status="failed", reason=f"{type(error).__name__}: {error}")
    values = {metric: {one.case.question.id: one.kept[metric] for one in seen} for metric in (*KEPT, *BY_PLACE)}
    means = {metric: _mean(found.values()) for metric, found in values.items()}
    read = sum(one.case.original for one in seen)
    seconds = [one.seconds for one in seen]
    return Arm(
        system=name,
        settings=told,
        metrics={
            **{metric: mean for metric, mean in means.items() if metric in KEPT},
            "rate_requested": fmean(min(1.0, one.budget / max(1, one.case.original)) for one in seen) if size else None,
            "rate_achieved": fmean(one.used / max(1, one.case.original) for one in seen),
            "over_budget": fmean(one.used > one.budget for one in seen) if size else None,
            "tokens_per_s": read / max(sum(seconds), 1e-9),
            "ms_p50": _ms(seconds, 50),
            "ms_p95": _ms(seconds, 95),
            "peak_rss_mb": memory.mb,
            **{metric: mean for metric, mean in means.items() if metric in BY_PLACE and mean is not None},
        },
        per_query={metric: values[metric] for metric in COMPARED if means[metric] is not None},
    )


class _Counter:
    """Reports progress from `done` on."""

    def __init__(self, done: int, total: int) -> None:
        self._done = done
        self._total = total

    def next(self) -> None:
        step(self._done, self._total, "compressions")
        self._done += 1


def _compressed(refiner: Refiner, case: _Case, size: _Size | None, settings: Settings, done: _Counter) -> _Seen:
    done.next()
    budget = size.of(case.original) if size else case.original
    start = time.perf_counter()
    refined: Refined = refiner.refine(Query(case.question.text), case.hits, Budget(budget, settings.tokenizer))
    seconds = time.perf_counter() - start
    used = count(plain(refined.passages, 0), settings.tokenizer)
    kept = case.facts.kept(refined.passages)
    kept |= case.places.kept(kept["answers_kept"], refined.passages)
    return _Seen(case, budget, used, seconds, kept)


def _notes(settings: Settings, ordering: str, cases: Sequence[_Case], left_out: Sequence[str]) -> Iterator[str]:
    if left_out:
        yield f"Not measured, their weights are not here: {', '.join(f'`{name}`' for name in left_out)}."
    yield ordering
    yield from _placed(cases)
    yield f"Tokens are those of `{settings.tokenizer}`. Times count all that a system reads; arms share no cache."
    yield "`peak_rss_mb` is that of the whole process, with what libraries keep from earlier arms; baselines run first."
    yield "An answer is kept when a spelling of it, normalised as in SQuAD, stands in one passage as whole words."
    yield "`entities_kept`: names are found by a rule for English (`tools/evaluation/survival.py`), not by a model."
    yield f"Encoder: `{settings.encoder}`; language model of perplexity systems: `{Path(settings.lm).name}`."


def _placed(cases: Sequence[_Case]) -> Iterator[str]:
    """How many questions stand behind each figure of a third."""
    answers = {third: sum(case.places.answer == third for case in cases) for third in THIRDS}
    gold = {third: sum(any(c.evidence for c in case.places.contexts[third]) for case in cases) for third in THIRDS}
    for what, found in (("the answer stands in one third of the contexts alone", answers), ("gold evidence", gold)):
        if any(found.values()):
            told = ", ".join(f"{third} {n:,}" for third, n in found.items())
            yield f"Questions by place, where {what}: {told}."


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _ms(seconds: Sequence[float], percent: float) -> float:
    import numpy as np

    return float(np.percentile(seconds, percent)) * 1000
