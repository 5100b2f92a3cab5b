"""A small form of `benchmarks/soak_mcp.py`: mixed calls over HTTP from several clients at once, none of which fails."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from triptych.tools.evaluation.result import Result

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))


def test_mixed_calls_from_several_clients_all_succeed(tmp_path: Path) -> None:
    soak = importlib.import_module("soak_mcp")
    told = soak.soaked(tmp_path, 80, 4)
    assert told["faults"] == []
    assert told["calls"] == 80
    assert set(told["by_tool"]) == {"retrieve", "search", "fetch", "view", "rerank", "compress", "status"}
    assert told["growth"] < 0.5  # a short run is all warm-up; the long one keeps to 5 %
    found = Result.read(soak.result(told).write(tmp_path / "results"))
    assert found.name == "bench_soak_mcp"
    assert found.arms[0].metrics["calls"] == 80 == sum(arm.metrics["calls"] or 0 for arm in found.arms[1:])
    assert (found.arms[0].metrics["faults"], found.arms[0].metrics["rss_growth"]) == (0, told["growth"])
