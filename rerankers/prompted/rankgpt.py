"""RankGPT. Is ChatGPT Good at Search? Sun, Yan, Ma and others 2023, arXiv:2304.09542

A language model reads a window of passages in a conversation, one turn for each, and answers with their numbers in
order of relevance; windows of 20 slide from the back of the list to the front in steps of 10. Ours: the wording of the
prompt; a passage that says `[1] > [2]` says `(1) > (2)`; an answer in prose that names no passage is no verdict (the
paper's parser takes any digit for one); and passages are halved, up to three times, where a window is longer than the
model reads. The model is whatever `LM` there is, by default SmolLM2-135M-Instruct (Apache-2.0), which is far too small
for the task: most of its answers have to be mended. Permutation distillation (section 4 of the paper: a student that
learns a teacher's order by RankNet) is not here, and neither are the paper's distilled models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from ...errors import BadInput
from ...retrievers.lm import LM, Prompt, ScriptedLM, require
from ..base import Cost, Limits, Ranking, Reranker
from . import _listwise
from ._listwise import PASSAGE_WORDS, STEP, WINDOW, Verdict

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts

_SHOWN = re.compile(r"\[(\d+)\] (.*?) ?Received passage \1\.", re.DOTALL)


class RankGPT(Reranker):
    """Orders hits by the permutations that a language model writes.

    Scores are places, from 1 downwards. `repaired` counts answers with missing, repeated or invented numbers.

    Args:
        lm: has to `generate`.
        window, step: passages per call, and how far one window reaches before the next.
        words: a passage is cut after so many.

    Raises:
        Unsupported: the model writes no answers.
        BadInput: a step that is no part of the window.
    """

    def __init__(self, lm: LM, window: int = WINDOW, step: int = STEP, words: int = PASSAGE_WORDS) -> None:
        require(lm, "generate")
        if not 1 <= step <= window or window < 2:
            raise BadInput(f"The window is `{window}` and the step `{step}`.", "Give a step from 1 to the window.")
        self._lm = lm
        self._window = window
        self._step = step
        self._words = words

    @classmethod
    def load(cls, card: Card, parts: Parts) -> RankGPT:
        """With the profile's language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> RankGPT:
        """With a script that ranks by an arbitrary number made of each passage's words."""
        return cls(ScriptedLM(lambda prompt: scripted(prompt, seed), can=["generate"]))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; see `_listwise.slide` for the limits, and for passages that are too long.

        Raises:
            Unsupported: a query without text.
        """
        return _listwise.slide(query, hits, limits, self._ask, self._window, self._step)

    def _ask(self, query: str, passages: Sequence[str]) -> tuple[Verdict, int]:
        room = _listwise.room(len(passages))

        def made(words: int) -> Prompt:
            return _listwise.conversation(query, passages, words)

        def read(prompt: Prompt) -> str:
            return self._lm.generate([prompt], room)[0]

        answer, tokens = _listwise.fitted(self._words, made, read)
        return _listwise.parse(answer, len(passages)), tokens + len(answer) // _listwise.CHARACTERS_PER_TOKEN

    def estimate(self, n: int) -> Cost:
        """One call for each window."""
        return _listwise.estimate(n, self._window, self._step)


def scripted(prompt: str, seed: int) -> str:
    """The answer of `tiny`'s script to a prompt of `_listwise.conversation`."""
    shown = _SHOWN.findall(prompt)
    best = sorted(shown, key=lambda one: crc32(one[1].encode(), seed))
    return " > ".join(f"[{number}]" for number, _ in best)
