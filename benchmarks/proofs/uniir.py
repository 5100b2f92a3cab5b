"""UniIR on drawn things: an instruction says whether a picture or a text is wanted; the same networks without it.

    make prove ID=uniir

A query names a colour, a shape and a place; pictures that show it and texts that tell it stand in one index. Toy CLIPs
under score fusion (CLIP_SF) and feature fusion (CLIP_FF) learn on three quarters of the things; the others are shown to
no arm, and everything that is measured on was drawn anew. Without an instruction the two right answers of a query
cannot be told apart: half of them is the most that luck gives. BLIP_FF, which learns otherwise: `uniir_blip_ff`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import _shapes
import torch

from triptych.retrievers.base import Item, Query
from triptych.retrievers.universal._uniir_training import Fitting, Lesson
from triptych.retrievers.universal.uniir import UniIR

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm

ASKED = {"image": "Find a picture of this", "text": "Find a text that tells of this"}
"""By the modality of what is wanted."""
LEARNED = 90
"""Of 120 things."""
SHOTS = 4
"""Pictures of each thing to learn from."""
FITTING = Fitting(epochs=12, batch=16, rate=3e-3, decay=0.0)
ARMS = {"clip_sf": True, "clip_ff": True, "clip_sf_no_instruction": False, "clip_ff_no_instruction": False}
"""Whether a query has its instruction."""
METRICS = ("right_modality@1", "recall@1")


def text(thing: _shapes.Thing) -> Item:
    return _shapes.told(thing.name, f"To the {thing.corner} stands a {thing.shape}, its colour is {thing.colour}")


def lessons(folder: Path, things: Sequence[_shapes.Thing], *, instructed: bool) -> list[Lesson]:
    """As many to a picture as to a text of each thing, whose pictures are one item: none of them is wrong for it."""
    made = []
    for thing in things:
        for shot in range(SHOTS):
            for right in (replace(_shapes.shown(folder, thing, shot), id=f"picture {thing.name}"), text(thing)):
                told = ASKED[right.modality] if instructed else None
                made.append(Lesson(Query(thing.name, instruction=told), right))
    return made


def arms(encoder: UniIR, folder: Path, name: str, seconds: float, seed: int, *, instructed: bool) -> list[Arm]:
    """Of things that were learned from and of others, each asked for twice."""
    things = _shapes.things(corners=True)
    items = [_shapes.shown(folder, thing, 1000) for thing in things] + [text(thing) for thing in things]
    told = encoder.encode(items, "document")
    made = []
    for split, numbers in (("new", range(LEARNED, len(things))), ("learned", range(LEARNED))):
        asked = [
            (Query(things[number].name, instruction=ASKED[kind] if instructed else None), kind, number)
            for kind in ASKED
            for number in numbers
        ]
        found = _shapes.scores(encoder.encode([query for query, _, _ in asked], "query"), told)
        right = [number + (kind == "text") * len(things) for _, kind, number in asked]
        values = {
            METRICS[0]: [
                float(items[best].modality == kind) for best, (_, kind, _) in zip(found.argmax(1), asked, strict=True)
            ],
            METRICS[1]: [float(not place) for place in _shapes.places(found, [[one] for one in right])],
        }
        made.append(_shapes.arm(name, values, {"seconds": seconds}, split=split, seed=seed))
    return made


def fitted(name: str, told: Sequence[Lesson], folder: Path, fitting: Fitting) -> UniIR:
    start = UniIR.tiny(fitting.seed, "CLIP_SF" if name.startswith("clip_sf") else "CLIP_FF")
    return start.fit(told, folder, fitting=fitting)


def main() -> None:
    given = _shapes.asked(__doc__)
    torch.set_num_threads(1)
    things = _shapes.things(corners=True)
    every: list[Arm] = []
    with _shapes.workplace(given) as folder:
        drawn = [one.right for one in lessons(folder / "shown", things[:LEARNED], instructed=True)]
        world = _shapes.data("drawn_things", drawn, things=len(things), learned=LEARNED, items=2 * len(things))
        for seed in range(given.seeds):
            for name, instructed in ARMS.items():
                told = lessons(folder / "shown", things[:LEARNED], instructed=instructed)
                begun = time.perf_counter()
                epochs = max(1, round(FITTING.epochs * given.share))
                fitting = replace(FITTING, epochs=epochs, seed=seed)
                encoder = fitted(name, told, folder / f"{name}_{seed}", fitting)
                seconds = time.perf_counter() - begun
                every += arms(encoder, folder / "shown", name, seconds, seed, instructed=instructed)
    notes = (
        f"Toy CLIPs from random weights, {FITTING.epochs} epochs over {2 * SHOTS * LEARNED} queries in batches of "
        f"{FITTING.batch}, learning rate {FITTING.rate:g}; the same for every arm. Not the released UniIR.",
        "`new`: colours, shapes and places that were never learned from together; `learned`: new pictures of the rest. "
        "All of them are searched.",
        "Tests are of CLIP_SF; the two arms without an instruction learned from the same queries without theirs.",
    )
    title = "UniIR from nothing on drawn things: an instruction that asks for a picture or a text"
    _shapes.conclude(given, "uniir", title, every, {"system": "clip_sf"}, METRICS, world, notes)


if __name__ == "__main__":
    main()
