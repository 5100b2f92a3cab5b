"""Readers: what a file says, where it stands, and that no bad file does worse than one named error."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fpdf import FPDF
from fpdf.enums import AccessPermission
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from triptych import progress
from triptych.errors import Cancelled, UnreadableFile
from triptych.retrievers.base import MediaRef
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import read
from triptych.retrievers.readers.base import Document, Limits, clean, name_words
from triptych.retrievers.readers.picture import picture

WHITE = (255, 255, 255)


def make(folder: Path, name: str, content: bytes | str) -> Document:
    """The document that `content` makes as file `name`."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path, f"box/{name}")


def text_of(document: Document) -> str:
    return "".join(section.text for section in document.sections)


def lines_of(document: Document) -> list[tuple[str, tuple[float, ...]]]:
    return [(s.text[a:b], tuple(box)) for s in document.sections for a, b, *box in s.lines]


def refused(path: Path, limits: Limits | None = None) -> UnreadableFile:
    """The error that reading `path` ends in, which must come soon and must not tell where the file is."""
    start = time.monotonic()
    with pytest.raises(UnreadableFile) as caught:
        read(path, f"box/{path.name}", limits)
    assert time.monotonic() - start < 5
    assert f"`box/{path.name}`" in caught.value.message
    assert caught.value.hint
    assert str(path.parent) not in str(caught.value)
    return caught.value


# -- cleaning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "kept", "stripped"),
    [
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne", 0),
        ("tab\tand\nline", "tab\tand\nline", 0),
        ("\ufeffa\u200bb\u00adc\u2060", "abc", 4),
        ("\u202eevil\u202c \u2066x\u2069", "evil x", 4),
        ("a\x00\x1b[31mb\x7f\x85", "a[31mb\n", 3),
        ("hi\U000e0049\U000e0067\U000e006e", "hi", 3),
        ("\U0001f3f4\U000e0041\U000e007f", "\U0001f3f4", 2),
        ("x\ufe0f\ufe00 1\ufe0f", "x 1", 3),
        ("a\u200db\u200cc", "abc", 2),
        ("lone \ud800", "lone ", 1),
    ],
)
def test_clean_removes_what_nobody_can_see(raw: str, kept: str, stripped: int) -> None:
    assert clean(raw) == (kept, stripped)


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧‍👦",
        "👩🏽‍🚀",
        "🏳️‍🌈",
        "❤️",
        "1️⃣",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        "می‌خواهم",
        "क्‍ष",
        "葛\U000e0100",
        "e\u0301",
        "\u0600\u0661",
        "ﬁ ½ Å",
    ],
)
def test_clean_keeps_what_changes_the_picture(text: str) -> None:
    assert clean(text) == (text, 0)


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text("a\u200d\ufe0f👩🏽क\u200c\U000e0067🏴\r\n\u00ad1"))
def test_clean_is_stable_and_counts(text: str) -> None:
    kept, stripped = clean(text)
    assert clean(kept) == (kept, 0)
    assert stripped <= len(text)
    assert len(kept) + stripped == len(text.replace("\r\n", "\n"))


def test_readers_load_late() -> None:
    code = "import sys, triptych.retrievers.readers, triptych.retrievers.chunking; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"PIL", "pypdfium2", "bs4", "rapidocr", "onnxruntime", "cv2", "numpy", "charset_normalizer", "sentencex"}
    assert not heavy & {name.split(".")[0] for name in done.stdout.split()}


# -- text --------------------------------------------------------------------------------------------------------------

FRENCH = "Le café coûte 5 €, c’est très cher à côté.\n"
CHINESE = "委员会同意提高差旅补贴的标准。\n"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", FRENCH + CHINESE),
        ("utf-8-sig", FRENCH + CHINESE),
        ("utf-16", FRENCH + CHINESE),
        ("utf-16-le", FRENCH * 3),
        ("utf-16-be", FRENCH * 3),
        ("utf-32", FRENCH),
        ("cp1252", FRENCH),
        ("latin-1", "Zürich und Malmö\n"),
        ("latin-1", "Café"),
        ("gb18030", CHINESE),
        ("gb18030", "你好"),
        ("big5", "委員會同意提高差旅補貼的標準。\n"),
        ("shift_jis", "これは日本語の文章です。\n"),
        ("cp1251", "Это русский текст для проверки.\n"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, text: str) -> None:
    document = make(tmp_path, "a.txt", text.encode(encoding))
    assert text_of(document) == text
    assert (document.mime, document.title) == ("text/plain", "a.txt")


