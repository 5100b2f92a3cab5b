"""LongLLMLingua: its five parts on planted losses, and the contract of refiners on a tiny model."""

from __future__ import annotations

import doctest
import importlib
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, MissingWeights
from triptych.manifests.registry import card
from triptych.refiners.base import Budget, Passage, Piece
from triptych.refiners.hard._llmlingua_compat import SEPARATOR, Decisions, OfflineCompressor
from triptych.refiners.hard.longllmlingua import DELTA, RESTRICTIVE, LongLLMLingua, question_losses, recover
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm_transformers import TransformersLM

QUERY = Query("Where does the old cat sleep?")
WORDS = "the small dog runs over green fields and the old cat sleeps near warm ovens".split()
PASSAGES = [
    " ".join(f"{' '.join(WORDS)} {name} {k}." for k in "abcdefgh") for name in ("ada", "bob", "cy", "dora", "eve")
]


class Planted:
    """A compressor whose tokens are words. `question` says, by text, the loss of the question after it; `contrast`, by
    word, what the question takes off its loss."""

    def __init__(self, question: dict[str, float], contrast: dict[str, float] | None = None) -> None:
        self.question = question
        self.contrast = contrast or {}
        self.asked: dict[str, Any] = {}
        self.ranked: list[tuple[str, str, str]] = []

    def get_token_length(self, text: str, special: bool = True) -> int:
        return len(text.split())

    def get_condition_ppl(self, text: str, question: str, mode: str) -> float:
        self.ranked.append((text, question, mode))
        return self.question[text]

    def decide(self, contexts: list[str], keep: float, window: int, **options: Any) -> Decisions:
        self.asked = {"contexts": contexts, "keep": keep, **options}
        found = list(re.finditer(r"\S+", SEPARATOR.join(contexts)))
        losses = np.ones(len(found), np.float32)
        alone = losses + np.array([self.contrast.get(match.group(), 0.0) for match in found], np.float32)
        spans = np.array([match.span() for match in found]).reshape(-1, 2)
        return Decisions(spans, np.zeros(len(found), bool), losses, alone)


def planted(losses: tuple[float, ...], contrast: dict[str, float] | None = None, **options: Any) -> LongLLMLingua:
    lm = TransformersLM.tiny()
    made = LongLLMLingua(lm.model, lm.tokenizer, **options)
    made._compressor = Planted(dict(zip(PASSAGES, losses, strict=True)), contrast)  # type: ignore[assignment]
    return made


def hits(texts: list[str]) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source(f"{n}.md")), 1.0) for n, text in enumerate(texts)]


def kept(refined: Any) -> list[str]:
    return [passage.item.id for passage in refined.passages]


# --- coarse, order, ratios -------------------------------------------------------------------------------------------


def test_passages_stay_by_the_loss_of_the_question_the_lowest_first() -> None:
    made = planted((3.0, 1.0, 5.0, 2.0, 4.0))
    refined = made.refine(QUERY, hits(PASSAGES), Budget(150))
    assert kept(refined) == ["p1", "p3"]
    assert {one.id for one in refined.dropped} == {"p0", "p2", "p4"}
    compressor: Any = made._compressor
    assert [text for text, _, _ in compressor.ranked] == PASSAGES
    assert {(asked, mode) for _, asked, mode in compressor.ranked} == {((QUERY.text or "") + RESTRICTIVE, "after")}


def test_the_loss_is_of_the_question_after_the_passage() -> None:
    lm = TransformersLM.tiny()
    [told] = question_losses(OfflineCompressor(lm.model, lm.tokenizer), "Who?", [PASSAGES[0]])
    expected = -lm.logprobs([[PASSAGES[0]]], ["Who?" + RESTRICTIVE])[0].mean
    assert told == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("reorder", "order"),
    [("original", ["p0", "p1", "p2", "p3", "p4"]), ("rank", ["p1", "p3", "p0", "p4", "p2"]),
     ("two_stage", ["p1", "p0", "p2", "p4", "p3"])],
)  # fmt: skip
def test_passages_stand_in_the_order_asked_for(reorder: str, order: list[str]) -> None:
    made = planted((3.0, 1.0, 5.0, 2.0, 4.0), reorder=reorder)
    whole = made.refine(QUERY, hits(PASSAGES), Budget(5000))
    assert kept(whole) == order
    compressor: Any = made._compressor
    assert len(compressor.ranked) == (0 if reorder == "original" else 5)
    part = made.refine(QUERY, hits(PASSAGES), Budget(280))
    assert kept(part) == [one for one in order if one in kept(part)]
    assert 1 < len(kept(part)) < 5


def test_the_best_passage_keeps_the_most() -> None:
    made = planted((3.0, 1.0, 5.0, 2.0, 4.0))
    made.refine(QUERY, hits(PASSAGES), Budget(280))
    compressor: Any = made._compressor
    assert [text.split()[15] for text in compressor.asked["contexts"]] == ["ada", "bob", "dora"]
    assert compressor.asked["deltas"] == pytest.approx([-DELTA, DELTA, 0.0])
    assert compressor.asked["question"] == QUERY.text


def test_a_ratio_beyond_one_keeps_all_and_one_below_zero_next_to_nothing() -> None:
    lm = TransformersLM.tiny()
    decided = OfflineCompressor(lm.model, lm.tokenizer).decide(PASSAGES[:2], 0.6, 50, deltas=[0.5, -0.7])
    edge = len(PASSAGES[0])
    assert decided.kept[: edge - 50].all()
    assert decided.kept[edge + 50 : -50].mean() < 0.1


