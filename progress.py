"""Progress and cancellation of long work, without a parameter in every signature.

Library code calls `step(done, total)` between batches. Whoever started the work decides with `reporting(...)` what
happens: a bar on stderr, an MCP progress notification, cancellation, a deadline, or (by default) nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Event

from .errors import Cancelled, TimedOut

RESERVE_S = 10.0
OnStep = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class _Watch:
    on_step: OnStep | None
    cancelled: Event | None
    deadline: float | None


_watch: ContextVar[_Watch | None] = ContextVar("triptych_progress", default=None)


@contextmanager
def reporting(
    on_step: OnStep | None = None, *, cancelled: Event | None = None, timeout_s: float | None = None
) -> Iterator[None]:
    """Within this block `step` reports to `on_step(done, total, what)` and obeys `cancelled` and `timeout_s`.

    Threads started inside see it only if the context is copied to them (`contextvars.copy_context().run`).
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    token = _watch.set(_Watch(on_step, cancelled, deadline))
    try:
        yield
    finally:
        _watch.reset(token)


def left_s() -> float:
    """Seconds that what comes next may take; infinite without a deadline.

    The caller's deadline is further away: `RESERVE_S`, or a quarter of the time where that is less, is kept for making
    an answer of what there is by then.
    """
    watch = _watch.get()
    if watch is None or watch.deadline is None:
        return math.inf
    left = watch.deadline - time.monotonic()
    return left - min(RESERVE_S, left / 4)


def step(done: int, total: int | None = None, what: str = "") -> None:
    """Say that `done` of `total` units of `what` are finished.

    Raises:
        Cancelled: the caller's event is set.
        TimedOut: the caller's deadline has passed.
    """
    watch = _watch.get()
    if watch is None:
        return
    if watch.on_step is not None:
        watch.on_step(done, total, what)
    if watch.cancelled is not None and watch.cancelled.is_set():
        raise Cancelled("The work was cancelled.", "What was already acknowledged is kept; run it again to go on.")
    if watch.deadline is not None and time.monotonic() > watch.deadline:
        raise TimedOut("The work passed its deadline.", "Ask for less, or raise the timeout.")
