"""Triptych: search → rerank → compress. Cited evidence for LLM agents inside a token budget.

>>> import triptych
>>> triptych.BadInput("k is `0`", "Use 1 to 100.").hint
'Use 1 to 100.'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import (
        BadInput,
        Cancelled,
        EndpointError,
        Forbidden,
        MissingExtra,
        MissingWeights,
        NotFound,
        StaleId,
        StoreError,
        TimedOut,
        TriptychError,
        UnknownSystem,
        UnreadableFile,
        Unsupported,
    )
    from .refiners.base import Budget, Passage, Piece, Refined
    from .rerankers.base import Ranking
    from .retrievers.base import Hit, Item, MediaRef, Query, Source
    from .settings import Settings
    from .tools.library import Triptych

_HOME = {
    **dict.fromkeys(
        (
            "BadInput",
            "Cancelled",
            "EndpointError",
            "Forbidden",
            "MissingExtra",
            "MissingWeights",
            "NotFound",
            "StaleId",
            "StoreError",
            "TimedOut",
            "TriptychError",
            "UnknownSystem",
            "UnreadableFile",
            "Unsupported",
        ),
        "errors",
    ),
    **dict.fromkeys(("Budget", "Passage", "Piece", "Refined"), "refiners.base"),
    "Ranking": "rerankers.base",
    **dict.fromkeys(("Hit", "Item", "MediaRef", "Query", "Source"), "retrievers.base"),
    "Settings": "settings",
    "Triptych": "tools.library",
}

__all__ = [  # noqa: RUF022 (the facade first, then values, then errors)
    "Triptych",
    "Settings",
    "Budget",
    "Hit",
    "Item",
    "MediaRef",
    "Passage",
    "Piece",
    "Query",
    "Ranking",
    "Refined",
    "Source",
    "BadInput",
    "Cancelled",
    "EndpointError",
    "Forbidden",
    "MissingExtra",
    "MissingWeights",
    "NotFound",
    "StaleId",
    "StoreError",
    "TimedOut",
    "TriptychError",
    "UnknownSystem",
    "UnreadableFile",
    "Unsupported",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
