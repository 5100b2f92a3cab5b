"""How CPC learns: a question against the sentence that answers it, among others of its context and of the batch.

Liskavets et al. 2024, arXiv:2409.01227: low-rank matrices on a causal language model whose attention sees both ways;
sentences are pooled where they stand, questions alone, and the loss is InfoNCE over cosines. Two things of the paper
are not here: its second objective, masked next-token prediction, and its data, questions that a language model wrote so
that the sentence alone does not answer them. Any question will do for which a span of its context is known. On
`fitting`; `peft` makes the matrices.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import BadInput, MissingExtra
from ...retrievers.chunking import sentences
from ...retrievers.fitting import Course, claim, trained
from ...retrievers.loading import encodable, quiet
from .cpc import ADAPTER, BASE

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...retrievers.fitting import Fitted
    from ..fit import Span

SCALE = 20.0
"""What cosines are multiplied with before the softmax (authors' code)."""
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Example:
    """A question, the sentences of its context in reading order, and which of them answers."""

    question: str
    sentences: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Training(Course):
    """How to learn. Rank and negatives are the authors', who take 132 steps of 32; rate and alpha are ours.

    Attributes:
        rank, alpha: of the adapter, whose product of matrices is weighed by `alpha / rank`.
        negatives: further sentences of a context that its question is told from, drawn with the seed.
        longest: tokens of a context that are read.
    """

    epochs: float = 1.0
    batch: int = 8
    rate: float = 2e-4
    rank: int = 16
    alpha: int = 32
    negatives: int = 2
    longest: int = 1024


def example(question: str, context: str, span: Span) -> Example:
    """The example of one question whose answer stands in `context[span[0]:span[1]]`.

    Raises:
        BadInput: the span lies in no sentence, or in more than one.
    """
    bounds = [(start, end) for start, end in sentences(context) if context[start:end].strip()]
    touched = [n for n, (start, end) in enumerate(bounds) if start < span[1] and span[0] < end]
    if len(touched) != 1:
        raise BadInput(f"The span `{span}` touches `{len(touched)}` sentences.", "Give a span inside one.")
    return Example(question, tuple(context[start:end].strip() for start, end in bounds), touched[0])


class Network(nn.Module):
    """The language model with its adapter; only the adapter is learned, and only the adapter is its state.

    Args:
        model: the decoder of a causal LM under peft's LoRA.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states, float32 (texts, tokens, dim): every token sees all of its text. All (texts, tokens)."""
        seen = mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        states: Tensor = self.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        return states.float()

    def forward(
        self, question_ids: Tensor, question_mask: Tensor, ids: Tensor, mask: Tensor, sentence: Tensor, chosen: Tensor
    ) -> dict[str, Tensor]:
        """The loss of a batch (see `batch_of`)."""
        asked = (self.read(question_ids, question_mask) * question_mask[..., None]).sum(1)
        states = self.read(ids, mask)
        inside = sentence >= 0
        sums = states.new_zeros(int(sentence.max()) + 1, states.shape[2])
        sums = sums.index_add(0, sentence[inside], states[inside])
        return {"loss": info_nce(asked, sums[chosen])}

    def state_dict(self, *given: Any, **named: Any) -> dict[str, Any]:  # type: ignore[override]
        """Of what is learned: checkpoints do not hold the language model again and again."""
        learned = self._learned()
        return {name: one for name, one in super().state_dict(*given, **named).items() if name in learned}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Raises BadInput where something of what is learned is not in `state`."""
        if lacking := sorted(self._learned() - state.keys()):
            raise BadInput(f"The checkpoint lacks `{lacking[0]}`.", "Name an empty folder.")
        told = super().load_state_dict(state, strict=False, assign=assign)
        told.missing_keys.clear()
        return told

    def _learned(self) -> set[str]:
        return {name for name, one in self.named_parameters() if one.requires_grad}


def info_nce(questions: Tensor, candidates: Tensor) -> Tensor:
    """Mean cross-entropy of each question's sentence among all candidates, over cosines times `SCALE`.

    Args:
        questions: (n, dim).
        candidates: (m, dim), of which the first n are the right ones, in the order of the questions.
    """
    scores = SCALE * functional.normalize(questions, dim=-1) @ functional.normalize(candidates, dim=-1).T
    return functional.cross_entropy(scores, torch.arange(len(questions), device=scores.device))


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """An example in tokens: each sentence alone, as it is read later; `others` are its hard negatives."""

    question: list[int]
    sentences: list[list[int]]
    right: int
    others: list[int]


def row(tokenizer: Tokenizer, one: Example, place: int, training: Training) -> Row:
    """The row of example number `place`; its context ends with the last sentence that fits into `longest` tokens.

    Raises:
        BadInput: the right sentence is not among them, or has no tokens.
    """
    read = [_ids(tokenizer, text) for text in one.sentences]
    total = [sum(map(len, read[: n + 1])) for n in range(len(read))]
    fitting = [n for n, size in enumerate(total) if size <= training.longest and read[n]]
    if one.right not in fitting:
        raise BadInput(f"The right sentence of `{one.question}` is not read.", "Give a shorter context.")
    rest = [n for n in fitting if n != one.right]
    drawn = random.Random(f"{training.seed}/{place}").sample(rest, min(training.negatives, len(rest)))
    question = _ids(tokenizer, one.question)[: training.longest]
    if not question:
        raise BadInput(f"The question `{one.question}` has no tokens.", "Leave it out.")
    return Row(question, read[: fitting[-1] + 1], one.right, sorted(drawn))


def batch_of(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Padded tokens and masks of questions and contexts, int64 (n, tokens); `sentence` numbers each token's sentence
    through the batch, -1 for none; `chosen` are the sentences that are told apart, the n right ones first."""
    first, starts = 0, []
    for one in rows:
        starts.append(first)
        first += len(one.sentences)
    numbers = [
        [start + n for n, sentence in enumerate(one.sentences) for _ in sentence]
        for one, start in zip(rows, starts, strict=True)
    ]
    tokens = [[token for sentence in one.sentences for token in sentence] for one in rows]
    right = [start + one.right for one, start in zip(rows, starts, strict=True)]
    others = [start + n for one, start in zip(rows, starts, strict=True) for n in one.others]
    return {
        "question_ids": _padded([one.question for one in rows], 0),
        "question_mask": _padded([[1] * len(one.question) for one in rows], 0),
        "ids": _padded(tokens, 0),
        "mask": _padded([[1] * len(one) for one in tokens], 0),
        "sentence": _padded(numbers, -1),
        "chosen": torch.tensor([*right, *others]),
    }


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(encodable(text), add_special_tokens=False).ids)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


