"""Sentences and passages: exact offsets, nothing lost, nothing cut in two."""

from __future__ import annotations

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.retrievers.chunking import UNIT_PIECES, pieces, sentences

EMOJI = ["👩‍👩‍👧‍👦", "🇩🇪", "🇫🇷", "👍🏽", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "é", "ก็", "नि", "각", "が", "漢字", "你好。", "A\u0301."]
WORDS = [
    "Rates",
    "rise.",
    "e.g.",
    "in 2024,",
    "(see p. 3)",
    "- item",
    "| a | b |",
    "\n",
    "\n\n",
    " ",
    "\t",
    "  \n",
    "# Head",
]
TEXTS = st.lists(st.sampled_from(EMOJI + WORDS) | st.text(max_size=12), max_size=60).map("".join)


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def graphemes(text: str) -> set[int]:
    return {0, *(match.end() for match in regex.finditer(r"\X", text))}


def test_sentences_of_prose_keep_abbreviations_and_numbers_whole() -> None:
    text = 'Dr. Smith paid $3.50 in U.S. currency. He left!  Then: "Why?" she said.\n\nA new one, e.g. this. End'
    assert cut(text) == [
        "Dr. Smith paid $3.50 in U.S. currency. ",
        "He left!  ",
        'Then: "Why?" she said.\n\n',
        "A new one, e.g. this. ",
        "End",
    ]


def test_sentences_of_chinese() -> None:
    assert cut("你好。世界！“他说：走吧。”我们走了？是的；好。") == [
        "你好。",
        "世界！",
        "“他说：走吧。”",
        "我们走了？",
        "是的；好。",
    ]


def test_sentences_need_a_terminal_mark() -> None:
    assert cut("Loss on disposals (72) 1,510 (1) 38 (6) (8) Total. (2) Net of tax.") == [
        "Loss on disposals (72) 1,510 (1) 38 (6) (8) Total. ",
        "(2) Net of tax.",
    ]
    assert cut("(2) Net of tax. (5) Reflects the disposal of operations. Sales (775) rose.")[1:] == [
        "(5) Reflects the disposal of operations. ",
        "Sales (775) rose.",
    ]
    assert cut('    """Opens the folder."""\n') == ['    """Opens the folder."""\n']
    assert cut("他于2002年入队。2011年离开。") == ["他于2002年入队。", "2011年离开。"]


def test_wrapped_prose_is_joined() -> None:
    text = (
        "The committee met on Tuesday afternoon and agreed that the\n"
        "travel allowance of 2019 should be raised. The new rates\n"
        "apply from May.\n"
    )
    assert cut(text) == [
        "The committee met on Tuesday afternoon and agreed that the\ntravel allowance of 2019 should be raised. ",
        "The new rates\napply from May.\n",
    ]


def test_wrapped_chinese_is_joined() -> None:
    text = "委员会在星期二下午开会，会议一致同意从五月份开始提高差旅补\n贴的标准。新标准适用于所有员工，包括在海外分公司工作的员工\n以及实习生。"
    assert len(cut(text)) == 2


@pytest.mark.parametrize(
    "rows",
    [
        ["Coffee 3.50\n", "Tea 2.00\n", "Total 5.50"],
        [
            "- pack the tent that we bought together in spring\n",
            "- pack the food for the whole of the long weekend\n",
            "- go",
        ],
        ["1. Open the lid of the machine and look inside it.\n", "2. Close the lid of the machine and press start.\n"],
        ["| Dr. No. He left. | x. Y |\n", "| City | Rate |\n", "|---|---|\n", "| Oslo | 12 |\n", "| Rome | 15 |\n"],
        ["Distance from the office to the site\t120\t45\n", "Distance from the site to the airport\t80\t30\n"],
        ["# A heading that is long enough to look like wrapped\n", "prose follows here"],
        [
            "```\n",
            "alpha = first_function_with_a_long_name(argument)\n",
            "beta = second_function_with_a_long_name(other)\n",
            "```\n",
        ],
        [
            "2024-01-01 12:00:00 ERROR the disk of the server is full\n",
            "2024-01-01 12:00:05 ERROR the disk is still quite full",
        ],
        ["Name: Ada Lovelace of the Analytical Society\n", "Address: 12 St James's Square, London, England\n"],
        ["for (int i = 0; i < number_of_rows; i++) {\n", "    total_of_all_rows += rows[i].amount_in_cents;\n", "}\n"],
    ],
)
def test_rows_are_units(rows: list[str]) -> None:
    assert cut("".join(rows)) == rows


def test_a_list_item_keeps_its_indented_second_line() -> None:
    rows = ["- the first item goes on and on until the line is full and\n  ends on the second line\n", "- second item"]
    assert cut("".join(rows)) == rows


def test_long_units_are_cut_after_clauses() -> None:
    clause = "the allowance that was agreed upon covers the night at the hotel and the train, "
    parts = cut(clause * 30)
    assert all(part.endswith("train, ") for part in parts)
    assert max(map(pieces, parts)) <= UNIT_PIECES
    assert min(map(pieces, parts[:-1])) > UNIT_PIECES // 2


def test_long_units_without_clauses_are_cut_between_words_or_characters() -> None:
    assert all(part.endswith(" ") for part in cut("word " * 500))
    assert max(map(len, cut("字" * 500))) <= UNIT_PIECES
    assert "".join(cut("x" * 50_000)) == "x" * 50_000


def test_sentences_of_nothing() -> None:
    assert sentences("") == []
    assert sentences(" \n\t ") == []


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_sentences_partition_any_text_at_graphemes(text: str) -> None:
    spans = sentences(text)
    assert "".join(text[a:b] for a, b in spans) == (text if text.strip() else "")
    assert all(text[a:b].strip() for a, b in spans)
    assert {edge for span in spans for edge in span} <= graphemes(text)
