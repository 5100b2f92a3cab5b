"""The group `pruning` of `make bench`: what it asks for and what it makes of outcomes, also of lost ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import BadInput
from triptych.manifests.weights import hash_of
from triptych.refiners.tokens import count
from triptych.tools.evaluation.result import Result

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
STATION = BENCHMARKS / "data" / "station"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks."""
    for folder in (BENCHMARKS / "workers", BENCHMARKS):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


def plan(load: Any, quick: bool = False) -> Any:
    return load("cells").Plan(quick, (STATION,), (STATION / "questions.jsonl",), Path("home"), Path("cache"), 0)


def outcomes_of(load: Any, group: Any, quick: bool = False) -> dict[str, Any]:
    """The package takes eight seconds, exact two, fast one; fast keeps a word of five that exact does not."""
    seconds = {"stock": 8.0, "exact": 2.0, "fast": 1.0, "classifier": 0.1}
    found = {}
    for cell in group.cells(plan(load, quick)):
        way = cell.key.partition("_")[0]
        data: dict[str, Any] = {"dtype": "bfloat16"}
        if way == "compress":
            data |= {"ms": [1.0, 3.0, 5.0], "used": [990, 1000, 995], "peak_rss_mb": 900.0}
        for size in cell.job.get("texts", ()):
            words = [0, 1, 2, 3, 5] if way == "fast" else [0, 1, 2, 3, 4]
            data[size] = {"seconds": [seconds[way]] * 3, "above_mb": 700.0, "tokens": int(size), "words": words}
            data[size]["text"] = "a b c d e" if way != "fast" else "a b c d f"
        found[cell.key] = load("cells").Outcome("ok", None, data, 1.0)
    return found


def read_back(found: Result, folder: Path) -> Result:
    """As from its file, which checks it once more."""
    return Result.read(found.write(folder))


def test_all_get_the_same_text_weights_and_threads(load: Any) -> None:
    group = load("groups.pruning")
    todo = {cell.key: cell for cell in group.cells(plan(load))}
    same = ("texts", "weights", "threads", "rate", "warm_up", "model")
    for threads in group.FULL.sizes:
        stock = todo[f"stock_{threads}"].job
        assert stock["weights"] == hash_of(group.LM)
        for mode in group.ways(group.FULL, threads):
            job = todo[f"{mode}_{threads}"].job
            assert {key: job[key] for key in same} == {key: stock[key] for key in same}
        for size, text in stock["texts"].items():
            assert 0.95 * int(size) <= count(text) <= 1.01 * int(size)
    assert {cell.env for key, cell in todo.items() if key.startswith("stock")} == {"llmlingua"}


def test_speedups_are_the_packages_seconds_over_ours(load: Any, tmp_path: Path) -> None:
    group = load("groups.pruning")
    found = read_back(group.result(plan(load), outcomes_of(load, group), "make bench"), tmp_path)
    assert (found.name, found.kind) == ("bench_pruning", "pruning")
    assert {arm.status for arm in found.arms} == {"ok"}
    assert len({arm.label for arm in found.arms}) == len(found.arms)
    at = {"tokens": 2000, "threads": 2}
    exact, fast = (
        found.arm("llmlingua", mode="exact", precision="auto", **at),
        found.arm("llmlingua", mode="fast", **at),
    )
    assert exact.metrics["lm_speedup_vs_stock"] == 4.0
    assert exact.metrics["identical_to_stock"] == 1
    assert fast.metrics["lm_speedup_vs_stock"] == 8.0
    assert fast.metrics["word_overlap_with_exact"] == 0.8
    assert fast.metrics["similar_to_stock"] == 0.8
    assert found.arm("triptych_pruner", mode="read", **at).metrics["clf_speedup_vs_stock"] == 80.0
    assert found.arm("llmlingua 0.2.2", **at).metrics["tokens_per_s"] == 250.0
    assert found.arm("llmlingua", pruning="fast", pruning_reach="all").metrics["compress_ms_p50"] == 3.0


def test_what_was_lost_is_told(load: Any, tmp_path: Path) -> None:
    group = load("groups.pruning")
    outcomes = outcomes_of(load, group)
    del outcomes["stock_2"].data["8000"]
    late = load("cells").Outcome("timeout", "stopped after 600 s", outcomes["stock_2"].data, 600.0)
    broken = load("cells").Outcome("failed", "ModuleNotFoundError: no pruner", {}, 1.0)
    outcomes |= {"stock_2": late, "classifier_2": broken, "compress_llmlingua": broken}
    found = read_back(group.result(plan(load), outcomes, "make bench"), tmp_path)
    assert found.arm("llmlingua 0.2.2", tokens=8000).reason == "stopped after 600 s"
    assert "lm_speedup_vs_stock" not in found.arm("llmlingua", mode="exact", precision="auto", tokens=8000).metrics
    pruner = found.arm("triptych_pruner", mode="read", tokens=2000, threads=2)
    assert (pruner.status, pruner.metrics) == ("failed", {})
    assert found.arm("llmlingua", rate=0.5, pruning_reach="all", pruning="fast").status == "ok"


def test_a_quick_run_is_small(load: Any, tmp_path: Path) -> None:
    group = load("groups.pruning")
    todo = group.cells(plan(load, quick=True))
    assert len(todo) < len(group.cells(plan(load))) / 2
    assert all(int(size) < 1000 for cell in todo for size in cell.job.get("texts", ()))
    found = group.result(plan(load, quick=True), outcomes_of(load, group, quick=True), "make bench")
    assert read_back(found, tmp_path).arm("llmlingua", mode="fast").status == "ok"


def test_a_file_that_is_too_small_is_refused(load: Any) -> None:
    group = load("groups.pruning")
    asked = group.questions(plan(load))
    with pytest.raises(BadInput, match="`900000`"):
        group.text(asked, 900_000)
    assert count(group.text(asked, 50)) <= 50


def test_memory_above_what_was_there_is_measured(load: Any) -> None:
    worker = load("_pruning")
    found, figures = worker.measured(lambda: len(bytes(bytearray(64 * 2**20))), 2)
    assert found == 64 * 2**20
    assert len(figures["seconds"]) == 2
    if worker.RESET.exists():
        assert 100 < figures["above_mb"] < 400
