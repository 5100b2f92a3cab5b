"""Tables of what compression keeps, of one result and over data sets."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.result import Arm, DataInfo, Result

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("tables", "compression_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("tables")


@pytest.fixture
def made(tables: Any) -> Any:
    return tables.compression_tables


def arm(system: str, kept: list[float], metric: str = "answers_kept", rate: float = 0.25, **metrics: float) -> Arm:
    return Arm(
        system=system,
        settings={"rate": rate},
        metrics={metric: sum(kept) / len(kept), **metrics},
        per_query={metric: {f"q{n}": value for n, value in enumerate(kept)}},
    )


def compressed(name: str, arms: list[Arm], metric: str = "answers_kept") -> Result:
    first = arms[0]
    whole = Arm(system="no_compression", metrics={metric: 1.0, "ms_p50": 1.5})
    return Result(
        name=f"compress_{name}",
        kind="compress",
        title=name,
        command=f"triptych eval compress {name}.jsonl",
        seed=0,
        environment={},
        data=(DataInfo(name=name, sha256="0" * 64, sizes={"questions": 8}),),
        arms=(whole, *arms),
        comparisons=tuple(row for one in arms[1:] if one.settings == first.settings for row in against(
            [first, one], first, [metric])),
    )  # fmt: skip


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines() if line.startswith("|")]


def multidoc() -> Result:
    return compressed(
        "multidoc20",
        [
            arm("llmlingua", [1.0] * 8, ms_p50=400.0, answers_kept_early=1.0, answers_kept_late=1.0),
            arm("truncate", [0.0] * 7 + [1.0], ms_p50=10.0, answers_kept_early=0.5, answers_kept_late=0.0),
            arm("close", [1.0] * 7 + [0.0], ms_p50=20.0),
            Arm(system="broken", settings={"rate": 0.25}, status="failed", reason="killed"),
        ],
    )


def test_one_result_has_a_column_for_each_measure_and_size(made: Any) -> None:
    arms = [
        Arm(system="no_compression", metrics={"answers_kept": 1.0, "evidence_kept": 1.0, "evidence_whole": None}),
        Arm(system="truncate", settings={"rate": 0.5}, metrics={"answers_kept": 0.5, "evidence_kept": 0.75}),
        Arm(system="truncate", settings={"rate": 0.125}, metrics={"answers_kept": 0.25, "evidence_kept": 0.125}),
        Arm(system="slow", settings={"rate": 0.5}, status="timeout", reason="600 s", metrics={"answers_kept": 0.75}),
        Arm(system="slow", settings={"rate": 0.125}, status="failed", reason="killed"),
    ]
    found = compressed("x", arms[1:]).model_copy(update={"arms": tuple(arms), "comparisons": ()})
    head, _, *body = cells(made.kept(found))
    assert head == ["system", "answers kept, 2×", "answers kept, 8×", "evidence kept, 2×", "evidence kept, 8×"]
    assert body == [
        ["no_compression", "1.000", "1.000", "1.000", "1.000"],
        ["truncate", "0.500", "0.250", "0.750", "0.125"],
        ["slow", "0.750 timeout", "failed", "timeout", "failed"],
    ]
    assert made.legend(found) == ""


def test_what_differs_from_the_first_refiner_is_marked(made: Any) -> None:
    rows = {row[0]: row[1] for row in cells(made.kept(multidoc()))}
    assert rows == {
        "system": "answers kept, 4×", "-" * 14: "-" * 15 + ":", "no_compression": "1.000", "llmlingua": "1.000",
        "truncate": "0.125▼", "close": "0.875", "broken": "failed",
    }  # fmt: skip
    assert made.legend(multidoc()) == " (▲ above, ▼ below `llmlingua` at the same size, p < 0.05)"
    better = compressed("y", [arm("truncate", [0.0] * 8), arm("extractive", [1.0] * 8)])
    assert cells(made.kept(better))[-1] == ["extractive", "1.000▲"]


def test_sizes_in_tokens_are_told_as_such(made: Any) -> None:
    found = compressed("x", [Arm(system="a", settings={"max_tokens": 2000}, metrics={"answers_kept": 0.5})])
    assert cells(made.kept(found))[0] == ["system", "answers kept, 2,000 tokens"]


def test_readme_shows_the_compact_table(tables: Any) -> None:
    text = "\n".join(tables.parts([multidoc()]))
    assert "**Compression** on `multidoc20` (8 questions); `triptych eval compress multidoc20.jsonl` (▲ above" in text
    assert "- broken (rate 0.25): **failed**, `killed`" in text


def test_data_sets_stand_side_by_side(made: Any) -> None:
    claims = compressed(
        "scifact",
        [
            arm("extractive", [0.5, 0.25], "evidence_kept", ms_p50=5.0),
            arm("extractive", [0.75, 0.75], "evidence_kept", 0.5, ms_p50=6.0),
        ],
        "evidence_kept",
    )
    kept, quality, time, cost, place, thirds, data = made.page([claims, multidoc()])
    assert kept.startswith("**What is kept of the gold at 4×** (▲ above, ▼ below `llmlingua`")
    head, _, *body = cells(quality)
    assert head == ["system", "questions, 20 passages each: answers kept", "claims, abstracts: evidence kept"]
    assert body == [
        ["no_compression", "1.000", "1.000"],
        ["llmlingua", "1.000", ""],
        ["truncate", "0.125▼", ""],
        ["close", "0.875", ""],
        ["broken", "failed", ""],
        ["extractive", "", "0.375"],
    ]
    assert "Milliseconds" in time
    assert cells(cost)[3:5] == [["llmlingua", "400", ""], ["truncate", "10.0", ""]]
    assert "third" in place
    assert [name.rpartition(": ")[2] for name in cells(thirds)[0]] == ["system", "early", "late"]
    assert ["truncate", "0.500", "0.000"] in cells(thirds)
    assert data == "On what: `multidoc20` (8 questions); `scifact` (8 questions)."


def test_without_results_there_is_no_page(made: Any) -> None:
    assert list(made.page([])) == []


def test_examples(made: Any) -> None:
    assert doctest.testmod(made).failed == 0
