"""TIGeR: Unifying Text-to-Image Generation and Retrieval with LMMs. Qu, Li, Wang and others 2024, arXiv:2406.05814

One autoregressive model of text and image tokens finds a picture and draws one; nothing is trained. Pictures are
sequences of codes of the model's own image tokenizer, kept in a trie. Forward: a beam search from the text, held to the
trie, in which each code counts by log P(code | text, prefix) - log P(code | no text, prefix), since a model likes plain
pictures whatever was asked; it ends when every beam leads to one picture, and whole sequences are scored again.
Backward: the found pictures are ordered by log P(text | picture). Generate or retrieve: of the best picture found and
one freshly drawn, the one whose codes gain more from the text.

As a reranker it takes hits for the gallery: hits with a readable picture are ordered, others keep their places. What
differs from the paper: it runs on SEED-LLaMA and LaVIT (8 B parameters, 32 codes of 8,192, 800 beams), whose loaders
are not here; any model that answers the three questions of `SequenceModel` will do, and `_patch_lm` is a small one of
our own that a user trains (no weights are shipped). Pictures are drawn by the likeliest codes, without sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput, UnreadableFile, Unsupported
from ...progress import step
from ...retrievers.base import Hit
from ...retrievers.given import given_folder
from .._failing import Ended, Tokens, no_verdict
from ..base import Cost, Limits, Ranking, Reranker
from ._codes import Codes, Found, ImageTokenizer, SequenceModel, Trie
from ._listwise import CHARACTERS_PER_TOKEN, asked, depth_of, finite

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Item, Query
    from ...retrievers.parts import Parts

BEAMS = 800
"""The paper's; a list of hits is shorter, so that nothing is lost on the way."""
AT_ONCE = 256
"""Sequences in one forward pass."""
QUERY_TOKENS = 16
"""For estimates only."""


@dataclass(frozen=True)
class Answer:
    """What is shown for a text.

    Attributes:
        hit: the picture that was found; None where the drawn one gains more from the text.
        codes: of the picture that is shown.
        picture: the drawn one, decoded; None where one was found.
        found, drawn: log P(codes | text) - log P(codes | no text) of both; `found` is None without pictures.
    """

    hit: Hit | None
    codes: Codes
    picture: Any
    found: float | None
    drawn: float


