"""What the documents say is true: snippets parse, Python runs, shapes validate, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from triptych import Settings, errors
from triptych.manifests import doctor, registry, weights
from triptych.server import cli, demo
from triptych.server.evaluate import evaluation
from triptych.tools import schemas
from triptych.tools.evaluation import datasets

if TYPE_CHECKING:
    from collections.abc import Iterable

CHECKOUT = Path(__file__).resolve().parent.parent
DOCS = CHECKOUT / "docs"
CLIENTS = CHECKOUT / "manifests" / "clients"
README = (CHECKOUT / "README.md").read_text("utf-8")
OUTPUT = (DOCS / "output.md").read_text("utf-8")
EVALUATION = (DOCS / "evaluation.md").read_text("utf-8")
PAGES = [CHECKOUT / "README.md", *sorted(DOCS.glob("*.md"))]

BLOCK = re.compile(r"(?:<!-- (?P<mark>[a-z]+): (?P<name>\S+) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)```\n", re.S)
COMMANDS = {"make", "pip", "triptych", "claude", "codex"}
KEYS = {"claude_desktop.json": "mcpServers", "claude_code.mcp.json": "mcpServers", "codex.toml": "mcp_servers"}
KEYS |= {"gemini_settings.json": "mcpServers", "vscode_mcp.json": "servers", "cursor_mcp.json": "mcpServers"}
LISTS = {"LibraryOut", "Card"}


def blocks(text: str, language: str) -> list[re.Match[str]]:
    return [match for match in BLOCK.finditer(text) if match["language"] == language]


def marked(text: str, mark: str) -> dict[str, str]:
    """Code by the name in the comment above it."""
    return {match["name"]: match["body"] for match in BLOCK.finditer(text) if match["mark"] == mark}


def shapes() -> dict[str, Any]:
    return {name: json.loads(body) for name, body in marked(OUTPUT, "shape").items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.count("```") == 2 * len(list(BLOCK.finditer(text)))
    for match in BLOCK.finditer(text):
        kind = match["language"]
        assert kind in {"bash", "python"} or match["mark"] or (kind == "" and page.name == "design.md"), match[0]


def test_client_snippets_are_the_files() -> None:
    shown = marked(README, "client")
    assert {"claude_desktop.json"} <= set(shown) <= set(KEYS) <= {path.name for path in CLIENTS.iterdir()}
    for name, body in shown.items():
        assert body == (CLIENTS / name).read_text("utf-8"), name


@pytest.mark.parametrize("name", KEYS)
def test_client_files_start_the_server(name: str) -> None:
    text = (CLIENTS / name).read_text("utf-8")
    parsed = tomllib.loads(text) if name.endswith(".toml") else json.loads(text)
    assert list(parsed) == [KEYS[name]]
    server = parsed[KEYS[name]]["triptych"]
    assert list(parsed[KEYS[name]]) == ["triptych"]
    assert server["command"] == "triptych" and server.get("type", "stdio") == "stdio"
    assert server["args"] == ["mcp", "--root", "/path/to/folder"]
    assert parses(server["args"])


def parses(arguments: list[str]) -> bool:
    """Whether the command line understands `arguments` (nothing is run)."""
    command: click.Command = cli.cli
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.commands[name]
    with command.make_context(command.name, list(arguments), resilient_parsing=False):
        return True


def test_shell_lines_are_commands_that_exist() -> None:
    lines = [
        line
        for page in PAGES
        for match in blocks(page.read_text("utf-8"), "bash")
        for line in match["body"].splitlines()
    ]
    targets = re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text("utf-8"), re.M)
    assert {"make demo", "make test"} <= set(lines)
    for line in lines:
        words = shlex.split(line)
        assert words[0] in COMMANDS, line
        if words[0] == "make":
            assert words[1] in targets
        if words[0] in ("claude", "codex"):
            assert words[1:5] == ["mcp", "add", "triptych", "--"] and words[5] == "triptych" and parses(words[6:])
        if words[0] == "triptych":
            assert parses(words[1:])


def test_every_command_is_in_the_table() -> None:
    rows = re.findall(r"^\| `triptych (\w+)[^`]*` \|", README, re.M)
    assert sorted(rows) == sorted(cli.cli.commands)
    for command, row in re.findall(r"^\| `triptych (\w+)[^`]*` \| (.*) \|$", README, re.M):
        known = {option for parameter in cli.cli.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"`(--?[a-z-]+)", row)) <= known, command


def test_the_data_that_is_shown_can_be_read(tmp_path: Path) -> None:
    shown = marked(EVALUATION, "data")
    for name, body in shown.items():
        (tmp_path / name).write_text(body, "utf-8")
    data = datasets.collection(tmp_path)
    assert datasets.run_file(tmp_path / "first.trec", data) == {"wind": [("boats-01", 1.5), ("power-03", 1.2)]}
    [question] = datasets.questions(tmp_path / "questions.jsonl").rows
    [(start, end)] = question.contexts[0].evidence
    assert question.contexts[0].text[start:end] == "The turbine starts at 2.8 m/s."
    assert set(shown) == {"corpus.jsonl", "queries.jsonl", "qrels.tsv", "questions.jsonl", "first.trec"}


def test_every_option_of_the_evaluations_is_told() -> None:
    told = set(re.findall(r"--[a-z][a-z-]*", EVALUATION))
    known = {
        option for command in evaluation.commands.values() for parameter in command.params for option in parameter.opts
    }
    assert told == {option for option in known if option.startswith("--")} - {"--home"}


def test_every_metric_of_the_evaluations_is_told() -> None:
    from triptych.tools.evaluation import compress, pipeline, ranking

    told = set(re.findall(r"`([\w@]+)`", EVALUATION))
    assert {*compress.KEPT, *pipeline.FATES} <= told
    assert {re.sub(r"^(recall@).*", r"\1k", name) for name in ranking.METRICS} <= told


def test_exit_codes_are_those_of_the_errors() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = {kind.__name__: kind.exit_code for kind in classes if issubclass(kind, errors.TriptychError)}
    assert {name: int(code) for name, code in re.findall(r"^\| `(\w+)` \| (\d+) \|", OUTPUT, re.M)} == kinds
    told = {int(code) for code in re.findall(r"^\| (\d+) \| ", README, re.M)}
    assert told == {0, *kinds.values(), cli.INTERNAL, cli.READER_GONE}


def test_python_of_every_page_compiles() -> None:
    for page in PAGES:
        for number, match in enumerate(blocks(page.read_text("utf-8"), "python")):
            compile(match["body"], f"{page.name} block {number}", "exec")


def test_python_of_the_readme_runs(
    tmp_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DOCS / "sample" / "vessey-holm" / "incidents", tmp_path / "notes")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, match in enumerate(blocks(README, "python")):
        exec(compile(match["body"], f"README block {number}", "exec"), names)
    told = capsys.readouterr().out
    assert "61 hours" in told and "notes/2022-11-storm-agda.md" in told
    assert "The ferry leaves at 14:15" in told
    assert "61 hours" in " ".join(document.page_content for document in names["documents"])
    assert [tool.name for tool in names["tools"]][:3] == ["retrieve", "search", "fetch"]
    assert names["evidence"].tokens.used <= 800


def test_every_result_has_an_example_that_validates() -> None:
    found = {name: kind for name, kind in vars(schemas).items() if isinstance(kind, type) and name.endswith("Out")}
    parts = {"PieceOut", "CutOut", "PassageOut", "DroppedOut", "TokensOut", "HitOut", "ViewOut", "ExplainOut"}
    models: dict[str, Any] = {name: kind for name, kind in found.items() if name not in parts}
    models |= {"Evidence": schemas.Evidence, "Given": schemas.Given}
    shown = shapes()
    assert set(models) | {"Card", "pull", "doctor", "demo", "error"} == set(shown)
    for name, model in models.items():
        for example in shown[name] if name in LISTS else [shown[name]]:
            full = model.model_validate(example).model_dump(mode="json")
            assert set(example) == set(full), name


def test_examples_of_plain_commands_have_the_fields_of_the_code() -> None:
    shown = shapes()
    card = registry.card("maxsim").as_dict()
    assert set(shown["Card"][0]) == set(card) and shown["Card"][0]["id"] == "maxsim"
    check = asdict(doctor.Check("", "ok", ""))
    assert set(shown["doctor"]) == {"healthy", "checks"}
    assert all(set(row) == set(check) for row in shown["doctor"]["checks"])
    asked = demo.Asked("", (), {"used": 0, "budget": 0}, {}, True, True).as_dict()
    assert set(shown["demo"]["questions"][0]) == set(asked)
    left_out = demo.Question("", (), (), "office")
    assert shown["demo"].keys() == demo.Demo((), (left_out,)).as_dict().keys()
    assert set(shown["demo"]["left_out"][0]) == set(demo.Demo((), (left_out,)).as_dict()["left_out"][0])
    assert shown["error"] == errors.NotFound(**{k: shown["error"]["error"][k] for k in ("message", "hint")}).as_dict()
    assert set(shown["pull"]["pulled"][0]) <= {field.name for field in fields(weights.Pulled)}


def test_spans_of_the_examples_lead_to_the_text() -> None:
    shown = shapes()
    whole = shown["FetchOut"]["text"]
    for passage in (*shown["Evidence"]["passages"], *shown["CompressOut"]["passages"]):
        assert passage["text"] == "".join(piece["text"] for piece in passage["pieces"])
        for piece in passage["pieces"]:
            assert piece["span"] is None or whole[slice(*piece["span"])] == piece["text"]


def test_shapes_in_the_readme_are_those_of_the_models() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| `\{(.*)\}` \|$", README, re.M))
    for command, model in (
        ("retrieve", schemas.Evidence),
        ("search", schemas.SearchOut),
        ("rerank", schemas.RerankOut),
        ("compress", schemas.CompressOut),
        ("fetch", schemas.FetchOut),
    ):
        outer = re.sub(r"\{[^{}]*\}", "", re.sub(r"\{[^{}]*\}", "", told[command]))
        assert re.findall(r"\w+", outer) == list(model.model_fields), command
    inner = re.search(r"passages: \[\{(.*?), pieces: \[\{(.*?)\}\], (.*?), cut: \[\{(.*?)\}\]\}\]", told["retrieve"])
    assert inner is not None
    fields = [*inner[1].split(", "), "pieces", *inner[3].split(", "), "cut"]
    assert fields == list(schemas.PassageOut.model_fields)
    assert inner[2].split(", ") == list(schemas.PieceOut.model_fields)
    assert inner[4].split(", ") == list(schemas.CutOut.model_fields)


def test_the_download_is_as_large_as_it_says() -> None:
    known, wanted = weights.models(), weights.wanted_by(Settings.load())

    def megabytes(names: Iterable[str]) -> str:
        wheels = [part for name in names for one in known[name].carriers if one.kind == "wheel" for part in one.wheels]
        return f"{sum(part.bytes for part in wheels) / 1e6:.0f} MB"

    silent = [name for name in wanted if name not in (weights.VOICE, Settings.load().speech)]
    assert f"downloads {megabytes(wanted)} ({megabytes(silent)} without the extra `audio`)" in README


def test_the_sample_is_as_large_as_it_says() -> None:
    files = sum(path.is_file() for path in (DOCS / "sample" / "vessey-holm").rglob("*"))
    assert f"sample library of {files} files" in README
    assert f"{files} files" in (DOCS / "design.md").read_text("utf-8")


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_results_have_a_place() -> None:
    assert README.count("<!-- results:start -->") == README.count("<!-- results:end -->") == 1
    assert README.index("<!-- results:start -->") < README.index("<!-- results:end -->")


def test_pages_name_nothing_of_this_machine() -> None:
    for page in PAGES:
        assert not re.search(r"/(work|home|Users|tmp|opt)/", page.read_text("utf-8")), page.name
