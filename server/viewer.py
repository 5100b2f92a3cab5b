"""The result viewer: one page without a build step, in a frame of MCP Apps hosts, or on loopback by `triptych ui`.

The page writes everything it shows as text nodes, so that no document can bring markup of its own. On loopback it is
answered only to who knows the key in the address that `triptych ui` prints, and its policy allows no script, style or
address but its own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
    from starlette.requests import Request

URI = "ui://triptych/viewer"
HOSTS = ("127.0.0.1", "localhost", "[::1]")
MOST_BYTES = 1_000_000
"""Largest body of a call."""
_KEY = '<meta name="triptych-key" content="">'


def html(key: str = "") -> str:
    """The page; with a `key` it asks the server that it came from, without one the host that frames it."""
    page = resources.files(__package__).joinpath("viewer.html").read_text("utf-8")
    return page.replace(_KEY, _KEY.replace('""', f'"{key}"'), 1)


def policy(page: str) -> str:
    """The Content-Security-Policy of `page`: its own script and style by hash, its own server, inline pictures."""
    script, style = (_hash(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def application(app: MCPServer[Any], key: str, port: int) -> Starlette:
    """`GET /?key=…` is the page, `POST /call` a tool call `{"name", "arguments"}` answered as the protocol's result.

    Args:
        app: whose tools are called.
        key: who does not know it gets 403.
        port: where this is served: a page from any other origin gets 403.
    """
    origins = {f"http://{host}:{port}" for host in HOSTS}

    async def page(request: Request) -> Response:
        if not _knows(key, request.query_params.get("key")):
            return PlainTextResponse("Open the address that `triptych ui` printed.", 403)
        shown = html(key)
        headers = {"Content-Security-Policy": policy(shown), "Cache-Control": "no-store"}
        return HTMLResponse(shown, headers={**headers, "Referrer-Policy": "no-referrer"})

    async def call(request: Request) -> Response:
        origin = request.headers.get("origin")
        if not _knows(key, request.headers.get("x-triptych-key")) or origin not in {None, *origins}:
            return PlainTextResponse("Not allowed.", 403)
        if (given := await _asked(request)) is None:
            return PlainTextResponse('A call is {"name": "…", "arguments": {…}}.', 400)
        result: Any = await app.call_tool(*given)
        return JSONResponse(result.model_dump(mode="json", by_alias=True, exclude_none=True))

    return Starlette(
        routes=[Route("/", page), Route("/call", call, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))],
    )


def _knows(key: str, given: str | None) -> bool:
    return given is not None and hmac.compare_digest(key.encode(), given.encode())


async def _asked(request: Request) -> tuple[str, dict[str, Any]] | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    try:
        asked = json.loads(body)
    except ValueError:
        return None
    match asked:
        case {"name": str(name), "arguments": dict(arguments)}:
            return name, arguments
    return None


def _hash(page: str, tag: str) -> str:
    [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
