"""The untouched `llmlingua` package, job by job. It runs in a rival's environment.

Job: `model` (folder of a causal LM) or `classifier` (`layers`, `width`, `tokenizer`: a random BERT of that shape over
that folder's tokenizer, for LLMLingua-2, of which no released weights are here); `threads` (0: torch's own choice);
`seed`; `calls`, each with `id`, `contexts`, `question` and the `options` of one call of `compress_prompt`.

Only tiktoken is replaced, which would download and of whose answers the package only takes the length.
"""

import json
import shutil
import tempfile
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _worker import Out, peak_rss_mb, read

PACKAGES = ("llmlingua", "transformers", "torch")
CLASSIFIER = "bert-base-multilingual-cased"
"""LLMLingua-2 looks for this name in the model's path to know how its tokenizer marks words."""


def main() -> None:
    job, out = read(), Out()
    out.put("versions", {name: version(name) for name in PACKAGES})
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    with tempfile.TemporaryDirectory() as scratch:
        compressor = classifier(job, Path(scratch)) if job.get("classifier") else causal(Path(job["model"]), scratch)
        texts, milliseconds = {}, {}
        for call in job["calls"]:
            start = time.perf_counter()
            found = compressor.compress_prompt(call["contexts"], question=call["question"], **call["options"])
            milliseconds[call["id"]] = 1000 * (time.perf_counter() - start)
            texts[call["id"]] = found["compressed_prompt"]
            out.put("texts", texts)
            out.put("ms", milliseconds)
            out.put("peak_rss_mb", peak_rss_mb())


def causal(model: Path, scratch: str) -> Any:
    """LLMLingua and LongLLMLingua."""
    import transformers

    folder = respelt(model, Path(scratch)) if int(transformers.__version__.split(".")[0]) < 5 else model
    return compressor(str(folder))


def classifier(job: dict[str, Any], scratch: Path) -> Any:
    """LLMLingua-2."""
    import torch
    from transformers import BertConfig, BertForTokenClassification

    shape = job["classifier"]
    folder = scratch / CLASSIFIER
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(shape["tokenizer"]) / name, folder)
    words = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    torch.manual_seed(job["seed"])
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=shape["width"],
        intermediate_size=4 * shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["width"] // 64,
        num_labels=2,
    )
    BertForTokenClassification(config).save_pretrained(folder)
    return compressor(str(folder), use_llmlingua2=True)


def compressor(model: str, **options: Any) -> Any:
    """The package's object, offline."""
    import sys

    import tiktoken

    tiktoken.encoding_for_model = lambda name: SimpleNamespace(encode=str.split)
    from llmlingua import PromptCompressor

    with redirect_stdout(sys.stderr):
        return PromptCompressor(model, device_map="cpu", model_config={"trust_remote_code": False}, **options)


def respelt(model: Path, folder: Path) -> Path:
    """`model` as transformers 4 reads it: the same files, with the two names that transformers 5 changed."""
    for file in model.iterdir():
        if file.name not in ("config.json", "tokenizer_config.json"):
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text("utf-8"))
    rope = config.pop("rope_parameters", {})
    if rope.get("rope_type", "default") != "default":
        raise SystemExit(f"rope_type `{rope['rope_type']}` is spelt otherwise in transformers 4")
    config |= {"rope_theta": rope["rope_theta"]} if rope else {}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")
    return folder


if __name__ == "__main__":
    main()
