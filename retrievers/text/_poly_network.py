"""The network of `poly_encoder`: two BERT encoders and the codes; its folder on disk; texts as word pieces."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from ...errors import BadInput
from ..loading import CONFIG, TOKENIZER, dtype
from ..towers import WEIGHTS, framing, padded, read_config, read_tokenizer, read_weights, seeded
from ._poly_shape import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

SHAPE = "poly_encoder"
"""The part of `config.json` that holds the shape."""
_BERT = {"bert.": ""}
_SPARE = ("pooler.", "position_ids", "cls.")
"""What folders of a BERT hold and no token state needs."""


class PolyNetwork(nn.Module):
    """Two encoders that begin as the same BERT and learn apart, and m codes.

    Attributes:
        codes: (m, dim); None where a query is not read by codes.
    """

    def __init__(self, shape: Shape, bert: BertConfig) -> None:
        super().__init__()
        longest = max(shape.query_pieces, shape.passage_pieces)
        if longest > bert.max_position_embeddings:
            raise BadInput(f"`{longest}` word pieces are asked for.", f"It reads {bert.max_position_embeddings}.")
        self.shape = shape
        self.config = bert
        self.context = BertModel(bert, add_pooling_layer=False)
        self.candidate = BertModel(bert, add_pooling_layer=False)
        self.codes: nn.Parameter | None = None
        if shape.variant == "codes":
            # As small as this, each begins near the mean of the token states: what a bi-encoder gives.
            self.codes = nn.Parameter(torch.randn(shape.m, bert.hidden_size) * bert.hidden_size**-0.5)

    @classmethod
    def started(cls, folder: Path, shape: Shape, seed: int) -> PolyNetwork:
        """Both encoders with the weights of a BERT in `folder`, codes drawn with `seed`; float32.

        Raises:
            MissingWeights: there is no `config.json` or `model.safetensors`.
            BadInput: it is no BERT, or a tensor is missing, unknown or of another shape.
        """
        bert = BertConfig(**read_config(folder, "bert"))
        made: PolyNetwork = seeded(seed, lambda: cls(shape, bert))
        read_weights(made.context, folder / WEIGHTS, _BERT, _SPARE)
        made.candidate.load_state_dict(made.context.state_dict())
        return made

    def contexts(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Context vectors (batch, m, dim), and which of them there are (batch, m): a short query has fewer firsts."""
        states = self._states(self.context, ids, mask)
        if self.shape.variant == "first":
            return states[:, : self.shape.m], mask[:, : self.shape.m].bool()
        if self.codes is None:
            made = _mean(states, mask)[:, None]
        else:
            logits = self._scaled(torch.einsum("md,bnd->bmn", self.codes.float(), states))
            made = logits.masked_fill(~mask.bool()[:, None], -torch.inf).softmax(-1) @ states
        return made, torch.ones(made.shape[:2], dtype=torch.bool, device=made.device)

    def candidates(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Candidate vectors (batch, dim)."""
        states = self._states(self.candidate, ids, mask)
        return states[:, 0] if self.shape.candidate == "first" else _mean(states, mask)

    def scores(self, contexts: Tensor, there: Tensor, candidates: Tensor) -> Tensor:
        """(queries, candidates): as `poly_encoder.poly_scores`, for queries in a batch."""
        each = torch.einsum("bmd,cd->bcm", contexts, candidates)
        chosen = self._scaled(each).masked_fill(~there[:, None], -torch.inf).softmax(-1)
        return (chosen * each).sum(-1)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over the candidates of the batch, a query's own being right.

        Args:
            batch: `ids` and `mask` of queries; `vectors` of candidates, or their `candidate_ids` and `candidate_mask`;
                `right`: bool (batch, batch), candidates that answer a query, of which only its own counts.
        """
        if "vectors" in batch:
            candidates = batch["vectors"]
        else:
            candidates = self.candidates(batch["candidate_ids"], batch["candidate_mask"])
        scores = self.scores(*self.contexts(batch["ids"], batch["mask"]), candidates)
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(batch["right"] & ~own, -torch.inf)
        return {"loss": nn.functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))}

    def _states(self, encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states.float() * self.shape.scaling

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits / self.shape.temperature(self.config.hidden_size)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


class Pieces:
    """Texts as padded batches of word pieces, of queries and of passages; what is beyond the shape's lengths is cut.

    Raises:
        BadInput: the tokenizer has no marks of a BERT.
    """

    def __init__(self, tokenizer: Tokenizer, shape: Shape) -> None:
        self.tokenizer = tokenizer
        self.queries, self._pad = framing(tokenizer, "bert", shape.query_pieces)
        self.passages, _ = framing(tokenizer, "bert", shape.passage_pieces)

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 (texts, longest)."""
        return padded(rows, self._pad)


def write(folder: Path, network: PolyNetwork, tokenizer: Tokenizer) -> None:
    """Write what `read` takes back into `folder`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: values.detach().cpu().contiguous() for name, values in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    tokenizer.save(str(folder / TOKENIZER))
    told = {**network.config.to_dict(), SHAPE: asdict(network.shape)}
    (folder / CONFIG).write_text(json.dumps(told, indent=1, default=str) + "\n", "utf-8")


def read(folder: Path, precision: str | None = "auto", device: str = "cpu") -> tuple[PolyNetwork, Tokenizer]:
    """The network in evaluation mode and its tokenizer, from a folder that `write` wrote.

    Args:
        precision: see `loading.dtype`; None for float32.

    Raises:
        MissingWeights: a file is not there.
        BadInput: a model of another kind; a tensor that is missing, unknown or of another shape.
    """
    config = read_config(folder, "bert")
    shape = config.pop(SHAPE, None)
    if not isinstance(shape, dict):
        raise BadInput(f"`{folder.name}` holds no poly-encoder.", "Make it with `PolyEncoder.fit`.")
    try:
        network = PolyNetwork(Shape(**shape), BertConfig(**config))
    except TypeError as error:
        raise BadInput(f"`{folder.name}` holds no poly-encoder: {error}.", "Make it with `PolyEncoder.fit`.") from None
    read_weights(network, folder / WEIGHTS, {})
    wanted = torch.float32 if precision is None else dtype(precision, device)
    return network.to(device, wanted).eval(), read_tokenizer(folder, "bert")
