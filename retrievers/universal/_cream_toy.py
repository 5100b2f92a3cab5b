"""A random reader at toy size, with a real tokenizer and picture processor: for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..loading import quiet
from ..towers import seeded
from ._cream_network import CreamNetwork, Shape
from ._mllm_tiny import byte_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHAPE = Shape(prefix=4, layers=2, rank=2, alpha=4, blocks=1, heads=2, pages=3)
SIZE = 32


def toy(seed: int) -> tuple[CreamNetwork, Tokenizer, Any]:
    """Network, tokenizer and picture processor."""
    from transformers import Pix2StructImageProcessorPil

    tokenizer = byte_tokenizer(("<s>", "</s>"), begin="<s>")
    with quiet():
        network = seeded(seed, lambda: CreamNetwork(language_model(tokenizer), page_encoder(), SHAPE).eval())
    return network, tokenizer, Pix2StructImageProcessorPil(patch_size={"height": 8, "width": 8}, max_patches=24)


def language_model(tokenizer: Tokenizer) -> Any:
    """Three layers over bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SIZE,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def page_encoder() -> Any:
    """One layer over patches of 8 pixels."""
    from transformers import Pix2StructVisionConfig, Pix2StructVisionModel

    config = Pix2StructVisionConfig(
        hidden_size=24,
        patch_embed_hidden_size=8 * 8 * 3,
        d_ff=32,
        d_kv=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        seq_len=64,
        initializer_range=0.1,
    )
    return Pix2StructVisionModel(config).eval()
