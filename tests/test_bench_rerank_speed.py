"""The group `rerank_speed` of `make bench`: what it makes of outcomes; and the loop computes what ours computes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych.errors import BadInput
from triptych.rerankers.finetuned.monobert import MonoBERT
from triptych.rerankers.finetuned.triptych_pruner import Pruner
from triptych.rerankers.prompted.query_likelihood import QueryLikelihood
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.tools.evaluation.result import Result

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
STATION = BENCHMARKS / "data" / "station"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks."""
    for folder in (BENCHMARKS / "workers", BENCHMARKS):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


def plan(load: Any, data: Path = STATION) -> Any:
    return load("cells").Plan(False, (data,), (), Path("home"), Path("cache"), 0)


def test_a_speedup_is_that_over_the_loop_in_the_same_round(load: Any, tmp_path: Path) -> None:
    group = load("groups.rerank_speed")
    names = list(group.LIKELIHOOD)
    figures = {
        "passages": 50,
        "queries": 3,
        "reference": names[0],
        "threads": 2,
        "load_average": 0.5,
        "per_s": {name: [1.0 + 4 * n, 2.0 + 8 * n, 3.0 + 12 * n] for n, name in enumerate(names)},
        "cpu_s": {name: [9.0 / (1 + n)] * 3 for n, name in enumerate(names)},
        "agreement": {name: {"largest_difference": 0.0, "same_order10": 0.5} for name in names},
    }
    lost = load("cells").Outcome("failed", "broken", {}, 0.0)
    outcomes = {cell.key: lost for cell in group.cells(plan(load))}
    outcomes["query_likelihood"] = load("cells").Outcome("ok", None, figures, 1.0)
    found = Result.read(group.result(plan(load), outcomes, "make bench").write(tmp_path))
    ours = found.arm("query_likelihood", family="query_likelihood", precision="auto")
    assert ours.metrics["speedup"] == 9.0
    assert ours.metrics["cpu_speedup"] == pytest.approx(3.0)
    assert (ours.metrics["passages_per_s"], ours.metrics["same_order10"]) == (18.0, 0.5)
    assert len({arm.label for arm in found.arms}) == len(found.arms)
    assert {arm.status for arm in found.arms} == {"ok", "failed"}


def test_a_collection_needs_as_many_passages_as_are_read(load: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "b"}\n', "utf-8")
    (tmp_path / "queries.jsonl").write_text('{"id": "q", "text": "b"}\n', "utf-8")
    (tmp_path / "qrels.tsv").write_text("q\ta\t1\n", "utf-8")
    with pytest.raises(BadInput, match="`1` passages"):
        load("groups.rerank_speed").collection(plan(load, tmp_path))


def test_agreement_is_by_score_and_by_the_first_ten(load: Any) -> None:
    wanted = np.stack([np.arange(20.0), -np.arange(20.0)])
    swapped = wanted.copy()
    swapped[0, [19, 18]] = swapped[0, [18, 19]]
    found = load("_rerank_speed").agreement({"a": wanted, "b": wanted + 0.25, "c": -wanted, "d": swapped}, "a")
    assert found["a"] == {"largest_difference": 0.0, "top10": 1.0, "same_top10": 1.0, "same_order10": 1.0}
    assert found["b"] == {"largest_difference": 0.25, "top10": 1.0, "same_top10": 1.0, "same_order10": 1.0}
    assert (found["c"]["top10"], found["c"]["same_top10"]) == (0.0, 0.0)
    assert (found["d"]["top10"], found["d"]["same_top10"], found["d"]["same_order10"]) == (1.0, 1.0, 0.5)


def test_passages_are_those_that_share_the_most_with_the_query(load: Any) -> None:
    passages = ["snow falls", "a petrel", "the petrel nests in spring", "tides rise"]
    found = load("_rerank_speed").first("petrel nests", passages, 2)
    assert found == ["the petrel nests in spring", "a petrel"]


def test_the_cross_encoder_of_the_benchmark_orders_as_the_pruner_does(
    load: Any, tmp_path: Path, weights_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", str(weights_home))
    load("rerank_speed_cross").save(tmp_path, 0)
    query = "What does a night at the station cost?"
    texts = ["A night at the station costs 120 EUR.", "Petrels nest on cliffs.", "The station opened in 1957.", "x"]
    found = [one.score or 0.0 for one in MonoBERT.from_folder(tmp_path, "float32").read(query, texts)]
    wanted = [one.score for one in Pruner.shipped("float32", 1).read(query, texts)]
    assert np.argsort(found).tolist() == np.argsort(wanted).tolist()
    assert (1 / (1 + np.exp(-np.array(found)))).tolist() == pytest.approx(wanted, abs=0.1)


def test_the_loop_scores_as_ours_does(load: Any) -> None:
    worker, lm = load("rerank_speed_likelihood"), TransformersLM.tiny(0)
    asked = ("What does a night cost?", ["A night costs 120 EUR.", "Petrels snore. " * 30, "x"])
    slow = worker.loop(lm.model, lm.tokenizer)(*asked)
    assert worker.ours(QueryLikelihood(lm, prior=0.0))(*asked) == pytest.approx(slow, abs=1e-3)
