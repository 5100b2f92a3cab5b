"""The exception tree. Every error says what was wrong, shows the offending value, and names the remedy.

The command line turns an error into `{"error": {"type", "message", "hint"}}` and the exit status `exit_code`;
the MCP server into a tool error with the same words. Messages never hold absolute paths of the machine.
"""

from __future__ import annotations


class TriptychError(Exception):
    """Base of everything Triptych raises on purpose.

    Args:
        message: what was wrong, the offending value in backticks.
        hint: what to do about it, usually a command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def as_dict(self) -> dict[str, dict[str, str]]:
        """The JSON form: `{"error": {"type", "message", "hint"}}`."""
        return {"error": {"type": type(self).__name__, "message": self.message, "hint": self.hint}}


class BadInput(TriptychError):
    """An argument or a file that cannot be used as given."""

    exit_code = 2


class NotFound(BadInput):
    """An unknown library, document or passage id."""


class StaleId(NotFound):
    """A passage id whose document has changed since; the hint names its successor."""


class Forbidden(BadInput):
    """A path outside the allowed roots, or a write without permission."""


class UnknownSystem(BadInput):
    """A system id that no card has; the hint names the nearest one."""


class UnreadableFile(BadInput):
    """One file that its reader could not read: damaged, encrypted, too large, of an unknown kind."""


class MissingExtra(TriptychError):
    """A package that an optional part needs is not installed."""

    exit_code = 3


class MissingWeights(TriptychError):
    """Model files that are not on this machine, or whose SHA-256 is wrong."""

    exit_code = 3


class StoreError(TriptychError):
    """The vector store failed, is damaged, or was built with another model."""

    exit_code = 4


class EndpointError(TriptychError):
    """A language model's endpoint that cannot be reached, refuses, or answers with something else than it should.

    Args:
        status: the HTTP status of a refusal.
        shape: an answer came, of the wrong shape.
    """

    exit_code = 4

    def __init__(self, message: str, hint: str = "", status: int | None = None, *, shape: bool = False) -> None:
        super().__init__(message, hint)
        self.status = status
        self.shape = shape


class Unsupported(TriptychError):
    """A combination that a system or model cannot do."""

    exit_code = 5


class TimedOut(TriptychError):
    """The deadline passed before the work was done."""

    exit_code = 6


class Cancelled(TriptychError):
    """The caller asked to stop. Work already acknowledged is kept."""

    exit_code = 130
