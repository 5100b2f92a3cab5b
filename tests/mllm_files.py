"""What the tests of multimodal language models share: pictures on disk, and folders as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych.retrievers.base import Item, MediaRef, Modality, Source

if TYPE_CHECKING:
    from triptych.retrievers.universal._mllm import Backbone

HEADED = {
    "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "llava_next": transformers.LlavaNextForConditionalGeneration,
    "llava_onevision": transformers.LlavaOnevisionForConditionalGeneration,
}


def noise(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    chance = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (height, width, 3), generator=chance, dtype=torch.uint8).numpy())


def picture(folder: Path, seed: int, text: str = "", modality: Modality = "image", **size: int) -> Item:
    path = folder / f"{seed}.png"
    noise(seed, **size).save(path)
    return Item(f"p{seed}", text, Source(f"pictures/{seed}.png"), modality, MediaRef(str(path), "image/png"))


def headed(backbone: Backbone) -> Any:
    """The class with the head that predicts words, over the same weights."""
    made = HEADED[backbone.kind](backbone.model.config)
    made.model.load_state_dict(backbone.model.state_dict())
    return made.eval()


def older(key: str, kind: str) -> str:
    """A key of the class with the head, as checkpoints of 2024 and 2025 have it."""
    if kind.startswith("qwen"):
        return key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
    key = key.replace("model.language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head.")
    key = key.replace("model.vision_tower.", "vision_tower.vision_model.")
    return key.replace("model.multi_modal_projector.", "multi_modal_projector.").replace("model.image_n", "image_n")


def put(folder: Path, backbone: Backbone, *, old: bool = True, **changed: torch.Tensor | None) -> Path:
    """A folder as published, under the names of then or, not `old`, those that transformers has now; `changed` keys
    are added, or left out for None."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = headed(backbone)
    whole.config.save_pretrained(folder)
    kept = {older(key, backbone.kind) if old else key: values for key, values in whole.state_dict().items()}
    for key, values in changed.items():
        kept.pop(key, None)
        if values is not None:
            kept[key] = values
    save_file({key: values.clone() for key, values in kept.items()}, folder / "model.safetensors")
    backbone.pictures.save_pretrained(folder)
    backbone.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def put_adapter(folder: Path, backbone: Backbone, *, old: bool = True, rank: int = 2) -> dict[str, torch.Tensor]:
    """An adapter of the query projections of the language part, made with the class with the head; what it adds to
    each of them, by its name in the class without."""
    chance = torch.Generator().manual_seed(5)
    kept, added = {}, {}
    for name, module in backbone.model.named_modules():
        if not name.startswith("language_model.") or not name.endswith("q_proj"):
            continue
        down, up = (
            torch.randn(shape, generator=chance) * 0.3
            for shape in ((rank, module.in_features), (module.out_features, rank))
        )
        named = f"model.{name}"
        for part, values in (("lora_A", down), ("lora_B", up)):
            kept[f"base_model.model.{older(named, backbone.kind) if old else named}.{part}.weight"] = values
        added[name] = 2.0 * up @ down
    save_file(kept, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], "lora_dropout": 0.1}
    told |= {"base_model_name_or_path": "somebody/a-base-model", "task_type": None}
    if not backbone.kind.startswith("qwen"):
        told["exclude_modules"] = ".*vision.*"
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return added


def keys(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))
