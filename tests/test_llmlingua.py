"""`llmlingua` on today's transformers: the same losses and decisions, with the offsets of what was kept."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.progress import reporting
from triptych.refiners.base import Budget
from triptych.refiners.hard._llmlingua_compat import (
    GLIMPSES,
    LEAD,
    SEPARATOR,
    STRETCH,
    WINDOW,
    Decisions,
    OfflineCompressor,
    glimpses,
    window_of,
)
from triptych.refiners.hard.llmlingua import LM_TOKENS, LLMLingua, by_perplexity
from triptych.retrievers.attention import causal_blocks, use_causal_blocks
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm_transformers import TransformersLM, cache_name

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
    monkeypatch.setattr("triptych.refiners.hard._llmlingua_compat.LOGITS_AT_ONCE", 20 * lm.model.config.vocab_size)
    OfflineCompressor(lm.model, lm.tokenizer).get_ppl(TEXTS[2])
    assert max(seen) == 20
    assert sum(seen) == len(lm.tokenizer(TEXTS[2])["input_ids"]) - 1


def made_up(seed: int) -> list[str]:
    """One to four texts of random words, numbers and signs."""
    chosen = np.random.default_rng(seed)
    words = ["rate", "of", "the", "12", "EUR", "not", "Berlin", "night;", "API_KEY", "柏林", "\n", "é", "hotel."]
    return [" ".join(chosen.choice(words, chosen.integers(20, 80))) for _ in range(chosen.integers(1, 5))]


def package_decides(plain: Plain, contexts: list[str], keep: float, window: int, question: str, deltas: Any) -> Any:
    """Ids that the package's own loop keeps, over whole logits and whole passes."""
    lengths = [plain.get_token_length(text, False) for text in contexts]
    ids, _ = plain.iterative_compress_prompt(
        [question, *contexts] if question else contexts,
        keep * (sum(lengths) + 2 * len(contexts) + 1),
        iterative_size=window,
        start=plain.get_prefix_length(question + SEPARATOR, contexts[0]) if question else 0,
        dynamic_ratio=list(deltas),
        condition_compare=bool(question),
    )
    return ids[0].tolist()


@pytest.mark.parametrize("question", ["", "What does a night cost?"])
@pytest.mark.parametrize("seed", range(25))
def test_decisions_are_the_packages_own(lm: TransformersLM, seed: int, question: str) -> None:
    contexts, chosen = made_up(seed), np.random.default_rng(seed)
    keep, window = float(chosen.uniform(0.1, 0.95)), int(chosen.integers(8, 120))
    deltas = chosen.uniform(-0.3, 0.3, len(contexts)).round(2).tolist()
    plain, ours = Plain(lm.model, lm.tokenizer), OfflineCompressor(lm.model, lm.tokenizer)
    plain.max_position_embeddings = ours.max_position_embeddings = int(chosen.choice([8192, 600]))
    decided = ours.decide(contexts, keep, window, question=question, deltas=deltas)
    all_ids = np.array(ours.tokenizer(SEPARATOR.join(contexts), add_special_tokens=False)["input_ids"])
    assert all_ids[decided.kept].tolist() == package_decides(plain, contexts, keep, window, question, deltas)
    assert 0 < decided.kept.sum() <= len(all_ids)


def positions_read(lm: TransformersLM, work: Any) -> int:
    """How many positions the model computes while `work` runs."""
    read: list[int] = []
    handle = lm.model.base_model.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))
    try:
        work()
    finally:
        handle.remove()
    return sum(read)


