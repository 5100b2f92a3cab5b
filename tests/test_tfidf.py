"""tf-idf: scikit-learn's vectors and cosines, of the whole collection as it is, whatever came and went."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, StoreError
from triptych.retrievers.base import Item, Query, Source, Where
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.stores.weighed import Figures, Weighed
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.bm25 import FORMULAS
from triptych.retrievers.text.tfidf import IDFS, Scheme, TfIdf

WORDS = "cat dog fox owl bee ant elk cow hen pig".split()
QUERY = "cat dog zebra cat ant"
SCHEMES = [Scheme(sublinear, idf) for sublinear in (True, False) for idf in IDFS]


def item(name: str, text: str, document: str = "d") -> Item:
    return Item(name, text, Source("root/a.txt", 0, len(text)), meta={"document": document, "title": "-"})


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, range(10, 0, -1), k=rng.choice((2, 5, 9, 40)))) for _ in range(count - 1)]
    return [*made, ""]


def rows(texts: Sequence[str]) -> list[Item]:
    return [item(f"i{n:03}", text, f"d{n % 3}") for n, text in enumerate(texts)]


def filled(items: Sequence[Item], scheme: Scheme | None = None) -> TfIdf:
    made = TfIdf.tiny(scheme=scheme)
    made.add(items)
    return made


def found(retriever: TfIdf, query: str = QUERY, where: Where | None = None) -> dict[str, float]:
    return {hit.item.id: hit.score for hit in retriever.search(Query(query), 500, where)}


def by_sklearn(items: Sequence[Item], scheme: Scheme, query: str = QUERY) -> dict[str, float]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    made = TfidfVectorizer(
        analyzer=terms, sublinear_tf=scheme.sublinear, use_idf=scheme.idf != "none", smooth_idf=scheme.idf == "smooth"
    )
    vectors = made.fit_transform([one.text for one in items])
    scores = (vectors @ made.transform([query]).T).toarray()[:, 0]
    return {one.id: float(score) for one, score in zip(items, scores, strict=True) if score > 0}


@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.described)
def test_scores_are_those_of_scikit_learn(scheme: Scheme) -> None:
    texts = rows(sentences(60))
    assert found(filled(texts, scheme)) == pytest.approx(by_sklearn(texts, scheme), abs=1e-6)


def test_scores_are_the_formula_of_the_module() -> None:
    texts = rows(sentences(30, 4))
    counts = {one.id: terms(one.text) for one in texts}
    df = {word: sum(word in own for own in counts.values()) for word in terms(" ".join(WORDS))}

    def vector(own: list[str]) -> dict[str, float]:
        return {
            word: (1 + math.log(own.count(word))) * (math.log((1 + len(texts)) / (1 + df[word])) + 1)
            for word in set(own) & df.keys()
        }

    query = vector(terms(QUERY, "query"))
    expected = {}
    for id_, own in counts.items():
        passage = vector(own)
        dot = sum(weight * query.get(word, 0) for word, weight in passage.items())
        if dot:
            expected[id_] = dot / math.hypot(*passage.values()) / math.hypot(*query.values())
    assert found(filled(texts)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_collection_as_it_is(seed: int) -> None:
    rng, made, kept = random.Random(seed), TfIdf.tiny(), dict[str, Item]()
    texts = iter(sentences(400, seed))
    for _ in range(5):
        come = [item(f"i{rng.randrange(40):03}", next(texts)) for _ in range(rng.randint(2, 15))]
        made.add(come)
        kept |= {one.id: one for one in come}
        gone = rng.sample(sorted(kept), min(len(kept) - 1, rng.randint(1, 4)))
        assert made.delete(Where(ids=tuple(gone))) == len(gone)
        kept = {id_: one for id_, one in kept.items() if id_ not in gone}
        assert found(made) == pytest.approx(by_sklearn(list(kept.values()), Scheme()), abs=1e-6)


def test_a_long_text_stuffed_with_a_frequent_word_does_not_win() -> None:
    rng = random.Random(1)
    texts = [f"cat {' '.join(rng.choices(WORDS, k=8))}" for _ in range(50)]
    texts += ["owl keeper manual cat wing", "cat " * 500]
    made = filled(rows(texts))
    assert next(iter(found(made, "cat keeper"))) == "i050"
    raw = filled(rows(texts), Scheme(sublinear=False, idf="none"))
    assert next(iter(found(raw, "cat keeper"))) == "i051"


def test_stop_words_are_no_terms() -> None:
    texts = rows(["the owl keeper", "the of and " * 200 + "pig"])
    assert list(found(filled(texts), "the owl of the night")) == ["i000"]
    assert found(filled(texts), "the of and") == {}


@given(st.dictionaries(st.integers(1, 50), st.integers(1, 10**6), min_size=1), st.sampled_from(SCHEMES))
def test_vectors_have_unit_length_and_positive_weights(counts: dict[int, int], scheme: Scheme) -> None:
    figures = Figures.of([counts, {99: 1}])
    weights = scheme.item(counts, figures)
    assert weights.keys() == counts.keys()
    assert min(weights.values()) > 0
    assert math.hypot(*weights.values()) == pytest.approx(1)


def test_a_text_is_nearest_to_itself_and_length_alone_changes_nothing() -> None:
    texts = [text for text in sentences(30, 2) if text]
    made = filled(rows(texts), Scheme(sublinear=False))
    for n, text in enumerate(texts):
        scores = found(made, text)
        assert scores[f"i{n:03}"] == pytest.approx(1, abs=1e-6)
        assert max(scores.values()) <= 1 + 1e-6
    twice = filled([*rows(texts), item("twice", f"{texts[0]} {texts[0]}")], Scheme(sublinear=False))
    scores = found(twice)
    assert scores["twice"] == pytest.approx(scores["i000"], abs=1e-6)


def test_empty_collections_items_and_unknown_words() -> None:
    made = TfIdf.tiny()
    assert found(made) == {}
    made.add([])
    made.add([item("a", ""), item("b", "!!!")])
    assert found(made) == {}
    made.add([item("c", "cat")])
    assert found(made, "cat zebra") == pytest.approx({"c": 1}, abs=1e-6)  # an unknown word counts for nothing
    assert found(made, "zebra") == found(made, "🙂") == {}
    made.delete(Where(ids=("c",)))
    assert found(made) == {}


def test_a_collection_of_one_item_and_a_long_query() -> None:
    made = filled([item("only", "cat and dog")])
    assert found(made, "dog") == pytest.approx({"only": math.sqrt(0.5)}, abs=1e-6)
    assert found(made, "cat dog " * 5000) == pytest.approx({"only": 1}, abs=1e-6)


@pytest.mark.parametrize("bad", [Query(""), Query(" \n"), Query(None)])
def test_a_query_without_words_is_refused(bad: Query) -> None:
    with pytest.raises(BadInput):
        TfIdf.tiny().search(bad, 3)


def test_filters_are_of_the_answer_and_not_of_the_statistics() -> None:
    made = filled(rows(sentences(30)))
    whole = found(made)
    part = found(made, where=Where(documents=("d2",)))
    assert 0 < len(part) < len(whole)
    assert part == {id_: whole[id_] for id_ in part}


def test_save_and_open_keep_the_scheme_and_the_scores(tmp_path: Path) -> None:
    made = filled(rows(sentences(30)), Scheme(sublinear=False, idf="plain"))
    made.add([item("more", "pig " * 9)])
    made.save(tmp_path / "saved")
    opened = TfIdf.open(tmp_path / "saved")
    assert opened.store.weighing == Scheme(sublinear=False, idf="plain")
    assert found(opened) == found(made)
    assert opened.stats().items == 31
    opened.store.close()


def test_stores_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no idf `log`"):
        Scheme(idf="log")
    with pytest.raises(StoreError, match="not weighed by tf-idf"):
        TfIdf(Weighed(tmp_path, FORMULAS["lucene"]))
    with MilvusStore(tmp_path / "library") as library:
        library.upsert(rows(["cat"]), {})
        with pytest.raises(StoreError, match="not weighed by tf-idf"):
            TfIdf.open(tmp_path / "library")
    with Weighed(tmp_path / "bm25", FORMULAS["lucene"]) as other:
        other.upsert(rows(["cat"]), {})
        with pytest.raises(StoreError, match="no tf-idf"):
            TfIdf.open(tmp_path / "bm25")
        with pytest.raises(StoreError, match="Open it with its retriever"):
            Weighed.existing(tmp_path / "bm25")
    with pytest.raises(StoreError, match="There is no store"):
        TfIdf.open(tmp_path / "nothing")


def test_no_score_is_nan_whatever_the_counts() -> None:
    scheme = Scheme()
    weights = scheme.item({1: 2**32 - 1, 2: 1}, Figures(1, 2.0**32, {1: 1, 2: 1}))
    assert np.isfinite(list(weights.values())).all()
    assert scheme.item({}, Figures(0, 0.0, {})) == {}
