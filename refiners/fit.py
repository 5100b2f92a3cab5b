"""Fitting evidence into a budget, exactly: the arithmetic that all refiners of text share.

A refiner says what it wants most (a `Plan`: parts by priority) and, where the next part does not fit whole, which words
come first (a `Tail`). Here the budget is filled: the longest prefix of the plan that fits, then words, then whatever
else fits the room that is left. Every acceptance is a count over the rendered block; estimates only say where to look.
Passages stand in the order of the hits, pieces in reading order, joined by `…` where units were dropped and by white
space where only words were.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadInput
from ..progress import step
from .base import Cut, Dropped, Passage, Piece, Refined
from .protected import spans as protected_spans
from .protected import whole
from .tokens import count
from .units import Unit, units, words

if TYPE_CHECKING:
    from ..retrievers.base import Hit
    from .base import Budget

FULL = 0.9
"""The share of the budget under which `Refined.unused` says what did not fit."""
HOPELESS = 2
"""Texts of more than this many budgets are not rendered to see whether they fit."""
ATTEMPTS = 24
"""How many single parts or words are counted exactly to use what room is left."""
LEAST = 200
"""Parts among which the smallest block is looked for."""
GUESSES = 6
"""Interpolations before a search falls back to halving."""

Span = tuple[int, int]


class Part(NamedTuple):
    """Unit number `unit` of hit number `hit`."""

    hit: int
    unit: int


class Words(NamedTuple):
    """Spans of one hit's text that are kept or dropped together."""

    hit: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Plan:
    """What may be kept, most wanted first.

    Attributes:
        reasons: why hits without a part in it are dropped, else `"budget"`.
        left_out: why single parts of other hits are not in it, else `"budget"`.
    """

    parts: tuple[Part, ...]
    reasons: Mapping[int, str] = field(default_factory=dict)
    left_out: Mapping[Part, str] = field(default_factory=dict)


class Evidence:
    """Hits that do not fit as they are. Units are cut on demand, so that hits nobody asks about cost nothing."""

    def __init__(self, hits: Sequence[Hit], budget: Budget, tokens: Sequence[int]) -> None:
        self.hits = hits
        self.budget = budget
        self.tokens = tokens
        self._units: dict[int, tuple[Unit, ...]] = {}

    def units(self, hit: int) -> tuple[Unit, ...]:
        """The units of one hit in reading order."""
        if hit not in self._units:
            self._units[hit] = units(self.hits[hit].item)
        return self._units[hit]

    def unit(self, part: Part) -> Unit:
        return self.units(part.hit)[part.unit]

    def text(self, part: Part) -> str:
        unit = self.unit(part)
        return self.hits[part.hit].item.text[unit.start : unit.end]

    def words(self, part: Part) -> list[Words]:
        """The words of a part in reading order, each one span; none for a part that is only kept whole.

        A protected place of several words is one of them.
        """
        unit = self.unit(part)
        if unit.whole:
            return []
        places = self.protected(part.hit, unit.start, unit.end)
        found = words(self.hits[part.hit].item.text, unit.start, unit.end)
        return [Words(part.hit, (span,)) for span in whole(found, places)]

    def protected(self, hit: int, start: int, end: int) -> list[Span]:
        """The protected places in a part of one hit's text."""
        return protected_spans(self.hits[hit].item.text, start, end, self.budget.protect)

    def closed(self, part: Part) -> Words:
        """A whole part, with those it needs."""
        known = self.units(part.hit)
        wanted = (part.unit, *known[part.unit].needs)
        return Words(part.hit, tuple((known[n].start, known[n].end) for n in wanted))

    def count(self, text: str) -> int:
        return count(text, self.budget.tokenizer)


Planner = Callable[[Evidence], Plan]
Tail = Callable[[Evidence, Sequence[Part], Sequence[int], int], tuple[int, list[Words]]]
"""`tail(evidence, parts, sizes, n)`: the first n parts fit whole, the next does not; `sizes[i]` is about how many
tokens the block of the first i has (exactly so for n). It answers how many parts stay whole, and the words that are
kept of the next ones, most wanted first."""


