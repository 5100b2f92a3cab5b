"""GME's balance of data on drawn things: texts alone, texts with pictures, or all kinds; all nine pairs of modalities.

    make prove ID=gme

A thing has a colour, a shape and a place. A text tells all three, a picture shows all three, and what is fused shows
colour and shape while its words tell the place: neither half is enough. The package's GME, a toy Qwen2-VL from random
weights, learns from as many pairs in every arm, of different kinds, and is asked for things that no arm has learned.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import _shapes
import torch

from triptych.retrievers.base import Item, Query
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal.gme import GME

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm

KINDS = ("text", "image", "fused")
PAIRS = tuple((one, other) for one in KINDS for other in KINDS)
ARMS = {
    "text_only": (("text", "text"),),
    "text_image": (("text", "image"),),
    "balanced": PAIRS,
}
"""Kinds of query and item that an arm learns from, each equally often."""
LEARNED, TIMES = 90, 40
"""Things of 120, and pairs of each."""
COURSE = Course(epochs=1, batch=12, rate=1e-3, every=10**6, decay=0.0)
METRICS = ("recall@1", "recall@5")


def item(folder: Path, thing: _shapes.Thing, kind: str, shot: int) -> Item:
    if kind == "text":
        return _shapes.told(thing.name, f"{thing.corner}: {thing.shape} in {thing.colour}")
    if kind == "image":
        return _shapes.shown(folder, thing, shot)
    return _shapes.shown(folder, replace(thing, corner=""), shot, f"{thing.corner} of the middle")


def query(folder: Path, thing: _shapes.Thing, kind: str, shot: int) -> Query:
    if kind == "text":
        return Query(f"a {thing.colour} {thing.shape} in the {thing.corner}")
    if kind == "image":
        return Query(None, _shapes.picture(folder, thing, shot))
    return Query(f"this, in the {thing.corner}", _shapes.picture(folder, replace(thing, corner=""), shot))


def lessons(folder: Path, things: Sequence[_shapes.Thing], pairs: Sequence[tuple[str, str]], seed: int) -> list[Lesson]:
    """`TIMES` of each thing, all kinds of pairs equally often; a query never shows the very picture of its item. All
    that shows or tells a thing is one item: none of it is wrong for the others."""
    made = []
    for time_ in range(TIMES):
        for number, thing in enumerate(things):
            asked, told = pairs[(time_ + number) % len(pairs)]
            shot = time_ % 6
            right = item(folder, thing, told, 2 * shot + 1)
            made.append(Lesson(query(folder, thing, asked, 2 * shot), replace(right, id=thing.name)))
    return random.Random(seed).sample(made, len(made))


def arms(encoder: GME, folder: Path, name: str, seconds: float, seed: int) -> list[Arm]:
    """One for each pair of kinds: new things asked for among the items of one kind of all things."""
    things = _shapes.things(corners=True)
    told = {kind: encoder.encode([item(folder, one, kind, 1001) for one in things], "document") for kind in KINDS}
    made = []
    for asked in KINDS:
        vectors = encoder.encode([query(folder, one, asked, 1000) for one in things[LEARNED:]], "query")
        for kind in KINDS:
            found = _shapes.scores(vectors, told[kind])
            places = _shapes.places(found, [[number] for number in range(LEARNED, len(things))])
            values = {METRICS[0]: [float(place < 1) for place in places]}
            values[METRICS[1]] = [float(place < 5) for place in places]
            made.append(_shapes.arm(name, values, {"seconds": seconds}, split=f"{asked} to {kind}", seed=seed))
    return made


def main() -> None:
    given = _shapes.asked(__doc__)
    torch.set_num_threads(1)
    things = _shapes.things(corners=True)
    every: list[Arm] = []
    with _shapes.workplace(given) as folder:
        drawn = [item(folder / "shown", thing, kind, 1001) for thing in things for kind in KINDS]
        world = _shapes.data("drawn_things", drawn, things=len(things), learned=LEARNED, asked=len(things) - LEARNED)
        for seed in range(given.seeds):
            for name, pairs in ARMS.items():
                told = lessons(folder / "shown", things[:LEARNED], pairs, seed)
                begun = time.perf_counter()
                course = replace(COURSE, seed=seed, epochs=COURSE.epochs * given.share)
                out = folder / f"{name}_{seed}"
                encoder = GME.tiny(seed).fit(told, out, course=course, adapters=Adapters(rank=0))
                every += arms(encoder, folder / "shown", name, time.perf_counter() - begun, seed)
    steps = -(-LEARNED * TIMES // COURSE.batch)
    notes = (
        f"A toy Qwen2-VL from random weights, {steps} steps of {COURSE.batch} pairs, learning rate {COURSE.rate:g}, "
        "all weights; every arm the same number of pairs. Not the released GME, and no negatives were mined.",
        "`split` names the kinds of query and item. Every query is of a thing that no arm learned from, searched among "
        "the items of one kind of all things.",
    )
    title = "GME's balance of data from nothing on drawn things: nine pairs of modalities"
    _shapes.conclude(given, "gme", title, every, {"system": "balanced"}, METRICS, world, notes)


if __name__ == "__main__":
    main()
