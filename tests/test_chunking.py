"""Sentences and passages: exact offsets, nothing lost, nothing cut in two."""

from __future__ import annotations

import time

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from triptych.retrievers.base import MediaRef
from triptych.retrievers.chunking import (
    CHUNK_PIECES,
    UNIT_PIECES,
    chunk,
    document_id,
    passage_id,
    pieces,
    sentences,
)
from triptych.retrievers.readers.base import Document, Section

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
    text = (
        "委员会在星期二下午开会，会议一致同意从五月份开始提高差旅补\n"
        "贴的标准。新标准适用于所有员工，包括在海外分公司工作的员工\n"
        "以及实习生。"
    )
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


def document(*sections: str | Section, **meta: int) -> Document:
    made = tuple(Section(part) if isinstance(part, str) else part for part in sections)
    return Document("notes/rates.md", "Rates", "text/markdown", made, meta)


def headed(*titles: str, body: str) -> Section:
    return Section(f"{'#' * len(titles)} {titles[-1]}\n\n{body}\n\n", headings=titles)


SENTENCE = "The allowance of the committee covers the hotel, the train and one meal a day. "


def test_passage_ids_are_short_stable_and_distinct() -> None:
    assert passage_id("a/b.md", "hash", 0) == passage_id("a/b.md", "hash", 0)
    made = {passage_id(uri, content, n) for uri in ("a", "b") for content in ("x", "y") for n in range(50)}
    assert len(made) == 200
    assert all(regex.fullmatch("[a-z2-7]{13}", one) for one in made)
    assert passage_id("a", "b c", 1) != passage_id("a b", "c", 1)


def test_an_item_says_where_its_text_stands() -> None:
    first, second = headed("Rates", body=SENTENCE * 8), headed("Rates", "Meals", body=SENTENCE * 8)
    items = chunk(document(first, second, stripped=3), "hash")
    text = first.text + second.text
    assert [item.text for item in items] == [text[item.source.start : item.source.end] for item in items]
    assert [item.meta["headings"] for item in items] == [["Rates"], ["Rates", "Meals"]]
    assert [item.meta["ordinal"] for item in items] == [0, 1]
    assert [item.id for item in items] == [passage_id("notes/rates.md", "hash", n) for n in (0, 1)]
    for item in items:
        assert item.modality == "text" and item.source.page is None and item.source.box is None
        assert item.meta["document"] == document_id("notes/rates.md")
        assert (item.title, item.meta["mime"], item.meta["stripped"]) == ("Rates", "text/markdown", 3)


def test_offsets_are_those_of_the_page() -> None:
    media = [MediaRef("a.pdf", "application/pdf", page=n) for n in (1, 2)]
    line = (0, 5, 0.1, 0.2, 0.5, 0.25)
    pages = [
        Section("Alpha one\n", page=1, lines=(line, (6, 9, 0.6, 0.2, 0.9, 0.26)), media=media[0]),
        Section("Omega two", "page", 2, lines=((0, 9, 0.1, 0.4, 0.5, 0.45),), media=media[1], meta={"ocr": True}),
    ]
    first, second = chunk(document(*pages), "hash")
    assert (first.source.start, first.source.end, first.source.page) == (0, 9, 1)
    assert first.source.box == (0.1, 0.2, 0.9, 0.26)
    assert [first.text[a:b] for a, b, *_ in first.meta["lines"]] == ["Alpha", "one"]
    assert (second.source.start, second.source.page, second.modality) == (0, 2, "page")
    assert second.meta["ocr"] is True and second.media == media[1]


def test_lines_are_counted_from_the_passage() -> None:
    rows = [f"Row {n:03d} of the list is here.\n" for n in range(60)]
    starts = [sum(map(len, rows[:n])) for n in range(60)]
    lines = tuple((at, at + 28, 0.1, n / 60, 0.9, (n + 1) / 60) for n, at in enumerate(starts))
    items = chunk(document(Section("".join(rows), page=1, lines=lines)), "hash")
    assert len(items) > 1
    for item in items:
        assert [item.text[a:b] for a, b, *_ in item.meta["lines"]] == item.text.splitlines()
        tops = [line[3] for line in item.meta["lines"]]
        assert item.source.box == (0.1, min(tops), 0.9, max(line[5] for line in item.meta["lines"]))


def test_a_heading_stays_with_its_text() -> None:
    items = chunk(document(headed("One", body=SENTENCE * 8), headed("Two", body=SENTENCE * 8)), "hash")
    assert [item.text.startswith("# ") for item in items] == [True, True]
    many = chunk(document(*[headed(f"Part {n}", body=SENTENCE * 40) for n in range(5)]), "hash")
    assert all("allowance" in item.text for item in many)


