"""Work inside a LangChain run: its steps are the run's events, and asynchronous work happens on a thread."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.runnables.config import run_in_executor

from ... import progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from langchain_core.callbacks.manager import AsyncParentRunManager, ParentRunManager

    from ...progress import OnStep

PROGRESS_EVENT = "triptych_progress"
"""The name of the custom events, whose data is `{"done", "total", "what"}`."""

Made = TypeVar("Made")


def worked(work: Callable[[], Made], manager: ParentRunManager | None) -> Made:
    """What `work` makes; its steps are events of the run."""
    run = manager.get_child() if manager else None

    def tell(done: int, total: int | None, what: str) -> None:
        if run is not None and run.handlers:
            said = {"done": done, "total": total, "what": what}
            dispatch_custom_event(PROGRESS_EVENT, said, config={"callbacks": run})

    with progress.reporting(_passing_on(tell)):
        return work()


async def awaited(work: Callable[[], Made], manager: AsyncParentRunManager | None) -> Made:
    """What `work` makes on a thread; its steps are events on the loop, and cancelling the call stops it at the next."""
    run = manager.get_child() if manager else None
    loop, cancelled = asyncio.get_running_loop(), Event()
    last: Future[None] | None = None

    def tell(done: int, total: int | None, what: str) -> None:
        nonlocal last
        if run is None or not run.handlers or cancelled.is_set():
            return
        if last is not None and not last.done():  # the latest step matters, not each
            return
        said = {"done": done, "total": total, "what": what}
        event = adispatch_custom_event(PROGRESS_EVENT, said, config={"callbacks": run})
        last = asyncio.run_coroutine_threadsafe(event, loop)

    on_step = _passing_on(tell)

    def watched() -> Made:
        with progress.reporting(on_step, cancelled=cancelled):
            return work()

    try:
        made = await run_in_executor(None, watched)
    finally:
        cancelled.set()
    if last is not None:
        await asyncio.wrap_future(last)
    return made


def _passing_on(tell: OnStep) -> OnStep:
    """Steps that are told, and then reach whoever watches already: a caller's own events, cancellation, deadline."""
    outer = copy_context()

    def on_step(done: int, total: int | None, what: str) -> None:
        tell(done, total, what)
        outer.copy().run(progress.step, done, total, what)

    return on_step
