"""monoBERT: a small cross-encoder trained here against the same one before training, and against BM25.

    make prove ID=monobert TRAIN=qa_nq_train/train.jsonl DATA=trec_dl19

No MS MARCO cross-encoder comes with the package, so the recipe of the paper (two segments, two labels, cross-entropy of
single passages) is applied to all-MiniLM-L6-v2 with questions of Natural Questions: each with the passage that
answers it, and three that BM25 finds and that do not. Both networks are loaded as any user's would be. They are
measured on the BM25 lists of questions that the training did not see, and on the BM25 run of another collection.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _proof
import _reranking
import torch

from triptych.manifests.weights import folder
from triptych.rerankers.finetuned.monobert import MonoBERT
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.loading import computed_in, quiet
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.retrievers.text.bm25 import BM25
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, DataInfo, Result
from triptych.tools.evaluation.resume import sha256
from triptych.tools.evaluation.survival import read, survives

LEARNED, HELD = 600, 100
"""Questions to learn from, and others to measure on."""
OTHERS = 3
"""Passages that do not answer a question, of those that BM25 finds."""
TOP = 20
LIMIT = 43
SHUFFLE = 7
BATCH = 16
RATE = 1e-4
LONGEST = 192
"""Tokens of a pair while it is learned."""


@dataclass(frozen=True)
class Asked:
    """A question, the id of its passage, and what BM25 finds for it."""

    id: str
    text: str
    gold: str
    hits: list[Hit]
    others: list[str]


def questions(path: Path, wanted: int) -> list[Asked]:
    """The first of the file, in a drawn order; `others` are texts of hits that do not hold the answer."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    passages = {row["passage"]["id"]: row["passage"] for row in rows}
    search = BM25.tiny()
    search.add([Item(key, one["text"], Source(key), meta={"title": one["title"]}) for key, one in passages.items()])
    search.store.flush()
    texts = {key: read(one["text"]) for key, one in passages.items()}
    found = []
    for row in random.Random(SHUFFLE).sample(rows, wanted):
        hits = search.search(Query(row["question"]), TOP)
        others = [searchable_text(hit.item) for hit in hits if not survives(row["answers"], [texts[hit.item.id]])]
        found.append(Asked(str(row["id"]), row["question"], row["passage"]["id"], hits, others))
    return found


def untrained(weights: Path, seed: int) -> tuple[Any, Any]:
    """The encoder under a new head of two labels, and its tokenizer."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(seed)
    with quiet():
        model = BertForSequenceClassification.from_pretrained(weights, num_labels=2, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True, model_max_length=512)
    return model, tokenizer


def learn(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str, int]], seed: int) -> list[float]:
    """One epoch over (question, passage, label); the losses."""
    from transformers import get_linear_schedule_with_warmup

    order = random.Random(seed).sample(list(pairs), len(pairs))
    steps = list(_batches(order))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, len(steps) // 10, len(steps))
    losses = []
    model.train()
    for batch in steps:
        given = tokenizer(
            [one[0] for one in batch], [one[1] for one in batch], padding=True, truncation="only_second",
            max_length=LONGEST, return_tensors="pt",
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**given, labels=torch.tensor([one[2] for one in batch])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def _batches(rows: Sequence[tuple[str, str, int]]) -> Iterator[Sequence[tuple[str, str, int]]]:
    for first in range(0, len(rows), BATCH):
        yield rows[first : first + BATCH]


def examples(asked: Sequence[Asked], gold: dict[str, str], seed: int) -> list[tuple[str, str, int]]:
    """Question, passage, and whether it answers."""
    chance = random.Random(seed)
    made = []
    for one in asked:
        made.append((one.text, gold[one.id], 1))
        made += [(one.text, text, 0) for text in chance.sample(one.others, min(OTHERS, len(one.others)))]
    return made


def held_lists(asked: Sequence[Asked], info: DataInfo) -> _reranking.Lists:
    """The BM25 lists of questions, as a collection."""
    queries = {one.id: datasets.Asked(one.id, one.text) for one in asked}
    qrels = {one.id: {one.gold: 1} for one in asked}
    collection = datasets.Collection(info=info, folder=Path(), passages={}, queries=queries, qrels=qrels)
    return _reranking.Lists(collection, {one.id: one.hits for one in asked})


def main() -> None:
    given = _reranking.asked(__doc__, LIMIT)
    settings = _proof.stages().settings
    asked = questions(given.train, LEARNED + HELD)
    rows = [json.loads(line) for line in given.train.read_text("utf-8").splitlines()]
    gold = {str(row["id"]): f"{row['passage']['title']}\n{row['passage']['text']}" for row in rows}
    info = DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes={"questions": len(rows)})
    lists = {
        "nq_held": held_lists(asked[:HELD], info),
        given.data.name: _reranking.Lists.of(given.data, given.limit, TOP, given.seed),
    }
    model, tokenizer = untrained(folder(WEIGHTS, settings.weights), given.seed)
    arms = {name: [one.before().model_copy(update={"settings": {"data": name}})] for name, one in lists.items()}
    pairs = examples(asked[HELD:], gold, given.seed)
    losses: list[float] = []
    for system in ("untrained_head", "monobert_minilm"):
        if system == "monobert_minilm":
            losses = learn(model, tokenizer, pairs, given.seed)
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
            reranker = MonoBERT.from_folder(Path(place), settings.precision)
            for name, one in lists.items():
                arms[name].append(one.measured(system, reranker, data=name))
    result = Result(
        name="monobert",
        kind="proof",
        title="A small cross-encoder trained on Natural Questions, before and after, and BM25",
        command=_reranking.command("monobert", given),
        seed=given.seed,
        data=(info, lists[given.data.name].collection.info),
        environment=environment((), computed_in(settings.precision)),
        arms=tuple(arm for own in arms.values() for arm in own),
        comparisons=tuple(comparisons(arms.values(), given.seed)),
        notes=(
            f"all-MiniLM-L6-v2 with a new head of two labels, one epoch over {len(pairs):,} pairs of {LEARNED} "
            f"questions, learning rate {RATE:g}, batches of {BATCH}; mean loss {sum(losses[:20]) / 20:.3f} over the "
            f"first 20 steps, {sum(losses[-20:]) / 20:.3f} over the last 20. Not a model of MS MARCO.",
            f"`nq_held`: {HELD} questions that were not learned from, {TOP} passages of BM25 each, one of all passages "
            "right: a question whose passage BM25 does not find counts 0 in every arm.",
            f"`run`: the BM25 order. `{given.data.name}`: {TOP} candidates of its BM25 run per query.",
        ),
    )
    _proof.write(result, given.out)


def comparisons(groups: Iterable[Sequence[Arm]], seed: int) -> Iterator[Comparison]:
    """The trained one against the untrained one and BM25, on each data set."""
    for before, plain, trained in groups:
        for baseline in (before, plain):
            yield from against([trained], baseline, _reranking.METRICS, seed)


if __name__ == "__main__":
    main()
