"""Manifests of assistants agree with the package and their schemas; `connect` changes only what it was asked to."""

from __future__ import annotations

import asyncio
import base64
import importlib
import importlib.util
import io
import json
import os
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import click
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client as McpClient
from mcp import StdioServerParameters
from PIL import Image
from ruamel.yaml import YAML

from triptych import __version__
from triptych.errors import BadInput, Cancelled, NotFound, Unsupported
from triptych.manifests import bundles, clients, merge
from triptych.server import cli, connect
from triptych.server.doors import doors
from triptych.settings import Settings

CHECKOUT = Path(__file__).resolve().parent.parent
CLIENTS = CHECKOUT / "manifests" / "clients"
SCHEMAS = CHECKOUT / "tests" / "schemas"
LAUNCH = clients.Launch("/opt/triptych", ("mcp", "--root", '/data/näyttö "x"\'s'))
SCHEMA = {
    "claude_code.mcp.json": "mcp_servers_typed",
    "claude_desktop.json": "mcp_servers",
    "codex.toml": "codex",
    "copilot_cli.json": "copilot_cli",
    "cursor_mcp.json": "mcp_servers",
    "docker/server.yaml": "docker_server",
    "docker/tools.json": "docker_tools",
    "gemini_settings.json": "mcp_servers",
    "goose.yaml": "goose",
    "librechat.yaml": "librechat",
    "mcpo.json": "mcp_servers",
    "open_webui.json": "open_webui",
    "server.json": "vendor/server.schema",
    "smithery/smithery.yaml": "smithery",
    "vscode_mcp.json": "vscode",
}
FILED = [one.id for one in clients.clients().values() if one.path]


def script() -> Any:
    """`.ci/manifests.py`, which `make manifests` and `make mcpb` run."""
    spec = importlib.util.spec_from_file_location("ci_manifests", CHECKOUT / ".ci" / "manifests.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(text: str, kind: str) -> Any:
    if kind == "toml":
        return tomllib.loads(text)
    return json.loads(text) if kind == "json" else YAML(typ="safe", pure=True).load(text)


def parses(words: list[str]) -> None:
    """Check that the command line understands `words` (nothing is run)."""
    command: click.Command = cli.cli
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    with command.make_context(command.name, list(words), resilient_parsing=False):
        pass


# --- what is committed ------------------------------------------------------------------------------------------------


def test_committed_manifests_are_what_the_source_makes(tmp_path: Path) -> None:
    writer = script()
    writer.write(tmp_path)
    fresh = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(fresh) == {path.relative_to(CLIENTS).as_posix() for path in CLIENTS.rglob("*") if path.is_file()}
    for name, path in fresh.items():
        if path.suffix == ".png":
            with Image.open(path) as drawn, Image.open(CLIENTS / name) as committed:
                assert drawn.tobytes() == committed.tobytes()
        else:
            assert path.read_bytes() == (CLIENTS / name).read_bytes(), f"{name}: run `make manifests`"


def test_the_readme_says_whose_package_it_is() -> None:
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    assert readme.count("mcp-name:") == 1
    assert script().made().ownership in readme


@pytest.mark.parametrize("name", SCHEMA)
def test_a_manifest_is_of_the_shape_that_its_reader_documents(name: str) -> None:
    manifest = read((CLIENTS / name).read_text("utf-8"), name.rpartition(".")[2].replace("yml", "yaml"))
    schema, draft = schema_of(name)
    draft.check_schema(schema)
    jsonschema.validate(manifest, schema, draft)


def schema_of(name: str) -> tuple[dict[str, Any], type[jsonschema.protocols.Validator]]:
    """The schema that a manifest is checked against, and the draft it is written in."""
    schema = json.loads((SCHEMAS / f"{SCHEMA[name]}.json").read_text("utf-8"))
    return schema, jsonschema.validators.validator_for(schema)


def test_every_schema_is_used_and_says_whose_it_is() -> None:
    found = {path.relative_to(SCHEMAS).with_suffix("").as_posix(): path for path in SCHEMAS.rglob("*.json")}
    assert set(found) == set(SCHEMA.values())
    for name, path in found.items():
        comment = json.loads(path.read_text("utf-8"))["$comment"]
        assert ("not the vendor's own" in comment) is not name.startswith("vendor/")
    assert "Model Context Protocol" in (SCHEMAS / "vendor" / "LICENSE").read_text("utf-8")


def test_the_registrys_schema_is_the_one_that_the_manifest_names() -> None:
    manifest = json.loads((CLIENTS / "server.json").read_text("utf-8"))
    assert schema_of("server.json")[0]["$id"] == manifest["$schema"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("server.json", {"description": "x" * 101}),
        ("server.json", {"name": "triptych"}),
        ("server.json", {"packages": [{"registryType": "pypi", "identifier": "triptych"}]}),
        ("server.json", {"repository": {"url": "https://example.org/triptych"}}),
        ("vscode_mcp.json", {"mcpServers": {}}),
        ("codex.toml", {"mcp_servers": {"triptych": {"args": []}}}),
    ],
)
def test_the_schemas_refuse_what_their_readers_refuse(name: str, change: dict[str, Any]) -> None:
    manifest = read((CLIENTS / name).read_text("utf-8"), name.rpartition(".")[2])
    schema, draft = schema_of(name)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest, **change}, schema, draft)


