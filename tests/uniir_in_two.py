"""Two processes that learn UniIR from a batch together, for `test_uniir_momentum`; what tests of UniIR learn from.

Argument: a folder, into which each process writes its losses, its gradients and its queue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from in_two import started, together
from PIL import Image
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.universal._contrastive_training import key_of
from triptych.retrievers.universal._uniir_momentum import MomentumContrast, MomentumFitting
from triptych.retrievers.universal._uniir_training import PARTS, Contrast, Lesson
from triptych.retrievers.universal.uniir import UniIR

BATCHES = ((slice(0, 2), slice(2, 5)), (slice(5, 8), slice(0, 1)))
"""The lessons of each process in each step; the last one asks for what is in the queue."""
FITTING = MomentumFitting(momentum=0.5, queue=7)
LEARN = ("CLIP_SF", "BLIP_FF")


def shapes(folder: Path) -> list[Item]:
    """A picture of a colour and a text of its name, for each of four: the same query has two right answers."""
    found = []
    for name in ("red", "green", "blue", "white"):
        path = folder / f"{name}.png"
        if not path.exists():  # another process may be reading it
            Image.new("RGB", (32, 32), name).save(path)
        media = MediaRef(str(path), "image/png")
        found.append(Item(f"picture {name}", "", Source(path.name), "image", media))
        found.append(Item(f"text {name}", f"It is {name}.", Source(f"{name}.md"), meta={"title": name}))
    return found


def lessons(items: list[Item]) -> list[Lesson]:
    return [Lesson(Query(one.id.split()[1], instruction=f"Find a {one.id.split()[0]} of"), one) for one in items]


def batch(encoder: UniIR, drawn: Sequence[Lesson]) -> dict[str, torch.Tensor]:
    """As the fit collates it."""
    made = encoder._batch([*(one.query for one in drawn), *(one.right for one in drawn)])
    pixels = torch.zeros(len(made.ids), 3, 32, 32)
    pixels[made.shown] = made.pixels
    found = {name: getattr(made, name) for name in PARTS}
    return found | {"pixels": pixels, "keys": torch.tensor([key_of(one.right) for one in drawn])}


def course(network: Any, steps: Sequence[dict[str, torch.Tensor]]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of plain steps, and the gradients of the last."""
    losses = []
    for given in steps:
        network.zero_grad()
        loss = network(**given)["loss"]
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for weights in network.parameters():
                if weights.grad is not None:
                    weights -= 0.05 * weights.grad
    return losses, {name: one.grad for name, one in network.named_parameters() if one.grad is not None}


def learning(variant: str, chunk: int = 0) -> tuple[UniIR, Any]:
    """A toy and what learns it."""
    encoder = UniIR.tiny(0, variant)
    if variant == "BLIP_FF":
        return encoder, MomentumContrast(encoder.network, 8, replace(FITTING, chunk=chunk))
    return encoder, Contrast(encoder.network, chunk)


def main(rank: int, folder: Path) -> None:
    """What each process does: learn from its own lessons, among all, reading two inputs at once."""
    with together(rank, folder, 300):
        torch.set_num_threads(1)
        told = lessons(shapes(folder))
        made: dict[str, torch.Tensor] = {}
        losses: dict[str, list[float]] = {}
        for variant in LEARN:
            encoder, network = learning(variant, 2)
            steps = [batch(encoder, told[own[rank]]) for own in BATCHES]
            losses[variant], gradients = course(DistributedDataParallel(network), steps)
            made |= {f"{variant}.{name.removeprefix('module.')}": one for name, one in gradients.items()}
            made |= {f"{variant}.{name}": one for name, one in network.named_buffers() if "." not in name}
        save_file(made, folder / f"{rank}.safetensors")
        (folder / f"{rank}.json").write_text(json.dumps(losses), "utf-8")


if __name__ == "__main__":
    started(main)
