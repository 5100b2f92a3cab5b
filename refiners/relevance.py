"""How much each unit of the evidence is wanted: the order in which a budget is filled.

Coarse to fine. A unit's priority is the sum of three standard scores (mean 0, deviation 1 over all units at hand): its
own relevance to the query, that of its whole passage by the same measure, and the hit's score. A passage pays for its
frame (title, place, citation): its best unit stands one deviation lower and opens the passage, no other unit of it
comes before. With no query, units are wanted in reading order, the first of every passage before the second of any.

Chosen on multi-document questions, meeting transcripts and claims (`benchmarks/results/compress_choices.json`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import regex

if TYPE_CHECKING:
    from ..retrievers.base import Hit, Query
    from .units import Unit

FLOOR = 0.1
"""Cosine of MiniLM token vectors below which a passage's best unit is junk: it loses under 1 % of answer sentences,
and over a third of the passages that BM25 alone found near a question."""
OPENING = 1.0
"""What a passage's best unit loses for the frame that it opens, in deviations."""
COARSE = 16
"""Passages are scored by unit until they hold this many times the budget; the others are left out whole."""
STEM = 5
"""Letters of a word that count for its lexical identity."""
K1, B = 1.2, 0.75
"""Saturation and length normalisation of BM25."""

_TERM = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]+|[\p{L}\p{M}\p{N}]+")
_CJK = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_STOP = frozenset(
    "a about all also an and any are as at be been but by can could did do does for from had has have he her his how i "
    "if in into is it its many may more most much must no not of on one or other our over shall she should so some "
    "such than that the their them then there these they this those to under was we were what when where which while "
    "who whom whose why will with would you your".split()
)


class Relevance(Protocol):
    """Scores parts of a text against a query; an encoder's token vectors make it almost free after reranking."""

    def sentence_scores(self, query: str, text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
        """One score per span of `text`, higher is better, comparable across texts."""


def priorities(
    query: Query | None,
    hits: Sequence[Hit],
    units: Sequence[Sequence[Unit]],
    relevance: Relevance | None = None,
    floor: float = FLOOR,
) -> tuple[list[np.ndarray], list[int]]:
    """Priorities of every hit's units, and the indexes of hits whose evidence is below the floor.

    Args:
        units: of each hit; a hit may have none.
        relevance: None for lexical overlap (BM25 over the units), which has no floor.
        floor: on the scale of `relevance`: a passage none of whose units reaches it is junk.
    """
    text = query.text if query is not None else None
    sizes = [len(each) for each in units]
    of = np.repeat(np.arange(len(hits)), sizes)
    scores = _standard(np.array([hit.score for hit in hits], float)[of])
    if not text:
        order = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.empty(0)
        return _split(_standard(-order.astype(float)) + scores, sizes), []
    own, passage = _lexical(text, hits, units) if relevance is None else _scored(text, hits, units, relevance)
    total = _opened(_standard(own) + _standard(passage[of]) + scores, of, len(hits))
    best = np.full(len(hits), np.inf)
    best[np.unique(of)] = -np.inf
    np.maximum.at(best, of, own)
    below = [] if relevance is None else [n for n in range(len(hits)) if best[n] < floor]
    return _split(total, sizes), below


def lexical_passages(query: str, texts: Sequence[str]) -> np.ndarray:
    """BM25 of each text among `texts`, float64 (len(texts),)."""
    return _bm25(set(_terms(query)), [_terms(text) for text in texts])


def _lexical(query: str, hits: Sequence[Hit], units: Sequence[Sequence[Unit]]) -> tuple[np.ndarray, np.ndarray]:
    parts = [_terms(hit.item.text[u.start : u.end]) for hit, each in zip(hits, units, strict=True) for u in each]
    return _bm25(set(_terms(query)), parts), lexical_passages(query, [hit.item.text for hit in hits])


def _scored(
    query: str, hits: Sequence[Hit], units: Sequence[Sequence[Unit]], relevance: Relevance
) -> tuple[np.ndarray, np.ndarray]:
    own: list[float] = []
    passage: list[float] = []
    for hit, each in zip(hits, units, strict=True):
        text = hit.item.text
        spans = [(u.start, u.end) for u in each]
        *parts, all_of_it = relevance.sentence_scores(query, text, [*spans, (0, len(text))]) if spans else [0.0]
        own += parts
        passage.append(all_of_it)
    return np.array(own, float), np.array(passage, float)


def _opened(priority: np.ndarray, of: np.ndarray, hits: int) -> np.ndarray:
    """Each priority, at most what is left of its passage's best one after paying for the frame."""
    best = np.full(hits, -np.inf)
    np.maximum.at(best, of, priority)
    return np.minimum(priority, best[of] - OPENING)


def _standard(values: np.ndarray) -> np.ndarray:
    """Standard scores; zeros where all values are equal."""
    spread = values.std() if len(values) else 0.0
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros(len(values))


def _split(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(values, np.cumsum(sizes)[:-1]) if sizes else []


def _terms(text: str) -> list[str]:
    """Content words cut to their first letters; neighbouring pairs of Chinese and Japanese characters."""
    found: list[str] = []
    for match in _TERM.finditer(text.lower()):
        term = match.group()
        if _CJK.match(term):
            found += [term[n : n + 2] for n in range(max(1, len(term) - 1))]
        elif term not in _STOP:
            found.append(term[:STEM])
    return found


def _bm25(query: set[str], documents: Sequence[Sequence[str]]) -> np.ndarray:
    counts = [Counter(document) for document in documents]
    frequency = Counter(term for count in counts for term in count if term in query)
    mean = sum(map(len, documents)) / max(len(documents), 1) or 1.0
    weight = {term: math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for term, n in frequency.items()}
    scores = [
        sum(
            weight[term] * count[term] * (K1 + 1) / (count[term] + K1 * (1 - B + B * len(document) / mean))
            for term in sorted(weight)
            if term in count
        )
        for count, document in zip(counts, documents, strict=True)
    ]
    return np.array(scores, float)
