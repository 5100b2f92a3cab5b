"""Servers for the tests, on loopback ports that are free, each with a data folder of its own, stopped in any case."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
MILVUS = Path(os.environ.get("MILVUS_ENV") or CHECKOUT / ".cache" / "milvus-2.3.5").absolute()
"""The environment that `make test-milvus` installs Milvus 2.3.5 into."""

LAUNCHER = Path(__file__).parent / "servers" / "launch_milvus.py"
PORTS = (
    *("proxy_port", "proxy_internal_port", "root_coord_port", "query_coord_port", "query_node_port"),
    *("index_coord_port", "index_node_port", "data_coord_port", "data_node_port", "etcd_port"),
)
USER = "root:Milvus"
"""Whom a new Milvus lets in."""

START_S = 90.0
STOP_S = 20.0


@contextmanager
def milvus(data: Path) -> Iterator[str]:
    """The URI of a Milvus 2.3.5 that lets `USER` in."""
    python = MILVUS / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"Milvus 2.3.5 is not installed in {MILVUS.name}: run `make test-milvus`.")
    health, *ports = free_ports(len(PORTS) + 1)
    # What the server unpacks itself into (450 MB) is kept from run to run; its data is not.
    unpacked = MILVUS / "unpacked"
    unpacked.mkdir(exist_ok=True)
    (data / "bin").symlink_to(unpacked, target_is_directory=True)
    given = {"data": str(data), "health": health, "ports": dict(zip(PORTS, ports, strict=True))}
    log = data / "launcher.log"
    with started([str(python), str(LAUNCHER), json.dumps(given)], log) as process:
        wait_until(lambda: is_healthy(health), process, "Milvus 2.3.5", log)
        yield f"http://127.0.0.1:{ports[0]}"


@contextmanager
def lite_server(data: Path) -> Iterator[str]:
    """The URI of a `milvus-lite server`."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(data / "lite")]
    log = data / "lite.log"
    with started([*command, "--host", "127.0.0.1", "--port", str(port)], log) as process:
        wait_until(lambda: answers(port), process, "milvus-lite server", log)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process group of its own, of which nothing is left afterwards."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while not ready():
        ended = process.poll()
        if ended is not None or time.monotonic() > until:
            what = f"did not start within {START_S:.0f} s" if ended is None else f"ended with status {ended}"
            last = log.read_text("utf-8", "replace")[-2_000:].strip() or "nothing"
            raise RuntimeError(f"{name} {what}. It said: {last}")
        time.sleep(0.1)


def is_healthy(port: int) -> bool:
    line = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        line.request("GET", "/healthz")
        return b"OK" in line.getresponse().read()
    except (OSError, HTTPException):
        return False
    finally:
        line.close()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
