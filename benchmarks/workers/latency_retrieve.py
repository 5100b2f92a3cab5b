"""What a warm `retrieve` costs, stage by stage, and how fast a library is indexed, at one precision.

Job: `collection` (a folder), `passages` (its texts become files of a library until these are cut into so many),
`queries`, `warm_up`, `rounds` (of indexing against the encoder alone), `budget`, `precision`, `seed`.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from _worker import Out, peak_rss_mb, read

from triptych import Settings, Triptych
from triptych.refiners.tokens import count
from triptych.retrievers.base import Item
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import read as read_file
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.text.hybrid import Hybrid
from triptych.tools.evaluation import datasets
from triptych.tools.operations import block, rows_of

BATCH = 512


def main() -> None:
    job, out = read(), Out()
    data = datasets.collection(Path(job["collection"]), limit=job["queries"] + job["warm_up"], seed=job["seed"])
    settings = Settings.load(precision=job["precision"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "corpus")
        files = write_files(data, folder, job["passages"])
        session = Triptych(Path(scratch, "library"), settings)
        session.warm()
        out.put("settings", {key: getattr(settings, key) for key in ("encoder", "reranker", "refiner", "lm", "depth")})
        out.put("dtype", dtype_of(session))
        out.put("indexing", {"files": files, **indexing(session, folder)})
        queries = [asked.text for asked in data.queries.values()]
        for found in retrieving(session, queries, job["warm_up"], job["budget"]):
            out.put("retrieve", found)
        out.put("peak_rss_mb", peak_rss_mb())
        out.put("load_average", os.getloadavg()[0])
        items, parsing = parsed(folder)
        out.put("parsing", parsing)
        rounds = []
        for turn in range(job["rounds"]):
            rounds.append(round_of(session, items, Path(scratch, "raw", str(turn))))
            out.put("rounds", rounds)
        session.close()


def write_files(data: datasets.Collection, folder: Path, most: int) -> int:
    """One Markdown file per text of the collection, until they are cut into `most` passages; how many files."""
    folder.mkdir(parents=True)
    files = passages = 0
    for row in data.passages.values():
        if row.text.strip() and passages < most:
            path = folder / f"{files:06}.md"
            path.write_text(f"# {row.title}\n\n{row.text}\n", "utf-8")
            passages += len(chunk(read_file(path, path.name), path.name))
            files += 1
    return files


def indexing(session: Triptych, folder: Path) -> dict[str, Any]:
    """The whole way from files to an acknowledged library, and a second run that has nothing to do."""
    start = time.perf_counter()
    first = session.index(folder)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    second = session.index(folder)
    return {
        "passages": first.items,
        "seconds": seconds,
        "again_seconds": time.perf_counter() - start,
        "again_indexed": second.indexed,
    }


def retrieving(session: Triptych, queries: list[str], warm_up: int, budget: int) -> Any:
    """After every query: milliseconds of each by stage, and tokens of each, without those that warm up.

    Raises:
        RuntimeError: a block that, counted again, is above the budget or not what was reported.
    """
    ms: dict[str, list[float]] = {}
    used: list[int] = []
    for number, query in enumerate(queries):
        found = session.retrieve(query, budget)
        tokens = count(block(rows_of(found.passages), len(found.dropped), found.note), found.tokens.tokenizer)
        if tokens > budget or tokens != found.tokens.used:
            raise RuntimeError(f"a block of {tokens} tokens, reported as {found.tokens.used}, for a budget of {budget}")
        if number < warm_up:
            continue
        used.append(tokens)
        for stage, taken in found.ms.model_dump().items():
            ms.setdefault(stage, []).append(taken)
        yield {"ms": ms, "used": used}


def parsed(folder: Path) -> tuple[list[Item], dict[str, float]]:
    """The chunks of all files, and how many files a second are parsed and cut."""
    start = time.perf_counter()
    documents = [read_file(path, path.name) for path in sorted(folder.iterdir())]
    parsing = time.perf_counter() - start
    start = time.perf_counter()
    items = [item for document in documents for item in chunk(document, document.uri)]
    cutting = time.perf_counter() - start
    return items, {"parse_files_per_s": len(documents) / parsing, "cut_files_per_s": len(documents) / cutting}


def round_of(session: Triptych, items: list[Item], folder: Path) -> dict[str, float]:
    """Passages a second, of chunks that are cut already: the encoder alone, then encoder, lexicon and store."""
    encoder = session.stages.encoder()
    start = time.perf_counter()
    for at in range(0, len(items), BATCH):
        encoder.encode(items[at : at + BATCH], "document")
    alone = len(items) / (time.perf_counter() - start)
    store = MilvusStore(folder, [encoder.space])
    retriever = Hybrid(store, encoder)
    start = time.perf_counter()
    for at in range(0, len(items), BATCH):
        retriever.add(items[at : at + BATCH])
    store.flush()
    indexed = len(items) / (time.perf_counter() - start)
    store.close()
    return {"encoder_per_s": alone, "index_per_s": indexed, "ratio": indexed / alone}


def dtype_of(session: Triptych) -> str:
    """What the encoder computes in: what `auto` means on this machine."""
    return str(session.stages.encoder().model.dtype).removeprefix("torch.")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
