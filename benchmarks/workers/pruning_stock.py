"""The untouched `llmlingua` package on texts of some lengths. It runs in a rival's environment.

Job: `model`, `threads`, `rate`, `warm_up` (a text), `texts` (by name), `repeats` (by name).
"""

import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

from _pruning import measured
from _worker import Out, read
from compression_stock import PACKAGES, causal


def main() -> None:
    job, out = read(), Out()
    out.put("versions", {name: version(name) for name in PACKAGES})
    import torch

    torch.set_num_threads(job["threads"])
    with tempfile.TemporaryDirectory() as scratch:
        compressor = causal(Path(job["model"]), scratch)

        def compressed(text: str) -> str:
            made = compressor.compress_prompt([text], rate=job["rate"], concate_question=False)
            return str(made["compressed_prompt"])

        compressed(job["warm_up"])
        for name, text in job["texts"].items():
            found, figures = measured(partial(compressed, text), job["repeats"][name])
            out.put(name, {**figures, "text": found, "tokens": compressor.get_token_length(text)})


if __name__ == "__main__":
    main()
