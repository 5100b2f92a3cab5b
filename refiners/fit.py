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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadInput
from .base import Dropped, Passage, Piece, Refined
from .tokens import count
from .units import Unit, units, words

if TYPE_CHECKING:
    from ..retrievers.base import Hit
    from .base import Budget

FULL = 0.9
"""The share of the budget under which `Refined.unused` says what did not fit."""
ATTEMPTS = 24
"""How many single parts or words are counted exactly to use what room is left."""
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
    """What may be kept, most wanted first, and why hits without a part in it are dropped (else `"budget"`)."""

    parts: tuple[Part, ...]
    reasons: Mapping[int, str] = field(default_factory=dict)


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
        """The words of a part in reading order, each alone; none for a part that is only kept whole."""
        unit = self.unit(part)
        text = self.hits[part.hit].item.text
        return [] if unit.whole else [Words(part.hit, (span,)) for span in words(text, unit.start, unit.end)]

    def count(self, text: str) -> int:
        return count(text, self.budget.tokenizer)


Planner = Callable[[Evidence], Plan]
Tail = Callable[[Evidence, Sequence[Part], Sequence[int]], tuple[int, list[Words]]]
"""`tail(evidence, parts, sizes)`: all but the last of `parts` fit whole (`sizes[i]`: about how many tokens the first i
take, more than the budget for the last; further parts follow where there are any). It answers how many parts stay
whole, and the words that are kept instead of the next ones, most wanted first."""


def fit(hits: Sequence[Hit], budget: Budget, planner: Planner, tail: Tail) -> Refined:
    """`hits` inside `budget`. What fits as it is comes back untouched, and neither `planner` nor `tail` is asked.

    Raises:
        BadInput: the budget is not positive, or below the smallest block that can be rendered.
    """
    if budget.tokens < 1:
        raise BadInput(f"The budget is `{budget.tokens}` tokens.", "Ask for at least 1.")
    tokens = [count(hit.item.text, budget.tokenizer) for hit in hits]
    untouched = tuple(_untouched(hit) for hit in hits)
    used = count(budget.render(untouched, 0), budget.tokenizer)
    if used <= budget.tokens:
        return Refined(untouched, used, sum(tokens))
    evidence = Evidence(hits, budget, tokens)
    plan = planner(evidence)
    filling = _Filling(evidence)
    unused = filling.fill(plan.parts, tail)
    dropped = tuple(
        Dropped(hit.item.id, plan.reasons.get(n, "budget"), tokens[n])
        for n, hit in enumerate(hits)
        if n not in filling.spans
    )
    return Refined(filling.passages(filling.spans), filling.used, sum(tokens), dropped, unused)


def head(evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int]) -> tuple[int, list[Words]]:
    """The tail of refiners without a word model: the next part that has words, from its beginning."""
    whole = bisect_right(sizes, sizes[-1] - 1) - 1
    for part in parts[whole:]:
        if found := evidence.words(part):
            return whole, found
    return whole, []


class _Filling:
    """Spans kept so far, by hit, and the exact size of the block they make."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._room = evidence.budget.tokens
        self.spans: dict[int, set[Span]] = {}
        self.used = self.measure({})

    def fill(self, parts: Sequence[Part], tail: Tail) -> str | None:
        """Fill the budget; the answer names what did not fit, where under `FULL` of it is used.

        Raises:
            BadInput: not even the smallest block fits.
        """
        if not parts:
            if self.used > self._room:
                raise _too_small(self._room, self.used)
            return None
        sizes = self._sizes(parts)
        n = self._longest(sizes, lambda n: self._whole(parts[:n]))
        wanted: list[Words] = []
        if n < len(parts):
            n, wanted = tail(self._evidence, parts, [*sizes[: n + 1], max(sizes[n], self._room) + 1])
            kept = self._whole(parts[:n])
            at = [0]
            for group in wanted:
                at.append(at[-1] + self._cost(group))
            start = self.measure(kept)
            k = self._longest([start + size for size in at], lambda k: self._with(kept, wanted[:k]))
            wanted = wanted[max(k, 0) :]
        rest = [*wanted, *(Words(part.hit, tuple(self._closed(part))) for part in parts[n:])]
        if not self.spans:
            self._least(parts)
        return self._squeeze(rest)
