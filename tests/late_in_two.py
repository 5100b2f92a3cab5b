"""Two processes that learn ColPali from a batch together, for `test_colpali`.

Argument: a folder, which has the coloured pages; each process writes its loss and its gradients there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from coloured_pages import gradients, lessons, pages
from in_two import started, together
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from triptych.retrievers.base import Query
from triptych.retrievers.universal._colpali_training import Late, Objective
from triptych.retrievers.universal._contrastive_training import Lesson, collated
from triptych.retrievers.universal.colpali import ColPali

OWN = (slice(0, 1), slice(1, 4))


def told(folder: Path) -> list[Lesson]:
    """Questions of different lengths, so that processes pad to different ones."""
    return [replace(one, query=Query("what " * n + "?")) for n, one in enumerate(lessons(pages(folder), wrong=1))]


def learner(chunk: int) -> tuple[ColPali, Late]:
    encoder = ColPali.tiny(1)
    return encoder, Late(encoder.backbone, Objective("info_nce", smooth=0.1), chunk)


def main(rank: int, folder: Path) -> None:
    with together(rank, folder, 120):
        torch.set_num_threads(1)
        encoder, late = learner(2)
        batch = collated(told(folder)[OWN[rank]], lambda one, side: encoder.read(one))
        network = DistributedDataParallel(late, find_unused_parameters=True)
        found = gradients(network, batch)
        save_file({name.removeprefix("module."): one for name, one in found.items()}, folder / f"{rank}.safetensors")
        with torch.no_grad():
            (folder / f"{rank}.json").write_text(json.dumps(network(**batch)["loss"].item()), "utf-8")


if __name__ == "__main__":
    started(main)
