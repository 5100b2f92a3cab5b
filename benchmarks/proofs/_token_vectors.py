"""What the proof of `colbert` stands on: states of a frozen encoder, read once, and what arms make of them.

Every arm has the same encoder and the same states; its linear layer is what it learned. So passages are read once, and
an arm is a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from triptych.progress import step
from triptych.retrievers.loading import batches, dtype
from triptych.retrievers.text._late_interaction import Network
from triptych.retrievers.text._plaid import max_sims
from triptych.retrievers.text.colbert import BATCH_PIECES, ColBERT

AT_ONCE = 100_000
"""States in one product."""


class Mean(Network):
    """The single-vector twin: the mean of the attended states through the linear layer, in every piece's place.

    MaxSim of two texts is then their cosine times the query's pieces, so losses and sizes stay as they are.
    """

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1)
        one = functional.normalize(self.linear(mean).float(), dim=-1)
        return one[:, None].expand(-1, ids.shape[1], -1)


class Remembered(nn.Module):
    """A frozen encoder that reads every sequence once, without dropout. Copies are the same one.

    Args:
        bert: a transformers `BertModel`.
    """

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert.eval().requires_grad_(False)
        self.config = bert.config
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __deepcopy__(self, memo: Any) -> Remembered:
        return self

    def train(self, mode: bool = True) -> Remembered:
        return self

    @property
    def encoder(self) -> Any:
        return self.bert.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Float32 states (sequences, pieces, hidden), 0 where a sequence is padded."""
        keys = [tuple(row[row != self.config.pad_token_id].tolist()) for row in input_ids]
        new = [n for n, key in enumerate(keys) if key not in self._known]
        if new:
            with torch.no_grad():
                states = self.bert(input_ids=input_ids[new], attention_mask=attention_mask[new]).last_hidden_state
            self._known |= {keys[n]: one[: len(keys[n])].half() for n, one in zip(new, states, strict=True)}
        found = torch.zeros((*input_ids.shape, self.config.hidden_size), device=input_ids.device)
        for row, key in enumerate(keys):
            found[row, : len(key)] = self._known[key].to(found)
        return SimpleNamespace(last_hidden_state=found)


@dataclass(frozen=True)
class States:
    """Last hidden states of texts, text after text.

    Attributes:
        rows: float16 (pieces, hidden): of the pieces whose vectors ColBERT keeps.
        lengths: int64 (texts,): how many each text has; none has 0.
        means: float32 (texts, hidden): of the pieces that are attended to.
    """

    rows: np.ndarray
    lengths: np.ndarray
    means: np.ndarray

    @classmethod
    def read(cls, colbert: ColBERT, texts: Sequence[str], side: Any) -> States:
        """Of each text, in the order of `texts`."""
        bert, sequences = colbert.network.bert, colbert.sequences(texts, side)
        found: list[np.ndarray] = [np.empty(0)] * len(texts)
        means = np.empty((len(texts), bert.config.hidden_size), np.float32)
        done, brief = 0, dtype("auto") == torch.bfloat16
        for rows in batches([len(ids) for ids in sequences], BATCH_PIECES):
            step(done, len(texts), "texts read")
            ids, mask, kept = colbert.padded([sequences[row] for row in rows], side)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=brief):
                output = bert(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            states = output.last_hidden_state.float().numpy()
            means[rows] = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            for row, one, which in zip(rows, states, kept, strict=True):
                found[row] = one[which].astype(np.float16)
            done += len(rows)
        return cls(np.concatenate(found), np.array([len(one) for one in found], np.int64), means)

    def vectors(self, linear: np.ndarray) -> np.ndarray:
        """Float32 (pieces, dim): ColBERT's, of unit length, with a linear layer (dim, hidden)."""
        parts = [self.rows[n : n + AT_ONCE].astype(np.float32) @ linear.T for n in range(0, len(self.rows), AT_ONCE)]
        return np.concatenate([_unit(part) for part in parts])

    def single(self, linear: np.ndarray) -> np.ndarray:
        """Float32 (texts, dim): of the single-vector twin."""
        return _unit(self.means @ linear.T)


def token_scores(query: np.ndarray, vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """MaxSim of one query (q, dim) with every passage, (passages,)."""
    return max_sims(vectors @ query.T, np.cumsum(lengths) - lengths)


def best(scores: np.ndarray, k: int) -> list[int]:
    """The numbers of the `k` highest, best first, ties by number."""
    return [int(n) for n in np.lexsort((np.arange(len(scores)), -scores))[:k]]


def _unit(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found