@pytest.fixture
def undiscounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds nothing easier for having read more."""
    monkeypatch.setattr("triptych.refiners.hard._llmlingua_compat.DISCOUNT", 1.0)


def sum_of_glimpses(tokens: int) -> int:
    starts, length = glimpses(100, tokens, 100)
    return len(starts) * length


@pytest.mark.usefixtures("undiscounted")
def test_fast_leaves_out_the_first_pass(lm: TransformersLM, ours: OfflineCompressor) -> None:
    text = TEXTS[0] * 4
    tokens = len(text.encode())
    for question in ("", "Who won?"):
        sides, extra = (2, len(question + SEPARATOR)) if question else (1, 0)
        exact = positions_read(lm, lambda: ours.decide([text], 0.5, 100, question=question))  # noqa: B023
        fast = positions_read(lm, lambda: ours.decide([text], 0.5, 100, fast=True, question=question))  # noqa: B023
        glimpsed = sides * sum_of_glimpses(tokens)
        assert sides * tokens < fast - extra - glimpsed < sides * 1.7 * tokens
        assert exact - fast + glimpsed > sides * (tokens - 200)


@pytest.mark.parametrize(("tokens", "window"), [(100, 100), (105, 100), (109, 100), (300, 100), (2000, 100), (60, 20)])
def test_glimpses_are_spread_over_what_is_unread(tokens: int, window: int) -> None:
    starts, length = glimpses(window, tokens, window)
    covered = [at for start in starts for at in range(start, start + length)]
    assert covered == sorted(set(covered))
    assert all(window <= at < tokens for at in covered)
    assert bool(starts) == (tokens - window > LEAD)
    if tokens - window >= GLIMPSES * STRETCH:
        assert len(starts) >= GLIMPSES
        assert np.mean(covered) == pytest.approx((window + tokens) / 2, rel=0.05)


def test_fast_takes_thresholds_from_glimpses(ours: OfflineCompressor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a larger share of losses above its own, the first segment keeps less."""
    kept = []
    for discount in (0.5, 1.0, 2.0):
        monkeypatch.setattr("triptych.refiners.hard._llmlingua_compat.DISCOUNT", discount)
        kept.append(int(ours.decide([TEXTS[0] + TEXTS[2]], 0.4, 100, fast=True).kept[:100].sum()))
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.usefixtures("undiscounted")
def test_fast_keeps_the_largest_losses_of_what_it_has_read(ours: OfflineCompressor) -> None:
    text = TEXTS[0] + TEXTS[2]
    one_pass = ours.get_ppl(text, "token").numpy()
    decided = ours.decide([text], 0.4, 100, fast=True)
    np.testing.assert_allclose(decided.losses[1:100], one_pass[:99], rtol=1e-4)
    first = decided.kept[:99]
    assert 0.3 < first.mean() < 0.5
    assert one_pass[:99][first].min() > one_pass[:99][~first].max(), "the mask is shifted against the losses"
    assert not np.allclose(decided.losses[101:200], one_pass[100:199], rtol=1e-4), "behind the compressed text"
    assert 0.2 < decided.kept[:-100].mean() < 0.6
    assert ours.decide([text], 1.0, 100, fast=True).kept.all()


@pytest.mark.usefixtures("undiscounted")
@pytest.mark.parametrize("question", ["", "Who won?"])
@pytest.mark.parametrize("seed", range(6))
def test_fast_is_near_exact_and_repeats_itself(ours: OfflineCompressor, seed: int, question: str) -> None:
    contexts = made_up(seed)
    exact = ours.decide(contexts, 0.5, 40, question=question)
    decided = ours.decide(contexts, 0.5, 40, fast=True, question=question)
    assert (decided.spans == exact.spans).all()
    assert (decided.kept == exact.kept).mean() > 0.6
    read = np.isfinite(decided.losses[1:-80])
    assert read.mean() > 0.99, "all but the first token behind a segment of which nothing stays"
    assert decided.kept.tolist() == ours.decide(contexts, 0.5, 40, fast=True, question=question).kept.tolist()


def test_a_question_makes_contrasts(ours: OfflineCompressor) -> None:
    decided = ours.decide([TEXTS[0]], 0.5, 60, question="Who won the first prize?")
    assert decided.alone is not None
    assert len(decided.alone) == len(decided.losses) == len(decided.spans) == len(TEXTS[0].encode())
    assert np.isinf(decided.wanted[0]), "nothing stands before it without the question"
    np.testing.assert_array_equal(decided.wanted[1:], decided.alone[1:] - decided.losses[1:])
    assert np.isfinite(decided.wanted[1:]).all()


def test_a_question_longer_than_the_model_loses_its_end(lm: TransformersLM) -> None:
    short = OfflineCompressor(lm.model, lm.tokenizer)
    short.max_position_embeddings = 300
    asked = "Who won the first prize? " * 40
    for fast in (False, True):
        decided = short.decide(TEXTS, 0.5, 60, question=asked, fast=fast)
        cut = short.decide(TEXTS, 0.5, 60, question=asked[: 300 - 2 * 60], fast=fast)
        assert decided.kept.tolist() == cut.kept.tolist()


