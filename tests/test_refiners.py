"""The contract of refiners, over all that read text, and the arithmetic that they share."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import assume, given
from hypothesis import strategies as st

from triptych.errors import BadInput, Cancelled, MissingWeights
from triptych.manifests.registry import card, cards
from triptych.progress import reporting
from triptych.refiners.base import Budget, Passage, Refined, Refiner, plain
from triptych.refiners.fit import FULL
from triptych.refiners.hard.extractive import Extractive
from triptych.refiners.hard.llmlingua import LLMLingua
from triptych.refiners.hard.truncate import Truncate
from triptych.refiners.protected import protected, spans
from triptych.refiners.relevance import TokenRelevance, relevance_of
from triptych.refiners.tokens import count
from triptych.refiners.units import units, words
from triptych.retrievers.base import Hit, Item, MediaRef, Query, Source

BERLIN = (
    "Berlin is the capital of Germany. A hotel night there costs at most 120 EUR. Breakfast is not included in that "
    "rate. Trains run every ten minutes. The river Spree crosses the city from east to west, past many old museums."
)
PARIS = (
    "Paris is the capital of France. The Louvre opens at 09:00 on most days. Visitors like the long walks there. "
    "A hotel night costs at most 150 EUR. The metro closes shortly after one in the morning on weekdays."
)
TABLE = "| City | Rate |\n|---|---|\n| Berlin | 120 |\n| Paris | 150 |\n| Rome | 140 |\n| Oslo | 190 |\n| Bern | 180 |"
CODE = (
    "Run it like this:\n\n```python\nrates = load()\nprint(rates['Berlin'])\nsave(rates)\n```\n\nThen look at the log."
)
CHINESE = (
    "柏林是德国的首都。酒店每晚最高一百二十欧元，不含早餐。火车每十分钟一班。施普雷河穿过这座城市，两岸有许多博物馆。"
)
EMOJI = (
    "Family 👨‍👩‍👧‍👦 rates apply. Flags 🇩🇪🇫🇷 mark offices. Zoë paid 12 € in cafe\u0301 noir\u0308. "
    "नमस्ते दुनिया, यह ठीक है।"
)
TEXTS = [BERLIN, PARIS, TABLE, CODE, CHINESE, EMOJI, "Short.", ""]
QUERY = Query("What does a hotel night in Berlin cost?")


class Overlap:
    """Relevance by shared words, on the scale 0 to 1."""

    def sentence_scores(self, query_text: str, item_text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
        asked = set(re.findall(r"\w+", query_text.lower()))
        return [len(asked & set(re.findall(r"\w+", item_text[a:b].lower()))) / len(asked) for a, b in spans]


@pytest.fixture(scope="module")
def tiny() -> LLMLingua:
    return LLMLingua.tiny()


EXTRACTIVE = sorted(c.id for c in cards().values() if c.role == "refiner" and not c.kind.startswith("generated"))
"""Every refiner that gives back what is there: one that generates text has tests of its own."""
BUILT: dict[str, Refiner] = {}


@pytest.fixture(params=[*EXTRACTIVE, "extractive+relevance"])
def refiner(request: pytest.FixtureRequest) -> Refiner:
    name = request.param
    if name not in BUILT:
        with_overlap = name == "extractive+relevance"
        BUILT[name] = Extractive(Overlap(), floor=0.0) if with_overlap else card(name, "refiner").resolve().tiny(0)
    return BUILT[name]


def hits(texts: Sequence[str], scores: Sequence[float] | None = None) -> list[Hit]:
    given_scores = scores or [1 / (n + 1) for n in range(len(texts))]
    return [
        Hit(Item(f"p{n}", text, Source(f"notes/{n}.md")), score)
        for n, (text, score) in enumerate(zip(texts, given_scores, strict=True))
    ]


def block(passages: Sequence[Passage], dropped: int) -> str:
    """A frame like the product's: compact JSON."""
    rows = [{"n": n, "id": p.item.id, "title": p.item.title, "text": p.text} for n, p in enumerate(passages, 1)]
    return json.dumps({"passages": rows, "dropped": dropped}, ensure_ascii=False, separators=(",", ":"))


