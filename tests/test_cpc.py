"""CPC: every token sees both ways, sentences are pooled in context, an adapter's tensors find their place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.progress import reporting
from triptych.refiners.base import Budget
from triptych.refiners.hard.cpc import CPC, balanced, cosines, merge, pooled
from triptych.retrievers.base import Hit, Item, Query, Source

SENTENCES = [
    "Marta Olsen founded a bakery in Bergen.",
    "It burned down in 1987.",
    "Per Lund ran a cinema in Oslo.",
    "It opened in 1931.",
    "Trains cross the fjord twice a day.",
]
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "modules_to_save": None}


@pytest.fixture
def tiny() -> CPC:
    return CPC.tiny()


def hits(*texts: str) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source(f"notes/{n}.md")), 1.0 - n / 10) for n, text in enumerate(texts)]


def adapter(prefix: str, rank: int = 4) -> dict[str, torch.Tensor]:
    """An adapter of one layer of the tiny model, named as `peft` saves it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (32, 64), "mlp.down_proj": (64, 128)}
    made = {}
    for name, (out, width) in shapes.items():
        made[f"{prefix}layers.0.{name}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        made[f"{prefix}layers.0.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return made


# the encoder


def test_every_token_sees_the_ones_behind_it(tiny: CPC) -> None:
    ids = tiny.tokenizer.encode("It opened in 1931.", add_special_tokens=False).ids
    before, after = tiny.states(ids), tiny.states([*ids[:-1], ids[-1] + 1])
    assert not np.allclose(before[0], after[0], atol=1e-5)
    with torch.inference_mode():
        causal = tiny.model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        mask = torch.zeros(1, 1, len(ids), len(ids))
        open_both_ways = tiny.model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0].numpy()
    assert not np.allclose(before[0], causal[0], atol=1e-5)
    np.testing.assert_allclose(before, open_both_ways, atol=1e-5)
    assert tiny.states([]).shape == (0, 64)


def test_a_sentence_is_scored_in_its_context(tiny: CPC) -> None:
    here = tiny.scores("When did the bakery burn down?", SENTENCES)
    elsewhere = tiny.scores("When did the bakery burn down?", ["A cinema.", *SENTENCES[1:]])
    assert here.shape == (5,)
    assert (np.abs(here) <= 1 + 1e-9).all()
    assert not np.isclose(here[1], elsewhere[1], atol=1e-6)


def test_scores_are_cosines_of_means(tiny: CPC) -> None:
    ids = [tiny.tokenizer.encode(text, add_special_tokens=False).ids for text in SENTENCES]
    states = tiny.states([token for one in ids for token in one])
    cuts = np.cumsum([len(one) for one in ids])[:-1]
    means = np.stack([part.mean(0) for part in np.split(states, cuts)])
    asked = tiny.states(tiny.tokenizer.encode("What opened?", add_special_tokens=False).ids).mean(0)
    expected = means @ asked / np.linalg.norm(means, axis=1) / np.linalg.norm(asked)
    np.testing.assert_allclose(tiny.scores("What opened?", SENTENCES), expected, atol=1e-5)


def test_long_contexts_are_read_in_balanced_chunks(tiny: CPC, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    states = tiny.states

    def watched(ids: Sequence[int]) -> np.ndarray:
        read.append(len(ids))
        return states(ids)

    monkeypatch.setattr(tiny, "states", watched)
    tiny.chunk = 60
    scores = tiny.scores("What opened?", ["", *SENTENCES, "x" * 150, ""])
    _question, *lengths = read
    assert sum(lengths) == sum(len(text) for text in SENTENCES) + 150
    assert max(lengths) <= 60
    assert scores[0] == scores[-1] == 0
    assert np.isfinite(scores).all()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 25))
def test_balanced_chunks_tile_the_tokens(lengths: list[int], limit: int) -> None:
    ends = np.cumsum(lengths).tolist()
    found = list(balanced(ends, limit))
    assert [token for start, end in found for token in range(start, end)] == list(range(ends[-1]))
    assert all(0 < end - start <= limit for start, end in found)
    for _, end in found:
        around = min((one for one in ends if one >= end), default=end)
        length = around - max((one for one in ends if one < end), default=0)
        assert end in ends or length > 0


def test_pooling_and_cosines() -> None:
    states = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert pooled(states, [(0, 2), (3, 4), (1, 1)]).tolist() == [[3, 5, 7], [9, 10, 11], [0, 0, 0]]
    assert pooled(states, []).shape == (0, 3)
    assert cosines(np.array([[0, 2.0], [1, 0], [0, 0]]), np.array([0, 5.0])).tolist() == [1, 0, 0]
    assert cosines(np.array([[1.0, 0]]), np.zeros(2)).tolist() == [0]


# the adapter


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.model."])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_merged_into_its_matrices(tiny: CPC, prefix: str, rslora: bool) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    tensors = adapter(prefix)
    assert merge(tiny.model, tensors, {**CONFIG, "use_rslora": rslora}) == 3
    scale = 8 / 2 if rslora else 8 / 4
    for name, weight in tiny.model.state_dict().items():
        key = f"{prefix}{name.removesuffix('.weight')}"
        change = torch.zeros_like(weight)
        if f"{key}.lora_A.weight" in tensors:
            change = scale * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        torch.testing.assert_close(weight, before[name] + change)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_is_more_than_lora_is_refused(tiny: CPC, config: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match=f"`{named}`"):
        merge(tiny.model, adapter("base_model.model."), {**CONFIG, **config})


