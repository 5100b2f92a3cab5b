"""How `triptych_pruner` learns: questions with one passage that answers them and others that do not.

Four losses, added: which words stay (cross-entropy per word piece), which sentence of all the question's passages holds
the answer (softmax over sentences), which passage (softmax over passages, and cross-entropy so that scores mean the
same in every list), and, where a teacher scored the sentences, its softmax over them. Word vectors stay as they are:
two thousand questions know a small part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from ...retrievers.fitting import LOG, Following, last_checkpoint
from .triptych_pruner import MAX_PIECES, QUERY_PIECES, special

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

DECAY = 0.85
"""Learning rate of a layer, as a share of the next one's."""
HEADS_RATE = 10.0
"""Learning rate of the heads, as a multiple of the top layer's."""
TEACHER = 0.3
"""Weight of the teacher's loss."""
ABSOLUTE = 0.5
"""Weight of the cross-entropy of a passage alone, next to the softmax over a question's passages."""
CHUNKS = 4
"""Sequences of one step are read in so many groups of like length."""


@dataclass(frozen=True)
class Example:
    """One passage with what is known about it.

    Attributes:
        levels: float32 (characters,), how much each character's word should stay, 0 to 1.
        sentences: int64 (characters,), which sentence a character belongs to, -1 for none.
        targets: float32 (sentences,), how much each sentence should stay; NaN throughout where nobody knows.
        teacher: float32 (sentences,), a teacher's scores as logits; NaN where there is none.
        positive: whether the passage answers the question.
    """

    query: str
    text: str
    levels: np.ndarray
    sentences: np.ndarray
    targets: np.ndarray
    teacher: np.ndarray
    positive: bool


