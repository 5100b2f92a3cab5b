"""Setwise. A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking. Zhuang and others, arXiv:2310.09497

2023: a language model is shown a few passages and says which one is the most relevant. That answer drives a sort that
is stopped once the top is known: a heap whose nodes have `children` children each, all compared with their parent in
one call, or bubbles that carry the best of each set to the front of the list. The answer is read from the logits of
the passages' letters, or from what the model writes. Ours: the wording of the prompt; passages of a set stand in
first-stage order, so that a model that always takes the first changes nothing; an answer that names none of them is
mended to the first; and a set that was asked before is not asked again. The model is whatever `LM` there is, by
default SmolLM2-135M-Instruct (Apache-2.0), which is far too small for the task.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...errors import BadInput
from ...progress import step as report
from ...retrievers.lm import LM, Prompt, ScriptedLM, require
from ...retrievers.searchable import searchable_text
from .._failing import Ended, Tokens, answered, no_verdict
from ..base import Cost, Limits, Ranking, Reranker
from . import _listwise
from ._listwise import LETTERS

if TYPE_CHECKING:
    from ...manifests.registry import Card
    from ...retrievers.base import Hit, Query
    from ...retrievers.parts import Parts

Sort = Literal["heapsort", "bubblesort"]
Mode = Literal["logits", "generate"]
Best = Callable[[Sequence[int]], int]

CHILDREN = 3
"""Passages compared with one other in one call (section 4.2 of the paper)."""
TOP = 10
"""Places that are sorted; what comes behind them stays in first-stage order."""
PASSAGE_WORDS = 100
"""The paper cuts passages at 128 tokens."""
SET_TOKENS_PER_PASSAGE = 130
ANSWER_TOKENS = 8
WANTED = "Which passage is the most relevant to the query? Answer with its letter alone."

_LABEL = re.compile(r"^\s*\[?([A-Z])(?:\]|[\s.,:;)]*$)|\[([A-Z])\]|[Pp]assage\s+\[?([A-Z])\b")


class Setwise(Reranker):
    """Orders the top of a list by questions about which of a few passages is the most relevant.

    Scores are places, from 1 downwards; hits behind the sorted ones share the lowest.

    Args:
        lm: has to give `logits`, or to `generate`.
        sort: `heapsort` or `bubblesort`.
        children: passages compared with one other in one call.
        top: places that are sorted.
        mode: where the answer is read; None for logits where the model gives them.
        words: a passage is cut after so many.

    Raises:
        Unsupported: the model cannot answer in this mode.
        BadInput: an unknown sort, one child (its heap would be a chain), or more children than there are letters.
    """

    def __init__(
        self,
        lm: LM,
        sort: Sort = "heapsort",
        children: int = CHILDREN,
        top: int = TOP,
        mode: Mode | None = None,
        words: int = PASSAGE_WORDS,
    ) -> None:
        self._mode: Mode = mode or ("logits" if "logits" in lm.can else "generate")
        require(lm, self._mode)
        if sort not in ("heapsort", "bubblesort"):
            raise BadInput(f"Unknown sort `{sort}`.", "Use `heapsort` or `bubblesort`.")
        if not 2 <= children < len(LETTERS) or top < 1:
            raise BadInput(
                f"`{children}` children and `{top}` places.", f"Give 2 to {len(LETTERS) - 1}, and at least 1."
            )
        self._lm = lm
        self._sort = sort
        self._children = children
        self._top = top
        self._words = words

    @classmethod
    def load(cls, card: Card, parts: Parts) -> Setwise:
        """With the profile's language model.

        Raises:
            MissingWeights: it is not on this machine.
        """
        return cls(parts.lm())

    @classmethod
    def tiny(cls, seed: int = 0) -> Setwise:
        """With a script whose logits count how often a letter stands alone in the prompt."""
        return cls(ScriptedLM(can=["logits"]))

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        """A permutation of `hits`; limits of calls, time and tokens are looked at before each call.

        A heap that a limit or a failure ends early gives the places it had found, bubbles the order they had made. A
        passage longer than `words`, or than the model reads, is read as far as that goes, from its beginning.

        Raises:
            Unsupported: a query without text.
        """
        limits = limits or Limits()
        text = _listwise.asked(query)
        _listwise.finite(hits)
        if len(hits) < 2:
            return Ranking(tuple(hits))
        depth, reason = _listwise.depth_of(len(hits), limits)
        passages = [_listwise.passage(searchable_text(hit.item), self._words) for hit in hits[:depth]]
        total = self._calls(depth)
        judge = Judge(lambda places: self._ask(text, [passages[place] for place in places]), limits, total)
        order: list[int] = []
        failure = None
        try:
            if self._sort == "heapsort":
                order.extend(heapsort(depth, self._top, self._children, judge.best))
            else:
                order.extend(range(depth))
                bubblesort(order, self._top, self._children, judge.best)
        except Ended as ended:
            reason, failure = str(ended), ended.failure
        if judge.calls and judge.repaired == judge.calls:
            said = f"{judge.repaired} of {judge.calls} answers had no usable verdict"
            reason, failure = f"{said}; {reason}" if failure else said, failure or no_verdict(said)
            order = []
        ranked = _listwise.placed(hits, order) if order and judge.calls else tuple(hits)
        return Ranking(ranked, judge.calls, judge.tokens, judge.repaired, reason is None, reason, failure)

    def _ask(self, query: str, passages: Sequence[str]) -> tuple[int | None, int]:
        letters = LETTERS[: len(passages)]

        def made(words: int) -> Prompt:
            return _listwise.in_letters(query, passages, WANTED, words)

        def read(prompt: Prompt) -> int | None:
            if self._mode == "logits":
                logits = _listwise.letter_logits(self._lm, prompt, letters)
                return int(np.argmax(logits)) if np.ptp(logits) > 0 else None
            return label(self._lm.generate([prompt], ANSWER_TOKENS)[0], len(passages))

        return _listwise.fitted(self._words, made, read)

    def _calls(self, n: int) -> int:
        made = heap_calls if self._sort == "heapsort" else bubble_calls
        return made(n, self._top, self._children)

    def estimate(self, n: int) -> Cost:
        """The most calls that the sort can need."""
        calls = self._calls(n)
        return Cost(calls, calls * (SET_TOKENS_PER_PASSAGE * (self._children + 1) + 60))


class Judge:
    """Asks for the best of a set, once per set, inside the limits.

    Attributes:
        calls, tokens, repaired: what that took; `repaired` counts answers that named no passage.

    Args:
        ask: the index of the best passage at these places, None where the answer names none; and the tokens it took.
        total: calls that are expected.
    """

    def __init__(self, ask: Callable[[Sequence[int]], tuple[int | None, int]], limits: Limits, total: int) -> None:
        self.calls = self.repaired = 0
        self._tokens = Tokens()
        self._ask = ask
        self._limits = limits
        self._total = total
        self._start = time.monotonic()
        self._known: dict[tuple[int, ...], int] = {}

    @property
    def tokens(self) -> int:
        return self._tokens.spent

    def best(self, places: Sequence[int]) -> int:
        """The place of the most relevant passage among `places`."""
        given = tuple(sorted(places))
        if given not in self._known:
            self._known[given] = self._asked(given)
        return self._known[given]

    def _asked(self, given: tuple[int, ...]) -> int:
        limits, done = self._limits, f"{self.calls} of up to {self._total} calls"
        if limits.calls is not None and self.calls >= limits.calls:
            raise Ended(f"calls limit: {done}")
        if limits.seconds is not None and time.monotonic() - self._start >= limits.seconds:
            raise Ended(f"{limits.seconds:g} s passed after {done}")
        self._tokens.look(limits, done)
        going = partial(report, self.calls, self._total, "comparisons")
        going()
        found, tokens = answered(partial(self._ask, given), done, going)
        self.calls += 1
        self._tokens.add(tokens)
        self.repaired += found is None
        return given[found or 0]


def heapsort(n: int, top: int, children: int, best: Best) -> Iterator[int]:
    """The first `top` of `range(n)`, best first, by a heap in which the best of each family is its parent."""
    heap = list(range(n))
    for parent in range((n - 2) // children, -1, -1):
        _sift(heap, parent, children, best)
    for place in range(min(top, n)):
        if place:
            heap[0] = heap[-1]
            heap.pop()
            _sift(heap, 0, children, best)
        yield heap[0]


def _sift(heap: list[int], parent: int, children: int, best: Best) -> None:
    while family := heap[children * parent + 1 : children * parent + 1 + children]:
        winner = best([heap[parent], *family])
        if winner == heap[parent]:
            return
        child = children * parent + 1 + family.index(winner)
        heap[parent], heap[child] = heap[child], heap[parent]
        parent = child


def bubblesort(order: list[int], top: int, children: int, best: Best) -> None:
    """Carries the best of `order` to its front, in place, `top` times; the others keep their order."""
    for front in range(min(top, len(order) - 1)):
        end = len(order)
        while end - front > 1:
            start = max(front, end - children - 1)
            winner = best(order[start:end])
            order.remove(winner)
            order.insert(start, winner)
            end = start + 1


def heap_calls(n: int, top: int, children: int) -> int:
    """The most calls of `heapsort`: every sift goes to the bottom."""

    def height(node: int, size: int) -> int:
        levels = 0
        while children * node + 1 < size:
            node, levels = children * node + 1, levels + 1
        return levels

    if n < 2:
        return 0
    built = sum(height(node, n) for node in range((n - 2) // children + 1))
    return built + sum(height(0, n - taken) for taken in range(1, min(top, n)))


def bubble_calls(n: int, top: int, children: int) -> int:
    """The most calls of `bubblesort`: every set is a new one."""
    return sum(-(-(n - front - 1) // children) for front in range(min(top, n - 1))) if n > 1 else 0


def label(answer: str, n: int) -> int | None:
    """Which of `n` passages an answer such as `B]`, `[B]` or `Passage B` names; None for none of them.

    >>> label("B]", 4), label("Passage C, because", 4), label("A cat is a pet.", 4)
    (1, 2, None)
    """
    found = _LABEL.search(answer)
    place = LETTERS.find(next(filter(None, found.groups()))) if found else -1
    return place if 0 <= place < n else None
