"""A toy Ovis with the real processor."""

from __future__ import annotations

from typing import Any

import torch

from ..loading import quiet

VISUAL_WORDS = 40
MARKS = ("<|im_start|>", "<|im_end|>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def toy(seed: int, *, tiles: bool = True, words: int = VISUAL_WORDS) -> tuple[Any, Any]:
    """Model and processor: two random layers of width 32, bytes, pictures of 32 x 32 pixels, four tokens each.

    Args:
        tiles: whether larger pictures are cut into tiles.
        words: rows of the table, those of the marks included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Ovis2Config, Ovis2Model, Ovis2Processor, PreTrainedTokenizerFast

    from ._ovis_tiles import Tiles

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    ids = tokenizer.convert_tokens_to_ids(list(MARKS[2:]))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**shape, "image_size": 32, "patch_size": 8, "hidden_stride": 2, "vocab_size": words}
    text = {**shape, "model_type": "qwen2", "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    config = Ovis2Config(
        vision_config=vision,
        text_config={**text, "max_position_embeddings": 4096},
        image_token_id=ids[0],
        visual_indicator_token_ids=ids[1:],
        vocab_size=len(tokenizer),
        hidden_size=32,
    )
    pictures = Tiles(size={"height": 32, "width": 32}, crop_to_patches=tiles, max_patches=4)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = Ovis2Model(config)
        for weights in model.parameters():  # drawn wider than in transformers: a toy has to tell its inputs apart
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.2)
    return model.eval(), Ovis2Processor(pictures, tokenizer, image_seq_length=4)
