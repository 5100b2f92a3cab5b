"""The group `text_systems` of `make bench`: its workers on a toy collection, what it makes of outcomes, its plot."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.retrievers.text._poly_network import write
from triptych.retrievers.text._term_weights import TermWeights
from triptych.retrievers.text.ance import ANCE
from triptych.retrievers.text.colbert import ColBERT
from triptych.retrievers.text.deepct import Rewriting
from triptych.retrievers.text.dpr import DPR
from triptych.retrievers.text.poly_encoder import PolyEncoder
from triptych.tools.evaluation.result import Result

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
STATION = BENCHMARKS / "data" / "station"
PASSAGES = {
    "bell": "The old fog bell weighs 640 kg. It cracked in 1934.",
    "petrel": "Storm petrels nest on the cliffs in spring.",
    "price": "A night at the station costs 120 EUR with breakfast.",
    "tide": "The tide rises by four metres at the landing.",
}
QUERIES = {"q1": "how heavy is the fog bell", "q2": "where do storm petrels nest"}
QRELS = {"q1": "bell", "q2": "petrel"}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks."""
    for folder in (BENCHMARKS / "workers", BENCHMARKS):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A collection of four passages, and questions to learn from."""
    folder = tmp_path / "toy"
    folder.mkdir()
    rows = [{"id": key, "text": text, "title": key} for key, text in PASSAGES.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked = [{"id": key, "text": text} for key, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    (folder / "qrels.tsv").write_text("".join(f"{key}\t{right}\t1\n" for key, right in QRELS.items()), "utf-8")
    return folder


def plan(load: Any, data: Path, cache: Path = Path("cache"), **more: Any) -> Any:
    return load("cells").Plan(False, (data,), (STATION / "questions.jsonl",), Path("home"), cache, 0, **more)


def told(load: Any, worker: str, job: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a worker tells of a job, run in this process."""
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job), "utf-8")
    monkeypatch.setattr(sys, "argv", [worker, str(folder / "job.json"), str(folder / "out.json")])
    load(worker).main()
    found: dict[str, Any] = json.loads((folder / "out.json").read_text("utf-8"))
    return found


# --- the workers -----------------------------------------------------------------------------------------------------


def pretended(name: str, model: Path) -> None:
    """A random model of the system, as its training leaves it."""
    model.mkdir(parents=True)
    if name == "dpr":
        DPR.tiny().save(model)
    elif name == "ance":
        ANCE.tiny().save(model)
    elif name == "poly_encoder":
        poly = PolyEncoder.tiny()
        write(model, poly.network, poly.pieces.tokenizer)
    elif name == "colbert":
        ColBERT.tiny().save(model)
    else:
        TermWeights.tiny().save(model)
    rewriting = Rewriting(keep_all=True).__dict__ if name == "deepct" else {}
    (model.parent / "trained.json").write_text(json.dumps({"rewriting": rewriting}), "utf-8")


