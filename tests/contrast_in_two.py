"""Two processes that learn from one batch of queries and items, for `test_contrastive_training`.

Argument: a folder, into which each writes its loss and its gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from in_two import started, together, told
from torch.nn.parallel import DistributedDataParallel

from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.universal._contrastive_training import Contrast, Lesson, collated, info_nce
from triptych.retrievers.universal._vectors import last
from triptych.retrievers.universal.vlm2vec import VLM2Vec

OWN = (slice(0, 2), slice(2, 5))
"""The lessons of each process."""


def lessons(folder: Path) -> list[Lesson]:
    """Of words and of the pictures in `folder`, each with a wrong item; two ask for the same."""
    shown = [MediaRef(str(folder / f"{n}.png"), "image/png") for n in (1, 2)]
    items = [
        Item("a", "an owl in a barn", Source("a.txt")),
        Item("b", "", Source("1.png"), "image", shown[0]),
        Item("c", "a ferry", Source("2.png"), "image", shown[1]),
        Item("d", "a ferry at sea, late", Source("d.txt")),
        Item("a", "an owl in a barn", Source("a.txt")),
    ]
    queries = [Query("owls"), Query("noise", instruction="Find a picture:"), Query("ship"), Query(None, shown[1])]
    wrong = [Item(f"w{n}", f"nothing of it, {n}", Source("w.txt")) for n in range(5)]
    asked = [*queries, Query("birds", shown[0])]
    return [Lesson(query, item, (other,)) for query, item, other in zip(asked, items, wrong, strict=True)]


def contrast(system: VLM2Vec, chunk: int = 0) -> Contrast:
    """`system` under InfoNCE."""
    model = system.backbone.model
    return Contrast(model, lambda inputs: last(*system.backbone.states(inputs)), info_nce, chunk)


def batch(system: VLM2Vec, drawn: Sequence[Lesson]) -> dict[str, object]:
    return collated(drawn, lambda one, side: system.backbone.read(system.said(one, side), system.longest))


def main(rank: int, folder: Path) -> None:
    """What each process does: learn from its own lessons, among all, reading two inputs at once."""
    with together(rank, folder):
        system = VLM2Vec.tiny(0)
        learner = DistributedDataParallel(contrast(system, 2))
        loss = learner(**batch(system, lessons(folder)[OWN[rank]]))["loss"]
        told(rank, folder, learner, loss)


if __name__ == "__main__":
    started(main)