def test_version_name_and_tools_are_the_packages() -> None:
    made = script().made()
    texts = bundles.files(made)
    versioned = [json.loads(texts[name]) for name in texts if name.endswith((".json",)) and '"version"' in texts[name]]
    assert len(versioned) == 5
    for manifest in versioned:
        rows = [manifest] if "version" in manifest else manifest["plugins"]
        assert [row["version"] for row in rows] == [__version__]
        assert manifest["name"] in ("triptych", made.registry_name)
    shown = [door.name for door in doors()]
    assert [tool["name"] for tool in json.loads(texts["mcpb/manifest.json"])["tools"]] == shown
    assert [tool["name"] for tool in json.loads(texts["docker/tools.json"])] == shown
    for text in (texts[f"{bundles.PLUGIN}/README.md"], texts["docker/readme.md"]):
        assert all(f"| `{name}` | " in text for name in shown)


def test_every_command_in_the_manifests_is_one_that_exists() -> None:
    made = script().made()
    texts = bundles.files(made)
    plugin = json.loads(texts[f"{bundles.PLUGIN}/.mcp.json"])["mcpServers"]["triptych"]
    gemini = json.loads(texts["gemini/gemini-extension.json"])["mcpServers"]["triptych"]
    for launch in (plugin, gemini):
        assert launch["command"] == "uvx" and launch["args"][0] == "--from"
        assert launch["args"][1].endswith(f"]=={__version__}") and launch["args"][2] == "triptych"
        parses(launch["args"][3:])
    package = json.loads(texts["server.json"])["packages"][0]
    words = [part.get("value") or part["name"] for part in package["packageArguments"]]
    parses([*words, "/folder"])
    [entry] = [line for line in texts["docker/Dockerfile"].splitlines() if line.startswith("ENTRYPOINT")]
    parses(json.loads(entry.removeprefix("ENTRYPOINT "))[1:])
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(made.product["extras"]) <= set(extras)


# --- links ------------------------------------------------------------------------------------------------------------


def decoded(name: str, address: str) -> tuple[str, list[str]]:
    """The command and arguments in an install link, read the way its program reads it."""
    base, _, rest = address.partition("?")
    if name == "vscode":
        assert base == "vscode:mcp/install"
        config = json.loads(unquote(rest))
        assert config["name"] == "triptych" and config["type"] == "stdio"
        return config["command"], config["args"]
    if name == "cursor":
        assert base == "cursor://anysphere.cursor-deeplink/mcp/install"
        values = dict(parse_qsl(rest, strict_parsing=True))
        assert values["name"] == "triptych"
        config = json.loads(base64.b64decode(values["config"], validate=True))
        return config["command"], config["args"]
    assert base == "goose://extension"
    pairs = parse_qsl(rest, strict_parsing=True, keep_blank_values=True)
    assert {"id", "name", "description", "cmd"} <= {key for key, _ in pairs}
    return dict(pairs)["cmd"], [value for key, value in pairs if key == "arg"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_links_say_the_command_again_when_read(words: list[str]) -> None:
    launch = clients.Launch("uvx", tuple(words))
    for name in bundles.LINKED:
        assert decoded(name, clients.link(name, launch)) == ("uvx", words)


def test_committed_links_install_the_published_package() -> None:
    links = json.loads((CLIENTS / "links.json").read_text("utf-8"))
    assert set(links) == set(bundles.LINKED)
    launch = clients.published(__version__)
    for name, address in links.items():
        assert decoded(name, address) == (launch.command, [*launch.args])


def test_a_link_that_its_program_would_refuse_is_not_made() -> None:
    with pytest.raises(Unsupported, match="goose"):
        clients.link("goose", LAUNCH)
    with pytest.raises(Unsupported, match="codex"):
        clients.link("codex", LAUNCH)


# --- snippets and places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", clients.clients())
def test_a_snippet_reads_back_as_the_entry(name: str) -> None:
    client = clients.client(name)
    settings = read(client.snippet(LAUNCH), client.format)
    entry = settings[client.table]["triptych"] if client.table else settings[0]
    assert entry == client.filled(LAUNCH)
    if "{command}" in client.entry.values():
        assert LAUNCH.command in entry.values() and [*LAUNCH.args] in entry.values()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3))
