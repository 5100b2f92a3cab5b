"""What every fit stands on: transformers' trainer as systems use it, and batches that are too large for one pass or lie
across processes.

A fit's folder holds `fit.json`, what it was begun with; `checkpoints`, from which it goes on when it was stopped; and
`log.jsonl`, a line for each thing that the trainer told. The system writes its model beside them.

Large batches are read in parts, GradCache (Gao et al. 2021, arXiv:2101.06983): vectors of the whole batch first,
without what their gradients need, then each part again with it. That is what torch's checkpoints do; the gradients are
those of the whole batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..errors import BadInput
from ..progress import step
from .loading import TOKENIZER, quiet

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINTS, CLAIM, LOG = "checkpoints", "fit.json", "log.jsonl"


@dataclass(frozen=True)
class Course:
    """How a fit goes.

    Attributes:
        batch: examples in one step.
        rate: highest learning rate.
        warmup: share of the steps in which it rises; then it falls to 0 linearly.
        every: steps between checkpoints, and between looks at what is held back; 0: both after each epoch.
        patience: looks without a lower loss after which it stops; 0: never.
        clip: norm to which gradients are cut.
        decay: AdamW's weight decay.
        bf16: compute in bfloat16 where that is faster.
    """

    epochs: float
    batch: int
    rate: float
    warmup: float = 0.1
    every: int = 0
    patience: int = 0
    clip: float = 1.0
    decay: float = 0.01
    seed: int = 0
    bf16: bool = False


@dataclass(frozen=True)
class Fitted:
    """What a fit came to: the mean loss of its steps, and the lowest on what was held back (None without)."""

    steps: int
    seconds: float
    loss: float
    held_loss: float | None


# --- the fit ---------------------------------------------------------------------------------------------------------


def claim(folder: Path, data: Iterable[object], other: str = "a fit with other settings or data", **how: Any) -> None:
    """Say in `fit.json` what is learned in `folder`, so that nobody goes on with something else.

    Args:
        data: what is learned from, as JSON values or dataclasses.
        other: what a folder holds that something else was learned in.
        how: settings, dataclasses.

    Raises:
        BadInput: the folder holds another fit, or a model that was not learned here; nothing is written then.
    """
    digest = hashlib.sha256(json.dumps(list(data), default=asdict, sort_keys=True).encode())
    told = json.dumps({"data": digest.hexdigest(), **how}, default=asdict, indent=1) + "\n"
    path = folder / CLAIM
    if path.is_file():
        if path.read_text("utf-8", "replace") != told:
            raise BadInput(f"`{folder.name}` holds {other}.", "Name an empty folder.")
        return
    if any((folder / name).exists() for name in (CHECKPOINTS, "model.safetensors", TOKENIZER)):
        raise BadInput(f"`{folder.name}` holds another model.", "Name an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(told, "utf-8")
    scratch.replace(path)


def trained(
    network: nn.Module,
    course: Course,
    out_dir: Path,
    collate: Callable[[Any], dict[str, Tensor]],
    data: Any,
    held: Any = None,
    *,
    label: str,
    groups: Sequence[Mapping[str, Any]] | None = None,
    watching: Sequence[TrainerCallback] = (),
    on_cpu: bool | None = None,
) -> Fitted:
    """Train `network`, from its last checkpoint in `out_dir` if there is one; `claim` comes before.

    Args:
        network: gives `{"loss": …}` for what `collate` makes of a list of examples.
        data, held: map-style data sets. With held examples the network ends as it was when their loss was lowest.
        label: one of the names in a batch; without any the trainer asks for no loss of what is held back.
        groups: for AdamW, each with its learning rate (`lr`); default: all parameters, of which
            norms, biases and single numbers, such as a scale, do not decay.
        watching: further callbacks.
        on_cpu: default: where there is no GPU.

    Raises:
        BadInput: the loss is not finite.
        Cancelled, TimedOut: see `progress`; the checkpoints are kept.
    """
    callbacks: list[Any] = [Following(out_dir / LOG), *watching]
    if held and course.patience:
        callbacks.append(EarlyStoppingCallback(course.patience))
    optimizer = torch.optim.AdamW(list(groups), weight_decay=course.decay) if groups else None  # type: ignore[arg-type]
    on_cpu = not torch.cuda.is_available() if on_cpu is None else on_cpu
    with quiet():
        trainer = _Careful(
            model=network,
            args=_arguments(out_dir / CHECKPOINTS, course, len(data), label, is_held=bool(held), on_cpu=on_cpu),
            data_collator=lambda examples: collate(examples),  # of an object with a tokenizer it would save that
            train_dataset=data,
            eval_dataset=held or None,
            callbacks=callbacks,
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        told = trainer.train(resume_from_checkpoint=last_checkpoint(out_dir / CHECKPOINTS))
    network.eval()
    return Fitted(
        trainer.state.global_step, told.metrics["train_runtime"], told.training_loss, trainer.state.best_metric
    )


def last_checkpoint(folder: Path) -> str | None:
    """The checkpoint to go on from; one that was cut off while it was written has no state yet."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


