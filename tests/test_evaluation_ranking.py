"""`eval retrieval` and `eval rerank`: metrics checked by hand, first stages and rerankers on a small collection."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from triptych import progress
from triptych.errors import BadInput, Cancelled, MissingWeights, UnknownSystem, Unsupported
from triptych.rerankers.base import Limits, Ranking
from triptych.rerankers.finetuned.maxsim import MaxSim
from triptych.rerankers.no_rerank import NoRerank
from triptych.retrievers.base import Hit, Query, Space
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM
from triptych.server import cli
from triptych.settings import Settings
from triptych.tools.evaluation import datasets, ranking, rerank, retrieval
from triptych.tools.evaluation.result import Result
from triptych.tools.stages import Stages

TIMES = ("ms_p50", "ms_p95", "index_s", "rerank_ms_p50", "rerank_ms_p95", "s_per_query")

CORPUS: list[dict[str, Any]] = [
    {"id": "trains", "title": "Night trains", "text": "The sleeper to Bergen leaves Oslo at ten in the evening."},
    {"id": "bread", "title": "Baking", "text": "Sourdough rises slowly; bake it in a very hot oven with steam."},
    {"id": "printer", "text": "打印机在三楼的会议室旁边。🖨️ Ask for paper at the desk."},
    {"id": "whales", "title": "Whales", "text": "Blue whales are the largest animals that have ever lived."},
    {"id": "tax", "text": "The form is due in April, and late filers pay a fine."},
    {"id": "glacier", "title": "Ice", "text": "Glaciers carve deep valleys when they move downhill."},
    {"id": "named", "title": "Opening hours of the library", "text": ""},
    {"id": "silent", "text": ""},
    {"id": "sign", "image": "media/sign.png"},
]
QUERIES = {
    "q1": "Which sleeper leaves Oslo for Bergen in the evening?",
    "q2": "打印机在哪里？",
    "q3": "harbour timetable",
    "q4": "the largest animals that lived",
    "q5": "xyzzy plugh",
    "q6": "opening hours library",
}
QRELS = [
    *(("q1", "trains", 2), ("q1", "bread", 0), ("q2", "printer", 1), ("q3", "sign", 2), ("q3", "trains", 1)),
    *(("q4", "whales", 1), ("q5", "tax", 1), ("q6", "named", 1)),
]
RUN = {
    "q1": ["bread", "tax", "trains", "glacier"],
    "q3": ["sign", "whales", "trains"],
    "q4": ["whales", "glacier", "silent"],
}


def written(folder: Path, corpus: Sequence[Mapping[str, Any]] = CORPUS) -> Path:
    """The collection and its run as files in `folder`."""
    (folder / "media").mkdir(parents=True)
    picture = Image.new("RGB", (900, 160), "white")
    ImageDraw.Draw(picture).text((20, 40), "Harbour timetable 1937", "black", ImageFont.load_default(size=64))
    picture.save(folder / "media" / "sign.png")
    queries = [{"id": key, "text": text} for key, text in QUERIES.items()]
    known = {row["id"] for row in corpus}
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "qrels.tsv").write_text(
        "".join(f"{query}\t{key}\t{grade}\n" for query, key, grade in QRELS if key in known), "utf-8"
    )
    lines = [f"{query} Q0 {key} {n} {9 - n} t\n" for query, keys in RUN.items() for n, key in enumerate(keys)]
    (folder / "first.run.trec").write_text("".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def collection(folder: Path) -> datasets.Collection:
    return datasets.collection(folder)


@pytest.fixture(scope="module")
def run(folder: Path, collection: datasets.Collection) -> datasets.Run:
    return datasets.run_file(folder / "first.run.trec", collection)


@pytest.fixture
def settings(tmp_home: Path) -> Settings:
    return Settings.load(precision="float32", rerank_depth=3)


def retrieved(
    collection: datasets.Collection, retrievers: Sequence[str], rerankers: Sequence[str], settings: Settings
) -> Result:
    return retrieval.evaluate(collection, retrievers, rerankers, settings=settings, seed=0, command="c")


def reranked(
    collection: datasets.Collection, run: datasets.Run, rerankers: Sequence[str], settings: Settings, **given: Any
) -> Result:
    options: dict[str, Any] = {"top": 100, "seed": 0, "command": "c"} | given
    return rerank.evaluate(collection, run, "first.run", rerankers, settings=settings, **options)


def without_times(result: Result) -> dict[str, Any]:
    plain = result.as_dict()
    for arm in plain["arms"]:
        arm["metrics"] = {name: value for name, value in arm["metrics"].items() if name not in TIMES}
    return plain


# --- metrics ---------------------------------------------------------------------------------------------------------

GRADED = {
    "ties": {"a": 3, "b": 2, "c": 0, "d": 1, "far": 1},
    "none": {"a": 1},
    "deep": {f"r{n}": 1 for n in range(4)},
    "unjudged": {"a": 2, "b": -1},
}
TREC = """\
ties Q0 c 1 9.0 t
ties Q0 a 2 5.0 t
ties Q0 x 3 5.0 t
ties Q0 b 4 5.0 t
ties Q0 d 5 1.0 t
"""


def discounted(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(place + 2) for place, grade in enumerate(grades[:10]))


def test_metrics_are_those_of_trec_eval_by_hand(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"id": "{key}", "text": "t"}}\n' for key in "abcdx"), "utf-8")
    (tmp_path / "queries.jsonl").write_text('{"id": "ties", "text": "?"}\n', "utf-8")
    (tmp_path / "qrels.tsv").write_text("ties\ta\t3\n", "utf-8")
    (tmp_path / "run.trec").write_text(TREC, "utf-8")
    given = datasets.run_file(tmp_path / "run.trec", datasets.collection(tmp_path))
    found = {
        "ties": [key for key, _ in given["ties"]],
        "deep": ["r0", *(f"x{n}" for n in range(9)), "r1", *(f"y{n}" for n in range(80)), "r2", *"abcdefghij", "r3"],
        "unjudged": ["x", "b", "a"],
    }
    values = ranking.per_query(GRADED, found)
    assert list(values) == ["nDCG@10", "MRR@10", "recall@1", "recall@5", "recall@10", "recall@100"]
    assert all(list(by_query) == list(GRADED) for by_query in values.values())
    # Ties stand: c, a, x, b, d. trec_eval itself would break them by id, x before b before a.
    expected = {
        "nDCG@10": [
            discounted([0, 3, 0, 2, 1]) / discounted([3, 2, 1, 1]),
            0,
            1 / discounted([1, 1, 1, 1]),
            discounted([0, 0, 2]) / 2,
        ],
        "MRR@10": [1 / 2, 0, 1, 1 / 3],
        "recall@1": [0, 0, 1 / 4, 0],
        "recall@5": [3 / 4, 0, 1 / 4, 1],
        "recall@10": [3 / 4, 0, 1 / 4, 1],
        "recall@100": [3 / 4, 0, 3 / 4, 1],
    }
    for name, wanted in expected.items():
        assert list(values[name].values()) == pytest.approx(wanted), name
    # In figures: (3 / 1.5850 + 2 / 2.3219 + 1 / 2.5850) / (3 + 2 / 1.5850 + 1 / 2 + 1 / 2.3219) = 3.1410 / 5.1925.
    assert values["nDCG@10"]["ties"] == pytest.approx(0.6049, abs=5e-5)
    assert ranking.means(values)["MRR@10"] == pytest.approx((1 / 2 + 0 + 1 + 1 / 3) / 4)


def test_metrics_agree_with_trec_eval_where_nothing_is_tied() -> None:
    import pytrec_eval

    found = {"ties": ["x", "b", "c", "far", "a"], "deep": ["r2", "x", "r0"]}
    names = {"ndcg_cut_10": "nDCG@10", "recip_rank": "MRR@10", "recall_5": "recall@5", "recall_100": "recall@100"}
    theirs = pytrec_eval.RelevanceEvaluator(GRADED, {"ndcg_cut.10", "recip_rank", "recall.5,100"}).evaluate(
        {query: {key: float(-n) for n, key in enumerate(keys)} for query, keys in found.items()}
    )
    ours = ranking.per_query(GRADED, found)
    for query in found:
        for name, own in names.items():
            assert ours[own][query] == pytest.approx(theirs[query][name])


def test_a_first_hit_beyond_ten_has_no_reciprocal_rank() -> None:
    values = ranking.per_query({"q": {"a": 1}}, {"q": [*(f"x{n}" for n in range(10)), "a"]}, ["MRR@10", "recall@100"])
    assert values == {"MRR@10": {"q": 0.0}, "recall@100": {"q": 1.0}}


# --- eval retrieval --------------------------------------------------------------------------------------------------


def test_every_arm_finds_what_it_can(collection: datasets.Collection, settings: Settings) -> None:
    result = retrieved(
        collection, ["bm25", "all_minilm_l6_v2", "embedded", "hybrid", "bm25"], ["no_rerank", "maxsim"], settings
    )
    assert (result.name, result.kind) == ("retrieval_tiny", "retrieval")
    assert [arm.system for arm in result.arms] == [
        *("bm25", "all_minilm_l6_v2", "embedded", "hybrid", "bm25 + no_rerank", "bm25 + maxsim")
    ]
    first = result.arm("bm25")
    assert first.per_query["nDCG@10"]["q1"] == 1
    assert first.per_query["recall@10"] == {"q1": 1, "q2": 1, "q3": 0.5, "q4": 1, "q5": 0, "q6": 1}
    assert set(first.per_query) == {"nDCG@10", "MRR@10", "recall@10", "recall@100"}
    assert set(first.metrics) == {*ranking.METRICS, "ms_p50", "ms_p95", "index_s"}
    assert first.metrics["recall@10"] == pytest.approx(4.5 / 6)
    assert result.arm("all_minilm_l6_v2").per_query["nDCG@10"]["q4"] == 1
    assert result.arm("embedded").per_query == result.arm("hybrid").per_query
    assert result.arm("bm25 + no_rerank").per_query == first.per_query
    reranked: Any = result.arm("bm25 + maxsim").metrics
    assert reranked["recall@100"] == first.metrics["recall@100"]
    assert reranked["ms_p50"] > reranked["rerank_ms_p50"] > 0
    assert {row.baseline for row in result.comparisons} == {"bm25"}
    assert len(result.comparisons) == 5 * 3
    assert all(row.n == 6 for row in result.comparisons)
    notes = " ".join(result.notes)
    assert "1 of 9 passages have neither text nor title." in notes
    assert "`bm25` found nothing for 1 of 6 queries." in notes
    assert "`all_minilm_l6_v2`: 1 of 6 queries are in a script or language that its encoder cannot read, and" in notes
    assert "`hybrid`: 1 of 6 queries are in a script or language that its encoder cannot read, and" in notes
    assert "read the first 3 hits of `bm25`" in notes
    assert result.environment["precision"] == "float32"
    assert Result.model_validate_json(json.dumps(result.as_dict())).name == result.name


def test_two_runs_differ_in_times_alone(collection: datasets.Collection, settings: Settings) -> None:
    first, second = (retrieved(collection, ["hybrid", "bm25"], ["maxsim"], settings) for _ in range(2))
    assert without_times(first) == without_times(second)


def test_a_passage_of_many_items_counts_once_and_by_its_best(tmp_path: Path, settings: Settings) -> None:
    folder = written(tmp_path / "pages")
    sheets = []
    for n in range(3):
        sheet = Image.new("RGB", (900, 160), "white")
        ImageDraw.Draw(sheet).text((20, 40), f"Sheet of colour {n}", "black", ImageFont.load_default(size=64))
        sheets.append(sheet)
    sheets[0].save(folder / "media" / "sheets.tiff", save_all=True, append_images=sheets[1:])
    rows = [*CORPUS, {"id": "sheets", "image": "media/sheets.tiff"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "queries.jsonl").write_text('{"id": "q", "text": "sheet of colour"}\n', "utf-8")
    (folder / "qrels.tsv").write_text("q\tsheets\t1\n", "utf-8")
    result = retrieved(datasets.collection(folder), ["bm25"], ["maxsim"], settings)
    for arm in result.arms:
        assert arm.per_query["recall@10"] == arm.per_query["nDCG@10"] == {"q": 1}


def test_search_goes_on_until_there_are_enough_passages(collection: datasets.Collection) -> None:
    """A file of 150 items fills the first 100 hits by itself."""
    from triptych.retrievers.base import Item, Source
    from triptych.tools.evaluation.passages import Corpus

    many = tuple(Item(f"i{n}", "t", Source("")) for n in range(150))
    library = Corpus(
        "d", {"big": many, **{f"s{n}": (Item(f"s{n}", "t", Source("")),) for n in range(120)}}, frozenset()
    )
    asked = []

    class Listing:
        def add(self, items: Sequence[Item]) -> None: ...

        def search(self, query: Query, k: int) -> list[Hit]:
            asked.append(k)
            return [Hit(item, 1.0) for item in library.items[:k]]

    found = retrieval._best(Listing(), Query("q"), library)
    assert asked == [100, 200, 400]
    assert len(library.passages([key for key, _ in found])) == 121


def test_a_profile_without_its_weights_is_bm25_and_says_so(collection: datasets.Collection, bare_home: Path) -> None:
    result = retrieved(collection, ["embedded", "bm25"], [], Settings.load())
    assert result.arm("embedded").per_query == result.arm("bm25").per_query
    assert any(note.startswith("`embedded`: Weights missing (all_minilm_l6_v2") for note in result.notes)
    with pytest.raises(MissingWeights):
        retrieved(collection, ["all_minilm_l6_v2"], [], Settings.load())
    with pytest.raises(MissingWeights):
        retrieved(collection, ["bm25"], ["maxsim"], Settings.load())


def test_another_profile_brings_its_own_settings(collection: datasets.Collection, settings: Settings) -> None:
    (settings.home / "profiles.toml").write_text('[mine]\nprecision = "bfloat16"\n', "utf-8")
    assert retrieval.FirstStage.named("mine", settings).settings.precision == "bfloat16"
    assert retrieval.FirstStage.named("embedded", settings).settings is settings
    (settings.home / "profiles.toml").write_text("[mine]\ndepth = -1\n", "utf-8")
    with pytest.raises(UnknownSystem, match="Setting `depth` is `-1`"):
        retrieval.FirstStage.named("mine", settings)


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on reading passages and loading any model fail the test."""

    def refuse(*given: object, **named: object) -> None:
        pytest.fail("work began")

    for module in (retrieval, rerank):
        monkeypatch.setattr(module, "corpus", refuse)
    for name in ("encoder", "lm", "reranker", "refiner"):
        monkeypatch.setattr(Stages, name, refuse)
    monkeypatch.setattr(AllMiniLM, "from_folder", refuse)


