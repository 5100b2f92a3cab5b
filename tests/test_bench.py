"""`make bench`: the orchestrator on toy workers, the pins of rivals, and what every group has to keep to."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
GROUPS = sorted(path.stem for path in (BENCHMARKS / "groups").glob("*.py"))

COUNTING = """
from _worker import Out, read
from pathlib import Path
job = read()
with Path(job["log"]).open("a") as log:
    log.write("run\\n")
out = Out()
out.put("answer", job["n"] * 2)
"""
FAILING = """
from _worker import Out
Out().put("before", 1)
raise ValueError("cannot read '/home/somebody/corpus.jsonl'")
"""
SLOW = """
import subprocess, sys, time
from _worker import Out
out = Out()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
out.put("child", child.pid)
for n in range(600):
    out.put("done", n)
    time.sleep(0.05)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench")


@pytest.fixture
def cells(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with toy workers and toy rivals."""
    module, envs = importlib.import_module("cells"), importlib.import_module("envs")
    workers = tmp_path / "workers"
    workers.mkdir()
    shutil.copy(BENCHMARKS / "workers" / "_worker.py", workers)
    for name, text in (("counting", COUNTING), ("failing", FAILING), ("slow", SLOW)):
        (workers / f"{name}.py").write_text(text, "utf-8")
    (tmp_path / "rivals.toml").write_text('[absent]\nrequirements = ["absent==1.0"]\npython = "0.0"\n', "utf-8")
    monkeypatch.setattr(module, "WORKERS", workers)
    monkeypatch.setattr(envs, "RIVALS", tmp_path / "rivals.toml")
    monkeypatch.setattr(envs, "own_source", lambda scripts: "source")
    return module


@pytest.fixture
def plan(cells: Any, tmp_path: Path) -> Any:
    return cells.Plan(False, (), (), tmp_path / "home", tmp_path / "cache", 0)


def counting(cells: Any, tmp_path: Path, n: int = 21, **more: Any) -> Any:
    return cells.Cell("count", "ours", "counting.py", {"n": n, "log": str(tmp_path / "runs")}, **more)


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text("utf-8").splitlines())


def test_a_cell_is_measured_once_and_then_read(cells: Any, plan: Any, tmp_path: Path) -> None:
    cell = counting(cells, tmp_path)
    first, second = cells.run(cell, plan, "toys"), cells.run(cell, plan, "toys")
    assert first.status == "ok"
    assert first.reason is None
    assert first.data == {"answer": 42}
    assert second == first
    assert runs(tmp_path) == 1
    cells.run(cell, plan, "toys", fresh=True)
    assert runs(tmp_path) == 2


def test_another_job_or_another_worker_is_another_cell(cells: Any, plan: Any, tmp_path: Path) -> None:
    cells.run(counting(cells, tmp_path), plan, "toys")
    assert cells.run(counting(cells, tmp_path, n=4), plan, "toys").data == {"answer": 8}
    for name in ("counting.py", "_worker.py"):  # a module that the worker imports counts as its source
        with (cells.WORKERS / name).open("a", encoding="utf-8") as source:
            source.write("# changed\n")
        cells.run(counting(cells, tmp_path), plan, "toys")
    assert runs(tmp_path) == 4


def test_a_failure_tells_its_last_line_without_paths_and_is_tried_again(cells: Any, plan: Any) -> None:
    cell = cells.Cell("broken", "ours", "failing.py", {})
    outcome = cells.run(cell, plan, "toys")
    assert (outcome.status, outcome.data) == ("failed", {"before": 1})
    assert outcome.reason == "ValueError: cannot read 'corpus.jsonl'"
    (cells.WORKERS / "failing.py").write_text("import _worker\n_worker.Out().put('now', 'well')\n", "utf-8")
    assert cells.run(cell, plan, "toys").status == "ok"
    assert (plan.cache / "logs" / "toys" / "broken.log").is_file()


def test_a_timeout_keeps_its_partial_figures_and_ends_every_process(cells: Any, plan: Any) -> None:
    cell = cells.Cell("slow", "ours", "slow.py", {}, timeout_s=1.5)
    outcome = cells.run(cell, plan, "toys")
    assert outcome.status == "timeout"
    assert outcome.reason == "stopped after 2 s"
    assert outcome.data["done"] > 0
    assert ended(outcome.data["child"])
    start = time.monotonic()
    assert cells.run(cell, plan, "toys") == outcome, "a timeout is kept"
    assert time.monotonic() - start < 1


def ended(pid: int) -> bool:
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("env", "reason"),
    [("absent", "python0.0: No such file or directory"), ("unheard_of", "rivals.toml has no `unheard_of`")],
)
def test_an_environment_that_cannot_be_made_is_a_failure(cells: Any, plan: Any, env: str, reason: str) -> None:
    outcome = cells.run(cells.Cell("rival", env, "counting.py", {}), plan, "toys")
    assert (outcome.status, outcome.reason) == ("failed", reason)


def test_what_pip_says_first_is_the_reason(cells: Any, tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    log.write_text("Collecting absent\nERROR: No matching distribution for absent\nERROR: giving up\n", "utf-8")
    assert importlib.import_module("envs")._reason(log, 1) == "ERROR: No matching distribution for absent"


def test_after_the_deadline_nothing_starts(cells: Any, plan: Any, tmp_path: Path) -> None:
    over = time.monotonic() - 1
    for env in ("ours", "absent"):
        cell = cells.Cell("late", env, "counting.py", {"n": 1, "log": str(tmp_path / "runs")})
        outcome = cells.run(cell, plan, "toys", deadline=over)
        assert outcome.status == "timeout"
        assert outcome.reason == "not started: the five minutes of QUICK were over"
    assert not (tmp_path / "runs").exists()
    kept = counting(cells, tmp_path)
    cells.run(kept, plan, "toys")
    assert cells.run(kept, plan, "toys", deadline=over).status == "ok", "what is known costs no time"


def test_a_cell_that_the_deadline_cut_is_not_kept(cells: Any, plan: Any) -> None:
    cell = cells.Cell("slow", "ours", "slow.py", {}, timeout_s=60)
    outcome = cells.run(cell, plan, "toys", deadline=time.monotonic() + 1)
    assert (outcome.status, outcome.reason) == ("timeout", "cut short: the five minutes of QUICK were over")
    assert outcome.data["done"] > 0
    assert not [*(plan.cache / "cells").rglob("*.json")]


def test_a_group_is_measured_cell_by_cell(bench: Any, cells: Any, plan: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from triptych.tools.evaluation.result import Arm, Result

    class Toys:
        @staticmethod
        def cells(plan: Any) -> list[Any]:
            return [counting(cells, tmp_path), cells.Cell("rival", "absent", "counting.py", {})]

        @staticmethod
        def result(plan: Any, outcomes: Any, command: str) -> Result:
            arms = tuple(Arm(system=key, status=one.status, reason=one.reason) for key, one in outcomes.items())
            return Result(
                name="bench_toys", kind="toys", title="Toys", command=command, seed=0, environment={}, arms=arms
            )

    monkeypatch.setattr(bench, "load", lambda name: Toys)
    found = bench.measure("toys", bench.Asked(("toys",), False, "make toys", tmp_path, plan))
    assert [arm.status for arm in found.arms] == ["ok", "failed"]
    assert found.environment == {"rivals": {"absent": ["absent==1.0"]}}


def test_bad_input_ends_the_run_before_anything_is_measured(bench: Any, tmp_path: Path, capsys: Any) -> None:
    assert bench.main(["--only", "unheard_of"]) == 2
    assert bench.main(["--data", str(tmp_path)]) == 2
    assert bench.main(["--questions", str(tmp_path / "none.jsonl")]) == 2
    told = capsys.readouterr()
    assert "There is no group `unheard_of`" in told.err
    assert not told.out
    assert str(tmp_path) not in told.err


def test_a_folder_of_collections_is_all_of_them(bench: Any, tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus.jsonl").write_text('{"id": "d", "text": "A seal."}\n', "utf-8")
        (tmp_path / name / "queries.jsonl").write_text('{"id": "q", "text": "seal"}\n', "utf-8")
        (tmp_path / name / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n", "utf-8")
    assert bench.collections([tmp_path]) == (tmp_path / "a", tmp_path / "b")
    asked = bench.parsed(["--quick", "--only", "growth", "--data", str(tmp_path / "a")])
    assert asked.command == "python benchmarks/bench.py --quick --only growth --data a"
    assert asked.plan.data == (tmp_path / "a",)
    assert asked.out.name == "quick", "a quick run never writes what is committed"


def test_every_pin_is_exact(bench: Any) -> None:
    rivals = importlib.import_module("envs").rivals()
    assert {"bm25s", "chroma", "lancedb", "pyserini", "qdrant", "rank_bm25"} <= rivals.keys()
    for name, rival in rivals.items():
        assert rival.pins, name
        for pin in rival.pins:
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[A-Za-z0-9.+]+", pin), f"{name}: {pin}"


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_a_group_names_its_cells_well(bench: Any, tmp_path: Path, name: str, quick: bool) -> None:
    todo, _ = listed(bench, tmp_path, name, quick)
    assert todo
    assert len({cell.key for cell in todo}) == len(todo)
    for cell in todo:
        assert re.fullmatch(r"[\w.-]+", cell.key)
        assert (BENCHMARKS / "workers" / cell.worker).is_file()
        assert cell.env == "ours" or cell.env in importlib.import_module("envs").rivals()
        assert json.loads(json.dumps(cell.job)) == cell.job
        assert cell.timeout_s <= 600


@pytest.mark.parametrize("name", GROUPS)
def test_what_failed_stands_in_the_result_with_its_reason(bench: Any, tmp_path: Path, name: str) -> None:
    todo, plan = listed(bench, tmp_path, name, quick=True)
    lost = sys.modules["cells"].Outcome("failed", "broken for once", {}, 0.0)
    result = bench.load(name).result(plan, {cell.key: lost for cell in todo}, "make bench")
    assert (result.name, result.kind) == (f"bench_{name}", name)
    assert result.arms
    assert {arm.status for arm in result.arms} == {"failed"}
    assert all(arm.reason for arm in result.arms)
    assert "broken for once" in importlib.import_module("triptych.tools.evaluation.report").markdown(result)


def listed(bench: Any, tmp_path: Path, name: str, quick: bool) -> Any:
    plan = sys.modules["cells"].Plan(
        quick, (bench.OWN_DATA,), (bench.OWN_DATA / "questions.jsonl",), tmp_path / "home", tmp_path / "cache", 0
    )
    return bench.load(name).cells(plan), plan


def test_growth_fits_its_exponents(bench: Any) -> None:
    growth = bench.load("growth")
    made = sys.modules["cells"].Outcome
    data = {"encode_s": 1.0, "search_ms": [1.0], "retrieve_ms": [5.0], "disk_mb": 1.0, "peak_rss_mb": 9.0}
    arms = [
        growth.arm(n, made("ok", None, {**data, "passages": n, "index_s": 1 + n**1.5}, 1.0)) for n in (10, 100, 1000)
    ]
    fitted = growth.exponents(arms).metrics
    assert fitted["store_exponent"] == pytest.approx(1.5)
    assert fitted["query_exponent"] == pytest.approx(0.0)
    assert growth.exponents(arms[:1]).status == "failed"


@pytest.mark.parametrize("name", ["cells", "envs", "groups.growth", "groups.first_stage"])
def test_examples_in_docstrings(bench: Any, name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_what_a_worker_of_ours_depends_on(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = importlib.import_module("envs")
    monkeypatch.setattr(envs, "_hash_of", lambda layers: envs.LAYERS[:layers])
    worker = tmp_path / "worker.py"
    for text, layers in (
        ("from triptych.settings import Settings", ()),
        ("from triptych.retrievers.base import Item\nfrom triptych.manifests import weights", envs.LAYERS[:2]),
        ("from triptych import Triptych", envs.LAYERS),
        ("import json", envs.LAYERS),
    ):
        worker.write_text(text, "utf-8")
        assert envs.own_source([worker]) == layers
