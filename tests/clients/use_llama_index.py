"""llama-index: its client and the function tools made of it. Over HTTP, since it starts a server for every call."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from llama_index.tools.mcp import BasicMCPClient, McpToolSpec


async def main(plan: dict[str, Any]) -> dict[str, Any]:
    client = BasicMCPClient(plan["address"], timeout=120)
    tools = {tool.metadata.name: tool for tool in await McpToolSpec(client).to_tool_list_async()}

    async def called(name: str) -> Any:
        call = plan["calls"][name]
        return (await tools[call["tool"]].acall(**call["arguments"])).raw_output

    seen = {}
    for name in plan["calls"]:
        seen[name] = await called(name)
        while plan["loading"] in text_of(seen[name]):
            await asyncio.sleep(1)
            seen[name] = await called(name)
    images = [block.data for block in seen["view"].content if block.type == "image"]
    texts = {name: text_of(result) for name, result in seen.items() if name != "view"}
    return {"tools": [*tools], "images": images, **texts}


def text_of(result: Any) -> str:
    blocks = getattr(result, "content", None)
    return str(result) if blocks is None else "\n".join(block.text for block in blocks if block.type == "text")


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(main(given))), "utf-8")
