"""DeepCT: term weights learned from questions with their passages, against BM25 and against weights without context.

    make prove ID=deepct TRAIN=qa_nq_train/train.jsonl

all-MiniLM-L6-v2 under a new head learns, with each seed, from passages of Natural Questions and the questions that each
answers. Searched are all passages of the file for the questions of other passages. The baselines are BM25 over the same
texts, and the same index with each term's mean target over the learned passages, wherever it stands. Every arm has its
own k1 and b, and where it makes counts its own way to, chosen on questions of a third part.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import _proof
import torch
from _counted import Known, Tuned, asked, asked_terms, command, kept, tuned
from _retrieval import Task

from triptych.manifests.weights import folder
from triptych.retrievers._stored import weighed_in
from triptych.retrievers.base import Item, Source
from triptych.retrievers.loading import dtype
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text._term_training import Training, examples
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.bm25 import BM25, Formula
from triptych.retrievers.text.deepct import DeepCT, Rewriting
from triptych.tools.evaluation.compare import paired
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result
from triptych.tools.evaluation.resume import sha256

MEASURED, TUNED = 400, 200
"""Passages whose questions are measured on, and those whose questions choose k1 and b; the rest is learned from."""
LEARNED = 1200
SHUFFLE = 7
TRAINING = Training(epochs=2, batch=16, rate=2e-4, every=25)
FULL = Training(epochs=6, batch=64, rate=2e-4, every=0)
SMOOTHING = (1.0, 5.0, 20.0)
"""Passages that the mean of all terms is worth, for weights without context."""
WAYS = {
    (root, keep_all): Rewriting(root=root, keep_all=keep_all) for root, keep_all in product((False, True), repeat=2)
}


@dataclass(frozen=True)
class Data:
    """All passages, and the questions of three parts: question → id of its passage."""

    info: DataInfo
    items: list[Item]
    learned: list[tuple[str, str]]
    chosen: list[tuple[str, str]]
    measured: list[tuple[str, str]]

    @classmethod
    def read(cls, path: Path, limit: int | None) -> Data:
        """Parts are of passages: no passage that is learned from answers a question that is asked."""
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        passages = {row["passage"]["id"]: row["passage"] for row in rows}
        items = [Item(key, p["text"], Source(key), meta={"title": p["title"]}) for key, p in passages.items()]
        random.Random(SHUFFLE).shuffle(items)
        asked: dict[str, list[str]] = {}
        for row in rows:
            asked.setdefault(row["passage"]["id"], []).append(row["question"])
        last = MEASURED + TUNED + (limit or len(items))
        parts = [items[MEASURED + TUNED : last], items[MEASURED : MEASURED + TUNED], items[:MEASURED]]
        pairs = [[(question, item.id) for item in part for question in asked[item.id]] for part in parts]
        return cls(DataInfo(name=path.stem, sha256=sha256(path), sizes={"questions": len(rows)}), items, *pairs)

    def texts(self) -> list[str]:
        return [searchable_text(item) for item in self.items]

    def pairs(self) -> list[tuple[str, str]]:
        """Question and text, to learn from."""
        texts = dict(zip((item.id for item in self.items), self.texts(), strict=True))
        return [(question, texts[key]) for question, key in self.learned]

    def task(self) -> Task:
        queries = {str(n): question for n, (question, _) in enumerate(self.measured)}
        return Task(self.items, queries, {str(n): {key: 1} for n, (_, key) in enumerate(self.measured)})

    def choose(self, choices: Mapping[object, Sequence[Mapping[str, int]]]) -> Tuned:
        place = {item.id: n for n, item in enumerate(self.items)}
        right = [[place[key]] for _, key in self.chosen]
        return tuned(choices, [asked_terms(question) for question, _ in self.chosen], right)


Weights = list[dict[str, float]]
"""Of each passage: term → weight."""


def learned(
    data: Data, training: Training, start: Path, numbers: torch.dtype, work: Path | None
) -> tuple[Weights, float]:
    """What the model that learned from `data` says of every passage, and the seconds that learning took."""
    begun = time.perf_counter()
    with kept(work, training.seed) as out:
        weigher = DeepCT.fit(data.pairs(), out, start, training)
    seconds = time.perf_counter() - begun
    weigher.model.to(_proof.device(), numbers)
    return weigher.weights(data.texts()), seconds


def without_context(data: Data, smoothing: float) -> Weights:
    """Of each term the mean of its targets, drawn towards the mean of all."""
    seen, total = Counter[str](), Counter[str]()
    for example in examples(data.pairs()):
        for term in set(terms(example.text)):
            seen[term] += 1
            total[term] += example.targets.get(term, 0.0)
    mean = sum(total.values()) / sum(seen.values())
    return [
        {term: (total[term] + smoothing * mean) / (seen[term] + smoothing) for term in set(terms(text))}
        for text in data.texts()
    ]


def weighed(system: str, data: Data, choices: Mapping[float, Weights], cost: Mapping[str, float], **told: int) -> Arm:
    """The index of the best of these weights, as every passage's words are counted by them."""
    counted = {(of, way): [WAYS[way].counts(one) for one in made] for of, made in choices.items() for way in WAYS}
    best = data.choose(counted)
    of, way = best.made
    rewriting = Rewriting(root=way[0], keep_all=way[1], k1=best.k1, b=best.b)
    known = Known(dict(zip(data.texts(), choices[of], strict=True)))
    retriever = DeepCT(weighed_in(None, rewriting), known)
    with tempfile.TemporaryDirectory() as scratch:
        arm = data.task().measured(system, retriever, Path(scratch) / "index", **told)
    chosen = {"k1": best.k1, "b": best.b, "root": float(way[0]), "keep_all": float(way[1]), "chosen_mrr": best.mrr}
    return arm.model_copy(update={"metrics": {**arm.metrics, **chosen, **cost}})


