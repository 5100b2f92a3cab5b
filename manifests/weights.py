"""Model files: which there are, where they come from, whether they are here. `pull` is the only thing that downloads.

Each model has a folder of its own under the weights root, made complete in one step:

    weights/NAME/…              the files, and `verified.json`: what was verified, and how it was prepared
    weights/.pull/…             what a pull has not finished, and wheels whose files are not yet verified

A pull that was stopped at any moment leaves no half model. The next one sweeps up, keeps every model already complete
and every wheel already downloaded, and goes on from there; a wheel cut off in the middle starts again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any, Literal

from .. import progress
from ..errors import BadInput, MissingWeights
from ..settings import Settings
from . import carriers, prepare, registry

PULL = "Run `triptych pull embedded`."
VOICE = "silero_vad"
"""The weights that find speech, which every model for speech needs."""

_STAMP = "verified.json"
_UNFINISHED = ".pull"
_KEPT = "wheels"

State = Literal["present", "missing", "stale", "damaged"]


@dataclass(frozen=True)
class File:
    """One file: its path below the model's folder, its size, its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Carrier:
    """Somewhere a model's files can be had.

    Attributes:
        kind: `"hub"` (a repository on a model hub) or `"wheel"` (a package on the index).
        name, revision: the repository and its commit (or `"unseen"`), or the package and its version.
        folder: where the files stand inside the wheel.
        bytes: size of the wheel.
        platform: whose wheel is taken, where a package has one for each platform with the same files in all: the
            smallest. Nothing in it is run, so it need not be this machine's.
        rest: further wheels, where one does not hold everything. A file that is spread over several stands in them in
            pieces, `PATH.part1`, `PATH.part2`, ….
    """

    kind: Literal["hub", "wheel"]
    name: str
    revision: str
    folder: str = ""
    bytes: int = 0
    platform: str = ""
    rest: tuple[Carrier, ...] = ()

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Carrier:
        """A carrier from its TOML table, in which `rest` holds tables with what is not as in this one."""
        common = {key: value for key, value in entry.items() if key != "rest"}
        return cls(**common, rest=tuple(cls(**{**common, **one}) for one in entry.get("rest", ())))

    @property
    def wheels(self) -> tuple[Carrier, ...]:
        """This one and the further ones, in order."""
        return (self, *self.rest)


@dataclass(frozen=True)
class Model:
    """One entry of `weights.toml`. `prepare` is `"none"` or `"gguf"` (converted once after the pull)."""

    name: str
    title: str
    licence: str
    prepare: Literal["none", "gguf"]
    prepared_bytes: int
    carriers: tuple[Carrier, ...]
    files: tuple[File, ...]

    @property
    def hash(self) -> str:
        """SHA-256 over the files' hashes and the way they are prepared: the model's identity in a library."""
        lines = [f"{file.sha256} {file.path}" for file in sorted(self.files, key=lambda file: file.path)]
        if self.prepare != "none":
            lines.append(prepare.RECIPE)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Pulled:
    """One model after a pull: where its bytes came from (`"already there"` when nothing was fetched)."""

    name: str
    folder: Path
    carrier: str


@lru_cache(maxsize=1)
def models() -> Mapping[str, Model]:
    """Every model that can be pulled, by name."""
    table = tomllib.loads((resources.files(__package__) / "weights.toml").read_text("utf-8"))
    return {name: parse(name, entry) for name, entry in table.items()}


