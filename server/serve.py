"""`triptych mcp`: put roots, libraries, background work and a transport together, and take them apart again."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.server.transport_security import TransportSecuritySettings

from ..errors import BadInput
from .app import build
from .jobs import Jobs
from .roots import Roots
from .service import summary
from .sessions import Sessions, open_library

if TYPE_CHECKING:
    from types import FrameType

    from mcp.server.mcpserver import MCPServer

    from ..settings import Settings
    from ..tools.library import Triptych
    from ..tools.stages import Stages
    from .output import Stdout

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
GOODBYE_S = 3.0
"""How long a server that was asked to stop waits for a step of background work to end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What the operator asked for (see `triptych mcp --help`)."""

    library: str | None = None
    roots: tuple[str, ...] = ()
    allow_write: bool = False
    transport: str = "stdio"
    host: str = "127.0.0.1"
    port: int = 8000
    toolset: str = "full"
    no_index: bool = False
    pull: bool = False
    llm_rerank: bool = False


def serve(settings: Settings, plan: Plan, stdout: Stdout) -> None:
    """Serve until the client goes away or a signal comes.

    Raises:
        BadInput: a root that is no folder, or a host other than this machine.
    """
    if plan.transport == "http" and plan.host not in LOCAL_HOSTS:
        hint = "Serving other machines needs authentication, which is not there yet: use 127.0.0.1."
        raise BadInput(f"The host `{plan.host}` is not this machine.", hint)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    roots = Roots.of(plan.roots)
    name = plan.library or (roots.library if plan.roots else "default")
    sessions = Sessions(_opener(settings, name if plan.allow_write or plan.roots else None), name)
    jobs = Jobs()
    start = Startup(settings, plan, sessions, jobs, roots)
    app = build(
        sessions,
        settings,
        allow_write=plan.allow_write,
        toolset=plan.toolset,
        llm_rerank=plan.llm_rerank,
        jobs=jobs,
        roots=roots,
        on_ready=start.begin if plan.transport == "stdio" else None,
    )
    code: int | None = None
    try:
        if plan.transport == "http":
            start.begin()
            _serve_http(app, plan)
        else:
            _serve_stdio(app, stdout, lambda: _end(jobs, sessions))
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
        raise
    finally:
        # A thread inside a model library cannot be waited for, nor outlive the interpreter.
        if not _end(jobs, sessions) and code is not None:
            os._exit(code)


class Startup:
    """The background work that a fresh server begins with, in this order: pull, load the models, index the roots."""

    def __init__(self, settings: Settings, plan: Plan, sessions: Sessions, jobs: Jobs, roots: Roots) -> None:
        self._settings = settings
        self._plan = plan
        self._sessions = sessions
        self._jobs = jobs
        self._roots = roots

    def begin(self) -> None:
        """Queue it all; returns at once."""
        if self._plan.pull:
            self._jobs.start("pull", self._pull)
        self._jobs.start("warm", self._warm)
        if self._roots.folders and not self._plan.no_index:
            self._jobs.start("index", self._index, Path(self._sessions.default).name)

    def _pull(self) -> list[str]:
        from ..manifests import weights

        return [one.name for one in weights.pull(self._settings.profile, self._settings.weights)]

    def _warm(self) -> None:
        self._sessions().warm()

    def _index(self) -> dict[str, Any]:
        return summary(self._sessions().index(self._roots.folders, prune=True))


def _opener(settings: Settings, made: str | None) -> Callable[[str], Triptych]:
    """Opens libraries that share their models; `made` is created if it is not there, any other must be."""
    shared: list[Stages] = []

    def opener(name: str) -> Triptych:
        if not shared:
            from ..tools.stages import Stages  # not before the handshake: it reads every card

            shared.append(Stages(settings))
        session = open_library(name, settings, shared[0])
        if name == made:
            session.create()
        return session

    return opener


def _serve_stdio(app: MCPServer[Any], stdout: Stdout, end: Callable[[], bool]) -> None:
    """Speak over stdin and stdout. A thread blocks in reading stdin, so a signal ends the process from its handler."""

    def stop(number: int, frame: FrameType | None) -> None:
        end()
        os._exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with stdout.handed_back():
        app.run("stdio")


def _serve_http(app: MCPServer[Any], plan: Plan) -> None:
    host = f"[{plan.host}]" if ":" in plan.host else plan.host
    names = [f"{local}:{plan.port}" for local in ("127.0.0.1", "localhost", "[::1]")]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.stderr.write(f"Serving on http://{host}:{plan.port}/mcp\n")
    app.run(
        "streamable-http",
        host=plan.host,
        port=plan.port,
        stateless_http=True,
        json_response=False,
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=names,
            allowed_origins=[f"http://{name}" for name in names],
        ),
    )


def _end(jobs: Jobs, sessions: Sessions) -> bool:
    """Stop background work and close the libraries. False when a job would not stop in time."""
    ended = jobs.close(GOODBYE_S)
    if ended:
        sessions.close()
    else:
        log.warning("a job was still busy; what it had acknowledged is kept")
    return ended
