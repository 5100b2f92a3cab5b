"""README's tables, docs/measured.md and the tables of docs/compression.md and docs/reranking.md, made from
`results/*.json` (and for the last what others published, `published.toml`).

    python benchmarks/tables.py [--check]  # write them, or exit 1 when one differs from what the results give

README gets one short table for each claim, measured.md everything; the pages on compression and reranking, where they
are there, tables over data sets and systems. A result that has not been made has no table, and no row or column where
data sets stand side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import compression_tables
import reranking_tables

from triptych.tools.evaluation import report
from triptych.tools.evaluation.result import Arm, Comparison, Result

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
MEASURED, COMPRESSION, RERANKING = (ROOT / "docs" / f"{page}.md" for page in ("measured", "compression", "reranking"))
START, END = "<!-- results:start -->", "<!-- results:end -->"

TOP = """\
# Measured

Made by `make results` from the JSON files in `benchmarks/results/`, which also hold the value of every single query. \
What the figures mean: [evaluation.md](evaluation.md). How they were made: \
[benchmarks/README.md](../benchmarks/README.md)."""


@dataclass(frozen=True)
class Bar:
    """A bound that a claim is held to: at most `most`, or at least `least`.

    Attributes:
        settings: those of the arms that are held to it.
    """

    what: str
    result: str
    metric: str
    most: float | None = None
    least: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    system: str = "triptych"

    def value(self, found: Result) -> float | None:
        """The worst figure of the arms; None where there is no such arm, or one of them has no figure."""
        arms = [
            arm for arm in found.arms if arm.system == self.system and self.settings.items() <= arm.settings.items()
        ]
        values = [arm.metrics.get(self.metric) for arm in arms]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return max(known) if self.least is None else min(known)

    def met(self, value: float | None) -> bool:
        """Whether `value` is there and within the bound."""
        if value is None:
            return False
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    @property
    def bound(self) -> str:
        """In words."""
        return f"at most {self.most:,g}" if self.most is not None else f"at least {self.least:,g}"


LATENCY, PROTOCOL, PRUNING = "bench_latency", "bench_protocol", "bench_pruning"
RERANK_SPEED = "bench_rerank_speed"
AS_SHIPPED = {"precision": "auto"}
EXACT, FAST = {"mode": "exact", **AS_SHIPPED}, {"mode": "fast", **AS_SHIPPED}

BARS = (
    Bar("a warm `retrieve`, p50, ms", LATENCY, "total_ms_p50", most=3000, settings=AS_SHIPPED),
    Bar("a warm `retrieve`, p95, ms", LATENCY, "total_ms_p95", most=6000, settings=AS_SHIPPED),
    Bar("indexing, share of the encoder's own throughput", LATENCY, "index_ratio", least=0.8, settings=AS_SHIPPED),
    Bar("handshake, times a bare server's, legacy clients", PROTOCOL, "handshake_ratio", most=1.3,
        settings={"era": "legacy"}),
    Bar("handshake, times a bare server's, current clients", PROTOCOL, "handshake_ratio", most=1.3,
        settings={"era": "auto"}),
    Bar("pruning `exact`, times the stock package, 2,000 tokens", PRUNING, "lm_speedup_vs_stock", least=2,
        settings={**EXACT, "tokens": 2000}, system="llmlingua"),
    Bar("pruning `exact`, times the stock package, 8,000 tokens", PRUNING, "lm_speedup_vs_stock", least=2,
        settings={**EXACT, "tokens": 8000}, system="llmlingua"),
    Bar("pruning `fast`, times the stock package, 2,000 tokens", PRUNING, "lm_speedup_vs_stock", least=4,
        settings={**FAST, "tokens": 2000}, system="llmlingua"),
    Bar("pruning `fast`, words shared with `exact`, 2,000 tokens", PRUNING, "word_overlap_with_exact", least=0.95,
        settings={**FAST, "tokens": 2000}, system="llmlingua"),
    Bar("pruning `exact`, MB above the model, 8,000 tokens", PRUNING, "above_model_mb", most=1500,
        settings={**EXACT, "tokens": 8000}, system="llmlingua"),
    Bar("the pruner's network, times the stock package", PRUNING, "clf_speedup_vs_stock", least=50,
        settings={"mode": "read"}, system="triptych_pruner"),
    Bar("query likelihood, times a naive loop", RERANK_SPEED, "speedup", least=4, settings=AS_SHIPPED,
        system="query_likelihood"),
    Bar("a cross-encoder, times sentence-transformers", RERANK_SPEED, "speedup", least=1,
        settings={"precision": "float32"}, system="monobert"),
    Bar("the same in int8, times sentence-transformers", RERANK_SPEED, "speedup", least=2,
        settings={"precision": "int8"}, system="monobert"),
    Bar("the same, queries with the same first ten", RERANK_SPEED, "same_top10", least=0.95,
        settings={"precision": "int8"}, system="monobert"),
)  # fmt: skip
"""With weights and without, where both were measured."""


@dataclass(frozen=True)
class View:
    """A table of README.

    Attributes:
        claim: what it is about; the data follows.
        metrics: names or patterns; an arm that has none of them has no row.
        tested: the metric whose paired test stands in the table.
        across: the settings of which each value is a column of the first of `metrics`.
        stages: a row for each `NAME` of the metrics `NAME_ms_p50` and `NAME_ms_p95`, two columns for each arm.
        kept: as in `compression_tables.kept`.
    """

    claim: str
    metrics: tuple[str, ...] = ("*",)
    tested: str = ""
    across: tuple[str, ...] = ()
    stages: bool = False
    kept: bool = False


PROOF = "proof"
"""The kind of a result about a single system."""

ELSEWHERE = (
    PROOF,
    "pruner",
    "choose_blend",
    "rerank",
    "compress",
    "bench_growth",
    "bench_store",
    "bench_embedding",
    "bench_rerank_speed",
    "bench_text_systems",
    "bench_universal",
    "bench_fuzz_mcp",
    "bench_soak_mcp",
)
"""Names and kinds of results that README leaves to docs/compression.md, docs/systems.md and docs/measured.md."""
ON_THE_PAGE = ("compress_multidoc20", "rerank_trec_dl19_run_bm25_blend", "rerank_trec_dl19_run_bm25_lm_top20")
"""Of these, the ones that it shows all the same."""
TIMES = ("p50", "p95")
RANKED = ("nDCG@10", "MRR@10", "recall@100", "ms_p50", "s_per_query")

VIEWS = {
    "bench_latency": (View("A warm `retrieve`, milliseconds", ("*_ms_p50",), stages=True),),
    "bench_protocol": (
        View(
            "MCP servers: handshake, size of the tool schemas, one call, memory",
            ("handshake_ms", "handshake_ratio", "tools", "schema_chars", "schema_o200k_base", "schema_cl100k_base",
             "call_ms_p50", "rss_settled_mb"),
        ),
        View(
            "The first `retrieve` after a start, over an indexed library, milliseconds",
            ("to_handshake_ms", "to_evidence_ms", "first_retrieve_ms", "second_retrieve_ms"),
        ),
        View("`retrieve` from several clients at once", ("calls_per_s", "ms_p50", "ms_p95")),
    ),
    "bench_first_stage": (
        View("First stages side by side, quality", ("nDCG@10", "MRR@10", "recall@100"), tested="nDCG@10"),
        View("Milliseconds a query (p50) by size", ("ms_p50",), across=("items",)),
        View("Seconds to build by size", ("build_s",), across=("items",)),
        View("Most memory by size, MB", ("peak_rss_mb",), across=("items",)),
    ),
    "bench_compression": (
        View("Compressors side by side, answers kept", ("answers_kept",), across=compression_tables.ALLOWED),
        View("Share of the results above the budget", ("over_budget",), across=compression_tables.ALLOWED),
        View("Milliseconds a question (p50)", ("ms_p50",), across=compression_tables.ALLOWED),
        View("Our build of `llmlingua` for transformers 5, texts identical to the stock one's", ("jobs", "identical")),
    ),
    "bench_pruning": (
        View(
            "Pruning half of a text: the stock package, ours, and the network of our own",
            ("seconds", "lm_speedup_vs_stock", "clf_speedup_vs_stock", "word_overlap_with_exact", "identical_to_stock",
             "above_model_mb"),
        ),
        View("A warm `compress` of 2,000 tokens to half, milliseconds", ("compress_ms_p50", "compress_ms_p95")),
    ),
    "bench_growth": (
        View("Cost by the size of the library", ("index_s", "ms_p50", "retrieve_ms_p50", "disk_mb", "peak_rss_mb")),
        View("Exponents of these costs (1: proportional to the size)", ("*_exponent",)),
    ),
    "bench_store": (
        View(
            "The store: an index of vectors or none, ours over the bare pymilvus calls, Milvus Lite and a server",
            ("ms_p50", "raw_ms_p50", "overhead", "recall@10", "add_s", "index_s", "peak_rss_mb"),
        ),
    ),
    "bench_embedding": (
        View(
            "Embedding on the processor, ours and sentence-transformers",
            ("texts_per_s", "ratio", "cosine_min", "query_ms_p50"),
        ),
    ),
    "bench_text_systems": (
        View(
            "Text systems together",
            ("nDCG@10", "recall@100", "cpu_ms_p50", "bytes_per_passage", "index_cpu_s", "train_cpu_minutes"),
            tested="nDCG@10",
        ),
    ),
    "bench_universal": (
        View(
            "Encoders of the universal family, random weights",
            ("items_per_s", "ratio", "bytes_per_item", "peak_mb_per_item", "cosine_min"),
        ),
    ),
    "retrieval": (View("Search", RANKED, tested="nDCG@10"),),
    "rerank": (View("Reranking", RANKED, tested="nDCG@10"),),
    "compress": (View("Compression", tuple(compression_tables.MEASURES), kept=True),),
    "pipeline": (
        View("Search, rerank, compress: answers kept, and where the others were lost", ("answers_kept", "lost*")),
    ),
}  # fmt: skip
"""By the result's name or its kind, in the order of the page."""


