"""What the workers of the group `pruning` share: wall seconds and the most memory above what was there before.

It runs in rivals' environments too, so it needs nothing beyond the standard library.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def measured(work: Callable[[], Any], repeats: int) -> "tuple[Any, dict[str, Any]]":
    """What `work` gives, and `seconds` of each repetition with `above_mb`, the most memory over all of them above what
    the process held before; None where the system does not tell."""
    before = _begin()
    seconds = []
    found = None
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    above = None if before is None else max(0.0, _mb("VmHWM") - before)
    return found, {"seconds": seconds, "above_mb": above}


def _begin() -> "float | None":
    """Memory in use now, the most from now on being counted anew."""
    if not RESET.exists():
        return None
    RESET.write_text("5", "utf-8")
    return _mb("VmRSS")


def _mb(name: str) -> float:
    [line] = [line for line in STATUS.read_text("utf-8").splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024
