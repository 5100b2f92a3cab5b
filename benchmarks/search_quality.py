"""How well the first two panels find: BM25, dense, hybrid, and hybrid with each reranker, next to bm25s.

    python benchmarks/search_quality.py --data FOLDER [--part train] [--queries N] [--depth 25] [--slow]

FOLDER is a collection (`corpus.jsonl`, `queries.jsonl`, `qrels.tsv`). Every system sees the same corpus; rerankers
get the same 50 hybrid hits and look at the first `--depth`. `--slow` adds query likelihood, `--queries` takes a
random sample (seed 0), `--no-titles` leaves titles out. Writes `results/search_NAME.json`: nDCG@10 and MRR@10,
milliseconds per query (of the reranker alone in its rows), and a paired randomisation test of nDCG@10 against hybrid.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

from triptych import Settings
from triptych.rerankers.base import Limits, Reranker
from triptych.rerankers.finetuned.maxsim import MaxSim
from triptych.rerankers.prompted.query_likelihood import QueryLikelihood
from triptych.retrievers.base import Hit, Item, Query, Route, Source
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.stores.lexicon import LEXICAL
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.text.hybrid import Hybrid
from triptych.tools.stages import Stages

CANDIDATES = 50
DRAWS = 10_000
Search = Callable[[str], list[tuple[str, float]]]


def main() -> None:
    arguments = parsed()
    data = harness.collection(arguments.data, arguments.part, not arguments.no_titles)
    sample = sorted(data.queries)
    if arguments.queries and arguments.queries < len(sample):
        sample = sorted(random.Random(0).sample(sample, arguments.queries))
    stages = Stages(Settings.load())
    with tempfile.TemporaryDirectory() as scratch:
        items = [
            Item(key, text, Source(""), meta={"title": title} if title else {})
            for key, (title, text) in data.corpus.items()
        ]
        encoder = stages.encoder()
        store = MilvusStore(Path(scratch), [encoder.space])
        hybrid = Hybrid(store, encoder)
        start = time.perf_counter()
        hybrid.add(items)
        indexed = time.perf_counter() - start
        systems = first_stages(items, hybrid)
        runs, spent = {}, {}
        for name, search in systems.items():
            runs[name], spent[name] = run(search, data, sample)
        shortlists = {query: hybrid.search(Query(data.queries[query]), CANDIDATES) for query in sample}
        for name, reranker in rerankers(stages, arguments.slow).items():
            system = reranking(reranker, shortlists, data, arguments.depth)
            runs[name], spent[name] = run_keys(system, sample)
        store.close()
    scored = {name: per_query(data, sample, found) for name, found in runs.items()}
    result = {
        "command": "python benchmarks/search_quality.py "
        + " ".join(sys.argv[1:]).replace(str(arguments.data), "FOLDER"),
        "data": data.name,
        "queries": len(sample),
        "passages": len(items),
        "indexing_s": round(indexed, 1),
        "candidates": CANDIDATES,
        "depth": arguments.depth,
        "systems": {name: summary(values, scored["hybrid"], spent[name]) for name, values in scored.items()},
    }
    name = "search_" + data.name.replace("/", "_").replace(".", "_")
    sys.stdout.write(f"{harness.write(name, result, 'bm25s', 'ir-measures')}\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", default="")
    parser.add_argument("--queries", type=int, default=0)
    parser.add_argument("--depth", type=int, default=25)
    parser.add_argument("--no-titles", action="store_true")
    parser.add_argument("--slow", action="store_true")
    return parser.parse_args()


def first_stages(items: list[Item], hybrid: Hybrid) -> dict[str, Search]:
    """Searches of the whole collection by name."""
    store, encoder = hybrid.store, hybrid.encoder
    assert encoder is not None

    def dense(text: str) -> list[Hit]:
        return store.search([Route(encoder.space, vector=encoder.encode([Query(text)], "query")[0])], CANDIDATES)

    return {
        "bm25s": bm25s_search(items),
        "bm25": lambda text: pairs(store.search([Route(LEXICAL, text=text)], CANDIDATES)),
        "dense": lambda text: pairs(dense(text)),
        "hybrid": lambda text: pairs(hybrid.search(Query(text), CANDIDATES)),
    }


def bm25s_search(items: list[Item]) -> Search:
    """bm25s with its own English stop words and the Snowball stemmer."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)

    index = bm25s.BM25()
    index.index(tokens([searchable_text(item) for item in items]), show_progress=False)

    def search(text: str) -> list[tuple[str, float]]:
        [asked] = tokens([text])
        if not asked:
            return []
        scores = index.get_scores(asked)
        best = np.argsort(-scores, kind="stable")[:CANDIDATES]
        return [(items[n].id, float(scores[n])) for n in best if scores[n] > 0]

    return search


