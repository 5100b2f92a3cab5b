"""How models are loaded and fed: the number format this machine computes in, quietly, in batches of like length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import BadInput

if TYPE_CHECKING:
    import torch

# Read when torch is first imported. Threads that spin while they wait starve each other on a busy machine: a rerank
# beside three other processes took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PRECISIONS = ("auto", "float32", "bfloat16")


def dtype(precision: str, device: str = "cpu") -> torch.dtype:
    """The torch dtype of a setting.

    `auto` is bfloat16 where the device multiplies matrices in it, else float32: a processor that only emulates
    bfloat16 is slower with it than with float32.

    Raises:
        BadInput: `precision` is none of `PRECISIONS`.
    """
    import torch

    if precision not in PRECISIONS:
        raise BadInput(f"Unknown precision `{precision}`.", f"Use one of: {', '.join(PRECISIONS)}.")
    if precision == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def _computes_bfloat16(device: str) -> bool:
    import torch

    from ..manifests.doctor import computes_bfloat16

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and computes_bfloat16()


@contextmanager
def quiet() -> Iterator[None]:
    """Within this block transformers shows no progress bars and logs errors only; a library leaves stderr alone."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indexes in batches of like length, longest first, each at most `budget` when padded (but at least one index).

    >>> list(batches([3, 9, 4], 10))
    [[1], [2, 0]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def encodable(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer accepts, as question marks: the same length, so offsets hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