def test_utf_16_with_a_mark(tmp_path: Path) -> None:
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        assert text_of(make(tmp_path, "a.txt", mark + CHINESE.encode(encoding))) == CHINESE


def test_one_wrong_byte_leaves_the_rest_readable(tmp_path: Path) -> None:
    document = make(tmp_path, "a.txt", (CHINESE * 20).encode() + b"\xff" + CHINESE.encode())
    assert text_of(document).count("委员会") == 21


def test_invisible_characters_are_counted(tmp_path: Path) -> None:
    document = make(tmp_path, "a.txt", "\ufeffvis\u200bible\x07")
    assert (text_of(document), document.meta["stripped"]) == ("visible", 2)


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    assert make(tmp_path, "a.pdf", "plain words\n").mime == "text/plain"
    assert make(tmp_path, "a.png", "plain words\n").mime == "text/plain"
    assert make(tmp_path, "b.txt", "<!DOCTYPE html><p>words").mime == "text/html"
    assert make(tmp_path, "noname", "%PDF is a format of files").mime == "text/plain"
    assert make(tmp_path, "b.md", "# BMW\nwords").mime == "text/markdown"
    assert make(tmp_path, "c.txt", "BM is how a bitmap begins").mime == "text/plain"
    assert make(tmp_path, "scan.txt", picture_bytes((60, 40), "PNG")).mime == "image/png"


# -- markdown ----------------------------------------------------------------------------------------------------------

MARKDOWN = """---
title: "Front matter"
---
intro

# One *big* `thing` #

Text with ![a chart](c.png).

```sh
# not a heading
```

Setext title
============

- item
---

## Two [link](http://example.org)
body
### Three
"""


def test_markdown_keeps_the_source_and_knows_its_headings(tmp_path: Path) -> None:
    document = make(tmp_path, "a.md", MARKDOWN)
    assert text_of(document) == MARKDOWN
    assert document.title == "Front matter"
    assert [section.headings for section in document.sections] == [
        (),
        ("One big thing",),
        ("Setext title",),
        ("Setext title", "Two link"),
        ("Setext title", "Two link", "Three"),
    ]
    assert document.sections[1].text.startswith("# One *big*")
    assert "![a chart](c.png)" in document.sections[1].text


def test_markdown_titles(tmp_path: Path) -> None:
    assert make(tmp_path, "a.md", "text\n\n# First\n# Second").title == "First"
    assert make(tmp_path, "a.md", "no heading").title == "a.md"


def test_markdown_offsets_are_those_of_the_file(tmp_path: Path) -> None:
    source = "# A\n\n" + "One sentence of some length here. " * 60 + "\n\n## B\n\n" + "Another one. " * 90
    items = chunk(make(tmp_path, "a.md", source), "hash")
    assert len(items) > 3
    assert all(item.text == source[item.source.start : item.source.end] for item in items)


# -- html --------------------------------------------------------------------------------------------------------------

HTML = """<!DOCTYPE html><html><head><title>Rates &amp; rules</title><style>p{}</style></head><body>
<h1>Travel <em>rates</em></h1><p>First   para with <b>bold</b> text,<br>new line. Hid&shy;den&#8203;.</p>
<script>alert(1)</script><!-- secret --><p hidden>secret</p><div aria-hidden="true">secret</div>
<span style="display: none">secret</span><template>secret</template><noscript>secret</noscript>
<h2>Table</h2><table><caption>By city</caption><thead><tr><th>City</th><th>Night</th></tr></thead>
<tr><td rowspan=2>Oslo</td><td>142 | x</td></tr><tr><td>61<br>eur</td></tr></table>
<ul><li>one<li>two<ul><li>nested</ul></ul><ol start=3><li><p>three</p></li></ol>
<pre>def f():
    return 1</pre><figure><img src=a.png alt="A chart of rain"><figcaption>Figure 1</figcaption></figure>
</body></html>"""


