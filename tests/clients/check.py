"""Other people's clients and validators against this server: python tests/clients/check.py ci | all | NAME…

Each runs in an environment of its own; one that cannot be installed fails. The last line counts what passed.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import assistants
import jsonschema
import plan as plans
from environments import HERE, Failed, bundled_claude, node, npm, python
from plan import FACT, TOOLS, Plan, judge
from programs import run, served

ROOT = HERE.parents[1]
MANIFESTS = ROOT / "manifests" / "clients"


def scripted(name: str, *, pictures: int = 1, http: bool = False) -> Callable[[Plan, Path], None]:
    """The check that runs `use_NAME.py` in the environment NAME and judges its report."""

    def check(plan: Plan, folder: Path) -> None:
        asked, report = folder / "plan.json", folder / f"{name}.json"
        with over_http(plan, folder) if http else contextlib.nullcontext("") as address:
            asked.write_text(json.dumps({**json.loads(plan.json()), "address": address}), "utf-8")
            run([python(name), HERE / f"use_{name}.py", asked, report])
        judge(json.loads(report.read_text("utf-8")), pictures=pictures)

    return check


def over_http(plan: Plan, folder: Path) -> contextlib.AbstractContextManager[str]:
    """The planned server over HTTP."""
    return served([plan.command, *plan.args, "--transport", "http", "--port", "{port}"], folder)


def inspector(plan: Plan, folder: Path) -> None:
    """MCP Inspector on its command line: the strict lint over stdio, every call over HTTP, one in the new era."""
    config = folder / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"triptych": {"command": plan.command, "args": plan.args}}}))
    lint = [node(), npm("npm") / ".bin" / "mcp-inspector", "--cli", "--config", config, "--server", "triptych"]
    listed = json.loads(run([*lint, "--method", "tools/list", "--strict", "--format", "json"]))
    with served([plan.command, *plan.args, "--transport", "http", "--port", "{port}"], folder) as address:
        _inspected(
            plan, listed, [node(), npm("npm") / ".bin" / "mcp-inspector", "--cli", address, "--transport", "http"]
        )


def _inspected(plan: Plan, listed: dict[str, Any], program: list[str | Path]) -> None:
    def call(name: str, *, ok: int = 0, era: str = "legacy") -> dict[str, Any]:
        given = plan.calls[name]
        tool = ["--tool-name", given["tool"], "--tool-args-json", json.dumps(given["arguments"])]
        method = ["--method", "tools/call", *tool, "--format", "json", "--protocol-era", era]
        found = json.loads(run([*program, *method], ok=ok))
        result: dict[str, Any] = found.get("result", found)
        return result

    while plan.loading in _texts(call("retrieve")):
        time.sleep(1)
    texts = {name: call(name) for name in ("retrieve", "long", "view", "heard")}
    texts["error"] = call("error", ok=5)
    report = {name: _texts(result) for name, result in texts.items()}
    images = [block["data"] for block in texts["view"]["content"] if block["type"] == "image"]
    tools = [tool["name"] for tool in listed.get("result", listed)["tools"]]
    judge({"tools": tools, "images": images, **report})
    modern = call("retrieve", era="modern")
    if modern.get("structuredContent") != json.loads(_texts(modern)):
        raise Failed("the text block is not the structured result")


def _texts(result: dict[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"] if block["type"] == "text")


def mcpb(plan: Plan, folder: Path) -> None:
    """The vendor's validator of the Claude Desktop bundle's manifest, beside its icon."""
    for name in ("manifest.json", "pyproject.toml"):
        (folder / name).write_bytes((MANIFESTS / "mcpb" / name).read_bytes())
    (folder / "icon.png").write_bytes((MANIFESTS / "icon.png").read_bytes())
    run([node(), npm("npm") / ".bin" / "mcpb", "validate", folder])


def registry(plan: Plan, folder: Path) -> None:
    """The MCP registry's schema of `server.json`."""
    schema = json.loads((ROOT / "tests" / "schemas" / "vendor" / "server.schema.json").read_text("utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    faults = list(validator.iter_errors(json.loads((MANIFESTS / "server.json").read_text("utf-8"))))
    if faults:
        raise Failed("\n".join(f"{fault.json_path}: {fault.message}" for fault in faults))


def claude_plugin(plan: Plan, folder: Path) -> None:
    """The vendor's validator of the marketplace and of the plugin, with the checks of the plugin directory."""
    program, env = bundled_claude(), assistants.surroundings(folder, DISABLE_TELEMETRY="1", DISABLE_AUTOUPDATER="1")
    market = MANIFESTS / "claude_plugin"
    run([program, "plugin", "validate", market, "--strict"], env=env)
    run([program, "plugin", "validate", market / "plugins" / "triptych", "--strict", "--profile", "directory"], env=env)


def gemini_extension(plan: Plan, folder: Path) -> None:
    """The vendor's validator of the Gemini extension."""
    env = assistants.surroundings(folder, GEMINI_CLI_TRUST_WORKSPACE="true")
    run([node(), npm("npm_agents") / ".bin" / "gemini", "extensions", "validate", MANIFESTS / "gemini"], env=env)


def codex_settings(plan: Plan, folder: Path) -> None:
    """Codex reads the committed settings, and means by them what we do."""
    env = assistants.surroundings(folder)
    (Path(env["CODEX_HOME"]) / "config.toml").write_bytes((MANIFESTS / "codex.toml").read_bytes())
    found = json.loads(run([node(), npm("npm_agents") / ".bin" / "codex", "mcp", "get", "triptych", "--json"], env=env))
    started = found["transport"]
    if started["command"] != "triptych" or started["args"][:2] != ["mcp", "--root"]:
        raise Failed(f"Codex read {started}")


def conformance(plan: Plan, folder: Path) -> None:
    """The official suite at both revisions; what it may find wrong stands in `conformance_*.yml`, with the reasons."""
    program = [node(), npm("npm") / ".bin" / "conformance", "server"]
    with served([sys.executable, str(HERE / "conformance_server.py"), "{port}"], folder) as address:
        for year, chosen in {
            "2026": ["--requirements", "2026-07-28"],
            "2025": ["--suite", "all", "--spec-version", "2025-11-25"],
        }.items():
            known = ["--expected-failures", HERE / f"conformance_{year}.yml"]
            run([*program, "--url", address, *chosen, *known, "-o", folder / year])


def mcpo(plan: Plan, folder: Path) -> None:
    """mcpo, which Open WebUI reads: the tools as an OpenAPI document, and `retrieve` by a plain POST."""
    config = json.loads((MANIFESTS / "mcpo.json").read_text("utf-8"))
    config["mcpServers"]["triptych"] |= {"command": plan.command, "args": plan.args}
    (folder / "mcpo.json").write_text(json.dumps(config))
    program = [str(python("mcpo").with_name("mcpo")), "--host", "127.0.0.1", "--port", "{port}"]
    with served([*program, "--config", str(folder / "mcpo.json")], folder) as address:
        base = f"{address.removesuffix('/mcp')}/triptych"
        with urllib.request.urlopen(f"{base}/openapi.json", timeout=60) as answer:
            tools = [path.removeprefix("/") for path in json.load(answer)["paths"]]
        if sorted(tools) != sorted(TOOLS):
            raise Failed(f"it lists the tools {tools}")
        given = plan.calls["retrieve"]
        said = plan.loading
        while plan.loading in said:
            content, kind = json.dumps(given["arguments"]).encode(), {"content-type": "application/json"}
            asked = urllib.request.Request(f"{base}/{given['tool']}", content, kind)
            with urllib.request.urlopen(asked, timeout=120) as answer:
                said = answer.read().decode()
        if FACT not in said:
            raise Failed(f"`retrieve` came as {said[:300]!r}")


Check = Callable[[Plan, Path], None]
CI: dict[str, Check] = {
    "inspector": inspector,
    "pydantic_ai": scripted("pydantic_ai"),
    "conformance": conformance,
}
ALL: dict[str, Check] = {
    **CI,
    "registry": registry,
    "mcpb": mcpb,
    "claude_plugin": claude_plugin,
    "gemini_extension": gemini_extension,
    "codex_settings": codex_settings,
    "mcpo": mcpo,
    "openai_agents": scripted("openai_agents"),
    "langchain_adapters": scripted("langchain_adapters"),
    "smolagents": scripted("smolagents", pictures=0),  # it takes the first part of an answer, and no other
    "llama_index": scripted("llama_index", http=True),
    "claude_code": assistants.claude_code,
    "codex": assistants.codex,
    "gemini": assistants.gemini,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in (*ALL, "ci", "all")]
    if unknown or not names:
        sys.exit(f"No check {' '.join(unknown)}. Use ci, all, or some of: {', '.join(ALL)}.")
    chosen = CI if names == ["ci"] else ALL if names == ["all"] else {name: ALL[name] for name in names}
    failed = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as room:
        (Path(room) / "library").mkdir()
        try:
            plan = plans.made(Path(room) / "library", plans.weights_folder())
        except Failed as error:
            sys.exit(f"The library for the checks could not be made: {error}")
        for name, check in chosen.items():
            start = time.monotonic()
            folder = Path(room) / name
            folder.mkdir()
            try:
                check(plan, folder)
                said = "passed"
            except (Failed, OSError, KeyError, ValueError) as error:
                failed += 1
                said = f"FAILED: {error}"
            print(f"{name:<20} {time.monotonic() - start:6.1f} s  {said}", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
