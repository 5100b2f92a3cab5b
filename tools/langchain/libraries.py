"""The sessions behind the LangChain classes."""

from __future__ import annotations

import weakref
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ...errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...settings import Settings
    from ..library import Triptych


def opened(library: Any) -> Triptych:
    """A session as it is, or the one of a library's name or folder."""
    if not isinstance(library, str | Path):
        return library  # type: ignore[no-any-return]
    from ..library import Triptych

    return Triptych(library)


class Libraries:
    """The library of some tools, and the others that a call may name, which share its models.

    What was opened here is closed when the last of the tools is gone.
    """

    def __init__(self, library: str | Path | Triptych) -> None:
        self._own = opened(library)
        self._others: dict[str, Triptych] = {}
        self._lock = Lock()
        weakref.finalize(self, _close, [] if self._own is library else [self._own], self._others)

    @property
    def settings(self) -> Settings:
        return self._own.settings

    def __call__(self, name: str | None = None) -> Triptych:
        """The session of library `name`; None: the tools' own.

        Raises:
            BadInput: a name that could be a path.
        """
        from ..library import NAME, Triptych

        if name is None or name == self._own.name:
            return self._own
        if not NAME.fullmatch(name):
            raise BadInput(f"`{name}` is no library name.", "Use letters, digits, `.`, `_` and `-`.")
        with self._lock:
            found = self._others.get(name) or Triptych(name, self.settings, stages=self._own.stages)
            if found.exists():  # a name that stands for nothing is not kept: its first use says so
                self._others[name] = found
            return found


def _close(own: Iterable[Triptych], others: dict[str, Triptych]) -> None:
    for session in (*own, *others.values()):
        session.close()