def test_html_is_what_a_browser_shows(tmp_path: Path) -> None:
    document = make(tmp_path, "a.html", HTML)
    assert document.title == "Rates & rules"
    *texts, picture = document.sections
    assert [section.headings for section in texts] == [("Travel rates",), ("Travel rates", "Table")]
    assert (picture.text, picture.modality) == ("A chart of rain\nFigure 1\n\n", "image")
    assert document.sections[0].text == "# Travel rates\n\nFirst para with bold text,\nnew line. Hidden.\n\n"
    assert document.sections[1].text == (
        "## Table\n\nBy city\n\n| City | Night |\n|---|---|\n| Oslo | 142 \\| x |\n| Oslo | 61 eur |\n\n"
        "- one\n- two\n  - nested\n\n3. three\n\n```\ndef f():\n    return 1\n```\n\nA chart of rain\n\nFigure 1\n\n"
    )
    assert document.meta["stripped"] == 2


def test_html_without_end_tags(tmp_path: Path) -> None:
    document = make(tmp_path, "a.html", "<html><p>a<p>b<table><tr><td>c<td>d<tr><td>e<td>f</table><h2>g<h2>h")
    assert text_of(document) == "a\n\nb\n\n| c | d |\n| e | f |\n\n## g\n\n## h"


def test_html_tables_that_arrange_the_page_are_text(tmp_path: Path) -> None:
    inner = "<table><tr><td>a</td><td>b</td></tr></table>"
    document = make(tmp_path, "a.html", f"<html><table><tr><td>Menu</td><td>{inner}</td></tr></table>")
    assert text_of(document) == "Menu\n\n| a | b |"
    wide = make(tmp_path, "b.html", f"<html><table><tr><td>Menu</td><td><p>{'word ' * 500}</p></td></tr></table>")
    assert "|" not in text_of(wide)


def test_html_says_its_encoding(tmp_path: Path) -> None:
    page = "<html><meta charset='iso-8859-5'><p>Привет, мир и все остальные</p>"
    assert text_of(make(tmp_path, "a.html", page.encode("iso-8859-5"))) == "Привет, мир и все остальные"


@pytest.mark.parametrize(
    "source",
    [
        "<div>" * 100_000 + "x",
        "<ul><li>" * 20_000 + "x",
        "<table><tr><td>" * 20_000 + "x",
        "x" + "<a " * 50_000,
        "x" + "<!--" * 50_000,
        "x" + "<![CDATA[" * 50_000,
        "<table><tr>" + "<td rowspan=99999999 colspan=99999999>x" * 300 + "<tr>" * 3_000,
    ],
    ids=["div", "list", "table", "tag", "comment", "cdata", "span"],
)
def test_html_bombs_are_read_in_bounded_time(tmp_path: Path, source: str) -> None:
    start = time.monotonic()
    text = text_of(make(tmp_path, "a.html", "<html>" + source))
    assert time.monotonic() - start < 20
    assert "x" in text and len(text) <= 4 * len(source)


# -- pdf ---------------------------------------------------------------------------------------------------------------

COLUMNS = (
    "The left column speaks of mountains and of rivers that run down to the sea. " * 6,
    "On the right hand there are harbours and ships and the trade between them. " * 6,
)
TABLE = (
    ("City", "Night", "Remark"),
    ("Oslo", "142.50", "with breakfast"),
    ("Rome", "118.00", "city tax extra, to be paid at the desk of the hotel on the day of departure"),
    ("Tallinn", "88.00", "from May"),
)


