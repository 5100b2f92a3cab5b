"""What every card of the role `retriever` keeps to, on a tiny random model of its own: retrievers, then encoders."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych import Settings, Triptych, progress
from triptych.errors import BadInput, Cancelled, MissingWeights, TriptychError
from triptych.manifests.registry import packaged
from triptych.retrievers.base import Encoder, Hit, Item, MediaRef, Query, Retriever, Source, Where
from triptych.retrievers.filters import filter_of
from triptych.retrievers.stores.vectors import max_sim
from triptych.tools.stages import Stages

CARDS = {id_: card for id_, card in packaged().items() if card.role == "retriever"}
ENCODERS = [id_ for id_, card in CARDS.items() if issubclass(card.resolve(), Encoder)]
RETRIEVERS = [id_ for id_ in CARDS if id_ not in ENCODERS]
CLOSE = 1e-5

TEXTS = [
    "The owl sleeps in the old barn of the village until the moon is up.",
    "A per diem of 120 euros covers meals in Berlin; receipts are not needed.",
    "The ferry to the island leaves at noon, and takes bicycles and dogs.",
    "Hotels are booked through the travel desk, at least five days ahead.",
    "Ｆull-width, naïve café, 你好世界, 🙂👩‍👩‍👧 and a\u200bzero-width space.",
    "A fox crossed the road by the lighthouse and was seen no more.",
    "",
]
QUERIES = ["Where does the owl sleep?", "travel desk hotels", "你好 café 🙂", "zzqx"]


def item(number: int, text: str | None = None, **meta: Any) -> Item:
    content = TEXTS[number % len(TEXTS)] if text is None else text
    kind = {"document": f"d{number // 2}", "title": f"Title {number}", "ordinal": number % 2, "year": 2000 + number}
    return Item(f"i{number:03d}", content, Source(f"notes/{'a' if number < 3 else 'b'}/{number}.md"), meta=kind | meta)


ITEMS = [item(number) for number in range(len(TEXTS))]


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


def same(one: Sequence[Hit], other: Sequence[Hit]) -> bool:
    """The same items, with scores as equal as floats are; items of one score may have changed places."""
    scores = ({hit.item.id: hit.score for hit in hits} for hits in (one, other))
    first, second = scores
    return first.keys() == second.keys() and all(math.isclose(first[id_], second[id_], abs_tol=1e-4) for id_ in first)


@pytest.fixture
def kept() -> Iterator[Callable[[Any], Any]]:
    """Keeps retrievers until the test is over and closes them then: not whenever, and in whichever thread, they are
    collected."""
    all_: list[Any] = []

    def keep(retriever: Any) -> Any:
        all_.append(retriever)
        return retriever

    yield keep
    for retriever in all_:
        for name in ("vectors", "store"):
            if hasattr(retriever, name):
                getattr(retriever, name).close()


@pytest.fixture(params=RETRIEVERS)
def kind(request: pytest.FixtureRequest) -> Any:
    return CARDS[request.param].resolve()


@pytest.fixture
def retriever(kind: Any, kept: Any) -> Any:
    return kept(kind.tiny(0))


# --- retrievers ------------------------------------------------------------------------------------------------------


def test_an_empty_library_finds_nothing(retriever: Retriever) -> None:
    assert retriever.search(Query("owl"), 5) == []
    assert retriever.stats().items == 0
    retriever.add([])
    assert retriever.search(Query("owl"), 5) == []


def test_hits_are_sorted_bounded_and_of_the_items(retriever: Retriever) -> None:
    retriever.add(ITEMS)
    assert retriever.stats().items == len(ITEMS)
    known = {one.id: one for one in ITEMS}
    for query in QUERIES:
        for k in (1, 3, 50):
            hits = retriever.search(Query(query), k)
            assert len(hits) <= min(k, len(ITEMS))
            assert len(set(ids(hits))) == len(hits)
            assert all(math.isfinite(hit.score) for hit in hits)
            for one, next_ in pairwise(hits):
                assert one.score > next_.score or (one.score == next_.score and one.item.id < next_.item.id)
            assert all(known[hit.item.id] == hit.item for hit in hits)


def test_fewer_hits_are_the_first_of_more(retriever: Retriever) -> None:
    retriever.add(ITEMS)
    for query in QUERIES[:3]:
        many = retriever.search(Query(query), 7)
        for k in (1, 2, 4):
            few = retriever.search(Query(query), k)
            assert [hit.score for hit in few] == pytest.approx([hit.score for hit in many[:k]], abs=CLOSE)


def test_one_item_is_found_and_replaced(retriever: Retriever) -> None:
    retriever.add([ITEMS[0]])
    [hit] = retriever.search(Query("the owl"), 5)
    assert hit.item == ITEMS[0]
    again = item(0, "The owl moved to a church tower, and sleeps there.")
    retriever.add([again])
    assert retriever.stats().items == 1
    [hit] = retriever.search(Query("the owl"), 5)
    assert hit.item.text == again.text


def test_adding_all_at_once_or_one_by_one_is_the_same(kind: Any, kept: Any) -> None:
    together, alone, turned = (kept(kind.tiny(0)) for _ in range(3))
    together.add(ITEMS)
    for one in ITEMS:
        alone.add([one])
    turned.add(ITEMS[::-1])
    for query in QUERIES:
        hits = together.search(Query(query), 10)
        assert same(hits, alone.search(Query(query), 10)), query
        assert same(hits, turned.search(Query(query), 10)), query


def test_a_search_answers_the_same_every_time(kind: Any, kept: Any) -> None:
    one, other = kept(kind.tiny(3)), kept(kind.tiny(3))
    for made in (one, other):
        made.add(ITEMS)
    for query in QUERIES:
        hits = one.search(Query(query), 10)
        assert hits == one.search(Query(query), 10)
        assert same(hits, other.search(Query(query), 10))


def test_what_is_deleted_is_gone(retriever: Retriever) -> None:
    retriever.add(ITEMS)
    assert retriever.delete(Where(ids=("i000", "nobody"))) == 1
    assert retriever.delete(Where(uri_prefix="notes/b/5")) == 1
    assert retriever.stats().items == len(ITEMS) - 2
    found = {id_ for query in QUERIES for id_ in ids(retriever.search(Query(query), 20))}
    assert not found & {"i000", "i005"}
    retriever.add([ITEMS[0]])
    assert "i000" in ids(retriever.search(Query("Where does the owl sleep?"), 20))


def test_an_empty_filter_deletes_nothing(retriever: Retriever) -> None:
    retriever.add(ITEMS)
    query = Query("Where does the owl sleep?")
    before = ids(retriever.search(query, 20))
    with pytest.raises(BadInput, match="filter"):
        retriever.delete(Where())
    assert ids(retriever.search(query, 20)) == before
    assert before


def test_what_was_deleted_leaves_no_trace_in_the_scores(kind: Any, kept: Any) -> None:
    been, never = kept(kind.tiny(0)), kept(kind.tiny(0))
    been.add(ITEMS)
    been.delete(Where(ids=("i000", "i003", "i006")))
    never.add([one for one in ITEMS if one.id not in ("i000", "i003", "i006")])
    for query in QUERIES:
        assert same(been.search(Query(query), 10), never.search(Query(query), 10)), query


FILTERS = [
    (Where(ids=("i001", "i003")), {"i001", "i003"}),
    (Where(documents=("d0",)), {"i000", "i001"}),
    (Where(uri_prefix="notes/a/"), {"i000", "i001", "i002"}),
    (Where(modalities=("audio",)), set()),
    (Where(filter=filter_of({"year": {"ge": 2002, "lt": 2004}})), {"i002", "i003"}),
    (Where(filter=filter_of({"title": "Title 3"})), {"i003"}),
]


def test_filters_hold(retriever: Retriever) -> None:
    retriever.add(ITEMS)
    for where, allowed in FILTERS:
        free = {hit.item.id: hit.score for query in QUERIES[:1] for hit in retriever.search(Query(query), 20)}
        for query in QUERIES:
            assert set(ids(retriever.search(Query(query), 20, where))) <= allowed, where
        kept = {hit.item.id: hit.score for hit in retriever.search(Query(QUERIES[0]), 20, where)}
        assert kept.keys() >= allowed & free.keys(), where


@pytest.mark.parametrize("query", [Query(""), Query(" \n"), Query(None)])
def test_a_query_of_nothing_is_refused(retriever: Retriever, query: Query) -> None:
    retriever.add(ITEMS[:2])
    with pytest.raises(TriptychError):
        retriever.search(query, 3)


def test_k_below_one_is_refused(retriever: Retriever) -> None:
    retriever.add(ITEMS[:2])
    with pytest.raises(BadInput, match="`0`"):
        retriever.search(Query("owl"), 0)


def test_odd_text_is_only_text(retriever: Retriever) -> None:
    odd = [item(0), item(1, "owl " * 3000), item(2, "\x00\u202e '\"\\ owl"), item(3, " "), item(4, "🙂")]
    retriever.add(odd)
    assert retriever.stats().items == len(odd)
    for query in ("", "🙂" * 40, "owl " * 2000, "\ud800", "\x00\x07", "a'b\"c\\ or 1==1"):
        hits = retriever.search(Query(f"owl {query}"), 9)
        assert all(math.isfinite(hit.score) for hit in hits), query


def test_saved_and_opened_it_answers_the_same(retriever: Retriever, kept: Any, tmp_path: Path) -> None:
    retriever.add(ITEMS)
    wanted = [retriever.search(Query(query), 10) for query in QUERIES]
    retriever.save(tmp_path / "saved")
    opened = kept(opened_like(retriever, tmp_path / "saved"))
    assert opened.stats().items == len(ITEMS)
    for query, hits in zip(QUERIES, wanted, strict=True):
        assert same(hits, opened.search(Query(query), 10)), query
    opened.delete(Where(ids=("i000",)))
    assert opened.stats().items == len(ITEMS) - 1
    assert retriever.stats().items == len(ITEMS)


def opened_like(retriever: Any, folder: Path) -> Retriever:
    """What `open` gives, with the models of `retriever` where these are not saved beside an index."""
    wanted = type(retriever).open.__annotations__
    parts = ("encoder", "lister", "weigher", "network")
    models = {part: getattr(retriever, part) for part in parts if hasattr(retriever, part) and part in wanted}
    return type(retriever).open(folder, **models)  # type: ignore[no-any-return]


def test_work_stops_and_what_was_acknowledged_stays(retriever: Retriever) -> None:
    many = [item(number, f"{TEXTS[number % 6]} Note {number} of the owl.") for number in range(600)]
    retriever.add(many[:3])
    cancelled, steps = Event(), []

    def on_step(done: int, total: int | None, what: str) -> None:
        steps.append(done)
        if len(steps) > 1:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        retriever.add(many)
    assert 3 <= retriever.stats().items < 600
    assert "i000" in ids(retriever.search(Query("owl sleeps"), 600))
    retriever.add(many[:5])
    assert retriever.search(Query("owl"), 3)


def test_eight_threads_get_the_answers_of_serial_calls(retriever: Retriever) -> None:
    retriever.add(ITEMS)
    wanted = [retriever.search(Query(query), 10) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        for number, hits in enumerate(pool.map(lambda n: retriever.search(Query(QUERIES[n % 4]), 10), range(32))):
            assert same(hits, wanted[number % 4])


# --- in a library -----------------------------------------------------------------------------------------------------

BROUGHT = [
    id_ for id_, card in CARDS.items() if not card.weights and "text" in card.modalities and id_ != "endpoint_encoder"
]
"""Those with weights of the user's, or none; what stands behind an endpoint has a test of its own."""


