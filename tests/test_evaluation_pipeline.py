"""The whole pipeline on a library of its own: which answers reach the agent, and where the others are lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, MissingWeights
from triptych.server import cli
from triptych.settings import Settings
from triptych.tools.evaluation import datasets, pipeline
from triptych.tools.evaluation.survival import read
from triptych.tools.library import Triptych

if TYPE_CHECKING:
    from collections.abc import Sequence

    from triptych.tools.evaluation.result import Result

SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "sample" / "vessey-holm"
TIMES = {"ms_p50", "ms_p95"}
LOST = ("lost_not_indexed", "lost_not_found", "lost_ranked_out", "lost_compressed_away")

PASSAGES = [
    ("p1", "Lighthouse", "The lighthouse on the island was lit in 1871. Its lamp burned rape oil, later paraffin."),
    ("p2", "Ferry", "The ferry Sula leaves at half past nine. It carries twelve people and no cars at all."),
    ("p3", "Kitchen", "Bread is baked on Mondays. The oven needs an hour to get hot. Porridge is served at seven."),
    ("p4", "Puffins", "Puffins nest in the north. Ada Lindqvist counted 1,945 of them in one summer."),
    ("p5", "Empty", " "),
]
QUERIES = [
    ("lit", "When was the lighthouse lit?", ["1871"], "p1"),
    ("puffins", "How many puffins were counted?", ["1945"], "p4"),
    ("never", "When does the ferry Sula leave?", ["at midnight"], "p2"),
    ("unanswered", "When is bread baked?", [], "p3"),
]


def collection(folder: Path, passages: Sequence[dict[str, Any]] = (), queries: Sequence[Any] = QUERIES) -> Path:
    folder.mkdir()
    rows = passages or [{"id": key, "title": title, "text": text} for key, title, text in PASSAGES]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked = [{"id": key, "text": text, "answers": answers} for key, text, answers, _ in queries]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    (folder / "qrels.tsv").write_text("".join(f"{key}\t{passage}\t1\n" for key, _, _, passage in queries), "utf-8")
    return folder


def questions(file: Path) -> Path:
    """The same as a question file; every question has contexts under ids of its own."""
    rows = [
        {
            "id": key,
            "question": text,
            "answers": answers,
            "contexts": [
                {"id": f"{key}-{n}", "title": title, "text": text} for n, (_, title, text) in enumerate(PASSAGES)
            ],
        }
        for key, text, answers, _ in QUERIES
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def evaluated(source: Any, budgets: Sequence[int] = (400,), **settings: Any) -> Result:
    return pipeline.evaluate(
        source, budgets=budgets, settings=Settings.load(**settings), seed=0, command="made by a test"
    )


def without_times(result: Result) -> dict[str, Any]:
    told = result.as_dict()
    for arm in told["arms"]:
        arm["metrics"] = {name: value for name, value in arm["metrics"].items() if name not in TIMES}
    return {**told, "notes": told["notes"][1:]}  # the first tells how long indexing took


# --- where an answer was lost -----------------------------------------------------------------------------------------

TEXTS = {"a": "It was 1871.", "b": "Lit in 1871 by hand.", "c": "Nothing.", "d": "Only here: 1889."}
WHERE = [
    ("1871", {"a": "It was 1871."}, "answers_kept"),
    ("1871", {"a": "1871", "c": "Nothing."}, "answers_kept"),
    ("1871", {"a": "It was", "c": "Nothing."}, "lost_compressed_away"),
    ("1871", {"c": "Nothing."}, "lost_ranked_out"),
    ("1871", {}, "lost_ranked_out"),
    ("1889", {"a": "It was 1871."}, "lost_not_found"),
    ("1900", {"a": "It was 1871."}, "lost_not_indexed"),
]


@pytest.mark.parametrize(("answer", "shown", "where"), WHERE)
def test_an_answer_is_lost_where_the_first_stage_explains_it(answer: str, shown: dict[str, str], where: str) -> None:
    texts = {key: read(text) for key, text in TEXTS.items()}
    assert pipeline.fate([answer], shown, ["c", "a", "b"], texts) == where


@given(st.sampled_from(["1871", "1889", "hand", "Nothing"]), st.sets(st.sampled_from("abcd")), st.data())
def test_whole_passages_lose_nothing_to_compression(answer: str, hits: set[str], data: st.DataObject) -> None:
    texts = {key: read(text) for key, text in TEXTS.items()}
    shown = {key: TEXTS[key] for key in data.draw(st.sets(st.sampled_from(sorted(hits)))) if hits} if hits else {}
    found = pipeline.fate([answer], shown, sorted(hits), texts)
    assert found in pipeline.FATES
    assert found not in ("lost_compressed_away", "lost_not_indexed")
    if shown.keys() == hits:
        assert found != "lost_ranked_out"


# --- the measurement --------------------------------------------------------------------------------------------------


def test_answers_are_followed_through_the_whole_pipeline(tmp_path: Path, tmp_home: Path) -> None:
    source = datasets.collection(collection(tmp_path / "Island"))
    result = evaluated(source, (60, 400, 400))
    assert (result.name, result.kind) == ("pipeline_island", "pipeline")
    assert [arm.label for arm in result.arms] == [
        *("embedded (max_tokens 60)", "search_only (max_tokens 60)"),
        *("embedded (max_tokens 400)", "search_only (max_tokens 400)"),
    ]
    for arm in result.arms:
        assert arm.status == "ok"
        assert sum(float(arm.metrics[name] or 0) for name in ("answers_kept", *LOST)) == pytest.approx(1)
        assert arm.metrics["lost_not_indexed"] == pytest.approx(1 / 3)
        assert arm.metrics["over_budget"] == 0
        assert 0 < float(arm.metrics["tokens_used"] or 0) <= int(arm.settings["max_tokens"])
        assert set(arm.per_query["answers_kept"]) == {"lit", "puffins", "never"}
    assert result.arm("embedded", max_tokens=60).per_query["answers_kept"] == {"lit": 1, "puffins": 1, "never": 0}
    assert [(row.arm, row.baseline, row.n) for row in result.comparisons] == [
        (f"embedded (max_tokens {budget})", f"search_only (max_tokens {budget})", 3) for budget in (60, 400)
    ]
    assert result.notes[0].startswith("3 of 4 queries have answers. The library: 4 files, 4 passages")
    assert not (tmp_home / "libraries").exists()


def test_what_is_beyond_the_depth_is_not_found(tmp_path: Path, tmp_home: Path) -> None:
    asked = [("far", "When is bread baked?", ["1871"], "p1")]
    source = datasets.collection(collection(tmp_path / "far", queries=asked))
    assert evaluated(source, depth=1).arm("embedded").metrics["lost_not_found"] == 1
    assert evaluated(source).arm("search_only").metrics["answers_kept"] == 1


def test_search_alone_loses_what_does_not_fit(tmp_path: Path, tmp_home: Path) -> None:
    filler = " ".join(f"Nobody counted the gulls of year {n}." for n in range(12))
    birds = {"id": "p1", "title": "Birds", "text": f"{filler} The puffins were 1,945 in all, they say."}
    passages = [birds, {"id": "p3", "title": "Kitchen", "text": PASSAGES[2][2]}]
    asked = [("n", "How many puffins were there?", ["1945"], "p1")]
    source = datasets.collection(collection(tmp_path / "birds", passages, asked))
    result = evaluated(source, (90,))
    assert result.arm("search_only").metrics["lost_ranked_out"] == 1
    assert result.arm("embedded").metrics["answers_kept"] == 1


def test_questions_bring_their_contexts_as_one_library(tmp_path: Path, tmp_home: Path) -> None:
    rows = datasets.questions(questions(tmp_path / "asked.jsonl"))
    first, again = evaluated(rows), evaluated(rows)
    assert first.notes[0].startswith("3 of 4 queries have answers. The library: 4 files, 4 passages")
    assert first.arm("embedded").metrics["answers_kept"] == pytest.approx(2 / 3)
    assert without_times(first) == without_times(again)


def test_a_picture_is_read_by_the_product(tmp_path: Path, tmp_home: Path) -> None:
    rows = [{"id": "sign", "image": "sign.jpg"}, {"id": "p3", "title": "Kitchen", "text": PASSAGES[2][2]}]
    folder = collection(tmp_path / "photos", rows[1:], [("q", "Who welcomes visitors at the landing?", ["holm"], "p3")])
    shutil.copy(SAMPLE / "photos" / "landing-sign.jpg", folder / "sign.jpg")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = evaluated(datasets.collection(folder))
    assert "The library: 2 files" in result.notes[0]
    assert result.arm("embedded").metrics["answers_kept"] == 1


def test_a_budget_that_no_block_fits_fails_with_its_reason(tmp_path: Path, tmp_home: Path) -> None:
    result = evaluated(datasets.collection(collection(tmp_path / "tight")), (10,))
    ours, search = result.arms
    assert ours.status == "failed"
    assert "smallest block" in str(ours.reason)
    assert search.metrics["answers_kept"] == 0
    assert result.comparisons == ()


# --- what is refused before any model is loaded -----------------------------------------------------------------------


def test_data_without_answers_is_refused_first(tmp_path: Path, bare_home: Path) -> None:
    source = datasets.collection(collection(tmp_path / "plain", queries=QUERIES[3:]))
    with pytest.raises(BadInput, match=r"No query of `plain` has answers"):
        evaluated(source)


def test_budgets_and_queries_out_of_range_are_refused_first(tmp_path: Path, bare_home: Path) -> None:
    source = datasets.collection(collection(tmp_path / "island"))
    for budget, told in ((0, "max_tokens is `0`"), (30_000, "max_tokens is `30000`")):
        with pytest.raises(BadInput, match=told):
            evaluated(source, (budget,))
    endless = [("q", "why " * 2000, ["1871"], "p1")]
    with pytest.raises(BadInput, match=r"The query has `\d+` characters"):
        evaluated(datasets.collection(collection(tmp_path / "endless", queries=endless)))


def test_missing_weights_are_no_measurement(tmp_path: Path, bare_home: Path) -> None:
    source = datasets.collection(collection(tmp_path / "island"))
    with pytest.raises(MissingWeights, match=r"`all_minilm_l6_v2` are missing.*triptych pull embedded"):
        evaluated(source)


def test_a_library_of_nothing_is_refused(tmp_path: Path, tmp_home: Path) -> None:
    nothing = [{"id": "p1", "title": "Nothing", "text": " "}]
    source = datasets.collection(collection(tmp_path / "nothing", nothing, QUERIES[:1]))
    with pytest.raises(BadInput, match="Nothing of `nothing` could be indexed"):
        evaluated(source)


def test_a_fault_of_a_stage_is_an_arm_of_its_own(
    tmp_path: Path, tmp_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Triptych, query: str, max_tokens: int | None = None) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Triptych, "retrieve", broken)
    result = evaluated(datasets.collection(collection(tmp_path / "island")))
    assert (result.arm("embedded").status, result.arm("embedded").reason) == ("failed", "RuntimeError: a fault")
    assert result.arm("search_only").status == "ok"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_measures_a_folder(tmp_path: Path, tmp_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(collection(tmp_path / "island"))
    assert cli.main(["eval", "pipeline", folder, "--limit", "2", "--max-tokens", "300", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"][0]["sizes"] == {"queries": 2, "passages": 5}
    assert [arm["settings"] for arm in told["arms"]] == [{"max_tokens": 300}] * 2


def test_the_command_takes_a_question_file(tmp_path: Path, bare_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(questions(tmp_path / "asked.jsonl"))
    assert cli.main(["eval", "pipeline", file, "--json"]) == MissingWeights.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "MissingWeights"
