"""Speed of rerankers: passages a second of ours against the plain way to compute the same scores.

Each worker is a family of systems that take turns over the same passages and weights in one process; `speedup` is how
many times faster than the family's reference, in the same round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cells import OURS, Cell, Outcome, Plan, text_collections

from triptych.errors import BadInput
from triptych.manifests.weights import hash_of
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

if TYPE_CHECKING:
    from triptych.tools.evaluation import datasets

LM = "smollm2_135m_instruct"
LIKELIHOOD: dict[str, dict[str, Any]] = {
    "loop_float32": {"engine": "transformers", "precision": "float32"},
    "loop_bfloat16": {"engine": "transformers", "precision": "bfloat16"},
    "auto": {"engine": "triptych", "precision": "auto"},
    "float32": {"engine": "triptych", "precision": "float32"},
}
"""Query likelihood; the loop reads one passage at a time and takes the softmax of every position."""
CROSS: dict[str, dict[str, Any]] = {
    "predict_float32": {"engine": "sentence-transformers", "precision": "float32"},
    "cross_float32": {"engine": "triptych", "precision": "float32"},
    "cross_int8": {"engine": "triptych", "precision": "int8"},
}
"""A cross-encoder of the size of the MS MARCO MiniLM-L6 ones, with the weights of `triptych_pruner`."""
FAMILIES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "query_likelihood": ("rerank_speed_likelihood.py", LIKELIHOOD),
    "monobert": ("rerank_speed_cross.py", CROSS),
}
"""By name: the worker, and its systems, the reference first. A system's `engine` is `"triptych"` or a package."""
WEIGHTS = {"query_likelihood": LM, "monobert": "all_minilm_l6_v2"}
"""What a family reads, where its weights are pulled ones."""
FULL = {
    "query_likelihood": {"passages": 20, "queries": 16},
    "monobert": {"passages": 30, "queries": 40},
}
"""Each query is a turn of all systems; the plain loop takes half a second or so for each passage."""
QUICK = {"passages": 4, "queries": 1}
BAR_LIKELIHOOD = 4.0
BAR_CROSS = {"cross_float32": 1.0, "cross_int8": 2.0}


def cells(plan: Plan) -> list[Cell]:
    """One for each family: its systems take turns in it."""
    data = collection(plan)
    job = {
        "collection": str(data.folder),
        "sha256": data.info.sha256,
        "packages": {name: version(name) for name in ("transformers", "sentence-transformers", "torch")},
        "seed": plan.seed,
    }
    made = []
    for family, (worker, systems) in FAMILIES.items():
        own: dict[str, Any] = {"weights": hash_of(WEIGHTS[family])} if family in WEIGHTS else {}
        own |= QUICK if plan.quick else FULL[family]
        made.append(Cell(family, OURS, worker, {**job, **own, "systems": systems, "reference": next(iter(systems))}))
    return made


def collection(plan: Plan) -> datasets.Collection:
    """The first text collection, with as many queries as are asked.

    Raises:
        BadInput: it has fewer passages than are read.
    """
    sizes = [QUICK] if plan.quick else list(FULL.values())
    first = text_collections(plan, limit=max(size["queries"] for size in sizes))[0]
    if len(first.passages) < (wanted := max(size["passages"] for size in sizes)):
        raise BadInput(f"`{first.info.name}` has `{len(first.passages)}` passages.", f"Give --data one with {wanted}.")
    return first


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm for each system."""
    return Result(
        name="bench_rerank_speed",
        kind="rerank_speed",
        title="Speed of rerankers on the processor, ours and the plain way",
        command=command,
        seed=plan.seed,
        data=(collection(plan).info,),
        environment=environment(),
        arms=tuple(
            _arm(family, name, outcomes[family]) for family, (_, systems) in FAMILIES.items() for name in systems
        ),
        notes=tuple(_notes(plan, outcomes)),
    )


def _arm(family: str, name: str, outcome: Outcome) -> Arm:
    asked = FAMILIES[family][1][name]
    engine = asked["engine"]
    told = {key: value for key, value in asked.items() if key != "engine"}
    return Arm(
        system=family if engine == "triptych" else f"{engine} {version(engine)}",
        settings={"family": family, **told},
        status=outcome.status,
        reason=outcome.reason,
        metrics=dict(_metrics(outcome.data, name)),
    )


def _metrics(data: Mapping[str, Any], name: str) -> Iterator[tuple[str, float]]:
    """Whatever the worker had come to."""
    import numpy as np

    if per_s := data.get("per_s", {}).get(name):
        yield "passages_per_s", float(np.median(per_s))
        pairs = zip(per_s, data["per_s"].get(data["reference"], ()), strict=False)
        yield "speedup", float(np.median([one / reference for one, reference in pairs]))
        cpu_s = data["cpu_s"]
        spent = zip(cpu_s[name], cpu_s[data["reference"]], strict=False)
        yield "cpu_speedup", float(np.median([reference / one for one, reference in spent]))
    yield from data.get("agreement", {}).get(name, {}).items()
    if name in data.get("per_s", {}):
        yield "passages", data["passages"]
        yield "queries", data["queries"]


def _notes(plan: Plan, outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield (
        f"The bar of query likelihood: a speedup of {BAR_LIKELIHOOD:g} or more for `auto` over the loop in float32, "
        "one passage at a time, which computes the scores of all positions over the whole vocabulary. The loop in "
        "bfloat16 tells what of it the number format gives."
    )
    yield (
        f"The bars of monobert over sentence-transformers' `predict`: {BAR_CROSS['cross_float32']:g} in float32, "
        f"{BAR_CROSS['cross_int8']:g} in int8. All read the weights of `triptych_pruner`, each drawn evenly from what "
        "its shipped integer stands for, as a BERT sequence classifier: int8 has to round them anew."
    )
    yield (
        "Systems take turns query by query in one process; passages a second by the median. speedup is the median of "
        "the ratios within a turn, cpu_speedup that of the processor seconds, which other work on the machine "
        "disturbs less. Against the reference's scores: largest_difference is that of any; top10 the mean share of its "
        "first ten passages that are among the first ten, same_top10 and same_order10 the shares of queries for which "
        "these are the same ten, in any order and in its order."
    )
    yield f"Passages are the first by BM25 of 1,000 drawn by the seed {plan.seed}, cut to 1,200 characters for all."
    for name, outcome in outcomes.items():
        if "threads" in outcome.data and "load_average" in outcome.data:
            threads, load = outcome.data["threads"], outcome.data["load_average"]
            yield f"`{name}`: {threads} threads, load average {load:.1f} at the end."