def bring(id_: str, made: Any, home: Path, scratch: Path) -> None:
    """The weights of a tiny model, where a user puts them."""
    target = home / "weights" / id_
    if id_ == "plaid":  # reads those of another card
        made.encoder.save(home / "weights" / "colbert")
    elif isinstance(made, Encoder):
        made.save(target)  # type: ignore[attr-defined]
    elif hasattr(made, "weigher"):
        made.weigher.save(target)
    elif hasattr(made, "network"):
        made.add(ITEMS[:1])
        made.save(scratch)
        shutil.copytree(scratch / "model", target)


@pytest.mark.parametrize("id_", BROUGHT)
def test_any_library_gains_it(id_: str, kept: Any, bare_home: Path, tmp_path: Path) -> None:
    bring(id_, kept(CARDS[id_].resolve().tiny(0)), bare_home, tmp_path / "scratch")
    docs = tmp_path / "docs"
    docs.mkdir()
    for number, text in enumerate(TEXTS):
        (docs / f"{number}.md").write_text(text or "...", "utf-8")
    settings = Settings.load()
    with Triptych("mine", settings) as library:
        library.index(docs)
        before = library.search("owl barn").hits
        assert library.index(docs, retrievers=[id_]).problems == []
        passages = library.status().items
        assert library.status().store["retrievers"] == {id_: passages}
        assert library.search("owl barn").hits == before
        wanted = library.search("owl barn", 3, retriever=id_).hits
        assert wanted
        [only] = library.search("owl barn", 9, retriever=id_, where={"title": before[0].title}).hits
        assert only.id == before[0].id
        (docs / "1.md").unlink()
        (docs / "8.md").write_text("An owl of the barn flew over the harbour.", "utf-8")
        assert library.index(docs, prune=True).problems == []
        assert library.verify().whole
    with Triptych("mine", settings) as library:
        hits = library.search("owl barn harbour", 20, retriever=id_).hits
        assert "docs/8.md" in [hit.uri for hit in hits]
        assert "docs/1.md" not in [hit.uri for hit in hits]
        assert library.index(docs, rebuild=True).problems == []
        again = library.search("owl barn harbour", 20, retriever=id_).hits
        assert {hit.id: hit.score for hit in again} == pytest.approx(
            {hit.id: hit.score for hit in hits}, rel=5e-3
        )  # bfloat16
        assert library.verify().whole


