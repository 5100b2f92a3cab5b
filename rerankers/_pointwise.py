"""What rerankers share that read one passage at a time: limits, checks, the first stage's say, and a stable order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import BadInput, Unsupported
from ..progress import step
from ..retrievers.base import Hit, Item
from ..retrievers.readers.base import clean
from ._failing import Ended, Tokens, answered
from .base import Limits, Ranking

PRIOR_RANKS = 10
"""How fast the first stage's say fades: at this rank (from 0) it is worth half of what it is at the top."""


@dataclass(frozen=True)
class Read:
    """One passage read: its score (None: it cannot be judged, and keeps its place) and how many tokens that took."""

    score: float | None
    tokens: int


def rank(
    hits: Sequence[Hit],
    limits: Limits | None,
    read: Callable[[Sequence[Item]], list[Read]],
    blend: Callable[[float, float], float],
    at_once: int = 1,
) -> Ranking:
    """`hits` by their scores blended with the first stage's say, in first-stage order where these are equal.

    Hits are read from the top, `at_once` in one go (one by one under a limit of tokens), until they end, a limit is
    reached or the model's endpoint fails; limits of time and tokens are looked at before each go. What was not read
    follows behind in its old order, with the lowest score of what was. Where nothing that was read can be judged, the
    order is the first stage's, and the ranking is incomplete.

    Args:
        read: scores of items, in their order; one model call per item.
        blend: the final score, of a score and the hit's `first_stage`.
        at_once: hits per `read`.

    Raises:
        BadInput: a score that came in is not a number.
        Unsupported: a score of the model is not a number.
    """
    if any(math.isnan(hit.score) for hit in hits):
        wrong = next(hit for hit in hits if math.isnan(hit.score))
        raise BadInput(f"The hit `{wrong.item.id}` has the score `nan`.", "Scores are finite numbers.")
    if len(hits) < 2:
        return Ranking(tuple(hits))
    limits = limits or Limits()
    depth, reason = _depth(len(hits), limits)
    found: list[Read] = []
    failure = None
    try:
        for some in _read(hits, depth, limits, read, at_once if limits.tokens is None else 1):
            found += some
    except Ended as ended:
        reason, failure = str(ended), ended.failure
    if found and all(one.score is None for one in found):
        reason = "; ".join(filter(None, [reason, f"none of {len(found)} hits can be judged: the first stage's order"]))
    return Ranking(
        hits=_ordered(hits, found, blend),
        calls=len(found),
        tokens=sum(one.tokens for one in found),
        complete=reason is None,
        reason=reason,
        failure=failure,
    )


def _read(
    hits: Sequence[Hit], depth: int, limits: Limits, read: Callable[[Sequence[Item]], list[Read]], at_once: int
) -> Iterator[list[Read]]:
    """What is read of the first `depth` hits, go by go; raises `Ended` where it ends before."""
    start, tokens = time.monotonic(), Tokens()
    for first in range(0, depth, at_once):
        done = f"{first} of {len(hits)} hits"
        if limits.seconds is not None and time.monotonic() - start >= limits.seconds:
            raise Ended(f"{limits.seconds:g} s passed after {done}")
        tokens.look(limits, done)
        going = partial(step, first, depth, "hits")
        going()
        items = [hit.item for hit in hits[first : min(first + at_once, depth)]]
        found = answered(partial(read, items), done, going)
        tokens.add(sum(one.tokens for one in found))
        yield found


def first_stage(scores: Sequence[float]) -> list[float]:
    """The first stage's say from 1 downwards: `10 / (10 + rank)`, equal scores at the same (better) rank.

    It depends on the order alone, so it means the same for every first stage, and nothing where all scores are equal.

    >>> first_stage([0.9, 0.4, 0.4])
    [1.0, 0.9090909090909091, 0.9090909090909091]
    """
    best: dict[float, int] = {}
    for place, score in enumerate(sorted(scores, reverse=True)):
        best.setdefault(score, place)
    return [PRIOR_RANKS / (PRIOR_RANKS + best[score]) for score in scores]


def as_data(text: str, characters: int) -> str:
    """Text for a prompt: one line without control and invisible characters, at most so long.

    >>> as_data("one\\x00\\n\\n two", 6)
    'one tw'
    """
    line = " ".join(text.split())[: 4 * characters]  # no longer than needed, for cleaning is slow
    return " ".join(clean(line)[0].split())[:characters]


def _depth(n: int, limits: Limits) -> tuple[int, str | None]:
    if limits.tokens is not None and limits.tokens < 0:
        raise BadInput(f"The limit tokens is `{limits.tokens}`.", "It cannot be negative.")
    given = {"depth": limits.depth, "calls": limits.calls}
    name, value = min(((k, v) for k, v in given.items() if v is not None), key=lambda kv: kv[1], default=("", n))
    if value < 0:
        raise BadInput(f"The limit {name} is `{value}`.", "It cannot be negative.")
    return (n, None) if value >= n else (value, f"{name} limit: {value} of {n} hits")


def _ordered(hits: Sequence[Hit], found: Sequence[Read], blend: Callable[[float, float], float]) -> tuple[Hit, ...]:
    if not found:
        return tuple(hits)
    says = first_stage([hit.score for hit in hits])
    scored = []
    for hit, one, say in zip(hits, found, says, strict=False):
        if one.score is None:
            continue
        if math.isnan(one.score):
            raise Unsupported(f"The model scored the hit `{hit.item.id}` `nan`.", "Use the precision `float32`.")
        scored.append(Hit(hit.item, blend(one.score, say)))
    scored.sort(key=lambda hit: -hit.score)
    placed = _in_their_places(hits, found, scored, says)
    return (*placed, *(Hit(hit.item, placed[-1].score) for hit in hits[len(found) :]))


def _in_their_places(
    hits: Sequence[Hit], found: Sequence[Read], scored: Sequence[Hit], says: Sequence[float]
) -> list[Hit]:
    """`scored` at the places of hits that were judged; the others where they were, with the score of the one before.

    Before the first that was judged that is the first stage's say, or the score that follows where it is higher.
    """
    ordered, placed = iter(scored), [Hit(hit.item, 0.0) for hit in hits[: len(found)]]
    top = max(scored[0].score if scored else 0.0, says[0])
    for place, one in enumerate(found):
        if one.score is not None:
            placed[place] = next(ordered)
        elif not scored:
            placed[place] = Hit(hits[place].item, says[place])
        else:
            placed[place] = Hit(hits[place].item, placed[place - 1].score if place else top)
    return placed
