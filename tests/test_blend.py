"""Blend and cosine: what is weighed, what is read once, and what happens where a measure knows nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, Unsupported
from triptych.manifests import weights
from triptych.rerankers.base import Limits
from triptych.rerankers.finetuned import blend as module
from triptych.rerankers.finetuned import maxsim
from triptych.rerankers.finetuned.blend import Blend, Told, Weights, blended, logit, mean_vector, standard, total_of
from triptych.rerankers.finetuned.cosine import Cosine
from triptych.rerankers.finetuned.maxsim import MaxSim
from triptych.rerankers.finetuned.triptych_pruner import Pruner
from triptych.rerankers.finetuned.triptych_reranker import TriptychReranker
from triptych.retrievers.base import Encoder, Hit, Item, Query, Source, Space
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM
from triptych.tools.evaluation import ranking

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
QUERY = Query("How much can I spend on food during a business trip?")
TEXTS = [
    "The stock exchange closed lower on Monday after a weak jobs report.",
    "Our offices are closed on public holidays.",
    "Meals abroad are paid at a flat rate of 58 euros a day; receipts are not needed.",
    "Meals in the canteen cost 6 euros.",
]
ALL = Weights(rank=0.2, score=0.1, cosine=1, maxsim=1, pruner=1)


def hits(texts: Sequence[str], scores: Sequence[float] | None = None) -> list[Hit]:
    scores = [1 / (n + 1) for n in range(len(texts))] if scores is None else scores
    return [
        Hit(Item(f"p{n}", text, Source("")), score) for n, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]


def ids(found: Sequence[Hit]) -> list[str]:
    return [hit.item.id for hit in found]


def told(cosine: float | None = 0.5, maxsim: float = 0.5, pruner: float | None = 0.0) -> Told:
    return Told(cosine, maxsim, pruner, 1)


@pytest.fixture(scope="module")
def encoder(weights_home: Path) -> AllMiniLM:
    return AllMiniLM.from_folder(weights.folder("all_minilm_l6_v2", weights_home / "weights"), "float32")


@pytest.fixture(scope="module")
def blend(encoder: AllMiniLM) -> Blend:
    return Blend(encoder, Pruner.shipped(threads=1), ALL)


# --- what is weighed -------------------------------------------------------------------------------------------------


def test_the_weights_of_the_package_are_at_least_zero_and_one_is_more() -> None:
    values = list(vars(module.WEIGHTS).values())
    assert min(values) >= 0
    assert max(values) > 0


def test_a_sum_of_standard_scores_by_hand() -> None:
    measures = {"cosine": np.array([1.0, 3.0, 5.0]), "maxsim": np.array([9.0, 9.0, 0.0])}
    found = total_of(measures, Weights(cosine=1, maxsim=3))
    high, low = math.sqrt(1.5), math.sqrt(0.5)
    assert found == pytest.approx([(-high + 3 * low) / 4, (0 + 3 * low) / 4, (high - 3 * math.sqrt(2)) / 4])


@given(st.lists(st.floats(allow_nan=False, width=32), max_size=12))
def test_standard_scores_have_mean_0_and_deviation_1_or_are_0(values: list[float]) -> None:
    found = standard(np.array(values, float))
    assert len(found) == len(values)
    assert np.isfinite(found).all()
    if found.any():
        assert found.mean() == pytest.approx(0, abs=1e-6)
        assert found.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("values", [[], [2.0], [3.0, 3.0], [1.0, math.nan], [math.inf, 1.0]])
def test_a_measure_that_says_nothing_is_worth_nothing(values: list[float]) -> None:
    assert not standard(np.array(values, float)).any()


def test_scores_far_from_each_other_stay_finite() -> None:
    assert standard(np.array([1e308, -1e308])).tolist() == [1, -1]


def test_a_missing_measure_leaves_the_others() -> None:
    known = [told(0.1), told(0.9)]
    unread = [told(None, 0.3, None), told(None, 0.9, None)]
    [one, other] = blended(known, [1.0, 1.0], ALL)
    assert one is not None
    assert other is not None
    assert one < other
    [one, other] = blended(unread, [1.0, 1.0], Weights(cosine=5, maxsim=1, pruner=5))
    assert one is not None
    assert other is not None
    assert one < other


def test_without_a_first_stage_the_networks_decide() -> None:
    found = blended([told(0.9), told(0.1), told(0.1)], [0.0, 0.0, 0.0], Weights(rank=9, score=9, cosine=1))
    assert found[1] == found[2]
    assert found[0] == max(score for score in found if score is not None)


def test_what_maxsim_puts_below_its_floor_is_below_ours() -> None:
    found = blended([told(0.1, 0.5), told(0.9, maxsim.FLOOR - 0.01), told(0.2, 0.5)], [3.0, 2.0, 1.0], ALL)
    below = [score is not None and score < Blend.floor for score in found]
    assert below == [False, True, False]


def test_an_average_hit_has_half() -> None:
    found = blended([told(0.1), told(0.5), told(0.9)], [0.0, 0.0, 0.0], Weights(cosine=1))
    assert found[1] == pytest.approx(0.5)


def test_logits_stay_finite() -> None:
    assert logit(0.5) == 0
    assert logit(0.0) == pytest.approx(-logit(1.0)) == pytest.approx(-16.1, abs=0.1)


# --- ranking ---------------------------------------------------------------------------------------------------------


def test_the_answer_comes_first_from_any_place(blend: Blend) -> None:
    for order in (TEXTS, TEXTS[::-1]):
        found = blend.rank(QUERY, hits(order))
        assert found.hits[0].item.text == TEXTS[2]
        assert found.calls == 4
        assert all(-1 <= hit.score <= 1 for hit in found.hits)


def test_alone_each_measure_orders_as_its_own_system_does(encoder: AllMiniLM) -> None:
    pruner = Pruner.shipped(threads=1)
    alone = {
        Weights(maxsim=1): MaxSim(encoder, fade=0),
        Weights(pruner=1): TriptychReranker(pruner, fade=0),
    }
    for chosen, system in alone.items():
        found = Blend(encoder, pruner, chosen).rank(QUERY, hits(TEXTS, [0.0] * 4)).hits
        kept = [hit.item.id for hit in found if hit.score >= Blend.floor]
        assert kept == [key for key in ids(system.rank(QUERY, hits(TEXTS, [0.0] * 4)).hits) if key in kept]


def test_one_pass_of_the_encoder_serves_cosine_and_late_interaction(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, pruner = AllMiniLM.tiny(0), Pruner.tiny(0)
    read: list[int] = []
    forward = encoder._states

    def counted(pieces: Sequence[Sequence[int]]) -> list[np.ndarray]:
        read.extend(map(len, pieces))
        return forward(pieces)

    monkeypatch.setattr(encoder, "_states", counted)
    monkeypatch.setattr(encoder, "encode", lambda *_: pytest.fail("encoded a second time"))
    Blend(encoder, pruner, ALL).rank(QUERY, hits(TEXTS))
    assert len(read) == len(TEXTS) + 1


def test_a_network_that_weighs_nothing_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = Pruner.tiny(0)
    monkeypatch.setattr(pruner, "read", lambda *_: pytest.fail("asked"))
    found = Blend(AllMiniLM.tiny(0), pruner, Weights(cosine=1)).rank(QUERY, hits(TEXTS))
    assert len(found.hits) == 4


def test_a_depth_limit_leaves_the_rest_behind_in_order(blend: Blend) -> None:
    found = blend.rank(QUERY, hits([*TEXTS, *TEXTS]), Limits(depth=3))
    assert sorted(ids(found.hits[:3])) == ["p0", "p1", "p2"]
    assert ids(found.hits[3:]) == ["p3", "p4", "p5", "p6", "p7"]
    assert (found.calls, found.complete, found.reason) == (3, False, "depth limit: 3 of 8 hits")
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)


def test_no_time_at_all_is_the_first_stages_order(blend: Blend) -> None:
    found = blend.rank(QUERY, hits(TEXTS), Limits(seconds=0))
    assert (ids(found.hits), found.complete) == (["p0", "p1", "p2", "p3"], False)
    assert "0 s passed after 0 of 4" in (found.reason or "")


def test_time_that_runs_out_keeps_what_was_read(blend: Blend, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("triptych.rerankers._pointwise.time.monotonic", lambda: next(clock))
    found = blend.rank(QUERY, hits(TEXTS * 5), Limits(seconds=3))
    assert (found.calls, found.complete) == (16, False)
    assert ids(found.hits[16:]) == ["p16", "p17", "p18", "p19"]


def test_one_hit_is_unchanged_without_a_call(blend: Blend) -> None:
    for few in ([], hits(TEXTS[:1])):
        assert blend.rank(QUERY, few).hits == tuple(few)
        assert blend.estimate(len(few)).calls == 0


def test_the_first_stages_score_may_be_anything_but_no_number(blend: Blend) -> None:
    for scores in ([math.inf, 1.0, 0.0, -math.inf], [1e308, -1e308, 0.0, 0.0], [0.0] * 4):
        found = blend.rank(QUERY, hits(TEXTS, scores))
        assert found.hits[0].item.id == "p2"
        assert all(math.isfinite(hit.score) for hit in found.hits)
    with pytest.raises(BadInput, match="`nan`"):
        blend.rank(QUERY, hits(TEXTS, [math.nan] * 4))


def test_measures_that_are_no_numbers_are_refused(blend: Blend, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [Told(math.nan, 0.5, 0.0, 1) for _ in TEXTS]
    monkeypatch.setattr(blend, "read", lambda *_: broken)
    with pytest.raises(Unsupported, match="`nan`"):
        blend.rank(QUERY, hits(TEXTS))


def test_eight_threads_say_what_one_says(blend: Blend) -> None:
    wanted = blend.rank(QUERY, hits(TEXTS))
    with ThreadPoolExecutor(8) as pool:
        assert all(found == wanted for found in pool.map(lambda _: blend.rank(QUERY, hits(TEXTS)), range(16)))


# --- other languages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["blend", "cosine"])
def test_passages_in_another_language_keep_their_places(system: str, encoder: AllMiniLM, blend: Blend) -> None:
    ranker = blend if system == "blend" else Cosine(encoder)
    mixed = hits(["柏林是德国的首都。", "The cat sleeps.", "巴黎是法国的首都。", "The capital of Germany is Berlin."])
    found = ranker.rank(Query("What is the capital of Germany?"), mixed)
    assert ids(found.hits) == ["p0", "p3", "p2", "p1"]
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    for query in ("柏林在哪里", "Wo liegt die Hauptstadt von Deutschland und wie heißt sie?"):
        english = hits(["The cat sleeps.", "The capital of Germany is Berlin."])
        found = ranker.rank(Query(query), english)
        assert ids(found.hits) == ["p0", "p1"]
        assert ranker.floor is None or all(hit.score >= ranker.floor for hit in found.hits)


def test_a_chinese_query_is_matched_literally_and_read_by_no_network(
    blend: Blend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend._pruner, "read", lambda *_: pytest.fail("read by a network of English"))
    texts = ["公司在北京设有办事处。", "差旅补贴为每天五百元。", "An English passage about daily allowances."]
    found = blend.rank(Query("每天的差旅补贴是多少"), hits(texts, [0.0] * 3))
    assert ids(found.hits) == ["p1", "p0", "p2"]


def test_the_cosine_leaves_a_chinese_query_alone(encoder: AllMiniLM) -> None:
    texts = ["公司在北京设有办事处。", "差旅补贴为每天五百元。"]
    assert ids(Cosine(encoder).rank(Query("每天的差旅补贴是多少"), hits(texts)).hits) == ["p0", "p1"]


# --- cosine ----------------------------------------------------------------------------------------------------------


def test_the_cosine_is_that_of_encoded_vectors(encoder: AllMiniLM) -> None:
    given_hits = hits(TEXTS)
    found = Cosine(encoder).rank(QUERY, given_hits)
    [wanted] = encoder.encode([QUERY], "query")
    vectors = encoder.encode([hit.item for hit in given_hits], "document")
    expected = {hit.item.id: float(vector @ wanted) for hit, vector in zip(given_hits, vectors, strict=True)}
    assert {hit.item.id: hit.score for hit in found.hits} == pytest.approx(expected, abs=1e-5)
    assert ids(found.hits) == sorted(expected, key=lambda key: -expected[key])


def test_the_same_text_scores_the_same_and_keeps_its_order(encoder: AllMiniLM) -> None:
    found = Cosine(encoder).rank(QUERY, hits([TEXTS[0], TEXTS[2], "x " * 300, TEXTS[2], TEXTS[2]]))
    assert ids(found.hits)[:3] == ["p1", "p3", "p4"]
    assert len({hit.score for hit in found.hits[:3]}) == 1


def test_a_mean_of_no_vectors_is_zero() -> None:
    assert not mean_vector(np.empty((0, 384), np.float16)).any()
    assert np.linalg.norm(mean_vector(np.ones((3, 384), np.float16))) == pytest.approx(1)


def test_encoders_without_one_vector_of_a_text_are_refused() -> None:
    class Several(Encoder):
        space = Space("several", "multi", 4)

        def encode(self, inputs: Any, side: Any) -> Any:
            return []

    with pytest.raises(Unsupported, match="`several`"):
        Cosine(Several())


@pytest.mark.parametrize("system", [Blend.tiny(0), Cosine.tiny(0)])
def test_a_query_without_text_is_refused(system: Any) -> None:
    with pytest.raises(Unsupported, match="`None`"):
        system.rank(Query(), hits(TEXTS))


# --- choosing the weights --------------------------------------------------------------------------------------------


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("choose_blend")


def row(seed: int) -> dict[str, Any]:
    """What `choose_blend.py read` keeps of one query: 20 passages, two first stages."""
    random = np.random.default_rng(seed)
    told = {f"p{n}": {"cosine": random.random(), "maxsim": random.random(), "pruner": random.normal(), "tokens": 1}
            for n in range(20)}  # fmt: skip
    runs = {name: [[f"p{n}", 20.0 - place] for place, n in enumerate(random.permutation(20))] for name in STAGES}
    return {"query": f"q{seed}", "told": told, "encoded": {name: random.random() for name in told}, "runs": runs}


STAGES = ("bm25", "hybrid")


def test_the_grid_ranks_as_the_package_does_and_measures_as_trec_eval(choosing: Any) -> None:
    for seed in range(5):
        known = row(seed)
        grades = {f"p{n}": int(np.random.default_rng(seed).integers(0, 3)) for n in range(8)} | {
            "p0": 1,
            "elsewhere": 2,
        }
        [case] = choosing.cases([known], {known["query"]: grades}, "bm25")
        names = [name for name, _ in known["runs"]["bm25"]]
        passages = [Told(**known["told"][name]) for name in names]
        final = blended(passages, [score for _, score in known["runs"]["bm25"]], ALL)
        order = sorted(range(20), key=lambda n: -(final[n] or 0))
        [value] = ranking.per_query({"q": grades}, {"q": [names[n] for n in order]}, ["nDCG@10"])["nDCG@10"].values()
        assert case.blended(ALL) == pytest.approx(value)


def test_the_grid_holds_each_proportion_once_and_the_packages_own(choosing: Any) -> None:
    known = row(0)
    lists = {("toy", stage): choosing.cases([known], {"q0": {"p1": 1}}, stage) for stage in STAGES}
    grid = choosing.tried(lists)
    assert module.WEIGHTS in grid
    proportions = [choosing._proportion(weights) for weights in grid]
    assert len(set(proportions)) == len(proportions)
    assert all(0 <= value <= 1 for by_list in grid.values() for value in by_list.values())


def test_a_result_tests_the_blend_against_its_parts(choosing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(seed) for seed in range(6)]
    info = choosing.DataInfo(name="toy", sha256="0", sizes={"queries": 9, "passages": 20})
    qrels = {one["query"]: {"p1": 1} for one in rows}
    likely = [{"query": one["query"], "told": {f"p{n}": -n for n in range(20)}, "seconds": 1.0} for one in rows[:4]]
    kept = {**dict.fromkeys(choosing.SETS, rows), "nq_held_likelihood": likely}
    monkeypatch.setattr(choosing, "cached", lambda name: kept.get(name, []))
    monkeypatch.setattr(choosing, "data_of", lambda _, name: choosing.Data(name, {}, {}, qrels, info))
    result = choosing.choose(Path("DATA"))
    assert {arm.settings["data"] for arm in result.arms} == set(choosing.SETS)
    assert {one.baseline.partition(" ")[0] for one in result.comparisons} == {
        "cosine", "maxsim", "blend", "query_likelihood",
    }  # fmt: skip
    assert {one.n for one in result.comparisons if "depth" not in one.arm} == {6}
    assert {one.n for one in result.comparisons if "depth" in one.arm} == {4}
    assert any("place" in note for note in result.notes)


def test_results_on_other_data_are_tested_against_the_cosine(choosing: Any, tmp_path: Path) -> None:
    arms = [
        choosing.Arm(
            system=system,
            settings={"order": order},
            metrics={"nDCG@10": value},
            per_query={"nDCG@10": {f"q{n}": value for n in range(4)}},
        )
        for system, value in (("run", 0.25), ("cosine", 0.5), ("blend", 0.75))
        for order in ("given", "reversed")
    ]
    info = choosing.DataInfo(name="toy", sha256="0")
    made = choosing.Result(
        name="rerank_toy", kind="rerank", title="", command="", seed=0, data=(info,), environment={}, arms=tuple(arms)
    )
    result = choosing.tested([made.write(tmp_path)])
    assert [arm.label for arm in result.arms] == ["run (data toy)", "cosine (data toy)", "blend (data toy)"]
    assert [(one.arm, one.baseline, one.difference) for one in result.comparisons] == [
        ("run (data toy)", "cosine (data toy)", -0.25),
        ("blend (data toy)", "cosine (data toy)", 0.25),
    ]
