"""Cards: what each system is, and where its code starts. Listing them imports no model library."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module, resources
from typing import Any

from ..errors import BadInput, UnknownSystem, Unsupported
from .plugins import plugins

ROLES = ("retriever", "reranker", "refiner")
FIDELITIES = ("released-weights", "from-paper", "reconstructed", "ours", "baseline")
EXTRAS = ("mcp", "office", "audio", "whisper", "video", "train", "all")
_MODALITIES = ("text", "page", "image", "audio", "video")
_CHECKPOINT_FIELDS = {"name", "format", "native", "revision"}
_ID = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""What ids look like: they name folders, and stand in lists."""
OWN = "triptych"


@dataclass(frozen=True)
class Card:
    """One system.

    Attributes:
        entry: `module:Class`, resolved only when the system is built.
        family: the folder its file stands in.
        paper: `arXiv:…`, `doi:…` or `none`; the same tag stands in the module's first docstring line.
        kind: the mechanism in a few words (`"late interaction"`, `"token pruning"`).
        checkpoints: each with `name`, `format`, `native` (loads without conversion) and `revision`.
        weights: names of `weights.toml` entries that `load` reads.
        builds_on: ids of systems whose code it may import.
        evidence: a path under `benchmarks/results/`, or `pending`.
        result: that file's finding in one line.
        memory_gb: of its smallest checkpoint in bfloat16; 0: small enough for any machine.
    """

    id: str
    role: str
    family: str
    title: str
    entry: str
    paper: str
    kind: str
    modalities: tuple[str, ...]
    licence_code: str
    licence_weights: str
    fidelity: str
    evidence: str
    result: str = ""
    checkpoints: tuple[Mapping[str, Any], ...] = ()
    weights: tuple[str, ...] = ()
    builds_on: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    memory_gb: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Every field, JSON-serialisable."""
        return asdict(self)

    def resolve(self) -> Any:
        """The class behind `entry` (imports its module now).

        Raises:
            Unsupported: it is another package's, and cannot be imported or has not the doors of a system.
        """
        module, _, name = self.entry.partition(":")
        package = plugins().packages.get(self.id)
        if package is None:
            return getattr(import_module(module), name)
        try:
            found = getattr(import_module(module), name)
        except Exception as error:
            raise _broken(self, package, f"cannot be imported ({type(error).__name__}: {error})") from error
        if not isinstance(found, type) or not all(callable(getattr(found, door, None)) for door in ("load", "tiny")):
            raise _broken(self, package, "is no class with the doors `load` and `tiny`")
        return found


@lru_cache(maxsize=1)
def cards() -> Mapping[str, Card]:
    """All cards by id, alphabetical within a role: ours, then those of other packages (see `plugins`)."""
    return {**packaged(), **plugins().cards}


@lru_cache(maxsize=1)
def packaged() -> Mapping[str, Card]:
    """Our own cards by id, alphabetical within a role."""
    found: dict[str, Card] = {}
    for card in _read():
        if card.id in found:
            raise BadInput(f"System id `{card.id}` stands on two cards.", "Ids are unique across roles.")
        found[card.id] = card
    return found


def card(system_id: str, role: str | None = None) -> Card:
    """The card of `system_id`.

    Raises:
        UnknownSystem: no such id (the hint names the nearest), or it has another role.
    """
    known = [key for key, value in cards().items() if role is None or value.role == role]
    if system_id in known:
        return cards()[system_id]
    near = get_close_matches(system_id, known, n=1)
    kind = role or "system"
    hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
    raise UnknownSystem(f"Unknown {kind} `{system_id}`.", hint)


def _read() -> Iterator[Card]:
    folder = resources.files(__package__) / "systems"
    for role in ROLES:
        table = tomllib.loads((folder / f"{role}s.toml").read_text("utf-8"))
        for system_id, entry in table.items():
            yield parse(system_id, role, entry)


def parse(system_id: str, role: str, entry: Mapping[str, Any], package: str = OWN) -> Card:
    """A checked card from its TOML table; anything unknown or missing is `BadInput`.

    Args:
        package: the package that `entry` must lie in.
    """
    where = f"The card `{system_id}`"
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    try:
        made = Card(id=system_id, role=role, **values)
    except TypeError as error:
        raise BadInput(f"{where} has a missing or unknown key: {error}.", "See `Card` for the fields.") from None
    checks = {
        f"id `{system_id}`": _ID.fullmatch(system_id) is not None,
        f"fidelity `{made.fidelity}`": made.fidelity in FIDELITIES,
        f"extras {made.extras}": set(made.extras) <= set(EXTRAS),
        f"modalities {made.modalities}": set(made.modalities) <= set(_MODALITIES),
        f"paper `{made.paper}`": made.paper == "none" or made.paper.startswith(("arXiv:", "doi:")),
        f"entry `{made.entry}`": made.entry.startswith((f"{package}.", f"{package}:")) and made.entry.count(":") == 1,
        "checkpoints": all(set(point) == _CHECKPOINT_FIELDS for point in made.checkpoints),
    }
    for name, holds in checks.items():
        if not holds:
            raise BadInput(f"{where} has a wrong value: {name}.", "See `triptych.manifests.registry`.")
    return made


def _broken(card: Card, package: str, what: str) -> Unsupported:
    return Unsupported(f"`{card.id}` of the package `{package}` {what}.", f"Update it, or `pip uninstall {package}`.")
