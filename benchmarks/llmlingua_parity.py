"""Does the compatibility file change what `llmlingua` decides? The same inputs through the untouched library.

    python benchmarks/llmlingua_parity.py --model FOLDER --data multidoc20.jsonl [--n 4]

llmlingua 0.2.2 works untouched up to transformers 4.47.1, in an environment of its own:

    python -m venv benchmarks/.cache/stock
    benchmarks/.cache/stock/bin/pip install torch==2.13.0 transformers==4.47.1 llmlingua==0.2.2 accelerate

There only tiktoken is replaced, which would download and only counts. Both sides compute in float32 on one thread, from
the same weights and tokenizer file; `config.json` and `tokenizer_config.json` are spelt as that release reads them.
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STOCK = Path(__file__).parent / ".cache" / "stock" / "bin" / "python"
PASSAGES = 3
LONG = {
    "rank_method": "longllmlingua",
    "condition_in_question": "after_condition",
    "reorder_context": "two_stage",
    "dynamic_context_compression_ratio": 0.3,
    "condition_compare": True,
    "context_budget": "+100",
    "concate_question": False,
}
MODES: dict[str, dict[str, Any]] = {
    "llmlingua 0.5": {"rate": 0.5},
    "llmlingua 0.3": {"rate": 0.3},
    "llmlingua 0.7 all contexts": {"rate": 0.7, "use_context_level_filter": False},
    "longllmlingua 0.5": {"rate": 0.5, **LONG},
}


def jobs(data: Path, n: int) -> list[dict[str, Any]]:
    """One call of `compress_prompt` each."""
    with data.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(n), strict=False)]
    return [
        {
            "id": row["id"],
            "mode": mode,
            "context": [context["text"] for context in row["contexts"][:PASSAGES]],
            "question": row["question"] if mode.startswith("long") else "",
            "options": options,
        }
        for row in rows
        for mode, options in MODES.items()
    ]


def answers(compressor: Any, wanted: list[dict[str, Any]]) -> list[str]:
    """The compressed text of each job."""
    return [
        compressor.compress_prompt(job["context"], question=job["question"], **job["options"])["compressed_prompt"]
        for job in wanted
    ]


def stock(model: str, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """In the other environment: the library as it is."""
    from types import SimpleNamespace

    import tiktoken
    import torch
    import transformers

    torch.set_num_threads(1)
    tiktoken.encoding_for_model = lambda name: SimpleNamespace(encode=str.split)
    from llmlingua import PromptCompressor

    compressor = PromptCompressor(model, device_map="cpu", model_config={"trust_remote_code": False})
    return {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__, "llmlingua": "0.2.2"},
        "texts": answers(compressor, wanted),
    }


def respelt(model: Path, folder: Path) -> Path:
    """`model` as transformers 4 reads it: the same files, with the two names that transformers 5 changed."""
    for file in model.iterdir():
        if file.name not in ("config.json", "tokenizer_config.json"):
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text("utf-8"))
    rope = config.pop("rope_parameters", {})
    if rope.get("rope_type", "default") != "default":
        raise SystemExit(f"rope_type `{rope['rope_type']}` is spelt otherwise in transformers 4.")
    config |= {"rope_theta": rope["rope_theta"]} if rope else {}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")
    return folder


def ours(model: str, wanted: list[dict[str, Any]]) -> list[str]:
    import torch

    from triptych.refiners.hard._llmlingua_compat import OfflineCompressor
    from triptych.retrievers.lm import TransformersLM

    torch.set_num_threads(1)
    lm = TransformersLM.from_folder(Path(model), "float32")
    return answers(OfflineCompressor(lm.model, lm.tokenizer), wanted)


def compared(wanted: list[dict[str, Any]], theirs: list[str], mine: list[str]) -> dict[str, Any]:
    """Per mode how many texts are identical, and every text that is not."""
    modes: dict[str, dict[str, Any]] = {mode: {"jobs": 0, "identical": 0} for mode in MODES}
    different = []
    for job, left, right in zip(wanted, theirs, mine, strict=True):
        modes[job["mode"]]["jobs"] += 1
        modes[job["mode"]]["identical"] += left == right
        if left != right:
            similar = difflib.SequenceMatcher(None, left, right, autojunk=False).ratio()
            different.append({"id": job["id"], "mode": job["mode"], "similarity": round(similar, 4)})
    return {"modes": modes, "different": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--stock", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stock:
        asked, answer = given.stock
        answer.write_text(json.dumps(stock(given.model, json.loads(asked.read_text("utf-8")))), "utf-8")
        return
    from harness import write

    wanted = jobs(given.data, given.n)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as older:
        asked, answer = Path(folder) / "jobs.json", Path(folder) / "texts.json"
        model = str(respelt(Path(given.model), Path(older)))
        asked.write_text(json.dumps(wanted), "utf-8")
        command = [str(STOCK), __file__, "--model", model, "--stock", str(asked), str(answer)]
        subprocess.run(command, check=True)
        theirs = json.loads(answer.read_text("utf-8"))
    found = compared(wanted, theirs["texts"], ours(given.model, wanted))
    write(
        "compress_llmlingua_parity",
        {"command": f"llmlingua_parity.py --n {given.n}", "stock": theirs["versions"], "precision": "float32", **found},
        "llmlingua",
    )
    print(json.dumps(found, indent=2))
    sys.exit(0 if not found["different"] else 1)


if __name__ == "__main__":
    main()