class TIGeR(Reranker):
    """Orders hits with pictures by how likely the query is after each; before that, by what the query does for each.

    Scores are log P(query | picture), below 0. Pictures that fell out of the beam follow with the lowest score; hits
    without a picture keep their places with the score of the one before.

    Args:
        model, tokenizer: of one model, so that codes mean the same to both.
        beams: how many sequences the forward search keeps.
        weight: of the unconditional log-probability that is taken away; 0 is plain likelihood.
        reverse: False leaves the forward order and its scores.

    Raises:
        BadInput: fewer than 1 beam.
    """

    def __init__(
        self,
        model: SequenceModel,
        tokenizer: ImageTokenizer,
        beams: int = BEAMS,
        weight: float = 1.0,
        reverse: bool = True,
    ) -> None:
        if beams < 1:
            raise BadInput(f"`{beams}` beams.", "Give at least 1.")
        self._model = model
        self._tokenizer = tokenizer
        self._beams = beams
        self._weight = weight
        self._reverse = reverse
        self.looks = True

    @classmethod
    def load(cls, card: Card, parts: Parts) -> TIGeR:
        """With a small model that was trained into `weights/tiger` of the home folder.

        Raises:
            MissingWeights: there is none.
        """
        from ._patch_lm import FILES, PatchCodebook, PatchLM

        hint = "Train one with `triptych.rerankers.prompted._patch_lm.fit` into that folder; none is shipped."
        folder = given_folder(card, parts.settings, *FILES, hint=hint)
        return cls(PatchLM.from_folder(folder, parts.device), PatchCodebook.from_folder(folder))

    @classmethod
    def tiny(cls, seed: int = 0) -> TIGeR:
        """A random model of four codes per picture; a text is taken for its picture, by hash."""
        from ._patch_lm import HashedText, PatchLM

        return cls(PatchLM.tiny(seed), HashedText())

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`. One call is one sequence read; limits of calls and depth cut the list beforehand.

        Limits of time and tokens are looked at between steps: the beams as they are then, or the forward order, decide.

        Raises:
            BadInput: a score that is not a number, or a negative limit.
            Unsupported: a query without text, or a model whose scores are no numbers.
        """
        text, limits = asked(query), limits or Limits()
        finite(hits)
        if len(hits) < 2:
            return Ranking(tuple(hits))
        depth, reason = self._depth(len(hits), limits)
        gallery = _gallery(_codes_of(self._tokenizer, [hit.item for hit in hits[:depth]]))
        if not gallery:
            said = reason or f"none of {len(hits)} hits has a picture"
            return Ranking(tuple(hits), complete=False, reason=said, failure=None if reason else no_verdict(said))
        meter = _Meter(self._model, limits, len(gallery) * self._calls_per_picture())
        trie, found = Trie(gallery), Found()
        try:
            for known in forward(meter, text, trie, self._beams, self._weight):
                found = known
            if self._reverse:
                found = backward(meter, text, found)
        except Ended as ended:
            reason = str(ended)
        placed = [(place, score) for codes, score in found for place in trie.places(codes)]
        placed.sort(key=lambda one: (-one[1], one[0]))
        ranked = _merged(hits, placed, {place for place, _ in gallery} | set(range(depth, len(hits))))
        return Ranking(ranked, meter.calls, meter.tokens, complete=reason is None, reason=reason)

    def answer(self, query: Query, hits: Sequence[Hit] = ()) -> Answer:
        """A picture for a text: the best of `hits`, or a new one (section 3.4 of the paper).

        Raises:
            Unsupported: a query without text.
        """
        text, gallery = asked(query), _gallery(self._tokenizer.encode([hit.item for hit in hits]))
        drawn = draw(self._model, text)
        [gain] = gains(self._model, text, [drawn])
        if not gallery:
            return Answer(None, drawn, self._tokenizer.decode(drawn), None, gain)
        codes = retrieve(self._model, text, Trie(gallery), self._beams, self._weight, self._reverse)[0][0]
        [found] = gains(self._model, text, [codes])
        if retrieves(found, gain):
            return Answer(hits[next(at for at, known in gallery if known == codes)], codes, None, found, gain)
        return Answer(None, drawn, self._tokenizer.decode(drawn), found, gain)

    def estimate(self, n: int) -> Cost:
        """At most: every picture in every beam, with and without text, then scored whole in both directions."""
        if n < 2:
            return Cost(calls=0, tokens=0)
        calls = n * self._calls_per_picture()
        return Cost(calls=calls, tokens=calls * (self._model.length + QUERY_TOKENS))

    def _calls_per_picture(self) -> int:
        return 2 * self._model.length + 3

    def _depth(self, n: int, limits: Limits) -> tuple[int, str | None]:
        depth, reason = depth_of(n, limits)
        paid = n if limits.calls is None else limits.calls // self._calls_per_picture()
        if paid >= depth:
            return depth, reason
        paid = paid if paid > 1 else 0
        return paid, f"calls limit: {limits.calls} calls read {paid} of {n} hits"


def forward(model: SequenceModel, text: str, trie: Trie, beams: int, weight: float = 1.0) -> Iterator[Found]:
    """Forward beam search (section 3.2): what is found after each step, and last the whole sequences, scored again."""
    beam: Found = [((), 0.0)]
    while any(trie.only(prefix) is None for prefix, _ in beam):
        beam = _grown(model, text, beam, trie.allowed, beams, weight)
        yield beam
    whole = [codes for prefix, _ in beam if (codes := trie.only(prefix)) is not None]
    scores = gains(model, text, whole, weight)
    yield sorted(zip(whole, scores, strict=True), key=lambda one: (-one[1], trie.places(one[0])[0]))


def backward(model: SequenceModel, text: str, found: Found) -> Found:
    """The same sequences by log P(text | picture) (section 3.3); equal ones as they were."""
    scores = model.text([codes for codes, _ in found], text)
    told = [(codes, float(score)) for (codes, _), score in zip(found, scores, strict=True)]
    return sorted(told, key=lambda one: -one[1])


def retrieve(
    model: SequenceModel, text: str, trie: Trie, beams: int = BEAMS, weight: float = 1.0, reverse: bool = True
) -> Found:
    """Forward search, then the backward order."""
    *_, found = forward(model, text, trie, beams, weight)
    return backward(model, text, found) if reverse else found


def draw(model: SequenceModel, text: str, beams: int = 1) -> Codes:
    """The codes of a new picture: the likeliest at each step, over `beams` beginnings."""
    beam: Found = [((), 0.0)]
    for _ in range(model.length):
        beam = _grown(model, text, beam, lambda prefix: range(model.codes), beams, 0.0)
    return beam[0][0]


def gains(model: SequenceModel, text: str, pictures: Sequence[Codes], weight: float = 1.0) -> list[float]:
    """log P(codes | text) - weight · log P(codes | no text) of whole pictures, in nats."""
    likely = model.picture(text, pictures)
    return [float(one) for one in (likely - weight * model.picture(None, pictures) if weight else likely)]


def retrieves(found: float, drawn: float) -> bool:
    """The decision: whether the picture found gains at least as much from the text as the one drawn."""
    return found >= drawn


class _Meter:
    """A `SequenceModel` that counts what another reads, looks at the clock, and reports progress."""

    def __init__(self, model: SequenceModel, limits: Limits, most: int) -> None:
        self.length, self.codes = model.length, model.codes
        self.calls, self._tokens = 0, Tokens()
        self._model, self._limits, self._most, self._start = model, limits, most, time.monotonic()

    @property
    def tokens(self) -> int:
        return self._tokens.spent

    def next_code(self, text: str | None, prefixes: Sequence[Codes]) -> np.ndarray:
        return self._read(lambda part: self._model.next_code(text, part), prefixes, text)

    def picture(self, text: str | None, pictures: Sequence[Codes]) -> np.ndarray:
        return self._read(lambda part: self._model.picture(text, part), pictures, text)

    def text(self, pictures: Sequence[Codes], text: str) -> np.ndarray:
        return self._read(lambda part: self._model.text(part, text), pictures, text)

    def _read(
        self, read: Callable[[Sequence[Codes]], np.ndarray], rows: Sequence[Codes], text: str | None
    ) -> np.ndarray:
        made = []
        for first in range(0, len(rows), AT_ONCE):
            seconds, done = self._limits.seconds, f"{self.calls} of at most {self._most} calls"
            if seconds is not None and time.monotonic() - self._start >= seconds:
                raise Ended(f"{seconds:g} s passed after {done}")
            self._tokens.look(self._limits, done)
            step(min(self.calls, self._most), self._most, "sequences")
            part = rows[first : first + AT_ONCE]
            made.append(read(part))
            self.calls += len(part)
            self._tokens.add(sum(len(codes) + len(text or "") // CHARACTERS_PER_TOKEN for codes in part))
        found = np.concatenate(made)
        if np.isnan(found).any():
            raise Unsupported("The model gives `nan` as a log-probability.", "Use the precision `float32`.")
        return found


def _grown(
    model: SequenceModel, text: str, beam: Found, allowed: Callable[[Codes], Sequence[int]], beams: int, weight: float
) -> Found:
    """`beam` by one more code each, the best `beams` of all; equal ones by their codes."""
    prefixes = [prefix for prefix, _ in beam]
    likely = model.next_code(text, prefixes)
    if weight:
        likely = likely - weight * model.next_code(None, prefixes)
    grown = [
        ((*prefix, code), score + float(likely[row, code]))
        for row, (prefix, score) in enumerate(beam)
        for code in allowed(prefix)
    ]
    return sorted(grown, key=lambda one: (-one[1], one[0]))[:beams]


def _codes_of(tokenizer: ImageTokenizer, items: Sequence[Item]) -> list[Codes | None]:
    """The codes of each item's picture; None as well where its file cannot be read."""
    try:
        return tokenizer.encode(items)
    except UnreadableFile:
        return [None] if len(items) == 1 else [one for item in items for one in _codes_of(tokenizer, [item])]


def _gallery(told: Sequence[Codes | None]) -> list[tuple[int, Codes]]:
    return [(place, codes) for place, codes in enumerate(told) if codes is not None]


def _merged(hits: Sequence[Hit], placed: Sequence[tuple[int, float]], movable: set[int]) -> tuple[Hit, ...]:
    """`placed` first and what is movable besides behind it, around the hits that keep their places."""
    if not placed:
        return tuple(hits)
    known = {place for place, _ in placed}
    behind = [(place, placed[-1][1]) for place in sorted(movable - known)]
    order, made = iter([*placed, *behind]), list[Hit]()
    for place, hit in enumerate(hits):
        at, score = next(order) if place in movable else (place, made[-1].score if made else placed[0][1])
        made.append(Hit(hits[at].item if at != place else hit.item, score))
    return tuple(made)
