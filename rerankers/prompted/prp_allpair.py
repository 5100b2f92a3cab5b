"""PRP-Allpair. Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting, arXiv:2306.17563

Qin, Jagerman, Hui and others 2023: two passages a prompt, which is the more relevant one? Every pair is asked in both
orders, and a passage's score is its wins plus half its ties: N(N - 1) calls, all independent of each
other. Differs from the paper: the answer is one letter instead of "Passage A", since a model's scores are had for one
token. The weights are those of whatever `LM` is given; the paper's models have 3 to 20 billion parameters. The embedded
profile's SmolLM2-135M-Instruct (Apache-2.0) is no such model: it says A whatever stands there, and every pair is a tie.
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


class PRPAllPair(Reranker):
    """Orders hits by the share of comparisons that each wins, a tie being half a win; 0 to 1.

    A model that contradicts itself on every pair leaves the first stage's order and scores, and the ranking says so.

    Args:
        lm: any language model that gives scores of next tokens, or that writes answers.
        mode: `"score"` reads the scores of A and B, `"generate"` parses what is written; by default the first that
            `lm` can do.

    Raises:
        Unsupported: it can do neither, or not the one that is asked for.
    """

    def __init__(self, lm: LM, mode: Mode | None = None) -> None:
        self._lm = lm
        self._mode = _pairwise.mode_of(lm, mode)

    @classmethod
    def load(cls, card: Card, parts: Parts) -> PRPAllPair:
        """With the profile's small language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> PRPAllPair:
        return cls(_pairwise.scripted(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`. What a limit leaves unasked counts as a tie.

        Raises:
            BadInput: a score that came in is not a number, or a limit is negative.
            Unsupported: a query without text.
        """
        return _pairwise.rank(self._lm, self._mode, query, hits, limits, self.estimate, self._order)

    def estimate(self, n: int) -> Cost:
        """N(N - 1) calls of about 400 tokens."""
        calls = n * (n - 1) if n > 1 else 0
        return Cost(calls, calls * _pairwise.PROMPT_TOKENS)

    def _order(self, pairs: Pairs) -> Placed:
        with suppress(Spent):
            pairs.ask(near_first(pairs.n))
        points = [sum(pairs.points(i, j) for j in range(pairs.n) if j != i) for i in range(pairs.n)]
        return _pairwise.by_score([one / (pairs.n - 1) for one in points])


def near_first(n: int) -> list[tuple[int, int]]:
    """All pairs of `range(n)`, neighbours first: wherever a limit cuts, every passage has had about as many.

    >>> near_first(3)
    [(0, 1), (1, 2), (0, 2)]
    """
    return [(i, i + apart) for apart in range(1, n) for i in range(n - apart)]
