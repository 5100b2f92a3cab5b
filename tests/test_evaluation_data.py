"""What evaluations stand on: data that is checked line by line, results as files, paired tests, the environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from triptych.errors import BadInput
from triptych.manifests.registry import card
from triptych.server import cli
from triptych.tools.evaluation import compare, datasets, environment, passages
from triptych.tools.evaluation.result import Arm, DataInfo, Result, file_name
from triptych.tools.stages import Stages

CORPUS: list[dict[str, Any]] = [
    {"_id": "p1", "title": "Trains", "text": "The night train leaves Oslo at ten."},
    {"id": "p2", "text": "打印机在三楼。🖨️"},
    {"id": 3, "title": "Only a title", "text": ""},
    {"id": "p4", "text": " "},
]
QUERIES: list[dict[str, Any]] = [
    {"_id": "q1", "text": "When does the night train leave?", "answers": ["at ten", " "]},
    {"id": "q2", "text": "打印机在哪里？", "answer": "三楼"},
    {"id": "q3", "text": "Nobody judged this one."},
    {"id": "q4", "text": "Only judged 0."},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\tp1\t2\nq1\tp2\t0\nq2\tp2\t1\nq4\tp1\t0\n"
RUN = "q1 Q0 p1 1 2.5 tag\nq1 Q0 p2 2 1.5 tag\nq2 Q0 p2 1 0.5 tag\nelse Q0 nothing 1 9 tag\n"


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection that is right in every way."""
    made = tmp_path / "tiny"
    made.mkdir()
    (made / "corpus.jsonl").write_text(lines(CORPUS), "utf-8")
    (made / "queries.jsonl").write_text(lines(QUERIES), "utf-8")
    (made / "qrels.tsv").write_text(QRELS, "utf-8")
    (made / "run.trec").write_text(RUN, "utf-8")
    return made


def told(name: str, text: str, folder: Path) -> str:
    """The error about the collection whose file `name` holds `text`."""
    (folder / name).write_text(text, "utf-8", errors="surrogatepass")
    with pytest.raises(BadInput) as caught:
        datasets.collection(folder)
    assert caught.value.hint
    assert str(folder) not in str(caught.value)
    return str(caught.value)


# --- collections -----------------------------------------------------------------------------------------------------


def test_a_collection_keeps_judged_queries_and_all_passages(folder: Path) -> None:
    data = datasets.collection(folder)
    assert list(data.passages) == ["p1", "p2", "3", "p4"]
    assert list(data.queries) == ["q1", "q2"]
    assert data.queries["q1"].answers == ("at ten",)
    assert data.queries["q2"].answers == ("三楼",)
    assert data.qrels == {"q1": {"p1": 2, "p2": 0}, "q2": {"p2": 1}}
    assert data.info.name == "tiny"
    assert data.info.sizes == {"queries": 2, "passages": 4}


def test_the_hash_is_that_of_the_bytes(folder: Path) -> None:
    before = datasets.collection(folder).info.sha256
    assert datasets.collection(folder).info.sha256 == before
    (folder / "qrels.tsv").write_text(QRELS + "\n", "utf-8")
    assert datasets.collection(folder).info.sha256 != before


@pytest.mark.parametrize(
    "qrels",
    [
        QRELS,
        QRELS.partition("\n")[2],
        "\ufeff" + QRELS.partition("\n")[2],
        QRELS.replace("\t", " "),
        QRELS.replace("\n", "\r\n"),
        "\n".join(line.replace("\t", " 0 ", 1).replace("\t", " ") for line in QRELS.splitlines()[1:]),
    ],
    ids=["header", "no-header", "byte-order-mark", "spaces", "crlf", "trec"],
)
def test_judgements_come_in_several_forms(folder: Path, qrels: str) -> None:
    (folder / "qrels.tsv").write_text(qrels, "utf-8", newline="")
    assert datasets.collection(folder).qrels == {"q1": {"p1": 2, "p2": 0}, "q2": {"p2": 1}}


