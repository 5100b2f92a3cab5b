"""From English sentences to triplets (entity, relation, entity), by rule: no model, no dependency.

The rule cuts a sentence at its finite verbs. A verb group is an auxiliary with what belongs to it, a past tense
(irregular ones by list, the others by `-ed`), or a present tense by list where the next word suits one. What stands
before it, back to the last comma, conjunction or relative pronoun, is the subject; after `and` the subject of the
clause before stays, and behind `who` or `which` it is the last noun phrase. What follows is the object up to the first
preposition, and one further object for each preposition (not for `of`). Pronouns are not resolved. How often it is
right is measured by `benchmarks/proofs/prompt_saw.py`. Sentences of other languages, headings and tables give nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from ...retrievers.lm import LM

Span = tuple[int, int]

_TOKEN = regex.compile(r"[\p{L}\p{M}\p{N}$€£](?:[\p{L}\p{M}\p{N}'’&/%-]|[.,:](?=\p{N})|\.(?=\p{L}))*|\([^()]*\)|\S")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_AUXILIARIES = _set(
    "am is are was were be been being has have had do does did will would can could may might must shall should "
    "isn't aren't wasn't weren't hasn't haven't hadn't don't doesn't didn't won't wouldn't can't couldn't cannot "
    "shouldn't"
)
_MODALS = _AUXILIARIES - _set(
    "am is are was were be been being has have had isn't aren't wasn't weren't hasn't haven't hadn't"
)
_BETWEEN = _set("not never also still already often always usually now then only once later first soon just again both")
_PAST = _set(
    "became began bought brought broke built came caught chose cost cut did drew drove ate fell felt flew fought "
    "found forgot gave got went grew heard held hit kept knew laid led left lent let lost made meant met paid put "
    "ran rang read rode rose said sang sank sat saw sold sent set shook shot shut slept spoke spent stole stood "
    "struck swam taught told took thought threw understood woke won wore wrote"
)
_PARTICIPLES = _PAST | _set(
    "become begun broken chosen done drawn driven eaten fallen flown forgotten given gone grown known run ridden risen "
    "sung sunk seen shaken spoken stolen swum taken thrown worn written born been able come"
)
_PRESENT = _set(
    "aims allows appears asks becomes begins belongs brings builds buys calls carries causes closes comes "
    "connects consists contains costs covers creates crosses defines depends describes ends enables eats explains "
    "extends faces features feeds flows follows forms gives goes grows happens has helps holds includes keeps "
    "knows lasts leads leaves lets lies lives looks loses makes means measures meets moves needs occurs offers "
    "opens owns pays plays prevents produces protects provides reaches receives refers remains represents "
    "requires returns rises runs says sees sells sends serves shows sits speaks spends stands starts states stays "
    "takes teaches tells uses weighs wins works writes allow appear become begin belong carry close come contain "
    "cost cover cross depend eat end follow form give go grow have hold include keep lead lie live make mean need "
    "occur offer open pay play produce provide receive refer remain require run say see sell serve show speak "
    "stand start stay take use win work feed sleep arrive measure"
)
_PREPOSITIONS = _set(
    "about above across after against along among around as at before behind below beneath beside besides between "
    "beyond by despite during for from in inside into like near off on onto out outside over past per since than "
    "through throughout to toward towards under until up upon via with within without"
)
_DETERMINERS = _set(
    "a an the this that these those its his her their our my your some any no each every all both several many "
    "few another such one two three"
)
_OPENERS = _set("and but or nor so yet while whereas although though because when where if since unless once until")
_INNER = _set("while whereas although though because when where if since unless once until who which that whom")
_RELATIVE = _set("who which that whom")
_PARTICLES = _set("down away back out up")
_ATTRIBUTES = _set("based located situated called named entitled related limited united red sacred hundred")
_BREAKS = frozenset(";:—–,")
_TRIMMED = frozenset(",;:—–.!?\"“”'’()")
_FOLLOWS = regex.compile(r"\p{N}|\p{Lu}|[$€£]")


@dataclass(frozen=True)
class Triplet:
    """One edge of the graph: subject and object are entities, verb and link (a preposition or nothing) the relation.

    Attributes:
        spans: half-open character spans in the sentence that it was made from, in order.
        clause: spans of subject and verb; triplets of one clause share it.
        place: where the object begins, the order of objects inside a clause.
    """

    subject: str
    verb: str
    link: str
    object: str
    spans: tuple[Span, ...]
    clause: tuple[Span, Span]
    place: int

    @property
    def relation(self) -> str:
        return f"{self.verb} {self.link}".strip()

    @property
    def text(self) -> str:
        """Subject, relation and object in a row."""
        return f"{self.subject} {self.relation} {self.object}"


Extract = Callable[[Sequence[str]], list[list[Triplet]]]
"""The triplets of each sentence, in the order of the sentences."""


@dataclass(frozen=True)
class _Token:
    text: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        return self.text.lower().replace("’", "'")


@dataclass(frozen=True)
class _Clause:
    """Token ranges of a subject and a verb group, and where the objects end."""

    subject: Span
    verb: Span
    end: int
    fronted: Span | None = None


def by_rule(sentences: Sequence[str]) -> list[list[Triplet]]:
    """The rule of this module, sentence by sentence.

    >>> [[one]] = by_rule(["The museum was opened in 1931."])
    >>> one.subject, one.relation, one.object
    ('The museum', 'was opened in', '1931')
    """
    return [_of(sentence) for sentence in sentences]


def _of(sentence: str) -> list[Triplet]:
    tokens = [_Token(match.group(), *match.span()) for match in _TOKEN.finditer(sentence)]
    found = []
    for clause in _clauses(tokens):
        objects = list(_objects(tokens, clause.verb[1], clause.end))
        if clause.fronted:
            objects += list(_objects(tokens, *clause.fronted))
        for link, words in objects:
            made = _made(sentence, tokens, clause, link, words)
            if made is not None:
                found.append(made)
    return found


def _clauses(tokens: Sequence[_Token]) -> list[_Clause]:
    verbs = _verbs(tokens)
    starts = [_start(tokens, verbs[n - 1][1] if n else 0, verb[0]) for n, verb in enumerate(verbs)]
    made: list[_Clause] = []
    for n, verb in enumerate(verbs):
        start = starts[n]
        if start is None:  # no boundary: the second verb belongs to the object of the first
            continue
        limit = next((one for one in starts[n + 1 :] if one is not None), len(tokens))
        subject, fronted = _subject(tokens, start, verb[0], made)
        if subject is not None:
            inner = any(token.lower in _INNER for token in tokens[start : verb[0]])
            made.append(_Clause(subject, verb, _end(tokens, verb[1], limit, inner), fronted))
    return made


def _end(tokens: Sequence[_Token], start: int, limit: int, inner: bool) -> int:
    """Where the objects of a clause end; those of an inner clause (`although …`, `which …`) at the first comma."""
    for n in range(start, limit):
        after = tokens[n + 1].lower if n + 1 < limit else ""
        if tokens[n].text == ";" or (tokens[n].text == "," and (inner or after in _OPENERS | {"who", "which"})):
            return n
    return limit


def _verbs(tokens: Sequence[_Token]) -> list[Span]:
    """Token ranges of the finite verb groups: auxiliaries and adverbs, one main verb, a particle."""
    found: list[Span] = []
    n = 1
    while n < len(tokens):
        if not _finite(tokens, n, found):
            n += 1
            continue
        end = n + 1
        if tokens[n].lower in _AUXILIARIES:
            while end < len(tokens) and _between(tokens, end):
                end += 1
            end += end < len(tokens) and _is_main(tokens, n, end)
        end += end < len(tokens) and tokens[end].lower in _PARTICLES
        found.append((n, end))
        n = end
    return found


def _finite(tokens: Sequence[_Token], n: int, found: Sequence[Span]) -> bool:
    word, before = tokens[n].lower, tokens[n - 1].lower
    after = tokens[n + 1] if n + 1 < len(tokens) else None
    if not tokens[n].text.islower():
        return False
    if word in _AUXILIARIES:
        return word not in ("be", "been", "being")
    if before in (_DETERMINERS | _PREPOSITIONS) - {"that"} or before in ("of", "to") or before in _AUXILIARIES:
        return False
    if after is None or after.lower == "by" or after.lower in _AUXILIARIES | {"of"}:
        return word in _PAST and (after is None or after.lower == "of")
    if word in _PAST:
        return True
    if word.endswith("ed") and not word.endswith("eed") and len(word) > 3 and word not in _ATTRIBUTES:
        return not before.endswith("ly") and (_suits(after) or after.text[0].isalpha())
    if word in _PRESENT:
        return _suits(after) or (word.endswith("s") and after.text[0].isalpha() and after.lower not in _OPENERS)
    previous = tokens[found[-1][0]].lower if found else ""
    like = before in ("and", "or", "but") and previous.endswith("s") and previous not in _AUXILIARIES
    third = word.endswith("s") and not word.endswith(("ss", "us", "is")) and word.isalpha()
    return third and (like or after.lower in _DETERMINERS) and after.text[0].isalnum()


def _suits(after: _Token) -> bool:
    """Whether a word can follow a verb, and would hardly follow a noun or an adjective."""
    word = after.lower
    return (
        word in _DETERMINERS | _PREPOSITIONS | _BETWEEN | _PARTICLES | _RELATIVE
        or word in ("it", "him", "them", "us", "me", "you", "how", "what", "why", "where", "whether", "not", "half")
        or word.endswith("ly")
        or bool(_FOLLOWS.match(after.text))
    )


def _between(tokens: Sequence[_Token], n: int) -> bool:
    """Whether a word stands between an auxiliary and its main verb."""
    word = tokens[n].lower
    if word in _AUXILIARIES | _BETWEEN:
        return True
    there = n + 1 < len(tokens)
    if word == "since":
        return there and tokens[n - 1].lower in ("has", "have", "had") and not tokens[n + 1].text[0].isdigit()
    return word.endswith("ly") and there and _is_main(tokens, n - 1, n + 1)


def _is_main(tokens: Sequence[_Token], auxiliary: int, n: int) -> bool:
    """Whether a word is the main verb of the auxiliaries before it."""
    word = tokens[n].lower
    last = next((one.lower for one in tokens[n - 1 : auxiliary : -1] if one.lower in _AUXILIARIES), "")
    if (last or tokens[auxiliary].lower) in _MODALS:
        return tokens[n].text.islower() and word not in _DETERMINERS | _PREPOSITIONS
    return word in _PARTICIPLES or (word.endswith(("ed", "ing")) and len(word) > 4)


def _start(tokens: Sequence[_Token], first: int, verb: int) -> int | None:
    """Where the clause of a verb begins: behind the last boundary since the verb before; None without one."""
    if first == 0:
        return 0
    at = verb
    while at > first and tokens[at - 1].lower not in _OPENERS | _RELATIVE | _BREAKS:
        at -= 1
    if at == first or (at - 1 == first and tokens[first].lower in _RELATIVE):  # `knows who wrote it`
        return None
    at -= 1
    while at > first and tokens[at - 1].lower in _OPENERS | _BREAKS:
        at -= 1
    return at


def _subject(
    tokens: Sequence[_Token], start: int, verb: int, before: Sequence[_Clause]
) -> tuple[Span | None, Span | None]:
    """The subject between the start of a clause and its verb, and what is fronted (`In 1906, …`)."""
    parts = _parts(tokens, start, verb)
    words = [token.lower for token in tokens[start:verb] if token.lower not in _BREAKS]
    if words and words[-1] in _RELATIVE and before:
        return _last_phrase(tokens, before[-1], start), None
    if not parts:
        return (before[-1].subject, None) if before else (None, None)
    fronted = parts[0] if len(parts) > 1 and tokens[parts[0][0]].lower in _PREPOSITIONS else None
    rest = parts[1:] if fronted else parts
    named = [part for part in rest if tokens[part[0]].lower not in _PREPOSITIONS]
    if not named:
        return (before[-1].subject, fronted) if before else (None, None)
    ends_open = tokens[verb - 1].lower in _BREAKS  # `Moseley, a physicist, won`
    return (named[0] if ends_open or (len(named) > 1 and named[0][1] + 1 < named[1][0]) else named[-1]), fronted


def _parts(tokens: Sequence[_Token], start: int, end: int) -> list[Span]:
    """Token ranges between commas, without the words that only open a clause."""
    parts: list[Span] = []
    first = start
    for n in range(start, end + 1):
        if n == end or tokens[n].lower in _BREAKS:
            while first < n and (tokens[first].lower in _OPENERS | _RELATIVE or tokens[first].text in _TRIMMED):
                first += 1
            last = n
            while last > first and (tokens[last - 1].lower in _BETWEEN or tokens[last - 1].lower.endswith("ly")):
                last -= 1
            if last > first:
                parts.append((first, last))
            first = n + 1
    return parts


def _last_phrase(tokens: Sequence[_Token], clause: _Clause, end: int) -> Span:
    """The noun phrase that a relative pronoun at `end` stands for; the clause's subject where it has no object."""
    last = end
    while last > clause.verb[1] and tokens[last - 1].text in _TRIMMED:
        last -= 1
    first = last
    while first > clause.verb[1] and tokens[first - 1].lower not in _PREPOSITIONS:
        first -= 1
    return (first, last) if first < last else clause.subject