def lexical(data: Data) -> Arm:
    """BM25 with k1 and b of its own."""
    best = data.choose({"": [Counter(terms(text)) for text in data.texts()]})
    with tempfile.TemporaryDirectory() as scratch:
        retriever = BM25(weighed_in(None, Formula("lucene", best.k1, best.b)))
        arm = data.task().measured("bm25", retriever, Path(scratch) / "index")
    chosen = {"k1": best.k1, "b": best.b, "chosen_mrr": best.mrr}
    return arm.model_copy(update={"metrics": {**arm.metrics, **chosen}})


def main() -> None:
    given = asked(__doc__, "train", LEARNED)
    data = Data.read(given.train, None if given.full else given.limit)
    settings = _proof.stages().settings
    start, training = folder(WEIGHTS, settings.weights), FULL if given.full else TRAINING
    numbers = dtype(settings.precision, _proof.device())
    arms = [lexical(data), weighed("context_free", data, {one: without_context(data, one) for one in SMOOTHING}, {})]
    runs = []
    for seed in range(given.seeds):
        how = replace(training, seed=seed, bf16=numbers == torch.bfloat16)
        weights, seconds = learned(data, how, start, numbers, given.work)
        runs.append(weighed("deepct_minilm", data, {0.0: weights}, {"train_s": seconds}, seed=seed))
    whole = _proof.over_seeds(runs)
    result = Result(
        name=_proof.named("deepct", given),
        kind="proof",
        title="DeepCT from questions of Natural Questions, against BM25 and term weights without context",
        command=command("deepct", given, "train", limit=LEARNED),
        seed=0,
        data=(data.info,),
        environment=environment((), str(numbers).removeprefix("torch.")),
        arms=(*arms, *runs, whole),
        comparisons=tuple(paired(whole, baseline, "nDCG@10") for baseline in arms),
        notes=(
            f"all-MiniLM-L6-v2 with a new head, {training.epochs:g} epochs over {len(data.learned):,} questions, "
            f"learning rate {training.rate:g}, batches of {training.batch}; {len(data.items):,} passages are searched "
            f"for {len(data.measured)} questions of passages that were not learned from.",
            f"k1 and b of every arm, and how its counts are made, are the best on {len(data.chosen)} other questions "
            "(`chosen_mrr`: MRR@10 there).",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