def pdf(*, title: str = "", size: int = 11) -> FPDF:
    made = FPDF()
    made.set_title(title)
    made.set_font("Helvetica", size=size)
    return made


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = pdf(title="Travel rates")
    made.add_page()
    made.set_font("Helvetica", "B", 20)
    made.cell(0, 12, "Travel allowances", new_x="LMARGIN", new_y="NEXT")
    made.set_font("Helvetica", size=11)
    made.multi_cell(0, 6, "The allowance covers the hotel and the train of all mem-\nbers of staff.", align="L")
    made.ln(20)
    made.set_font("Helvetica", "B", 14)
    made.cell(0, 10, "Rates by city", new_x="LMARGIN", new_y="NEXT")
    made.set_font("Helvetica", size=11)
    with made.table() as table:
        for row in TABLE:
            cells = table.row()
            for cell in row:
                cells.cell(cell)
    made.add_page()
    for x, text in zip((10, 110), COLUMNS, strict=True):
        made.set_xy(x, 20 + x / 50)
        made.multi_cell(90, 5, text)
    path = tmp_path_factory.mktemp("pdf") / "report.pdf"
    made.output(str(path))
    return path


def test_pdf_text_is_in_reading_order_with_headings(report: Path) -> None:
    document = read(report, "box/report.pdf")
    assert (document.title, document.mime, document.meta["pages"]) == ("Travel rates", "application/pdf", 2)
    assert [(section.page, section.headings) for section in document.sections] == [
        (1, ("Travel allowances",)),
        (1, ("Travel allowances", "Rates by city")),
        (2, ("Travel allowances", "Rates by city")),
    ]
    assert "of all members of staff." in " ".join(document.sections[0].text.split())
    assert " ".join(document.sections[2].text.split()) == " ".join("".join(COLUMNS).split())
    assert all(section.modality == "text" for section in document.sections)
    assert document.sections[2].media == MediaRef("box/report.pdf", "application/pdf", page=2)


def test_pdf_tables_are_markdown(report: Path) -> None:
    rows = read(report, "box/report.pdf").sections[1].text.strip().split("\n")
    shown = ["| " + " | ".join(row) + " |" for row in TABLE]
    assert rows[-5:] == [shown[0], "|---|---|---|", *shown[1:]]


def test_pdf_lines_are_where_they_are_shown(report: Path) -> None:
    document = read(report, "box/report.pdf")
    boxes = dict(lines_of(Document("", "", "", document.sections[:2])))
    x0, y0, _, y1 = boxes["Travel allowances"]
    assert x0 == pytest.approx(11 / 210, abs=0.005) and 0.02 < y0 < y1 < 0.08
    image = picture(report, "box/report.pdf", "application/pdf", 1, 800)
    seen = Image.open(io.BytesIO(image.image)).convert("L")
    for text, box in boxes.items():
        left, top, right, bottom = (round(v * side) for v, side in zip(box, seen.size * 2, strict=True))
        assert np.asarray(seen.crop((left, top, right, bottom))).min() < 128
        assert np.asarray(seen.crop((0, top, left - 2, bottom))).min() > 128 or text.startswith("|")


def test_pdf_passages_know_page_and_box(report: Path) -> None:
    items = chunk(read(report, "box/report.pdf"), "hash")
    assert {item.source.page for item in items} == {1, 2}
    for item in items:
        assert item.source.box is not None
        assert 0 <= item.source.box[0] < item.source.box[2] <= 1
        assert [line for line in item.meta["lines"] if not item.text[line[0] : line[1]].strip()] == []


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pdf_pages_that_are_turned(tmp_path: Path, rotation: int) -> None:
    made = pdf()
    made.add_page()
    made.text(20, 30, "Upper left words")
    made.text(20, 40, "Second line of text")
    made.output(str(tmp_path / "flat.pdf"))
    turned = tmp_path / "a.pdf"
    turn(tmp_path / "flat.pdf", turned, rotation)
    document = read(turned, "box/a.pdf")
    (first, box), (second, _) = lines_of(document)
    assert {first, second} == {"Upper left words", "Second line of text"}
    x, y = (20 / 210, 28 / 297)
    seen = {0: (x, y), 90: (1 - y, x), 180: (1 - x, 1 - y), 270: (y, 1 - x)}[rotation]
    box = dict(lines_of(document))["Upper left words"]
    assert box[0] - 0.02 <= seen[0] <= box[2] + 0.02 and box[1] - 0.02 <= seen[1] <= box[3] + 0.02


