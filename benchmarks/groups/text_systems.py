"""Text systems measured together: quality, time of a query, size of the index, and what the training took.

Systems that learn are trained once, small and alike: on the same questions with passages (`--train`), which have
nothing to do with the collections. The trained folders stay in the cache, so that another run measures from them. Then
every system indexes each collection through its own `add` into its own store, and answers every query, one at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import text_systems_plot
from cells import OURS, Cell, Outcome, Plan, text_collections
from groups.growth import percentiles

from triptych.manifests.weights import hash_of
from triptych.retrievers.loading import computed_in
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.settings import Settings
from triptych.tools.evaluation import compare, datasets, ranking, report
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Comparison, DataInfo, Result

K = 100
METRICS = ("nDCG@10", "recall@100")
BASELINE = "bm25"
CHARACTERS = 400
"""Passages are cut here while systems learn; whole ones are searched."""
LEARNED, QUICK_QUESTIONS, QUICK_QUERIES = 640, 24, 3
"""Questions to learn from, drawn with the seed: minutes of one thread for the slowest."""
QUICK_HOW = {"epochs": 1, "warm": 1, "batch": 8, "held": 4, "m": 4}
LEARN: dict[str, dict[str, Any]] = {
    "deepct": {"epochs": 1, "batch": 16, "rate": 2e-4, "held": 160},
    "dpr": {"epochs": 1, "batch": 32, "rate": 1e-4, "hard": 1},
    "ance": {"warm": 6, "epochs": 3, "batch": 64, "warm_rate": 1e-3, "rate": 3e-4, "hidden": 128, "layers": 1,
             "pieces": 96},
    "poly_encoder": {"epochs": 2, "batch": 32, "rate": 1e-4, "code_rate": 1e-3, "layers": 2, "m": 16},
    "colbert": {"epochs": 1, "batch": 16, "rate": 2e-5, "linear_rate": 1e-3, "layers": 2, "pieces": 96},
}  # fmt: skip
"""Settings of the fits: those of the systems' own proofs, shorter; no collection was looked at for them."""


STORE, STORE_QUERIES, STORE_ASK_S = "colbert_store", 6, 120.0
"""ColBERT in the store, where a query takes many seconds: too few of them to tell its quality."""
ASK_S, QUICK_ASK_S = 400.0, 10.0
WARM_UP = 2


class System(NamedTuple):
    """What one cell measures on a collection.

    Attributes:
        trained: a key of `LEARN`, or `""`.
        arms: route of the worker → system and settings of its arm.
    """

    trained: str
    arms: dict[str, tuple[str, dict[str, str]]]


def _own(name: str, trained: str = "") -> System:
    return System(trained, {name: (name, {})})


def _fused(name: str, trained: str = "", **settings: str) -> System:
    return System(trained, {name: (name, settings), "hybrid": ("hybrid", {"with": name, **settings})})


SYSTEMS = {
    "bm25": _own("bm25"),
    "tfidf": _own("tfidf"),
    "deepct": _own("deepct", "deepct"),
    "hdct": _own("hdct", "deepct"),
    "all_minilm_l6_v2": _fused("all_minilm_l6_v2"),
    "dpr": _fused("dpr", "dpr"),
    "ance": _own("ance", "ance"),
    "poly_encoder": _own("poly_encoder", "poly_encoder"),
    "colbert": _fused("colbert", "colbert", vectors="in memory"),
    STORE: System("colbert", {STORE: ("colbert", {"vectors": "in the store"})}),
}


# --- cells -----------------------------------------------------------------------------------------------------------


def cells(plan: Plan) -> list[Cell]:
    """First what is trained, then every system on every collection."""
    return [*train_cells(plan), *(_search(plan, data, name) for data in collections(plan) for name in SYSTEMS)]


def collections(plan: Plan) -> list[datasets.Collection]:
    """The plan's collections of text, with the queries that are asked."""
    return text_collections(plan, QUICK_QUERIES if plan.quick else None)


def train_cells(plan: Plan) -> list[Cell]:
    """One for each system that learns."""
    return [Cell(f"train_{name}", OURS, "text_systems_train.py", _lesson(plan, name)) for name in LEARN]


