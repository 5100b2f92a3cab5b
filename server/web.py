"""The server over HTTP: who may come in, what it tells of its state, how it ends, and several processes of it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from pydantic import AnyHttpUrl
from sse_starlette.sse import AppStatus
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..errors import BadInput
from . import tokens

if TYPE_CHECKING:
    import uvicorn
    from mcp.server.mcpserver import MCPServer
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .tokens import Holder

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
PATH = "/mcp"
OPEN = ("/health", "/ready")
GRACE_S = 30
"""How long a server that was asked to stop waits for calls under way."""
LISTENING = "subscriptions/listen"
TICK_S, QUIET_TICKS = 0.2, 3
"""A server is idle when no call was under way for three ticks: one may have come in just before the signal."""
KNOWN_ALIVE_S = 60
"""How long a worker may be silent: loading a model can keep a process from answering for seconds."""
HEADERS = ["authorization", "content-type", "last-event-id", "mcp-protocol-version", "mcp-session-id", "mcp-method"]


@dataclass(frozen=True)
class Access:
    """Who may come in.

    Attributes:
        hosts: what `Host` may say, besides this machine's own names; without a port: any port.
        origins: what `Origin` may say, besides this machine's own.
        holders: whose tokens are accepted; empty: no token is asked for.
        address: this server's own, as clients know it: the audience of its tokens.
    """

    host: str
    port: int
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()
    address: str = ""

    @classmethod
    def of(
        cls,
        host: str,
        port: int,
        *,
        hosts: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
        token_file: str | None = None,
        public_url: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Access:
        """The access that an operator asks for.

        Raises:
            BadInput: other machines would be served without a list of hosts and tokens; or a part that is malformed.
        """
        holders = tokens.known(environ or {}, Path(token_file) if token_file else None)
        if host not in LOCAL_HOSTS:
            lacking = [*(() if hosts else ("`--allow-host NAME`",))]
            lacking += [] if holders else [f"tokens (`--token-file FILE` or `{tokens.VARIABLE}`)"]
            if lacking:
                hint = f"Serving other machines needs {' and '.join(lacking)}; or use 127.0.0.1."
                raise BadInput(f"The host `{host}` is not this machine.", hint)
        named = f"[{host}]" if ":" in host else host
        address = public_url or f"http://{hosts[0] if hosts and host not in LOCAL_HOSTS else f'{named}:{port}'}{PATH}"
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise BadInput(f"The address `{address[:80]}` is none.", "Give `--public-url https://host.example/mcp`.")
        return cls(
            host,
            port,
            tuple(_checked_host(one) for one in hosts),
            tuple(_checked_origin(one) for one in origins),
            tokens.with_audience(holders, address),
            address,
        )

    def security(self) -> TransportSecuritySettings:
        """The allow-lists: always in force, whatever the server is bound to."""
        own = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        given = [name for host in self.hosts for name in ([host] if _has_port(host) else [host, f"{host}:*"])]
        return TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=[*own, *given],
            allowed_origins=[*(f"http://{name}" for name in own), *self.origins],
        )


class Tokens:
    """`mcp`'s `TokenVerifier` over static tokens."""

    def __init__(self, holders: tuple[Holder, ...]) -> None:
        self._holders = holders

    async def verify_token(self, token: str) -> AccessToken | None:
        """Whose token it is, or None. Whether its audience is this server is checked by whoever asks."""
        found = tokens.holder_of(token, self._holders, time.time())
        if found is None:
            return None
        return AccessToken(
            token="",  # nobody further in has a use for it
            client_id=found.client,
            scopes=list(found.scopes),
            expires_at=found.expires,
            resource=found.audience,
        )


def application(app: MCPServer[Any], access: Access, state: Callable[[], str], message_bytes: int) -> ASGIApp:
    """The whole application.

    Args:
        state: `ready` or `loading`.
        message_bytes: the largest body.
    """
    # A call under way is answered before the server ends; by default its stream would be cut.
    AppStatus.enable_automatic_graceful_drain = False
    _add_states(app, state)
    security = access.security()
    inner: ASGIApp = app.streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        json_response=False,
        max_request_body_size=message_bytes,
        transport_security=security,
    )
    guarded = _Guard(inner, access, security)
    if not access.origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=list(access.origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=[*HEADERS, "mcp-name"],
        expose_headers=["mcp-session-id", "www-authenticate"],
    )


