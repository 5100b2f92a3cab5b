"""Office, books, tables, data and mail: what is shown, where it stands, and nothing of what is hidden."""

from __future__ import annotations

import io
import json
import random
import sys
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from datetime import time as clock
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
import xlsxwriter
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import parse_xml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from pptx.util import Inches

from triptych import Settings, Triptych, progress
from triptych.errors import Cancelled, MissingExtra, UnreadableFile
from triptych.retrievers import readers
from triptych.retrievers.chunking import CHUNK_PIECES, chunk, pieces
from triptych.retrievers.readers import read
from triptych.retrievers.readers._numbers import shown
from triptych.retrievers.readers.base import Document, Limits, Section

sys.path.append(str(Path(__file__).parent))
from made_files import (
    CSV,
    DATA,
    FILES,
    LINES,
    W,
    changed,
    epub,
    mail,
    notebook,
    paragraph,
    parts_of,
    saved,
    sheets,
    slides,
    word,
    zipped,
)
from mutants import mutated_file

OFFICE = "application/vnd.openxmlformats-officedocument"
KINDS = {
    "a.docx": f"{OFFICE}.wordprocessingml.document",
    "a.pptx": f"{OFFICE}.presentationml.presentation",
    "a.xlsx": f"{OFFICE}.spreadsheetml.sheet",
    "a.epub": "application/epub+zip",
    "a.eml": "message/rfc822",
    "a.ipynb": "application/x-ipynb+json",
    "a.csv": "text/csv",
    "a.tsv": "text/tab-separated-values",
    "a.json": "application/json",
    "a.jsonl": "application/x-ndjson",
    "a.py": "text/x-python",
}


def make(folder: Path, name: str, content: bytes | str, limits: Limits | None = None) -> Document:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path, f"box/{name}", limits)


def text_of(document: Document) -> str:
    return "".join(section.text for section in document.sections)


def refused(
    folder: Path, name: str, content: bytes | str, limits: Limits | None = None, seconds: float = 10
) -> UnreadableFile:
    """The error that reading `content` ends in: soon, named, with a hint, without a path of the machine."""
    start = time.monotonic()
    with pytest.raises(UnreadableFile) as caught:
        make(folder, name, content, limits)
    assert time.monotonic() - start < seconds
    assert f"`box/{name}`" in caught.value.message
    assert caught.value.hint
    assert str(folder) not in str(caught.value)
    return caught.value


# -- kinds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_each_kind(tmp_path: Path, name: str) -> None:
    document = make(tmp_path, name, FILES[name]())
    assert document.mime == KINDS[name]
    assert text_of(document).strip() and "secret" not in text_of(document) and "deleted" not in text_of(document)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "a.py"])
@pytest.mark.parametrize("other", ["noname", "a.txt", "a.pdf"])
def test_what_a_file_holds_decides(tmp_path: Path, name: str, other: str) -> None:
    assert make(tmp_path, other, FILES[name]()).mime == KINDS[name]


@pytest.mark.parametrize(
    "text",
    [
        "Dear all, the rate rises.\nIt was 142, it is 150.\nSo, plan for it, please.\nYours, Åse\n",
        "[1] Smith, Rates, 2024\n[2] Berg, Trains, 2023\n",
        "[section]\nkey = value\n",
        "{{ template }} of words\n",
        "From here on, nothing else matters.\n\nTo: the point.\n",
        "Note: this\nSubject: that\nFrom: none\n",
        "a,b\n1,2\n",
    ],
)
def test_prose_stays_plain_text(tmp_path: Path, text: str) -> None:
    document = make(tmp_path, "a.txt", text)
    assert (document.mime, text_of(document)) == ("text/plain", text)


def test_json_that_does_not_parse_is_plain_text(tmp_path: Path) -> None:
    for text in ('{"a": 1, // why\n "b": 2}', '{"a": [1, 2', "[" * 100_000, '{"a": ' * 5000):
        document = make(tmp_path, "a.json", text)
        assert (document.mime, text_of(document)) == ("text/plain", text)