def _objects(tokens: Sequence[_Token], start: int, end: int) -> list[tuple[Span, Span]]:
    """Token ranges of the prepositions (or of nothing) and of the objects behind them."""
    found: list[tuple[Span, Span]] = []
    link, first = (start, start), start
    for n in range(start, end + 1):
        if n < end and tokens[n].lower not in _PREPOSITIONS:
            continue
        if first < n:
            found.append((link, (first, n)))
            link = (n, n)
        link = (link[0] if link[1] == n else n, n + 1)
        first = n + 1
    return found


def _made(sentence: str, tokens: Sequence[_Token], clause: _Clause, link: Span, words: Span) -> Triplet | None:
    subject, verb, thing = (_trimmed(tokens, part) for part in (clause.subject, clause.verb, words))
    if subject is None or verb is None or thing is None:
        return None
    spans = {subject, verb, thing} | (
        {(tokens[link[0]].start, tokens[link[1] - 1].end)} if link[0] < link[1] else set()
    )
    texts = [" ".join(sentence[start:end].split()) for start, end in (subject, verb, thing)]
    by = " ".join(token.lower for token in tokens[slice(*link)])
    return Triplet(texts[0], texts[1], by, texts[2], tuple(sorted(spans)), (subject, verb), thing[0])


def _trimmed(tokens: Sequence[_Token], words: Span) -> Span | None:
    """The characters of a token range without punctuation and conjunctions at its ends; None where nothing is left."""
    first, last = words
    while first < last and (tokens[first].text in _TRIMMED or tokens[first].lower in _OPENERS):
        first += 1
    loose = _OPENERS | _RELATIVE | {"only", "also", "still", "again"}
    while first < last and (tokens[last - 1].text in _TRIMMED or tokens[last - 1].lower in loose):
        last -= 1
    return (tokens[first].start, tokens[last - 1].end) if first < last else None


