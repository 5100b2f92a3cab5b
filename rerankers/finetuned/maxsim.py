"""MaxSim. After ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832

Late interaction: every query token looks for its best match among the passage's tokens. It is not ColBERT: the token
vectors are those of all-MiniLM-L6-v2 (Apache-2.0), which was trained for its mean vector and not for this; there is no
projection, no `[MASK]` augmentation and no marker token; matches are squared, so that one strong match counts for more
than two weak ones; and the first stage's order has a say. Stop words and punctuation stay in: leaving them out,
weighting tokens by rarity or by length, and leaving punctuation out of passages were measured, and gained nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import Unsupported
from ...retrievers.base import Side
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._pointwise import Read
from ..base import Cost, Limits, Ranking, Reranker

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Item, Query
    from ...settings import Settings

POWER = 2
"""Exponent of a match. 1 is ColBERT's; 2 and 3 were equally better on the development sets."""
PRIOR = 0.2
"""Weight of the first stage's say, next to a score between 0 and 1."""
PASSAGE_TOKENS = 200
"""For estimates only."""


class TokenEncoder(Protocol):
    """What gives unit-length contextual vectors of a text's tokens with their character spans."""

    def token_vectors(self, texts: Sequence[str], side: Side = "document") -> Sequence[Any]: ...


class SentenceScorer:
    """Relevance of parts of a text to a query, from token vectors that have seen the whole text."""

    def __init__(self, encoder: TokenEncoder) -> None:
        self._encoder = encoder

    def sentence_scores(self, query_text: str, item_text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
        """For each half-open character span of `item_text`: MaxSim of the tokens inside it, from 0 to 1.

        A token belongs to every span that it touches; a span without tokens scores 0.
        """
        [query] = self._encoder.token_vectors([query_text], "query")
        [text] = self._encoder.token_vectors([item_text], "document")
        matches = similarities(query.vectors, text.vectors)
        starts, ends = text.offsets[:, 0], text.offsets[:, 1]
        return [maxsim(matches[:, (starts < end) & (ends > start)]) for start, end in spans]


class MaxSim(Reranker):
    """Orders hits by `maxsim` of query and `searchable_text`, plus the first stage's say.

    Scores lie between 0 and 1.2 and mean the same for every list: texts about other things stay near 0.1 to 0.2.

    Args:
        encoder: gives the token vectors; share it with whatever else reads the same passages, for its cache.
        prior: weight of the first stage's order; 0 leaves it out.
    """

    def __init__(self, encoder: TokenEncoder, prior: float = PRIOR) -> None:
        self._encoder = encoder
        self._prior = prior

    @classmethod
    def load(cls, card: Card, settings: Settings, device: str = "cpu", encoder: TokenEncoder | None = None) -> MaxSim:
        """With `encoder`, or an all-MiniLM-L6-v2 of its own from the pulled weights."""
        from ...retrievers.text.all_minilm_l6_v2 import AllMiniLM

        return cls(encoder or AllMiniLM.load(card, settings, device))

    @classmethod
    def tiny(cls, seed: int = 0) -> MaxSim:
        from ...retrievers.text.all_minilm_l6_v2 import AllMiniLM

        return cls(AllMiniLM.tiny(seed))

    @property
    def sentences(self) -> SentenceScorer:
        """A scorer of sentences over the same encoder and cache."""
        return SentenceScorer(self._encoder)

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before each passage.

        Raises:
            Unsupported: a query without text.
        """
        if query.text is None:
            raise Unsupported("MaxSim reads text, and the query has `None`.", "Ask with text.")
        asked: list[Any] = []

        def read(items: Sequence[Item]) -> list[Read]:
            if not asked:
                asked.extend(self._encoder.token_vectors([query.text or ""], "query"))
            texts = self._encoder.token_vectors([searchable_text(item) for item in items], "document")
            return [Read(maxsim(similarities(asked[0].vectors, text.vectors)), len(text.vectors)) for text in texts]

        return _pointwise.rank(hits, limits, read, prior=self._prior)

    def estimate(self, n: int) -> Cost:
        """One call and about 200 tokens per hit."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)


def similarities(query: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Cosines (query tokens, text tokens), float32, of unit-length token vectors."""
    return query.astype(np.float32) @ text.astype(np.float32).T


def maxsim(matches: np.ndarray) -> float:
    """Mean over query tokens of the squared best cosine (negative ones as 0) in `matches` (query tokens, text tokens).

    From 0 to 1; 0 where either side has no tokens. With power 1 and a sum it is eq. 3 of the paper.
    """
    if matches.size == 0:
        return 0.0
    best = matches.max(axis=1)
    return float((np.maximum(best, 0.0) ** POWER).mean()) if not np.isnan(best).any() else float("nan")
