"""A BERT with one output for each word piece: from transformers' files, or from the variables of DeepCT's authors.

Every tensor has to be there, none may be left over, and shapes have to be those that `config.json` says.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, MissingWeights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

FILES = ("config.json", "model.safetensors", "tokenizer.json")
PUBLISHED = (
    ("tw_output_weights", "classifier.weight"),
    ("tw_output_bias", "classifier.bias"),
    ("/layer_", "/layer/"),
    ("/word_embeddings", "/word_embeddings/weight"),
    ("/position_embeddings", "/position_embeddings/weight"),
    ("/token_type_embeddings", "/token_type_embeddings/weight"),
    ("/kernel", "/weight"),
    ("/gamma", "/weight"),
    ("/beta", "/bias"),
    ("/", "."),
)
"""From the variables of the authors' TensorFlow program to the keys of transformers, replaced in this order; kernels
are transposed."""
_UNUSED = ("bert.pooler.",)
_MENDS = "Give a BERT with one output for a word piece."


def fitted(folder: Path) -> Any:
    """The `BertForTokenClassification` in `folder`, in float32 and evaluation mode.

    Raises:
        MissingWeights: one of `FILES` is not there.
        BadInput: a tensor is missing, unknown or of another shape; a damaged file; another kind of model.
    """
    network = network_of(_config(folder))
    _fill(network, renamed(_tensors(folder)))
    return network.eval()


def untrained(folder: Path, seed: int) -> Any:
    """The `BertModel` in `folder` under a new head, drawn with `seed`; other heads that are there are left out.

    Raises:
        MissingWeights, BadInput: as `fitted`.
    """
    import torch

    config, stored = _config(folder), _tensors(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_of(config)
    prefix = "" if any(key.startswith("bert.") for key in stored) else "bert."
    tensors = {f"{prefix}{_today(key)}": value for key, value in stored.items()}
    kept = {key: value for key, value in tensors.items() if key.startswith("bert.") and "position_ids" not in key}
    head = {key: value for key, value in network.state_dict().items() if key.startswith("classifier.")}
    _fill(network, {**kept, **head})
    return network.eval()


def network_of(config: Any) -> Any:
    """A random network of this `BertConfig`, with one output and dropout .1 below it."""
    from transformers import BertForTokenClassification

    config.num_labels = 1
    config.classifier_dropout = 0.1
    return BertForTokenClassification(config)


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`.

    Raises:
        MissingWeights, BadInput: there is none, or it is damaged.
    """
    from tokenizers import Tokenizer

    path = _file(folder, "tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(f"`{path.name}` of `{folder.name}` is damaged: {error}.", "Save the model again.") from None


def special(tokenizer: Tokenizer, name: str) -> int:
    """The id of a mark, or `BadInput`."""
    found = tokenizer.token_to_id(name)
    if found is None:
        raise BadInput(f"The tokenizer has no `{name}`.", "Use the tokenizer of a BERT model.")
    return int(found)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under transformers' keys; variables of the authors' program (see `PUBLISHED`) are translated."""
    if not any("/" in key or key.startswith("tw_") for key in tensors):
        return dict(tensors)
    made = {}
    for name, value in tensors.items():
        key = name
        for theirs, ours in PUBLISHED:
            key = key.replace(theirs, ours)
        made[key] = value.T if name.endswith("/kernel") else value
    return made


def _today(key: str) -> str:
    """A key of transformers; in older files norms have the names that TensorFlow gave them."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _fill(network: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the network, every one and no other."""
    own = network.state_dict()
    given = {key: value.float() for key, value in tensors.items() if not key.startswith(_UNUSED)}
    for key in sorted(own.keys() | given.keys()):
        if key not in given:
            raise BadInput(f"The model has no tensor `{key}`.", _MENDS)
        if key not in own:
            raise BadInput(f"The model has an unknown tensor `{key}`.", _MENDS)
        if own[key].shape != given[key].shape:
            shapes = f"`{tuple(given[key].shape)}` instead of `{tuple(own[key].shape)}`"
            raise BadInput(f"The shape of the tensor `{key}` is {shapes}.", _MENDS)
    network.load_state_dict(given)


def _config(folder: Path) -> Any:
    from transformers import BertConfig

    path = _file(folder, "config.json")
    try:
        found = json.loads(path.read_text("utf-8"))
        kind = found.get("model_type", "bert")  # Google's own files do not say
    except (ValueError, AttributeError):
        raise BadInput(f"`config.json` of `{folder.name}` is damaged.", _MENDS) from None
    if kind != "bert":
        raise BadInput(f"`{folder.name}` holds a model of the kind `{kind}`.", _MENDS)
    return BertConfig.from_dict(found)


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _file(folder, "model.safetensors")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise BadInput(f"`{path.name}` of `{folder.name}` is damaged: {error}.", "Save the model again.") from None


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise MissingWeights(f"`{folder.name}` has no `{name}`.", f"A model's folder has {', '.join(FILES)}.")
    return folder / name
