"""What compression never tears or prunes out of a sentence that stays: numbers with their units, dates, identifiers,
addresses, negations with what they deny, quotations, inline code and links, and what patterns of the caller match.

Two views of the same rule. `spans` finds the protected places of a text; a place of several words is one word to the
engine (`Evidence.words`), and a place that is lost is reported. `protected` says which words of a sentence a pruner
must keep; it also keeps names, which are too many to report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import regex

from ..errors import BadInput

PATTERN_SECONDS = 0.5
"""How long one pattern of the caller may look through one text."""
QUOTED = 80
"""Characters of the longest quotation that is kept in one piece."""

_UNIT = (
    r"(?:[kmcdnµμ]?(?:g|m|l|s|w|wh|v|a|hz|pa|j|mol)|[kmgt]i?b|lb|oz|ft|mi|mph|km/h|ha|h|min|°?[cfk]|[%‰°$€£¥]|"
    r"eur|usd|gbp|chf|jpy|cny|rmb|[ap]\.?m\.?|percent|thousand|million|billion|trillion|(?:year|month|week|day|hour|minute|second|dollar|euro|pound|time)s?)"
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_DAY = r"\p{Nd}{1,2}(?:st|nd|rd|th)?"
_YEAR = r"\p{Nd}{4}"
_DENIAL = r"(?:not|no|never|none|nor|neither|without|cannot|\p{L}{1,12}n[’']t)"
_PLACES = regex.compile(
    "|".join(
        (
            r"`[^`\n]{1,200}`",
            r"!?\[[^\[\]\n]{0,200}\]\([^)\s]{1,500}\)",
            r"(?<!\*)\*\*[^*\n]{1,200}\*\*",
            rf"[“„][^”“\n]{{1,{QUOTED}}}[”“]",
            rf"«[^»\n]{{1,{QUOTED}}}»",
            rf"「[^」\n]{{1,{QUOTED}}}」",
            rf'(?<![\p{{L}}\p{{N}}])"[^"\n]{{1,{QUOTED}}}"(?![\p{{L}}\p{{N}}])',
            r"\p{L}[\p{L}\p{N}+.\-]{0,20}://\S{0,500}[\p{L}\p{N}/=#&_~-]",
            r"[\p{L}\p{N}._%+\-]{1,64}@[\p{L}\p{N}.\-]{1,255}",
            rf"(?<![\p{{L}}\p{{N}}])(?:{_DAY}[ ]{_MONTH}(?:,?[ ]{_YEAR})?|{_MONTH}[ ]{_DAY}(?:,?[ ]{_YEAR})?|"
            rf"{_MONTH}[ ]{_YEAR})(?![\p{{L}}\p{{N}}])",
            rf"(?<![\p{{L}}\p{{N}}])[\p{{Sc}}]?\p{{N}}[\p{{N}}.,:/'’–-]{{0,30}}+[ ]{_UNIT}(?![\p{{L}}\p{{N}}])",
            rf"(?<![\p{{L}}\p{{N}}]){_DENIAL}(?:[ ]+[^\s]{{1,60}})?",
        )
    ),
    regex.IGNORECASE,
)
_TOKEN = regex.compile(r"[^\s，、；：。！？]++")
_TELLING = regex.compile(r"\p{N}|_|\p{Lu}{2}|\p{Ll}\p{Lu}|[\p{L}\p{N}][@/\\][\p{L}\p{N}]")

_ENDS = ".,;:!?)]}>\"'”’»"

_NUMBER = regex.compile(r".*\p{N}")
_NEGATION = regex.compile(rf"(?i)\W*{_DENIAL}\W*")
_NAME = regex.compile(r"\W*\p{Lu}")
_IDENTIFIER = regex.compile(r".*(?:_|\p{Lu}{2}|\p{Ll}\p{Lu}|[\p{L}\p{N}][@/.\\][\p{L}\p{N}])")
_MEASURE = regex.compile(rf"(?i)\W*{_UNIT}\W*")
_MARKER = regex.compile(r"[-*+•]|\p{N}+[.)]|#+")

Span = tuple[int, int]


def spans(text: str, start: int, end: int, patterns: Sequence[str] = ()) -> list[Span]:
    """The protected places of `text[start:end]`, in order and apart from each other.

    Raises:
        BadInput: a pattern is no regular expression, or takes too long.

    >>> text = "It must not exceed 12 mg per day."
    >>> [text[a:b] for a, b in spans(text, 0, len(text))]
    ['not exceed', '12 mg']
    """
    found = [match.span() for match in _PLACES.finditer(text, start, end)]
    for match in _TOKEN.finditer(text, start, end):
        if _TELLING.search(match.group()):
            found.append((match.start(), match.start() + len(match.group().rstrip(_ENDS))))
    for pattern in patterns:
        found += _matches(pattern, text, start, end)
    return _apart(found)


def protected(words: Sequence[str], patterns: Sequence[str] = ()) -> list[bool]:
    """Which words of a sentence are never pruned out of it.

    >>> protected("It does not exceed 12 mg per day in Berlin".split())
    [False, False, True, True, True, True, False, False, False, True]
    """
    kept = []
    for n, word in enumerate(words):
        before = words[n - 1] if n else ""
        holds = (
            _NUMBER.match(word)
            or _NEGATION.fullmatch(word)
            or _IDENTIFIER.match(word)
            or (n and _NAME.match(word))
            or _NEGATION.fullmatch(before)
            or (_NUMBER.match(before) and _MEASURE.fullmatch(word))
            or (not n and _MARKER.fullmatch(word))
            or (" " in word and spans(word, 0, len(word)))
            or any(_matches(pattern, word, 0, len(word)) for pattern in patterns)
        )
        kept.append(bool(holds))
    return kept


def checked_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """`patterns` as given, when each is a regular expression.

    Raises:
        BadInput: one is not.
    """
    for pattern in patterns:
        _compiled(pattern)
    return tuple(patterns)


def _matches(pattern: str, text: str, start: int, end: int) -> list[Span]:
    try:
        return [m.span() for m in _compiled(pattern).finditer(text, start, end, timeout=PATTERN_SECONDS) if m.group()]
    except TimeoutError:
        raise BadInput(
            f"The protected pattern `{pattern}` takes more than {PATTERN_SECONDS} s.",
            "Write it without nested repeats.",
        ) from None


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise BadInput(f"The protected pattern `{pattern}` is wrong: {error}.", "Give a regular expression.") from None


def _apart(found: Sequence[Span]) -> list[Span]:
    """`found` in order; those that overlap become one."""
    made: list[Span] = []
    for start, end in sorted(found):
        if made and start < made[-1][1]:
            made[-1] = (made[-1][0], max(end, made[-1][1]))
        else:
            made.append((start, end))
    return made


def whole(words: Iterator[Span], places: Sequence[Span]) -> Iterator[Span]:
    """`words` in order, those that one of `places` touches together as one."""
    at = 0
    held: Span | None = None
    limit = -1
    for start, end in words:
        if held is not None and start < limit:
            held = (held[0], end)
        else:
            if held is not None:
                yield held
            held = (start, end)
        while at < len(places) and places[at][0] < end:
            limit = max(limit, places[at][1])
            at += 1
    if held is not None:
        yield held