class Following(TrainerCallback):  # type: ignore[misc]
    """Tells the progress, obeys a wish to stop, and writes what the trainer logs to a file of JSON lines."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        step(state.global_step, state.max_steps, "training begins")

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        step(state.global_step, state.max_steps, "training steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
        if state.is_world_process_zero:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


class _Careful(Trainer):  # type: ignore[misc]
    """Ends where the loss is not finite, before any weight becomes so, and lets no single number decay."""

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        single = {name for name, weight in model.named_parameters() if not weight.dim()}
        return [name for name in super().get_decay_parameter_names(model) if name not in single]

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        made = super().compute_loss(*given, **named)
        loss = made[0] if isinstance(made, tuple) else made
        if not bool(torch.isfinite(loss)):
            raise BadInput(f"The loss is `{loss.item()}`.", "Train with a lower learning rate.")
        return made


def _arguments(
    folder: Path, course: Course, examples: int, label: str, *, is_held: bool, on_cpu: bool
) -> TrainingArguments:
    when = "steps" if course.every else "epoch"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=course.epochs,
        per_device_train_batch_size=course.batch,
        per_device_eval_batch_size=course.batch,
        learning_rate=course.rate,
        warmup_steps=int(course.warmup * course.epochs * -(-examples // course.batch)),
        lr_scheduler_type="linear",
        max_grad_norm=course.clip,
        weight_decay=course.decay,
        logging_steps=10,
        eval_strategy=when if is_held else "no",
        eval_steps=course.every or None,
        save_strategy=when,
        save_steps=course.every or 1,
        save_total_limit=2,
        load_best_model_at_end=is_held,
        metric_for_best_model="loss",
        greater_is_better=False,
        prediction_loss_only=True,
        label_names=[label],
        seed=course.seed,
        data_seed=course.seed,
        bf16=course.bf16,
        use_cpu=on_cpu,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )


# --- batches ---------------------------------------------------------------------------------------------------------


def in_batch_nll(queries: Tensor, passages: Tensor, positives: Tensor, negatives: Tensor, right: Tensor) -> Tensor:
    """Mean negative log-likelihood of each query's passage among all of the batch (DPR, equation 2).

    Args:
        queries, passages: (n, dim) and (m, dim).
        positives: int64 (n,), the passage of each query.
        negatives: not used: what is a negative of one query is one of all.
        right: bool (n, m), passages known to answer; except for the positive they are left out.
    """
    scores = queries.float() @ passages.float().T
    own = functional.one_hot(positives, len(passages)).bool()
    return functional.cross_entropy(scores.masked_fill(right & ~own, -torch.inf), positives)


def in_parts(read: Callable[..., Tensor], chunk: int, *inputs: Tensor) -> Tensor:
    """`read(*inputs)`, (rows, …), but never more than `chunk` rows at once, in memory neither; 0: all together."""
    if not chunk or len(inputs[0]) <= chunk:
        return read(*inputs)
    parts = zip(*(torch.split(one, chunk) for one in inputs), strict=True)
    return torch.cat([checkpoint(read, *part, use_reentrant=False) for part in parts])


def gathered(own: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow to one's own. Without processes: `own`.

    With the vectors of queries and of passages gathered every process computes the loss of the whole batch, whose
    gradients for its own texts are only a part of it: see `of_all`.

    Args:
        own: (rows, …), in every process as many rows as it has.
    """
    if _processes() == 1:
        return own
    counts = [torch.zeros(1, dtype=torch.long, device=own.device) for _ in range(_processes())]
    distributed.all_gather(counts, torch.tensor([len(own)], device=own.device))
    sizes = [int(count) for count in counts]
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    rows[distributed.get_rank()] = own
    return torch.cat(rows)


def of_all(loss: Tensor) -> Tensor:
    """`loss`, the same in all processes, with such a gradient that the mean of theirs is that of a single process."""
    return _processes() * loss - (_processes() - 1) * loss.detach()


def rows_before(own: Tensor) -> int:
    """Rows of processes of lower rank: where those of this one begin in what is `gathered`."""
    if _processes() == 1:
        return 0
    ranks = gathered(torch.full((len(own),), distributed.get_rank(), device=own.device))
    return int((ranks < distributed.get_rank()).sum())


def _processes() -> int:
    is_there = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if is_there else 1
