"""From decisions about tokens to words by priority: what LLMLingua and LongLLMLingua share.

A word stays where the package keeps one of its tokens, a row or a line of code where it keeps half of them; among
equals the larger loss (or contrast) comes first. Nothing here keeps to a budget: that is `fit`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import BadInput
from ..base import Passage
from ..fit import Plan, Words, head
from ..protected import protected
from ..relevance import by_relevance

if TYPE_CHECKING:
    from ...retrievers.base import Query
    from ..fit import Evidence, Part, Span

MODES = ("exact", "fast")
LEAST_KEEP = 0.05
"""Below this share the package's thresholds keep nothing of a segment, and words would come in reading order."""
SLACK = 100
"""Tokens of passages above the budget that the coarse stage keeps: the package's own `+100`."""

Order = Callable[[Sequence[str]], Sequence[int]]
"""Indices of texts, most wanted first."""


class Verdict(NamedTuple):
    """Whether the package keeps a word, and how much it is wanted: larger first."""

    kept: bool
    wanted: float


def verdicts(
    compressor: Any,
    evidence: Evidence,
    zone: Sequence[Part],
    keep: float,
    *,
    fast: bool = False,
    question: str = "",
    deltas: Mapping[int, float] | None = None,
) -> dict[tuple[int, Span], Verdict]:
    """By hit and span: each word of `zone` (in reading order), and each part of it that is only kept whole.

    Args:
        keep: the share of tokens to keep; `deltas` adds to it, by hit.
    """
    from ._llmlingua_compat import SEPARATOR, window_of

    contexts: list[str] = []
    places: list[tuple[Part, int]] = []
    hits: list[int] = []
    at = 0
    for part in zone:
        text = evidence.text(part)
        if hits and hits[-1] == part.hit:
            contexts[-1] += " "
            at += 1
        else:
            at += len(SEPARATOR) if contexts else 0
            contexts.append("")
            hits.append(part.hit)
        places.append((part, at))
        contexts[-1] += text
        at += len(text)
    window = window_of(compressor.get_token_length(SEPARATOR.join(contexts), False))
    added = [deltas.get(hit, 0.0) for hit in hits] if deltas else ()
    share = min(max(keep, LEAST_KEEP), 1.0)
    decided = compressor.decide(contexts, share, window, fast=fast, question=question, deltas=added)
    starts, ends = decided.spans[:, 0], np.maximum.accumulate(decided.spans[:, 1])
    by_token = decided.wanted
    found: dict[tuple[int, Span], Verdict] = {}
    for part, begins in places:
        unit = evidence.unit(part)
        shift = begins - unit.start
        spans = [word.spans[0] for word in evidence.words(part)] or [(unit.start, unit.end)]
        first = np.searchsorted(ends, [start + shift for start, _ in spans], "right")
        last = np.searchsorted(starts, [end + shift for _, end in spans], "left")
        for span, a, b in zip(spans, first, last, strict=True):
            kept, wanted = decided.kept[a:b], by_token[a:b]
            if unit.whole:
                known = wanted[np.isfinite(wanted)]
                half = 2 * int(kept.sum()) >= len(kept)
                found[part.hit, span] = Verdict(half, float(known.mean()) if len(known) else 0.0)
            else:
                found[part.hit, span] = Verdict(bool(kept.any()), float(wanted.max(initial=-np.inf)))
    return found


