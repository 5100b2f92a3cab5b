"""Contract of the second panel: put hits in a better order. The answer is always a permutation of the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..retrievers.base import Hit, Query


@dataclass(frozen=True)
class Limits:
    """What one ranking may cost: model calls, seconds, or how many hits from the top are looked at."""

    calls: int | None = None
    seconds: float | None = None
    depth: int | None = None


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
        complete: False when a limit cut it short; `reason` says which.
    """

    hits: tuple[Hit, ...]
    calls: int = 0
    tokens: int = 0
    repaired: int = 0
    complete: bool = True
    reason: str | None = None


class Reranker(ABC):
    """Orders hits for a query. 0 or 1 hit come back unchanged without a model call.

    Attributes:
        floor: a hit scored below this says nothing about the query; None where scores have no absolute scale.
    """

    floor: float | None = None

    @abstractmethod
    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`, best first."""

    @abstractmethod
    def estimate(self, n: int) -> Cost:
        """What ranking `n` hits costs."""