def test_any_argument_survives_every_format(words: list[str]) -> None:
    launch = clients.Launch("c", tuple(words))
    for name in ("cursor", "codex", "goose"):
        client = clients.client(name)
        assert read(client.snippet(launch), client.format)[client.table]["triptych"]["args"] == words


PLACES = {
    ("claude_desktop", "linux"): "/h/.config/Claude/claude_desktop_config.json",
    ("claude_desktop", "macos"): "/h/Library/Application Support/Claude/claude_desktop_config.json",
    ("claude_desktop", "windows"): r"C:\R\Claude\claude_desktop_config.json",
    ("claude_code", "linux"): "/p/.mcp.json",
    ("codex", "windows"): r"\h\.codex\config.toml",
    ("codex", "macos"): "/h/.codex/config.toml",
    ("copilot_cli", "linux"): "/h/.copilot/mcp-config.json",
    ("cursor", "macos"): "/h/.cursor/mcp.json",
    ("gemini", "linux"): "/h/.gemini/settings.json",
    ("goose", "linux"): "/h/.config/goose/config.yaml",
    ("goose", "windows"): r"C:\R\Block\goose\config\config.yaml",
    ("librechat", "linux"): "/p/librechat.yaml",
    ("vscode", "linux"): "/p/.vscode/mcp.json",
    ("mcpo", "linux"): None,
    ("open_webui", "linux"): None,
}


@pytest.mark.parametrize(("key", "place"), PLACES.items())
def test_settings_are_where_each_system_keeps_them(key: tuple[str, Any], place: str | None) -> None:
    name, system = key
    environ = {"APPDATA": r"C:\R"} if system == "windows" else {}
    assert clients.client(name).place(system, "/h", "/p", environ) == place


def test_every_client_has_a_place_on_every_system_or_on_none() -> None:
    for client in clients.clients().values():
        places = [client.place(system, "/h", "/p", {}) for system in ("linux", "macos", "windows")]
        assert all(places) or not any(places)
    assert clients.client("goose").place("linux", "/h", "/p", {"XDG_CONFIG_HOME": "/x"}) == "/x/goose/config.yaml"


def test_a_misspelt_client_answers_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"`cursr`.*`cursor`"):
        clients.client("cursr")
    assert clients.client("Claude-Desktop").id == "claude_desktop"


