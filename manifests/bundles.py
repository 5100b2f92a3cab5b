"""The files that registries and stores of assistants read, all made from `clients.toml`, the version and the tools.

`make manifests` writes them to `manifests/clients`; a test compares what is committed with what this makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .clients import Launch, clients, link, published, source, written_json, written_yaml

LAUNCHER = """\
import sys
from triptych.server.cli import main
sys.exit(main(["mcp", "--pull", *(word for folder in sys.argv[1:] for word in ("--root", folder))]))
"""
"""What the bundle starts. A desktop program hands over the chosen folders as plain words, so each gets its `--root`."""
LAUNCHER_PATH = "server/main.py"
LINKED = ("cursor", "goose", "vscode")
ICON = "icon.png"
ICON_EDGE = 512
PLUGIN = "claude_plugin/plugins/triptych"


@dataclass(frozen=True)
class Tool:
    """A tool as manifests name it: `arguments` are `(name, JSON type, description)`."""

    name: str
    title: str
    description: str
    arguments: tuple[tuple[str, str, str], ...] = ()

    @property
    def first(self) -> str:
        """The first sentence of its description, in one line."""
        return " ".join(self.description.split()).split(". ")[0].rstrip(".") + "."


@dataclass(frozen=True)
class Made:
    """What everything below is made from.

    Attributes:
        version: of the package.
        python: what Python it needs (`">=3.11"`).
        tools: what the server shows without any option.
        instructions: what the server tells an agent.
    """

    version: str
    python: str
    tools: tuple[Tool, ...]
    instructions: str

    @property
    def product(self) -> dict[str, Any]:
        return dict(source()["product"])

    @property
    def registry_name(self) -> str:
        """The server's name in the registry of MCP servers."""
        return str(self.product["registry_name"]).format(**self.product)

    @property
    def repository(self) -> str:
        return str(self.product["repository"]).format(**self.product)

    @property
    def ownership(self) -> str:
        """The comment in the README by which the registry knows whose package this is."""
        return f"<!-- mcp-name: {self.registry_name} -->"

    def rooted(self, folder: str) -> Launch:
        """The published command on one folder."""
        launch = published(self.version)
        return Launch(launch.command, (*launch.args, "--root", folder))


def files(made: Made) -> dict[str, str]:
    """The text of every file, by its path under `manifests/clients`."""
    example = Launch(made.product["name"], ("mcp", "--root", made.product["example_root"]))
    return {
        **{client.file: client.snippet(example) for client in clients().values()},
        "links.json": written_json({name: link(name, published(made.version)) for name in LINKED}),
        "server.json": written_json(registry(made)),
        "mcpb/manifest.json": written_json(bundle(made)),
        "mcpb/pyproject.toml": bundle_project(made),
        "claude_plugin/.claude-plugin/marketplace.json": written_json(marketplace(made)),
        f"{PLUGIN}/.claude-plugin/plugin.json": written_json(plugin(made)),
        f"{PLUGIN}/.mcp.json": written_json({"mcpServers": {made.product["name"]: _command(made.rooted("."))}}),
        f"{PLUGIN}/README.md": plugin_readme(made),
        f"{PLUGIN}/skills/triptych/SKILL.md": skill(made),
        "gemini/gemini-extension.json": written_json(extension(made)),
        "gemini/GEMINI.md": f"# {made.product['title']}\n\n{made.instructions}\n",
        "docker/server.yaml": written_yaml(docker(made)),
        "docker/tools.json": written_json([docker_tool(tool) for tool in made.tools]),
        "docker/readme.md": f"# {made.product['title']}\n\n{made.product['short']}\n\n{tool_table(made.tools)}",
        "docker/Dockerfile": dockerfile(made),
        "smithery/smithery.yaml": written_yaml(smithery(made)),
    }