def fit(hits: Sequence[Hit], budget: Budget, planner: Planner, tail: Tail) -> Refined:
    """`hits` inside `budget`. What fits as it is comes back untouched, and neither `planner` nor `tail` is asked.

    Raises:
        BadInput: the budget is not positive, or below the smallest block that can be rendered.
    """
    if budget.tokens < 1:
        raise BadInput(f"The budget is `{budget.tokens}` tokens.", "Ask for at least 1.")
    tokens = [count(hit.item.text, budget.tokenizer) for hit in hits]
    if sum(tokens) <= HOPELESS * budget.tokens + len(hits):
        untouched = tuple(_untouched(hit, n) for hit, n in zip(hits, tokens, strict=True))
        used = count(budget.render(untouched, 0), budget.tokenizer)
        if used <= budget.tokens:
            return Refined(untouched, used, sum(tokens))
    evidence = Evidence(hits, budget, tokens)
    step(0, len(hits), "passages")
    plan = planner(evidence)
    filling = _Filling(evidence)
    unused = filling.fill(plan.parts, tail)
    step(len(hits), len(hits), "passages")
    dropped = tuple(
        Dropped(hit.item.id, plan.reasons.get(n, "budget"), tokens[n])
        for n, hit in enumerate(hits)
        if n not in filling.spans
    )
    passages = tuple(_accounted(evidence, plan, n, passage) for n, passage in filling.passages())
    return Refined(passages, filling.used, sum(tokens), dropped, unused)


def head(evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, list[Words]]:
    """The tail without a word model: the beginning of the next part that has words."""
    return n, next((found for part in parts[n:] if (found := evidence.words(part))), [])


