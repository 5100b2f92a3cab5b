"""pydantic-ai: lists and calls the tools through its MCP toolset, and runs an agent on its model of tests."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset, StdioTransport
from pydantic_ai.messages import BinaryContent, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel


async def main(plan: dict[str, Any]) -> dict[str, Any]:
    toolset = MCPToolset(
        StdioTransport(plan["command"], plan["args"]), init_timeout=60, read_timeout=120, tool_error_behavior="failed"
    )
    listed = TestModel(call_tools=[])
    async with toolset:
        await Agent(listed, toolsets=[toolset]).run("list")
        assert listed.last_model_request_parameters is not None
        names = [tool.name for tool in listed.last_model_request_parameters.function_tools]
        while plan["loading"] in (await called(toolset, plan["calls"]["retrieve"]))[0]:
            await asyncio.sleep(1)
        seen = {name: await called(toolset, call) for name, call in plan["calls"].items()}
        status = TestModel(call_tools=["status"])
        await Agent(status, toolsets=[toolset]).run("look")
    return {
        "tools": names,
        **{name: text for name, (text, _) in seen.items() if name != "view"},
        "images": seen["view"][1],
    }


async def called(toolset: Any, call: dict[str, Any]) -> tuple[str, list[str]]:
    """What the model of an agent sees of one call: text, and pictures in base64."""
    from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart

    got: list[ModelMessage] = []

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        got[:] = messages
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart(call["tool"], call["arguments"])])
        return ModelResponse(parts=[TextPart("done")])

    await Agent(FunctionModel(model), toolsets=[toolset]).run("go")
    texts, images = [], []
    for part in [part for message in got for part in message.parts]:
        if isinstance(part, ToolReturnPart) or part.part_kind in ("retry-prompt", "tool-return"):
            content = part.content if isinstance(part.content, list) else [part.content]
            for one in content:
                if isinstance(one, BinaryContent):
                    images.append(base64.b64encode(one.data).decode())
                else:
                    texts.append(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, default=str))
        elif part.part_kind == "user-prompt" and not isinstance(part.content, str):
            images += [base64.b64encode(one.data).decode() for one in part.content if isinstance(one, BinaryContent)]
    return "\n".join(texts), images


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(main(given))), "utf-8")
