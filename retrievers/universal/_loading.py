"""How models of text and pictures are read from a folder that the user brought: transformers' own classes, every key
accounted for, adapters merged, picture processors that need no torchvision."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...errors import BadInput, MissingExtra, MissingWeights
from ..loading import CONFIG, config_of, dtype, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER, ADAPTED = "adapter_config.json", "adapter_model.safetensors"
NOWHERE = "no-adapter-is-here"
OF_PEFT = "base_model.model."
"""How peft begins every key."""


def kind_of(folder: Path, *kinds: str) -> dict[str, Any]:
    """`config.json` of a model of one of the architectures `kinds` (`model_type`).

    Raises:
        MissingWeights: it is not there, or no weights beside it.
        BadInput: no JSON object, or of another architecture.
    """
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        missing = CONFIG if not (folder / CONFIG).is_file() else WEIGHTS[0]
        hint = _unpickled(folder, "pytorch_model") or "Put the model's files there, as safetensors."
        raise MissingWeights(f"`{folder.name}` has no `{missing}`.", hint)
    return config_of(folder, *kinds)


def loaded(
    model: Any,
    folder: Path,
    precision: str = "auto",
    device: str = "cpu",
    *,
    renamed: Mapping[str, str] | None = None,
    spare: Sequence[str] = (),
) -> Any:
    """A model of the transformers class `model` with the weights in `folder`, in evaluation mode; nothing is fetched,
    no code of the folder is run.

    Args:
        renamed: regular expression of a key in the file → what stands there in the class.
        spare: parts of keys that the file may have and the class does not need.

    Raises:
        BadInput: keys or shapes are not those of the class; names the first.
    """
    from safetensors import SafetensorError

    with quiet():
        try:
            made, info = model.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype(precision, device),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                key_mapping=dict(renamed) if renamed else None,
                # An adapter beside the weights would be put on here, without a check of its keys: see `adapted`.
                adapter_kwargs={"subfolder": NOWHERE},
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise BadInput(f"`{folder.name}` cannot be read: {_first(error)}.", "Put its files there again.") from error
    wrong = {
        "lacks": sorted(info["missing_keys"]),
        "has an unknown": sorted(key for key in info["unexpected_keys"] if not any(part in key for part in spare)),
        "has another shape of": sorted(str(one[0]) for one in info["mismatched_keys"]),
    }
    for what, keys in wrong.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise BadInput(f"`{folder.name}` {what} `{keys[0]}`{more}.", "Give the weights of this architecture.")
    return made.eval().to(device)


def adapted(model: Any, folder: Path, *, renamed: Mapping[str, str] | None = None) -> Any:
    """`model` with the low-rank adapter in `folder` merged into its weights, every key of it accounted for.

    Args:
        renamed: as for `loaded`, of keys without peft's own beginning; the first that fits counts. Adapters keep the
            names of the class and the release of transformers that they were made with.

    Raises:
        MissingExtra: peft is not installed.
        MissingWeights: the folder has no `adapter_model.safetensors`.
        BadInput: the adapter is of another model; names the first key.
    """
    try:
        from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    except ImportError:
        raise MissingExtra("The package `peft` is not installed.", "Run `pip install 'triptych[train]'`.") from None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    fits = "Give the adapter of this model."
    if not (folder / ADAPTED).is_file():
        hint = _unpickled(folder, "adapter_model") or "Put the adapter's own file there."
        raise MissingWeights(f"`{folder.name}` has no `{ADAPTED}`.", hint)
    with quiet():
        try:
            config = PeftConfig.from_pretrained(str(folder))
            tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, "default")
            given = {_renamed(key, renamed or {}): values for key, values in load_file(folder / ADAPTED).items()}
            wanted = get_peft_model_state_dict(tuner.model, save_embedding_layers=False).keys()
            for what, keys in (("lacks", wanted - given.keys()), ("has an unknown", given.keys() - wanted)):
                if keys:
                    raise BadInput(f"The adapter in `{folder.name}` {what} `{min(keys)}`.", fits)
            set_peft_model_state_dict(tuner.model, given)
        except (KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
            raise BadInput(f"The adapter in `{folder.name}` does not fit: {_first(error)}.", fits) from error
        return tuner.merge_and_unload().eval()


def _unpickled(folder: Path, name: str) -> str:
    """What to do where the weights are there as pickles, which are never loaded."""
    is_pickled = next(folder.glob(f"{name}*.bin"), None) is not None
    return f"Its weights are pickles: run `triptych convert FOLDER` with `{folder.name}`." if is_pickled else ""


def _renamed(key: str, renamed: Mapping[str, str]) -> str:
    """A key of an adapter as it is called in the class that is adapted."""
    own = key.removeprefix(OF_PEFT)
    for pattern, told in renamed.items():
        changed, found = re.subn(pattern, told, own, count=1)
        if found:
            return changed
    return own


def processor(kind: Any, folder: Path, **changed: Any) -> Any:
    """The picture processor of the transformers class `kind` (one that ends in `Pil`), as the folder sets it.

    Args:
        changed: settings that are other than the folder's.

    Raises:
        MissingWeights: the folder has no settings of one.
        BadInput: no JSON object, of another class, or what it cannot prepare a picture by.
    """
    path, put = folder / PROCESSOR, "Put the model's own file there."
    if not path.is_file():
        raise MissingWeights(f"`{folder.name}` has no `{PROCESSOR}`.", put)
    try:
        told = json.loads(path.read_text("utf-8"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise BadInput(f"`{folder.name}/{PROCESSOR}` is no JSON object.", put)
    said = str(told.get("image_processor_type", ""))
    wanted = kind.__name__.removesuffix("Pil")
    if said and said.removesuffix("Fast").removesuffix("Pil") != wanted:
        raise BadInput(f"`{folder.name}` prepares pictures by `{said}`.", f"Give the files of a model with `{wanted}`.")
    with quiet():
        try:
            made = kind.from_pretrained(folder, local_files_only=True, **changed)
            made(images=[Image.new("RGB", (90, 60))], return_tensors="pt")
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            wrong = f"`{folder.name}/{PROCESSOR}` prepares no picture: {_first(error)}."
            raise BadInput(wrong, put) from error
    return made


def _first(error: Exception) -> str:
    """The first line of what it says, without paths."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return " ".join(word for word in line.split() if "/" not in word).rstrip(".")