# --- fine ------------------------------------------------------------------------------------------------------------


def test_words_stay_by_contrast() -> None:
    made = planted((1.0, 2.0, 3.0, 4.0, 5.0), {"cat": 3.0, "sleeps": 2.0, "ovens": 1.0, "dog": -1.0})
    refined = made.refine(QUERY, hits(PASSAGES[:1]), Budget(24))
    assert set(refined.passages[0].text.split()) == {"cat", "sleeps", "ovens"}


def test_without_a_question_it_is_llmlinguas_whole_context() -> None:
    from triptych.refiners.hard.llmlingua import LLMLingua

    lm = TransformersLM.tiny()
    plain = LLMLingua(lm.model, lm.tokenizer, reach="all")
    for query in (None, Query("  ")):
        found = LongLLMLingua(lm.model, lm.tokenizer).refine(query, hits(PASSAGES), Budget(200))
        assert found == plain.refine(None, hits(PASSAGES), Budget(200))


@given(
    texts=st.lists(
        st.sampled_from([*PASSAGES[:2], "| a | b |\n|---|---|\n| 1 | 2 |", "柏林是德国的首都。", "x", " "]), max_size=4
    ),
    tokens=st.integers(8, 120),
    options=st.sampled_from([{}, {"mode": "fast"}, {"reorder": "two_stage"}]),
)
def test_any_budget_is_kept(texts: list[str], tokens: int, options: dict[str, Any]) -> None:
    lm = TINY
    made = LongLLMLingua(lm.model, lm.tokenizer, **options)
    budget = Budget(tokens)
    try:
        refined = made.refine(QUERY, hits(texts), budget)
    except BadInput as error:
        assert int(re.findall(r"\d+", error.hint)[0]) > tokens
        return
    assert refined.used <= tokens
    assert refined == made.refine(QUERY, hits(texts), budget)
    for passage in refined.passages:
        assert all(piece.text == passage.item.text[slice(*piece.span)] for piece in passage.pieces if piece.span)


TINY = TransformersLM.tiny()


def test_only_known_modes_and_orders() -> None:
    with pytest.raises(BadInput, match="`slow`"):
        LongLLMLingua(TINY.model, TINY.tokenizer, mode="slow")
    with pytest.raises(BadInput, match="`best`"):
        LongLLMLingua(TINY.model, TINY.tokenizer, reorder="best")


def test_it_is_loaded_with_the_profiles_model() -> None:
    settings = SimpleNamespace(pruning="fast", precision="float32")
    parts: Any = SimpleNamespace(local_lm=lambda: TINY, settings=settings, device="cpu")
    assert LongLLMLingua.load(card("longllmlingua"), parts).mode == "fast"

    def missing() -> Any:
        raise MissingWeights("None are here.")

    with pytest.raises(MissingWeights):
        LongLLMLingua.load(card("longllmlingua"), SimpleNamespace(local_lm=missing, settings=settings, device="cpu"))  # type: ignore[arg-type]


# --- recovery --------------------------------------------------------------------------------------------------------


def passage(text: str, *pieces: str | tuple[int, int]) -> Passage:
    made = [
        Piece(one, None, "joiner") if isinstance(one, str) else Piece(text[slice(*one)], one, "kept") for one in pieces
    ]
    return Passage(Item("x", text, Source("a.md")), tuple(made))


def test_a_response_is_led_back_to_what_was_cut() -> None:
    text = "Wilhelm Conrad Röntgen, of Germany, won it in 1901."
    read = passage(text, (0, 7), " … ", (15, 22), " ", (36, 39), " ", (46, 51))
    assert read.text == "Wilhelm … Röntgen won 1901."
    [found] = recover("It was wilhelm Röntgen!", [read])
    assert "It was wilhelm Röntgen!"[found.start : found.end] == "wilhelm Röntgen"
    assert text[slice(*found.span)] == "Wilhelm Conrad Röntgen"


def test_the_longest_run_wins_then_the_shortest_original() -> None:
    far = passage("old grey tired cat sleeps", (0, 3), " ", (15, 18), " ", (19, 25))
    near = passage("old cat ran", (0, 11))
    twice = passage("old and slow cat", (0, 3), " ", (13, 16))
    [found] = recover("old cat", [twice, near])
    assert (found.passage, found.span) == (1, (0, 7))
    [found] = recover("old cat sleeps", [near, far])
    assert (found.passage, found.span) == (1, (0, 25))


def test_a_single_word_counts_only_where_it_stands_once() -> None:
    read = passage("the cat and the dog", (0, 19))
    assert [found.span for found in recover("the dog", [read])] == [(12, 19)]
    assert recover("the", [read]) == []
    assert [found.span for found in recover("A dog!", [read])] == [(16, 19)]
    assert recover("", [read]) == recover("dog", []) == []


def test_chinese_is_compared_character_by_character() -> None:
    text = "柏林是德国的首都，有三百万人。"
    [found] = recover("首都三百万", [passage(text, (6, 9), (10, 15))])
    assert text[slice(*found.span)] == "首都，有三百万"


def test_the_examples_hold() -> None:
    for name in ("longllmlingua", "_pruning"):
        assert doctest.testmod(importlib.import_module(f"triptych.refiners.hard.{name}")).failed == 0