# --- merging into settings --------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), values, max_size=4),
    st.dictionaries(st.text(), values, max_size=3),
    st.sampled_from([None, 2, 4, "\t"]),
)
def test_json_settings_keep_everything_else(rest: dict[str, Any], servers: dict[str, Any], indent: Any) -> None:
    client = clients.client("cursor")
    settings = {**rest, "mcpServers": servers}
    text = json.dumps(settings, indent=indent, ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()
    before = json.loads(text)
    after = json.loads(merge.merged(client, text, client.filled(LAUNCH), "mcp.json"))
    assert after == {**before, "mcpServers": {**before["mcpServers"], "triptych": client.filled(LAUNCH)}}
    assert [*after] == [*before]


TOML = """\
# mine
model = "o5"  # the good one

[mcp_servers.other]
command = 'x'
args = [
  "a", # first
]

[tui]
theme = "dark"
"""
YAML_TEXT = """\
# mine
provider: 'anthropic'   # quoted
extensions:
  # the builtin one
  developer:
    enabled: true
    args: [a, "b"]
flags: {on: yes}
"""


def test_toml_settings_keep_comments_and_order() -> None:
    client = clients.client("codex")
    after = merge.merged(client, TOML, client.filled(LAUNCH), "config.toml")
    assert tomllib.loads(after)["mcp_servers"]["triptych"] == client.filled(LAUNCH)
    kept = iter(after.splitlines())
    assert all(line in kept for line in TOML.splitlines() if line)  # in this order


def test_yaml_settings_keep_comments_quotes_and_order() -> None:
    client = clients.client("goose")
    after = merge.merged(client, YAML_TEXT, client.filled(LAUNCH), "config.yaml")
    assert read(after, "yaml")["extensions"]["triptych"] == client.filled(LAUNCH)
    kept = iter(after.splitlines())
    assert all(line in kept for line in YAML_TEXT.splitlines())


@pytest.mark.parametrize("name", ["cursor", "codex", "goose", "librechat", "vscode"])
@pytest.mark.parametrize("text", ["", "\n", "\ufeff"])
def test_empty_settings_become_the_entry_alone(name: str, text: str) -> None:
    client = clients.client(name)
    after = merge.merged(client, text, client.filled(LAUNCH), "x").removeprefix("\ufeff")
    assert read(after, client.format) == {client.table: {"triptych": client.filled(LAUNCH)}}


@pytest.mark.parametrize("name", ["cursor", "codex", "goose"])
def test_an_earlier_entry_is_replaced_and_only_that(name: str) -> None:
    client = clients.client(name)
    text = {"cursor": '{"a": 1}', "codex": TOML, "goose": YAML_TEXT}[name]
    other = clients.Launch("old", ("mcp",))
    once = merge.merged(client, text, client.filled(other), "x")
    assert merge.existing(client, once, "x") == client.filled(other)
    twice = merge.merged(client, once, client.filled(LAUNCH), "x")
    assert merge.existing(client, twice, "x") == client.filled(LAUNCH)
    assert twice == merge.merged(client, text, client.filled(LAUNCH), "x")


@pytest.mark.parametrize("name", ["cursor", "codex", "goose"])
def test_windows_line_ends_and_a_byte_order_mark_stay(name: str) -> None:
    client = clients.client(name)
    text = {"cursor": '{\n    "a": 1\n}\n', "codex": TOML, "goose": YAML_TEXT}[name]
    after = merge.merged(client, "\ufeff" + text.replace("\n", "\r\n"), client.filled(LAUNCH), "x")
    assert after.startswith("\ufeff")
    assert "\n" not in after.replace("\r\n", "")
    assert after.removeprefix("\ufeff").replace("\r\n", "\n") == merge.merged(client, text, client.filled(LAUNCH), "x")


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("vscode", '{\n  // mine\n  "servers": {}\n}', Unsupported, "comments"),
        ("vscode", '{"servers": {} /* mine */}', Unsupported, "comments"),
        ("vscode", '{"a": "http://x", }', BadInput, "not valid JSON"),
        ("cursor", '{"a": 1, "a": 2}', BadInput, "twice"),
        ("cursor", '{"a": NaN}', BadInput, "NaN"),
        ("cursor", '{"a": 1e999}', Unsupported, "too large"),
        ("cursor", "[]", BadInput, "no table"),
        ("cursor", '{"mcpServers": []}', BadInput, "no table of servers"),
        ("cursor", "[" * 100_000, BadInput, "too deep|not valid"),
        ("codex", "a = = 1", BadInput, "not valid TOML"),
        ("goose", "a: [1", BadInput, "not valid YAML"),
        ("goose", "- a\n- b\n", BadInput, "no table"),
        ("goose", "a: &x [1]\nextensions: !!python/object:os.system {}\n", BadInput, "not valid YAML"),
    ],
)
def test_settings_that_cannot_be_merged_are_refused(name: str, text: str, kind: type[Exception], said: str) -> None:
    client = clients.client(name)
    with pytest.raises(kind, match=said):
        merge.merged(client, text, client.filled(LAUNCH), "settings")