@pytest.mark.parametrize("id_", CARDS)
def test_weights_that_are_not_there_are_named(id_: str, kept: Any, bare_home: Path, tmp_path: Path) -> None:
    card, parts = CARDS[id_], Stages(Settings.load())
    rest = () if id_ in ENCODERS else (tmp_path / "index",)
    try:
        made = kept(card.resolve().load(card, parts, *rest))
    except MissingWeights as error:
        assert "`" in error.message and error.hint
    else:
        assert card.licence_weights == "none"
        made.add(ITEMS)
        made.save(tmp_path / "index")
        made.store.close()
        again = kept(card.resolve().load(card, parts, *rest))
        assert again.stats().items == len(ITEMS)
        assert ids(again.search(Query("owl sleeps"), 1)) == ["i000"]


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Any:
    return CARDS[request.param].resolve().tiny(0)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Item]:
    made = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((40 + number, 32), 20 * number).convert("RGB").save(path)
        ref = MediaRef(str(path), "image/png")
        made.append(Item(f"p{number}", "", Source(f"pictures/{number}.png"), "image", ref))
    return made


@pytest.fixture
def inputs(encoder: Any, pictures: list[Item]) -> list[Item]:
    """What it can encode: texts, pictures, or both and pictures with words."""
    if encoder.mixed:
        return [*pictures[:3], *ITEMS[:4], replace(pictures[3], text="an owl at night")]
    return pictures if encoder.looks else ITEMS