def check(refined: Refined, given_hits: Sequence[Hit], budget: Budget) -> None:
    """What holds for every result."""
    assert refined.used == count(budget.render(refined.passages, len(refined.dropped)), budget.tokenizer)
    assert refined.used <= budget.tokens
    assert refined.original == sum(count(hit.item.text) for hit in given_hits)
    order = [hit.item.id for hit in given_hits]
    kept = [passage.item.id for passage in refined.passages]
    left_out = [dropped.id for dropped in refined.dropped]
    assert sorted(kept + left_out) == sorted(order)
    assert kept == [one for one in order if one in kept]
    for passage in refined.passages:
        text, last = passage.item.text, 0
        ends = {match.end() for match in regex.finditer(r"\X", text)} | {0}
        for n, piece in enumerate(passage.pieces):
            if piece.span is None:
                assert piece.why == "joiner"
                assert piece.text in {" ", "\n", " … ", "\n…\n", ", "}
                assert 0 < n < len(passage.pieces) - 1
                assert piece.made_from == ((last, (passage.pieces[n + 1].span or (0, 0))[0]),)
                continue
            start, end = piece.span
            assert last <= start < end
            assert piece.text == text[start:end]
            assert {start, end} <= ends
            last = end
        check_account(passage)


def check_account(passage: Passage) -> None:
    """Every character of the item is shown or accounted for, but for white space and the commas of arrays."""
    text = passage.item.text
    assert (passage.tokens, passage.original) == (count(passage.text), count(text))
    spans = sorted([piece.span for piece in passage.pieces if piece.span] + [cut.span for cut in passage.cut])
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    between = [text[a:b] for a, b in pairwise([0, *chain.from_iterable(spans), len(text)])][::2]
    assert not "".join(between).strip().strip(",").strip(", \n")
    for cut in passage.cut:
        assert cut.why in {"budget", "pruned", "duplicate"}
        assert cut.tokens == count(text[slice(*cut.span)])
        assert all(cut.span[0] <= start < end <= cut.span[1] for start, end in cut.protected)


# contract


def test_what_fits_comes_back_untouched_and_no_model_is_asked(refiner: Refiner, monkeypatch: Any) -> None:
    monkeypatch.setattr("triptych.refiners.fit.units", lambda item: pytest.fail("cut although it fits"))
    given_hits = hits(TEXTS)
    refined = refiner.refine(QUERY, given_hits, Budget(2000, render=block))
    assert [p.text for p in refined.passages] == TEXTS
    assert all(p.pieces == () or p.pieces[0].span == (0, len(p.item.text)) for p in refined.passages)
    assert not refined.dropped
    check(refined, given_hits, Budget(2000, render=block))


def test_no_hits(refiner: Refiner) -> None:
    assert refiner.refine(QUERY, [], Budget(20)).passages == ()
    with pytest.raises(BadInput, match="smallest block that can be shown takes"):
        refiner.refine(QUERY, [], Budget(2, render=block))


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_budget_that_is_not_positive(refiner: Refiner, tokens: int) -> None:
    with pytest.raises(BadInput, match=f"`{tokens}`"):
        refiner.refine(QUERY, hits([BERLIN]), Budget(tokens))


@pytest.mark.parametrize("texts", [[BERLIN, PARIS], [TABLE], [CHINESE], [TABLE, BERLIN, CODE]])
def test_a_budget_below_the_smallest_block_names_it(refiner: Refiner, texts: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        refiner.refine(QUERY, hits(texts), Budget(1, render=block))
    least = int(re.findall(r"\d+", error.value.hint)[0])
    assert str(least) in error.value.message
    refined = refiner.refine(QUERY, hits(texts), Budget(least, render=block))
    assert len(refined.passages) == 1
    check(refined, hits(texts), Budget(least, render=block))
    with pytest.raises(BadInput, match=f"takes {least}"):
        refiner.refine(QUERY, hits(texts), Budget(least - 1, render=block))


@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    tokens=st.integers(1, 400),
    framed=st.booleans(),
    asked=st.booleans(),
)
def test_every_budget_is_kept(tiny: LLMLingua, texts: list[str], tokens: int, framed: bool, asked: bool) -> None:
    given_hits = hits(texts)
    budget = Budget(tokens, render=block if framed else plain)
    for refiner in (Truncate(), Extractive(), Extractive(Overlap(), floor=0.0), tiny):
        try:
            refined = refiner.refine(QUERY if asked else None, given_hits, budget)
        except BadInput as error:
            assert int(re.findall(r"\d+", error.hint)[0]) > tokens
            continue
        check(refined, given_hits, budget)
        assert refined == refiner.refine(QUERY if asked else None, given_hits, budget)


