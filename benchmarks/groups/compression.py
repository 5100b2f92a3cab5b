"""Compression: ours against the stock `llmlingua` package and simple baselines, on the same questions and rates.

The untouched package gives back texts; their tokens are counted and their answers looked for here, with the means that
`triptych eval compress` uses for ours. A last part asks whether our build of the package for transformers 5 still
decides what the untouched one does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import envs
from cells import OURS, Cell, Outcome, Plan

from triptych.errors import BadInput
from triptych.manifests.weights import hash_of
from triptych.refiners.base import Passage, Piece
from triptych.refiners.tokens import count
from triptych.retrievers.base import Item, Source
from triptych.tools.evaluation import compare, datasets
from triptych.tools.evaluation.compress import COMPARED, KEPT
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, Result
from triptych.tools.evaluation.survival import Facts

LM, ENCODER = "smollm2_135m_instruct", "all_minilm_l6_v2"
PACKAGE, PACKAGE_ON_5 = "llmlingua", "llmlingua_transformers_5"
"""Environments of the untouched package: on the last transformers that it runs on, and on today's."""
OUR_REFINERS = ("llmlingua", "extractive")
LONG = {
    "rank_method": "longllmlingua",
    "condition_in_question": "after_condition",
    "reorder_context": "sort",
    "dynamic_context_compression_ratio": 0.3,
    "condition_compare": True,
    "context_budget": "+100",
}
"""What the package's own example sets for LongLLMLingua."""
PARITY_PASSAGES = 3
PARITY: dict[str, dict[str, Any]] = {
    "llmlingua 0.5": {"rate": 0.5},
    "llmlingua 0.3": {"rate": 0.3},
    "llmlingua 0.7, all contexts": {"rate": 0.7, "use_context_level_filter": False},
    "longllmlingua 0.5": {"rate": 0.5, **LONG, "reorder_context": "two_stage", "concate_question": False},
}


class Method(NamedTuple):
    """One method of the package in one environment.

    Attributes:
        options: of `compress_prompt`; None of them puts the question into the result, so that all count the same.
        asks: whether it reads the question.
        classifier: layers and width of a random model, for the method of which no released weights are here.
    """

    name: str
    env: str
    options: Mapping[str, Any]
    asks: bool = False
    classifier: tuple[int, int] | None = None


