"""Our build of the `llmlingua` package for transformers 5, on the jobs that the untouched package gets.

Job: `model`, `threads`, `calls`, as for `compression_stock.py`. In float32, as the package computes on a processor.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from _worker import Out, read

from triptych.refiners.hard._llmlingua_compat import OfflineCompressor
from triptych.retrievers.lm_transformers import TransformersLM


def main() -> None:
    job, out = read(), Out()
    out.put("versions", {name: version(name) for name in ("llmlingua", "transformers", "torch")})
    torch.set_num_threads(job["threads"])
    lm = TransformersLM.from_folder(Path(job["model"]), "float32")
    compressor = OfflineCompressor(lm.model, lm.tokenizer)
    texts = {}
    for call in job["calls"]:
        found = compressor.compress_prompt(call["contexts"], question=call["question"], **call["options"])
        texts[call["id"]] = found["compressed_prompt"]
        out.put("texts", texts)


if __name__ == "__main__":
    main()