def test_beirs_own_layout_and_parts(folder: Path) -> None:
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").rename(folder / "qrels" / "test.tsv")
    assert list(datasets.collection(folder).queries) == ["q1", "q2"]
    (folder / "qrels.train.tsv").write_text("q3\tp1\t1\n", "utf-8")
    assert list(datasets.collection(folder, part="train").queries) == ["q3"]
    (folder / "queries.train.jsonl").write_text(lines([{"id": "q3", "text": "Another text."}]), "utf-8")
    data = datasets.collection(folder, part="train")
    assert (data.queries["q3"].text, data.info.name) == ("Another text.", "tiny_train")


def test_a_limit_draws_with_the_seed_and_keeps_the_order(folder: Path) -> None:
    (folder / "queries.jsonl").write_text(lines([{"id": f"q{n}", "text": "?"} for n in range(40)]), "utf-8")
    (folder / "qrels.tsv").write_text("".join(f"q{n}\tp1\t1\n" for n in range(40)), "utf-8")
    first = list(datasets.collection(folder, limit=7, seed=1).queries)
    assert first == list(datasets.collection(folder, limit=7, seed=1).queries)
    assert first != list(datasets.collection(folder, limit=7, seed=2).queries)
    assert len(first) == 7
    assert first == sorted(first, key=lambda key: int(key[1:]))
    assert len(datasets.collection(folder, limit=99).queries) == 40


def test_a_short_folder_name_takes_its_parents(folder: Path) -> None:
    inside = folder.rename(folder.parent / "zh")
    assert datasets.collection(inside).info.name == f"{folder.parent.name}_zh"