class _Guard:
    """Hosts and origins before anything else, then the token, then the protocol. Only the states are open to all."""

    def __init__(self, inner: ASGIApp, access: Access, security: TransportSecuritySettings) -> None:
        self._inner = inner
        self._calls = 0
        self._watcher: asyncio.Task[None] | None = None
        self._security = TransportSecurityMiddleware(security)
        self._known = inner
        if access.holders:
            backend = BearerAuthBackend(Tokens(access.holders), resource_server_url=AnyHttpUrl(access.address))
            required = RequireAuthMiddleware(inner, [tokens.READ])
            self._known = AuthenticationMiddleware(AuthContextMiddleware(required), backend=backend)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._inner(scope, receive, send)
            return
        self._watcher = self._watcher or asyncio.create_task(self._end_streams())
        request = Request(scope)
        refusal = await self._security.validate_request(request)
        call = request.method == "POST" and request.headers.get("mcp-method") != LISTENING
        self._calls += call
        try:
            await (refusal or self._known)(scope, receive, send)
        finally:
            self._calls -= call

    async def _end_streams(self) -> None:
        """Once the server is to end and no call is under way, end the streams on which clients only listen."""
        quiet = 0
        while quiet < QUIET_TICKS:
            await asyncio.sleep(TICK_S)
            server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)  # uvicorn's, while it serves
            quiet = quiet + 1 if getattr(server, "should_exit", False) and not self._calls else 0
        AppStatus.should_exit = True


def _add_states(app: MCPServer[Any], state: Callable[[], str]) -> None:
    """`/health`: the process answers. `/ready`: its models are loaded. Neither says anything else."""

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> JSONResponse:
        now = state()
        if now == "ready":
            return JSONResponse({"status": now})
        return JSONResponse({"status": now}, status_code=503, headers={"Retry-After": "2"})

    app.custom_route("/health", methods=["GET"], name="health")(health)
    app.custom_route("/ready", methods=["GET"], name="ready")(ready)


def serve(app: ASGIApp | Callable[[], ASGIApp], access: Access, workers: int = 1, told: str = "") -> None:
    """Serve until a signal comes; calls under way are answered first.

    Args:
        app: the application; with several workers a picklable function that makes it, which each of them calls.
        told: a line for whoever started it, once it listens; without one, the protocol's address.

    Raises:
        BadInput: the port is taken, or not allowed.
        SystemExit: a signal came; 128 + its number.
    """
    import uvicorn

    with _listening(access) as listener:
        host = f"[{access.host}]" if ":" in access.host else access.host
        sys.stderr.write(f"{told or f'Serving on http://{host}:{access.port}{PATH}'}\n")
        sys.stderr.flush()
        config = uvicorn.Config(
            app,
            factory=workers > 1,
            workers=workers,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
            timeout_worker_healthcheck=KNOWN_ALIVE_S,
        )
        if workers > 1:
            _supervise(config, listener)
        else:
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            uvicorn.Server(config).run(sockets=[listener])


def _supervise(config: uvicorn.Config, listener: socket.socket) -> None:
    from uvicorn.supervisors import Multiprocess

    asked: list[int] = []

    class Workers(Multiprocess):
        def handle_int(self) -> None:
            asked.append(signal.SIGINT)
            super().handle_int()

        def handle_term(self) -> None:
            asked.append(signal.SIGTERM)
            super().handle_term()

    Workers(config, sockets=[listener]).run()
    if asked:
        raise SystemExit(128 + asked[0])


def _listening(access: Access) -> socket.socket:
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    try:
        return socket.create_server((access.host, access.port), family=family, backlog=1024)
    except OSError as error:
        message = f"Nothing can listen on `{access.host}:{access.port}`: {error.strerror}."
        raise BadInput(message, "Name another port: `--port N`.") from None


def _checked_host(given: str) -> str:
    if not given or any(mark in given for mark in "/*@ ?#"):
        raise BadInput(f"`{given[:80]}` is no host.", "Give a name as browsers send it: `docs.example` or with a port.")
    return given.lower()


def _checked_origin(given: str) -> str:
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or given != f"{parts.scheme}://{parts.netloc}":
        raise BadInput(f"`{given[:80]}` is no origin.", "Give scheme and host alone: `https://chat.example`.")
    return given


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdecimal() and (host.startswith("[") or host.count(":") == 1)
