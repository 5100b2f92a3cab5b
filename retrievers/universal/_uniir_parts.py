"""Where UniIR's networks come from: transformers' folders, files under the authors' names, and random toys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..loading import dtype, quiet
from ..towers import characters, seeded
from ._loading import kind_of, loaded
from ._uniir_fusion import CrossFusion
from ._uniir_names import AUTHORS, blip_shapes, fill, from_blip, from_openai, named, read

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

VISION, TEXT = "vision", "text"
"""Folders of BLIP's halves."""
PIECES = 100
"""Of a text that BLIP reads."""


def clip_of(folder: Path, precision: str, device: str) -> Any:
    """A CLIP under transformers' or under the authors' names.

    Raises:
        MissingWeights, BadInput: its files are not there, or of another architecture.
    """
    from transformers import CLIPConfig, CLIPModel

    config = kind_of(folder, "clip")
    if named(folder) != AUTHORS:
        return loaded(CLIPModel, folder, precision, device, spare=("position_ids",))
    with quiet():
        clip = CLIPModel(CLIPConfig(**config))
    fill(clip, from_openai(read(folder)))
    return clip.eval().to(device, dtype(precision, device))


def t5_of(folder: Path, precision: str, device: str) -> Any:
    from transformers import T5EncoderModel

    kind_of(folder, "t5")
    return loaded(T5EncoderModel, folder, precision, device)


def blip_of(folder: Path, precision: str, device: str) -> CrossFusion:
    """BLIP's halves, each in its folder, or in one file under the authors' names.

    Raises:
        MissingWeights, BadInput: their files are not there, or of another architecture.
    """
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    if not (folder / TEXT).is_dir():
        sight, words = from_blip(read(folder))
        shape_of_sight, shape_of_words = blip_shapes(sight, words)
        with quiet():
            vision = BlipVisionModel(BlipVisionConfig(**shape_of_sight))
            text = BlipTextModel(BlipTextConfig(**shape_of_words))
        fill(vision, sight)
        fill(text, words)
        return CrossFusion(vision, text).to(device, dtype(precision, device))
    kind_of(folder / VISION, "blip_vision_model")
    kind_of(folder / TEXT, "blip_text_model")
    vision = loaded(BlipVisionModel, folder / VISION, precision, device)
    return CrossFusion(vision, loaded(BlipTextModel, folder / TEXT, precision, device, spare=("position_ids",)))


def tiny_t5(seed: int, width: int) -> Any:
    """Two layers over given states; its table of words is not used."""
    from transformers import T5Config, T5EncoderModel

    shape: dict[str, Any] = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3, "vocab_size": 2}
    with quiet():
        return seeded(seed, lambda: T5EncoderModel(T5Config(**shape)).eval())


def tiny_blip(seed: int) -> tuple[CrossFusion, Tokenizer]:
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    tokenizer = characters("bert")
    tower: dict[str, Any] = {
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    }
    sight = BlipVisionConfig(**tower, hidden_size=24, image_size=32, patch_size=8, layer_norm_eps=1e-6)
    ends: dict[str, Any] = {f"{mark}_token_id": None for mark in ("bos", "eos", "sep")}
    size: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "encoder_hidden_size": 24,
        "is_decoder": True,
    }
    word = BlipTextConfig(**tower, **size, **ends, max_position_embeddings=PIECES)
    with quiet():
        vision, text = seeded(seed, lambda: (BlipVisionModel(sight).eval(), BlipTextModel(word).eval()))
    return CrossFusion(vision, text).eval(), tokenizer
