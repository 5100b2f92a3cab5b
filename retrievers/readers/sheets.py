"""Excel workbooks: each sheet is a page, its rows are tables under the sheet's name, values are as Excel shows them.

Read with openpyxl rather than markitdown, which shows hidden sheets and rows, `NaN` for empty cells and numbers without
their format, and does not say which rows it gives. Hidden sheets, rows and columns are left out: whoever opens the file
to check a citation does not see them. They are counted in the document's `meta`. Formulas give the value that was
saved with them. Charts, text boxes and comments are not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing
from threading import Lock
from typing import Any, BinaryIO

from openpyxl import load_workbook
from openpyxl.cell.read_only import ReadOnlyCell
from openpyxl.worksheet._reader import COL_TAG, DATA_TAG, ROW_TAG, WorkSheetParser
from openpyxl.xml.functions import iterparse

from ... import progress
from ._numbers import shown
from ._rows import Allowance, TableRow, blocks, one_cell, regions
from ._zip import XLSX, check_xml, opened_zip
from .base import Document, Limits, Reader, Section, file_name, parsing, unreadable

_ROW_BYTES = 8_000_000  # XML from one row to the next, which is in memory as a whole
_STEP = 1000
_quiet = Lock()


class SheetReader(Reader):
    """Sections of as many rows as fit into a passage; `page` is the number of the sheet, hidden ones counted."""

    mimes = frozenset({XLSX})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        with opened_zip(file, uri, limits) as archive:
            check_xml(archive, uri, limits)
        file.seek(0)
        with _quiet, warnings.catch_warnings(), parsing(uri, "Excel workbook"):
            warnings.simplefilter("ignore")  # openpyxl warns of every part that it passes over
            with closing(load_workbook(file, read_only=True, data_only=True, keep_links=False)) as workbook:
                found = _Workbook(workbook, uri, limits)
                sections = tuple(found.sections())
                title, _ = one_cell(workbook.properties.title or "")
        if not sections:
            raise unreadable(uri, "has no value that is shown", "Save the workbook with its content.")
        return Document(uri, title or file_name(uri), mime, sections, {**found.meta, **found.allowance.meta})


class _Workbook:
    """What is read of one workbook; `meta` counts what was left out."""

    def __init__(self, workbook: Any, uri: str, limits: Limits) -> None:
        self._workbook = workbook
        self._uri = uri
        self.allowance = Allowance(limits)
        self._codes: dict[int, str] = {}
        self.meta = {"stripped": 0, "sheets": 0, "hidden_sheets": 0, "hidden_rows": 0}

    def sections(self) -> Iterator[Section]:
        for number, sheet in enumerate(self._workbook.worksheets, 1):
            if sheet.sheet_state != "visible":
                self.meta["hidden_sheets"] += 1
                continue
            self.meta["sheets"] += 1
            titles = (one_cell(sheet.title)[0] or f"Sheet {number}",)
            for region in regions(self.allowance.take(self._rows(sheet))):
                yield from blocks(region, titles, page=number)
            if self.allowance.spent:
                yield from self.allowance.remark(number)
                return

    def _rows(self, sheet: Any) -> Iterator[TableRow]:
        """Rows that are shown, with the cells that are shown and not empty.

        openpyxl's own loop over rows does not tell which are hidden; its parser of a row does.
        """
        book = self._workbook
        hidden: list[tuple[int, int]] = []
        above = 0
        with sheet._get_source() as source:
            metered = _Metered(source, self._uri)
            options = {"epoch": book.epoch, "date_formats": book._date_formats}
            parser = WorkSheetParser(
                metered,
                sheet._shared_strings,
                data_only=True,
                timedelta_formats=book._timedelta_formats,
                **options,
            )
            for _, element in iterparse(metered):
                if element.tag == COL_TAG and element.get("hidden") in ("1", "true"):
                    hidden.append((int(element.get("min")), int(element.get("max"))))
                elif element.tag == ROW_TAG:
                    metered.since = 0
                    number, cells = parser.parse_row(element)
                    is_hidden = element.get("hidden") in ("1", "true")
                    element.clear()
                    if number % _STEP == 0:
                        progress.step(number, None, "rows")
                    if is_hidden:
                        above += 1
                        self.meta["hidden_rows"] += 1
                        self.allowance.allows(0, f"row {number}")
                    else:
                        yield TableRow(number, self._texts(sheet, cells, hidden), above)
                elif element.tag == DATA_TAG:
                    return

    def _texts(self, sheet: Any, cells: list[dict[str, Any]], hidden: list[tuple[int, int]]) -> dict[int, str]:
        texts: dict[int, str] = {}
        for cell in cells:
            column, value = cell["column"], cell["value"]
            if value is None or any(first <= column <= last for first, last in hidden):
                continue
            text, stripped = one_cell(shown(value, self._code(sheet, cell)))
            self.meta["stripped"] += stripped
            if text:
                texts[column - 1] = text
        return texts

    def _code(self, sheet: Any, cell: dict[str, Any]) -> str:
        """The number format of a cell, looked up once for each style."""
        style = cell["style_id"]
        if style not in self._codes:
            self._codes[style] = str(ReadOnlyCell(sheet, **cell).number_format)
        return self._codes[style]


class _Metered:
    """A stream that gives up when too much of it is read without a row: the parser holds all of that in memory."""

    def __init__(self, source: Any, uri: str) -> None:
        self._source = source
        self._uri = uri
        self.since = 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._source.read(size)
        self.since += len(data)
        if self.since > _ROW_BYTES:
            what = f"has a row of more than {_ROW_BYTES} bytes"
            raise unreadable(self._uri, what, "Split the sheet, or save it as CSV.")
        return data
