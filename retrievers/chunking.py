"""From a document to passages: boundaries on structure, exact offsets, nothing lost, no grapheme cut.

All spans are half-open character offsets, `text[start:end]`.
"""

from __future__ import annotations

from base64 import b32encode
from bisect import bisect_right
from hashlib import sha256
from itertools import groupby, pairwise, takewhile
from typing import TYPE_CHECKING, Any

import regex

from .. import progress
from .base import Item, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .base import Box
    from .readers.base import Document, Line, Section

CHUNK_PIECES = 180
"""Most word pieces of a passage, as `pieces` counts them; 99 of 100 are then at most 256 in an uncased vocabulary."""

UNIT_PIECES = 90
"""A sentence or row above this many word pieces (about 70 English words) is split at clauses, then words."""

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}"
_GRAPHEME = regex.compile(r"\X")
_WORD = regex.compile(r"\p{Latin}[\p{Latin}\p{M}]*")
_DIGITS = regex.compile(r"\p{Nd}+")
_SINGLE = regex.compile(r"[^\p{Latin}\p{Nd}\p{M}\p{Z}\p{C}]")
_LONG_BLANK = regex.compile(r"\s{16,}")
_WIDE = regex.compile(rf"[{_CJK}\p{{Hangul}}\uFF01-\uFF60\u3000-\u303F]")
_IDEOGRAPH = regex.compile(rf"[{_CJK}]")
_CLOSERS = r"[\"'”’)）\]」』》*_]*"
_TERMINAL = regex.compile(r"[\p{STerm}…]\W*\w|\n\s*\n")
_END = 12
_SENTENCE_END = regex.compile(rf"[\p{{STerm}}…]{_CLOSERS}\s+$|\n\s*\n\s*$")
_CJK_END = regex.compile(rf"[。！？｡]+{_CLOSERS}\s*")
_PLAIN_END = regex.compile(r"\b\p{Ll}{5,}[.!?]\s+(?=\p{Lu})")  # sentencex skips it after an odd parenthesis
_CLAUSE_END = regex.compile(r"[,;:，；：、—–…]" + _CLOSERS + r"\s*$")

_TABLE_RULE = regex.compile(r"\|[-:| ]+\|?")
_BLANK_LINES = regex.compile(r"(?:[^\S\n]*\n)*(?:\s{40,})?")
_PREPENDED = regex.compile(r"\p{GCB=Prepend}")

_AFTER_HEADING = 9.0  # a heading or the head of a table from what is below it
_BEFORE_SECTION = -0.5
_AFTER_LEAD_IN = 0.5
_AFTER_PARAGRAPH = 0.0
_AFTER_ROW = 0.3
_AFTER_SENTENCE = 0.7
_INSIDE_SENTENCE = 1.5

_MARKER = regex.compile(
    r"\s*(?:[-*+•◦▪‣·–]\s|\d{1,3}[.)]\s|[(（][\p{L}\d]{1,3}[)）]|[一二三四五六七八九十]+[、.]|\||#{1,6}\s|>|```|~~~)"
)
_WHOLE = regex.compile(r"\s*(?:\||#{1,6}\s|```|~~~)")
_COLUMNS = regex.compile(r"\t|\S {3,}\S")
_FIELD = regex.compile(r"\s*[\p{L}\d_][\p{L}\d_ ./()-]{0,30}[:=：]\s")
_CODE_START = regex.compile(r"\s*(?:[}\])]|\{|<|@|//|/\*|\"[^\"]*\"\s*:|import |from |def |class |return |if .*[:{]$)")
_CODE_END = regex.compile(r"(?:[{};\[]|\"|\d|true|false|null)[,;]?\s*$")
_FENCE = regex.compile(r"\s*(?:```|~~~)")
_STAMP = regex.compile(r"[^\s]*\d[^\s]*")
_SHORTEST_WRAPPED = 30


def passage_id(uri: str, content_hash: str, ordinal: int) -> str:
    """The id of passage `ordinal` of a file: 13 characters, the same for the same file, content and cut."""
    return _short_hash(f"{len(uri)} {uri} {content_hash} {ordinal}")


def document_id(uri: str) -> str:
    """The id of the document `uri`, whatever it holds: 13 characters."""
    return _short_hash(uri)


def _short_hash(text: str) -> str:
    return b32encode(sha256(text.encode("utf-8", "surrogatepass")).digest()).decode().lower()[:13]


def chunk(document: Document, content_hash: str, limit: int = CHUNK_PIECES) -> list[Item]:
    """All of `chunks`, at once."""
    return list(chunks(document, content_hash, limit))


