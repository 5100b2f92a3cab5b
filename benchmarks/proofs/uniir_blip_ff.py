"""UniIR's BLIP_FF on the drawn things of `uniir`: an instruction says whether a picture or a text is wanted.

    make prove ID=uniir_blip_ff

A toy BLIP learns by its own loss (slow copy, queue, mixed targets), with the instructions and without them; beside them
stands the network that nothing was learned by, asked with instructions. Things, splits and metrics are those of
`uniir`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import _shapes
import torch
import uniir

from triptych.retrievers.universal._uniir_momentum import MomentumFitting
from triptych.retrievers.universal.uniir import UniIR

if TYPE_CHECKING:
    from triptych.tools.evaluation.result import Arm

MOMENTUM = 0.9
"""Of 540 steps the published 0.995 would forget the random beginning in 200."""
ARMS = {"blip_ff": True, "blip_ff_no_instruction": False}
"""Whether a query has its instruction."""


def main() -> None:
    given = _shapes.asked(__doc__)
    torch.set_num_threads(1)
    things = _shapes.things(corners=True)
    epochs = max(1, round(uniir.FITTING.epochs * given.share))
    fitting = MomentumFitting(**{**asdict(uniir.FITTING), "epochs": epochs}, momentum=MOMENTUM)
    every: list[Arm] = []
    with _shapes.workplace(given) as folder:
        shown = folder / "shown"
        learned = {
            instructed: uniir.lessons(shown, things[: uniir.LEARNED], instructed=instructed)
            for instructed in ARMS.values()
        }
        drawn = [one.right for one in learned[True]]
        world = _shapes.data("drawn_things", drawn, things=len(things), learned=uniir.LEARNED, items=2 * len(things))
        for seed in range(given.seeds):
            start = UniIR.tiny(seed, "BLIP_FF")
            for name, instructed in ARMS.items():
                begun = time.perf_counter()
                told = replace(fitting, seed=seed)
                encoder = start.fit(learned[instructed], folder / f"{name}_{seed}", fitting=told)
                seconds = time.perf_counter() - begun
                every += uniir.arms(encoder, shown, name, seconds, seed, instructed=instructed)
            every += uniir.arms(start, shown, "blip_ff_untrained", 0.0, seed, instructed=True)
    notes = (
        f"Toy BLIPs from random weights, {uniir.FITTING.epochs} epochs over {len(drawn)} queries in batches of "
        f"{fitting.batch}, learning rate {fitting.rate:g}, momentum {MOMENTUM} (published: 0.995), a queue of "
        f"{len(drawn)}, {fitting.distilled} of the targets from the slow copy. Not the released UniIR.",
        "`new`: colours, shapes and places that were never learned from together; `learned`: new pictures of the rest. "
        "All of them are searched.",
        "The arm without an instruction learned from the same queries without theirs.",
    )
    title = "UniIR's BLIP_FF from nothing on drawn things: an instruction that asks for a picture or a text"
    _shapes.conclude(given, "uniir_blip_ff", title, every, {"system": "blip_ff"}, uniir.METRICS, world, notes)


if __name__ == "__main__":
    main()
