"""`llmlingua` on today's transformers: the same losses and decisions, with the offsets of what was kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from triptych.errors import Cancelled, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.progress import reporting
from triptych.refiners.base import Budget
from triptych.refiners.hard._llmlingua_compat import POSITIONS_AT_ONCE, SEPARATOR, OfflineCompressor, cache_name
from triptych.refiners.hard.llmlingua import LM_TOKENS, LLMLingua
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm import ScriptedLM, TransformersLM

TEXTS = [
    "The first Nobel Prize in Physics was awarded in 1901 to Wilhelm Conrad Röntgen, of Germany, who received 150,782 "
    "kronor. John Bardeen is the only laureate to win the prize twice, in 1956 and 1972.",
    "柏林是德国的首都。The river Spree crosses the city, past many old museums 👩‍🔬.",
    "A hotel night costs at most 120 EUR. Breakfast is not included in that rate. " * 4,
]
LONG = {
    "rank_method": "longllmlingua",
    "condition_in_question": "after_condition",
    "reorder_context": "two_stage",
    "dynamic_context_compression_ratio": 0.3,
    "condition_compare": True,
    "question": "Who won the first prize?",
}


class Plain(OfflineCompressor):
    """The package's `get_ppl` written down plainly: whole logits, and keys and values as a list of pairs."""

    def get_ppl(
        self,
        text: str,
        granularity: str = "sentence",
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        return_kv: bool = False,
        end: int | None = None,
        condition_mode: str = "none",
        condition_pos_id: int = 0,
    ) -> Any:
        if input_ids is None:
            encoded = self.tokenizer(text, return_tensors="pt")
            input_ids, attention_mask = encoded["input_ids"], encoded["attention_mask"]
        past = past_key_values[0][0].shape[2] if past_key_values else 0
        end = min(input_ids.shape[1] if end is None else end, past + self.max_position_embeddings)
        cache: Any = DynamicCache()
        for layer, (keys, values) in enumerate(past_key_values or []):
            cache.update(keys, values, layer)
        with torch.no_grad():
            options = {"use_cache": True, cache_name(self.model): cache}
            output = self.model(input_ids[:, past:end], attention_mask=attention_mask[:, :end], **options)
        labels = input_ids[0, past + 1 : end]
        loss = -output.logits[0, :-1].log_softmax(-1)[torch.arange(len(labels)), labels]
        loss = {"before": loss[:condition_pos_id], "after": loss[condition_pos_id:]}.get(condition_mode, loss)
        pairs = [[layer.keys, layer.values] for layer in cache.layers]
        result = loss.mean() if granularity == "sentence" else loss
        return (result, pairs) if return_kv else result


@pytest.fixture(scope="module")
def lm() -> TransformersLM:
    return TransformersLM.tiny()


