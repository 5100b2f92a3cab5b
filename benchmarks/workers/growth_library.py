"""Our own library at one size: what indexing its files, searching it and retrieving from it costs.

The passages are files of a library, each a few sentences drawn with the seed from the collections' passages, so that a
library of any size can be made and every vector is the model's own.
"""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from _worker import Out, peak_rss_mb, read

from triptych import Settings, Triptych
from triptych.retrievers.base import Query
from triptych.retrievers.chunking import sentences
from triptych.tools.evaluation import datasets

SENTENCES = 4
PER_FOLDER = 1000
WARM_UP = 3
K = 10


def main() -> None:
    job, out = read(), Out()
    texts, asked = drawn(job)
    with tempfile.TemporaryDirectory() as scratch:
        files, library = Path(scratch, "files"), Path(scratch, "library")
        write(texts, files)
        session = Triptych(library, Settings.load())
        session.warm()
        index(session, files, out)
        out.put("disk_mb", sum(path.stat().st_size for path in library.rglob("*") if path.is_file()) / 2**20)
        search(session, asked, out)
        retrieve(session, asked[: int(job["retrieved"]) + WARM_UP], int(job["budget"]), out)
        out.put("peak_rss_mb", peak_rss_mb())
        session.close()


def drawn(job: dict[str, Any]) -> tuple[list[str], list[str]]:
    """`items` texts, and the collections' queries in random order."""
    pool = [datasets.collection(Path(folder)) for folder in job["pool"]]
    rng = random.Random(job["seed"])
    passages = [row.text for data in pool for row in data.passages.values()]
    parts = [text[start:end] for text in dict.fromkeys(passages) for start, end in sentences(text)]
    queries = [row.text for data in pool for row in data.queries.values()]
    texts = [" ".join(" ".join(rng.choices(parts, k=SENTENCES)).split()) for _ in range(int(job["items"]))]
    return texts, rng.sample(queries, min(len(queries), int(job["queries"])))


def write(texts: list[str], folder: Path) -> None:
    for row, text in enumerate(texts):
        path = folder / f"{row // PER_FOLDER:03d}" / f"{row:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", "utf-8")


def index(session: Triptych, files: Path, out: Out) -> None:
    """The whole way from files to a library, and how much of the time the encoder took, so far at any time."""
    encoder = session.stages.encoder()
    encode, spent, encoded = encoder.encode, 0.0, 0

    def timed(inputs: Any, side: Any) -> Any:
        nonlocal spent, encoded
        began = time.perf_counter()
        vectors = encode(inputs, side)
        spent += time.perf_counter() - began
        encoded += len(inputs)
        out.put("encoded", encoded)
        out.put("so_far_s", time.perf_counter() - start)
        return vectors

    encoder.encode = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    made = session.index(files)
    out.put("index_s", time.perf_counter() - start)
    out.put("encode_s", spent)
    out.put("passages", made.items)
    encoder.encode = encode  # type: ignore[method-assign]


def search(session: Triptych, asked: list[str], out: Out) -> None:
    """Milliseconds of the first stage, each query's vector known, so that only the library's size matters."""
    session.stages.encoder().encode([Query(text) for text in asked], "query")
    for text in asked[:WARM_UP]:
        session.search(text, K)
    out.put("search_ms", [milliseconds(lambda text=text: session.search(text, K)) for text in asked])  # type: ignore[misc]


def retrieve(session: Triptych, asked: list[str], budget: int, out: Out) -> None:
    """Milliseconds of `retrieve` within `budget` tokens; the first few are for warming up."""
    spent: list[float] = []
    for text in asked:
        spent.append(milliseconds(lambda text=text: session.retrieve(text, budget)))  # type: ignore[misc]
        out.put("retrieve_ms", spent[WARM_UP:])


def milliseconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
