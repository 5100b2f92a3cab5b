"""How ColPali learns (arXiv:2407.01449, section 4.2): questions and pages of a batch under a loss over their MaxSim
scores, in parts and across processes as in `_contrastive_training`; the whole network, or low-rank adapters on its
language part and the projection behind.

It differs in that a page that stands in a batch twice is no wrong page of itself, and in that the projection learns
whole where the rest has adapters (the authors: adapters there, too).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import BadInput
from ..fitting import gathered, in_parts
from . import _colpali_losses as losses
from ._contrastive_training import Contrast, adapt, begun, contrasted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..base import Item, Query
    from ..fitting import Course, Fitted
    from ._colpali_backbones import Backbone, Read
    from ._contrastive_training import Adapters, Lesson

Kind = Literal["pairwise", "info_nce"]


@dataclass(frozen=True)
class Objective:
    """What is learned; the usual is what was published with ColPali.

    Attributes:
        kind: the hardest wrong page of the batch (`pairwise`), or all of them (`info_nce`).
        temperature: 0 for the kind's own, 1.0 and 0.02.
        smooth: of the maximum in MaxSim, see `_colpali_losses.scores`; 0 for the maximum.
        near: a wrong page of the batch with more than this share of the right one's score counts half (colpali-engine:
            0.95); 0 trusts all.
        in_batch: where lessons have wrong pages of their own, the share of the loss that the batch's other pages have.
    """

    kind: Kind = "pairwise"
    temperature: float = 0.0
    smooth: float = 0.0
    near: float = 0.0
    in_batch: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BadInput(f"The loss is `{self.kind}`.", f"Use one of: {', '.join(get_args(Kind))}.")

    def __call__(self, queries: Tensor, pages: Tensor, right: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            queries: (n, q, dim), each vector of unit length, or zeros where there is none.
            pages: (n + n * k, t, dim), first each query's own, then k wrong ones of each, those of one query beside
                each other.
            right: bool (n, n + n * k), pages known to be right beside a query's own.
        """
        count = len(queries)
        asked, kept = queries.any(dim=-1), pages.any(dim=-1)
        found = losses.scores(queries, pages[:count], asked, kept[:count], smooth=self.smooth)
        trusted = losses.doubted(found, self.near) if self.near else found
        trusted = trusted.masked_fill(right[:, :count], -torch.inf)
        if self.kind == "pairwise":
            loss = losses.pairwise(trusted, self.temperature or losses.PAIRWISE_TEMPERATURE)
        else:
            loss = losses.info_nce(trusted, self.temperature or losses.NCE_TEMPERATURE)
        if len(pages) == count:
            return loss
        wrong = losses.own_scores(queries, pages[count:], asked, kept[count:], smooth=self.smooth)
        explicit = losses.beside(found.diagonal(), wrong, self.temperature or losses.PAIRWISE_TEMPERATURE)
        return self.in_batch * loss + (1 - self.in_batch) * explicit


class Late(Contrast):
    """A network of many vectors an input, under the loss of a batch."""

    def __init__(self, backbone: Backbone, objective: Objective, chunk: int = 0) -> None:
        super().__init__(backbone.network, lambda inputs: backbone.states(inputs)[0], objective, chunk)

    def vectors(self, inputs: Sequence[Read]) -> Tensor:
        """Of all tokens, (inputs, tokens, dim), filled up with zeros to the longest input of all processes."""
        device = next(self.parameters()).device
        lengths = torch.tensor([len(one.ids) for one in inputs], device=device)
        width = int(gathered(lengths).max())

        def read(rows: Tensor) -> Tensor:
            made = self._read([inputs[row] for row in rows.tolist()]).float()
            there = torch.arange(made.shape[1], device=device) < lengths[rows, None]
            made = functional.normalize(made, dim=-1) * there[..., None]
            return functional.pad(made, (0, 0, 0, width - made.shape[1]))

        return in_parts(read, self.chunk, torch.arange(len(inputs), device=device))


def fit(
    backbone: Backbone,
    lessons: Sequence[Lesson],
    out_dir: Path,
    read: Callable[[Query | Item], Read],
    objective: Objective,
    course: Course,
    adapters: Adapters,
    *,
    held: Sequence[Lesson] = (),
    run: int = 1,
) -> tuple[Backbone, Fitted]:
    """A copy of `backbone` in float32 that learned, its adapters merged, and what it came to.

    Args:
        read: a query or page as the network reads it.
        run: lessons of one group that stand together in a batch.

    Raises:
        BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training`.
    """
    begun(lessons, held, out_dir, course, run, adapters=adapters, objective=objective)
    made = type(backbone)(deepcopy(backbone.network).float(), backbone.processor)
    merge = adapt(made.network, language(made.network), adapters, course.seed)
    getattr(made.network, made.projection).requires_grad_(True)

    def prepare(given: Any, side: str) -> Read:
        return read(given)

    came = contrasted(Late(made, objective, adapters.chunk), lessons, held, out_dir, course, prepare, run)
    merge()
    made.network.to(backbone.network.device).eval()
    return made, came


def language(network: nn.Module) -> Any:
    """The part of a network that reads words: the outermost that is called so.

    Raises:
        BadInput: there is none.
    """
    for name, part in network.named_modules():
        if name.endswith(("language_model", "text_model")):
            return part
    raise BadInput(f"`{type(network).__name__}` has no language part.", "Give a network of the family.")
