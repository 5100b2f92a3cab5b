"""The Word document and the Excel workbook of the sample library, from plain words: the same bytes in every run."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from datetime import date, datetime

import docx
import openpyxl
from openpyxl.styles import Font

Rows = list[list[str]]


def word(words: str, written: datetime) -> bytes:
    """A document from `#` title, `##` heading, `| a | b |` table rows and paragraphs between blank lines."""
    made = docx.Document()
    made.core_properties.created = made.core_properties.modified = written.replace(tzinfo=None)
    made.core_properties.author = made.core_properties.last_modified_by = "Vessey Holm Trust"
    for block in words.strip().split("\n\n"):
        text = " ".join(block.splitlines())
        if block.startswith("|"):
            _lay_table(made, _cells(block))
        elif block.startswith("# "):
            made.core_properties.title = text[2:]
            made.add_heading(text[2:], 0)
        elif block.startswith("## "):
            made.add_heading(text[3:], 1)
        else:
            made.add_paragraph(text)
    out = io.BytesIO()
    made.save(out)
    return _dated(out.getvalue(), written)


def workbook(words: str, title: str, written: datetime) -> bytes:
    """A workbook from `## sheet` and `| a | b |` rows, the first of them a heading; numbers and dates become cells of
    that kind."""
    made = openpyxl.Workbook()
    made.remove(made.worksheets[0])
    made.properties.title, made.properties.creator = title, "Vessey Holm Trust"
    made.properties.created = written.replace(tzinfo=None)
    for name, rows in _sheets(words):
        sheet = made.create_sheet(name)
        for number, row in enumerate(rows, 1):
            for column, text in enumerate(row, 1):
                cell = sheet.cell(number, column)
                cell.value, cell.number_format = _value(text)
                cell.font = Font(bold=number == 1)
        sheet.freeze_panes = "A2"
        for column, width in zip("ABCDEF", (8, 32, 24, 14, 16, 16), strict=True):
            sheet.column_dimensions[column].width = width
    out = io.BytesIO()
    made.save(out)
    return _dated(out.getvalue(), written)


def _lay_table(made: docx.document.Document, rows: Rows) -> None:
    table = made.add_table(len(rows), len(rows[0]), "Table Grid")
    for row, texts in zip(table.rows, rows, strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text


def _sheets(words: str) -> Iterator[tuple[str, Rows]]:
    for part in re.split(r"^## ", words, flags=re.M)[1:]:
        name, rows = part.split("\n\n", 1)
        yield name, _cells(rows.strip())


def _cells(block: str) -> Rows:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]


def _value(text: str) -> tuple[str | int | date, str]:
    """What a cell holds, and the number format that shows it as `text`."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return date.fromisoformat(text), "yyyy-mm-dd"
    if re.fullmatch(r"[\d,]+", text):
        return int(text.replace(",", "")), "#,##0"
    return text, "General"


def _dated(archive: bytes, written: datetime) -> bytes:
    """The archive with one date for all its parts: both libraries put in the time at which they write."""
    out = io.BytesIO()
    stamp = written.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            content = old.read(part)
            if part == "docProps/core.xml":
                content = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>" + stamp, content)
            info = zipfile.ZipInfo(part, written.timetuple()[:6])
            info.external_attr, info.create_system = 0o600 << 16, 3
            new.writestr(info, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()
