"""BM25's formulas, against a loop over the whole collection, and the store that keeps their weights right."""

from __future__ import annotations

import math
import random
import sqlite3
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych import progress
from triptych.errors import BadInput, Cancelled, StoreError
from triptych.retrievers.base import Item, Query, Route, Source, Where
from triptych.retrievers.stores.lexicon import LEXICAL
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.stores.weighed import COUNTS, Figures, Weighed
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.bm25 import BM25, FORMULAS, Formula
from triptych.retrievers.text.tfidf import Scheme

WORDS = "cat dog fox owl bee ant elk cow hen pig".split()
QUERY = "cat dog zebra cat ant"
ALL = [
    *FORMULAS.values(),
    *(replace(one, k1=0.9, b=0.4) for one in FORMULAS.values()),
    *(replace(one, absent=True) for one in FORMULAS.values()),
]
LUCENE = FORMULAS["lucene"]


def item(name: str, text: str, document: str = "d") -> Item:
    return Item(name, text, Source("root/a.txt", 0, len(text)), meta={"document": document, "title": "-"})


def sentences(count: int, seed: int = 0) -> list[str]:
    """Of very different lengths, with an empty one."""
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, range(10, 0, -1), k=rng.choice((2, 5, 9, 40)))) for _ in range(count - 1)]
    return [*made, ""]


def rows(texts: Sequence[str]) -> list[Item]:
    return [item(f"i{n:03}", text, f"d{n % 3}") for n, text in enumerate(texts)]


def found(retriever: BM25, query: str = QUERY, k: int = 500, where: Where | None = None) -> dict[str, float]:
    return {hit.item.id: hit.score for hit in retriever.search(Query(query), k, where)}


def by_loop(formula: Formula, items: Sequence[Item], query: str = QUERY) -> dict[str, float]:
    """Every item's score, written down from the papers; 0 and below are no hits."""
    texts = {one.id: terms(one.text) for one in items}
    mean = sum(map(len, texts.values())) / len(texts)
    scores = {}
    for id_, own in texts.items():
        score = 0.0
        for term in terms(query, "query"):
            df = sum(term in other for other in texts.values())
            n = own.count(term)
            if df and (n or formula.absent):
                score += idf(formula, len(texts), df) * frequency(formula, n, len(own) / mean)
        scores[id_] = score
    return {id_: score for id_, score in scores.items() if score > 0}


def idf(formula: Formula, items: int, df: int) -> float:
    return {
        "robertson": max(0.0, math.log((items - df + 0.5) / (df + 0.5))),
        "lucene": math.log(1 + (items - df + 0.5) / (df + 0.5)),
        "atire": math.log(items / df),
        "bm25l": math.log((items + 1) / (df + 0.5)),
        "bm25plus": math.log((items + 1) / df),
    }[formula.variant]


def frequency(formula: Formula, n: int, length: float) -> float:
    k1, b, d = formula.k1, formula.b, formula.delta
    norm = 1 - b + b * length
    if formula.variant == "bm25l":
        c = n / norm
        return (k1 + 1) * (c + d) / (k1 + c + d)
    plain = n / (n + k1 * norm)
    return {"atire": (k1 + 1) * plain, "bm25plus": (k1 + 1) * plain + d}.get(formula.variant, plain)


@pytest.fixture(scope="module")
def animals() -> BM25:
    made = BM25.tiny(formula=LUCENE)
    made.add(rows(sentences(60)))
    return made


def weighed(retriever: BM25) -> Weighed:
    assert isinstance(retriever.store, Weighed)
    return retriever.store


def mean_in(folder: Path) -> Any:
    with sqlite3.connect(folder / COUNTS) as db:
        kept = db.execute("SELECT mean FROM state").fetchone()[0]
    db.close()
    return kept


# --- the formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", ALL, ids=Formula.described)
def test_scores_are_the_formula_over_the_whole_collection(animals: BM25, formula: Formula) -> None:
    weighed(animals).weigh_by(formula)
    expected = by_loop(formula, rows(sentences(60)))
    hits = animals.search(Query(QUERY), 500)
    assert {hit.item.id: pytest.approx(hit.score, rel=1e-5) for hit in hits} == expected
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("name", FORMULAS)
@given(st.floats(0, 5), st.floats(0, 1), st.integers(1, 200), st.floats(0.01, 100))
def test_more_of_a_term_never_counts_less_and_has_a_limit(
    name: str, k1: float, b: float, n: int, length: float
) -> None:
    formula = replace(FORMULAS[name], k1=k1, b=b)
    one, two, many = (formula.weight(times, max(length, 1), 10) for times in (n, n + 1, 10**12))
    limit = {"robertson": 1, "lucene": 1, "bm25plus": k1 + 1 + formula.delta}.get(name, k1 + 1)
    assert 0 < one <= two * (1 + 1e-12)
    assert many == pytest.approx(limit, rel=1e-6)
    assert one <= limit * (1 + 1e-9)


