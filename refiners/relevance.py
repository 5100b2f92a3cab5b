"""How much each unit of the evidence is wanted: the order in which a budget is filled.

Coarse to fine. A unit's priority is a sum of standard scores (mean 0, deviation 1 over all units at hand): its own
relevance, that of its whole passage by the same measures, and the hit's score. The measures are the cosine of token
vectors and, a quarter as much, lexical overlap; for a query that the encoder does not read, lexical overlap alone. A
passage pays for its frame (title, place, citation): its best unit stands one deviation lower and opens the passage; no
other unit of it comes before. A passage in another language than the query is not judged by either: it has no floor,
and its hit's score decides. Without a query, units are wanted in reading order, the first of every passage before the
second of any.

Chosen on questions over many documents, meeting transcripts and scientific claims, the three kinds of question files
that `benchmarks/prepare.py` makes: figures on those are figures on what was tuned on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import regex

from ..progress import step
from ..retrievers.languages import across
from ..retrievers.scripts import english
from ..retrievers.searchable import searchable_text
from .fit import Evidence, Part, Plan, Planner

if TYPE_CHECKING:
    from ..retrievers.base import Query
    from .base import Refined

UNREAD = "The query is not in English, which the encoder reads: sentences were chosen by the words they share with it."
"""`Refined.note` of who would have asked an encoder."""
FLOOR = 0.1
"""Cosine of MiniLM vectors that the best unit of a passage must reach: under 1 % of answer sentences lie below, and
more than a third of the passages that BM25 alone had found."""
LEXICAL = 0.25
"""Weight of lexical overlap next to token vectors."""
OPENING = 1.0
"""What a passage's best unit loses for the frame that it opens, in deviations."""
COARSE = 16
"""Passages are read by unit until they hold this many times the budget (or `COARSE_LEAST` tokens), no further."""
COARSE_LEAST = 4096
STEM = 5
"""Letters of a word that count for its lexical identity."""
K1, B = 1.2, 0.75
"""Saturation and length normalisation of BM25."""
REPEATED = 5
"""Words that make a repeated unit a duplicate rather than a short line that occurs often."""

_TERM = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]+|[\p{L}\p{M}\p{N}]+")
_CJK = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_STOP = frozenset(
    "a about all also an and any are as at be been but by can could did do does for from had has have he her his how i "
    "if in into is it its many may more most much must no not of on one or other our over shall she should so some "
    "such than that the their them then there these they this those to under was we were what when where which while "
    "who whom whose why will with would you your".split()
)


class Relevance(Protocol):
    """Scores parts of a text against a query."""

    def sentence_scores(self, query_text: str, item_text: str, spans: Sequence[tuple[int, int]]) -> Sequence[float]:
        """One score per span of `item_text`, higher is better, comparable across texts."""


