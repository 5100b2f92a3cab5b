"""What one client may ask of a server: how often, how much at once, how large.

A refused call is an answer that a model can read: what was too much, and when to ask again.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, TriptychError

if TYPE_CHECKING:
    from ..settings import Settings

KNOWN_CLIENTS = 1000
"""Clients whose rate is remembered; the one that has been silent longest makes room."""
BURST_SHARE = 10
"""A client that was silent may make this part of a minute's calls at once, but always `LEAST_BURST`."""
LEAST_BURST = 20
DEEPEST = 12
MOST_VALUES = 5000
LONGEST_TEXT = 20_000
MOST_DIGITS = 18


class TooMany(TriptychError):
    """More calls than the server takes from one client, or at once."""

    exit_code = 6


class Rate:
    """A token bucket for each client. Safe from many threads.

    Args:
        per_minute: calls a minute, 0 for no limit.
        now: seconds that only grow.
    """

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._most = float(max(LEAST_BURST, per_minute // BURST_SHARE)) if per_minute >= LEAST_BURST else per_minute
        self._now = now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, client: str) -> None:
        """Count one call of `client`.

        Raises:
            TooMany: it has none left; the hint says for how long.
        """
        if not self._per_second:
            return
        with self._lock:
            now = self._now()
            left, since = self._left.pop(client, (self._most, now))
            left = min(self._most, left + (now - since) * self._per_second)
            allowed = left >= 1
            self._left[client] = (left - 1 if allowed else left, now)
            while len(self._left) > KNOWN_CLIENTS:
                self._left.popitem(last=False)
        if not allowed:
            wait = math.ceil((1 - left) / self._per_second)
            raise TooMany(f"More than `{self._per_second * 60:.0f}` calls a minute.", f"Ask again in {wait} s.")


class Crowd:
    """How many calls are inside. Safe from many threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._lock = Lock()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While one call is at work or waits for its turn.

        Raises:
            TooMany: the server is full.
        """
        with self._lock:
            if self._inside >= self._most:
                raise TooMany(f"`{self._inside}` calls are under way already.", "Ask again when one has ended.")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    @property
    def inside(self) -> int:
        """Calls under way."""
        return self._inside


class Limits:
    """The limits of one server, from its settings."""

    def __init__(self, settings: Settings) -> None:
        self.rate = Rate(settings.call_rate)
        self.crowd = Crowd(settings.calls_at_once or 10**9)
        self.timeout_s = float(settings.call_timeout) or None
        self.result_chars = settings.result_chars
        self.image_bytes = settings.image_bytes

    def checked_text(self, text: str) -> str:
        """`text`, unless it is longer than a result may be, which is `BadInput`: a token can stand for many spaces."""
        if len(text) > self.result_chars:
            message = f"The answer has `{len(text)}` characters; this server gives at most {self.result_chars:,}."
            raise BadInput(message, "Ask for less: a smaller `max_tokens`, `k` or `span`.")
        return text


def checked_arguments(given: Any) -> None:
    """Refuse arguments that are larger than any tool could mean, before anything looks at them more closely.

    Raises:
        BadInput: nested too deeply, too many values, a text too long, a number with too many digits.
    """
    waiting: list[tuple[Any, int]] = [(given, 0)]
    values = 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if depth > DEEPEST:
            raise BadInput(f"The arguments are nested more than `{DEEPEST}` deep.", "Send them flat.")
        if values > MOST_VALUES:
            raise BadInput(f"The arguments hold more than `{MOST_VALUES}` values.", "Send less at once.")
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            hint = f"Send at most {LONGEST_TEXT:,} in one piece."
            raise BadInput(f"An argument holds a text of `{len(value)}` characters.", hint)
        if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            raise BadInput(f"An argument holds a number of more than `{MOST_DIGITS}` digits.", "Send a smaller one.")
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            waiting += [(part, depth + 1) for part in value]
