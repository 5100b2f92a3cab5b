"""Blend. Relevance Score Normalization for Metasearch. After Montague and Aslam 2001, doi:10.1145/502585.502657

Their zero-mean, unit-variance sum, with weights, and over measures of one list instead of several engines. What a hit
is worth by each, as its standard score within the list (mean 0, deviation 1): the first stage's score, the cosine of
mean token vectors, late interaction (`maxsim`), and the passage score of our pruner's network (`triptych_reranker`).
Token vectors of all-MiniLM-L6-v2 (Apache-2.0) are computed once and serve cosine, late interaction and the refiners;
the pruner's network (CC BY-SA 4.0, in the package) reads query and passage together.

A measure that cannot judge a query, or says the same of every hit, weighs nothing: for a query in another script only
late interaction's literal matches and the first stage are left. A passage in another language than the query keeps
its place. The weights are constants; what they were chosen on stands beside them. On four collections that chose
nothing it was no better, beyond chance, than the cosine or late interaction alone, so it is not the default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import Unsupported
from ...retrievers.languages import across
from ...retrievers.parts import Parts
from ...retrievers.scripts import latin_share
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._pointwise import Read, first_stage
from ..base import Cost, Limits, Ranking, Reranker
from . import maxsim
from .maxsim import Asked, TokenEncoder

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Item, Query
    from .triptych_pruner import Pruner

READER = "triptych_reranker"
AT_ONCE = 8
"""Passages between two looks at the clock."""
PASSAGE_TOKENS = 420
"""For estimates only: both networks'."""
CERTAIN = 1e-7
"""Probabilities are this far from 0 and 1 at least before their logit is taken."""


@dataclass(frozen=True)
class Weights:
    """What each measure's standard score weighs; only their proportion counts. A network of weight 0 is not asked."""

    rank: float = 0.0
    score: float = 0.0
    cosine: float = 0.0
    maxsim: float = 0.0
    pruner: float = 0.0


WEIGHTS = Weights(score=0.5, cosine=1.0, maxsim=1.0, pruner=1.0)
"""Chosen by `benchmarks/choose_blend.py` on 130 training claims of SciFact and 100 questions of Natural Questions that
the pruner was not trained on, each behind BM25 and behind the hybrid: round, and within 0.002 of the grid's best."""


@dataclass(frozen=True)
class Told:
    """What the networks say about one passage; None: that one cannot judge it.

    Attributes:
        cosine: of mean token vectors, -1 to 1.
        maxsim: 0 to 1, without the first stage's say.
        pruner: the logit of how likely the passage answers.
        tokens: word pieces that were read for it.
    """

    cosine: float | None
    maxsim: float
    pruner: float | None
    tokens: int


class _Parts(Parts, Protocol):
    """Shares built rerankers, too."""

    def reranker(self, system_id: str | None = None) -> Any:
        """The reranker of that id, built once."""


class Blend(Reranker):
    """Orders hits by the weighted sum of standard scores. Safe from many threads.

    Scores lie between 0 and 1 and compare hits of one list: an average hit has 0.5. A hit that `maxsim` alone would
    put below its floor stands behind the others, one lower: so it is below `floor`.

    Args:
        encoder: gives the token vectors; share it with whatever else reads the same passages, for its cache.
        pruner: the same goes for it; None where it weighs nothing.
    """

    floor = 0.0

    def __init__(self, encoder: TokenEncoder, pruner: Pruner | None, weights: Weights = WEIGHTS) -> None:
        self._encoder = encoder
        self._pruner = pruner if weights.pruner else None
        self._weights = weights

    @classmethod
    def load(cls, card: Card, parts: _Parts) -> Blend:
        """With the profile's encoder, and the weights in the package.

        Raises:
            MissingWeights: the encoder's are not on this machine.
            Unsupported: it has no token vectors.
        """
        encoder = parts.encoder()
        if not hasattr(encoder, "token_vectors"):
            raise Unsupported(f"`{encoder.space.name}` has no token vectors.", "Choose an encoder that has them.")
        return cls(encoder, parts.reranker(READER).pruner)

    @classmethod
    def tiny(cls, seed: int = 0) -> Blend:
        from ...retrievers.text.all_minilm_l6_v2 import AllMiniLM
        from .triptych_pruner import Pruner

        return cls(AllMiniLM.tiny(seed), Pruner.tiny(seed))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every eighth passage.

        Raises:
            Unsupported: a query without text.
        """
        if query.text is None:
            raise Unsupported("The blend reads text, and the query has `None`.", "Ask with text.")
        asked, found = query.text, list[Told | None]()

        def read(items: Sequence[Item]) -> list[Read]:
            told = self.read(asked, items)
            found.extend(told)
            return [Read(None, 0) if one is None else Read(_sum(one), one.tokens) for one in told]

        seen = _pointwise.rank(hits, limits, read, _plain, AT_ONCE)
        if not found:
            return seen
        # Only now is it known what was read, and so what a standard score is.
        scores = [Read(score, 0) for score in blended(found, [hit.score for hit in hits], self._weights)]
        placed = _pointwise.rank(hits, Limits(depth=len(found)), lambda items: scores, _plain, len(found))
        return replace(seen, hits=placed.hits)

    def read(self, query: str, items: Sequence[Item]) -> list[Told | None]:
        """What the networks say about each item; None for one in another language than the query."""
        judged = [not across(query, item.text) for item in items]
        texts = [searchable_text(item) for item, holds in zip(items, judged, strict=True) if holds]
        told = iter(self._told(query, texts))
        return [next(told) if holds else None for holds in judged]

    def _told(self, query: str, texts: Sequence[str]) -> list[Told]:
        is_read = latin_share(query) >= 0.5
        asked = Asked.read(self._encoder, query)
        wanted = mean_vector(self._encoder.token_vectors([query], "query")[0].vectors)
        known = self._encoder.token_vectors(texts, "document")
        readings = self._pruner.read(query, texts) if self._pruner is not None and is_read else [None] * len(texts)
        return [
            Told(
                cosine=float(mean_vector(one.vectors) @ wanted) if is_read else None,
                maxsim=asked.score(asked.matches(one.vectors), text),
                pruner=None if reading is None else logit(reading.score),
                tokens=len(one.vectors) + (reading.tokens if reading is not None else 0),
            )
            for text, one, reading in zip(texts, known, readings, strict=True)
        ]

    def estimate(self, n: int) -> Cost:
        """One call and about 420 tokens per hit; a call is a pass of each network."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)


