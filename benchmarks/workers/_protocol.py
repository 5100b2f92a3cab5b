"""A client of MCP servers in a few lines, the same for every server, whatever its own environment has installed.

Only the standard library. `Server` speaks over pipes; what it measures is measured from outside.
"""

import json
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

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

    def many(self, asked: Sequence[dict[str, Any]], at_once: int) -> list[float]:
        """Milliseconds of each tool call of `asked`, so many of them under way at the same time, in any order.

        Raises:
            RuntimeError: a call fails, or the server has ended.
            Silent: it does not answer.
        """
        waiting, begun, taken = list(reversed(asked)), dict[int, float](), list[float]()
        end = time.monotonic() + ANSWER_S * len(asked)
        while waiting or begun:
            while waiting and len(begun) < at_once:
                self._last += 1
                begun[self._last] = time.perf_counter()
                self._send({"id": self._last, "method": "tools/call", "params": {**waiting.pop(), **self._meta}})
            message = self._message("tools/call", end)
            if message.get("id") in begun and "method" not in message:
                taken.append(1000 * (time.perf_counter() - begun.pop(message["id"])))
                checked(message)
        return taken

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


def timed(server: Server, params: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Milliseconds of one call, and its result."""
    start = time.perf_counter()
    result = server.ask("tools/call", params)
    return 1000 * (time.perf_counter() - start), result


def checked(message: dict[str, Any]) -> dict[str, Any]:
    """The result in the answer to a tool call; an error, of the protocol or of the tool, is a `RuntimeError`."""
    if "error" in message or message["result"].get("isError"):
        raise RuntimeError(f"tools/call: {json.dumps(message)[:300]}")
    found: dict[str, Any] = message["result"]
    return found


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Until something listens on `port`; an error when the process that should has ended, or after `ANSWER_S`."""
    end = time.monotonic() + ANSWER_S
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens (exit status {process.poll()})")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def reason(told: str) -> str:
    """The last line of `told` that names an error, else its last line."""
    lines = [line.strip(" |+-") for line in told.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Exit)\w*\b", line)]
    return [*filter(None, lines), *errors][-1] if any(lines) else ""