@pytest.mark.parametrize(("tokens", "window"), [(1, 1), (50, 25), (399, 199), (2000, WINDOW), (2050, 186)])
def test_segments_leave_little_over(tokens: int, window: int) -> None:
    assert window_of(tokens) == window
    assert tokens % window < WINDOW / 10


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

    def watched(*given: Any, **options: Any) -> Any:
        decided = decide(*given, **options)
        read.append(len(decided.spans))
        return decided

    monkeypatch.setattr(refiner._compressor, "decide", watched)
    evidence = [Hit(Item(f"p{n}", f"Office {n} says: {TEXTS[2]}", Source("a.md")), 1.0) for n in range(40)]
    refined = refiner.refine(Query("What does a night cost?"), evidence, Budget(500))
    assert refined.used <= 500
    assert read and max(read) <= LM_TOKENS + 2 * len(evidence)


def missing() -> Any:
    raise MissingWeights("None are here.")


def parts(**given: Any) -> Any:
    chosen = {"pruning": "exact", "pruning_reach": "edge", "precision": "float32", **given.pop("settings", {})}
    made = {"local_lm": TransformersLM.tiny, "encoder": missing, "device": "cpu", **given}
    return SimpleNamespace(settings=SimpleNamespace(**chosen), **made)


def test_load_needs_a_local_model() -> None:
    with pytest.raises(MissingWeights):
        LLMLingua.load(card("llmlingua"), parts(local_lm=missing))
    made = LLMLingua.load(card("llmlingua"), parts())
    assert made.relevance is None
    assert (made.mode, made.reach) == ("exact", "edge")


def test_settings_choose_the_form() -> None:
    made = LLMLingua.load(card("llmlingua"), parts(settings={"pruning": "fast", "pruning_reach": "all"}))
    assert (made.mode, made.reach) == ("fast", "all")
    for wrong in ({"pruning": "quick"}, {"pruning_reach": "everything"}):
        with pytest.raises(BadInput, match=f"`{next(iter(wrong.values()))}`"):
            LLMLingua.load(card("llmlingua"), parts(settings=wrong))


def test_an_aligned_model_takes_the_place_of_the_profiles(lm: TransformersLM, tmp_path: Path) -> None:
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    made = LLMLingua.load(card("llmlingua"), parts(local_lm=missing), align=tmp_path)
    evidence = [Hit(Item(f"p{n}", text, Source("a.md")), 1.0) for n, text in enumerate(TEXTS)]
    asked = Query("What does a night cost?")
    assert made.refine(asked, evidence, Budget(60)) == LLMLingua.tiny().refine(asked, evidence, Budget(60))
    with pytest.raises(MissingWeights):
        LLMLingua.load(card("llmlingua"), parts(), align=tmp_path / "nowhere")


# --- attention in bfloat16 ------------------------------------------------------------------------------------------


@pytest.fixture
def half() -> Any:
    """The tiny model in bfloat16, as a loaded one attends."""
    model = TransformersLM.tiny().model.to(torch.bfloat16)
    use_causal_blocks(model)
    return model


def test_segments_behind_a_cache_are_computed_in_blocks(
    lm: TransformersLM, half: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def watched(query: Any, key: Any, *given: Any) -> Any:
        seen.append((query.shape[2], key.shape[2]))
        return causal_blocks(query, key, *given)

    monkeypatch.setattr("triptych.retrievers.attention.causal_blocks", watched)
    OfflineCompressor(half, lm.tokenizer).decide([TEXTS[2]], 0.5, 60)
    layers = half.config.num_hidden_layers
    assert seen[:layers] == [(len(TEXTS[2]),) * 2] * layers
    assert any(keys > queries for queries, keys in seen)


def test_decisions_in_bfloat16_are_near_those_in_float32(lm: TransformersLM, half: Any) -> None:
    text = TEXTS[0] + TEXTS[2]
    whole = OfflineCompressor(lm.model, lm.tokenizer).get_ppl(text, "token")
    torch.testing.assert_close(
        OfflineCompressor(half, lm.tokenizer).get_ppl(text, "token"), whole, atol=0.05, rtol=0.02
    )


# --- the whole context -----------------------------------------------------------------------------------------------


class Planted:
    """A compressor whose tokens are words; those in `kept` stay, and `losses` says how surprising each is."""

    def __init__(self, kept: set[str], losses: dict[str, float] | None = None) -> None:
        self.kept = kept
        self.losses = losses or {}
        self.asked: dict[str, Any] = {}

    def get_token_length(self, text: str, special: bool = True) -> int:
        return len(text.split())

    def get_ppl(self, text: str) -> float:
        return self.losses.get(text, 0.0)

    def decide(self, contexts: list[str], keep: float, window: int, **options: Any) -> Decisions:
        self.asked = {"contexts": contexts, "keep": keep, "window": window, **options}
        found = list(re.finditer(r"\S+", SEPARATOR.join(contexts)))
        spans = np.array([match.span() for match in found]).reshape(-1, 2)
        losses = np.array([self.losses.get(match.group(), 0.0) for match in found], np.float32)
        return Decisions(spans, np.array([match.group() in self.kept for match in found], bool), losses)


def of_whole_context(planted: Planted) -> LLMLingua:
    made = LLMLingua.tiny()
    made.reach, made._compressor = "all", planted  # type: ignore[assignment]
    return made


def evidence_of(*texts: str) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source("a.md")), 1.0) for n, text in enumerate(texts)]


