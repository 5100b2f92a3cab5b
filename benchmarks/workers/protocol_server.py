"""What an MCP server costs a client over stdio, measured from outside, beside a bare server in the same run.

The client is written here, in a few lines over pipes, so that every server meets the same one, whatever its own
environment has installed. Job: `server` and `bare` (each `command`, `tool`, `arguments`), `store` (a command to start
before, or null), `environment`, `links` (names in the empty folder to what they point to), `eras`, `spawns`, `calls`,
`packages` (whose versions are told). `{bin}` in a command is the folder of this environment's scripts, `{port}` a free
port, `{folder}` the empty folder.
"""

import json
import os
import queue
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _worker import Out, read

LEGACY, MODERN = "2025-11-25", "2026-07-28"
CLIENT = {"name": "bench", "version": "1"}
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
ANSWER_S = 60.0
"""How long an answer is waited for."""
PROBE_S = 10.0
"""How long a client of the new era waits before it takes a silent server for an old one."""
GOODBYE_S = 5.0
SETTLED_MB, SETTLE_S = 1.0, 60.0
"""Memory counts as settled when a second adds less than this; waited for at most so long."""


class Silent(Exception):
    """A server did not answer in time."""


class Server:
    """A spawned server, spoken to in JSON-RPC, one line a message.

    `stray`: lines on its stdout that were no message; a client has to skip them.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._told = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, env=environment
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._last = 0
        self.stray = 0
        self._meta: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._pump, daemon=True)
        self._reader.start()

    def handshake(self, era: str) -> None:
        """Until the server takes calls, as the SDK's client does it in its modes `legacy` and `auto`."""
        if era == "auto" and self._discovered():
            self._meta = {"_meta": MODERN_META}
            return
        self.ask("initialize", {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT})
        self._send({"method": "notifications/initialized"})

    def ask(self, method: str, params: dict[str, Any] | None = None, wait_s: float = ANSWER_S) -> dict[str, Any]:
        """The result of a request.

        Raises:
            RuntimeError: the server answers with an error, or has ended.
            Silent: it does not answer.
        """
        answer = self._answer(method, {**(params or {}), **self._meta}, wait_s)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        found: dict[str, Any] = answer["result"]
        return found

    def rss_mb(self) -> float:
        """Resident memory of the process now."""
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(self._process.pid)], capture_output=True, check=True)
        return int(told.stdout) / 1024

    def settled_mb(self) -> float:
        """Resident memory when it has stopped growing."""
        begun, before, now = time.monotonic(), 0.0, self.rss_mb()
        while now - before >= SETTLED_MB and time.monotonic() - begun < SETTLE_S:
            time.sleep(1)
            before, now = now, self.rss_mb()
        return now

    def close(self) -> None:
        """End its input, as a client that goes away, and see to it that it ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended before
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(GOODBYE_S)
        if not self._reader.is_alive():  # a child of the server may still hold its stdout
            self._process.stdout.close()
        self._told.close()

    def _discovered(self) -> bool:
        try:
            answer = self._answer("server/discover", {"_meta": MODERN_META}, PROBE_S)
        except Silent:
            return False
        return MODERN in answer.get("result", {}).get("supportedVersions", [])

    def _answer(self, method: str, params: dict[str, Any], wait_s: float) -> dict[str, Any]:
        self._last += 1
        self._send({"id": self._last, "method": method, **({"params": params} if params else {})})
        end = time.monotonic() + wait_s
        while True:
            message = self._message(method, end)
            if message.get("id") == self._last and "method" not in message:
                return message

    def _message(self, method: str, end: float) -> dict[str, Any]:
        """The next message, or an empty one for a stray line."""
        try:
            line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise Silent(f"no answer to {method}") from None
        if not line:
            raise RuntimeError(f"the server ended during {method}: {self._reason()}")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        self.stray += not isinstance(message, dict)
        return message if isinstance(message, dict) else {}

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the server has ended: {self._reason()}") from None

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip():
                self._lines.put(line)
        self._lines.put(b"")

    def _reason(self) -> str:
        """The last line that the server wrote to stderr."""
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            return "it has closed its stdout and runs on"
        self._told.seek(0)
        told = self._told.read().decode("utf-8", "replace")
        print(told, file=sys.stderr)
        return reason(told) or f"exit status {self._process.returncode}"


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
            "schema_chars": len(json.dumps(tools, ensure_ascii=False, separators=(",", ":"))),
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


def timed(server: Server, params: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Milliseconds of one call, and its result."""
    start = time.perf_counter()
    result = server.ask("tools/call", params)
    return 1000 * (time.perf_counter() - start), result


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


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Until something listens on `port`; an error when the process that should has ended, or in `ANSWER_S`."""
    end = time.monotonic() + ANSWER_S
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the store does not listen (exit status {process.poll()})")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


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


def reason(told: str) -> str:
    """The last line of `told` that names an error, else its last line."""
    lines = [line.strip(" |+-") for line in told.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Exit)\w*\b", line)]
    return [*filter(None, lines), *errors][-1] if any(lines) else ""


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