@given(text=st.text(min_size=1, max_size=300), tokens=st.integers(1, 60))
def test_any_text_keeps_its_graphemes(text: str, tokens: int) -> None:
    assume(text.strip())
    given_hits = hits([text, BERLIN])
    for refiner in (Truncate(), Extractive()):
        try:
            refined = refiner.refine(QUERY, given_hits, Budget(tokens))
        except BadInput:
            continue
        check(refined, given_hits, Budget(tokens))


@pytest.mark.parametrize("tokens", [60, 120, 250, 500])
def test_the_budget_is_used_up(refiner: Refiner, tokens: int) -> None:
    given_hits = hits([BERLIN, PARIS, CHINESE, EMOJI] + [f"Office {n}. " + BERLIN[34:] for n in range(12)])
    refined = refiner.refine(QUERY, given_hits, Budget(tokens, render=block))
    check(refined, given_hits, Budget(tokens, render=block))
    assert refined.used >= FULL * tokens
    assert refined.unused is None


def test_unused_names_what_is_too_large(refiner: Refiner) -> None:
    row = "| " + " | ".join(f"value {n}" for n in range(60)) + " |"
    given_hits = hits(["Berlin costs 120.", row, row.replace("value", "other")])
    refined = refiner.refine(Query("Berlin value other"), given_hits, Budget(60))
    check(refined, given_hits, Budget(60))
    assert refined.used < FULL * 60
    assert refined.unused is not None
    tokens = int(re.findall(r"(\d+) tokens", refined.unused)[0])
    assert refined.unused.startswith("row of `p")
    assert refined.used + tokens > 60


def test_eight_threads_give_the_serial_answers(refiner: Refiner) -> None:
    given_hits = hits([BERLIN, PARIS, TABLE, CHINESE])
    budgets = [Budget(tokens, render=block) for tokens in range(60, 180, 10)]
    serial = [refiner.refine(QUERY, given_hits, budget) for budget in budgets]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda budget: refiner.refine(QUERY, given_hits, budget), budgets)) == serial


def test_the_cost_is_nearly_linear() -> None:
    texts = [f"Note {n} says so. " + BERLIN + " " + PARIS + " " + BERLIN[::-1] for n in range(1000)]
    seconds = []
    for n in (50, 1000):
        start = time.process_time()
        Extractive().refine(QUERY, hits(texts[:n]), Budget(2000, render=block))
        seconds.append(time.process_time() - start)
    assert seconds[0] < 0.5
    assert seconds[1] < 5


@pytest.mark.parametrize("name", ["extractive", "truncate"])
def test_weight_free_systems_load_without_weights(name: str) -> None:
    def missing() -> Any:
        raise MissingWeights("None are here.")

    made = card(name, "refiner").resolve().load(card(name), SimpleNamespace(encoder=missing, lm=missing))
    assert made.refine(QUERY, hits([BERLIN, PARIS]), Budget(30)).used <= 30


# units


@pytest.mark.parametrize("tokens", range(30, 90, 5))
def test_a_table_loses_rows_and_keeps_its_head(refiner: Refiner, tokens: int) -> None:
    refined = refiner.refine(Query("What is the rate in Rome?"), hits([TABLE, PARIS]), Budget(tokens))
    lines = [line for p in refined.passages if p.item.id == "p0" for line in p.text.split("\n")]
    assert set(lines) <= {*TABLE.split("\n"), "…"}
    if any("|" in line for line in lines):
        assert lines[:2] == TABLE.split("\n")[:2]


def test_the_wanted_row_is_the_one_that_stays() -> None:
    refined = Extractive(Overlap(), floor=0.0).refine(Query("Rome rate"), hits([TABLE]), Budget(22))
    assert "| Rome | 140 |" in refined.passages[0].text
    assert "| Berlin | 120 |" not in refined.passages[0].text


@pytest.mark.parametrize("tokens", range(12, 40, 4))
def test_a_code_block_keeps_its_fences_and_whole_lines(refiner: Refiner, tokens: int) -> None:
    refined = refiner.refine(Query("print rates"), hits([CODE]), Budget(tokens))
    text = refined.passages[0].text
    inside = [line for line in text.split("\n") if "rates" in line]
    assert set(inside) <= set(CODE.split("\n"))
    if inside:
        assert text.count("```") == 2


