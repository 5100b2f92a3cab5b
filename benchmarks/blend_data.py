"""What `choose_blend.py` chooses on: queries, two first stages, and what each measure says of their passages.

Everything read is kept in `.cache/blend`, query by query, and goes on where it was stopped. Remove that folder after a
change of models.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import prepare

from triptych.rerankers.finetuned.blend import Blend, Weights
from triptych.rerankers.prompted.query_likelihood import QueryLikelihood
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.fusion import by_rank
from triptych.retrievers.text.bm25 import BM25
from triptych.settings import Settings
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.result import DataInfo
from triptych.tools.stages import Stages

CACHE = Path(__file__).resolve().parent / ".cache" / "blend"
SEED = 0
ROUTE = 100
"""Passages of each route that the hybrid fuses."""
DEPTH = 30
"""Passages of each first stage that are read; the product reads 25."""
LIKELY = 25
"""Passages that query likelihood reads."""
HELD = 200
"""Questions that the pruner was not trained on: the first of `prepare.py nq_train`."""
SETS = ("scifact_train", "nq_held", "nq_seen")
Run = list[tuple[str, float]]


@dataclass(frozen=True)
class Data:
    """Queries and judged passages of one set.

    Attributes:
        queries: id → text, in the order in which they are read.
        qrels: query id → passage id → grade.
    """

    name: str
    items: Mapping[str, Item]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    info: DataInfo


# --- the data --------------------------------------------------------------------------------------------------------


def data_of(folder: Path, name: str) -> Data:
    return _scifact(folder / "scifact") if name == "scifact_train" else _nq(folder / "qa_nq_train", name)


def _scifact(folder: Path) -> Data:
    found = datasets.collection(folder, part="train")
    items = {key: _item(key, one.title, one.text) for key, one in found.passages.items()}
    ids = random.Random(SEED).sample(list(found.queries), len(found.queries))
    return Data("scifact_train", items, {key: found.queries[key].text for key in ids}, found.qrels, found.info)


def _nq(folder: Path, name: str) -> Data:
    rows = prepare._rows(folder / "train.jsonl")
    items = {row["passage"]["id"]: _item(**row["passage"]) for row in rows}
    gold = {str(row["id"]): {row["passage"]["id"]: 1} for row in rows}
    start, stop = (0, HELD) if name == "nq_held" else (HELD, 2 * HELD)
    # In the order of `benchmarks/prepare.py nq_train`, the first 200 of which the pruner's training left out.
    asked = {row["id"]: row["question"] for row in islice(prepare.nq_train(folder), start, stop)}
    digest = hashlib.sha256((folder / "train.jsonl").read_bytes()).hexdigest()
    sizes = {"queries": len(asked), "passages": len(items)}
    return Data(name, items, asked, gold, DataInfo(name=name, sha256=digest, sizes=sizes))


def _item(id: str, title: str, text: str) -> Item:
    return Item(id, text, Source("", 0, len(text)), meta={"title": title} if title.strip() else {})


# --- what the measures say -------------------------------------------------------------------------------------------


def read(data: Data, queries: int) -> None:
    """Up to so many lines of `CACHE/SET.jsonl`, one for each query."""
    stages = Stages(Settings.load("embedded"))
    encoder = stages.encoder()
    blend = Blend(encoder, stages.reranker("triptych_reranker").pruner, Weights(cosine=1, maxsim=1, pruner=1))
    runs, similar = _runs(data, encoder, list(data.queries)[:queries])
    known = {row["query"] for row in cached(data.name)}
    with (CACHE / f"{data.name}.jsonl").open("a", encoding="utf-8") as file:
        for done, (key, text) in enumerate(islice(data.queries.items(), queries)):
            if key in known:
                continue
            start = time.perf_counter()
            names = list(dict.fromkeys(name for run in runs[key].values() for name, _ in run))
            told = blend.read(text, [data.items[name] for name in names])
            row = {
                "query": key,
                "runs": runs[key],
                "told": {name: asdict(one) if one else None for name, one in zip(names, told, strict=True)},
                "encoded": {name: similar(key, name) for name in names},
                "seconds": round(time.perf_counter() - start, 3),
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            sys.stderr.write(f"{data.name} {done + 1}/{queries}: {len(names)} passages in {row['seconds']} s\n")


def _runs(data: Data, encoder: Any, keys: Sequence[str]) -> tuple[dict[str, dict[str, Run]], Any]:
    """The two first stages' passages for each query, and the cosine of encoded vectors for a query and a passage."""
    lexical = _lexical(list(data.items.values()))
    vectors = _vectors(data, encoder)
    asked = encoder.encode([Query(data.queries[key]) for key in keys], "query")
    places = {name: n for n, name in enumerate(data.items)}
    cosines = dict(zip(keys, asked @ vectors.T, strict=True))
    runs = {}
    for key in keys:
        words = [(hit.item.id, hit.score) for hit in lexical.search(Query(data.queries[key]), ROUTE)]
        near = sorted(data.items, key=lambda name: (-cosines[key][places[name]], name))[:ROUTE]
        runs[key] = {"bm25": words[:DEPTH], "hybrid": by_rank([[name for name, _ in words], near])[:DEPTH]}
    return runs, lambda key, name: round(float(cosines[key][places[name]]), 6)


def _vectors(data: Data, encoder: Any) -> np.ndarray:
    """Of all passages, float32 (passages, dim), kept in the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{data.name.partition('_')[0]}.npy"
    if not path.is_file():
        np.save(path, encoder.encode(list(data.items.values()), "document"))
    return np.load(path)


def trec_run(folder: Path, out: Path) -> None:
    """BM25's first `ROUTE` passages for the queries of a collection, as a run that `triptych eval rerank` reads."""
    found = datasets.collection(folder)
    lexical = _lexical([_item(key, one.title, one.text) for key, one in found.passages.items()])
    with out.open("w", encoding="utf-8") as file:
        for key, asked in found.queries.items():
            for rank, hit in enumerate(lexical.search(Query(asked.text), ROUTE), start=1):
                file.write(f"{key} Q0 {hit.item.id} {rank} {hit.score} bm25\n")


def _lexical(items: Sequence[Item]) -> BM25:
    made = BM25.tiny()
    made.add(items)
    made.store.flush()
    return made


def likelihood(data: Data, queries: int) -> None:
    """Up to so many lines of `CACHE/SET_likelihood.jsonl`: mean log-probabilities, without the first stage's say."""
    ranker = QueryLikelihood(Stages(Settings.load("embedded")).lm(), prior=0)
    known = {row["query"] for row in cached(f"{data.name}_likelihood")}
    with (CACHE / f"{data.name}_likelihood.jsonl").open("a", encoding="utf-8") as file:
        for row in cached(data.name)[:queries]:
            if row["query"] in known:
                continue
            start = time.perf_counter()
            hits = [Hit(data.items[name], score) for name, score in row["runs"]["hybrid"][:LIKELY]]
            found = ranker.rank(Query(data.queries[row["query"]]), hits)
            told = {hit.item.id: round(hit.score, 5) for hit in found.hits}
            seconds = round(time.perf_counter() - start, 3)
            file.write(json.dumps({"query": row["query"], "told": told, "seconds": seconds}) + "\n")
            file.flush()


def cached(name: str) -> list[dict[str, Any]]:
    path = CACHE / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
