"""What tests of learning share: four pages of one colour, questions that name them, and how many are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from triptych.retrievers.base import Item, MediaRef, Modality, Query, Source
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson

COURSE = Course(epochs=5, batch=4, rate=2e-3, every=40, decay=0.0)
WHOLE = Adapters(rank=0)
NAMES = ("red", "green", "blue", "white")


def pages(folder: Path, modality: Modality = "page") -> list[Item]:
    made = []
    for name in NAMES:
        path = folder / f"{name}.png"
        if not path.exists():  # another process may be reading it
            Image.new("RGB", (56, 56), name).save(path)
        made.append(Item(name, "", Source(path.name), modality, MediaRef(str(path), "image/png")))
    return made


def lessons(items: list[Item], wrong: int = 0, times: int = 1) -> list[Lesson]:
    """One for each item, so often; its wrong items are those behind it."""
    behind = [tuple((items * 2)[place + 1 : place + 1 + wrong]) for place in range(len(items))]
    return [Lesson(Query(one.id), one, others) for one, others in zip(items, behind, strict=True)] * times


def found(encoder: Any, items: list[Item]) -> int:
    """How many of the questions find their item first."""
    asked, told = encoder.encode([Query(one.id) for one in items], "query"), encoder.encode(items, "document")
    scores = [[(np.atleast_2d(a) @ np.atleast_2d(b).T).max(axis=1).sum() for b in told] for a in asked]
    return int((np.argmax(scores, axis=1) == np.arange(len(items))).sum())


def gradients(network: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    network.zero_grad()
    network(**batch)["loss"].backward()
    return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Gradients are equal to 1e-5 of the largest, and not all of them are next to nothing."""
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    assert one.keys() == other.keys()
    assert largest > 1e-3
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], atol=1e-5 * max(1.0, largest), rtol=0)