class WholeContext:
    """One refinement in the form of the papers: passages by `order` until they hold the budget and `SLACK`, then words
    of all that stay, by the model. `plan` and `tail` are for `fit`.

    Args:
        order: of passages; asked once.
        query: breaks ties of what is said twice; with one, words stay by contrast with `question`.
        delta: how much more than the rest the best passage keeps, and how much less the last (LongLLMLingua).
    """

    def __init__(
        self,
        compressor: Any,
        order: Order,
        mode: str,
        query: Query | None = None,
        question: str = "",
        delta: float = 0.0,
    ) -> None:
        self._compressor = compressor
        self._order = order
        self._fast = mode == "fast"
        self._query = query
        self._question = question
        self._delta = delta
        self._kept: list[int] = []

    def plan(self, evidence: Evidence) -> Plan:
        """All parts, passage after passage, the most wanted first."""
        base = by_relevance(self._query)(evidence)
        known = sorted({part.hit for part in base.parts})
        texts = [evidence.hits[n].item.text for n in known]
        told = [n for n, text in zip(known, texts, strict=True) if text.strip()]
        ranked = [told[n] for n in self._order([evidence.hits[n].item.text for n in told])]
        tokens = dict.fromkeys(known, 0)
        for part in base.parts:
            tokens[part.hit] += evidence.count(evidence.text(part))
        self._kept = ranked[: within([tokens[n] for n in ranked], evidence.budget.tokens + SLACK)]
        ranks = {hit: n for n, hit in enumerate([*ranked, *(n for n in known if n not in told)])}
        parts = tuple(sorted(base.parts, key=lambda part: (ranks[part.hit], part.unit)))
        return Plan(parts, base.reasons, base.left_out)

    def tail(self, evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, list[Words]]:
        """No part whole: the protected words of all passages that stay, then the others by verdict."""
        ranks = {hit: rank for rank, hit in enumerate(self._kept)}
        zone = sorted(part for part in parts if part.hit in ranks and evidence.text(part))
        if self._compressor.get_token_length(" ".join(map(evidence.text, zone)), False) < 2:
            return head(evidence, parts, sizes, n)
        found = verdicts(
            self._compressor,
            evidence,
            zone,
            self._keep(evidence, zone),
            fast=self._fast,
            question=self._question,
            deltas=dict(zip(self._kept, by_rank(len(self._kept), self._delta), strict=True)),
        )
        first: list[Words] = []
        rest: list[tuple[Verdict, Words]] = []
        for part in sorted(zone, key=lambda part: (ranks[part.hit], part.unit)):
            core, others = divided(evidence, part)
            first += core
            rest += [(found[part.hit, words.spans[0]], words) for words in others]
        rest.sort(key=lambda scored: scored[0], reverse=True)
        return 0, first + [words for _, words in rest]

    def _keep(self, evidence: Evidence, zone: Sequence[Part]) -> float:
        """The share of the zone's tokens that the budget has room for, next to the frames of its passages."""
        hits = [evidence.hits[n] for n in sorted({part.hit for part in zone})]
        empty = [Passage(hit.item, (), hit.score) for hit in hits]
        frames = evidence.count(evidence.budget.render(empty, len(evidence.hits) - len(empty)))
        text = sum(evidence.count(evidence.text(part)) for part in zone)
        return (evidence.budget.tokens - frames) / max(1, text)


def divided(evidence: Evidence, part: Part) -> tuple[list[Words], list[Words]]:
    """The words of a part that come before all others, and those others, each alone; a whole part is one of these."""
    words = evidence.words(part)
    if not words:
        return [], [evidence.closed(part)]
    text = evidence.hits[part.hit].item.text
    needed = protected([text[start:end] for ((start, end),) in (one.spans for one in words)], evidence.budget.protect)
    core = [one for one, holds in zip(words, needed, strict=True) if holds]
    return core, [one for one, holds in zip(words, needed, strict=True) if not holds]


def within(tokens: Sequence[int], limit: int) -> int:
    """How many of the first texts hold `limit` tokens, the one that passes it included.

    >>> within([40, 40, 40, 40], 100)
    3
    """
    left = limit
    for n, one in enumerate(tokens, 1):
        left -= one
        if left < 0:
            return n
    return len(tokens)


def by_rank(n: int, delta: float) -> list[float]:
    """What the passage of each rank gets on top of the common share: a line from `delta` down to `-delta`.

    >>> by_rank(3, 0.3)
    [0.3, 0.0, -0.3]
    """
    return [delta * (1 - 2 * rank / (n - 1)) if n > 1 else 0.0 for rank in range(n)]


def one_of(what: str, value: str, known: Sequence[str]) -> str:
    """`value`, when it is known.

    Raises:
        BadInput: it is not; the message shows it, the hint names those that are.
    """
    if value not in known:
        raise BadInput(f"Unknown {what} `{value}`.", f"Use one of: {', '.join(known)}.")
    return value