def _lesson(plan: Plan, name: str) -> dict[str, Any]:
    how = {key: min(value, QUICK_HOW.get(key, value)) if plan.quick else value for key, value in LEARN[name].items()}
    job = {
        "system": name, "characters": CHARACTERS, "how": how, "limit": QUICK_QUESTIONS if plan.quick else LEARNED,
        "seed": plan.seed, "sha256": _sha256(train_file(plan)), "weights": hash_of(WEIGHTS),
    }  # fmt: skip
    into = plan.cache / "text_systems" / f"{name}-{_digest(job)}"
    return {**job, "train": str(train_file(plan)), "into": str(into)}


def _search(plan: Plan, data: datasets.Collection, name: str) -> Cell:
    trained, slow = SYSTEMS[name].trained, name == STORE
    into = Path(_lesson(plan, trained)["into"]) if trained else None
    job = {
        "system": name, "collection": str(data.folder), "sha256": data.info.sha256, "seed": plan.seed, "k": K,
        "limit": QUICK_QUERIES if plan.quick else STORE_QUERIES if slow else None, "warm": 1 if slow else WARM_UP,
        "ask_s": QUICK_ASK_S if plan.quick else STORE_ASK_S if slow else ASK_S, "weights": hash_of(WEIGHTS),
        "model": str(into / "model") if into else None,
        "vectors": str(into / f"vectors-{data.info.sha256[:12]}.npz") if into else None,
    }  # fmt: skip
    return Cell(f"{data.info.name}_{name}", OURS, "text_systems_search.py", job)


