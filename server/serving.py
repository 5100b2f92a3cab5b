"""The commands that serve: `mcp`, `ui`, and `token`, which makes what clients over HTTP show."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingExtra
from .command import register

if TYPE_CHECKING:
    from .command import Run

serving = click.Group()
command = functools.partial(register, serving)


@command("mcp", library=False)
@click.option("--root", "roots", multiple=True, metavar="DIR", help="Folder to serve; indexed in the background.")
@click.option("--library", help="Library to serve (default: the one of the roots, else `default`).")
@click.option("--allow-write", is_flag=True, help="Offer the tools `index` and `delete`.")
@click.option("--transport", type=click.Choice(["stdio", "http"]), default="stdio", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="For http; others need --allow-host and tokens.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="For http.")
@click.option("--allow-host", "allow_hosts", multiple=True, metavar="NAME", help="For http: a name clients call it by.")
@click.option(
    "--allow-origin", "allow_origins", multiple=True, metavar="URL", help="For http: a web page's origin to let in."
)
@click.option("--token-file", metavar="FILE", help="For http: clients and the hashes of their tokens (TOML).")
@click.option("--public-url", metavar="URL", help="For http: the address clients use, which tokens are made for.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="For http: processes.")
@click.option("--toolset", type=click.Choice(["full", "chatgpt", "minimal"]), default="full", show_default=True)
@click.option("--llm-rerank", is_flag=True, help="Offer `llm_rerank`, which asks the client's model (MCP sampling).")
@click.option("--no-index", is_flag=True, help="Do not index the roots at start.")
@click.option("--pull", is_flag=True, help="Download missing model weights first.")
@click.option("--quality", type=click.Choice(["default", "high"]), help="high: better and slower.")
@click.option("--log-json", is_flag=True, help="Logs on stderr as JSON, one object a line.")
def mcp(run: Run, library: str | None, quality: str | None, **options: Any) -> None:
    """Serve the tools to an assistant over the Model Context Protocol.

    Over HTTP a token can stand in the environment as TRIPTYCH_MCP_TOKEN.
    """
    run.out.stdout.reserve()
    serve = _server()
    serve.serve(run.settings(quality=quality), serve.Plan(library=library, **options), run.out.stdout)


@command("ui", library=False)
@click.option("--root", "roots", multiple=True, metavar="DIR", help="Folder to show; indexed in the background.")
@click.option("--library", help="Library to show (default: the one of the roots, else `default`).")
@click.option("--port", type=click.IntRange(1, 65535), default=8321, show_default=True)
@click.option("--no-index", is_flag=True, help="Do not index the roots at start.")
@click.option("--pull", is_flag=True, help="Download missing model weights first.")
def ui(run: Run, library: str | None, port: int, **options: Any) -> None:
    """Ask and look at answers in a browser on this machine: kept and cut words, pages, budgets.

    The address stands on stderr; it holds a key that is new at every start.
    """
    serve = _server()
    serve.show(run.settings(), serve.Plan(library=library, transport="http", port=port, **options))


def _server() -> Any:
    """The module that serves, which needs the extra `mcp`."""
    try:
        from . import serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("mcp", "mcp_types"):
            raise
        raise MissingExtra("The package `mcp` is not installed.", "Run `pip install 'triptych[mcp]'`.") from None
    return serve


@command("token", library=False)
@click.argument("client", metavar="NAME")
@click.option("--write", is_flag=True, help="It may call `index` and `delete` where the server offers them.")
@click.option("--audience", default="", metavar="URL", help="The server that it is for (default: the one that has it).")
@click.option("--days", type=click.IntRange(1, 3650), help="How long it is good (default: until it is removed).")
def token(run: Run, client: str, write: bool, audience: str, days: int | None) -> None:
    """Make a token for the client NAME, and the lines for a server's `--token-file`. Shown once, kept nowhere."""
    from . import tokens

    scopes = ("read", "write") if write else ("read",)
    until = (datetime.now(UTC) + timedelta(days=days)).date() if days else None
    made, lines = tokens.made(client, scopes, audience, until)
    data = {"client": client, "token": made, "lines": lines}

    def human(to: Any) -> None:
        to.print(f"Token, for the client:\n{made}\n\nLines, for the server's token file:\n{lines}", end="")

    run.out.show(data, human)
