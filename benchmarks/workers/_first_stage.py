"""What the first-stage workers share, in whatever environment: the prepared data, and one way to measure a system.

Every system is given the same passages, the same vectors and the same queries, which are read before its clock starts.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _worker import Out, peak_rss_mb, read

WARM_UP = 3
TOLD_EVERY_S = 2.0


class Data(NamedTuple):
    """Passages and queries; vectors are float32 (n, dim) of unit length, in the order of the ids."""

    ids: list[str]
    texts: list[str]
    vectors: Any
    query_ids: list[str]
    queries: list[str]
    query_vectors: Any


class Asked(NamedTuple):
    """One query."""

    text: str
    vector: Any
    k: int


Search = Callable[[Asked], Sequence[str]]
"""The ids of the best `k` passages, best first."""
Told = Callable[[int], None]
"""Call it with how many passages have been added."""


def measured(routes: Sequence[str], build: Callable[[Data, Path, Told], dict[str, Search]]) -> None:
    """Do the job: build once, then ask every query of each route, one at a time.

    Args:
        routes: those that `build` gives, as far as the job asks for them.
        build: gives the searches by route; the folder is empty and goes with the worker.
    """
    job, out = read(), Out()
    data = loaded(Path(job["data"]))
    folder = Path(tempfile.mkdtemp())
    told = _Told(out)
    out.put("start_rss_mb", peak_rss_mb())
    start = time.perf_counter()
    searches = build(data, folder, told.added)
    out.put("build_s", time.perf_counter() - start)
    out.put("added", len(data.ids))
    for route in job.get("routes", routes):
        ask(route, searches[route], data, job, out)
    out.put("peak_rss_mb", peak_rss_mb())


def ask(route: str, search: Search, data: Data, job: dict[str, Any], out: Out) -> None:
    """Put `{route: {"ms": […], "run": {query id: [ids]}}}`.

    A job may name the queries (`ask`), and say after how many seconds no more are asked (`ask_s`).
    """
    rows = zip(data.query_ids, data.queries, data.query_vectors, strict=True)
    asked = {key: Asked(text, vector, int(job["k"])) for key, text, vector in rows if key in job.get("ask", {key})}
    for one in [*asked.values()][:WARM_UP]:
        search(one)
    milliseconds: list[float] = []
    run: dict[str, list[str]] = {}
    begun = told = time.perf_counter()
    for key, one in asked.items():
        start = time.perf_counter()
        found = search(one)
        end = time.perf_counter()
        milliseconds.append(1000 * (end - start))
        run[key] = [str(id_) for id_ in found]
        if end - told > TOLD_EVERY_S:
            out.put(route, {"ms": milliseconds, "run": run})
            told = time.perf_counter()
        if end - begun > job.get("ask_s", float("inf")):
            break
    out.put(route, {"ms": milliseconds, "run": run})
    out.put("peak_rss_mb", peak_rss_mb())


def loaded(folder: Path) -> Data:
    """What `first_stage_prepare.py` has written into `folder`."""
    import numpy as np

    if not (folder / "done").is_file():
        raise SystemExit("The data of this cell has not been prepared, or is gone from the cache: use --fresh.")
    ids, texts = _rows(folder / "corpus.jsonl")
    query_ids, queries = _rows(folder / "queries.jsonl")
    vectors = np.load(folder / "corpus.npy", allow_pickle=False)
    query_vectors = np.load(folder / "queries.npy", allow_pickle=False)
    return Data(ids, texts, vectors, query_ids, queries, query_vectors)


def spans(n: int, size: int) -> Iterator[slice]:
    """`range(n)` in slices of at most `size`."""
    return (slice(at, min(at + size, n)) for at in range(0, n, size))


def _rows(path: Path) -> tuple[list[str], list[str]]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["id"] for row in rows], [row["text"] for row in rows]


class _Told:
    """Writes down, now and then, how many passages have been added, for the case that the worker is stopped."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._last = time.perf_counter()

    def added(self, n: int) -> None:
        if time.perf_counter() - self._last > TOLD_EVERY_S:
            self._out.put("added", n)
            self._out.put("peak_rss_mb", peak_rss_mb())
            self._last = time.perf_counter()