class _Filling:
    """Spans kept so far, by hit, and the exact size of the block that they make."""

    def __init__(self, evidence: Evidence) -> None:
        self.spans: dict[int, frozenset[Span]] = {}
        self._evidence = evidence
        self._room = evidence.budget.tokens
        self.used = self._measure({})

    def fill(self, parts: Sequence[Part], tail: Tail) -> str | None:
        """Fill the budget; answers what did not fit, where under `FULL` of it is used.

        Raises:
            BadInput: not even the smallest block fits.
        """
        n, sizes = self._prefix(parts)
        wanted: list[Words] = []
        if 0 <= n < len(parts):
            sizes = [size + self.used - sizes[n] for size in sizes]
            before = self.spans, self.used
            n, wanted = tail(self._evidence, parts, sizes, n)
            kept = self._add({}, map(self._evidence.closed, parts[:n]))
            at = list(accumulate(map(self._cost, wanted), initial=self._measure(kept)))
            wanted = wanted[max(0, self._longest(at, lambda k: self._add(kept, wanted[:k]))) :]
            if n and self.used < before[1]:  # a tail that keeps no part whole has its reasons
                (self.spans, self.used), wanted = before, []
        if self.used > self._room and not parts:
            raise _too_small(self._room, self.used)
        if parts and not self.spans:
            wanted = [*self._least(parts), *wanted]
        return self._use_up(wanted, [self._evidence.closed(part) for part in parts[max(n, 0) :]])

    def passages(self) -> Iterator[tuple[int, Passage]]:
        """What is kept, with the number of its hit."""
        return zip(sorted(self.spans), self._passages(self.spans), strict=True)

    def _prefix(self, parts: Sequence[Part]) -> tuple[int, list[int]]:
        """How many of the first parts fit whole (-1: not even the block without passages), and estimated sizes."""
        limit = 2 * self._room
        while True:
            sizes = self._sizes(parts, limit)
            n = self._longest(sizes, lambda n: self._add({}, map(self._evidence.closed, parts[:n])))
            if n < len(sizes) - 1 or n == len(parts):
                return n, sizes
            limit *= 2

    def _sizes(self, parts: Sequence[Part], limit: int) -> list[int]:
        """Estimated tokens of the first i parts, until they pass `limit`."""
        empty = self._measure({})
        sizes = [empty]
        seen: set[int] = set()
        for part in parts:
            if sizes[-1] > limit:
                break
            frame = 0 if part.hit in seen else self._measure({part.hit: frozenset()}) - empty
            seen.add(part.hit)
            sizes.append(sizes[-1] + frame + 1 + self._evidence.count(self._evidence.text(part)))
        return sizes

    def _longest(self, sizes: Sequence[int], build: Callable[[int], dict[int, frozenset[Span]]]) -> int:
        """The largest n whose block fits, kept as the state; -1 (and no change) where none does."""
        low, high, n = -1, len(sizes), bisect_right(sizes, self._room) - 1
        guesses = 0
        while high - low > 1:
            n = min(max(n, low + 1), high - 1)
            spans = build(n)
            used = self._measure(spans)
            if used <= self._room:
                low, self.spans, self.used = n, spans, used
            else:
                high = n
            guesses += 1
            n = bisect_right(sizes, sizes[n] + self._room - used) - 1 if guesses < GUESSES else (low + high) // 2
        return low

    def _least(self, parts: Sequence[Part]) -> list[Words]:
        """Keep the smallest block that holds evidence: one word, or one part that has none. Answers that part's words.

        Raises:
            BadInput: it does not fit.
        """
        shortest: dict[int, tuple[int, Words, Part]] = {}
        for part in parts[:LEAST]:
            for group in self._evidence.words(part) or [self._evidence.closed(part)]:
                cost = self._cost(group)
                if part.hit not in shortest or cost < shortest[part.hit][0]:
                    shortest[part.hit] = cost, group, part
        blocks = [(self._add({}, [group]), part) for _, group, part in shortest.values()]
        used, n = min((self._measure(spans), n) for n, (spans, _) in enumerate(blocks))
        if used > self._room:
            raise _too_small(self._room, used)
        (self.spans, part), self.used = blocks[n], used
        return self._evidence.words(part)

    def _use_up(self, words: Sequence[Words], parts: Sequence[Words]) -> str | None:
        """Add what still fits, in order; where the budget stays under `FULL`, name the first that does not.

        Room that words have left is smaller than a word, and is tried again only under `FULL`.
        """
        if not words:
            likely = (part for part in parts[: 10 * ATTEMPTS] if self._cost(part) <= self._room - self.used)
            for part in islice(likely, ATTEMPTS):
                self._try(part)
        unused = self._fill_up(words, stop=True)
        later = self._fill_up(parts, stop=False)
        return unused or later if self.used < FULL * self._room else None

    def _fill_up(self, groups: Sequence[Words], *, stop: bool) -> str | None:
        """Add what fits of the first groups while the budget is under `FULL`; names the first that does not fit.

        With `stop` nothing behind that one is added, or a text would go on behind a word that it lacks.
        """
        unused = None
        for group in groups[:ATTEMPTS]:
            if self.used >= FULL * self._room or (unused and stop):
                break
            missing = self._try(group)
            if missing and unused is None:
                unused = f"{self._name(group)} of `{self._evidence.hits[group.hit].item.id}`: {missing} tokens"
        return unused

    def _try(self, group: Words) -> int:
        """Keep `group` if it fits; else how many tokens it would add."""
        spans = self._add(self.spans, [group])
        used = self._measure(spans)
        if used > self._room:
            return used - self.used
        self.spans, self.used = spans, used
        return 0

    def _cost(self, group: Words) -> int:
        """About how many tokens a group adds."""
        text = self._evidence.hits[group.hit].item.text
        return sum(self._evidence.count(" " + text[start:end]) for start, end in group.spans)

    def _name(self, group: Words) -> str:
        known = {(unit.start, unit.end): unit for unit in self._evidence.units(group.hit)}
        unit = known.get(group.spans[0])
        if unit is not None:
            return unit.kind
        start, end = group.spans[0]
        text = self._evidence.hits[group.hit].item.text[start:end]
        return "protected span" if " " in text else "word"

    @staticmethod
    def _add(spans: Mapping[int, frozenset[Span]], groups: Iterable[Words]) -> dict[int, frozenset[Span]]:
        made: dict[int, set[Span]] = {}
        for group in groups:
            made.setdefault(group.hit, set(spans.get(group.hit, ()))).update(group.spans)
        return {**spans, **{hit: frozenset(found) for hit, found in made.items()}}

    def _measure(self, spans: Mapping[int, frozenset[Span]]) -> int:
        """Exact tokens of the block."""
        passages = self._passages(spans)
        return self._evidence.count(self._evidence.budget.render(passages, len(self._evidence.hits) - len(passages)))

    def _passages(self, spans: Mapping[int, frozenset[Span]]) -> tuple[Passage, ...]:
        hits = self._evidence.hits
        return tuple(
            Passage(hits[n].item, _pieces(hits[n].item.text, self._evidence.units(n), spans[n]), hits[n].score)
            for n in sorted(spans)
        )


