"""How `poly_encoder` learns: pairs of a query and a passage, the other passages of a batch being wrong."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ...errors import BadInput
from ...progress import step
from ..loading import quiet
from ._poly_network import Pieces, PolyNetwork, write
from ._poly_shape import Example, Fitted, Fitting, Shape
from ._towers import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

CHECKPOINTS, CLAIM = "checkpoints", "fit.json"
_AT_ONCE = 32
"""Passages that are encoded together before learning, where their encoder does not learn."""


class Collator:
    """Makes a batch of examples for `PolyNetwork.forward`.

    Args:
        vectors: of passages whose encoder does not learn, by text.
    """

    def __init__(self, pieces: Pieces, vectors: Mapping[str, Tensor]) -> None:
        self._pieces = pieces
        self._vectors = vectors

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        texts = [one.passage for one in examples]
        ids, mask = self._pieces.padded(self._pieces.queries([one.query for one in examples]))
        right = torch.tensor([[one.is_right(text) for text in texts] for one in examples])
        made = {"ids": ids, "mask": mask, "right": right}
        if self._vectors:
            return {**made, "vectors": torch.stack([self._vectors[text] for text in texts])}
        candidate_ids, candidate_mask = self._pieces.padded(self._pieces.passages(texts))
        return {**made, "candidate_ids": candidate_ids, "candidate_mask": candidate_mask}


class _Reporting(TrainerCallback):  # type: ignore[misc]
    """Passes the trainer's progress on, and a wish to stop back: what was saved last is gone on from."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        step(state.global_step, state.max_steps, "steps")


def fit(
    data: Sequence[Example],
    out_dir: Path,
    start: Path,
    shape: Shape,
    held: Sequence[Example],
    how: Fitting,
    known: Mapping[str, Tensor] | None = None,
) -> Fitted:
    """See `PolyEncoder.fit`.

    Args:
        known: vectors of passages by text, of an encoder that does not learn; None to have them made.
    """
    _checked(data, how)
    _claim(out_dir, data, held, shape, how)
    network = PolyNetwork.started(start, shape, how.seed)
    pieces = Pieces(read_tokenizer(start, "bert"), shape)
    _freeze(network, how)
    vectors: Mapping[str, Tensor] = {}
    if not how.candidates:
        vectors = known or encoded(network, pieces, {one.passage for one in (*data, *held)})
    with quiet():
        trainer = Trainer(
            model=network,
            args=_arguments(out_dir / CHECKPOINTS, how, bool(held)),
            data_collator=Collator(pieces, vectors).__call__,  # of an object with a tokenizer it would save that
            train_dataset=list(data),
            eval_dataset=list(held) or None,
            callbacks=[_Reporting(), *([EarlyStoppingCallback(how.patience)] if held else [])],
            optimizers=(torch.optim.AdamW(_groups(network, how), weight_decay=0.01), None),
        )
        trainer.remove_callback(PrinterCallback)
        before = time.perf_counter()
        told = trainer.train(resume_from_checkpoint=any((out_dir / CHECKPOINTS).glob("checkpoint-*")) or None)
    write(out_dir, network.eval(), pieces.tokenizer)
    return Fitted(
        trainer.state.global_step, time.perf_counter() - before, told.training_loss, trainer.state.best_metric
    )


def _checked(data: Sequence[Example], how: Fitting) -> None:
    if len({one.passage for one in data}) < 2 or how.batch < 2:
        raise BadInput(
            f"There are `{len(data)}` examples in batches of {how.batch}.", "Give two or more, of different passages."
        )
    for one in data:
        if not one.query.strip() or not one.passage.strip():
            raise BadInput(f"The example `{one.query[:80]}` has no query or no passage.", "Leave it out.")


def _claim(out_dir: Path, data: Sequence[Example], held: Sequence[Example], shape: Shape, how: Fitting) -> None:
    """Say in `fit.json` what is learned here, so that nobody goes on with something else."""
    digest = hashlib.sha256(repr([list(data), list(held)]).encode("utf-8", "surrogatepass")).hexdigest()
    wanted = {"data": digest, "shape": asdict(shape), "fitting": asdict(how)}
    path = out_dir / CLAIM
    if not path.is_file():
        out_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
    elif json.loads(path.read_text("utf-8")) != wanted:
        raise BadInput(f"`{out_dir.name}` holds a fit with other settings or data.", "Name an empty folder.")


def _arguments(folder: Path, how: Fitting, is_held: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch,
        per_device_eval_batch_size=how.batch,
        learning_rate=how.rate,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        logging_steps=min(20, how.every),
        eval_strategy="steps" if is_held else "no",
        eval_steps=how.every,
        save_strategy="steps",
        save_steps=how.every,
        save_total_limit=2,
        load_best_model_at_end=is_held,
        metric_for_best_model="eval_loss",
        seed=how.seed,
        data_seed=how.seed,
        bf16=how.bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        label_names=["right"],
    )


def _freeze(network: PolyNetwork, how: Fitting) -> None:
    """Only what `how` names learns."""
    network.candidate.requires_grad_(how.candidates)
    if how.layers is None:
        return
    network.context.requires_grad_(False)
    layers = network.context.encoder.layer
    for layer in layers[max(0, len(layers) - how.layers) :]:
        layer.requires_grad_(True)


def _groups(network: PolyNetwork, how: Fitting) -> list[dict[str, Any]]:
    """Parameters for the optimiser, each group with its learning rate.

    Raises:
        BadInput: nothing learns.
    """
    rates: dict[float, list[Any]] = {}
    for name, values in network.named_parameters():
        if values.requires_grad:
            rates.setdefault(how.code_rate if name == "codes" else how.rate, []).append(values)
    if not rates:
        raise BadInput(f"Nothing learns with `{how}`.", "Let codes, layers or candidates learn.")
    return [{"params": group, "lr": rate} for rate, group in rates.items()]


def encoded(network: PolyNetwork, pieces: Pieces, texts: set[str]) -> dict[str, Tensor]:
    """The vector of each passage by the encoder as it is."""
    made: dict[str, Tensor] = {}
    ordered = sorted(texts, key=lambda text: (len(text), text))
    network.eval()
    for first in range(0, len(ordered), _AT_ONCE):
        step(first, len(ordered), "passages")
        part = ordered[first : first + _AT_ONCE]
        with torch.no_grad():
            found = network.candidates(*pieces.padded(pieces.passages(part)))
        made.update(zip(part, found, strict=True))
    return made
