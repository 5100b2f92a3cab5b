"""The libraries that a server has open: each opened once, on first use, and shared by all calls."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING

from ..errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..settings import Settings
    from ..tools.library import Triptych
    from ..tools.stages import Stages

MOST_OPEN = 64
"""How many libraries one server keeps open; names that stand for none yet make room first."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def open_library(name: str, settings: Settings, stages: Stages | None = None) -> Triptych:
    """A session with a library; one that is not there is found out by the first call that needs it.

    Args:
        stages: models that sessions share; default: the session's own.
    """
    from ..tools.library import Triptych

    return Triptych(name, settings, stages=stages)


class Sessions:
    """Sessions by library name.

    Args:
        opener: opens a library by name.
        default: the name that stands for "no library named".
    """

    def __init__(self, opener: Callable[[str], Triptych], default: str) -> None:
        self.default = default
        self._opener = opener
        self._open: dict[str, Triptych] = {}
        self._lock = Lock()

    def __call__(self, name: str | None = None) -> Triptych:
        """The session of library `name`.

        Raises:
            BadInput: a name that could be a path.
            NotFound: no such library.
        """
        wanted = name or self.default
        if wanted != self.default and not _NAME.fullmatch(wanted):
            raise BadInput(f"`{wanted}` is no library name.", "Use letters, digits, `.`, `_` and `-`.")
        with self._lock:
            if wanted not in self._open:
                self._make_room()
                self._open[wanted] = self._opener(wanted)
            return self._open[wanted]

    def _make_room(self) -> None:
        if len(self._open) < MOST_OPEN:
            return
        self._open = {name: session for name, session in self._open.items() if session.exists()}
        if len(self._open) >= MOST_OPEN:
            raise BadInput(f"`{MOST_OPEN}` libraries are open already.", "Use one of them, or restart the server.")

    def close(self) -> None:
        """Close every open session."""
        with self._lock:
            for session in self._open.values():
                session.close()
            self._open.clear()