def registry(made: Made) -> dict[str, Any]:
    """`server.json` of the MCP registry."""
    product, extras = made.product, ",".join(made.product["extras"])
    root = {"description": "A folder to serve.", "format": "filepath", "isRequired": True, "isRepeated": True}
    home = {"description": "Where libraries and model files are kept.", "format": "filepath"}
    package = {
        "registryType": "pypi",
        "identifier": product["name"],
        "version": made.version,
        "runtimeHint": "uvx",
        "runtimeArguments": [
            {"type": "named", "name": "--with", "value": f"{product['name']}[{extras}]=={made.version}"}
        ],
        "transport": {"type": "stdio"},
        "packageArguments": [
            {"type": "positional", "value": "mcp"},
            {"type": "named", "name": "--root", **root},
        ],
        "environmentVariables": [{"name": "TRIPTYCH_HOME", **home}],
    }
    return {
        "$schema": source()["addresses"]["registry_schema"],
        "name": made.registry_name,
        "title": product["title"],
        "description": product["short"],
        "version": made.version,
        "repository": {"url": made.repository, "source": "github"},
        "packages": [package],
    }


def bundle(made: Made) -> dict[str, Any]:
    """`manifest.json` of the Claude Desktop bundle."""
    product = made.product
    arguments = ["run", "--directory", "${__dirname}", LAUNCHER_PATH, "${user_config.folders}"]
    folders = {
        "type": "directory",
        "title": "Folders to search",
        "description": "Files in these folders are indexed and searched; nothing else is read, nothing is changed.",
        "multiple": True,
        "required": True,
        "default": ["${HOME}/Documents"],
    }
    return {
        "manifest_version": "0.4",
        "name": product["name"],
        "display_name": product["title"],
        "version": made.version,
        "description": product["short"],
        "long_description": _long(made),
        "author": {"name": product["author"]},
        "repository": {"type": "git", "url": made.repository},
        "icon": ICON,
        "server": {
            "type": "uv",
            "entry_point": LAUNCHER_PATH,
            "mcp_config": {"command": "uv", "args": arguments, "env": {}},
        },
        "tools": [{"name": tool.name, "description": tool.first} for tool in made.tools],
        "keywords": product["keywords"],
        "license": product["license"],
        "compatibility": {
            "platforms": ["darwin", "win32", "linux"],
            "runtimes": {"python": made.python},
        },
        "user_config": {"folders": folders},
    }


def bundle_project(made: Made) -> str:
    """`pyproject.toml` of the bundle: the wheel that lies beside it, so that no index has to offer the package."""
    product = made.product
    return (
        f'[project]\nname = "{product["name"]}-bundle"\nversion = "{made.version}"\n'
        f'requires-python = "{made.python}"\n'
        f'dependencies = ["{product["name"]}[{",".join(product["extras"])}]=={made.version}"]\n\n'
        f"[tool.uv]\npackage = false\n\n"
        f'[tool.uv.sources]\n{product["name"]} = {{ path = "{wheel_name(made.version)}" }}\n'
    )


def wheel_name(version: str) -> str:
    """The file name of this package's wheel."""
    return f"{source()['product']['name']}-{version}-py3-none-any.whl"


def marketplace(made: Made) -> dict[str, Any]:
    """The marketplace of one plugin that Claude Code can be pointed at."""
    product = made.product
    entry = {"name": product["name"], "source": f"./plugins/{product['name']}", "description": product["short"]}
    return {
        "name": product["name"],
        "description": f"{product['title']} for Claude Code.",
        "owner": {"name": product["author"]},
        "plugins": [{**entry, "version": made.version, "category": "search", "keywords": product["keywords"]}],
    }


def plugin(made: Made) -> dict[str, Any]:
    """`plugin.json` of the Claude Code plugin."""
    product = made.product
    return {
        "name": product["name"],
        "version": made.version,
        "description": product["short"],
        "author": {"name": product["author"]},
        "homepage": made.repository,
        "repository": made.repository,
        "license": product["license"],
        "keywords": product["keywords"],
    }


def plugin_readme(made: Made) -> str:
    """What the plugin's page says."""
    return (
        f"# {made.product['title']}\n\n{_long(made)}\n\n"
        "The plugin serves the folder that Claude Code was started in, read-only. It needs `uv`.\n\n"
        f"{tool_table(made.tools)}"
    )