class Network(nn.Module):
    """A BERT encoder with a head for word pieces and one for the passage.

    Args:
        bert: a transformers `BertModel` without pooler.
    """

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert
        self.keep = nn.Linear(bert.config.hidden_size, 1)
        self.relevance = nn.Linear(bert.config.hidden_size, 1)

    def read(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits: of word pieces (sequences, pieces), and of passages (sequences,). All inputs (sequences, pieces)."""
        states = self.bert(input_ids=ids, token_type_ids=kinds, attention_mask=mask).last_hidden_state
        return self.keep(states)[..., 0].float(), self.relevance(states[:, 0])[..., 0].float()

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The losses of a batch made by `Collator`, `loss` being their weighted sum."""
        pieces, passages = self.read_chunked(batch)
        told = _losses(pieces, passages, batch)
        told["loss"] = (
            told["words"]
            + told["sentences"]
            + told["passages"]
            + ABSOLUTE * told["absolute"]
            + TEACHER * told["teacher"]
        )
        return told

    def read_chunked(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of all sequences; those of like length are read together, without the padding of the longest."""
        ids, kinds, mask = batch["ids"], batch["kinds"], batch["mask"]
        lengths = mask.sum(1)
        order = lengths.argsort(descending=True, stable=True)
        pieces: list[Tensor] = []
        passages: list[Tensor] = []
        for rows in order.chunk(CHUNKS):
            longest = int(lengths[rows].max())
            found, scores = self.read(ids[rows, :longest], kinds[rows, :longest], mask[rows, :longest])
            pieces.append(functional.pad(found, (0, ids.shape[1] - longest)))
            passages.append(scores)
        back = order.argsort()
        return torch.cat(pieces)[back], torch.cat(passages)[back]


def _losses(pieces: Tensor, passages: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    known = batch["known"]
    words = functional.binary_cross_entropy_with_logits(pieces, batch["levels"], reduction="none")
    by_sentence = sentence_logits(pieces, batch["sentences"], len(batch["targets"]))
    of = batch["passage_of"]
    return {
        "words": (words * known).sum() / known.sum().clamp(min=1),
        "sentences": _listwise(by_sentence, batch["targets"], batch["question"][of]),
        "teacher": _listwise(by_sentence, batch["teacher"], batch["question"][of]),
        "passages": _listwise(passages, batch["positive"], batch["question"]),
        "absolute": functional.binary_cross_entropy_with_logits(passages, batch["positive"]),
    }


def sentence_logits(pieces: Tensor, sentences: Tensor, n: int) -> Tensor:
    """Mean logit of each sentence's word pieces, (n,).

    Args:
        pieces: logits (sequences, pieces).
        sentences: int64 of the same shape, the number of each piece's sentence in the batch, -1 for none.
    """
    inside = sentences >= 0
    zeros = pieces.new_zeros(n)
    total = zeros.index_add(0, sentences[inside], pieces[inside])
    count = zeros.index_add(0, sentences[inside], torch.ones_like(pieces[inside]))
    return total / count.clamp(min=1)


def _listwise(logits: Tensor, wanted: Tensor, question: Tensor) -> Tensor:
    """Mean cross-entropy between what is wanted, as a distribution for each question, and the softmax of logits.

    Questions for which nothing is wanted do not count.
    """
    n = int(question.max()) + 1
    own = question[None] == torch.arange(n, device=question.device)[:, None]
    share = torch.where(own, wanted.nan_to_num(0.0)[None], 0.0)
    total = share.sum(1, keepdim=True)
    told = torch.where(own, logits[None], -torch.inf).log_softmax(1).masked_fill(~own, 0.0)
    each = -(share / total.clamp(min=1e-6) * told).sum(1)
    counts = total[:, 0] > 0
    return each[counts].mean() if bool(counts.any()) else logits.sum() * 0.0


class Collator:
    """Makes a batch of questions, each a list of examples.

    Args:
        tokenizer: of the encoder, without truncation and padding.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._cls, self._sep = special(tokenizer, "[CLS]"), special(tokenizer, "[SEP]")

    def __call__(self, questions: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
        flat = [(n, example) for n, examples in enumerate(questions) for example in examples]
        queries = self.tokenizer.encode_batch([one.query for _, one in flat], add_special_tokens=False)
        texts = self.tokenizer.encode_batch([one.text for _, one in flat], add_special_tokens=False)
        rows: list[dict[str, np.ndarray]] = []
        targets: list[np.ndarray] = []
        teacher: list[np.ndarray] = []
        passage_of: list[int] = []
        first = 0
        for place, ((_, example), query, text) in enumerate(zip(flat, queries, texts, strict=True)):
            asked = [self._cls, *query.ids[:QUERY_PIECES], self._sep]
            room = MAX_PIECES - len(asked) - 1
            rows.append(_row(asked, text.ids[:room], self._sep, text.offsets[:room], example, first))
            targets.append(example.targets)
            teacher.append(_softened(example.teacher))
            passage_of += [place] * len(example.targets)
            first += len(example.targets)
        longest = max(len(row["ids"]) for row in rows)
        fill = {"sentences": -1}
        made = {
            key: torch.from_numpy(
                np.stack(
                    [np.pad(row[key], (0, longest - len(row[key])), constant_values=fill.get(key, 0)) for row in rows]
                )
            )
            for key in rows[0]
        }
        made["targets"] = torch.from_numpy(np.concatenate(targets).astype(np.float32))
        made["teacher"] = torch.from_numpy(np.concatenate(teacher).astype(np.float32))
        made["passage_of"] = torch.tensor(passage_of)
        made["question"] = torch.tensor([n for n, _ in flat])
        made["positive"] = torch.tensor([float(one.positive) for _, one in flat])
        return made


def _softened(teacher: np.ndarray) -> np.ndarray:
    """Unnormalised weights of the teacher's softmax; the batch divides them by their sum."""
    made: np.ndarray = np.exp(np.clip(teacher, -30, 30))
    return made


def _row(
    asked: list[int], ids: list[int], sep: int, offsets: list[tuple[int, int]], example: Example, first: int
) -> dict[str, np.ndarray]:
    """One sequence: ids, kinds (0 question, 1 passage), mask, and for each piece its level and its sentence."""
    before, middle = len(asked), [(start + end) // 2 if end - start > 1 else start for start, end in offsets]
    numbers = example.sentences[middle]
    is_known = not np.isnan(example.targets).any()
    return {
        "ids": np.array([*asked, *ids, sep], np.int64),
        "kinds": np.array([0] * before + [1] * (len(ids) + 1), np.int64),
        "mask": np.ones(before + len(ids) + 1, np.int64),
        "levels": np.concatenate([np.zeros(before), example.levels[middle], [0.0]]).astype(np.float32),
        "known": np.concatenate([np.zeros(before), np.full(len(ids), is_known), [0.0]]).astype(np.float32),
        "sentences": np.concatenate([np.full(before, -1), np.where(numbers < 0, -1, numbers + first), [-1]]).astype(
            np.int64
        ),
    }


class _PrunerTrainer(Trainer):  # type: ignore[misc]
    """Evaluates with a function of the network instead of a loss."""

    measure: Any = None

    def evaluate(self, *given: Any, **named: Any) -> dict[str, float]:
        self.model.eval()
        found = {f"eval_{key}": value for key, value in self.measure(self.model).items()}
        self.log(found)
        self.model.train()
        return found


def fit(
    network: Network,
    data: Any,
    out_dir: Path,
    collate: Collator,
    *,
    measure: Any = None,
    rate: float = 1.5e-4,
    questions: int = 8,
    seed: int = 0,
    every: int = 100,
    bf16: bool = False,
) -> Network:
    """Train `network` on `data` once, from the last checkpoint in `out_dir` if there is one.

    Args:
        data: a map-style dataset of questions (lists of `Example`); it holds every epoch, so that what is drawn anew
            for each is fixed by the seed.
        measure: `measure(network) -> {metric: value}`, asked every `every` steps; None for nothing.
        rate: learning rate of the top layer.
        questions: in one step.
        every: steps between checkpoints.
        bf16: compute in bfloat16 where that is faster.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(out_dir),
        num_train_epochs=1,
        per_device_train_batch_size=questions,
        learning_rate=rate,
        warmup_steps=max(1, len(data) // questions // 20),
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        logging_steps=20,
        eval_strategy="steps" if measure else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        label_names=["levels"],
    )
    trainer = _PrunerTrainer(
        model=network,
        args=arguments,
        data_collator=collate.__call__,  # the trainer would save the tokenizer of an object that has one
        train_dataset=data,
        eval_dataset=data if measure else None,
        callbacks=[Following(out_dir / LOG)],
        optimizers=(torch.optim.AdamW(list(_parameters(network, rate)), weight_decay=0.01), None),
    )
    trainer.measure = measure
    trainer.train(resume_from_checkpoint=last_checkpoint(out_dir))
    return network.eval()


def _parameters(network: Network, rate: float) -> Iterator[dict[str, Any]]:
    """Groups for the optimiser, each with its learning rate; word vectors are frozen."""
    network.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    layers = network.bert.encoder.layer
    for depth, layer in enumerate(layers):
        yield {"params": list(layer.parameters()), "lr": rate * DECAY ** (len(layers) - 1 - depth)}
    bottom = [one for one in network.bert.embeddings.parameters() if one.requires_grad]
    yield {"params": bottom, "lr": rate * DECAY ** len(layers)}
    yield {"params": [*network.keep.parameters(), *network.relevance.parameters()], "lr": rate * HEADS_RATE}
