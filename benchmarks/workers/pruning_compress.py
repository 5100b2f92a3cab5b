"""A warm `compress` of passages by one refiner.

Job: `refiner`, `threads`, `tokens` (the budget), `rows` (each a `question` and its `contexts`), `settings`.
"""

import time
from typing import Any

from _worker import Out, peak_rss_mb, read

from triptych import Budget, Hit, Item, Query, Settings, Source
from triptych.tools.stages import Stages


def main() -> None:
    job, out = read(), Out()
    refiner = Stages(Settings.load(threads=job["threads"], **job["settings"])).refiner(job["refiner"])
    compress(refiner, job["rows"][0], job["tokens"])
    ms, used = [], []
    for row in job["rows"][1:]:
        start = time.perf_counter()
        used.append(compress(refiner, row, job["tokens"]))
        ms.append(1000 * (time.perf_counter() - start))
        out.put("ms", ms)
        out.put("used", used)
    out.put("peak_rss_mb", peak_rss_mb())


def compress(refiner: Any, row: dict[str, Any], tokens: int) -> int:
    """Tokens of what is left of one row's contexts.

    Raises:
        RuntimeError: more than the budget.
    """
    hits = [Hit(Item(f"p{n}", text, Source(f"{n}.md")), 1 / (n + 1)) for n, text in enumerate(row["contexts"])]
    refined = refiner.refine(Query(row["question"]), hits, Budget(tokens))
    if refined.used > tokens:
        raise RuntimeError(f"{refined.used} tokens for a budget of {tokens}")
    return int(refined.used)


if __name__ == "__main__":
    main()
