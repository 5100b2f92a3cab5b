"""FIRST: Faster Improved Listwise Reranking with Single Token Decoding. Gangi Reddy and others 2024, arXiv:2406.15657

The passages of a window are named A to T, the answer begins with an open bracket, and the logits of the twenty letters
as its next token rank the whole window in one forward pass; nothing is written. Windows of 20 slide from the back of
the list to the front in steps of 10, as in RankGPT. This is the zero-shot form, on any `LM` that gives logits (by
default SmolLM2-135M-Instruct, Apache-2.0). The paper's model is fine-tuned for it, by a language modelling loss and a
RankNet loss weighted by rank at this one token (`rryisthebest/First_Model`, 7 B parameters); neither its weights nor
the training is here, nor the paper's relevance feedback. The wording of the prompt is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput
from ...retrievers.lm import LM, Prompt, ScriptedLM, require
from ..base import Cost, Limits, Ranking, Reranker
from . import _listwise
from ._listwise import LETTERS, PASSAGE_WORDS, STEP, WINDOW, Verdict

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts

WANTED = (
    "Rank the passages by their relevance to the query, the most relevant first. Answer with the letters of all "
    "passages in the form [B] > [A], and with nothing else."
)


class FIRST(Reranker):
    """Orders hits by how likely a language model is to name each passage first.

    Scores are places, from 1 downwards: logits of two windows mean nothing to each other. Equal logits keep the order
    given.

    Args:
        lm: has to give `logits`.
        window, step: passages per call (at most 20, one letter each), and how far one window reaches before the next.
        words: a passage is cut after so many.

    Raises:
        Unsupported: the model gives no logits.
        BadInput: a window of more passages than there are letters, or a step that is no part of it.
    """

    def __init__(self, lm: LM, window: int = WINDOW, step: int = STEP, words: int = PASSAGE_WORDS) -> None:
        require(lm, "logits")
        if not 2 <= window <= len(LETTERS):
            raise BadInput(f"The window is `{window}`.", f"Each passage has a letter: give 2 to {len(LETTERS)}.")
        if not 1 <= step <= window:
            raise BadInput(f"The step is `{step}`.", f"Give 1 to {window}, the window.")
        self._lm = lm
        self._window = window
        self._step = step
        self._words = words

    @classmethod
    def load(cls, card: Card, parts: Parts) -> FIRST:
        """With the profile's language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> FIRST:
        """With a script whose logits count how often a letter stands alone in the prompt."""
        return cls(ScriptedLM(can=["logits"]))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; see `_listwise.slide` for the limits, and for passages that are too long.

        Raises:
            Unsupported: a query without text, or logits that are no numbers.
            BadInput: the model's tokenizer has no token for each letter.
        """
        return _listwise.slide(query, hits, limits, self._ask, self._window, self._step)

    def _ask(self, query: str, passages: Sequence[str]) -> tuple[Verdict, int]:
        letters = LETTERS[: len(passages)]

        def made(words: int) -> Prompt:
            return _listwise.in_letters(query, passages, WANTED, words)

        logits, tokens = _listwise.fitted(
            self._words, made, lambda prompt: _listwise.letter_logits(self._lm, prompt, letters)
        )
        order = np.argsort(-logits, kind="stable")
        # An endpoint that shows none of the letters among its likeliest tokens has said nothing.
        usable = bool(np.ptp(logits) > 0)
        return Verdict(tuple(map(int, order)), repairs=0 if usable else len(letters), usable=usable), tokens

    def estimate(self, n: int) -> Cost:
        """One forward pass for each window."""
        return _listwise.estimate(n, self._window, self._step)
