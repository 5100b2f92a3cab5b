"""HDCT: term weights learned from titles, added up over the passages of documents, against BM25 and the first passage.

    make prove ID=hdct DATA=scifact

all-MiniLM-L6-v2 under a new head learns, with each seed, which words of a passage stand in its abstract's title; no
query is learned from. Titles are left out of what is searched, in every arm but one. Three ways to make documents of
the abstracts, each cut into passages of 64 words:

    abstract   one abstract is a document
    front      the abstract that some query wants, and three others, drawn with the seed, behind it
    back       the same, with the wanted abstract last

Every arm has its own k1 and b on each, chosen on queries of the part `train`. What is found is a document. `--full`
takes all abstracts and queries, and learns from all titles.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import _proof
import torch
from _counted import Known, asked, asked_terms, command, kept, tuned
from _retrieval import METRICS, Task, size

from triptych.manifests.weights import folder
from triptych.retrievers.base import Item, Retriever, Source
from triptych.retrievers.loading import dtype
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.stores.weighed import Weighed
from triptych.retrievers.text._term_training import Training
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.bm25 import BM25, Formula
from triptych.retrievers.text.deepct import DeepCT, Rewriting
from triptych.retrievers.text.hdct import HDCT, Aggregation, How, from_references
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.compare import paired
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, Result

WORDS = 64
"""In a passage."""
LIMIT = 920
"""Abstracts that are searched: enough for each that a query wants to be put together with others."""
LEARNED = 300
"""Abstracts whose passages are learned from, each with its own title."""
MEASURED, CHOSEN = 150, 80
"""Queries that are measured on, and those of the part `train` that choose k1 and b."""
TOGETHER = 4
"""Abstracts of a document that is put together."""
TRAINING = Training(epochs=1, batch=16, rate=2e-4, every=0)
FULL = Training(epochs=3, batch=64, rate=2e-4, every=0)
WAYS: tuple[How, ...] = ("sum", "position_decay_sum")
Weights = Mapping[str, Mapping[str, float]]
Documents = Mapping[str, Sequence[str]]
"""By id, the abstracts of a document, in order."""


@dataclass(frozen=True)
class Data:
    """Abstracts by id: title and passages; queries with the abstracts they want, to measure on and to choose on."""

    collection: datasets.Collection
    titles: dict[str, str]
    passages: dict[str, list[str]]
    queries: dict[str, str]
    qrels: dict[str, list[str]]
    measured: list[str]
    chosen: list[str]

    @classmethod
    def read(cls, path: Path, limit: int | None, queries_limit: int | None) -> Data:
        """All abstracts, or with a limit those that a query wants and others, so many in all."""
        measured = datasets.collection(path, limit=queries_limit)
        chosen = datasets.collection(path, part="train", limit=CHOSEN if limit else None)
        queries, qrels = {}, {}
        for name, part in (("test", measured), ("train", chosen)):
            queries |= {f"{name} {key}": one.text for key, one in part.queries.items()}
            qrels |= {f"{name} {key}": [id_ for id_, g in part.qrels[key].items() if g > 0] for key in part.queries}
        wanted = {id_ for ids in qrels.values() for id_ in ids}
        others = [key for key in measured.passages if key not in wanted]
        drawn = others if limit is None else random.Random(0).sample(others, max(0, limit - len(wanted)))
        chosen_ids = wanted | set(drawn)
        rows = {key: one for key, one in measured.passages.items() if key in chosen_ids}
        return cls(
            measured,
            {key: one.title for key, one in rows.items()},
            {key: cut(one.text) for key, one in rows.items()},
            queries,
            qrels,
            [key for key in queries if key.startswith("test")],
            [key for key in queries if key.startswith("train")],
        )

    def alone(self) -> Documents:
        return {key: [key] for key in self.passages}

    def together(self, seed: int, *, front: bool) -> Documents:
        """Wanted abstracts first or last, each with others; the others that are left, among themselves."""
        wanted = {id_ for ids in self.qrels.values() for id_ in ids}
        others = [key for key in self.passages if key not in wanted]  # may run out: then some stand alone
        random.Random(seed).shuffle(others)
        made = {}
        for key in sorted(wanted):
            own, others = others[: TOGETHER - 1], others[TOGETHER - 1 :]
            made[key] = [key, *own] if front else [*own, key]
        for first in range(0, len(others), TOGETHER):
            made[others[first]] = others[first : first + TOGETHER]
        return made


def cut(text: str) -> list[str]:
    """Passages of so many words; a short rest goes with the last."""
    words = text.split()
    starts = range(0, max(len(words) - WORDS // 2, 1), WORDS)
    return [" ".join(words[start : start + WORDS if start != starts[-1] else None]) for start in starts]


def item(id_: str, text: str, document: str, ordinal: int, title: str = "") -> Item:
    """Without a title nothing but the text is searched: its first word stands for one, and is not said twice."""
    named = title or text.split(" ", 1)[0] or "none"
    return Item(id_, text, Source(id_), meta={"title": named, "document": document, "ordinal": ordinal})


def passage_items(data: Data, documents: Documents) -> list[Item]:
    made = []
    for key, abstracts in documents.items():
        texts = [text for abstract in abstracts for text in data.passages[abstract]]
        made += [item(f"{key}.{n}", text, key, n) for n, text in enumerate(texts)]
    return made


def whole_items(data: Data, documents: Documents, *, titles: bool = False) -> list[Item]:
    made = []
    for key, abstracts in documents.items():
        text = "\n".join(text for abstract in abstracts for text in data.passages[abstract])
        title = " ".join(data.titles[abstract] for abstract in abstracts) if titles else ""
        made.append(item(key, text, key, 0, title))
    return made


@dataclass(frozen=True)
class Setting:
    """One way to make documents, and what every arm on it shares."""

    name: str
    data: Data
    documents: Documents
    seed: int

    def best(self, counts: Sequence[Mapping[str, int]]) -> tuple[float, float]:
        """k1 and b for documents that are counted so, in their order."""
        place = {key: n for n, key in enumerate(self.documents)}
        of = {abstract: place[key] for key, abstracts in self.documents.items() for abstract in abstracts}
        right = [[of[id_] for id_ in self.data.qrels[key]] for key in self.data.chosen]
        asked = [asked_terms(self.data.queries[key]) for key in self.data.chosen]
        found = tuned({"": counts}, asked, right)
        return found.k1, found.b

    def measured(
        self,
        system: str,
        make: Callable[..., Retriever],
        by: Formula | Rewriting,
        items: Sequence[Item],
        stores: int = 1,
    ) -> Arm:
        """What the retriever over so many stores, weighed so, finds: as documents."""
        document = {abstract: key for key, abstracts in self.documents.items() for abstract in abstracts}
        data = self.data
        qrels = {key: {document[id_]: 1 for id_ in data.qrels[key]} for key in data.measured}
        task = Task(items, {key: data.queries[key] for key in data.measured}, qrels)
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as opened:
            made = [opened.enter_context(Weighed(Path(scratch) / str(n), by)) for n in range(stores)]
            retriever = make(*made)
            retriever.add(items)
            for store in made:
                store.settle()
            bytes_ = size(Path(scratch)) / len(self.documents)
            found, seconds = task.asked(retriever)
        orders = {key: [str(hit.item.meta["document"]) for hit in hits] for key, hits in found.items()}
        ms = sorted(seconds)[len(seconds) // 2] * 1000
        cost = {"k1": by.k1, "b": by.b, "bytes_per_document": bytes_, "ms_p50": ms}
        return task.arm(system, orders, cost, documents=self.name, seed=self.seed)

    def bm25(self, system: str, items: Sequence[Item]) -> Arm:
        k1, b = self.best([Counter(terms(searchable_text(one))) for one in items])
        return self.measured(system, BM25, Formula("lucene", k1, b), items)

    def first_passage(self, weights: Weights) -> Arm:
        """DeepCT of each document's first passage."""
        items = [one for one in passage_items(self.data, self.documents) if one.meta["ordinal"] == 0]
        plain = Rewriting(root=True)
        k1, b = self.best([plain.counts(weights[searchable_text(one)]) for one in items])
        known = Known(weights)
        return self.measured(
            "deepct_first_passage", lambda store: DeepCT(store, known), replace(plain, k1=k1, b=b), items
        )

    def hdct(self, how: How, weights: Weights) -> Arm:
        items, plain = passage_items(self.data, self.documents), Aggregation(how=how)
        counted: dict[str, list[dict[str, int]]] = {key: [] for key in self.documents}
        for one in items:
            counted[one.meta["document"]].append(plain.counts(weights[searchable_text(one)]))
        k1, b = self.best([plain.document(passages) for passages in counted.values()])
        known, by = Known(weights), replace(plain, k1=k1, b=b)
        return self.measured(f"hdct_{how}", lambda *stores: HDCT(*stores, known), by, items, stores=2)