def turn(source: Path, target: Path, rotation: int) -> None:
    import pypdfium2

    with pypdfium2.PdfDocument(source) as document:
        page = document[0]
        page.set_rotation(rotation)
        document.save(target)
        page.close()


def test_pdf_without_title_goes_by_its_name(tmp_path: Path) -> None:
    made = pdf(title="Microsoft Word - draft.docx")
    made.add_page()
    made.cell(0, 10, "Some words on a page that is otherwise empty.")
    assert make(tmp_path, "minutes.pdf", bytes(made.output())).title == "minutes.pdf"


def test_pdf_text_too_small_to_see_or_off_the_page_is_left_out(tmp_path: Path) -> None:
    made = pdf()
    made.add_page()
    made.text(20, 30, "Visible words are what counts")
    made.text(20, 400, "secret")
    made.set_font("Helvetica", size=0.3)
    made.text(20, 50, "secret")
    assert text_of(make(tmp_path, "a.pdf", bytes(made.output()))).strip() == "Visible words are what counts"


def test_pdf_short_words_stay_in_their_line(tmp_path: Path) -> None:
    made = pdf()
    made.add_page()
    made.multi_cell(180, 6, "He looked at it. It was ill. " * 12, align="L")
    text = text_of(make(tmp_path, "a.pdf", bytes(made.output())))
    assert " ".join(text.split()) == ("He looked at it. It was ill. " * 12).strip()


def test_pdf_running_lines_are_kept_once(tmp_path: Path) -> None:
    made = pdf()
    for page in range(1, 5):
        made.add_page()
        made.text(20, 12, "Annual report of the station")
        made.text(20, 100, f"What page {'abcd'[page - 1]} says is said in one sentence only.")
        made.text(100, 285, f"page {page}")
    pages = [section.text for section in make(tmp_path, "a.pdf", bytes(made.output())).sections]
    assert "Annual report" in pages[0] and pages[0].strip().endswith("page 1")
    assert [page.strip() for page in pages[1:]] == [f"What page {n} says is said in one sentence only." for n in "bcd"]


def test_pdf_scan_is_recognised(tmp_path: Path, report: Path) -> None:
    image = Image.open(io.BytesIO(picture(report, "box/report.pdf", "application/pdf", 1, 1400).image))
    made = FPDF()
    made.add_page()
    made.image(image.convert("L").rotate(0.6, fillcolor=255), 0, 0, 210, 297)
    made.add_page()
    made.set_font("Helvetica", size=11)
    made.multi_cell(0, 6, "This page has a text layer of its own, which is long enough to be read as it stands.")
    document = make(tmp_path, "scan.pdf", bytes(made.output()))
    scan, layer = document.sections
    assert (scan.modality, scan.page, scan.meta) == ("page", 1, {"ocr": True})
    assert (layer.modality, layer.page, layer.meta) == ("text", 2, {})
    assert scan.media == MediaRef("box/scan.pdf", "application/pdf", page=1)
    assert "of all members of staff" in " ".join(scan.text.split())
    assert "Oslo\t142.50\twith breakfast" in scan.text.split("\n")
    box = dict(lines_of(document))["Travel allowances"]
    assert box == pytest.approx(dict(lines_of(read(report, "box/report.pdf")))["Travel allowances"], abs=0.02)


def test_pdf_pictures_without_words_are_found_by_name(tmp_path: Path) -> None:
    made = FPDF()
    made.add_page()
    made.image(Image.new("RGB", (200, 200), (90, 120, 160)), 20, 20, 150, 150)
    document = make(tmp_path, "harbour-at_dusk.pdf", bytes(made.output()))
    assert [(s.text, s.modality, s.meta) for s in document.sections] == [("harbour at dusk 1", "page", {"named": True})]


# -- images ------------------------------------------------------------------------------------------------------------


