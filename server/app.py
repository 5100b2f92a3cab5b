"""The MCP server: lists the doors, and puts calls, progress and cancellation between the wire and the service.

The only module of the command line's package that imports `mcp`; it imports no model library.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server.caching import CacheHint
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import (
    CallToolResult,
    ContentBlock,
    ImageContent,
    InputRequiredResult,
    TextContent,
    Tool,
    ToolAnnotations,
)

from .. import __version__, progress
from ..errors import NotFound, TriptychError
from .doors import INSTRUCTIONS, Door, doors
from .jobs import Jobs
from .listwise import Question
from .sampling import Unasked, reply
from .service import Service

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from ..settings import Settings
    from .roots import Roots
    from .service import Open

WRITERS = ("index", "delete")
TOOLS_TTL_MS = 3_600_000
Made = TypeVar("Made")

log = logging.getLogger(__name__)


def build(
    sessions: Open,
    settings: Settings,
    *,
    allow_write: bool = False,
    toolset: str = "full",
    llm_rerank: bool = False,
    jobs: Jobs | None = None,
    roots: Roots | None = None,
    on_ready: Callable[[], None] | None = None,
) -> MCPServer[Any]:
    """The server over the libraries that `sessions` opens.

    Args:
        sessions: called with a library's name, or None for the default one.
        settings: limits and defaults.
        allow_write: shows `index` and `delete`.
        toolset: `full`, `chatgpt` or `minimal`.
        llm_rerank: shows `llm_rerank`, which asks the client's model.
        jobs: where background work is queued; closed by whoever made it.
        roots: where `index` may read.
        on_ready: called once, right after the client's handshake.
    """
    shown = doors(toolset, allow_write=allow_write, llm_rerank=llm_rerank)
    return App(Service(sessions, settings, jobs or Jobs(), roots), shown, on_ready)


class App(MCPServer[Any]):
    """An `MCPServer` whose tools are doors: our own argument errors, answers with a hidden trace, cancellation."""

    def __init__(self, service: Service, shown: tuple[Door, ...], on_ready: Callable[[], None] | None = None) -> None:
        super().__init__(
            "triptych",
            title="Triptych",
            version=__version__,
            description="Cited evidence from the user's files, inside a token budget.",
            instructions=INSTRUCTIONS,
            log_level="WARNING",
            cache_hints={"tools/list": CacheHint(ttl_ms=TOOLS_TTL_MS, scope="public")},
            middleware=[_once_ready(on_ready)] if on_ready else (),
        )
        self.service = service
        self._doors = {door.name: door for door in shown}

    async def list_tools(self) -> list[Tool]:
        return [_listed(door, self.service.settings) for door in self._doors.values()]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        try:
            door = self._door(name)
        except TriptychError as error:
            return _failed(error)
        if door.asks:
            return await self._asking(door, arguments, context)
        return await self._on_thread(door, lambda: _result(self.service.call(door, arguments)), context)

    async def _asking(
        self, door: Door, arguments: dict[str, Any], context: Context[Any, Any] | None
    ) -> CallToolResult | InputRequiredResult:
        """The door's answer after the client's model has been asked. Newer clients come here twice for one call."""
        asked = await self._on_thread(door, lambda: Question.of(*self.service.opened(door, arguments)), context)
        if isinstance(asked, CallToolResult):
            return asked
        said = await reply(asked.turns, asked.room, context) if asked.turns else Unasked()
        if isinstance(said, InputRequiredResult):
            return said
        made = asked.unranked if isinstance(said, Unasked) else asked.ranked
        return await self._on_thread(door, lambda: _result(made(said)), context)

    def _door(self, name: str) -> Door:
        if name in self._doors:
            return self._doors[name]
        hint = f"Use one of: {', '.join(self._doors)}."
        if name in WRITERS:
            hint = "This server is read-only; its operator can start it with `--allow-write`."
        raise NotFound(f"Unknown tool `{name[:80]}`.", hint)

    async def _on_thread(
        self, door: Door, task: Callable[[], Made], context: Context[Any, Any] | None
    ) -> Made | CallToolResult:
        """What `task` makes, worked out on a thread; cancelling the call stops the work at its next step."""
        cancelled = Event()
        outbox, inbox = anyio.create_memory_object_stream[tuple[int, int | None, str]](1)

        def on_step(done: int, total: int | None, what: str) -> None:
            anyio.from_thread.run_sync(_offer, outbox, (done, total, what))

        def work() -> Made | CallToolResult:
            with progress.reporting(on_step if context else None, cancelled=cancelled):
                return _outcome(door, task)

        async with inbox, outbox, anyio.create_task_group() as group:
            group.start_soon(_set_when_cancelled, cancelled)
            if context:
                group.start_soon(_forward, inbox, context)
            result = await anyio.to_thread.run_sync(work)
            group.cancel_scope.cancel()
        return result


def _outcome(door: Door, task: Callable[[], Made]) -> Made | CallToolResult:
    try:
        return task()
    except TriptychError as error:
        return _failed(error)
    except Exception:
        log.exception("the tool `%s` failed", door.name)
        return _failed(TriptychError(f"`{door.name}` failed inside the server.", "Its log on stderr says why."))


async def _set_when_cancelled(cancelled: Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        cancelled.set()


def _offer(outbox: Any, step: tuple[int, int | None, str]) -> None:
    """Queue a step for the client unless the last one is still on its way: the latest matters, not each."""
    try:
        outbox.send_nowait(step)
    except anyio.WouldBlock:
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


def _once_ready(on_ready: Callable[[], None]) -> Any:
    """Middleware that calls `on_ready` after the first message that shows the handshake is over."""
    waiting = [on_ready]

    async def middleware(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        result = await call_next(ctx)
        if waiting and ctx.method != "initialize":
            waiting.pop()()
        return result

    return middleware


def _listed(door: Door, settings: Settings) -> Tool:
    return Tool(
        name=door.name,
        title=door.title,
        description=door.description,
        input_schema=door.input_schema(settings),
        output_schema=door.output_schema(),
        annotations=ToolAnnotations(
            read_only_hint=not door.writes,
            destructive_hint=door.destroys,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )


def _result(answer: Any) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(text=answer.text)]
    meta = {"triptych": answer.trace} if answer.trace else None
    if answer.image is None:
        return CallToolResult(content=content, structured_content=answer.data, _meta=meta)
    # Some assistants show only the structured half, so a picture must come without one.
    picture = ImageContent(data=base64.b64encode(answer.image).decode(), mime_type=answer.mime)
    return CallToolResult(content=[*content, picture], _meta=meta)


def _failed(error: TriptychError) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=str(error))], is_error=True, _meta={"triptych": error.as_dict()})
