"""Reverse likelihood: a hits-only use of TIGeR's backward direction. Qu and others 2024, arXiv:2406.05814 (section 3.3)

A hit is as good as the query is likely right after it, less how likely it is after nothing: log P(query | passage or
picture) - log P(query | nothing), summed over the query's tokens. That is the pointwise mutual information of the two,
so that 0 means the same for every query: the hit says nothing about it.

Not `query_likelihood`: nothing is asked for, the query just goes on from the passage as plain text; the prior of the
query is taken away, which moves all scores of a list alike and so gives them a scale, not another order; and the first
stage's order has no say. Not `tiger`: no image tokens, no search, no drawing. Pictures need a model that reads images
and gives log-probabilities; the profile's SmolLM2-135M-Instruct (Apache-2.0) does not, and reads a picture's text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import Unsupported
from ...retrievers.lm import LM, LogProbs, Prompt, require
from ...retrievers.lm_transformers import TransformersLM
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._failing import fitting
from .._pointwise import Read
from ..base import Cost, Limits, Ranking, Reranker
from ._listwise import asked, line, tokens_of

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Item, Query
    from ...retrievers.parts import Parts

PASSAGE_CHARACTERS = 1600
"""A longer passage is cut here."""
PASSAGE_TOKENS = 250
"""For estimates only."""
BORDER = "\n"
"""Between hit and query; alone it is the prompt of the prior."""
AT_ONCE = 8
"""Hits in one call of the model."""
PICTURES = ("image", "page")


class ReverseLikelihood(Reranker):
    """Orders hits by how much more likely each makes the query.

    Scores are nats, above 0 where the hit makes the query likelier than nothing does. A picture goes to the model as an
    image where it reads images, else by its text; without text it then keeps its place.

    Attributes:
        looks: whether the model reads images.

    Raises:
        Unsupported: the model gives no log-probabilities.
    """

    def __init__(self, lm: LM) -> None:
        require(lm, "logprobs")
        self._lm = lm
        self.looks = "images" in lm.can

    @classmethod
    def load(cls, card: Card, parts: Parts) -> ReverseLikelihood:
        """With the profile's language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> ReverseLikelihood:
        return cls(TransformersLM.tiny(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every eighth hit. The prior is one of the calls.

        A passage longer than `PASSAGE_CHARACTERS`, or than the model reads, is read as far as that goes, from its
        beginning; a picture that cannot be read, or is too much for the model, by its text.

        Raises:
            Unsupported: a query without text, or pictures without text alone for a model that reads no images.
        """
        target = asked(query)
        if len(hits) > 1 and not any(self._prompt(hit.item) for hit in hits):
            raise Unsupported(
                f"`{type(self._lm).__name__}` cannot do `images`, and no hit has text.",
                "Use a language model that reads images and gives log-probabilities.",
            )
        prior: list[float] = []

        def read(items: Sequence[Item], share: float) -> list[Read]:
            if not prior:
                prior.append(self._lm.logprobs([[BORDER]], [target])[0].sum)
            prompts = [self._prompt(item, share) for item in items]
            known = [prompt for prompt in prompts if prompt]
            told = iter(self._lm.logprobs(known, [target] * len(known)) if known else ())
            return [_read(prompt, next(told), prior[0]) if prompt else Read(None, 0) for prompt in prompts]

        limits = limits or Limits()
        if limits.calls:
            limits = replace(limits, calls=limits.calls - 1)
        found = _pointwise.rank(hits, limits, lambda items: fitting(items, read), lambda score, say: score, AT_ONCE)
        return replace(found, calls=found.calls + len(prior))

    def estimate(self, n: int) -> Cost:
        """One call and about 250 tokens per hit, and one call for the prior."""
        return Cost(calls=n + 1, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)

    def _prompt(self, item: Item, share: float = 1.0) -> Prompt | None:
        """What the model reads of a hit; None where it can read nothing."""
        if item.media is not None and item.modality in PICTURES and self.looks and share == 1:
            return [item.media, BORDER]
        if item.modality in PICTURES and not item.text.strip():
            return None
        return [line(searchable_text(item), int(PASSAGE_CHARACTERS * share)) + BORDER]


def _read(prompt: Prompt, likely: LogProbs, prior: float) -> Read:
    gain = likely.sum - prior
    return Read(gain if math.isfinite(gain) else math.nan, tokens_of(prompt) + len(likely.tokens))