def blended(told: Sequence[Told | None], scores: Sequence[float], weights: Weights) -> list[float | None]:
    """The final scores of the first hits of a list, None where `told` is.

    Args:
        told: what was read of them.
        scores: the first stage's, of the whole list.
    """
    judged = [(n, one) for n, one in enumerate(told) if one is not None]
    if not judged:
        return [None] * len(told)
    says = np.array(first_stage(scores))[[n for n, _ in judged]]
    total = total_of(
        {
            "rank": says,
            "score": np.array(scores, float)[[n for n, _ in judged]],
            **{name: of(name, [one for _, one in judged]) for name in ("cosine", "maxsim", "pruner")},
        },
        weights,
    )
    faded = of("maxsim", [one for _, one in judged]) * (1 - maxsim.FADE * (1 - says))
    final = 1 / (1 + np.exp(-total)) - (faded < maxsim.FLOOR)
    made: list[float | None] = [None] * len(told)
    for (n, _), score in zip(judged, final, strict=True):
        made[n] = float(score)
    return made


def of(name: str, told: Sequence[Told]) -> np.ndarray:
    """One measure of all hits, float64 (n,); NaN where it cannot judge."""
    return np.array([math.nan if (value := getattr(one, name)) is None else value for one in told], float)


def total_of(measures: dict[str, np.ndarray], weights: Weights) -> np.ndarray:
    """The weighted mean of standard scores, float64 (n,).

    Args:
        measures: each float64 (n,), by the names of `Weights`.
    """
    shares = {name: getattr(weights, name) for name in measures}
    total = np.sum([share * standard(measures[name]) for name, share in shares.items() if share], axis=0)
    made: np.ndarray = total / sum(shares.values())
    return made


def standard(values: np.ndarray) -> np.ndarray:
    """Standard scores (n,) of float64 (n,); zeros where one is no finite number, or all are the same.

    >>> standard(np.array([1.0, 3.0])).round(6).tolist(), standard(np.array([2.0, 2.0])).tolist()
    ([-1.0, 1.0], [0.0, 0.0])
    """
    if not len(values) or not np.isfinite(values).all():
        return np.zeros(len(values))
    largest = np.abs(values).max()
    scaled = values / largest if largest else values  # the squares of large numbers are not finite
    spread = scaled.std()
    made: np.ndarray = (scaled - scaled.mean()) / spread if spread > 1e-9 else np.zeros(len(values))
    return made


def mean_vector(vectors: np.ndarray) -> np.ndarray:
    """The mean of float16 (tokens, dim) at unit length, float32 (dim,); zeros without tokens."""
    total = vectors.astype(np.float32).sum(axis=0)
    made: np.ndarray = total / max(float(np.linalg.norm(total)), np.finfo(np.float32).tiny)
    return made


def logit(probability: float) -> float:
    """The logistic function's inverse, between about -16 and 16."""
    held = min(max(probability, CERTAIN), 1 - CERTAIN)
    return math.log(held / (1 - held))


def _sum(told: Told) -> float:
    """Not a number where one of them is not, which is then refused."""
    return (told.cosine or 0.0) + told.maxsim + (told.pruner or 0.0)


def _plain(score: float, say: float) -> float:
    return score
