"""ColBERT's network in torch: an encoder, a linear layer, unit length; MaxSim of batches, and the two losses.

Names of tensors are those of the published checkpoints: `bert.…` as in transformers' `BertModel`, and `linear.weight`.
Apart from `colbert`, so that who only lists systems imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import BadInput, Unsupported

IGNORED = ("bert.pooler.", "bert.embeddings.position_ids", "cls.")
"""What checkpoints hold besides, and token vectors never touch: the sentence head, a constant, pretraining's heads."""
ADDED = "linear.weight"


class Network(nn.Module):
    """Token vectors of unit length.

    Args:
        bert: a transformers `BertModel` without pooler.
        dim: of the vectors.
    """

    def __init__(self, bert: Any, dim: int) -> None:
        super().__init__()
        self.bert = bert
        self.linear = nn.Linear(bert.config.hidden_size, dim, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Float32 (texts, pieces, dim). `mask` says which pieces are attended to; vectors of all come back."""
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return functional.normalize(self.linear(states).float(), dim=-1)

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dim: int) -> Network:
        """From a published checkpoint.

        Args:
            config: transformers' of a BERT.
            tensors: by their published names; those of `IGNORED` are left out.

        Raises:
            Unsupported: no BERT, or a tensor is missing, unknown, or of another shape; says which.
        """
        network = blank(config, dim)
        wanted = network.state_dict()
        given = {name: values for name, values in tensors.items() if not name.startswith(IGNORED)}
        _same_names(wanted, given)
        for name, values in wanted.items():
            if values.shape != given[name].shape:
                raise Unsupported(
                    f"`{name}` has the shape `{tuple(given[name].shape)}` and not {tuple(values.shape)}.",
                    f"ColBERT's vectors have {dim} dimensions here; its `config.json` has to be the checkpoint's own.",
                )
        network.load_state_dict({name: values.float() for name, values in given.items()})
        return network.eval()

    @classmethod
    def over(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dim: int, seed: int) -> Network:
        """A BERT's own tensors (without or with `bert.`) under a linear layer that has learned nothing yet.

        It begins with orthogonal rows, which keep inner products better than drawn ones.

        Raises:
            Unsupported: as `of`.
        """
        named = {name if name.startswith("bert.") else f"bert.{name}": values for name, values in tensors.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rows = nn.init.orthogonal_(torch.empty(dim, int(config.get("hidden_size", dim))))
        known = {name: values for name, values in named.items() if not name.startswith("bert.cls.")}
        return cls.of(config, {**known, ADDED: rows}, dim)


def blank(config: Mapping[str, Any], dim: int) -> Network:
    """A network of this configuration with drawn weights.

    Raises:
        Unsupported: it is no BERT's.
    """
    from transformers import BertConfig, BertModel

    if config.get("model_type") != "bert":
        raise Unsupported(f"The model is a `{config.get('model_type')}`.", "Give the folder of a BERT.")
    try:
        return Network(BertModel(BertConfig(**config), add_pooling_layer=False), dim)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"`config.json` is no BERT's: {error}.", "Give the checkpoint's own.") from None


def _same_names(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        what = f"has no `{missing[0]}`" if missing else f"has `{unknown[0]}`, which ColBERT has not"
        raise Unsupported(f"The checkpoint {what}.", "Give one with the names of `colbert-ir/colbertv2.0`.")


def max_sim(queries: Tensor, documents: Tensor, kept: Tensor) -> Tensor:
    """MaxSim of every query with every document, (queries, documents). Eq. 3 of arXiv:2004.12832.

    Args:
        queries: (queries, q, dim).
        documents: (documents, t, dim).
        kept: bool (documents, t): which vectors a document has; the others are left out before the maximum.
    """
    products = torch.einsum("aqd,btd->abqt", queries, documents)
    return products.masked_fill(~kept[None, :, None], -torch.inf).amax(-1).sum(-1)


def own_scores(queries: Tensor, documents: Tensor, kept: Tensor) -> Tensor:
    """MaxSim of every query with its own documents: (queries, n) for documents (queries * n, t, dim)."""
    n = len(documents) // len(queries)
    own = documents.view(len(queries), n, *documents.shape[1:])
    products = torch.einsum("aqd,antd->anqt", queries, own)
    missing = ~kept.view(len(queries), n, -1)
    return products.masked_fill(missing[:, :, None], -torch.inf).amax(-1).sum(-1)


def pairwise(scores: Tensor) -> Tensor:
    """ColBERT v1: mean cross-entropy of (right, wrong) pairs, for scores (queries, n) with the right document first."""
    if scores.shape[1] < 2:
        raise BadInput("A query has `1` passage.", "Give a right one and at least one wrong one.")
    return functional.softplus(scores[:, 1:] - scores[:, :1]).mean()


def distillation(scores: Tensor, teacher: Tensor, alpha: float = 1.0) -> Tensor:
    """ColBERT v2: KL divergence from the teacher's distribution over a query's documents to ours, mean over queries.

    Sum of p (log p - log q) with p = softmax(alpha * teacher) and q = softmax(scores), both (queries, n).
    """
    return functional.kl_div(
        scores.log_softmax(1), (alpha * teacher).log_softmax(1), reduction="batchmean", log_target=True
    )


def in_batch(scores: Tensor, n: int) -> Tensor:
    """Mean cross-entropy of each query's right document among all documents of the batch.

    Args:
        scores: (queries, queries * n), the right document of query a at column a * n.
    """
    return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device) * n)