def test_archives_are_named_and_not_opened(tmp_path: Path) -> None:
    for content, name in (
        (zipped({"a.txt": "words"}), "ZIP"),
        (zipped({"b.docx": word()}), "ZIP"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z"),
        (b"Rar!\x1a\x07\x00" + bytes(50), "RAR"),
        (b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "tar"),
    ):
        error = refused(tmp_path, "a.docx", content)
        assert "is an archive" in error.message and f"({name})" in error.message and "npack" in error.hint
    odf = zipped({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<a/>"})
    assert "OpenDocument" in refused(tmp_path, "a.odt", odf).message
    old = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
    assert "before 2007" in refused(tmp_path, "a.doc", old).message
    assert "encrypted" in refused(tmp_path, "a.xlsx", old + "EncryptedPackage".encode("utf-16-le")).message


# -- Word --------------------------------------------------------------------------------------------------------------


def test_word_is_what_word_shows(tmp_path: Path) -> None:
    document = make(tmp_path, "a.docx", word())
    assert document.title == "Travel rules"
    assert [(section.headings, section.text) for section in document.sections] == [
        (("Travel rules",), "# Travel rules\n\n"),
        (
            ("Travel rules", "Rates & rules"),
            "# Rates & rules\n\nThe allowance covers the hotel and the train.\n\n- one\n- two\n1. first\n2. second\n\n",
        ),
        (
            ("Travel rules", "Rates & rules", "By city"),
            "## By city\n\n| City | Night |\n|---|---|\n| Oslo | 142 \\| x |\n| Rome | 118 |\n\nKept inserted",
        ),
    ]


def document_of(*blocks: str, **parts: str) -> bytes:
    """A Word file whose body is `blocks` of XML, with further parts named by their relation."""
    made = docx.Document()
    body = made.element.body
    for block in blocks:
        body.insert(len(body) - 1, paragraph(block) if not block.startswith("<w:tbl") else parsed(block))
    content = saved(made)
    for name, xml in parts.items():
        content = related(content, name, xml)
    return content


def parsed(xml: str) -> Any:
    return parse_xml(xml.replace("<w:tbl>", f"<w:tbl {W}>", 1))


def related(content: bytes, name: str, xml: str) -> bytes:
    """`content` with the part `name`, to which the document relates."""
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/" + name
    relation = f'<Relationship Id="x{name}" Type="{kind}" Target="{name}.xml"/></Relationships>'.encode()
    types = f'<Override PartName="/word/{name}.xml" ContentType="application/xml"/></Types>'.encode()
    content = changed(content, "word/_rels/document.xml.rels", lambda old: old.replace(b"</Relationships>", relation))
    content = changed(content, "[Content_Types].xml", lambda old: old.replace(b"</Types>", types))
    return zipped({**parts_of(content), f"word/{name}.xml": xml})


def test_word_footnotes_stand_below_their_paragraph(tmp_path: Path) -> None:
    reference = '<w:r><w:t>A claim</w:t></w:r><w:r><w:footnoteReference w:id="7"/></w:r><w:r><w:t>.</w:t></w:r>'
    notes = (
        f'<w:footnotes {W}><w:footnote w:id="7"><w:p><w:r><w:t>Its source.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    )
    content = document_of(reference, "<w:r><w:t>Next.</w:t></w:r>", footnotes=notes)
    assert text_of(make(tmp_path, "a.docx", content)) == "A claim[^1].\n\n[^1]: Its source.\n\nNext."


def test_word_text_boxes_pictures_fields_and_controls(tmp_path: Path) -> None:
    box = "<w:txbxContent><w:p><w:r><w:t>in a box</w:t></w:r></w:p></w:txbxContent>"
    names = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    halves = f'<mc:Choice Requires="wps">{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>'
    twice = f"<w:r><mc:AlternateContent {names}>{halves}</mc:AlternateContent></w:r>"
    drawing = 'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"'
    content = document_of(
        f"<w:r><w:t>Before</w:t></w:r>{twice}",
        f'<w:r><w:drawing><wp:inline {drawing}><wp:docPr descr="A chart of rain"/></wp:inline></w:drawing></w:r>',
        "<w:r><w:instrText>SECRET</w:instrText></w:r><w:r><w:t>Page 3</w:t></w:r>",
        "<w:sdt><w:sdtContent><w:r><w:t>controlled</w:t></w:r></w:sdtContent></w:sdt>",
        '<w:r><w:rPr><w:sz w:val="1"/></w:rPr><w:t>specks</w:t></w:r>'
        "<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r>",
    )
    expected = "Before\n\nin a box\n\nA chart of rain\n\nPage 3\n\ncontrolled\n\na\tb\nc"
    text, picture = make(tmp_path, "a.docx", content).sections
    assert (text.text, text.modality) == (f"{expected}\n\n", "text")
    assert (picture.text, picture.modality, picture.meta) == ("A chart of rain\n\n", "image", {"picture": 1})


def test_word_numbers_headings_and_lists_as_it_shows_them(tmp_path: Path) -> None:
    levels = [("decimal", "%1."), ("decimal", "%1.%2"), ("lowerLetter", "(%3)"), ("upperRoman", "%4"), ("bullet", "")]
    xml = "".join(
        f'<w:lvl w:ilvl="{n}"><w:start w:val="1"/><w:numFmt w:val="{kind}"/><w:lvlText w:val="{text}"/></w:lvl>'
        for n, (kind, text) in enumerate(levels)
    )
    restart = '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="4"/></w:lvlOverride>'
    numbering = (
        f'<w:numbering {W}><w:abstractNum w:abstractNumId="0">{xml}</w:abstractNum><w:num w:numId="1">'
        f'<w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="0"/>{restart}</w:num>'
        "</w:numbering>"
    )

    def item(text: str, level: int, number: int = 1, style: str = "") -> str:
        styled = f'<w:pStyle w:val="{style}"/>' if style else ""
        listed = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'
        return f"<w:pPr>{styled}{listed}</w:pPr><w:r><w:t>{text}</w:t></w:r>"

    content = document_of(
        item("Scope", 0, style="Heading1"),
        item("Terms", 1, style="Heading2"),
        item("rate", 2),
        item("night", 2),
        item("deep", 3),
        item("dot", 4),
        item("Duties", 0, style="Heading1"),
        item("again", 0, number=2),
    )
    parts = parts_of(content)
    content = zipped({**parts, "word/numbering.xml": numbering})
    document = make(tmp_path, "a.docx", content)
    assert [section.headings for section in document.sections] == [
        ("1. Scope",),
        ("1. Scope", "1.1 Terms"),
        ("2. Duties",),
    ]
    assert text_of(document) == (
        "# 1. Scope\n\n## 1.1 Terms\n\n    (a) rate\n    (b) night\n      I deep\n        - dot\n\n"
        "# 2. Duties\n\n4. again"
    )


def test_word_tables(tmp_path: Path) -> None:
    made = docx.Document()
    table = made.add_table(3, 3)
    for n, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"c{n}"
    table.cell(1, 0).merge(table.cell(2, 0))
    table.cell(0, 1).merge(table.cell(0, 2))
    one = made.add_table(2, 1)
    one.cell(0, 0).text, one.cell(1, 0).text = "arranged", "text"
    wide = made.add_table(1, 2)
    wide.cell(0, 0).text, wide.cell(0, 1).text = "Menu", "word " * 400
    text = text_of(make(tmp_path, "a.docx", saved(made)))
    assert text.startswith(
        "| c0 | c1 c2 |  |\n|---|---|---|\n| c3 c6 | c4 | c5 |\n| c3 c6 | c7 | c8 |\n\n"
        "arranged\n\ntext\n\nMenu\n\nword word"
    )


def test_word_hides_what_its_styles_hide(tmp_path: Path) -> None:
    made = docx.Document()
    style = made.styles.add_style("Quiet", WD_STYLE_TYPE.CHARACTER)
    style.font.hidden = True
    line = made.add_paragraph("seen ")
    line.add_run("secret", style="Quiet")
    line.add_run("again", style="Quiet").font.hidden = False
    assert text_of(make(tmp_path, "a.docx", saved(made))) == "seen again"


def test_word_titles(tmp_path: Path) -> None:
    made = docx.Document()
    made.add_paragraph("no heading at all")
    assert make(tmp_path, "a.docx", saved(made)).title == "a.docx"
    made.core_properties.title = "Stated"
    assert make(tmp_path, "a.docx", saved(made)).title == "Stated"
    made.add_heading("Shown", 0)
    assert make(tmp_path, "a.docx", saved(made)).title == "Shown"


@pytest.mark.parametrize(
    "kind", [b"ms-word.document.macroEnabled", b"openxmlformats-officedocument.wordprocessingml.template"]
)
def test_word_files_with_macros_and_templates_are_read(tmp_path: Path, kind: bytes) -> None:
    plain = b"openxmlformats-officedocument.wordprocessingml.document"
    content = changed(word(), "[Content_Types].xml", lambda old: old.replace(plain + b".main", kind + b".main"))
    assert "the hotel and the train" in text_of(make(tmp_path, "a.docm", content))


# -- PowerPoint --------------------------------------------------------------------------------------------------------


def test_slides_are_pages(tmp_path: Path) -> None:
    document = make(tmp_path, "a.pptx", slides())
    assert (document.title, document.meta["pages"]) == ("Rates 2024", 3)
    assert [(s.page, s.headings, s.meta, s.text.strip()) for s in document.sections] == [
        (1, ("Rates 2024",), {}, "# Rates 2024\n\n- Hotels\n  - Oslo 142\n- Trains"),
        (1, ("Rates 2024", "Speaker notes"), {"notes": True}, "## Speaker notes\n\nSay that Rome comes later."),
        (
            *(2, ("Table",), {}),
            "# Table\n\nleft\n\nright\n\n| City | Night |\n|---|---|\n| Oslo | 142 |\n\nbelow",
        ),
        (3, ("Backup",), {"hidden": True}, "# Backup\n\n|  | Nights |\n|---|---|\n| Oslo | 142 |\n| Rome | 118 |"),
    ]
    items = chunk(document, "hash")
    assert [item.source.page for item in items if "Rome" in item.text] == [1, 3]
    assert [item.meta.get("hidden") for item in items if item.source.page == 3] == [True]


def test_slide_groups_merged_cells_and_hidden_shapes(tmp_path: Path) -> None:
    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[6])
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, 100, 100).text_frame.text = "grouped"
    secret = slide.shapes.add_textbox(0, 0, 100, 100)
    secret.text_frame.text = "secret"
    secret._element.nvSpPr.cNvPr.set("hidden", "1")
    picture = slide.shapes.add_textbox(0, Inches(1), 100, 100)
    picture._element.nvSpPr.cNvPr.set("descr", "A chart of rain")
    table = slide.shapes.add_table(2, 2, 0, Inches(2), 100, 100).table
    for n in range(4):
        table.cell(n // 2, n % 2).text = f"c{n}"
    table.cell(0, 0).merge(table.cell(1, 0))
    text = text_of(make(tmp_path, "a.pptx", saved(made)))
    assert text == "grouped\n\nA chart of rain\n\n| c0 c2 | c1 |\n|---|---|\n| c0 c2 | c3 |"


def test_too_many_slides(tmp_path: Path) -> None:
    error = refused(tmp_path, "a.pptx", slides(), Limits(max_pages=2))
    assert "3 slides, more than `max_pages` = 2" in error.message


# -- Excel and tables --------------------------------------------------------------------------------------------------


def test_sheets_are_pages_and_rows_have_numbers(tmp_path: Path) -> None:
    document = make(tmp_path, "a.xlsx", sheets())
    assert [(s.page, s.headings, s.meta["rows"], s.text) for s in document.sections] == [
        (1, ("Rates", "row 1"), [1, 1], "# Rates, row 1\n\nTravel rates of the station\n\n"),
        (
            *(1, ("Rates", "rows 3–6"), [3, 6]),
            "# Rates, rows 3–6\n\n| City | Night | Share | From |\n|---|---|---|---|\n"
            "| Oslo | 1,142.50 | 25.6% | 03.05.2024 |\n| Rome | 118.00 | 10.0% | 01.06.2024 |\n\n",
        ),
        (3, ("Trains", "row 1"), [1, 1], "# Trains, row 1\n\n| Bergen | TRUE |\n\n"),
    ]
    assert {key: document.meta[key] for key in ("sheets", "hidden_sheets", "hidden_rows")} == {
        "sheets": 2,
        "hidden_sheets": 1,
        "hidden_rows": 1,
    }


def test_every_passage_of_a_long_sheet_has_its_header_and_its_rows(tmp_path: Path) -> None:
    made = openpyxl.Workbook()
    made.active.append(["City", "Night"])
    for n in range(2, 400):
        made.active.append([f"Town number {n}", n * 1.5])
    items = chunk(make(tmp_path, "a.xlsx", saved(made)), "hash")
    assert len(items) > 10
    seen: list[int] = []
    for item in items:
        first, last = item.meta["rows"]
        assert item.text.startswith(f"# Sheet, rows {first}–{last}\n\n| City | Night |\n|---|---|\n")
        assert pieces(item.text) <= CHUNK_PIECES
        rows = [int(row.split("number ")[1].split(" ")[0]) for row in item.text.split("\n") if "number" in row]
        assert rows == list(range(max(first, 2), last + 1))
        seen += rows
    assert seen == list(range(2, 400))


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (None, "General", ""),
        (True, "General", "TRUE"),
        (3.0, "General", "3"),
        (0.1 + 0.2, "General", "0.3"),
        (10**20, "General", "100000000000000000000"),
        (0.256, "0%", "26%"),
        (-1234.5, '#,##0.00 "EUR"', "-1,234.50 EUR"),
        (1234.5, "[$€-407] #,##0.00", "€ 1,234.50"),
        (1234.5, '_("$"* #,##0.00_)', "$1,234.50"),
        (-5, "0;(0)", "(5)"),
        (0, '0;-0;"-"', "-"),
        (4, ";;;", ""),
        (7, "00000", "00007"),
        (1234567, '0.0,," M"', "1.2 M"),
        (0.5, "#.##", "0.5"),
        (1.5, "# ?/?", "1.5"),
        (float("nan"), "0.00", "nan"),
        (1e300, "0.00", "1e+300"),
        ("text", "0.00", "text"),
        (5, "", "5"),
        (datetime(2024, 5, 3, 14, 7, 9), "yyyy-mm-dd", "2024-05-03"),
        (datetime(2024, 5, 3, 14, 7, 9), "mm-dd-yy", "2024-05-03 14:07:09"),
        (datetime(2024, 5, 3), "mm-dd-yy", "2024-05-03"),
        (date(2024, 5, 3), "[$-409]d-mmm-yy;@", "3-May-24"),
        (datetime(2024, 5, 3, 14, 7, 9), "m/d/yyyy h:mm", "5/3/2024 14:07"),
        (datetime(2024, 5, 3, 0, 7, 9), "h:mm:ss AM/PM", "12:07:09 AM"),
        (date(2024, 5, 3), 'yyyy"年"m"月"d"日"', "2024年5月3日"),
        (clock(9, 5), "h:mm", "9:05"),
        (timedelta(hours=30, minutes=5), "[h]:mm:ss", "30:05:00"),
    ],
)
def test_values_are_shown_as_excel_shows_them(value: object, code: str, text: str) -> None:
    assert shown(value, code) == text


@settings(max_examples=200, deadline=None)
@given(
    st.integers() | st.floats() | st.datetimes() | st.timedeltas(max_value=timedelta(days=9**5)),
    st.text("0#?,.%;\"'[]$\\_*@ymdhsAMP/-eE €a", max_size=14),
)
def test_any_format_code_shows_something(value: object, code: str) -> None:
    assert isinstance(shown(value, code), str)


def test_a_number_of_many_digits_is_rounded() -> None:
    assert shown(10**40, "0") == "1" + "0" * 40
    assert shown(10**28, "0") == "1" + "0" * 28


def sheet_xml(rows: str) -> bytes:
    """A workbook whose first sheet has these rows."""
    made = openpyxl.Workbook()
    made.active.append(["x"])
    start, end = b"<sheetData>", b"</sheetData>"
    return changed(
        saved(made),
        "xl/worksheets/sheet1.xml",
        lambda old: old[: old.index(start)] + start + rows.encode() + end + old[old.index(end) + len(end) :],
    )


def test_a_million_rows_are_read_to_a_limit_that_is_named(tmp_path: Path) -> None:
    rows = "".join(map("<row><c><v>%d</v></c><c><v>7</v></c></row>".__mod__, range(1_000_000)))
    content = sheet_xml(rows)
    start = time.monotonic()
    document = make(tmp_path, "a.xlsx", content, Limits(max_rows=20_000))
    assert time.monotonic() - start < 20
    note = "Not read: row 20001 and what follows it, beyond `max_rows` = 20000."
    assert document.meta["note"] == note
    assert document.sections[-1].text == f"({note})"
    assert document.sections[-2].meta["rows"][1] == 20_000


def test_a_row_that_never_ends_is_refused(tmp_path: Path) -> None:
    noise = random.Random(1)
    cells = "".join(f"<c><v>{noise.random()}</v></c>" for _ in range(600_000))
    assert "has a row of more than" in refused(tmp_path, "a.xlsx", sheet_xml(f"<row>{cells}</row>"), seconds=20).message


def test_cells_far_apart_do_not_make_a_wide_table(tmp_path: Path) -> None:
    letters = [openpyxl.utils.get_column_letter(n * 16 + 1) for n in range(1000)]
    rows = "".join(f'<row r="{n}"><c r="{column}{n}"><v>{n}</v></c></row>' for n, column in enumerate(letters, 1))
    assert len(text_of(make(tmp_path, "a.xlsx", sheet_xml(rows)))) < 60_000


def test_a_workbook_of_another_writer(tmp_path: Path) -> None:
    made = xlsxwriter.Workbook(tmp_path / "a.xlsx", {"in_memory": True})
    sheet = made.add_worksheet("Rates & more")
    sheet.write_row(0, 0, ["City", "Night", "Share"])
    sheet.write_row(1, 0, ["Oslo", 142.5, 0.25], made.add_format({"num_format": "0.0%"}))
    sheet.write_formula(2, 1, "=B2*2", made.add_format({"num_format": "#,##0.00"}), 1285)
    sheet.merge_range(3, 0, 3, 2, "merged")
    sheet.write_comment(0, 0, "secret")
    made.add_chart({"type": "bar"})
    made.close()
    document = read(tmp_path / "a.xlsx", "box/a.xlsx")
    assert text_of(document) == (
        "# Rates & more, rows 1–4\n\n| City | Night | Share |\n|---|---|---|\n| Oslo | 14250.0% | 25.0% |\n"
        "|  | 1,285.00 |  |\n| merged |  |  |\n\n"
    )


def test_formulas_give_their_saved_value(tmp_path: Path) -> None:
    cells = '<c r="A1"><f>SUM(B1:B9)</f><v>42</v></c><c r="B1"><f>1/0</f></c><c r="C1" t="e"><v>#DIV/0!</v></c>'
    rows = f'<row r="1">{cells}</row>'
    assert "| 42 | #DIV/0! |" in text_of(make(tmp_path, "a.xlsx", sheet_xml(rows)))


def test_csv_is_a_table_with_row_numbers(tmp_path: Path) -> None:
    (section,) = make(tmp_path, "a.csv", CSV).sections
    assert section.headings == ("rows 1–4",)
    assert section.text == (
        "# Rows 1–4\n\n| City | Night | Remark |\n|---|---|---|\n| Oslo | 142 | with breakfast |\n"
        "| Rome | 118 | tax, extra |\n| Tallinn | 88 |  |\n\n"
    )


def test_csv_by_any_mark_and_in_any_encoding(tmp_path: Path) -> None:
    for mark in ";\t|":
        text = CSV.replace(", extra", " extra").replace(",", mark)
        assert "| Oslo | 142 | with breakfast |" in text_of(make(tmp_path, "a.csv", text))
    assert "| Tromsø | 142 |" in text_of(make(tmp_path, "a.csv", "Sted;Natt\nTromsø;142\n".encode("cp1252")))
    assert "| Oslo | 142 |" in text_of(make(tmp_path, "a.csv", "City;Night\r\nOslo;142\r\n".encode("utf-16")))


def test_csv_with_many_or_long_columns_is_written_as_records(tmp_path: Path) -> None:
    names = [f"measurement_{n}" for n in range(30)]
    wide = "\n".join([",".join(names), *(",".join(str(n * m) for n in range(30)) for m in range(1, 4))])
    text = text_of(make(tmp_path, "a.csv", wide))
    assert "measurement_7: 14" in text and "|" not in text
    long = "id,text\n" + "".join(f'{n},"{"many words of prose " * 40}"\n' for n in range(1, 4))
    text = text_of(make(tmp_path, "b.csv", long))
    assert "id: 2\ntext: many words" in text


def test_csv_that_is_damaged(tmp_path: Path) -> None:
    assert "| Oslo | 142 | never closed" in text_of(
        make(tmp_path, "a.csv", 'a,b,c\nOslo,142,"never closed\nRome,1,2\n')
    )
    endless = "a,b\n1," + "x" * 200_000 + "\n"
    document = make(tmp_path, "a.csv", endless)
    assert (document.mime, text_of(document)) == ("text/plain", endless)
    assert "no cell with a value" in refused(tmp_path, "a.csv", ",,,\n,,,\n").message


def test_csv_rows_and_values_are_limited(tmp_path: Path) -> None:
    document = make(tmp_path, "a.csv", "a,b\n" + "1,2\n" * 100, Limits(max_rows=50))
    assert text_of(document).endswith("(Not read: row 51 and what follows it, beyond `max_rows` = 50.)")
    document = make(tmp_path, "a.csv", "a,b\n" + "1,2\n" * 100, Limits(max_values=21))
    assert document.meta["note"] == "Not read: row 11 and what follows it, beyond `max_values` = 21."


# -- EPUB --------------------------------------------------------------------------------------------------------------


def test_epub_in_the_order_of_its_spine(tmp_path: Path) -> None:
    document = make(tmp_path, "a.epub", epub())
    assert document.title == "A book of water"
    assert [(s.headings, s.meta, s.text) for s in document.sections] == [
        (("The fjord",), {"chapter": 1}, "# The fjord\n\nWater between mountains.\n\n"),
        (("Part 2",), {"chapter": 2}, "# Part 2\n\nA chapter without a heading.\n\n"),
    ]


def test_epub_that_is_locked_or_broken(tmp_path: Path) -> None:
    locked = '<encryption><EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc"/></encryption>'
    assert "DRM" in refused(tmp_path, "a.epub", epub(**{"META-INF/encryption.xml": locked})).message
    fonts = '<encryption><EncryptionMethod Algorithm="http://www.idpf.org/2008/embedding"/></encryption>'
    assert make(tmp_path, "a.epub", epub(**{"META-INF/encryption.xml": fonts})).sections
    for name in ("META-INF/container.xml", "OEBPS/book.opf", "OEBPS/text/c1.xhtml"):
        parts = parts_of(epub())
        del parts[name]
        assert "damaged" in refused(tmp_path, "a.epub", zipped(parts)).message
    assert "no chapter with text" in refused(tmp_path, "a.epub", epub(["<p></p>"])).message


def test_epub_entities_do_not_grow(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE p [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    bomb += "<package><metadata><title>&b;</title></metadata></package>"
    assert "damaged" in refused(tmp_path, "a.epub", epub(**{"OEBPS/book.opf": bomb})).message
    page = f"<!DOCTYPE p [<!ENTITY a '{'a' * 1000}'>]><html><p>{'&a;' * 1000}</p></html>"
    assert len(text_of(make(tmp_path, "a.epub", epub(**{"OEBPS/text/c2.xhtml": page})))) < 10_000


# -- JSON, notebooks, mail ---------------------------------------------------------------------------------------------


def test_json_by_path(tmp_path: Path) -> None:
    document = make(tmp_path, "a.json", json.dumps(DATA).replace("142.5", "142.50"))
    assert [(s.headings, s.text) for s in document.sections] == [
        ((), "name: rates\nnone: null\n\n"),
        (("server",), "# server\n\nport: 8080\ntls.on: true\ntls.hosts: a, b\n\n"),
        (
            ("rates", "items 0–1"),
            "# rates, items 0–1\n\n| city | night |\n|---|---|\n| Oslo | 142.50 |\n| Rome | 118 |\n\n",
        ),
    ]


def test_json_of_other_shapes(tmp_path: Path) -> None:
    nested = [{"a": {"b": [1, {"c": "x"}]}}, "plain", 7]
    assert text_of(make(tmp_path, "a.json", json.dumps(nested))) == (
        "# Item 0\n\na.b[0]: 1\na.b[1].c: x\n\n# Item 1\n\nplain\n\n# Item 2\n\n7\n\n"
    )
    assert text_of(make(tmp_path, "a.json", json.dumps({"v": list(range(100))}))).startswith("# v\n\n0, 1, 2")
    assert "… (100 numbers)" in text_of(make(tmp_path, "a.json", json.dumps({"v": list(range(100))})))
    assert text_of(make(tmp_path, "a.json", '{"n": 1e999, "m": ' + "9" * 5000 + "}")).startswith("n: 1e999\nm: 999")
    assert text_of(make(tmp_path, "a.json", '"just text"')) == "value: just text\n\n"
    assert text_of(make(tmp_path, "a.json", '{"a": 1, "b": [], "c": {}}')) == "a: 1\nb: []\nc: {}\n\n"
    assert "holds no value" in refused(tmp_path, "a.json", "{}").message


def test_json_bombs_are_bounded(tmp_path: Path) -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    assert text_of(make(tmp_path, "a.json", deep)) == "# a\n\n…" + ".a" * 8 + ": 1\n\n"
    assert "more than `max_values`" in refused(tmp_path, "a.json", "[" + "[]," * 1_100_000 + "[]]").message
    keys = {"k" * 5000: [{"v": [n]} for n in range(2000)]}
    assert len(text_of(make(tmp_path, "a.json", json.dumps(keys)))) < 200_000
    assert (
        "more than `max_bytes`"
        in refused(
            tmp_path,
            "a.json",
            json.dumps({"x": {"y" * 50: {str(n): n for n in range(2000)}}}),
            Limits(max_bytes=50_000),
        ).message
    )


def test_json_lines(tmp_path: Path) -> None:
    (section,) = make(tmp_path, "a.jsonl", LINES).sections
    assert section.text == "# Lines 1–2\n\n| city | night |\n|---|---|\n| Oslo | 142 |\n| Rome | 118 |\n\n"
    mixed = '{"id": "1", "text": "' + "words " * 80 + '"}\n\n{"id": "2", "tags": ["a", "b"]}\n{"id": "3", "cut\n'
    document = make(tmp_path, "a.jsonl", mixed)
    assert [s.headings for s in document.sections] == [("line 1",), ("line 3",), ("line 4",)]
    assert document.sections[1].text == "# Line 3\n\nid: 2\ntags: a, b\n\n"
    assert document.sections[2].text == '# Line 4\n\n{"id": "3", "cut\n\n'
    assert "`max_rows` = 1" in make(tmp_path, "a.jsonl", LINES, Limits(max_rows=1)).meta["note"]


def test_notebooks(tmp_path: Path) -> None:
    document = make(tmp_path, "a.ipynb", notebook())
    assert document.title == "Rates"
    assert [(s.headings, s.meta, s.text) for s in document.sections] == [
        (("Rates",), {"cell": 1}, "# Rates\n\nHow they were made.\n\n"),
        (
            *(("Rates",), {"cell": 2}),
            "```python\n# not a heading\nnight(142)\n```\n\n```output\n142\nred\n```\n\n"
            "```output\nValueError: no rate\n```\n\n",
        ),
        (("Rates", "By city"), {"cell": 3}, "## By city\nOslo\n\n"),
    ]
    long = notebook().replace(b"142\\n", b"x" * 5000)
    assert "… (3003 more characters)" in text_of(make(tmp_path, "a.ipynb", long))
    odd = json.dumps({"nbformat": 4, "cells": [1, {"cell_type": "code", "outputs": 3}, {"source": "```"}]})
    assert text_of(make(tmp_path, "a.ipynb", odd)) == "```\n\n"
    assert "no cell with text" in refused(tmp_path, "a.ipynb", json.dumps({"nbformat": 4, "cells": []})).message


def test_mail_is_what_a_reader_shows(tmp_path: Path) -> None:
    document = make(tmp_path, "a.eml", mail())
    (section,) = document.sections
    assert (document.title, document.meta["attachments"]) == ("Hotels in Tromsø: new rates", 1)
    assert section.text == (
        "# Hotels in Tromsø: new rates\n\nFrom: Åse Berg <aase@example.org>\nTo: rates@example.org\n"
        "Date: Fri, 03 May 2024 10:00:00 +0200\n\nThe new rate is 142 € a night.\n\nÅse\n\n"
        "Attachments (not read): rates.pdf (application/pdf)\n\n"
    )


def test_mail_in_html_only(tmp_path: Path) -> None:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@example.org", "b@example.org", "Rates"
    made.set_content("<h2>Oslo</h2><p>142</p><p hidden>secret</p>", subtype="html")
    document = make(tmp_path, "a.eml", bytes(made))
    assert [s.headings for s in document.sections] == [("Rates",), ("Rates", "Oslo")]
    assert document.sections[1].text == "## Oslo\n\n142\n\n"


def test_mail_that_is_odd(tmp_path: Path) -> None:
    head = b"From: a@b\r\nTo: c@d\r\nSubject: =?utf-8?q?bad=ZZ?= =?x-none?b?AAA=?=\r\n"
    text = text_of(make(tmp_path, "a.eml", head + b"Content-Type: text/plain; charset=x-none\r\n\r\ncaf\xe9\r\n"))
    assert "café" in text
    inside = b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\n'
    inside += b"Content-Type: message/rfc822\r\n\r\nSubject: secret\r\n\r\nb\r\n--x--"
    assert "unnamed (message/rfc822)" in text_of(make(tmp_path, "a.eml", head + inside))
    nested = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(3000))
    refused(tmp_path, "a.eml", head + nested, seconds=30)
    assert "neither subject nor text" in refused(tmp_path, "a.eml", b"From: a@b\nTo: c@d\nDate: today\n\n").message


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx", "a.epub"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    whole = FILES[name]()
    for share in (0.05, 0.5, 0.99):
        error = refused(tmp_path, name, whole[: int(share * len(whole))])
        assert "damaged or truncated" in error.message and "Readable are" in error.hint


@pytest.mark.parametrize("name", KINDS)
def test_empty_and_blank_files(tmp_path: Path, name: str) -> None:
    assert "is empty" in refused(tmp_path, name, b"").message
    assert "has no text" in refused(tmp_path, name, b" \n\n").message


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx", "a.epub"])
def test_zip_bombs_are_refused_before_they_expand(tmp_path: Path, name: str) -> None:
    parts = parts_of(FILES[name]())
    bomb = zipped({**parts, "word/media/zeros.bin": bytes(100_000_000)})
    assert "more than `max_ratio` = 200" in refused(tmp_path, name, bomb, seconds=2).message
    many = zipped({**parts, **{f"x{n}": b"" for n in range(10_001)}})
    assert "entries, more than `max_entries` = 10000" in refused(tmp_path, name, many, seconds=3).message
    large = zipped({**parts, "x.bin": bytes(2_000_000)})
    assert (
        "more than `max_expanded` = 1000000"
        in refused(tmp_path, name, large, Limits(max_expanded=1_000_000, max_ratio=9999)).message
    )
    nested = zipped({**parts, "inside.zip": zipped({"zeros": bytes(50_000_000)})})
    start = time.monotonic()
    assert make(tmp_path, name, nested).sections and time.monotonic() - start < 5


def test_a_part_above_the_limit_is_refused(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(200_000).hex().encode()
    content = changed(
        word(), "word/document.xml", lambda old: old.replace(b"<w:body>", b"<w:body><!--" + noise + b"-->")
    )
    assert "more than `max_xml` = 300000" in refused(tmp_path, "a.docx", content, Limits(max_xml=300_000)).message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a.docx", "word/document.xml"),
        ("a.pptx", "ppt/slides/slide1.xml"),
        ("a.xlsx", "xl/workbook.xml"),
        ("a.docx", "word/_rels/document.xml.rels"),
    ],
)
def test_entity_bombs_are_refused(tmp_path: Path, name: str, part: str) -> None:
    entities = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{"&" + chr(97 + n) + ";" * 10}">' for n in range(9)
    )
    dtd = entities + "]>"

    def narrow(old: bytes) -> bytes:
        prolog, mark, rest = old.rpartition(b"?>")
        return prolog + mark + dtd.encode() + rest

    def wide(old: bytes) -> bytes:
        return ('<?xml version="1.0" encoding="UTF-16"?>' + dtd + old.rpartition(b"?>")[2].decode()).encode("utf-16")

    for change in (narrow, wide):
        content = changed(FILES[name](), part, change)
        assert f"defines XML entities in `{part}`" in refused(tmp_path, name, content).message