# --- the file ---------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_old_file_is_kept_with_its_mode(tmp_path: Path) -> None:
    client, path = clients.client("cursor"), tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"other": {"command": "x"}}}')
    path.chmod(0o640)
    done = connect.put(client, LAUNCH, path, replace=False)
    assert done.backup == tmp_path / "mcp.json.triptych-1.bak"
    assert done.backup.read_text() == '{"mcpServers": {"other": {"command": "x"}}}'
    assert json.loads(path.read_text())["mcpServers"]["other"] == {"command": "x"}
    assert {stat.S_IMODE(one.stat().st_mode) for one in (path, done.backup)} == {0o640}
    assert connect.put(client, LAUNCH, path, replace=False) == connect.Done(written=False)
    again = connect.put(client, clients.Launch("new", ()), path, replace=True)
    assert again.backup == tmp_path / "mcp.json.triptych-2.bak"
    assert len(files_of(tmp_path)) == 3


def test_a_new_file_is_private_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "mcp.json"
    assert connect.put(clients.client("cursor"), LAUNCH, path, replace=False) == connect.Done(written=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    real, linked = tmp_path / "dotfiles" / "mcp.json", tmp_path / "mcp.json"
    real.write_text("{}")
    linked.symlink_to(real)
    connect.put(clients.client("cursor"), LAUNCH, linked, replace=False)
    assert linked.is_symlink()
    assert "triptych" in real.read_text()


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe{}", b'{"mcpServers": {"triptych": {"command": "mine"}}}'])
def test_a_file_that_is_refused_stays_as_it_was(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mcp.json").write_bytes(content)
    with pytest.raises(BadInput):
        connect.put(clients.client("cursor"), LAUNCH, tmp_path / "mcp.json", replace=False)
    assert files_of(tmp_path) == {"mcp.json": content}


def test_a_change_by_somebody_else_meanwhile_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mcp.json"
    path.write_text("{}")
    backed_up = connect._backed_up

    def meanwhile(*arguments: Any) -> Path:
        path.write_text('{"theirs": 1}')
        return backed_up(*arguments)

    monkeypatch.setattr(connect, "_backed_up", meanwhile)
    with pytest.raises(BadInput, match="somebody else"):
        connect.put(clients.client("cursor"), LAUNCH, path, replace=False)
    assert path.read_text() == '{"theirs": 1}'
    assert not [name for name in files_of(tmp_path) if name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"mcp\.json"):
        connect.put(clients.client("cursor"), LAUNCH, tmp_path / "file" / "mcp.json", replace=False)


def test_a_person_is_asked_before_an_entry_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"triptych": {"command": "mine"}}}')
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    asked = []

    def ask(old: Any, new: Any) -> bool:
        asked.append((old, new))
        return len(asked) > 1

    with pytest.raises(Cancelled):
        connect.put(clients.client("cursor"), LAUNCH, path, replace=False, ask=ask)
    assert "mine" in path.read_text()
    assert connect.put(clients.client("cursor"), LAUNCH, path, replace=False, ask=ask).written
    assert asked[0] == ({"command": "mine"}, clients.client("cursor").filled(LAUNCH))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `triptych connect` in an empty project of a person with an empty home; gives exit code, stdout, stderr."""
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "project" / "docs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["connect", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.mark.parametrize("name", clients.clients())
def test_stdout_is_the_snippet_and_nothing_else(run: Any, name: str, tmp_path: Path, bare_home: Path) -> None:
    code, out, err = run(name, "--root", "docs")
    assert code == 0
    client = clients.client(name)
    words = ("mcp", "--root", str(tmp_path / "project" / "docs"), "--home", str(bare_home.resolve()))
    program = connect.own_command()
    assert out == client.snippet(clients.Launch(program[0], (*program[1:], *words)))
    assert client.then in err
    assert not list((tmp_path / "project").glob(".*")) and not (tmp_path / "person").exists()


@pytest.mark.parametrize("name", FILED)
def test_write_puts_it_where_the_client_looks(run: Any, name: str) -> None:
    code, out, _ = run(name, "--root", "docs", "--write", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["written"] and told["backup"] is None
    assert read(Path(told["path"]).read_text("utf-8"), clients.client(name).format) == read(
        told["snippet"], clients.client(name).format
    )
    assert json.loads(run(name, "--root", "docs", "--write", "--json")[1])["written"] is False
    code, out, _ = run(name, "--write", "--json")
    assert code == 2 and "--yes" in json.loads(out)["error"]["hint"]
    assert json.loads(run(name, "--write", "--yes", "--json")[1])["backup"]


def test_write_takes_another_file(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("vscode", "--write", "--path", str(tmp_path / "mine.json"))
    assert code == 0
    assert "mine.json" in out
    assert "triptych" in json.loads((tmp_path / "mine.json").read_text())["servers"]


@pytest.mark.parametrize("name", sorted(set(clients.clients()) - set(FILED)))
def test_a_client_without_a_file_is_told_so(run: Any, name: str) -> None:
    code, _, err = run(name, "--write")
    assert code == 2
    assert clients.client(name).then in err


def test_without_a_name_the_clients_are_listed(run: Any, tmp_path: Path) -> None:
    (tmp_path / "project" / ".mcp.json").write_text("{}")
    code, out, _ = run()
    assert code == 0
    assert all(name in out for name in clients.clients())
    assert [line for line in out.splitlines() if line.startswith("* claude_code")]
    rows = json.loads(run("--json")[1])
    assert [row["client"] for row in rows if row["exists"]] == ["claude_code"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "nobody"),
        (["codex", "--yes"], "--write"),
        (["codex", "--path", "x"], "--write"),
        (["vscode", "--link", "--write"], "--link"),
        (["codex", "--root", "nowhere"], "nowhere"),
        (["codex", "--library", "unheard-of"], "unheard-of"),
    ],
)
def test_what_does_not_go_together_is_bad_input(run: Any, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == "" and said in err


def test_a_library_and_another_home_are_passed_on(bare_home: Path, tmp_path: Path) -> None:
    (bare_home / "libraries" / "notes").mkdir(parents=True)
    settings = Settings.load(home=bare_home)
    words = connect.launch_of(settings, (), "notes").args
    assert words[-5:] == ("mcp", "--library", "notes", "--home", str(bare_home.resolve()))
    folder = str(bare_home / "libraries" / "notes")
    assert folder in connect.launch_of(settings, (), folder).args
    with pytest.raises(NotFound):
        connect.launch_of(settings, (), "other")
    plain = Settings.load(environ={})
    assert connect.launch_of(plain, (), None).args[-1] == "mcp"
    parses([*words[words.index("mcp") :]])


def test_the_own_command_starts() -> None:
    done = subprocess.run([*connect.own_command(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"triptych {__version__}"
    assert Path(connect.own_command()[0]).is_absolute()


def test_the_link_is_for_this_installation(run: Any) -> None:
    code, out, _ = run("vscode", "--link", "--root", "docs")
    assert code == 0
    assert decoded("vscode", out.strip())[0] == connect.own_command()[0]
    code, out, err = run("goose", "--link")
    assert (code, out) == (5, "") and "--write" in err


# --- the bundle -------------------------------------------------------------------------------------------------------


def test_the_launcher_is_three_lines_that_a_script_can_run() -> None:
    lines = bundles.LAUNCHER.splitlines()
    assert len(lines) == 3
    assert not [line for line in lines if line.startswith("from .")]


def test_the_bundle_starts_a_server_over_the_chosen_folders(tmp_home: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "any.whl"
    wheel.write_bytes(b"not needed: this interpreter has the package")
    writer = script()
    writer.bundle(wheel, tmp_path / "triptych.mcpb")
    writer.bundle(wheel, tmp_path / "again.mcpb")
    assert (tmp_path / "triptych.mcpb").read_bytes() == (tmp_path / "again.mcpb").read_bytes()
    with zipfile.ZipFile(tmp_path / "triptych.mcpb") as archive:
        archive.extractall(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text("utf-8"))
    project = tomllib.loads((tmp_path / "bundle" / "pyproject.toml").read_text("utf-8"))
    assert (tmp_path / "bundle" / project["tool"]["uv"]["sources"]["triptych"]["path"]).is_file()
    with Image.open(tmp_path / "bundle" / manifest["icon"]) as icon:
        assert icon.size == (512, 512)
    folders = [tmp_path / "one folder", tmp_path / "two"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "note.txt").write_text(f"The lamp of tower {number} burns {number + 3} litres of oil a night.")
    config = manifest["server"]["mcp_config"]
    assert config["command"] == "uv" and config["args"][:3] == ["run", "--directory", "${__dirname}"]
    words = [word for word in config["args"][3:] if word != "${user_config.folders}"] + [*map(str, folders)]
    assert words[0] == manifest["server"]["entry_point"]

    async def ask() -> tuple[list[str], str]:
        started = StdioServerParameters(
            command=sys.executable,
            args=words,
            cwd=str(tmp_path / "bundle"),
            env={**os.environ, "TRIPTYCH_HOME": str(tmp_home)},
        )
        async with McpClient(started) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            for _ in range(60):
                answer = await client.call_tool("retrieve", {"query": "How much oil does the lamp of tower 1 burn?"})
                if "4 litres" in answer.content[0].text:  # type: ignore[union-attr]
                    break
                await asyncio.sleep(0.5)
            return names, answer.content[0].text  # type: ignore[union-attr]

    names, text = asyncio.run(ask())
    assert names == [tool["name"] for tool in manifest["tools"]]
    assert "4 litres" in text and "note.txt" in text


# --- the checks with real clients -------------------------------------------------------------------------------------


def part(name: str) -> Any:
    """A module of `tests/clients`, which is no package."""
    folder = str(CHECKOUT / "tests" / "clients")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def test_what_cannot_be_installed_fails_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = part("environments")
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "nobody.txt").write_text("a-package-that-nobody-has==1\n")
    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setattr(environments, "BASE", tmp_path / "made")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(environments.Failed, match="`nobody` cannot be installed here"):
        environments.python("nobody")


def test_a_report_that_lacks_something_is_refused() -> None:
    plan = part("plan")
    row = {"n": 1, "id": "a", "title": "t", "where": plan.SOURCE, "text": f"It burns {plan.FACT} of oil."}
    long = {"passages": [{**row, "text": "one two three " * 4000}], "dropped": 3}
    with Image.new("RGB", (80, 80)) as drawn:
        page = io.BytesIO()
        drawn.save(page, "PNG")
    good = {
        "tools": plan.TOOLS,
        "retrieve": f"<data>{json.dumps({'passages': [row], 'dropped': 0})}</data>",
        "images": [base64.b64encode(page.getvalue()).decode()],
        "heard": f'{{"id":"a","clip":"{plan.CLIP}a"}}',
        "error": f"There is no passage `{plan.NOWHERE}`.",
        "long": json.dumps(long),
    }
    plan.judge(good)
    lacking: list[dict[str, Any]] = [
        {"tools": plan.TOOLS[1:]},
        {"retrieve": json.dumps({"passages": [], "dropped": 0})},
        {"retrieve": "cut {"},
        {"images": []},
        {"heard": "no clip"},
        {"error": ""},
        {"error": f"Traceback: {plan.NOWHERE}"},
        {"long": json.dumps({**long, "dropped": 0})},
        {"long": json.dumps({**long, "passages": [{**row, "text": "one two three " * 9000}]})},
    ]
    for change in lacking:
        with pytest.raises(plan.Failed):
            plan.judge({**good, **change})


@pytest.mark.parametrize("dialect", ["anthropic", "openai", "gemini"])
def test_the_scripted_model_calls_in_order_and_remembers(dialect: str) -> None:
    stub = part("stub")
    script = stub.Script([("retrieve", {"query": "q"}), ("view", {"id": "a"})], "still loading", "x__")
    dialects: dict[str, dict[str, Any]] = {
        "anthropic": {"tools": [{"name": "x__retrieve"}, {"name": "Bash"}], "messages": []},
        "openai": {"tools": [{"type": "namespace", "name": "x", "tools": [{"name": "retrieve"}]}], "input": []},
        "gemini": {"tools": [{"functionDeclarations": [{"name": "x__retrieve"}]}], "contents": []},
    }
    listed = dialects[dialect]

    def back(text: str) -> dict[str, Any]:
        if dialect == "anthropic":
            block = {"type": "tool_result", "content": [{"type": "text", "text": text}]}
            return {**listed, "messages": [*listed["messages"], {"role": "user", "content": [block]}]}
        if dialect == "openai":
            return {**listed, "input": [*listed["input"], {"type": "function_call_output", "output": text}]}
        answer = {"functionResponse": {"response": {"output": text}}}
        return {**listed, "contents": [*listed["contents"], {"parts": [answer]}]}

    def said(request: dict[str, Any]) -> str:
        return json.dumps([*stub.DIALECTS[dialect](script, "", request)])

    assert "retrieve" in said(listed)
    assert script.listed == ["retrieve"]
    listed = back("still loading")
    assert "retrieve" in said(listed)
    listed = back("cited")
    assert "view" in said(listed)
    listed = back("seen")
    assert "done" in said(listed)
    assert [one.texts for one in script.kept()] == [["cited"], ["seen"]]