def _untouched(hit: Hit, tokens: int) -> Passage:
    text = hit.item.text
    return Passage(hit.item, (Piece(text, (0, len(text)), "whole"),) if text else (), hit.score, tokens, tokens)


def _accounted(evidence: Evidence, plan: Plan, hit: int, passage: Passage) -> Passage:
    """`passage` with its tokens and with what of its item is not shown."""
    cut = tuple(
        Cut((start, end), why, evidence.count(passage.item.text[start:end]), tuple(evidence.protected(hit, start, end)))
        for start, end, why in _cuts(evidence.units(hit), passage.pieces, plan, hit)
    )
    return replace(passage, tokens=evidence.count(passage.text), original=evidence.tokens[hit], cut=cut)


def _cuts(known: Sequence[Unit], pieces: Sequence[Piece], plan: Plan, hit: int) -> list[tuple[int, int, str]]:
    """What of the units no piece shows, and why; neighbours that are not shown for one reason stand together."""
    kept = [piece.span for piece in pieces if piece.span]
    found: list[tuple[int, int, str]] = []
    at, before = 0, True
    for n, unit in enumerate(known):
        while at < len(kept) and kept[at][1] <= unit.start:
            at += 1
        inside = list(takewhile(lambda span: span[0] < unit.end, kept[at:]))  # noqa: B023
        why = "pruned" if inside else plan.left_out.get(Part(hit, n), "budget")
        missing = _gaps(unit.start, unit.end, inside)
        if missing and found and before and found[-1][2] == why and missing[0][0] == unit.start:
            missing[0] = (found.pop()[0], missing[0][1])
        found += [(start, end, why) for start, end in missing]
        before = bool(missing) and missing[-1][1] == unit.end
    return found


def _gaps(start: int, end: int, kept: Sequence[Span]) -> list[Span]:
    """The parts of a half-open span that none of `kept` covers."""
    edges = [start, *chain.from_iterable(kept), end]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _pieces(text: str, known: Sequence[Unit], spans: Iterable[Span]) -> tuple[Piece, ...]:
    """Kept runs in reading order, with a joiner wherever something but white space is left out between two."""
    runs: list[Span] = []
    values = bool(known) and known[0].kind == "JSON value"
    for start, end in sorted(spans):
        if runs and (start <= runs[-1][1] or _nothing_between(text[runs[-1][1] : start], values)):
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        elif end > start:
            runs.append((start, end))
    starts = [unit.start for unit in known]
    pieces: list[Piece] = []
    for start, end in runs:
        if pieces:
            before = pieces[-1].span[1] if pieces[-1].span else 0
            n = bisect_left(starts, before)
            whole_unit = n < len(known) and known[n].end <= start
            joiner = _comma(known, before, start) if values else _joiner(text[before:start], whole_unit)
            if joiner:
                pieces.append(Piece(joiner, None, "joiner", ((before, start),)))
        pieces.append(Piece(text[start:end], (start, end), "kept"))
    return tuple(pieces)


def _nothing_between(gap: str, values: bool) -> bool:
    return gap.isspace() or (values and gap.strip() == ",")


def _comma(known: Sequence[Unit], before: int, start: int) -> str:
    """Between two elements of an array a comma; none behind its opening and before its closing bracket."""
    return "" if before == known[0].end or start == known[-1].start else ", "


def _joiner(gap: str, whole_unit: bool) -> str:
    """What stands for `gap`: a new line where the text after it begins one, `…` where a whole unit is missing."""
    line = "\n" in gap[len(gap.rstrip()) :]
    if whole_unit:
        return "\n…\n" if line else " … "
    return "\n" if line else " "


def _too_small(budget: int, least: int) -> BadInput:
    return BadInput(
        f"The budget is `{budget}` tokens; the smallest block that can be shown takes {least}.",
        f"Ask for at least {least}.",
    )