def test_small_sections_share_a_passage_and_large_ones_do_not() -> None:
    small = chunk(document(*[headed("Top", f"Part {n}", body="A short note.") for n in range(4)]), "hash")
    assert len(small) == 1 and small[0].meta["headings"] == ["Top"]
    large = chunk(document(*[headed(f"Part {n}", body=SENTENCE * 6) for n in range(4)]), "hash")
    assert [item.meta["headings"] for item in large] == [[f"Part {n}"] for n in range(4)]


def test_cuts_fall_between_paragraphs_then_rows_then_sentences() -> None:
    paragraphs = [SENTENCE * 6, SENTENCE * 7, SENTENCE * 5]
    items = chunk(document("\n\n".join(part.strip() for part in paragraphs)), "hash")
    assert [item.text for item in items] == [part.strip() for part in paragraphs]
    rows = "".join(f"| row {n} | {n * 17} | some remark on it |\n" for n in range(60))
    assert all(item.text.startswith("| row") and item.text.endswith("|") for item in chunk(document(rows), "hash"))
    prose = chunk(document(SENTENCE * 60), "hash")
    assert all(item.text.startswith("The") and item.text.endswith("day.") for item in prose)


def test_the_head_of_a_table_is_not_alone() -> None:
    table = "| City | Rate |\n|---|---|\n" + "".join(f"| Town {n} | {n}.50 |\n" for n in range(80))
    assert "Town 0" in chunk(document(table), "hash")[0].text


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE * 400,
        "委员会在星期二下午开会，会议一致同意从五月份开始提高差旅补贴的标准。" * 100,
        "def total(rows: list[Row]) -> float:\n    return sum(row.amount for row in rows if row.paid)\n\n" * 60,
        "| Oslo | 142.50 | 61 | with breakfast, from May |\n" * 100,
        "word " * 2000,
    ],
)
def test_passages_are_filled_and_never_above_the_limit(text: str) -> None:
    sizes = [pieces(item.text) for item in chunk(document(text), "hash")]
    assert max(sizes) <= CHUNK_PIECES
    assert sum(sizes[:-1]) >= 0.7 * CHUNK_PIECES * (len(sizes) - 1)


def test_a_word_without_end_is_cut_between_graphemes() -> None:
    family = "👩‍👩‍👧‍👦"
    items = chunk(document(family * 2000), "hash")
    assert len(items) > 10
    assert all(item.text.replace(family, "") == "" for item in items)
    assert "".join(item.text for item in chunk(document("x" * 50_000), "hash")) == "x" * 50_000


def test_blank_runs_do_not_make_a_passage_large() -> None:
    items = chunk(document("a" + " " * 100_000 + "b" + "\n" * 100_000 + "c"), "hash")
    assert max(len(item.text) for item in items) < 5_000
    assert "".join("".join(item.text.split()) for item in items) == "abc"


def test_blank_documents_have_no_passages() -> None:
    assert chunk(document(" \n\t\n "), "hash") == []
    assert chunk(document(), "hash") == []


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=5), st.integers(3, 40))
def test_passages_cover_every_visible_character_once(texts: list[str], limit: int) -> None:
    sections = [Section(text, headings=("H",) * (n % 2)) for n, text in enumerate(texts)]
    whole = "".join(texts)
    edges = graphemes(whole)
    # readers begin sections with whole characters
    assume({sum(map(len, texts[:n])) for n in range(len(texts))} <= edges)
    items = chunk(document(*sections), "hash", limit)
    covered = [0] * len(whole)
    for item in items:
        start, end = item.source.start, item.source.end
        assert item.text == whole[start:end] and item.text.strip()
        assert {start, end} <= edges
        covered[start:end] = [count + 1 for count in covered[start:end]]
    assert all(count == 1 for count, character in zip(covered, whole, strict=True) if not character.isspace())
    assert max(covered, default=0) <= 1
    assert [item.source.start for item in items] == sorted(item.source.start for item in items)


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_cutting_is_repeatable(text: str) -> None:
    assert chunk(document(text), "hash") == chunk(document(text), "hash")


def test_blank_lines_without_end_take_no_time() -> None:
    text = "x = 1\n" + "\n" * 20_000 + "y = 2\n" + "\n" * 20_000 + "z = 3\n"
    start = time.process_time()
    assert chunk(Document("a.py", "a", "text/x-python", (Section(text),)), "hash")
    assert time.process_time() - start < 5


def test_two_pictures_of_a_page_never_share_a_passage() -> None:
    sections = tuple(Section(f"Picture {n}.\n\n", "image", 1, meta={"picture": n}) for n in (1, 2))
    assert [one.text.strip() for one in chunk(Document("a.pdf", "a", "application/pdf", sections), "hash")] == [
        "Picture 1.",
        "Picture 2.",
    ]
