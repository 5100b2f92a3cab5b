"""One server put into an assistant's settings, text in and text out: everything else in them stays as it was.

Comments survive in TOML and YAML. JSON has none; where somebody wrote some all the same, nothing is written.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from io import StringIO
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, MissingExtra, Unsupported
from .clients import source

if TYPE_CHECKING:
    from .clients import Client

BOM = "\ufeff"
_INDENT = re.compile(r"^([ \t]+)\S", re.M)
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|(//[^\n]*|/\*.*?\*/)', re.S)


def existing(client: Client, text: str, file: str) -> Any:
    """The entry that the settings `text` have for this server, or None.

    Args:
        file: their name, for messages.

    Raises:
        BadInput: `text` is not what the client reads.
        Unsupported: it is, but cannot be rewritten without a loss.
    """
    return _table(_parsed(client, text, file), client, file).get(source()["product"]["name"])


def merged(client: Client, text: str, entry: Mapping[str, Any], file: str) -> str:
    """The settings `text` with `entry` in them, in place of an earlier one of this server.

    Raises:
        BadInput: `text` is not what the client reads.
        Unsupported: rewriting it would change something else, too.
    """
    before = _parsed(client, text, file)
    body = text.removeprefix(BOM)
    windows = "\r\n" in body and not re.search(r"(?<!\r)\n", body)
    plain = body.replace("\r\n", "\n") if windows else body
    writers: dict[str, Callable[[Client, str, Mapping[str, Any]], str]] = {"json": _json, "toml": _toml, "yaml": _yaml}
    made = writers[client.format](client, plain, entry)
    wanted = {**before, client.table: {**_table(before, client, file), source()["product"]["name"]: {**entry}}}
    if _parsed(client, made, file) != wanted or not _comments(plain) <= _comments(made):
        raise _unsupported(f"Rewriting `{file}` would change other settings in it.")
    return text[: len(text) - len(body)] + (made.replace("\n", "\r\n") if windows else made)


def _parsed(client: Client, text: str, file: str) -> dict[str, Any]:
    """The settings as plain values; `{}` for an empty file."""
    body = text.removeprefix(BOM)
    if not body.strip():
        return {}
    try:
        readers: dict[str, Callable[[str], Any]] = {"json": _read_json, "toml": tomllib.loads, "yaml": _read_yaml}
        found = readers[client.format](body)
    except (ValueError, RecursionError) as error:
        if client.format == "json" and any(match[1] for match in _STRING_OR_COMMENT.finditer(body)):
            raise _unsupported(f"`{file}` has comments, which would be lost.") from None
        reason = str(error).splitlines()[0][:160] if str(error) else "too deep"
        raise BadInput(f"`{file}` is not valid {client.format.upper()}: {reason}.", "Mend it first.") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadInput(f"`{file}` holds no table of settings.", "Name another file: `--path FILE`.")
    return found


def _table(settings: Mapping[str, Any], client: Client, file: str) -> Mapping[str, Any]:
    found = settings.get(client.table)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise BadInput(f"`{client.table}` in `{file}` is no table of servers.", "Mend it first.")
    return found


def _unsupported(message: str) -> Unsupported:
    return Unsupported(message, "Paste the snippet yourself; the same command without `--write` prints it.")


def _comments(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip().startswith("#")}


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the same key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _json(client: Client, text: str, entry: Mapping[str, Any]) -> str:
    settings = _read_json(text) if text.strip() else {}
    settings[client.table] = {**(settings.get(client.table) or {}), source()["product"]["name"]: entry}
    step = _INDENT.search(text)
    indent: str | int = step[1] if step else 2
    try:
        made = json.dumps(settings, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        raise _unsupported("A number in the settings is too large to be written again.") from None
    return made + ("\n" if text.endswith("\n") or not text else "")


def _toml(client: Client, text: str, entry: Mapping[str, Any]) -> str:
    try:
        import tomlkit
    except ModuleNotFoundError:
        raise _missing("tomlkit") from None
    settings = tomlkit.parse(text)
    if client.table not in settings:
        settings[client.table] = tomlkit.table(is_super_table=True)
    servers: Any = settings[client.table]
    fresh = tomlkit.table()
    fresh.update(entry)
    servers[source()["product"]["name"]] = fresh
    return tomlkit.dumps(settings)


def _read_yaml(text: str) -> Any:
    yaml = _ruamel("safe")
    from ruamel.yaml.error import YAMLError

    try:
        return yaml.load(text)
    except YAMLError as error:
        raise ValueError(getattr(error, "problem", None) or type(error).__name__) from None


def _yaml(client: Client, text: str, entry: Mapping[str, Any]) -> str:
    yaml = _ruamel("rt")
    yaml.preserve_quotes, yaml.width = True, 1 << 16
    settings = yaml.load(text)
    if settings is None:
        settings = yaml.map()
        text = text if text.endswith("\n") or not text else f"{text}\n"
        settings[client.table] = {source()["product"]["name"]: dict(entry)}
        return text + _dumped(yaml, settings)  # a file of comments alone
    if settings.get(client.table) is None:
        settings[client.table] = yaml.map()
    settings[client.table][source()["product"]["name"]] = dict(entry)
    return _dumped(yaml, settings)


def _dumped(yaml: Any, settings: Any) -> str:
    with StringIO() as page:
        yaml.dump(settings, page)
        return page.getvalue()


def _ruamel(kind: str) -> Any:
    try:
        from ruamel.yaml import YAML
    except ModuleNotFoundError:
        raise _missing("ruamel.yaml") from None
    return YAML(typ=kind, pure=True)


def _missing(package: str) -> MissingExtra:
    return MissingExtra(f"The package `{package}` is not installed.", "Run `pip install 'triptych[mcp]'`.")
