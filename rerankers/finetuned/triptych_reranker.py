"""Triptych reranker: the passage score of the pruner's network. After Provence, arXiv:2501.16214

One pass gives the score that orders hits and the words that the refiner `triptych_pruner` keeps: what was read here is
not read again there. Network, weights (CC BY-SA 4.0, in the package) and what it was trained on: `triptych_pruner.py`
beside this file. It reads English: for a query in another script, or a passage in another language than the query, a
hit keeps its place. The first stage's order has a say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import Unsupported
from ...retrievers.languages import across
from ...retrievers.scripts import latin_share
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._pointwise import Read
from ..base import Cost, Limits, Ranking, Reranker
from .triptych_pruner import Pruner

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Item, Query
    from ...retrievers.parts import Parts

FADE = 0.2
"""What share of its score a hit loses towards the end of the first stage's list; the first loses nothing."""
AT_ONCE = 4
"""Passages for each thread between two looks at the clock."""
PASSAGE_TOKENS = 220
"""For estimates only."""


class TriptychReranker(Reranker):
    """Orders hits by how likely `searchable_text` answers the query, faded along the first stage's order.

    Args:
        pruner: reads the passages; share it with the refiner.
        fade: `FADE`; 0 leaves the first stage's order out.
    """

    def __init__(self, pruner: Pruner, fade: float = FADE) -> None:
        self.pruner = pruner
        self._fade = fade

    @classmethod
    def load(cls, card: Card, parts: Parts) -> TriptychReranker:
        """With the weights in the package."""
        return cls(Pruner.shipped(parts.settings.precision, parts.settings.threads))

    @classmethod
    def tiny(cls, seed: int = 0) -> TriptychReranker:
        return cls(Pruner.tiny(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every few passages.

        Raises:
            Unsupported: a query without text.
        """
        if query.text is None:
            raise Unsupported("The Triptych reranker reads text, and the query has `None`.", "Ask with text.")
        asked, is_read = query.text, latin_share(query.text) >= 0.5

        def read(items: Sequence[Item]) -> list[Read]:
            judged = [is_read and not across(asked, item.text) for item in items]
            texts = [searchable_text(item) for item, holds in zip(items, judged, strict=True) if holds]
            found = iter(self.pruner.read(asked, texts))
            readings = [next(found) if holds else None for holds in judged]
            return [Read(one.score, one.tokens) if one else Read(None, 0) for one in readings]

        at_once = AT_ONCE * self.pruner.threads
        return _pointwise.rank(hits, limits, read, lambda score, say: score * (1 - self._fade * (1 - say)), at_once)

    def estimate(self, n: int) -> Cost:
        """One call and about 220 tokens per hit."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)