def chunks(document: Document, content_hash: str, limit: int = CHUNK_PIECES) -> Iterator[Item]:
    """The passages of `document`, in order, each at most `limit` word pieces (one grapheme at least).

    A passage is a run of whole sentences and rows of one page; its `text` is the page's text (a document's, where
    there are no pages) from `source.start` to `source.end`. Cuts fall where they break the least: before a heading,
    between paragraphs, rows, sentences, and not between a heading and its text. Only white space between passages is
    left out.
    """
    ordinal, before, page = 0, 0, None  # `before`: characters of the same page (or document) in earlier runs
    for key, group in groupby(document.sections, key=_together):
        progress.step(ordinal, None, "passages")
        run = _Run(list(group))
        before, page = (before if key[0] == page else 0), key[0]
        for span in run.passages(limit):
            yield _item(document, content_hash, ordinal, run, span, before)
            ordinal += 1
        before += len(run.text)


def _together(section: Section) -> tuple[Any, ...]:
    """What sections must have in common to share a passage; the page comes first."""
    return section.page, section.modality, section.start_s, section.end_s, section.meta.get("picture")


class _Run:
    """Sections whose texts follow each other: a page, or a document without pages."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self.sections = sections
        self.text = "".join(section.text for section in sections)
        self.starts: list[int] = []
        self.lines: list[Line] = []
        self.heads: dict[int, int] = {}  # where a section with a heading begins: the end of the line that shows it
        start = 0
        for section in sections:
            self.starts.append(start)
            self.lines += [(start + a, start + b, x0, y0, x1, y1) for a, b, x0, y0, x1, y1 in section.lines]
            if section.headings:
                end = section.text.find("\n")
                self.heads[start] = start + (end if end >= 0 else len(section.text))
            start += len(section.text)

    def passages(self, limit: int) -> list[tuple[int, int]]:
        """Spans of the passages, by the cheapest cuts.

        A passage costs the square of the share of `limit` that it leaves unused; a cut costs what it breaks.
        """
        units = self._gathered(self._units(limit), limit)
        sizes = [max(1, pieces(self.text[start:end])) for start, end in units]
        costs = [0.0, *(self._cost(before, after) for before, after in pairwise(units)), 0.0]
        best = [(0.0, 0)]  # per cut: the cost of everything before it, and where its passage begins
        for cut in range(1, len(units) + 1):
            size, cheapest = 0, (float("inf"), 0)
            for first in range(cut - 1, -1, -1):
                size += sizes[first]
                if size > limit and first < cut - 1:
                    break
                cheapest = min(cheapest, (best[first][0] + costs[cut] + max(0.0, 1 - size / limit) ** 2, first))
            best.append(cheapest)
        spans: list[tuple[int, int]] = []
        end = len(units)
        while end:
            first = best[end][1]
            spans.append(_trimmed(self.text, units[first][0], units[end - 1][1]))
            end = first
        return spans[::-1]

    def _units(self, limit: int) -> list[tuple[int, int]]:
        """Sentences and rows that do not reach over the edge of a section or heading."""
        edges = sorted({0, len(self.text), *self.starts, *self.heads.values()})
        spans = [(low + a, low + b) for low, high in pairwise(edges) for a, b in sentences(self.text[low:high])]
        return [part for span in spans for part in _shorter(self.text, span, min(limit, UNIT_PIECES))]

    def lines_in(self, start: int, end: int) -> list[list[float]]:
        """Lines that the span touches, their offsets counted from its start."""
        low = bisect_right(self.lines, start, key=lambda line: line[1])
        high = bisect_right(self.lines, end - 1, key=lambda line: line[0])
        return [
            [max(a, start) - start, min(b, end) - start, *(round(x, 4) for x in box)]
            for a, b, *box in self.lines[low:high]
        ]

    def _gathered(self, units: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
        """Tiny neighbours as one unit, so that the number of units in a passage stays small."""
        gathered: list[tuple[int, int]] = []
        room = 0
        for unit in units:
            size = max(1, pieces(self.text[slice(*unit)]))
            if gathered and size <= room and _AFTER_PARAGRAPH < self._cost(gathered[-1], unit) < _AFTER_HEADING:
                gathered[-1] = (gathered[-1][0], unit[1])
                room -= size
            else:
                gathered.append(unit)
                room = limit // 12 - size
        return gathered

    def section_at(self, position: int) -> int:
        """The index of the section that holds the character at `position`."""
        return bisect_right(self.starts, position) - 1

    def _cost(self, before: tuple[int, int], after: tuple[int, int]) -> float:
        """What a cut between two neighbouring units breaks."""
        text = self.text[slice(*before)].rstrip()
        section = self.section_at(before[0])
        if before[0] < self.heads.get(self.starts[section], 0) or _TABLE_RULE.fullmatch(text.strip()):
            return _AFTER_HEADING
        if section < self.section_at(after[0]):
            return _BEFORE_SECTION
        begin = after[1] - len(self.text[slice(*after)].lstrip())
        breaks = self.text.count("\n", before[0] + len(text), begin)
        if breaks:
            lead_in = _AFTER_LEAD_IN if text.endswith((":", "：")) else 0.0
            return lead_in + (_AFTER_PARAGRAPH if breaks > 1 else _AFTER_ROW)
        end = text[-_END:] + " "  # all of a long text would be searched again at every blank line in it
        return _AFTER_SENTENCE if _SENTENCE_END.search(end) or _CJK_END.search(text) else _INSIDE_SENTENCE


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without blank lines before it and white space after it."""
    body = text[start:end]
    start += _BLANK_LINES.match(body).end()
    stop = start + len(text[start:end].rstrip())
    return start, stop + 1 if stop < end and _PREPENDED.match(text, stop - 1) else stop