def train_file(plan: Plan) -> Path:
    """Of questions with passages."""
    return plan.train or plan.questions[0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


# --- the result ------------------------------------------------------------------------------------------------------


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm for each system, route and collection, and paired tests against BM25."""
    real = collections(plan)
    arms = {data.info.name: list(_arms(data, outcomes)) for data in real}
    return Result(
        name="bench_text_systems",
        kind="text_systems",
        title="Text systems together: quality, and what it costs",
        command=command,
        seed=plan.seed,
        data=(*(data.info for data in real), _learned(plan, outcomes)),
        environment=environment((), computed_in(Settings.load(home=plan.home).precision)),
        arms=tuple(arm for own in arms.values() for arm in own),
        comparisons=tuple(test for own in arms.values() for test in _tested(own, plan.seed)),
        notes=tuple(_notes(plan, outcomes)),
    )


def draw(found: Result, folder: Path) -> list[Path]:
    """The plot beside the result: quality against time and against size, a row of panels for each collection."""
    return text_systems_plot.draw(found, folder)


def _learned(plan: Plan, outcomes: Mapping[str, Outcome]) -> DataInfo:
    """What was learned from."""
    sizes = next((one.data for one in map(outcomes.get, _trained()) if one and "questions" in one.data), {})
    told = {key: sizes[key] for key in ("questions", "passages") if key in sizes}
    file = train_file(plan)
    whole = sum(bool(line.strip()) for line in file.read_text("utf-8").splitlines())
    name = f"{file.parent.name}/{file.stem}" if plan.train else file.stem
    return DataInfo(name=name, sha256=_sha256(file), sizes=told or {"questions": whole})


def _trained() -> Iterator[str]:
    return (f"train_{name}" for name in LEARN)


def _arms(data: datasets.Collection, outcomes: Mapping[str, Outcome]) -> Iterator[Arm]:
    for key, system in SYSTEMS.items():
        outcome = outcomes[f"{data.info.name}_{key}"]
        cost = dict(_index_cost(key, data, outcomes)) | dict(_training_cost(system, outcomes))
        for route, (name, settings) in system.arms.items():
            told = outcome.data.get(route, {})
            run = told.get("run", {})
            judged = {query: data.qrels[query] for query in run}
            values = ranking.per_query(judged, run, METRICS) if run and key != STORE else {}
            yield Arm(
                system=name,
                settings={"data": data.info.name, **settings},
                status=outcome.status,
                reason=outcome.reason,
                metrics={
                    **(ranking.means(values) if values else {}),
                    **(_agreement(run, outcomes[f"{data.info.name}_colbert"]) if key == STORE else {}),
                    **dict(_times(told)),
                    **cost,
                },
                per_query={metric: dict(by_query) for metric, by_query in values.items()},
            )


def _agreement(run: Mapping[str, Sequence[str]], memory: Outcome) -> dict[str, float]:
    """The share of the ten best in memory that the store has among its ten best, where both were asked."""
    exact = memory.data.get("colbert", {}).get("run", {})
    wanted = {query: {*exact[query][:10]} for query in run if exact.get(query)}
    shares = [len({*run[query][:10]} & best) / len(best) for query, best in wanted.items()]
    return {"agreement@10": sum(shares) / len(shares)} if shares else {}


def _times(told: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("ms", "cpu_ms"):
        if told.get(name):
            yield from percentiles(name, told[name]).items()
    if told.get("ms"):
        yield "queries", len(told["ms"])


def _index_cost(
    key: str, data: datasets.Collection, outcomes: Mapping[str, Outcome]
) -> Iterator[tuple[str, float | int]]:
    """Vectors that another cell has encoded count here, too."""
    told = outcomes[f"{data.info.name}_{key}"].data
    lent = outcomes[f"{data.info.name}_colbert"].data if key == STORE else {}
    if "index_s" in told:
        yield "index_s", told["index_s"] + lent.get("encode_s", 0.0)
        yield "index_cpu_s", told["index_cpu_s"] + lent.get("encode_cpu_s", 0.0)
    if "index_bytes" in told:
        yield "bytes_per_passage", round(told["index_bytes"] / len(data.passages))


def _training_cost(system: System, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[str, float]]:
    told = outcomes[f"train_{system.trained}"].data if system.trained else {}
    if "train_s" in told:
        yield "train_minutes", told["train_s"] / 60
        yield "train_cpu_minutes", told["train_cpu_s"] / 60


def _tested(arms: Sequence[Arm], seed: int) -> Iterator[Comparison]:
    [baseline] = [arm for arm in arms if arm.system == BASELINE]
    return compare.against(arms, baseline, METRICS, seed)


def _notes(plan: Plan, outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield (
        "Every system that learns was trained once, with one seed, by its own `fit` on the same questions, passages "
        f"cut to {CHARACTERS} characters; it begins as all-MiniLM-L6-v2, `ance` as a small RoBERTa "
        f"({LEARN['ance']['layers']} layer of {LEARN['ance']['hidden']}, {LEARN['ance']['pieces']} pieces) with random "
        "weights. These are not the published checkpoints, and say little of those. `all_minilm_l6_v2` is as released, "
        "trained by its authors on a billion pairs: its training is not counted. `hdct` has the weights of `deepct`, "
        "and documents cut into passages as a library cuts them; how their weights become counts, k1 and b were chosen "
        "on passages that `deepct` did not learn from. `bm25` and `tfidf` have their defaults."
    )
    yield (
        "Hard negatives of `dpr` and `colbert` are of BM25, those of `ance` of its own index; `poly_encoder` learns "
        "from those of the batch, its passage encoder as it was. Settings: "
        + "; ".join(f"`{name}` {report.told(how)}" for name, how in LEARN.items())
        + "."
    )
    yield (
        "`hybrid`: BM25 and the encoder named, fused by rank. cpu_ms: time of the processor, which other work on the "
        "machine disturbs less than that by the clock (ms); one query at a time, warm, the best "
        f"{K}, none asked before. index_s: from passages to an index that can be searched. bytes_per_passage: all "
        "files of the index, texts included; every store of vectors has the words, too. train_minutes: by the clock, "
        "with the negatives; train_cpu_minutes: of the processor."
    )
    yield (
        "`colbert` in memory: MaxSim with every passage, exact, its bytes the float32 vectors and the words' store. In "
        f"the store, as in a library on Milvus Lite, at most {STORE_QUERIES} queries were asked, drawn with the seed: "
        "agreement@10 is the share of the ten best in memory that it has among its own, and no quality is told. Its "
        "index_s has the time of encoding in memory."
    )
    loads = [one.data["load_average"] for one in outcomes.values() if "load_average" in one.data]
    threads = {one.data["threads"] for one in outcomes.values() if "threads" in one.data}
    if loads:
        yield (
            f"Threads: {', '.join(map(str, sorted(threads)))}. Load average at the end of a cell: {min(loads):.1f} to "
            f"{max(loads):.1f}; above the number of cores, others were at work."
        )
