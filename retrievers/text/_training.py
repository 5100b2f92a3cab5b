"""How text encoders with two sides learn: from questions with right passages and with hard negatives.

Losses are the in-batch likelihood of DPR (arXiv:2004.04906, section 3.2) and ANCE's of pairs (arXiv:2007.00808,
section 2). Large batches are read in parts, GradCache (Gao et al. 2021, arXiv:2101.06983): vectors of the whole batch
first, without what their gradients need, then each part again with it. That is what torch's checkpoints do; the
gradients are those of the whole batch. The rest is transformers' trainer.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ...errors import BadInput
from ...progress import step
from ..base import Query
from ..loading import quiet
from ._towers import padded, vectors_of

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
class Fitting:
    """Settings of a fit; the defaults are those of DPR.

    Attributes:
        batch: questions in one step.
        rate: highest learning rate.
        warmup: share of the steps in which it rises; then it falls to 0 linearly.
        hard: negatives that are drawn from `others` for each question and epoch.
        chunk: passages (and questions) that are read at once (GradCache); 0 for all of the batch.
        patience: epochs without a better loss on held questions after which the fit stops; 0 for never.
        clip: norm to which gradients are cut.
        bf16: compute in bfloat16 where that is faster.
    """

    epochs: int = 40
    batch: int = 128
    rate: float = 2e-5
    warmup: float = 0.1
    hard: int = 1
    chunk: int = 0
    patience: int = 0
    clip: float = 2.0
    seed: int = 0
    bf16: bool = False


# --- losses ----------------------------------------------------------------------------------------------------------


def in_batch_nll(queries: Tensor, passages: Tensor, positives: Tensor, negatives: Tensor, right: Tensor) -> Tensor:
    """Mean negative log-likelihood of each question's passage among all of the batch (DPR, equation 2).

    Args:
        queries, passages: (n, dim) and (m, dim).
        positives: int64 (n,), the passage of each question.
        negatives: not used: what is a negative of one question is one of all.
        right: bool (n, m), passages known to answer; except for the positive they are left out.
    """
    scores = queries.float() @ passages.float().T
    own = functional.one_hot(positives, len(passages)).bool()
    return functional.cross_entropy(scores.masked_fill(right & ~own, -torch.inf), positives)


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
        question, passage: towers (see `_towers`); the same one twice is one.
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
        loss = self.loss(queries, passages, positives, negatives, right)
        if not bool(torch.isfinite(loss)):
            raise BadInput(f"The loss is `{loss.item()}`.", "Train with a lower learning rate.")
        return {"loss": loss}

    def read(self, tower: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors (texts, dim), in parts where `chunk` says so."""
        if not self.chunk or len(ids) <= self.chunk:
            return vectors_of(tower, ids, mask)
        parts = zip(torch.split(ids, self.chunk), torch.split(mask, self.chunk), strict=True)
        return torch.cat([checkpoint(vectors_of, tower, *part, use_reentrant=False) for part in parts])


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

    What is needed to go on is in `out_dir/checkpoints`, a line for each thing that happened in `out_dir/log.jsonl`.

    Args:
        refresh: gives the questions with the negatives of an epoch, from 0; it is asked when the epoch begins.

    Raises:
        BadInput: nothing to learn from, `out_dir` holds a fit with other settings or data, or the loss is not finite.
        Cancelled, TimedOut: see `progress`; the epochs that ended are kept.
    """
    _checked(questions, held, fitting)
    _claim(out_dir, questions, held, fitting)
    data = _Draws(questions, fitting)
    on_cpu = next(network.parameters()).device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(out_dir / "checkpoints"),
        num_train_epochs=fitting.epochs,
        per_device_train_batch_size=fitting.batch,
        per_device_eval_batch_size=fitting.batch,
        learning_rate=fitting.rate,
        warmup_steps=int(fitting.warmup * fitting.epochs * -(-len(questions) // fitting.batch)),
        lr_scheduler_type="linear",
        max_grad_norm=fitting.clip,
        logging_steps=10,
        eval_strategy="epoch" if held else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=bool(held),
        metric_for_best_model="loss",
        greater_is_better=False,
        prediction_loss_only=True,
        seed=fitting.seed,
        data_seed=fitting.seed,
        bf16=fitting.bf16,
        use_cpu=on_cpu,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        label_names=["positives"],
        dataloader_pin_memory=not on_cpu,
    )
    callbacks: list[Any] = [_Follow(out_dir / "log.jsonl", data, refresh)]
    if held and fitting.patience:
        callbacks.append(EarlyStoppingCallback(fitting.patience))
    with quiet():
        trainer = Trainer(
            model=network,
            args=arguments,
            data_collator=lambda drawn: batch_of(drawn, sides),
            train_dataset=data,
            eval_dataset=_Draws(held, fitting) if held else None,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last(out_dir / "checkpoints"))


class _Follow(TrainerCallback):  # type: ignore[misc]
    """Tells the progress, keeps a log, and says to the data which epoch it is."""

    def __init__(self, log: Path, data: _Draws, refresh: Callable[[int], Sequence[Question]] | None) -> None:
        self._log, self._data, self._refresh = log, data, refresh

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        self._data.epoch = round(state.epoch or 0)
        if self._refresh is not None:
            model.eval()
            self._data.questions = self._refresh(self._data.epoch)
            model.train()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        step(state.global_step, state.max_steps, "training steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def _last(folder: Path) -> str | None:
    """The checkpoint to go on from; one that was cut off while it was written has no state yet."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


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


def _claim(out_dir: Path, questions: Sequence[Question], held: Sequence[Question], fitting: Fitting) -> None:
    """Say in `fit.json` what is fitted here, so that nobody goes on with something else."""
    digest = hashlib.sha256()
    for question in (*questions, *held):
        ids = [item.id for item in (*question.right, *question.others)]
        digest.update(json.dumps([question.text, ids]).encode())
    wanted = {"data": digest.hexdigest(), **asdict(fitting)}
    path = out_dir / "fit.json"
    if path.is_file():
        if json.loads(path.read_text("utf-8")) != wanted:
            raise BadInput(f"`{out_dir.name}` holds a fit with other settings or data.", "Name an empty folder.")
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1), "utf-8")
