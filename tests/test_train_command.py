"""`triptych train` on tiny weights: its rows, its answer, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import BadInput
from triptych.retrievers.base import Query
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.universal.colpali import ColPali
from triptych.retrievers.universal.dse import DSE
from triptych.retrievers.universal.unime import UniME
from triptych.retrievers.universal.vlm2vec import VLM2Vec
from triptych.server import cli
from triptych.tools.training import TAUGHT, TrainOut, pairs

sys.path.append(str(Path(__file__).parent))
from mllm_files import noise

QUICK = ("--batch", "4", "--rank", "2", "--rate", "0.001", "--json")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], weights_home: Path) -> Any:
    """Runs `triptych train`; gives exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["train", *map(str, arguments), "--home", str(weights_home)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    UniME.tiny(0).save(folder)
    return folder


def file_of(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def mixed(folder: Path) -> list[dict[str, Any]]:
    noise(1).save(folder / "owl.png")
    return [
        {"query": "an owl", "right": {"image": "owl.png", "text": "at night"}, "group": "a"},
        {"query": {"image": "owl.png", "instruction": "What is it?"}, "right": "an owl"},
        {"query": {"text": "ships"}, "right": {"id": "s", "title": "Ferry", "text": "It leaves at nine."}},
        {"query": "ferries", "right": {"id": "s", "text": "It leaves at nine."}},
    ]


def test_stage_1_then_stage_2(run: Any, student: Path, tmp_path: Path) -> None:
    texts = file_of(tmp_path, [{"text": f"an owl in barn {n}"} for n in range(5)], "texts.jsonl")
    first = ("unime", "--stage", 1, "--data", texts, "--out", tmp_path / "one", "--student", student, *QUICK)
    code, out, _ = run(*first)
    assert code == 0
    made = TrainOut.model_validate_json(out)
    assert (made.system, made.stage, made.rows, made.steps, made.model) == ("unime", 1, 5, 2, "one")
    assert made.loss is not None and made.loss > 0 and out.count("\n") == 1
    assert (tmp_path / "one" / TAUGHT).is_dir()
    again = TrainOut.model_validate_json(run(*first)[1])
    assert (again.steps, again.loss) == (2, None)
    data = file_of(tmp_path, mixed(tmp_path))
    second = ("unime", "--stage", 2, "--data", data, "--out", tmp_path / "two", "--student", tmp_path / "one")
    code, out, _ = run(*second, *QUICK[:-1])
    assert code == 0
    assert out.startswith("unime, stage 2: 1 steps over 4 rows, mean loss ")
    assert out.endswith("The model is in `two`.\n")
    assert UniME.from_folder(tmp_path / "two").encode([Query("an owl")], "query").shape == (1, 64)
    for change in (("--teacher", "dpr"), ("--rate", "0.1"), ("--data", file_of(tmp_path, [{"text": "a"}] * 2, "b"))):
        code, out, _ = run(*first, *change)
        assert code in (2, 3)
        assert set(json.loads(out)["error"]) == {"type", "message", "hint"}
    assert "`one` holds a fit with other settings or data" in out


@pytest.mark.parametrize("system", [VLM2Vec, DSE, ColPali])
def test_other_systems_learn_from_such_pairs(run: Any, system: Any, tmp_path: Path) -> None:
    system.tiny(0).save(tmp_path / "student")
    rows = mixed(tmp_path)
    noise(2).save(tmp_path / "ferry.png")
    if system is not VLM2Vec:  # pages, for words
        rows = [{"query": name, "right": {"image": f"{name}.png"}} for name in ("owl", "ferry")]
    begin = ("--student", tmp_path / "student", "--data", file_of(tmp_path, rows), "--out", tmp_path / "out")
    code, out, _ = run(system.__name__.lower(), *begin, "--run", 2, *QUICK)
    assert code == 0
    assert TrainOut.model_validate_json(out).stage is None
    assert len(system.from_folder(tmp_path / "out").encode([Query("an owl")], "query")) == 1


def test_rows_become_lessons(tmp_path: Path) -> None:
    one, two, three, four = pairs(file_of(tmp_path, mixed(tmp_path)))
    assert one.group == "a" and one.right.modality == "image" and one.right.text == "at night"
    assert one.right.media is not None and Path(one.right.media.uri) == tmp_path / "owl.png"
    assert two.query.instruction == "What is it?" and two.query.text is None and two.query.media is not None
    assert three.right.id == four.right.id == "s" and three.right.title == "Ferry"
    assert [searchable_text(item.right) for item in (two, three)] == ["an owl", "Ferry\nIt leaves at nine."]
    same = pairs(file_of(tmp_path, [{"query": "a", "right": "b"}, {"query": "c", "right": "b", "wrong": ["b", "d"]}]))
    assert same[0].right.id == same[1].right.id == same[1].wrong[0].id != same[1].wrong[1].id


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "not JSON"),
        ("[]", "valid dictionary"),
        ('{"query": "a"}', "`right`: Field required"),
        ('{"query": "a", "right": 1}', "`right"),
        ('{"query": "a", "right": "b", "score": 1}', "`score`"),
        ('{"query": "a", "right": {"text": "b", "page": 0}}', "`right"),
        ('{"query": " ", "right": "b"}', "has no text and no image"),
        ('{"query": "a", "right": "b", "wrong": [{}]}', "has no text and no image"),
        ('{"query": {"image": "gone.png"}, "right": "b"}', "there is no file `gone.png`"),
        ('{"query": {"image": "rows.jsonl"}, "right": "b"}', "`rows.jsonl` is no picture"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(row: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "a", "right": "b"}\n\n' + row + "\n", "utf-8")
    with pytest.raises(BadInput, match=r"`rows\.jsonl` has a wrong line 3") as caught:
        pairs(path)
    assert told in caught.value.message
    assert str(tmp_path) not in str(caught.value)


def test_what_is_refused_before_a_model_is_loaded(run: Any, tmp_path: Path) -> None:
    data = file_of(tmp_path, [{"query": "a", "right": "b"}] * 2)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    empty, latin, binary = (tmp_path / name for name in ("empty", "latin", "model"))
    empty.write_text("\n")
    latin.write_bytes(b'{"query": "\xe9"}')
    binary.write_bytes(b"x")
    to = ("--out", tmp_path / "out", "--json")
    refused: list[tuple[tuple[object, ...], int, str]] = [
        (("unime", "--data", data, *to), 2, "The stage of `unime` is `None`"),
        (("vlm2vec", "--stage", 1, "--data", data, *to), 2, "`vlm2vec` has no stage `1`"),
        (("bm25", "--data", data, *to), 5, "`bm25` does not learn by this command"),
        (("unimee", "--stage", 1, "--data", data, *to), 2, "unimee"),
        (("vlm2vec", "--data", tmp_path / "gone.jsonl", *to), 2, "`gone.jsonl` cannot be read"),
        (("vlm2vec", "--data", empty, *to), 2, "`empty` has no rows"),
        (("vlm2vec", "--data", latin, *to), 2, "`latin` is not UTF-8"),
        (("unime", "--stage", 1, "--data", data, *to), 2, "has a wrong line 1"),
        (("vlm2vec", "--data", data, "--out", full, "--json"), 2, "`full` holds something else"),
        (("vlm2vec", "--data", data, "--out", binary, "--json"), 2, "`model` is a file"),
        (("vlm2vec", "--data", data, "--student", tmp_path / "none", *to), 2, "There is no folder `none`"),
        (("vlm2vec", "--data", data, *to), 3, "is not there"),
        (("vlm2vec", "--data", data, "--rate", "0", *to), 2, "rate"),
    ]
    for arguments, exit_code, told in refused:
        code, out, err = run(*arguments)
        assert (code, err) == (exit_code, ""), (arguments, out)
        if exit_code != 3:
            assert told in json.loads(out)["error"]["message"]
        assert str(tmp_path) not in out
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "out").exists()