METHODS = {
    "stock": Method("LLMLingua", PACKAGE, {"concate_question": False}),
    "stock_long": Method("LongLLMLingua", PACKAGE, {**LONG, "concate_question": False}, asks=True),
    "on5": Method("LLMLingua", PACKAGE_ON_5, {"concate_question": False}),
    "on5_two": Method("LLMLingua-2", PACKAGE_ON_5, {"use_context_level_filter": False}, classifier=(2, 64)),
    "on5_two_base": Method("LLMLingua-2", PACKAGE_ON_5, {"use_context_level_filter": False}, classifier=(12, 768)),
}


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        ours: questions for ours and the baselines; the others get the first `stock`, `large`, `parity` of them.
        large: for the random model of BERT's own size.
        contexts: so many of a question's contexts; None: all.
    """

    rates: tuple[float, ...]
    ours: int
    stock: int
    large: int
    parity: int
    contexts: int | None = None

    def of(self, method: Method) -> int:
        """Questions for a method of the package."""
        return self.large if method.classifier and method.classifier[0] > 2 else self.stock


FULL = Amount(rates=(0.5, 0.25), ours=50, stock=8, large=4, parity=4)
QUICK = Amount(rates=(0.5,), ours=4, stock=1, large=0, parity=1, contexts=4)


def cells(plan: Plan) -> list[Cell]:
    """Ours and the baselines, the package method by method, and the two sides of the comparison of builds."""
    amount, asked = _amount(plan), questions(plan)
    made: list[Cell] = []
    for rate in amount.rates:
        made.append(_ours(plan, asked, f"ours_{_told(rate)}", rate, "auto", amount.ours))
    for key, method in METHODS.items():
        made += [_stock(plan, asked, key, method, rate) for rate in amount.rates if amount.of(method)]
    if not plan.quick:
        made += [
            _ours(plan, asked, f"ours_float32_{_told(rate)}", rate, "float32", amount.stock, OUR_REFINERS[:1])
            for rate in amount.rates
        ]
    job = {**_model(plan), "threads": 1, "seed": plan.seed, "calls": list(_parity_calls(asked, amount.parity))}
    made.append(Cell("parity_untouched", PACKAGE, "compression_stock.py", job))
    made.append(Cell("parity_ours", OURS, "compression_build.py", job))
    return made


def questions(plan: Plan) -> datasets.Questions:
    """The plan's first question file: as many questions as ours get, with the contexts that all get.

    Raises:
        BadInput: the plan has no question file.
    """
    if not plan.questions:
        raise BadInput("No question file is given: `0` questions.", "Name one with --questions.")
    amount = _amount(plan)
    found = datasets.questions(plan.questions[0], limit=amount.ours, seed=plan.seed)
    rows = tuple(replace(row, contexts=row.contexts[: amount.contexts]) for row in found.rows)
    return datasets.Questions(found.info, rows)


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """Arms by rate, each tested against ours; then the modes of the comparison of builds."""
    amount, asked = _amount(plan), questions(plan)
    arms: list[Arm] = []
    comparisons: list[Comparison] = []
    for rate in amount.rates:
        ours = list(_our_arms(outcomes[f"ours_{_told(rate)}"], rate, "auto", amount.ours, OUR_REFINERS))
        others = list(_other_arms(asked, outcomes, amount, rate))
        [first] = [arm for arm in ours if arm.system == OUR_REFINERS[0]]
        comparisons += [one for one in compare.against([*ours, *others], first, COMPARED, plan.seed) if one.n]
        arms += [arm for arm in (*ours, *others) if arm.label not in {known.label for known in arms}]
    untouched, build = outcomes["parity_untouched"], outcomes["parity_ours"]
    return Result(
        name="bench_compression",
        kind="compression",
        title=f"Compression against the stock llmlingua package and baselines: {asked.info.name}",
        command=command,
        seed=plan.seed,
        data=(asked.info,),
        environment=environment(("llmlingua", "accelerate")),
        arms=(*arms, *_parity_arms(untouched, build)),
        comparisons=tuple(comparisons),
        notes=tuple(_notes(plan, amount, untouched, build)),
    )


# --- cells -----------------------------------------------------------------------------------------------------------


def _amount(plan: Plan) -> Amount:
    return QUICK if plan.quick else FULL


def _told(rate: float) -> str:
    return f"{rate:g}".replace(".", "_")


def _ours(
    plan: Plan, asked: datasets.Questions, key: str, rate: float, precision: str, n: int, keep: Sequence[str] = ()
) -> Cell:
    job = {
        "name": asked.info.name,
        "rows": [_row(question) for question in asked.rows[:n]],
        "refiners": list(keep or OUR_REFINERS),
        "keep": list(keep),
        "rate": rate,
        "precision": precision,
        "seed": plan.seed,
    }
    return Cell(key, OURS, "compression_ours.py", job)


def _row(question: datasets.Question) -> dict[str, Any]:
    contexts = [
        {"id": one.id, "title": one.title, "text": one.text, "evidence": [list(span) for span in one.evidence]}
        for one in question.contexts
    ]
    return {"id": question.id, "question": question.text, "answers": list(question.answers), "contexts": contexts}


def _stock(plan: Plan, asked: datasets.Questions, key: str, method: Method, rate: float) -> Cell:
    rows = asked.rows[: _amount(plan).of(method)]
    calls = [_call(question.id, question, {"rate": rate, **method.options}, method.asks) for question in rows]
    job = {**_model(plan, method), "threads": 0, "seed": plan.seed, "calls": calls}
    return Cell(f"{key}_{_told(rate)}", method.env, "compression_stock.py", job)


def _model(plan: Plan, method: Method | None = None) -> dict[str, Any]:
    if method is None or method.classifier is None:
        return {"model": str(plan.home / "weights" / LM), "weights": hash_of(LM)}
    layers, width = method.classifier
    tokenizer = str(plan.home / "weights" / ENCODER)
    return {"classifier": {"layers": layers, "width": width, "tokenizer": tokenizer}, "weights": hash_of(ENCODER)}


def _call(key: str, question: datasets.Question, options: Mapping[str, Any], asks: bool) -> dict[str, Any]:
    contexts = [context.text for context in question.contexts]
    return {"id": key, "contexts": contexts, "question": question.text if asks else "", "options": dict(options)}


def _parity_calls(asked: datasets.Questions, n: int) -> Iterator[dict[str, Any]]:
    for question in asked.rows[:n]:
        short = replace(question, contexts=question.contexts[:PARITY_PASSAGES])
        for mode, options in PARITY.items():
            yield _call(f"{question.id} {mode}", short, options, asks="rank_method" in options)


# --- arms ------------------------------------------------------------------------------------------------------------


def _our_arms(outcome: Outcome, rate: float, precision: str, n: int, expected: Sequence[str]) -> Iterator[Arm]:
    """The worker's arms with the settings that tell them from others; where there are none, why."""
    settings = {"precision": precision, "n": n}
    for told in outcome.data.get("arms", ()):
        arm = Arm.model_validate(told)
        yield arm.model_copy(update={"settings": {**arm.settings, **settings}})
    if "arms" not in outcome.data:
        for system in expected:
            yield Arm(
                system=system,
                settings={"rate": rate, **settings},
                status="failed" if outcome.status == "ok" else outcome.status,
                reason=outcome.reason or "the worker gave no figures",
            )


