"""Figures in README, docs and on the cards are those of the result files, and the files are what they should be."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from triptych.errors import BadInput
from triptych.manifests.registry import Card, cards
from triptych.server.cli import cli
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.result import Arm, Comparison, DataInfo, Result

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
MEASURED = [card for card in cards().values() if card.evidence != "pending"]
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "measured.md")]

# What a measured figure looks like in prose: a score, a time, a comparison, a chance.
CLAIM = re.compile(
    r"\b0\.\d{3,}\b(?!\.\d)|\d ?(?:ms|milliseconds)\b|\bp ?[<=] ?0?\.\d"
    r"|\d ?(?:times|×|%) (?:as )?(?:faster|slower|better|worse|smaller|larger|fewer|less|more)\b"
    r"|(?:nDCG|MRR|recall)\S* (?:of|is|was|rises|falls)?\s?(?:to )?0?\.\d",
    re.IGNORECASE,
)
MACHINE = re.compile(r"(?<![\w.])/(?:work|home|Users|tmp|opt|root|mnt|var|private)/|\b[A-Z]:\\")


def module(name: str) -> Any:
    """A script of `benchmarks/`, which imports those beside it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look themselves up there
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return made


tables = module("tables")


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_file_says_what_it_must(path: Path) -> None:
    found = Result.read(path)
    assert found.name == path.stem
    assert found.arms and found.title
    made = found.environment
    assert re.fullmatch(r"[0-9a-f]{40}", str(made["commit"])) and "uncommitted_changes" in made
    assert {"triptych", "torch", "transformers"} <= set(made["versions"]) and made["python"] and made["date"]
    assert made["processor"] and made["cores"] and made["threads"] and made["memory_gb"]
    for arm in found.arms:
        assert arm.status == "ok" or arm.reason, arm.label
    for data in found.data:
        assert re.fullmatch(r"[0-9a-f]{64}", data.sha256) and data.sizes


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_file_names_nothing_of_a_machine(path: Path) -> None:
    assert MACHINE.findall(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_of_a_result_file_exists(path: Path) -> None:
    assert exists(Result.read(path).command)


def exists(command: str) -> bool:
    """Whether a command line names a script of the checkout, a target of make, or a command of the CLI."""
    program, *words = [word for word in shlex.split(command) if "=" not in word or word.startswith("-")]
    if program == "python":
        return (ROOT / words[0]).is_file()
    if program == "make":
        return words[0] in re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    return program == "triptych" and is_command(words)


def is_command(words: list[str]) -> bool:
    found: click.Command | None = cli
    for word in words:
        if not isinstance(found, click.Group):
            break
        found = found.commands.get(word)
    return found is not None and not isinstance(found, click.Group)


def test_commands_that_do_not_exist_are_noticed() -> None:
    for command in ("triptych eval retrieval scifact --limit 5", "python benchmarks/tables.py", "make test ONLY=x"):
        assert exists(command), command
    for command in ("triptych eval", "triptych evaluate x", "python benchmarks/none.py", "make nothing", "sh x.sh"):
        assert not exists(command), command


# --- the pages -------------------------------------------------------------------------------------------------------


def test_readme_and_docs_are_made_from_the_results() -> None:
    found = tables.results()
    text = tables.README.read_text("utf-8")
    assert tables.with_tables(text, tables.parts(found)) == text, "Run `make results`."
    assert tables.MEASURED.read_text("utf-8") == tables.measured(found), "Run `make results`."
    for path, made in (
        (tables.COMPRESSION, tables.compression_tables.page),
        (tables.RERANKING, tables.reranking_tables.page),
    ):
        page = path.read_text("utf-8")
        assert tables.with_tables(page, made(found)) == page, "Run `make results`."


def test_every_published_figure_stands_beside_a_system_that_was_measured() -> None:
    page = tables.RERANKING.read_text("utf-8")
    assert len(tables.reranking_tables.published()) >= 10
    for row in tables.reranking_tables.published():
        assert f"{row.value:.3f} ({row.model}; {row.source})" in page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_prose_claims_no_figures(path: Path) -> None:
    assert CLAIM.findall(prose(path.read_text("utf-8"))) == []


def prose(text: str) -> str:
    """A page without its generated part and without blocks of code, whose figures are said to be examples."""
    before, _, rest = text.partition("<!-- results:start -->")
    whole = before + rest.partition("<!-- results:end -->")[2]
    return re.sub(r"```.*?```", "", whole, flags=re.S)


@pytest.mark.parametrize(
    "claim",
    ["an nDCG@10 of 0.71", "nDCG@10 0.722", "it takes 55 ms", "2 times faster", "30 % fewer tokens", "p < 0.05",
     "recall@100 is 0.9"],
)  # fmt: skip
def test_claims_in_prose_are_noticed(claim: str) -> None:
    assert CLAIM.search(claim)


@pytest.mark.parametrize(
    "innocent",
    ["nDCG@10, MRR@10 and recall@100", "`--rate 0.5`", "a budget of 2,000 tokens", "Python 3.11", "n = 50",
     "Codex 0.169.0"],
)  # fmt: skip
def test_what_is_no_claim_is_left_alone(innocent: str) -> None:
    assert not CLAIM.search(innocent)


@pytest.mark.parametrize("card", MEASURED, ids=lambda card: card.id)
def test_a_card_with_evidence_quotes_its_file(card: Card) -> None:
    known = figures(Result.read(ROOT / card.evidence))
    quoted = re.findall(r"-?\d+\.\d+", card.result)
    assert quoted
    for number in quoted:
        digits = len(number.partition(".")[2])
        assert any(f"{value:.{digits}f}" == number for value in known), f"{number} is not in {card.evidence}"


def figures(found: Result) -> set[float]:
    """All that a result says of its arms, without the values of single queries."""
    told = [value for arm in found.arms for value in arm.metrics.values() if value is not None]
    told += [value for row in found.comparisons for value in (row.difference, row.p, *row.interval)]
    return {float(value) for value in told}


def test_the_readme_shows_every_bar_and_whether_it_is_met() -> None:
    """A bar that is missed stays on the page, as missed."""
    text = tables.README.read_text("utf-8")
    read = {
        name: Result.read(ROOT / "benchmarks" / "results" / f"bench_{name}.json") for name in ("latency", "protocol")
    }
    latency = read["latency"].arm("triptych", precision="auto").metrics
    shares = {
        era: max(
            arm.metrics.get("handshake_ratio") or float("inf")
            for arm in read["protocol"].arms
            if arm.system == "triptych" and arm.settings.get("era") == era
        )
        for era in ("legacy", "auto")
    }
    for metric, value, met in (
        ("p50", latency.get("total_ms_p50"), lambda value: value <= 3000),
        ("p95", latency.get("total_ms_p95"), lambda value: value <= 6000),
        ("indexing", latency.get("index_ratio"), lambda value: value >= 0.8),
        ("legacy clients", shares["legacy"], lambda value: value <= 1.3),
        ("current clients", shares["auto"], lambda value: value <= 1.3),
    ):
        [row] = [line for line in text.splitlines() if re.search(rf"\b{metric}\b.*\| at (?:most|least) ", line)]
        shown, mark = [cell.strip() for cell in row.strip("| ").split("|")][-2:]
        assert shown == tables.report.figure(value if value != float("inf") else None)
        assert mark == ("met" if value is not None and met(value) else "**missed**")


# --- how the pages are made ------------------------------------------------------------------------------------------

ENVIRONMENT = {"commit": "0" * 40, "processor": "Some Processor", "threads": 2, "date": "2026-11-25"}


def example(name: str, arms: list[Arm], **more: Any) -> Result:
    kind = more.pop("kind", name.partition("_")[0])
    given: dict[str, Any] = {"title": name, "command": "make bench", "seed": 0, "environment": ENVIRONMENT, **more}
    return Result(name=name, kind=kind, arms=tuple(arms), **given)


def latency(p50: float, p95: float) -> Result:
    metrics: dict[str, float | int | None] = {
        "search_ms_p50": 5.0,
        "search_ms_p95": 7.0,
        "total_ms_p50": p50,
        "total_ms_p95": p95,
        "index_ratio": 0.9,
    }
    arms = [
        Arm(system="triptych", settings={"precision": "auto"}, metrics=metrics),
        Arm(
            system="triptych",
            settings={"precision": "float32"},
            metrics={name: 2 * (one or 0) for name, one in metrics.items()},
        ),
    ]
    return example("bench_latency", arms, kind="latency")


def test_a_result_that_is_not_there_has_no_table() -> None:
    assert list(tables.parts([])) == []
    text = tables.with_tables("a <!-- results:start -->old<!-- results:end --> b", [])
    assert text == "a <!-- results:start -->\n<!-- results:end --> b"


def test_bars_that_are_missed_are_marked() -> None:
    told = {row[0]: row[1:] for row in tables.bars([latency(2999.0, 6000.4)])}
    assert told["a warm `retrieve`, p50, ms"] == ["at most 3,000", "2,999", "met"]
    assert told["a warm `retrieve`, p95, ms"] == ["at most 6,000", "6,000", "**missed**"]
    assert told["indexing, share of the encoder's own throughput"] == ["at least 0.8", "0.900", "met"]
    assert len(told) == 3  # handshakes have no result here


def test_a_bar_whose_arm_failed_is_missed() -> None:
    arms = [
        Arm(system="triptych", settings={"era": "legacy"}, status="failed", reason="no answer"),
        Arm(system="triptych", settings={"era": "auto"}, metrics={"handshake_ratio": 1.2}),
    ]
    found = [row[2:] for row in tables.bars([example("bench_protocol", arms)])]
    assert found == [["–", "**missed**"], ["1.20", "met"]]
    assert [row[2:] for row in tables.bars([example("bench_protocol", arms[:1])])][1] == ["–", "**missed**"]


def test_a_bar_holds_for_the_worst_of_its_arms() -> None:
    arms = [
        Arm(system="triptych", settings={"era": era, "weights": weights}, metrics={"handshake_ratio": ratio})
        for era, weights, ratio in (
            ("legacy", False, 1.1),
            ("legacy", True, 1.2),
            ("auto", False, 1.4),
            ("auto", True, 1.0),
        )
    ]
    assert [row[2:] for row in tables.bars([example("bench_protocol", arms)])] == [
        ["1.20", "met"],
        ["1.40", "**missed**"],
    ]


def test_latency_is_told_stage_by_stage() -> None:
    text = "\n".join(tables.parts([latency(10.0, 20.0)]))
    found = [cells(line) for line in text.splitlines() if line.startswith("| s") or line.startswith("| t")]
    assert found[0][0] == "stage" and found[0][1:3] == ["precision auto, p50", "precision auto, p95"]
    assert found[1:] == [["search", "5.00", "7.00", "10.0", "14.0"], ["total", "10.0", "20.0", "20.0", "40.0"]]
    assert "Some Processor, 2 threads" in text


def test_any_retrieval_result_has_its_table_with_tests() -> None:
    arms = [
        Arm(system=name, metrics={"nDCG@10": value, "odd": 1.0}) for name, value in (("bm25", 0.5), ("hybrid", 0.625))
    ]
    test = Comparison(
        arm="hybrid", baseline="bm25", metric="nDCG@10", n=9, difference=0.125, interval=(0, 0.25), p=0.0001
    )
    data = (DataInfo(name="anything", sha256="0" * 64, sizes={"queries": 9}),)
    text = "\n".join(tables.parts([example("retrieval_anything", arms, comparisons=(test,), data=data)]))
    assert "**Search** on `anything` (9 queries)" in text
    head, _, first, second = [line for line in text.splitlines() if line.startswith("|")]
    assert cells(head) == ["system", "nDCG@10", "nDCG@10 against bm25", "p"]
    assert cells(first) == ["bm25", "0.500", "", ""]
    assert cells(second) == ["hybrid", "0.625", "+0.125", "< 0.001"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line[1:-1].split("|")]


def test_cost_by_size_and_quality_are_tables_of_their_own() -> None:
    arms = [
        Arm(system="ours", settings={"data": "real", "route": "dense"}, metrics={"nDCG@10": 0.5}),
        *(
            Arm(system="ours", settings={"items": n, "route": "dense"}, metrics={"ms_p50": n / 1e3})
            for n in (1000, 10_000)
        ),
    ]
    data = (
        DataInfo(name="real", sha256="0" * 64, sizes={"queries": 9}),
        DataInfo(name="copies", sha256="0" * 64, synthetic=True),
    )
    text = "\n\n".join(tables.parts([example("bench_first_stage", arms, data=data)]))
    quality, cost = text.split("\n\n")[1], text.split("\n\n")[3]
    assert quality.splitlines()[0].split() == "| system | nDCG@10 |".split()
    assert cells(cost.splitlines()[0]) == ["system", "items 1,000", "items 10,000"]
    assert "quality** on `real` (9 queries);" in text
    assert "synthetic data" in text.split("\n\n")[2]


def test_a_kind_without_a_view_shows_all_its_metrics() -> None:
    text = "\n".join(tables.parts([example("novel_thing", [Arm(system="a", metrics={"x": 1, "y": 2.5})])]))
    assert "| a      |   1 | 2.50 |" in text


def test_the_page_of_everything_has_each_result_and_its_file() -> None:
    text = tables.measured([latency(1.0, 2.0), example("retrieval_x", [Arm(system="a")])])
    assert text.startswith("# Measured\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## bench_latency", "## retrieval_x"]
    assert "[retrieval_x.json](../benchmarks/results/retrieval_x.json)" in text


def test_results_are_in_the_order_of_the_page(tmp_path: Path) -> None:
    for name in ("retrieval_b", "compress_a", "retrieval_a", "zebra"):
        example(name, [Arm(system="a")]).write(tmp_path)
    latency(1.0, 2.0).write(tmp_path)
    names = [one.name for one in tables.results(tmp_path)]
    assert names == ["bench_latency", "retrieval_a", "retrieval_b", "compress_a", "zebra"]


def test_a_file_that_is_no_result_stops_it(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"environment": {}}), "utf-8")
    with pytest.raises(BadInput, match=r"old\.json"):
        tables.results(tmp_path)


