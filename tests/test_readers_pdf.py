"""Tables on PDF pages: kept as Markdown, every word once, prose left alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fpdf import FPDF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.retrievers.base import MediaRef
from triptych.retrievers.chunking import CHUNK_PIECES, chunk, pieces
from triptych.retrievers.readers import read

if TYPE_CHECKING:
    from triptych.retrievers.readers.base import Document

Columns = list[tuple[float, str]]
"""Where each column stands (mm), and whether its cells begin (`L`) or end (`R`) there."""

PROSE = (
    "The left column speaks of mountains and of rivers that run down to the sea in the spring of the year. " * 5,
    "On the right hand there are harbours and ships and the trade between them, which was large in 1931. " * 5,
)
RATES = [
    ["City", "2022", "2023", "Remark"],
    ["Oslo", "142.50", "151.00", "with breakfast"],
    ["Rome", "118.00", "124.50", "city tax extra"],
    ["Tallinn", "88.00", "91.25", "from May"],
    ["Bergen", "-", "139.75", "two nights at least"],
]


def page(*, size: float = 10) -> FPDF:
    made = FPDF()
    made.set_auto_page_break(False)
    made.set_font("Helvetica", size=size)
    made.add_page()
    return made


def ruled(made: FPDF, rows: list[list[str]], **options: Any) -> None:
    with made.table(**options) as table:
        for row in rows:
            cells = table.row()
            for cell in row:
                cells.cell(cell)


def aligned(made: FPDF, rows: list[list[str]], columns: Columns, top: float = 40, pitch: float = 5) -> None:
    """Rows without rules; a cell of several lines takes as many, the next row begins below the longest."""
    y = top
    for row in rows:
        lines = [cell.split("\n") for cell in row]
        for (x, side), cell in zip(columns, lines, strict=True):
            for n, line in enumerate(cell):
                made.text(x - (made.get_string_width(line) if side == "R" else 0), y + 4 * n, line)
        y += pitch + 4 * (max(map(len, lines)) - 1)


def opened(folder: Path, made: FPDF) -> Document:
    path = folder / "a.pdf"
    made.output(str(path))
    return read(path, "box/a.pdf")


def text_of(document: Document) -> str:
    return "".join(section.text for section in document.sections)


def markdown(rows: list[list[str]], *, head: bool = True) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]] if head else lines)


def words_of(text: str) -> Counter[str]:
    return Counter(text.replace("|---", " ").replace("|", " ").split())


def check_places(document: Document) -> None:
    """Lines and passages stand at their offsets, and every passage has a box on its page."""
    pages: dict[int | None, str] = {}
    for section in document.sections:
        pages[section.page] = pages.get(section.page, "") + section.text
        ends = [0, *(end for _, end, *_ in section.lines)]
        assert all(before <= start < end for before, (start, end, *_) in zip(ends, section.lines, strict=False))
        assert all(section.text[a:b].strip() for a, b, *_ in section.lines)
    for item in chunk(document, "hash"):
        assert pages[item.source.page][item.source.start : item.source.end] == item.text
        assert item.source.box is not None and 0 <= item.source.box[0] < item.source.box[2] <= 1


@pytest.mark.parametrize("borders", ["ALL", "MINIMAL", "HORIZONTAL_LINES", "SINGLE_TOP_LINE", "NO_HORIZONTAL_LINES"])
def test_a_table_with_rules_and_wrapped_cells(tmp_path: Path, borders: str) -> None:
    made = page()
    made.multi_cell(0, 6, "What a night costs in each of the cities, by year.")
    made.ln(5)
    rows = [
        *RATES,
        ["Turku", "70.10", "72.00", "far" if borders != "ALL" else "a remark that is far too long for its cell"],
    ]
    ruled(made, rows, borders_layout=borders, text_align=("LEFT", "RIGHT", "RIGHT", "LEFT"))
    document = opened(tmp_path, made)
    assert text_of(document).strip().endswith("by year.\n\n" + markdown(rows))
    check_places(document)


def test_empty_and_merged_cells_keep_their_column(tmp_path: Path) -> None:
    made = page()
    rows = [["Item", "2022", "2023"], ["Boats", "", "63,275"], ["Staff", "163,020", ""], ["Sum", "1", "2"]]
    with made.table() as table:
        for row in rows:
            cells = table.row()
            for cell in row:
                cells.cell(cell)
        wide = table.row()
        wide.cell("reaches over two", colspan=2)
        wide.cell("9")
    expected = markdown([*rows, ["reaches over two", "", "9"]])
    assert text_of(opened(tmp_path, made)).strip() == expected


def test_a_row_of_one_cell_belongs_to_its_table(tmp_path: Path) -> None:
    made = page()
    rows = [
        ["Item", "2022", "2023"],
        ["Assets", "", ""],
        ["Boats", "57,930", "63,275"],
        ["Staff", "163,020", "171,840"],
    ]
    ruled(made, rows)
    assert text_of(opened(tmp_path, made)).strip() == markdown(rows)


def test_numbers_set_right_below_each_other(tmp_path: Path) -> None:
    made = page()
    made.text(20, 25, "Costs of the station, in crowns, as the council saw them in the spring of the year.")
    rows = [
        ["", "2022", "2023"],
        ["Staff and volunteers", "163,020", "171,840"],
        ["Boats", "57,930", "63,275"],
        ["Energy and water", "(31,480)", "29,610"],
        ["Total", "252,430", "264,725"],
    ]
    aligned(made, rows, [(20, "L"), (110, "R"), (140, "R")])
    made.text(20, 80, "Notes are on the next page, and are part of this account.")
    document = opened(tmp_path, made)
    assert markdown(rows[1:], head=False) in text_of(document) or markdown(rows) in text_of(document)
    assert text_of(document).startswith("Costs of the station") and text_of(document).strip().endswith("account.")
    check_places(document)


def test_signs_of_currency_stand_with_their_number(tmp_path: Path) -> None:
    made = page()
    rows = [["(in millions)", "", "2022", "", "2023"], ["Revenue", "$", "1,163", "$", "1,171"]]
    rows += [["Cost", "", "57", "", "63"], ["Net", "$", "1,106", "$", "1,108"]]
    aligned(made, rows, [(20, "L"), (90, "L"), (110, "R"), (120, "L"), (140, "R")])
    kept = [["(in millions)", "2022", "2023"], ["Revenue", "$ 1,163", "$ 1,171"], ["Cost", "57", "63"]]
    assert text_of(opened(tmp_path, made)).strip() == markdown([*kept, ["Net", "$ 1,106", "$ 1,108"]])


def test_groups_and_wrapped_cells_without_rules(tmp_path: Path) -> None:
    made = page()
    rows = [*RATES[:2], ["Southern cities", "", "", ""], ["Rome", "118.00", "124.50", "city tax extra,\nat the desk"]]
    rows += RATES[3:]
    aligned(made, rows, [(20, "L"), (80, "R"), (110, "R"), (120, "L")], pitch=7)
    kept = [[cell.replace("\n", " ") for cell in row] for row in rows]
    assert text_of(opened(tmp_path, made)).strip() == markdown(kept)


def test_a_table_of_words_needs_three_columns(tmp_path: Path) -> None:
    rows = [["Name", "Task", "House"], ["Ingrid", "director", "one"], ["Tomas", "warden", "three"]]
    rows += [["Anneke", "engineer", "one"], ["Col", "skipper", "slip"]]
    made = page()
    aligned(made, rows, [(20, "L"), (60, "L"), (100, "L")])
    assert text_of(opened(tmp_path, made)).strip() == markdown(rows)
    made = page()
    aligned(made, [row[:2] for row in rows], [(20, "L"), (60, "L")])
    assert "|" not in text_of(opened(tmp_path, made))


def test_a_long_table_is_cut_into_blocks_with_its_head(tmp_path: Path) -> None:
    made = FPDF()
    made.set_font("Helvetica", size=10)
    made.add_page()
    rows = [["Job", "Hours", "Part"], *([f"Change filter {n}", str(100 * n), f"OF-{n:04}"] for n in range(1, 80))]
    ruled(made, rows, repeat_headings=0)
    document = opened(tmp_path, made)
    check_places(document)
    head = markdown(rows[:1])
    items = chunk(document, "hash")
    assert {item.source.page for item in items} == {1, 2, 3}
    assert all(item.text.startswith(head) and pieces(item.text) <= CHUNK_PIECES for item in items)
    found = [line for item in items for line in item.text.split("\n")[2:]]
    assert found == [markdown([row], head=False) for row in rows[1:]]


def test_the_head_that_a_page_goes_on_with_stands_on_no_line_there(tmp_path: Path) -> None:
    made = page()
    columns: Columns = [(20, "L"), (80, "R"), (110, "R"), (120, "L")]
    rows = [
        ["Turku", "70.10", "72.00", "far"],
        ["Vaasa", "61.40", "62.00", "north"],
        ["Pori", "55.00", "56.00", "west"],
    ]
    aligned(made, RATES, columns, top=240)
    made.text(100, 285, "page 1")
    made.add_page()
    aligned(made, rows, columns)
    made.text(20, 90, "Rates are those of the council.")
    document = opened(tmp_path, made)
    second = [section for section in document.sections if section.page == 2]
    text = "".join(section.text for section in second)
    assert text.startswith(markdown([RATES[0], *rows]) + "\n\nRates are those")
    assert not any("City" in section.text[a:b] for section in second for a, b, *_ in section.lines)
    check_places(document)


@pytest.mark.parametrize("width", [45, 60, 90])
def test_columns_of_prose_are_no_table(tmp_path: Path, width: int) -> None:
    made = page()
    for n, text in enumerate(PROSE):
        made.set_xy(10 + n * (width + 6), 20)
        made.multi_cell(width, 5, text, align="J" if width > 50 else "L")
    document = opened(tmp_path, made)
    assert "|" not in text_of(document)
    assert " ".join(text_of(document).split()) == " ".join("".join(PROSE).split())


@pytest.mark.parametrize(
    "rows",
    [
        [["-", "the first thing that is to be done"], ["-", "the second, which comes later"], ["-", "a third"]] * 2,
        [["1.", "Loosen the bolt of 1931"], ["2.", "Lift it"], ["3.", "Turn it by 90 degrees"], ["4.", "Fasten it"]],
        [["Date:", "3 May of the year after"], ["Place:", "House Three, upper floor"], ["Present:", "all members"]],
        [["Introduction ................", "1"], ["What was seen ...............", "7"], ["Notes ..........", "9"]],
    ],
)
def test_lists_letters_and_contents_are_no_table(tmp_path: Path, rows: list[list[str]]) -> None:
    made = page()
    aligned(made, rows, [(20, "L"), (60 if len(rows[0][0]) < 12 else 120, "L")])
    text = text_of(opened(tmp_path, made))
    assert "|" not in text
    assert words_of(text) == words_of(" ".join(cell for row in rows for cell in row))


def test_prose_around_and_beside_a_table_is_whole(tmp_path: Path) -> None:
    made = page()
    made.set_xy(10, 20)
    made.multi_cell(190, 5, PROSE[0])
    ruled(made, RATES)
    made.multi_cell(190, 5, PROSE[1])
    text = text_of(opened(tmp_path, made))
    before, table, after = text.partition(markdown(RATES))
    assert table and [" ".join(part.split()) for part in (before, after)] == [part.strip() for part in PROSE]


CELL = st.text("abcdefgh XYZ", min_size=1, max_size=12).map(str.split).map(" ".join).filter(bool)
NUMBERS = st.integers(-9999, 99999).map("{:,}".format)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(CELL, NUMBERS, NUMBERS | st.just(""), CELL), min_size=2, max_size=30),
    st.sampled_from(["ruled", "aligned", "both"]),
    st.integers(0, 99),
)
def test_no_word_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, body: list[tuple[str, ...]], way: str, seed: int
) -> None:
    rows = [["Name", "First", "Second", "Note"], *map(list, body)]
    chance = random.Random(seed)
    made = page(size=chance.choice((8, 10)))
    if way != "ruled":
        top = chance.uniform(20, 40)
        aligned(made, rows, [(20, "L"), (90, "R"), (120, "R"), (130, "L")], top=top, pitch=chance.choice((4, 5)))
    if way != "aligned":
        made.set_y(200)
        ruled(made, rows[:8])
    document = opened(tmp_path_factory.getbasetemp(), made)
    expected = Counter(" ".join(cell for row in rows for cell in row).split()) if way != "ruled" else Counter()
    expected += Counter(" ".join(cell for row in rows[:8] for cell in row).split()) if way != "aligned" else Counter()
    found = words_of(text_of(document))
    heads = {name: found[name] - expected[name] for name in rows[0]}
    assert found - Counter(dict.fromkeys(rows[0], 99)) == expected - Counter(dict.fromkeys(rows[0], 99))
    assert all(extra >= 0 for extra in heads.values())
    check_places(document)


def test_a_captioned_picture_is_an_item_with_its_place(tmp_path: Path) -> None:
    made = page()
    made.set_font("Helvetica", "B", 16)
    made.text(20, 20, "Seals of the bay")
    made.set_font("Helvetica", size=10)
    made.text(20, 30, "Figure 2 shows what was seen on the ice in the spring of the year, and where.")
    made.image(Image.new("RGB", (300, 200), (90, 120, 160)), 20, 40, 90, 60)
    made.text(20, 105, "Figure 2. A seal on the ice, seen from")
    made.text(20, 109.5, "the tower at noon")
    made.text(20, 125, "The next paragraph is about something else, and is not a caption.")
    made.image(Image.new("RGB", (300, 200), (160, 120, 90)), 20, 200, 90, 60)
    made.image(Image.new("RGB", (8, 8)), 150, 100, 3, 3)
    document = opened(tmp_path, made)
    check_places(document)
    (seal,) = (section for section in document.sections if section.modality == "image")
    assert seal.text == "Figure 2. A seal on the ice, seen from the tower at noon\n\n"
    assert (seal.page, seal.headings, seal.meta) == (1, ("Seals of the bay",), {"picture": 1})
    assert seal.media == MediaRef("box/a.pdf", "application/pdf", page=1)
    (line,) = seal.lines
    assert line[2:] == pytest.approx((20 / 210, 40 / 297, 110 / 210, 110.5 / 297), abs=0.01)
