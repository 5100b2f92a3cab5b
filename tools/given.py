"""The identity of weights that the user brought: files in a folder of the home that no table knows the hash of."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..manifests.registry import card
from ..manifests.weights import hash_of
from ..retrievers.base import Encoder, Retriever
from .indexing import sha256

if TYPE_CHECKING:
    from ..settings import Settings

LEFT_OUT = "checkpoint-"
"""How the names of folders begin that a training run keeps to go on from; no `load` reads them."""


def mark_of(name: str, settings: Settings) -> str:
    """What decides the index of the retriever `name` today: the hash of its weights, those of a table or those that
    the user brought, and what else it stands on."""
    system = card(name, "retriever")
    told = ",".join(map(hash_of, system.weights)) or given_hash(settings.weights / name)
    kind = system.resolve()
    return told or (kind.mark(settings) if issubclass(kind, Encoder | Retriever) else "")


def given_hash(folder: Path) -> str:
    """Hex SHA-256 over the names and bytes of all files in `folder`, `""` where there is none.

    A file is read once as long as its size and time stay the same.

    >>> given_hash(Path("there/is/none"))
    ''
    """
    if not folder.is_dir():
        return ""
    made = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        if not any(part.startswith(LEFT_OUT) for part in inside.parts):
            stat = path.stat()
            made.update(f"{inside.as_posix()}\0{_hash_of(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return made.hexdigest()


@lru_cache(maxsize=256)
def _hash_of(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)
