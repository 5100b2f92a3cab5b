"""A result as Markdown and as plots."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.tools.evaluation import compare, plots, report
from triptych.tools.evaluation.result import Arm, DataInfo, Result

ENVIRONMENT = {
    "commit": "3479d12aa0f3a1b2c3d4",
    "uncommitted_changes": True,
    "date": "2026-11-25",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0+cpu"},
    "processor": "Some Processor (avx2)",
    "cores": 2,
    "memory_gb": 15.6,
    "gpu": None,
    "threads": 2,
    "rivals": {"bm25s": ["bm25s==0.3.16"]},
}


def result(kind: str, arms: list[Arm], **more: Any) -> Result:
    given: dict[str, Any] = {
        "title": f"A {kind} of things",
        "command": f"triptych eval {kind} things",
        "seed": 7,
        **more,
    }
    return Result(name=f"{kind}_things", kind=kind, environment=ENVIRONMENT, arms=tuple(arms), **given)


def ranked(system: str, values: list[float], **metrics: float) -> Arm:
    by_query: dict[str, float | None] = {f"q{n}": value for n, value in enumerate(values)}
    return Arm(
        system=system,
        settings={"profile": "embedded", "depth": len(system)},
        metrics={"nDCG@10": sum(values) / len(values), **metrics},
        per_query={"nDCG@10": by_query},
    )


def retrieval() -> Result:
    arms = [
        ranked("bm25", [0.5, 0.25, 1.0, 0.5], ms_p50=12.34),
        ranked("hybrid", [0.75, 0.5, 1.0, 0.625], ms_p50=1234.5, s_per_query=1.2),
        ranked("slow", [0.5, 0.5], s_per_query=300.0).model_copy(
            update={"status": "timeout", "reason": "600 s were over\nat `q2` | sorry"}
        ),
        Arm(system="broken 1.0", status="failed", reason="ImportError: no module named x"),
    ]
    return result(
        "retrieval",
        arms,
        data=(DataInfo(name="things", sha256="ab" * 32, sizes={"queries": 4, "passages": 12345}),),
        comparisons=tuple(compare.against(arms, arms[0], ["nDCG@10"])),
        notes=("Rerankers read\nthe first 25.",),
    )


def proof() -> Result:
    """Two systems, one of them with two seeds."""
    seeds = [Arm(system="ours", settings={"seed": n}, metrics={"nDCG@10": 0.5 + n / 10}) for n in range(2)]
    return result(
        "proof",
        [*seeds, Arm(system="ours", metrics={"nDCG@10": 0.55}), Arm(system="before", metrics={"nDCG@10": 0.4})],
    )


def compression(size: str = "max_tokens", sizes: tuple[float, ...] = (500, 1000), **metrics: float) -> Result:
    arms = [Arm(system="no_compression", metrics={"answers_kept": 1.0})]
    for share, system in enumerate(("truncate", "llmlingua")):
        arms += [
            Arm(system=system, settings={size: one}, metrics={"answers_kept": (share + n) / 4, **metrics})
            for n, one in enumerate(sizes)
        ]
    return result("compress", arms)


def growth() -> Result:
    sizes = (1000, 10_000)
    arms = [
        Arm(system=name, settings={"items": n}, metrics={"ms_p50": n / 500}) for name in ("ours", "b") for n in sizes
    ]
    data = (DataInfo(name="10000_items", sha256="cd" * 32, sizes={"passages": 10_000}, synthetic=True),)
    return result("first_stage", arms, data=data)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


# --- report ----------------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_measured_on_what() -> None:
    text = report.markdown(retrieval())
    assert text.startswith("# A retrieval of things\n\n- `things` (4 queries, 12,345 passages), sha256 abababababab\n")
    for told in (
        "n = 4, seed 7, commit 3479d12aa0f3 with changes, 2026-11-25",
        "Some Processor (avx2), 2 cores, 2 threads, 15.6 GB, no GPU",
        "python 3.11.7; versions torch 2.13.0+cpu; rivals bm25s bm25s==0.3.16",
        "`triptych eval retrieval things`",
        "- Rerankers read the first 25.",
    ):
        assert told in text
    assert report.markdown(retrieval(), "##").startswith("## A ")


def test_every_arm_and_figure_is_in_the_table() -> None:
    head, rule, *body = rows(report.markdown(retrieval()))[:6]
    assert head == ["system", "profile", "depth", "status", "n", "nDCG@10", "ms_p50", "s_per_query"]
    assert all(re.fullmatch(r"-{2,}[-:]", cell) for cell in rule)
    assert body == [
        ["bm25", "embedded", "4", "ok", "4", "0.562", "12.3", ""],
        ["hybrid", "embedded", "6", "ok", "4", "0.719", "1,234", "1.20"],
        ["slow", "embedded", "4", "timeout", "2", "0.500", "", "300"],
        ["broken 1.0", "", "", "failed", "", "", "", ""],
    ]


def test_failures_have_their_reason() -> None:
    text = report.markdown(retrieval())
    assert "- slow (profile embedded, depth 4): **timeout**, `600 s were over at 'q2' | sorry`\n" in text
    assert "- broken 1.0: **failed**, `ImportError: no module named x`" in text


def test_comparisons_have_difference_interval_p_and_n() -> None:
    text = report.markdown(retrieval())
    assert "Paired against bm25 (profile embedded, depth 4)" in text
    head, _, first, second = rows(text)[6:10]
    assert head == ["system", "metric", "difference", "95 % interval", "p", "n"]
    assert first[:3] == ["hybrid (profile embedded, depth 6)", "nDCG@10", "+0.156"]
    assert re.fullmatch(r"\+?0\.\d{3} to \+0\.\d{3}", first[3])
    assert (first[5], second[5]) == ("4", "2")


def test_what_is_kept_by_place_has_a_table_of_its_own() -> None:
    placed = {"answers_kept_early": 0.5, "answers_kept_late": 0.25, "evidence_kept_middle": 0.125}
    text = report.markdown(compression("rate", (0.25, 0.5), **placed))
    head, _, *body = rows(text)
    assert head == ["system", "rate", "answers_kept"]
    assert len(body) == 5 + 2 + 4
    assert "By the third of the contexts where it stands (early, middle, late):" in text
    assert body[5] == ["system", "rate", "answers_kept_early", "answers_kept_late", "evidence_kept_middle"]
    assert body[7] == ["truncate", "0.25", "0.500", "0.250", "0.125"]
    assert "third" not in report.markdown(compression())


def test_settings_that_all_arms_share_are_told_once() -> None:
    arms = [Arm(system=name, settings={"rate": 0.5, "cold": False, "order": name}) for name in ("a", "b")]
    text = report.markdown(result("compress", arms))
    assert rows(text)[0] == ["system", "order"]
    assert "All of them: rate 0.5, cold no." in text


def test_lines_of_a_table_are_equally_long_and_pipes_are_escaped() -> None:
    made = report.table(["a|b", "n"], [["one\ntwo", "1"], ["x", "1,000"]]).splitlines()
    assert len({len(line) for line in made}) == 1
    assert made[0].startswith(r"| a\|b ") and made[2].startswith("| one two |")


def test_synthetic_data_is_marked() -> None:
    assert "`10000_items` (10,000 passages, synthetic: good for cost, not for quality)" in report.markdown(growth())


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.6919, "0.692"), (1, "1"), (1.0, "1.000"), (12.345, "12.3"), (1128.4, "1,128"), (0.00042, "0.0004"),
     (-0.00001, "0.000"), (-0.25, "-0.250"), (5183, "5,183"), (None, "–")],
)  # fmt: skip
def test_figures(value: float | None, shown: str) -> None:
    assert report.figure(value) == shown


def test_small_chances_are_not_zero() -> None:
    assert [report.chance(p) for p in (0.0, 0.0009, 0.001, 0.5)] == ["< 0.001", "< 0.001", "0.001", "0.500"]


# --- plots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (retrieval(), ["retrieval_things_quality_ms_p50", "retrieval_things_quality_s_per_query"]),
        (compression(), ["compress_things_kept_max_tokens"]),
        (compression("rate", (0.25, 0.5)), ["compress_things_kept_rate"]),
        (
            compression("rate", (0.25, 0.5), evidence_whole=0.5, ms_p50=12.0),
            [f"compress_things_{name}" for name in ("kept_rate", "whole_rate", "kept_ms_p50", "whole_ms_p50")],
        ),
        (growth(), ["first_stage_things_ms_p50_items"]),
        (result("protocol", [Arm(system="a", metrics={"handshake_ms": 1.0})]), []),
        (proof(), ["proof_things_arms"]),
        (result("proof", [Arm(system="a", status="failed", reason="no")]), []),
        (result("retrieval", [Arm(system="a", status="failed", reason="no")]), []),
    ],
    ids=lambda value: value.kind if isinstance(value, Result) else "",
)
def test_plots_of_each_kind(made: Result, names: list[str], tmp_path: Path) -> None:
    files = plots.draw(made, tmp_path / "new")
    assert [path.name for path in files] == [f"{name}.{form}" for name in names for form in ("svg", "png")]
    for path in files:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml") and len(data) > 5000


def test_a_plot_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = plots.draw(compression(), tmp_path / "a"), plots.draw(compression(), tmp_path / "b")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert "<dc:date>" not in one[0].read_text("utf-8")


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.draw(growth(), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_drawing_needs_no_pyplot(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from triptych.tools.evaluation import plots, result;"
        f"plots.draw(result.Result.read(Path({str(growth().write(tmp_path))!r})), Path({str(tmp_path)!r}));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_words_that_matplotlib_would_take_for_a_formula_or_has_no_sign_for(tmp_path: Path) -> None:
    odd = retrieval().model_copy(update={"title": "Costs $5 to $6 _a_ 海草 \\frac"})
    assert len(plots.draw(odd, tmp_path)) == 4  # a warning would be an error


def test_a_long_legend_makes_the_page_higher(tmp_path: Path) -> None:
    def height(path: Path) -> int:
        return int.from_bytes(path.read_bytes()[20:24], "big")

    arms = [
        ranked(f"system {n} with a name that is long enough to be wrapped", [n / 30], ms_p50=n + 1) for n in range(25)
    ]
    [_, few] = plots.draw(result("retrieval", arms[:2]), tmp_path)
    short = height(few)
    [_, many] = plots.draw(result("retrieval", arms), tmp_path)
    assert height(many) > short