def _other_arms(
    asked: datasets.Questions, outcomes: Mapping[str, Outcome], amount: Amount, rate: float
) -> Iterator[Arm]:
    if (key := f"ours_float32_{_told(rate)}") in outcomes:
        yield from _our_arms(outcomes[key], rate, "float32", amount.stock, OUR_REFINERS[:1])
    for key, method in METHODS.items():
        outcome = outcomes.get(f"{key}_{_told(rate)}")
        if outcome is not None:
            yield _stock_arm(asked, method, outcome, rate, amount.of(method))


def _stock_arm(asked: datasets.Questions, method: Method, outcome: Outcome, rate: float, n: int) -> Arm:
    """A method of the package on the questions that it had done by then."""
    rival = envs.rivals()[method.env]
    [transformers] = [pin.partition("==")[2] for pin in rival.pins if pin.startswith("transformers==")]
    settings: dict[str, Any] = {"rate": rate, "precision": "float32", "n": n}
    settings |= {"method": method.name, "transformers": transformers}
    if method.classifier is not None:
        settings["random_model"] = "{} layers of {}".format(*method.classifier)
    texts = outcome.data.get("texts", {})
    done = [_Done.of(row, texts[row.id], outcome.data["ms"][row.id], rate) for row in asked.rows if row.id in texts]
    values: dict[str, dict[str, float | None]] = {}
    if method.classifier is None:  # of a random model's choice nothing is to be learnt
        values = {metric: {one.id: one.kept[metric] for one in done} for metric in KEPT}
    return Arm(
        system=rival.system,
        settings=settings,
        status=outcome.status,
        reason=outcome.reason,
        metrics=_metrics(done, values, outcome) if done else {},
        per_query={metric: values[metric] for metric in COMPARED if _mean(values.get(metric, {})) is not None},
    )


@dataclass(frozen=True)
class _Done:
    """What became of one question: tokens before and after, the budget, milliseconds, and what was kept."""

    id: str
    original: int
    used: int
    budget: int
    ms: float
    kept: dict[str, float | None]

    @classmethod
    def of(cls, question: datasets.Question, text: str, ms: float, rate: float) -> _Done:
        original = count("\n\n".join(context.text for context in question.contexts))
        whole = Passage(Item("compressed", text, Source("")), (Piece(text, None, "generated"),))
        kept = Facts.of(question).kept([whole])
        return cls(question.id, original, count(text), max(1, int(rate * original)), ms, kept)


def _metrics(
    done: Sequence[_Done], values: Mapping[str, Mapping[str, float | None]], outcome: Outcome
) -> dict[str, float | int | None]:
    """The same figures as `triptych eval compress` gives for ours."""
    import numpy as np

    milliseconds = [one.ms for one in done]
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {
        **{metric: _mean(by_query) for metric, by_query in values.items()},
        "rate_requested": fmean(one.budget / one.original for one in done),
        "rate_achieved": fmean(one.used / one.original for one in done),
        "over_budget": fmean(one.used > one.budget for one in done),
        "tokens_per_s": 1000 * sum(one.original for one in done) / sum(milliseconds),
        "ms_p50": float(p50),
        "ms_p95": float(p95),
        "peak_rss_mb": outcome.data.get("peak_rss_mb"),
        "questions": len(done),
    }


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return fmean(known) if known else None


# --- the two builds --------------------------------------------------------------------------------------------------


def _parity_arms(untouched: Outcome, build: Outcome) -> Iterator[Arm]:
    """Per mode, how many texts of our build are those of the untouched package, of the jobs that both had done."""
    worse = next((one for one in (untouched, build) if one.status != "ok"), build)
    for mode in PARITY:
        pairs = [(a, b) for key, a, b in _both(untouched, build) if key.endswith(f" {mode}")]
        yield Arm(
            system="our build of llmlingua",
            settings={"mode": mode, "precision": "float32"},
            status=worse.status,
            reason=worse.reason,
            metrics={"jobs": len(pairs), "identical": sum(a == b for a, b in pairs)} if pairs else {},
        )


def _both(untouched: Outcome, build: Outcome) -> Iterator[tuple[str, str, str]]:
    theirs, ours = untouched.data.get("texts", {}), build.data.get("texts", {})
    for key in theirs.keys() & ours.keys():
        yield key, theirs[key], ours[key]


def _different(untouched: Outcome, build: Outcome) -> Iterator[str]:
    for key, left, right in sorted(_both(untouched, build)):
        if left != right:
            similar = difflib.SequenceMatcher(None, left, right, autojunk=False).ratio()
            yield f"{key} (similarity {similar:.3f})"


def _notes(plan: Plan, amount: Amount, untouched: Outcome, build: Outcome) -> Iterator[str]:
    yield (
        "One language model (SmolLM2-135M-Instruct) for all perplexity systems, the same questions and contexts in the "
        "same order; `n` questions were asked, the first ones of those that ours got; `questions` were done."
    )
    yield "LLMLingua, LLMLingua-2, truncate and random_words do not read the question; all others do."
    yield (
        "Tokens are those of o200k_base, counted here and not by the package, whose `rate` counts its own model's. "
        "over_budget: the share of questions with more tokens than rate times the original."
    )
    yield (
        "Precision `auto` is bfloat16 where the processor computes in it; the package computes in float32. Its times "
        "are those of the calls, without loading. peak_rss_mb: of the process, for ours with all that ran in it."
    )
    yield (
        "Arms with a random_model measure what LLMLingua-2 costs and how it keeps to a rate: there are no released "
        "weights of it here, so of their quality nothing is said. The package pads every context to 512 tokens."
    )
    yield (
        "Arms `our build of llmlingua`: of `jobs`, how many gave exactly the text of the untouched package "
        f"(transformers {untouched.data.get('versions', {}).get('transformers', 'unknown')}; ours: "
        f"{build.data.get('versions', {}).get('transformers', 'unknown')}), both in float32 on one thread."
    )
    if different := list(_different(untouched, build)):
        yield f"Not the same text: {'; '.join(different)}."
    if amount.contexts:
        yield f"A quick run: only the first {amount.contexts} contexts of each question, which may lack the answer."
    if len(plan.questions) > 1:
        yield f"Only the first question file was used: `{plan.questions[0].stem}`."
