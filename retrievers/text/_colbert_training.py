"""How a ColBERT learns: by pairs (v1, arXiv:2004.12832) or from a teacher's scores (v2, arXiv:2112.01488)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ...errors import BadInput
from ..fitting import Course, claim, trained
from . import _late_interaction as losses

if TYPE_CHECKING:
    from pathlib import Path

    from .colbert import ColBERT


@dataclass(frozen=True)
class Lesson:
    """A query with passages, the one that answers it first.

    Attributes:
        passages: behind the first those that do not answer it, as many for each query; none will do where the other
            passages of the batch count (`Fitting.in_batch`).
        scores: a teacher's for each passage (logits of a cross-encoder); empty where there is none.
    """

    query: str
    passages: tuple[str, ...]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Fitting(Course):
    """Sizes; rate (of the encoder), batch and alpha are the published ones.

    Attributes:
        loss: `"pairs"`: cross-entropy of (right, wrong) pairs; `"teacher"`: KL divergence from the teacher's scores.
        in_batch: add the cross-entropy of the right passage among all passages of the batch.
        alpha: what the teacher's scores are multiplied with.
        linear_rate: of the linear layer; default: `rate`.
        layers: only so many layers of the encoder learn, the last ones; default: all, and the embeddings.
        held: share of the lessons that are held back to see when to stop; 0: never stop early.
        document_pieces: to which passages are cut while it learns; default: as when it reads.
    """

    epochs: float = 1.0
    batch: int = 32
    rate: float = 3e-6
    every: int = 100
    patience: int = 3
    loss: Literal["pairs", "teacher"] = "pairs"
    in_batch: bool = False
    alpha: float = 1.0
    linear_rate: float | None = None
    layers: int | None = None
    held: float = 0.1
    document_pieces: int | None = None


class Lessons(nn.Module):
    """The network with a loss, as the trainer wants it."""

    def __init__(self, network: losses.Network, fitting: Fitting) -> None:
        super().__init__()
        self.network = network
        self.fitting = fitting

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The loss of a batch made by `Collator`."""
        queries = self.network(batch["query_ids"], batch["query_mask"])
        documents = self.network(batch["ids"], batch["mask"])
        scores = losses.own_scores(queries, documents, batch["kept"])
        found: list[Tensor] = []
        if self.fitting.loss == "teacher":
            found.append(losses.distillation(scores, batch["teacher"], self.fitting.alpha))
        elif scores.shape[1] > 1:
            found.append(losses.pairwise(scores))
        if self.fitting.in_batch:
            every = losses.max_sim(queries, documents, batch["kept"])
            found.append(losses.in_batch(every, scores.shape[1]))
        return {"loss": torch.stack(found).sum()}


class Collator:
    """Makes a batch of lessons, all with the same number of passages."""

    def __init__(self, colbert: ColBERT, fitting: Fitting) -> None:
        self.colbert = colbert
        self.longest = fitting.document_pieces or colbert.lengths.document

    def __call__(self, lessons: Sequence[Lesson]) -> dict[str, Tensor]:
        colbert = self.colbert
        queries = colbert.padded(colbert.sequences([one.query for one in lessons], "query"), "query")
        texts = [text for one in lessons for text in one.passages]
        sequences = [_cut(ids, self.longest) for ids in colbert.sequences(texts, "document")]
        names = ("query_ids", "query_mask", "", "ids", "mask", "kept")
        arrays = (*queries, *colbert.padded(sequences, "document"))
        made = {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True) if name}
        made["teacher"] = torch.tensor([one.scores for one in lessons], dtype=torch.float32)
        return made


def learned(colbert: ColBERT, data: Sequence[Lesson], out_dir: Path, fitting: Fitting) -> ColBERT:
    """See `ColBERT.fit`."""
    lessons = _checked(data, fitting)
    claim(out_dir, lessons, "a fit of other lessons", fitting=fitting)
    taught = deepcopy(colbert)
    module = Lessons(taught.network.float(), fitting)
    collate, groups = Collator(taught, fitting), _parameters(taught.network, fitting)
    trained(module, fitting, out_dir, collate, *_split(lessons, fitting), label="teacher", groups=groups)
    taught.network.to(colbert.network.linear.weight.device).eval().requires_grad_(True)
    taught.save(out_dir)
    return taught


def _parameters(network: losses.Network, fitting: Fitting) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with its learning rate; what does not learn is frozen."""
    if fitting.layers is not None:
        network.bert.requires_grad_(False)
        for layer in network.bert.encoder.layer[len(network.bert.encoder.layer) - fitting.layers :]:
            layer.requires_grad_(True)
    learns = [one for one in network.bert.parameters() if one.requires_grad]
    groups = [
        {"params": learns, "lr": fitting.rate},
        {"params": [network.linear.weight], "lr": fitting.linear_rate or fitting.rate},
    ]
    return [group for group in groups if group["params"]]


def _checked(data: Sequence[Lesson], fitting: Fitting) -> list[Lesson]:
    lessons = list(data)
    sizes = {len(one.passages) for one in lessons}
    if len(lessons) < 2 or len(sizes) != 1:
        raise BadInput(f"There are `{len(lessons)}` lessons of {sorted(sizes)} passages.", "Give two or more alike.")
    [size] = sizes
    if size < 2 and not (fitting.in_batch and fitting.loss == "pairs"):
        raise BadInput("A query has `1` passage.", "Give a right one and at least one wrong one.")
    told = [len(one.scores) == size and all(map(math.isfinite, one.scores)) for one in lessons]
    if fitting.loss == "teacher" and not all(told):
        raise BadInput(f"Lesson `{told.index(False)}` has no teacher's score for each passage.", "Give finite ones.")
    return lessons


def _split(lessons: list[Lesson], fitting: Fitting) -> tuple[list[Lesson], list[Lesson]]:
    order = random.Random(fitting.seed).sample(lessons, len(lessons))
    held = min(math.ceil(len(order) * fitting.held), len(order) - 1)
    return order[held:], order[:held]


def _cut(ids: list[int], longest: int) -> list[int]:
    """The same with its last piece, `[SEP]`, moved to the end of what is left."""
    return ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]
