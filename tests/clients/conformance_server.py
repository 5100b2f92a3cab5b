"""The server that the official conformance suite is run against: ours, with the fixtures that the suite asks for.

python tests/clients/conformance_server.py PORT. No models are needed: the library behind it is the tests' fake one. The
suite's fixtures stand beside our own tools, resources and prompts, so that listing, reading and errors are those of our
server.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer, Resolve, Sample
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.transport_security import TransportSecuritySettings

from triptych.server.app import App
from triptych.server.doors import doors
from triptych.server.jobs import Jobs
from triptych.server.service import Service

sys.path.append(str(Path(__file__).resolve().parents[1]))
from fake_library import PIXEL, FakeTriptych

SILENCE = b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0@\x1f\0\0\x80>\0\0\x02\0\x10\0data\0\0\0\0"
PNG = base64.b64encode(PIXEL).decode()
EXAMPLE = "This is an embedded resource content."

fixtures: MCPServer[Any] = MCPServer("fixtures")


@fixtures.tool(structured_output=False)
def test_simple_text() -> str:
    """Answers with text."""
    return "This is a simple text response for testing."


@fixtures.tool(structured_output=False)
def test_image_content() -> list[types.ContentBlock]:
    """Answers with a picture."""
    return [types.ImageContent(data=PNG, mime_type="image/png")]


@fixtures.tool(structured_output=False)
def test_audio_content() -> list[types.ContentBlock]:
    """Answers with a sound."""
    return [types.AudioContent(data=base64.b64encode(SILENCE).decode(), mime_type="audio/wav")]


@fixtures.tool(structured_output=False)
def test_embedded_resource() -> list[types.ContentBlock]:
    """Answers with a resource."""
    return [_embedded("test://embedded-resource", EXAMPLE)]


@fixtures.tool(structured_output=False)
def test_multiple_content_types() -> list[types.ContentBlock]:
    """Answers with text, a picture and a resource."""
    data = '{"test": "data", "value": 123}'
    return [
        types.TextContent(text="Multiple content types test:"),
        types.ImageContent(data=PNG, mime_type="image/png"),
        _embedded("test://mixed-content-resource", data, "application/json"),
    ]


@fixtures.tool(structured_output=False)
async def test_tool_with_progress(ctx: Context[Any, Any]) -> str:
    """Reports how far it is."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
    return "done"


@fixtures.tool(structured_output=False)
def test_error_handling() -> types.CallToolResult:
    """Always fails."""
    said = types.TextContent(text="This tool intentionally returns an error for testing")
    return types.CallToolResult(content=[said], is_error=True)


async def question() -> Sample:
    return Sample([types.SamplingMessage(role="user", content=types.TextContent(text="Why?"))], max_tokens=50)


@fixtures.tool(structured_output=False)
async def test_missing_capability(said: Annotated[types.CreateMessageResult, Resolve(question)]) -> str:
    """Needs a client that can be asked, as our `llm_rerank` does."""
    return "a client was asked"


@fixtures.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    """A text."""
    return "This is the content of the static text resource."


@fixtures.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """A picture."""
    return PIXEL


@fixtures.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    """What the address says."""
    return f'{{"id": "{id}", "templateTest": true, "data": "Data for ID: {id}"}}'


@fixtures.prompt()
def test_simple_prompt() -> str:
    """A prompt."""
    return "This is a simple prompt for testing."


@fixtures.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt with two arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@fixtures.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    """A prompt that brings a resource."""
    return [
        UserMessage(content=_embedded(resourceUri, "Embedded resource content for testing.")),
        UserMessage(content=types.TextContent(text="Please process the embedded resource above.")),
    ]


@fixtures.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """A prompt that brings a picture."""
    return [
        UserMessage(content=types.ImageContent(data=PNG, mime_type="image/png")),
        UserMessage(content=types.TextContent(text="Please analyze the image above.")),
    ]


def _embedded(uri: str, text: str, mime: str = "text/plain") -> types.EmbeddedResource:
    return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, mime_type=mime, text=text))


class Tested(App):
    """Our server, which passes on to the fixtures what is theirs."""

    async def list_tools(self) -> list[types.Tool]:
        return [*await super().list_tools(), *await fixtures.list_tools()]

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        theirs = name.startswith("test_")
        return await (fixtures.call_tool if theirs else super().call_tool)(name, arguments, context)

    async def list_resource_templates(self) -> list[types.ResourceTemplate]:
        return [*await super().list_resource_templates(), *await fixtures.list_resource_templates()]

    async def read_resource(self, uri: Any, context: Any = None) -> Any:
        theirs = str(uri).startswith("test://")
        return await (fixtures.read_resource if theirs else super().read_resource)(uri, context)

    async def list_prompts(self) -> list[types.Prompt]:
        return [*await super().list_prompts(), *await fixtures.list_prompts()]

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None, context: Any = None) -> Any:
        theirs = name.startswith("test_")
        return await (fixtures.get_prompt if theirs else super().get_prompt)(name, arguments, context)

    async def _handle_list_resources(self, ctx: Any, params: Any) -> types.ListResourcesResult:
        ours = await super()._handle_list_resources(ctx, params)
        return ours.model_copy(update={"resources": [*ours.resources, *await fixtures.list_resources()]})


def main(port: int) -> None:
    session: Any = FakeTriptych()
    settings = replace(session.settings, call_rate=0)  # the suite asks more in a second than any client may
    app = Tested(Service(lambda name=None: session, settings, Jobs()), doors())
    names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
    allowed = TransportSecuritySettings(
        enable_dns_rebinding_protection=True, allowed_hosts=names, allowed_origins=[f"http://{name}" for name in names]
    )
    app.run("streamable-http", host="127.0.0.1", port=port, stateless_http=True, transport_security=allowed)


if __name__ == "__main__":
    main(int(sys.argv[1]))
