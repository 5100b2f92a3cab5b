"""Prompt-SAW. Ali et al. 2024, arXiv:2404.00489

The evidence becomes a graph of triplets (entity, relation, entity); what is returned is made of triplets, in reading
order. With a question the edges nearest to it by embedding are collected until the budget is full; without one (or
with `agnostic=True`) the graph is walked in order and an edge is dropped when it is more similar than δ to one that is
kept, δ by binary search for the budget. The paper names no code; triplets come from a rule for English
(`_triplets.by_rule`) or from a language model (`_triplets.by_lm`), the embeddings from the profile's encoder.

What comes back is generated: sentences written anew from triplets, each piece with the spans it was made from. It can
say what its source does not (a pronoun without its noun, an object with the wrong clause), so that it is never a
default. What gives no triplet (tables, code, headings, other languages) is a node without edges: kept whole, as it
stands, or dropped. An edge that several passages have is kept once, in the first. The budget is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from ...errors import BadInput
from ...progress import step
from ...retrievers.base import Encoder, Item, Query, Source, Space
from ..base import Cut, Dropped, Passage, Piece, Refined, Refiner
from ..fit import Evidence, Part
from ..tokens import count
from ._coarse import parts_read
from ._graph import Fact, Graph, graph, verbalised
from ._triplets import by_rule

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Side
    from ...retrievers.parts import Parts
    from ..base import Budget
    from ..fit import Span
    from ._triplets import Extract, Triplet

SENTENCES = 64
"""Sentences between two looks at the clock."""
HALVINGS = 12
"""Steps of the search for δ: one in 2,000 of its range."""
COPY = 0.95
"""Cosine from which an edge only repeats one that is kept: room that is left is not filled with it."""
ATTEMPTS = 24
"""How many single edges are counted exactly to use what room is left."""
FULL = 0.9
"""The share of the budget under which `Refined.unused` says what did not fit."""


class PromptSAW(Refiner):
    """Triplets by relevance or by novelty. Safe from many threads.

    Args:
        encoder: a dense encoder of text.
        extract: where triplets come from; `_triplets.by_lm(lm)` asks a language model.
        agnostic: never read the question.
    """

    def __init__(self, encoder: Encoder, extract: Extract = by_rule, *, agnostic: bool = False) -> None:
        self.encoder = encoder
        self.extract = extract
        self.agnostic = agnostic

    @classmethod
    def load(cls, card: Card, parts: Parts) -> PromptSAW:
        """With the profile's encoder and triplets by rule.

        Raises:
            MissingWeights: the encoder's are not on this machine.
        """
        return cls(parts.encoder())

    @classmethod
    def tiny(cls, seed: int = 0) -> PromptSAW:
        """With random vectors of words."""
        return cls(_Words(seed))

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """See `Refiner`; what fits comes back as it is. Pieces without a span are `"generated"` or `"joiner"`."""
        if budget.tokens < 1:
            raise BadInput(f"The budget is `{budget.tokens}` tokens.", "Ask for at least 1.")
        evidence = Evidence(hits, budget, [count(hit.item.text, budget.tokenizer) for hit in hits])
        untouched = tuple(_whole(hit, n) for hit, n in zip(hits, evidence.tokens, strict=True))
        if sum(evidence.tokens) <= 2 * budget.tokens + len(hits):
            used = count(budget.render(untouched, 0), budget.tokenizer)
            if used <= budget.tokens:
                return Refined(untouched, used, sum(evidence.tokens))
        known = self.graph(evidence)
        block = _Block(evidence, known)
        if query is None or not query.text or self.agnostic:
            unused = block.fill(self._novel(known, block))
        else:
            unused = block.fill(self._relevant(known, query))
        return block.refined(unused)

    def graph(self, evidence: Evidence) -> Graph:
        """The graph of the evidence, as far as it is read."""
        parts = parts_read(evidence)
        plain = [part for part in parts if not evidence.unit(part).whole]
        found: dict[Part, list[Triplet]] = {}
        for start in range(0, len(plain), SENTENCES):
            step(start, len(plain), "sentences")
            some = plain[start : start + SENTENCES]
            found |= dict(zip(some, self.extract([evidence.text(part) for part in some]), strict=True))
        facts = [Fact(part, one, one.text) for part in parts for one in found.get(part, ())]
        facts += [Fact(part, None, evidence.text(part)) for part in parts if not found.get(part)]
        return graph(sorted(facts, key=lambda fact: fact.part), evidence)

    def _relevant(self, known: Graph, query: Query) -> list[int]:
        """Facts by cosine to the question (task-aware)."""
        [asked] = self.encoder.encode([query], "query")
        scores = self._vectors(known) @ asked
        return [int(n) for n in np.lexsort((np.arange(len(scores)), -scores))]

    def _novel(self, known: Graph, block: _Block) -> list[int]:
        """Facts that δ keeps, in order, then the others, least similar to them first (task-agnostic)."""
        vectors = self._vectors(known)
        low, high = -1.0, 1.0
        kept: list[int] = []
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found = novel(vectors, middle)
            if block.fits(found):
                low, kept = middle, found
            else:
                high = middle
        near = (vectors @ vectors[kept].T).max(1) if kept else np.zeros(len(vectors))
        others = [int(n) for n in np.lexsort((np.arange(len(near)), near)) if n not in set(kept)]
        block.copies = {n for n in others if kept and near[n] >= COPY}
        return kept + [n for n in others if n not in block.copies]

    def _vectors(self, known: Graph) -> np.ndarray:
        """Unit vectors of the facts, float32 (facts, dim)."""
        items = [Item(str(n), fact.text, Source("")) for n, fact in enumerate(known.facts)]
        vectors: np.ndarray = self.encoder.encode(items, "document")
        return vectors


def novel(vectors: np.ndarray, limit: float) -> list[int]:
    """The walk: rows in order, without those whose cosine with a row already kept is above `limit`.

    Args:
        vectors: (facts, dim), of unit length.

    >>> novel(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 0.5)
    [0, 2]
    """
    kept: list[int] = []
    nearest = np.full(len(vectors), -np.inf)
    for n in range(len(vectors)):
        if nearest[n] <= limit:
            kept.append(n)
            np.maximum(nearest, vectors @ vectors[n], out=nearest)
    return kept


class _Block:
    """The facts kept so far, and the exact size of the block that they make.

    Attributes:
        copies: facts that only repeat kept ones.
    """

    def __init__(self, evidence: Evidence, known: Graph) -> None:
        self.copies: set[int] = set()
        self._evidence = evidence
        self._known = known
        self._room = evidence.budget.tokens
        self._sizes = [evidence.count(fact.text) for fact in known.facts]
        self._units = {fact.part: n for n, fact in enumerate(known.facts) if fact.triplet is None}
        self._kept: frozenset[int] = frozenset()
        self._used = self._measure(self._kept)

    def fits(self, facts: Sequence[int]) -> bool:
        """Whether the block of these facts is inside the budget."""
        return sum(self._sizes[n] for n in facts) <= 4 * self._room and self._measure(self._closed(facts)) <= self._room

    def fill(self, order: Sequence[int]) -> str | None:
        """Keep the longest beginning of `order` that fits, then what else does; answers what did not (see `FULL`).

        Raises:
            BadInput: not even the smallest block fits.
        """
        low, high = 0, len(order)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(order[:middle]) else (low, middle - 1)
        self._keep(self._closed(order[:low]))
        if not self._kept:
            self._least(order)
        unused = None
        for n in order[low : low + ATTEMPTS]:
            if self._used >= FULL * self._room:
                return None
            together = self._closed([*self._kept, n])
            used = self._measure(together)
            if used <= self._room:
                self._keep(together)
            elif unused is None:
                what = "row" if self._known.facts[n].triplet is None else "triplet"
                hit = self._evidence.hits[self._known.facts[n].part.hit]
                unused = f"{what} of `{hit.item.id}`: {used - self._used} tokens"
        return unused if self._used < FULL * self._room else None

    def refined(self, unused: str | None) -> Refined:
        """What is kept, and why each of the other hits is not."""
        hits, tokens = self._evidence.hits, self._evidence.tokens
        own: dict[int, set[int]] = {}
        for n, fact in enumerate(self._known.facts):
            own.setdefault(fact.part.hit, set()).add(n)
        there = {self._known.facts[n].part.hit for n in self._kept}
        dropped = tuple(
            Dropped(hit.item.id, self._reason(n, own.get(n, set())), tokens[n])
            for n, hit in enumerate(hits)
            if n not in there
        )
        passages = tuple(
            self._accounted(n, passage) for n, passage in zip(sorted(there), self._passages(self._kept), strict=True)
        )
        return Refined(passages, self._used, sum(tokens), dropped, unused)

    def _accounted(self, hit: int, passage: Passage) -> Passage:
        """`passage` with its tokens, and with what of its item no piece was made from."""
        made = [span for piece in passage.pieces for span in (piece.made_from or ([piece.span] if piece.span else []))]
        facts = self._facts_of(hit)
        cut = []
        for n, unit in enumerate(self._evidence.units(hit)):
            why = "duplicate" if self.copies.issuperset(facts.get(Part(hit, n), ())) else "budget"
            inside = [span for span in made if unit.start <= span[0] < unit.end]
            cut += [
                Cut(span, "pruned" if inside else why, self._evidence.count(text), self._protected(hit, span))
                for span in gaps(unit.start, unit.end, inside)
                if (text := passage.item.text[slice(*span)]).strip()
            ]
        tokens = self._evidence.count(passage.text)
        return replace(passage, tokens=tokens, original=self._evidence.tokens[hit], cut=tuple(cut))

    def _facts_of(self, hit: int) -> dict[Part, list[int]]:
        found: dict[Part, list[int]] = {}
        for n, fact in enumerate(self._known.facts):
            if fact.part.hit == hit:
                found.setdefault(fact.part, []).append(n)
        return found

    def _protected(self, hit: int, span: Span) -> tuple[Span, ...]:
        return tuple(self._evidence.protected(hit, *span))

    def _reason(self, hit: int, facts: set[int]) -> str:
        if facts <= self.copies and (facts or hit in self._known.repeated):
            return "duplicate"
        return "budget" if self._evidence.hits[hit].item.text.strip() else "empty"

    def _least(self, order: Sequence[int]) -> None:
        """Keep the smallest block there is: that of one fact, or of none where nothing can be kept."""
        blocks = [self._closed([n]) for n in order] or [frozenset()]
        used, n = min((self._measure(block), n) for n, block in enumerate(blocks))
        if used > self._room:
            raise BadInput(
                f"The budget is `{self._room}` tokens; the smallest block that can be shown takes {used}.",
                f"Ask for at least {used}.",
            )
        self._keep(blocks[n])

    def _keep(self, facts: frozenset[int]) -> None:
        self._kept, self._used = facts, self._measure(facts)

    def _closed(self, facts: Sequence[int]) -> frozenset[int]:
        """`facts` with the units that they cannot be read without."""
        parts = [self._known.facts[n].part for n in facts]
        needed = (Part(part.hit, unit) for part in parts for unit in self._evidence.unit(part).needs)
        return frozenset({*facts, *(self._units[part] for part in needed if part in self._units)})

    def _measure(self, facts: frozenset[int]) -> int:
        passages = self._passages(facts)
        return self._evidence.count(self._evidence.budget.render(passages, len(self._evidence.hits) - len(passages)))

    def _passages(self, facts: frozenset[int]) -> tuple[Passage, ...]:
        chosen = [self._known.facts[n] for n in sorted(facts)]
        return tuple(
            Passage(self._evidence.hits[n].item, _pieces(self._evidence, list(own)), self._evidence.hits[n].score)
            for n, own in groupby(chosen, key=lambda fact: fact.part.hit)
        )


def _pieces(evidence: Evidence, facts: Sequence[Fact]) -> tuple[Piece, ...]:
    """The pieces of one passage, a blank or a new line between two."""
    made: list[Piece] = []
    end = 0
    for part, own in groupby(facts, key=lambda fact: fact.part):
        unit, text = evidence.unit(part), evidence.hits[part.hit].item.text
        for piece in _told(evidence, part, [fact.triplet for fact in own if fact.triplet is not None]):
            if made:
                made.append(Piece("\n" if "\n" in text[end : unit.start] else " ", None, "joiner"))
            made.append(piece)
            end = unit.end
    return tuple(made)


def _told(evidence: Evidence, part: Part, triplets: Sequence[Triplet]) -> list[Piece]:
    """The pieces of one unit: itself, or a sentence for each clause of its triplets."""
    unit = evidence.unit(part)
    if not triplets:
        return [Piece(evidence.text(part), (unit.start, unit.end), "kept")] if unit.end > unit.start else []
    made = []
    for _, clause in groupby(triplets, key=lambda one: one.clause):
        own = list(clause)
        spans = sorted({(unit.start + a, unit.start + b) for one in own for a, b in one.spans})
        made.append(Piece(verbalised(own), None, "generated", tuple(spans)))
    return made


def gaps(start: int, end: int, spans: Sequence[Span]) -> list[Span]:
    """The parts of a half-open span that none of `spans` covers.

    >>> gaps(0, 9, [(5, 7), (1, 3), (2, 6)])
    [(0, 1), (7, 9)]
    """
    found = []
    for first, last in sorted(spans):
        if first > start:
            found.append((start, first))
        start = max(start, last)
    return [*found, (start, end)] if start < end else found


def _whole(hit: Hit, tokens: int) -> Passage:
    text = hit.item.text
    return Passage(hit.item, (Piece(text, (0, len(text)), "whole"),) if text else (), hit.score, tokens, tokens)


class _Words(Encoder):
    """Sums of random vectors of words: for tests."""

    space = Space("words", "dense", 64, "cosine")

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        rows = [self._vector((given.text or "").casefold().split()) for given in inputs]
        return np.stack(rows) if rows else np.empty((0, self.space.dim), np.float32)

    def _vector(self, words: Sequence[str]) -> np.ndarray:
        draws = [np.random.default_rng([self._seed, crc32(word.encode("utf-8", "replace"))]) for word in words or [""]]
        total = np.sum([draw.standard_normal(self.space.dim) for draw in draws], axis=0)
        vector: np.ndarray = (total / np.linalg.norm(total)).astype(np.float32)
        return vector