def test_entity_bombs_in_sheets_are_refused(tmp_path: Path) -> None:
    content = changed(sheets(), "xl/worksheets/sheet1.xml", lambda old: b'<!DOCTYPE x [<!ENTITY a "aa">]>' + old)
    assert "damaged" in refused(tmp_path, "a.xlsx", content).message


def test_an_encrypted_archive(tmp_path: Path) -> None:
    content = bytearray(word())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    assert "is encrypted" in refused(tmp_path, "a.docx", bytes(content)).message


def test_a_package_that_refers_to_itself_ends(tmp_path: Path) -> None:
    chain = {f"word/p{n}.xml": "<a/>" for n in range(3000)}
    kind = "http://example.org/next"
    for n in range(3000):
        target = f"p{(n + 1) % 3000}.xml"
        chain[f"word/_rels/p{n}.xml.rels"] = (
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="r" Type="{kind}" Target="{target}"/></Relationships>'
        )
    content = related(word(), "p0", "<a/>")
    assert "damaged" in refused(tmp_path, "a.docx", zipped({**parts_of(content), **chain}), seconds=20).message


def test_reading_can_be_cancelled(tmp_path: Path) -> None:
    import threading

    stop = threading.Event()
    stop.set()
    for name in ("a.pptx", "a.epub"):
        with progress.reporting(cancelled=stop), pytest.raises(Cancelled):
            make(tmp_path, name, FILES[name]())