def learned(
    data: Data, training: Training, limit: int | None, start: Path, numbers: torch.dtype, work: Path | None
) -> tuple[Weights, float]:
    """What the model that learned from titles says of every passage, and the seconds that learning took."""
    keys = sorted(data.passages)
    keys = keys if limit is None else random.Random(training.seed).sample(keys, min(limit, len(keys)))
    begun = time.perf_counter()
    with kept(work, training.seed) as out:
        labelled = from_references([([data.titles[key]], data.passages[key]) for key in keys])
        weigher = HDCT.fit(labelled, out, start, training)
    seconds = time.perf_counter() - begun
    weigher.model.to(_proof.device(), numbers)
    texts = [text for passages in data.passages.values() for text in passages]
    return dict(zip(texts, weigher.weights(texts), strict=True)), seconds


def arms(data: Data, seed: int, weights: Weights) -> Iterator[Arm]:
    """Everything that one seed gives; what no seed changes, the first gives alone."""
    for name, documents in {
        "abstract": data.alone(),
        "front": data.together(seed, front=True),
        "back": data.together(seed, front=False),
    }.items():
        setting = Setting(name, data, documents, seed)
        if name != "abstract" or seed == 0:
            yield setting.bm25("bm25", whole_items(data, documents))
        if name == "abstract" and seed == 0:
            yield setting.bm25("bm25_with_title", whole_items(data, documents, titles=True))
        yield setting.first_passage(weights)
        for how in WAYS:
            yield setting.hdct(how, weights)