class TokenRelevance:
    """Cosine of a span's mean token vector and the query's; almost free after a reranker has read the same texts.

    Args:
        encoder: has `token_vectors(texts, side)`, each with unit `vectors` (tokens, dim) and `offsets` (tokens, 2).
    """

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def sentence_scores(self, query_text: str, item_text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
        """From -1 to 1; a token belongs to every span that it touches, and a span without tokens scores 0."""
        [query] = self._encoder.token_vectors([query_text], "query")
        [text] = self._encoder.token_vectors([item_text], "document")
        wanted = _unit(query.vectors.astype(np.float32).sum(0))
        sums = np.concatenate([np.zeros((1, len(wanted)), np.float32), np.cumsum(text.vectors, 0, np.float32)])
        ends = np.maximum.accumulate(text.offsets[:, 1]) if len(text.offsets) else text.offsets[:, 1]
        first = np.searchsorted(ends, [start for start, _ in spans], "right")
        last = np.searchsorted(text.offsets[:, 0], [end for _, end in spans], "left")
        return [float(_unit(sums[max(a, b)] - sums[a]) @ wanted) for a, b in zip(first, last, strict=True)]


def relevance_of(encoder: Any) -> Relevance | None:
    """What an encoder knows about sentences: None where it has no token vectors."""
    return TokenRelevance(encoder) if hasattr(encoder, "token_vectors") else None


def told(refined: Refined, query: Query | None, relevance: Relevance | None) -> Refined:
    """`refined`, with the note that it was not chosen by `relevance` where that was left out and something was cut."""
    asked = query.text if query is not None else None
    was_cut = bool(refined.dropped) or any(passage.cut for passage in refined.passages)
    return replace(refined, note=UNREAD) if was_cut and relevance is not None and not is_read(asked) else refined


def is_read(text: str | None) -> bool:
    """Whether vectors of an English model judge a query; those of others would only disturb lexical overlap."""
    return text is None or english(text)


def by_relevance(query: Query | None, relevance: Relevance | None = None, floor: float = FLOOR) -> Planner:
    """A plan of units by priority, without duplicates and without passages below the floor.

    Args:
        relevance: None for lexical overlap alone, which has no floor. It is not asked about a query in another language
            than English.
        floor: on the scale of `relevance`.
    """
    text = query.text if query is not None else None
    relevance = relevance if is_read(text) else None

    def plan(evidence: Evidence) -> Plan:
        chosen = _coarse(text, evidence)
        of = np.repeat(chosen, [len(evidence.units(n)) for n in chosen]).astype(int)
        parts = [Part(n, unit) for n in chosen for unit in range(len(evidence.units(n)))]
        priority, below = _priorities(text, evidence, parts, of, relevance, floor)
        reasons = blank(evidence) | dict.fromkeys(below, "below floor")
        ordered = [parts[n] for n in np.lexsort((np.arange(len(parts)), -priority)) if parts[n].hit not in below]
        kept = _distinct(evidence, ordered)
        repeated = {part.hit for part in ordered} - {part.hit for part in kept}
        doubles = dict.fromkeys(set(ordered) - set(kept), "duplicate")
        return Plan(tuple(kept), reasons | dict.fromkeys(repeated, "duplicate"), doubles)

    return plan


def blank(evidence: Evidence) -> dict[int, str]:
    """Why hits that hold nothing leave nothing."""
    empty = (n for n, hit in enumerate(evidence.hits) if not hit.item.text.strip() and hit.item.media is None)
    return dict.fromkeys(empty, "empty")


def _coarse(query: str | None, evidence: Evidence) -> list[int]:
    """The hits that are read by unit, in order: the likeliest ones up to `COARSE` times the budget."""
    limit = max(COARSE * evidence.budget.tokens, COARSE_LEAST)
    if sum(evidence.tokens) <= limit:
        return list(range(len(evidence.hits)))
    likely = _standard(np.array([hit.score for hit in evidence.hits], float))
    if query:
        likely = likely + _standard(bm25(query, [hit.item.text for hit in evidence.hits]))
    order = np.lexsort((np.arange(len(likely)), -likely))
    before = np.cumsum([0, *(evidence.tokens[n] for n in order)])[:-1]
    return sorted(int(n) for n in order[before < limit])


def _priorities(
    query: str | None,
    evidence: Evidence,
    parts: Sequence[Part],
    of: np.ndarray,
    relevance: Relevance | None,
    floor: float,
) -> tuple[np.ndarray, set[int]]:
    """Priority of each part, float64 (parts,), and the hits below the floor. `of[i]` is the hit of part i.

    An item without text has nothing but its hit's score, and no floor.
    """
    scores = _standard(np.array([hit.score for hit in evidence.hits], float)[of])
    if not query:
        return scores - _standard(np.array([part.unit for part in parts], float)), set()
    texts = [hit.item.text for hit in evidence.hits]
    judged = np.array([not across(query, text) for text in texts], bool)
    own = _standard(bm25(query, [evidence.text(part) for part in parts]), judged[of])
    passage = _standard(bm25(query, texts)[of], judged[of])
    shown = np.array([not evidence.text(part) for part in parts], bool)
    below: set[int] = set()
    if relevance is not None:
        by_part, by_hit = _scored(query, evidence, dict.fromkeys(of.tolist()), relevance)
        best = _best(by_part, of, len(texts))
        below = {n for n in set(of[~shown].tolist()) if best[n] < floor and judged[n]}
        own = _standard(by_part, judged[of]) + LEXICAL * own
        passage = _standard(by_hit[of], judged[of]) + LEXICAL * passage
    priority = np.where(shown, 0.0, own + passage) + scores
    return np.minimum(priority, _best(priority, of, len(texts))[of] - OPENING), below


def _scored(
    query: str, evidence: Evidence, chosen: Mapping[int, None], relevance: Relevance
) -> tuple[np.ndarray, np.ndarray]:
    """Scores by `relevance`: of the parts of all chosen hits, and of all hits (0 where not chosen)."""
    by_part: list[float] = []
    by_hit = np.zeros(len(evidence.hits))
    for done, n in enumerate(chosen):
        step(done, len(chosen), "passages")
        item = evidence.hits[n].item
        read = searchable_text(item)
        shift = len(read) - len(item.text)
        spans = [(unit.start + shift, unit.end + shift) for unit in evidence.units(n)]
        *parts, by_hit[n] = relevance.sentence_scores(query, read, [*spans, (0, len(read))])
        by_part += parts
    return np.array(by_part, float), by_hit


def _distinct(evidence: Evidence, parts: Sequence[Part]) -> list[Part]:
    """`parts` without those that say word for word what an earlier one said."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for part in parts:
        said = tuple(evidence.text(part).casefold().split())
        if len(said) >= REPEATED and not evidence.unit(part).needs:
            if said in seen:
                continue
            seen.add(said)
        kept.append(part)
    return kept


def _best(values: np.ndarray, of: np.ndarray, hits: int) -> np.ndarray:
    """The largest value of each hit, -inf for a hit without any."""
    best = np.full(hits, -np.inf)
    np.maximum.at(best, of, values)
    return best


def _standard(values: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Standard scores; zeros where all values are equal, and for those that are not `known`."""
    if known is not None:
        scores = np.zeros(len(values))
        scores[known] = _standard(values[known])
        return scores
    spread = values.std() if len(values) else 0.0
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros(len(values))


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


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


def bm25(query: str, texts: Sequence[str]) -> np.ndarray:
    """BM25 of each text among `texts`, float64 (texts,)."""
    terms = set(_terms(query))
    lengths, counts = [], []
    for text in texts:
        found = _terms(text)
        lengths.append(len(found))
        counts.append(Counter(term for term in found if term in terms))
    frequency = Counter(term for one in counts for term in one)
    mean = sum(lengths) / max(len(texts), 1) or 1.0
    weights = {term: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for term, n in sorted(frequency.items())}
    scores = np.zeros(len(texts))
    for n, (one, length) in enumerate(zip(counts, lengths, strict=True)):
        norm = K1 * (1 - B + B * length / mean)
        scores[n] = sum(weight * one[t] * (K1 + 1) / (one[t] + norm) for t, weight in weights.items() if t in one)
    return scores
