"""Embedding: texts a second of our encoder against sentence-transformers' own `encode`, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cells import OURS, Cell, Outcome, Plan, text_collections

from triptych.errors import BadInput
from triptych.manifests.weights import hash_of
from triptych.retrievers.text.all_minilm_l6_v2 import WEIGHTS
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

if TYPE_CHECKING:
    from triptych.tools.evaluation import datasets

KINDS = ("long", "short")
REFERENCE = "default"
"""sentence-transformers as it comes: float32, batches of 32."""
PRECISIONS = ("auto", "int8", "bfloat16", "float32")
SYSTEMS: dict[str, dict[str, Any]] = {
    REFERENCE: {"engine": "sentence_transformers", "dtype": "float32", "batch_size": 32},
    **{precision: {"engine": "triptych", "precision": precision} for precision in PRECISIONS},
    "small_batches": {"engine": "sentence_transformers", "dtype": "float32", "batch_size": 8},
    "in_bfloat16": {"engine": "sentence_transformers", "dtype": "bfloat16", "batch_size": 32},
}
FULL = {"texts": {"long": 160, "short": 1000}, "rounds": 5, "queries": 50}
QUICK = {"texts": {"long": 16, "short": 32}, "rounds": 2, "queries": 5}
QUICK_SYSTEMS = (REFERENCE, "auto", "in_bfloat16")
BAR_RATIO = 2.0
BAR_COSINE = 0.99


def cells(plan: Plan) -> list[Cell]:
    """One for each kind of text: all systems take turns in it."""
    data, size = collection(plan), QUICK if plan.quick else FULL
    chosen = {name: asked for name, asked in SYSTEMS.items() if not plan.quick or name in QUICK_SYSTEMS}
    job = {
        **size,
        "collection": str(data.folder),
        "sha256": data.info.sha256,
        "weights": hash_of(WEIGHTS),
        "sentence_transformers": version("sentence-transformers"),
        "systems": chosen,
        "reference": REFERENCE,
        "seed": plan.seed,
    }
    return [
        Cell(kind, OURS, "embedding_encode.py", {**job, "kind": kind, "texts": size["texts"][kind]}) for kind in KINDS
    ]


def collection(plan: Plan) -> datasets.Collection:
    """The text collection with the most passages.

    Raises:
        BadInput: it has none.
    """
    largest = max(text_collections(plan, limit=1), key=lambda data: len(data.passages))
    if not largest.passages:
        raise BadInput(f"`{largest.info.name}` has `0` passages.", "Give --data a collection with texts.")
    return largest


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm for each system and kind of text."""
    return Result(
        name="bench_embedding",
        kind="embedding",
        title="Embedding: all-MiniLM-L6-v2 on the processor, ours and sentence-transformers",
        command=command,
        seed=plan.seed,
        data=(collection(plan).info,),
        environment=environment(),
        arms=tuple(_arm(kind, name, outcome) for kind, outcome in outcomes.items() for name in _asked(plan)),
        notes=tuple(_notes(outcomes)),
    )


def _asked(plan: Plan) -> tuple[str, ...]:
    return QUICK_SYSTEMS if plan.quick else tuple(SYSTEMS)


def _arm(kind: str, name: str, outcome: Outcome) -> Arm:
    asked, data = SYSTEMS[name], outcome.data
    ours = asked["engine"] == "triptych"
    told = {key: value for key, value in asked.items() if key != "engine"}
    refused = data.get("refused", {}).get(name)
    return Arm(
        system="triptych" if ours else f"sentence-transformers {version('sentence-transformers')}",
        settings={**told, "texts": kind},
        status="failed" if refused else outcome.status,
        reason=refused or outcome.reason,
        metrics=dict(_metrics(data, name)),
    )


def _metrics(data: Mapping[str, Any], name: str) -> Iterator[tuple[str, float]]:
    """Whatever the worker had come to."""
    import numpy as np

    if per_s := data.get("per_s", {}).get(name):
        yield "texts_per_s", float(np.median(per_s))
        pairs = zip(per_s, data["per_s"].get(REFERENCE, ()), strict=False)
        yield "ratio", float(np.median([one / reference for one, reference in pairs]))
    if cosine := data.get("cosine", {}).get(name):
        yield "cosine_mean", cosine["mean"]
        yield "cosine_min", cosine["min"]
    if taken := data.get("query_ms", {}).get(name):
        yield "query_ms_p50", float(np.median(taken))
    if name in data.get("per_s", {}):
        yield "texts", data["texts"]["count"]
        yield "characters", data["texts"]["characters"]


def _notes(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield (
        f"The bars: a ratio of {BAR_RATIO:g} or more for `auto`, and of every vector a cosine of {BAR_COSINE:g} or "
        "more to the float32 vector of sentence-transformers."
    )
    yield (
        "ratio: texts a second over those of sentence-transformers as it comes (float32, batches of 32), in turns in "
        "one process, the median of the rounds. query_ms_p50: one short text alone, never asked before; the encoder "
        "answers a repeated query from its cache. short: the first 100 characters of the long texts."
    )
    threads = {name: outcome.data["threads"] for name, outcome in outcomes.items() if "threads" in outcome.data}
    if threads:
        yield f"Threads: {', '.join(f'{count} (`{name}`)' for name, count in threads.items())}."
    loads = {name: outcome.data["load_average"] for name, outcome in outcomes.items() if "load_average" in outcome.data}
    if loads:
        told = ", ".join(f"{load:.1f} (`{name}`)" for name, load in loads.items())
        yield f"Load average at the end: {told}; above the number of threads, others were at work."