def test_check_says_which_page_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("README", "measured", "compression", "reranking")
    readme, measured, compression, reranking = (tmp_path / f"{name}.md" for name in names)
    for page in (readme, compression, reranking):
        page.write_text("x\n<!-- results:start -->old\n<!-- results:end -->\ny\n", "utf-8")
    monkeypatch.setattr(tables, "README", readme)
    monkeypatch.setattr(tables, "MEASURED", measured)
    monkeypatch.setattr(tables, "COMPRESSION", compression)
    monkeypatch.setattr(tables, "RERANKING", reranking)
    monkeypatch.setattr(tables, "results", lambda: [latency(1.0, 2.0)])
    assert tables.main(["--check"]) == 1
    assert "README.md, measured.md, compression.md, reranking.md" in capsys.readouterr().out
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    assert readme.read_text("utf-8").endswith("<!-- results:end -->\ny\n")


# --- the data set of our own -----------------------------------------------------------------------------------------

STATION = ROOT / "benchmarks" / "data" / "station"


def test_the_data_set_is_made_by_its_script(tmp_path: Path) -> None:
    made = module("make_data").make(tmp_path)
    assert [path.name for path in made] == sorted(path.name for path in STATION.iterdir())
    for path in made:
        assert path.read_bytes() == (STATION / path.name).read_bytes(), "Run `python benchmarks/make_data.py`."