@pytest.mark.parametrize("name", FORMULAS)
def test_length_counts_as_far_as_b_says(name: str) -> None:
    off, half, whole = (replace(FORMULAS[name], b=b) for b in (0, 0.5, 1))
    assert off.weight(2, 1, 10) == off.weight(2, 1000, 10)
    assert half.weight(2, 5, 10) > half.weight(2, 20, 10)
    assert whole.weight(2, 5, 10) / whole.weight(2, 20, 10) > half.weight(2, 5, 10) / half.weight(2, 20, 10)


def test_the_lower_bounds_of_lv_and_zhai_hold_however_long_the_item_is() -> None:
    plus, shifted = FORMULAS["bm25plus"], FORMULAS["bm25l"]
    assert plus.weight(1, 1e9, 10) == pytest.approx(plus.delta, abs=1e-6)
    assert shifted.weight(1, 1e9, 10) == pytest.approx((1.2 + 1) * 0.5 / (1.2 + 0.5), abs=1e-6)
    assert FORMULAS["lucene"].weight(1, 1e9, 10) < 1e-6


def test_counting_what_is_absent_takes_the_lower_bound_away() -> None:
    """Delta then moves every score by the same amount and no rank, as in bm25s and rank_bm25."""
    texts = rows([*sentences(40), "cat " + "owl " * 300, "dog dog dog"])
    orders = {}
    for absent in (False, True):
        for delta in (0.0, 1.0, 5.0):
            scores = by_loop(Formula("bm25plus", delta=delta, absent=absent), texts, "cat dog hen")
            orders[absent, delta] = sorted(scores, key=lambda id_: (-round(scores[id_], 9), id_))
    kept = set(orders[False, 0.0])
    assert [id_ for id_ in orders[True, 5.0] if id_ in kept] == orders[False, 0.0]
    assert orders[False, 5.0] != orders[False, 0.0]


@pytest.mark.parametrize("name", FORMULAS)
@given(st.integers(1, 10**6), st.data())
def test_no_idf_is_negative_and_rarer_terms_have_no_smaller_one(name: str, items: int, data: st.DataObject) -> None:
    df = data.draw(st.integers(1, items))
    value = FORMULAS[name].idf(items, df)
    assert 0 <= value < math.inf
    assert FORMULAS[name].idf(items, max(1, df - 1)) >= value


@pytest.mark.parametrize(
    "wrong",
    [
        {"variant": "bm25"},
        {"k1": -0.1},
        {"k1": math.inf},
        {"k1": math.nan},
        {"b": 1.01},
        {"b": -1},
        {"delta": math.nan},
    ],
)
def test_constants_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"`{next(iter(wrong.values()))}`"):
        Formula(**{"variant": "lucene", **wrong})


def test_a_formula_comes_back_from_its_description() -> None:
    assert [Formula.of(one.described()) for one in ALL] == ALL
    with pytest.raises(StoreError, match="no BM25"):
        Formula.of(Scheme().described())


# --- small and odd collections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_empty_collections_and_unknown_words(name: str) -> None:
    made = BM25.tiny(formula=FORMULAS[name])
    assert found(made) == {}
    made.add([])
    assert found(made) == {}
    made.add([item("a", ""), item("b", "!!!")])  # mean length 0
    assert found(made) == {}
    made.add([item("c", "cat cat"), item("d", "owl")])
    assert list(found(made)) == ["c"]
    assert found(made, "zebra") == found(made, "the of and") == found(made, "🙂") == {}
    made.delete(Where(ids=("a", "b", "c", "d")))
    assert found(made) == {}
    assert made.stats().items == 0


@pytest.mark.parametrize("name", FORMULAS)
def test_a_collection_of_one_item(name: str) -> None:
    made = BM25.tiny(formula=FORMULAS[name])
    made.add([item("only", "cat and dog")])
    assert set(found(made)) == (set() if name in ("robertson", "atire") else {"only"})


def test_a_long_query_and_other_scripts(animals: BM25) -> None:
    weighed(animals).weigh_by(LUCENE)
    assert found(animals, "cat " * 5000 + "nothing " * 5000).keys() == found(animals, "cat").keys()
    made = BM25.tiny(formula=LUCENE)
    made.add([item("zh", "差旅补贴标准"), item("el", "β-carotene and naïve café"), item("no", "owl")])
    assert list(found(made, "差旅补贴是多少")) == ["zh"]
    assert list(found(made, "β")) == list(found(made, "NAÏVE")) == ["el"]


