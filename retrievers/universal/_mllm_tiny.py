"""Random multimodal language models at toy size, with real tokenizers and picture processors: for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..loading import quiet
from ..towers import seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

SIZE = 64
MARKS = {
    "qwen": tuple(
        f"<|{name}|>"
        for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    ),
    "llava_next": ("<unk>", "<s>", "</s>", "<image>", "<pad>"),
    "llava_onevision": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
}
GRID = [[28, 56], [56, 28], [56, 56], [84, 28]]
"""Of pictures, in pixels; a square has 28, and 2 by 2 tokens."""


def tiny(kind: str, seed: int) -> tuple[Any, Tokenizer, Any]:
    """Model, tokenizer and picture processor of a `model_type` of `_mllm.KINDS`."""
    marks = MARKS["qwen" if kind.startswith("qwen") else kind]
    tokenizer = byte_tokenizer(marks, begin="<s>" if kind == "llava_next" else "")
    make = _qwen if kind.startswith("qwen") else _llava
    with quiet():
        made: tuple[Any, Tokenizer, Any] = seeded(seed, lambda: make(kind, tokenizer))
    return made


def byte_tokenizer(marks: Sequence[str], begin: str = "") -> Tokenizer:
    """Of bytes and `marks`; with `begin`, that one stands before every text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    if begin:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, made.token_to_id(begin))]
        )
    return made


def _text(tokenizer: Tokenizer, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "initializer_range": 0.08,  # with less, the last state hardly depends on what stands before it
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **more,
    }


def _qwen(kind: str, tokenizer: Tokenizer) -> tuple[Any, Tokenizer, Any]:
    import transformers

    vision: dict[str, Any] = {"depth": 1, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    vision["initializer_range"] = 0.08
    if kind == "qwen2_vl":
        config, model = transformers.Qwen2VLConfig, transformers.Qwen2VLModel
        vision |= {"embed_dim": 32, "hidden_size": SIZE, "mlp_ratio": 2}
    else:
        config, model = transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLModel
        vision |= {"hidden_size": 32, "out_hidden_size": SIZE, "intermediate_size": 48, "fullatt_block_indexes": [0]}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    made = model(
        config(
            text_config=_text(tokenizer, rope_parameters=rope),
            vision_config=vision,
            **{f"{name}_id": tokenizer.token_to_id(mark) for name, mark in _TOKENS.items()},
        )
    )
    # The released processors give every picture at least four tokens and at most 1,280; here at most sixteen.
    pictures = transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 56**2, "longest_edge": 112**2})
    return made.eval(), tokenizer, pictures


_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def _llava(kind: str, tokenizer: Tokenizer) -> tuple[Any, Tokenizer, Any]:
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    asked = {"image_token_index": tokenizer.token_to_id("<image>"), "image_grid_pinpoints": GRID}
    if kind == "llava_next":
        made = transformers.LlavaNextModel(
            transformers.LlavaNextConfig(
                vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **vision},
                text_config={"model_type": "mistral", "sliding_window": None, **_text(tokenizer)},
                **asked,
            )
        )
        pictures = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=GRID
        )
        return made.eval(), tokenizer, pictures
    made = transformers.LlavaOnevisionModel(
        transformers.LlavaOnevisionConfig(
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
            text_config={"model_type": "qwen2", **_text(tokenizer)},
            video_token_index=tokenizer.token_to_id("<video>"),
            **asked,
        )
    )
    pictures = transformers.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=GRID)
    return made.eval(), tokenizer, pictures
