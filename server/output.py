"""What a command writes: one answer on stdout, everything else on stderr.

While a command works, file descriptor 1 points at stderr, so that libraries that print cannot spoil the answer; the
answer itself goes to a private duplicate of the real stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .. import progress
from ..errors import BadInput, Cancelled, TriptychError

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from rich.console import Console
    from rich.progress import Progress, TaskID

SHOW_AFTER_S = 2.0
LINE_EVERY_S = 5.0
STOPPING = "Stopping after this step; press Ctrl-C again to stop at once.\n"


def saved(content: bytes, path: Path) -> Path:
    """Write a file that the user asked for.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        path.expanduser().write_bytes(content)
    except OSError as error:
        raise BadInput(
            f"`{path.name}` cannot be written: {error.strerror}.", "Name another file: `--out FILE`."
        ) from None
    return path


class ReaderGone(Exception):
    """Nobody reads stdout any more."""


class Stdout:
    """The real stdout, kept for the answer."""

    def __init__(self) -> None:
        self._private: int | None = None

    def reserve(self) -> None:
        """Point file descriptor 1 at stderr until the process ends or `handed_back`."""
        if self._private is None and _is_descriptor_one(sys.stdout):
            sys.stdout.flush()
            self._private = os.dup(1)
            os.dup2(2, 1)

    @contextlib.contextmanager
    def handed_back(self) -> Iterator[None]:
        """Give descriptor 1 back for a protocol that writes to it itself."""
        if self._private is None:
            yield
            return
        sys.stdout.flush()
        os.dup2(self._private, 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(2, 1)

    def write(self, text: str) -> None:
        """Write the answer.

        Raises:
            ReaderGone: nobody reads it.
        """
        try:
            self._write(text)
        except BrokenPipeError:
            raise ReaderGone from None

    def _write(self, text: str) -> None:
        if self._private is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        with open(self._private, "w", encoding="utf-8", errors="replace", closefd=False) as stream:
            stream.write(text)

    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return sys.stdout.isatty() if self._private is None else os.isatty(self._private)


def _is_descriptor_one(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 1)
    except (AttributeError, OSError, ValueError):
        return False


class Output:
    """One command's output.

    Args:
        as_json: exactly one JSON document instead of text for people.
        stdout: the process's, of which there is one.
    """

    def __init__(self, as_json: bool, stdout: Stdout) -> None:
        self.as_json = as_json
        self.stdout = stdout

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Where a command does its work: prints are diverted, progress is shown, Ctrl-C stops at the next step.

        Raises:
            Cancelled: Ctrl-C was pressed, even if the work got done meanwhile.
        """
        self.stdout.reserve()
        stop = threading.Event()
        stopped = Cancelled("Stopped by Ctrl-C.", "What was already acknowledged is kept; run it again to go on.")
        try:
            with contextlib.redirect_stdout(sys.stderr), _interrupt_sets(stop), Meter() as meter:
                with progress.reporting(meter.on_step, cancelled=stop):
                    yield
        except Exception as error:
            if stop.is_set():  # whatever failed then, failed because of it
                raise stopped from error
            raise
        if stop.is_set():
            raise stopped

    def show(self, data: Any, human: Callable[[Console], None]) -> None:
        """Write the answer: `data` as JSON, or whatever `human` draws."""
        self.stdout.reserve()
        if self.as_json:
            self.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
            return
        self.stdout.write(self._drawn(human))

    def _drawn(self, human: Callable[[Console], None]) -> str:
        from io import StringIO

        from rich.console import Console

        wide = self.stdout.is_terminal()
        with StringIO() as page:
            size = None if wide else 120
            human(
                Console(file=page, width=size, force_terminal=wide, highlight=False, markup=False, soft_wrap=not wide)
            )
            return page.getvalue()

    def fail(self, error: TriptychError) -> None:
        """Say what went wrong: as JSON on stdout, else in words on stderr."""
        if self.as_json:
            self.stdout.reserve()
            self.stdout.write(json.dumps(error.as_dict(), ensure_ascii=False) + "\n")
            return
        sys.stderr.write(f"{error.message}\n" + (f"{error.hint}\n" if error.hint else ""))


@contextlib.contextmanager
def _interrupt_sets(stop: threading.Event) -> Iterator[None]:
    """First Ctrl-C sets `stop`, the second raises `KeyboardInterrupt`. Only the main thread may handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        sys.stderr.write(STOPPING)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Meter:
    """Progress on stderr after two seconds of work: a bar on a terminal, elsewhere now and then a line."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last = self._start
        self._line = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_step(self, done: int, total: int | None, what: str) -> None:
        """One step of `progress.step`."""
        now = time.monotonic()
        if now - self._start < SHOW_AFTER_S:
            return
        if sys.stderr.isatty():
            self._draw(done, total, what)
        elif now - self._last >= LINE_EVERY_S:
            line = f"{what}: {done} of {total}\n" if total else f"{what}\n"
            if line != self._line:
                self._last, self._line = now, line
                sys.stderr.write(line)

    def _draw(self, done: int, total: int | None, what: str) -> None:
        if self._bar is None or self._task is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._task, description=what, completed=done, total=total)
