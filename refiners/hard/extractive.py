"""Sentence selection: whole sentences and rows by relevance, the last one cut at a word to use up the budget.

No paper; the family is measured in Jha et al. 2024, arXiv:2407.08892, where it beats token pruning on most tasks. Ours
scores sentences with the token vectors that the reranker has computed already, and with lexical overlap where there is
no encoder, so that it needs no weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import MissingWeights
from ..base import Refiner
from ..fit import fit, head
from ..relevance import FLOOR, by_relevance, relevance_of, told

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts
    from ..base import Budget, Refined
    from ..relevance import Relevance


class Extractive(Refiner):
    """Keeps what is most relevant to the query.

    Args:
        relevance: scores sentences; None for lexical overlap.
        floor: on the scale of `relevance`; passages below it are never used to fill.
    """

    def __init__(self, relevance: Relevance | None = None, floor: float = FLOOR) -> None:
        self.relevance = relevance
        self.floor = floor

    @classmethod
    def load(cls, card: Card, parts: Parts) -> Extractive:
        """With the profile's encoder; where its weights are missing, with lexical overlap."""
        try:
            return cls(relevance_of(parts.encoder()))
        except MissingWeights:
            return cls()

    @classmethod
    def tiny(cls, seed: int = 0) -> Extractive:
        """With lexical overlap."""
        return cls()

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`."""
        found = fit(hits, budget, by_relevance(query, self.relevance, self.floor), head)
        return told(found, query, self.relevance)