PLAIN = "the small dog runs over green fields and the old cat sleeps near warm ovens"


def test_words_that_the_model_keeps_stay_throughout() -> None:
    planted = Planted({"dog", "fields", "cat", "ovens"})
    refined = of_whole_context(planted).refine(Query("?"), evidence_of(PLAIN, PLAIN.upper().lower() + " x"), Budget(9))
    text = " ".join(passage.text for passage in refined.passages)
    assert set(text.split()) >= {"dog", "fields", "cat", "ovens"}
    assert refined.used <= 9


def test_the_larger_loss_comes_first_among_equals() -> None:
    planted = Planted(set(), {"ovens": 3.0, "cat": 2.0, "dog": 1.0})
    refined = of_whole_context(planted).refine(None, evidence_of(PLAIN), Budget(3))
    assert refined.passages[0].text.split() == ["dog", "cat", "ovens"]


def test_what_is_protected_comes_before_what_the_model_keeps() -> None:
    planted = Planted(set(PLAIN.split()))
    refined = of_whole_context(planted).refine(None, evidence_of(PLAIN + " and 12 kg are not eaten"), Budget(7))
    assert {"12", "kg", "not", "eaten"} <= set(refined.passages[0].text.split())


def test_passages_stay_by_perplexity_the_highest_first() -> None:
    texts = [" ".join(f"{PLAIN} {n}{k}." for k in "abcdefgh") for n in "pqrs"]
    planted = Planted({"cat", "dog"}, dict(zip(texts, (1.0, 4.0, 3.0, 2.0), strict=True)))
    assert by_perplexity(planted, [*texts, "x"]) == [1, 2, 3, 0, 4]
    refined = of_whole_context(planted).refine(None, evidence_of(*texts), Budget(100))
    assert [passage.item.id for passage in refined.passages] == ["p1", "p2"]
    assert [text[:30] for text in planted.asked["contexts"]] == [text[:30] for text in texts[1:3]]
    assert 0.2 < planted.asked["keep"] < 0.4, "of what stays, about a third fits"
    assert {one.reason for one in refined.dropped} == {"budget"}


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("tokens", [12, 40, 90])
def test_the_whole_context_keeps_any_budget(lm: TransformersLM, mode: str, tokens: int) -> None:
    made = LLMLingua(lm.model, lm.tokenizer, mode=mode, reach="all")
    table = "| City | Rate |\n|---|---|\n| Berlin | 120 |\n| Paris | 150 |"
    evidence = evidence_of(*TEXTS, table, "", "x")
    refined = made.refine(Query("What does a night cost?"), evidence, Budget(tokens))
    assert 0.8 * tokens <= refined.used <= tokens
    assert refined == made.refine(Query("What does a night cost?"), evidence, Budget(tokens))
    for passage in refined.passages:
        spans = [piece.span for piece in passage.pieces if piece.span]
        assert all(piece.text == passage.item.text[slice(*piece.span)] for piece in passage.pieces if piece.span)
        assert spans == sorted(spans)


def test_only_known_modes_and_reaches(lm: TransformersLM) -> None:
    with pytest.raises(BadInput, match="`slow`"):
        LLMLingua(lm.model, lm.tokenizer, mode="slow")
    with pytest.raises(BadInput, match="`half`"):
        LLMLingua(lm.model, lm.tokenizer, reach="half")


@pytest.mark.parametrize("texts", [["0"], ["0", "0", "0"]])
def test_a_text_of_few_tokens_has_nothing_to_split(ours: OfflineCompressor, texts: list[str]) -> None:
    decided = ours.decide(texts, 0.5, 1)
    assert len(decided.kept) == len(decided.spans)
    assert decided.kept.any()
