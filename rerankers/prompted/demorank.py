"""DemoRank. Selecting Effective Demonstrations, Liu, Zhu and Dou 2024, arXiv:2406.16332

A language model is asked Yes or No about each passage after a few solved examples, and hits are ordered by P(Yes).
The examples are chosen for each passage: a retriever, trained on how much one example alone helps the model, finds 50,
and a reranker, trained on how much the next helps beside those already chosen, picks three one by one. An example with
the same query is never used.

What differs from the paper. Both choosers are small networks on the vectors of the profile's frozen text encoder, not a
trained E5 and a DeBERTa; candidates for feedback come from that encoder instead of BM25, and at random; the training of
the reranker is the first version's RankNet, not the second's pairs of lists. The model is whatever `LM` gives logits.
Nobody publishes weights, and none are in the package: fit your own with `DemoRank.fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import Unsupported
from ...retrievers.given import given_folder
from ...retrievers.lm import LM, require
from ...retrievers.searchable import searchable_text
from .. import _pointwise
from .._failing import fitting, no_verdict
from .._pointwise import Read, as_data
from ..base import Cost, Limits, Ranking, Reranker
from ._demonstrations import (
    KNOWN,
    PASSAGE_CHARACTERS,
    WEIGHTS,
    Chooser,
    Demonstration,
    chances,
    chooser_of,
    prompt,
)
from ._demonstrations_fit import Fitting, fit

if TYPE_CHECKING:
    from pathlib import Path

    from ...manifests.registry import Card
    from ...retrievers.base import Encoder, Hit, Item, Query
    from ...retrievers.parts import Parts

SHOTS = 3
CANDIDATES = 50
AT_ONCE = 8
"""Passages in one call of the model."""
UNDECIDED = 0.5
"""P(Yes) of a model that says nothing: an endpoint that shows neither word among its likeliest tokens."""
CHARACTERS_PER_TOKEN = 4
PASSAGE_TOKENS = 900
"""For estimates: a passage with its three examples."""
HINT = (
    "No weights are published: run `DemoRank.fit(lm, encoder, demonstrations, folder)` in Python; the folder is "
    "`weights/demorank` of the home folder (`TRIPTYCH_HOME`)."
)
SHOWN = (
    Demonstration("capital of France", "Paris is the capital of France.", True),
    Demonstration("boiling point of water", "The gearbox has six speeds.", False),
    Demonstration("who wrote Faust", "Faust is a play by Goethe.", True),
    Demonstration("height of Mont Blanc", "Rice is boiled for ten minutes.", False),
)
"""What `tiny` chooses from."""


class DemoRank(Reranker):
    """Orders hits by P(Yes), 0 to 1, equal ones in the first stage's order. Safe from many threads.

    Args:
        lm: has to give logits.
        encoder: the dense one that `chooser` was fitted on.
        known: the demonstrations to choose from.
        shots: how many are shown with each passage; 0 is a plain Yes or No.

    Raises:
        Unsupported: the model gives no logits, or the encoder is not dense.
        BadInput: there are no demonstrations.
    """

    def __init__(
        self, lm: LM, encoder: Encoder, chooser: Chooser, known: Sequence[Demonstration], shots: int = SHOTS
    ) -> None:
        require(lm, "logits")
        self._lm = lm
        self.choose = chooser_of(chooser, encoder, list(known), shots, CANDIDATES)

    @classmethod
    def load(cls, card: Card, parts: Parts) -> DemoRank:
        """With the profile's models, and what `fit` wrote into `weights/demorank` of the home folder.

        Raises:
            MissingWeights: that is not there, was fitted on another encoder, or a model is not on this machine.
        """
        folder = given_folder(card, parts.settings, WEIGHTS, KNOWN, hint=HINT)
        return cls.from_folder(parts.lm(), parts.encoder(), folder)

    @classmethod
    def from_folder(cls, lm: LM, encoder: Encoder, folder: Path, shots: int = SHOTS) -> DemoRank:
        """With what `fit` wrote into `folder`."""
        return cls(lm, encoder, *Chooser.open(folder, encoder.space.name), shots)

    @classmethod
    def tiny(cls, seed: int = 0) -> DemoRank:
        """Random weights, and four demonstrations."""
        from ...retrievers.lm_transformers import TransformersLM
        from ...retrievers.text.all_minilm_l6_v2 import AllMiniLM

        encoder = AllMiniLM.tiny(seed)
        return cls(TransformersLM.tiny(seed), encoder, Chooser.random(encoder.space.dim, seed), SHOWN)

    @staticmethod
    def fit(
        lm: LM, encoder: Encoder, known: Sequence[Demonstration], out: Path, fitting: Fitting | None = None
    ) -> Chooser:
        """Learn to choose from `known` by the model's feedback, and write that into `out`; see `Fitting`.

        Run again after an interruption, it asks the model only what it was not asked before.
        """
        return fit(lm, encoder, known, out, fitting or Fitting())

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; a time limit is looked at before every eighth passage.

        A passage longer than `PASSAGE_CHARACTERS` is read as far as these go, from its beginning; where the prompt is
        longer than the model reads, passage and demonstrations become fewer. A hit for which Yes and No are as likely
        as each other keeps its place.

        Raises:
            Unsupported: a query without text.
        """
        if query.text is None:
            raise Unsupported("DemoRank needs text, and the query has `None`.", "Ask with text.")
        asked = query.text

        def read(items: Sequence[Item], share: float) -> list[Read]:
            texts = [searchable_text(item) for item in items]
            chosen = self.choose(asked, texts)
            if share < 1:
                texts = [as_data(text, int(PASSAGE_CHARACTERS * share)) for text in texts]
                chosen = [shots[: int(len(shots) * share)] for shots in chosen]
            prompts = [prompt(shots, asked, text) for shots, text in zip(chosen, texts, strict=True)]
            scores = [None if score == UNDECIDED else float(score) for score in chances(self._lm, prompts)]
            return [Read(score, len(one) // CHARACTERS_PER_TOKEN) for score, one in zip(scores, prompts, strict=True)]

        verdicts: list[Read] = []

        def kept(items: Sequence[Item]) -> list[Read]:
            verdicts.extend(fitting(items, read))
            return verdicts[-len(items) :]

        found = _pointwise.rank(hits, limits, kept, lambda score, say: score, AT_ONCE)
        if verdicts and found.failure is None and all(one.score is None for one in verdicts):
            return replace(found, failure=no_verdict(found.reason or ""))
        return found

    def estimate(self, n: int) -> Cost:
        """One call and about 900 tokens per hit."""
        return Cost(calls=n, tokens=n * PASSAGE_TOKENS) if n > 1 else Cost(calls=0, tokens=0)
