"""What pairwise systems share: the prompt, both orders of every pair, verdicts, counts, limits, and the answer's form.

Two passages are shown twice, each once as A and once as B. A passage wins where both answers name it; anything else is
a tie, which takes the model's liking for one of the letters out of the verdict (arXiv:2306.17563).
The answer is one letter: read off the scores of `A` and `B` as the next token, or written by the model and parsed.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from ...errors import Unsupported
from ...progress import step
from ...retrievers.base import Hit
from ...retrievers.lm import LM, require
from ...retrievers.searchable import searchable_text
from .._pointwise import as_data
from ..base import Cost, Limits, Ranking
from ._listwise import CHARACTERS_PER_TOKEN, asked, depth_of, finite

if TYPE_CHECKING:
    from ...retrievers.base import Item, Query

Mode = Literal["score", "generate"]
Placed = Sequence[tuple[int, float]]
"""Places in the first stage's list with their new scores, best first."""

PROMPT = (
    'Given a query "{query}", which of the following two passages is more relevant to the query?\n\n'
    "Passage A: {a}\n\nPassage B: {b}\n\nAnswer with one letter, A or B."
)
LABELS = ("A", "B")
PASSAGE_CHARACTERS = 700
QUERY_CHARACTERS = 500
"""A longer one is cut here: two passages and the query then fit into 8,192 tokens in every script."""
PROMPT_TOKENS = 400
"""For estimates of two passages of usual length."""
ANSWER_TOKENS = 12
AT_ONCE = 16
"""Prompts in one call of the model."""

_ALONE = re.compile(r"\W*(?:(?:the )?(?:answer|output)(?: is)?\W*)?(?:passage\W*)?([ab])\W*", re.IGNORECASE)
_NAMED = re.compile(r"\bpassage\W{0,3}([AB])\b", re.IGNORECASE)


class Spent(Exception):
    """A limit is reached: nothing more is asked, and what is known so far decides."""


