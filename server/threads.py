"""Work of a call on a thread of its own: progress goes out, cancellation and the deadline go in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from .. import progress
from ..errors import TimedOut

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

GRACE_S = 2.0
"""How long after its deadline work may take to come to a step; then the caller gets its answer without it."""
Made = TypeVar("Made")

log = logging.getLogger(__name__)


async def worked(
    task: Callable[[], Made], context: Context[Any, Any] | None = None, timeout_s: float | None = None
) -> Made:
    """What `task` makes; cancelling the caller stops it at its next step.

    Raises:
        TimedOut: it takes longer than `timeout_s`. Work that comes to no step goes on alone, and what it makes is lost.
    """
    stopped = Event()
    outbox, inbox = anyio.create_memory_object_stream[tuple[int, int | None, str]](1)

    def on_step(done: int, total: int | None, what: str) -> None:
        if not stopped.is_set():
            anyio.from_thread.run_sync(_offer, outbox, (done, total, what))

    def work() -> tuple[Made | None, Exception | None]:
        with progress.reporting(on_step if context else None, cancelled=stopped, timeout_s=timeout_s):
            try:
                return task(), None
            except Exception as error:  # raised again below, outside the task group, which would wrap it
                return None, error

    ended: tuple[Made | None, Exception | None] | None = None
    async with inbox, outbox, anyio.create_task_group() as group:
        group.start_soon(_set_when_cancelled, stopped)
        if context:
            group.start_soon(_forward, inbox, context)
        with anyio.move_on_after(None if timeout_s is None else timeout_s + GRACE_S):
            ended = await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        group.cancel_scope.cancel()
    if ended is None:
        raise TimedOut(f"The call took longer than `{timeout_s:g}` s.", "Ask for less.")
    made, error = ended
    if error is not None:
        raise error
    return made  # type: ignore[return-value]


async def _set_when_cancelled(stopped: Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        stopped.set()


def _offer(outbox: Any, step: tuple[int, int | None, str]) -> None:
    """Queue a step for the client unless the last one is still on its way: the latest matters, not each."""
    try:
        outbox.send_nowait(step)
    except (anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
        log.debug("progress step %s skipped", step)


async def _forward(inbox: Any, context: Context[Any, Any]) -> None:
    """Send steps on. The protocol wants numbers that only grow, so each kind of step goes on from the one before."""
    base, last, current = 0, -1, None
    async for done, total, what in inbox:
        if what != current:
            base, current = last + 1, what
        if base + done > last:
            last = base + done
            await context.report_progress(last, None if total is None else base + total, what or None)