MALFORMED = {
    "not JSON": ("corpus.jsonl", '{"id": "a", "text": "x"}\n{"id": oops}\n', "`corpus.jsonl` line 2 is not JSON"),
    "no object": ("queries.jsonl", '["a"]\n', "`queries.jsonl` line 1 is no JSON object"),
    "no text": ("corpus.jsonl", '\n{"id": "a"}\n', "`corpus.jsonl` line 2 has no `text`"),
    "text no string": ("corpus.jsonl", '{"id": "a", "text": 7}\n', "line 1 has no `text`"),
    "no id": ("corpus.jsonl", '{"text": "x"}\n', "line 1 has no id"),
    "blank id": ("corpus.jsonl", '{"id": " ", "text": "x"}\n', "line 1 has no id"),
    "NUL in an id": ("corpus.jsonl", lines([{"id": "a\0b", "text": "x"}]), "line 1 has the id"),
    "half a character in an id": ("queries.jsonl", '{"id": "\\ud800", "text": "x"}\n', "line 1 has the id"),
    "half a character": ("corpus.jsonl", '{"id": "a", "text": "\\ud800"}\n', "line 1 has half a character"),
    "duplicate passage": ("corpus.jsonl", lines([CORPUS[0], CORPUS[1], CORPUS[0]]), "line 3 has the id `p1` of line 1"),
    "duplicate query": ("queries.jsonl", lines([QUERIES[0], QUERIES[0]]), "line 2 has the id `q1` of line 1"),
    "empty query": ("queries.jsonl", lines([QUERIES[0], {"id": "q2", "text": " "}]), "line 2 has an empty query `q2`"),
    "answers no list": ("queries.jsonl", '{"id": "a", "text": "x", "answers": {"b": 1}}\n', "line 1 has answers"),
    "unknown passage": (
        "qrels.tsv",
        "q1\tp1\t1\nq1\tp9\t1\n",
        "`qrels.tsv` line 2 names the passage `p9`, which corpus",
    ),
    "unknown query": ("qrels.tsv", "q9\tp1\t1\n", "line 1 names the query `q9`, which queries.jsonl lacks"),
    "judged twice": ("qrels.tsv", "q1\tp1\t1\nq1\tp1\t0\n", "line 2 judges `p1` for `q1` a second time"),
    "too few columns": ("qrels.tsv", "q1\tp1\t1\nq1\tp2\n", "line 2 has 2 columns instead of 3"),
    "no number": ("qrels.tsv", "q1\tp1\tmuch\n", "line 1 has `much` where a number belongs"),
    "nan": ("qrels.tsv", "q1\tp1\tnan\n", "line 1 has `nan` where a number belongs"),
    "half a grade": ("qrels.tsv", "q1\tp1\t0.5\n", "line 1 has the grade `0.5`"),
    "a huge grade": ("qrels.tsv", "q1\tp1\t1e9\n", "line 1 has the grade `1e9`"),
    "nothing relevant": ("qrels.tsv", "q1\tp1\t0\n", "has no query with a judgement above 0"),
    "no judgements": ("qrels.tsv", "", "has no query with a judgement above 0"),
    "no passages": ("corpus.jsonl", "\n", "which corpus.jsonl lacks"),
    "media not there": ("corpus.jsonl", '{"id": "a", "image": "a.png"}\n', "`a.png`, which is not there"),
    "media outside": ("corpus.jsonl", '{"id": "a", "image": "../../a.png"}\n', "outside the folder"),
    "media no name": ("corpus.jsonl", lines([{"id": "a", "image": "a\0.png"}]), "names the media file"),
    "media name too long": ("corpus.jsonl", lines([{"id": "a", "image": "a" * 5000}]), "names the media file"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_bad_data_is_named_by_file_and_line(folder: Path, case: str) -> None:
    name, text, wanted = MALFORMED[case]
    assert wanted in told(name, text, folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadInput, match=f"`tiny` has no `{name}`"):
        datasets.collection(folder)


def test_other_bytes_than_utf_8_and_folders_that_are_not_there(folder: Path) -> None:
    (folder / "corpus.jsonl").write_bytes('{"id": "a", "text": "größer"}'.encode("latin-1"))
    with pytest.raises(BadInput, match=r"`corpus.jsonl` is not UTF-8"):
        datasets.collection(folder)
    with pytest.raises(BadInput, match="`nowhere` is no folder"):
        datasets.collection(folder / "nowhere")
    with pytest.raises(BadInput, match="limit is `0`"):
        folder.joinpath("corpus.jsonl").write_text(lines(CORPUS), "utf-8")
        datasets.collection(folder, limit=0)


@pytest.mark.parametrize(
    "arguments", [["retrieval"], ["rerank", "--run", "run.trec"], ["pipeline"]], ids=lambda a: a[0]
)
@pytest.mark.parametrize("case", MALFORMED)
def test_the_command_line_says_so_before_any_model_is_loaded(
    folder: Path, case: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("encoder", "lm", "reranker", "refiner"):
        monkeypatch.setattr(Stages, name, lambda *given: pytest.fail("a model is loaded"))
    name, text, wanted = MALFORMED[case]
    (folder / name).write_text(text, "utf-8")
    monkeypatch.chdir(folder)
    code = cli.main(["eval", *arguments, str(folder), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert code == 2
    assert error["type"] == "BadInput"
    assert wanted in error["message"]
    assert error["hint"]


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_sorted_by_score_and_ties_stand_as_they_are(folder: Path) -> None:
    text = "q1 Q0 p2 1 1 t\nq1 Q0 p4 2 1.0 t\nq1 Q0 p1 3 7 t\nq1 Q0 3 4 1 t\nelse Q0 nothing 1 9 t\n"
    (folder / "run.trec").write_text(text, "utf-8")
    found = datasets.run_file(folder / "run.trec", datasets.collection(folder))
    assert found == {"q1": [("p1", 7.0), ("p2", 1.0), ("p4", 1.0), ("3", 1.0)]}


RUNS = {
    "columns": ("q1 Q0 p1 1 2.5 t\nq1 p1 2\n", "`run.trec` line 2 has 3 columns instead of 6"),
    "score": ("q1 Q0 p1 1 high t\n", "line 1 has `high` where a number belongs"),
    "nan": ("q1 Q0 p1 1 nan t\n", "line 1 has `nan` where a number belongs"),
    "unknown passage": ("q1 Q0 p9 1 2 t\n", "line 1 names the passage `p9`"),
    "twice": ("q1 Q0 p1 1 2 t\nq1 Q0 p1 2 1 t\n", "line 2 names `p1` a second time for `q1`"),
    "other queries": ("x Q0 p1 1 2 t\n", "`run.trec` has none of the 2 queries"),
    "empty": ("", "`run.trec` has none of the 2 queries"),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_bad_run_is_named_by_file_and_line(folder: Path, case: str) -> None:
    text, wanted = RUNS[case]
    (folder / "run.trec").write_text(text, "utf-8")
    with pytest.raises(BadInput) as caught:
        datasets.run_file(folder / "run.trec", datasets.collection(folder))
    assert wanted in caught.value.message


def test_a_run_that_is_not_there(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"no run `else.trec`"):
        datasets.run_file(folder / "else.trec", datasets.collection(folder))


# --- question files --------------------------------------------------------------------------------------------------

QUESTION: dict[str, Any] = {
    "id": "q",
    "question": "Where?",
    "answers": ["Oslo"],
    "contexts": [{"id": "c", "title": "T", "text": "In Oslo.", "evidence": [[3, 7]]}, {"id": "d", "text": "No."}],
}


def test_a_question_file_gives_questions_with_contexts(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text(lines([QUESTION]), "utf-8")
    [row] = datasets.questions(tmp_path).rows
    assert datasets.questions(tmp_path / "asked.jsonl").info.sizes == {"questions": 1, "contexts": 2}
    assert (row.answers, row.contexts[0].evidence) == (("Oslo",), ((3, 7),))
    item = row.hits()[0].item
    assert (item.id, item.text, item.title) == ("c", "In Oslo.", "T")


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"question": " "}, "has an empty question"),
        ({"question": None}, "has no `question`"),
        ({"contexts": []}, "has no list of contexts"),
        ({"contexts": ["text"]}, "has no list of contexts"),
        ({"contexts": [{"id": "c", "text": "a"}, {"id": "c", "text": "b"}]}, "has a context id twice"),
        ({"contexts": [{"id": "c", "text": "abc", "evidence": [[1, 9]]}]}, "has evidence that is no list of spans"),
        ({"contexts": [{"id": "c", "text": "abc", "evidence": 3}]}, "has evidence that is no list of spans"),
        ({"contexts": [{"text": "abc"}]}, "has no id"),
        ({"answers": [1]}, "has answers that are no list of texts"),
        ({"id": None}, "has no id"),
    ],
)
def test_a_bad_question_is_named_by_file_and_line(tmp_path: Path, changed: Mapping[str, Any], wanted: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(lines([QUESTION | {"id": "first"}, QUESTION | dict(changed)]), "utf-8")
    with pytest.raises(BadInput) as caught:
        datasets.questions(path)
    assert f"`asked.jsonl` line 2 {wanted}" in caught.value.message


def test_question_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds 0 JSONL files"):
        datasets.questions(tmp_path)
    with pytest.raises(BadInput, match=r"no file `x.jsonl`"):
        datasets.questions(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text("\n", "utf-8")
    with pytest.raises(BadInput, match=r"`x.jsonl` has no questions"):
        datasets.questions(tmp_path / "x.jsonl")


# --- passages become items -------------------------------------------------------------------------------------------


def test_a_text_is_one_item_and_an_empty_one_none(folder: Path) -> None:
    made = passages.corpus(datasets.collection(folder))
    assert [(item.id, item.text, item.meta) for item in made.items] == [
        ("p1", CORPUS[0]["text"], {"title": "Trains"}),
        ("p2", CORPUS[1]["text"], {}),
        ("3", "", {"title": "Only a title"}),
    ]
    assert made.items_of["p4"] == ()
    assert made.modalities == {"text"}
    assert list(made.notes()) == ["1 of 4 passages have neither text nor title."]


def pictured(folder: Path) -> datasets.Collection:
    """Pictures: with text in it (twice), with text beside it, without any, broken; and a sound."""
    picture = Image.new("RGB", (900, 160), "white")
    ImageDraw.Draw(picture).text((20, 40), "Harbour timetable 1937", "black", ImageFont.load_default(size=64))
    picture.save(folder / "sign.png")
    Image.new("RGB", (64, 64), "navy").save(folder / "blue_square.png")
    (folder / "broken.png").write_bytes((folder / "sign.png").read_bytes()[:200])
    (folder / "tone.ogg").write_bytes(b"OggS" + bytes(60))
    rows = [
        {"id": "p1", "image": "sign.png"},
        {"id": "again", "image": "sign.png", "title": "A sign"},
        {"id": "beside", "image": "sign.png", "text": "What somebody wrote about it."},
        {"id": "p2", "image": "blue_square.png"},
        {"id": "broken", "image": "broken.png"},
        {"id": "tone", "audio": "tone.ogg"},
    ]
    (folder / "corpus.jsonl").write_text(lines(rows), "utf-8")
    return datasets.collection(folder)


def test_media_are_read_as_in_the_product(folder: Path) -> None:
    made = passages.corpus(pictured(folder))
    [sign], [again], [beside], [blue] = (made.items_of[key] for key in ("p1", "again", "beside", "p2"))
    assert "timetable 1937" in sign.text
    assert again.text == sign.text
    assert again.id != sign.id
    assert again.title == "A sign"
    assert (beside.id, beside.text, beside.modality) == ("beside", "What somebody wrote about it.", "image")
    assert blue.text == "blue square"
    assert made.passages([blue.id, sign.id, again.id, sign.id]) == ["p2", "p1", "again"]
    assert made.items_of["broken"] == made.items_of["tone"] == ()
    assert made.modalities == {"text", "image", "audio"}
    said = list(made.notes())
    assert said[0].startswith("2 media files could not be read; the first: `broken.png` is a damaged picture")
    assert said[1] == "In 1 media files no word was found: those of the files' names stand for them."
    assert len(said) == 2


def test_only_what_is_needed_is_read(folder: Path) -> None:
    made = passages.corpus(pictured(folder), {"beside"})
    assert list(made.items_of) == ["beside"]
    assert list(made.notes()) == []


def test_a_system_that_reads_nothing_of_it_is_refused(folder: Path) -> None:
    made = passages.corpus(pictured(folder), {"tone"})
    made.check("no_rerank", card("no_rerank").modalities)
    with pytest.raises(BadInput, match=r"`bm25` reads text, and no passage of `tiny` gives any.*`tone.ogg`"):
        made.check("bm25", card("bm25").modalities)
    texts = passages.corpus(datasets.collection(folder), {"beside"})
    texts.check("bm25", ("text",))
    with pytest.raises(BadInput, match="`it` reads video, page, and no passage"):
        texts.check("it", ("video", "page"))


# --- results ---------------------------------------------------------------------------------------------------------


def result(name: str = "retrieval_tiny", **changed: Any) -> Result:
    arm = Arm(
        system="bm25",
        settings={"depth": 5},
        metrics={"nDCG@10": 1 / 3, "calls": 2, "none": None},
        per_query={"nDCG@10": {"q\\u00001": 1 / 3, "问": None}},
    )
    data = (DataInfo(name="tiny", sha256="0" * 64, sizes={"queries": 1}),)
    given: dict[str, Any] = {
        "kind": "retrieval",
        "title": "T",
        "command": "c",
        "seed": 0,
        "environment": {},
        "arms": (arm,),
    }
    return Result(name=name, data=data, **(given | changed))


def test_a_result_comes_back_from_its_file_rounded(tmp_path: Path) -> None:
    made = result()
    path = made.write(tmp_path / "new")
    assert [file.name for file in path.parent.iterdir()] == ["retrieval_tiny.json"]
    read = Result.read(path)
    assert read.as_dict() == made.as_dict()
    assert read.arms[0].metrics == {"nDCG@10": 0.3333, "calls": 2, "none": None}
    assert read.arms[0].per_query == {"nDCG@10": {"q\\u00001": 0.3333, "问": None}}
    assert read.arm("bm25", depth=5).label == "bm25 (depth 5)"
    with pytest.raises(KeyError):
        read.arm("bm25", depth=6)


def test_a_wrong_name_or_file_is_refused(tmp_path: Path) -> None:
    for name in ("Retrieval", "a__b", "../a", ""):
        with pytest.raises(BadInput, match="name is"):
            result(name).write(tmp_path)
    (tmp_path / "x.json").write_text('{"schema": 1}', "utf-8")
    with pytest.raises(BadInput, match=r"`x.json` is no result: name: Field required"):
        Result.read(tmp_path / "x.json")


@pytest.mark.parametrize("words", [("rerank", "trec_dl19", "run.bm25"), ("a", "数据"), ("x", "É-2 v1.0"), ("\ud800",)])
def test_every_name_is_a_file_name(words: tuple[str, ...], tmp_path: Path) -> None:
    assert result(file_name(*words)).write(tmp_path).is_file()
    assert file_name("a", "数据") != file_name("a", "数据二")


# --- paired tests ----------------------------------------------------------------------------------------------------


def arm(system: str, values: Mapping[str, float | None]) -> Arm:
    return Arm(system=system, per_query={"m": dict(values)})


def test_a_comparison_pairs_the_queries_that_both_have() -> None:
    ours = arm("ours", {"a": 0.5, "b": 1.0, "c": None, "d": 0.3, "only": 1.0})
    theirs = arm("theirs", {"a": 0.25, "b": 0.5, "c": 0.9, "d": 0.3, "other": 0.0})
    found = compare.paired(ours, theirs, "m")
    assert found.n == 3
    assert found.difference == pytest.approx(0.25)
    assert found.interval[0] <= 0.25 <= found.interval[1]
    assert found.p == 0.5  # of 8 sign flips, the 4 that agree in a and b are as extreme


def test_no_difference_no_query_and_one_query() -> None:
    same = compare.paired(arm("a", {"q": 0.5, "r": 0.5}), arm("b", {"q": 0.5, "r": 0.5}), "m")
    assert (same.difference, same.interval, same.p, same.n) == (0.0, (0.0, 0.0), 1.0, 2)
    none = compare.paired(arm("a", {"q": 0.5}), arm("b", {"r": 0.5}), "m")
    assert (none.difference, none.interval, none.p, none.n) == (0.0, (0.0, 0.0), 1.0, 0)
    one = compare.paired(arm("a", {"q": 0.75}), arm("b", {"q": 0.5}), "m")
    assert (one.difference, one.interval, one.p, one.n) == (0.25, (0.25, 0.25), 1.0, 1)


def test_a_large_sample_is_tested_by_drawing_with_the_seed() -> None:
    rng = np.random.default_rng(0)
    drawn = {str(n): float(value) for n, value in enumerate(rng.normal(0.02, 0.1, 300))}
    ours, theirs = arm("ours", drawn), arm("theirs", dict.fromkeys(drawn, 0.0))
    first = compare.paired(ours, theirs, "m", seed=3)
    assert first == compare.paired(ours, theirs, "m", seed=3)
    assert first != compare.paired(ours, theirs, "m", seed=4)
    assert 0 < first.p < 0.05
    assert first.interval[0] > 0


def test_all_other_arms_are_compared_where_they_have_values() -> None:
    base, other, failed = arm("base", {"q": 0.1}), arm("other", {"q": 0.2}), Arm(system="failed", status="failed")
    found = list(compare.against([base, other, failed], base, ["m", "n"]))
    assert [(row.arm, row.baseline, row.metric) for row in found] == [("other", "base", "m")]


# --- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_names_commit_versions_and_hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = environment.environment(("ir-measures", "no-such-package"), "float32")
    assert json.loads(json.dumps(found)) == found
    assert {"torch", "ir-measures", "numpy"} <= set(found["versions"])
    assert "no-such-package" not in found["versions"]
    assert found["precision"] == "float32"
    assert found["memory_gb"] > 0
    monkeypatch.setattr(environment, "_CHECKOUT", tmp_path)
    assert environment.environment()["commit"] == "none"
    assert "precision" not in environment.environment()


def test_a_checkout_that_git_cannot_read_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(environment, "_CHECKOUT", tmp_path)
    assert environment.environment()["commit"] == "unknown"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, capture_output=True)
    assert environment.environment()["uncommitted_changes"] is True