def picture_bytes(size: tuple[int, int], kind: str, colour: tuple[int, ...] = WHITE, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **options)
    return out.getvalue()


def drawn(size: tuple[int, int], *words: tuple[int, int, str, int]) -> Image.Image:
    image = Image.new("RGB", size, WHITE)
    brush = ImageDraw.Draw(image)
    for x, y, text, height in words:
        brush.text((x, y), text, fill=(20, 20, 20), font=ImageFont.load_default(height))
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def receipt() -> Image.Image:
    rows = (("Rye bread", "7.80"), ("Oat milk", "2.35"), ("Apple cake", "4.20"), ("TOTAL", "14.35"))
    words = [(40, 20, "CORNER BAKERY", 32)]
    for n, (name, price) in enumerate(rows):
        words += [(40, 90 + 48 * n, name, 26), (340, 90 + 48 * n, price, 26)]
    return drawn((460, 320), *words)


def test_receipt_rows_stay_together(tmp_path: Path, receipt: Image.Image) -> None:
    document = make(tmp_path, "receipt.jpg", saved(receipt, "JPEG"))
    (section,) = document.sections
    assert (document.mime, section.modality, section.meta) == ("image/jpeg", "image", {"ocr": True})
    assert section.media == MediaRef("box/receipt.jpg", "image/jpeg")
    assert [line for line in section.text.split("\n") if line] == [
        "CORNER BAKERY",
        "Rye bread\t7.80",
        "Oat milk\t2.35",
        "Apple cake\t4.20",
        "TOTAL\t14.35",
    ]
    x0, y0, x1, y1 = dict(lines_of(document))["TOTAL\t14.35"]
    assert (x0, x1) == pytest.approx((40 / 460, 412 / 460), abs=0.04)
    assert y0 < 246 / 320 < y1 and y1 - y0 < 0.2


def test_a_tilted_receipt_reads_the_same(tmp_path: Path, receipt: Image.Image) -> None:
    tilted = receipt.rotate(3, expand=True, fillcolor=WHITE, resample=Image.Resampling.BICUBIC)
    assert "Rye bread\t7.80\nOat milk\t2.35\nApple cake\t4.20" in text_of(make(tmp_path, "a.png", saved(tilted)))


