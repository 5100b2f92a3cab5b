"""LongLLMLingua. Jiang et al. 2023, arXiv:2310.06839

LLMLingua that reads the question, in five parts, with the `llmlingua` package (Microsoft, MIT) under any causal
language model; the paper releases no weights.

1. Coarse, section 4.1: passages by how likely the question becomes after them, the mean loss of the question and a
   restrictive sentence after the passage, the lowest first, until they hold the budget and a little more.
2. Reordering, section 4.2: `reorder="rank"` puts the best first, `"two_stage"` the best at both ends, against what gets
   lost in the middle; `"original"`, the default, keeps the order of the hits.
3. Dynamic ratios, section 4.3: the best passage keeps `delta` more of its tokens than the common share, the last as
   much less, those between on a line, cut to 0 to 1.
4. Fine, section 4.1: tokens stay by contrastive perplexity, the loss without the question minus the loss with it,
   segment by segment after the compressed text before them (`mode="fast"`: see `llmlingua.py`, an approximation).
5. Subsequence recovery, section 4.4: `recover` finds where in the originals an answer was read.

What differs from the paper. Words are kept or dropped whole, the package's decision first, then the contrast; numbers
with their units, negations, names and identifiers come before all other words. The budget is exact. Recovery needs no
search for the shortest subsequence in the original: kept words know their place. Without a question it is LLMLingua's
form of the whole context. It runs the language model about four times over the evidence: not for a default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import regex

from ...progress import step
from ..base import Refiner
from ..fit import fit
from ._pruning import MODES, WholeContext, one_of
from .llmlingua import by_perplexity, local_lm

if TYPE_CHECKING:
    from pathlib import Path

    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts
    from ..base import Budget, Passage, Refined

RESTRICTIVE = " We can get the answer to this question in the given documents."
"""After the question, section 4.1: keeps the model from answering out of its own memory."""
DELTA = 0.3
"""Of the dynamic ratios: what the package's own example sets."""
ORDERS = ("original", "rank", "two_stage")

_TERM = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{M}\p{N}]+")


class LongLLMLingua(Refiner):
    """Passages and words by what the question makes of them. Safe from many threads.

    Args:
        model, tokenizer: a transformers causal LM in evaluation mode and its fast tokenizer.
        mode: `"exact"` or `"fast"`, an approximation.
        reorder: `"original"`, `"rank"` or `"two_stage"`; the passages of the result stand in that order.
        delta: of the dynamic ratios, 0 to 1.

    Raises:
        BadInput: another mode or order.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, mode: str = "exact", reorder: str = "original", delta: float = DELTA
    ) -> None:
        from ._llmlingua_compat import OfflineCompressor

        self.mode = one_of("pruning mode", mode, MODES)
        self.reorder = one_of("order", reorder, ORDERS)
        self.delta = delta
        self._compressor = OfflineCompressor(model, tokenizer)

    @classmethod
    def load(cls, card: Card, parts: Parts, align: Path | None = None) -> LongLLMLingua:
        """With the profile's small language model, or the one in the folder `align` (see `LLMLingua.load`).

        Raises:
            MissingWeights: the language model is not on this machine.
            BadInput: settings with an unknown `pruning`.
        """
        lm = local_lm(parts, align)
        return cls(lm.model, lm.tokenizer, mode=parts.settings.pruning)

    @classmethod
    def tiny(cls, seed: int = 0) -> LongLLMLingua:
        """Two random layers over bytes."""
        from ...retrievers.lm_transformers import TransformersLM

        lm = TransformersLM.tiny(seed)
        return cls(lm.model, lm.tokenizer)

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; with an order other than `"original"`, passages stand in that order and the model is asked for
        it even when everything fits."""
        question = (query.text or "").strip() if query is not None else ""
        known: dict[str, float] = {}

        def order(texts: Sequence[str]) -> list[int]:
            if not question:
                return by_perplexity(self._compressor, texts)
            missing = [text for text in dict.fromkeys(texts) if text not in known]
            known.update(zip(missing, question_losses(self._compressor, question, missing), strict=True))
            return sorted(range(len(texts)), key=lambda n: (known[texts[n]], n))

        if self.reorder != "original" and question and len(hits) > 1:
            told = [n for n, hit in enumerate(hits) if hit.item.text.strip()]
            ranked = [told[n] for n in order([hits[n].item.text for n in told])]
            rest = [n for n in range(len(hits)) if n not in set(told)]
            hits = [hits[n] for n in (*reordered(ranked, self.reorder), *rest)]
        whole = WholeContext(self._compressor, order, self.mode, query, question, self.delta if question else 0.0)
        return fit(hits, budget, whole.plan, whole.tail)


