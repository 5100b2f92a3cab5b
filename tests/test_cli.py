"""The command line: one JSON document per call, typed errors, exit codes, a stdout with nothing but the answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from triptych import errors
from triptych.retrievers.base import MODALITIES, Where
from triptych.retrievers.filters import filter_of
from triptych.server import cli, command, demo, jsonl, output, sessions
from triptych.tools import library as facade
from triptych.tools.schemas import (
    CompressOut,
    DeleteOut,
    Evidence,
    FetchOut,
    IndexOut,
    LibraryOut,
    RebuildOut,
    RerankOut,
    SearchOut,
    StatusOut,
    VerifyOut,
)

sys.path.append(str(Path(__file__).parent))
from fake_library import TEXTS, FakeTriptych

LINES = '{"id": "a", "text": "Trains."}\n\n{"text": "The printer jams.", "uri": "b.txt"}\n'


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, bare_home: Path) -> FakeTriptych:
    """Every command opens this session; it remembers what was asked of it."""
    session = FakeTriptych()

    def opened(name: str, settings: Any, stages: Any = None) -> FakeTriptych:
        session.library, session.settings = name, settings
        return session

    monkeypatch.setattr(sessions, "open_library", opened)
    return session


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; gives exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def parsed(out: str) -> Any:
    """The one JSON document of `out`."""
    assert out.endswith("\n")
    assert out.count("\n") == 1
    return json.loads(out)


# --- every command with --json ----------------------------------------------------------------------------------------

SHAPES: list[tuple[list[str], type]] = [
    (["index", "some/folder", "--prune"], IndexOut),
    (["retrieve", "allowance in Berlin", "--max-tokens", "200"], Evidence),
    (["retrieve", "🖨️", "--k", "1", "--quality", "high"], Evidence),
    (["search", "printer", "-k", "2"], SearchOut),
    (["search", "printer", "--where", '{"year": {"ge": 2020}}', "--modality", "page"], SearchOut),
    (["verify"], VerifyOut),
    (["rebuild"], RebuildOut),
    (["rebuild", "some/folder"], RebuildOut),
    (["rerank", "printer", "--ids", "p1,p2", "--ids", "p3"], RerankOut),
    (["compress", "printer", "--ids", "p1,p2"], CompressOut),
    (["compress", "--ids", "p1", "--max-tokens", "100"], CompressOut),
    (["fetch", "p1"], FetchOut),
    (["fetch", "p1", "--span", "19:25"], FetchOut),
    (["status"], StatusOut),
    (["delete", "--ids", "p1"], DeleteOut),
    (["delete", "--uri-prefix", "handbook/travel/"], DeleteOut),
]


@pytest.mark.parametrize(
    ("arguments", "shape"), SHAPES, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_json_is_one_document_of_the_documented_shape(
    fake: FakeTriptych, run: Any, arguments: list[str], shape: Any
) -> None:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    assert shape.model_validate(parsed(out)).model_dump(mode="json") == parsed(out)


@pytest.mark.parametrize("arguments", [row[0] for row in SHAPES], ids="-".join)
def test_people_get_text_without_control_characters(fake: FakeTriptych, run: Any, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert out.strip()
    assert "\x1b" not in out


def test_the_shape_of_retrieve_is_exactly_this(fake: FakeTriptych, run: Any) -> None:
    made = parsed(run("retrieve", "printer", "--json")[1])
    told = ["ms", "note", "refiner_note", "stripped"]
    assert list(made) == ["query", "library", "passages", "dropped", "tokens", *told]
    placed = ["n", "id", "title", "uri", "modality", "page", "box", "start_s", "end_s", "text", "stripped"]
    assert list(made["passages"][0]) == [*placed, "pieces", "score", "tokens", "original", "cut"]
    assert list(made["passages"][0]["pieces"][0]) == ["text", "span", "why", "made_from"]
    assert list(made["tokens"]) == ["tokenizer", "budget", "used", "original", "unused", "saved"]
    assert list(made["ms"]) == ["search", "rerank", "compress", "total"]


@pytest.mark.parametrize("name", ["rerank", "compress"])
def test_texts_of_ones_own_and_a_library_that_is_not_there(bare_home: Path, capsys: Any, name: str) -> None:
    own = bare_home / "own.jsonl"
    own.write_text('{"text": "Printers jam."}\n{"text": "Trains are slow."}\n', "utf-8")
    assert cli.main([name, "printers", str(own), "--json"]) == 0, "without a library there is none to miss"
    capsys.readouterr()
    assert cli.main([name, "printers", str(own), "--library", "nowhere", "--json"]) == 2
    assert parsed(capsys.readouterr().out)["error"]["message"] == "There is no library `nowhere`."


def test_pieces_are_found_again_in_what_fetch_returns(fake: FakeTriptych, run: Any) -> None:
    for passage in parsed(run("retrieve", "printer", "--json")[1])["passages"]:
        text = parsed(run("fetch", passage["id"], "--json")[1])["text"]
        assert all(text[a:b] == piece["text"] for piece in passage["pieces"] for a, b in [piece["span"]])


@pytest.mark.parametrize("name", ["search", "retrieve"])
def test_filters_reach_the_library(fake: FakeTriptych, run: Any, name: str) -> None:
    assert run(name, "printer", "--json")[0] == 0
    assert fake.asked_where is None
    narrow = ["--where", '{"author": ["Ann", "Bob"]}', "--modality", "text", "--modality", "page"]
    assert run(name, "printer", *narrow, "--uri-prefix", "handbook/it", "--json")[0] == 0
    filter_ = filter_of({"author": ["Ann", "Bob"]})
    assert fake.asked_where == Where(modalities=("text", "page"), uri_prefix="handbook/it", filter=filter_)


def test_every_modality_can_be_asked_for() -> None:
    assert command.MODALITIES == MODALITIES


def test_systems_lists_cards_and_shows_one(run: Any) -> None:
    code, out, _ = run("systems", "--json")
    rows = parsed(out)
    assert code == 0 and rows
    wanted = {"id", "role", "family", "title", "paper", "modalities", "weights", "fidelity", "evidence"}
    assert all(wanted <= set(row) for row in rows)
    assert parsed(run("systems", "show", rows[0]["id"], "--json")[1]) == rows[0]
    assert rows[0]["title"] in run("systems", "show", rows[0]["id"])[1]
    assert rows[0]["id"] in run("systems")[1]


def test_a_misspelt_system_answers_with_the_nearest(run: Any) -> None:
    name = parsed(run("systems", "--json")[1])[0]["id"]
    code, out, _ = run("systems", "show", name + "x", "--json")
    assert code == 2
    assert name in parsed(out)["error"]["hint"]


def test_libraries_lists_rows(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    row = LibraryOut(name="a", files=1, items=2, healthy=True)
    monkeypatch.setattr(facade, "libraries", lambda settings: [row])
    assert TypeAdapter(list[LibraryOut]).validate_python(parsed(run("libraries", "--json")[1])) == [row]
    assert "healthy" in run("libraries")[1]


def test_doctor_names_what_is_missing_and_the_command(bare_home: Path, run: Any) -> None:
    code, out, _ = run("doctor", "--json")
    made = parsed(out)
    assert code == 3
    assert not made["healthy"]
    mended = [check for check in made["checks"] if check["status"] == "missing"]
    assert all(check["mend"] == "triptych pull embedded" for check in mended)
    assert mended
    assert "MISSING" in run("doctor")[1]


def test_pull_from_a_folder_without_the_files_says_so(bare_home: Path, tmp_path: Path, run: Any) -> None:
    code, out, _ = run("pull", "embedded", "--from-dir", str(tmp_path), "--json")
    assert code == 3
    assert parsed(out)["error"]["type"] == "MissingWeights"
    assert str(tmp_path) not in out


def test_pull_says_what_is_already_there(tmp_home: Path, run: Any) -> None:
    code, out, _ = run("pull", "embedded", "--json")
    assert code == 0
    assert {row["carrier"] for row in parsed(out)["pulled"]} == {"already there"}


# --- passages from files ----------------------------------------------------------------------------------------------


def test_passages_come_from_a_file_or_stdin(
    fake: FakeTriptych, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passages.jsonl"
    file.write_text(LINES, "utf-8")
    ranked = parsed(run("rerank", "printer", str(file), "--json")[1])
    assert [hit["text"] for hit in ranked["hits"]] == ["The printer jams.", "Trains."]
    with file.open(encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert parsed(run("compress", "-", "--json")[1])["query"] is None
    kept = parsed(run("compress", "printer", str(file), "--json")[1])
    assert [row["uri"] for row in kept["passages"]] == ["b.txt", "given/1"]
    assert parsed(run("compress", str(file), "--json")[1])["query"] is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a"}\nnonsense\n', "line 2 (not JSON)"),
        (b'{"text": "a"}\n["b"]\n', "line 2 (not an object)"),
        (b'\n\n{"id": "a"}\n', "line 3 (`text` is missing)"),
        (b'{"text": 7}\n', "line 1 (`text` is not text)"),
        (b'{"text": "a", "colour": 1}\n', "line 1 (unknown key `colour`)"),
        (b"x\n" * 9, "and 4 more bad lines"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "Line 2 of `passages.jsonl` is not UTF-8"),
        (b"\n  \n", "holds no passages"),
        (b"[" * 100_000, "line 1 (not JSON)"),
    ],
)
def test_bad_lines_are_named_by_number(
    fake: FakeTriptych, run: Any, tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "passages.jsonl"
    file.write_bytes(content)
    code, out, _ = run("rerank", "printer", str(file), "--json")
    assert code == 2
    assert words in parsed(out)["error"]["message"]


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b\xe2\x80\xa8c"}\r\n')
    assert [one.text for one in jsonl.read(str(file))] == ["a", "b\u2028c"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "words"),
    [
        (["retrieve", ""], 2, "BadInput", "1 to 4,096"),
        (["retrieve", "x" * 4097], 2, "BadInput", "`4097`"),
        (["retrieve", "x", "--max-tokens", "-5"], 2, "BadInput", "`-5`"),
        (["retrieve", "x", "--max-tokens", "20001"], 2, "BadInput", "20,000"),
        (["retrieve", "x", "--max-tokens", "7"], 2, "BadInput", "`7`"),
        (["retrieve", "x", "--max-tokens", "many"], 2, "BadInput", "`many`"),
        (["search", "x", "-k", "0"], 2, "BadInput", "`0`"),
        (["search", "x", "--where", "{year: 2020}"], 2, "BadInput", "`{year: 2020}` is not JSON"),
        (["search", "x", "--where", "[" * 100_000], 2, "BadInput", "is not JSON"),
        (["search", "x", "--where", "[1]"], 2, "BadInput", "`[1]`"),
        (["retrieve", "x", "--where", '{"a b": 1}'], 2, "BadInput", "`a b`"),
        (["retrieve", "x", "--where", '{"year": NaN}'], 2, "BadInput", "`year`"),
        (["retrieve", "x", "--modality", "smell"], 2, "BadInput", "`smell`"),
        (["index", "x", "--poll"], 2, "BadInput", "--watch"),
        (["index", "x", "--watch", "--rebuild"], 2, "BadInput", "--rebuild"),
        (["fetch", "nope"], 2, "NotFound", "`nope`"),
        (["fetch", "p1", "--span", "5"], 2, "BadInput", "`5` is not A:B"),
        (["fetch", "p1", "--span", "0:999"], 2, "BadInput", "0:999"),
        (["rerank", "x"], 2, "BadInput", "--ids"),
        (["rerank", "x", "missing.jsonl"], 2, "BadInput", "`missing.jsonl` cannot be read"),
        (["rerank", "x", "a.jsonl", "--ids", "p1"], 2, "BadInput", "--ids"),
        (["delete"], 2, "BadInput", "--uri-prefix"),
        (["status", "--profile", "nope"], 2, "BadInput", "`nope`"),
        (["retrieve"], 2, "BadInput", "`QUERY`"),
        (["retreive", "x"], 2, "BadInput", "`retreive`"),
        (["status", "--colour"], 2, "BadInput", "--colour"),
        (["systems", "show", "nope"], 2, "UnknownSystem", "`nope`"),
        (["mcp", "--root", "/nonexistent-folder"], 2, "BadInput", "`nonexistent-folder`"),
        (["mcp", "--transport", "http", "--host", "0.0.0.0"], 2, "BadInput", "`0.0.0.0`"),
        (["mcp", "--toolset", "minimal", "--allow-write"], 2, "BadInput", "`minimal`"),
        (["mcp", "--toolset", "chatgpt", "--llm-rerank"], 2, "BadInput", "`llm_rerank`"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_errors_are_typed(fake: FakeTriptych, run: Any, arguments: list[str], code: int, kind: str, words: str) -> None:
    got, out, _ = run(*arguments, "--json")
    error = parsed(out)["error"]
    assert (got, error["type"]) == (code, kind)
    assert words in error["message"] + error["hint"]
    assert set(error) == {"type", "message", "hint"}
    got, out, err = run(*arguments)
    assert (got, out) == (code, "")
    assert error["message"] in err


EXITS = {
    errors.BadInput: 2,
    errors.Forbidden: 2,
    errors.StaleId: 2,
    errors.MissingWeights: 3,
    errors.MissingExtra: 3,
    errors.StoreError: 4,
    errors.Unsupported: 5,
    errors.TimedOut: 6,
    errors.Cancelled: 130,
}


@pytest.mark.parametrize(("kind", "code"), EXITS.items())
def test_each_kind_of_error_has_its_exit_code(fake: FakeTriptych, run: Any, kind: type, code: int) -> None:
    fake.crash = kind("`x` is wrong.", "Do y.")
    got, out, _ = run("search", "x", "--json")
    assert got == code
    assert parsed(out) == {"error": {"type": kind.__name__, "message": "`x` is wrong.", "hint": "Do y."}}


def test_exit_codes_stand_in_the_help(run: Any) -> None:
    _, out, _ = run("--help")
    for code in {0, 1, *EXITS.values(), cli.INTERNAL, cli.READER_GONE}:
        assert re.search(rf"^ +{code} ", out, re.MULTILINE)


def test_a_fault_of_ours_is_typed_and_its_place_is_on_stderr(fake: FakeTriptych, run: Any) -> None:
    fake.crash = RuntimeError("in /etc/passwd")
    code, out, err = run("search", "x", "--json")
    assert code == cli.INTERNAL
    assert parsed(out)["error"]["type"] == "TriptychError"
    assert "passwd" not in out
    assert "Traceback" in err


def test_version_and_help_of_every_command(run: Any) -> None:
    assert run("--version")[1].startswith("triptych ")
    parts = {name: getattr(command, "commands", {}) for name, command in cli.cli.commands.items()}
    parts["systems"] = {}  # lists by itself
    for words in [[name, *part] for name, inside in parts.items() for part in ([[one] for one in inside] or [[]])]:
        code, out, _ = run(*words, "--help")
        assert code == 0
        assert "--json" in out


def test_the_library_and_the_home_are_options(fake: FakeTriptych, run: Any, tmp_path: Path) -> None:
    assert parsed(run("status", "--library", "mine", "--home", str(tmp_path), "--json")[1])["library"] == "mine"
    assert fake.settings.home == tmp_path


# --- stdout, progress, signals ----------------------------------------------------------------------------------------


def test_what_libraries_print_goes_to_stderr(fake: FakeTriptych, run: Any) -> None:
    fake.print_this = "noise"
    code, out, err = run("retrieve", "printer", "--json")
    assert code == 0
    assert "noise" in err
    parsed(out)


def test_progress_is_plain_lines_on_stderr_after_a_while(
    fake: FakeTriptych, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.steps = 3
    assert run("index", "x", "--json")[2] == ""
    monkeypatch.setattr(output, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(output, "LINE_EVERY_S", 0.0)
    _, out, err = run("index", "x", "--json")
    assert err.splitlines() == ["files: 0 of 3", "files: 1 of 3", "files: 2 of 3"]
    parsed(out)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.Meter() as meter:
        meter.on_step(1, 4, "files")
        meter.on_step(2, 4, "files")
    said = capsys.readouterr()
    assert said.out == ""


SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
from fake_library import FakeTriptych
from triptych.server import cli, sessions
class Noisy(FakeTriptych):
    def _work(self, what, unit):
        print("printed")
        os.write(1, b"written from C\\n")
        super()._work(what, unit)
    def close(self):
        import atexit
        atexit.register(print, "printed at exit")
fake = Noisy(steps={steps}, delay_s=0.02)
sessions.open_library = lambda name, settings, stages=None: fake
sys.exit(cli.main())
"""


