"""Causal attention in bfloat16 on processors, for models of the transformers library.

Torch's own multiplies small blocks there at a fifth of the speed that matrix products have. This one asks for larger
ones: a block of queries of a few sequences at a time, with no more keys than they see, so that scores stay in the
processor's cache. Scores are rounded to bfloat16; the sums of their softmax are float32. Whatever is not plainly causal
(padding, windows, caps, sinks) goes to torch's.
"""

from __future__ import annotations

from typing import Any

NAME = "triptych_causal"
"""Under which transformers knows it, for masks as well."""
QUERIES = 64
"""Of one block."""
SCORES = 2**19
"""Of one block, where a single sequence does not have more: in float32 twice what the second cache holds."""
LONG = 512
"""Keys; with more, torch is several times as fast at a softmax that stays in bfloat16, with fewer not as fast."""
PLAIN = frozenset({"dropout", "scaling", "is_causal", "position_ids", "use_cache", "cache_position"})
"""What a plain model tells its attention; anything else has to be None."""


def use_causal_blocks(model: Any) -> None:
    """Have `model` attend with `attend`, if it computes in bfloat16 on a processor and takes attention from outside."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or not model._supports_attention_backend:
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    model.set_attn_implementation(NAME)


def mask(*given: Any, **named: Any) -> Any:
    """None where queries see all that stands before them, and no more; else as torch's attention needs it."""
    from transformers.masking_utils import sdpa_mask

    plain = not given and named.get("attention_mask") is None and named.get("local_size") is None
    return None if plain and named.get("allow_is_causal_skip", True) else sdpa_mask(*given, **named)


def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **named: Any) -> tuple[Any, None]:
    """The attention of one layer, as transformers asks for it.

    Args:
        query: (batch, heads, queries, width), the last of the positions that keys and values stand for.
        key, value: (batch, shared heads, positions, width).

    Returns:
        (batch, queries, heads, width).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asked = {name for name, told in named.items() if told is not None} - PLAIN
    causal = getattr(module, "is_causal", True) and named.get("is_causal") is not False
    if attention_mask is None and query.shape[2] > 1 and causal and not asked and not module.training:
        return causal_blocks(query, key, value, named.get("scaling")), None
    found: tuple[Any, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    return found


def causal_blocks(query: Any, key: Any, value: Any, scaling: float | None = None) -> Any:
    """Arguments and what is returned as in `attend`; `scaling` is 1 / sqrt(width) by default."""
    import torch

    n, heads, length, width = query.shape
    seen = key.shape[2]
    query = query * (width**-0.5 if scaling is None else scaling)
    found = query.new_empty(n, length, heads, value.shape[3])
    later = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1)
    at_once = max(1, SCORES // (heads * min(QUERIES, length) * seen))
    for row in range(0, n, at_once):
        rows = slice(row, row + at_once)
        keys, values = key[rows].flatten(0, 1).transpose(1, 2), value[rows].flatten(0, 1)
        for start in range(0, length, QUERIES):
            block = slice(start, start + QUERIES)
            asked = query[rows, :, block]
            size, end = asked.shape[2], seen - length + start + asked.shape[2]
            scores = torch.bmm(asked.reshape(len(keys), -1, width), keys[..., :end]).view(-1, size, end)
            scores[..., end - size :].masked_fill_(later[:size, :size], -torch.inf)
            shares = scores.softmax(-1, dtype=None if end > LONG else torch.float32).to(query.dtype)
            mixed = torch.bmm(shares.view(len(keys), -1, end), values[:, :end])
            found[rows, block] = mixed.view(*asked.shape[:3], -1).transpose(1, 2)
    return found
