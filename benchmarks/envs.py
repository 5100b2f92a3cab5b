"""Rivals' environments: one virtual environment each under the cache, with the versions that `rivals.toml` pins.

They are installed by pip under the user's own settings, when a cell first needs them. The stamp in each holds the hash
of its pins: other pins, another installation.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RIVALS = HERE / "rivals.toml"
LAYERS = ("manifests", "retrievers", "rerankers", "refiners", "tools", "server")
"""Of our package, in the order in which they build on each other; the modules of its root stand below all."""
_NAMED = re.compile(r"\btriptych(?:\.(\w+))?")
_STAMP = "pins.sha256"


class EnvFailed(Exception):
    """An environment could not be made; the message is the reason in one line."""


class EnvLate(EnvFailed):
    """An environment could not be made in the time that there was."""


@dataclass(frozen=True)
class Rival:
    """One entry of `rivals.toml`.

    Attributes:
        requirements: exact pins; `options` are pip's for these.
        no_deps: exact pins that are installed after them without what they ask for.
        python: `"3.12"`, where another version is needed than the one that runs the benchmarks.
        env: variables for its workers.
        note: why it is installed the way it is.
    """

    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    no_deps: tuple[str, ...] = ()
    python: str = ""
    env: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def pins(self) -> tuple[str, ...]:
        """All requirements."""
        return (*self.requirements, *self.no_deps)

    @property
    def system(self) -> str:
        """The package that is measured, with its version: the first of `no_deps`, else of the requirements."""
        return (self.no_deps or self.requirements)[0].replace("==", " ")


def rivals(path: Path | None = None) -> dict[str, Rival]:
    """The entries of `rivals.toml` by name."""
    table = tomllib.loads((path or RIVALS).read_text("utf-8"))
    return {name: Rival(**{key: _frozen(value) for key, value in entry.items()}) for name, entry in table.items()}


def python_of(name: str, cache: Path, timeout_s: float | None = None) -> Path:
    """The interpreter of `name`'s environment under `cache/envs`, which is made when it is not there yet.

    Raises:
        EnvFailed: it is in no table, or could not be installed; `EnvLate`: not within `timeout_s` seconds.
    """
    from filelock import FileLock

    folder = cache / "envs" / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        stamp = folder / _STAMP
        if not (stamp.is_file() and stamp.read_text("utf-8") == pins(name)):
            shutil.rmtree(folder, ignore_errors=True)
            _install(rivals()[name], folder, python, cache / "logs" / "envs" / f"{name}.log", timeout_s)
            stamp.write_text(pins(name), "utf-8")
    return python


def pins(name: str) -> str:
    """The hash of what decides how `name` runs.

    Raises:
        EnvFailed: `name` is not in `rivals.toml`.
    """
    known = rivals()
    if name not in known:
        raise EnvFailed(f"rivals.toml has no `{name}`")
    rival = known[name]
    told = json.dumps([rival.pins, rival.options, rival.python, rival.env], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def own_source(scripts: Sequence[Path]) -> str:
    """The hash of what of our own package `scripts` can reach, and of the versions that it runs on.

    That is every layer up to the highest that they name, and all of it where they name none.
    """
    named = [name for path in scripts for name in _NAMED.findall(path.read_text("utf-8"))]
    whole = "" in named or not named
    highest = max((LAYERS.index(name) for name in named if name in LAYERS), default=-1)
    return _hash_of(len(LAYERS) if whole else highest + 1)


@functools.cache
def _hash_of(layers: int) -> str:
    from triptych.tools.evaluation.environment import environment

    root = HERE.parent
    files = [*root.glob("*.py"), *(path for part in LAYERS[:layers] for path in (root / part).rglob("*"))]
    digest = hashlib.sha256(json.dumps(environment()["versions"], sort_keys=True).encode())
    for path in sorted(files):
        if path.suffix in (".py", ".toml"):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _install(rival: Rival, folder: Path, python: Path, log: Path, timeout_s: float | None) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    steps = [[_interpreter(rival), "-m", "venv", str(folder)], [*pip, *rival.options, *rival.requirements]]
    if rival.no_deps:
        steps.append([*pip, "--no-deps", *rival.no_deps])
    end = None if timeout_s is None else time.monotonic() + timeout_s
    with log.open("w", encoding="utf-8") as told:
        for step in steps:
            _step(step, told, log, None if end is None else end - time.monotonic())


def _step(command: list[str], told: Any, log: Path, left_s: float | None) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, timeout=left_s, check=False)
    except subprocess.TimeoutExpired:
        raise EnvLate("not installed in time") from None
    except OSError as error:
        raise EnvFailed(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise EnvFailed(_reason(log, done.returncode))


def _reason(log: Path, code: int) -> str:
    """The first error that pip tells; its last ones only say that there was one."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [f"exit status {code}"])[0][:300]


def _interpreter(rival: Rival) -> str:
    return f"python{rival.python}" if rival.python else sys.executable


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