def parse(name: str, entry: Mapping[str, Any]) -> Model:
    """A checked model from its TOML table; anything unknown, missing or unsafe is `BadInput`."""
    try:
        made = Model(
            name=name,
            carriers=tuple(Carrier.of(carrier) for carrier in entry["carriers"]),
            files=tuple(File(path=path, **file) for path, file in entry["files"].items()),
            **{key: value for key, value in entry.items() if key not in ("carriers", "files")},
        )
    except (TypeError, KeyError) as error:
        raise BadInput(f"The weights `{name}` have a missing or unknown key: {error}.", "See `Model`.") from None
    checks = {
        f"prepare `{made.prepare}`": made.prepare in ("none", "gguf"),
        "no files": bool(made.files),
        "carrier kind": all(carrier.kind in ("hub", "wheel") for carrier in made.carriers),
        "wheel without a folder": all(one.folder for c in made.carriers if c.kind == "wheel" for one in c.wheels),
        "path": all(_stays_inside(file.path) for file in made.files),
        "sha256": all(len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef") for file in made.files),
        "revision": all(c.revision == "unseen" or len(c.revision) == 40 for c in made.carriers if c.kind == "hub"),
    }
    for what, holds in checks.items():
        if not holds:
            raise BadInput(f"The weights `{name}` have a wrong value: {what}.", "See `triptych.manifests.weights`.")
    return made


def model(name: str) -> Model:
    """The model `name`; an unknown one is `BadInput` with the nearest name."""
    known = models()
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    raise BadInput(
        f"Unknown weights `{name}`.", f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
    )


def hash_of(name: str) -> str:
    """The identity of a model, for a library's manifest: the same hash means the same vectors."""
    return model(name).hash


def stages(settings: Settings) -> dict[str, str]:
    """Role → id of the system that the profile has for it, without those that it leaves out."""
    named = {"retriever": settings.encoder, "reranker": settings.reranker, "refiner": settings.refiner}
    return {role: stage for role, stage in named.items() if stage != "none"}


def wanted_by(settings: Settings) -> tuple[str, ...]:
    """Names of the weights that every stage of `settings` reads, in the order of the stages.

    Those for speech only where the package that decodes sound is installed: without it they would never be read.
    """
    names = [name for role, stage in stages(settings).items() for name in registry.card(stage, role).weights]
    if settings.lm != "none" and settings.lm_path is None:
        names.append(model(settings.lm).name)
    if settings.speech != "none" and find_spec("av") is not None:
        names += [VOICE, model(settings.speech).name]
    if settings.tags != "none":
        names.append(model(settings.tags).name)
    names += [name for space in settings.further for name in registry.card(space, "retriever").weights]
    return tuple(dict.fromkeys(names))


def state(name: str, weights_root: Path, *, full: bool = False) -> State:
    """How the model stands on disk. Quick: stamp, existence and sizes; `full`: the SHA-256 of every file as well.

    `"stale"`: complete, but of another version of the table or of the preparation.
    """
    folder = weights_root / name
    stamp = _read_stamp(folder)
    if stamp is None:
        return "damaged" if folder.is_dir() and any(folder.iterdir()) else "missing"
    if stamp["hash"] != model(name).hash:
        return "stale"
    whole = all(_is_whole(folder / file.path, file, full) for file in _files_in_use(model(name), stamp))
    return "present" if whole else "damaged"


def folder(name: str, weights_root: Path) -> Path:
    """The folder of a pulled model, checked quickly (see `state`).

    Raises:
        MissingWeights: it is not there or not whole; the hint names the command that mends it.
    """
    found = state(model(name).name, weights_root)
    if found != "present":
        raise MissingWeights(f"The weights `{name}` are {found}.", PULL)
    return weights_root / name


def pull(what: str | Sequence[str], weights_root: Path, *, from_dir: Path | None = None) -> tuple[Pulled, ...]:
    """Bring models here, verified; those whose every SHA-256 is already right are left alone.

    Args:
        what: a profile (`"embedded"`), or names of models.
        weights_root: the weights folder of a home.
        from_dir: take wheels or plain files from this folder and use no network.

    Raises:
        BadInput: an unknown profile, model or folder.
        MissingWeights: no carrier brought the right bytes, or they could not be written; says which and why.
        Cancelled, TimedOut: see `progress`; what is complete stays.
    """
    weights_root = weights_root.absolute()  # the children that bring the files run in another folder
    names = wanted_by(Settings.load(what, home=weights_root.parent)) if isinstance(what, str) else tuple(what)
    chosen = [model(name) for name in names]
    if from_dir is not None and not from_dir.is_dir():
        raise BadInput(f"`{from_dir.name}` is not a folder.", "Give a folder with the wheels or the files.")
    with _writable(weights_root), _alone(weights_root):
        return tuple(_bring(one, weights_root, from_dir) for one in chosen)


def _bring(one: Model, root: Path, from_dir: Path | None) -> Pulled:
    if state(one.name, root, full=True) == "present":
        return Pulled(one.name, root / one.name, "already there")
    _need_space(one, root)
    unfinished = root / _UNFINISHED
    _sweep(unfinished)
    # A folder of its own for every run: a child that outlives a killed pull must not write into the next one's.
    work = Path(mkdtemp(prefix="run-", dir=unfinished))
    files, scratch = work / "files", work / "scratch"
    files.mkdir()
    scratch.mkdir()
    carrier = _fetch(one, from_dir, unfinished / _KEPT, scratch, files)
    complete = files if one.prepare == "none" else _prepared(one, files, scratch)
    _stamp(one, complete, carrier)
    _move_in(complete, root / one.name, work / "old")
    shutil.rmtree(work)
    shutil.rmtree(unfinished / _KEPT, ignore_errors=True)
    return Pulled(one.name, root / one.name, carrier)


def _sweep(unfinished: Path) -> None:
    for leftover in unfinished.glob("run-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _fetch(one: Model, from_dir: Path | None, kept: Path, scratch: Path, files: Path) -> str:
    if from_dir is not None:
        try:
            return carriers.fetch_from_folder(one, from_dir, files)
        except carriers.Refused as refusal:
            raise MissingWeights(f"`{from_dir.name}` cannot give `{one.name}`: {refusal}.", _by_hand(one)) from None
    refusals = []
    for carrier in one.carriers:
        label = f"{carrier.kind} {carrier.name}@{carrier.revision}"
        try:
            carriers.fetch(one, carrier, kept, scratch, files)
        except carriers.Refused as refusal:
            refusals.append(f"{label}: {refusal}")
        else:
            return label
    raise MissingWeights(f"No carrier brought `{one.name}` ({'; '.join(refusals)}).", _by_hand(one))


def _by_hand(one: Model) -> str:
    wheel = next((c for c in one.carriers if c.kind == "wheel"), None)
    if wheel is None:
        return "Name a folder that holds the files with `--from-dir`."
    platform = f" --only-binary=:all: --platform {wheel.platform}" if wheel.platform else ""
    packages = " ".join(f"{one.name}=={one.revision}" for one in wheel.wheels)
    command = f"python -m pip download --no-deps{platform} {packages}"
    return f"Where an index can be reached, run `{command}`, then `triptych pull embedded --from-dir FOLDER`."


def _prepared(one: Model, files: Path, scratch: Path) -> Path:
    source, target = files / one.files[0].path, scratch / "prepared"
    arguments = [prepare.__name__, str(source), str(target)]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    failure = carriers.run(arguments, scratch, one.prepared_bytes, f"preparing {one.name}", offline)
    if failure:
        if "No space left" in failure:
            raise OSError(errno.ENOSPC, "No space left on device")
        last = failure.strip().splitlines()[-1].replace(str(scratch), "").replace(str(files), "")
        raise MissingWeights(f"`{one.name}` could not be prepared: {last}", "Run `triptych doctor`.")
    return target


def _stamp(one: Model, complete: Path, carrier: str) -> None:
    paths = sorted(path for path in complete.rglob("*") if path.is_file())
    content = {
        "hash": one.hash,
        "carrier": carrier,
        "sources": {file.path: file.sha256 for file in one.files},
        "prepared": "" if one.prepare == "none" else prepare.RECIPE,
        "files": {
            path.relative_to(complete).as_posix(): {"bytes": path.stat().st_size, "sha256": carriers.sha256(path)}
            for path in paths
        },
    }
    (complete / _STAMP).write_text(json.dumps(content, indent=1), "utf-8")


def _files_in_use(one: Model, stamp: Mapping[str, Any]) -> tuple[File, ...]:
    """What a complete folder holds: the table's files, or what the preparation made of them."""
    if one.prepare == "none":
        return one.files
    return tuple(File(path=path, **file) for path, file in stamp["files"].items())


def _is_whole(path: Path, file: File, full: bool) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return not full or carriers.sha256(path) == file.sha256


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((folder / _STAMP).read_text("utf-8"))
        return {"hash": str(stamp["hash"]), "files": dict(stamp["files"])}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None  # no readable stamp is an answer: `state` calls such a folder missing or damaged


def _move_in(complete: Path, target: Path, aside: Path) -> None:
    if target.exists():
        target.replace(aside)
    complete.replace(target)


def _need_space(one: Model, root: Path) -> None:
    wheel = max((sum(wheel.bytes for wheel in carrier.wheels) for carrier in one.carriers), default=0)
    need = wheel + one.prepared_bytes + sum(file.bytes for file in one.files)
    if shutil.disk_usage(root).free < need:
        raise OSError(errno.ENOSPC, f"{need / 1e6:.0f} MB are needed")


@contextmanager
def _writable(root: Path) -> Iterator[None]:
    """Turns what the file system refuses into `MissingWeights`."""
    try:
        (root / _UNFINISHED).mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"The disk with the weights folder is full: {error.strerror}."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = "The weights folder cannot be written."
        else:
            message = f"The weights folder cannot be used: {error.strerror}."
        hint = "Free some space or set `TRIPTYCH_HOME` to another folder, then run the pull again; it goes on."
        raise MissingWeights(message, hint) from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One pull at a time for a weights folder; a second one waits and can be cancelled."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / _UNFINISHED / "lock")
    while True:
        progress.step(0, None, "waiting for another pull")
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in path
