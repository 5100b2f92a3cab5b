"""No reranking: the first stage's order, as it came. The baseline that every reranker is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import Cost, Limits, Ranking, Reranker

if TYPE_CHECKING:
    from ..manifests.registry import Card
    from ..retrievers.base import Hit, Query
    from ..retrievers.parts import Parts


class NoRerank(Reranker):
    """Gives every list back unchanged, scores included; needs no weights."""

    @classmethod
    def load(cls, card: Card, parts: Parts) -> NoRerank:
        return cls()

    @classmethod
    def tiny(cls, seed: int = 0) -> NoRerank:
        return cls()

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """`hits`, complete whatever the limits: it costs nothing."""
        return Ranking(tuple(hits))

    def estimate(self, n: int) -> Cost:
        return Cost(calls=0, tokens=0)
