"""A language model that need not be one: it knows how good each passage is, and compares two with noise and a bias."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.retrievers.lm import LM, Prompt

QUERY = Query("the best document")
BETA = 2.0
"""How much a standard deviation of quality counts in logits."""
BIAS = 1.0
"""Logits in favour of whichever passage is shown as A."""
NOISE = 1.5
"""Standard deviation of what each single prompt adds, in logits; the same prompt always adds the same."""
INFORMED = 1.0
"""A first stage that knows something: quality times this, and noise of a standard deviation of one."""
UNSEEN = 100
"""Seeds below it were looked at while the systems were built."""

_SHOWN = re.compile(r"^Passage [AB]: .*?number (\d+)$", re.M)


class Comparator(LM):
    """Bradley-Terry: P(A) = sigmoid(BETA (quality of A - quality of B) + BIAS), its logits as the model's.

    Args:
        margins: logits of A over B, for documents by their numbers (n, n).
        before: where it is given, only the order is asked in which the document with the lower place stands first; the
            other order is answered by the same answer turned round.
    """

    can = frozenset({"logits"})

    def __init__(self, margins: np.ndarray, before: dict[int, int] | None = None) -> None:
        self._margins = margins
        self._before = before

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        shown = [_SHOWN.findall(str(prompt[0])) for prompt in prompts]
        return np.array([[self._margin(int(a), int(b)), 0.0] for a, b in shown], np.float32)

    def _margin(self, a: int, b: int) -> float:
        if self._before is None or self._before[a] < self._before[b]:
            return float(self._margins[a, b])
        return -float(self._margins[b, a])


@dataclass(frozen=True)
class World:
    """Documents with known quality, as one seed makes them.

    Attributes:
        quality: standard normal (n,).
        soft: margins of a comparator that tells a probability, with noise (n, n).
        sharp: those of one that is three times as sure of differences, with a third of the noise (n, n).
        hard: those of one that tells an outcome drawn with that probability, without other noise (n, n).
        informed, blind: the documents in the order of a first stage that knows something of quality, and of one that
            does not.
    """

    quality: np.ndarray
    soft: np.ndarray
    sharp: np.ndarray
    hard: np.ndarray
    informed: list[int]
    blind: list[int]
    random: np.random.Generator = field(repr=False)

    @classmethod
    def made(cls, n: int, seed: int) -> World:
        random = np.random.default_rng(seed)
        quality = random.standard_normal(n)
        margins = BETA * (quality[:, None] - quality[None, :]) + BIAS
        drawn = random.random((n, n)) < 1 / (1 + np.exp(-margins))
        noise = NOISE * random.standard_normal((n, n))
        sharp = 3 * (margins - BIAS) + BIAS + noise / 3
        scores = INFORMED * quality + random.standard_normal(n)
        informed = [int(i) for i in np.argsort(-scores)]
        blind = [int(i) for i in random.permutation(n)]
        return cls(quality, margins + noise, sharp, np.where(drawn, 20.0, -20.0), informed, blind, random)


def hits(order: Sequence[int]) -> list[Hit]:
    """Documents as a first stage gives them, best first."""
    made = [Item(f"d{number}", f"number {number}", Source("document.txt")) for number in order]
    return [Hit(item, 1 / (place + 1)) for place, item in enumerate(made)]


def order_of(found: Sequence[Hit]) -> list[int]:
    """The documents' numbers, best first."""
    return [int(hit.item.id[1:]) for hit in found]