@pytest.mark.parametrize("bad", [Query(""), Query(" \n"), Query(None)])
def test_a_query_without_words_is_refused(animals: BM25, bad: Query) -> None:
    with pytest.raises(BadInput):
        animals.search(bad, 3)


# --- weights that stay right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_changes_leave_what_a_new_index_would_have(seed: int) -> None:
    rng, made, kept = random.Random(seed), BM25.tiny(formula=FORMULAS["bm25plus"]), dict[str, Item]()
    texts = iter(sentences(400, seed))
    for _ in range(6):
        come = [
            item(f"i{rng.randrange(40):03}", next(texts), f"d{rng.randrange(3)}") for _ in range(rng.randint(1, 15))
        ]
        made.add(come)
        kept |= {one.id: one for one in come}
        gone = rng.sample(sorted(kept), min(len(kept) - 1, rng.randint(0, 4)))
        assert made.delete(Where(ids=tuple(gone))) == len(gone) if gone else True
        kept = {id_: one for id_, one in kept.items() if id_ not in gone}
        assert found(made) == pytest.approx(by_loop(FORMULAS["bm25plus"], list(kept.values())), rel=1e-5)


def test_filling_an_empty_store_weighs_it_at_once_and_a_change_does_not(tmp_path: Path) -> None:
    made = BM25(Weighed(tmp_path, LUCENE))
    made.add(rows(["cat", "cat dog owl"]))
    assert mean_in(tmp_path) == 2
    made.add([item("more", "pig " * 7)])
    assert mean_in(tmp_path) is None
    found(made)
    assert mean_in(tmp_path) == 11 / 3
    made.delete(Where(ids=("more",)))
    assert mean_in(tmp_path) is None
    weighed(made).settle()
    assert mean_in(tmp_path) == 2
    made.store.close()


def test_filters_are_of_the_answer_and_not_of_the_statistics(animals: BM25) -> None:
    weighed(animals).weigh_by(LUCENE)
    whole = found(animals)
    part = found(animals, where=Where(documents=("d1",)))
    assert 0 < len(part) < len(whole)
    assert part == {id_: whole[id_] for id_ in part}


def test_eight_threads_after_a_change_answer_as_one() -> None:
    made = BM25.tiny(formula=LUCENE)
    made.add(rows(sentences(30)))
    made.add([item("more", "cat " * 50)])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: found(made), range(16)))
    assert answers == [answers[0]] * 16
    assert answers[0] == pytest.approx(by_loop(LUCENE, [*rows(sentences(30)), item("more", "cat " * 50)]), rel=1e-5)


def test_whoever_else_has_the_folder_open_sees_the_change(tmp_path: Path) -> None:
    one, other = (BM25(Weighed(tmp_path, LUCENE)) for _ in range(2))
    one.add(rows(["cat", "owl dog"]))
    before = found(other)
    one.add([item("more", "pig " * 40)])
    assert found(other) != before
    assert found(other) == found(one)
    one.store.close()
    other.store.close()


