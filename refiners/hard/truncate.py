"""Head truncation: whole passages in order, the first that does not fit cut at a word, the rest dropped.

No paper: what most tools do with a limit, and the baseline that a compressor has to beat. The query is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..base import Refiner
from ..fit import Evidence, Part, Plan, fit, head

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts
    from ..base import Budget, Refined


class Truncate(Refiner):
    """Keeps the beginning of the evidence."""

    @classmethod
    def load(cls, card: Card, parts: Parts) -> Truncate:
        """Needs no weights."""
        return cls()

    @classmethod
    def tiny(cls, seed: int = 0) -> Truncate:
        """The system itself: it has no model."""
        return cls()

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; units stay in reading order."""
        return fit(hits, budget, in_order, head)


def in_order(evidence: Evidence) -> Plan:
    """Every unit as it comes."""
    parts = [Part(hit, unit) for hit in range(len(evidence.hits)) for unit in range(len(evidence.units(hit)))]
    return Plan(tuple(parts))
