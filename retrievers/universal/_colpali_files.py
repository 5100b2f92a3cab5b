"""ColPali's networks from a folder and back, and toy ones with the real processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...errors import BadInput, MissingWeights
from ..loading import quiet
from ._colpali_backbones import Backbone, ColIdefics3, PaliGemma, Qwen, Smol
from ._loading import ADAPTER, adapted, kind_of, loaded, processor

if TYPE_CHECKING:
    from pathlib import Path

PROCESSOR_CONFIG = "processor_config.json"
PROMPTS = ("visual_prompt_prefix", "query_prefix")
"""What the folder's processor may set, for the sheets of the family differ; transformers' own without."""


def read(folder: Path, precision: str, device: str) -> Backbone:
    """The network in `folder`, of whichever of the three architectures its `config.json` says.

    Raises:
        MissingWeights: a file is missing.
        BadInput: another architecture, other keys, another processor.
    """
    from transformers import (
        ColPaliForRetrieval,
        ColPaliProcessor,
        ColQwen2ForRetrieval,
        ColQwen2Processor,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        Qwen2VLImageProcessorPil,
        SiglipImageProcessorPil,
    )

    kind = kind_of(folder, PaliGemma.model_type, Qwen.model_type, Smol.model_type)["model_type"]
    tokenizer = _tokenizer(folder)
    if kind == PaliGemma.model_type:
        network = _network(ColPaliForRetrieval, folder, precision, device)
        pictures = processor(SiglipImageProcessorPil, folder)
        vision = network.config.vlm_config.vision_config
        pictures.image_seq_length = (vision.image_size // vision.patch_size) ** 2
        return PaliGemma(network, ColPaliProcessor(pictures, tokenizer, **_prompts(folder)))
    if kind == Qwen.model_type:
        network = _network(ColQwen2ForRetrieval, folder, precision, device)
        pictures = processor(Qwen2VLImageProcessorPil, folder)
        return Qwen(network, ColQwen2Processor(pictures, tokenizer, **_prompts(folder)))
    network = _network(ColIdefics3, folder, precision, device)
    pictures = processor(Idefics3ImageProcessorPil, folder)
    return Smol(network, Idefics3Processor(pictures, tokenizer, image_seq_len=network.model.image_seq_len))


def _network(kind: Any, folder: Path, precision: str, device: str) -> Any:
    network = loaded(kind, folder, precision, device)
    return adapted(network, folder) if (folder / ADAPTER).is_file() else network


def write(folder: Path, backbone: Backbone) -> None:
    """What `read` takes, under the published names."""
    with quiet():
        backbone.network.save_pretrained(folder)
        backbone.processor.image_processor.save_pretrained(folder)
        backbone.processor.tokenizer.save_pretrained(folder)
    prompts = {name: getattr(backbone.processor, name) for name in PROMPTS if hasattr(backbone.processor, name)}
    (folder / PROCESSOR_CONFIG).write_text(json.dumps(prompts, indent=1), "utf-8")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise MissingWeights(f"`{folder.name}` has no `tokenizer.json`.", "Put the model's own file there.")
    with quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _prompts(folder: Path) -> dict[str, str]:
    path = folder / PROCESSOR_CONFIG
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise BadInput(f"`{folder.name}/{PROCESSOR_CONFIG}` is no JSON.", "Put the model's own file there.") from None
    return {name: str(told[name]) for name in PROMPTS if isinstance(told, dict) and told.get(name)}


# --- toy networks ----------------------------------------------------------------------------------------------------

WIDTH = 32


def toy(kind: str, seed: int, edge: int = 56, patch: int = 14) -> Backbone:
    """Two random layers over bytes and small pages.

    Args:
        kind: `colpali`, `colqwen2`, `colqwen2_5` or `idefics3`.
        edge, patch: pixels of a page and of a patch of it, of `colpali`.
    """
    make: dict[str, Callable[[], Backbone]] = {
        "colpali": lambda: _toy_paligemma(edge, patch),
        "colqwen2": lambda: _toy_qwen("qwen2_vl"),
        "colqwen2_5": lambda: _toy_qwen("qwen2_5_vl"),
        "idefics3": _toy_smol,
    }
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        backbone = make[kind]()
        # Layers begin almost as identities: drawn wider, a toy tells its inputs apart.
        for weights in backbone.network.parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.15)
    backbone.network.eval()
    return backbone


def _toy_paligemma(edge: int, patch: int) -> Backbone:
    from transformers import ColPaliConfig, ColPaliForRetrieval, ColPaliProcessor, SiglipImageProcessorPil

    tokenizer = _bytes(["<image>"], bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    pictures = SiglipImageProcessorPil(size={"height": edge, "width": edge})
    pictures.image_seq_length = (edge // patch) ** 2
    processor = ColPaliProcessor(pictures, tokenizer)
    text = {**_layers(), "model_type": "gemma", "head_dim": 16, "vocab_size": len(tokenizer)}
    vision = {**_layers(), "model_type": "siglip_vision_model", "image_size": edge, "patch_size": patch}
    vlm = {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": {**vision, "projection_dim": WIDTH, "vision_use_head": False},
        "image_token_index": processor.image_token_id,
        "projection_dim": WIDTH,
        "hidden_size": WIDTH,
    }
    return PaliGemma(ColPaliForRetrieval(ColPaliConfig(vlm_config=vlm)), processor)


def _toy_qwen(kind: str) -> Backbone:
    from transformers import ColQwen2Config, ColQwen2ForRetrieval, ColQwen2Processor, Qwen2VLImageProcessorPil

    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _bytes(marks, pad_token="<|endoftext|>")
    pictures = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision: dict[str, Any] = {
        "depth": 1,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if kind == "qwen2_vl":
        vision |= {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 64, "window_size": 112}
        vision |= {"fullatt_block_indexes": [0]}
    vlm = {
        "model_type": kind,
        "text_config": {**_layers(), "vocab_size": len(tokenizer), "rope_parameters": rope},
        "vision_config": vision,
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    }
    return Qwen(ColQwen2ForRetrieval(ColQwen2Config(vlm_config=vlm)), ColQwen2Processor(pictures, tokenizer))


def _toy_smol() -> Backbone:
    from transformers import Idefics3Config, Idefics3ImageProcessorPil, Idefics3Processor

    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", *tiles]
    tokenizer = _bytes(marks, pad_token="<|endoftext|>")
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    config = Idefics3Config(
        text_config={**_layers(), "model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 256},
        vision_config={**_layers(), "image_size": 32, "patch_size": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return Smol(ColIdefics3(config), Idefics3Processor(pictures, tokenizer, image_seq_len=4))


def _layers() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    }


def _bytes(marks: list[str], **special: str) -> Any:
    """A tokenizer of bytes with these marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer
