"""Pruning: what deciding about every token of a text costs, ours against the stock `llmlingua` package.

The same text, weights, share of tokens to keep and threads for all; `lm_speedup_vs_stock` and `clf_speedup_vs_stock`
are the package's seconds over ours. Then what a warm `compress` costs with each refiner.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any

import envs
from cells import OURS, Cell, Outcome, Plan

from triptych.errors import BadInput
from triptych.manifests.registry import cards as all_cards
from triptych.manifests.weights import hash_of
from triptych.refiners.tokens import count
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

LM = "smollm2_135m_instruct"
PACKAGE = "llmlingua"
PRUNER = "triptych_pruner"
RATE = 0.5
WARM_UP = 300
MODES = {"exact": "auto", "fast": "auto", "exact_float32": "float32"}
"""What ours computes in, by how it decides; the last only for whether the decisions are the package's."""
FAMILY = "hard"
FORMS = {
    "llmlingua_all": ("llmlingua", {"pruning_reach": "all"}),
    "llmlingua_all_fast": ("llmlingua", {"pruning_reach": "all", "pruning": "fast"}),
    "longllmlingua_fast": ("longllmlingua", {"pruning": "fast"}),
}
QUICK_REFINERS = ("extractive", "llmlingua")
COMPRESS_TOKENS = 2000
COMPRESS_THREADS = 2


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        sizes: tokens of the texts by number of threads.
        stock, ours: repetitions by size.
        compress: calls of `compress` that count.
    """

    sizes: Mapping[int, tuple[int, ...]]
    stock: Mapping[int, int]
    ours: Mapping[int, int]
    compress: int


FULL = Amount({1: (2000,), 2: (2000, 8000)}, {2000: 3, 8000: 1}, {2000: 3, 8000: 1}, compress=3)
QUICK = Amount({2: (600,)}, {600: 1}, {600: 1}, compress=1)


def cells(plan: Plan) -> list[Cell]:
    """By number of threads the package, ours by mode, the classifier; then the refiners, one by one."""
    amount, asked = _amount(plan), questions(plan)
    made: list[Cell] = []
    for threads, sizes in amount.sizes.items():
        texts = {str(size): text(asked, size) for size in sizes}
        job = {
            "model": str(plan.home / "weights" / LM),
            "weights": hash_of(LM),
            "threads": threads,
            "rate": RATE,
            "warm_up": text(asked, WARM_UP),
            "texts": texts,
        }
        stock = {**job, "repeats": {name: amount.stock[int(name)] for name in texts}}
        ours = {**job, "repeats": {name: amount.ours[int(name)] for name in texts}}
        made.append(Cell(f"stock_{threads}", PACKAGE, "pruning_stock.py", stock))
        for mode, precision in ways(amount, threads).items():
            told = {**ours, "mode": mode.partition("_")[0], "precision": precision}
            if precision == "float32":
                told["repeats"] = dict.fromkeys(texts, 1)
            made.append(Cell(f"{mode}_{threads}", OURS, "pruning_ours.py", told))
        made.append(Cell(f"classifier_{threads}", OURS, "pruning_classifier.py", {**ours, "query": asked.rows[0].text}))
    job = {"threads": COMPRESS_THREADS, "tokens": int(RATE * size_of(plan)), "rows": rows(asked, plan)}
    for name, (refiner, settings) in refiners(plan).items():
        made.append(
            Cell(f"compress_{name}", OURS, "pruning_compress.py", {**job, "refiner": refiner, "settings": settings})
        )
    return made


def ways(amount: Amount, threads: int) -> dict[str, str]:
    """Modes of ours with their precision; whether decisions are the package's is asked once."""
    return {mode: one for mode, one in MODES.items() if one != "float32" or threads == max(amount.sizes)}


def refiners(plan: Plan) -> dict[str, tuple[str, dict[str, str]]]:
    """By the name of a cell: each refiner of text, and LLMLingua's other forms; a quick run has a few."""
    known = {name: card for name, card in all_cards().items() if card.role == "refiner" and card.family == FAMILY}
    found: dict[str, tuple[str, dict[str, str]]] = {name: (name, {}) for name in known}
    return {name: found[name] for name in QUICK_REFINERS} if plan.quick else {**found, **FORMS}


def questions(plan: Plan) -> datasets.Questions:
    """The plan's first question file.

    Raises:
        BadInput: the plan has none.
    """
    if not plan.questions:
        raise BadInput("No question file is given: `0` questions.", "Name one with --questions.")
    return datasets.questions(plan.questions[0], seed=plan.seed)


def text(asked: datasets.Questions, size: int) -> str:
    """The contexts of question after question, cut at a word to `size` tokens of the default tokenizer.

    Raises:
        BadInput: they are not as long together.
    """
    words: list[str] = []
    seen: set[str] = set()
    for question in asked.rows:
        for context in question.contexts:
            if context.text not in seen:
                words += [*context.text.split(" "), "\n\n"]
                seen.add(context.text)
        if len(words) > size:
            break
    ends = list(accumulate(count(" " + word) for word in words))
    n = sum(end <= size for end in ends)
    if n == len(words):
        raise BadInput(f"`{asked.info.name}` has no text of `{size}` tokens.", "Give a larger question file.")
    return " ".join(words[:n]).replace(" \n\n ", "\n\n").strip()


