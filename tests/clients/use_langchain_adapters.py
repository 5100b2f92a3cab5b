"""langchain-mcp-adapters (mcp 1.x): one session, its tools as LangChain tools."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools


async def main(plan: dict[str, Any]) -> dict[str, Any]:
    started = {"command": plan["command"], "args": plan["args"], "transport": "stdio"}
    async with MultiServerMCPClient({"triptych": started}).session("triptych") as session:
        tools = {tool.name: tool for tool in await load_mcp_tools(session)}

        async def called(name: str) -> list[dict[str, Any]]:
            call = plan["calls"][name]
            given = {"type": "tool_call", "id": name, "name": call["tool"], "args": call["arguments"]}
            try:
                message = await tools[call["tool"]].ainvoke(given)
            except Exception as error:  # the adapter raises what a tool says is wrong
                return [{"type": "text", "text": str(error)}]
            return [*message.content_blocks]

        while plan["loading"] in text_of(await called("retrieve")):
            await asyncio.sleep(1)
        seen = {name: await called(name) for name in plan["calls"]}
    images = [block["base64"] for block in seen["view"] if block["type"] == "image"]
    texts = {name: text_of(blocks) for name, blocks in seen.items() if name != "view"}
    return {"tools": [*tools], "images": images, **texts}


def text_of(blocks: list[dict[str, Any]]) -> str:
    return "\n".join(block["text"] for block in blocks if block["type"] == "text")


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(main(given))), "utf-8")