@pytest.mark.parametrize(
    ("retrievers", "rerankers", "wanted"),
    [
        (["bm25", "bm52"], [], r"`bm52` is neither a retriever nor a profile.*`bm25`.*Use one of: embedded"),
        (["maxsim"], [], r"`maxsim` is neither a retriever nor a profile.*bm25,.* hybrid.*Use one of: embedded"),
        (["bm25"], ["maxism"], r"Unknown reranker `maxism`.*`maxsim`"),
        (["bm25"], ["bm25"], r"Unknown reranker `bm25`"),
    ],
)
def test_an_unknown_name_is_told_before_any_work(
    collection: datasets.Collection,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    retrievers: list[str],
    rerankers: list[str],
    wanted: str,
) -> None:
    no_work(monkeypatch)
    with pytest.raises(UnknownSystem, match=wanted):
        retrieved(collection, retrievers, rerankers, settings)
    if retrievers == ["bm25"]:
        with pytest.raises(UnknownSystem, match=wanted):
            reranked(collection, {"q1": [("trains", 1.0)]}, rerankers, settings)


def test_nothing_asked_is_bad_input(collection: datasets.Collection, run: datasets.Run, settings: Settings) -> None:
    with pytest.raises(BadInput, match="No retriever"):
        retrieved(collection, [], [], settings)
    with pytest.raises(BadInput, match="No reranker"):
        reranked(collection, run, [], settings)
    with pytest.raises(BadInput, match=r"`first.run` has none of the queries of `tiny`"):
        reranked(collection, {}, ["no_rerank"], settings)


def test_data_that_no_system_reads_is_refused_before_a_model_loads(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "sounds")
    (folder / "media" / "tone.ogg").write_bytes(b"OggS" + bytes(60))
    rows = [{"id": row["id"], "audio": "media/tone.ogg"} for row in CORPUS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = datasets.collection(folder)
    for name in ("encoder", "lm", "reranker"):
        monkeypatch.setattr(Stages, name, lambda *given: pytest.fail("a model is loaded"))
    for name in ("bm25", "hybrid", "all_minilm_l6_v2", "embedded"):
        with pytest.raises(BadInput, match=rf"`{name}` reads text, and no passage of `sounds` gives any"):
            retrieved(data, [name], [], settings)
    with pytest.raises(BadInput, match=r"`maxsim` reads text, and no passage"):
        reranked(data, {"q1": [("trains", 1.0)]}, ["maxsim"], settings)


def test_a_profile_whose_encoder_has_many_vectors_is_unsupported(
    collection: datasets.Collection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AllMiniLM, "space", Space("tokens", "multi", 8))
    with pytest.raises(Unsupported, match="multi vectors"):
        retrieved(collection, ["embedded"], [], settings)


def test_a_query_that_a_reranker_cannot_do_is_a_typed_error(
    folder: Path, collection: datasets.Collection, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def rank(self: object, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        if query.text == QUERIES["q1"]:
            raise Unsupported("It cannot do `q1`.", "Ask something else.")
        return Ranking(tuple(hits))

    monkeypatch.setattr(NoRerank, "rank", rank)
    with pytest.raises(Unsupported, match="cannot do `q1`"):
        retrieved(collection, ["bm25"], ["no_rerank"], settings)
    code = cli.main(["eval", "rerank", str(folder), "--run", str(folder / "first.run.trec"), "--rerank", "no_rerank"])
    assert code == 5
    assert "cannot do `q1`" in capsys.readouterr().err


def test_work_can_be_cancelled_between_queries(
    collection: datasets.Collection, run: datasets.Run, settings: Settings
) -> None:
    told: list[tuple[int, int | None, str]] = []

    def on_step(done: int, total: int | None, what: str) -> None:
        told.append((done, total, what))
        if what.startswith("queries") and done == 1:
            raise Cancelled("Stopped.")

    with progress.reporting(on_step), pytest.raises(Cancelled):
        retrieved(collection, ["bm25"], [], settings)
    assert told[-1] == (1, 6, "queries, bm25")
    with progress.reporting(on_step), pytest.raises(Cancelled):
        reranked(collection, run, ["no_rerank"], settings)
    assert told[-1] == (1, 3, "queries, no_rerank, given")


# --- eval rerank -----------------------------------------------------------------------------------------------------


def test_orders_move_passages_under_the_scores_of_the_run() -> None:
    rows = [("a", 9.0), ("b", 4.0), ("c", 4.0), ("d", 1.0)]
    assert rerank.ordered("q", rows, "given", 0) == rows
    assert rerank.ordered("q", rows, "reversed", 0) == [("d", 9.0), ("c", 4.0), ("b", 4.0), ("a", 1.0)]
    shuffled = {seed: rerank.ordered("q", rows, "shuffled", seed) for seed in range(30)}
    assert shuffled[1] == rerank.ordered("q", rows, "shuffled", 1)
    assert all([score for _, score in one] == [9.0, 4.0, 4.0, 1.0] for one in shuffled.values())
    assert all({key for key, _ in one} == set("abcd") for one in shuffled.values())
    assert len({tuple(one) for one in shuffled.values()}) > 10


def test_a_run_before_and_after(collection: datasets.Collection, run: datasets.Run, settings: Settings) -> None:
    result = reranked(collection, run, ["maxsim", "no_rerank"], settings)
    assert (result.name, result.kind) == ("rerank_tiny_first_run", "rerank")
    labels = [arm.label for arm in result.arms]
    assert labels == [
        f"{system} (order {order})"
        for system in ("run", "maxsim", "no_rerank")
        for order in ("given", "reversed", "shuffled")
    ]
    before = result.arm("run", order="given")
    assert before.per_query["MRR@10"] == {"q1": 1 / 3, "q2": 0, "q3": 1, "q4": 1, "q5": 0, "q6": 0}
    assert set(before.metrics) == set(ranking.COMPARED)
    assert result.arm("run", order="reversed").per_query["MRR@10"]["q4"] == 1 / 3
    for order in ("given", "reversed", "shuffled"):
        assert result.arm("no_rerank", order=order).per_query == result.arm("run", order=order).per_query
        after = result.arm("maxsim", order=order)
        assert after.per_query["MRR@10"]["q1"] == after.per_query["MRR@10"]["q4"] == 1
        assert after.metrics["recall@10"] == before.metrics["recall@10"]
        cost: Any = after.metrics
        assert cost["calls"] == pytest.approx(10 / 3)
        assert cost["tokens"] > 0
        assert cost["repaired"] == 0
        assert cost["s_per_query"] > 0
    assert result.arm("no_rerank", order="given").metrics["calls"] == 0
    pairs = [(row.arm, row.baseline) for row in result.comparisons if row.metric == "nDCG@10"]
    assert pairs == [
        *((label, labels[0]) for label in labels[1:]),
        *((f"{system} (order {order})", f"{system} (order given)")
          for system in ("maxsim", "no_rerank") for order in ("reversed", "shuffled")),
    ]  # fmt: skip
    assert "3 of 6 queries have no candidates and count 0." in result.notes
    assert "1 of 9" not in " ".join(result.notes)
    assert "1 of 7 passages have neither text nor title." in result.notes


def test_only_the_top_of_a_run_is_seen(collection: datasets.Collection, run: datasets.Run, settings: Settings) -> None:
    result = reranked(collection, run, ["no_rerank"], settings, top=2)
    assert result.arm("run", order="given").per_query["recall@10"]["q1"] == 0
    assert result.arm("run", order="reversed").per_query["recall@10"]["q1"] == 0
    assert "Up to 2 candidates per query" in result.notes[0]


def test_reranking_is_the_same_under_the_seed(
    collection: datasets.Collection, run: datasets.Run, settings: Settings
) -> None:
    first, second = (reranked(collection, run, ["maxsim"], settings, seed=5) for _ in range(2))
    assert without_times(first) == without_times(second)
    other = reranked(collection, run, ["no_rerank"], settings, seed=8)
    assert other.arm("run", order="given").per_query == first.arm("run", order="given").per_query


def test_each_arm_has_models_of_its_own(
    collection: datasets.Collection, run: datasets.Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def rank(self: MaxSim, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        if query.text != retrieval.WARM:
            seen.append(id(self._encoder))
            kept.append(self._encoder)
        return Ranking(tuple(hits))

    kept: list[object] = []
    monkeypatch.setattr(MaxSim, "rank", rank)
    reranked(collection, run, ["maxsim"], settings)
    assert len(set(seen)) == 3
    assert len(seen) == 9


# --- the command line ------------------------------------------------------------------------------------------------


def test_retrieval_from_the_command_line(
    folder: Path, tmp_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "retrieval", str(folder), "--retriever", "bm25", "--rerank", "no_rerank", "--limit", "3"]
    assert cli.main([*arguments, "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Result.read(out / "retrieval_tiny.json").as_dict() == shown
    assert shown["data"][0]["sizes"] == {"queries": 3, "passages": 9}
    assert "bm25 + no_rerank" in (out / "retrieval_tiny.md").read_text("utf-8")
    assert {path.suffix for path in out.iterdir()} >= {".json", ".md", ".svg", ".png"}


def test_rerank_from_the_command_line(
    folder: Path, tmp_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "rerank", str(folder), "--run", str(folder / "first.run.trec"), "--rerank", "no_rerank"]
    assert cli.main([*arguments, "--top", "3", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "rerank"
    assert "no_rerank (order reversed)" in (out / "rerank_tiny_first_run.json").read_text("utf-8")
    assert cli.main([*arguments, "--top", "0", "--json"]) == 2
    assert cli.main(arguments) == 0
    assert "| no_rerank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["retrieval", "--retriever", "bm52"], "neither a retriever nor a profile"),
        (["retrieval", "--retriever", "bm25", "--rerank", "bm25"], "Unknown reranker `bm25`"),
        (["retrieval", "--limit", "0"], "limit is `0`"),
        (["retrieval", "--part", "train"], "has no `qrels.train.tsv`"),
        (["rerank", "--run", "first.run.trec", "--top", "0"], "--top is `0`"),
        (["rerank", "--run", "none.trec"], "no run `none.trec`"),
        (["rerank", "--run", "qrels.tsv"], "`qrels.tsv` line 1 has 3 columns instead of 6"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    folder: Path, tmp_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], wanted: str
) -> None:
    no_work(monkeypatch)
    monkeypatch.chdir(folder)
    assert cli.main(["eval", arguments[0], str(folder), *arguments[1:], "--json"]) == 2
    assert wanted in json.loads(capsys.readouterr().out)["error"]["message"]


def test_settings_of_a_server_do_not_send_passages_there(collection: datasets.Collection, settings: Settings) -> None:
    result = retrieved(collection, ["bm25", "embedded"], [], replace(settings, store_uri="http://127.0.0.1:1"))
    assert any("Milvus Lite" in note for note in result.notes)
