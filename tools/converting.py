"""Checkpoints that are pickles become safetensors (`triptych convert`).

Nothing in Triptych loads a pickle, for unpickling runs what the file says. Here one is read by torch's restricted
loader (`weights_only=True`), which knows tensors and plain values and refuses everything else before it runs; and of
the plain values none is taken either: a checkpoint is names with tensors, or it is not converted.

Files are named as transformers names them: `pytorch_model.bin` becomes `model.safetensors`, its shards and their index
likewise, any other `NAME.bin`, `NAME.pt`, `NAME.pth` or `NAME.ckpt` becomes `NAME.safetensors`. What a trainer keeps
for itself (`SIDE`) is passed over. All files are written under other names first and given their own at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, Forbidden, NotFound
from ..progress import step
from .schemas import Shape

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
SIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)\w*\.\w+")
BESIDE = (".json", ".txt", ".model", ".jinja")
"""What goes along into another folder: settings, vocabularies, templates."""
INDEX = ".index.json"
PART = ".part"
NO_CODE = "Never load it: unpickling runs code. Ask its authors for safetensors."
TAKEN = "Delete it, or name another folder with `--to`."
ALONE = "Save the tensors alone, `torch.save(model.state_dict(), FILE)`, and convert that."


class ConvertedFile(Shape):
    """One checkpoint: `source` and `file` are paths below their folders, `sha256` is that of `file`."""

    source: str
    file: str
    tensors: int
    bytes: int
    sha256: str


class ConvertOut(Shape):
    """`convert --json`. `folder` is the name of that in which `files` are now; `skipped` were no checkpoints."""

    folder: str
    files: list[ConvertedFile]
    skipped: list[str]


def convert(source: Path, to: Path | None = None) -> ConvertOut:
    """Write the checkpoints in `source`, a folder with all below it or a single file, as safetensors.

    Args:
        to: the folder that is written, with the settings and vocabularies of `source`; default: where the pickles are,
            which stay.

    Raises:
        NotFound: `source` is not there, or there is no checkpoint in it.
        BadInput: one is damaged or holds anything but tensors, two would have the same name, or a file is there
            already; nothing is written then.
        Forbidden: the folder cannot be written.
        Cancelled, TimedOut: see `progress`.
    """
    top, checkpoints, skipped = _found(source)
    target = to or top
    names = {path: _named(path.relative_to(top)) for path in checkpoints}
    _free(target, names)
    along = list(_along(top, target)) if source.is_dir() and target.resolve() != top.resolve() else []
    with _all_or_none(target) as place:
        for path in along:
            place(path.relative_to(top), partial(shutil.copyfile, path))
        told: list[ConvertedFile] = []
        held: dict[Path, set[str]] = {}
        for done, path in enumerate(checkpoints):
            step(done, len(checkpoints), "checkpoints")
            tensors = _tensors(path)
            held[path] = set(tensors)
            file = place(names[path], partial(_save, tensors))
            told.append(_told(path.relative_to(top), names[path], len(tensors), file))
        for index in sorted(top.rglob(f"*{INDEX}")) if source.is_dir() else ():
            if (changed := _index(index, held)) is not None:
                place(_named(index.relative_to(top)), partial(_write, changed))
    step(len(checkpoints), len(checkpoints), "checkpoints")
    return ConvertOut(folder=target.resolve().name, files=told, skipped=[str(one.as_posix()) for one in skipped])


# --- which files -----------------------------------------------------------------------------------------------------


def _found(source: Path) -> tuple[Path, list[Path], list[Path]]:
    """The folder, its checkpoints, and the pickles that are none (below the folder), in order."""
    if not source.exists():
        raise NotFound(f"There is no `{source.name}`.", "Name a folder with a model's files, or one of these.")
    top = source if source.is_dir() else source.parent
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    pickled = [path for path in files if path.suffix.lower() in PICKLED]
    skipped = [path for path in pickled if SIDE.fullmatch(path.name)] if source.is_dir() else []
    chosen = [path for path in pickled if path not in skipped]
    if not chosen:
        kinds = ", ".join(f"`{one}`" for one in PICKLED)
        raise NotFound(f"`{source.name}` holds no checkpoint ({kinds}).", "Safetensors need no conversion.")
    return top, chosen, [path.relative_to(top) for path in skipped]


def _named(path: Path) -> Path:
    """What a file, or an index, is called as safetensors.

    >>> _named(Path("text/pytorch_model-00001-of-00002.bin")).name, _named(Path("a.pth")).name
    ('model-00001-of-00002.safetensors', 'a.safetensors')
    >>> _named(Path("pytorch_model.bin.index.json")).name
    'model.safetensors.index.json'
    """
    bare, index = (path.name.removesuffix(INDEX), INDEX) if path.name.endswith(INDEX) else (path.name, "")
    stem = re.sub(r"^pytorch_model(?=-|$)", "model", Path(bare).stem)
    return path.with_name(f"{stem}.safetensors{index}")


def _free(target: Path, names: Mapping[Path, Path]) -> None:
    """Raise `BadInput` if two files would have one name, or one is taken."""
    for path, name in names.items():
        twin = next((other.name for other, its in names.items() if its == name and other != path), "")
        if twin:
            raise BadInput(f"`{path.name}` and `{twin}` would both be `{name.name}`.", "Convert them one by one.")
        if (target / name).exists():
            raise BadInput(f"`{name.as_posix()}` is there already.", TAKEN)


def _along(top: Path, target: Path) -> Iterator[Path]:
    """The files of `top` that a converted model needs beside its weights; indexes of pickles are converted."""
    for path in sorted(top.rglob("*")):
        own = path.resolve().is_relative_to(target.resolve())
        if path.is_file() and path.suffix in BESIDE and not path.name.endswith(f".bin{INDEX}") and not own:
            yield path


def _index(path: Path, held: Mapping[Path, set[str]]) -> str | None:
    """The index of shards at `path` with their new names, or None if it is not one of converted files.

    Raises:
        BadInput: it is damaged, or does not say what its shards hold.
    """
    wrong = f"`{path.name}` does not say what its shards hold"
    try:
        told = json.loads(path.read_text("utf-8"))
        where = {str(key): path.parent / str(file) for key, file in told["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput(f"{wrong}: it is damaged.", "Put the model's own file there.") from None
    if not any(file in held for file in where.values()):
        return None
    for file in dict.fromkeys(where.values()):
        said = {key for key, its in where.items() if its == file}
        if odd := sorted(said ^ held.get(file, set())):
            raise BadInput(f"{wrong}: see `{odd[0]}` of `{file.name}`.", "Put all files of one model there.")
    changed = {**told, "weight_map": {key: _named(Path(file.name)).name for key, file in where.items()}}
    return json.dumps(changed, indent=2, sort_keys=True) + "\n"


# --- what they hold --------------------------------------------------------------------------------------------------


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Raises:
        BadInput: it is damaged, or holds something else as well.
    """
    import torch

    try:
        # A file of torch's own format is mapped, so that the memory of a large one is not needed.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise BadInput(f"`{path.name}` cannot be read: {error.strerror}.", "Check its permissions.") from None
    except Exception as error:  # whatever hostile bytes lead to
        raise _refused(path.name, error) from None
    if not isinstance(loaded, Mapping):
        raise BadInput(f"`{path.name}` holds `{type(loaded).__name__}`, no tensors by name.", ALONE)
    if not loaded:
        raise BadInput(f"`{path.name}` holds no tensors.", ALONE)
    made: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            what = type(value).__name__ if isinstance(key, str) else f"named by {type(key).__name__}"
            raise BadInput(f"`{path.name}` holds `{key!s:.80}` (`{what}`), which is no tensor with a name.", ALONE)
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise BadInput(f"`{key:.80}` of `{path.name}` is sparse, quantised or empty.", ALONE)
        kept = value.detach().contiguous()
        place = kept.untyped_storage().data_ptr()
        made[key] = kept.clone() if place in seen else kept  # safetensors keeps no two names for the same bytes
        seen.add(place)
    return made


