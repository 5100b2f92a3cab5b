"""Query likelihood. After UPR, Improving Passage Retrieval with Zero-Shot Question Generation, arXiv:2204.07496

Sachan, Lewis, Joshi and others 2022: a passage is as good as the question is likely once the model has read it,
score = mean log P(question token | prompt with passage). No instruction has to be obeyed, which is why a model of
135 M parameters can do it. Ours: any causal model of `LM`, by default SmolLM2-135M-Instruct (Apache-2.0); and the
first stage's order has a say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import Unsupported
from ...retrievers.lm import LM, require
from ...retrievers.lm_transformers import TransformersLM
from ...retrievers.readers.base import clean
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._failing import fitting
from .._pointwise import Read
from ..base import Cost, Limits, Ranking, Reranker
from ._listwise import tokens_of

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Item, Query
    from ...retrievers.parts import Parts

PROMPT = "Passage: {passage}\nPlease write a question based on this passage.\nQuestion:"
"""Section 2.2 of the paper, with the answer announced so that a small model does not have to find its place."""
PASSAGE_CHARACTERS = 1600
"""A longer passage is cut here: about 400 tokens, beyond which the question says little about the end."""
QUERY_CHARACTERS = 1000
"""So is a longer query; both together stay within 8,192 tokens in every script."""
PASSAGE_TOKENS = 250
"""For estimates only."""
PRIOR = 1.0
"""Weight of the first stage's say; 0.5 to 2 did equally on 31 questions, better than 0, and no more was tuned."""
AT_ONCE = 8
"""Passages that are read between two looks at a time limit."""
UNHURRIED = 64
"""Passages that are read together without one: the more there are, the more of like length the model finds."""


class QueryLikelihood(Reranker):
    """Orders hits by how likely the query is after each passage.

    Scores are mean natural log-probabilities per query token (below 0) plus `prior` times the first stage's say.

    Raises:
        Unsupported: the model gives no log-probabilities.
    """

    def __init__(self, lm: LM, prior: float = PRIOR) -> None:
        require(lm, "logprobs")
        self._lm = lm
        self._prior = prior

    @classmethod
    def load(cls, card: Card, parts: Parts) -> QueryLikelihood:
        """With the profile's small language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> QueryLikelihood:
        return cls(TransformersLM.tiny(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every eighth passage.

        A passage longer than `PASSAGE_CHARACTERS`, or than the model reads, is read as far as that goes, from its
        beginning.

        Raises:
            Unsupported: a query without text.
        """
        if query.text is None:
            raise Unsupported("Query likelihood needs text, and the query has `None`.", "Ask with text.")
        target = f" {query.text[:QUERY_CHARACTERS]}"

        def read(items: Sequence[Item], share: float) -> list[Read]:
            texts = [clean(searchable_text(item)[:PASSAGE_CHARACTERS])[0] for item in items]
            prompts = [[PROMPT.format(passage=text[: int(PASSAGE_CHARACTERS * share)])] for text in texts]
            found = self._lm.logprobs(prompts, [target] * len(prompts))
            return [
                Read(one.mean, tokens_of(asked) + len(one.tokens)) for one, asked in zip(found, prompts, strict=True)
            ]

        at_once = UNHURRIED if limits is None or limits.seconds is None else AT_ONCE

        def blend(score: float, say: float) -> float:
            return score + self._prior * say

        return _pointwise.rank(hits, limits, lambda items: fitting(items, read), blend, at_once)

    def estimate(self, n: int) -> Cost:
        """One call and about 250 tokens per hit."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)
