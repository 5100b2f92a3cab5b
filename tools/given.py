"""The identity of weights that the user brought: files in a folder of the home that no table knows the hash of."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from .indexing import sha256

LEFT_OUT = "checkpoint-"
"""How the names of folders begin that a training run keeps to go on from; no `load` reads them."""


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
