"""PRP-Graph. PRP with Graph Aggregation for Effective Text Re-ranking, doi:10.18653/v1/2024.acl-long.313

Luo, Chen, He and Sun, ACL 2024, pages 5766-5776. A pair's two answers are kept as what they are, probabilities: a_ij
is how likely the model names passage i when it is shown before j. Rounds of a Swiss tournament choose which pairs are
worth asking; the comparisons are edges of a graph from each passage to the one it met, and PageRank on it the order.
N R / 2 pairs, two calls each, R = 10. The weights are those of whatever `LM` is given (the paper: Flan-T5, 0.8 to 11
billion parameters). Differs from the paper: with an odd number the lowest of those who have played most sits out (there
the first stage's last passage does in every round, and is never judged); PageRank's personalisation is 10 / (10 + rank)
in place of BM25's scores, which other first stages do not have; answers that prefer nobody leave the order as it was;
PageRank is solved, not iterated; passages of up to 700 characters, not 128 tokens. The share of the first stage in the
interpolation is not learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput
from ...retrievers.lm import LM, require
from ...retrievers.lm_transformers import TransformersLM
from .._pointwise import first_stage
from ..base import Cost, Limits, Ranking, Reranker
from . import _pairwise
from ._pairwise import Pairs, Placed, Spent

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts

ROUNDS = 10
"""The paper also has 20 and 40."""
STEP = 0.01
"""How much less than the passage above it each one starts with."""
DAMPING = 0.85
"""The share of a passage's rank that comes over edges."""
DIGITS = 4
"""Probabilities are rounded: two prompts with the same text may differ beyond by their place in a batch."""


class PRPGraph(Reranker):
    """Orders hits by PageRank over comparisons; scores are between 0 and 1 and, without `alpha`, add up to 1.

    Args:
        lm: any language model that gives scores of next tokens.
        rounds: `ROUNDS`.
        alpha: the graph's share in the final score, both it and the first stage's scores stretched to 0..1; 1 leaves
            the first stage out.
        loops: each passage also has an edge to itself, as heavy as all that lead to it, so that it keeps what it wins
            and how often it loses matters too. Not in the paper; after rank centrality, arXiv:1209.1688.

    Raises:
        BadInput: `alpha` is not between 0 and 1, or there is not one round.
        Unsupported: the model gives no scores of next tokens.
    """

    def __init__(self, lm: LM, rounds: int = ROUNDS, alpha: float = 1.0, loops: bool = False) -> None:
        require(lm, "logits")
        if not 0 <= alpha <= 1:
            raise BadInput(f"The graph's share `alpha` is `{alpha}`.", "Give a number from 0 to 1.")
        if rounds < 1:
            raise BadInput(f"The tournament has `{rounds}` rounds.", "Give at least one.")
        self._lm = lm
        self._rounds = rounds
        self._alpha = alpha
        self._loops = loops

    @classmethod
    def load(cls, card: Card, parts: Parts) -> PRPGraph:
        """With the profile's small language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> PRPGraph:
        return cls(TransformersLM.tiny(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; where a limit ends the tournament, the graph of what was asked decides.

        Raises:
            BadInput: a score that came in is not a number, or a limit is negative.
            Unsupported: a query without text.
        """

        def order(pairs: Pairs) -> Placed:
            with suppress(Spent):
                tournament(pairs, self._rounds)
            return _pairwise.by_score(self._scores(edges(pairs), [hit.score for hit in hits[: pairs.n]]))

        return _pairwise.rank(self._lm, "score", query, hits, limits, self.estimate, order, decided)

    def estimate(self, n: int) -> Cost:
        """At most N R / 2 pairs, two calls each; a passage that has met all who are still free waits for a round."""
        calls = 2 * min(self._rounds * (n // 2), n * (n - 1) // 2)
        return Cost(calls, calls * _pairwise.PROMPT_TOKENS)

    def _scores(self, weights: np.ndarray, before: Sequence[float]) -> list[float]:
        # Without loops each of two passages hands all it has to the other, whoever won.
        looped = weights + np.diag(weights.sum(axis=0)) if self._loops or len(before) == 2 else weights
        graph = pagerank(looped, np.array(first_stage(before)))
        if self._alpha < 1:
            graph = self._alpha * stretched(graph) + (1 - self._alpha) * stretched(np.array(before))
        return [float(score) for score in np.round(graph, 9)]


def tournament(pairs: Pairs, rounds: int) -> np.ndarray:
    """Asks the pairs of `rounds` rounds, neighbours in the standing that have not met yet; answers the standing (n,).

    After a game i's score grows by a_ij S_j / r_j, S_j before the game and r_j the rounds that j has played.

    Raises:
        Spent: a limit is reached.
    """
    n = pairs.n
    standing = 1 - np.arange(n) * min(STEP, 1 / n)
    met, played = np.eye(n, dtype=bool), np.zeros(n, int)
    for _ in range(rounds):
        games = partners(standing, met, played)
        pairs.ask(games)
        for i, j in games:
            met[i, j] = met[j, i] = True
            played[[i, j]] += 1
            won = pairs.preference(i, j) * standing[j] / played[j]
            lost = pairs.preference(j, i) * standing[i] / played[i]
            standing[i] += won
            standing[j] += lost
    return standing


def partners(standing: np.ndarray, met: np.ndarray, played: np.ndarray) -> list[tuple[int, int]]:
    """The games of a round: from the top, each with the nearest below that is free and that it has not met.

    Args:
        standing: scores (n,); of equal ones the first stage's order decides.
        met: who has met whom (n, n).
        played: rounds played (n,); where n is odd, the lowest of those who have played most sits out.
    """
    free = [int(i) for i in np.argsort(-standing, kind="stable")]
    if len(free) % 2:
        free.remove(max(reversed(free), key=lambda i: played[i]))
    games = []
    while free:
        one = free.pop(0)
        other = next((i for i in free if not met[one, i]), None)
        if other is not None:
            free.remove(other)
            games.append((one, other))
    return games


def edges(pairs: Pairs) -> np.ndarray:
    """Weights (n, n): row j, column i holds a_ij, the edge from j to i; 0 where they have not met."""
    weights = np.zeros((pairs.n, pairs.n))
    for i in range(pairs.n):
        for j in range(i):
            if pairs.known(i, j):
                weights[j, i] = round(pairs.preference(i, j), DIGITS)
                weights[i, j] = round(pairs.preference(j, i), DIGITS)
    return weights


def decided(pairs: Pairs) -> bool:
    """Whether the two answers about any pair differ in how much they prefer the one shown first: PageRank sees that."""
    weights = edges(pairs)
    return not np.array_equal(weights, weights.T)


def pagerank(weights: np.ndarray, personal: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Weighted, personalised PageRank (n,), adding up to 1: x = d (S + dangling personal)^T x + (1 - d) personal.

    Args:
        weights: of the edges from row to column (n, n), not negative.
        personal: where a walk begins anew (n,), positive; it need not add up to 1. Rows without edges lead there.
    """
    personal = personal / personal.sum()
    out = weights.sum(axis=1, keepdims=True)
    steps = np.where(out > 0, weights / np.where(out > 0, out, 1), personal)
    found: np.ndarray = np.linalg.solve(np.eye(len(personal)) - damping * steps.T, (1 - damping) * personal)
    return found


def stretched(values: np.ndarray) -> np.ndarray:
    """Values (n,) from 0 to 1; all 0 where they are equal."""
    width = np.ptp(values)
    return (values - values.min()) / width if width else np.zeros(len(values))
