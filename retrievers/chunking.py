"""From a document to passages: boundaries on structure, exact offsets, nothing lost, no grapheme cut.

All spans are half-open character offsets, `text[start:end]`.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex

UNIT_PIECES = 110
"""A sentence or row above this many word pieces (about 80 English words) is split at clauses, then words."""

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}"
_GRAPHEME = regex.compile(r"\X")
_WORD = regex.compile(r"\p{Latin}[\p{Latin}\p{M}]*")
_DIGITS = regex.compile(r"\p{Nd}+")
_SINGLE = regex.compile(r"[^\p{Latin}\p{Nd}\p{M}\p{Z}\p{C}]")
_WIDE = regex.compile(rf"[{_CJK}\p{{Hangul}}\uFF01-\uFF60\u3000-\u303F]")
_IDEOGRAPH = regex.compile(rf"[{_CJK}]")
_CLOSERS = r"[\"'”’)）\]」』》*_]*"
_SENTENCE_END = regex.compile(rf"[\p{{STerm}}…]{_CLOSERS}\s+$|\n\s*\n\s*$")
_CJK_END = regex.compile(rf"[。！？｡]+{_CLOSERS}\s*")
_PLAIN_END = regex.compile(r"\b\p{Ll}{5,}[.!?]\s+(?=\p{Lu})")  # sentencex skips it after an odd parenthesis
_CLAUSE_END = regex.compile(r"[,;:，；：、—–…]" + _CLOSERS + r"\s*$")

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


def pieces(text: str) -> int:
    """About how many word pieces an uncased WordPiece encoder makes of `text`, without its vocabulary.

    Additive over whole words: words by length, digits by two, every other letter, ideograph, mark of punctuation or
    emoji one piece; white space and combining marks none.
    """
    words = sum(1 + max(0, m.end() - m.start() - 6) // 4 for m in _WORD.finditer(text))
    digits = sum((m.end() - m.start() + 1) // 2 for m in _DIGITS.finditer(text))
    return words + digits + sum(1 for _ in _SINGLE.finditer(text))


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
    return [part for span in spans for part in _shorter(text, span)]


def _sentence_cuts(paragraph: str) -> Iterator[int]:
    """Sentence starts inside `paragraph`, each after a terminal mark and, outside CJK, white space."""
    from sentencex import get_sentence_boundaries

    marker = _MARKER.match(paragraph)
    first = marker.end() if marker else 0
    if _IDEOGRAPH.search(paragraph):
        yield from (match.end() for match in _CJK_END.finditer(paragraph, first))
        boundaries = get_sentence_boundaries("zh", paragraph)
    else:
        yield from (match.end() for match in _PLAIN_END.finditer(paragraph, first))
        boundaries = get_sentence_boundaries("en", paragraph)
    for cut in (boundary["start_index"] for boundary in boundaries):
        if cut > first and _SENTENCE_END.search(paragraph, max(0, cut - 12), cut):
            yield cut


def _spans(text: str, cuts: list[int]) -> list[tuple[int, int]]:
    """Neighbouring cuts as spans, blank ones given to the span before (the first: to the span after)."""
    spans: list[tuple[int, int]] = []
    start = 0
    for low, high in zip(cuts, cuts[1:], strict=False):
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
        if position and (fenced or not _continues(before, line, text[start:position], width)):
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


def _shorter(text: str, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """`span` cut into parts of at most `UNIT_PIECES` (one grapheme at least)."""
    if pieces(text[slice(*span)]) <= UNIT_PIECES:
        yield span
        return
    start, clause, size, at_clause = span[0], span[0], 0, 0
    for low, high in _words(text, *span):
        cost = pieces(text[low:high])
        if size + cost > UNIT_PIECES and low > start:
            cut = clause if at_clause * 2 >= size else low
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