# --- learning --------------------------------------------------------------------------------------------------------


def fit(
    model: Any,
    tokenizer: Tokenizer,
    data: Sequence[Example],
    out_dir: Path,
    training: Training | None = None,
    held: Sequence[Example] = (),
) -> Fitted:
    """Learn an adapter of `model`, which stays as it is, and write both into `out_dir`: `base` and `adapter`.

    Interrupted, it goes on from its last checkpoint. With `held` examples the best adapter by their loss is kept.

    Raises:
        MissingExtra: peft is not installed.
        BadInput: no examples, one that cannot be read, or `out_dir` holds another fit.
        Cancelled, TimedOut: see `progress`.
    """
    training = training or Training()
    if not data:
        raise BadInput("There are `0` questions to learn from.", "Give some with their contexts.")
    rows = [row(tokenizer, one, n, training) for n, one in enumerate((*data, *held))]
    network, config = adaptable(model, training)
    claim(out_dir, [*data, *held], training=training)
    done = trained(network, training, out_dir, batch_of, rows[: len(data)], rows[len(data) :], label="chosen")
    _save(network, config, model, tokenizer, out_dir)
    return done


def adaptable(model: Any, training: Training) -> tuple[Network, dict[str, Any]]:
    """A copy of `model` under a new adapter that changes nothing yet, and the adapter's configuration.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtra("The package `peft` is not installed.", "Run `pip install 'triptych[train]'`.") from None
    config = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules=list(MATRICES))
    with quiet(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what it has renamed
        torch.manual_seed(training.seed)
        network = Network(get_peft_model(deepcopy(model), config))
    told = {"peft_type": "LORA", "r": training.rank, "lora_alpha": training.alpha, "target_modules": list(MATRICES)}
    return network, {**told, "bias": "none", "task_type": "FEATURE_EXTRACTION"}


def _save(network: Network, config: Mapping[str, Any], model: Any, tokenizer: Tokenizer, out_dir: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    base, adapter = out_dir / "base", out_dir / "adapter"
    if not (base / BASE[1]).is_file():
        with quiet():
            model.save_pretrained(base)
        tokenizer.save(str(base / BASE[1]))
    adapter.mkdir(exist_ok=True)
    learned = get_peft_model_state_dict(network.model)
    save_file({key: one.detach().float().cpu().contiguous() for key, one in learned.items()}, adapter / ADAPTER[1])
    (adapter / ADAPTER[0]).write_text(json.dumps(config, indent=1) + "\n", "utf-8")