def _item(document: Document, content_hash: str, ordinal: int, run: _Run, span: tuple[int, int], before: int) -> Item:
    start, end = span
    first = run.sections[0]
    inside = run.sections[run.section_at(start) : run.section_at(end - 1) + 1]
    lines = run.lines_in(start, end)
    meta: dict[str, Any] = {
        "title": document.title,
        "headings": _shared([section.headings for section in inside]),
        "document": document_id(document.uri),
        "ordinal": ordinal,
        "mime": document.mime,
        "stripped": document.meta.get("stripped", 0),
        **_place(run, inside, start, end),
    }
    if lines:
        meta["lines"] = lines
    source = Source(document.uri, before + start, before + end, first.page, _around(lines), first.start_s, first.end_s)
    id = passage_id(document.uri, content_hash, ordinal)
    return Item(id, run.text[start:end], source, first.modality, first.media, meta)


def _place(run: _Run, inside: Sequence[Section], start: int, end: int) -> dict[str, Any]:
    """The `meta` of the section where the passage begins; rows and lines are those of the passage."""
    meta = dict(inside[0].meta)
    if "rows" in meta:
        meta["rows"] = [meta["rows"][0], inside[-1].meta.get("rows", meta["rows"])[1]]
    if "line" in meta:
        meta["line"] += run.text.count("\n", run.starts[run.section_at(start)], start)
        meta["last_line"] = meta["line"] + run.text.count("\n", start, end)
    return meta


def _shared(paths: Sequence[Sequence[str]]) -> list[str]:
    """The titles that all paths begin with."""
    levels = takewhile(lambda titles: len(set(titles)) == 1, zip(*paths, strict=False))
    return [titles[0] for titles in levels]


