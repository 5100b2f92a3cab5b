"""Triptych pruner. After Provence, Chirkova et al. 2025, arXiv:2501.16214

Sentences, and at the edge of the budget words, by a network that reads query and passage together
(`rerankers/finetuned/triptych_pruner.py`; its weights ship with the package). It says of every word how likely it
belongs to the answer; a sentence is worth the mean over its words. What differs from the paper: no threshold decides,
the budget does, exactly; it is filled by sentences, and words are pruned only where a sentence does not fit, never
numbers with their units, negations, names and identifiers. Sentences that the network gives up, nearly all of a long
text, stand in the order of their similarity to the query: that counts a little everywhere, and comes from token vectors
that a reranker has mostly computed already.

The network reads English. For a query in another language, sentences are chosen as `extractive` chooses them, and the
result's note says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import MissingWeights
from ...retrievers.parts import Parts
from ...retrievers.scripts import english
from ...retrievers.searchable import searchable_text
from ..base import Refiner
from ..fit import Evidence, Part, Plan, Planner, Tail, Words, fit, head
from ..relevance import COARSE, COARSE_LEAST, FLOOR, by_relevance, relevance_of
from ._pruning import divided
from .llmlingua import edge

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ..base import Budget, Refined
    from ..relevance import Relevance

RERANKER = "triptych_reranker"
SIMILAR = 0.25
"""Weight of the similarity (a cosine) next to the mean probability; 0.1 to 0.5 did alike on held-out questions."""
NOTE = "The query is not in English, which the pruner reads: sentences were chosen by the words they share with it."


class _Parts(Parts, Protocol):
    """Shares built rerankers, too."""

    def reranker(self, system_id: str | None = None) -> Any:
        """The reranker of that id, built once."""


class KeepRelevance:
    """Relevance of parts of a text: the mean probability that their word pieces stay, and a little similarity.

    Args:
        pruner: `read(query, texts)`, as in `rerankers/finetuned/triptych_pruner.py`.
        similar: weighs `SIMILAR`; None for the probability alone.
    """

    def __init__(self, pruner: Any, similar: Relevance | None = None) -> None:
        self._pruner = pruner
        self._similar = similar

    def sentence_scores(self, query_text: str, item_text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
        """From 0 (with `similar`: -0.25) to 1.25; the whole text's is its score as a passage, not a mean."""
        [reading] = self._pruner.read(query_text, [item_text])
        means = [
            reading.score if span == (0, len(item_text)) else mean
            for span, mean in zip(spans, keep_means(reading, spans), strict=True)
        ]
        if self._similar is None:
            return means
        similar = self._similar.sentence_scores(query_text, item_text, spans)
        return [mean + SIMILAR * one for mean, one in zip(means, similar, strict=True)]


def keep_means(reading: Any, spans: Sequence[tuple[int, int]]) -> list[float]:
    """Mean probability of the tokens that each span touches, 0 for a span without any."""
    sums = np.concatenate([[0.0], np.cumsum(reading.keep, dtype=np.float64)])
    ends = np.maximum.accumulate(reading.offsets[:, 1])
    first = np.searchsorted(ends, [start for start, _ in spans], "right")
    last = np.searchsorted(reading.offsets[:, 0], [end for _, end in spans], "left")
    return [float((sums[b] - sums[a]) / (b - a)) if b > a else 0.0 for a, b in zip(first, last, strict=True)]


class TriptychPruner(Refiner):
    """Keeps what answers the query. Safe from many threads.

    Args:
        pruner: reads query and passage; share it with the reranker, for what it remembers.
        similar: scores sentences by a cosine; alone for queries that the network does not read, where None means
            lexical overlap.
        floor: on the scale of `similar`; passages below it that the network gives up are never used to fill.
    """

    def __init__(self, pruner: Any, similar: Relevance | None = None, floor: float = FLOOR) -> None:
        self.similar = similar
        self.floor = floor
        self._pruner = pruner
        self._relevance = KeepRelevance(pruner, similar)

    @classmethod
    def load(cls, card: Card, parts: _Parts) -> TriptychPruner:
        """With the network that the session's reranker shares and, where its weights are there, the encoder."""
        try:
            similar = relevance_of(parts.encoder())
        except MissingWeights:
            similar = None
        return cls(parts.reranker(RERANKER).pruner, similar)

    @classmethod
    def tiny(cls, seed: int = 0) -> TriptychPruner:
        """One random layer over single characters."""
        from ...manifests.registry import card

        return cls(card(RERANKER).resolve().tiny(seed).pruner)

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; the network is not asked when the evidence fits."""
        asked = (query.text or "") if query is not None else ""
        if not asked.strip():
            return fit(hits, budget, by_relevance(query, self.similar, self.floor), head)
        if not english(asked):
            return replace(fit(hits, budget, by_relevance(query, self.similar, self.floor), head), note=NOTE)
        floor = SIMILAR * self.floor if self.similar is not None else 0.0
        return fit(hits, budget, self._plan(asked, by_relevance(query, self._relevance, floor)), self._tail(asked))

    def _plan(self, query: str, by_pruner: Planner) -> Planner:
        """`by_pruner`, for which passages are read beforehand, several at the same time, where all will be."""

        def plan(evidence: Evidence) -> Plan:
            if sum(evidence.tokens) <= max(COARSE * evidence.budget.tokens, COARSE_LEAST):
                self._pruner.read(query, [searchable_text(hit.item) for hit in evidence.hits])
            return by_pruner(evidence)

        return plan

    def _tail(self, query: str) -> Tail:
        """The words of the sentences at the edge of the budget, the likeliest to stay first."""

        def tail(evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, list[Words]]:
            start, _ = edge(evidence, parts, sizes, n)
            if evidence.unit(parts[n]).whole or not english(evidence.text(parts[n])):
                return head(evidence, parts, sizes, n)
            rows = [evidence.closed(part) for part in parts[start:n] if evidence.unit(part).whole]
            first: list[Words] = []
            rest: list[tuple[float, Words]] = []
            for part in parts[start : n + 1]:
                if not evidence.unit(part).whole:
                    needed, others = divided(evidence, part)
                    core = tuple(span for words in needed for span in words.spans)
                    first += [Words(part.hit, core)] if core else []
                    wanted = self._wanted(query, evidence, others)
                    rest += [(w, Words(part.hit, (*core, *o.spans))) for w, o in zip(wanted, others, strict=True)]
            if sizes[start] + sum(_tokens(evidence, core) for core in first) > evidence.budget.tokens:
                return head(evidence, parts, sizes, n)
            rest.sort(key=lambda scored: -scored[0])
            return start, [*rows, *first, *(words for _, words in rest)]

        return tail

    def _wanted(self, query: str, evidence: Evidence, words: Sequence[Words]) -> list[float]:
        """How likely each of the words of one hit is to stay."""
        if not words:
            return []
        item = evidence.hits[words[0].hit].item
        text = searchable_text(item)
        shift = len(text) - len(item.text)
        spans = [(start + shift, end + shift) for one in words for start, end in one.spans]
        [reading] = self._pruner.read(query, [text])
        return keep_means(reading, spans)


def _tokens(evidence: Evidence, words: Words) -> int:
    text = evidence.hits[words.hit].item.text
    return evidence.count(" ".join(text[start:end] for start, end in words.spans))
