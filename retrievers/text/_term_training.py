"""How term weights are learned: mean squared error to the share of a passage's queries that hold the term.

Dai & Callan 2019, arXiv:1910.10687. What is taken for a passage's queries makes the difference between
supervised and weak labels (Dai & Callan 2020, doi:10.1145/3366423.3380258): questions it answers, titles of and links
to its document, or queries that a first stage finds it for. On transformers' Trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import BadInput
from ..fitting import Course, claim, trained
from ._term_weights import Chunk, TermWeights, chunks
from .analysis import terms

if TYPE_CHECKING:
    from pathlib import Path

LIKE = 32
"""Batches are padded to a multiple of so many word pieces."""


@dataclass(frozen=True)
class Example:
    """A passage and what its terms should weigh: 0 to 1, terms that are not named 0."""

    text: str
    targets: Mapping[str, float]


@dataclass(frozen=True)
class Training(Course):
    """How to learn; epochs, batch and rate are the authors' for MS MARCO."""

    epochs: float = 3.0
    batch: int = 16
    rate: float = 2e-5
    every: int = 100
    patience: int = 3


def examples(pairs: Iterable[tuple[str, str]]) -> list[Example]:
    """One example for each passage, from (query, passage) pairs: query term recall.

    A passage given with several queries has the share of them that hold a term; a query twice counts twice.
    """
    asked: dict[str, list[str]] = {}
    for query, passage in pairs:
        asked.setdefault(passage, []).append(query)
    return [Example(passage, recall(queries)) for passage, queries in asked.items()]


def recall(queries: Sequence[str]) -> dict[str, float]:
    """Term → the share of `queries` that hold it. Queries or whatever stands for them: titles, anchor texts.

    >>> recall(["warm water", "the waters"]) == {"warm": 0.5, "water": 1.0}
    True
    """
    held = [set(terms(query, "query")) for query in queries]
    return {term: sum(term in one for one in held) / len(held) for term in sorted(set().union(*held))}


def fitted(
    data: Sequence[tuple[str, str]] | Sequence[Example],
    out_dir: Path,
    start: Path,
    training: Training | None = None,
    held: Sequence[tuple[str, str]] | Sequence[Example] = (),
) -> TermWeights:
    """The encoder in `start` under a new head, trained by `fit`.

    Args:
        data, held: examples, or (query, passage) pairs.
    """
    training = training or Training()
    weigher = TermWeights.untrained(start, training.seed)
    fit(weigher, _known(data), out_dir, training, _known(held))
    return weigher


def _known(data: Sequence[tuple[str, str]] | Sequence[Example]) -> list[Example]:
    told = [one for one in data if isinstance(one, Example)]
    return told + examples(one for one in data if not isinstance(one, Example))


def fit(
    weigher: TermWeights,
    data: Sequence[Example],
    out_dir: Path,
    training: Training | None = None,
    held: Sequence[Example] = (),
) -> None:
    """Train `weigher` and write it into `out_dir`, for `TermWeights.from_folder`.

    Interrupted, it goes on from its last checkpoint. With `held` examples the best model by their error is kept, and
    it stops when that no longer falls.

    Raises:
        BadInput: no examples, or `out_dir` holds another fit.
        Cancelled, TimedOut: see `progress`.
    """
    training = training or Training()
    if not data:
        raise BadInput("There are `0` passages to learn from.", "Give pairs of query and passage.")
    claim(out_dir, [*data, *held], "another fit", training=training)
    trained(
        _Regression(weigher.model),
        training,
        out_dir,
        lambda batch: _batch(batch, weigher.pad, weigher.longest),
        [row for example in data for row in _rows(weigher, example)],
        [row for example in held for row in _rows(weigher, example)],
        label="targets",
    )
    weigher.save(out_dir)


def word_targets(parts: Sequence[Chunk], targets: Mapping[str, float], pieces: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and mask, float32 (pieces,): both 0 but at the first piece of words that the index has terms of."""
    wanted, mask = np.zeros(pieces, np.float32), np.zeros(pieces, np.float32)
    for words, joined in parts:
        together = max((targets.get(term, 0.0) for term in joined), default=0.0)
        for place, own in words:
            if own:
                wanted[place] = max(together, *(targets.get(term, 0.0) for term in own))
                mask[place] = 1.0
    return wanted, mask


def error(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error where `mask` is 1; all (passages, pieces). 0 where nothing is."""
    squared: Tensor = (values - targets) ** 2 * mask
    return squared.sum() / mask.sum().clamp(min=1.0)


class _Regression(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, attention: Tensor, targets: Tensor, mask: Tensor) -> dict[str, Tensor]:
        values = self.model(input_ids=ids, attention_mask=attention).logits[..., 0]
        return {"loss": error(values.float(), targets, mask)}


def _rows(weigher: TermWeights, example: Example) -> list[dict[str, np.ndarray]]:
    """One row for each window of the passage that has a word with terms."""
    [encoding] = weigher.encode([example.text])
    targets, mask = word_targets(chunks(example.text, encoding), example.targets, len(encoding.ids))
    made = []
    for start, end in weigher.windows(len(encoding.ids)):
        if mask[start:end].any():
            ids = np.array([weigher.cls, *encoding.ids[start:end], weigher.sep], np.int64)
            made.append({"ids": ids, "targets": np.pad(targets[start:end], 1), "mask": np.pad(mask[start:end], 1)})
    return made


def _batch(rows: Sequence[Mapping[str, np.ndarray]], pad: int, most: int) -> dict[str, Tensor]:
    """Rows of a length that many batches share: a processor prepares itself for each anew, and keeps what it made."""
    longest = min(-(-max(len(row["ids"]) for row in rows) // LIKE) * LIKE, most)

    def padded(name: str, fill: int) -> Tensor:
        given = [np.pad(row[name], (0, longest - len(row[name])), constant_values=fill) for row in rows]
        return torch.from_numpy(np.stack(given))

    attention = [np.arange(longest) < len(row["ids"]) for row in rows]
    made = {"ids": padded("ids", pad), "targets": padded("targets", 0), "mask": padded("mask", 0)}
    return {**made, "attention": torch.from_numpy(np.stack(attention).astype(np.int64))}
