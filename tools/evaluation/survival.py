"""What of a text is still there after compression: answers, evidence, numbers, names. No model decides.

**Answers.** A text is read twice, as SQuAD normalises it (Rajpurkar et al. 2016, arXiv:1606.05250: lower case, no
punctuation, no articles, white space folded; here punctuation of every script), and with punctuation as white space,
except `.` and `,` inside numbers. So `US` is found in `the U.S. army`, and `1945` in `1945-1950`. An answer is still
there when one of its spellings stands in one of the two readings as whole words: `4` is not in `1945`. Scripts that
write no spaces between words (Chinese, Japanese, Korean, Thai, Lao, Khmer, Myanmar) have no such bounds; there any
place will do. The mark `…`, which stands where something was left out, is no punctuation: no answer reaches across it.

**Numbers** are runs of digits with what joins them to one date, time, range or amount (`1,945.50`, `2024-04-20`,
`9:30`), also with a unit behind (`12kg`), not the digits of a name (`B2B`).

**Names** are, in text that is mostly in Latin letters: runs of capitalised words, also across `of`, `de`, `la`, `van`
and `von`, where the word that starts a sentence (or stands behind a colon or quotation mark) does not count; acronyms
(`NASA`, `U.S.`); words of mixed case, or of capitals and digits (`iPhone`, `COVID-19`). A rule for English: it takes
every German noun for a name.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex

from ...retrievers.chunking import sentences
from ...retrievers.scripts import latin_share

if TYPE_CHECKING:
    from ...refiners.base import Passage
    from .datasets import Context, Question

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]"
_MARK = regex.compile(rf"(?V1)[[\p{{P}}{regex.escape(string.punctuation, special_only=False)}]--[…]]")
_IN_NUMBER = regex.compile(r"(?<=\p{Nd})[.,](?=\p{Nd})")
_ARTICLE = regex.compile(r"\b(?:a|an|the)\b")
_BOUND = regex.compile(rf"(?V1){_LETTER}")

_NUMBER = regex.compile(rf"(?V1)(?<!{_LETTER}|_)\p{{Nd}}+(?:[.,:/'’\-–]\p{{Nd}}+)*")

_CAPITALISED = r"\p{Lu}[\p{L}\p{M}\p{N}&’'-]*"
_NAME = regex.compile(
    rf"(?<![\p{{L}}\p{{M}}\p{{N}}])(?:(?:\p{{Lu}}\.){{2,}}|\p{{Ll}}+\p{{Lu}}[\p{{L}}\p{{M}}\p{{N}}]*|"
    rf"{_CAPITALISED}(?:\s+(?:(?:of|de|la|van|von)\s+)?{_CAPITALISED})*)"
)
_OPENING = regex.compile(r"(?:^|[:\"“”«»]\s*)\P{L}*?(\p{Lu}[\p{Ll}\p{M}’']*)(?![\p{L}\p{N}&-])(?!\.\p{Lu})")
_POSSESSIVE = regex.compile(r"[’']s?$|[’'&-]+$")
_PRONOUN = regex.compile(r"I(?:[’']\w+)?")


@dataclass(frozen=True)
class Reading:
    """A text as answers are looked for in it.

    Attributes:
        plain: the text itself, for answers of which normalisation leaves nothing.
        joined: normalised as SQuAD does.
        apart: the same with punctuation as white space.
    """

    plain: str
    joined: str
    apart: str


def read(text: str) -> Reading:
    """The readings of `text`."""
    plain = unicodedata.normalize("NFC", text)
    lower = plain.lower()
    joined, apart = _MARK.sub("", lower), _MARK.sub(" ", _IN_NUMBER.sub("", lower))
    return Reading(_folded(plain), _folded(_ARTICLE.sub(" ", joined)), _folded(_ARTICLE.sub(" ", apart)))


def normalised(text: str) -> str:
    """SQuAD's normalisation.

    >>> normalised("The  U.S. army, in 1945")
    'us army in 1945'
    """
    return read(text).joined


def survives(answers: Sequence[str], texts: Iterable[Reading]) -> bool:
    """Whether one spelling of the answer stands in one of the texts.

    >>> survives(["4"], [read("It ended in 1945.")]), survives(["4", "1945"], [read("It ended in 1945.")])
    (False, True)
    """
    wanted = [_Spelling.of(answer) for answer in answers if answer.strip()]
    return any(spelling.stands_in(text) for text in texts for spelling in wanted)


def numbers(text: str) -> frozenset[str]:
    """The distinct numbers of `text`, as they are written.

    >>> sorted(numbers("On 2024-04-20 at 9:30 some 1,945.5 kg, or 12kg, of B2B goods."))
    ['1,945.5', '12', '2024-04-20', '9:30']
    """
    return frozenset(_NUMBER.findall(text))


def names(text: str) -> frozenset[str] | None:
    """The distinct names of `text`; None where fewer than half of its letters are Latin.

    >>> sorted(names("Yesterday Ada Lovelace of London left. The U.S. bought an iPhone from IBM."))
    ['Ada Lovelace of London', 'IBM', 'U.S.', 'iPhone']
    """
    if latin_share(text) < 0.5:
        return None
    return frozenset(name for start, end in sentences(text) for name in _names(text[start:end]))


@dataclass(frozen=True)
class Facts:
    """What a question's contexts hold that compression can lose. Made once, compared with the result of every system.

    Attributes:
        names: None where the contexts are in a script without capitals.
    """

    answers: tuple[str, ...]
    contexts: tuple[Context, ...]
    numbers: frozenset[str]
    names: frozenset[str] | None

    @classmethod
    def of(cls, question: Question) -> Facts:
        text = "\n\n".join(context.text for context in question.contexts)
        return cls(question.answers, question.contexts, numbers(text), names(text))

    def kept(self, passages: Sequence[Passage]) -> dict[str, float | None]:
        """Shares from 0 to 1 by metric, over all passages; None where the question has nothing to lose.

        A text without pieces that have spans (generated, or of a system that does not tell them) is one passage of
        one piece.
        """
        whole = "\n\n".join(passage.text for passage in passages)
        alive = survives(self.answers, (read(passage.text) for passage in passages)) if self.answers else None
        left = _folded(whole)
        return {
            "answers_kept": None if alive is None else float(alive),
            "evidence_kept": evidence_kept(self.contexts, passages),
            "evidence_whole": evidence_whole(self.contexts, passages),
            "numbers_kept": _share(self.numbers & numbers(whole), self.numbers),
            "entities_kept": None if self.names is None else _share(_present(self.names, left), self.names),
        }


def evidence_kept(contexts: Sequence[Context], passages: Sequence[Passage]) -> float | None:
    """The share of the gold spans' characters, white space apart, that are kept; None without gold spans.

    Counted by the spans of the kept pieces. Where no piece of any passage has a span, a sentence of a gold span counts
    whole if its normalised text is in the normalised result, else not at all.
    """
    wanted = {context.id: _inked(context.text, context.evidence) for context in contexts if context.evidence}
    total = sum(map(len, wanted.values()))
    if not total:
        return None
    kept = _places(passages)
    if kept is None:
        texts = [read(passage.text).joined for passage in passages]
        return sum(len(_said(context, texts)) for context in contexts) / total
    return sum(len(places & kept.get(key, set())) for key, places in wanted.items()) / total


def evidence_whole(contexts: Sequence[Context], passages: Sequence[Passage]) -> float | None:
    """The share of the gold spans of which nothing but white space is lost; None without gold spans.

    Where a gold span is a row of a table, that is a number together with its label. Where no piece of any passage has
    a span, a gold span is whole if its words stand in one passage, as an answer would.
    """
    wanted = [(one, span) for one in contexts for span in one.evidence if _inked(one.text, [span])]
    if not wanted:
        return None
    kept = _places(passages)
    if kept is None:
        texts = [read(passage.text) for passage in passages]
        whole = [survives([context.text[slice(*span)]], texts) for context, span in wanted]
    else:
        whole = [_inked(context.text, [span]) <= kept.get(context.id, set()) for context, span in wanted]
    return sum(whole) / len(whole)


@dataclass(frozen=True)
class _Spelling:
    """One spelling of an answer, to be found as whole words; `plain` only where normalisation leaves nothing."""

    joined: regex.Pattern[str] | None
    apart: regex.Pattern[str] | None
    plain: regex.Pattern[str] | None

    @classmethod
    def of(cls, answer: str) -> _Spelling:
        given = read(answer)
        joined, apart = given.joined and _bounded(given.joined), given.apart and _bounded(given.apart)
        return cls(joined or None, apart or None, None if joined or apart else _bounded(given.plain))

    def stands_in(self, text: Reading) -> bool:
        pairs = ((self.joined, text.joined), (self.apart, text.apart), (self.plain, text.plain))
        return any(pattern is not None and pattern.search(where) for pattern, where in pairs)


def _bounded(words: str) -> regex.Pattern[str]:
    """Finds `words` where they neither begin nor end inside a word of a script that writes spaces."""
    before = rf"(?<!{_LETTER})" if _BOUND.match(words[0]) else ""
    after = rf"(?!{_LETTER})" if _BOUND.match(words[-1]) else ""
    return regex.compile(f"(?V1){before}{regex.escape(words)}{after}")


def _folded(text: str) -> str:
    return " ".join(text.split())


def _share(kept: frozenset[str], of: frozenset[str]) -> float | None:
    return len(kept) / len(of) if of else None


def _present(found: frozenset[str], text: str) -> frozenset[str]:
    """The names that stand in `text`, which is folded, as whole words."""
    return frozenset(name for name in found if name in text and _bounded(name).search(text))


def _names(sentence: str) -> Iterator[str]:
    if not any(letter.islower() for letter in sentence):  # a heading in capitals names nothing
        return
    # each word that has its capital from where it stands is blanked, so that what follows is read as it stands
    for opening in reversed(list(_OPENING.finditer(sentence))):
        start, end = opening.span(1)
        sentence = sentence[:start] + " " * (end - start) + sentence[end:]
    for match in _NAME.finditer(sentence):
        name = _POSSESSIVE.sub("", _folded(match.group()))
        if len(name) > 1 and not _PRONOUN.fullmatch(name):
            yield name


def _places(passages: Sequence[Passage]) -> dict[str, set[int]] | None:
    """Item id → the places of its text that are kept, by the spans of the pieces; None where no piece has a span."""
    spans = [(p.item.id, piece.span) for p in passages for piece in p.pieces if piece.span is not None]
    kept: dict[str, set[int]] = {}
    for key, (start, end) in spans:
        kept.setdefault(key, set()).update(range(start, end))
    return kept if spans else None


def _inked(text: str, spans: Iterable[tuple[int, int]]) -> set[int]:
    """The places inside `spans` that are no white space."""
    return {at for start, end in spans for at in range(start, end) if not text[at].isspace()}


def _said(context: Context, texts: Sequence[str]) -> set[int]:
    """The places of gold sentences that stand in `texts`, which are normalised."""
    found: set[int] = set()
    for start, end in context.evidence:
        for first, last in sentences(context.text[start:end]):
            words = normalised(context.text[start + first : start + last])
            if words and any(words in text for text in texts):
                found |= _inked(context.text, [(start + first, start + last)])
    return found