def spawned(*arguments: str, steps: int = 0) -> subprocess.Popen[bytes]:
    script = SCRIPT.format(tests=str(Path(__file__).parent), steps=steps)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    )


@pytest.mark.parametrize(
    "arguments", [["retrieve", "printer", "--json"], ["search", "printer"], ["fetch", "x", "--json"]]
)
def test_every_byte_on_stdout_is_the_answer(bare_home: Path, arguments: list[str]) -> None:
    out, err = spawned(*arguments).communicate(timeout=30)
    if "--json" in arguments:
        parsed(out.decode())
    assert b"printed" not in out and b"written" not in out
    if arguments[0] != "fetch":
        assert b"printed\n" in err and b"written from C" in err and b"at exit" in err


def test_ctrl_c_stops_at_the_next_step_with_a_typed_error(bare_home: Path) -> None:
    process = spawned("index", "x", "--json", steps=100_000)
    assert process.stderr
    assert process.stderr.readline() == b"printed\n" or process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert parsed(out.decode())["error"]["type"] == "Cancelled"
    assert b"Traceback" not in err


def test_a_reader_that_goes_away_is_no_crash(bare_home: Path) -> None:
    process = spawned("retrieve", "printer", "--json", steps=20)
    assert process.stdout and process.stderr
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == cli.READER_GONE
    assert b"Traceback" not in err


