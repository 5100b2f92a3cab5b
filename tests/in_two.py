"""Two processes on one machine, for the scripts that learn in two."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import distributed, multiprocessing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.parallel import DistributedDataParallel


@contextmanager
def together(rank: int, folder: Path, seconds: int = 60) -> Iterator[None]:
    """A process of two, which meet in `folder`; it ends with the block."""
    store = distributed.FileStore(str(folder / "store"), 2)
    limit = timedelta(seconds=seconds)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    yield
    distributed.barrier()
    os._exit(0)  # destroying the group can wait for a thread that waits for the interpreter


def told(rank: int, folder: Path, learner: DistributedDataParallel, loss: Tensor) -> None:
    """Write the loss of a process and its gradients into the folder."""
    loss.backward()
    gradients = {name: one.grad for name, one in learner.module.named_parameters() if one.grad is not None}
    save_file(gradients, folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(loss.item()), "utf-8")


def started(main: Callable[[int, Path], None]) -> None:
    """`main(rank, folder)` in both, with the folder that the command line names."""
    # Forked: what is imported is imported once.
    multiprocessing.start_processes(main, (Path(sys.argv[1]),), 2, start_method="fork")
