"""Programs of other people: run to their end, or kept as a server while a check talks to it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from environments import Failed

LIMIT_S, START_S = 300, 120


def run(
    command: list[str | Path], *, env: dict[str, str] | None = None, folder: Path | None = None, ok: int = 0
) -> str:
    """stdout of a program that ends with the status `ok` in time."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"`{Path(words[0]).name}` did not end in {LIMIT_S} s") from None
    if done.returncode != ok:
        raise Failed(f"status {done.returncode}, not {ok}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


@contextlib.contextmanager
def served(command: Sequence[str], folder: Path) -> Iterator[str]:
    """The address of a server over HTTP that answers; `{port}` in the command is filled in."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.replace("{port}", str(port)) for word in command]
    with (folder / "server.log").open("w") as log, subprocess.Popen(words, stderr=log, stdout=log) as server:
        try:
            until = time.monotonic() + START_S
            while not _listens(port):
                if server.poll() is not None or time.monotonic() > until:
                    raise Failed(f"the server did not start: {(folder / 'server.log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _listens(port: int) -> bool:
    with socket.socket() as knock:
        knock.settimeout(1)
        return knock.connect_ex(("127.0.0.1", port)) == 0
