"""One measurement of `make bench` is a cell: a worker script, run in a process of its own in one environment.

Outcomes are kept in the cache, so that a run that was cut short goes on where it stood. What a cell depends on (its
job, the pinned packages or our own source, the worker's source) is in the name of its file: change one of them and it
is measured again. A cell that failed is tried again; one that ran out of time is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import envs

from triptych.errors import BadInput
from triptych.tools.evaluation import datasets

HERE = Path(__file__).resolve().parent
WORKERS = HERE / "workers"
OURS = "ours"
QUICK_OVER = "not started: the five minutes of QUICK were over"
QUICK_CUT = "cut short: the five minutes of QUICK were over"
_SHARED = re.compile(r"^(?:from|import) (_\w+)", re.MULTILINE)
_PATH = re.compile(r"(?<![\w/.:])(?:~|/[\w.+@-]+)(?:/[\w.+@-]+)+/?")


@dataclass(frozen=True)
class Cell:
    """What is measured in one process.

    Attributes:
        key: unique in its group, safe as a file name.
        env: `"ours"` or a name in `rivals.toml`.
        worker: a file name in `benchmarks/workers/`.
        job: JSON-serialisable; names its data by their hashes, so that other data is another job.
    """

    key: str
    env: str
    worker: str
    job: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        reason: why it is not `"ok"`, in one line without paths of the machine.
        data: what the worker had written when it ended, or was ended.
        seconds: of the worker, without the installing of its environment.
    """

    status: Literal["ok", "failed", "timeout"]
    reason: str | None
    data: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run measures with.

    Attributes:
        data: folders of collections.
        questions: question files.
        home: a `TRIPTYCH_HOME` with pulled weights.
        cache: the folder for everything that can be made again.
        train: a file of questions with passages to learn from; None for the first of `questions`.
    """

    quick: bool
    data: tuple[Path, ...]
    questions: tuple[Path, ...]
    home: Path
    cache: Path
    seed: int = 0
    train: Path | None = None


def text_collections(plan: Plan, limit: int | None = None) -> list[datasets.Collection]:
    """The plan's collections that are text throughout, with at most `limit` queries each.

    Raises:
        BadInput: there is none.
    """
    found = [datasets.collection(folder, limit=limit, seed=plan.seed) for folder in plan.data]
    text = [data for data in found if all(row.modality == "text" for row in data.passages.values())]
    if not text:
        raise BadInput(
            f"None of `{', '.join(folder.name for folder in plan.data)}` is text.", "Add a collection of text."
        )
    return text


def run(cell: Cell, plan: Plan, group: str, *, fresh: bool = False, deadline: float | None = None) -> Outcome:
    """Measure `cell`, or read what an earlier run has kept.

    Args:
        fresh: measure in any case.
        deadline: a time of `time.monotonic` by which it has to end.
    """
    try:
        kept = plan.cache / "cells" / group / f"{cell.key}-{fingerprint(cell)}.json"
        if not fresh and (found := _kept(kept)):
            return found
        python = python_of(cell.env, plan.cache, _left(deadline))
        left = min(cell.timeout_s, _left(deadline) or cell.timeout_s)
    except (QuickOver, envs.EnvLate):
        return Outcome("timeout", QUICK_OVER, {}, 0.0)
    except envs.EnvFailed as error:
        return Outcome("failed", without_paths(str(error)), {}, 0.0)
    outcome = _measure(cell, plan, group, python, left)
    if outcome.status == "timeout" and left < cell.timeout_s:
        return Outcome("timeout", QUICK_CUT, outcome.data, outcome.seconds)
    _write(kept, asdict(outcome))
    return outcome


class QuickOver(Exception):
    """The deadline of a quick run has passed."""


def _left(deadline: float | None) -> float | None:
    """Seconds until `deadline`, more than 0; None without one."""
    if deadline is None:
        return None
    if (left := deadline - time.monotonic()) <= 0:
        raise QuickOver
    return left


def _kept(path: Path) -> Outcome | None:
    if not path.is_file():
        return None
    outcome = Outcome(**json.loads(path.read_text("utf-8")))
    return None if outcome.status == "failed" else outcome


def python_of(env: str, cache: Path, timeout_s: float | None = None) -> Path:
    """The interpreter of an environment, which is installed when it is not there yet (see `envs`)."""
    return Path(sys.executable) if env == OURS else envs.python_of(env, cache, timeout_s)


def fingerprint(cell: Cell) -> str:
    """12 hexadecimal digits over all that the cell's outcome depends on."""
    scripts = sources(WORKERS / cell.worker)
    pins = envs.own_source(scripts) if cell.env == OURS else envs.pins(cell.env)
    source = [hashlib.sha256(path.read_bytes()).hexdigest() for path in scripts]
    told = json.dumps([cell.job, cell.timeout_s, pins, source], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def sources(worker: Path) -> list[Path]:
    """The worker's file and the `_name.py` beside it that it imports, or that these import."""
    found = [worker]
    for path in found:
        names = _SHARED.findall(path.read_text("utf-8"))
        beside = [worker.with_name(f"{name}.py") for name in names]
        found += [other for other in beside if other.is_file() and other not in found]
    return found


def without_paths(text: str) -> str:
    """`text` with every absolute path cut to its last part.

    >>> without_paths("No such file: '/home/me/x/corpus.jsonl'")
    "No such file: 'corpus.jsonl'"
    """
    return _PATH.sub(lambda match: match[0].rstrip("/").rsplit("/", 1)[-1], text)


def _measure(cell: Cell, plan: Plan, group: str, python: Path, timeout_s: float) -> Outcome:
    log = plan.cache / "logs" / group / f"{cell.key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        job, out = Path(scratch, "job.json"), Path(scratch, "out.json")
        job.write_text(json.dumps(cell.job), "utf-8")
        command = [str(python), str(WORKERS / cell.worker), str(job), str(out)]
        start = time.perf_counter()
        with log.open("wb") as told:
            code = _run(command, told, {**os.environ, **_environment(cell, plan), "TMPDIR": scratch}, timeout_s)
        seconds = time.perf_counter() - start
        data = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    if code is None:
        return Outcome("timeout", f"stopped after {timeout_s:.0f} s", data, seconds)
    if code:
        return Outcome("failed", _last_line(log, code), data, seconds)
    return Outcome("ok", None, data, seconds)


def _environment(cell: Cell, plan: Plan) -> Mapping[str, str]:
    """No worker reaches for a model hub or sends usage data; beyond that all have the same environment."""
    own = {"TRIPTYCH_HOME": str(plan.home)} if cell.env == OURS else envs.rivals()[cell.env].env
    return {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", **own}


def _run(command: list[str], log: Any, environment: Mapping[str, str], timeout_s: float) -> int | None:
    """The exit status, or None when it had to be stopped, with every process that it had started."""
    worker = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        return worker.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _stop(worker)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the usual case: it has ended, and so has all that it started
    worker.wait()


def _last_line(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return without_paths(lines[-1])[:300] if lines else f"exit status {code}"


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    scratch.replace(path)
