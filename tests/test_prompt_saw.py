"""Prompt-SAW: triplets with their sources, both modes inside the budget, and never a default."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import BadInput, Cancelled, Unsupported
from triptych.manifests.registry import card, cards
from triptych.progress import reporting
from triptych.refiners.base import Budget, Passage, Refined, plain
from triptych.refiners.fit import Evidence
from triptych.refiners.hard._graph import entity, verbalised
from triptych.refiners.hard._triplets import by_lm, by_rule
from triptych.refiners.hard.prompt_saw import FULL, PromptSAW, novel
from triptych.refiners.tokens import count
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm import LM, ScriptedLM

BERLIN = (
    "Berlin is the capital of Germany. In 1906, the council opened a museum in the old palace. A hotel night there "
    "costs at most 120 EUR. The river Spree crosses the city from east to west, and carries small ships."
)
PARIS = "Paris is the capital of France. The Louvre was opened in 1793 by the state, which owns it."
TABLE = "| City | Rate |\n|---|---|\n| Berlin | 120 |\n| Paris | 150 |\n| Rome | 140 |"
CHINESE = "柏林是德国的首都。酒店每晚最高一百二十欧元，不含早餐。"
TEXTS = [BERLIN, PARIS, TABLE, CHINESE, "Short.", ""]
QUERY = Query("What does a hotel night in Berlin cost?")


@pytest.fixture(scope="module")
def tiny() -> PromptSAW:
    return PromptSAW.tiny()


def hits(*texts: str) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source(f"notes/{n}.md")), 1.0 - n / 10) for n, text in enumerate(texts)]


def block(passages: Sequence[Passage], dropped: int) -> str:
    rows = [{"n": n, "id": p.item.id, "text": p.text} for n, p in enumerate(passages, 1)]
    return json.dumps({"passages": rows, "dropped": dropped}, ensure_ascii=False, separators=(",", ":"))


def told(sentence: str) -> list[tuple[str, str, str]]:
    [found] = by_rule([sentence])
    return [(one.subject, one.relation, one.object) for one in found]


def check(refined: Refined, given_hits: Sequence[Hit], budget: Budget) -> None:
    assert refined.used == count(budget.render(refined.passages, len(refined.dropped)), budget.tokenizer)
    assert refined.used <= budget.tokens
    order = [hit.item.id for hit in given_hits]
    kept = [passage.item.id for passage in refined.passages]
    assert sorted(kept + [one.id for one in refined.dropped]) == sorted(order)
    assert kept == [one for one in order if one in kept]
    for passage in refined.passages:
        assert passage.tokens == count(passage.text)
        assert passage.original == count(passage.item.text)
        shown = {
            n for piece in passage.pieces for a, b in piece.made_from or [piece.span or (0, 0)] for n in range(a, b)
        }
        hidden = {n for cut in passage.cut for n in range(*cut.span)}
        assert not shown & hidden
        missing = "".join(one for n, one in enumerate(passage.item.text) if n not in shown | hidden)
        assert not missing.strip()
        for piece in passage.pieces:
            if piece.span is not None:
                assert piece.text == passage.item.text[slice(*piece.span)]
            elif piece.why == "joiner":
                assert piece.text in {" ", "\n"}
            else:
                assert piece.why == "generated"
                assert piece.made_from == tuple(sorted(piece.made_from))
                words = {word for a, b in piece.made_from for word in passage.item.text[a:b].lower().split()}
                assert set(piece.text.removesuffix(".").lower().split()) <= words


# triplets


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Berlin is the capital of Germany.", [("Berlin", "is", "the capital of Germany")]),
        (
            "The prize was awarded in 1901 to Wilhelm Röntgen.",
            [("The prize", "was awarded in", "1901"), ("The prize", "was awarded to", "Wilhelm Röntgen")],
        ),
        (
            "In 1906, Moseley entered the college and won a prize.",
            [("Moseley", "entered", "the college"), ("Moseley", "entered in", "1906"), ("Moseley", "won", "a prize")],
        ),
        (
            "Marie Curie, a chemist, won the prize, and her husband taught physics.",
            [("Marie Curie", "won", "the prize"), ("her husband", "taught", "physics")],
        ),
        (
            "The Louvre is owned by the state, which pays the guards.",
            [("The Louvre", "is owned by", "the state"), ("the state", "pays", "the guards")],
        ),
        ("Visitors do not need a ticket.", [("Visitors", "do not need", "a ticket")]),
        ("The novel written by her sold well.", []),
        ("A heading without a verb", []),
        ("柏林是德国的首都。", []),
        ("", []),
    ],
)
def test_triplets_by_rule(sentence: str, expected: list[tuple[str, str, str]]) -> None:
    assert told(sentence) == expected


@given(
    st.lists(st.sampled_from("the city was is and , who won in 1906 opened a museum . ( ) of by did not it's".split()))
)
def test_any_words_give_triplets_with_their_places(words: list[str]) -> None:
    sentence = " ".join(words)
    [found] = by_rule([sentence])
    for one in found:
        assert one.subject and one.verb and one.object
        assert all(0 <= start < end <= len(sentence) for start, end in one.spans)
        said = {word for start, end in one.spans for word in sentence[start:end].split()}
        assert set(one.text.split()) <= said


def test_triplets_of_one_clause_become_one_sentence() -> None:
    [found] = by_rule(["The prize was awarded in 1901 to Wilhelm Röntgen."])
    assert verbalised(found[::-1]) == "The prize was awarded in 1901 to Wilhelm Röntgen."
    [found] = by_rule(["In 1906, Moseley entered the college."])
    assert verbalised(found) == "Moseley entered the college in 1906."


def test_a_language_model_can_write_the_triplets() -> None:
    lm = ScriptedLM(["Berlin | is the capital of | Germany\nno triplet\nBerlin | hates | Mars\n a | b | \n"])
    extract = by_lm(lm)
    [[one]] = extract(["Berlin is the capital of Germany."])
    assert (one.subject, one.relation, one.object) == ("Berlin", "is the capital of", "Germany")
    assert one.spans == ((0, 6), (7, 24), (25, 32))
    assert extract([]) == []
    with pytest.raises(Unsupported, match="generate"):
        by_lm(LM())


def test_the_graph_knows_its_entities_and_keeps_an_edge_once(tiny: PromptSAW) -> None:
    found = tiny.graph(
        Evidence(hits(BERLIN, "The Spree feeds a lake. Berlin is the capital of Germany."), Budget(50), [60, 20])
    )
    texts = [fact.text for fact in found.facts]
    assert texts.count("Berlin is the capital of Germany") == 1
    assert found.repeated == {1}
    assert [found.facts[n].part.hit for n in found.entities["spree"]] == [1]
    assert {found.facts[n].text for n in found.entities["river spree"]} >= {"The river Spree crosses the city"}
    assert entity("An  Old Palace") == "old palace"


# the budget


@settings(max_examples=40)
@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5),
    tokens=st.integers(1, 150),
    framed=st.booleans(),
    asked=st.booleans(),
)
def test_every_budget_is_kept(texts: list[str], tokens: int, framed: bool, asked: bool) -> None:
    given_hits, budget = hits(*texts), Budget(tokens, render=block if framed else plain)
    query = QUERY if asked else None
    try:
        refined = TINY.refine(query, given_hits, budget)
    except BadInput as error:
        assert int(re.findall(r"\d+", error.hint)[0]) > tokens
        return
    check(refined, given_hits, budget)
    assert refined == TINY.refine(query, given_hits, budget)
    short = refined.used < FULL * tokens and "budget" in {one.reason for one in refined.dropped}
    assert not short or refined.unused


TINY = PromptSAW.tiny()


@pytest.mark.parametrize("texts", [[BERLIN, PARIS], [CHINESE], [TABLE, BERLIN]])
def test_a_budget_below_the_smallest_block_names_it(tiny: PromptSAW, texts: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        tiny.refine(QUERY, hits(*texts), Budget(1, render=block))
    least = int(re.findall(r"\d+", error.value.hint)[0])
    check(tiny.refine(QUERY, hits(*texts), Budget(least, render=block)), hits(*texts), Budget(least, render=block))
    with pytest.raises(BadInput, match=f"takes {least}"):
        tiny.refine(QUERY, hits(*texts), Budget(least - 1, render=block))


def test_edges(tiny: PromptSAW) -> None:
    assert tiny.refine(QUERY, [], Budget(5)).passages == ()
    assert [p.text for p in tiny.refine(QUERY, hits(*TEXTS), Budget(2000)).passages] == TEXTS
    for tokens in (0, -1):
        with pytest.raises(BadInput, match=f"`{tokens}`"):
            tiny.refine(QUERY, hits(BERLIN), Budget(tokens))


def test_a_table_keeps_its_head(tiny: PromptSAW) -> None:
    for tokens in range(22, 40, 3):
        refined = tiny.refine(Query("Rome"), hits(TABLE, PARIS), Budget(tokens))
        lines = [line for p in refined.passages if p.item.id == "p0" for line in p.text.split("\n")]
        assert set(lines) <= set(TABLE.split("\n"))
        assert not lines or lines[:2] == TABLE.split("\n")[:2]


# the two modes


def test_the_question_decides_what_stays(tiny: PromptSAW) -> None:
    refined = tiny.refine(Query("A hotel night there costs"), hits(PARIS, BERLIN), Budget(14))
    assert "A hotel night there costs at most 120 EUR." in [p.text for p in refined.passages]


def test_copies_are_dropped_without_a_question(tiny: PromptSAW) -> None:
    copies = [BERLIN, BERLIN.replace("capital", "CAPITAL"), PARIS, BERLIN]
    refined = tiny.refine(None, hits(*copies), Budget(100))
    assert [p.item.id for p in refined.passages] == ["p0", "p2"]
    assert {(one.id, one.reason) for one in refined.dropped} == {("p1", "duplicate"), ("p3", "duplicate")}
    agnostic = PromptSAW(tiny.encoder, agnostic=True)
    assert agnostic.refine(QUERY, hits(*copies), Budget(100)) == refined


@given(st.integers(0, 2**31), st.floats(-1, 1), st.floats(-1, 1))
def test_the_walk_keeps_more_the_more_it_bears(seed: int, one: float, other: float) -> None:
    rows = np.random.default_rng(seed).standard_normal((12, 3))
    vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    kept = novel(vectors, max(one, other))
    assert kept[0] == 0
    assert all((vectors[kept[:n]] @ vectors[kept[n]] <= max(one, other)).all() for n in range(1, len(kept)))
    assert novel(vectors, 1.1) == list(range(12))


# the house


def test_no_profile_names_a_refiner_that_generates() -> None:
    generated = {one.id for one in cards().values() if one.role == "refiner" and "generated" in one.kind}
    text = (Path(__file__).resolve().parent.parent / "manifests" / "profiles.toml").read_text("utf-8")
    named = {
        str(table["refiner"])
        for profile in tomllib.loads(text).values()
        for table in (profile, *(value for value in profile.values() if isinstance(value, dict)))
        if "refiner" in table
    }
    assert "prompt_saw" in generated
    assert named
    assert not named & generated


def test_load_takes_the_encoder_of_the_profile(tiny: PromptSAW) -> None:
    parts: Any = SimpleNamespace(encoder=lambda: tiny.encoder)
    assert PromptSAW.load(card("prompt_saw"), parts).encoder is tiny.encoder


def test_extraction_can_be_cancelled(tiny: PromptSAW) -> None:
    event = Event()
    event.set()
    with reporting(cancelled=event), pytest.raises(Cancelled):
        tiny.refine(QUERY, hits(BERLIN, PARIS), Budget(30))


def test_threads_give_the_serial_answers(tiny: PromptSAW) -> None:
    budgets = [Budget(tokens, render=block) for tokens in range(60, 140, 10)]
    serial = [tiny.refine(QUERY, hits(*TEXTS), budget) for budget in budgets]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda budget: tiny.refine(QUERY, hits(*TEXTS), budget), budgets)) == serial
