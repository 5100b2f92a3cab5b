"""Which file a uri means. A uri is `<root label>/<path below the root>`, with forward slashes: it says nothing of where
on this machine the root lies, and stays the same when the root moves."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BadInput, Forbidden, NotFound
from ..retrievers.readers.detect import archive_of

SKIPPED = {"node_modules", "__pycache__", "venv", "site-packages"}


@dataclass(frozen=True)
class Found:
    """A file to read: its uri and resolved path; `outside` when a link leads out of its root."""

    uri: str
    path: Path
    outside: bool = False


class Roots:
    """Folders by label.

    >>> roots = Roots({"handbook": "/data/handbook"})
    >>> roots.uri_of(Path("/data/handbook/travel/rates.pdf"))
    'handbook/travel/rates.pdf'
    """

    def __init__(self, folders: Mapping[str, str | Path]) -> None:
        self._folders = {label: Path(folder) for label, folder in folders.items()}

    def label_for(self, folder: Path) -> str:
        """A label no root has yet: the folder's name, numbered if need be."""
        name = folder.name or "files"
        label, n = name, 1
        while label in self._folders:
            n += 1
            label = f"{name}-{n}"
        return label

    def holds(self, path: Path) -> bool:
        """Whether `path` (resolved) lies in a root."""
        return self._root_of(path) is not None

    def uri_of(self, path: Path) -> str:
        """The uri of a resolved path; the deepest root that holds it counts."""
        label = self._root_of(path)
        if label is None:
            raise Forbidden(f"`{path.name}` is outside the library's folders.", "Index its folder first.")
        inner = path.relative_to(self._folders[label]).as_posix()
        return label if inner == "." else f"{label}/{inner}"

    def path_of(self, uri: str) -> Path:
        """The file that `uri` means, after every link was followed; of a file in an archive, its path below that one.

        Raises:
            NotFound: its root is unknown or the file is gone.
            Forbidden: it leads out of its root.
        """
        label, _, inner = uri.partition("/")
        if label not in self._folders:
            raise NotFound(f"`{uri}` is in no folder of this library.", "See `triptych status`.")
        folder = self._folders[label].resolve()
        path = (folder / PurePosixPath(inner)).resolve()
        if not path.is_relative_to(folder):
            raise Forbidden(f"`{uri}` leads out of its folder.", "Only files inside indexed folders are read.")
        if not path.is_file() and archive_of(path) is None:
            raise NotFound(f"The file `{uri}` is gone.", "Index its folder again with `--prune`.")
        return path

    def find(self, uri: str) -> Path | None:
        """The file that `uri` means, or None where it cannot be read any more."""
        try:
            return self.path_of(uri)
        except (NotFound, Forbidden):
            return None

    def _root_of(self, path: Path) -> str | None:
        holders = [(len(folder.parts), label) for label, folder in self._folders.items() if path.is_relative_to(folder)]
        return max(holders)[1] if holders else None


def existing(given: Path) -> Path:
    """`given`, resolved.

    Raises:
        BadInput: nothing is there, or it is neither a file nor a folder.
    """
    try:
        path = given.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise BadInput(f"The path `{_shown(given)}` does not exist.", "Check the spelling.") from None
    if not path.is_dir() and not path.is_file():
        raise BadInput(f"`{_shown(given)}` is neither a file nor a folder.", "Name files or folders.")
    return path


def files_below(path: Path, roots: Roots) -> Iterator[Found]:
    """Every file to index at or below `path` (resolved), in order. Hidden files and folders, package folders, empty
    `__init__.py` files and what is no regular file are left out; links are followed to files inside the same root."""
    if path.is_file():
        yield Found(roots.uri_of(path), path)
        return
    yield from _walked(path, path, roots)


def _walked(path: Path, top: Path, roots: Roots) -> Iterator[Found]:
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if _is_wanted(name) and not (Path(folder) / name).is_symlink())
        for name in sorted(names):
            if _is_wanted(name):
                yield from _checked(Path(folder) / name, top, roots)


def files_at(changed: Iterable[Path], top: Path, roots: Roots) -> Iterator[Found]:
    """Of the paths `changed` (see `is_wanted`), every file that `files_below(top, …)` would find there."""
    for path in sorted(changed):
        if path == top:
            yield from files_below(top, roots)
        elif path.is_dir() and not path.is_symlink():
            yield from _walked(path, top, roots)
        else:
            yield from _checked(path, top, roots)


def is_wanted(path: Path, top: Path) -> bool:
    """Whether `files_below(top, …)` comes by `path` when it is there: no folder on the way is hidden, or a link."""
    if not path.is_relative_to(top):
        return False
    on_the_way = [parent for parent in path.parents if parent != top and parent.is_relative_to(top)]
    named = all(_is_wanted(part) for part in path.relative_to(top).parts)
    return named and not any(parent.is_symlink() for parent in on_the_way)


def _checked(file: Path, top: Path, roots: Roots) -> Iterator[Found]:
    target = Path(os.path.realpath(file))  # unlike Path.resolve, a loop of links is no error but no file either
    uri = roots.uri_of(file)
    if file.is_symlink() and not target.is_relative_to(top):
        yield Found(uri, target, outside=True)
    elif target.is_file() and not (file.name == "__init__.py" and target.stat().st_size == 0):
        yield Found(uri, target)


def is_wanted_inside(name: str) -> bool:
    """Whether a file in an archive would be found by `files_below` if that were unpacked."""
    return all(_is_wanted(part) for part in name.split("/"))


def covers(uris: Container[str], uri: str) -> bool:
    """Whether `uri`, or an archive or folder that it is in, is one of `uris`."""
    return uri in uris or any(str(parent) in uris for parent in PurePosixPath(uri).parents)


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and name not in SKIPPED


def _shown(given: Path) -> str:
    return given.name if given.is_absolute() else str(given)
