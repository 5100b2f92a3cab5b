"""The folders a server may read, and the name of the library that stands for them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BadInput, Forbidden, NotFound


@dataclass(frozen=True)
class Roots:
    """Resolved folders. A path is inside when it still is after every `..` and symbolic link has been followed."""

    folders: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folders: Iterable[str | Path]) -> Roots:
        """Existing folders, without repeats and without those inside another.

        Raises:
            BadInput: one of them is no folder.
        """
        found: list[Path] = []
        for folder in folders:
            path = Path(folder).expanduser()
            if not path.is_dir():
                raise BadInput(f"The root `{path.name or folder}` is not a folder.", "Give an existing folder.")
            found.append(path.resolve())
        outer = [path for path in found if not any(path != other and path.is_relative_to(other) for other in found)]
        return cls(tuple(dict.fromkeys(outer)))

    @property
    def library(self) -> str:
        """A name that is the same for the same folders, whatever their order: folder name and a short hash.

        >>> Roots((Path("/data/Hand book"),)).library
        'hand-book-fe96f3'
        """
        digest = hashlib.sha256("\\0".join(sorted(str(path) for path in self.folders)).encode()).hexdigest()[:6]
        slug = re.sub(r"[^a-z0-9]+", "-", self.folders[0].name.lower()).strip("-")[:40] if self.folders else ""
        return f"{slug or 'library'}-{digest}"

    def inside(self, path: str) -> Path:
        """The file or folder that `path` names: absolute, or root-relative like the uris in answers.

        Raises:
            Forbidden: it leads outside, or there are no roots.
            NotFound: it is inside, but nothing is there.
        """
        if not self.folders:
            raise Forbidden(f"`{path}` cannot be read.", "This server has no roots; start it with `--root DIR`.")
        if "\0" in path:
            raise BadInput("A path holds a NUL character.", "Remove it.")
        found = [candidate.resolve() for candidate in self._candidates(path)]
        allowed = [place for place in found if any(place.is_relative_to(folder) for folder in self.folders)]
        if len(allowed) < len(found):
            names = ", ".join(f"`{folder.name}`" for folder in self.folders)
            raise Forbidden(f"`{_shown(path)}` is outside the allowed roots.", f"Use paths inside {names}.")
        existing = [place for place in allowed if place.exists()]
        if not existing:
            raise NotFound(f"`{_shown(path)}` does not exist.", "Check the path.")
        return existing[0]

    def _candidates(self, path: str) -> list[Path]:
        given = _expanded(path)
        if given.is_absolute():
            return [given]
        named = [folder.parent / given for folder in self.folders if given.parts and given.parts[0] == folder.name]
        return named or [folder / given for folder in self.folders]


def _shown(path: str) -> str:
    """Nothing of this machine's layout: an absolute path shows its last part only."""
    return PurePosixPath(path).name if _expanded(path).is_absolute() else path


def _expanded(path: str) -> Path:
    """`path` with `~` as the user's folder; `~NAME` of a user whom nobody knows stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
