"""How encoders of a mixed space learn from queries, each with an item that answers it: every other item of a batch,
from all processes, is a negative, whatever the modality of either.

A model reads its batch as it reads when it encodes, in parts where the whole does not fit into memory (GradCache, see
`fitting`). It learns by low-rank adapters of its language part (arXiv:2106.09685), which are merged in the end, or
whole. A batch can be put together of runs, each of one data set (`Runs`): VLM2Vec-V2's interleaved sub-batches
(arXiv:2507.04590), so that negatives are hard, but not all of the same task.
"""

from __future__ import annotations

import hashlib
import random
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from ...errors import BadInput, MissingExtra
from ..fitting import Course, Fitted, claim, gathered, in_batch_nll, in_parts, of_all, trained
from ._mllm import Backbone
from ._vectors import last

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..base import Item, Query

    Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
    Collate = Callable[[Sequence["Lesson"], Callable[[Any, Any], Any]], dict[str, Any]]

TEMPERATURE = 0.02
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lesson:
    """A query, with its instruction, and an item that answers it; `media.uri` is a path on this machine.

    Attributes:
        wrong: items that do not answer it, read beside it; all lessons of a fit have as many.
        group: the data set that it is of (`Runs`).
        scores: a judge's, from 0 to 1, of the right item and of each wrong one (UniME-V2).
    """

    query: Query
    right: Item
    wrong: tuple[Item, ...] = ()
    group: str = ""
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Adapters:
    """What is learned: for each projection of the language part two matrices of `rank`, scaled by alpha / rank.

    Attributes:
        rank: 0: no adapters; all weights of the model learn, those of what looks, too.
        chunk: inputs that are read at once within a batch (GradCache); 0: all of it.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    chunk: int = 0


# --- what learns -----------------------------------------------------------------------------------------------------


def adapt(model: nn.Module, language: nn.Module, adapters: Adapters, seed: int) -> Callable[[], None]:
    """Put adapters on the projections of `language`, a part of `model`, and freeze all else; without a rank, have all
    of `model` learn.

    Returns:
        What merges the adapters, when all is learned.

    Raises:
        MissingExtra: peft is not installed.
    """
    for weights in model.parameters():
        weights.requires_grad_(not adapters.rank)
    if not adapters.rank:
        return lambda: None
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise MissingExtra("The package `peft` is not installed.", "Run `pip install 'triptych[train]'`.") from None
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules=list(PROJECTIONS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner = LoraModel(language, config, "default")

    def merge() -> None:
        tuner.merge_and_unload()  # in place

    return merge


class Learner(nn.Module):
    """What a trainer trains. Only what learns is saved: the frozen rest is on disk already."""

    def state_dict(self, *given: Any, **named: Any) -> Any:
        """Of what learns alone."""
        learns = {name for name, weights in self.named_parameters() if weights.requires_grad}
        return {key: values for key, values in super().state_dict(*given, **named).items() if key in learns}

    def load_state_dict(self, state_dict: Any, *given: Any, **named: Any) -> Any:
        """Of what learns alone: all else stays as it is."""
        return super().load_state_dict({**super().state_dict(), **state_dict}, *given, **named)


class Contrast(Learner):
    """A model under the loss of a batch.

    Args:
        model: what learns.
        read: inputs as `collated` prepared them → their vectors (inputs, …), through `model`.
        loss: of queries (n, …), candidates (m, …) of which the first n are theirs, and bool (n, m): candidates that are
            known to be right beside a query's own.
        chunk: inputs that are read at once; 0: all.
    """

    def __init__(self, model: nn.Module, read: Callable[[Sequence[Any]], Tensor], loss: Loss, chunk: int = 0) -> None:
        super().__init__()
        self.model, self.chunk, self._read, self._loss = model, chunk, read, loss

    def forward(
        self, keys: Tensor, first: Tensor, queries: Sequence[Any], candidates: Sequence[Any]
    ) -> dict[str, Tensor]:
        asked, told = self.vectors(queries), self.vectors(candidates)
        asked, told, first, keys = gathered(asked), gathered(told), gathered(first), gathered(keys)
        order = torch.cat([first.nonzero()[:, 0], (~first).nonzero()[:, 0]])
        keys = keys[order]
        right = keys[: len(asked), None].eq(keys[None]).fill_diagonal_(False)
        return {"loss": of_all(self._loss(asked, told[order], right))}

    def vectors(self, inputs: Sequence[Any]) -> Tensor:
        """Of prepared inputs, in their order."""
        # On the model's device, so that what drops out there is the same when a part is read again.
        rows = torch.arange(len(inputs), device=next(self.parameters()).device)
        return in_parts(lambda part: self._read([inputs[row] for row in part.tolist()]), self.chunk, rows)


def collated(drawn: Sequence[Lesson], prepare: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """What `Contrast` reads: queries; candidates, first those of the queries, then all wrong ones; of these whether
    they are a query's own (bool) and what tells them apart (int64).

    Args:
        prepare: a query or item and its side → what is read of it.
    """
    items = [*(one.right for one in drawn), *(wrong for one in drawn for wrong in one.wrong)]
    return {
        "keys": torch.tensor([key_of(item) for item in items]),
        "first": torch.arange(len(items)) < len(drawn),
        "queries": [prepare(one.query, "query") for one in drawn],
        "candidates": [prepare(item, "document") for item in items],
    }


def key_of(item: Item) -> int:
    """An int64 for its id, the same in every process."""
    return int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:8], "big", signed=True)


def info_nce(queries: Tensor, candidates: Tensor, right: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean cross-entropy of each query's own candidate among all of the batch, by cosines over `temperature`.

    Args:
        queries, candidates: (n, dim) and (m, dim), of any length, the first n candidates those of the queries.
        right: bool (n, m), others known to be right: they are no negatives.
    """
    asked, told = (functional.normalize(vectors.float(), dim=-1) for vectors in (queries, candidates))
    own = torch.arange(len(queries), device=queries.device)
    return in_batch_nll(asked / temperature, told, own, own, right)


