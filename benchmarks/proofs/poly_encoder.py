"""Poly-encoder: questions of several facets, by 1, 4 and 16 codes, against a bi-encoder of the same size and budget.

    make prove ID=poly_encoder TRAIN=qa_nq_train/train.jsonl

A query is two or four unrelated questions of Natural Questions joined by "and"; each of their passages answers one
facet, and all passages of the file are searched. Every network begins as all-MiniLM-L6-v2, its passage encoder frozen;
the last two layers that read queries learn, and the codes. The bi-encoder is the same network with the mean of the
token states for a query. Beside them stand two that know more: the untrained encoder asked each facet alone, a passage
counting by its best, and for two facets a cross-encoder that reads query and passage together.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import _dense
import _proof
import monobert
import numpy as np
import torch

from triptych.manifests.weights import folder
from triptych.rerankers.finetuned.monobert import MonoBERT
from triptych.retrievers.base import Hit, Item, Query
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text import _poly_training
from triptych.retrievers.text._poly_network import Pieces, PolyNetwork
from triptych.retrievers.text._poly_training import Fitting
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.retrievers.text.poly_encoder import Example, PolyEncoder, Shape, poly_scores
from triptych.retrievers.towers import read_tokenizer
from triptych.tools.evaluation import ranking
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, DataInfo, Result
from triptych.tools.evaluation.resume import sha256

LEARNED, TUNED, HELD = 1255, 200, 600
"""Questions to learn from, others on which the rates were chosen, and others to measure on; what is left of a larger
file `--full` learns from, too."""
EXAMPLES = 1280
SHUFFLE = 11
FACETS = (2, 4)
CODES = (1, 4, 16)
COURSE = Fitting(epochs=1, batch=32, rate=1e-4, code_rate=1e-3, layers=2, candidates=False, every=0)
FULL = replace(COURSE, epochs=4, batch=128)
TIMES = 4
"""As many examples are drawn for that course."""
PIECES = 160
METRICS = ("nDCG@10", "recall@10")
CROSSED, CROSS_QUERIES, WRONG, TOP = 2, 300, 3, 20
SEARCHED = 50
"""Queries that also go through the store."""
SIZES = (100, 1_000, 10_000)


@dataclass(frozen=True)
class Asked:
    """A question of the file."""

    id: str
    text: str
    gold: Item


@dataclass(frozen=True)
class Corpus:
    """All passages, with their vectors by the encoder that nobody trains: float32 (passages, dim)."""

    items: Sequence[Item]
    vectors: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Item], start: Path) -> Corpus:
        network = PolyNetwork.started(start, Shape(variant="mean", m=1, passage_pieces=PIECES), 0)
        pieces = Pieces(read_tokenizer(start, "bert"), network.shape)
        texts = [searchable_text(item) for item in items]
        with torch.autocast("cpu", torch.bfloat16):
            made = _poly_training.encoded(network, pieces, set(texts))
        return cls(items, torch.stack([made[text] for text in texts]).float().numpy())

    def known(self) -> dict[str, torch.Tensor]:
        """As `fit` takes them."""
        return {searchable_text(one): torch.from_numpy(row) for one, row in zip(self.items, self.vectors, strict=True)}

    def best(self, scores: np.ndarray, k: int = 10) -> list[str]:
        """Ids of the highest scores (passages,), best first, ties by position."""
        return [self.items[place].id for place in np.argsort(-scores, kind="stable")[:k]]


@dataclass(frozen=True)
class Task:
    """Queries of several facets."""

    facets: int
    groups: Sequence[Sequence[Asked]]

    @staticmethod
    def query(group: Sequence[Asked]) -> str:
        return " and ".join(one.text for one in group)

    @staticmethod
    def key(group: Sequence[Asked]) -> str:
        return " ".join(one.id for one in group)

    def arm(self, system: str, orders: Sequence[Sequence[str]], cost: Mapping[str, float], **settings: int) -> Arm:
        """Of these orders (passage ids), one for each group."""
        keys = [self.key(group) for group in self.groups]
        qrels = {key: {one.gold.id: 1 for one in group} for key, group in zip(keys, self.groups, strict=True)}
        values = ranking.per_query(qrels, dict(zip(keys, orders, strict=True)), METRICS)
        return Arm(
            system=system,
            settings={"facets": self.facets, **settings},
            metrics={**ranking.means(values), **cost},
            per_query={name: dict(by_query) for name, by_query in values.items()},
        )


def questions(path: Path) -> list[Asked]:
    """All of the file, in a drawn order."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    random.Random(SHUFFLE).shuffle(rows)
    made = {row["passage"]["id"]: row["passage"] for row in rows}
    items = {key: _dense.item(key, one["title"], one["text"]) for key, one in made.items()}
    return [Asked(str(row["id"]), row["question"], items[row["passage"]["id"]]) for row in rows]


