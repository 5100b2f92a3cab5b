"""What every worker stands on: its job, and an output that is whole whenever the worker is stopped.

It runs in rivals' environments too, so it needs nothing beyond the standard library.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any


def read() -> dict[str, Any]:
    """The job."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    return job


class Out:
    """The worker's figures so far: each `put` writes all of them, in one step."""

    def __init__(self, path: "str | None" = None) -> None:
        self._path = Path(path or sys.argv[2])
        self._data: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        """Set `key` to a JSON-serialisable `value`, replacing an earlier one."""
        self._data[key] = value
        scratch = self._path.with_suffix(".part")
        scratch.write_text(json.dumps(self._data, ensure_ascii=False), "utf-8")
        scratch.replace(self._path)


def peak_rss_mb() -> float:
    """The most memory that this process has had in use, in MiB.

    Linux counts what a parent had before `exec` in `ru_maxrss`, but not in `VmHWM`.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        [line] = [line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
