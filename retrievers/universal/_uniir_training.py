"""How UniIR's CLIP networks learn (arXiv:2311.17136, section 4): queries and candidates of any modality in one batch,
each query's candidate against all others of the batch, across processes, under a learned scale.

It differs in that a candidate that stands in a batch twice is no negative of itself, and in that the scale is held at
most at 100, as CLIP's is. Hard negatives are not read. BLIP_FF learns otherwise, see `_uniir_momentum`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import BadInput
from ..fitting import Course, claim, gathered, in_parts, of_all, trained
from ._contrastive_training import Learner, key_of
from ._uniir_fusion import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from ..base import Item, Query

LARGEST_SCALE = math.log(100)
PARTS = ("ids", "mask", "worded", "pixels", "shown")


@dataclass(frozen=True)
class Lesson:
    """A query, with its instruction, and an item that answers it; `media.uri` is a path on this machine."""

    query: Query
    right: Item


@dataclass(frozen=True)
class Fitting:
    """Settings of a fit; rate, epochs and batch (of one GPU) are those of the published CLIP_SF. For BLIP_FF:
    `_uniir_momentum.MomentumFitting`.

    Attributes:
        warmup: share of the steps in which the rate rises; then it falls to 0 linearly (the authors: a cosine).
        chunk: inputs that are read at once (GradCache); 0 for all of a batch.
        patience: epochs without a lower loss on held lessons after which it stops; 0 for never.
        decay: weight decay, the authors' for all but norms, biases and the scale.
    """

    epochs: int = 20
    batch: int = 105
    rate: float = 1e-5
    warmup: float = 0.0
    chunk: int = 0
    patience: int = 0
    decay: float = 0.2
    seed: int = 0
    bf16: bool = False


class Contrast(Learner):
    """A fusing network under the loss. A batch has its queries first, then in the same order their candidates."""

    def __init__(self, network: Any, chunk: int = 0) -> None:
        super().__init__()
        self.network = network
        self.chunk = chunk

    def forward(
        self, ids: Tensor, mask: Tensor, worded: Tensor, pixels: Tensor, shown: Tensor, keys: Tensor
    ) -> dict[str, Tensor]:
        queries, candidates = units(self.network, self.chunk, ids, mask, worded, pixels, shown).chunk(2)
        # Before they are gathered: of all processes, each learns the scale from its own rows.
        scaled = queries * self.network.clip.logit_scale.float().clamp(max=LARGEST_SCALE).exp()
        loss = contrast(gathered(scaled), gathered(candidates), gathered(keys))
        return {"loss": of_all(loss)}


def units(network: Any, chunk: int, ids: Tensor, mask: Tensor, worded: Tensor, pixels: Tensor, shown: Tensor) -> Tensor:
    """Float32 (inputs, dim) of unit length, of what `fit` collates; `chunk` inputs are read at once."""

    def read(ids: Tensor, mask: Tensor, worded: Tensor, pixels: Tensor, shown: Tensor) -> Tensor:
        found: Tensor = network(Batch(ids, mask, worded, pixels[shown], shown))
        return found

    return functional.normalize(in_parts(read, chunk, ids, mask, worded, pixels, shown).float(), dim=-1)


def contrast(queries: Tensor, candidates: Tensor, keys: Tensor) -> Tensor:
    """Mean cross-entropy of each query's candidate among those of the batch, queries to candidates only.

    Args:
        queries: (n, dim); their inner products with candidates are logits.
        candidates: (n, dim).
        keys: int64 (n,), equal for the same candidate: it is no negative of itself.
    """
    scores = queries @ candidates.T
    twin = keys[:, None].eq(keys[None]) & ~torch.eye(len(keys), dtype=torch.bool, device=keys.device)
    return functional.cross_entropy(scores.masked_fill(twin, -torch.inf), torch.arange(len(keys), device=keys.device))


def fit(
    learner: nn.Module,
    lessons: Sequence[Lesson],
    out_dir: Path,
    batch_of: Callable[[Sequence[Query | Item]], Batch],
    *,
    held: Sequence[Lesson] = (),
    fitting: Fitting,
) -> None:
    """Train `learner`; with held lessons it ends as it was after its best epoch.

    Args:
        learner: gives `{"loss": …}` for what is collated: the parts of a `Batch`, with a place for every picture, and
            `keys`, equal for the same candidate.
        batch_of: queries and items as the network reads them.

    Raises:
        BadInput: fewer than two lessons, `out_dir` holds another fit, or the loss is not finite.
        UnreadableFile: a picture is gone or damaged.
        Cancelled, TimedOut: see `progress`; the epochs that ended are kept.
    """
    if len(lessons) < 2 or fitting.batch < 2:
        told = f"`{min(len(lessons), fitting.batch)}` lessons in a batch leave nothing to tell apart."
        raise BadInput(told, "Give two or more.")
    claim(out_dir, [asdict(one) for one in (*lessons, *held)], fitting=fitting)

    def collate(drawn: Sequence[Lesson]) -> dict[str, Tensor]:
        batch = batch_of([*(one.query for one in drawn), *(one.right for one in drawn)])
        pixels = batch.pixels.new_zeros(len(batch.ids), *batch.pixels.shape[1:])
        pixels[batch.shown] = batch.pixels
        keys = torch.tensor([key_of(one.right) for one in drawn])
        return {name: getattr(batch, name) for name in PARTS} | {"pixels": pixels, "keys": keys}

    course = Course(
        fitting.epochs,
        fitting.batch,
        fitting.rate,
        fitting.warmup,
        patience=fitting.patience,
        decay=fitting.decay,
        seed=fitting.seed,
        bf16=fitting.bf16,
    )
    trained(learner, course, out_dir, collate, list(lessons), list(held), label="keys")
