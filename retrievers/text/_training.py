"""How text encoders with two sides learn: from questions with right passages and with hard negatives.

Losses are the in-batch likelihood of DPR (arXiv:2004.04906, section 3.2) and ANCE's of pairs (arXiv:2007.00808,
section 2). The rest, and how large batches are read in parts, is in `fitting`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from ...errors import BadInput
from ..base import Query
from ..fitting import Course, claim, in_parts, trained
from ..towers import padded, vectors_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..base import Encoder, Item

BLOCK = 4096
"""Passages whose scores are computed at once when negatives are mined."""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Vectors of questions (n, dim), of passages (m, dim), and the rest of a `batch_of`."""


@dataclass(frozen=True)
class Question:
    """What is learned from.

    Attributes:
        right: passages that answer; one of them is drawn for each epoch. None is ever a negative of this question.
        others: passages that do not answer, the harder the better; may be empty.
    """

    text: str
    right: tuple[Item, ...]
    others: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Sides:
    """How each side's texts become ids of pieces, the marks included, and the id that pads."""

    questions: Callable[[Sequence[str]], list[list[int]]]
    passages: Callable[[Sequence[Item]], list[list[int]]]
    pad: int


@dataclass(frozen=True)
class Fitting(Course):
    """Settings of a fit; the defaults are those of DPR.

    Attributes:
        hard: negatives that are drawn from `others` for each question and epoch.
        chunk: passages (and questions) that are read at once (GradCache); 0 for all of the batch.
    """

    epochs: float = 40
    batch: int = 128
    rate: float = 2e-5
    clip: float = 2.0
    decay: float = 0.0
    hard: int = 1
    chunk: int = 0


# --- losses ----------------------------------------------------------------------------------------------------------


def pair_nll(queries: Tensor, passages: Tensor, positives: Tensor, negatives: Tensor, right: Tensor) -> Tensor:
    """Mean negative log-likelihood of the right one of two passages, over all pairs (ANCE, equation 4).

    Args:
        negatives: int64 (n, hard), negatives of each question; -1 for none.
    """
    scores = queries.float() @ passages.float().T
    against = scores.gather(1, negatives.clamp(min=0)) - scores.gather(1, positives[:, None])
    counts = negatives >= 0
    return (functional.softplus(against) * counts).sum() / counts.sum().clamp(min=1)