def test_an_adapter_of_another_model_is_refused(tiny: CPC) -> None:
    tensors = adapter("base_model.model.")
    alone = {key: value for key, value in tensors.items() if ".lora_A." in key}
    elsewhere = {key.replace("layers.0", "layers.9"): value for key, value in tensors.items()}
    wide = {key: value.T.contiguous() for key, value in tensors.items()}
    odd = {"base_model.model.layers.0.mlp.bias": torch.zeros(1)}
    for wrong, message in (
        (alone, "does not fit"),
        (elsewhere, "layers.9"),
        (wide, "does not fit"),
        (odd, "mlp.bias"),
        ({}, "`0`"),
    ):
        with pytest.raises(BadInput, match=message):
            merge(tiny.model, wrong, CONFIG)


def test_base_and_adapter_load_from_folders(tmp_path: Path, tiny: CPC) -> None:
    base, extra = tmp_path / "weights" / "cpc" / "base", tmp_path / "weights" / "cpc" / "adapter"
    parts: Any = SimpleNamespace(
        settings=SimpleNamespace(weights=tmp_path / "weights", precision="float32"), device="cpu"
    )
    with pytest.raises(MissingWeights, match=r"`cpc` has no `base/config\.json`"):
        CPC.load(card("cpc"), parts)
    tiny.model.save_pretrained(base)
    tiny.tokenizer.save(str(base / "tokenizer.json"))
    extra.mkdir()
    save_file(adapter("base_model.model."), extra / "adapter_model.safetensors")
    with pytest.raises(MissingWeights, match=r"`adapter/adapter_config\.json`"):
        CPC.load(card("cpc"), parts)
    (extra / "adapter_config.json").write_text(json.dumps(CONFIG), "utf-8")
    loaded, plain = CPC.load(card("cpc"), parts), CPC.from_folder(base, None, "float32")
    np.testing.assert_allclose(plain.scores("What?", SENTENCES), tiny.scores("What?", SENTENCES), atol=1e-6)
    merge(tiny.model, adapter("base_model.model."), CONFIG)
    np.testing.assert_allclose(loaded.scores("What?", SENTENCES), tiny.scores("What?", SENTENCES), atol=1e-6)
    assert not np.allclose(loaded.scores("What?", SENTENCES), plain.scores("What?", SENTENCES), atol=1e-3)


# the refiner


def test_the_best_sentences_stay_in_their_order(tiny: CPC) -> None:
    text = " ".join(SENTENCES)
    refined = tiny.refine(Query("When did it open?"), hits(text), Budget(24))
    scores = tiny.scores("When did it open?", SENTENCES)
    whole = [n for n, sentence in enumerate(SENTENCES) if sentence in refined.passages[0].text]
    assert refined.used <= 24
    assert int(np.argmax(scores)) in whole
    assert [refined.passages[0].text.index(SENTENCES[n]) for n in whole] == sorted(
        refined.passages[0].text.index(SENTENCES[n]) for n in whole
    )
    assert all(p.text == text[slice(*p.span)] for p in refined.passages[0].pieces if p.span is not None)


def test_far_more_evidence_than_room_is_not_all_read(tiny: CPC, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def watched(question: str, sentences: Sequence[str]) -> np.ndarray:
        read.append(len(sentences))
        return np.arange(len(sentences), dtype=float)

    monkeypatch.setattr(tiny, "scores", watched)
    notes = [f"Note {n}. {SENTENCES[n % 5]}" for n in range(600)]
    refined = tiny.refine(Query("What opened?"), hits(*notes), Budget(20))
    assert 300 < read[0] < 900
    assert len(refined.passages) + len(refined.dropped) == 600
    assert {one.reason for one in refined.dropped} == {"budget"}


def test_without_a_question_the_order_of_reading_decides(tiny: CPC) -> None:
    for query in (None, Query(" ")):
        refined = tiny.refine(query, hits(" ".join(SENTENCES)), Budget(12))
        assert refined.passages[0].text.startswith(SENTENCES[0])


def test_reading_can_be_cancelled(tiny: CPC) -> None:
    event = Event()
    event.set()
    with reporting(cancelled=event), pytest.raises(Cancelled):
        tiny.refine(Query("What?"), hits(" ".join(SENTENCES)), Budget(12))


def test_threads_give_the_serial_answers(tiny: CPC) -> None:
    given_hits = hits(" ".join(SENTENCES), "柏林是德国的首都。 " + SENTENCES[4], "")
    budgets = [Budget(tokens) for tokens in range(12, 44, 4)]
    serial = [tiny.refine(Query("What opened?"), given_hits, budget) for budget in budgets]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda one: tiny.refine(Query("What opened?"), given_hits, one), budgets)) == serial
    assert ("p2", "empty") in {(d.id, d.reason) for d in serial[0].dropped}