@pytest.mark.parametrize("stage", ["add", "weigh"])
def test_work_that_was_cancelled_goes_on(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych.retrievers.stores import weighed as module

    monkeypatch.setattr(module, "BATCH", 4)
    made, texts = BM25.tiny(formula=LUCENE), rows(sentences(12))
    if stage == "weigh":
        made.add(texts)
        made.add(texts[:1])
    cancelled = Event()

    def on_step(done: int, total: int | None, what: str) -> None:
        if done:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        made.add(texts) if stage == "add" else found(made)
    here = [one for one in texts if made.store.get([one.id])]
    assert len(here) == (4 if stage == "add" else 12)
    assert found(made) == pytest.approx(by_loop(LUCENE, here), rel=1e-5)
    made.add(texts)
    assert found(made) == pytest.approx(by_loop(LUCENE, texts), rel=1e-5)


def test_counts_may_be_given_and_the_text_is_then_only_shown() -> None:
    made = weighed(BM25.tiny(formula=LUCENE))
    texts = [item("a", "nothing of it"), item("b", "cat"), item("a", "the last one counts")]
    made.add(texts, [{"cat": 9}, {"dog": 3, "cat": 1}, {"cat": 2}])
    hits = made.search([Route(LEXICAL, text="cat")], 5)
    figures = Figures(2, 3.0, {})
    weight = math.log(1.2) * LUCENE.weight(2, 2, figures.mean)
    assert [(hit.item.id, hit.item.text) for hit in hits] == [("a", "the last one counts"), ("b", "cat")]
    assert hits[0].score == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("count", [0, -1, 2**32, 1.5])
def test_wrong_counts_are_refused_and_nothing_is_written(count: Any) -> None:
    made = weighed(BM25.tiny(formula=LUCENE))
    with pytest.raises(BadInput, match=f"`{count}` times"):
        made.add([item("a", "cat"), item("b", "dog")], [{"cat": 1}, {"dog": count}])
    assert made.count() == 0


def test_a_row_that_cannot_be_is_refused_before_any_is_written() -> None:
    made = BM25.tiny(formula=LUCENE)
    with pytest.raises(BadInput):
        made.add([*rows(sentences(600)), item("", "no id")])
    with pytest.raises(BadInput, match="no space"):
        made.store.upsert([item("a", "cat")], {"tiny": [[0.0]]})  # type: ignore[dict-item]
    assert made.stats().items == 0


def test_figures_of_nothing_and_of_something() -> None:
    assert Figures.of([]) == Figures(0, 0.0, Counter())
    assert Figures.of([{1: 2, 2: 1}, {}, {1: 3}]) == Figures(3, 2.0, Counter({1: 2, 2: 1}))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_save_and_open_keep_the_formula_and_the_scores(tmp_path: Path, animals: BM25) -> None:
    formula = Formula("bm25l", 0.7, 0.3, 0.4)
    weighed(animals).weigh_by(formula)
    before = found(animals)
    animals.save(tmp_path / "saved")
    opened = BM25.open(tmp_path / "saved")
    assert weighed(opened).weighing == formula
    assert found(opened) == before
    opened.save(tmp_path / "saved")
    opened.store.close()


def test_an_empty_store_is_saved_with_its_formula(tmp_path: Path) -> None:
    BM25.tiny(formula=LUCENE).save(tmp_path / "saved")
    opened = BM25.open(tmp_path / "saved")
    assert weighed(opened).weighing == LUCENE
    assert found(opened) == {}
    opened.add(rows(["cat", "owl dog"]))
    assert mean_in(tmp_path / "saved") == 1.5
    opened.store.close()


def test_a_library_is_never_weighed_anew(tmp_path: Path) -> None:
    with MilvusStore(tmp_path) as library:
        BM25(library).add(rows(["cat", "owl dog"]))
        before = found(BM25(library))
        wrong = BM25(Weighed(tmp_path, LUCENE))
        for work in (lambda: wrong.add([item("x", "cat")]), lambda: found(wrong), lambda: wrong.store.settle()):
            with pytest.raises(StoreError, match="weighed as a library's"):
                work()
        assert found(BM25(library)) == before
        wrong.store.close()


def test_another_formula_than_the_folders_is_refused(tmp_path: Path) -> None:
    made = BM25(Weighed(tmp_path, LUCENE))
    made.add(rows(["cat", "owl dog"]))
    before = found(made)
    for weighing in (replace(LUCENE, k1=2.0), Scheme()):
        other = Weighed(tmp_path, weighing)
        with pytest.raises(StoreError, match="was weighed by"):
            other.search([Route(LEXICAL, text="cat")], 3)
        with pytest.raises(StoreError, match="was weighed by"):
            other.upsert(rows(["pig"]), {})
        other.close()
    assert found(made) == before
    made.store.close()


def test_lost_and_damaged_counts_are_told(tmp_path: Path) -> None:
    made = BM25(Weighed(tmp_path, LUCENE))
    made.add(rows(["cat", "owl dog"]))
    with sqlite3.connect(tmp_path / COUNTS) as db:
        db.execute("DELETE FROM counts WHERE id = 'i001'")
    db.close()
    made.add(rows(["pig"]))
    with pytest.raises(StoreError, match="`i001` is lost"):
        found(made)
    made.add(rows(["pig", "owl dog"]))
    assert list(found(made, "owl")) == ["i001"]
    made.store.close()
    for end in ("-wal", "-shm"):
        (tmp_path / f"{COUNTS}{end}").unlink(missing_ok=True)
    (tmp_path / COUNTS).write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        BM25.open(tmp_path)


def test_erasing_begins_anew_with_another_formula(tmp_path: Path) -> None:
    made = Weighed(tmp_path, LUCENE)
    made.upsert(rows(["cat", "owl dog"]), {})
    made.erase()
    assert made.count() == 0
    made.weigh_by(FORMULAS["atire"])
    made.upsert(rows(["cat", "owl dog"]), {})
    [hit] = made.search([Route(LEXICAL, text="cat")], 3)
    assert hit.score == pytest.approx(by_loop(FORMULAS["atire"], rows(["cat", "owl dog"]), "cat")["i000"], rel=1e-5)
    made.close()
