"""smolagents (mcp 1.x): the tools as its agents call them."""

from __future__ import annotations

import base64
import json
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from mcp import StdioServerParameters
from smolagents import MCPClient


def main(plan: dict[str, Any]) -> dict[str, Any]:
    images: list[str] = []
    with MCPClient(StdioServerParameters(command=plan["command"], args=plan["args"]), structured_output=False) as found:
        tools = {tool.name: tool for tool in found}

        def called(name: str) -> str:
            call = plan["calls"][name]
            try:
                result = tools[call["tool"]](**call["arguments"])
            except Exception as error:  # a tool's error reaches its agent as an exception
                return str(error)
            for one in result if isinstance(result, list) else [result]:
                if hasattr(one, "save"):
                    with BytesIO() as page:
                        one.save(page, "PNG")
                        images.append(base64.b64encode(page.getvalue()).decode())
            return result if isinstance(result, str) else json.dumps(result, default=str, ensure_ascii=False)

        while plan["loading"] in called("retrieve"):
            time.sleep(1)
        texts = {name: called(name) for name in plan["calls"]}
    return {"tools": [*tools], **texts, "images": images}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(main(given)), "utf-8")
