"""How a ranking ends that its model does not finish: a limit of tokens, an endpoint's failure, or no usable verdict.

None of these loses the ranking: `Ended` goes up to where the best order so far is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..errors import BadInput, EndpointError, TimedOut, TriptychError, Unsupported

if TYPE_CHECKING:
    from .base import Limits

SHARES = (1.0, 0.5, 0.25, 0.125)
"""A prompt that is longer than the model can read is asked again with so much of what its passages had."""

Answer = TypeVar("Answer")
Asked = TypeVar("Asked")


class Ended(Exception):
    """Nothing more is asked; the message is the ranking's `reason`.

    Attributes:
        failure: the model's error, None where a limit was reached.
    """

    def __init__(self, reason: str, failure: TriptychError | None = None) -> None:
        super().__init__(reason)
        self.failure = failure


def answered(ask: Callable[[], Answer], done: str, again: Callable[[], None]) -> Answer:
    """What `ask` answers.

    Args:
        done: what is behind, for the reason: `3 of 9 windows`.
        again: the `progress.step` before this call: where the caller's own deadline has passed, or the caller has
            cancelled, it raises that once more.

    Raises:
        Ended: the endpoint cannot be reached, refuses, is too slow, or answers with something else than it should.
    """
    try:
        return ask()
    except (EndpointError, TimedOut) as error:
        again()
        raise Ended(f"the model failed after {done}: {error.message.rstrip('.')}", error) from None


@dataclass
class Tokens:
    """The tokens of one ranking.

    Attributes:
        spent: by all calls so far.
        largest: by one of them.
    """

    spent: int = 0
    largest: int = 0

    def add(self, tokens: int) -> None:
        """Count one call."""
        self.spent += tokens
        self.largest = max(self.largest, tokens)

    def look(self, limits: Limits, done: str) -> None:
        """Raises `Ended` where the limit leaves no room for a call as large as the largest before it."""
        if limits.tokens is not None and self.spent + max(self.largest, 1) > limits.tokens:
            raise Ended(f"tokens limit: {self.spent} of {limits.tokens} after {done}")


def no_verdict(reason: str) -> Unsupported:
    """The failure of a model whose answers, all or some, rank nothing."""
    message = f"The reranker's model is not up to its task: {reason}."
    return Unsupported(message, "Use a larger language model, or another system.")


def fitting(asked: Sequence[Asked], read: Callable[[Sequence[Asked], float], list[Answer]]) -> list[Answer]:
    """`read(asked, 1.0)`; where something in it is refused, each is read alone, with smaller and smaller shares.

    Args:
        read: reads prompts with such a share of the usual length of their passages, from the beginning.

    Raises:
        BadInput: one is refused in the shortest form, too.
    """
    try:
        return read(asked, SHARES[0])
    except BadInput as error:
        refused = error
    if len(asked) > 1:
        return [answer for one in asked for answer in fitting([one], read)]
    for share in SHARES[1:]:
        try:
            return read(asked, share)
        except BadInput as error:
            refused = error
    raise refused