@dataclass(frozen=True)
class Row:
    """A row of the table of search: a result, what is asked and searched in it, and the metric that fits."""

    what: str
    result: str
    metric: str = "nDCG@10"


SINGLE = "recall@10"
"""For collections in which most of what is found is found by luck: what luck gives can be told."""

SEARCHED = (
    Row("claims → abstracts", "retrieval_scifact"),
    Row("questions → abstracts", "retrieval_cranfield"),
    Row("English questions → English paragraphs", "retrieval_xquad_en_en"),
    Row("Chinese questions → Chinese paragraphs", "retrieval_xquad_zh_zh"),
    Row("Chinese questions → English paragraphs", "retrieval_xquad_zh_en"),
    Row("English questions → Chinese paragraphs", "retrieval_xquad_en_zh"),
    Row("Chinese dish names → recipes", "retrieval_cook_zh_text"),
    Row("questions → pages of filings, their text", "retrieval_financebench_pages_text"),
    Row("of these, the pages that there are pictures of, their text", "retrieval_financebench_pages_media_text"),
    Row("the pictures of these pages", "retrieval_financebench_pages_media"),
    Row("captions → photos", "retrieval_flickr8k_100_media", SINGLE),
    Row("Chinese dish names → photos", "retrieval_cook_zh_media", SINGLE),
    Row("captions → films without sound", "retrieval_video_tiny_media", SINGLE),
    Row("names of sounds → clips without speech", "retrieval_esc50_subset_media", SINGLE),
)

