"""Files made to do harm: each small, each asking for endless time, memory or depth."""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import docx
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from made_files import CONTAINER, FILES, changed, epub, parts_of, saved, sheets, slides, word, zipped

_SHOWN = b"BT /F 12 Tf 20 100 Td (Words that are shown on this page) Tj ET"
_FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
_PAGE = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>%s>>%s>>"


def stream(content: bytes, entries: bytes = b"") -> bytes:
    packed = zlib.compress(content, 9)
    return b"<<%s/Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (entries, len(packed), packed)


def pdf(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of `objects`, numbered from 1; the first is its catalogue."""
    made, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    end = b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, len(made))
    return made + head + table + end


def paged(
    content: bytes = _SHOWN,
    resources: bytes = b"",
    page: bytes = b"",
    kids: bytes = b"3 0 R",
    more: Sequence[bytes] = (),
) -> bytes:
    """A PDF of one page, unless `kids` names others; further objects are numbered from 6."""
    pages = b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, max(1, kids.count(b"R")))
    own = _PAGE % (resources, page)
    return pdf([b"<</Type/Catalog/Pages 2 0 R>>", pages, own, stream(content), _FONT, *more])


def _image(width: int, height: int) -> bytes:
    entries = b"/Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 1"
    return stream(bytes(width * height // 8), entries % (width, height))


def _pdfs() -> dict[str, Callable[[], bytes]]:
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 6 0 R>>>>"
    shows = b"/XObject<</X 6 0 R>>"
    big = b"/Type/ObjStm/N 1/First 4"
    return {
        "page tree that holds itself": lambda: paged(kids=b"2 0 R 3 0 R"),
        "page tree of two that hold each other": lambda: paged(
            kids=b"6 0 R", more=[b"<</Type/Pages/Kids[2 0 R]/Count 9/Parent 2 0 R>>"]
        ),
        "page count that lies": lambda: paged().replace(b"/Count 1", b"/Count 999999999"),
        "cross-reference that goes back to itself": lambda: _looped(paged()),
        "form that draws itself": lambda: paged(b"/X Do " + _SHOWN, shows, more=[stream(b"/X Do " * 9, form)]),
        "forms that double": lambda: _doubling(24),
        "object stream that expands": lambda: paged(
            more=[stream(b"6 0 " + bytes(600_000_000), big)], page=b"/Annots 6 0 R"
        ),
        "content that expands": lambda: paged(_SHOWN + b" q Q" * 4_000_000),
        "page of too many letters": lambda: paged(b"BT /F 9 Tf " + b"0 -9 Td (abcdefghij ) Tj " * 60_000 + b"ET"),
        "page of millions of lines": lambda: paged(_SHOWN + b" 0 0 m 9 9 l S" * 100_000),
        "page without end": lambda: paged(b"/X Do", shows, b"", more=[_image(8, 8)]).replace(
            b"[0 0 200 200]", b"[0 0 1e9 1e9]"
        ),
        "page like a thread": lambda: paged(b"9 0 0 99999 0 0 cm /X Do", shows, more=[_image(8, 8)]).replace(
            b"[0 0 200 200]", b"[0 0 1 14400]"
        ),
        "picture of a billion pixels": lambda: paged(b"200 0 0 200 0 0 cm /X Do", shows, more=[_image(32_000, 32_000)]),
        "arrays in arrays": lambda: paged(more=[b"[" * 500_000 + b"]" * 500_000], page=b"/Annots 6 0 R"),
        "one page a thousand times": lambda: paged(kids=b"3 0 R " * 1000),
        "page of columns without end": lambda: paged(_scattered(20_000)),
        "table of a million rules": lambda: paged(_ruled(600)),
        "name without end": lambda: paged(page=b"/" + b"A" * 5_000_000 + b" 1"),
    }


def _looped(content: bytes) -> bytes:
    at = content.rindex(b"startxref\n") + 10
    return content.replace(b"<</Size", b"<</Prev %d/Size" % int(content[at:].split()[0]))


def _doubling(depth: int) -> bytes:
    entries = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X %d 0 R>>>>"
    forms = [stream(b"/X Do /X Do", entries % (7 + n)) for n in range(depth)]
    return paged(b"/X Do " + _SHOWN, b"/XObject<</X 6 0 R>>", more=[*forms, stream(b"", entries % 6)])


def _scattered(count: int) -> bytes:
    chance = random.Random(1)
    words = b"".join(
        b"1 0 0 1 %d %d Tm (ab) Tj " % (chance.randrange(200), chance.randrange(200)) for _ in range(count)
    )
    return b"BT /F 2 Tf " + words + b"ET"


def _ruled(count: int) -> bytes:
    lines = b"".join(b"%g 0 m %g 200 l 0 %g m 200 %g l S " % ((n / 3,) * 4) for n in range(count))
    return (
        lines + b"BT /F 1 Tf " + b"".join(b"1 0 0 1 %g %g Tm (1) Tj " % (n % 200, n // 9) for n in range(1800)) + b"ET"
    )


def _texts() -> dict[str, Callable[[], bytes]]:
    pairs = {"div": b"<div>", "figure": b"<figure>", "figcaption": b"<figure><figcaption>", "table": b"<table><tr><td>"}
    cells = b'[{"cells": '
    html = {
        f"a.html: {name} in itself": (lambda tag=tag: b"<html><p>x" + tag * (100_000 // len(tag)) * 5)
        for name, tag in pairs.items()
    }
    return {
        **html,
        "a.html: a million attributes": lambda: b"<html><p " + b"a=b " * 1_000_000 + b">x</p>",
        "a.html: entities without end": lambda: b"<html><p>" + b"&amp" * 300_000,
        "a.html: pictures without end": lambda: b"<html><h1>x</h1>" + b"<img alt='one two three four five'>" * 30_000,
        "a.txt: a line without end": lambda: b"word" * 1_000_000,
        "a.txt: marks upon marks": lambda: b"a" + b"\xcc\x81" * 500_000,
        "a.txt: blank lines": lambda: b"a" + b"\n" * 2_000_000 + b"b",
        "a.md: bars": lambda: b"# x\n\n" + b"|" * 1_000_000,
        "a.md: brackets": lambda: b"# x\n\n" + b"[" * 500_000 + b"](" * 100_000,
        "a.md: headings": lambda: b"# x\n\n" * 30_000,
        "a.md: quotes in quotes": lambda: b"> " * 500_000 + b"x",
        "a.json: arrays in arrays": lambda: b'{"a":' + b"[" * 900_000 + b"]" * 900_000 + b"}",
        "a.json: a number without end": lambda: b'{"a": ' + b"9" * 5_000_000 + b"}",
        "a.json: a key without end": lambda: json.dumps({"k" * 5_000_000: {"x" * 5_000_000: 1}}).encode(),
        "a.json: millions of values": lambda: b"[" + b"1," * 3_000_000 + b"1]",
        "a.jsonl: a line without end": lambda: b'{"a": 1}\n{"a": "' + b"x" * 3_000_000 + b'"}\n',
        "a.csv: a million columns": lambda: b",".join(b"c%d" % n for n in range(1_000_000)) + b"\n",
        "a.csv: a cell without end": lambda: b'a,b\n1,"' + b"x\n" * 3_000_000,
        "a.csv: quotes": lambda: b"a,b\n" + b'"' * 3_000_001,
        "a.tsv: a million rows": lambda: b"a\tb\tc\n" * 1_000_000,
        "a.eml: parts in parts": lambda: _mail(10_000),
        "a.eml: messages in messages": lambda: (
            b"From: a\nTo: b\nSubject: c\nContent-Type: message/rfc822\n\n" * 10_000 + b"x"
        ),
        "a.eml: a hundred thousand headers": lambda: (
            b"From: a\nTo: b\nSubject: c\n" + b"X-A: b\n" * 100_000 + b"\nwords"
        ),
        "a.eml: a header without end": lambda: (
            b"From: a\nTo: b\nSubject: " + b"=?utf-8?q?a?= " * 200_000 + b"\n\nwords"
        ),
        "a.eml: attachments": lambda: _attached(20_000),
        "a.ipynb: an output without end": lambda: _notebook({"output_type": "stream", "text": "x" * 8_000_000}),
        "a.ipynb: an output of lines": lambda: _notebook({"output_type": "stream", "text": ["x\n"] * 500_000}),
        "a.ipynb: cells in cells": lambda: (
            b'{"nbformat": 4, "cells": ' + cells * 50_000 + b"[]" + b"}]" * 50_000 + b"}"
        ),
        "a.py: brackets": lambda: b"def f():\n    return " + b"(" * 200_000 + b"\n",
        "a.py: functions in functions": lambda: b"".join(b" " * n + b"def f():\n" for n in range(1500)),
        "a.js: strings": lambda: b"function f() { return 1 }\n" + b"`${" * 100_000,
        "a.c: macros": lambda: b"#include <a.h>\nint main(void) {" + b"#if A\n" * 100_000 + b"return 0; }\n",
        "a.rs: generics": lambda: b"fn main() { let x: " + b"A<" * 100_000 + b" = 1; }\n",
    }


def _mail(depth: int) -> bytes:
    made = [b"From: a@b\nTo: c@d\nSubject: e\nMIME-Version: 1.0\n"]
    made += [b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(depth)]
    return b"".join([*made, b"Content-Type: text/plain\n\nwords\n"])


def _attached(count: int) -> bytes:
    part = b'--b\nContent-Type: image/png; name="a.png"\nContent-Disposition: attachment; filename="a.png"\n\nx\n'
    head = b'From: a@b\nTo: c@d\nSubject: e\nContent-Type: multipart/mixed; boundary="b"\n\n'
    return head + part * count + b"--b--\n"


def _notebook(output: object) -> bytes:
    cell = {"cell_type": "code", "source": "x = 1", "outputs": [output]}
    return json.dumps({"nbformat": 4, "cells": [cell], "metadata": {}}).encode()


_DEEP = 20_000
_OWN = "META-INF/container.xml"


def _archives() -> dict[str, Callable[[], bytes]]:
    return {
        "a.zip: nested": lambda: _nested(),
        "a.docx: sizes that lie": lambda: _lying(word()),
        "a.docx: names that climb": lambda: zipped({**parts_of(word()), "../../../etc/x": b"x", "/etc/y": b"y"}),
        "a.docx: names twice": lambda: _twice(word()),
        "a.docx: tables in tables": lambda: _body(b"<w:tbl><w:tr><w:tc>", b"</w:tc></w:tr></w:tbl>", _DEEP),
        "a.docx: controls in controls": lambda: _body(b"<w:sdt><w:sdtContent>", b"</w:sdtContent></w:sdt>", _DEEP),
        "a.docx: boxes in boxes": lambda: _body(b"<w:p><w:r><w:txbxContent>", b"</w:txbxContent></w:r></w:p>", _DEEP),
        "a.docx: a million paragraphs": lambda: _body(b"<w:p/>" * 1_000_000, b"", 1),
        "a.docx: a cell that reaches far": lambda: _body(
            b'<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="999999999"/></w:tcPr></w:tc><w:tc/></w:tr>', b"</w:tbl>", 1
        ),
        "a.docx: a picture of a billion pixels": lambda: _pictured(_png(40_000, 25_000)),
        "a.docx: a picture that is an archive": lambda: _pictured(zipped({"a": bytes(1000)})),
        "a.pptx: groups in groups": lambda: changed(slides(), "ppt/slides/slide1.xml", _grouped),
        "a.pptx: a slide again and again": lambda: changed(slides(), "ppt/presentation.xml", _repeated),
        "a.xlsx: a cell far away": lambda: changed(
            sheets(), "xl/worksheets/sheet1.xml", lambda old: old.replace(b'r="A1"', b'r="XFD1048576"')
        ),
        "a.xlsx: a text used a million times": lambda: changed(
            sheets(),
            "xl/worksheets/sheet1.xml",
            lambda old: old.replace(b"</sheetData>", b'<row><c t="s"><v>0</v></c></row>' * 300_000 + b"</sheetData>"),
        ),
        "a.epub: a container that is its own book": lambda: zipped(
            {"mimetype": "application/epub+zip", _OWN: CONTAINER.replace("OEBPS/book.opf", _OWN)}
        ),
        "a.epub: a chapter again and again": lambda: changed(
            epub(),
            "OEBPS/book.opf",
            lambda old: old.replace(b"</spine>", b'<itemref idref="c1"/>' * 100_000 + b"</spine>"),
        ),
        "a.epub: elements in elements": lambda: epub(["<b>" * _DEEP + "x" + "</b>" * _DEEP]),
        "a.epub: contents in contents": lambda: epub(
            **{"OEBPS/toc.ncx": "<ncx><navMap>" + "<navPoint>" * _DEEP + "</navPoint>" * _DEEP + "</navMap></ncx>"}
        ),
    }


def _nested() -> bytes:
    made = bytes(1_000_000)
    for _ in range(6):
        made = zipped({f"{n}.zip": made for n in range(8)})
    return made


def _lying(content: bytes) -> bytes:
    """The archive with every part's size stated as 4 GB less one byte."""
    made = bytearray(content)
    at = -1
    while (at := made.find(b"PK\x01\x02", at + 1)) >= 0:
        made[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    return bytes(made)


def _twice(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, part in [*parts_of(content).items(), ("word/document.xml ", b"<x/>")]:
            archive.writestr(zipfile.ZipInfo(name), part)
    return out.getvalue().replace(b"word/document.xml ", b"word/document.xml\0")


def _body(opening: bytes, closing: bytes, depth: int) -> bytes:
    made = opening * depth + b"<w:p><w:r><w:t>words</w:t></w:r></w:p>" + closing * depth
    return changed(word(), "word/document.xml", lambda old: old.replace(b"<w:body>", b"<w:body>" + made, 1))


def _png(width: int, height: int) -> bytes:
    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (width // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")


def _pictured(picture: bytes) -> bytes:
    """A Word document with a picture whose bytes are `picture`."""
    small = io.BytesIO()
    Image.new("RGB", (9, 9)).save(small, "PNG")
    made = docx.Document()
    made.add_paragraph("Words")
    made.add_picture(io.BytesIO(small.getvalue()))
    return changed(saved(made), "word/media/image1.png", lambda _: picture)


def _grouped(slide: bytes) -> bytes:
    opening = b"<p:grpSp><p:nvGrpSpPr><p:cNvPr id='9' name='g'/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>"
    return slide.replace(b"</p:spTree>", opening * 5000 + b"</p:grpSp>" * 5000 + b"</p:spTree>")


def _repeated(presentation: bytes) -> bytes:
    at = presentation.index(b"<p:sldId ")
    one = presentation[at : presentation.index(b"/>", at) + 2]
    return presentation.replace(one, one * 1900)


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    **{f"a.pdf: {name}": ("a.pdf", made) for name, made in _pdfs().items()},
    **{name: (name.partition(":")[0], made) for name, made in (_texts() | _archives()).items()},
}
"""What the file does, its name, and how it is made."""

WHOLE: dict[str, Callable[[], bytes]] = {**FILES, "a.pdf": paged, "a.html": lambda: b"<html><p>words</p></html>"}
"""Files without harm, by name."""