def test_listing_commands_imports_nothing_heavy() -> None:
    script = "import sys; from triptych.server import cli; cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"torch", "pymilvus", "mcp", "rich", "pydantic", "langchain_core", "transformers", "numpy"}
    assert "retrieve" in done.stdout


def test_texts_of_the_fake_are_what_the_tests_think() -> None:
    assert TEXTS["p1"][2][19:25] == "Berlin"


# --- with a real library ----------------------------------------------------------------------------------------------


def test_a_folder_goes_in_and_cited_evidence_comes_out(bare_home: Path, tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "handbook"
    folder.mkdir()
    (folder / "travel.md").write_text("# Travel\n\nThe daily allowance in Berlin is 120 euro.\n", "utf-8")
    (folder / "printers.txt").write_text("The printer on floor 3 is called Gutenberg.\n", "utf-8")
    (folder / "empty.pdf").write_bytes(b"")

    assert parsed(run("libraries", "--json")[1]) == []
    code, out, _ = run("retrieve", "allowance", "--json")
    assert (code, parsed(out)["error"]["type"]) == (2, "NotFound")

    code, out, _ = run("index", str(folder), "--json")
    made = parsed(out)
    assert code == 0
    assert (made["files"], made["indexed"]) == (3, 2)
    assert [problem["uri"] for problem in made["problems"]] == ["handbook/empty.pdf"]
    assert parsed(run("index", str(folder), "--json")[1])["unchanged"] >= 2

    found = Evidence.model_validate(parsed(run("retrieve", "daily allowance", "--max-tokens", "400", "--json")[1]))
    assert found.passages[0].uri == "handbook/travel.md"
    assert found.tokens.used <= 400
    assert found.note and "triptych pull embedded" in found.note
    fetched = FetchOut.model_validate(parsed(run("fetch", found.passages[0].id, "--json")[1]))
    for piece in found.passages[0].pieces:
        assert piece.span is None or fetched.text[slice(*piece.span)] == piece.text

    for narrow in (["--where", '{"uri": {"prefix": "handbook/pr"}}'], ["--uri-prefix", "handbook/pr"]):
        hits = SearchOut.model_validate(parsed(run("search", "printer allowance", *narrow, "--json")[1])).hits
        assert [hit.uri for hit in hits] == ["handbook/printers.txt"]
    assert parsed(run("search", "printer", "--modality", "image", "--json")[1])["hits"] == []
    assert [row["name"] for row in parsed(run("libraries", "--json")[1])] == ["default"]
    assert parsed(run("status", "--json")[1])["files"] == 2
    assert parsed(run("delete", "--uri-prefix", "handbook/printers", "--json")[1])["deleted"] == 1
    hits = SearchOut.model_validate(parsed(run("search", "printer Gutenberg", "--json")[1])).hits
    assert all(hit.uri != "handbook/printers.txt" for hit in hits)
    assert run("fetch", "nope", "--json")[0] == 2
    assert run("index", str(tmp_path / "missing"), "--json")[0] == 2


# --- the demo ---------------------------------------------------------------------------------------------------------


def asked(**changes: Any) -> demo.Asked:
    tokens = {"tokenizer": "o200k_base", "budget": 100, "original": 900, "used": changes.pop("used", 90)}
    ms = dict.fromkeys(demo.STAGES, 1.0)
    passages = [{"n": 1, "id": "p", "title": "t", "where": "a/b.pdf p.2", "text": "It is 84."}]
    passages = [{**passages[0], "box": [0.1, 0.2, 0.9, 0.25]}, {**passages[0], "n": 2, "where": "a/c.md", "box": None}]
    return demo.Asked("How tight?", passages, tokens, ms, **{"cited": True, "answered": True, **changes})


def test_the_demos_questions_stand_in_its_sample() -> None:
    folder, budget, questions = demo.sample()
    assert len(questions) == 7
    assert budget > 0
    for question in questions:
        assert question.ask and question.answers
        assert all((folder / source["uri"]).is_file() for source in question.sources)


@pytest.mark.parametrize(
    ("where", "source", "right"),
    [
        ("a/b.pdf p.2", {"uri": "b.pdf", "page": 2}, True),
        ("a/b.pdf p.12", {"uri": "b.pdf", "page": 2}, False),
        ("a/b.pdf p.2", {"uri": "b.pdf"}, False),
        ("a/b.md", {"uri": "a/b.md"}, True),
        ("a/b.ogg 0.1-21.3s", {"uri": "b.ogg"}, True),
        ("a/b.xlsx p.1 2.0-3.0s", {"uri": "b.xlsx", "page": 1}, True),
        ("a/b.ogg 0.1-21.3s", {"uri": "c.ogg"}, False),
        ("a/c.md", {"uri": "b.md"}, False),
    ],
)
def test_a_citation_names_its_source_or_not(where: str, source: dict[str, Any], right: bool) -> None:
    assert demo._stands_in(source, where) is right


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, 0, "source cited"),
        ({"cited": False, "answered": False}, 1, "the expected source is not cited"),
        ({"answered": False}, 1, "the answer was lost"),
        ({"used": 101}, 1, "the budget was exceeded"),
    ],
)
def test_the_demo_fails_when_an_answer_does(
    monkeypatch: pytest.MonkeyPatch, bare_home: Path, run: Any, changes: dict[str, Any], code: int, words: str
) -> None:
    monkeypatch.setattr(demo, "run", lambda settings: demo.Demo((asked(**changes),)))
    got, out, _ = run("demo")
    assert got == code
    assert words in out and "[1] a/b.pdf p.2 box 0.10 0.20 0.90 0.25\n" in out and "[2] a/c.md\n" in out
    got, out, _ = run("demo", "--json")
    assert got == code
    (question,) = parsed(out)["questions"]
    assert {"question", "cited", "passages", "tokens", "ms"} <= set(question)


