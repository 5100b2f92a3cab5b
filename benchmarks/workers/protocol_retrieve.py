"""What `retrieve` costs a client of our MCP server: the first one after a start, and those of several clients at once.

The library is indexed before and the models' files are there; the server is a process of its own. Job: `collection` (a
folder), `passages` (of its texts, one file each), `questions` (how many different ones), `spawns` (of a fresh server),
`clients` (how many at once, one figure each), `calls` (for each of these), `budget`, `seed`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import Any

from _protocol import ANSWER_S, MODERN, MODERN_META, Server, checked, free_port, timed, wait_for
from _worker import Out, read

from triptych import Settings
from triptych.tools.evaluation import datasets

TRIPTYCH = [sys.executable, "-m", "triptych.server.cli"]
LIBRARY = ["--library", "bench"]
LOADING = "still loading"
HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": MODERN,
    "Mcp-Method": "tools/call",
    "Mcp-Name": "retrieve",
}


def main() -> None:
    job, out = read(), Out()
    data = datasets.collection(Path(job["collection"]), limit=job["questions"], seed=job["seed"])
    asked = [call(str(query.text), job["budget"]) for query in data.queries.values()]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        home.mkdir()
        (home / "weights").symlink_to(Settings.load().weights, target_is_directory=True)
        environment = {**os.environ, "TRIPTYCH_HOME": str(home), "TRIPTYCH_CALL_RATE": "0"}
        out.put("passages", indexed(data, Path(folder, "files"), job["passages"], environment))
        firsts: list[dict[str, float]] = []
        for _ in range(job["spawns"]):
            firsts.append(first(asked, environment))
            out.put("first", firsts)
        with over_http(environment) as port:
            for one in asked[:2]:
                posted(HTTPConnection("127.0.0.1", port, timeout=ANSWER_S), 0, one)
            out.put("http", [])
            out.put("http", list(figures(job, asked, lambda calls, most: by_clients(port, calls, most))))
        server = Server([*TRIPTYCH, "mcp", *LIBRARY], environment)
        try:
            server.handshake("auto")
            waited(server, asked[0])
            out.put("stdio", list(figures(job, asked, server.many)))
        finally:
            server.close()
        out.put("load_average", os.getloadavg()[0])


def call(query: str, budget: int) -> dict[str, Any]:
    return {"name": "retrieve", "arguments": {"query": query, "max_tokens": budget}}


def indexed(data: datasets.Collection, files: Path, most: int, environment: dict[str, str]) -> int:
    """Index the collection's first texts, one Markdown file each; how many passages the library then has."""
    files.mkdir()
    texts = (row for row in data.passages.values() if row.text.strip())
    for number, row in enumerate(islice(texts, most)):
        (files / f"{number:06}.md").write_text(f"# {row.title}\n\n{row.text}\n", "utf-8")
    words = [*TRIPTYCH, "index", str(files), *LIBRARY, "--json"]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
    return int(json.loads(done.stdout)["items"])


def first(asked: list[dict[str, Any]], environment: dict[str, str]) -> dict[str, float]:
    """Milliseconds of a fresh process: to its handshake, to its first evidence, and of the first two calls."""
    start = time.perf_counter()
    server = Server([*TRIPTYCH, "mcp", *LIBRARY], environment)
    try:
        server.handshake("auto")
        ready = time.perf_counter()
        repeats = waited(server, asked[0])
        answered = time.perf_counter()
        second, result = timed(server, asked[1])
        checked({"result": result})
        return {
            "handshake_ms": 1000 * (ready - start),
            "to_evidence_ms": 1000 * (answered - start),
            "first_ms": 1000 * (answered - ready),
            "second_ms": second,
            "asked_again": repeats,
            "rss_mb": server.rss_mb(),
        }
    finally:
        server.close()


def waited(server: Server, asked: dict[str, Any]) -> int:
    """Ask until the models are there, as an agent would; how often it had to be asked again."""
    repeats = 0
    while LOADING in json.dumps(checked({"result": timed(server, asked)[1]})["content"]):
        repeats += 1
    return repeats


def figures(job: dict[str, Any], asked: list[dict[str, Any]], run: Any) -> Iterator[dict[str, float]]:
    """For each number of clients: calls a second, and milliseconds of a call."""
    for clients in job["clients"]:
        calls = [asked[number % len(asked)] for number in range(job["calls"])]
        start = time.perf_counter()
        taken = sorted(run(calls, clients))
        seconds = time.perf_counter() - start
        yield {
            "clients": clients,
            "calls": len(taken),
            "calls_per_s": len(taken) / seconds,
            "ms_p50": statistics.median(taken),
            "ms_p95": taken[int(0.95 * (len(taken) - 1))],
        }


@contextmanager
def over_http(environment: dict[str, str]) -> Iterator[int]:
    """The port of a server over HTTP whose models are loaded."""
    port = free_port()
    command = [*TRIPTYCH, "mcp", *LIBRARY, "--transport", "http", "--port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
    try:
        wait_for(port, process)
        until_ready(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def until_ready(port: int) -> None:
    end = time.monotonic() + ANSWER_S
    while time.monotonic() < end:
        connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        connection.request("GET", "/ready")
        if connection.getresponse().status == 200:
            return
        time.sleep(0.2)
    raise RuntimeError("the server is not ready")


def by_clients(port: int, calls: list[dict[str, Any]], clients: int) -> list[float]:
    """Milliseconds of each call, where so many clients make them, each on a connection of its own."""
    waiting = iter(enumerate(calls))

    def client(_: int) -> list[float]:
        connection, taken = HTTPConnection("127.0.0.1", port, timeout=ANSWER_S), []
        for number, asked in waiting:  # the clients share one list: a finished one takes the next call
            taken.append(posted(connection, number, asked))
        connection.close()
        return taken

    with ThreadPoolExecutor(clients) as threads:
        return [ms for taken in threads.map(client, range(clients)) for ms in taken]


def posted(connection: HTTPConnection, number: int, asked: dict[str, Any]) -> float:
    """Milliseconds of one call; one that fails, or whose models are not there, is an error."""
    body = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {**asked, "_meta": MODERN_META}}
    start = time.perf_counter()
    connection.request("POST", "/mcp", json.dumps(body), HEADERS)
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    ms = 1000 * (time.perf_counter() - start)
    lines = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")] or [text]
    told = [message for line in lines if line.strip() and (message := json.loads(line)).get("id") == number]
    if answer.status != 200 or not told or LOADING in json.dumps(checked(told[0])["content"]):
        raise RuntimeError(f"status {answer.status}: {text[:300]}")
    return ms


if __name__ == "__main__":
    main()
