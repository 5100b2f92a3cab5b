"""Background work of a server: one worker, jobs one after another, each with an id, counts, and an end that is told.

One worker is enough: a library has one writer at a time, and two model loads at once only slow each other down.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from .. import progress
from ..errors import Cancelled, NotFound, TriptychError

ENDED = ("done", "failed", "cancelled")
KEPT = 50
"""How many ended jobs are remembered."""

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One piece of background work.

    Attributes:
        kind: `index`, `warm` or `pull`.
        state: `queued`, `running`, `done`, `failed` or `cancelled`.
        done, total, what: its latest step.
        counted: the latest step of each kind: work counts files and, in between, passages.
        result: what the work returned, as JSON values.
        error: `{"type", "message", "hint"}` of a failed one.
    """

    kind: str
    library: str
    work: Callable[[], Any]
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    state: str = "queued"
    done: int = 0
    total: int | None = None
    what: str = ""
    counted: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    result: Any = None
    error: dict[str, str] | None = None
    started: float | None = None
    seconds: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def as_dict(self) -> dict[str, Any]:
        """What `status` shows of it."""
        shown: dict[str, Any] = {"id": self.id, "kind": self.kind, "library": self.library, "state": self.state}
        done, total = self.counted.get("files", (self.done, self.total))
        if total is not None:
            shown |= {"done": done, "total": total, "what": "files" if "files" in self.counted else self.what}
        if self.started is not None:
            shown["seconds"] = round(self.seconds or time.monotonic() - self.started, 1)
        return {
            **shown,
            **({"result": self.result} if self.result else {}),
            **({"error": self.error} if self.error else {}),
        }


class Jobs:
    """A queue of jobs and the thread that does them. Use as a context manager or call `close`."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, kind: str, work: Callable[[], Any], library: str = "") -> Job:
        """Queue `work`; what it returns must be JSON values. It is stopped through `progress.step`."""
        job = Job(kind, library, work)
        with self._lock:
            if self._closed:
                raise Cancelled("The server is shutting down.", "Start it again.")
            self._forget_old()
            self._jobs[job.id] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="triptych-jobs", daemon=True)
                self._thread.start()
        self._queue.put(job)
        return job

    def list(self, library: str | None = None) -> list[Job]:
        """Jobs, oldest first, of one library (and those of none) or of all."""
        with self._lock:
            return [job for job in self._jobs.values() if library is None or job.library in ("", library)]

    def pending(self, kind: str, library: str | None = None) -> Job | None:
        """The first job of `kind` that has not ended."""
        return next((job for job in self.list(library) if job.kind == kind and job.state not in ENDED), None)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop at its next step.

        Raises:
            NotFound: no such job.
        """
        with self._lock:
            if job_id not in self._jobs:
                raise NotFound(f"Unknown job `{job_id}`.", "`status` lists the jobs of this server.")
            job = self._jobs[job_id]
        job.stop.set()
        return job

    def close(self, timeout_s: float = 5.0) -> bool:
        """Stop everything at its next step. False when a job was still busy after `timeout_s`."""
        with self._lock:
            self._closed = True
            thread = self._thread
            for job in self._jobs.values():
                job.stop.set()
        if thread is None:
            return True
        self._queue.put(None)
        thread.join(timeout_s)
        return not thread.is_alive()

    def _forget_old(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.state in ENDED]
        for job_id in ended[: max(0, len(ended) - KEPT + 1)]:
            del self._jobs[job_id]

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            _do(job)


def _do(job: Job) -> None:
    def on_step(done: int, total: int | None, what: str) -> None:
        job.done, job.total, job.what = done, total, what
        job.counted[what] = (done, total)

    job.started = time.monotonic()
    job.state = "running"
    try:
        with progress.reporting(on_step, cancelled=job.stop):
            progress.step(0)
            job.result = job.work()
        state = "done"
    except Cancelled:
        state = "cancelled"
    except TriptychError as error:
        job.error = error.as_dict()["error"]
        state = "failed"
        log.warning("job %s (%s) failed: %s", job.id, job.kind, error)
    except Exception as error:
        job.error = {"type": type(error).__name__, "message": "Internal error.", "hint": "The server's log has more."}
        state = "failed"
        log.exception("job %s (%s) failed", job.id, job.kind)
    job.seconds = time.monotonic() - job.started
    job.state = state
    job.ended.set()