FUSED_WITH = "embedded+use_multilingual"
COLUMNS = {
    "BM25": ("bm25",),
    "dense": ("all_minilm_l6_v2",),
    "multilingual": ("use_multilingual",),
    "fused": ("embedded", "hybrid"),
    "fused, multilingual asked for": (FUSED_WITH,),
}
"""Column → the systems whose figure stands there: the first that the result has."""


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or compare them with the results; the exit status is 1 when one differs."""
    found = results()
    pages = {README: with_tables(README.read_text("utf-8"), parts(found)), MEASURED: measured(found)}
    for path, made in ((COMPRESSION, compression_tables.page), (RERANKING, reranking_tables.page)):
        if path.is_file():
            pages[path] = with_tables(path.read_text("utf-8"), made(found))
    if "--check" in arguments:
        stale = [path.name for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text]
        print(f"Run `make results`: {', '.join(stale)} differ from the results." if stale else "Up to date.")
        return int(bool(stale))
    for path, text in pages.items():
        path.write_text(text, "utf-8")
    return 0


def results(folder: Path = RESULTS) -> list[Result]:
    """All results, in the order of the page."""
    found = [Result.read(path) for path in sorted(folder.rglob("*.json"))]
    order = list(VIEWS)
    return sorted(found, key=lambda one: (order.index(key) if (key := _key(one)) in order else len(order), one.name))


def with_tables(text: str, made: Iterable[str]) -> str:
    """`text` with fresh paragraphs and tables between its markers."""
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n" + "".join(f"{part}\n\n" for part in made) + f"{END}{after}"


def measured(found: Sequence[Result]) -> str:
    """The page with everything."""
    told = [f"{report.markdown(one, '##')}\n{_link(one)}" for one in found]
    return "\n\n".join([TOP, *told]) + "\n"


def _link(one: Result) -> str:
    """To the file; those of single systems have a folder of their own."""
    name = f"systems/{one.name}" if one.kind == PROOF else one.name
    return f"[{one.name}.json](../benchmarks/results/{name}.json)"


def parts(found: Sequence[Result]) -> Iterator[str]:
    """README's paragraphs and tables."""
    if rows := bars(found):
        yield "**Bars** that were set before anything was measured:"
        yield report.table(["what", "bar", "measured", ""], rows, text=4)
    if rows := search_rows(found):
        yield (
            "**Search** by route, each alone and fused as a library of the profile `embedded` does it by itself "
            "(`python benchmarks/measure.py DATA`):"
        )
        yield report.table(["asked → searched", "data", "metric", *COLUMNS, "by luck"], rows, text=3)
    for one in found:
        apart = {one.name, one.kind} & set(ELSEWHERE) and one.name not in ON_THE_PAGE
        if not apart and (one.name not in {row.result for row in SEARCHED} or _reranks(one)):
            yield from _shown(one)
    if found:
        yield "Every arm, every metric and every paired test: [docs/measured.md](docs/measured.md)."