@pytest.mark.parametrize("name", ["bm25", "tfidf", "deepct", "hdct", "dpr", "ance", "poly_encoder"])
def test_a_system_tells_what_it_found_and_what_it_cost(
    load: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    group = load("groups.text_systems")
    given = plan(load, toy, tmp_path / "cache")
    [cell] = [cell for cell in group.cells(given) if cell.key == f"toy_{name}"]
    if trained := group.SYSTEMS[name].trained:
        pretended(trained, Path(cell.job["model"]))
    found = told(load, "text_systems_search", cell.job, tmp_path / "out", monkeypatch)
    assert found["items"] == len(PASSAGES)
    assert found["index_bytes"] > 0 and found["index_s"] > 0
    for route in group.SYSTEMS[name].arms:
        assert set(found[route]["run"]) == set(QUERIES)
        assert len(found[route]["ms"]) == len(found[route]["cpu_ms"]) == len(QUERIES)
        for ranked in found[route]["run"].values():
            assert set(ranked) <= set(PASSAGES) and len(set(ranked)) == len(ranked)
    if name in ("bm25", "tfidf", "deepct", "hdct"):
        assert [found[name]["run"][key][0] for key in QUERIES] == [*QRELS.values()]
    if "hybrid" in group.SYSTEMS[name].arms:
        assert found["hybrid"]["run"] != found[name]["run"]


def test_colbert_in_the_store_finds_what_it_finds_in_memory(
    load: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = load("groups.text_systems")
    cells = {cell.key: cell for cell in group.cells(plan(load, toy, tmp_path / "cache"))}
    pretended("colbert", Path(cells["toy_colbert"].job["model"]))
    with pytest.raises(SystemExit, match="use --fresh"):
        told(load, "text_systems_search", cells["toy_colbert_store"].job, tmp_path / "store", monkeypatch)
    memory = told(load, "text_systems_search", cells["toy_colbert"].job, tmp_path / "memory", monkeypatch)
    store = told(load, "text_systems_search", cells["toy_colbert_store"].job, tmp_path / "store", monkeypatch)
    assert store["colbert_store"]["run"] == memory["colbert"]["run"]
    assert memory["index_bytes"] > memory["vectors"] * 128 * 4
    assert memory["encode_s"] > 0


def test_what_was_not_trained_says_so(load: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {cell.key: cell for cell in load("groups.text_systems").cells(plan(load, toy, tmp_path / "cache"))}
    with pytest.raises(SystemExit, match="dpr has not been trained"):
        told(load, "text_systems_search", cells["toy_dpr"].job, tmp_path / "out", monkeypatch)


@pytest.mark.parametrize("name", ["ance", "poly_encoder"])
def test_a_training_is_done_once(
    load: Any, tmp_path: Path, weights_home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", str(weights_home))
    given = load("cells").Plan(True, (STATION,), (STATION / "questions.jsonl",), weights_home, tmp_path / "cache", 0)
    [cell] = [cell for cell in load("groups.text_systems").train_cells(given) if cell.key == f"train_{name}"]
    job = {**cell.job, "limit": 6, "how": {**cell.job["how"], "batch": 3}}
    first = told(load, cell.worker.removesuffix(".py"), job, tmp_path / "out", monkeypatch)
    assert first["questions"] == 6 and first["train_s"] > 0
    made = Path(job["into"])
    kept = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    assert kept and not [path for path in kept if "checkpoint" in str(path)]
    again = told(load, cell.worker.removesuffix(".py"), job, tmp_path / "out", monkeypatch)
    assert again == first
    assert kept == {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}


def test_other_settings_or_other_questions_are_another_training(load: Any, toy: Path, tmp_path: Path) -> None:
    group = load("groups.text_systems")
    other = tmp_path / "train.jsonl"
    other.write_text("{}\n", "utf-8")
    plans = [plan(load, toy), plan(load, toy, train=other)]
    made = [{cell.job["into"] for cell in group.train_cells(one)} for one in plans]
    assert len(made[0] | made[1]) == 2 * len(group.LEARN)
    searched = [{cell.key: cell.job.get("model") for cell in group.cells(one)} for one in plans]
    assert searched[0]["toy_bm25"] is searched[1]["toy_bm25"] is None
    assert searched[0]["toy_hdct"] == searched[0]["toy_deepct"] != searched[1]["toy_deepct"]


def test_the_passage_of_a_question_is_its_own_or_the_one_with_evidence(load: Any) -> None:
    worker = load("text_systems_train")
    plain, evident = {"id": "a", "text": "x"}, {"id": "b", "text": "y", "evidence": [[0, 1]]}
    assert worker.passage_of({"passage": plain, "contexts": [evident]}) == plain
    assert worker.passage_of({"contexts": [plain, evident]}) == evident
    assert worker.passage_of({"contexts": [plain]}) is None


# --- the result ------------------------------------------------------------------------------------------------------


def outcomes(load: Any, group: Any, given: Any) -> dict[str, Any]:
    """Whatever is trained took a minute; BM25 finds nothing, the others everything, ColBERT's store for one query."""
    made = {}
    for cell in group.cells(given):
        if cell.key.startswith("train_"):
            data: dict[str, Any] = {"train_s": 60.0, "train_cpu_s": 30.0, "questions": 9, "passages": 8, "threads": 1}
        else:
            name = cell.key.removeprefix("toy_")
            asked = [*QRELS.items()][: 1 if name == "colbert_store" else 2]
            run = {key: ["tide" if name == "bm25" else right] for key, right in asked}
            route = {"ms": [5.0] * len(run), "cpu_ms": [3.0] * len(run), "run": run}
            data = {"index_s": 2.0, "index_cpu_s": 1.0, "index_bytes": 400, "threads": 1, "load_average": 0.5}
            data |= dict.fromkeys(group.SYSTEMS[name].arms, route)
            data |= {"encode_s": 7.0, "encode_cpu_s": 6.0} if name == "colbert" else {}
        made[cell.key] = load("cells").Outcome("ok", None, data, 1.0)
    return made


def test_systems_stand_together_with_their_cost_and_against_bm25(load: Any, toy: Path, tmp_path: Path) -> None:
    group = load("groups.text_systems")
    given = plan(load, toy)
    found = Result.read(group.result(given, outcomes(load, group, given), "make bench").write(tmp_path))
    assert len({arm.label for arm in found.arms}) == len(found.arms) == 13
    dpr = found.arm("dpr").metrics
    assert (dpr["nDCG@10"], dpr["ms_p50"], dpr["cpu_ms_p50"], dpr["bytes_per_passage"]) == (1.0, 5.0, 3.0, 100)
    assert (dpr["train_minutes"], dpr["train_cpu_minutes"]) == (1.0, 0.5)
    assert found.arm("hybrid", **{"with": "dpr"}).metrics["train_minutes"] == 1.0
    assert "train_minutes" not in found.arm("bm25").metrics | found.arm("all_minilm_l6_v2").metrics
    store = found.arm("colbert", vectors="in the store").metrics
    assert (store["queries"], store["index_s"], store["index_cpu_s"]) == (1, 9.0, 7.0)
    assert store["agreement@10"] == 1.0 and "nDCG@10" not in store
    tests = {(row.arm, row.metric): row for row in found.comparisons}
    assert {row.baseline for row in found.comparisons} == {"bm25 (data toy)"}
    assert tests["dpr (data toy)", "nDCG@10"].difference == 1.0
    assert not [row for row in found.comparisons if "in the store" in row.arm]
    assert [data.name for data in found.data] == ["toy", "questions"]
    assert found.data[1].sizes == {"questions": 9, "passages": 8}


def test_a_part_of_the_systems_is_told_all_the_same(load: Any, toy: Path, tmp_path: Path) -> None:
    group = load("groups.text_systems")
    given = plan(load, toy)
    made = outcomes(load, group, given)
    for key in ("train_dpr", "toy_dpr", "toy_bm25"):
        made[key] = load("cells").Outcome("failed", "broken", {}, 0.0)
    found = Result.read(group.result(given, made, "make bench").write(tmp_path))
    assert found.arm("dpr").status == found.arm("bm25").status == "failed"
    assert found.arm("ance").metrics["nDCG@10"] == 1.0
    assert not found.comparisons


def test_the_plot_has_a_point_for_each_arm_with_figures(load: Any, toy: Path, tmp_path: Path) -> None:
    group = load("groups.text_systems")
    given = plan(load, toy)
    found = group.result(given, outcomes(load, group, given), "make bench")
    [path] = group.draw(found, tmp_path)
    first = path.read_bytes()
    assert path.name == "bench_text_systems.svg"
    assert group.draw(found, tmp_path)[0].read_bytes() == first
    lost = dict.fromkeys(outcomes(load, group, given), load("cells").Outcome("failed", "broken", {}, 0.0))
    assert group.draw(group.result(given, lost, "make bench"), tmp_path / "none") == []


def test_questions_to_learn_from_stand_in_the_command(load: Any, toy: Path, tmp_path: Path) -> None:
    bench = load("bench")
    train = tmp_path / "lessons" / "train.jsonl"
    train.parent.mkdir()
    train.write_text("{}\n", "utf-8")
    asked = bench.parsed(["--only", "text_systems", "--data", str(toy), "--train", str(train)])
    assert asked.command == "python benchmarks/bench.py --only text_systems --data toy --train lessons/train.jsonl"
    assert asked.plan.train == train
    with pytest.raises(Exception, match=r"no file `none\.jsonl`"):
        bench.parsed(["--only", "text_systems", "--data", str(toy), "--train", str(tmp_path / "none.jsonl")])
