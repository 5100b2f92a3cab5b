"""LLMLingua. Jiang et al. 2023, arXiv:2310.05736

Coarse to fine: passages, then sentences by relevance, and last the words of the sentences at the edge of the budget,
pruned by the `llmlingua` package (Microsoft, MIT) under any causal language model, such as SmolLM2-135M (Apache-2.0);
the paper releases no weights.

What differs from the paper. Passages and sentences are ranked by relevance to the query, not by perplexity. The
language model reads only the sentences that can still fit, at most `LM_TOKENS` tokens: whole sentences keep more
answers than pruned ones at every ratio measured, so that pruning is for the edge. Words are kept or dropped whole, the
package's decision first, then the loss; numbers with their units, negations, names and identifiers are never pruned
out of a sentence that stays. The budget is exact. The small model is not tuned to resemble the reader. Note that the
package keeps the token before a surprising one, not the surprising one (its mask is shifted by one against the losses).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import regex

from ...errors import MissingWeights, Unsupported
from ..base import Refiner
from ..fit import Evidence, Part, Words, fit, head
from ..relevance import FLOOR, by_relevance, relevance_of

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts
    from ..base import Budget, Refined
    from ..fit import Span
    from ..relevance import Relevance

LM_TOKENS = 320
"""Most tokens that the language model reads for one budget; with the package's second look about 560 positions."""
KEEP = 0.7
"""Least share of the sentences at the edge that stays; below it, one whole sentence more is opened to pruning."""
WINDOW = 200
"""Tokens of one segment, section 4.2; a shorter text is cut into two segments, so that the second sees the first."""

_NUMBER = regex.compile(r".*\p{N}")
_NEGATION = regex.compile(r"(?i)\W*(?:not|no|never|none|nor|neither|without|cannot|\w+n[’']t)\W*")
_NAME = regex.compile(r"\W*\p{Lu}")
_IDENTIFIER = regex.compile(r".*(?:_|\p{Lu}{2}|\p{Ll}\p{Lu}|[\p{L}\p{N}][@/.\\][\p{L}\p{N}])")
_MEASURE = regex.compile(
    r"(?i)\W*(?:[kmcdnµμ]?(?:g|m|l|s|w|wh|v|a|hz|pa|j|mol)|[kmgt]i?b|lb|oz|ft|mi|mph|km/h|ha|h|min|°?[cfk]|[%‰°$€£¥]|"
    r"percent|thousand|million|billion|trillion|(?:year|month|week|day|hour|minute|second|dollar|euro|pound|time)s?)\W*"
)
_MARKER = regex.compile(r"[-*+•]|\p{N}+[.)]|#+")


