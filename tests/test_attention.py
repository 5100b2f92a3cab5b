"""Attention in blocks is that of a full softmax, however many queries, sequences and positions before them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.retrievers import attention
from triptych.retrievers.attention import NAME, causal_blocks, use_causal_blocks
from triptych.retrievers.lm_transformers import TransformersLM

BEGINNING = "A long instruction that every prompt of a call begins with. "
PROMPTS = [[f"{BEGINNING}{'word ' * n}"] for n in (1, 30, 12)] + [["alone"], ["x " * 150]]
TARGETS = [" yes", " no", " maybe so", " it", " y"]


def full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """In float64, every score at once."""
    groups, before = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    key, value = (one.double().repeat_interleave(groups, 1) for one in (key, value))
    scores = query.double() @ key.transpose(2, 3) / query.shape[3] ** 0.5
    later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1 + before)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@given(
    n=st.integers(1, 4),
    shared=st.integers(1, 3),
    groups=st.integers(1, 3),
    length=st.integers(1, 150),
    before=st.sampled_from([0, 1, 70, 600]),
)
@settings(max_examples=25, deadline=None)
def test_blocks_give_what_a_full_softmax_gives(n: int, shared: int, groups: int, length: int, before: int) -> None:
    draw = torch.Generator().manual_seed(length)
    query = torch.randn(n, shared * groups, length, 8, generator=draw)
    key, value = (torch.randn(n, shared, before + length, 8, generator=draw) for _ in range(2))
    assert torch.allclose(causal_blocks(query, key, value).double(), full(query, key, value), atol=1e-5)
    halves = [one.bfloat16() for one in (query, key, value)]
    found = causal_blocks(halves[0], halves[1], halves[2])
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), full(*halves), atol=0.05)


def test_few_sequences_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(5, 2, 90, 8) for _ in range(3))
    whole = causal_blocks(query, key, value)
    monkeypatch.setattr(attention, "SCORES", 1)
    assert torch.allclose(causal_blocks(query, key, value), whole, atol=1e-6)


def in_bfloat16() -> TransformersLM:
    lm = TransformersLM.tiny(0)
    lm.model.to(torch.bfloat16)
    return lm


def test_a_model_attends_in_blocks_with_the_same_scores() -> None:
    stock, own, wide = in_bfloat16(), in_bfloat16(), TransformersLM.tiny(0)
    use_causal_blocks(own.model)
    assert (stock.model.config._attn_implementation, own.model.config._attn_implementation) == ("sdpa", NAME)
    wanted = [one.mean for one in wide.logprobs(PROMPTS, TARGETS)]
    for lm in (stock, own):
        assert [one.mean for one in lm.logprobs(PROMPTS, TARGETS)] == pytest.approx(wanted, abs=0.02)


def test_padding_goes_to_the_attention_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, own = in_bfloat16(), in_bfloat16()
    use_causal_blocks(own.model)
    blocks: list[int] = []

    def counted(*given: Any) -> Any:
        blocks.append(1)
        return causal_blocks(*given)

    monkeypatch.setattr(attention, "causal_blocks", counted)
    ids, seen = own._padded([[5, 6, 7], [8] * 40], 0)
    for named in ({"attention_mask": seen}, {"position_ids": torch.arange(40).remainder(20)[None]}):
        found, wanted = (lm.model(input_ids=ids, use_cache=False, **named).logits[:, -1] for lm in (own, stock))
        assert torch.equal(found, wanted)
    assert not blocks
    own.model(input_ids=ids)
    assert len(blocks) == own.model.config.num_hidden_layers


def test_generation_is_the_same() -> None:
    stock, own = in_bfloat16(), in_bfloat16()
    use_causal_blocks(own.model)
    assert own.generate([["abc"], ["a longer prompt"]], 5) == stock.generate([["abc"], ["a longer prompt"]], 5)


def test_other_number_formats_keep_the_attention_of_torch() -> None:
    lm = TransformersLM.tiny(0)
    use_causal_blocks(lm.model)
    assert lm.model.config._attn_implementation == "sdpa"
