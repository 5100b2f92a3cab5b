"""ColBERT: token vectors against one vector of the same encoder; compressed; and found by PLAID.

    make prove ID=colbert DATA=scifact

The collection has a part `train`, as SciFact has: claims of several aspects each. The encoder is all-MiniLM-L6-v2 and
frozen, so that the arms differ in nothing but what they make of its states: ColBERT's 128 dimensions for every word
piece, or one vector of 384, the mean. Both linear layers learn from the same claims of the train part, with the same
loss, steps and choice of the learning rate, and both stand there unlearned too. Then ColBERT's vectors are compressed,
and searched in four stages. `--full` asks every query, learns from every claim, and takes PLAID's own number
of centroids.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _proof
import numpy as np
from _token_vectors import Mean, Remembered, States, best, token_scores

from triptych.manifests.weights import folder
from triptych.rerankers.finetuned.triptych_pruner import Pruner
from triptych.retrievers.base import Item, Query
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text._colbert_training import Fitting, Lesson
from triptych.retrievers.text._plaid import Depth, Plaid
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.text.colbert import ColBERT
from triptych.tools.evaluation import datasets, ranking
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.passages import corpus
from triptych.tools.evaluation.result import Arm, Comparison, Result

METRICS = ("nDCG@10", "recall@10")
LIMIT, LESSONS, EPOCHS, BATCH = 100, 320, 10, 8
FULL = {"limit": None, "lessons": 10**6, "epochs": 50, "batch": 32, "centroids": None}
"""What `--full` takes instead: every query and claim, and PLAID's own number of centroids."""
WRONG = 3
"""Passages of each lesson that BM25 finds for the claim, and that are not judged right."""
PIECES = 96
"""Of a passage while it is learned; whole passages are searched."""
RATES = (3e-4, 3e-3)
"""Of which each system takes the one with the lower loss on lessons held back, with the first seed."""
BITS = (2, 1)
SAMPLE = 20_000
"""Vectors that the buckets of the second size are learned from."""
UNLEARNED = {"single_vector": "single_vector_unlearned", "colbert_v1": "colbert_unlearned"}
NO_MASKS = "colbert_unlearned_without_masks"
LOSSES: Mapping[str, Any] = {"single_vector": "pairs", "colbert_v1": "pairs", "colbert_v2": "teacher"}