@pytest.fixture
def without_office(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the extra `office` were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("docx", "pptx", "openpyxl")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("docx", "pptx", "openpyxl"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("word", "slides", "sheets", "_numbering"):
        monkeypatch.delitem(sys.modules, f"triptych.retrievers.readers.{name}", raising=False)
    readers._reader.cache_clear()
    yield
    readers._reader.cache_clear()


@pytest.mark.usefixtures("without_office")
def test_without_the_extra_the_other_files_are_indexed(tmp_path: Path, bare_home: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    contents = {name: (SAVED[name] if name in SAVED else FILES[name]()) for name in KINDS}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with pytest.raises(MissingExtra, match="`python-docx`"):
        read(folder / "a.docx", "box/a.docx")
    with Triptych("facts", Settings.load()) as library:
        done = library.index(folder)
        assert {problem.uri for problem in done.problems} == {"docs/a.docx", "docs/a.pptx", "docs/a.xlsx"}
        assert {problem.type for problem in done.problems} == {"MissingExtra"}
        assert all("triptych[office]" in problem.hint for problem in done.problems)
        assert done.indexed == len(KINDS) - 3


SAVED = {name: FILES[name]() for name in ("a.docx", "a.pptx", "a.xlsx")}
"""Made while the libraries that write them can be imported."""


# -- what holds for all of them ----------------------------------------------------------------------------------------


def check_offsets(document: Document) -> None:
    """Every passage stands at its offsets in the text of its page, or of the document where there are no pages."""
    pages: dict[int | None, str] = {}
    for section in document.sections:
        pages[section.page] = pages.get(section.page, "") + section.text
    items = chunk(document, "hash")
    assert items
    for item in items:
        assert item.text == pages[item.source.page][item.source.start : item.source.end]
        assert item.text.strip()
        json.dumps(item.meta)


WORDS = st.text(max_size=30) | st.sampled_from(
    ["a,b", "a|b", "\u202eevil", "x\u200by", "# head", "```", "\r\n", '"', "字", "👩‍🚀"]
)
TABLE = st.lists(st.lists(WORDS | st.integers() | st.booleans(), max_size=5), min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=25,
)


def allowed(text: object) -> Any:
    """What the libraries that write Office files accept."""
    if not isinstance(text, str):
        return text
    return "".join(c for c in text if c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff")


def word_of(texts: list[str]) -> bytes:
    made = docx.Document()
    for n, text in enumerate(texts):
        made.add_paragraph(
            allowed(text), style=["Normal", "Heading 1", "Heading 2", "List Bullet", "List Number"][n % 5]
        )
    return saved(made)


def slides_of(texts: list[str]) -> bytes:
    made = pptx.Presentation()
    for text in texts[:4]:
        slide = made.slides.add_slide(made.slide_layouts[1])
        slide.shapes.title.text = allowed(text)
        slide.placeholders[1].text = "\n".join(map(allowed, texts))
    return saved(made)


def sheets_of(table: list[list[Any]]) -> bytes:
    made = openpyxl.Workbook()
    for row in table:
        made.active.append([allowed(cell) if not isinstance(cell, int) else cell % 10**15 for cell in row])
    return saved(made)


def csv_of(table: list[list[Any]]) -> bytes:
    import csv

    out = io.StringIO()
    csv.writer(out).writerows(table)
    return out.getvalue().encode("utf-8", "replace")


def mail_of(texts: list[str]) -> bytes:
    body = "\n".join(texts).encode("utf-8", "replace")
    return b"From: a@b\nTo: c@d\nSubject: s\nContent-Type: text/plain; charset=utf-8\n\n" + body


MADE = st.one_of(
    st.lists(WORDS, max_size=8).map(lambda texts: ("a.docx", word_of(texts))),
    st.lists(WORDS, max_size=4).map(lambda texts: ("a.pptx", slides_of(texts))),
    TABLE.map(lambda table: ("a.xlsx", sheets_of(table))),
    TABLE.map(lambda table: ("a.csv", csv_of(table))),
    VALUES.map(lambda value: ("a.json", json.dumps(value).encode())),
    st.lists(VALUES, max_size=4).map(lambda values: ("a.jsonl", "\n".join(map(json.dumps, values)).encode())),
    st.lists(WORDS, max_size=6).map(lambda texts: ("a.eml", mail_of(texts))),
    st.lists(WORDS, min_size=1, max_size=4).map(
        lambda t: ("a.epub", epub([allowed(x).replace("&", "") + "<p>x</p>" for x in t]))
    ),
    st.lists(WORDS, max_size=5).map(
        lambda t: (
            "a.ipynb",
            json.dumps({"nbformat": 4, "cells": [{"cell_type": "markdown", "source": x} for x in t]}).encode(),
        )
    ),
    st.lists(WORDS, max_size=8).map(lambda texts: ("a.py", "\n".join(["def f():", *texts]).encode("utf-8", "replace"))),
)


@settings(max_examples=150, deadline=None)
@given(MADE)
@example(("a.jsonl", b'{"": null}\n{"": null}'))
@example(("a.json", b'[{"a": ""}, {"a": ""}]'))
def test_passages_stand_at_their_offsets(tmp_path_factory: pytest.TempPathFactory, made: tuple[str, bytes]) -> None:
    name, content = made
    try:
        document = make(tmp_path_factory.getbasetemp(), name, content)
    except UnreadableFile as error:
        assert error.hint
    else:
        check_offsets(document)


@pytest.mark.parametrize("name", KINDS)
def test_passages_of_each_kind_stand_at_their_offsets(tmp_path: Path, name: str) -> None:
    check_offsets(make(tmp_path, name, FILES[name]()))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.docx", lambda: word_of(["vis\u200bible \u202eevil", "x\u2060y", "z"])),
        ("a.pptx", lambda: slides_of(["vis\u200bible \u202eevil x\u2060y"])),
        ("a.xlsx", lambda: sheets_of([["vis\u200bible", "\u202eevil"], ["x\u2060y", "z"]])),
        ("a.csv", lambda: "vis\u200bible,\u202eevil\nx\u2060y,z\n".encode()),
        ("a.json", lambda: b'{"vis\\u200bible": "\\u202eevil x\\u2060y", "b": 1}'),
        ("a.eml", lambda: mail_of(["vis\u200bible \u202eevil x\u2060y"])),
        ("a.epub", lambda: epub(["<p>vis\u200bible \u202eevil x\u2060y</p>"])),
        (
            "a.ipynb",
            lambda: json.dumps({"nbformat": 4, "cells": [{"source": "vis\u200bible \u202eevil x\u2060y"}]}).encode(),
        ),
    ],
)
def test_invisible_characters_are_removed_and_counted(tmp_path: Path, name: str, content: Any) -> None:
    document = make(tmp_path, name, content())
    text = text_of(document)
    assert not {"\u200b", "\u202e", "\u2060"} & set(text)
    assert document.meta["stripped"] >= 2


# -- fuzz --------------------------------------------------------------------------------------------------------------


WHOLE = {name: content() for name, content in FILES.items()}


def check_mutant(folder: Path, name: str, seed: int) -> None:
    """A damaged file is read or refused with a name, soon."""
    content = mutated_file(name, WHOLE[name], random.Random(seed))
    start = time.monotonic()
    try:
        document = make(folder, name, content)
    except UnreadableFile as error:
        assert error.hint and str(folder) not in str(error)
    else:
        assert all(isinstance(section.text, str) for section in document.sections)
        if text_of(document).strip():
            check_offsets(document)
    assert time.monotonic() - start < 10


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 2**32))
def test_damaged_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, seed: int) -> None:
    check_mutant(tmp_path_factory.getbasetemp(), name, seed)


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture_of(words: str, size: tuple[int, int] = (420, 120)) -> io.BytesIO:
    """A PNG that shows `words`."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 40), words, fill="black", font=ImageFont.load_default(28))
    out = io.BytesIO()
    image.save(out, "PNG")
    out.seek(0)
    return out


def pictures_of(document: Document) -> list[Section]:
    return [section for section in document.sections if section.modality == "image"]


def word_with_pictures(*pictures: io.BytesIO) -> bytes:
    made = docx.Document()
    made.add_heading("Tides", 1)
    made.add_paragraph("The gauge was read twice a day.")
    for number, picture in enumerate(pictures, 1):
        made.add_picture(picture, width=docx.shared.Inches(2))
        made.inline_shapes[-1]._inline.docPr.set("descr", f"A board at the slip, number {number}")
        made.add_paragraph(f"Figure {number}. The gauge of House {number}")
    made.add_heading("Wind", 1)
    made.add_paragraph("Nothing is shown here.")
    return saved(made)


def test_a_picture_in_word_has_its_words_its_caption_and_its_own_text(tmp_path: Path) -> None:
    document = make(tmp_path, "a.docx", word_with_pictures(picture_of("HIGH WATER 06:15")))
    check_offsets(document)
    (gauge,) = pictures_of(document)
    assert gauge.text.split("\n")[:2] == ["A board at the slip, number 1", "Figure 1. The gauge of House 1"]
    assert "HIGH WATER" in gauge.text and "06:15" in gauge.text
    assert (gauge.headings, gauge.media, gauge.meta) == (("Tides",), None, {"picture": 1, "ocr": True})
    assert [section.headings for section in document.sections] == [("Tides",), ("Tides",), ("Wind",)]


def test_a_caption_by_its_style_stands_above_or_below(tmp_path: Path) -> None:
    made = docx.Document()
    made.add_paragraph("Boats at the slip", style="Caption")
    made.add_picture(picture_of("", (100, 100)))
    made.add_paragraph("A paragraph about rain.")
    made.add_picture(picture_of("", (120, 100)))
    made.add_paragraph("Sheep on the hill", style="Caption")
    texts = [section.text.strip() for section in pictures_of(make(tmp_path, "a.docx", saved(made)))]
    assert texts == ["Boats at the slip", "Sheep on the hill"]


def test_a_picture_on_a_slide_has_its_place(tmp_path: Path) -> None:
    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[5])
    slide.shapes.title.text = "Tides"
    shape = slide.shapes.add_picture(picture_of("HIGH WATER 06:15"), Inches(1), Inches(2), Inches(4), Inches(3))
    shape._element.nvPicPr.cNvPr.set("descr", "The board at the slip")
    document = make(tmp_path, "a.pptx", saved(made))
    check_offsets(document)
    (board,) = pictures_of(document)
    assert board.text.startswith("The board at the slip\n") and "06:15" in board.text
    assert (board.page, board.headings) == (1, ("Tides",))
    assert board.lines[0][2:] == pytest.approx((0.1, 2 / 7.5, 0.5, 5 / 7.5), abs=1e-3)


def test_pictures_beyond_the_limit_have_only_the_words_around_them(tmp_path: Path) -> None:
    boards = [picture_of(f"BOARD {n}") for n in range(3)]
    document = make(tmp_path, "a.docx", word_with_pictures(*boards, boards[0]), Limits(max_pictures=1))
    assert [section.meta.get("ocr", False) for section in pictures_of(document)] == [True, False, False, True]
    assert document.meta["note"].startswith("Not read: 2 pictures in it beyond `max_pictures` = 1")


def test_a_damaged_picture_does_not_spoil_its_document(tmp_path: Path) -> None:
    whole = word_with_pictures(picture_of("BOARD"))
    content = changed(whole, "word/media/image1.png", lambda old: old[: len(old) // 2])
    document = make(tmp_path, "a.docx", content)
    assert pictures_of(document)[0].text.startswith("A board at the slip")
    assert document.meta["note"] == "Not read: 1 pictures in it that are damaged or too large."


def test_a_document_that_is_one_picture_is_read(tmp_path: Path) -> None:
    made = docx.Document()
    made.add_picture(picture_of("HIGH WATER 06:15"))
    (scan,) = make(tmp_path, "a.docx", saved(made)).sections
    assert "06:15" in scan.text and scan.modality == "image"


def test_pictures_in_books_are_found_by_their_captions(tmp_path: Path) -> None:
    figure = "<figure><figcaption>The bell of 1931</figcaption><img src='b.png' alt='Cracked'/></figure>"
    document = make(tmp_path, "a.epub", epub([f"<h1>Fog</h1><p>It rang.</p>{figure}<img src='i.png' alt='icon'/>"]))
    check_offsets(document)
    (bell,) = pictures_of(document)
    assert (bell.text, bell.headings, bell.meta) == (
        "Cracked\nThe bell of 1931\n\n",
        ("Fog",),
        {"picture": 1, "chapter": 1},
    )