# --- batches of runs -------------------------------------------------------------------------------------------------


class Runs(torch.utils.data.Dataset[list[Lesson]]):
    """Lessons in runs of `length`, each of one `Lesson.group`, drawn anew in each `epoch` of a seed. What is left of a
    group is a shorter run. With a length of 1 every lesson stands alone."""

    def __init__(self, lessons: Sequence[Lesson], length: int, seed: int) -> None:
        self._groups: dict[str, list[Lesson]] = {}
        for lesson in lessons:
            self._groups.setdefault(lesson.group, []).append(lesson)
        self._length, self._seed = length, seed
        self.start(0)

    def start(self, epoch: int) -> None:
        """Draw the runs of an epoch."""
        self._runs: list[list[Lesson]] = []
        for name, own in self._groups.items():
            mixed = random.Random(f"{self._seed} {epoch} {name}").sample(own, len(own))
            self._runs += [mixed[start : start + self._length] for start in range(0, len(own), self._length)]

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, number: int) -> list[Lesson]:
        return self._runs[number]


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Has the runs of each epoch drawn."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._runs.start(int((state.epoch or 0) + 1e-6))  # a fit that goes on may be in the midst of one


# --- the fit ---------------------------------------------------------------------------------------------------------


def begun(
    lessons: Sequence[Lesson], held: Sequence[Lesson], out_dir: Path, course: Course, run: int, **how: Any
) -> None:
    """Check what is to be learned, and claim `out_dir` for it.

    Args:
        run: lessons of one group that stand together in a batch.
        how: further settings, told in `fit.json`.

    Raises:
        BadInput: fewer than two lessons (in all, or in a batch), lessons with different numbers of wrong items, a batch
            that is not of whole runs, or `out_dir` holds something else.
    """
    least = min(len(lessons), course.batch)
    if least < 2 and not any(lesson.wrong for lesson in lessons):
        raise BadInput(f"`{least}` lessons in a batch leave nothing to tell apart.", "Give two or more.")
    counts = sorted({len(lesson.wrong) for lesson in (*lessons, *held)})
    if len(counts) > 1:
        raise BadInput(f"Lessons have `{counts[0]}` to `{counts[-1]}` wrong items.", "Give each as many.")
    if run < 1 or course.batch % run:
        raise BadInput(f"Batches of `{course.batch}` are not made of runs of `{run}`.", "Take a divisor of the batch.")
    claim(out_dir, [asdict(one) for one in (*lessons, *held)], course=course, run=run, **how)


def contrasted(
    network: Learner,
    lessons: Sequence[Lesson],
    held: Sequence[Lesson],
    out_dir: Path,
    course: Course,
    prepare: Callable[[Any, Any], Any],
    run: int = 1,
    collate: Collate = collated,
) -> Fitted:
    """Train `network` on what `collate` makes of lessons; `begun` and `adapt` come before.

    Raises:
        BadInput: the loss is not finite, or a picture is a line.
        UnreadableFile: a picture is gone or damaged.
        Cancelled, TimedOut: see `progress`; the next call with the same arguments goes on.
    """
    runs = Runs(lessons, run, course.seed)
    return trained(
        network,
        replace(course, batch=course.batch // run),
        out_dir,
        lambda drawn: collate([lesson for own in drawn for lesson in own], prepare),
        runs,
        Runs(held, run, course.seed) if held else None,
        label="keys",
        watching=[_Epochs(runs)],
        on_cpu=next(network.parameters()).device.type == "cpu",
    )


def backbone_fitted(
    backbone: Backbone,
    lessons: Sequence[Lesson],
    out_dir: Path,
    prepare: Callable[[Any, Any], Any],
    loss: Callable[..., Tensor],
    course: Course,
    adapters: Adapters,
    *,
    held: Sequence[Lesson] = (),
    run: int = 1,
    kind: type[Contrast] = Contrast,
    collate: Collate = collated,
    **how: Any,
) -> tuple[Backbone, Fitted]:
    """A copy of `backbone`, in float32, that learned from pairs, and what it came to; see `begun` and `contrasted`.

    Args:
        prepare: a query or item and its side → as `Backbone.read` has it.
        loss: as `kind` has it; collate: what that reads.
        how: settings of the loss, for `fit.json`.

    Raises:
        BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `begun`, `adapt` and `contrasted`.
    """
    begun(lessons, held, out_dir, course, run, adapters=adapters, **how)
    made = Backbone(deepcopy(backbone.model).float(), backbone.tokenizer, backbone.pictures)
    merge = adapt(made.model, made.model.language_model, adapters, course.seed)
    network = kind(made.model, lambda inputs: last(*made.states(inputs)), loss, adapters.chunk)
    came = contrasted(network, lessons, held, out_dir, course, prepare, run, collate)
    merge()
    made.model.to(backbone.model.device).eval()
    return made, came