def rows(asked: datasets.Questions, plan: Plan) -> list[dict[str, Any]]:
    """Questions with contexts of about as many tokens as `size_of` says; the first one warms up."""
    found: list[dict[str, Any]] = []
    for question in asked.rows[: _amount(plan).compress + 1]:
        contexts: list[str] = []
        left = size_of(plan)
        for context in question.contexts:
            if left > 0:
                contexts.append(context.text)
                left -= count(context.text)
        found.append({"question": question.text, "contexts": contexts})
    return found


def size_of(plan: Plan) -> int:
    """Tokens of the contexts that `compress` gets."""
    return 400 if plan.quick else COMPRESS_TOKENS


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm for each way, size and number of threads; then one for each refiner."""
    amount, asked = _amount(plan), questions(plan)
    arms: list[Arm] = []
    for threads, sizes in amount.sizes.items():
        of = {way: outcomes[f"{way}_{threads}"] for way in ("stock", *ways(amount, threads), "classifier")}
        for size in sizes:
            arms += [_arm(way, of, size, threads) for way in of]
    arms += [_compress(plan, name, outcomes[f"compress_{name}"]) for name in refiners(plan)]
    return Result(
        name="bench_pruning",
        kind="pruning",
        title=f"Deciding about every token, ours and the stock llmlingua package: {asked.info.name}",
        command=command,
        seed=plan.seed,
        data=(asked.info,),
        environment=environment(("llmlingua", "accelerate")),
        arms=tuple(arms),
        notes=tuple(_notes(outcomes)),
    )


def _amount(plan: Plan) -> Amount:
    return QUICK if plan.quick else FULL


def _arm(way: str, of: Mapping[str, Outcome], size: int, threads: int) -> Arm:
    outcome = of[way]
    told, stock = outcome.data.get(str(size)), of["stock"].data.get(str(size))
    exact = of["exact"].data.get(str(size))
    settings: dict[str, Any] = {"mode": way.partition("_")[0], "tokens": size, "threads": threads}
    if way == "stock":
        settings = {"tokens": size, "threads": threads, "precision": "float32"}
    elif way == "classifier":
        settings = {"mode": "read", "tokens": size, "threads": threads}
    else:
        settings["precision"] = MODES[way]
    names = {"stock": envs.rivals()[PACKAGE].system, "classifier": PRUNER}
    status, reason = outcome.status, outcome.reason
    if told is None and status == "ok":
        status, reason = "failed", "the worker gave no figures"
    return Arm(
        system=names.get(way, "llmlingua"),
        settings=settings,
        status=status,
        reason=reason,
        metrics=dict(_metrics(way, told, stock, exact)) if told else {},
    )


def _metrics(
    way: str, told: Mapping[str, Any], stock: Mapping[str, Any] | None, exact: Mapping[str, Any] | None
) -> Iterator[tuple[str, float | int | None]]:
    seconds = median(told["seconds"])
    yield "seconds", seconds
    yield "repeats", len(told["seconds"])
    yield "tokens_per_s", told["tokens"] / seconds
    yield "above_model_mb", told["above_mb"]
    if way == "stock":
        return
    if stock:
        name = "clf_speedup_vs_stock" if way == "classifier" else "lm_speedup_vs_stock"
        yield name, median(stock["seconds"]) / seconds
    if way == "classifier":
        return
    if stock:
        yield "identical_to_stock", int(told["text"].split() == stock["text"].split())
        yield "similar_to_stock", similarity(told["text"], stock["text"])
    if exact and way == "fast":
        yield "word_overlap_with_exact", overlap(told["words"], exact["words"])


def similarity(one: str, other: str) -> float:
    """Share of words of two texts that stand in the same order in both."""
    return difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Twice the words that both keep over the sum of those that each keeps (Dice); 1 where neither keeps any."""
    return 2 * len(set(one) & set(other)) / (len(one) + len(other)) if one or other else 1.0


def _compress(plan: Plan, name: str, outcome: Outcome) -> Arm:
    import numpy as np

    refiner, settings = refiners(plan)[name]
    metrics: dict[str, float | int | None] = {}
    if ms := outcome.data.get("ms"):
        p50, p95 = np.percentile(ms, [50, 95])
        metrics = {"compress_ms_p50": float(p50), "compress_ms_p95": float(p95), "repeats": len(ms)}
        metrics["tokens_used"] = float(np.mean(outcome.data["used"]))
        metrics["peak_rss_mb"] = outcome.data.get("peak_rss_mb")
    told = {"tokens": size_of(plan), "threads": COMPRESS_THREADS, "rate": RATE, **settings}
    return Arm(system=refiner, settings=told, status=outcome.status, reason=outcome.reason, metrics=metrics)


def _notes(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield (
        f"One text of each length, one language model (SmolLM2-135M-Instruct), {RATE:g} of the tokens to keep, "
        "segments of 200. Lengths are tokens of o200k_base; tokens_per_s counts the model's own. Seconds are the "
        "median of `repeats` calls after one that warms up, without loading."
    )
    yield (
        "Mode `exact` decides as the package does; identical_to_stock says whether the words left are the package's, "
        "similar_to_stock how many are. Mode `fast` takes glimpses of the text in place of the package's first pass "
        "over the whole, an approximation; word_overlap_with_exact is the Dice coefficient of the words that both keep."
    )
    yield "above_model_mb: the most memory during the calls above what the process held before them."
    dtypes = {one.data["dtype"] for key, one in outcomes.items() if key.startswith("exact_") and "dtype" in one.data}
    yield f"Precision `auto` is bfloat16 where the processor computes in it (here: {', '.join(sorted(dtypes)) or '?'})."
    yield "compress_ms: passages of one question to half of their tokens, models warm, each call another question."
