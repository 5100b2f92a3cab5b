"""LLMLingua. Jiang et al. 2023, arXiv:2310.05736

Coarse to fine, the words last pruned by the `llmlingua` package (Microsoft, MIT) under any causal language model, such
as SmolLM2-135M (Apache-2.0); the paper releases no weights. Two ways to reach:

- `"edge"`, the default: passages and sentences by relevance to the query, whole, and only the sentences at the edge of
  the budget are pruned. The language model reads those that can still fit, at most `LM_TOKENS` tokens: whole sentences
  keep more answers than pruned ones at every ratio measured.
- `"all"`, the paper's form: passages by their perplexity, the highest first, until they hold the budget and a little
  more, then words pruned throughout. The question is not read.

And two modes: `"exact"` decides as the package does, segment by segment after the compressed text before it; `"fast"`
takes glimpses of the text in place of the pass over the whole that the package makes first for its thresholds, which is
an approximation.

What differs from the paper in both. Words are kept or dropped whole, the package's decision first, then the loss;
numbers with their units, negations, names and identifiers come before all other words. The budget is exact. The small
model is not tuned to resemble the reader: for the paper's distribution alignment give `load` the folder of one that is.
Note that the package keeps the token before a surprising one, not the surprising one (its mask is shifted by one
against the losses).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import MissingWeights
from ..base import Refiner
from ..fit import Words, fit, head
from ..relevance import FLOOR, by_relevance, relevance_of, told
from ._pruning import MODES, Verdict, WholeContext, divided, one_of, verdicts

if TYPE_CHECKING:
    from pathlib import Path

    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.lm_transformers import TransformersLM
    from ...retrievers.parts import Parts
    from ..base import Budget, Refined
    from ..fit import Evidence, Part
    from ..relevance import Relevance

LM_TOKENS = 320
"""Most tokens that the language model reads for one budget; with the package's second look about 560 positions."""
KEEP = 0.7
"""Least share of the sentences at the edge that stays; below it, one whole sentence more is opened to pruning."""
REACHES = ("edge", "all")


class LLMLingua(Refiner):
    """Whole sentences by relevance, pruned ones at the edge of the budget; or the paper's form. Safe from many threads.

    Args:
        model, tokenizer: a transformers causal LM in evaluation mode and its fast tokenizer.
        relevance: scores sentences; None for lexical overlap. Not asked with `reach="all"`.
        floor: on the scale of `relevance`; passages below it are never used to fill.
        mode: `"exact"` or `"fast"`, an approximation.
        reach: `"edge"` or `"all"`, the paper's form.

    Raises:
        BadInput: another mode or reach.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        relevance: Relevance | None = None,
        floor: float = FLOOR,
        *,
        mode: str = "exact",
        reach: str = "edge",
    ) -> None:
        from ._llmlingua_compat import OfflineCompressor

        self.relevance = relevance
        self.floor = floor
        self.mode = one_of("pruning mode", mode, MODES)
        self.reach = one_of("reach of pruning", reach, REACHES)
        self._compressor = OfflineCompressor(model, tokenizer)

    @classmethod
    def load(cls, card: Card, parts: Parts, align: Path | None = None) -> LLMLingua:
        """With the profile's small language model and, where its weights are there, its encoder.

        Args:
            align: the folder of a causal LM to use instead: one that was tuned on what the reader writes, so that
                both find the same words surprising (the paper's distribution alignment, section 4.3).

        Raises:
            MissingWeights: the language model is not on this machine.
            BadInput: settings with an unknown `pruning` or `pruning_reach`.
        """
        lm = local_lm(parts, align)
        try:
            relevance = relevance_of(parts.encoder())
        except MissingWeights:
            relevance = None
        settings = parts.settings
        return cls(lm.model, lm.tokenizer, relevance, mode=settings.pruning, reach=settings.pruning_reach)

    @classmethod
    def tiny(cls, seed: int = 0) -> LLMLingua:
        """Two random layers over bytes."""
        from ...retrievers.lm_transformers import TransformersLM

        lm = TransformersLM.tiny(seed)
        return cls(lm.model, lm.tokenizer)

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; the language model is not asked when the evidence fits."""
        if self.reach == "all":
            whole = WholeContext(self._compressor, self._by_perplexity, self.mode)
            return fit(hits, budget, whole.plan, whole.tail)
        found = fit(hits, budget, by_relevance(query, self.relevance, self.floor), self._edge)
        return told(found, query, self.relevance)

    def _by_perplexity(self, texts: Sequence[str]) -> list[int]:
        return by_perplexity(self._compressor, texts)

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
        found = verdicts(self._compressor, evidence, sorted(zone), keep, fast=self.mode == "fast")
        first: list[Words] = []
        rest: list[tuple[Verdict, Words]] = []
        for part in zone:
            needed, others = divided(evidence, part)
            core = tuple(one.spans[0] for one in needed)
            if core:
                first.append(Words(part.hit, core))
            for one in others:
                rest.append((found[part.hit, one.spans[0]], Words(part.hit, (*core, *one.spans))))
        rest.sort(key=lambda scored: scored[0], reverse=True)
        return first, [words for _, words in rest]


def by_perplexity(compressor: Any, texts: Sequence[str]) -> list[int]:
    """Indices of `texts`, the highest mean loss first, as the package ranks without a question; those of one token,
    which have no loss, last."""
    import numpy as np

    from ...progress import step

    losses = []
    for done, text in enumerate(texts):
        step(done, len(texts), "passages")
        long = compressor.get_token_length(text) > 1
        losses.append(float(compressor.get_ppl(text)) if long else -np.inf)
    return [int(n) for n in np.argsort(-np.array(losses), kind="stable")]


def edge(evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, float]:
    """Where the pruned sentences begin, and the share of them that fits.

    The sentence that does not fit whole, and as few before it as give them together `KEEP` of their tokens; the most
    wanted part of all stays whole if it fits.
    """
    start = n
    while start > 1 and evidence.budget.tokens - sizes[start] < KEEP * (sizes[n + 1] - sizes[start]):
        start -= 1
    return start, (evidence.budget.tokens - sizes[start]) / max(1, sizes[n + 1] - sizes[start])


def local_lm(parts: Parts, align: Path | None = None) -> TransformersLM:
    """The profile's small language model, or the one in the folder `align`.

    Raises:
        MissingWeights: it is not on this machine.
    """
    from ...retrievers.lm_transformers import TransformersLM

    if align is None:
        return parts.local_lm()
    return TransformersLM.from_folder(align, parts.settings.precision, parts.device)


def _text(evidence: Evidence, words: Words) -> str:
    text = evidence.hits[words.hit].item.text
    return " ".join(text[start:end] for start, end in words.spans)