def asked(encoder: Any, inputs: Sequence[Item]) -> list[Query]:
    """Queries that it reads."""
    words = [Query(text) for text in QUERIES]
    shown = [Query(media=one.media) for one in inputs if one.media is not None]
    both = [Query("at night", one.media) for one in shown[:1]]
    return [query for query in (*words, *shown, *both) if encoder.reads(query)] if encoder.looks else words


def rows(encoder: Any, vectors: Any) -> Iterator[np.ndarray]:
    """One array of (vectors, dim) for each input, checked."""
    space = encoder.space
    for one in vectors:
        made = np.atleast_2d(one)
        assert made.dtype == np.float32
        assert made.shape[1] == space.dim and len(made) >= 1
        assert np.isfinite(made).all()
        if space.metric == "cosine":
            np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-3)
        yield made


def test_vectors_have_the_shape_of_their_space(encoder: Any, inputs: list[Item]) -> None:
    assert encoder.space.kind in ("dense", "multi")
    assert type(encoder).space.name == encoder.space.name
    for side, given in (("document", inputs), ("query", asked(encoder, inputs))):
        assert len(list(rows(encoder, encoder.encode(given, side)))) == len(given)


def test_nothing_gives_nothing(encoder: Any) -> None:
    for side in ("document", "query"):
        found = encoder.encode([], side)
        assert len(found) == 0
        assert encoder.space.kind == "multi" or found.shape == (0, encoder.space.dim)