def _refused(name: str, error: Exception) -> BadInput:
    """Why the restricted loader would not read a file."""
    said = str(error)
    code = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", said)
    if code is not None:
        return BadInput(f"`{name}` holds `{code[1] or code[2]}`, which is no tensor.", NO_CODE)
    if "TorchScript" in said:
        return BadInput(f"`{name}` is a `TorchScript` program, no checkpoint.", NO_CODE)
    return BadInput(f"`{name}` is damaged, or no checkpoint of torch.", "Copy it again.")


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _all_or_none(folder: Path) -> Iterator[Any]:
    """Within this block `place(name, write)` has `write` fill a file that gets its `name` below `folder` when the block
    is over; if it fails, none does."""
    waiting: list[tuple[Path, Path]] = []
    made: list[Path] = []

    def place(name: Path, write: Any) -> Path:
        final = folder / name
        if final.exists():
            raise BadInput(f"`{name.as_posix()}` is there already.", TAKEN)
        made.extend(_missing(final.parent))
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = final.with_name(f".{final.name}{PART}")
        waiting.append((scratch, final))
        write(scratch)
        return scratch

    try:
        yield place
        for scratch, final in waiting:
            scratch.replace(final)
    except OSError as error:
        raise Forbidden(f"`{folder.name}` cannot be written: {error.strerror}.", "Name a folder with `--to`.") from None
    finally:
        for scratch, _ in waiting:
            scratch.unlink(missing_ok=True)
        for empty in reversed(made):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()


def _missing(folder: Path) -> list[Path]:
    """Folders that have to be made for `folder`, outermost first."""
    return [one for one in reversed((folder, *folder.parents)) if not one.exists()]


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, {"format": "pt"})
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        kinds = sorted({str(one.dtype) for one in tensors.values()})
        raise BadInput(f"Safetensors cannot hold `{', '.join(kinds)}`: {error}.", ALONE) from None


def _write(text: str, path: Path) -> None:
    path.write_text(text, "utf-8")


def _told(source: Path, name: Path, tensors: int, file: Path) -> ConvertedFile:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    size = file.stat().st_size
    return ConvertedFile(source=source.as_posix(), file=name.as_posix(), tensors=tensors, bytes=size, sha256=digest)


def told_lines(result: ConvertOut) -> Sequence[str]:
    """What a person is told."""
    lines = [f"{one.source} → {one.file}: {one.tensors:,} tensors, {one.bytes:,} bytes" for one in result.files]
    return [*lines, *(f"{one}: passed over, no checkpoint of a model" for one in result.skipped)]