def _around(lines: Sequence[Sequence[float]]) -> Box | None:
    if not lines:
        return None
    x0, y0, x1, y1 = zip(*(line[2:] for line in lines), strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def pieces(text: str) -> int:
    """About how many word pieces an uncased WordPiece encoder makes of `text`, without its vocabulary.

    Additive over whole words: words by length, digits by two, every other letter, ideograph, mark of punctuation or
    emoji one piece; combining marks and ordinary white space none.
    """
    words: int = sum(1 + max(0, m.end() - m.start() - 6) // 4 for m in _WORD.finditer(text))
    digits: int = sum((m.end() - m.start() + 1) // 2 for m in _DIGITS.finditer(text))
    blanks: int = sum((m.end() - m.start()) // 16 for m in _LONG_BLANK.finditer(text))
    return words + digits + blanks + len(_SINGLE.findall(text))


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences and rows of `text`, in order, touching each other, together the whole text.

    A list item, a table row, a line of code, a heading and a `key: value` line are units of their own; the lines of a
    wrapped paragraph are joined and then cut at sentence ends. A unit above `UNIT_PIECES` is cut after a clause, else
    between words, else between graphemes. White space belongs to the unit before it (at the start, to the one after),
    so no span is blank; a blank text has no spans.
    """
    cuts = {0, len(text)}
    for start, end, is_row in _paragraphs(text):
        cuts.add(start)
        if not is_row:
            cuts.update(start + cut for cut in _sentence_cuts(text[start:end]))
    spans = _spans(text, sorted(_whole_graphemes(text, cuts)))
    return [part for span in spans for part in _shorter(text, span, UNIT_PIECES)]


def _sentence_cuts(paragraph: str) -> Iterator[int]:
    """Sentence starts inside `paragraph`, each after a terminal mark and, outside CJK, white space."""
    from sentencex import get_sentence_boundaries

    marker = _MARKER.match(paragraph)
    first = marker.end() if marker else 0
    if not _TERMINAL.search(paragraph, first):
        return
    if _IDEOGRAPH.search(paragraph):
        yield from (match.end() for match in _CJK_END.finditer(paragraph, first))
        boundaries = get_sentence_boundaries("zh", paragraph)
    else:
        yield from (match.end() for match in _PLAIN_END.finditer(paragraph, first))
        boundaries = get_sentence_boundaries("en", paragraph)
    for cut in (boundary["start_index"] for boundary in boundaries):
        if cut > first and _SENTENCE_END.search(paragraph, max(0, cut - _END), cut):
            yield cut


def _spans(text: str, cuts: list[int]) -> list[tuple[int, int]]:
    """Neighbouring cuts as spans, blank ones given to the span before (the first: to the span after)."""
    spans: list[tuple[int, int]] = []
    start = 0
    for low, high in pairwise(cuts):
        if text[low:high].isspace():
            if spans:
                spans[-1] = (spans[-1][0], high)
                start = high
            continue
        spans.append((start, high))
        start = high
    return spans


def _whole_graphemes(text: str, cuts: set[int]) -> set[int]:
    """The cuts that do not fall inside a grapheme."""
    if text.isascii():
        return {cut for cut in cuts if text[cut - 1 : cut + 1] != "\r\n"}
    ends = {match.end() for match in _GRAPHEME.finditer(text)}
    return cuts & (ends | {0})


def _paragraphs(text: str) -> Iterator[tuple[int, int, bool]]:
    """Spans of wrapped paragraphs and single rows, and whether it is a row, which has no sentences inside."""
    start = position = 0
    before = ""
    fenced = is_row = False
    width = 0
    for line in text.splitlines(keepends=True):
        if not before.strip():
            width = _block_width(text, position)
        if position and (fenced or not _continues(before, line, text[start : start + 80], width)):
            yield start, position, is_row
            start = position
        if _FENCE.match(line):
            fenced = not fenced
        if position == start:
            is_row = fenced or _is_row(line)
        before = line
        position += len(line)
    if position:
        yield start, position, is_row


def _is_row(line: str) -> bool:
    """Whether `line` is a table row, a row of columns, a heading or a fence."""
    return bool(_WHOLE.match(line) or _COLUMNS.search(line.strip()))


def _block_width(text: str, start: int) -> int:
    """Widest line of the block of non-blank lines at `start`, in columns."""
    end = text.find("\n\n", start)
    return max(map(_columns, text[start : end if end >= 0 else len(text)].split("\n")))


def _columns(line: str) -> int:
    return len(line.strip()) + sum(1 for _ in _WIDE.finditer(line))


def _continues(before: str, line: str, paragraph: str, width: int) -> bool:
    """Whether `line` goes on with the prose of `before`: its first word had no room there, and neither is a row."""
    if not before.strip() or not line.strip() or _MARKER.match(line):
        return False
    if any(_COLUMNS.search(one.strip()) or _CODE_END.search(one) for one in (before, line)) or _CODE_START.match(line):
        return False
    if (_FIELD.match(before) and _FIELD.match(line)) or _same_stamp(before, line):
        return False
    if _WHOLE.match(paragraph) or (line.startswith(("    ", "\t")) and not _MARKER.match(paragraph)):
        return False
    first = _GRAPHEME.match(line.strip()).group() if _WIDE.match(line.strip()) else line.split()[0]
    room = _columns(before) + 1 + _columns(first)
    return _columns(before) >= _SHORTEST_WRAPPED and room >= 0.85 * width


def _same_stamp(before: str, line: str) -> bool:
    """Whether both lines begin with the same kind of number (a date, a time, an amount): rows of a log or a list."""
    shapes = [regex.sub(r"\d", "0", m.group()) for one in (before, line) if (m := _STAMP.match(one.strip()))]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _shorter(text: str, span: tuple[int, int], limit: int) -> Iterator[tuple[int, int]]:
    """`span` cut into parts of at most `limit` pieces (one grapheme at least)."""
    if pieces(text[slice(*span)]) <= limit:
        yield span
        return
    start, clause, size, at_clause = span[0], span[0], 0, 0
    for low, high in _words(text, *span):
        cost = pieces(text[low:high])
        if size + cost > limit and low > start:
            cut = clause if clause > start and at_clause * 2 >= size else low
            yield start, cut
            start, size = cut, size - at_clause if cut == clause else 0
            clause, at_clause = start, 0
        size += cost
        if _CLAUSE_END.search(text, low, high):
            clause, at_clause = high, size
    yield start, span[1]


def _words(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of words with the white space after them; a CJK character or a part of an endless word is one too."""
    low = start
    blank = text[start:end].lstrip() != text[start:end]
    for match in _GRAPHEME.finditer(text, start, end):
        grapheme = match.group()
        if grapheme.isspace():
            blank = True
            continue
        cjk = _WIDE.match(grapheme) or _WIDE.match(text, max(start, match.start() - 1))
        if match.start() > low and (blank or cjk or match.start() - low >= 40) and text[low : match.start()].strip():
            yield low, match.start()
            low = match.start()
        blank = False
    yield low, end
