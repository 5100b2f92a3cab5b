"""Asks the client's language model one question, by MCP sampling, in either era of the protocol.

Older clients are asked in the middle of the call; newer ones get the call back with the question in it, and make it
again with the reply. `mcp` resolves both for a tool with one parameter to be resolved, which is all that stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from mcp.server.mcpserver import Context, Resolve, Sample
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import CreateMessageResult, SamplingMessage, TextContent
from mcp_types.version import is_version_at_least

if TYPE_CHECKING:
    from ..retrievers.lm import Turn

REPLY_S = 300.0
"""How long a client may take: it may ask its user first."""
CALLED_AGAIN = "2026-07-28"
"""From this version on the client makes the call again; no back channel is needed."""
CANNOT = "The client offers no sampling"
NO_WAY = "This connection has no way back to the client"
REFUSED = "The client refused to ask its model"
SLOW = f"The client did not reply within {REPLY_S:g} s"


class Unasked(str):
    """Why the model was not asked, or did not reply."""


async def reply(turns: Sequence[Turn], room: int, context: Context[Any, Any] | None) -> Any:
    """What the client's model says next in the conversation `turns`, in at most `room` tokens.

    Returns:
        a str; or an `Unasked`; or an `InputRequiredResult`, which is the result of this round.
    """
    if context is None:
        return Unasked(CANNOT)
    told = {"turns": [(turn.role, turn.text) for turn in turns], "room": room}
    with anyio.move_on_after(REPLY_S):
        try:
            return await _TOOL.run(told, context)
        except (MCPError, ToolError):
            return Unasked(REFUSED)
    return Unasked(SLOW)


async def _asked(context: Context[Any, Any], turns: list[tuple[str, str]], room: int) -> Sample | Unasked:
    """The question, unless there is nobody to put it to."""
    capabilities = context.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        return Unasked(CANNOT)
    if not _reaches(context):
        return Unasked(NO_WAY)
    system = "\n".join(text for role, text in turns if role == "system")
    messages = [
        SamplingMessage(role=_role(role), content=TextContent(text=text)) for role, text in turns if role != "system"
    ]
    return Sample(messages, max_tokens=room, system_prompt=system or None, temperature=0.0)


def _role(role: str) -> Literal["user", "assistant"]:
    return "assistant" if role == "assistant" else "user"


def _reaches(context: Context[Any, Any]) -> bool:
    """Whether the client can be asked while it waits, or need not be."""
    version = context.protocol_version
    called_again = version is not None and is_version_at_least(version, CALLED_AGAIN)
    return called_again or bool(context.session.can_send_request)


async def _said(turns: list[tuple[str, str]], room: int, found: Annotated[Any, Resolve(_asked)]) -> Any:
    if isinstance(found, CreateMessageResult):
        return found.content.text if isinstance(found.content, TextContent) else ""
    return found


_TOOL = Tool.from_function(_said, name="reply", description="", structured_output=False)
