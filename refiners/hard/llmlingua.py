"""LLMLingua: Compressing Prompts for Accelerated Inference of Large Language Models. Jiang et al. 2023, arXiv:2310.05736

Coarse to fine: passages, sentences, and last the tokens of the sentences at the edge of the budget, pruned by the
`llmlingua` package's iterative compression under a small language model (released weights of any causal LM; there are
none of LLMLingua's own, and its instruction-tuned alignment of the small model is not in the package either).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from ...errors import MissingWeights
from ..base import Refiner
from ..fit import Evidence, Part, Words, fit, head
from ..relevance import FLOOR, by_relevance, relevance_of

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts
    from ..base import Budget, Refined
    from ..relevance import Relevance

LM_TOKENS = 320
KEEP = 0.7
WINDOW = 200
ORDER = "package"

_NUMBER = regex.compile(r"\d")
_NEGATION = regex.compile(r"(?i)\W*(?:not|no|never|none|nor|neither|without|cannot|\w+n[’']t)\W*")
_IDENTIFIER = regex.compile(r".*(?:\d|_|\p{Ll}\p{Lu}|\p{Lu}{2}|[\w.]@[\w.]|\w/\w|\w\.\w)")
_MEASURE = regex.compile(r"(?i)\W*(?:[%°℃℉$€£¥]\p{L}?|[kmcnµμ]?(?:g|m|l|s|W|Hz|mol|bit|byte)s?|\p{L}{1,3}|thousand|million|billion|percent|years?|days?|hours?|minutes?|weeks?|months?|times|dollars|euros)\W*")
_MARKER = regex.compile(r"(?:[-*+•]|\d+[.)]|#+)")


class LLMLingua(Refiner):
    def __init__(self, model: Any, tokenizer: Any, relevance: Relevance | None = None, floor: float = FLOOR) -> None:
        from ._llmlingua_compat import OfflineCompressor

        self.compressor = OfflineCompressor(model, tokenizer)
        self.relevance = relevance
        self.floor = floor

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        return fit(hits, budget, by_relevance(query, self.relevance, self.floor), self._tail)

    def _tail(self, evidence: Evidence, parts: Sequence[Part], sizes: Sequence[int], n: int) -> tuple[int, list[Words]]:
        start, end = self._zone(evidence, parts, sizes, n)
        zone = [part for part in parts[start:end] if not evidence.unit(part).whole]
        if not zone:
            return head(evidence, parts, sizes, n)
        kept = [evidence.closed(part) for part in parts[start:n] if evidence.unit(part).whole]
        return start, kept + self._words(evidence, zone, (evidence.budget.tokens-sizes[start])/max(1,sizes[end]-sizes[start]))

    def _zone(self, evidence, parts, sizes, n):
        room = evidence.budget.tokens
        lm = {}
        def tokens(a, b):
            tot = 0
            for p in parts[a:b]:
                if p not in lm:
                    lm[p] = 0 if evidence.unit(p).whole else self.compressor.get_token_length(evidence.text(p), False) + 2
                tot += lm[p]
            return tot
        best = (n, n)
        for s in range(n, -1, -1):
            e = n + 1
            while e + 1 < len(sizes) and e < len(parts) and sizes[s] + KEEP * (sizes[e + 1] - sizes[s]) <= room:
                e += 1
            if tokens(s, e) > LM_TOKENS: break
            best = (s, e)
        return best

    def _words(self, evidence, zone, keep):
        losses, kept = self._decide(evidence, zone, keep)
        first, rest = [], []
        for part in zone:
            text = evidence.hits[part.hit].item.text
            spans = [w.spans[0] for w in evidence.words(part)]
            prot = protected([text[a:b] for a, b in spans])
            sk = tuple(s for s, p in zip(spans, prot) if p)
            if sk: first.append(Words(part.hit, sk))
            rest += [(Words(part.hit, (s,)), kept[part.hit, s], losses[part.hit, s]) for s, p in zip(spans, prot) if not p]
        if ORDER == "package": rest.sort(key=lambda r: (-r[1], -r[2]))
        elif ORDER == "loss": rest.sort(key=lambda r: -r[2])
        elif ORDER == "random":
            import random; random.Random(0).shuffle(rest)
        elif ORDER == "stop":
            from ..relevance import _STOP
            rest.sort(key=lambda r: (evidence.hits[r[0].hit].item.text[slice(*r[0].spans[0])].lower().strip(".,;:()") in _STOP))
        return first + [r[0] for r in rest]

    def _decide(self, evidence, zone, keep):
        keep = min(max(keep, .05), 1.0)
        of = {}
        for part in sorted(zone): of.setdefault(part.hit, []).append(part)
        texts, maps, at = [], [], 0
        for hit, ps in of.items():
            s = ""
            for p in ps:
                if s: s += " "
                u = evidence.unit(p); maps.append((at + len(s), hit, u)); s += evidence.text(p)
            texts.append(s); at += len(s) + 2
        n = sum(self.compressor.get_token_length(t, False) for t in texts) + len(texts) - 1
        d = decide(self.compressor, texts, keep, max(1, n // -(-n // WINDOW)))
        losses, kept = {}, {}
        for p0, hit, u in maps:
            for p in zone:
                if p.hit == hit and evidence.unit(p) is u: part = p
            for w in evidence.words(part):
                a, b = w.spans[0]; a2, b2 = a - u.start + p0, b - u.start + p0
                i = np.nonzero((d.spans[:, 0] < b2) & (d.spans[:, 1] > a2))[0]
                kept[hit, (a, b)] = bool(d.kept[i].any()) if len(i) else True
                fin = d.losses[i][np.isfinite(d.losses[i])] if len(i) else []
                losses[hit, (a, b)] = float(np.max(fin)) if len(fin) else 99.0
        return losses, kept

def decide(c, texts, keep, window): return c.decide(texts, keep, window)

def protected(ws):
    out = [bool(_NUMBER.search(w) or _NEGATION.fullmatch(w) or _IDENTIFIER.match(w)) for w in ws]
    for i in range(1, len(ws)):
        if _NUMBER.search(ws[i-1]) and _MEASURE.fullmatch(ws[i]): out[i] = True
        if _NEGATION.fullmatch(ws[i-1]): out[i] = True
    return out