@pytest.fixture(scope="module")
def ours(lm: TransformersLM) -> OfflineCompressor:
    return OfflineCompressor(lm.model, lm.tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_losses_are_those_of_the_whole_logits(lm: TransformersLM, ours: OfflineCompressor, text: str) -> None:
    plain = Plain(lm.model, lm.tokenizer)
    torch.testing.assert_close(ours.get_ppl(text, "token"), plain.get_ppl(text, "token"))
    torch.testing.assert_close(ours.get_ppl(text), plain.get_ppl(text))
    for mode in ("before", "after"):
        options: dict[str, Any] = {"granularity": "token", "condition_mode": mode, "condition_pos_id": 7}
        torch.testing.assert_close(ours.get_ppl(text, **options), plain.get_ppl(text, **options))


def test_losses_after_a_cache(lm: TransformersLM, ours: OfflineCompressor) -> None:
    encoded = lm.tokenizer(TEXTS[0], return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    whole = ours.get_ppl("", "token", ids, mask)
    _, pairs = ours.get_ppl("", "token", ids, mask, return_kv=True, end=50)
    assert isinstance(pairs, list)
    assert pairs[0][0].shape[2] == 50
    cut = [[keys[:, :, :40], values[:, :, :40]] for keys, values in pairs]
    torch.testing.assert_close(ours.get_ppl("", "token", ids, mask, cut), whole[40:])


@pytest.mark.parametrize(
    "options", [{"rate": 0.3}, {"rate": 0.5}, {"rate": 0.7, "iterative_size": 50}, {"rate": 0.5, **LONG}]
)
@pytest.mark.parametrize("positions", [4096, 500])
def test_the_same_text_as_the_plain_losses_give(lm: TransformersLM, options: dict[str, Any], positions: int) -> None:
    answers = []
    for kind in (OfflineCompressor, Plain):
        compressor = kind(lm.model, lm.tokenizer)
        compressor.max_position_embeddings = positions
        answers.append(compressor.compress_prompt(TEXTS, **options)["compressed_prompt"])
    assert answers[0] == answers[1]
    assert len(answers[0]) < len(SEPARATOR.join(TEXTS))


def test_the_logits_of_all_positions_never_exist_at_once(lm: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    head, seen = lm.model.get_output_embeddings(), []

    def watched(states: Any) -> Any:
        seen.append(len(states))
        return head(states)

    monkeypatch.setattr(lm.model, "get_output_embeddings", lambda: watched)
    OfflineCompressor(lm.model, lm.tokenizer).get_ppl(TEXTS[2])
    assert max(seen) <= POSITIONS_AT_ONCE
    assert sum(seen) == len(lm.tokenizer(TEXTS[2])["input_ids"]) - 1


def test_decisions_are_the_packages_own(ours: OfflineCompressor) -> None:
    contexts, keep, window = TEXTS[:2], 0.5, 60
    lengths = [ours.get_token_length(text, False) for text in contexts]
    ids, _ = ours.iterative_compress_prompt(
        contexts, keep * (sum(lengths) + 2 * len(contexts) + 1), iterative_size=window, dynamic_ratio=[0.0, 0.0]
    )
    decided = ours.decide(contexts, keep, window)
    all_ids = np.array(ours.tokenizer(SEPARATOR.join(contexts), add_special_tokens=False)["input_ids"])
    assert all_ids[decided.kept].tolist() == ids[0].tolist()
    assert 0 < decided.kept.sum() < len(all_ids)


def test_losses_are_recorded_where_their_tokens_stand(ours: OfflineCompressor) -> None:
    decided = ours.decide([TEXTS[0]], 0.5, 60)
    assert np.isinf(decided.losses[0])
    assert np.isfinite(decided.losses[1:]).all()
    first = ours.get_ppl(TEXTS[0], "token").numpy()
    early = [n for n in range(1, 60) if not decided.kept[n]]
    np.testing.assert_allclose(decided.losses[early], first[np.array(early) - 1], rtol=1e-4)
    assert not np.allclose(decided.losses[61:100], first[60:99], rtol=1e-4)


@settings(max_examples=25)
@given(
    st.lists(st.text(alphabet=st.sampled_from("abc 12.\n柏林é👩‍🔬🇩"), min_size=1, max_size=60), min_size=1, max_size=3),
    st.floats(0.1, 1.0),
    st.integers(5, 80),
)
def test_spans_are_offsets_in_the_joined_text(texts: list[str], keep: float, window: int) -> None:
    compressor = LLMLingua.tiny()._compressor if not COMPRESSORS else COMPRESSORS[0]
    COMPRESSORS[:] = [compressor]
    text = SEPARATOR.join(texts)
    decided = compressor.decide(texts, keep, window)
    assert len(decided.spans) == len(decided.kept) == len(decided.losses) == len(text.encode())
    characters = [text[start:end] for start, end in decided.spans]
    assert (
        "".join(
            char for n, char in enumerate(characters) if not n or tuple(decided.spans[n]) != tuple(decided.spans[n - 1])
        )
        == text
    )
    again = compressor.decide(texts, keep, window)
    assert (again.kept == decided.kept).all()
    assert np.array_equal(again.losses, decided.losses)


COMPRESSORS: list[OfflineCompressor] = []


def test_threads_decide_like_one(ours: OfflineCompressor) -> None:
    jobs = [(TEXTS[n % 3 : n % 3 + 1], 0.3 + 0.05 * n) for n in range(8)]
    serial = [ours.decide(texts, keep, 40).kept.tolist() for texts, keep in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda job: ours.decide(job[0], job[1], 40).kept.tolist(), jobs)) == serial


def test_windows_are_reported_and_can_be_cancelled(ours: OfflineCompressor) -> None:
    steps: list[tuple[int, int | None, str]] = []
    with reporting(lambda *step: steps.append(step)):
        ours.decide([TEXTS[2]], 0.5, 40)
    assert len(steps) > 3
    assert all(done <= (total or 0) and what == "windows" for done, total, what in steps)

    def stop(done: int, total: int | None, what: str) -> None:
        if done == 2:
            raise Cancelled("Stopped.")

    with reporting(stop), pytest.raises(Cancelled):
        ours.decide([TEXTS[2]], 0.5, 40)


def test_the_downloading_filter_is_refused(ours: OfflineCompressor) -> None:
    with pytest.raises(Unsupported, match="downloads"):
        ours.compress_prompt(TEXTS, rate=0.5, use_sentence_level_filter=True)


def test_the_model_reads_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    refiner = LLMLingua.tiny()
    read: list[int] = []
    decide = refiner._compressor.decide

    def watched(contexts: Any, keep: float, window: int) -> Any:
        decided = decide(contexts, keep, window)
        read.append(len(decided.spans))
        return decided

    monkeypatch.setattr(refiner._compressor, "decide", watched)
    evidence = [Hit(Item(f"p{n}", f"Office {n} says: {TEXTS[2]}", Source("a.md")), 1.0) for n in range(40)]
    refined = refiner.refine(Query("What does a night cost?"), evidence, Budget(500))
    assert refined.used <= 500
    assert read and max(read) <= LM_TOKENS + 2 * len(evidence)


def test_load_needs_a_local_model() -> None:
    def missing() -> Any:
        raise MissingWeights("None are here.")

    with pytest.raises(Unsupported, match="`ScriptedLM`"):
        LLMLingua.load(card("llmlingua"), SimpleNamespace(lm=ScriptedLM, encoder=missing))
    with pytest.raises(MissingWeights):
        LLMLingua.load(card("llmlingua"), SimpleNamespace(lm=missing, encoder=missing))
    made = LLMLingua.load(card("llmlingua"), SimpleNamespace(lm=TransformersLM.tiny, encoder=missing))
    assert made.relevance is None


@pytest.mark.parametrize("texts", [["0"], ["0", "0", "0"]])
def test_a_text_of_few_tokens_has_nothing_to_split(ours: OfflineCompressor, texts: list[str]) -> None:
    decided = ours.decide(texts, 0.5, 1)
    assert len(decided.kept) == len(decided.spans)
    assert decided.kept.any()
