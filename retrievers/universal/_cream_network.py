"""CREAM's reader as a network (section 4): pages become a visual prefix of a language model tuned in few places.

`Pages`: the states of a frozen page encoder and a learned vector for each page number; a weighted sum over the pages;
learned visual queries beside it through blocks of a vision transformer; an MLP. `Gated`: the prefix, a learned one for
each layer plus what the pages said, is attended to beside the text, and what is found there counts as much as a gate
that begins at zero lets through (LLaMA-Adapter, arXiv:2303.16199). `Tuned`: a frozen linear layer with a bias and a
scale that learn, from 0 and 1 (LLaMA-Adapter V2, arXiv:2304.15010), and where it is asked for a low-rank addition.

So the network begins as the language model it is made of, to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Shape:
    """Sizes of what learns; those of the paper, and `blocks`, `heads` and `alpha`, which it does not name, ours.

    Attributes:
        prefix: prompts that are attended to; layers: in so many of the last layers.
        rank, alpha: of the low-rank additions to the projections of queries and values.
        blocks, heads: of the vision transformer that reads the sum over the pages.
        pages: most that are read at once.
    """

    prefix: int = 65
    layers: int = 30
    rank: int = 8
    alpha: int = 16
    blocks: int = 8
    heads: int = 8
    pages: int = 3


class Tuned(nn.Module):
    """y = scale · (W x + bias) + alpha / rank · B A x, of a linear layer whose W (and own bias) stay as they are.

    Args:
        rank: of B A; 0 for none.
    """

    def __init__(self, linear: nn.Linear, rank: int = 0, alpha: int = 0) -> None:
        super().__init__()
        self.linear = linear
        self.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=linear.weight.dtype))
        self.scale = nn.Parameter(torch.ones(linear.out_features, dtype=linear.weight.dtype))
        self.share = alpha / rank if rank else 0.0
        if rank:
            self.down = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) / rank)
            self.up = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, given: Tensor) -> Tensor:
        made: Tensor = self.scale * (self.linear(given) + self.bias)
        return made + self.share * (given @ self.down.T @ self.up.T) if self.share else made

    def added(self, given: Tensor) -> Tensor:
        """What `given` adds to the output when it is added to the input; of one without low-rank addition."""
        return self.scale * functional.linear(given, self.linear.weight)


class Gated(nn.Module):
    """An attention of the language model that also looks at the prompts of its layer.

    Args:
        place: of the layer among those that have prompts.
    """

    def __init__(self, attention: Any, place: int) -> None:
        super().__init__()
        self.inner = attention
        self.place = place
        heads = int(attention.config.num_attention_heads)
        self.gate = nn.Parameter(torch.zeros(heads, dtype=attention.q_proj.bias.dtype))

    def forward(self, hidden_states: Tensor, position_embeddings: Any, prompts: Tensor, **rest: Any) -> Any:
        """As the attention inside, with `prompts` (texts, layers, prefix, size) beside the text."""
        out, weights = self.inner(hidden_states=hidden_states, position_embeddings=position_embeddings, **rest)
        found = self._found(hidden_states, position_embeddings, prompts[:, self.place])
        return out + self.inner.o_proj.added(found), weights

    def _found(self, states: Tensor, places: Any, prompts: Tensor) -> Tensor:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        queries, keys, values = (
            project(given).unflatten(-1, (-1, self.inner.head_dim)).transpose(1, 2)
            for project, given in (
                (self.inner.q_proj, states),
                (self.inner.k_proj, prompts),
                (self.inner.v_proj, prompts),
            )
        )
        queries, _ = apply_rotary_pos_emb(queries, queries, *places)  # prompts stand nowhere: their keys are not turned
        keys, values = (one.repeat_interleave(self.inner.num_key_value_groups, dim=1) for one in (keys, values))
        chances = (queries @ keys.transpose(2, 3) * self.inner.scaling).float().softmax(dim=-1).to(values.dtype)
        found: Tensor = self.gate.tanh()[:, None, None] * (chances @ values)
        return found.transpose(1, 2).flatten(2)


class Pages(nn.Module):
    """From the states of pages to one visual prefix.

    Args:
        width: of the page encoder's states; size: of the language model's.
    """

    def __init__(self, width: int, size: int, shape: Shape) -> None:
        super().__init__()
        self.number = nn.Embedding(shape.pages, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.queries = nn.Parameter(torch.randn(shape.prefix, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, shape.heads, 4 * width, 0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(shape.blocks)
        )
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size), nn.GELU(), nn.Linear(size, size))

    def weights(self, states: Tensor, mask: Tensor) -> Tensor:
        """How much each page counts, (texts, pages), 1 in all; by its mean state. A page that is not there counts 0.

        Args:
            states: (texts, pages, patches, width), page numbers added; mask: (texts, pages, patches), at least one
                page of each text with patches.
        """
        whole = mask.sum(dim=2, keepdim=True)
        means = (states * mask[..., None]).sum(dim=2) / whole.clamp(min=1)
        scores: Tensor = self.score(means)[..., 0].float()
        return scores.masked_fill(whole[..., 0] == 0, -torch.inf).softmax(dim=-1).to(states.dtype)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """The visual prefix (texts, prefix, size)."""
        told = states + self.number.weight[: states.shape[1], None]
        kept = told * mask[..., None]
        pooled = (self.weights(told, mask)[..., None, None] * kept).sum(dim=1)
        read = torch.cat([self.queries.expand(len(states), -1, -1), pooled], dim=1)
        hidden = torch.cat([mask.new_zeros(len(states), len(self.queries)), mask.sum(dim=1) == 0], dim=1).bool()
        for block in self.blocks:
            read = block(read, src_key_padding_mask=hidden)
        made: Tensor = self.mlp(read[:, : len(self.queries)])
        return made


class CreamNetwork(nn.Module):
    """The whole of it. Only what `trainable` names learns.

    Args:
        lm: transformers' `LlamaForCausalLM`, which is changed.
        encoder: transformers' `Pix2StructVisionModel`.

    Raises:
        BadInput: a language model of another architecture, or with fewer layers than prompts go into.
    """

    def __init__(self, lm: Any, encoder: Any, shape: Shape) -> None:
        super().__init__()
        if lm.config.model_type != "llama":
            raise BadInput(f"The language model is a `{lm.config.model_type}`.", "Give one of type llama.")
        layers = lm.model.layers
        if not 0 < shape.layers <= len(layers):
            raise BadInput(f"`{shape.layers}` layers shall have prompts.", f"The model has {len(layers)} layers.")
        self.shape = shape
        self.encoder, self.lm = encoder.requires_grad_(False), lm.requires_grad_(False)
        size = int(lm.config.hidden_size)
        self.pages = Pages(int(encoder.config.hidden_size), size, shape).to(lm.dtype)
        self.prompts = nn.Parameter(torch.randn(shape.layers, shape.prefix, size, dtype=lm.dtype) * 0.02)
        for number, layer in enumerate(layers):
            for part, name, linear in _linears(layer):
                rank = shape.rank if name in ("q_proj", "v_proj") else 0
                setattr(part, name, Tuned(linear, rank, shape.alpha))
            if number >= len(layers) - shape.layers:
                layer.self_attn = Gated(layer.self_attn, number - len(layers) + shape.layers)
        for name, module in lm.named_modules():
            if name.endswith("norm"):
                module.requires_grad_(True)

    def trainable(self) -> dict[str, Tensor]:
        """What learns, by its name."""
        return {name: one for name, one in self.named_parameters() if one.requires_grad}

    def train(self, mode: bool = True) -> CreamNetwork:
        """As ever, but the page encoder stays as it is."""
        super().train(mode)
        self.encoder.eval()
        return self

    def seen(self, patches: Tensor, mask: Tensor) -> Tensor:
        """The prompts of every layer, (texts, layers, prefix, size), for pages.

        Args:
            patches: Pix2Struct's, (texts, pages, patches, 2 + numbers of a patch); mask: (texts, pages, patches).
        """
        shape = patches.shape[:2]
        with torch.no_grad():
            states = self.encoder(patches.flatten(0, 1), attention_mask=_some(mask.flatten(0, 1))).last_hidden_state
        told = self.pages(states.unflatten(0, shape).to(self.prompts.dtype), mask.to(self.prompts.dtype))
        made: Tensor = self.prompts[None] + told[:, None]
        return made

    def forward(
        self, ids: Tensor, attention: Tensor, labels: Tensor, patches: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """The mean cross-entropy of the tokens of `labels` that are not -100; ids (texts, tokens), padded right."""
        made = self.lm(input_ids=ids, attention_mask=attention, use_cache=False, prompts=self.seen(patches, mask))
        wanted = labels[:, 1:].flatten()
        return {"loss": functional.cross_entropy(made.logits[:, :-1].flatten(0, 1).float(), wanted)}


def _some(mask: Tensor) -> Tensor:
    """`mask` with one patch where there is none: softmax over nothing is not a number."""
    first = torch.zeros_like(mask)
    first[:, 0] = 1
    return torch.where(mask.sum(dim=1, keepdim=True) > 0, mask, first)


def _linears(layer: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    found = [(part, name, one) for part in layer.modules() for name, one in part.named_children()]
    return ((part, name, one) for part, name, one in found if isinstance(one, nn.Linear))
