"""How models are loaded and fed: the number format this machine computes in, quietly, in batches of like length."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, MissingWeights, Unsupported

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from tokenizers import Tokenizer

# Read when torch is first imported. Threads that spin while they wait starve each other on a busy machine: a rerank
# beside three other processes took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = 32
"""Tokens that prompts have to begin with in common so that these are read only once."""
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
PRECISIONS = ("auto", "float32", "bfloat16", "int8")


def config_of(folder: Path, *kinds: str) -> dict[str, Any]:
    """`config.json` of a model of one of the architectures `kinds` (`model_type`); the file has to be there.

    Raises:
        BadInput: no JSON object, or of another architecture.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except ValueError:
        raise BadInput(f"`{folder.name}/{CONFIG}` is no JSON.", "Put the model's own file there.") from None
    found = config.get("model_type") if isinstance(config, dict) else config
    if found not in kinds:
        raise BadInput(f"`{folder.name}` holds a model of type `{found}`.", f"Give one of type {' or '.join(kinds)}.")
    return dict(config)


def dtype(precision: str, device: str = "cpu") -> torch.dtype:
    """The torch dtype of a setting, for a model that computes in torch.

    `auto` is bfloat16 where the device multiplies matrices in it, else float32: a processor that only emulates
    bfloat16 is slower with it than with float32. `int8` is for models that can (see `in_int8`); to all others it says
    what `auto` does.

    Raises:
        BadInput: `precision` is none of `PRECISIONS`.
    """
    import torch

    _known(precision)
    if precision in ("auto", "int8"):
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def in_int8(precision: str, device: str = "cpu") -> bool:
    """Whether a model that has a form in 8-bit integers takes it.

    It does where it is asked for, and for `auto` where the processor sums products of 8-bit integers itself: there it
    is the fastest form that keeps the direction of every vector (cosine to float32 of .99 and more).

    Raises:
        BadInput: `precision` is none of `PRECISIONS`.
        Unsupported: it is asked for and would be slow or wrong: without those instructions sums can overflow.
    """
    _known(precision)
    if precision not in ("auto", "int8"):
        return False
    able = device == "cpu" and _sums_int8()
    if precision == "int8" and not able:
        raise Unsupported(
            f"`{device}` does not compute in `int8`: it needs a processor with VNNI.", "Use the precision `auto`."
        )
    return able


def computed_in(precision: str) -> str:
    """What models compute in on this processor under a setting, for reports: `"bfloat16"`, `"int8 and bfloat16"`."""
    rest = str(dtype(precision)).removeprefix("torch.")
    return f"int8 and {rest}" if in_int8(precision) else rest


def set_threads(threads: int) -> int:
    """Have torch use so many threads on the processor, or its own choice for 0; how many that is."""
    import torch

    if threads and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return int(torch.get_num_threads())


def _known(precision: str) -> None:
    if precision not in PRECISIONS:
        raise BadInput(f"Unknown precision `{precision}`.", f"Use one of: {', '.join(PRECISIONS)}.")


def _sums_int8() -> bool:
    """Whether the processor has the AVX-512 form of VNNI: where int8 was measured."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_vnni"))
    return bool(torch.cpu._is_vnni_supported())


def _computes_bfloat16(device: str) -> bool:
    import torch

    from ..manifests.doctor import computes_bfloat16

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and computes_bfloat16()


def read_tokenizer(folder: Path, files: Sequence[str] = (), reader: str = "") -> Tokenizer:
    """From `tokenizer.json`, else from `files` by the transformers class `reader`.

    Raises:
        MissingWeights: neither is there.
        BadInput: `tokenizer.json` is damaged.
    """
    from tokenizers import Tokenizer

    if (folder / TOKENIZER).is_file():
        try:
            return Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # the library raises nothing narrower
            raise BadInput(f"`{folder.name}/{TOKENIZER}` is damaged: {error}.", "Put the file there again.") from None
    lacking = [name for name in files if not (folder / name).is_file()]
    if lacking or not files:
        also = f" and no `{lacking[0]}`" if lacking else ""
        raise MissingWeights(f"`{folder.name}` has no `{TOKENIZER}`{also}.", "Put the model's own files there.")
    import transformers

    with quiet():
        made: Tokenizer = getattr(transformers, reader).from_pretrained(folder, local_files_only=True).backend_tokenizer
    return made


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


def alike(sequences: Sequence[Sequence[int]], needed: Sequence[int]) -> list[tuple[list[int], int]]:
    """Groups of sequences and how many ids all of a group begin with; the last group, with 0, shares nothing.

    What is shared is at least `SHARED` and at most what is `needed` of each. A group takes in its next neighbour of
    the sorted sequences as long as the group's reading does not become longer by it.

    >>> alike([[1] * 40 + [2], [3], [1] * 40 + [4]], [40, 0, 40])
    [([0, 2], 40), ([1], 0)]
    """
    groups: list[tuple[list[int], int]] = []
    for row in sorted(range(len(sequences)), key=lambda n: list(sequences[n])):
        if groups:
            rows, shared = groups[-1]
            both = min(shared, needed[row], _common(sequences[rows[-1]], sequences[row]))
            if both >= SHARED and len(rows) * both >= (len(rows) - 1) * shared:
                groups[-1] = ([*rows, row], both)
                continue
        groups.append(([row], needed[row]))
    together = [(sorted(rows), shared) for rows, shared in groups if len(rows) > 1]
    alone = sorted(rows[0] for rows, _ in groups if len(rows) == 1)
    return [*together, (alone, 0)] if alone else together


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def encodable(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer accepts, as question marks: the same length, so offsets hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def finite(vectors: np.ndarray) -> np.ndarray:
    """`vectors` of a model, whatever their shape.

    Raises:
        BadInput: one of them has NaN or infinity.
    """
    import numpy as np

    if not np.isfinite(vectors).all():
        raise BadInput("The model gave a vector with `nan` or `inf`.", "Its weights are damaged: put them here again.")
    return vectors