@dataclass(frozen=True)
class Task:
    """Claims to find passages for, and the passages, with their states.

    Attributes:
        pieces: of each query without `[MASK]`.
    """

    queries: Mapping[str, datasets.Asked]
    qrels: Mapping[str, Mapping[str, int]]
    keys: list[str]
    passages: States
    asked: Mapping[str, States]
    pieces: Mapping[str, int]

    def arm(self, system: str, orders: Mapping[str, Sequence[int]], **figures: Any) -> Arm:
        """Values of these orders (numbers of passages); `seed`, `bits`, `cells` are settings, the rest metrics."""
        settings = {key: figures.pop(key) for key in ("seed", "bits", "cells") if key in figures}
        named = {query: [self.keys[n] for n in found] for query, found in orders.items()}
        values = ranking.per_query({query: self.qrels[query] for query in self.queries}, named, METRICS)
        per_query = {name: dict(found) for name, found in values.items()}
        return Arm(system=system, settings=settings, metrics={**ranking.means(values), **figures}, per_query=per_query)

    def late(self, linear: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Token vectors of queries and passages."""
        return {key: one.vectors(linear) for key, one in self.asked.items()}, self.passages.vectors(linear)

    def words(self, linear: np.ndarray) -> dict[str, np.ndarray]:
        """Token vectors of queries without those of `[MASK]`."""
        return {key: one.vectors(linear)[: self.pieces[key]] for key, one in self.asked.items()}

    def exhaustive(self, queries: Mapping[str, np.ndarray], vectors: np.ndarray) -> dict[str, list[int]]:
        """The ten best passages of each query by MaxSim."""
        return {key: best(token_scores(one, vectors, self.passages.lengths), 10) for key, one in queries.items()}


def lessons(train: datasets.Collection, items: Mapping[str, Item], wanted: int, seed: int) -> list[Lesson]:
    """Claims of the train part with a right passage, three wrong ones of BM25, and a small cross-encoder's scores."""
    search, teacher = BM25.tiny(), Pruner.shipped()
    search.add(list(items.values()))
    search.store.flush()
    made: list[Lesson] = []
    chance = random.Random(seed)
    for key in chance.sample(list(train.queries), len(train.queries)):
        text, right = train.queries[key].text, [name for name, grade in train.qrels[key].items() if grade > 0]
        gold = [searchable_text(items[name]) for name in right if name in items]
        hits = [hit.item for hit in search.search(Query(text), 20) if hit.item.id not in right]
        if gold and len(hits) >= WRONG:
            passages = (gold[0], *(searchable_text(one) for one in chance.sample(hits, WRONG)))
            chances = np.clip([one.score for one in teacher.read(text, passages)], 1e-4, 1 - 1e-4)
            made.append(Lesson(text, passages, tuple(float(x) for x in np.log(chances / (1 - chances)))))
        if len(made) == wanted:
            break
    return made


def begun(system: str, backbone: Path, seed: int, encoder: Remembered) -> ColBERT:
    """A system that has learned nothing: orthogonal rows over the encoder."""
    made = ColBERT.from_bert(backbone, seed)
    if system == "single_vector":
        from safetensors.torch import load_file

        config = json.loads((backbone / "config.json").read_text("utf-8"))
        made.network = Mean.over(config, load_file(backbone / "model.safetensors"), int(config["hidden_size"]), seed)
    made.network.bert = encoder
    return made


def taught(system: str, start: ColBERT, learned: Sequence[Lesson], fitting: Fitting) -> tuple[float, ColBERT]:
    """The lowest loss on the lessons held back, and the system as it was then."""
    with tempfile.TemporaryDirectory() as place:
        made = start.fit(learned, Path(place), replace(fitting, loss=LOSSES[system]))
        rows = [json.loads(line) for line in (Path(place) / "log.jsonl").read_text("utf-8").splitlines()]
    return min(row["eval_loss"] for row in rows if "eval_loss" in row), made


def weights(network: Any) -> np.ndarray:
    found: np.ndarray = network.linear.weight.detach().numpy()
    return found


def learned_arms(
    task: Task, backbone: Path, given: argparse.Namespace, known: Sequence[Lesson], notes: list[str]
) -> tuple[list[Arm], list[np.ndarray]]:
    """Every system before and after learning, with every seed; and the linear layers of `colbert_v1`."""
    arms: list[Arm] = []
    kept: list[np.ndarray] = []
    fitting = Fitting(
        in_batch=True, batch=given.batch, epochs=given.epochs, every=10, patience=5, layers=0, document_pieces=PIECES
    )
    encoder = Remembered(ColBERT.from_bert(backbone).network.bert)
    for system in LOSSES:
        rate = RATES[0]
        for seed in range(given.seeds):
            start = begun(system, backbone, seed, encoder)
            if system in UNLEARNED:
                arms.append(answered(task, UNLEARNED[system], weights(start.network), seed))
            if system == "colbert_v1":
                arms.append(answered(task, NO_MASKS, weights(start.network), seed))
            tries = {}
            for one in RATES if seed == 0 else (rate,):
                tries[one] = taught(system, start, known, replace(fitting, rate=one, linear_rate=one, seed=seed))
            rate = min(tries, key=lambda one: tries[one][0])
            kept += [weights(tries[rate][1].network)] if system == "colbert_v1" else []
            arms.append(answered(task, system, weights(tries[rate][1].network), seed))
        notes.append(f"`{system}` learned at the rate {rate:g} of {', '.join(f'{one:g}' for one in RATES)}.")
    return arms, kept


def words(colbert: ColBERT, text: str) -> int:
    """How many pieces of a query are attended to."""
    return int(colbert.padded(colbert.sequences([text], "query"), "query")[1].sum())


def answered(task: Task, system: str, linear: np.ndarray, seed: int) -> Arm:
    """One arm: the queries answered exhaustively with this linear layer."""
    if system.startswith("single_vector"):
        vectors = task.passages.single(linear)
        orders = {key: best(vectors @ one.single(linear)[0], 10) for key, one in task.asked.items()}
        return task.arm(system, orders, seed=seed, bytes_per_passage=vectors.nbytes / len(task.keys))
    queries, vectors = task.late(linear)
    queries = task.words(linear) if system == NO_MASKS else queries
    size = vectors.nbytes / len(task.keys)
    return task.arm(system, task.exhaustive(queries, vectors), seed=seed, bytes_per_passage=size)


def compressed(task: Task, linear: np.ndarray, seed: int, centroids: int | None) -> list[Arm]:
    """Centroids alone, 1 and 2 bits, and PLAID over 2 bits, each beside exhaustive search of whole vectors."""
    queries, vectors = task.late(linear)
    whole = task.exhaustive(queries, vectors)
    arms: list[Arm] = []
    first = Plaid.build(np.split(vectors, np.cumsum(task.passages.lengths)[:-1]), BITS[0], centroids, seed)
    sample = vectors[np.random.default_rng(seed).integers(0, len(vectors), SAMPLE)]
    for bits in BITS:
        codec = first.codec.with_bits(bits, sample)
        index = first if bits == BITS[0] else replace(first, codec=codec, codes=codec.encode(vectors))
        size = index.nbytes / len(task.keys)
        if bits == BITS[0]:
            orders = task.exhaustive(queries, index.codec.centroids[index.codes.cells])
            arms.append(task.arm("centroids_alone", orders, seed=seed, overlap=overlap(orders, whole)))
        orders = task.exhaustive(queries, index.codec.decode(index.codes))
        same = overlap(orders, whole)
        arms.append(task.arm("residual", orders, seed=seed, bits=bits, overlap=same, bytes_per_passage=size))
        for depth in (Depth.of(10), Depth.of(100)):
            found, scored, seconds = {}, [], []
            for key, query in queries.items():
                start = time.perf_counter()
                answer = index.search(query, 10, depth)
                seconds.append(time.perf_counter() - start)
                found[key] = [int(n) for n in answer.passages]
                scored.append(answer.kept[3] / answer.kept[0])
            cost = {"scored": float(np.mean(scored)), "ms_p50": float(np.median(seconds)) * 1000}
            same = overlap(found, orders)
            arms.append(task.arm("plaid", found, seed=seed, bits=bits, cells=depth.cells, overlap=same, **cost))
    return arms


def overlap(orders: Mapping[str, Sequence[int]], others: Mapping[str, Sequence[int]]) -> float:
    """The share of the ten best that is the same, mean over queries."""
    return float(np.mean([len(set(found) & set(others[key])) / len(others[key]) for key, found in orders.items()]))


def main() -> None:
    given = asked()
    settings = _proof.stages().settings
    backbone = folder(WEIGHTS, settings.weights)
    test = datasets.collection(given.data, limit=given.limit)
    train = datasets.collection(given.data, part="train")
    items = chosen(test, given.passages)
    reader = ColBERT.from_bert(backbone)
    task = Task(
        queries=test.queries,
        qrels=test.qrels,
        keys=list(items),
        passages=States.read(reader, [searchable_text(item) for item in items.values()], "document"),
        asked={key: States.read(reader, [one.text], "query") for key, one in test.queries.items()},
        pieces={key: words(reader, one.text) for key, one in test.queries.items()},
    )
    every = {item.id: item for item in corpus(train).items}
    known = lessons(train, every, given.lessons, given.seed)
    notes: list[str] = []
    arms, layers = learned_arms(task, backbone, given, known, notes)
    for seed, linear in enumerate(layers):
        arms += compressed(task, linear, seed, given.centroids)
    means = summed(arms)
    longest = int(task.passages.lengths.sum())
    result = Result(
        name=_proof.named("colbert", given),
        kind="proof",
        title="Late interaction and one vector of the same encoder; residual compression; PLAID",
        command=command(given),
        seed=given.seed,
        data=(test.info, train.info),
        environment=environment((), _proof.precision(settings.precision)),
        arms=(*means, *arms),
        comparisons=tuple(comparisons(means, given.seed)),
        notes=(
            f"All-MiniLM-L6-v2, frozen; {len(known)} claims of the train part to learn from, a tenth of them held "
            f"back; at most {given.epochs} epochs in steps of {given.batch}; {WRONG} wrong passages of BM25 each, cut "
            f"to {PIECES} pieces; all passages of a step are wrong for its other claims. "
            "Learning stops, and the layer is the one, where the loss on those held back is lowest.",
            f"{len(items):,} passages, {longest:,} token vectors of 128 dimensions; a single vector has 384.",
            *notes,
            "`colbert_v2` learned from the passage scores of `triptych_pruner`, which never saw these claims.",
            "`overlap`: the share of the ten best that stays the same, of `centroids_alone` and `residual` beside "
            "whole vectors, of `plaid` beside exhaustive search of the same codes. `scored`: the share of passages "
            "that PLAID decompresses. `cells` 1 and 2 are the published depths for k up to 10 and up to 100.",
            f"{given.seeds} seeds: of linear layers, lessons' order and k-means.",
        ),
    )
    _proof.write(result, given.out)


def chosen(test: datasets.Collection, wanted: int | None) -> dict[str, Item]:
    """The passages by id: all, or the right ones of the queries and the first others."""
    items = {item.id: item for item in corpus(test).items}
    if wanted is None:
        return items
    right = {key for rows in test.qrels.values() for key in rows}
    first = [key for key in items if key in right] + [key for key in items if key not in right]
    return {key: items[key] for key in first[: max(wanted, len(right))]}


def summed(arms: Sequence[Arm]) -> list[Arm]:
    """One arm over the seeds for each system and setting."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        settings = {key: value for key, value in arm.settings.items() if key != "seed"}
        groups.setdefault(json.dumps([arm.system, settings]), []).append(arm)
    return [_proof.over_seeds(group) for group in groups.values()]


def comparisons(means: Sequence[Arm], seed: int) -> list[Comparison]:
    """ColBERT against each single vector and itself unlearned; what is compressed against ColBERT v1."""
    by_name = {arm.label: arm for arm in means}
    late = [by_name["colbert_v1"], by_name["colbert_v2"]]
    found = []
    for baseline in ("single_vector_unlearned", "single_vector", "colbert_unlearned"):
        found += against(late, by_name[baseline], METRICS, seed)
    found += against([by_name["colbert_unlearned"]], by_name["single_vector_unlearned"], METRICS, seed)
    small = [arm for arm in means if arm.system in ("centroids_alone", "residual", "plaid")]
    return [*found, *against(small, by_name["colbert_v1"], METRICS, seed)]


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a collection with a part `train`")
    parser.add_argument("--limit", type=int, default=LIMIT, help="that many queries, drawn at random")
    parser.add_argument("--passages", type=int, help="that many passages, the right ones among them; default: all")
    parser.add_argument("--lessons", type=int, default=LESSONS, help="claims to learn from")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="at most so many")
    parser.add_argument("--centroids", type=int, default=8192, help="of the compression; with --full PLAID's own rule")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn once: queries, lessons, tests")
    parser.add_argument("--full", action="store_true", help="all queries and claims, more epochs, larger batches")
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.set_defaults(batch=BATCH)
    given = parser.parse_args()
    return argparse.Namespace(**{**vars(given), **(FULL if given.full else {})})


def command(given: argparse.Namespace) -> str:
    words = ["make", "prove", "ID=colbert", f"DATA={given.data.name}"]
    words += [f"LIMIT={given.limit}"] if given.limit not in (None, LIMIT) else []
    return " ".join([*words, *(["FULL=1"] if given.full else [])])


if __name__ == "__main__":
    main()
