"""Prompt-SAW: chosen triplets against random ones and whole sentences, copies, and the rule that makes triplets.

    make prove ID=prompt_saw
    make prove ID=prompt_saw QUESTIONS=multidoc20.jsonl LIMIT=30

At the same exact budgets: triplets by relevance, the same triplets in random order, whole sentences by dense vectors,
and head truncation. Then every context twice, without the question: how many of the copies are dropped. Last the rule
for English on `triplets.jsonl`, sentences written for this purpose with the triplets that a reader would write down.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _proof
import numpy as np

from triptych.refiners.base import Budget, Refiner
from triptych.refiners.hard._graph import Graph, entity
from triptych.refiners.hard._triplets import by_rule
from triptych.refiners.hard.prompt_saw import PromptSAW
from triptych.refiners.hard.truncate import Truncate
from triptych.refiners.tokens import count
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.baselines import BestSentences, dense
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result

if TYPE_CHECKING:
    from triptych.retrievers.base import Query

RATES = (0.5, 0.25)
GOLD = Path(__file__).resolve().parent / "triplets.jsonl"


class RandomTriplets(PromptSAW):
    """The same graph and the same budget, the triplets in random order."""

    def _relevant(self, known: Graph, query: Query) -> list[int]:
        order = list(range(len(known.facts)))
        random.Random(query.text).shuffle(order)
        return order


def copies(system: str, refiner: Refiner, rate: float, rows: Sequence[datasets.Question]) -> Arm:
    """Every passage with a copy behind it, no question: the share of copies that go, and of originals that stay."""
    gone, stay = [], []
    for question in rows:
        hits = question.hits()
        twice = [one for hit in hits for one in (hit, replace(hit, item=replace(hit.item, id=f"{hit.item.id} again")))]
        budget = Budget(max(1, int(rate * sum(count(hit.item.text) for hit in hits))))
        left = {passage.item.id for passage in refiner.refine(None, twice, budget).passages}
        gone.append(float(np.mean([f"{hit.item.id} again" not in left for hit in hits])))
        stay.append(float(np.mean([hit.item.id in left for hit in hits])))
    metrics: dict[str, float | int | None] = {
        "copies_dropped": float(np.mean(gone)), "originals_kept": float(np.mean(stay)),
    }  # fmt: skip
    return Arm(system=system, settings={"rate": rate, "passages": "twice"}, metrics=metrics)


def rule(held_out: bool) -> Arm:
    """Precision and recall of the rule, exact up to case and articles."""
    lines = [json.loads(line) for line in GOLD.read_text("utf-8").splitlines()]
    rows = [row for row in lines if row["held_out"] == held_out]
    right = made = wanted = 0
    for row, triplets in zip(rows, by_rule([row["sentence"] for row in rows]), strict=True):
        gold = {tuple(map(entity, one)) for one in row["triplets"]}
        ours = [tuple(map(entity, (one.subject, one.relation, one.object))) for one in triplets]
        right += sum(one in gold for one in ours)
        made += len(ours)
        wanted += len(gold)
    metrics: dict[str, float | int | None] = {
        "precision": right / max(1, made), "recall": right / wanted, "sentences": len(rows), "triplets": wanted,
    }  # fmt: skip
    return Arm(system="prompt_saw", settings={"part": "rule", "held_out": held_out}, metrics=metrics)


def main() -> None:
    given = _proof.asked(__doc__)
    questions = datasets.questions(given.questions, limit=given.limit, seed=given.seed)
    rows = questions.rows
    encoder: Any = _proof.stages().encoder()
    systems: dict[str, Callable[[], Refiner]] = {
        "random_triplets": lambda: RandomTriplets(encoder),
        "prompt_saw": lambda: PromptSAW(encoder),
        "dense_sentences": lambda: BestSentences(dense(encoder)),
        "truncate": Truncate,
    }
    arms, comparisons = [], []
    for rate in RATES:
        same = [_proof.survival(name, build(), rate, rows) for name, build in systems.items()]
        arms += same
        comparisons += against(same[1:2], same[0], ["answers_kept"], given.seed)
        comparisons += against(same[1:2], same[2], ["answers_kept"], given.seed)
    some = rows[:10]
    arms += [copies(name, systems[name](), 0.9, some) for name in ("prompt_saw", "truncate")]
    gold = GOLD.read_bytes()
    own = DataInfo(name="triplets", sha256=hashlib.sha256(gold).hexdigest(), sizes={"sentences": gold.count(b"\n")})
    result = Result(
        name="prompt_saw",
        kind="proof",
        title="Triplets by relevance against random ones and whole sentences at equal tokens",
        command=_proof.command("prompt_saw", given),
        seed=given.seed,
        data=(questions.info, own),
        environment=environment(),
        arms=(*arms, rule(held_out=True), rule(held_out=False)),
        comparisons=tuple(comparisons),
        notes=(
            "Contexts stand in the order of the data, all with the same score; budgets are exact.",
            f"`passages twice`: each passage with its copy behind it, {len(some)} questions, none of them asked, "
            "0.9 of the tokens of one copy.",
            "`part rule`: triplets right in subject, relation and object, on sentences and triplets written by us; the "
            "rule was mended on those that are not held out.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
