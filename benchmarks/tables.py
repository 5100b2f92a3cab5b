"""The tables of README, made from `results/*.json` and from nothing else.

    python benchmarks/tables.py          # write them between the markers of README.md
    python benchmarks/tables.py --check  # exit 1 when README differs

A result that has not been made yet has no table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- results:start -->", "<!-- results:end -->"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    wanted = with_tables(text)
    if "--check" in sys.argv:
        raise SystemExit(text != wanted)
    readme.write_text(wanted, "utf-8")


def with_tables(text: str) -> str:
    """`text` with fresh tables between its markers."""
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n{tables()}{END}{after}"


def tables() -> str:
    """All tables, in Markdown."""
    return "".join(f"{part}\n\n" for part in parts())


def parts() -> Iterator[str]:
    if latency := result("latency"):
        yield from _latency(latency)
    if handshake := result("handshake"):
        yield _handshake(handshake)
    for path in sorted(RESULTS.glob("search_*.json")):
        yield from _search(result(path.stem) or {})
    if compress := result("compress_qa"):
        yield from _compress(compress)
    if parity := result("compress_llmlingua_parity"):
        yield _parity(parity)


def result(name: str) -> dict[str, Any] | None:
    """A result file's content, or None where it has not been made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _latency(found: dict[str, Any]) -> Iterator[str]:
    retrieve, made = found["retrieve"], found["throughput"]
    machine = found["environment"]
    yield (
        f"**A warm `retrieve`** (best {retrieve['depth']}, {retrieve['budget']:,} tokens, "
        f"{found['indexing']['passages']:,} passages, {retrieve['n']} queries, "
        f"{machine['processor']}, {machine['threads']} threads; "
        "`benchmarks/latency.py`), milliseconds:"
    )
    bars = {"total": retrieve["bar_ms"]}
    rows = [
        [stage, f"{ms['p50']:,.0f}", f"{ms['p95']:,.0f}", _bar(bars.get(stage))] for stage, ms in retrieve["ms"].items()
    ]
    yield table(["stage", "p50", "p95", "bar (p50, p95)"], rows)
    yield (
        "Every block was counted again: never above the budget. On average "
        f"{retrieve['tokens_used_mean']:,.0f} tokens of it were used; evidence below the relevance floor never fills "
        "it. Indexing pre-cut chunks runs at "
        f"{made['ratio']:.2f} of the encoder's own throughput (bar "
        f"{made['bar']}); parsing Markdown is apart, at {made['parsing_files_per_s']:,.0f} files a second."
    )


def _bar(bar: dict[str, float] | None) -> str:
    return f"{bar['p50']:,.0f}, {bar['p95']:,.0f}" if bar else ""


def _handshake(found: dict[str, Any]) -> str:
    legacy, auto = found["legacy"]["ratio"], found["auto"]["ratio"]
    return (
        f"**Handshake**: from spawn to initialized, {legacy:.2f} times (legacy clients) and {auto:.2f} times (current "
        f"ones) what a bare server with one tool takes in the same run (bar {found['bar']}; `benchmarks/handshake.py`)."
    )


def _search(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"**Search and rerank** on `{found['data']}` ({found['queries']} queries, {found['passages']:,} passages; "
        f"rerankers read the first {found['depth']} of {found['candidates']}; `benchmarks/search_quality.py`):"
    )
    rows = [
        [name, f"{one['nDCG@10']:.3f}", f"{one['MRR@10']:.3f}", f"{one['vs_hybrid']['nDCG@10']:+.3f}",
         f"{one['vs_hybrid']['p']:.3f}"]
        for name, one in found["systems"].items()
    ]  # fmt: skip
    yield table(["system", "nDCG@10", "MRR@10", "against hybrid", "p"], rows)


def _compress(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"**Compression** on `{found['data']}`: the share of questions whose gold answer is still in the compressed "
        "text, at a half and a quarter of the tokens (`benchmarks/compress_qa.py`):"
    )
    rows = []
    for name, arm in found["arms"].items():
        two, four = arm["ratios"]["2"], arm["ratios"]["4"]
        over = max(two["over_budget"], four["over_budget"])
        rows.append([name, str(arm["n"]), f"{two['survived']:.3f}", f"{four['survived']:.3f}", f"{over:.0%}"])
    yield table(["system", "n", "2×", "4×", "over budget"], rows)


def _parity(found: dict[str, Any]) -> str:
    jobs = sum(mode["jobs"] for mode in found["modes"].values())
    same = sum(mode["identical"] for mode in found["modes"].values())
    return (
        "**Parity**: our build of the `llmlingua` package on transformers 5 gave the same text as the untouched "
        f"package on transformers {found['stock']['transformers']} in {same} of {jobs} jobs "
        "(`benchmarks/llmlingua_parity.py`)."
    )


if __name__ == "__main__":
    main()
