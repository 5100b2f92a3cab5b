"""How assistants are told to start Triptych: the snippet for each, the place it belongs, the link that installs it.

Everything that names a product, a path or a shape stands in `clients.toml`; nothing here starts or writes anything.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from typing import Any, Literal
from urllib.parse import quote, urlencode

from ..errors import BadInput, Unsupported

System = Literal["linux", "macos", "windows"]
Format = Literal["json", "toml", "yaml"]
LAUNCHERS = ("uvx", "npx", "docker")
"""Commands that goose accepts in a link."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Launch:
    """The command line that starts the server over stdio."""

    command: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Client:
    """One assistant, as `clients.toml` describes it.

    Attributes:
        file: its example in `manifests/clients`.
        table: where servers stand in its settings; `""` for one that takes a list of connections.
        entry: what stands there for one server, with `{command}`, `{args}` and `{address}` to fill in.
        path: where the settings are, by system, or under `all`; empty for one that keeps them in no file.
        then: what a person does next.
    """

    id: str
    title: str
    file: str
    format: Format
    entry: Mapping[str, Any]
    then: str
    table: str = ""
    path: Mapping[str, str] = field(default_factory=dict)

    def filled(self, launch: Launch) -> dict[str, Any]:
        """The entry that starts the server by `launch`."""
        values = {"{command}": launch.command, "{args}": [*launch.args], "{address}": source()["product"]["address"]}
        return {key: values.get(value, value) if isinstance(value, str) else value for key, value in self.entry.items()}

    def snippet(self, launch: Launch) -> str:
        """What a person pastes into the settings, ending in a newline."""
        entry = self.filled(launch)
        if not self.table:
            return written_json([entry])
        return {"json": _json_snippet, "toml": _toml_snippet, "yaml": _yaml_snippet}[self.format](self.table, entry)

    def place(self, system: System, home: str, here: str, environ: Mapping[str, str]) -> str | None:
        """Where the settings are on `system`, or None for a client that keeps them in no file.

        Args:
            home, here: the home folder and the project's.
            environ: `XDG_CONFIG_HOME` and, on Windows, `APPDATA` are read.
        """
        pattern = self.path.get(system) or self.path.get("all")
        if pattern is None:
            return None
        folders = {
            "home": home,
            "here": here,
            "config": environ.get("XDG_CONFIG_HOME") or f"{home}/.config",
            "appdata": environ.get("APPDATA") or f"{home}/AppData/Roaming",
        }
        found = pattern.format(**folders)
        return found.replace("/", "\\") if system == "windows" else found


@functools.cache
def source() -> dict[str, Any]:
    """What `clients.toml` says, as it stands there."""
    text = resources.files(__package__).joinpath("clients.toml").read_text("utf-8")
    return tomllib.loads(text)


@functools.cache
def clients() -> dict[str, Client]:
    """All clients by id, in alphabetical order."""
    return {name: Client(id=name, **table) for name, table in sorted(source()["clients"].items())}