def test_units_and_their_needs() -> None:
    item = Item("x", f"Rates\n\n{TABLE}\n\n- one thing\n- two things", Source("a.md"))
    found = units(item)
    assert [item.text[u.start : u.end] for u in found if u.whole] == TABLE.split("\n")
    assert {u.needs for u in found if u.whole} == {(1, 2)}
    assert all(item.text[u.start : u.end] == item.text[u.start : u.end].strip() for u in found)


def test_a_file_of_code_has_whole_lines_only() -> None:
    item = Item("x", "alpha = 1\nbeta = 2", Source("a.py"), meta={"mime": "text/x-python"})
    assert all(unit.whole for unit in units(item))


def test_an_item_without_text_is_kept_when_it_shows_something() -> None:
    picture = Item("i", "", Source("a.png"), "image", MediaRef("a.png", "image/png"))
    refined = Extractive().refine(QUERY, [Hit(picture, 9.0), *hits([BERLIN, PARIS])], Budget(60, render=block))
    assert refined.passages[0] == Passage(picture, (), 9.0)
    check(refined, [Hit(picture, 9.0), *hits([BERLIN, PARIS])], Budget(60, render=block))


@given(st.text(alphabet=st.sampled_from("ab ，。、́\u200d\ufe0f🏻👩🇩\r\n\u0600각각한 "), max_size=40))
def test_words_are_whole_graphemes_and_all_there_is(text: str) -> None:
    found = list(words(text, 0, len(text)))
    ends = {match.end() for match in regex.finditer(r"\X", text)} | {0}
    assert all(start in ends and end in ends and start < end for start, end in found)
    assert "".join(text[start:end] for start, end in found).split() == text.split() or regex.search(r"\s\X", text)
    covered = {n for start, end in found for n in range(start, end)}
    assert all(text[n].isspace() for n in range(len(text)) if n not in covered)


# relevance


def test_evidence_below_the_floor_never_fills() -> None:
    junk = "Penguins cannot fly. They swim very well, and feed on krill."
    given_hits = hits([BERLIN, junk, junk.replace("krill", "squid")])
    refined = Extractive(Overlap(), floor=0.2).refine(QUERY, given_hits, Budget(55))
    assert [p.item.id for p in refined.passages] == ["p0"]
    assert {(d.id, d.reason) for d in refined.dropped} == {("p1", "below floor"), ("p2", "below floor")}
    assert refined.unused is None


def test_nothing_above_the_floor_is_an_empty_block() -> None:
    refined = Extractive(Overlap(), floor=0.9).refine(Query("krill"), hits([BERLIN, PARIS]), Budget(30))
    assert refined.passages == ()
    assert [d.reason for d in refined.dropped] == ["below floor"] * 2