def test_camera_orientation_is_applied(tmp_path: Path, receipt: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    document = make(tmp_path, "a.jpg", saved(receipt.rotate(90, expand=True), "JPEG", exif=exif))
    assert "TOTAL\t14.35" in text_of(document)


@pytest.mark.parametrize("turn", [90, 270])
def test_a_scan_that_lies_on_its_side_is_read(tmp_path: Path, receipt: Image.Image, turn: int) -> None:
    document = make(tmp_path, "a.png", saved(receipt.rotate(turn, expand=True)))
    assert "Rye bread\t7.80\nOat milk\t2.35" in text_of(document)
    box = dict(lines_of(document))["CORNER BAKERY"]
    x, y = 150 / 460, 36 / 320
    seen = (y, 1 - x) if turn == 90 else (1 - y, x)
    assert box[0] < seen[0] < box[2] and box[1] < seen[1] < box[3]


def test_the_label_of_an_axis_is_read_upwards_and_comes_last(tmp_path: Path) -> None:
    chart = drawn((600, 420), (150, 20, "Rainfall in Bergen", 30), (120, 380, "Jan", 24), (300, 380, "Feb", 24))
    label = drawn((220, 36), (4, 2, "millimetres", 24)).rotate(90, expand=True)
    chart.paste(label, (20, 120))
    assert text_of(make(tmp_path, "a.png", saved(chart))).split() == [*"Rainfall in Bergen Jan Feb millimetres".split()]


def test_transparency_is_white_and_palettes_are_read(tmp_path: Path, receipt: Image.Image) -> None:
    clear = receipt.convert("RGBA")
    clear.putalpha(receipt.convert("L").point(lambda value: 255 - value))
    for name, content in (
        ("a.png", saved(clear)),
        ("a.gif", saved(receipt, "GIF")),
        ("a.webp", saved(receipt, "WEBP")),
    ):
        assert "CORNER BAKERY" in text_of(make(tmp_path, name, content))


def test_every_page_of_a_tiff(tmp_path: Path) -> None:
    pages = [drawn((500, 120), (30, 40, word, 40)) for word in ("FIRST PAGE", "SECOND PAGE")]
    document = make(tmp_path, "a.tiff", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert [(s.page, s.text) for s in document.sections] == [(1, "FIRST PAGE"), (2, "SECOND PAGE")]


def test_a_long_strip_is_read_in_tiles(tmp_path: Path) -> None:
    marks = [f"MARK {n} OF THE STRIP" for n in range(11, 20)]
    words = [(30, 40 + 270 * n, mark, 22) for n, mark in enumerate(marks)]
    document = make(tmp_path, "a.png", saved(drawn((360, 2500), *words)))
    assert text_of(document) == "\n\n".join(marks)
    for n, (_, box) in enumerate(lines_of(document)):
        assert box[1] < (52 + 270 * n) / 2500 < box[3]


def test_a_large_picture_is_scaled_down_and_its_boxes_are_not(tmp_path: Path, receipt: Image.Image) -> None:
    small = dict(lines_of(make(tmp_path, "a.png", saved(receipt))))
    large = dict(lines_of(make(tmp_path, "b.png", saved(receipt.resize((460 * 5, 320 * 5))))))
    assert large["CORNER BAKERY"] == pytest.approx(small["CORNER BAKERY"], abs=0.03)


def test_a_picture_without_words_is_found_by_its_name(tmp_path: Path) -> None:
    (section,) = make(tmp_path, "Oslo_harbour-2024.png", picture_bytes((300, 200), "PNG", (60, 90, 140))).sections
    assert (section.text, section.meta, section.lines) == ("Oslo harbour 2024", {"named": True}, ())
    assert name_words("a/___.png") == "___.png"


def test_recognition_is_quiet_and_takes_turns(
    tmp_path: Path, receipt: Image.Image, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(saved(receipt))
    expected = read(tmp_path / "a.png", "box/a.png")
    got: list[Document] = []
    threads = [threading.Thread(target=lambda: got.append(read(tmp_path / "a.png", "box/a.png"))) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [expected] * 3
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_recognition_can_be_cancelled(tmp_path: Path, receipt: Image.Image) -> None:
    (tmp_path / "a.png").write_bytes(saved(receipt))
    stop = threading.Event()
    stop.set()
    with progress.reporting(cancelled=stop), pytest.raises(Cancelled):
        read(tmp_path / "a.png", "box/a.png")


# -- what a passage looks like -----------------------------------------------------------------------------------------


def test_pictures_are_scaled_and_encoded(tmp_path: Path, report: Path, receipt: Image.Image) -> None:
    page = picture(report, "box/report.pdf", "application/pdf", 2, 300)
    assert (page.mime, page.height) == ("image/png", 300)
    assert Image.open(io.BytesIO(page.image)).size == (page.width, page.height)
    (tmp_path / "a.jpg").write_bytes(saved(receipt, "JPEG"))
    photo = picture(tmp_path / "a.jpg", "box/a.jpg", "image/jpeg", None, 200)
    assert (photo.mime, photo.width) == ("image/jpeg", 200)
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    (tmp_path / "b.png").write_bytes(saved(noise))
    assert picture(tmp_path / "b.png", "box/b.png", "image/png", None, 900).mime == "image/jpeg"


def test_pictures_that_cannot_be_shown(tmp_path: Path, report: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UnreadableFile, match="cannot be shown"):
        picture(tmp_path / "a.txt", "box/a.txt", "text/plain", None, 300)
    with pytest.raises(UnreadableFile, match="is now text/plain"):
        picture(tmp_path / "a.txt", "box/a.txt", "image/png", None, 300)
    with pytest.raises(UnreadableFile, match="no page `9`"):
        picture(report, "box/report.pdf", "application/pdf", 9, 300)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_missing_path(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "absent.txt").message


def test_what_is_not_a_file(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path).message
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refused(tmp_path / "pipe").message
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "is a symbolic link" in refused(tmp_path / "link.txt").message
    assert "is a device" in refused(Path(os.devnull)).message


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("words")
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything: let the system call say no

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("triptych.retrievers.readers.detect.os.open", refuse)
    assert "may not be read" in refused(path).message


def test_empty_files(tmp_path: Path) -> None:
    for name in ("a.txt", "a.pdf", "a.png", "a.html"):
        (tmp_path / name).touch()
        assert "is empty" in refused(tmp_path / name).message


def test_a_file_of_200_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    start = time.monotonic()
    assert "200000000 bytes, more than `max_bytes` = 64000000" in refused(path).message
    assert time.monotonic() - start < 0.5


def test_binary_with_the_name_of_a_text(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", bytes(range(256)) * 20),
        ("b.txt", b"MZ\x90\x00\x03" + bytes(500)),
        ("c.txt", b"\xff\xfe" + os.urandom(4000)),
        ("d.txt", b"PK\x03\x04" + bytes(100)),
        ("e.md", b"\x00\x01\x02\x03"),
        ("f.txt", b"{\\rtf1 words}"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    error = refused(tmp_path / "d.txt")
    assert "PDF" in error.hint and "Markdown" in error.hint


def test_text_of_control_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x01\x02\x03\x1b" * 50)
    refused(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("\u200b\u202e\ufeff\n \t")
    assert "has no text" in refused(tmp_path / "b.txt").message


def test_html_that_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<html><script>let a = 1</script><!-- words --></html>")
    assert "has no text" in refused(tmp_path / "a.html").message


def test_truncated_and_damaged_pdf(tmp_path: Path, report: Path) -> None:
    whole = report.read_bytes()
    for share in (0.1, 0.5, 0.95):
        (tmp_path / "cut.pdf").write_bytes(whole[: int(share * len(whole))])
        assert "truncated" in refused(tmp_path / "cut.pdf").message
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(3000) + b"\nstartxref\n9\n%%EOF")
    assert "damaged PDF" in refused(tmp_path / "bad.pdf").message


def test_encrypted_pdf(tmp_path: Path) -> None:
    made = pdf()
    made.set_encryption("owner", "user", permissions=AccessPermission.none())
    made.add_page()
    made.cell(0, 10, "secret")
    (tmp_path / "a.pdf").write_bytes(bytes(made.output()))
    assert "encrypted" in refused(tmp_path / "a.pdf").message


def test_pdf_with_nothing_on_it(tmp_path: Path) -> None:
    made = FPDF()
    made.add_page()
    (tmp_path / "a.pdf").write_bytes(bytes(made.output()))
    assert "no text" in refused(tmp_path / "a.pdf").message


def test_too_many_pages(tmp_path: Path, report: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(report.read_bytes())
    assert "2 pages, more than `max_pages` = 1" in refused(path, Limits(max_pages=1)).message
    pages = [Image.new("L", (20, 20)) for _ in range(3)]
    (tmp_path / "a.tiff").write_bytes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert "3 pages, more than `max_pages` = 2" in refused(tmp_path / "a.tiff", Limits(max_pages=2)).message


@pytest.mark.parametrize("side", [9_000, 16_000])
def test_too_many_pixels(tmp_path: Path, side: int) -> None:
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    assert "more than `max_pixels` = 64000000" in refused(tmp_path / "a.png").message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_pictures(tmp_path: Path, kind: str) -> None:
    whole = saved(Image.effect_noise((90, 70), 60).convert("RGB"), kind)
    for size in (24, len(whole) // 2):
        (tmp_path / "a.img").write_bytes(whole[:size])
        assert "damaged" in refused(tmp_path / "a.img").message


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=300)
    | st.sampled_from([b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"<html>"]).flatmap(
        lambda start: st.binary(max_size=200).map(lambda rest: start + rest)
    )
)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    try:
        assert text_of(read(path, "box/any.txt")).strip()
    except UnreadableFile as error:
        assert error.hint and str(path.parent) not in str(error)
