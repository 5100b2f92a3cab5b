"""Files of the kinds that people have, made with the libraries that write them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from email.message import EmailMessage
from typing import Any

import docx
import openpyxl
import pptx
from docx.oxml.parser import parse_xml
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def zipped(parts: Mapping[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of `parts`; `mimetype` is stored, as EPUB wants it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in parts.items():
            info = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
            archive.writestr(info, content, zipfile.ZIP_STORED if name == "mimetype" else method)
    return out.getvalue()


def parts_of(archive: bytes) -> dict[str, bytes]:
    """The parts of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def changed(archive: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with one of its parts changed."""
    parts = parts_of(archive)
    return zipped({**parts, name: change(parts[name])})


def saved(made: Any) -> bytes:
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def paragraph(xml: str) -> Any:
    return parse_xml(f"<w:p {W}>{xml}</w:p>")


def word() -> bytes:
    made = docx.Document()
    made.add_heading("Travel rules", 0)
    made.add_heading("Rates & rules", 1)
    first = made.add_paragraph("The allowance covers the hotel")
    first.add_run(" and a secret").font.hidden = True
    first.add_run(" and the train.")
    made.add_comment(first.runs, text="a remark", author="A", initials="A")
    made.add_paragraph("one", style="List Bullet")
    made.add_paragraph("two", style="List Bullet")
    made.add_paragraph("first", style="List Number")
    made.add_paragraph("second", style="List Number")
    made.add_heading("By city", 2)
    table = made.add_table(3, 2)
    for row, texts in zip(table.rows, (("City", "Night"), ("Oslo", "142 | x"), ("Rome", "118")), strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    body = made.element.body
    tracked = '<w:r><w:t xml:space="preserve">Kept </w:t></w:r>'
    tracked += '<w:ins w:id="1" w:author="a"><w:r><w:t>inserted</w:t></w:r></w:ins>'
    tracked += '<w:del w:id="2" w:author="a"><w:r><w:delText>deleted</w:delText></w:r></w:del>'
    body.insert(len(body) - 1, paragraph(tracked))
    return saved(made)


def slides() -> bytes:
    made = pptx.Presentation()
    first = made.slides.add_slide(made.slide_layouts[1])
    first.shapes.title.text = "Rates 2024"
    frame = first.placeholders[1].text_frame
    frame.text = "Hotels"
    for text, level in (("Oslo 142", 1), ("Trains", 0)):
        added = frame.add_paragraph()
        added.text, added.level = text, level
    first.notes_slide.notes_text_frame.text = "Say that Rome comes later."
    second = made.slides.add_slide(made.slide_layouts[5])
    second.shapes.title.text = "Table"
    for top, left, text in ((5, 1, "below"), (2, 6, "right"), (2, 1, "left")):
        second.shapes.add_textbox(Inches(left), Inches(top), Inches(2), Inches(1)).text_frame.text = text
    table = second.shapes.add_table(2, 2, Inches(1), Inches(3), Inches(4), Inches(1)).table
    for place, text in zip(((0, 0), (0, 1), (1, 0), (1, 1)), ("City", "Night", "Oslo", "142"), strict=True):
        table.cell(*place).text = text
    hidden = made.slides.add_slide(made.slide_layouts[5])
    hidden.shapes.title.text = "Backup"
    hidden._element.set("show", "0")
    data = CategoryChartData()
    data.categories = ["Oslo", "Rome"]
    data.add_series("Nights", (142, 118))
    hidden.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, Inches(1), Inches(2), Inches(4), Inches(3), data)
    return saved(made)


def sheets() -> bytes:
    made = openpyxl.Workbook()
    sheet = made.active
    sheet.title = "Rates"
    sheet.append(["Travel rates of the station"])
    sheet.append([])
    sheet.append(["City", "Night", "Share", "From"])
    sheet.append(["Oslo", 1142.5, 0.256, datetime(2024, 5, 3)])
    sheet.append(["secret", 1, 0.1, None])
    sheet.append(["Rome", 118, 0.1, date(2024, 6, 1)])
    for row in (4, 5, 6):
        sheet.cell(row, 2).number_format = "#,##0.00"
        sheet.cell(row, 3).number_format = "0.0%"
        sheet.cell(row, 4).number_format = "dd.mm.yyyy"
    sheet.row_dimensions[5].hidden = True
    sheet["F4"] = "secret"
    sheet.column_dimensions["F"].hidden = True
    made.create_sheet("Lists").append(["secret"])
    made["Lists"].sheet_state = "hidden"
    made.create_sheet("Trains").append(["Bergen", True])
    return saved(made)


CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)


def epub(chapters: Iterable[str] = (), **more: str) -> bytes:
    """A book of `chapters` (XHTML bodies), in an order that its manifest does not have."""
    bodies = list(chapters) or [
        "<h1>The fjord</h1><p>Water between mountains.</p>",
        "<p>A chapter without a heading.</p>",
    ]
    named = [(f"c{len(bodies) - n}", body) for n, body in enumerate(bodies)]
    items = "".join(
        f'<item id="{n}" href="text/{n}.xhtml" media-type="application/xhtml+xml"/>' for n, _ in sorted(named)
    )
    spine = "".join(f'<itemref idref="{name}"/>' for name, _ in named)
    points = "".join(
        f'<navPoint><navLabel><text>Part {n}</text></navLabel><content src="text/{name}.xhtml#x"/></navPoint>'
        for n, (name, _) in enumerate(named, 1)
    )
    package = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        "<metadata><dc:title>A book of water</dc:title></metadata>"
        f'<manifest>{items}<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
        f'<spine toc="ncx">{spine}</spine></package>'
    )
    ncx = f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{points}</navMap></ncx>'
    pages = {
        f"OEBPS/text/{name}.xhtml": f"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><body>{body}</body></html>"
        for name, body in named
    }
    fixed = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "OEBPS/book.opf": package}
    return zipped({**fixed, "OEBPS/toc.ncx": ncx, **pages, **more})


def mail() -> bytes:
    made = EmailMessage()
    made["From"] = "Åse Berg <aase@example.org>"
    made["To"] = "rates@example.org"
    made["Date"] = "Fri, 03 May 2024 10:00:00 +0200"
    made["Subject"] = "Hotels in Tromsø: new rates"
    made["X-Spam"] = "no"
    made.set_content("The new rate is 142 € a night.\n\nÅse\n")
    made.add_alternative("<p>The new rate is <b>142 €</b> a night.</p>", subtype="html")
    made.add_attachment(b"%PDF-1.7", maintype="application", subtype="pdf", filename="rates.pdf")
    return bytes(made)


def notebook() -> bytes:
    output = {"output_type": "stream", "name": "stdout", "text": ["142\n", "\x1b[31mred\x1b[0m"]}
    picture = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}, "metadata": {}}
    failed = {"output_type": "error", "ename": "ValueError", "evalue": "no rate", "traceback": ["trace"]}
    code = {"cell_type": "code", "metadata": {}, "execution_count": 1, "outputs": [output, picture, failed]}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Rates\n", "\n", "How they were made."]},
        {**code, "source": "# not a heading\nnight(142)"},
        {"cell_type": "markdown", "metadata": {}, "source": "## By city\nOslo"},
    ]
    info = {"language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": info, "nbformat": 4, "nbformat_minor": 5}).encode()


CSV = 'City,Night,Remark\nOslo,142,with breakfast\nRome,118,"tax, extra"\nTallinn,88,\n'
DATA: dict[str, Any] = {
    "name": "rates",
    "server": {"port": 8080, "tls": {"on": True, "hosts": ["a", "b"]}},
    "rates": [{"city": "Oslo", "night": 142.50}, {"city": "Rome", "night": 118}],
    "none": None,
}
LINES = '{"city": "Oslo", "night": 142}\n{"city": "Rome", "night": 118}\n'
PYTHON = '''"""Rates."""

import math

LIMIT = 3


# What a night costs.
@cached
class Rates:
    """Rates by city."""

    def night(self, city: str) -> int:
        return 142


def total(nights):
    return sum(nights)
'''

FILES: dict[str, Callable[[], bytes]] = {
    "a.docx": word,
    "a.pptx": slides,
    "a.xlsx": sheets,
    "a.epub": epub,
    "a.eml": mail,
    "a.ipynb": notebook,
    "a.csv": CSV.encode,
    "a.tsv": CSV.replace(",", "\t").encode,
    "a.json": lambda: json.dumps(DATA, indent=1).encode(),
    "a.jsonl": LINES.encode,
    "a.py": PYTHON.encode,
}
"""A file of each kind by its name."""