def test_the_answer_stays_at_a_quarter() -> None:
    given_hits = hits([PARIS, CHINESE, EMOJI, BERLIN], [1.0] * 4)
    for refiner in (Extractive(Overlap(), floor=0.0), Extractive()):
        refined = refiner.refine(QUERY, given_hits, Budget(sum(count(h.item.text) for h in given_hits) // 4))
        assert "120 EUR" in " ".join(p.text for p in refined.passages)


def test_what_was_said_already_is_left_out() -> None:
    refined = Extractive().refine(QUERY, hits([BERLIN, BERLIN, PARIS]), Budget(70))
    assert ("p1", "duplicate") in {(d.id, d.reason) for d in refined.dropped}


def test_empty_items_say_so() -> None:
    refined = Extractive().refine(QUERY, hits([BERLIN, " \n", PARIS]), Budget(40))
    assert ("p1", "empty") in {(d.id, d.reason) for d in refined.dropped}


def test_without_a_query_every_passage_keeps_its_head() -> None:
    refined = Extractive().refine(None, hits([BERLIN, PARIS], [1.0, 1.0]), Budget(30))
    assert [p.text[:5] for p in refined.passages] == ["Berli", "Paris"]
    assert "capital of Germany" in refined.passages[0].text
    assert "capital of France" in refined.passages[1].text


def test_token_relevance_reads_the_tokens_inside_a_span() -> None:
    vectors = np.eye(3, dtype=np.float16)
    offsets = np.array([[0, 3], [4, 7], [8, 11]])

    def token_vectors(texts: Sequence[str], side: str = "document") -> list[SimpleNamespace]:
        n = 1 if side == "query" else 3
        return [SimpleNamespace(vectors=vectors[:n], offsets=offsets[:n]) for _ in texts]

    scores = TokenRelevance(SimpleNamespace(token_vectors=token_vectors)).sentence_scores(
        "one", "one two six", [(0, 3), (0, 7), (4, 11), (3, 4), (0, 11)]
    )
    assert scores == pytest.approx([1, 0.5**0.5, 0, 0, 3**-0.5], abs=1e-3)
    assert relevance_of(SimpleNamespace()) is None


# JSON


ROWS = [{"city": name, "rate": rate} for name, rate in (("Berlin", 120), ("Paris", 150), ("Rome", 140), ("Oslo", 190))]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("tokens", range(14, 60, 4))
def test_an_array_loses_elements_and_stays_json(refiner: Refiner, tokens: int, indent: int | None) -> None:
    given_hits = hits([json.dumps(ROWS, indent=indent), PARIS])
    refined = refiner.refine(Query("What is the rate in Rome?"), given_hits, Budget(tokens))
    check(refined, given_hits, Budget(tokens))
    for passage in refined.passages:
        if passage.item.id == "p0":
            kept = json.loads(passage.text)
            assert [row for row in ROWS if row in kept] == kept


def test_an_object_is_kept_whole_or_dropped(refiner: Refiner) -> None:
    given_hits = hits([json.dumps({"rates": ROWS, "note": "Berlin. Not Paris."}), "Rates are below 200 in every city."])
    for tokens in range(12, 80, 6):
        refined = refiner.refine(Query("Rates in Berlin"), given_hits, Budget(tokens))
        check(refined, given_hits, Budget(tokens))
        assert all(p.text == p.item.text for p in refined.passages if p.item.id == "p0")


def test_json_lines_and_json_in_a_fence_stay_whole() -> None:
    lines = "\n".join(json.dumps({"note": f"Berlin {n}. And Paris. And Rome."}) for n in range(5))
    assert len(units(Item("x", lines, Source("a.md")))) == 5
    fenced = f"See this:\n\n```json\n{json.dumps(ROWS, indent=1)}\n```\n\nThen go on."
    found = [fenced[u.start : u.end] for u in units(Item("x", fenced, Source("a.md")))]
    assert json.loads(found[2]) == ROWS
    assert [found[0], found[1], found[3], found[4]] == ["See this:", "```json", "```", "Then go on."]


@given(st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda v: st.lists(v, max_size=4), max_leaves=12))
def test_any_array_stays_json(value: Any) -> None:
    given_hits = hits([json.dumps([value, [value], "Berlin"]), BERLIN])
    for tokens in (4, 9, 20):
        try:
            refined = Extractive().refine(QUERY, given_hits, Budget(tokens))
        except BadInput:
            continue
        check(refined, given_hits, Budget(tokens))
        assert all(isinstance(json.loads(p.text), list) for p in refined.passages if p.item.id == "p0")


# protected places


def test_protected_places() -> None:
    text = (
        "It did not rain on 3 March 2024 at 9:30 am; 12 mg of `let x` cost $1.2 billion, “as Anna said”, in API_KEY "
        "[of this page](http://a.org/b), see https://a.org/x?y=1."
    )
    assert [text[start:end] for start, end in spans(text, 0, len(text))] == [
        "not rain", "3 March 2024", "9:30 am", "12 mg", "`let x`", "$1.2 billion", "“as Anna said”", "API_KEY",
        "[of this page](http://a.org/b)", "https://a.org/x?y=1",
    ]  # fmt: skip
    assert doctest.testmod(importlib.import_module("triptych.refiners.protected")).failed == 0


@pytest.mark.parametrize("tokens", range(4, 40))
def test_no_protected_place_is_torn_and_lost_ones_are_reported(refiner: Refiner, tokens: int) -> None:
    text = (
        "The night at the inn does not cost 120 EUR on 3 March 2024, and “breakfast is served late” costs 15 EUR more."
    )
    kept = refiner.refine(QUERY, hits([text]), Budget(tokens)).passages[0]
    lost = [text[start:end] for cut in kept.cut for start, end in cut.protected]
    for place in ("not cost", "120 EUR", "3 March 2024", "“breakfast is served late”", "15 EUR"):
        assert (place in kept.text) != (place in lost)


def test_patterns_of_the_caller_are_protected() -> None:
    text = "The permit of the blue heron colony was renewed by the board of the eastern district in spring."
    for tokens in range(1, 18):
        budget = Budget(tokens, protect=("blue heron colony",))
        try:
            kept = Truncate().refine(None, hits([text]), budget).passages[0]
        except BadInput:
            continue
        reported = [text[start:end] for cut in kept.cut for start, end in cut.protected]
        assert ("blue heron colony" in kept.text) != ("blue heron colony" in reported)
        assert not kept.text.endswith(("blue", "heron"))


@pytest.mark.parametrize(("pattern", "says"), [("(", "is wrong"), (r"(a|aa)+$", "takes more than")])
def test_a_bad_pattern_is_named(pattern: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Truncate().refine(None, hits(["a" * 60 + " b. Then more."]), Budget(4, protect=(pattern,)))


def test_relevant_passages_get_more_of_the_budget() -> None:
    about = "A hotel night in Berlin costs 120 EUR. Another hotel night in Berlin costs 90 EUR. "
    other = "The museum of trains is open. The museum of ships is closed. "
    refined = Extractive(Overlap(), floor=0.0).refine(QUERY, hits([other * 5, about * 5], [0.5, 0.5]), Budget(60))
    share = {passage.item.id: passage.tokens for passage in refined.passages}
    assert share["p1"] > share.get("p0", 0)
    assert {passage.original for passage in refined.passages} == {count(text) for text in (other * 5, about * 5)}


def test_what_was_said_before_is_cut_as_a_duplicate() -> None:
    said = "A hotel night in Berlin costs 120 EUR at most."
    more = "A hotel night in Berlin at the lake costs more."
    refined = Extractive().refine(QUERY, hits([f"{said} {PARIS}", f"{more} {said} {PARIS}"]), Budget(60))
    assert "duplicate" in {cut.why for passage in refined.passages for cut in passage.cut}


# LLMLingua at the edge


def test_protected_words() -> None:
    words_of = "The dose must not exceed 12 mg of API_KEY for Anna at a.b@c.org or none".split()
    kept = [word for word, holds in zip(words_of, protected(words_of), strict=True) if holds]
    assert kept == ["not", "exceed", "12", "mg", "API_KEY", "Anna", "a.b@c.org", "none"]


@pytest.mark.parametrize("tokens", range(20, 60))
def test_no_sentence_loses_a_negation_or_a_number_inside(tiny: LLMLingua, tokens: int) -> None:
    text = "The rate of the night in the hotel is not above 120 EUR and the breakfast does not cost 15 EUR for a guest."
    refined = tiny.refine(QUERY, hits([BERLIN, text]), Budget(tokens))
    for passage in refined.passages:
        if passage.item.id == "p1" and any(piece.span is None for piece in passage.pieces):
            assert passage.text.count("not") == 2
            assert "120 EUR" in passage.text
            assert "15 EUR" in passage.text


def test_cancellation_reaches_the_language_model(tiny: LLMLingua) -> None:
    event = Event()
    event.set()
    with reporting(cancelled=event), pytest.raises(Cancelled):
        tiny.refine(QUERY, hits([BERLIN, PARIS]), Budget(70))


@pytest.mark.parametrize("relevance", [None, Overlap()])
def test_choosing_sentences_says_how_far_it_is_and_can_be_stopped(relevance: Any) -> None:
    told: list[tuple[int, int | None, str]] = []
    texts = [f"{BERLIN} Room {n} has a view of yard {n}." for n in range(6)]
    with reporting(lambda *step: told.append(step)):
        Extractive(relevance).refine(QUERY, hits(texts), Budget(120))
    assert [(done, what) for done, _, what in told if what != "passages"] == []
    done = [done for done, total, _ in told if total == len(texts)]
    assert done == sorted(done) and (done[0], done[-1]) == (0, len(texts))
    assert relevance is None or len(set(done)) > 3
    event = Event()
    event.set()
    with reporting(cancelled=event), pytest.raises(Cancelled):
        Extractive(relevance).refine(QUERY, hits(texts), Budget(120))


def test_a_query_that_the_encoder_does_not_read_is_answered_by_shared_words() -> None:
    refiner = Extractive(Overlap(), floor=0.9)
    given_hits = hits([CHINESE, CHINESE.replace("柏林", "巴黎")])
    found = refiner.refine(Query("柏林的酒店每晚多少钱？"), given_hits, Budget(50))
    assert found.note is not None and "not in English" in found.note
    assert "酒店每晚" in found.passages[0].text
    assert refiner.refine(Query("柏林的酒店每晚多少钱？"), given_hits, Budget(5000)).note is None
    assert refiner.refine(QUERY, hits([BERLIN, PARIS]), Budget(30)).note is None
