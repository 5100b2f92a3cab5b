"""MaxSim. After ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832

Late interaction: every query token looks for its best match among the passage's tokens. It is not ColBERT: the token
vectors are those of all-MiniLM-L6-v2 (Apache-2.0), which was trained for its mean vector and not for this; there is no
projection, no `[MASK]` augmentation and no marker token; matches are squared, so that one strong match counts for more
than two weak ones; query tokens of scripts that the model does not know are looked for literally; a passage in another
language than the query keeps its place; and the first stage's order has a say. Stop words and punctuation stay in:
leaving them out, weighting tokens by rarity or by length, leaving punctuation out of passages, other layers, and the
best sentence alone were measured, and gained nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import Unsupported
from ...retrievers.languages import across
from ...retrievers.scripts import folded, foreign, literal_units
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._pointwise import Read
from ..base import Cost, Limits, Ranking, Reranker

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Item, Query, Side
    from ...retrievers.parts import Parts

POWER = 2
"""Exponent of a match. 1 is ColBERT's; 2 and 3 were equally better on the development sets."""
FADE = 0.4
"""What share of its score a hit loses towards the end of the first stage's list; the first loses nothing."""
FLOOR = 0.1
"""Relevant passages score above it almost always, most texts about other things below it."""
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
        """For each half-open character span of `item_text`: late interaction with the tokens inside it, from 0 to 1.

        A token belongs to every span that it touches; a span without tokens scores 0.
        """
        asked = Asked.read(self._encoder, query_text)
        [text] = self._encoder.token_vectors([item_text], "document")
        matches = asked.matches(text.vectors)
        starts, ends = text.offsets[:, 0], text.offsets[:, 1]
        inside = [(starts < end) & (ends > start) for start, end in spans]
        return [asked.score(matches[:, kept], item_text[a:b]) for kept, (a, b) in zip(inside, spans, strict=True)]


@dataclass(frozen=True)
class Asked:
    """A query as late interaction sees it.

    Attributes:
        vectors: unit-length (tokens, dim) of the tokens without letters of other scripts than Latin.
        units: what is looked for literally (`literal_units`).
    """

    vectors: np.ndarray
    units: tuple[str, ...]

    @classmethod
    def read(cls, encoder: TokenEncoder, text: str) -> Asked:
        [found] = encoder.token_vectors([text], "query")
        known = [not any(map(foreign, text[start:end])) for start, end in found.offsets]
        return cls(found.vectors[np.array(known, bool)], tuple(literal_units(text)))

    def matches(self, vectors: np.ndarray) -> np.ndarray:
        """Cosines (query tokens, text tokens), float32."""
        return self.vectors.astype(np.float32) @ vectors.astype(np.float32).T

    def score(self, matches: np.ndarray, text: str) -> float:
        """Mean over query tokens of the squared best cosine in `matches`, and over units of 1 where `text` has them.

        From 0 to 1; 0 where either side is empty. Without units, with power 1 and a sum, it is eq. 3 of the paper.
        """
        parts = len(matches) + len(self.units)
        if not parts or not text:
            return 0.0
        best = matches.max(axis=1, initial=0.0) if matches.size else np.zeros(0, np.float32)
        plain = folded(text) if self.units else ""
        return (float((best**POWER).sum()) + sum(unit in plain for unit in self.units)) / parts


class MaxSim(Reranker):
    """Orders hits by the late interaction of query and `searchable_text`, faded along the first stage's order.

    Scores lie between 0 and 1 and mean the same in every list. Before fading, the best of 50 passages from another
    field stayed below 0.14 for 95 of 100 questions, and 95 of 100 passages that answer a question were above 0.28.

    Attributes:
        floor: `FLOOR`.

    Args:
        encoder: gives the token vectors; share it with whatever else reads the same passages, for its cache.
        fade: `FADE`; 0 leaves the first stage's order out.
    """

    floor = FLOOR

    def __init__(self, encoder: TokenEncoder, fade: float = FADE) -> None:
        self._encoder = encoder
        self._fade = fade

    @classmethod
    def load(cls, card: Card, parts: Parts) -> MaxSim:
        """With the profile's encoder.

        Raises:
            MissingWeights: its weights are not on this machine.
            Unsupported: it has no token vectors.
        """
        encoder = parts.encoder()
        if not hasattr(encoder, "token_vectors"):
            raise Unsupported(f"`{encoder.space.name}` has no token vectors.", "Choose an encoder that has them.")
        return cls(encoder)

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
        asked: list[Asked] = []

        def read(items: Sequence[Item]) -> list[Read]:
            if not asked:
                asked.append(Asked.read(self._encoder, query.text or ""))
            return [self._read(asked[0], query.text or "", item) for item in items]

        return _pointwise.rank(hits, limits, read, lambda score, say: score * (1 - self._fade * (1 - say)))

    def _read(self, asked: Asked, query: str, item: Item) -> Read:
        if across(query, item.text):
            return Read(None, 0)
        text = searchable_text(item)
        [one] = self._encoder.token_vectors([text], "document")
        return Read(asked.score(asked.matches(one.vectors), text), len(one.vectors))

    def estimate(self, n: int) -> Cost:
        """One call and about 200 tokens per hit."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)
