"""DPR: trained with a hard negative for each question, trained without, and BM25, on questions of Natural Questions.

    make prove ID=dpr TRAIN=qa_nq_train/train.jsonl

Both encoders begin as all-MiniLM-L6-v2, a trained encoder, read at `[CLS]`. They learn from some questions with the
passage that answers each; the hard negatives are passages that BM25 finds and that do not hold the answer. Measured is
the search of all passages for the other questions, and apart: those that share few words with their passage, those that
share many, and those whose article has another passage, too.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import _dense
import _proof

from triptych.manifests.weights import folder
from triptych.retrievers.loading import computed_in
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text._training import Fitting, Question, mined
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.dpr import DPR
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result
from triptych.tools.evaluation.resume import sha256
from triptych.tools.evaluation.survival import read, survives

if TYPE_CHECKING:
    from triptych.retrievers.base import Item

LEARNED, TUNED = 1000, 100
"""Questions to learn from, and others on which a learning rate was tried; the rest are measured on."""
SHUFFLE = 11
CHARACTERS = 400
"""Passages are cut here for every arm, BM25 too."""
EPOCHS, BATCH, RATE = 2, 32, 1e-4
DEPTH, KEPT = 20, 5
"""Of so many passages that BM25 finds, so many that do not answer are hard negatives."""
FEW, MANY = 0.4, 0.75
"""Share of the question's terms that stand in its passage."""


@dataclass(frozen=True)
class Asked:
    """A question of the file."""

    id: str
    text: str
    gold: Item
    answers: list[str]

    @property
    def shared(self) -> float:
        """The share of its terms that its passage has."""
        own = set(terms(self.text, "query"))
        return len(own & set(terms(searchable_text(self.gold)))) / max(1, len(own))


def questions(path: Path, characters: int | None) -> list[Asked]:
    """All of the file, in a drawn order."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    random.Random(SHUFFLE).shuffle(rows)
    passages = {row["passage"]["id"]: row["passage"] for row in rows}
    items = {key: _dense.item(key, one["title"], one["text"][:characters]) for key, one in passages.items()}
    return [Asked(str(row["id"]), row["question"], items[row["passage"]["id"]], row["answers"]) for row in rows]


def with_negatives(asked: Sequence[Asked], found: Mapping[str, Sequence[Item]]) -> list[Question]:
    """As `fit` takes them."""
    by_text = {one.text: one for one in asked}
    plain = [Question(one.text, (one.gold,)) for one in asked]

    def answers(question: Question, passage: Item) -> bool:
        return survives(by_text[question.text].answers, [read(searchable_text(passage))])

    return mined(plain, [found[one.id] for one in asked], KEPT, answers=answers)


def splits(held: Sequence[Asked], items: Sequence[Item]) -> dict[str, list[str]]:
    """Name → ids of held questions."""
    titles = Counter(one.title for one in items)
    named = {
        "all": held,
        "few_words_shared": [one for one in held if one.shared < FEW],
        "many_words_shared": [one for one in held if one.shared >= MANY],
        "another_passage_of_the_article": [one for one in held if titles[one.gold.title] > 1],
    }
    return {name: [one.id for one in chosen] for name, chosen in named.items() if chosen}


def main() -> None:
    given = _dense.asked(__doc__, LEARNED)
    settings = _proof.stages().settings
    asked = questions(given.train, None if given.full else CHARACTERS)
    learned, held = asked[: given.limit], asked[LEARNED + TUNED :]
    if given.rate:
        held = asked[LEARNED : LEARNED + TUNED]
    items = list({one.gold.id: one.gold for one in asked}.values())
    search = _dense.lexical(items)
    data = with_negatives(learned, _dense.by_words(search, {one.id: one.text for one in learned}, DEPTH))
    queries, gold = {one.id: one.text for one in held}, {one.id: one.gold.id for one in held}
    parts = splits(held, items)
    epochs, rate = (4 * EPOCHS if given.full else EPOCHS), given.rate or RATE
    precision = computed_in(settings.precision)
    start = DPR.from_bert(folder(WEIGHTS, settings.weights))
    found: dict[tuple[str, str], list[Arm]] = {}

    def put(made: Mapping[str, Arm]) -> None:
        for name, arm in made.items():
            found.setdefault((name, arm.system), []).append(arm)

    put(_dense.arms("bm25", _dense.by_words(search, queries), gold, parts, time.perf_counter()))
    put(_dense.arms("dpr_untrained", _dense.by_vectors(start, queries, items), gold, parts, time.perf_counter()))
    for seed in _dense.SEEDS[: given.seeds]:
        for system, hard in (("dpr_in_batch", 0), ("dpr", 1)):
            begun = time.perf_counter()
            fitting = Fitting(epochs, BATCH, rate, hard=hard, seed=seed, bf16="bfloat16" in precision)
            with tempfile.TemporaryDirectory() as scratch:
                out = (given.work or Path(scratch)) / f"{system}_{seed}_{rate:g}"
                start.fit(data, out, fitting=fitting)
                made = _dense.by_vectors(DPR.from_folder(out, settings.precision), queries, items)
            put(_dense.arms(system, made, gold, parts, begun, seed=seed))
    means = {key: _proof.over_seeds(own) if "seed" in own[0].settings else own[0] for key, own in found.items()}
    tests = [
        one
        for name in parts
        for other in ("bm25", "dpr_in_batch")
        for one in against([means[name, "dpr"]], means[name, other], _dense.METRICS)
    ]
    every = [arm for own in found.values() for arm in own if "seed" in arm.settings]
    sizes = {"questions": len(asked), "passages": len(items), "learned": len(learned), "held": len(held)}
    result = Result(
        name="dpr",
        kind="proof",
        title="DPR on Natural Questions: with and without hard negatives, and BM25",
        command=f"make prove ID=dpr TRAIN={given.train.parent.name}/{given.train.name} LIMIT={given.limit}",
        seed=0,
        data=(DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes=sizes),),
        environment=environment((), precision),
        arms=(*means.values(), *every),
        comparisons=tuple(tests),
        notes=(
            f"Two encoders from all-MiniLM-L6-v2, {epochs} epochs over {len(learned)} questions, batches of {BATCH}, "
            f"learning rate {rate:g} in both arms, tried on {TUNED} other questions. Not the released DPR.",
            f"Passages cut to {CHARACTERS} characters in every arm." if not given.full else "Whole passages.",
            f"`few_words_shared`: less than {FEW:.0%} of the question's terms stand in its passage; "
            f"`many_words_shared`: {MANY:.0%} or more. They stand for the paraphrases without any common word that the "
            "experiment was planned with: these are real questions.",
            "`seconds`: the fit and the search of the held questions.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