def groups(asked: Sequence[Asked], facets: int, wanted: int, chance: random.Random) -> list[list[Asked]]:
    """Questions in groups of `facets`, each used equally often."""
    found: list[list[Asked]] = []
    while len(found) < wanted:
        order = chance.sample(list(asked), len(asked) // facets * facets)
        found += [order[first : first + facets] for first in range(0, len(order), facets)]
    return found[:wanted]


def examples(drawn: Sequence[Sequence[Asked]], chance: random.Random) -> list[Example]:
    """Of each group one passage, the others never being wrong."""
    made = []
    for group in drawn:
        texts = [searchable_text(one.gold) for one in group]
        chosen = chance.choice(texts)
        made.append(Example(Task.query(group), chosen, tuple(text for text in texts if text != chosen)))
    return made


@dataclass(frozen=True)
class Bench:
    """What all arms share.

    Attributes:
        learned: questions to learn from.
        held: facets → what is measured on.
        examples: in one fit.
        course: of one fit, but for its seed.
    """

    corpus: Corpus
    start: Path
    learned: Sequence[Asked]
    held: Mapping[int, Task]
    examples: int
    course: Fitting

    def fitted(self, facets: int, shape: Shape, seed: int, out: Path) -> tuple[PolyEncoder, dict[str, float]]:
        """Learned from groups that the seed draws; and what that cost."""
        chance = random.Random(seed)
        data = examples(groups(self.learned, facets, self.examples, chance), chance)
        told = _poly_training.fit(
            data, out, self.start, shape, (), replace(self.course, seed=seed), self.corpus.known()
        )
        made = PolyEncoder.from_folder(out, precision="float32", device=_proof.device())
        return made, {"train_s": told.seconds, "loss": told.loss}

    def orders(self, poly: PolyEncoder, task: Task) -> list[list[str]]:
        """All passages scored, for each group."""
        return [
            self.corpus.best(poly_scores(poly.contexts(task.query(one)), self.corpus.vectors)) for one in task.groups
        ]

    def plain(self, task: Task) -> Iterator[Arm]:
        """What is known without learning: the mean of the states, and each facet asked alone."""
        network = PolyNetwork.started(self.start, Shape(variant="mean", m=1, passage_pieces=PIECES), 0).eval()
        pieces = Pieces(read_tokenizer(self.start, "bert"), network.shape)

        def read(texts: Sequence[str]) -> np.ndarray:
            with torch.inference_mode():
                found: np.ndarray = network.contexts(*pieces.padded(pieces.queries(texts)))[0][:, 0].numpy()
            return found

        vectors, best = self.corpus.vectors, self.corpus.best
        whole = [best(vectors @ read([task.query(group)])[0]) for group in task.groups]
        apart = [best((vectors @ read([one.text for one in group]).T).max(axis=1)) for group in task.groups]
        yield task.arm("bi_encoder_untrained", whole, {})
        yield task.arm("facets_apart", apart, {})

    def searched(self, poly: PolyEncoder, task: Task) -> dict[str, float]:
        """The search through the store, against scoring everything."""
        poly.store.upsert(self.corpus.items, {})
        poly.vectors.upsert(self.corpus.items, self.corpus.vectors)
        same, seconds = [], []
        task = replace(task, groups=task.groups[:SEARCHED])
        for group, wanted in zip(task.groups, self.orders(poly, task), strict=True):
            begun = time.perf_counter()
            found = poly.search(Query(task.query(group)), len(wanted))
            seconds.append(time.perf_counter() - begun)
            same.append(len({hit.item.id for hit in found} & set(wanted)) / len(wanted))
        return {"overlap@10": fmean(same), "ms_p50": float(np.percentile(seconds, 50)) * 1000}

    def crossed(self, poly: PolyEncoder, task: Task, queries: int) -> Arm:
        """A cross-encoder that learned from as many examples, over the best of the poly-encoder; one seed."""
        chance, begun = random.Random(0), time.perf_counter()
        texts, pairs = [searchable_text(item) for item in self.corpus.items], []
        drawn = groups(self.learned, task.facets, queries, chance)
        for group, one in zip(drawn, examples(drawn, chance), strict=True):
            scores = poly_scores(poly.contexts(one.query), self.corpus.vectors)
            near = [texts[place] for place in np.argsort(-scores, kind="stable")[:TOP]]
            wrong = [text for text in near if text not in {searchable_text(other.gold) for other in group}]
            pairs += [
                (one.query, one.passage, 1),
                *((one.query, text, 0) for text in chance.sample(wrong, min(WRONG, len(wrong)))),
            ]
        model, tokenizer = monobert.untrained(self.start, 0)
        monobert.learn(model, tokenizer, pairs, 0)
        orders, by_id = [], {item.id: item for item in self.corpus.items}
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
            cross = MonoBERT.from_folder(Path(place), device=_proof.device())
        for group in task.groups:
            scores = poly_scores(poly.contexts(task.query(group)), self.corpus.vectors)
            hits = [Hit(by_id[key], -float(n)) for n, key in enumerate(self.corpus.best(scores, TOP))]
            orders.append([hit.item.id for hit in cross.rank(Query(task.query(group)), hits).hits[:10]])
        return task.arm("cross_encoder", orders, {"s": time.perf_counter() - begun})


def latencies(dim: int) -> Iterator[Arm]:
    """What scoring costs, by candidates and context vectors: the median of nine."""
    random_ = np.random.default_rng(0)
    for size in SIZES:
        candidates = random_.normal(size=(size, dim)).astype(np.float32)
        for m in (*CODES, 64):
            contexts, seconds = random_.normal(size=(m, dim)).astype(np.float32), []
            for _ in range(9):
                begun = time.perf_counter()
                poly_scores(contexts, candidates)
                seconds.append(time.perf_counter() - begun)
            median = float(np.median(seconds))
            metrics = {"ms_p50": median * 1000, "ns_per_product": median * 1e9 / (size * m * dim)}
            yield Arm(system="poly_scores", settings={"candidates": size, "m": m}, metrics=metrics)


def compared(means: Mapping[tuple[int, str, int], Arm], crossed: Mapping[int, Arm]) -> Iterator[Comparison]:
    """Poly-encoders against the bi-encoder, and against the cross-encoder."""
    for facets in FACETS:
        polys = [means[facets, "poly_encoder", m] for m in CODES]
        yield from against(polys, means[facets, "bi_encoder", 1], METRICS)
        if facets in crossed:
            yield from against(polys[-1:], crossed[facets], METRICS)


def main() -> None:
    given = _dense.asked(__doc__, EXAMPLES)
    settings = _proof.stages().settings
    start, precision = folder(WEIGHTS, settings.weights), _proof.precision(settings.precision)
    asked = questions(given.train)
    chance = random.Random(SHUFFLE)
    last = LEARNED + TUNED + HELD
    learned = asked[:LEARNED] + asked[last:] if given.full else asked[:LEARNED]
    held = asked[LEARNED : LEARNED + TUNED] if given.rate else asked[LEARNED + TUNED : last]
    course = replace(FULL if given.full else COURSE, bf16="bfloat16" in precision)
    course = replace(course, rate=given.rate or course.rate)
    tasks = {facets: Task(facets, groups(held, facets, len(held) // facets, chance)) for facets in FACETS}
    items = list({one.gold.id: one.gold for one in asked}.values())
    wanted = TIMES * EXAMPLES if given.full else given.limit
    bench = Bench(Corpus.of(items, start), start, learned, tasks, wanted, course)
    found: dict[tuple[int, str, int], list[Arm]] = {}
    single, crossed = [arm for task in tasks.values() for arm in bench.plain(task)], {}
    shapes = {("bi_encoder", 1): Shape(variant="mean", m=1, passage_pieces=PIECES)}
    shapes |= {("poly_encoder", m): Shape(m=m, passage_pieces=PIECES) for m in CODES}
    for seed in _dense.SEEDS[: given.seeds]:
        for facets, task in tasks.items():
            for (system, m), shape in shapes.items():
                with tempfile.TemporaryDirectory() as scratch:
                    out = (given.work or Path(scratch)) / f"{system}_{m}_{facets}_{seed}_{course.rate:g}"
                    poly, cost = bench.fitted(facets, shape, seed, out)
                arm = task.arm(system, bench.orders(poly, task), cost, m=m, seed=seed)
                found.setdefault((facets, system, m), []).append(arm)
            if seed == 0 and not given.rate:
                single.append(Arm(system="poly_encoder", settings={"facets": facets, "m": m, "through": "the store"},
                                  metrics=bench.searched(poly, task)))  # fmt: skip
                if facets == CROSSED:
                    crossed[facets] = bench.crossed(poly, task, min(CROSS_QUERIES, wanted))
    means = {key: _proof.over_seeds(own) for key, own in found.items()}
    every = [arm for own in found.values() for arm in own]
    sizes = {"questions": len(asked), "passages": len(items), "learned": len(learned), "held": len(held)}
    result = Result(
        name=_proof.named("poly_encoder", given),
        kind="proof",
        title="Poly-encoder on questions of several facets: 1, 4 and 16 codes, and a bi-encoder",
        command=_dense.command("poly_encoder", given),
        seed=0,
        data=(DataInfo(name=given.train.stem, sha256=sha256(given.train), sizes=sizes),),
        environment=environment((), precision),
        arms=(*means.values(), *crossed.values(), *single, *every, *latencies(bench.corpus.vectors.shape[1])),
        comparisons=tuple(compared(means, crossed)),
        notes=(
            f"Each network learned from {wanted} groups of questions, {course.epochs:g} epoch(s) in batches of "
            f"{course.batch}: the last {course.layers} layers of the query encoder at a rate of {course.rate:g} and "
            f"the codes at {course.code_rate:g}; the passage encoder is frozen. Rates were chosen on other questions, "
            "with 2,560 groups, for both systems among the same three; the codes' rate among two more, of one seed. "
            "Two facets are the test; four were added when two left little room.",
            "`facets_apart` is told where a facet ends, which no other arm is. `bi_encoder`: the mean of the states.",
            f"`cross_encoder`: one seed, {min(CROSS_QUERIES, wanted)} groups with {WRONG} wrong passages each, over "
            f"the best {TOP} of the poly-encoder with {CODES[-1]} codes.",
            f"`through the store`: the search with its shortlist against scoring every passage (`overlap@10`), for "
            f"{SEARCHED} queries.",
            "`poly_scores`: scoring alone, on random vectors; `ns_per_product` is by candidates x m x dimensions.",
        ),
    )
    _proof.write(result, given.out)


if __name__ == "__main__":
    main()
