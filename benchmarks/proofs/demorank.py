"""DemoRank: demonstrations chosen by feedback against the nearest ones, those of BM25, random ones, and none.

    make prove ID=demorank TRAIN=qa_nq_train/train.jsonl DATA=trec_dl19

Demonstrations are questions of Natural Questions with the passage that answers them (Yes) or with one of another
question (No); the two choosers learn from the feedback of the profile's language model about them. Measured is how
likely the model finds the right answer about inputs of the same kind that were not learned from, and the order that its
P(Yes) gives to the BM25 run of another collection. All arms show the same number of demonstrations.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import _proof
import _reranking
import numpy as np

from triptych.rerankers.prompted._demonstrations import (
    Chooser,
    Demonstration,
    as_input,
    as_known,
    chances,
    other_queries,
    prompt,
    vectors,
)
from triptych.rerankers.prompted._demonstrations_fit import Fitting
from triptych.rerankers.prompted.demorank import DemoRank
from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.text.bm25 import BM25
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result
from triptych.tools.evaluation.resume import language_model, sha256

if TYPE_CHECKING:
    from triptych.retrievers.base import Encoder
    from triptych.retrievers.lm import LM

FITTING = Fitting(inputs=24, near=4, drawn=4, candidates=8, shots=2)
KNOWN, HELD = 80, 60
"""Demonstrations to choose from, and other inputs to judge; half of each are relevant."""
SHOTS = 2
CHARACTERS = 300
"""Passages of demonstrations and inputs are cut here."""
TOP = 10
LIMIT = 20
SHUFFLE = 13
Choose = Callable[[str, Sequence[str]], list[list[Demonstration]]]


def inputs(pairs: Sequence[tuple[str, str]]) -> list[Demonstration]:
    """Each question with its own passage and, for every other one, with that of the question before instead."""
    made = []
    for n, (query, passage) in enumerate(pairs):
        is_right = n % 2 == 0
        text = passage if is_right else pairs[n - 1][1]
        made.append(Demonstration(query, " ".join(text.split())[:CHARACTERS], is_right))
    return made


def by_bm25(known: Sequence[Demonstration]) -> Choose:
    """The demonstrations whose question and passage BM25 finds for those of the input."""
    search = BM25.tiny()
    search.add([Item(str(n), f"{one.query}\n{one.passage}", Source(str(n))) for n, one in enumerate(known)])
    search.store.flush()

    def choose(query: str, passages: Sequence[str]) -> list[list[Demonstration]]:
        allowed = other_queries(known, query)
        found = []
        for passage in passages:
            hits = search.search(Query(f"{query} {passage[:CHARACTERS]}"), SHOTS + 2)
            found.append([known[n] for n in (int(hit.item.id) for hit in hits) if allowed[n]][:SHOTS])
        return found

    return choose


def nearest(known: Sequence[Demonstration], chooser: Chooser, encoder: Encoder) -> Choose:
    """The best `SHOTS` of the retriever, each for itself: no reranker that sees what is chosen already."""
    pool = vectors(encoder, [as_known(one) for one in known])

    def choose(query: str, passages: Sequence[str]) -> list[list[Demonstration]]:
        allowed = other_queries(known, query)
        asked = vectors(encoder, [as_input(query, passage) for passage in passages])
        return [[known[n] for n in chooser.nearest(one, pool, allowed, SHOTS)] for one in asked]

    return choose


def arbitrary(known: Sequence[Demonstration], seed: int) -> Choose:
    """Random ones, the same for the same input."""

    def choose(query: str, passages: Sequence[str]) -> list[list[Demonstration]]:
        allowed = [known[n] for n in np.flatnonzero(other_queries(known, query))]
        return [random.Random(f"{seed} {query} {passage}").sample(allowed, SHOTS) for passage in passages]

    return choose


def right(lm: LM, choose: Choose, held: Sequence[Demonstration]) -> dict[str, float]:
    """P(right answer) for each held-out input, with what is chosen for it."""
    prompts = [prompt(choose(one.query, [one.passage])[0], one.query, one.passage) for one in held]
    yes = chances(lm, prompts)
    return {f"nq {n}": float(p if one.relevant else 1 - p) for n, (one, p) in enumerate(zip(held, yes, strict=True))}


def main() -> None:
    given = _reranking.asked(__doc__, LIMIT)
    stages = _proof.stages()
    lm, encoder = stages.local_lm(), stages.encoder()
    rows = _reranking.pairs(given.train, SHUFFLE)
    known, held = inputs(rows[:KNOWN]), inputs(rows[KNOWN : KNOWN + HELD])
    lists = _reranking.Lists.of(given.data, given.limit, TOP, given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        fitted = DemoRank.fit(lm, encoder, known, (given.work or Path(scratch)) / "demorank", FITTING)
    plain = Chooser.random(encoder.space.dim, given.seed)
    choosers: dict[str, Choose] = {
        "demorank": DemoRank(lm, encoder, fitted, known, SHOTS).choose,
        "retriever_alone": nearest(known, fitted, encoder),
        "encoder": nearest(known, plain, encoder),
        "bm25": by_bm25(known),
        "random": arbitrary(known, given.seed),
        "zero_shot": lambda query, passages: [[] for _ in passages],
    }
    arms = [lists.before()]
    for name, choose in choosers.items():
        reranker = DemoRank(lm, encoder, fitted, known, SHOTS)
        reranker.choose = choose
        arms.append(_with_chances(lists.measured(name, reranker), right(lm, choose, held)))
    metrics = (*_reranking.METRICS, "p_right")
    ours = arms[1]
    result = Result(
        name="demorank",
        kind="proof",
        title="Demonstrations chosen by feedback, by nearness, by BM25, at random, and none",
        command=_reranking.command("demorank", given),
        seed=given.seed,
        data=(
            lists.collection.info,
            DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes={"questions": len(rows)}),
        ),
        environment=environment(),
        arms=tuple(arms),
        comparisons=tuple(
            row for baseline in arms if baseline is not ours for row in against([ours], baseline, metrics, given.seed)
        ),
        notes=(
            f"Language model: {language_model(stages.settings)}. Encoder: `{stages.settings.encoder}`.",
            f"{KNOWN} demonstrations, feedback about {FITTING.inputs} of them with {FITTING.near + FITTING.drawn} "
            f"candidates each; {SHOTS} are shown. The paper has 300 inputs, 50 candidates and 3 shots.",
            f"`p_right`: P(right answer) about {HELD} other inputs of the same kind, half of them relevant.",
            "`retriever_alone`: the best of the fitted retriever, each for itself. `encoder`: the nearest by vectors "
            "that nothing was fitted on.",
            f"{TOP} candidates of the BM25 run per query.",
        ),
    )
    _proof.write(result, given.out)


def _with_chances(arm: Arm, found: dict[str, float]) -> Arm:
    metrics = {**arm.metrics, "p_right": float(np.mean(list(found.values())))}
    return arm.model_copy(update={"metrics": metrics, "per_query": {**arm.per_query, "p_right": dict(found)}})


if __name__ == "__main__":
    main()