def test_the_demo_leaves_out_what_this_installation_cannot_read(
    monkeypatch: pytest.MonkeyPatch, bare_home: Path, run: Any
) -> None:
    questions = demo.sample()[2]
    assert {one.needs for one in questions} == {"", "office", "audio"} <= {"", *demo._MODULES}
    assert demo._readable(questions) == (questions, ())
    there = {"openpyxl": True, "av": None, "scenedetect": None}
    monkeypatch.setattr(demo, "find_spec", there.get)
    readable, left_out = demo._readable(questions)
    assert [one.needs for one in left_out] == ["audio"] and len(readable) == 6
    monkeypatch.setattr(demo, "run", lambda settings: demo.Demo((asked(),), left_out))
    got, out, _ = run("demo")
    assert got == 0
    assert f"Left out: {left_out[0].ask} Run `pip install 'triptych[audio]'`" in out and "1 of 1 answers" in out
    got, out, _ = run("demo", "--json")
    assert got == 0 and parsed(out)["left_out"] == [{"question": left_out[0].ask, "needs": "audio"}]


def test_the_sample_keeps_its_place_in_the_home(tmp_path: Path) -> None:
    folder, _, _ = demo.sample()
    (tmp_path / "sample" / folder.name).mkdir(parents=True)
    (tmp_path / "sample" / folder.name / "stale.txt").write_text("x", "utf-8")
    copied = demo._copied(folder, tmp_path)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert {path.relative_to(copied) for path in copied.rglob("*")} == names
