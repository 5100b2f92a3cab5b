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
from functools import partial
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from ...errors import Unsupported
from ...progress import step
from ...retrievers.base import Hit
from ...retrievers.lm import LM, ScriptedLM, require
from ...retrievers.searchable import searchable_text
from .._failing import Ended, Tokens, answered, fitting, no_verdict
from .._pointwise import as_data
from ..base import Cost, Limits, Ranking
from ._listwise import CHARACTERS_PER_TOKEN, asked, depth_of, finite

if TYPE_CHECKING:
    from ...errors import TriptychError
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
_SHOWN = re.compile(r"\n\nPassage A: (.*)\n\nPassage B: (.*)\n\nAnswer with one letter")
_NAMED = re.compile(r"\bpassage\W{0,3}([AB])\b", re.IGNORECASE)


Spent = Ended
"""A limit is reached, or the model's endpoint fails: nothing more is asked, and what is known so far decides."""


class Pairs:
    """The comparisons of one list of passages, numbered by the first stage's order. Each is asked once, in both orders.

    Attributes:
        n: how many passages.
        calls: prompts so far, two for each pair.
        tokens: of these prompts, at four characters each.
        repaired: answers that named neither passage or both; such an answer counts as no preference.
        reason: which limit was reached, or how the model failed.
        failure: its error, if it did.

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
        self.calls = self.repaired = 0
        self.reason: str | None = None
        self.failure: TriptychError | None = None
        self._tokens = Tokens()
        self._answers: Callable[[Sequence[str]], list[float | None]] = lambda prompts: _answers(lm, mode, prompts)
        self._query = query[:QUERY_CHARACTERS]
        self._texts = [as_data(searchable_text(item), PASSAGE_CHARACTERS) for item in items]
        self._limits = limits or Limits()
        self._most = most
        self._start = time.monotonic()
        self._first: dict[tuple[int, int], float] = {}

    @property
    def tokens(self) -> int:
        return self._tokens.spent

    def ask(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Make these pairs known, in as few calls of the model as they take (one for each under a limit of tokens).

        Raises:
            Spent: a limit did not allow all of them, or the model failed; the first of them may be known.
        """
        try:
            self._ask(pairs)
        except Ended as ended:
            self.reason, self.failure = str(ended), ended.failure
            raise

    def _ask(self, pairs: Iterable[tuple[int, int]]) -> None:
        new = [pair for pair in dict.fromkeys((min(pair), max(pair)) for pair in pairs) if not self.known(*pair)]
        left = len(new) if self._limits.calls is None else (self._limits.calls - self.calls) // len(LABELS)
        # Sorted, so that prompts with the same first passage stand together and a model may read that part once.
        orders = sorted(order for i, j in new[: max(left, 0)] for order in ((i, j), (j, i)))
        at_once = AT_ONCE if self._limits.tokens is None else 1
        for first in range(0, len(orders), at_once):
            self._look_at_the_limits()
            going = partial(step, self.calls, self._most, "comparisons")
            going()
            answered(partial(self._read, orders[first : first + at_once]), self._so_far(), going)
        if left < len(new):
            raise Ended(f"calls limit: {self.calls} of {self._most} calls")

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

    def verdicts(self) -> int:
        """How many pairs have a winner, whichever of its passages is shown first."""
        return sum(i < j and self.points(i, j) != 0.5 for i, j in self._first)

    def _so_far(self) -> str:
        return f"{self.calls} of {self._most} calls"

    def _look_at_the_limits(self) -> None:
        seconds = self._limits.seconds
        if seconds is not None and time.monotonic() - self._start >= seconds:
            raise Ended(f"{seconds:g} s passed after {self._so_far()}")
        self._tokens.look(self._limits, self._so_far())

    def _read(self, orders: Sequence[tuple[int, int]]) -> None:
        def read(some: Sequence[tuple[int, int]], share: float) -> list[tuple[float | None, int]]:
            prompts = [self._prompt(i, j, share) for i, j in some]
            sizes = [len(prompt) // CHARACTERS_PER_TOKEN for prompt in prompts]
            return list(zip(self._answers(prompts), sizes, strict=True))

        for order, (answer, tokens) in zip(orders, fitting(orders, read), strict=True):
            self._first[order] = 0.5 if answer is None else answer
            self.repaired += answer is None
            self.calls += 1
            self._tokens.add(tokens)

    def _prompt(self, i: int, j: int, share: float) -> str:
        a, b = (self._texts[place][: int(PASSAGE_CHARACTERS * share)] for place in (i, j))
        return PROMPT.format(query=self._query, a=a, b=b)


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
    decided: Callable[[Pairs], bool] = lambda pairs: pairs.verdicts() > 0,
) -> Ranking:
    """`hits` in the order that `order` makes of their comparisons; those below the depth limit follow behind.

    A passage longer than `PASSAGE_CHARACTERS`, or than the model reads, is read as far as that, from its beginning.
    Without a single verdict, for which both orders of a pair have to name the same passage, they come back as they are,
    incomplete, with the reason.

    Args:
        estimate: what ranking so many passages costs at most.
        order: asks pairs, and places all of `pairs.n` passages.
        decided: whether any verdict came.

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
    failure = pairs.failure
    if not decided(pairs):
        said = f"none of {pairs.calls // 2} pairs has a winner in both orders: the first stage's order"
        reasons += [said] if pairs.calls else []
        failure = failure or (no_verdict(said) if pairs.calls else None)
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
        failure=failure,
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


def scripted(seed: int) -> LM:
    """For `tiny`: prefers the passage with the higher of two arbitrary numbers made of their words."""

    def said(prompt: str) -> str:
        [pair] = _SHOWN.findall(prompt)
        a, b = (crc32(text.encode(), seed) for text in pair)
        return LABELS[a < b]

    return ScriptedLM(said, can=["generate"])


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
