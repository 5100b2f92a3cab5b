"""What every compressor is shown beside: no compression, head truncation, random words, and sentences by BM25 or by
dense vectors. All but the first keep to the budget exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...refiners.base import Passage, Piece, Refined, Refiner
from ...refiners.fit import Plan, fit
from ...refiners.hard.truncate import in_order
from ...refiners.relevance import bm25
from ...refiners.tokens import count
from ...refiners.units import words
from ...retrievers.base import Hit, Item, Query, Source

if TYPE_CHECKING:
    from ...refiners.base import Budget
    from ...refiners.fit import Evidence, Part, Words
    from ...retrievers.base import Encoder
    from ..stages import Stages

NO_COMPRESSION = "no_compression"

Score = Callable[[str, Sequence[str]], np.ndarray]
"""`score(query, sentences)`: how much each is wanted, (sentences,)."""


def baselines(seed: int) -> Mapping[str, Callable[[Stages], Refiner]]:
    """How each is built, by name.

    Raises:
        MissingWeights: from building `dense_sentences`, when the profile's encoder is not on this machine.
    """
    return {
        NO_COMPRESSION: lambda stages: Everything(),
        "truncate": lambda stages: stages.refiner("truncate"),
        "random_words": lambda stages: RandomWords(seed),
        "bm25_sentences": lambda stages: BestSentences(bm25),
        "dense_sentences": lambda stages: BestSentences(dense(stages.encoder())),
    }


class Everything(Refiner):
    """No compression: the evidence as it came, whatever the budget."""

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        return _refined(tuple(_passage(hit, [(0, len(hit.item.text))]) for hit in hits), hits, budget)


class RandomWords(Refiner):
    """Words drawn at random, as many as fit, in the order in which they stood."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """The same query and hits draw the same words at every budget."""
        found = [(n, span) for n, hit in enumerate(hits) for span in words(hit.item.text, 0, len(hit.item.text))]
        drawn = random.Random(f"{self._seed} {query.text if query else ''}").sample(found, len(found))

        def passages(n: int) -> tuple[Passage, ...]:
            kept: dict[int, list[tuple[int, int]]] = {}
            for hit, span in sorted(drawn[:n]):
                kept.setdefault(hit, []).append(span)
            return tuple(_passage(hits[hit], spans) for hit, spans in kept.items())

        low, high = 0, len(drawn)
        while low < high:
            middle = (low + high + 1) // 2
            fits = _used(passages(middle), hits, budget) <= budget.tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        return _refined(passages(low), hits, budget)


class BestSentences(Refiner):
    """Whole sentences, best first until the budget is full, put back in the order in which they stood."""

    def __init__(self, score: Score) -> None:
        self._score = score

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """A budget in which no sentence fits gets the beginning of one.

        Raises:
            BadInput: not even a word fits.
        """

        def plan(evidence: Evidence) -> Plan:
            parts = in_order(evidence).parts
            texts = [evidence.text(part) for part in parts]
            scores = self._score(query.text, texts) if query and query.text and texts else np.zeros(len(texts))
            return Plan(tuple(parts[n] for n in np.lexsort((np.arange(len(parts)), -scores))))

        return fit(hits, budget, plan, _whole)


def dense(encoder: Encoder) -> Score:
    """Cosine of each sentence's vector and the query's."""

    def score(query: str, sentences: Sequence[str]) -> np.ndarray:
        [asked] = encoder.encode([Query(query)], "query")
        items = [Item(str(n), text, Source("")) for n, text in enumerate(sentences)]
        cosines: np.ndarray = encoder.encode(items, "document") @ asked
        return cosines

    return score


def _whole(evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, list[Words]]:
    """A tail that cuts nothing."""
    return n, []


def _refined(passages: tuple[Passage, ...], hits: Sequence[Hit], budget: Budget) -> Refined:
    original = sum(count(hit.item.text, budget.tokenizer) for hit in hits)
    return Refined(passages, _used(passages, hits, budget), original)


def _used(passages: Sequence[Passage], hits: Sequence[Hit], budget: Budget) -> int:
    return count(budget.render(passages, len(hits) - len(passages)), budget.tokenizer)


def _passage(hit: Hit, spans: Sequence[tuple[int, int]]) -> Passage:
    return Passage(hit.item, tuple(_pieces(hit.item.text, spans)), hit.score)


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[Piece]:
    pieces: list[Piece] = []
    before = 0
    for start, end in spans:
        if pieces and start > before:
            pieces.append(Piece(" ", None, "joiner"))
        if end > start:
            pieces.append(Piece(text[start:end], (start, end), "kept"))
        before = end
    return pieces
