"""What a server counts of its calls, for `status`: how many, how many failed, how long they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any


@dataclass
class Tally:
    """The calls of one tool: milliseconds in all, of the slowest, and by stage."""

    calls: int = 0
    failed: int = 0
    total_ms: float = 0.0
    slowest_ms: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class Call:
    """One call under way; `ms` is what it took by stage, once it is known."""

    ms: dict[str, float] = field(default_factory=dict)


class Tallies:
    """Tallies by tool, since the server began. Safe from many threads."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._tools: dict[str, Tally] = {}
        self._lock = Lock()

    @contextmanager
    def counted(self, name: str) -> Iterator[Call]:
        """Count one call of the tool `name`; an exception counts as a failure."""
        start, call, failed = time.perf_counter(), Call(), True
        try:
            yield call
            failed = False
        finally:
            self._add(name, (time.perf_counter() - start) * 1000, call, failed)

    def _add(self, name: str, ms: float, call: Call, failed: bool) -> None:
        with self._lock:
            tally = self._tools.setdefault(name, Tally())
            tally.calls += 1
            tally.failed += failed
            tally.total_ms += ms
            tally.slowest_ms = max(tally.slowest_ms, ms)
            for stage, took in call.ms.items():
                if stage != "total":
                    tally.stages[stage] = tally.stages.get(stage, 0.0) + took

    def as_dict(self) -> dict[str, Any]:
        """Seconds since the start, and by tool: calls, failures, mean and slowest milliseconds, mean by stage."""
        with self._lock:
            tools = {name: _shown(tally) for name, tally in sorted(self._tools.items())}
        return {"seconds": round(time.monotonic() - self._began, 1), "calls": tools}


def _shown(tally: Tally) -> dict[str, Any]:
    shown: dict[str, Any] = {"calls": tally.calls, "failed": tally.failed}
    shown |= {"mean_ms": round(tally.total_ms / tally.calls, 1), "slowest_ms": round(tally.slowest_ms, 1)}
    stages = {stage: round(took / tally.calls, 1) for stage, took in tally.stages.items()}
    return {**shown, **({"stages_ms": stages} if stages else {})}
