"""The authors' names for UniIR's weights (OpenAI's CLIP, Salesforce's BLIP) as transformers names them.

They are read off the module trees of the authors' code; no checkpoint was opened here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

WEIGHTS = "model.safetensors"

_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
"""A layer in OpenAI's CLIP → the same in transformers'."""
_WHOLE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "logit_scale": "logit_scale",
}
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""Kept as (from, to); transformers' linear layers have (to, from)."""
AUTHORS = "clip_model."
"""How the keys of the authors' CLIP checkpoints begin; what follows is OpenAI's name."""
SIGHT, WORDS = "visual_encoder.", "text_encoder."
"""How those of their BLIP begin; the rest of such a file serves training."""
_SIGHT = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""A part of BLIP's vision tower → the same in transformers'."""
HEAD = 64
"""Dimensions of an attention head in both of BLIP's halves."""


def named(folder: Path) -> str:
    """`AUTHORS` or `SIGHT` where the weights of `folder` have such names, else nothing; only names are read.

    Raises:
        BadInput: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not (folder / WEIGHTS).is_file():
        return ""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise BadInput(f"`{folder.name}/{WEIGHTS}` cannot be read.", "Put the file there again.") from error
    return next((start for start in (AUTHORS, SIGHT) if any(key.startswith(start) for key in keys)), "")


def read(folder: Path) -> dict[str, Tensor]:
    """The weights of `folder`, by the names in the file."""
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def fill(module: Any, weights: dict[str, Tensor], name: str = WEIGHTS) -> None:
    """Every parameter of `module` from `weights`, all of which are used.

    Raises:
        BadInput: keys or shapes are not those of the module; names the first.
    """
    wanted = module.state_dict()
    wrong = {
        "lacks": wanted.keys() - weights.keys(),
        "has an unknown": weights.keys() - wanted.keys(),
        "has another shape of": {key for key in wanted if key in weights and weights[key].shape != wanted[key].shape},
    }
    for what, keys in wrong.items():
        if keys:
            raise BadInput(f"`{name}` {what} `{min(keys)}`.", "Give the weights of this architecture.")
    module.load_state_dict(weights)


# --- BLIP ------------------------------------------------------------------------------------------------------------


def from_blip(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of the vision tower and of the text encoder; momentum encoders, queues and the temperature are left out."""
    sight = {_sight(key.removeprefix(SIGHT)): values for key, values in weights.items() if key.startswith(SIGHT)}
    words = {key.removeprefix(WORDS): values for key, values in weights.items() if key.startswith(WORDS)}
    words.pop("embeddings.position_ids", None)
    return sight, words


def _sight(name: str) -> str:
    start, rest = "", name
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        start = f"encoder.layers.{number}."
    if rest in _SIGHT:
        return start + _SIGHT[rest]
    part, _, kind = rest.rpartition(".")
    return f"{start}{_SIGHT.get(part, part)}.{kind}"


def blip_shapes(sight: dict[str, Tensor], words: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of both halves, read off the shapes of their weights (under transformers' names).

    Raises:
        BadInput: a weight that tells them is not there.
    """
    try:
        patches, embedded = sight["embeddings.patch_embedding.weight"], words["embeddings.word_embeddings.weight"]
        places = sight["embeddings.position_embedding"].shape[1] - 1
        seen = sight["encoder.layers.0.mlp.fc1.weight"].shape
        read = words["encoder.layer.0.intermediate.dense.weight"].shape
        crossed = words["encoder.layer.0.crossattention.self.key.weight"].shape[1]
        longest = words["embeddings.position_embeddings.weight"].shape[0]
    except KeyError as error:
        raise BadInput(f"`{WEIGHTS}` lacks `{error.args[0]}`.", "Give the weights of BLIP_FF.") from None
    vision = {
        "hidden_size": seen[1],
        "intermediate_size": seen[0],
        "num_hidden_layers": _layers(sight, "encoder.layers."),
        "num_attention_heads": max(1, seen[1] // HEAD),
        "patch_size": patches.shape[-1],
        "image_size": math.isqrt(places) * patches.shape[-1],
        "layer_norm_eps": 1e-6,
    }
    text = {
        "vocab_size": embedded.shape[0],
        "hidden_size": read[1],
        "encoder_hidden_size": crossed,
        "intermediate_size": read[0],
        "num_hidden_layers": _layers(words, "encoder.layer."),
        "num_attention_heads": max(1, read[1] // HEAD),
        "max_position_embeddings": longest,
        "is_decoder": True,
    }
    return vision, text


def _layers(weights: dict[str, Tensor], start: str) -> int:
    return 1 + max(int(key.removeprefix(start).partition(".")[0]) for key in weights if key.startswith(start))


# --- OpenAI's CLIP ---------------------------------------------------------------------------------------------------


def from_openai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under OpenAI's CLIP names as transformers names them; unknown names are left as they are."""
    made: dict[str, Tensor] = {}
    for key, values in weights.items():
        own = key.removeprefix(AUTHORS)
        part, _, kind = own.rpartition(".")
        if own in _WHOLE:
            made[_WHOLE[own]] = values
        elif own in _TURNED:
            made[_TURNED[own]] = values.T.contiguous()
        elif part in _NORMS:
            made[f"{_NORMS[part]}.{kind}"] = values
        elif ".resblocks." in f".{own}":
            made |= _layer(own, values)
        else:
            made[key] = values
    return made


def _layer(name: str, values: Tensor) -> dict[str, Tensor]:
    """One tensor of a layer; what holds queries, keys and values together becomes three."""
    tower = "vision_model" if name.startswith("visual.") else "text_model"
    number, _, rest = name.split("resblocks.", 1)[1].partition(".")
    start = f"{tower}.encoder.layers.{number}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{start}self_attn.{one}_proj.{kind}": part for one, part in _thirds(values)}
    part, _, kind = rest.rpartition(".")
    return {f"{start}{_LAYER.get(part, part)}.{kind}": values}


def _thirds(values: Tensor) -> Sequence[tuple[str, Tensor]]:
    return [(name, part.contiguous()) for name, part in zip("qkv", values.chunk(3), strict=True)]
