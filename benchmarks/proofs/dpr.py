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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import _dense
import _proof

from triptych.manifests.weights import folder
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

LEARNED, TUNED, HELD = 1000, 100, 955
"""Questions to learn from, others on which a learning rate was tried, and others to measure on; what is left of a
larger file `--full` learns from, too."""
SHUFFLE = 11
CHARACTERS = 400
"""Passages are cut here for every arm, BM25 too."""
COURSE = Fitting(epochs=2, batch=32, rate=1e-4)
FULL = Fitting(epochs=8, batch=128, rate=1e-4, chunk=64)
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


def questions(path: Path) -> list[Asked]:
    """All of the file, in a drawn order."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    random.Random(SHUFFLE).shuffle(rows)
    passages = {row["passage"]["id"]: row["passage"] for row in rows}
    items = {key: _dense.item(key, one["title"], one["text"][:CHARACTERS]) for key, one in passages.items()}
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
    asked = questions(given.train)
    last = LEARNED + TUNED + HELD
    learned = asked[:LEARNED] + asked[last:] if given.full else asked[: given.limit]
    held = asked[LEARNED : LEARNED + TUNED] if given.rate else asked[LEARNED + TUNED : last]
    items = list({one.gold.id: one.gold for one in asked}.values())
    search = _dense.lexical(items)
    data = with_negatives(learned, _dense.by_words(search, {one.id: one.text for one in learned}, DEPTH))
    queries, gold = {one.id: one.text for one in held}, {one.id: one.gold.id for one in held}
    parts = splits(held, items)
    device, precision = _proof.device(), _proof.precision(settings.precision)
    course = replace(FULL if given.full else COURSE, bf16="bfloat16" in precision)
    course = replace(course, rate=given.rate or course.rate)
    start = DPR.from_bert(folder(WEIGHTS, settings.weights))
    for tower in (start.question, start.passage):
        tower.to(device)
    found: dict[tuple[str, str], list[Arm]] = {}

    def put(made: Mapping[str, Arm]) -> None:
        for name, arm in made.items():
            found.setdefault((name, arm.system), []).append(arm)

    put(_dense.arms("bm25", _dense.by_words(search, queries), gold, parts, time.perf_counter()))
    put(_dense.arms("dpr_untrained", _dense.by_vectors(start, queries, items), gold, parts, time.perf_counter()))
    for seed in _dense.SEEDS[: given.seeds]:
        for system, hard in (("dpr_in_batch", 0), ("dpr", 1)):
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory() as scratch:
                out = (given.work or Path(scratch)) / f"{system}_{seed}_{course.rate:g}"
                start.fit(data, out, fitting=replace(course, hard=hard, seed=seed))
                made = _dense.by_vectors(DPR.from_folder(out, settings.precision, device), queries, items)
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
        name=_proof.named("dpr", given),
        kind="proof",
        title="DPR on Natural Questions: with and without hard negatives, and BM25",
        command=_dense.command("dpr", given),
        seed=0,
        data=(DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes=sizes),),
        environment=environment((), precision),
        arms=(*means.values(), *every),
        comparisons=tuple(tests),
        notes=(
            f"Two encoders from all-MiniLM-L6-v2, {course.epochs:g} epochs over {len(learned)} questions, batches of "
            f"{course.batch}, learning rate {course.rate:g} in both arms, "
            f"{_dense.tried(given, f'{TUNED} other questions')}. Not the released DPR.",
            f"Passages cut to {CHARACTERS} characters in every arm.",
            f"`few_words_shared`: less than {FEW:.0%} of the question's terms stand in its passage; "
            f"`many_words_shared`: {MANY:.0%} or more. They stand for the paraphrases without any common word that the "
            "experiment was planned with: these are real questions.",
            "`seconds`: the fit and the search of the held questions.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
