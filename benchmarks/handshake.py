"""How long an assistant waits: spawn to initialized over stdio, as a ratio to a bare `MCPServer` with one tool.

    python benchmarks/handshake.py [--spawns 15]

Both servers are spawned in turn, in one run, for each protocol era; the ratio is of the medians. A home folder of its
own, without weights and libraries, keeps background work out of it; with `--home` a real one is used.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mcp import Client, StdioServerParameters

sys.path.insert(0, str(Path(__file__).parent))
from harness import write

BARE = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("bare", log_level="WARNING")
@server.tool()
def search(query: str) -> str:
    \"\"\"Search.\"\"\"
    return query
server.run("stdio")
"""
MODES = ("legacy", "auto")
BAR = 1.3


def commands() -> dict[str, list[str]]:
    """What is spawned: the console script as an assistant's configuration names it, and the bare server."""
    script = Path(sys.executable).with_name("triptych")
    return {"triptych": [str(script), "mcp"], "bare": [sys.executable, "-c", BARE]}


async def handshake(command: list[str], mode: str, home: str) -> tuple[float, float]:
    """Seconds from spawn to initialized, and to the list of tools."""
    environment = {**os.environ, "TRIPTYCH_HOME": home}
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=environment)
    start = time.perf_counter()
    async with Client(parameters, mode=mode) as client:
        ready = time.perf_counter() - start
        await client.list_tools()
        return ready, time.perf_counter() - start


def measure(spawns: int, home: str) -> dict[str, object]:
    """Medians and ratios for both eras; the first spawn of each warms the file cache and is not counted."""
    result: dict[str, object] = {}
    for mode in MODES:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands()}
        for turn in range(spawns + 1):
            for name, command in commands().items():
                taken = asyncio.run(handshake(command, mode, home))
                if turn:
                    times[name].append(taken)
        ready = {name: [one[0] for one in rows] for name, rows in times.items()}
        tools = {name: statistics.median(one[1] for one in rows) for name, rows in times.items()}
        medians = {name: statistics.median(rows) for name, rows in ready.items()}
        result[mode] = {
            "spawns": spawns,
            "initialized_s": {name: round(value, 3) for name, value in medians.items()},
            "initialized_range_s": {name: [round(min(r), 3), round(max(r), 3)] for name, r in ready.items()},
            "tools_listed_s": {name: round(value, 3) for name, value in tools.items()},
            "ratio": round(medians["triptych"] / medians["bare"], 3),
            "ratio_tools_listed": round(tools["triptych"] / tools["bare"], 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spawns", type=int, default=15)
    parser.add_argument("--home", help="a home folder with weights and libraries")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        measured = measure(given.spawns, given.home or empty)
    path = write("handshake", {"bar": BAR, "home": "given" if given.home else "empty", **measured}, "mcp", "click")
    print(path.read_text("utf-8"))


if __name__ == "__main__":
    main()
