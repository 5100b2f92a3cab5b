"""What a warm `retrieve` costs, stage by stage, and how fast a library is indexed.

    python benchmarks/latency.py --data FOLDER [--passages 3000] [--queries 60]

FOLDER is a collection (`corpus.jsonl`, `queries.jsonl`, `qrels.tsv`). Its first passages become text files of a
library; its queries are asked with the profile's depth and a budget of 2,000 tokens, after three to warm up. The
encoder's raw throughput on the same chunks, in the same process, is what indexing is compared with.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

from triptych import Settings, Triptych
from triptych.refiners.tokens import count
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import read
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.text.hybrid import Hybrid
from triptych.tools.operations import block, rows_of

BUDGET = 2000
WARM_UP = 3
BAR_MS = {"p50": 3000.0, "p95": 6000.0}


def main() -> None:
    arguments = parsed()
    data = harness.collection(arguments.data)
    settings = Settings.load()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "corpus"
        write_files(data, folder, arguments.passages)
        session = Triptych(Path(scratch) / "library", settings)
        session.warm()
        indexing = measure_indexing(session, folder)
        throughput = measure_throughput(session, folder, Path(scratch) / "raw")
        retrieve = measure_retrieve(session, list(data.queries.values())[: arguments.queries + WARM_UP])
        session.close()
    result = {
        "command": "python benchmarks/latency.py " + " ".join(sys.argv[1:]).replace(str(arguments.data), "FOLDER"),
        "data": data.name,
        "profile": {"encoder": settings.encoder, "reranker": settings.reranker, "refiner": settings.refiner},
        "indexing": indexing,
        "throughput": throughput,
        "retrieve": retrieve,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    sys.stdout.write(f"{harness.write('latency', result)}\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=60)
    return parser.parse_args()


def write_files(data: harness.Collection, folder: Path, n: int) -> None:
    """One Markdown file per passage of the collection."""
    folder.mkdir(parents=True)
    for passage_id, (title, text) in list(data.corpus.items())[:n]:
        (folder / f"{passage_id}.md").write_text(f"# {title}\n\n{text}\n", "utf-8")


def measure_indexing(session: Triptych, folder: Path) -> dict[str, Any]:
    """The whole way from files to an acknowledged library, and a second run that has nothing to do."""
    start = time.perf_counter()
    first = session.index(folder)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    second = session.index(folder)
    return {
        "files": first.files,
        "passages": first.items,
        "seconds": round(seconds, 2),
        "passages_per_s": round(first.items / seconds, 1),
        "second_run_indexed": second.indexed,
        "second_run_seconds": round(time.perf_counter() - start, 2),
    }


def measure_throughput(session: Triptych, folder: Path, scratch: Path) -> dict[str, Any]:
    """Chunks already cut: retriever (encode, analyse, store) against the encoder alone, in turns; parsing apart."""
    start = time.perf_counter()
    documents = [read(path, path.name) for path in sorted(folder.iterdir())]
    parsing = time.perf_counter() - start
    start = time.perf_counter()
    items = [item for document in documents for item in chunk(document, document.uri)]
    cutting = time.perf_counter() - start
    encoder = session.stages.encoder()
    ratios, raw, ours = [], [], []
    for turn in range(3):
        start = time.perf_counter()
        for at in range(0, len(items), 512):
            encoder.encode(items[at : at + 512], "document")
        raw.append(len(items) / (time.perf_counter() - start))
        store = MilvusStore(scratch / str(turn), [encoder.space])
        retriever = Hybrid(store, encoder)
        start = time.perf_counter()
        for at in range(0, len(items), 512):
            retriever.add(items[at : at + 512])
        store.flush()
        ours.append(len(items) / (time.perf_counter() - start))
        ratios.append(ours[-1] / raw[-1])
        store.close()
    return {
        "passages": len(items),
        "encoder_alone_per_s": [round(one, 1) for one in raw],
        "index_per_s": [round(one, 1) for one in ours],
        "ratio": round(sorted(ratios)[1], 3),
        "bar": 0.8,
        "parsing_files_per_s": round(len(documents) / parsing, 1),
        "cutting_files_per_s": round(len(documents) / cutting, 1),
    }


def measure_retrieve(session: Triptych, queries: list[str]) -> dict[str, Any]:
    """Milliseconds per stage over warm queries; every block is counted again."""
    stages: dict[str, list[float]] = {}
    used = []
    for n, query in enumerate(queries):
        found = session.retrieve(query, BUDGET)
        block_tokens = count(block(rows_of(found.passages), len(found.dropped), found.note), found.tokens.tokenizer)
        if block_tokens > BUDGET or block_tokens != found.tokens.used:
            raise SystemExit(f"{query!r}: {block_tokens} tokens rendered, {found.tokens.used} reported")
        if n >= WARM_UP:
            used.append(block_tokens)
            for stage, ms in found.ms.model_dump().items():
                stages.setdefault(stage, []).append(ms)
    return {
        "n": len(used),
        "depth": session.settings.depth,
        "budget": BUDGET,
        "ms": {stage: harness.percentiles(values) for stage, values in stages.items()},
        "bar_ms": BAR_MS,
        "tokens_used_mean": round(sum(used) / len(used), 1),
        "share_of_budget_min": round(min(used) / BUDGET, 3),
    }


if __name__ == "__main__":
    main()