class Recovered(NamedTuple):
    """Where part of a response was read.

    Attributes:
        start, end: half-open offsets in the response.
        passage: which of the passages.
        span: half-open offsets in `passages[passage].item.text`: from the first to the last word that was read, with
            what compression had cut out between them.
    """

    start: int
    end: int
    passage: int
    span: tuple[int, int]


def question_losses(compressor: Any, question: str, texts: Sequence[str]) -> list[float]:
    """For each text, the mean loss of the question and `RESTRICTIVE` after it; lower is better."""
    found = []
    for done, text in enumerate(texts):
        step(done, len(texts), "passages")
        found.append(float(compressor.get_condition_ppl(text, question + RESTRICTIVE, "after")))
    return found


def reordered(ranked: Sequence[int], how: str) -> list[int]:
    """Passages, best first, in the order that the reader gets them.

    >>> reordered([3, 1, 4, 0, 2], "two_stage")
    [3, 4, 2, 0, 1]
    """
    if how == "original":
        return sorted(ranked)
    return list(ranked) if how == "rank" else [*ranked[::2], *ranked[1::2][::-1]]


def recover(response: str, passages: Sequence[Passage]) -> list[Recovered]:
    """Subsequence recovery, section 4.4: the parts of `response` that stand in compressed passages, in reading order.

    The longest run of words that follow one another in what a passage kept, wherever they follow one another in the
    response, compared without case and punctuation; among equal ones that with the shortest original, then the first. A
    single word counts only where all passages together have it once.
    """
    said = [(match.group().casefold(), *match.span()) for match in _TERM.finditer(response)]
    kept = [list(_terms(passage)) for passage in passages]
    places: dict[str, list[tuple[int, int]]] = {}
    for number, terms in enumerate(kept):
        for at, (term, _, _) in enumerate(terms):
            places.setdefault(term, []).append((number, at))
    found = []
    n = 0
    while n < len(said):
        runs = [(_common(said, n, kept[number], at), number, at) for number, at in places.get(said[n][0], ())]
        longest = max((length for length, _, _ in runs), default=0)
        best = [(number, at) for length, number, at in runs if length == longest]
        if longest > 1 or len(best) == 1:
            number, at = min(best, key=lambda place: (_width(kept[place[0]], place[1], longest), place))
            span = kept[number][at][1], kept[number][at + longest - 1][2]
            found.append(Recovered(said[n][1], said[n + longest - 1][2], number, span))
        n += max(1, longest)
    return found


def _terms(passage: Passage) -> Iterator[tuple[str, int, int]]:
    """Each word that a passage kept, with its place in the original; joiners have none."""
    spans = (piece.span for piece in passage.pieces if piece.span is not None)
    matches = chain.from_iterable(_TERM.finditer(passage.item.text, start, end) for start, end in spans)
    return ((match.group().casefold(), *match.span()) for match in matches)


def _common(said: Sequence[tuple[str, int, int]], n: int, kept: Sequence[tuple[str, int, int]], at: int) -> int:
    """How many words from `said[n]` and `kept[at]` on are the same."""
    pairs = zip(said[n:], kept[at:], strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a[0] != b[0]), min(len(said) - n, len(kept) - at))


def _width(kept: Sequence[tuple[str, int, int]], at: int, length: int) -> int:
    return kept[at + length - 1][2] - kept[at][1]
