"""Contract of the second panel: put hits in a better order. The answer is always a permutation of the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import EndpointError, TimedOut

if TYPE_CHECKING:
    from ..errors import TriptychError
    from ..retrievers.base import Hit, Query


@dataclass(frozen=True)
class Limits:
    """What one ranking may cost: model calls, seconds, how many hits from the top are looked at, or tokens.

    The clock is looked at before each call. So are the `tokens`: a call is not made where, going by the largest one
    before it, they would not be enough; the first is made in any case, if they are more than 0.
    """

    calls: int | None = None
    seconds: float | None = None
    depth: int | None = None
    tokens: int | None = None

    def less(self, *, calls: int = 0, seconds: float = 0.0, tokens: int = 0) -> Limits:
        """What is left of them after so much was spent; never below 0, and the depth stays."""
        return replace(
            self,
            calls=None if self.calls is None else max(0, self.calls - calls),
            seconds=None if self.seconds is None else max(0.0, self.seconds - seconds),
            tokens=None if self.tokens is None else max(0, self.tokens - tokens),
        )


@dataclass(frozen=True)
class Cost:
    """An estimate for `n` hits: model calls and tokens read."""

    calls: int
    tokens: int


@dataclass(frozen=True)
class Ranking:
    """Hits, best first, with their new scores (hits beyond the looked-at depth keep their order behind the rest).

    Attributes:
        calls, tokens: what it cost.
        repaired: how many malformed verdicts were mended.
        complete: False when a limit or a failure cut it short, or no verdict was usable; `reason` says which.
        failure: what nobody asked for among these: the model failed, or gave nothing usable. Not raised, so that no
            ranking is lost; whoever wants no other order than the model's raises it.
    """

    hits: tuple[Hit, ...]
    calls: int = 0
    tokens: int = 0
    repaired: int = 0
    complete: bool = True
    reason: str | None = None
    failure: TriptychError | None = field(default=None, compare=False)


class Reranker(ABC):
    """Orders hits for a query. 0 or 1 hit come back unchanged without a model call.

    A model behind an endpoint that fails (`EndpointError`, or `TimedOut` of its own) ends the ranking: what it had
    ordered by then stands, the rest follows in first-stage order, and the ranking says so.

    Attributes:
        floor: a hit scored below this says nothing about the query; None where scores have no absolute scale.
        looks: whether it reads pictures and pages as images. Whoever calls it then gives it hits whose `media.uri` is a
            path on this machine.
    """

    floor: float | None = None
    looks: bool = False

    @abstractmethod
    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`, best first."""

    @abstractmethod
    def estimate(self, n: int) -> Cost:
        """What ranking `n` hits costs."""


def measured(ranking: Ranking) -> Ranking:
    """`ranking`, if its model answered: an endpoint's failure must not be measured as the system's own order.

    Raises:
        EndpointError, TimedOut: the failure. A model without usable verdicts is none: that is a result.
    """
    if isinstance(ranking.failure, EndpointError | TimedOut):
        raise ranking.failure
    return ranking
