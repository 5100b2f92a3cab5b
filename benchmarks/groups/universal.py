"""The universal family on random weights: pictures a second by batch size, memory and stored bytes of an item.

Every encoder is measured at the size of its toy; those that sentence-transformers can load as well, against it, on the
same folder, and CLIP at a published size too: speed and memory do not depend on what weights have learned. On a
graphics card, when torch finds one, the share of its peak is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from cells import OURS, Cell, Outcome, Plan

from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

RIVAL = "sentence-transformers"
BATCHES, QUICK_BATCHES = (1, 8, 32), (1, 4)
ROUNDS, LEAST = 3, 8
"""At least so many pictures are read in a turn."""
TINY, PUBLISHED = ("tiny", 64), ("published", 224)
"""Sizes, each with the edge of the pictures."""
PEAKS = {"NVIDIA H100 80GB HBM3": 989.0, "NVIDIA H200": 989.0}
"""Of a card in bfloat16 without sparsity, in TFLOP/s, by the maker's data sheet."""


class Asked(NamedTuple):
    """One cell."""

    system: str
    size: tuple[str, int] = TINY
    precision: str = "float32"
    rival: bool = False

    @property
    def key(self) -> str:
        return f"{self.system}_{self.size[0]}_{self.precision}"


ASKED = (
    Asked("clip", rival=True),
    Asked("clip", PUBLISHED, rival=True),
    Asked("clip", PUBLISHED, "bfloat16", rival=True),
    Asked("colpali", rival=True),
    *map(Asked, ("dse", "gme", "ovis", "siglip", "unime", "unime_v2", "uniir", "vista", "vlm2vec")),
)
QUICK = tuple(one for one in ASKED if one.size == TINY)


def cells(plan: Plan) -> list[Cell]:
    """One for each encoder, size and precision: ours and the rival take turns in it."""
    batches = QUICK_BATCHES if plan.quick else BATCHES
    job = {
        "packages": {name: version(name) for name in ("transformers", RIVAL, "torch")},
        "items": max(*batches, LEAST),
        "batches": list(batches),
        "least": LEAST,
        "rounds": 1 if plan.quick else ROUNDS,
        "seed": plan.seed,
    }
    return [Cell(one.key, OURS, "universal_encode.py", {**job, **_job(one)}) for one in _asked(plan)]


def _asked(plan: Plan) -> tuple[Asked, ...]:
    return QUICK if plan.quick else ASKED


def _job(one: Asked) -> dict[str, Any]:
    size, edge = one.size
    return {"system": one.system, "size": size, "edge": edge, "precision": one.precision, "rival": one.rival}


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm for each side of a cell and batch size."""
    return Result(
        name="bench_universal",
        kind="universal",
        title="Encoders of the universal family on random weights: speed, memory and size of their vectors",
        command=command,
        seed=plan.seed,
        data=(),
        environment=environment(),
        arms=tuple(
            arm
            for one in _asked(plan)
            for side in (("triptych", RIVAL) if one.rival else ("triptych",))
            for arm in _arms(one, side, outcomes[one.key], QUICK_BATCHES if plan.quick else BATCHES)
        ),
        notes=tuple(_notes(outcomes)),
    )


def _arms(one: Asked, side: str, outcome: Outcome, batches: tuple[int, ...]) -> Iterator[Arm]:
    """One for each batch size."""
    told = {"encoder": one.system, "size": one.size[0], "precision": one.precision}
    for batch in batches:
        yield Arm(
            system=one.system if side == "triptych" else f"{side} {version(side)}",
            settings={**told, "batch": batch},
            status=outcome.status,
            reason=outcome.reason,
            metrics=dict(_metrics(outcome.data, side, str(batch))),
        )


def _metrics(data: Mapping[str, Any], side: str, batch: str) -> Iterator[tuple[str, float]]:
    """Whatever the worker had come to."""
    rounds = data.get("per_s", {})
    if per_s := rounds.get(side, {}).get(batch):
        yield "items_per_s", float(np.median(per_s))
        if theirs := rounds.get(RIVAL, {}).get(batch):
            pairs = zip(per_s, theirs, strict=False)
            yield "ratio", float(np.median([one / other for one, other in pairs]))
        achieved = float(np.median(per_s)) * data["gflop_per_item"] / 1000
        yield "tflop_per_s", achieved
        if peak := PEAKS.get(data["device"]):
            yield "share_of_peak", achieved / peak
    yield from data.get("stored", {}).get(side, {}).items()
    if side in data.get("peak_mb", {}):
        yield "peak_mb_per_item", data["peak_mb"][side]
    if side in data.get("cosine_min", {}):
        yield "cosine_min", data["cosine_min"][side]


def _notes(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield (
        "Weights are random: these are figures of speed and memory, and none of quality. `tiny`: the toy of the tests, "
        "pictures of 64 pixels; what it costs beside the network weighs more than it would in a large one. "
        "`published`: ViT-B/32, pictures of 224 pixels."
    )
    yield (
        "items_per_s: picture files read, scaled and encoded, so many in one call, the median of the rounds; ratio: "
        "over sentence-transformers' `encode` on the same folder, in turns in one process. peak_mb_per_item: the most "
        "that tensors took at once in a call of the largest batch, by item, without the weights. bytes_per_item: of "
        "its vectors in float32, as they are stored. cosine_min: the least between a vector of ours and the rival's. "
        "tflop_per_s: by torch's count of one item's products, convolutions and attention."
    )
    yield "`cream` has no encoder of its own: it stores what the one it is given makes of pages."
    for name, outcome in outcomes.items():
        if {"threads", "load_average", "device"} <= outcome.data.keys():
            data = outcome.data
            yield f"`{name}`: {data['device']}, {data['threads']} threads, load average {data['load_average']:.1f}."