class Towers(nn.Module):
    """Both encoders under a loss.

    Args:
        question, passage: towers (see `towers`); the same one twice is one.
        chunk: texts that are read at once; 0 for all.
    """

    def __init__(self, question: nn.Module, passage: nn.Module, loss: Loss, chunk: int = 0) -> None:
        super().__init__()
        self.question = question
        if passage is not question:  # parameters under two names could not be saved
            self.passage = passage
        self.loss = loss
        self.chunk = chunk

    def forward(
        self,
        question_ids: Tensor,
        question_mask: Tensor,
        passage_ids: Tensor,
        passage_mask: Tensor,
        positives: Tensor,
        negatives: Tensor,
        right: Tensor,
    ) -> dict[str, Tensor]:
        queries = self.read(self.question, question_ids, question_mask)
        passages = self.read(getattr(self, "passage", self.question), passage_ids, passage_mask)
        return {"loss": self.loss(queries, passages, positives, negatives, right)}

    def read(self, tower: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors (texts, dim), in parts where `chunk` says so."""
        return in_parts(partial(vectors_of, tower), self.chunk, ids, mask)


# --- data ------------------------------------------------------------------------------------------------------------


def mined(
    questions: Sequence[Question],
    rankings: Iterable[Sequence[Item]],
    count: int,
    *,
    answers: Callable[[Question, Item], bool] = lambda question, item: False,
    seed: int | None = None,
) -> list[Question]:
    """The questions with hard negatives: what a search found for each and does not answer.

    Args:
        rankings: of each question, best first.
        count: negatives of each question: the first, or with a `seed` any of the ranking.
        answers: whether a passage that is not known to be right answers after all.
    """
    made = []
    for number, (question, found) in enumerate(zip(questions, rankings, strict=True)):
        right = {item.id for item in question.right}
        others = [item for item in found if item.id not in right and not answers(question, item)]
        if seed is not None and len(others) > count:
            others = random.Random(f"{seed} {number}").sample(others, count)
        made.append(replace(question, others=tuple(others[:count])))
    return made


def nearest(encoder: Encoder, questions: Sequence[Question], items: Sequence[Item], depth: int) -> list[list[Item]]:
    """The `depth` items of the largest inner product with each question, best first, ties by position."""
    queries = encoder.encode([Query(question.text) for question in questions], "query")
    passages = encoder.encode(items, "document")
    found = []
    for start in range(0, len(queries), BLOCK):
        order = np.argsort(-(queries[start : start + BLOCK] @ passages.T), axis=1, kind="stable")[:, :depth]
        found += [[items[place] for place in row] for row in order]
    return found


class _Draws(torch.utils.data.Dataset[tuple[Question, Sequence["Item"]]]):
    """Questions, each with one right passage and its hard negatives, drawn anew in each `epoch` of a seed."""

    def __init__(self, questions: Sequence[Question], fitting: Fitting) -> None:
        self.questions = questions
        self.epoch = 0
        self._fitting = fitting

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, number: int) -> tuple[Question, Sequence[Item]]:
        chance = random.Random(f"{self._fitting.seed} {self.epoch} {number}")
        one = self.questions[number]
        hard = chance.sample(one.others, min(self._fitting.hard, len(one.others)))
        return one, [chance.choice(one.right), *hard]


def batch_of(drawn: Sequence[tuple[Question, Sequence[Item]]], sides: Sides) -> dict[str, Tensor]:
    """What `Towers` reads: questions, each with its right passage and then its negatives.

    A passage that several questions drew is one.
    """
    items = {item.id: item for _, own in drawn for item in own}
    places = {id_: place for place, id_ in enumerate(items)}
    most = max(len(own) - 1 for _, own in drawn)
    negatives = torch.full((len(drawn), max(most, 1)), -1)
    right = torch.zeros(len(drawn), len(items), dtype=torch.bool)
    for row, (question, own) in enumerate(drawn):
        negatives[row, : len(own) - 1] = torch.tensor([places[item.id] for item in own[1:]], dtype=torch.long)
        right[row, [places[item.id] for item in question.right if item.id in places]] = True
    question_ids, question_mask = padded(sides.questions([question.text for question, _ in drawn]), sides.pad)
    passage_ids, passage_mask = padded(sides.passages(list(items.values())), sides.pad)
    return {
        "question_ids": question_ids,
        "question_mask": question_mask,
        "passage_ids": passage_ids,
        "passage_mask": passage_mask,
        "positives": torch.tensor([places[own[0].id] for _, own in drawn]),
        "negatives": negatives,
        "right": right,
    }


# --- the fit ---------------------------------------------------------------------------------------------------------


def fit(
    network: Towers,
    questions: Sequence[Question],
    out_dir: Path,
    sides: Sides,
    *,
    held: Sequence[Question] = (),
    fitting: Fitting,
    refresh: Callable[[int], Sequence[Question]] | None = None,
) -> None:
    """Train `network`; with held questions it ends as it was after its best epoch.

    Args:
        refresh: gives the questions with the negatives of an epoch, from 0; it is asked when the epoch begins.

    Raises:
        BadInput: nothing to learn from, `out_dir` holds a fit with other settings or data, or the loss is not finite.
        Cancelled, TimedOut: see `progress`; the epochs that ended are kept.
    """
    _checked(questions, held, fitting)
    asked = [[one.text, [item.id for item in (*one.right, *one.others)]] for one in (*questions, *held)]
    claim(out_dir, asked, fitting=fitting)
    data = _Draws(questions, fitting)
    trained(
        network,
        fitting,
        out_dir,
        lambda drawn: batch_of(drawn, sides),
        data,
        _Draws(held, fitting) if held else None,
        label="positives",
        watching=[_Epochs(data, refresh)],
        on_cpu=next(network.parameters()).device.type == "cpu",
    )


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Says to the data which epoch it is."""

    def __init__(self, data: _Draws, refresh: Callable[[int], Sequence[Question]] | None) -> None:
        self._data, self._refresh = data, refresh

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        self._data.epoch = round(state.epoch or 0)
        if self._refresh is not None:
            model.eval()
            self._data.questions = self._refresh(self._data.epoch)
            model.train()


def _checked(questions: Sequence[Question], held: Sequence[Question], fitting: Fitting) -> None:
    for question in (*questions, *held):
        if not question.text.strip() or not question.right:
            raise BadInput(f"The question `{question.text}` has no text or no passage.", "Leave it out.")
    passages = {item.id for question in questions for item in (*question.right, *question.others)}
    if len(passages) < 2:
        raise BadInput(f"There are `{len(passages)}` passages to learn from.", "Give questions with different ones.")
    if min(fitting.epochs, fitting.batch) < 1:
        raise BadInput(f"`{fitting.epochs}` epochs and batches of `{fitting.batch}`.", "Give 1 or more.")
    if fitting.patience and not held:
        raise BadInput(f"The patience is `{fitting.patience}`, and there is nothing to lose it on.", "Give `held`.")
