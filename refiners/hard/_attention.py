"""Causal attention in bfloat16 on a processor, as products of matrices.

Torch's own kernel there multiplies blocks too small for the bfloat16 units: at 8,000 tokens it took 71 % of the time of
LLMLingua's `exact`. Here a block of queries meets all its keys in one product, and heads that share keys are one matrix.
Scores are rounded to bfloat16 before the softmax, whose sums are float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

BLOCK = 256
"""Queries of one product; with more, scores that the causal order hides are computed."""
_ATTENTION = torch.nn.functional.scaled_dot_product_attention


def quick_attention(model: Any) -> AbstractContextManager[Any]:
    """Inside, this thread's attention is computed in blocks, where `model` would gain by it."""
    gains = model.device.type == "cpu" and model.dtype == torch.bfloat16
    return BlockAttention() if gains else contextlib.nullcontext()


class BlockAttention(TorchFunctionMode):
    """Takes the place of `scaled_dot_product_attention` for one text under a plain causal mask; all else is torch's."""

    def __init__(self) -> None:
        super().__init__()
        self._masks: dict[int, tuple[Any, bool]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is _ATTENTION and self._causal(*args, **given):
            return blocks(*args[:3], scale=given.get("scale"))
        return func(*args, **given)

    def _causal(
        self,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> bool:
        """Whether each query sees all keys up to its own, the last query all."""
        queries, keys = query.shape[-2], key.shape[-2]
        if query.ndim != 4 or len(query) != 1 or dropout_p or query.requires_grad:
            return False
        if attn_mask is None:
            return queries == 1 or (is_causal and queries == keys)
        known, causal = self._masks.get(id(attn_mask), (None, False))
        if known is None:
            causal = plainly_causal(attn_mask, queries, keys)
            self._masks[id(attn_mask)] = attn_mask, causal
        return causal


def plainly_causal(mask: Any, queries: int, keys: int) -> bool:
    """Whether a mask (…, queries, keys), true where a key is seen, hides what comes later and nothing else."""
    if mask.dtype != torch.bool or mask.numel() != queries * keys or keys < queries:
        return False
    seen = mask.reshape(queries, keys)
    order = torch.ones(queries, queries, dtype=torch.bool, device=mask.device).tril()
    return bool(seen[:, : keys - queries].all()) and torch.equal(seen[:, keys - queries :], order)


def blocks(query: Any, key: Any, value: Any, scale: float | None = None, block: int = BLOCK) -> Any:
    """Attention of the last positions of a text to all up to each.

    Args:
        query: (1, heads, queries, width).
        key, value: (1, groups, keys, width); consecutive heads share a group.
        scale: of the scores; None for one over the root of the width.

    Returns:
        (1, heads, queries, width of the values).
    """
    _, heads, queries, width = query.shape
    groups, keys = key.shape[1:3]
    share, block = heads // groups, min(block, queries)
    scaled = query[0] * (width**-0.5 if scale is None else scale)
    found = query.new_empty(1, queries, heads, value.shape[-1]).transpose(1, 2)
    room = query.new_empty(share * block * keys)
    later = torch.ones(block, block, dtype=torch.bool, device=query.device).triu(1)
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        rows, seen = stop - start, keys - queries + stop
        for group in range(groups):
            of = slice(group * share, (group + 1) * share)
            scores = room[: share * rows * seen].view(share * rows, seen)
            torch.mm(scaled[of, start:stop].reshape(share * rows, width), key[0, group, :seen].t(), out=scores)
            last = scores.view(share, rows, seen)[..., seen - rows :]
            last.masked_fill_(later[:rows, :rows], float("-inf"))
            torch.softmax(scores, -1, out=scores)
            found[0, of, start:stop] = (scores @ value[0, group, :seen]).view(share, rows, -1)
    return found
