"""HDCT: counts of passages as counts of documents, BM25 over documents, the item that stands for one, weak labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, MissingWeights, StoreError, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, Query, Source, Where
from triptych.retrievers.stores.lexicon import dimension
from triptych.retrievers.text._term_training import Example, Training
from triptych.retrievers.text._term_weights import TermWeights, counts
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.text.deepct import DeepCT
from triptych.retrievers.text.hdct import HDCT, Aggregation, How, aggregate, from_feedback, from_references

WAYS = get_args(How)
PLAIN = Aggregation(scale=10, root=False, k1=2.0, b=0.5, how="sum")


class Told:
    """Weights that stand in the text, `word=0.5 other=1`, instead of a model."""

    def weights(self, texts: Sequence[str]) -> list[dict[str, float]]:
        return [dict(told(text)) for text in texts]


def told(text: str) -> Mapping[str, float]:
    return {word: float(y) for word, _, y in (part.partition("=") for part in text.split("\n")[-1].split())}


def item(id_: str, text: str, document: str = "", ordinal: int = 0, folder: str = "f") -> Item:
    meta = {"title": "T", "ordinal": ordinal, **({"document": document} if document else {})}
    return Item(id_, text, Source(f"{folder}/{document or id_}.txt"), meta=meta)


def made(aggregation: Aggregation = PLAIN, items: Sequence[Item] = ()) -> HDCT:
    retriever = HDCT.tiny(0, aggregation)
    retriever.weigher = Told()  # type: ignore[assignment]
    retriever.add(items)
    return retriever


def found(retriever: HDCT, query: str, k: int = 9, where: Where | None = None) -> list[tuple[str, float]]:
    return [(hit.item.id, hit.score) for hit in retriever.search(Query(query), k, where)]


# --- from passages to a document -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.sampled_from(WAYS))
def test_counts_are_those_of_the_formula(tfs: list[int], how: How) -> None:
    told = [(tf, place) for place, tf in enumerate(tfs, 1) if tf]
    total = norm = 0.0
    for place, tf in enumerate(tfs, 1):
        total += tf / place if "decay" in how else tf
        norm += 1 / place
    wanted = {"max": max(tfs), "avg": total / len(tfs), "position_decay_avg": total / norm}.get(how, total)
    if told:
        assert aggregate(told, len(tfs), how) == math.floor(wanted + 1e-9)


@given(st.integers(1, 100), st.integers(1, 60))
def test_what_is_equal_in_every_passage_is_its_own_average(tf: int, passages: int) -> None:
    told = [(tf, place) for place in range(1, passages + 1)]
    assert {aggregate(told, passages, how) for how in ("avg", "max", "position_decay_avg")} == {tf}


def test_passages_without_a_term_count_in_its_average() -> None:
    assert aggregate([(9, 2)], 3, "avg") == 3
    assert aggregate([(9, 2)], 3, "position_decay_sum") == 4
    assert aggregate([(9, 2)], 2, "position_decay_avg") == 3
    assert PLAIN.document([{1: 2}, {1: 3, 2: 1}]) == {1: 5, 2: 1}
    assert Aggregation(how="avg").document([{1: 2}, {1: 3, 2: 1}]) == {1: 2}
    assert Aggregation().document([]) == {}


@pytest.mark.parametrize("most", [1, 2])
def test_so_many_passages_as_were_asked_for_count_and_not_one_more(most: int) -> None:
    retriever = made(Aggregation(scale=10, how="sum", most=most), [item(f"p{n}", f"w{n}=1", "d", n) for n in range(4)])
    assert [bool(found(retriever, f"w{n}")) for n in range(4)] == [n < most for n in range(4)]


def test_passages_are_counted_by_the_root() -> None:
    assert Aggregation().counts({"a": 0.25, "b": -1.0, "c": 0.00002}) == {"a": 50}
    assert counts({"a": 0.25}, 100, root=True) == {"a": 50}


# --- documents -------------------------------------------------------------------------------------------------------

LIBRARY = [
    item("a1", "moon=.5 sky=.2", "a", 1),
    item("a0", "sky=.9", "a", 0),
    item("b0", "moon=.1 tide=.7", "b", 0),
    item("b1", "tide=.2 sky=.3 moon=.4", "b", 1),
    item("alone", "sky=.6 cloud=.5"),
    item("last", "rain=.8", "z", 0),
]


def bm25(documents: Mapping[str, Mapping[str, int]], query: Sequence[str], k1: float, b: float) -> dict[str, float]:
    mean = sum(sum(one.values()) for one in documents.values()) / len(documents)
    scores = {}
    for id_, one in documents.items():
        score = 0.0
        for term in query:
            df = sum(term in other for other in documents.values())
            if term in one:
                idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                score += idf * one[term] / (one[term] + k1 * (1 - b + b * sum(one.values()) / mean))
        if score:
            scores[id_] = score
    return scores


def by_hand(items: Sequence[Item], aggregation: Aggregation) -> dict[str, dict[str, int]]:
    documents: dict[str, dict[str, int]] = {}
    for key in {one.meta.get("document", one.id) for one in items}:
        own = sorted((i for i in items if i.meta.get("document", i.id) == key), key=lambda i: i.meta["ordinal"])
        per = [aggregation.counts(told(one.text)) for one in own]
        terms = {term for one in per for term in one}
        documents[key] = {
            term: aggregate(
                [(one[term], place) for place, one in enumerate(per, 1) if term in one], len(per), aggregation.how
            )
            for term in terms
        }
    return {key: {term: tf for term, tf in one.items() if tf} for key, one in documents.items()}


@pytest.mark.parametrize("how", WAYS)
def test_scores_are_bm25_over_documents_also_after_changes(how: How) -> None:
    aggregation = Aggregation(scale=10, root=False, k1=2.0, b=0.5, how=how)
    retriever = made(aggregation, LIBRARY[:3])
    retriever.add(LIBRARY[3:])  # document b grows
    left = list(LIBRARY)
    for gone in (Where(), Where(ids=("a0",)), Where(documents=("b",)), Where(ids=("alone",))):
        if gone != Where():
            left = [i for i in left if i.id not in gone.ids and i.meta.get("document") not in gone.documents]
            retriever.delete(gone)
        wanted = bm25(by_hand(left, aggregation), ["moon", "sky"], 2.0, 0.5)
        scores = {
            hit.item.meta.get("document", hit.item.id): hit.score for hit in retriever.search(Query("moon sky"), 9)
        }
        assert scores == pytest.approx(wanted, abs=1e-5)
    assert retriever.stats().items == len(left)


def test_the_last_document_is_there_too() -> None:
    assert [id_ for id_, _ in found(made(items=LIBRARY), "rain")] == ["last"]


def test_an_item_that_moves_leaves_its_old_document() -> None:
    retriever = made(items=LIBRARY)
    retriever.add([item("b0", "tide=.7", "a", 2)])
    assert [id_ for id_, _ in found(retriever, "tide")] == ["b0", "b1"]
    counted = retriever.documents.counted(["d:a", "d:b"])
    assert (counted["d:a"][dimension("tide")], counted["d:b"][dimension("tide")]) == (7, 2)


def test_a_hit_is_the_item_that_says_most_of_what_was_asked() -> None:
    retriever = made(items=LIBRARY)
    assert {id_ for id_, _ in found(retriever, "sky")} == {"a0", "b1", "alone"}
    assert "a1" in {id_ for id_, _ in found(retriever, "moon")}
    assert [id_ for id_, _ in found(retriever, "tide")] == ["b0"]


def test_a_filter_chooses_among_the_items_and_leaves_the_scores() -> None:
    retriever = made(items=LIBRARY)
    everywhere = dict(found(retriever, "sky"))
    assert found(retriever, "sky", where=Where(ids=("a1", "alone", "last"))) == [
        (id_, everywhere[of]) for id_, of in sorted([("a1", "a0"), ("alone", "alone")], key=lambda p: -everywhere[p[1]])
    ]
    assert [id_ for id_, _ in found(retriever, "sky", where=Where(documents=("b",)))] == ["b1"]
    assert found(retriever, "sky", where=Where(documents=("a",), ids=("b1",))) == []
    assert found(retriever, "sky", where=Where(documents=("z",))) == []


def test_a_filter_is_followed_as_far_down_as_need_be() -> None:
    items = [item(f"p{n:02}", f"sky={1 - n / 100}", f"d{n:02}", folder="end" if n > 37 else "f") for n in range(40)]
    retriever = made(items=items)
    assert [id_ for id_, _ in found(retriever, "sky", 1, Where(uri_prefix="end/"))] == ["p38"]
    assert [id_ for id_, _ in found(retriever, "sky", 3, Where(uri_prefix="end/"))] == ["p38", "p39"]


def test_a_small_k_is_the_head_of_a_large_one_and_ties_go_by_document() -> None:
    retriever = made(items=[item(f"{9 - n}", "sky=.5", f"d{n}") for n in range(5)])
    assert [id_ for id_, _ in found(retriever, "sky")] == ["9", "8", "7", "6", "5"]
    assert found(retriever, "sky", 2) == found(retriever, "sky")[:2]
    assert found(retriever, "unheard") == []
    with pytest.raises(BadInput, match="`0`"):
        found(retriever, "sky", 0)


def test_decay_prefers_what_stands_first_and_a_sum_does_not() -> None:
    items = [item(f"early{n}", f"{word}=.5 filler=.3", "early", n) for n, word in enumerate(["sky", "x", "y"])]
    items += [item(f"late{n}", f"{word}=.5 filler=.3", "late", n) for n, word in enumerate(["x", "y", "sky"])]
    decayed = found(made(Aggregation(scale=10, root=False, how="position_decay_sum"), items), "sky")
    flat = found(made(Aggregation(scale=10, root=False, how="sum"), items), "sky")
    assert [id_ for id_, _ in decayed] == ["early0", "late2"]
    assert decayed[0][1] > decayed[1][1]
    assert flat[0][1] == pytest.approx(flat[1][1])


# --- doors and bad input ---------------------------------------------------------------------------------------------


def test_what_was_saved_is_searched_without_the_model(tmp_path: Path) -> None:
    retriever = made(items=LIBRARY)
    retriever.save(tmp_path / "saved")
    opened = HDCT.open(tmp_path / "saved")
    assert opened.aggregation == PLAIN
    assert found(opened, "moon sky") == [(id_, pytest.approx(score)) for id_, score in found(retriever, "moon sky")]
    assert opened.delete(Where(ids=("a0",))) == 1
    with pytest.raises(Unsupported, match="without its model"):
        opened.add(LIBRARY)
    BM25.tiny().save(tmp_path / "other" / "passages")
    BM25.tiny().save(tmp_path / "other" / "documents")
    with pytest.raises(StoreError):
        HDCT.open(tmp_path / "other")
    with pytest.raises(StoreError, match="not those of one HDCT"):
        HDCT(DeepCT.tiny().store, retriever.documents, None)  # type: ignore[arg-type]


def test_nothing_is_written_when_the_model_gives_nan() -> None:
    retriever = HDCT.tiny()
    assert retriever.weigher is not None
    retriever.weigher.model.classifier.bias.data.fill_(math.nan)
    with pytest.raises(BadInput, match="`NaN`"):
        retriever.add([item("a", "warm water", "d")])
    assert retriever.stats().items == 0
    assert retriever.documents.stats().items == 0


def test_a_library_of_one_passage_or_of_empty_ones() -> None:
    retriever = HDCT.tiny()
    retriever.add([])
    retriever.add([item("a", ""), item("b", "of the", "d")])
    assert found(retriever, "sky") == []
    retriever.add([item("b", "one sky", "d")])
    assert [id_ for id_, _ in found(retriever, "sky " * 700)] == ["b"]


@pytest.mark.parametrize(
    ("wrong", "named"), [({"how": "median"}, "`median`"), ({"most": 0}, "`0`"), ({"k1": -1}, "`-1`")]
)
def test_wrong_figures_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        Aggregation(**wrong)


def test_load_takes_what_was_fitted(tmp_path: Path) -> None:
    settings = SimpleNamespace(weights=tmp_path, precision="float32", store_uri="", store_token="")
    parts: Any = SimpleNamespace(settings=settings, device="cpu")
    with pytest.raises(MissingWeights, match=r"`HDCT\.fit` into `weights/hdct`"):
        HDCT.load(card("hdct"), parts)
    TermWeights.tiny(0).save(tmp_path / "start")
    data = from_references([(["warm sea"], ["the sea is warm", "salt"])])
    HDCT.fit(data, tmp_path / "hdct", tmp_path / "start", Training(epochs=1))
    loaded = HDCT.load(card("hdct"), parts, tmp_path / "store")
    assert loaded.search(Query("sea"), 3) == []


# --- weak labels -----------------------------------------------------------------------------------------------------


def test_titles_and_links_tell_what_passages_are_about() -> None:
    data = from_references([(["Warm seas", "The sea"], ["one", "two"]), ([], ["nobody named it"])])
    assert data == [Example(text, {"warm": 0.5, "sea": 1.0}) for text in ("one", "two")]


def test_what_a_first_stage_finds_is_taken_for_what_was_asked() -> None:
    first = BM25.tiny()
    first.add([item("a", "warm sea"), item("b", "cold sea"), item("c", "rain")])
    data = {example.text: example.targets for example in from_feedback(["sea", "warm seas"], first, 2)}
    assert data["T\nwarm sea"] == {"sea": 1.0, "warm": 0.5}
    assert data.keys() == {"T\nwarm sea", "T\ncold sea"}
