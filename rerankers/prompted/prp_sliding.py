"""PRP-Sliding-K. Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting, arXiv:2306.17563

Qin, Jagerman, Hui and others 2023: K passes of bubble sort from the bottom of the list, neighbours compared
in both orders and swapped where the lower one wins; a tie leaves them. After pass k the top k stand. K = 10, O(KN)
comparisons. Differs from the paper: a pass leaves out the top that the passes before it found, a pair that was asked
is not asked again, passes follow each other at a distance of two places and are asked together (the result is the same,
in N + 2K steps instead of NK), and the answer is one letter. How good it is depends on the first stage's order. The
weights are those of whatever `LM` is given; see `prp_allpair` for what the paper used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..base import Cost, Limits, Ranking, Reranker
from . import _pairwise
from ._pairwise import Mode, Pairs, Placed, Spent

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.lm import LM
    from ...retrievers.parts import Parts

PASSES = 10
"""K of the paper."""


class PRPSliding(Reranker):
    """Orders the top of the hits by passes from below; scores fall in equal steps from 1 and mean the place alone.

    Args:
        lm: any language model that gives scores of next tokens, or that writes answers.
        mode: as in `PRPAllPair`.
        passes: `PASSES`; as many places at the top are sorted.

    Raises:
        Unsupported: the model can do neither, or not the one that is asked for.
    """

    def __init__(self, lm: LM, mode: Mode | None = None, passes: int = PASSES) -> None:
        self._lm = lm
        self._mode = _pairwise.mode_of(lm, mode)
        self._passes = passes

    @classmethod
    def load(cls, card: Card, parts: Parts) -> PRPSliding:
        """With the profile's small language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> PRPSliding:
        return cls(_pairwise.scripted(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`. With a limit of calls or seconds, one pass ends before the next begins.

        Then what is there when the limit is reached has its top sorted, as far as passes were made.

        Raises:
            BadInput: a score that came in is not a number, or a limit is negative.
            Unsupported: a query without text.
        """
        limited = limits is not None and (limits.calls is not None or limits.seconds is not None)

        def order(pairs: Pairs) -> Placed:
            found = list(range(pairs.n))
            with suppress(Spent):
                slide(found, pairs, self._passes, 1 if limited else self._passes)
            return _pairwise.by_place(found)

        return _pairwise.rank(self._lm, self._mode, query, hits, limits, self.estimate, order)

    def estimate(self, n: int) -> Cost:
        """At most `2(N - 1) + 2(N - 2) + ...`, K terms: that many for a list that stands upside down."""
        calls = sum(2 * (n - 1 - done) for done in range(min(self._passes, n - 1)))
        return Cost(calls, calls * _pairwise.PROMPT_TOKENS)


def slide(order: list[int], pairs: Pairs, passes: int, together: int) -> None:
    """Up to `passes` passes over `order`, in place, `together` of them at a time.

    A pass two places behind another touches none of its places, so their comparisons are independent.
    """
    last = len(order) - 1
    passes = min(passes, last)
    for first in range(0, passes, together):
        group = range(first, min(first + together, passes))
        for tick in range(last + 2 * (len(group) - 1)):
            places = [last - tick + 2 * lag for lag in range(len(group))]
            lower = [place for top, place in zip(group, places, strict=True) if top < place <= last]
            pairs.ask([(order[place - 1], order[place]) for place in lower])
            for place in lower:
                if pairs.points(order[place], order[place - 1]) == 1:
                    order[place - 1], order[place] = order[place], order[place - 1]
