"""Bad input of compression, for every refiner that has a card and in every door: a right answer or a typed error."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from mcp import Client
from pydantic import ValidationError

from triptych.errors import BadInput, TriptychError
from triptych.manifests.registry import cards
from triptych.refiners.base import Budget, Passage, Piece, Refined, Refiner, plain
from triptych.refiners.tokens import count
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.server import cli
from triptych.server.app import build
from triptych.settings import Settings
from triptych.tools.arguments import CompressArguments, parse
from triptych.tools.langchain import TriptychCompressor
from triptych.tools.library import MAX_CANDIDATES, Triptych
from triptych.tools.operations import renderer
from triptych.tools.schemas import Given

REFINERS = [card.id for card in cards().values() if card.role == "refiner"]
JOINERS = {" ", "\n", " … ", "\n…\n"}
ASKED = "What does a hotel night in Berlin cost?"

CODE = '''```python
def rates(city: str) -> int:
    """Look one up."""
    return {"Berlin": 120, "Paris": 150}[city]


class Hotel:
    def night(self) -> int:
        return rates("Berlin") if self.open else 0
```'''
BARE_CODE = "for (int i = 0; i < n; i++) {\n\tif (a[i] < best) { best = a[i]; }\n}\nreturn best;\n" * 6
TABLE = "| City | Rate |\n|---|---|\n" + "\n".join(f"| City {n} | {100 + n} EUR |" for n in range(40))
MIXED = (
    "柏林的酒店每晚一百二十欧元。ホテルは一泊百二十ユーロです。호텔은 하룻밤에 120유로입니다. "
    "الفندق في برلين يكلف 120 يورو. המלון עולה 120 אירו. Hotel 👨‍👩‍👧‍👦 costs 120 €. 🇩🇪🇫🇷 "
    "Zoë paid in cafe\u0301. \u202eReversed\u202c text. नमस्ते दुनिया। ที่พักราคาแพง. " * 4
)
CONTROLS = (
    "A\x00night\x01in\x07Berlin\x08costs\x0b120\x0cEUR.\x1b[31m Red.\x1b[0m \x7f\x85\x9b\ufeffNo\u200b\u2028more.\r\n"
    * 6
)
TEXTS: dict[str, list[str]] = {
    "empty": [""],
    "blank": [" \n\t ", "\u3000\u2003"],
    "empty among others": ["", "A hotel night in Berlin costs 120 EUR. " * 20, ""],
    "one token": ["a"],
    "one word of 50,000 letters": ["x" * 50_000],
    "one letter with 1,000 accents": ["e" + "\u0301" * 1000],
    "1,000 ideographs": ["柏林旅馆" * 250],
    "a long word among others": ["y" * 2000, "A hotel night in Berlin costs 120 EUR."],
    "only code": [CODE, BARE_CODE],
    "only a table": [TABLE],
    "a table without an end": ["|" * 3000],
    "only punctuation": ["..." * 400, "?!" * 200],
    "many scripts": [MIXED],
    "control characters": [CONTROLS],
    "only control characters": ["\x00" * 200, "\x1b\x07" * 50],
    "1,000 passages": [f"Office {n} pays {n} EUR for a hotel night in Berlin." for n in range(1000)],
    "the same 100 times": ["A hotel night in Berlin costs 120 EUR, without breakfast."] * 100,
    "special tokens": ["<|endoftext|> [CLS] [SEP] <s> </s> [MASK] <|im_start|>system " * 20],
}
BUDGETS = (1, 120)
LONG = 20_000
"""Characters from which one budget is enough: models read every one of them."""


@cache
def tiny(name: str) -> Refiner:
    made: Refiner = cards()[name].resolve().tiny(0)
    return made


def hits(texts: Sequence[str]) -> list[Hit]:
    return [Hit(Item(f"p{n:04}", text, Source(f"notes/{n}.md")), 1 / (n + 1)) for n, text in enumerate(texts)]


def checked(refined: Refined, given_hits: Sequence[Hit], budget: Budget) -> None:
    """What holds for every result of every refiner."""
    assert refined.used == count(budget.render(refined.passages, len(refined.dropped))) <= budget.tokens
    assert refined.original == sum(count(hit.item.text) for hit in given_hits)
    order = [hit.item.id for hit in given_hits]
    kept = [passage.item.id for passage in refined.passages]
    assert sorted(kept + [dropped.id for dropped in refined.dropped]) == order
    assert kept == sorted(kept)
    for passage in refined.passages:
        assert passage.text == "".join(piece.text for piece in passage.pieces)
        traced(passage)


def traced(passage: Passage) -> None:
    """Every piece is a part of the text, a joiner between two, or says what it was generated from."""
    text, last = passage.item.text, 0
    ends = {match.end() for match in regex.finditer(r"\X", text)} | {0} if len(text) < 10_000 else None
    for n, piece in enumerate(passage.pieces):
        if piece.span is not None:
            start, end = piece.span
            assert last <= start < end <= len(text)
            assert piece.text == text[start:end]
            assert ends is None or {start, end} <= ends
            last = end
        elif piece.why == "generated":
            assert piece.made_from
            assert all(0 <= start < end <= len(text) for start, end in piece.made_from)
        else:
            assert bare(piece)
            assert piece.why == "fence" or 0 < n < len(passage.pieces) - 1


def bare(piece: Piece) -> bool:
    """Whether a piece of our own says nothing."""
    return piece.text in JOINERS if piece.why == "joiner" else piece.why == "fence"


def refined_or_least(refiner: Refiner, query: Query | None, given_hits: Sequence[Hit], budget: Budget) -> None:
    """A right answer; or an error that names the smallest budget, which then gives one."""
    try:
        refined = refiner.refine(query, given_hits, budget)
    except BadInput as error:
        least = int(re.findall(r"\d+", error.hint)[0])
        assert f"`{budget.tokens}`" in error.message
        assert least > budget.tokens
        budget = Budget(least, render=budget.render)
        refined = refiner.refine(query, given_hits, budget)
    checked(refined, given_hits, budget)


# --- every refiner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("name", REFINERS)
def test_hostile_texts_fit_and_lead_home(name: str, texts: list[str]) -> None:
    budgets = BUDGETS if sum(map(len, texts)) < LONG else BUDGETS[-1:]
    for tokens in budgets:
        refined_or_least(tiny(name), Query(ASKED), hits(texts), Budget(tokens, render=renderer()))


@pytest.mark.parametrize("name", REFINERS)
def test_hostile_texts_without_a_query(name: str) -> None:
    for texts in TEXTS.values():
        if sum(map(len, texts)) < LONG:
            refined_or_least(tiny(name), None, hits(texts), Budget(60))


@pytest.mark.parametrize("name", REFINERS)
def test_the_same_input_gives_the_same_result(name: str) -> None:
    budget = Budget(120, render=renderer())
    given_hits = hits([MIXED, TABLE, CODE, CONTROLS])
    assert tiny(name).refine(Query(ASKED), given_hits, budget) == tiny(name).refine(Query(ASKED), given_hits, budget)


@pytest.mark.parametrize("name", REFINERS)
def test_nothing_gives_nothing(name: str) -> None:
    for query in (Query(ASKED), None):
        refined = tiny(name).refine(query, [], Budget(50, render=renderer()))
        assert (refined.passages, refined.dropped, refined.original) == ((), (), 0)


@pytest.mark.parametrize("tokens", [0, -1, -(10**9)])
@pytest.mark.parametrize("name", REFINERS)
def test_a_budget_that_is_not_positive_is_bad_input(name: str, tokens: int) -> None:
    for texts in ([], [""], ["A hotel night in Berlin costs 120 EUR."]):
        with pytest.raises(BadInput, match=f"`{tokens}`"):
            tiny(name).refine(Query(ASKED), hits(texts), Budget(tokens))


@pytest.mark.parametrize(
    "asked",
    ["hotel night Berlin " * 300, "z" * 5000, "旅馆" * 500, "\x00\x1b[0m", "?", "🏨", " ", "the of and", ".*(["],
    ids=["long", "one word", "ideographs", "controls", "mark", "emoji", "blank", "stop words", "pattern"],
)
@pytest.mark.parametrize("name", REFINERS)
def test_hostile_queries_fit_and_lead_home(name: str, asked: str) -> None:
    texts = ["A hotel night in Berlin costs 120 EUR. Breakfast is not included. " * 6, MIXED, TABLE]
    refined_or_least(tiny(name), Query(asked), hits(texts), Budget(120, render=renderer()))


BITS = [
    *("night ", "120 EUR. ", "not ", "3.5 mg ", "x" * 300, "- item\n", "<s>", "柏林，", "שלום ", "e\u0301 "),
    *("\U0001f469\u200d\U0001f680", "\x00", "\n", "\n\n", "\r\n", "\u202e", "\ufeff", " … ", "…"),
    *("| a | b |\n", "|---|---|\n", "```\n", "{\n", '"k": 1,\n'),
]
texts_of_bits = st.lists(st.sampled_from(BITS), max_size=25).map("".join)


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(texts_of_bits, min_size=1, max_size=4), tokens=st.integers(1, 150))
@pytest.mark.parametrize("name", REFINERS)
def test_any_text_fits_and_leads_home(name: str, texts: list[str], tokens: int) -> None:
    refined_or_least(tiny(name), Query(ASKED), hits(texts), Budget(tokens, render=plain))


# --- the doors --------------------------------------------------------------------------------------------------------


def lines(texts: Sequence[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def led_home(answer: dict[str, Any], texts: Sequence[str], budget: int) -> None:
    """What holds for every answer of the command line."""
    assert answer["tokens"]["used"] <= budget
    assert len(answer["passages"]) + len(answer["dropped"]) == len(texts)
    for row in answer["passages"]:
        whole = texts[int(row["id"].removeprefix("given-")) - 1]
        assert row["text"] == "".join(piece["text"] for piece in row["pieces"])
        for piece in row["pieces"]:
            assert piece["text"] in JOINERS if piece["span"] is None else piece["text"] == whole[slice(*piece["span"])]


def least_of(error: dict[str, str]) -> int:
    """The budget that an error of a too small one asks for."""
    assert error["type"] == "BadInput"
    assert "`300`" in error["message"]
    return int(re.findall(r"\d+", error["hint"])[0])


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS.keys())
def test_the_command_answers_or_says_why(bare_home: Path, capsys: Any, texts: list[str]) -> None:
    file = bare_home / "passages.jsonl"
    file.write_text(lines(texts), "utf-8")
    budget = 300
    code = cli.main(["compress", ASKED, str(file), "--max-tokens", str(budget), "--json"])
    said = json.loads(capsys.readouterr().out)
    if code:
        budget = least_of(said["error"])
        if budget > Settings.load().max_tokens_cap:  # one word that no answer can hold
            return
        code = cli.main(["compress", ASKED, str(file), "--max-tokens", str(budget), "--json"])
        said = json.loads(capsys.readouterr().out)
    assert code == 0
    led_home(said, texts, budget)
    assert cli.main(["compress", ASKED, str(file), "--max-tokens", str(budget)]) == 0
    shown = capsys.readouterr().out
    assert not set(shown) & {chr(n) for n in (*range(9), *range(11, 32), *range(127, 160))}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-tokens", "0"], "`0`"),
        (["--max-tokens", "-1"], "`-1`"),
        (["--max-tokens", "3"], "`3`"),
        (["--max-tokens", "999999999999999999999"], "20,000"),
    ],
)
def test_the_command_refuses_budgets(bare_home: Path, capsys: Any, arguments: list[str], words: str) -> None:
    file = bare_home / "passages.jsonl"
    file.write_text(lines(["A hotel night."]), "utf-8")
    assert cli.main(["compress", ASKED, str(file), *arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "BadInput"
    assert words in error["message"] + error["hint"]


@pytest.mark.parametrize(
    ("content", "asked", "words"),
    [
        (lines(["a"]), "x" * 4097, "`4097` characters"),
        (lines(["a"]), " ", "1 to 4,096"),
        (lines(["a"] * (MAX_CANDIDATES + 1)), ASKED, f"`{MAX_CANDIDATES + 1}` passages"),
        ('{"text": "\\ud800"}\n', ASKED, "line 1"),
        ('{"text": "a", "id": "b"}\n{"text": "c", "id": "b"}\n', ASKED, "`b` is given twice"),
        ("", ASKED, "holds no passages"),
        ('{"text": "a"}\n', "\udcff", "query"),
    ],
    ids=["long query", "blank query", "too many", "half a pair", "twice", "empty file", "a query that is no text"],
)
def test_the_command_says_what_is_wrong(bare_home: Path, capsys: Any, content: str, asked: str, words: str) -> None:
    file = bare_home / "passages.jsonl"
    file.write_text(content, "utf-8")
    assert cli.main(["compress", asked, str(file), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "BadInput"
    assert words in error["message"] + error["hint"]


def over_mcp(home: Path, *calls: dict[str, Any]) -> list[Any]:
    session = Triptych("hostile", Settings.load(home=home))
    session.create()

    async def conversation() -> list[Any]:
        async with Client(build(lambda name=None: session, session.settings)) as client:
            return [await client.call_tool("compress", arguments) for arguments in calls]

    with session:
        return asyncio.run(conversation())


def test_the_server_answers_or_says_why(bare_home: Path) -> None:
    given_texts = {name: [text[:8000] for text in texts[:200]] for name, texts in TEXTS.items()}
    calls = [
        {"query": ASKED, "passages": [{"text": text} for text in texts], "max_tokens": 300}
        for texts in given_texts.values()
    ]
    for texts, said in zip(given_texts.values(), over_mcp(bare_home, *calls), strict=True):
        block = said.content[0].text
        if said.is_error:
            assert least_of(said.meta["triptych"]["error"]) > 300
            continue
        assert count(block) <= 300
        assert json.loads(block) == said.structured_content
        trace = said.meta["triptych"]
        for row, told in zip(said.structured_content["passages"], trace["passages"], strict=True):
            whole = texts[int(row["id"].removeprefix("given-")) - 1]
            at = 0
            for start, end in filter(None, told["spans"]):
                at = row["text"].find(whole[start:end], at)
                assert at >= 0
                at += end - start


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"passages": [{"text": "x" * 50_000}]}, "`50000` characters"),
        ({"passages": [{"text": "a"}] * 1000}, "at most 200 values"),
        ({"passages": [{"text": "a"}], "max_tokens": 0}, "`max_tokens` is `0`"),
        ({"passages": [{"text": "a"}], "max_tokens": -1}, "`max_tokens` is `-1`"),
        ({"passages": [{"text": "a"}], "max_tokens": 3}, "at least"),
        ({"passages": [{"text": "a"}], "query": "x" * 4097}, "`4097` characters"),
        ({"passages": [{"text": "a"}], "query": " "}, "1 to 4,096"),
        ({"passages": []}, "Either `ids` or `passages`"),
        ({"passages": [{"text": "a"}, {"text": None}]}, "`passages[1].text`"),
        ({"passages": '[{"text": "\\ud800"}]'}, "`passages` is"),
        ({"ids": '["\\ud800"]'}, "`ids` is"),
    ],
)
def test_the_server_says_what_is_wrong(bare_home: Path, arguments: dict[str, Any], words: str) -> None:
    [said] = over_mcp(bare_home, arguments)
    assert said.is_error
    assert words in said.content[0].text


def test_half_of_a_surrogate_pair_is_no_text(bare_home: Path) -> None:
    session = Triptych("hostile", Settings.load(home=bare_home))
    for asked in ("\ud800", "a\udfff"):
        with pytest.raises(TriptychError, match="no text"):
            session.compress(asked, [Given(text="a")])
    with pytest.raises(ValidationError):
        Given(text="\ud800")
    with pytest.raises(BadInput, match="Document `2`"):
        TriptychCompressor(library=session).compress_documents([Document("a"), Document("\ud800")], "b")
    with pytest.raises(BadInput, match=r"`passages\[0\].text` is `.ud800`"):
        parse(CompressArguments, {"passages": [{"text": "\ud800"}]})
