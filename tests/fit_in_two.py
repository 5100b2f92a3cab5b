"""Two processes that learn from a batch together, for `test_fitting`.

Argument: the folder of the batch, into which each writes its loss and its gradients.
"""

from __future__ import annotations

from pathlib import Path

import torch
from in_two import started, together, told
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triptych.retrievers.fitting import gathered, in_batch_nll, in_parts, of_all, rows_before

OWN = ((slice(0, 3), slice(0, 4)), (slice(3, 7), slice(4, 10)))
"""Queries and passages of each process."""


class Learner(nn.Module):
    """A small network, always the same, under the loss of all processes; it reads 2 texts at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, queries: Tensor, passages: Tensor, positives: Tensor, right: Tensor) -> Tensor:
        asked, told = (in_parts(self.tower, 2, one) for one in (queries, passages))
        positives = gathered(positives + rows_before(told))
        return of_all(in_batch_nll(gathered(asked), gathered(told), positives, torch.empty(0), gathered(right)))


def main(rank: int, folder: Path) -> None:
    """What each process does: learn from its own rows of the batch, among all."""
    with together(rank, folder):
        batch = load_file(folder / "batch.safetensors")
        asked, passages = OWN[rank]
        positives = batch["positives"][asked] - passages.start  # a process knows of its own passages only
        learner = DistributedDataParallel(Learner())
        loss = learner(batch["queries"][asked], batch["passages"][passages], positives, batch["right"][asked])
        told(rank, folder, learner, loss)


if __name__ == "__main__":
    started(main)
