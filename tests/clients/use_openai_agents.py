"""openai-agents: its stdio server, once with content blocks and once with the structured half."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from agents.mcp import MCPServerStdio, MCPUtil


async def main(plan: dict[str, Any]) -> dict[str, Any]:
    started = {"command": plan["command"], "args": plan["args"]}
    async with MCPServerStdio(params=started, client_session_timeout_seconds=120) as server:
        tools = await server.list_tools()
        for tool in tools:
            MCPUtil.to_function_tool(tool, server, convert_schemas_to_strict=False)

        async def called(name: str) -> Any:
            call = plan["calls"][name]
            return await server.call_tool(call["tool"], call["arguments"])

        while plan["loading"] in text_of(await called("retrieve")):
            await asyncio.sleep(1)
        seen = {name: await called(name) for name in plan["calls"]}
    images = [block.data for block in seen["view"].content if block.type == "image"]
    texts = {name: text_of(result) for name, result in seen.items() if name != "view"}
    return {"tools": [tool.name for tool in tools], "images": images, **texts}


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(main(given))), "utf-8")
