"""Calls of every tool with arguments drawn from its schema, right and wrong, over a library without model weights.

    python benchmarks/fuzz_mcp.py --calls 10000 [--seed 1] [--out FOLDER]

What is reported, as one line of JSON each: a crash, a traceback, a path of this machine in an answer. The last line
sums up, and so does `benchmarks/results/bench_fuzz_mcp.json` (`--out` names another folder). Exit status 1 if anything
was reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from fuzzing import arguments, fault_in
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mcp import Client
from served import app_over, library, shelf

from triptych.server.doors import doors
from triptych.server.jobs import Jobs
from triptych.server.roots import Roots
from triptych.settings import Settings
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

RESULTS = Path(__file__).resolve().parent / "results"
SHOWN_FAULTS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    given_ = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        told = run(Path(folder), given_.calls, given_.seed)
    print(json.dumps(told, ensure_ascii=False))
    result(told).write(given_.out)
    return 1 if told["faults"] else 0


def run(folder: Path, calls: int, chosen: int) -> dict[str, Any]:
    """Draw, call, count."""
    files = shelf(folder / "files")
    session = library(folder / "home", files, call_rate=0)
    ids = [hit.id for hit in session.search("berlin printer tide bolts garden tone", 20).hits]
    full = doors("full", allow_write=True, llm_rerank=True)
    drawn = drawn_calls(full, calls, chosen, ids)
    start = time.monotonic()
    with Jobs() as jobs:
        app = app_over(session, allow_write=True, llm_rerank=True, jobs=jobs, roots=Roots.of([files]))
        outcomes, faults = asyncio.run(made(app, drawn, [str(folder)]))
    session.close()
    seconds = round(time.monotonic() - start, 1)
    return {"calls": len(drawn), "seed": chosen, "seconds": seconds, "outcomes": outcomes, "faults": faults}


def result(told: dict[str, Any]) -> Result:
    """What `run` says, as a file: an arm for all calls, and one for each tool with what became of its calls."""
    outcomes, faults = told["outcomes"], told["faults"]
    found = [
        Arm(
            system="triptych mcp",
            settings={"tool": name},
            metrics={
                "calls": sum(kinds.values()) + sum(fault["tool"] == name and fault["lost"] for fault in faults),
                "faults": sum(fault["tool"] == name for fault in faults),
                **dict(sorted(kinds.items())),
            },
        )
        for name, kinds in outcomes.items()
    ]
    whole = {"calls": told["calls"], "tools": len(found), "faults": len(faults), "seconds": told["seconds"]}
    return Result(
        name="bench_fuzz_mcp",
        kind="fuzz",
        title="Calls of every MCP tool with arguments drawn from its schema, right and wrong",
        command=f"python benchmarks/fuzz_mcp.py --calls {told['calls']} --seed {told['seed']}",
        seed=told["seed"],
        environment=environment(("mcp", "hypothesis")),
        arms=(Arm(system="triptych mcp", metrics=whole), *found),
        notes=(
            "A fault is a crash, a traceback in an answer, or a path of the machine in it. `answered` are calls that "
            "gave a result, the other names are the typed errors that the rest were refused with.",
            "Made in one process with the server, over a small library without model weights, with the tools that "
            "write and ask the client's model shown.",
            *(f"Fault of `{fault['tool']}`: {fault['fault']}" for fault in faults[:SHOWN_FAULTS]),
        ),
    )


def drawn_calls(full: Any, calls: int, chosen: int, ids: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """`calls` calls, the same number of each tool, in turn."""
    found: list[list[tuple[str, dict[str, Any]]]] = []
    for number, door in enumerate(full):
        each = -(-calls // len(full))
        rows: list[tuple[str, dict[str, Any]]] = []
        schema = door.input_schema(Settings(home=Path("nowhere")))

        drawing = given(arguments(schema, st.sampled_from([*ids, "nope"])))(_keeper(rows, door.name))
        bounds = {"max_examples": each, "phases": [Phase.generate], "database": None, "deadline": None}
        seed(chosen + number)(settings(**bounds, suppress_health_check=list(HealthCheck))(drawing))()
        found.append(rows)
    return [row for rows in zip(*found, strict=False) for row in rows][:calls]


def _keeper(rows: list[tuple[str, dict[str, Any]]], name: str) -> Any:
    def keep(drawn: dict[str, Any]) -> None:
        rows.append((name, drawn))

    return keep


async def made(
    app: Any, drawn: list[tuple[str, dict[str, Any]]], private: list[str]
) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """Outcomes by tool, and what was wrong."""
    outcomes: dict[str, Counter[str]] = {}
    faults: list[dict[str, Any]] = []
    async with Client(app) as client:
        for name, given_ in drawn:
            try:
                answer = await client.call_tool(name, given_)
            except Exception as error:
                faults.append({"tool": name, "arguments": repr(given_)[:500], "fault": repr(error)[:300], "lost": 1})
                continue
            fault = fault_in(answer, private, given_)
            kind = "answered"
            if answer.is_error:
                kind = ((answer.meta or {}).get("triptych") or {}).get("error", {}).get("type", "unknown")
            outcomes.setdefault(name, Counter())[kind] += 1
            if fault:
                faults.append({"tool": name, "arguments": repr(given_)[:500], "fault": fault, "lost": 0})
                print(json.dumps(faults[-1], ensure_ascii=False))
    return {name: dict(kinds) for name, kinds in outcomes.items()}, faults


if __name__ == "__main__":
    sys.exit(main())
