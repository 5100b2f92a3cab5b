"""Resources, prompts and completion on the wire: our values as the protocol's, our errors in its own form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    Completion,
    GetPromptResult,
    ListResourcesResult,
    PromptArgument,
    PromptMessage,
    Resource,
    ResourceTemplate,
    TextContent,
)
from mcp_types import Prompt as ListedPrompt

from ..errors import BadInput, NotFound, TriptychError
from . import documents, prompts, resources
from .limits import TooMany
from .threads import worked

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp_types import CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

    from ..tools.library import Triptych
    from .service import Service

BUSY = -32029
"""The code of a refusal because of limits; the protocol leaves -32000 to -32099 to servers."""
MOST_COMPLETIONS = 100
KINDS = {"page": documents.SHOWN_KINDS, "clip": documents.HEARD_KINDS}
Made = TypeVar("Made")

log = logging.getLogger(__name__)


class Reading:
    """What a client reads besides tools.

    Args:
        tools: names of the tools that are shown; a prompt is shown where its tools are.
    """

    def __init__(self, service: Service, tools: frozenset[str]) -> None:
        self._service = service
        self._prompts = {prompt.name: prompt for prompt in prompts.shown(tools)}

    async def listed(self, cursor: str | None) -> ListResourcesResult:
        """The documents of the default library, a page at a time."""

        def task() -> ListResourcesResult:
            rows, more = resources.page_of(self._service.sessions(), cursor)
            found = [
                Resource(uri=address, name=uri, title=PurePosixPath(uri).name, mime_type="text/plain", size=None)
                for address, uri, _, _ in rows
            ]
            return ListResourcesResult(resources=found, next_cursor=more)

        return await self._done("resources/list", task)

    def templates(self) -> list[ResourceTemplate]:
        """The kinds of resources."""
        return [
            ResourceTemplate(
                uri_template=one.address,
                name=one.name,
                title=one.title,
                description=one.description,
                mime_type=one.mime,
            )
            for one in resources.TEMPLATES
        ]

    async def read(self, uri: str, context: Context[Any, Any] | None) -> list[ReadResourceContents]:
        """What is at `uri`.

        Raises:
            MCPError: -32602 where nothing is; -32603 where it cannot be read.
        """
        limits = self._service.limits

        def task() -> resources.Read:
            with limits.crowd.entered():
                return resources.read(
                    self._service.sessions, uri, most_chars=limits.result_chars, most_bytes=limits.image_bytes
                )

        read = await self._done("resources/read", task, context, {"uri": uri[: resources.MAX_ADDRESS]})
        return [ReadResourceContents(content=read.content, mime_type=read.mime, meta={"triptych": read.meta})]

    def prompts(self) -> list[ListedPrompt]:
        """The prompts, with their arguments."""
        return [
            ListedPrompt(
                name=prompt.name,
                title=prompt.title,
                description=prompt.description,
                arguments=[
                    PromptArgument(name=one.name, description=one.description, required=one.required)
                    for one in prompt.arguments
                ],
            )
            for prompt in self._prompts.values()
        ]

    async def prompt(self, name: str, given: Mapping[str, Any]) -> GetPromptResult:
        """The text of a prompt."""

        def task() -> GetPromptResult:
            if name not in self._prompts:
                raise NotFound(f"Unknown prompt `{name[:80]}`.", f"Use one of: {', '.join(self._prompts) or 'none'}.")
            prompt = self._prompts[name]
            session = self._service.sessions(given.get("library") or None)
            text = prompts.text_of(prompt, given, session)
            message = PromptMessage(role="user", content=TextContent(text=text))
            return GetPromptResult(description=prompt.description, messages=[message])

        return await self._done("prompts/get", task)

    async def completed(
        self,
        reference: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        known: CompletionContext | None,
    ) -> Completion:
        """What an argument of a prompt or template could be; nothing where the library is not there."""
        before = (known.arguments if known else None) or {}

        def task() -> list[str]:
            most = MOST_COMPLETIONS + 1
            if argument.name == "library":
                return [name for name in self._libraries() if name.startswith(argument.value)][:most]
            try:
                session = self._service.sessions(before.get("library") or None)
            except (BadInput, NotFound):
                return []
            return self._values(reference, argument.name, argument.value, session, most)

        found = await self._done("completion/complete", task)
        more = len(found) > MOST_COMPLETIONS
        return Completion(values=found[:MOST_COMPLETIONS], total=None if more else len(found), has_more=more)

    def _values(
        self,
        reference: PromptReference | ResourceTemplateReference,
        name: str,
        typed: str,
        session: Triptych,
        most: int,
    ) -> list[str]:
        if reference.type == "ref/prompt":
            prompt = self._prompts.get(reference.name)
            argument = next((one for one in prompt.arguments if one.name == name), None) if prompt else None
            return prompts.completed(argument.completes, typed, session, most) if argument else []
        template = next((one for one in resources.TEMPLATES if one.address == reference.uri), None)
        if template is None or name != template.argument:
            return []
        if name == "uri":
            return documents.uris(session, typed, most)
        return documents.ids(session, typed, most, KINDS.get(template.name, ()))

    def _libraries(self) -> Sequence[str]:
        from ..tools.library import libraries

        return [row.name for row in libraries(self._service.settings)]

    async def _done(
        self,
        what: str,
        task: Callable[[], Made],
        context: Context[Any, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Made:
        try:
            return await worked(task, context, self._service.limits.timeout_s)
        except TriptychError as error:
            raise protocol_error(error, data) from None
        except Exception:
            log.exception("`%s` failed", what)
            hidden = TriptychError(f"`{what}` failed inside the server.", "Its log on stderr says why.")
            raise protocol_error(hidden, data) from None


def protocol_error(error: TriptychError, data: Mapping[str, Any] | None = None) -> MCPError:
    """One of our errors as an error of the protocol: what the caller got wrong is -32602, what we did is -32603."""
    code = INVALID_PARAMS if isinstance(error, BadInput) else BUSY if isinstance(error, TooMany) else INTERNAL_ERROR
    return MCPError(code=code, message=str(error), data={**(data or {}), **error.as_dict()})