def rerankers(stages: Stages, slow: bool) -> dict[str, Reranker]:
    """Rerankers by the name of the row they make; "alone" is without the first stage's say."""
    found: dict[str, Reranker] = {
        "hybrid + maxsim alone": MaxSim(fresh_encoder(stages), fade=0),
        "hybrid + maxsim": MaxSim(fresh_encoder(stages)),
    }
    if slow:
        lm = stages.lm()
        found["hybrid + query_likelihood alone"] = QueryLikelihood(lm, prior=0)
        found["hybrid + query_likelihood"] = QueryLikelihood(lm)
    return found


def fresh_encoder(stages: Stages) -> Any:
    """An encoder of its own, so that one row's token vectors do not make the next row look fast."""
    return Stages(stages.settings).encoder()


def reranking(
    reranker: Reranker, shortlists: dict[str, list[Hit]], data: harness.Collection, depth: int
) -> Callable[[str], list[tuple[str, float]]]:
    def search(query: str) -> list[tuple[str, float]]:
        return pairs(reranker.rank(Query(data.queries[query]), shortlists[query], Limits(depth=depth)).hits)

    return search


def pairs(hits: Any) -> list[tuple[str, float]]:
    return [(hit.item.id, hit.score) for hit in hits]


def run(search: Search, data: harness.Collection, sample: list[str]) -> tuple[dict[str, list[str]], list[float]]:
    return run_keys(lambda query: search(data.queries[query]), sample)


def run_keys(search: Search, sample: list[str]) -> tuple[dict[str, list[str]], list[float]]:
    """Ids per query, best first, and milliseconds per query."""
    found, spent = {}, []
    for query in sample:
        start = time.perf_counter()
        ranked = search(query)
        spent.append(1000 * (time.perf_counter() - start))
        found[query] = [key for key, _ in ranked]
    return found, spent


def per_query(data: harness.Collection, sample: list[str], found: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """nDCG@10 and RR@10 of every query, in the order of `sample`. Ranks count, so that ties stand as they were."""
    import ir_measures
    from ir_measures import RR, nDCG

    qrels = [ir_measures.Qrel(q, key, grade) for q in sample for key, grade in data.qrels[q].items()]
    ranked = [ir_measures.ScoredDoc(q, key, -float(place)) for q in sample for place, key in enumerate(found[q])]
    values: dict[str, dict[str, float]] = {"nDCG@10": {}, "RR@10": {}}
    for measured in ir_measures.iter_calc([nDCG @ 10, RR @ 10], qrels, ranked):
        values[str(measured.measure)][measured.query_id] = float(measured.value)
    return {name: np.array([by_query.get(q, 0.0) for q in sample]) for name, by_query in values.items()}


def summary(values: dict[str, np.ndarray], baseline: dict[str, np.ndarray], spent: list[float]) -> dict[str, Any]:
    difference = values["nDCG@10"] - baseline["nDCG@10"]
    return {
        "nDCG@10": round(float(values["nDCG@10"].mean()), 4),
        "MRR@10": round(float(values["RR@10"].mean()), 4),
        "ms": harness.percentiles(spent),
        "vs_hybrid": {"nDCG@10": round(float(difference.mean()), 4), "p": randomisation(difference)},
    }


def randomisation(difference: np.ndarray) -> float:
    """Two-sided p of a paired randomisation test (signs flipped at random, 10,000 draws, seed 0)."""
    rng = np.random.default_rng(0)
    observed, at_least = abs(difference.mean()), 0
    for _ in range(DRAWS):
        flipped = (difference * rng.choice((-1.0, 1.0), len(difference))).mean()
        at_least += abs(flipped) >= observed - 1e-12
    return round((at_least + 1) / (DRAWS + 1), 4)


if __name__ == "__main__":
    main()