def test_a_batch_is_a_loop_in_the_order_given(encoder: Any, inputs: list[Item]) -> None:
    for side, given in (("document", inputs), ("query", asked(encoder, inputs))):
        together = list(rows(encoder, encoder.encode(given, side)))
        turned = list(rows(encoder, encoder.encode(given[::-1], side)))[::-1]
        for number, one in enumerate(given):
            [alone] = rows(encoder, encoder.encode([one], side))
            np.testing.assert_allclose(together[number], alone, atol=CLOSE)
            np.testing.assert_allclose(together[number], turned[number], atol=CLOSE)


def test_the_seed_decides(encoder: Any, inputs: list[Item]) -> None:
    one, two, other = (type(encoder).tiny(seed).encode(inputs[:2], "document") for seed in (1, 1, 2))
    for first, second in zip(one, two, strict=True):
        assert np.array_equal(first, second)
    assert not all(np.allclose(first, third) for first, third in zip(one, other, strict=True))


def test_an_input_is_nearest_to_itself(encoder: Any, inputs: list[Item]) -> None:
    """Higher is better, by the metric of the space."""
    found = list(rows(encoder, encoder.encode(inputs[:4], "document")))
    if encoder.space.metric == "cosine":
        scores = [[max_sim(one, other, "cosine") / len(one) for other in found] for one in found]
        assert [int(np.argmax(row)) for row in scores] == list(range(4))
        assert np.diag(scores) == pytest.approx(1, abs=1e-3)
    else:
        assert encoder.space.metric == "ip"


@pytest.mark.parametrize("text", ["", "🙂" * 40, "owl " * 3000, "\ud800", "\x00\u202e", "你好世界" * 600])
def test_any_text_has_a_finite_vector(encoder: Any, text: str) -> None:
    if not encoder.looks or encoder.mixed:
        assert len(list(rows(encoder, encoder.encode([item(0, text), item(1)], "document")))) == 2
    if encoder.reads(Query(text)) or not encoder.looks:
        assert len(list(rows(encoder, encoder.encode([Query(text)], "query")))) == 1
    else:
        assert not encoder.reads(Query("words"))


def test_a_query_that_it_cannot_read_is_refused(encoder: Any) -> None:
    wrong = Query(media=MediaRef("a.png", "image/png"))
    if encoder.looks:
        wrong = next(query for query in (Query("words"), Query()) if not encoder.reads(query))
    with pytest.raises(TriptychError):
        encoder.encode([wrong], "query")


def test_encoding_stops_when_it_is_told_to(encoder: Any, inputs: list[Item]) -> None:
    cancelled = Event()
    cancelled.set()
    with progress.reporting(lambda *_: None, cancelled=cancelled), pytest.raises(Cancelled):
        encoder.encode(inputs * 40, "document")


def test_eight_threads_encode_as_one(encoder: Any, inputs: list[Item]) -> None:
    wanted = list(encoder.encode(inputs, "document"))

    def one(number: int) -> Any:
        return encoder.encode([inputs[number % len(inputs)]], "document")[0]

    with ThreadPoolExecutor(8) as pool:
        for number, vectors in enumerate(pool.map(one, range(24))):
            np.testing.assert_allclose(vectors, wanted[number % len(inputs)], atol=CLOSE)
