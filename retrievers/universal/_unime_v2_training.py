"""UniME-V2's training (arXiv:2510.13515): each query with its right candidate and the mined ones, which a judge scored
before; nothing else of the batch is a negative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import BadInput
from ._contrastive_training import Contrast, Lesson, collated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Listed(Contrast):
    """A model under the loss of lists: of cosines (queries, 1 + wrong), the right candidate first, and the judge's
    scores of the same."""

    def forward(  # type: ignore[override]
        self, keys: Tensor, first: Tensor, queries: Sequence[Any], candidates: Sequence[Any], scores: Tensor
    ) -> dict[str, Tensor]:
        asked, told = (functional.normalize(self.vectors(one).float(), dim=-1) for one in (queries, candidates))
        own, wrong = told[: len(asked), None], told[len(asked) :].reshape(len(asked), -1, told.shape[1])
        cosines = torch.einsum("qd,qcd->qc", asked, torch.cat([own, wrong], dim=1))
        return {"loss": self._loss(cosines, scores)}  # type: ignore[call-arg]


def with_scores(drawn: Sequence[Lesson], prepare: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """What `Listed` reads."""
    return {**collated(drawn, prepare), "scores": torch.tensor([lesson.scores for lesson in drawn])}


def scored(lessons: Sequence[Lesson]) -> None:
    """Whether each lesson has wrong candidates, and a score for each of its candidates.

    Raises:
        BadInput: one has not.
    """
    for lesson in lessons:
        if not lesson.wrong or len(lesson.scores) != len(lesson.wrong) + 1:
            wrong = f"A lesson has `{len(lesson.wrong)}` wrong items and `{len(lesson.scores)}` scores."
            raise BadInput(wrong, "Give one for the right item and one for each wrong one: see `mined` and `judged`.")