def test_every_question_has_its_answer_in_a_relevant_passage() -> None:
    data = datasets.collection(STATION)
    assert len(data.queries) >= 40 and len(data.passages) >= 100
    assert sum(bool(re.search(r"[\u4e00-\u9fff]", asked.text)) for asked in data.queries.values()) >= 4
    assert {grade for row in data.qrels.values() for grade in row.values()} == {1, 2}
    for key, asked in data.queries.items():
        right = [data.passages[passage].text for passage, grade in data.qrels[key].items() if grade == 2]
        assert right and asked.answers, key
        for text in right:
            assert any(answer in text for answer in asked.answers), key


def test_contexts_hold_the_evidence_and_no_answer_by_accident() -> None:
    data, asked = datasets.collection(STATION), datasets.questions(STATION / "questions.jsonl")
    assert [row.id for row in asked.rows] == list(data.queries)
    places = set()
    for row in asked.rows:
        assert len(row.contexts) == 10
        for place, context in enumerate(row.contexts):
            assert context.text == data.passages[context.id].text
            relevant = data.qrels[row.id].get(context.id) == 2
            assert bool(context.evidence) == relevant == any(answer in context.text for answer in row.answers), row.id
            places |= {place} if relevant else set()
    assert len(places) > 7  # the answer is not always at the front


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"evidence": ["nowhere"]}, "0 passages hold 'nowhere'"),
        ({"evidence": ["a"]}, "2 passages hold 'a'"),
        ({"evidence": ["ab"], "answers": ["c"]}, "no answer stands in one"),
    ],
)
def test_evidence_that_is_not_in_exactly_one_passage_is_refused(row: dict[str, Any], message: str) -> None:
    make_data = module("make_data")
    passages = [make_data.Passage("one", "", "ab"), make_data.Passage("two", "", "a c")]
    with pytest.raises(ValueError, match=message):
        make_data._judged({"id": "q", "answers": ["a"], **row}, passages)
