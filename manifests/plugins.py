"""Systems of other packages, found by the entry points of the group `triptych.systems`.

An entry point's value is `PACKAGE:FILE.toml`, a file of cards inside an installed package: the same fields as ours, one
table per system under its role (`[retriever.my_system]`). Listing them reads that file alone; a package's code is
imported when one of its systems is built, and only code of the package that has the card. A file that is wrong leaves
out the systems of its package, and nobody else's: `broken` says what is wrong with it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, TriptychError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .registry import Card

GROUP = "triptych.systems"


@dataclass(frozen=True)
class Broken:
    """A package whose cards cannot be read.

    Attributes:
        package: its name, as `pip` knows it.
        error: what is wrong, and what mends it.
    """

    package: str
    error: TriptychError


@dataclass(frozen=True)
class Plugins:
    """What other packages offer.

    Attributes:
        cards: by id.
        packages: id → the package that the system is of.
        broken: packages whose cards cannot be read.
    """

    cards: Mapping[str, Card]
    packages: Mapping[str, str]
    broken: tuple[Broken, ...]


@lru_cache(maxsize=1)
def plugins() -> Plugins:
    """What is installed, read once; of two packages with one id the first by name has it."""
    cards: dict[str, Card] = {}
    packages: dict[str, str] = {}
    broken: list[Broken] = []
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda one: (_package(one), one.name, one.value)):
        package = _package(entry)
        try:
            found = dict(_cards(entry))
            for system_id in found:
                _check_free(system_id, packages)
        except TriptychError as error:
            wrong = f"The systems of the package `{package}` are left out: {error.message}"
            broken.append(Broken(package, BadInput(wrong, f"{error.hint} Or: `pip uninstall {package}`.")))
        else:
            cards |= found
            packages |= dict.fromkeys(found, package)
    return Plugins(cards, packages, tuple(broken))


def _cards(entry: metadata.EntryPoint) -> Iterator[tuple[str, Card]]:
    from .registry import ROLES, parse
    from .weights import models

    for role, table in _table(entry).items():
        if role not in ROLES or not isinstance(table, dict):
            raise BadInput(f"`{role}` in `{entry.value}` is no role.", f"Use: {', '.join(ROLES)}.")
        for system_id, values in table.items():
            if not isinstance(values, dict):
                raise BadInput(f"`{role}.{system_id}` in `{entry.value}` is no card.", "A card is a table of fields.")
            made = parse(system_id, role, values, package=entry.module.partition(".")[0])
            unknown = next((name for name in made.weights if name not in models()), None)
            if unknown is not None:
                raise BadInput(f"The card `{system_id}` names the weights `{unknown}`.", "See `weights.toml`.")
            yield system_id, made


def _table(entry: metadata.EntryPoint) -> dict[str, Any]:
    path = _file(entry)
    if path is None:
        raise BadInput(f"There is no file of cards `{entry.value}`.", "An entry point's value is `PACKAGE:FILE.toml`.")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"`{entry.value}` cannot be read: {error}.", "Update the package.") from None


def _file(entry: metadata.EntryPoint) -> Path | None:
    """The file in the package's folder, found without running any code of the package."""
    top, *inner = entry.module.split(".")
    name = entry.attr
    if not name.endswith(".toml") or name.startswith("."):
        return None
    spec = find_spec(top)
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    paths = (Path(folder).joinpath(*inner, name) for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _check_free(system_id: str, taken: Mapping[str, str]) -> None:
    from .registry import packaged

    if system_id in packaged():
        raise BadInput(f"`{system_id}` is a system of Triptych's own.", "Choose another id.")
    if system_id in taken:
        raise BadInput(f"`{system_id}` is a system of the package `{taken[system_id]}`.", "Choose another id.")


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
