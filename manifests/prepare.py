"""One-time conversion of pulled files, run in a process of its own: `python -m triptych.manifests.prepare SRC DEST`.

A gguf takes about 16 s to open in `transformers`, the safetensors written here less than one. A separate process gives
its memory back, can be stopped at any moment, and keeps whatever the model library prints away from our stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path

RECIPE = "gguf to bfloat16 safetensors, 1"
"""Part of a prepared model's identity: a new recipe makes older prepared folders stale."""


def gguf_to_safetensors(source: Path, target: Path) -> None:
    """Dequantise the gguf file `source` into the folder `target`: one bfloat16 safetensors file, config, tokenizer.

    Raises:
        ValueError: a tensor holds NaN or infinity.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).to(torch.bfloat16)
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"not finite: {', '.join(broken[:3])}")
    model.save_pretrained(target, max_shard_size="20GB")
    tokenizer.save_pretrained(target)
    for path in target.iterdir():  # safetensors are written for their owner only; a home may be shared
        path.chmod((target / "config.json").stat().st_mode)


if __name__ == "__main__":
    gguf_to_safetensors(Path(sys.argv[1]), Path(sys.argv[2]))