class Pairs:
    """The comparisons of one list of passages, numbered by the first stage's order. Each is asked once, in both orders.

    Attributes:
        n: how many passages.
        calls: prompts so far, two for each pair.
        tokens: of these prompts, at four characters each.
        repaired: answers that named neither passage or both; such an answer counts as no preference.
        decided: answers that prefer one of the two passages.
        reason: which limit was reached.

    Args:
        query: its text, as `_listwise.asked` gives it.
        most: the calls that ranking them takes at most, for progress and reasons.
    """

    def __init__(
        self,
        lm: LM,
        mode: Mode,
        query: str,
        items: Sequence[Item],
        limits: Limits | None,
        most: int,
    ) -> None:
        self.n = len(items)
        self.calls = self.tokens = self.repaired = self.decided = 0
        self.reason: str | None = None
        self._answers: Callable[[Sequence[str]], list[float | None]] = lambda prompts: _answers(lm, mode, prompts)
        self._query = query[:QUERY_CHARACTERS]
        self._texts = [as_data(searchable_text(item), PASSAGE_CHARACTERS) for item in items]
        self._limits = limits or Limits()
        self._most = most
        self._start = time.monotonic()
        self._first: dict[tuple[int, int], float] = {}

    def ask(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Make these pairs known, in as few calls of the model as they take.

        Raises:
            Spent: a limit did not allow all of them; the first of them may be known.
        """
        new = [pair for pair in dict.fromkeys((min(pair), max(pair)) for pair in pairs) if not self.known(*pair)]
        left = len(new) if self._limits.calls is None else (self._limits.calls - self.calls) // len(LABELS)
        # Sorted, so that prompts with the same first passage stand together and a model may read that part once.
        orders = sorted(order for i, j in new[: max(left, 0)] for order in ((i, j), (j, i)))
        for first in range(0, len(orders), AT_ONCE):
            self._look_at_the_clock()
            step(self.calls, self._most, "comparisons")
            self._read(orders[first : first + AT_ONCE])
        if left < len(new):
            self._stop(f"calls limit: {self.calls} of {self._most} calls")

    def known(self, i: int, j: int) -> bool:
        """Whether both orders of the pair were asked."""
        return (i, j) in self._first and (j, i) in self._first

    def preference(self, i: int, j: int) -> float:
        """P(i is preferred | i is shown first), 0 to 1; 1/2 where that is not known."""
        return self._first.get((i, j), 0.5)

    def points(self, i: int, j: int) -> float:
        """What `i` earns against `j`: 1 for a win in both orders, 0 for a loss in both, 1/2 for anything else."""
        first, second = self.preference(i, j), self.preference(j, i)
        if first > 0.5 > second:
            return 1.0
        return 0.0 if first < 0.5 < second else 0.5

    def _look_at_the_clock(self) -> None:
        seconds = self._limits.seconds
        if seconds is not None and time.monotonic() - self._start >= seconds:
            self._stop(f"{seconds:g} s passed after {self.calls} of {self._most} calls")

    def _stop(self, reason: str) -> None:
        self.reason = reason
        raise Spent(reason)

    def _read(self, orders: Sequence[tuple[int, int]]) -> None:
        prompts = [PROMPT.format(query=self._query, a=self._texts[i], b=self._texts[j]) for i, j in orders]
        for order, answer in zip(orders, self._answers(prompts), strict=True):
            self._first[order] = 0.5 if answer is None else answer
            self.repaired += answer is None
            self.decided += answer is not None and answer != 0.5
        self.calls += len(prompts)
        self.tokens += sum(len(prompt) // CHARACTERS_PER_TOKEN for prompt in prompts)


def mode_of(lm: LM, wanted: Mode | None) -> Mode:
    """How answers are had from `lm`: as `wanted`, else from scores where it gives them.

    Raises:
        Unsupported: it cannot do what is needed.
    """
    mode: Mode = wanted or ("score" if "logits" in lm.can else "generate")
    require(lm, "logits" if mode == "score" else "generate")
    return mode


def rank(
    lm: LM,
    mode: Mode,
    query: Query,
    hits: Sequence[Hit],
    limits: Limits | None,
    estimate: Callable[[int], Cost],
    order: Callable[[Pairs], Placed],
) -> Ranking:
    """`hits` in the order that `order` makes of their comparisons; those below the depth limit follow behind.

    Without a single answer that prefers a passage they come back as they are, incomplete, with the reason.

    Args:
        estimate: what ranking so many passages costs at most.
        order: asks pairs, and places all of `pairs.n` passages.

    Raises:
        BadInput: a score that came in is not a number, or a limit is negative.
        Unsupported: a query without text, or a model whose scores are no numbers.
    """
    text = asked(query)
    finite(hits)
    depth, reason = depth_of(len(hits), limits or Limits())
    reasons = [reason] if reason and len(hits) > 1 else []
    if len(hits) < 2 or depth < 2:
        return Ranking(tuple(hits), complete=not reasons, reason="; ".join(reasons) or None)
    pairs = Pairs(lm, mode, text, [hit.item for hit in hits[:depth]], limits, estimate(depth).calls)
    placed = order(pairs)
    reasons += [pairs.reason] if pairs.reason else []
    if not pairs.decided:
        reasons += [f"none of {pairs.calls} answers prefers a passage: the first stage's order"] if pairs.calls else []
        ranked = tuple(hits)
    else:
        best = [Hit(hits[place].item, score) for place, score in placed]
        ranked = (*best, *(Hit(hit.item, best[-1].score) for hit in hits[depth:]))
    return Ranking(
        hits=ranked,
        calls=pairs.calls,
        tokens=pairs.tokens,
        repaired=pairs.repaired,
        complete=not reasons,
        reason="; ".join(reasons) or None,
    )


def by_score(scores: Sequence[float]) -> Placed:
    """Highest first; equal scores in the first stage's order.

    >>> by_score([1.0, 2.0, 2.0])
    [(1, 2.0), (2, 2.0), (0, 1.0)]
    """
    return sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))


def by_place(order: Sequence[int]) -> Placed:
    """Scores for an order that has none: from 1 downwards in equal steps; they mean the place and nothing else.

    >>> by_place([2, 0])
    [(2, 1.0), (0, 0.5)]
    """
    return [(one, (len(order) - place) / len(order)) for place, one in enumerate(order)]


def parsed(answer: str) -> float | None:
    """1 where an answer names passage A, 0 for B; None where it names neither, or both.

    An answer whose first line is nothing but a label names that one, whatever follows.

    >>> [parsed(answer) for answer in ("Passage A", "b.", "The answer is passage B", "A passage about cats", "A or B")]
    [1.0, 0.0, 0.0, None, None]
    """
    alone = _ALONE.fullmatch(answer.strip().partition("\n")[0])
    named = {alone[1].upper()} if alone else {label.upper() for label in _NAMED.findall(answer)}
    return float(named == {"A"}) if len(named) == 1 else None


def _answers(lm: LM, mode: Mode, prompts: Sequence[str]) -> list[float | None]:
    said = [[prompt] for prompt in prompts]
    if mode == "generate":
        return [parsed(answer) for answer in lm.generate(said, ANSWER_TOKENS)]
    return [_chance(float(a) - float(b)) for a, b in lm.next_token_logits(said, LABELS)]


def _chance(margin: float) -> float:
    """P(A) of two logits that are `margin` apart."""
    if math.isnan(margin):
        raise Unsupported("The model scored an answer `nan`.", "Use the precision `float32`.")
    return (1 + math.tanh(margin / 2)) / 2
