"""Claude Code, Codex and Gemini CLI, driven by a model that follows a script: no account, no key, no network."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from environments import Failed, bundled_claude, node, npm
from plan import Plan, judge
from programs import run
from stub import Script, Stub

PROMPT = "Look it up."
ORDER = ("retrieve", "view", "error", "long", "heard")


def claude_code(plan: Plan, folder: Path) -> None:
    """Claude Code in print mode, with its tools inline."""
    config = folder / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"triptych": {"command": plan.command, "args": plan.args}}}))
    script = scripted(plan, "mcp__triptych__")
    names = ",".join(script.prefix + name for name in {tool for tool, _ in script.calls})
    with Stub("anthropic", script) as stub:
        env = surroundings(
            folder,
            ANTHROPIC_BASE_URL=stub.address,
            ANTHROPIC_API_KEY="stub-not-a-key",
            DISABLE_TELEMETRY="1",
            DISABLE_AUTOUPDATER="1",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            ENABLE_TOOL_SEARCH="false",
            MCP_TIMEOUT="120000",
        )
        words = ["-p", PROMPT, "--mcp-config", config, "--strict-mcp-config", "--allowedTools", names]
        run([bundled_claude(), *words, "--output-format", "json"], env=env, folder=folder)
    judge(report_of(script))


def codex(plan: Plan, folder: Path) -> None:
    """`codex exec`, which waits for the server, as its snippet's `required` makes it."""
    script = scripted(plan, "mcp__triptych__")
    with Stub("openai", script) as stub:
        provider = f'{{name="stub",base_url="{stub.address}/v1",wire_api="responses",env_key="STUB_KEY"}}'
        settings = {
            "model_provider": "stub",
            "model": "stub-model",
            "model_providers.stub": provider,
            "mcp_servers.triptych.command": json.dumps(plan.command),
            "mcp_servers.triptych.args": json.dumps(plan.args),
            "mcp_servers.triptych.default_tools_approval_mode": '"approve"',
            "mcp_servers.triptych.required": "true",
            "mcp_servers.triptych.startup_timeout_sec": "120",
            "mcp_servers.triptych.tool_timeout_sec": "120",
        }
        given = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        env = surroundings(folder, STUB_KEY="stub-not-a-key")
        program = [node(), npm("npm_agents") / ".bin" / "codex", "exec", "--skip-git-repo-check"]
        run([*program, *given, PROMPT], env=env, folder=folder)
    judge(report_of(script), shortened=True)  # Codex cuts long results itself


def gemini(plan: Plan, folder: Path) -> None:
    """`gemini -p` with a settings file, in a folder that it trusts."""
    script = scripted(plan, "mcp_triptych_")
    env = surroundings(folder, GEMINI_API_KEY="stub-not-a-key", GEMINI_CLI_TRUST_WORKSPACE="true")
    settings = Path(env["HOME"]) / ".gemini" / "settings.json"
    settings.parent.mkdir(parents=True)
    server = {"command": plan.command, "args": plan.args, "timeout": 120_000}
    chosen = {"security": {"auth": {"selectedType": "gemini-api-key"}}, "mcpServers": {"triptych": server}}
    settings.write_text(json.dumps(chosen))
    with Stub("gemini", script) as stub:
        program = [node(), npm("npm_agents") / ".bin" / "gemini", "-p", PROMPT, "--approval-mode", "yolo"]
        run(
            [*program, "-o", "json", "-m", "gemini-2.5-flash"],
            env={**env, "GOOGLE_GEMINI_BASE_URL": stub.address},
            folder=folder,
        )
    judge(report_of(script), shortened=True)  # Gemini CLI cuts long results itself


def scripted(plan: Plan, prefix: str) -> Script:
    """The script of the planned calls."""
    calls = [(plan.calls[name]["tool"], plan.calls[name]["arguments"]) for name in ORDER]
    return Script(calls, plan.loading, prefix)


def report_of(script: Script) -> dict[str, object]:
    """What the scripted model saw, as a report for `judge`."""
    kept = script.kept()
    if len(kept) != len(ORDER):
        asked = f"tools: {script.listed}; asked: {script.requests}"
        raise Failed(f"{len(kept)} of {len(ORDER)} results came back; {asked}")
    texts = {name: "\n".join(one.texts) for name, one in zip(ORDER, kept, strict=True)}
    return {
        **texts,
        "tools": sorted(set(script.listed) - {"list_resources", "read_resource"}),
        "images": kept[1].images,
    }


def surroundings(folder: Path, **more: str) -> dict[str, str]:
    """An environment with an empty home: nobody's own settings are read or written."""
    home = Path(tempfile.mkdtemp(dir=folder))
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS", "TMPDIR") if name in os.environ}
    path = f"{node().parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "HOME": str(home), "CODEX_HOME": str(home), "NO_COLOR": "1", **more}
