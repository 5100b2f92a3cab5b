"""Causal attention in bfloat16 on a processor, as products of matrices.

Torch's own kernel there is as slow in bfloat16 as in float32; at 8,000 tokens it took 70 % of the time of LLMLingua's
`exact`. Here a block of queries meets all its keys in one product, and heads that share keys are one matrix. Scores are
rounded to bfloat16 before the softmax, whose sums are float32.
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
        given = kwargs or {}
        return self._attend(*args, **given) if func is _ATTENTION else func(*args, **given)

    def _attend(
        self,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        one_text = query.ndim == 4 and len(query) == 1 and not dropout_p and not query.requires_grad
        if one_text and self._causal(query.shape[-2], key.shape[-2], attn_mask, is_causal):
            return blocks(query, key, value, scale)
        return _ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    def _causal(self, queries: int, keys: int, mask: Any, is_causal: bool) -> bool:
        """Whether each query sees all keys up to its own, the last query all."""
        if mask is None:
            return queries == 1 or (is_causal and queries == keys)
        known, causal = self._masks.get(id(mask), (None, False))
        if known is None:
            causal = plainly_causal(mask, queries, keys)
            self._masks[id(mask)] = mask, causal
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
    later = query.new_full((block, block), float("-inf")).triu(1)
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        rows, seen = stop - start, keys - queries + stop
        for group in range(groups):
            of = slice(group * share, (group + 1) * share)
            scores = room[: share * rows * seen].view(share * rows, seen)
            torch.mm(scaled[of, start:stop].reshape(share * rows, width), key[0, group, :seen].t(), out=scores)
            scores.view(share, rows, seen)[..., seen - rows :].add_(later[:rows, :rows])
            torch.softmax(scores, -1, out=scores)
            found[0, of, start:stop] = (scores @ value[0, group, :seen]).view(share, rows, -1)
    return found
