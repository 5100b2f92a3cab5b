"""The MCP server: lists the doors, and puts calls, progress and cancellation between the wire and the service.

The only module of the command line's package that imports `mcp`; it imports no model library.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from mcp.server.apps import APP_MIME_TYPE, Apps
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.caching import CacheHint
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_REQUEST,
    AudioContent,
    CallToolResult,
    ContentBlock,
    ImageContent,
    InputRequiredResult,
    ResourceLink,
    TextContent,
    Tool,
    ToolAnnotations,
)

from .. import __version__
from ..errors import BadInput, Forbidden, NotFound, TriptychError
from ..tools.listening import WAV
from . import viewer
from .doors import INSTRUCTIONS, Door, doors
from .jobs import Jobs
from .limits import TooMany
from .lines import TOO_LONG
from .listwise import Question
from .reading import Reading, protocol_error
from .sampling import Unasked, reply
from .service import Service
from .threads import worked
from .tokens import WRITE

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp_types import GetPromptResult, ListResourcesResult, PaginatedRequestParams, ResourceTemplate
    from mcp_types import Prompt as ListedPrompt
    from pydantic import AnyUrl

    from ..settings import Settings
    from ..tools.answers import Answer
    from .limits import Rate
    from .roots import Roots
    from .service import Open

WRITERS = ("index", "delete")
COUNTED = ("tools/call", "resources/read", "resources/list", "prompts/get", "completion/complete")
OVERLONG = BadInput("The message is longer than this server takes.", "Send less at once (`message_bytes`).")
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
) -> App:
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
            extensions=[_pages()],
            middleware=[_rated(service.limits.rate), *([_once_ready(on_ready)] if on_ready else ())],
        )
        self.service = service
        self._doors = {door.name: door for door in shown}
        self._reading = Reading(service, frozenset(self._doors))
        self.completion()(self._reading.completed)  # type: ignore[no-untyped-call]

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        return self._reading.templates()

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Any, Any] | None = None
    ) -> list[ReadResourceContents]:
        if str(uri) == viewer.URI:
            return [ReadResourceContents(content=viewer.html(), mime_type=APP_MIME_TYPE)]
        return await self._reading.read(str(uri), context)

    async def list_prompts(self) -> list[ListedPrompt]:
        return self._reading.prompts()

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Any, Any] | None = None
    ) -> GetPromptResult:
        return await self._reading.prompt(name, arguments or {})

    async def _handle_list_resources(
        self, ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        """In place of the base class' own, which knows no pages."""
        return await self._reading.listed(params.cursor if params else None)

    async def list_tools(self) -> list[Tool]:
        return [_listed(door, self.service.settings) for door in self._doors.values()]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        try:
            door = self._door(name)
            _check_scope(door)
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
        """What `task` makes, or an answer that says why not."""
        try:
            return await worked(task, context, self.service.limits.timeout_s)
        except TriptychError as error:
            return _failed(error)
        except Exception:
            log.exception("the tool `%s` failed", door.name)
            return _failed(TriptychError(f"`{door.name}` failed inside the server.", "Its log on stderr says why."))


def _rated(rate: Rate) -> Any:
    """Middleware that counts what a client asks; one that asks too often gets an answer that says so."""

    async def middleware(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method == TOO_LONG:
            raise MCPError(code=INVALID_REQUEST, message=OVERLONG.message, data=OVERLONG.as_dict())
        if ctx.method in COUNTED:
            try:
                rate.take(client_of(ctx))
            except TooMany as error:
                if ctx.method == "tools/call":
                    return _failed(error)
                raise protocol_error(error) from None
        return await call_next(ctx)

    return middleware


def _once_ready(on_ready: Callable[[], None]) -> Any:
    """Middleware that calls `on_ready` after the first message that shows the handshake is over."""
    waiting = [on_ready]

    async def middleware(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        result = await call_next(ctx)
        if waiting and ctx.method != "initialize":
            waiting.pop()()
        return result

    return middleware


def _check_scope(door: Door) -> None:
    """Over HTTP a client's token says whether it may write."""
    token = get_access_token()
    if door.writes and token is not None and WRITE not in token.scopes:
        raise Forbidden(
            f"Your token may not call `{door.name}`.", "The server's operator can give it the scope `write`."
        )


def client_of(ctx: ServerRequestContext[Any, Any]) -> str:
    """Who asks: the name on its token, else its address, else the one client at the other end of stdio."""
    token = get_access_token()
    if token is not None:
        return f"token {token.client_id}"
    peer = getattr(ctx.request, "client", None)
    return f"address {peer.host}" if peer is not None else "stdio"


def _pages() -> Apps:
    """Says to hosts that there is a page to show; it is read as any other resource."""
    apps = Apps()
    apps.add_html_resource(viewer.URI, viewer.html(), name="viewer", title="Kept, cut and dropped")
    return apps


def _hints(door: Door, settings: Settings) -> dict[str, Any] | None:
    """What single hosts want to know of a tool: which page shows its answers, and how long these may be."""
    page = {"ui": {"resourceUri": viewer.URI}} if door.name == "retrieve" else {}
    room = {"anthropic/maxResultSizeChars": settings.result_chars} if door.heavy or door.name == "fetch" else {}
    return {**page, **room} or None


def _listed(door: Door, settings: Settings) -> Tool:
    return Tool(
        name=door.name,
        title=door.title,
        description=door.description,
        input_schema=door.input_schema(settings),
        output_schema=door.output_schema(),
        _meta=_hints(door, settings),
        annotations=ToolAnnotations(
            read_only_hint=not door.writes,
            destructive_hint=door.destroys,
            idempotent_hint=True if door.writes else None,  # says nothing of a tool that only reads
            open_world_hint=False,
        ),
    )


def _result(answer: Answer) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(text=answer.text), *_shown(answer)]
    # What has a trace is text from files: whoever reads programs' half knows it by this mark.
    meta = {"triptych": {**answer.trace, "untrusted": True}} if answer.trace else None
    # Some assistants show only the structured half, so pictures and sound must come without one.
    structured = answer.data if len(content) == 1 else None
    return CallToolResult(content=content, structured_content=structured, _meta=meta)


def _shown(answer: Answer) -> Iterator[ContentBlock]:
    """The picture, the sound and the link to the clip, each where there is one."""
    if answer.image is not None:
        yield ImageContent(data=base64.b64encode(answer.image).decode(), mime_type=answer.mime)
    if answer.sound is not None:
        yield AudioContent(data=base64.b64encode(answer.sound).decode(), mime_type=WAV)
    if answer.clip is not None:
        yield ResourceLink(name="clip", title="The sound behind the passage", uri=answer.clip, mime_type=WAV)


def _failed(error: TriptychError) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=str(error))], is_error=True, _meta={"triptych": error.as_dict()})