class LLMLingua(Refiner):
    """Whole sentences by relevance, pruned ones at the edge of the budget. Safe from many threads.

    Args:
        model, tokenizer: a transformers causal LM in evaluation mode and its fast tokenizer.
        relevance: scores sentences; None for lexical overlap.
        floor: on the scale of `relevance`; passages below it are never used to fill.
    """

    def __init__(self, model: Any, tokenizer: Any, relevance: Relevance | None = None, floor: float = FLOOR) -> None:
        from ._llmlingua_compat import OfflineCompressor

        self.relevance = relevance
        self.floor = floor
        self._compressor = OfflineCompressor(model, tokenizer)

    @classmethod
    def load(cls, card: Card, parts: Parts) -> LLMLingua:
        """With the profile's small language model and, where its weights are there, its encoder.

        Raises:
            MissingWeights: the language model is not on this machine.
            Unsupported: it is not a local one.
        """
        from ...retrievers.lm import TransformersLM

        lm = parts.lm()
        if not isinstance(lm, TransformersLM):
            raise Unsupported(f"LLMLingua cannot use `{type(lm).__name__}`.", "It needs a local language model.")
        try:
            relevance = relevance_of(parts.encoder())
        except MissingWeights:
            relevance = None
        return cls(lm.model, lm.tokenizer, relevance)

    @classmethod
    def tiny(cls, seed: int = 0) -> LLMLingua:
        """Two random layers over bytes."""
        from ...retrievers.lm import TransformersLM

        lm = TransformersLM.tiny(seed)
        return cls(lm.model, lm.tokenizer)

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; the language model is not asked when the evidence fits."""
        return fit(hits, budget, by_relevance(query, self.relevance, self.floor), self._edge)

    def _edge(self, evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, list[Words]]:
        """The sentences at the edge of the budget, pruned; where they are too long for the model, the first words."""
        start, keep = edge(evidence, parts, sizes, n)
        zone = [part for part in parts[start : n + 1] if not evidence.unit(part).whole]
        rows = [evidence.closed(part) for part in parts[start:n] if evidence.unit(part).whole]
        length = sum(self._compressor.get_token_length(evidence.text(part), False) for part in zone)
        if not zone or evidence.unit(parts[n]).whole or not 2 <= length <= LM_TOKENS:
            return head(evidence, parts, sizes, n)
        cores, others = self._pruned(evidence, zone, keep)
        if sizes[start] + sum(evidence.count(_text(evidence, core)) for core in cores) > evidence.budget.tokens:
            return head(evidence, parts, sizes, n)
        return start, rows + cores + others

    def _pruned(self, evidence: Evidence, zone: Sequence[Part], keep: float) -> tuple[list[Words], list[Words]]:
        """The words that each part of `zone` cannot do without, and all other words, each together with the former."""
        found = self._decided(evidence, sorted(zone), keep)
        first: list[Words] = []
        rest: list[tuple[tuple[bool, float], Words]] = []
        for part in zone:
            text = evidence.hits[part.hit].item.text
            spans = [word.spans[0] for word in evidence.words(part)]
            needed = protected([text[start:end] for start, end in spans])
            core = tuple(span for span, holds in zip(spans, needed, strict=True) if holds)
            if core:
                first.append(Words(part.hit, core))
            rest += [
                (found[part.hit, span], Words(part.hit, (*core, span)))
                for span, holds in zip(spans, needed, strict=True)
                if not holds
            ]
        rest.sort(key=lambda scored: scored[0], reverse=True)
        return first, [words for _, words in rest]

    def _decided(
        self, evidence: Evidence, zone: Sequence[Part], keep: float
    ) -> dict[tuple[int, Span], tuple[bool, float]]:
        """For each word of `zone`, in reading order: whether the package keeps a token of it, and its largest loss."""
        from ._llmlingua_compat import SEPARATOR

        contexts: list[str] = []
        places: list[tuple[Part, int]] = []
        at = 0
        for n, part in enumerate(zone):
            text = evidence.text(part)
            if n and part.hit == zone[n - 1].hit:
                contexts[-1] += " "
            else:
                at += len(SEPARATOR) if contexts else 0
                contexts.append("")
            at += 1 if contexts[-1] else 0
            places.append((part, at))
            contexts[-1] += text
            at += len(text)
        length = self._compressor.get_token_length(SEPARATOR.join(contexts), False)
        window = max(1, length // max(2, -(-length // WINDOW)))
        decisions = self._compressor.decide(contexts, min(max(keep, 0.05), 1.0), window)
        found: dict[tuple[int, Span], tuple[bool, float]] = {}
        for part, begins in places:
            shift = begins - evidence.unit(part).start
            for word in evidence.words(part):
                [(start, end)] = word.spans
                touching = (decisions.spans[:, 0] < end + shift) & (decisions.spans[:, 1] > start + shift)
                kept = bool(decisions.kept[touching].any())
                found[part.hit, (start, end)] = kept, float(decisions.losses[touching].max(initial=0.0))
        return found


def edge(evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, float]:
    """Where the pruned sentences begin, and the share of them that fits.

    The sentence that does not fit whole, and as few before it as give them together `KEEP` of their tokens; the most
    wanted part of all stays whole if it fits.
    """
    start = n
    while start > 1 and evidence.budget.tokens - sizes[start] < KEEP * (sizes[n + 1] - sizes[start]):
        start -= 1
    return start, (evidence.budget.tokens - sizes[start]) / max(1, sizes[n + 1] - sizes[start])


def protected(words: Sequence[str]) -> list[bool]:
    """Which words of a sentence are never pruned out of it.

    >>> protected("It does not exceed 12 mg per day in Berlin".split())
    [False, False, True, True, True, True, False, False, False, True]
    """
    kept = []
    for n, word in enumerate(words):
        before = words[n - 1] if n else ""
        holds = (
            _NUMBER.match(word)
            or _NEGATION.fullmatch(word)
            or _IDENTIFIER.match(word)
            or (n and _NAME.match(word))
            or _NEGATION.fullmatch(before)
            or (_NUMBER.match(before) and _MEASURE.fullmatch(word))
            or (not n and _MARKER.fullmatch(word))
        )
        kept.append(bool(holds))
    return kept


def _text(evidence: Evidence, words: Words) -> str:
    text = evidence.hits[words.hit].item.text
    return " ".join(text[start:end] for start, end in words.spans)