_EXAMPLE = (
    "Write down the facts of the sentence, one a line, as subject | relation | object, in the sentence's own words.\n\n"
    "Sentence: The museum in Oslo was opened by the king in 1931 and holds old maps.\n"
    "Facts:\nThe museum in Oslo | was opened by | the king\nThe museum in Oslo | was opened in | 1931\n"
    "The museum in Oslo | holds | old maps\n\nSentence: {sentence}\nFacts:\n"
)
LM_TOKENS = 160  # the longest answer about one sentence


def by_lm(lm: LM) -> Extract:
    """Triplets by a language model that is shown one example (the paper's other way).

    A line that is no triplet, or names an entity that does not stand in the sentence, is left out: what is retrieved
    must not make the model say what nobody wrote.

    Raises:
        Unsupported: `lm` cannot generate.
    """
    from ...retrievers.lm import require

    require(lm, "generate")

    def extract(sentences: Sequence[str]) -> list[list[Triplet]]:
        asked = [[_EXAMPLE.replace("{sentence}", " ".join(sentence.split()))] for sentence in sentences]
        answers = lm.generate(asked, LM_TOKENS, ["\n\n"]) if asked else []
        return [_told(sentence, answer) for sentence, answer in zip(sentences, answers, strict=True)]

    return extract


def _told(sentence: str, answer: str) -> list[Triplet]:
    found = []
    lower = sentence.lower()
    for line in answer.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 3 or not all(cells):
            continue
        places = [lower.find(cell.lower()) for cell in cells]
        subject, verb, thing = ((at, at + len(cell)) for at, cell in zip(places, cells, strict=True))
        if places[0] < 0 or places[2] < 0 or len(lower) != len(sentence):
            continue
        spans = {subject, thing} | ({verb} if places[1] >= 0 else set())
        found.append(Triplet(cells[0], cells[1], "", cells[2], tuple(sorted(spans)), (subject, verb), thing[0]))
    return found