def compared(whole: Mapping[tuple[str, str], Arm]) -> Iterator[Comparison]:
    """What the sheet asks: against BM25 and the first passage; decay where it should win, and where it should lose."""
    for documents in ("abstract", "front", "back"):
        for how in WAYS:
            for baseline in ("bm25", "deepct_first_passage"):
                yield paired(whole[f"hdct_{how}", documents], whole[baseline, documents], METRICS[0])
        yield paired(whole["hdct_position_decay_sum", documents], whole["hdct_sum", documents], METRICS[0])


def main() -> None:
    given = asked(__doc__, "data", LIMIT, MEASURED)
    data = Data.read(given.data, *((None, None) if given.full else (given.limit, given.queries)))
    settings = _proof.stages().settings
    start, training = folder(WEIGHTS, settings.weights), FULL if given.full else TRAINING
    numbers = dtype(settings.precision, _proof.device())
    runs: dict[tuple[str, str], list[Arm]] = {}
    for seed in range(given.seeds):
        how = replace(training, seed=seed, bf16=numbers == torch.bfloat16)
        weights, seconds = learned(data, how, None if given.full else LEARNED, start, numbers, given.work)
        for arm in arms(data, seed, weights):
            cost = {"train_s": seconds} if arm.system.startswith(("hdct", "deepct")) else {}
            told = arm.model_copy(update={"metrics": {**arm.metrics, **cost}})
            runs.setdefault((arm.system, str(arm.settings["documents"])), []).append(told)
    whole = {key: _proof.over_seeds(found) for key, found in runs.items()}
    result = Result(
        name=_proof.named("hdct", given),
        kind="proof",
        title="HDCT from titles, added up over passages, against BM25 and the first passage alone",
        command=command("hdct", given, "data", limit=LIMIT, queries=MEASURED),
        seed=0,
        data=(data.collection.info,),
        environment=environment((), str(numbers).removeprefix("torch.")),
        arms=(*(arm for found in runs.values() for arm in found), *whole.values()),
        comparisons=tuple(compared(whole)),
        notes=(
            f"{len(data.passages):,} abstracts, {sum(map(len, data.passages.values())):,} passages of {WORDS} words; "
            f"{len(data.measured)} queries, and {len(data.chosen)} others that chose k1 and b of every arm.",
            f"all-MiniLM-L6-v2 with a new head, {training.epochs:g} epochs, learning rate {training.rate:g}, batches "
            f"of {training.batch}, from the titles of {'all' if given.full else f'{LEARNED:,}'} abstracts.",
            "`bm25_with_title` also searches the titles that the others learn from or never see.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
