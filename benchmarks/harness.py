"""What every benchmark here shares: reading collections, timing, and the block that says what was measured on what."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "pymilvus", "milvus-lite", "numpy")


class Collection(NamedTuple):
    """A retrieval collection: passages by id as (title, text), queries by id, graded judgements."""

    name: str
    corpus: dict[str, tuple[str, str]]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def collection(folder: Path, part: str = "", titles: bool = True) -> Collection:
    """The collection in `folder`: `corpus.jsonl`, `queries[.part].jsonl`, `qrels[.part].tsv`.

    Only queries with at least one judgement above 0 are kept. `titles=False` leaves titles out (they are English in
    translated collections).
    """
    suffix = f".{part}" if part else ""
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / f"qrels{suffix}.tsv").read_text("utf-8").splitlines()[1:]:
        query, passage, grade = line.split("\t")
        qrels.setdefault(query, {})[passage] = int(grade)
    corpus = {
        str(row["id"]): (row.get("title") or "" if titles else "", row["text"]) for row in rows(folder / "corpus.jsonl")
    }
    queries = {
        str(row["id"]): row["text"]
        for row in rows(folder / f"queries{suffix}.jsonl")
        if any(grade > 0 for grade in qrels.get(str(row["id"]), {}).values())
    }
    parent = folder.parent.name
    name = folder.name if len(folder.name) > 2 else f"{parent}/{folder.name}"
    return Collection(f"{name}{suffix}", corpus, queries, {query: qrels[query] for query in queries})


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """`p50` and `p95` of `milliseconds`."""
    import numpy as np

    if not milliseconds:
        return {"p50": 0.0, "p95": 0.0}
    return {
        "p50": round(float(np.percentile(milliseconds, 50)), 2),
        "p95": round(float(np.percentile(milliseconds, 95)), 2),
    }


def environment(*packages: str) -> dict[str, Any]:
    """Commit, versions and hardware of this run."""
    import torch

    root = Path(__file__).parent.parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or "none",
        "uncommitted_changes": bool(dirty.stdout.strip()),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*PACKAGES, *packages)},
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    text = cpuinfo.read_text("utf-8")
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    features = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text]
    return f"{name} ({', '.join(features)})"


def write(name: str, result: dict[str, Any], *packages: str) -> Path:
    """Write `benchmarks/results/NAME.json` with the environment block first."""
    path = RESULTS / f"{name}.json"
    body = {"environment": environment(*packages), **result}
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path
