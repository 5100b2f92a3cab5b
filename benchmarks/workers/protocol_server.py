"""What an MCP server costs a client over stdio, measured from outside, beside a bare server in the same run.

The client is `_protocol.Server`, the same for every server. Job: `server` and `bare` (each `command`, `tool`,
`arguments`), `store` (a command to start before, or null), `environment`, `links` (names in the empty folder to what
they point to), `eras`, `spawns`, `calls`, `packages` (whose versions are told). `{bin}` in a command is the folder of
this environment's scripts, `{port}` a free port, `{folder}` the empty folder.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _protocol import Server, Silent, free_port, timed, wait_for
from _worker import Out, read

READ = ("name", "description", "inputSchema")
"""What of a tool an assistant hands on to its model."""


def main() -> None:
    job, out = read(), Out()
    with tempfile.TemporaryDirectory() as folder, started(job["store"], folder) as names:
        for name, target in job["links"].items():
            Path(folder, name).symlink_to(target)
        environment = {**os.environ, **{key: filled(value, names) for key, value in job["environment"].items()}}
        servers = {name: {**job[name], "command": command(job[name]["command"], names)} for name in ("server", "bare")}
        out.put("versions", versions(job["packages"]))
        failed = {}
        for era in job["eras"]:
            try:
                found = {name: talk(told, environment, era, job["calls"]) for name, told in servers.items()}
                out.put(era, found)
                times = handshakes(servers, environment, era, job["spawns"])
                out.put(era, {name: {**found[name], **times[name]} for name in servers})
            except (RuntimeError, Silent) as error:  # the other era may do
                failed[era] = str(error)
                out.put("failed", failed)
        out.put("load_average", os.getloadavg()[0])
        if len(failed) == len(job["eras"]):
            raise SystemExit(failed[job["eras"][-1]])


def handshakes(servers: dict[str, Any], environment: dict[str, str], era: str, spawns: int) -> dict[str, Any]:
    """Milliseconds from spawn to initialized and to the list of tools: medians of spawns in turn.

    `talk` has spawned each once before, so that its files are in the system's cache.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(spawns):
        for name, told in servers.items():
            start = time.perf_counter()
            server = Server(told["command"], environment)
            try:
                server.handshake(era)
                ready = time.perf_counter() - start
                server.ask("tools/list")
                taken[name].append((1000 * ready, 1000 * (time.perf_counter() - start)))
            finally:
                server.close()
    return {
        name: {
            "handshake_ms": statistics.median(one for one, _ in rows),
            "handshake_ms_min": min(one for one, _ in rows),
            "handshake_ms_max": max(one for one, _ in rows),
            "tools_listed_ms": statistics.median(two for _, two in rows),
            "spawns": len(rows),
        }
        for name, rows in taken.items()
    }


def talk(told: dict[str, Any], environment: dict[str, str], era: str, calls: int) -> dict[str, Any]:
    """One conversation: the tools, one call again and again, and the memory at three moments."""
    server = Server(told["command"], environment)
    try:
        server.handshake(era)
        ready = server.rss_mb()
        tools = server.ask("tools/list")["tools"]
        params = {"name": told["tool"], "arguments": told["arguments"]}
        first, answer = timed(server, params)
        after_first = server.rss_mb()
        milliseconds = sorted(timed(server, params)[0] for _ in range(calls))
        return {
            "tools": len(tools),
            "schema_chars": len(compact(tools)),
            "read": compact([{name: tool[name] for name in READ if name in tool} for tool in tools]),
            "rss_handshake_mb": ready,
            "rss_call_mb": after_first,
            "rss_settled_mb": server.settled_mb(),
            "first_call_ms": first,
            "call_ms_p50": statistics.median(milliseconds),
            "call_ms_p95": milliseconds[int(0.95 * (len(milliseconds) - 1))],
            "stray_lines": server.stray,
            "answer": json.dumps(answer.get("content"), ensure_ascii=False)[:200],
        }
    finally:
        server.close()


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def started(store: list[str] | None, folder: str) -> Any:
    """The names that commands may use, with the store running where there is one."""
    names = {"bin": str(Path(sys.executable).parent), "port": str(free_port()), "folder": folder}
    if store is None:
        yield names
        return
    process = subprocess.Popen(command(store, names), stdout=subprocess.DEVNULL)
    try:
        wait_for(int(names["port"]), process)
        yield names
    finally:
        process.terminate()
        process.wait()


def command(words: list[str], names: dict[str, str]) -> list[str]:
    """`words` with their names filled in; an error when the program is not there."""
    made = [filled(word, names) for word in words]
    if shutil.which(made[0]) is None:
        raise RuntimeError(f"there is no `{Path(made[0]).name}` in this environment")
    return made


def filled(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def versions(packages: list[str]) -> dict[str, str]:
    """Of those that are installed here."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
