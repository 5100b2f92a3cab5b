"""Rerankers: the contract for each of them, then what each one measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych import progress
from triptych.errors import BadInput, Cancelled, Unsupported
from triptych.manifests import weights
from triptych.manifests.registry import cards
from triptych.rerankers import _pointwise
from triptych.rerankers._pointwise import Read, first_stage
from triptych.rerankers.base import Cost, Limits, Reranker
from triptych.rerankers.finetuned.maxsim import MaxSim, SentenceScorer
from triptych.rerankers.no_rerank import NoRerank
from triptych.rerankers.prompted.query_likelihood import PROMPT, QueryLikelihood
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm import LogProbs, Prompt, ScriptedLM
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM

TEXTS = ["The cat sat on the mat.", "Stocks fell on Monday.", "你好，世界", "🙂🙂", "", "x " * 600, "A cat is a pet."]
QUERY = Query("where did the cat sit")
RERANKERS = [card.id for card in cards().values() if card.role == "reranker"]


def hits(texts: Sequence[str], scores: Sequence[float] | None = None) -> list[Hit]:
    scores = scores if scores is not None else [1 / (n + 1) for n in range(len(texts))]
    made = [Item(f"p{n}", text, Source("f.txt"), meta={"title": "f"}) for n, text in enumerate(texts)]
    return [Hit(item, score) for item, score in zip(made, scores, strict=True)]


def ids(found: Sequence[Hit]) -> list[str]:
    return [hit.item.id for hit in found]


@pytest.fixture(scope="module", params=RERANKERS)
def reranker(request: pytest.FixtureRequest) -> Reranker:
    made: Reranker = cards()[request.param].resolve().tiny(0)
    return made


@pytest.fixture(scope="module")
def maxsim(weights_home: Path) -> MaxSim:
    folder = weights.folder("all_minilm_l6_v2", weights_home / "weights")
    return MaxSim(AllMiniLM.from_folder(folder, "float32"))


# --- the contract, for every card ------------------------------------------------------------------------------------


def test_a_ranking_is_a_sorted_permutation(reranker: Reranker) -> None:
    given_hits = hits(TEXTS)
    found = reranker.rank(QUERY, given_hits)
    assert sorted(ids(found.hits)) == sorted(ids(given_hits))
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    assert all(math.isfinite(score) for score in scores)
    assert found.complete
    assert found.reason is None


def test_none_or_one_hit_comes_back_unchanged_without_a_call(reranker: Reranker) -> None:
    for given_hits in ([], hits(["one"])):
        found = reranker.rank(QUERY, given_hits)
        assert found.hits == tuple(given_hits)
        assert (found.calls, found.tokens, found.complete) == (0, 0, True)
    assert reranker.estimate(1) == reranker.estimate(0) == Cost(0, 0)


def test_the_same_input_gives_the_same_ranking_from_eight_threads(reranker: Reranker) -> None:
    wanted = reranker.rank(QUERY, hits(TEXTS))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: reranker.rank(QUERY, hits(TEXTS)), range(8)))
    for one in found:
        assert ids(one.hits) == ids(wanted.hits)
        assert [hit.score for hit in one.hits] == pytest.approx([hit.score for hit in wanted.hits], abs=1e-4)


def test_equal_passages_keep_their_order(reranker: Reranker) -> None:
    found = reranker.rank(QUERY, hits(["same words"] * 5, [0.5] * 5))
    assert ids(found.hits) == ["p0", "p1", "p2", "p3", "p4"]


@pytest.mark.parametrize("query", ["🙂", "你好", "?", "x" * 4000, "\ud800 lone", "NULL\x00"])
def test_odd_queries_are_ranked(reranker: Reranker, query: str) -> None:
    assert len(reranker.rank(Query(query), hits(TEXTS)).hits) == len(TEXTS)


# --- limits, order and checks that rerankers share -------------------------------------------------------------------


def lengths(items: Sequence[Item]) -> list[Read]:
    return [Read(float(len(item.text)), 3) for item in items]


def plain(score: float, say: float) -> float:
    return score


def test_a_depth_limit_reads_the_top_and_leaves_the_rest_behind() -> None:
    found = _pointwise.rank(hits(["a", "bb", "ccc", "dddd", "eeeee"]), Limits(depth=3), lengths, plain, at_once=2)
    assert ids(found.hits) == ["p2", "p1", "p0", "p3", "p4"]
    assert [hit.score for hit in found.hits] == [3, 2, 1, 1, 1]
    assert (found.calls, found.tokens, found.complete) == (3, 9, False)
    assert found.reason == "depth limit: 3 of 5 hits"


def test_a_limit_that_is_not_reached_leaves_the_ranking_complete() -> None:
    found = _pointwise.rank(hits(["a", "bb"]), Limits(calls=2, depth=5, seconds=60), lengths, plain)
    assert (ids(found.hits), found.complete) == (["p1", "p0"], True)


def test_a_limit_of_calls_is_the_tighter_one() -> None:
    found = _pointwise.rank(hits(["a", "bb", "ccc"]), Limits(calls=2, depth=9), lengths, plain)
    assert (found.calls, found.reason) == (2, "calls limit: 2 of 3 hits")
    nothing = _pointwise.rank(hits(["a", "bb"]), Limits(depth=0), lengths, plain)
    assert (ids(nothing.hits), nothing.complete, nothing.hits[0].score) == (["p0", "p1"], False, 1.0)
    with pytest.raises(BadInput, match="depth is `-1`"):
        _pointwise.rank(hits(["a", "bb"]), Limits(depth=-1), lengths, plain)


def test_a_time_limit_keeps_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("triptych.rerankers._pointwise.time.monotonic", lambda: next(clock))
    found = _pointwise.rank(hits(["a", "bb", "ccc", "dd"]), Limits(seconds=3), lengths, plain)
    assert ids(found.hits) == ["p1", "p0", "p2", "p3"]
    assert found.reason == "3 s passed after 2 of 4 hits"
    assert not found.complete


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadInput, match="`p1` has the score `nan`"):
        _pointwise.rank(hits(["a", "b"], [1.0, math.nan]), None, lengths, plain)
    with pytest.raises(Unsupported, match="scored the hit `p0` `nan`"):
        _pointwise.rank(hits(["a", "b"]), None, lambda items: [Read(math.nan, 1) for _ in items], plain)


def test_a_ranking_stops_when_it_is_cancelled() -> None:
    cancelled = Event()
    seen: list[int] = []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append(done)
        if done:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        MaxSim.tiny(0).rank(QUERY, hits(TEXTS))
    assert seen == [0, 1]


@given(st.lists(st.floats(allow_nan=False), max_size=8))
def test_the_first_stages_say_follows_its_order(scores: list[float]) -> None:
    says = first_stage(scores)
    assert all(0 < say <= 1 for say in says)
    assert not says or max(says) == 1
    for one, say in zip(scores, says, strict=True):
        for other, another in zip(scores, says, strict=True):
            assert (one > other) == (say > another)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=10), st.integers(0, 12))
def test_any_ranking_is_a_stable_sorted_permutation(pairs: list[tuple[int, int]], depth: int) -> None:
    given_hits = hits(["x" * length for length, _ in pairs], [float(-n) for n, _ in enumerate(pairs)])
    found = _pointwise.rank(given_hits, Limits(depth=depth), lengths, plain).hits
    assert sorted(ids(found)) == sorted(ids(given_hits))
    read = found[: min(depth, len(pairs))] if len(pairs) > 1 else ()
    keys = [(-hit.score, int(hit.item.id[1:])) for hit in read]
    assert keys == sorted(keys)
    assert list(found[len(read) :]) == [] or ids(found[len(read) :]) == ids(given_hits[len(read) :])


# --- MaxSim ----------------------------------------------------------------------------------------------------------


def test_maxsim_prefers_the_answer_from_any_place(maxsim: MaxSim) -> None:
    texts = [
        "The stock exchange closed lower on Monday after a weak jobs report.",
        "Meals abroad are paid at a flat rate of 58 euros a day; receipts are not needed.",
        "Our offices are closed on public holidays.",
    ]
    found = maxsim.rank(Query("How much can I spend on food during a business trip?"), hits(texts))
    assert found.hits[0].item.id == "p1"
    assert found.calls == 3
    assert found.tokens > 30


def test_scores_are_comparable_between_lists(maxsim: MaxSim) -> None:
    query, answer = Query("who wrote War and Peace"), "War and Peace was written by Leo Tolstoy in the 1860s."
    others = ["Boil the rice for ten minutes.", "The gearbox has six speeds.", "Quarterly sales rose by 4 %."]
    [alone] = [hit for hit in maxsim.rank(query, hits([answer, others[0]])).hits if hit.item.id == "p0"]
    [among] = [hit for hit in maxsim.rank(query, hits([answer, *others])).hits if hit.item.id == "p0"]
    assert alone.score == pytest.approx(among.score)
    assert alone.score > 0.35
    assert max(hit.score for hit in maxsim.rank(query, hits(others)).hits) < 0.15


def test_a_match_beyond_256_pieces_is_found(maxsim: MaxSim) -> None:
    filler = "The committee discussed the minutes of the previous meeting. " * 40
    texts = [filler, filler + "The reactor reached criticality in March.", filler + "Lunch was served."]
    found = maxsim.rank(Query("When did the reactor reach criticality?"), hits(texts, [1.0, 1.0, 1.0]))
    assert found.hits[0].item.id == "p1"


def test_a_chinese_query_is_matched_literally(maxsim: MaxSim) -> None:
    texts = ["公司在北京设有办事处。", "差旅补贴为每天五百元。", "An English passage about daily allowances."]
    found = maxsim.rank(Query("每天的差旅补贴是多少"), hits(texts, [0.0, 0.0, 0.0]))
    assert found.hits[0].item.id == "p1"
    assert found.hits[-1].score == 0


def test_passages_in_another_language_keep_their_places(maxsim: MaxSim) -> None:
    found = maxsim.rank(Query("ыъ"), hits(["one thing", "another thing"]))
    assert [hit.item.id for hit in found.hits] == ["p0", "p1"]
    assert all(hit.score >= maxsim.floor for hit in found.hits)
    mixed = hits(["柏林是德国的首都。", "The cat sleeps.", "巴黎是法国的首都。", "The capital of Germany is Berlin."])
    ranked = maxsim.rank(Query("What is the capital of Germany?"), mixed)
    assert [hit.item.id for hit in ranked.hits] == ["p0", "p3", "p2", "p1"]
    scores = [hit.score for hit in ranked.hits]
    assert scores == sorted(scores, reverse=True)


def test_a_query_that_matches_nothing_leaves_the_order(maxsim: MaxSim) -> None:
    found = maxsim.rank(Query("ыъ"), hits(["кот", "лес"]))
    assert [(hit.item.id, hit.score) for hit in found.hits] == [("p0", 0.0), ("p1", 0.0)]


def test_the_first_stage_has_a_say(maxsim: MaxSim) -> None:
    texts = ["Cats sleep for most of the day.", "Cats sleep most of the day."]
    for order in ([2.0, 1.0], [1.0, 2.0]):
        best = maxsim.rank(Query("how long do cats sleep"), hits(texts, order)).hits[0]
        assert best.item.id == f"p{int(np.argmax(order))}"


def test_a_passage_is_read_once_for_ranking_and_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = AllMiniLM.tiny(0)
    reranker = MaxSim(encoder)
    before = reranker.rank(QUERY, hits(TEXTS[:2]))
    monkeypatch.setattr(encoder.model, "forward", None)
    assert reranker.rank(QUERY, hits(TEXTS[:2])) == before
    assert len(reranker.sentences.sentence_scores(QUERY.text or "", f"f\n{TEXTS[0]}", [(0, 5), (6, 9)])) == 2


def test_sentences_are_scored_in_their_context(maxsim: MaxSim) -> None:
    text = "Marie Curie was born in Warsaw. She won two Nobel Prizes. The weather was mild."
    spans = [(0, 31), (32, 57), (58, 80), (57, 58), (80, 80)]
    scores = maxsim.sentences.sentence_scores("How many Nobel Prizes did Curie win?", text, spans)
    assert int(np.argmax(scores)) == 1
    assert scores[2] < scores[0]
    assert scores[3:] == [0.0, 0.0]
    assert all(0 <= score <= 1 for score in scores)
    assert maxsim.sentences.sentence_scores("?", "", []) == []


def test_sentences_of_another_script_are_scored_literally(maxsim: MaxSim) -> None:
    text = "公司在北京设有办事处。差旅补贴为每天五百元。"
    scores = maxsim.sentences.sentence_scores("差旅补贴是多少", text, [(0, 11), (11, 22)])
    assert scores[0] == 0
    assert scores[1] > 0.4


def test_one_span_over_the_whole_text_is_the_passage_score() -> None:
    encoder = AllMiniLM.tiny(0)
    text = f"f\n{TEXTS[0]}"
    [whole] = SentenceScorer(encoder).sentence_scores(QUERY.text or "", text, [(0, len(text))])
    best = MaxSim(encoder, fade=0).rank(QUERY, hits([TEXTS[0], TEXTS[1]])).hits
    assert whole == pytest.approx(next(hit.score for hit in best if hit.item.id == "p0"))


@pytest.mark.parametrize("system", [MaxSim.tiny(0), QueryLikelihood.tiny(0)])
def test_a_query_without_text_is_refused(system: Reranker) -> None:
    with pytest.raises(Unsupported, match="`None`"):
        system.rank(Query(), hits(TEXTS[:2]))


# --- query likelihood ------------------------------------------------------------------------------------------------


class Nameless(ScriptedLM):
    """Gives log-probabilities that are no numbers."""

    def logprobs(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[LogProbs]:
        return [LogProbs((math.nan,)) for _ in targets]


def test_the_passage_that_makes_the_query_likely_comes_first() -> None:
    lm = ScriptedLM()
    texts = ["Stocks fell.", "where did the cat sit ?", "A dog."]
    found = QueryLikelihood(lm, prior=0).rank(QUERY, hits(texts))
    assert found.hits[0].item.id == "p1"
    assert found.hits[0].score == -1.0
    read = sum(len(PROMPT.format(passage=f"f\n{text}")) // 4 for text in texts)
    assert (found.calls, found.tokens, lm.calls) == (3, 15 + read, [("logprobs", 3)])


def test_likelihoods_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(Unsupported, match="`nan`"):
        QueryLikelihood(Nameless()).rank(QUERY, hits(TEXTS))


def test_a_model_without_likelihoods_is_refused_when_built() -> None:
    with pytest.raises(Unsupported, match="`logprobs`"):
        QueryLikelihood(ScriptedLM(can=["generate"]))


def test_a_depth_limit_bounds_the_model_calls() -> None:
    lm = ScriptedLM()
    found = QueryLikelihood(lm).rank(QUERY, hits(["a"] * 20), Limits(depth=10))
    assert [n for _, n in lm.calls] == [10]
    assert (found.calls, found.complete) == (10, False)
    assert QueryLikelihood(lm).estimate(10).calls == 10


# --- none ------------------------------------------------------------------------------------------------------------


def test_no_rerank_costs_nothing_whatever_the_limits() -> None:
    given_hits = hits(TEXTS)
    found = NoRerank().rank(Query(), given_hits, Limits(depth=1, calls=0, seconds=0))
    assert (found.hits, found.complete, found.calls) == (tuple(given_hits), True, 0)