def client(name: str) -> Client:
    """The client `name`; dashes may stand for underscores.

    Raises:
        BadInput: an unknown one; the hint names the nearest.
    """
    known = clients()
    wanted = name.lower().replace("-", "_")
    if wanted in known:
        return known[wanted]
    near = get_close_matches(wanted, known, 1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Use one of: {', '.join(known)}."
    raise BadInput(f"Unknown client `{name:.40}`.", hint)


def published(version: str) -> Launch:
    """How a machine without Triptych starts it: `uvx` installs this version into an environment of its own."""
    product = source()["product"]
    package = f"{product['name']}[{','.join(product['extras'])}]=={version}"
    return Launch("uvx", ("--from", package, product["name"], "mcp"))


def link(name: str, launch: Launch) -> str:
    """The address that installs the server in `vscode`, `cursor` or `goose` when it is opened.

    Raises:
        Unsupported: another client, or a command that goose would refuse.
    """
    product = source()["product"]
    command = {"command": launch.command, "args": [*launch.args]}
    if name == "vscode":
        asked = json.dumps({"name": product["name"], "type": "stdio", **command}, separators=(",", ":"))
        return f"vscode:mcp/install?{quote(asked, safe='')}"
    if name == "cursor":
        config = base64.b64encode(json.dumps(command, separators=(",", ":")).encode()).decode()
        return "cursor://anysphere.cursor-deeplink/mcp/install?" + urlencode(
            {"name": product["name"], "config": config}, quote_via=quote
        )
    if name != "goose":
        raise Unsupported(f"`{name}` has no links that install a server.", "Links: vscode, cursor, goose.")
    if launch.command not in LAUNCHERS:
        raise Unsupported(
            f"goose opens no link that starts `{launch.command}`.", "Use `triptych connect goose --write`."
        )
    said = {"id": product["name"], "name": product["title"], "description": product["short"]}
    parts = [("cmd", launch.command), *(("arg", one) for one in launch.args), *said.items()]
    return "goose://extension?" + urlencode(parts, quote_via=quote)


def written_json(value: Any, indent: int = 0) -> str:
    """JSON as people write it: two spaces, and a list of plain values in one line. Ends in a newline at the top."""
    text = _json(value, indent)
    return text if indent else f"{text}\n"


def _json(value: Any, indent: int) -> str:
    inner, outer = " " * (indent + 2), " " * indent
    if isinstance(value, Mapping) and value:
        rows = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_json(one, indent + 2)}" for key, one in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    if isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(one, Mapping) for one in value):
        return "[\n" + ",\n".join(inner + _json(one, indent + 2) for one in value) + f"\n{outer}]"
    return json.dumps(value, ensure_ascii=False)


def _quoted(value: Any) -> str:
    """JSON that is TOML and YAML, too: characters that either of them takes for something else are escaped."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _json_snippet(table: str, entry: Mapping[str, Any]) -> str:
    return written_json({table: {source()["product"]["name"]: entry}})


def _toml_snippet(table: str, entry: Mapping[str, Any]) -> str:
    name = source()["product"]["name"]
    # Strings, lists of them, numbers, true and false are written in TOML as they are in JSON.
    rows = [f"{key} = {_quoted(value)}" for key, value in entry.items()]
    return "\n".join([f"[{table}.{name}]", *rows]) + "\n"


def _yaml_snippet(table: str, entry: Mapping[str, Any]) -> str:
    return written_yaml({table: {source()["product"]["name"]: entry}})


def written_yaml(value: Mapping[str, Any], indent: int = 0) -> str:
    """YAML of nested mappings, lists and plain values; text is quoted unless it is a bare word."""
    rows = []
    space = " " * indent
    for key, one in value.items():
        if isinstance(one, Mapping):
            rows.append(f"{space}{key}:\n{written_yaml(one, indent + 2)}")
        elif isinstance(one, Sequence) and not isinstance(one, str) and one:
            rows.append(f"{space}{key}:\n" + "".join(f"{space}  - {_yaml_item(item, indent + 4)}" for item in one))
        elif isinstance(one, str) and "\n" in one:
            rows.append(f"{space}{key}: |\n" + "".join(f"{space}  {line}\n" for line in one.splitlines()))
        else:
            rows.append(f"{space}{key}: {_yaml_plain(one)}\n")
    return "".join(rows)


def _yaml_item(value: Any, indent: int) -> str:
    return written_yaml(value, indent).lstrip(" ") if isinstance(value, Mapping) else f"{_yaml_plain(value)}\n"


def _yaml_plain(value: Any) -> str:
    words = isinstance(value, str) and _BARE.fullmatch(value) and value[0].isalpha()
    if words and value.lower() not in ("true", "false", "yes", "no", "on", "off", "null", "y", "n"):
        return str(value)
    return _quoted(value)
