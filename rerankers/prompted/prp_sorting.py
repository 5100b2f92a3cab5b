"""PRP-Sorting. Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting, arXiv:2306.17563

Qin, Jagerman, Hui and others 2023: the comparison of two passages, asked in both orders, is the comparator
of heapsort, O(N log N) comparisons. Differs from the paper: it stops once the top is sorted (what is below keeps the
first stage's order); a tie goes to the passage that the first stage has higher, which an order that is no order (A over
B over C over A) needs for its answer to be the same each time; the answer is one letter. Each comparison waits for the
one before. The weights are those of whatever `LM` is given; see `prp_allpair` for what the paper used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from heapq import heapify, heappop
from typing import TYPE_CHECKING

from ..base import Cost, Limits, Ranking, Reranker
from . import _pairwise
from ._pairwise import Mode, Pairs, Placed, Spent

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.lm import LM
    from ...retrievers.parts import Parts

TOP = 10
"""How many places are sorted; nDCG@10 looks at no more."""


class PRPSorting(Reranker):
    """Orders the top of the hits by heapsort; scores fall in equal steps from 1 and mean the place alone.

    Args:
        lm: any language model that gives scores of next tokens, or that writes answers.
        mode: as in `PRPAllPair`.
        top: how many places are sorted; None sorts all.

    Raises:
        Unsupported: the model can do neither, or not the one that is asked for.
    """

    def __init__(self, lm: LM, mode: Mode | None = None, top: int | None = TOP) -> None:
        self._lm = lm
        self._mode = _pairwise.mode_of(lm, mode)
        self._top = top

    @classmethod
    def load(cls, card: Card, parts: Parts) -> PRPSorting:
        """With the profile's small language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> PRPSorting:
        return cls(_pairwise.scripted(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`. Where a limit ends it, what is not yet sorted keeps the first stage's order.

        Raises:
            BadInput: a score that came in is not a number, or a limit is negative.
            Unsupported: a query without text.
        """
        return _pairwise.rank(self._lm, self._mode, query, hits, limits, self.estimate, self._order)

    def estimate(self, n: int) -> Cost:
        """At most `2n` comparisons for the heap and `2 log2 n` for each sorted place; most lists need about half."""
        if n < 2:
            return Cost(0, 0)
        places = n if self._top is None else min(self._top, n)
        most = min(2 * n + 2 * places * (n.bit_length() - 1), n * (n - 1) // 2)
        return Cost(2 * most, 2 * most * _pairwise.PROMPT_TOKENS)

    def _order(self, pairs: Pairs) -> Placed:
        best: list[int] = []
        with suppress(Spent):
            sort(pairs, pairs.n if self._top is None else self._top, best)
        return _pairwise.by_place([*best, *(i for i in range(pairs.n) if i not in best)])


class _Entry:
    """A passage in the heap, before those that it is better than."""

    def __init__(self, place: int, pairs: Pairs) -> None:
        self.place = place
        self._pairs = pairs

    def __lt__(self, other: _Entry) -> bool:
        self._pairs.ask([(self.place, other.place)])
        points = self._pairs.points(self.place, other.place)
        return self.place < other.place if points == 0.5 else points == 1


def sort(pairs: Pairs, top: int, best: list[int]) -> None:
    """Appends the `top` best of the passages to `best`, which holds those found when `Spent` is raised."""
    heap = [_Entry(place, pairs) for place in range(pairs.n)]
    heapify(heap)
    while heap and len(best) < top:
        best.append(heappop(heap).place)
