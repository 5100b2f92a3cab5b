"""What a measurement of rerankers has done so far: a folder that the next run goes on from.

Each system and order has a file of its own, to which a line is added with every query. A line is known by a digest of
all that decides the answer, so that one folder may serve many runs: what was done under other settings, models or data
stays there and is passed over. What does not decide it, such as the number of threads, is left out. The code is told by
the package's version alone: after a change of a system's code, begin with another folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ...manifests import weights
from ...retrievers.lm_transformers import weight_files
from ...retrievers.loading import computed_in

if TYPE_CHECKING:
    from pathlib import Path

    from ...manifests.registry import Card
    from ...settings import Settings
    from .result import DataInfo

KEY = 32
"""So many characters of a digest are kept."""
APART = frozenset(
    {
        *("home", "profile", "lm", "threads", "lm_timeout", "lm_concurrency", "lm_rpm", "lm_prices"),
        *("store_uri", "store_collection", "store_token"),
        *("reranker", "refiner", "depth", "rerank_depth", "max_tokens", "max_tokens_cap"),
    }
)
"""Settings that decide no ranking, or that are told otherwise."""


@dataclass(frozen=True)
class Done:
    """One query reranked.

    Attributes:
        found: passage ids, best first.
        calls, tokens, repaired, complete: as in `Ranking`.
        seconds: how long it took.
        commit: of the code that did it.
    """

    found: list[str]
    calls: int
    tokens: int
    repaired: int
    complete: bool
    seconds: float
    commit: str


class Notes:
    """The queries that one system has done on one order, in memory and, where there is a folder, in its file.

    Args:
        path: the file; None keeps nothing.
        of: `identity` of the system.
    """

    def __init__(self, path: Path | None, of: str) -> None:
        self._path = path
        self._of = of
        self._done = dict(_read(path)) if path is not None else {}

    def get(self, query: str, rows: Sequence[tuple[str, float]]) -> Done | None:
        """What came of this query's text on these candidates (passage id, score), in this order."""
        return self._done.get(self._key(query, rows))

    def add(self, query: str, rows: Sequence[tuple[str, float]], done: Done) -> None:
        """Keep it."""
        key = self._key(query, rows)
        self._done[key] = done
        if self._path is not None:
            _append(self._path, json.dumps({"key": key, **asdict(done)}, ensure_ascii=False))

    def _key(self, query: str, rows: Sequence[tuple[str, float]]) -> str:
        return _digest([self._of, query, [list(row) for row in rows]])


def identity(system: Card, settings: Settings, data: DataInfo) -> str:
    """Digest of what decides a system's answers beside a query and its candidates.

    Settings that stand at their default do not count, so that a new one makes no earlier work void.
    """
    plain = {one.name: one.default for one in fields(settings)}
    own = settings.weights / system.id
    given = sorted(path for path in own.rglob("*") if path.is_file()) if own.is_dir() else []
    return _digest(
        {
            "version": version("triptych"),
            "system": system.id,
            "settings": {k: v for k, v in asdict(settings).items() if k not in APART and v != plain[k]},
            "precision": computed_in(settings.precision),
            "lm": language_model(settings),
            "weights": {name: weights.hash_of(name) for name in system.weights},
            "given": {path.relative_to(own).as_posix(): sha256(path) for path in given},
            "data": data.sha256,
        }
    )


def language_model(settings: Settings) -> str:
    """The language model of the prompted systems, in one line: files and their SHA-256, or the endpoint's model."""
    if settings.lm_endpoint:
        return f"`{settings.lm_model}` behind an endpoint"
    if (path := settings.lm_path) is not None:
        told = {f"{path.name}/{file.name}" if path.is_dir() else file.name: sha256(file) for file in weight_files(path)}
    else:
        told = {file.path: file.sha256 for file in weights.model(settings.lm).files}
    return ", ".join(f"`{name}` sha256 {digest}" for name, digest in told.items())


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:KEY]


def _read(path: Path) -> Iterator[tuple[str, Done]]:
    """Key and content of each line; half a line, of a run that was stopped while it wrote, is passed over."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            row = json.loads(line)
            yield row.pop("key"), Done(**row)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # done again, and added as a line of its own


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0, 2)
        torn = False
        if file.tell():
            file.seek(-1, 2)
            torn = file.read(1) != b"\n"
        file.write(("\n" * torn + line + "\n").encode())
