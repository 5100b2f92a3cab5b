"""What this installation has, what it lacks, and the command that mends it. Nothing is changed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import BadInput, Unsupported
from . import weights
from .plugins import plugins
from .registry import EXTRAS, cards

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from ..settings import Settings

Status = Literal["ok", "optional", "missing", "stale", "damaged"]
DEVICES = ("cpu", "cuda")
_ROOMY = 1_000_000_000
_WITHOUT = "Use the profile `embedded` or `standard`, or let an endpoint encode (`encode_endpoint`)."


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        what: what was looked at (`"weights all_minilm_l6_v2"`).
        status: `"optional"` is a lack that only some uses feel.
        detail: what was found.
        mend: the command or step that mends it, empty where nothing is wrong.
    """

    what: str
    status: Status
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, those about the machine first."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """True when nothing that the profile needs is missing or wrong."""
        return all(check.status in ("ok", "optional") for check in self.checks)


def examine(settings: Settings, *, full: bool = False) -> Report:
    """Look at the home folder, the processor, the packages and the weights of `settings`.

    Args:
        full: compute the SHA-256 of every model file as well (about a second per GB).
    """
    checks = (*_machine(settings), *_packages(), *_plugins(), *_weights(settings, full))
    return Report(checks)


def computes_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 itself; emulated, it is slower than float32."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def _machine(settings: Settings) -> Iterator[Check]:
    yield Check("python", "ok", ".".join(map(str, sys.version_info[:3])))
    standing = next(path for path in (settings.home.absolute(), *settings.home.absolute().parents) if path.exists())
    if standing.is_dir() and os.access(standing, os.W_OK | os.X_OK):
        yield Check("home folder", "ok", "writable" if standing == settings.home.absolute() else "will be made")
    else:
        yield Check("home folder", "damaged", "cannot be written", "Set `TRIPTYCH_HOME` to a writable folder.")
    yield _space(standing)
    fast = computes_bfloat16()
    yield Check("processor", "ok", "computes in bfloat16" if fast else "no bfloat16: models run in float32, slower")
    if settings.device != "cpu":
        yield _graphics(settings)


def _graphics(settings: Settings) -> Check:
    """Whether the card has the memory that the profile's systems want."""
    known = cards()
    named = dict.fromkeys((*weights.stages(settings).values(), *settings.further))
    wanted = {name: known[name].memory_gb for name in named if name in known and known[name].memory_gb}
    need = f"{' and '.join(wanted)} want {sum(wanted.values()):.1f} GB" if wanted else "no system wants much"
    has = graphics_gb()
    if has <= 0:
        return Check("graphics card", "missing", f"none that torch can use; {need}", _WITHOUT)
    if has < sum(wanted.values()):
        return Check("graphics card", "missing", f"{has:.1f} GB; {need}", _WITHOUT)
    return Check("graphics card", "ok", f"{has:.1f} GB; {need}")


def graphics_gb() -> float:
    """The memory of the graphics card that torch would use, in GB; 0 for none."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.get_device_properties(0).total_memory) / 1e9


def require(device: str, profile: str) -> None:
    """That models can compute on `device`.

    Raises:
        BadInput: no such device is known.
        Unsupported: this machine has none.
    """
    if device not in DEVICES:
        raise BadInput(f"Setting `device` is `{device}`.", f"Use one of: {', '.join(DEVICES)}.")
    if device == "cuda" and graphics_gb() <= 0:
        hint = f"See `triptych doctor --profile {profile}`, or use another profile or TRIPTYCH_DEVICE=cpu."
        raise Unsupported(f"The profile `{profile}` computes on `cuda`, and torch finds no graphics card.", hint)


def _space(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free"
    if free > _ROOMY:
        return Check("disk", "ok", detail)
    return Check("disk", "optional", detail, "Free some space: a pull needs up to 1 GB.")


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    for line in metadata.requires("triptych") or ():
        requirement = Requirement(line)
        extra = next((name for name in EXTRAS if _belongs_to(requirement, name)), "")
        if requirement.name == "triptych" or not (extra or _is_base(requirement)):
            continue
        yield _package(requirement, extra)
    if find_spec("pip") is None:
        yield Check("pip", "missing", "this Python has no pip, so nothing can be pulled", "python -m ensurepip")


def _plugins() -> Iterator[Check]:
    """Other packages with systems; a broken one is no fault of this installation."""
    found = plugins()
    for package in dict.fromkeys(found.packages.values()):
        names = ", ".join(name for name, owner in found.packages.items() if owner == package)
        yield Check(f"systems of {package}", "ok", names)
    for one in found.broken:
        yield Check(f"systems of {one.package}", "optional", f"broken: {one.error.message}", one.error.hint)


def _package(requirement: Requirement, extra: str) -> Check:
    what = f"package {requirement.name}"
    mend = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        if extra:
            return Check(what, "optional", f"not installed (extra `{extra}`)", f"pip install 'triptych[{extra}]'")
        return Check(what, "missing", "not installed", mend)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(what, "ok", version)
    return Check(what, "optional" if extra else "damaged", f"{version}, but {requirement.specifier} is needed", mend)


def _is_base(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    return (
        not _is_base(requirement) and requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
    )


def _weights(settings: Settings, full: bool) -> Iterator[Check]:
    details = {
        "present": "every SHA-256 is right" if full else "complete",
        "missing": "not pulled",
        "stale": "made for another version of Triptych",
        "damaged": "a file is missing, cut short or changed",
    }
    for name in weights.wanted_by(settings):
        state = weights.state(name, settings.weights, full=full)
        status: Status = "ok" if state == "present" else state
        mend = "" if status == "ok" else f"triptych pull {settings.profile}"
        yield Check(f"weights {name}", status, details[state], mend)
    yield from _given(settings)


def _given(settings: Settings) -> Iterator[Check]:
    """Weights that no package carries and that the user puts into the home folder."""
    named = [*weights.stages(settings).items(), *(("retriever", name) for name in settings.further)]
    for role, stage in named:
        card = cards()[stage]
        if card.role != role or card.weights or not card.checkpoints:
            continue
        if (settings.weights / card.id).is_dir():
            yield Check(f"weights {card.id}", "ok", "in the home folder")
        else:
            fitting = [point for point in card.checkpoints if point["native"]] or card.checkpoints
            names = " or ".join(f"`{point['name']}`" for point in fitting)
            mend = f"Put the files of {names} into `weights/{card.id}` of the home folder."
            yield Check(f"weights {card.id}", "missing", "not pulled: no package carries them", mend)
