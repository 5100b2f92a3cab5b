"""Mixed calls over HTTP from several clients at once: any error is a fault, and memory must stay flat after warm-up.

    python benchmarks/soak_mcp.py --calls 2000 --clients 8 [--out FOLDER]

The server is a process of its own over a library without model weights. Memory is the server's resident set: the
median of samples in the first tenth after warm-up (a fifth of all calls) against that of the last tenth. What was
found goes to stdout and into `benchmarks/results/bench_soak_mcp.json` (`--out` names another folder). Exit status 1 if
a call failed or memory grew by more than `GROWTH`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
import psutil
from mcp import Client
from served import asked, library, serving, shelf

from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

RESULTS = Path(__file__).resolve().parent / "results"
GROWTH = 0.05
WARM_UP = 0.2
TENTH = 10
QUESTIONS = ("daily allowance in Berlin", "printer on floor 3", "ferry rates", "tide of day 42", "海草种多少株")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = soaked(Path(folder), given.calls, given.clients)
    print(json.dumps(told, ensure_ascii=False))
    result(told).write(given.out)
    return 0 if told["passed"] else 1


def soaked(folder: Path, calls: int, clients: int) -> dict[str, Any]:
    """Calls, faults, latency and memory of one run."""
    session = library(folder / "home", shelf(folder / "files"))
    ids = [hit.id for hit in session.search("berlin printer ferry tide", 20).hits]
    page = next(hit.id for hit in session.search("ferry bolts", 20).hits if hit.uri.endswith(".pdf"))
    session.close()
    state = State(calls)
    with serving(folder / "home", "--library", "shelf", TRIPTYCH_CALL_RATE="0") as process:
        while asked(process.port, "/ready", method="GET")[0] != 200:
            time.sleep(0.2)
        start = time.monotonic()
        asyncio.run(_all(state, process, clients, ids, page))
        seconds = time.monotonic() - start
    warm = [rss for done, rss in state.memory if done >= calls * WARM_UP]
    part = max(1, len(warm) // TENTH)
    first, last = statistics.median(warm[:part]), statistics.median(warm[-part:])
    growth = last / first - 1
    every = [ms for taken in state.ms.values() for ms in taken]
    return {
        "calls": len(every),
        "clients": clients,
        "seconds": round(seconds, 1),
        "by_tool": {name: {"calls": len(taken), **_percentiles(taken)} for name, taken in state.ms.items()},
        "faults": state.faults,
        **_percentiles(every),
        "rss_mb_first": round(first / 1e6, 1),
        "rss_mb_last": round(last / 1e6, 1),
        "growth": round(growth, 4),
        "passed": not state.faults and growth <= GROWTH,
    }


def _percentiles(taken: list[float]) -> dict[str, float]:
    """Milliseconds of a call, the middle one and the 95th of a hundred."""
    ordered = sorted(taken)
    return {"ms_p50": round(statistics.median(ordered), 1), "ms_p95": round(ordered[int(0.95 * (len(ordered) - 1))], 1)}


def result(told: dict[str, Any]) -> Result:
    """What `soaked` says, as a file: an arm for all calls, and one for each tool."""
    memory = {"rss_mb_first": told["rss_mb_first"], "rss_mb_last": told["rss_mb_last"], "rss_growth": told["growth"]}
    times = {"ms_p50": told["ms_p50"], "ms_p95": told["ms_p95"], "calls_per_s": told["calls"] / told["seconds"]}
    whole = {"calls": told["calls"], "faults": len(told["faults"]), **times, **memory, "seconds": told["seconds"]}
    return Result(
        name="bench_soak_mcp",
        kind="soak",
        title="Mixed calls of our MCP server over HTTP from several clients at once: errors, memory",
        command=f"python benchmarks/soak_mcp.py --calls {told['calls']} --clients {told['clients']}",
        seed=0,
        environment=environment(("mcp",)),
        arms=(
            Arm(system="triptych mcp", settings={"clients": told["clients"]}, metrics=whole),
            *(
                Arm(system="triptych mcp", settings={"clients": told["clients"], "tool": name}, metrics=found)
                for name, found in told["by_tool"].items()
            ),
        ),
        notes=(
            f"rss_growth: of the server's resident memory after the warm-up of {WARM_UP:.0%} of the calls, the last "
            f"tenth of its samples against the first; at most {GROWTH:.0%} is asked for. faults: calls that failed.",
            "The server is a process of its own over a small library without model weights; half of the clients speak "
            "the older revision of the protocol.",
            *(f"Fault: {fault}" for fault in told["faults"][:20]),
        ),
    )


class State:
    """What all clients share."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.ms: dict[str, list[float]] = {}
        self.done = 0
        self.memory: list[tuple[int, int]] = []
        self.faults: list[str] = []

    def take(self) -> int | None:
        """The number of the next call, None when all were taken."""
        self.left -= 1
        return self.left if self.left >= 0 else None


async def _all(state: State, process: Any, clients: int, ids: list[str], page: str) -> None:
    server = psutil.Process(process.pid)
    modes = ("auto", "legacy")
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(_client(state, process.port, server, ids, page, modes[number % 2]))


async def _client(state: State, port: int, server: psutil.Process, ids: list[str], page: str, mode: str) -> None:
    async with Client(f"http://127.0.0.1:{port}/mcp", mode=mode) as client:
        while (number := state.take()) is not None:
            name, given = _call(number, ids, page)
            start = time.perf_counter()
            answer = await client.call_tool(name, given)
            state.ms.setdefault(name, []).append((time.perf_counter() - start) * 1000)
            state.done += 1
            state.memory.append((state.done, server.memory_info().rss))
            if answer.is_error:
                state.faults.append(f"{name}: {answer.content[0].text[:200]}")


def _call(number: int, ids: list[str], page: str) -> tuple[str, dict[str, Any]]:
    question = QUESTIONS[number % len(QUESTIONS)]
    some = [ids[(number + step) % len(ids)] for step in range(3)]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("retrieve", {"query": question, "max_tokens": 500 + number % 700}),
        ("search", {"query": f"{question} {number}", "k": 5}),
        ("fetch", {"id": some[0]}),
        ("view", {"id": page, "max_edge": 200 + number % 400}),
        ("rerank", {"query": question, "ids": some}),
        ("compress", {"query": question, "ids": some, "max_tokens": 300}),
        ("status", {}),
        ("retrieve", {"query": f"what about {number}", "max_tokens": 300}),
    ]
    return calls[number % len(calls)]


if __name__ == "__main__":
    sys.exit(main())
