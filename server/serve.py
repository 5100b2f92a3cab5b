"""`triptych mcp` and `triptych ui`: put roots, libraries, background work and a transport together, and apart again."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from . import logs
from .app import build
from .jobs import Jobs
from .lines import claim_stdin
from .roots import Roots
from .service import summary
from .sessions import Sessions, open_library

if TYPE_CHECKING:
    from types import FrameType

    from ..settings import Settings
    from ..tools.library import Triptych
    from ..tools.stages import Stages
    from .output import Stdout

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
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    token_file: str | None = None
    public_url: str | None = None
    workers: int = 1
    log_json: bool = False


def serve(settings: Settings, plan: Plan, stdout: Stdout) -> None:
    """Serve until the client goes away or a signal comes.

    Raises:
        BadInput: a root that is no folder, a host other than this machine without what that needs, or options that do
            not go together.
    """
    access = _access(plan)
    logs.begin(as_json=plan.log_json)
    if plan.transport == "stdio":
        _serve_stdio(Served(settings, plan), settings, stdout)
        return
    from . import web

    if plan.workers > 1:
        _check_shared(plan)
        if plan.pull:
            pull(settings)
        made = functools.partial(worker, settings, replace(plan, pull=False), access)
        web.serve(made, access, plan.workers)
        return
    served = Served(settings, plan)
    with served.running():
        served.start.begin()
        application = web.application(served.app, access, served.state, settings.message_bytes)
        web.serve(application, access)


def show(settings: Settings, plan: Plan) -> None:
    """Serve the result viewer to browsers of this machine until a signal comes."""
    from . import viewer, web

    logs.begin(as_json=plan.log_json)
    key = secrets.token_urlsafe(24)
    served = Served(settings, plan)
    with served.running():
        served.start.begin()
        application = viewer.application(served.app, key, plan.port)
        told = f"Open http://127.0.0.1:{plan.port}/?key={key}"
        web.serve(application, _access(plan), told=told)


def _access(plan: Plan) -> Any:
    """Who may come in over HTTP; over stdio nobody else can."""
    if plan.transport == "stdio":
        if plan.workers > 1:
            raise BadInput(
                "`--workers` is about `--transport http`.", "Over stdio there is one client and one process."
            )
        return None
    from .web import Access

    return Access.of(
        plan.host,
        plan.port,
        hosts=plan.allow_hosts,
        origins=plan.allow_origins,
        token_file=plan.token_file,
        public_url=plan.public_url,
        environ=os.environ,
    )


def _check_shared(plan: Plan) -> None:
    """Several processes share a library's store, but neither jobs nor what a client was asked: they only read."""
    asked = {"--allow-write": plan.allow_write, "--llm-rerank": plan.llm_rerank}
    asked["--root without --no-index"] = bool(plan.roots) and not plan.no_index
    for option, given in asked.items():
        if given:
            hint = "Use one worker; or index with `triptych index` beforehand, and serve with `--no-index`."
            raise BadInput(f"`{option}` and `--workers {plan.workers}` do not go together.", hint)


def worker(settings: Settings, plan: Plan, access: Any) -> Any:
    """One process of several: the application, which begins and ends with its server."""
    from . import web

    logs.begin(as_json=plan.log_json)
    served = Served(settings, plan)
    application = web.application(served.app, access, served.state, settings.message_bytes)
    served.start.begin()
    atexit.register(served.end)
    return application


class Served:
    """A server and everything behind it."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        roots = Roots.of(plan.roots)
        name = plan.library or (roots.library if plan.roots else "default")
        self.sessions = Sessions(_opener(settings, name if plan.allow_write or plan.roots else None), name)
        self.jobs = Jobs()
        self.start = Startup(settings, plan, self.sessions, self.jobs, roots)
        self.app = build(
            self.sessions,
            settings,
            allow_write=plan.allow_write,
            toolset=plan.toolset,
            llm_rerank=plan.llm_rerank,
            jobs=self.jobs,
            roots=roots,
            on_ready=self.start.begin if plan.transport == "stdio" else None,
        )

    def state(self) -> str:
        """`loading` until the models are there, then `ready`."""
        waiting = any(self.jobs.pending(kind) for kind in ("pull", "warm"))
        return "loading" if waiting else "ready"

    def end(self) -> bool:
        """Stop background work and close the libraries. False when a job would not stop in time."""
        ended = self.jobs.close(GOODBYE_S)
        if ended:
            self.sessions.close()
        else:
            log.warning("a job was still busy; what it had acknowledged is kept")
        return ended

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it serves; afterwards everything is taken apart, and the process ends if that cannot be done."""
        code: int | None = None
        try:
            yield
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
            raise
        finally:
            # A thread inside a model library cannot be waited for, nor outlive the interpreter.
            if not self.end() and code is not None:
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
            self._jobs.start("pull", lambda: pull(self._settings))
        self._jobs.start("warm", self._warm)
        if self._roots.folders and not self._plan.no_index:
            self._jobs.start("index", self._index, Path(self._sessions.default).name)

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


def _serve_stdio(served: Served, settings: Settings, stdout: Stdout) -> None:
    """Speak over stdin and stdout. A thread blocks in reading stdin, so a signal ends the process from its handler."""

    def stop(number: int, frame: FrameType | None) -> None:
        served.end()
        os._exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with served.running(), stdout.handed_back():
        claim_stdin(settings.message_bytes)
        served.app.run("stdio")


def pull(settings: Settings) -> list[str]:
    """Fetch the weights of the profile; names of what came."""
    from ..manifests import weights

    return [one.name for one in weights.pull(settings.profile, settings.weights)]