def skill(made: Made) -> str:
    """The skill that tells Claude when the tools are worth a call."""
    return (
        "---\nname: triptych\n"
        "description: Use when a question is about the user's own files (notes, PDF, office documents, scans, "
        "pictures, recordings) and the answer has to be found in them and cited.\n---\n\n"
        f"# Answering from the user's files\n\n{made.instructions}\n"
    )


def extension(made: Made) -> dict[str, Any]:
    """`gemini-extension.json`."""
    product = made.product
    server = _command(made.rooted("${workspacePath}"))
    return {
        "name": product["name"],
        "version": made.version,
        "description": product["short"],
        "contextFileName": "GEMINI.md",
        "mcpServers": {product["name"]: server},
    }


def docker(made: Made) -> dict[str, Any]:
    """`server.yaml` of the Docker MCP catalog."""
    product = made.product
    folder = {"type": "string", "description": "The folder to search.", "default": product["example_root"]}
    return {
        "name": product["name"],
        "image": f"mcp/{product['name']}",
        "type": "server",
        "meta": {"category": "search", "tags": ["search", "retrieval", "documents"]},
        "about": {"title": product["title"], "description": product["short"]},
        "source": {"project": made.repository},
        "run": {"volumes": [f"{{{{{product['name']}.folder}}}}:/files:ro", f"{product['name']}-library:/library"]},
        "config": {
            "description": "Which folder is searched.",
            "parameters": {"type": "object", "properties": {"folder": folder}, "required": ["folder"]},
        },
    }


def docker_tool(tool: Tool) -> dict[str, Any]:
    """One tool as the Docker catalog lists it."""
    rows = [{"name": name, "type": kind, "desc": said} for name, kind, said in tool.arguments]
    return {"name": tool.name, "description": tool.first, "arguments": rows}


def dockerfile(made: Made) -> str:
    """An image that serves `/files` and keeps its library in a volume; the wheel is built by `make dist`."""
    wheel = wheel_name(made.version)
    extras = ",".join(made.product["extras"])
    return (
        "FROM python:3.12-slim\n"
        "WORKDIR /app\n"
        f"COPY dist/{wheel} .\n"
        f'RUN pip install --no-cache-dir "./{wheel}[{extras}]" && rm {wheel} \\\n'
        "  && useradd --create-home triptych && mkdir /library && chown triptych /library\n"
        "USER triptych\n"
        "ENV TRIPTYCH_HOME=/library\n"
        'ENTRYPOINT ["triptych", "mcp", "--pull", "--root", "/files"]\n'
    )


def smithery(made: Made) -> dict[str, Any]:
    """`smithery.yaml`: how Smithery starts the server from its settings."""
    launch = made.rooted("")
    words = ", ".join(f'"{word}"' for word in launch.args[:-1])
    folder = {"type": "string", "title": "Folder", "description": "The folder to search."}
    return {
        "startCommand": {
            "type": "stdio",
            "configSchema": {"type": "object", "required": ["folder"], "properties": {"folder": folder}},
            "commandFunction": (
                f'(config) => ({{\n  command: "{launch.command}",\n  args: [{words}, config.folder]\n}})'
            ),
            "exampleConfig": {"folder": made.product["example_root"]},
        }
    }


def tool_table(tools: Sequence[Tool]) -> str:
    """The tools as a Markdown table."""
    rows = [f"| `{tool.name}` | {tool.first} |" for tool in tools]
    return "\n".join(["| Tool | What it does |", "|---|---|", *rows]) + "\n"


def _command(launch: Launch) -> Mapping[str, Any]:
    return {"command": launch.command, "args": [*launch.args]}


def _long(made: Made) -> str:
    return (
        f"{made.product['short']} Triptych reads text, office files, PDF, scans, pictures, code, sound and films in "
        "the folders you name, and answers with cited passages inside a token budget. Indexing and search run on this "
        f"machine. At the first start it downloads its models once ({made.product['downloads']}), and checks each by "
        "SHA-256; until then search is by words only."
    )