def bars(found: Sequence[Result]) -> list[list[str]]:
    """What, bound, figure, met or missed: for each bar whose result is there."""
    by_name = {one.name: one for one in found}
    there = [(bar, bar.value(by_name[bar.result])) for bar in BARS if bar.result in by_name]
    return [
        [bar.what, bar.bound, report.figure(value), "met" if bar.met(value) else "**missed**"] for bar, value in there
    ]


def search_rows(found: Sequence[Result]) -> list[list[str]]:
    """Of each result of `SEARCHED` that is there: what, data, metric, a figure for each of `COLUMNS`, and luck's."""
    by_name = {one.name: one for one in found}
    return [
        [
            row.what,
            report.sizes(by_name[row.result].data[0]),
            row.metric,
            *(_figure_of(by_name[row.result], systems, row.metric) for systems in COLUMNS.values()),
            _by_luck(by_name[row.result], row.metric),
        ]
        for row in SEARCHED
        if row.result in by_name
    ]


def _figure_of(one: Result, systems: Sequence[str], metric: str) -> str:
    """The figure of the first of `systems` that was measured, `""` where none was."""
    arms = [arm for name in systems for arm in one.arms if arm.system == name and metric in arm.metrics]
    return report.figure(arms[0].metrics[metric]) if arms else ""


def _by_luck(one: Result, metric: str) -> str:
    """What ten passages drawn at random give, where that can be told."""
    passages = one.data[0].sizes.get("passages", 0)
    return report.figure(min(1.0, 10 / passages)) if metric == SINGLE and passages else ""


def _reranks(one: Result) -> bool:
    return any("rerank_ms_p50" in arm.metrics for arm in one.arms)


def _key(one: Result) -> str:
    return one.name if one.name in VIEWS else one.kind


def _shown(one: Result) -> Iterator[str]:
    """Its tables, the first one with what was measured on what, and below them the arms that failed."""
    views = [view for view in VIEWS.get(_key(one), (View(one.title),)) if _names(one, view)]
    for view in views:
        first = view is views[0]
        made = f"{_machine(one, views)}; `{one.command}`" if first else ""
        made += compression_tables.legend(one) if view.kept else ""
        yield f"**{view.claim}**{_on(one, view) if first or view.across == ('items',) else ''}{made}:"
        if view.stages or view.kept:
            yield _stages(one) if view.stages else compression_tables.kept(one)
        else:
            yield _across(one, view) if view.across else _plain(one, view, _names(one, view))
    if views and (reasons := report.reasons(one.arms)):
        yield reasons


def _names(one: Result, view: View) -> list[str]:
    return [name for name in report.metrics(one.arms) if any(fnmatch(name, pattern) for pattern in view.metrics)]


def _on(one: Result, view: View) -> str:
    """The data; sizes other than the collections' own are reached with synthetic data."""
    named = {arm.settings["data"] for arm in one.arms if "data" in arm.settings}
    shown = [data for data in one.data if not data.synthetic and (not named or data.name in named)]
    real = [] if view.across == ("items",) else [report.sizes(data) for data in shown]
    if real:
        return f" on {' and '.join(real)}"
    return " on synthetic data: cost, not quality" if any(data.synthetic for data in one.data) else ""


def _machine(one: Result, views: Sequence[View]) -> str:
    """The machine, where time or memory was measured."""
    shown = [name for view in views for name in _names(one, view)]
    timed = any(name.endswith(("ms_p50", "_s", "_ms", "_mb", "s_per_query")) for name in shown)
    return f"; {one.environment.get('processor')}, {one.environment.get('threads')} threads" if timed else ""


def _stages(one: Result) -> str:
    arms = [arm for arm in one.arms if _stage_names(arm)]
    apart = report.varying(arms)
    head = [
        ", ".join([*(f"{key} {report.told(arm.settings[key])}" for key in apart), p]) for arm in arms for p in TIMES
    ]
    rows = [
        [stage, *(report.figure(arm.metrics.get(f"{stage}_ms_{p}")) for arm in arms for p in TIMES)]
        for stage in dict.fromkeys(name for arm in arms for name in _stage_names(arm))
    ]
    return report.table(["stage", *head], rows)


def _stage_names(arm: Arm) -> list[str]:
    return [name.removesuffix("_ms_p50") for name in arm.metrics if name.endswith("_ms_p50")]


def _plain(one: Result, view: View, names: Sequence[str]) -> str:
    """A row for each arm, a column for each setting that tells arms apart and for each metric."""
    arms = [arm for arm in one.arms if any(name in arm.metrics for name in names)]
    settings = report.varying(arms)
    tests: dict[str, Comparison] = {}
    for row in one.comparisons:
        if row.metric == view.tested:
            tests.setdefault(row.arm, row)
    systems = {row.baseline.partition(" (")[0] for row in tests.values()}
    tested = [f"{view.tested} against {' or '.join(sorted(systems))}", "p"] if tests else []
    rows = []
    for arm in arms:
        row = [arm.system, *(report.told(arm.settings.get(key, "")) for key in settings)]
        row += [report.figure(arm.metrics[name]) if name in arm.metrics else "" for name in names]
        test = tests.get(arm.label)
        row += [report.signed(test.difference), report.chance(test.p)] if test else [""] * len(tested)
        rows.append(row)
    return report.table(["system", *settings, *names, *tested], rows, text=1 + len(settings))


def _across(one: Result, view: View) -> str:
    """A row for each system, a column for each size; an arm without a limit stands in every column."""
    [metric] = view.metrics
    arms = [arm for arm in one.arms if metric in arm.metrics or (_size(arm, view) and arm.status != "ok")]
    columns = list(dict.fromkeys(size for arm in arms if (size := _size(arm, view))))
    settings = [key for key in report.varying(arms) if key not in view.across]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for arm in arms:
        key = (arm.system, *(report.told(arm.settings.get(name, "")) for name in settings))
        value = [report.figure(arm.metrics[metric])] if metric in arm.metrics else []
        value += [arm.status] if arm.status != "ok" else []
        size = _size(arm, view)
        rows.setdefault(key, {}).update(dict.fromkeys([size] if size else columns, " ".join(value)))
    return report.table(
        ["system", *settings, *columns],
        [[*key, *(cells.get(size, "") for size in columns)] for key, cells in rows.items()],
        text=1 + len(settings),
    )


def _size(arm: Arm, view: View) -> str:
    """The column of an arm, `""` without one."""
    return ", ".join(f"{key} {report.told(arm.settings[key])}" for key in view.across if key in arm.settings)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
