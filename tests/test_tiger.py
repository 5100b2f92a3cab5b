"""TIGeR: the trie, debiasing by hand, the beam, the backward order, the decision; and the small model beneath."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from triptych import progress
from triptych.errors import BadInput, Cancelled, MissingWeights, UnreadableFile, Unsupported
from triptych.manifests.registry import card
from triptych.rerankers.base import Cost, Limits
from triptych.rerankers.prompted import tiger
from triptych.rerankers.prompted._codes import Codes, Trie
from triptych.rerankers.prompted._patch_lm import PatchCodebook, PatchLM, Training, fit
from triptych.rerankers.prompted.tiger import TIGeR, draw, forward, gains, retrieve, retrieves
from triptych.retrievers.base import Hit, Item, MediaRef, Query, Source
from triptych.settings import Settings

QUERY = Query("sun")


class Table:
    """Two codes of two kinds, by tables of probabilities.

    Args:
        given, none: P(code | text, prefix) and P(code | no text, prefix), by prefix.
        told: P(text | picture).
    """

    length = codes = 2

    def __init__(
        self,
        given: Mapping[Codes, Sequence[float]],
        none: Mapping[Codes, Sequence[float]],
        told: Mapping[Codes, float],
    ) -> None:
        self._given, self._none, self._told = given, none, told
        self.asked: list[tuple[str, int]] = []

    def next_code(self, text: str | None, prefixes: Sequence[Codes]) -> np.ndarray:
        self.asked.append(("next", len(prefixes)))
        return np.log([(self._given if text else self._none)[prefix] for prefix in prefixes])

    def picture(self, text: str | None, pictures: Sequence[Codes]) -> np.ndarray:
        self.asked.append(("picture", len(pictures)))
        known = self._given if text else self._none
        return np.log([math.prod(known[one[:at]][code] for at, code in enumerate(one)) for one in pictures])

    def text(self, pictures: Sequence[Codes], text: str) -> np.ndarray:
        self.asked.append(("text", len(pictures)))
        return np.log([self._told[one] for one in pictures])


class Pictures:
    """Codes by item id; none for other items."""

    def __init__(self, known: Mapping[str, Codes]) -> None:
        self._known = known

    def encode(self, items: Sequence[Item]) -> list[Codes | None]:
        return [self._known.get(item.id) for item in items]

    def decode(self, codes: Codes) -> str:
        return f"drawn {codes}"


ALL: dict[str, Codes] = {"a": (0, 0), "b": (0, 1), "c": (1, 0), "d": (1, 1)}
GIVEN = {(): [0.6, 0.4], (0,): [0.9, 0.1], (1,): [0.5, 0.5]}
NONE = {(): [0.8, 0.2], (0,): [0.9, 0.1], (1,): [0.8, 0.2]}
TOLD: dict[Codes, float] = {(0, 0): 0.1, (0, 1): 0.4, (1, 0): 0.2, (1, 1): 0.3}


def table() -> Table:
    return Table(GIVEN, NONE, TOLD)


def hits(*names: str) -> list[Hit]:
    return [Hit(Item(name, "", Source("f.png")), 1 / (place + 1)) for place, name in enumerate(names)]


def ids(found: Sequence[Hit]) -> list[str]:
    return [hit.item.id for hit in found]


# --- the search ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12))
def test_a_trie_admits_the_sequences_of_its_gallery_and_no_other(gallery: list[Codes]) -> None:
    trie = Trie(list(enumerate(gallery)))
    walked: list[Codes] = [()]
    for _ in range(3):
        walked = [(*prefix, code) for prefix in walked for code in trie.allowed(prefix)]
    assert set(walked) == set(gallery)
    assert sorted(place for codes in walked for place in trie.places(codes)) == list(range(len(gallery)))
    for codes in walked:
        assert trie.only(codes) == codes
        assert trie.allowed(codes) == trie.allowed((9,)) == []
    assert (trie.only(()) is None) == (len(set(gallery)) > 1)


def test_debiasing_is_the_difference_of_two_log_probabilities() -> None:
    found = dict(retrieve(table(), "sun", Trie(list(enumerate(ALL.values()))), reverse=False))
    by_hand = {
        (1, 1): math.log(0.4 * 0.5) - math.log(0.2 * 0.2),
        (1, 0): math.log(0.4 * 0.5) - math.log(0.2 * 0.8),
        (0, 0): math.log(0.6 * 0.9) - math.log(0.8 * 0.9),
        (0, 1): math.log(0.6 * 0.1) - math.log(0.8 * 0.1),
    }
    assert found == pytest.approx(by_hand)
    assert next(iter(found)) == (1, 1)
    plain = retrieve(table(), "sun", Trie(list(enumerate(ALL.values()))), weight=0, reverse=False)
    assert plain[0] == ((0, 0), pytest.approx(math.log(0.6 * 0.9)))  # what is likely anyway


def test_steps_are_debiased_as_well_and_the_beam_is_cut_by_that() -> None:
    model = table()
    steps = list(forward(model, "sun", Trie(list(enumerate(ALL.values()))), beams=1))
    assert steps[0] == [((1,), pytest.approx(math.log(0.4) - math.log(0.2)))]
    assert [codes for codes, _ in steps[-1]] == [(1, 1)]
    assert model.asked == [("next", 1), ("next", 1)] * 2 + [("picture", 1)] * 2


def test_the_search_ends_when_every_beam_leads_to_one_picture() -> None:
    model = table()
    steps = list(forward(model, "sun", Trie([(0, (0, 1)), (1, (1, 0))]), beams=2))
    assert model.asked == [("next", 1), ("next", 1), ("picture", 2), ("picture", 2)]
    assert {codes for codes, _ in steps[-1]} == {(0, 1), (1, 0)}  # whole, though one code was searched
    alone = table()
    assert len(list(forward(alone, "sun", Trie([(0, (0, 1))]), beams=2))) == 1
    assert alone.asked == [("picture", 1), ("picture", 1)]


def test_a_picture_is_drawn_by_the_likeliest_codes() -> None:
    assert draw(table(), "sun") == (0, 0)
    late = Table({**GIVEN, (0,): [0.5, 0.5], (1,): [1 - 1e-9, 1e-9]}, NONE, TOLD)
    assert draw(late, "sun") == (0, 0)
    assert draw(late, "sun", beams=2) == (1, 0)  # 0.4 · 1 over 0.6 · 0.5


# --- the reranker ----------------------------------------------------------------------------------------------------


def test_hits_are_ordered_by_what_each_says_of_the_text() -> None:
    system = TIGeR(table(), Pictures(ALL))
    found = system.rank(QUERY, hits("a", "b", "c", "d"))
    assert ids(found.hits) == ["b", "d", "c", "a"]
    assert [hit.score for hit in found.hits] == pytest.approx([math.log(p) for p in (0.4, 0.3, 0.2, 0.1)])
    assert (found.complete, found.repaired) == (True, 0)
    assert found.calls == 2 * 1 + 2 * 2 + 2 * 4 + 4 <= system.estimate(4).calls == 4 * 7
    ahead = TIGeR(table(), Pictures(ALL), reverse=False).rank(QUERY, hits("a", "b", "c", "d"))
    assert ids(ahead.hits) == ["d", "c", "a", "b"]


def test_what_falls_out_of_the_beam_follows_in_the_first_stages_order() -> None:
    found = TIGeR(table(), Pictures(ALL), beams=1).rank(QUERY, hits("a", "b", "c", "d"))
    assert ids(found.hits) == ["d", "a", "b", "c"]
    assert [hit.score for hit in found.hits] == pytest.approx([math.log(0.3)] * 4)


def test_hits_without_a_picture_keep_their_places() -> None:
    found = TIGeR(table(), Pictures(ALL)).rank(QUERY, hits("text", "a", "more text", "b"))
    assert ids(found.hits) == ["text", "b", "more text", "a"]
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    assert found.complete


def test_without_any_picture_it_says_so() -> None:
    model = table()
    given_hits = hits("text", "more text")
    found = TIGeR(model, Pictures(ALL)).rank(QUERY, given_hits)
    assert found.hits == tuple(given_hits)
    assert (found.complete, found.reason, found.calls) == (False, "none of 2 hits has a picture", 0)
    assert model.asked == []


def test_equal_pictures_keep_their_order() -> None:
    found = TIGeR(table(), Pictures(dict.fromkeys("wxyz", (0, 1)) | {"a": (1, 1)})).rank(QUERY, hits(*"wxaz"))
    assert ids(found.hits) == ["w", "x", "z", "a"]


def test_limits_cut_the_list_before_the_model_reads() -> None:
    model = table()
    found = TIGeR(model, Pictures(ALL)).rank(QUERY, hits("a", "b", "c", "d"), Limits(calls=20))
    assert ids(found.hits) == ["b", "a", "c", "d"]
    assert found.calls <= 14
    assert found.reason == "calls limit: 20 calls read 2 of 4 hits"
    few = TIGeR(model, Pictures(ALL)).rank(QUERY, hits("a", "b"), Limits(calls=13))
    assert (ids(few.hits), few.calls, few.complete) == (["a", "b"], 0, False)
    deep = TIGeR(model, Pictures(ALL)).rank(QUERY, hits("a", "b", "c", "d"), Limits(depth=3))
    assert (ids(deep.hits), deep.reason) == (["b", "c", "a", "d"], "depth limit: 3 of 4 hits")


@pytest.mark.parametrize(
    ("ticks", "order", "calls"),
    [(0, "abcd", 0), (2, "cdab", 2), (4, "dcab", 6), (6, "dcab", 14), (7, "bdca", 18)],
)
def test_a_time_limit_keeps_what_is_known_by_then(
    monkeypatch: pytest.MonkeyPatch, ticks: int, order: str, calls: int
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(tiger.time, "monotonic", lambda: next(clock))
    found = TIGeR(table(), Pictures(ALL)).rank(QUERY, hits("a", "b", "c", "d"), Limits(seconds=ticks + 1))
    assert ("".join(ids(found.hits)), found.calls) == (order, calls)
    assert found.complete == (ticks == 7)


def test_a_ranking_stops_when_it_is_cancelled() -> None:
    cancelled = Event()
    with progress.reporting(lambda *told: cancelled.set(), cancelled=cancelled), pytest.raises(Cancelled):
        TIGeR(table(), Pictures(ALL)).rank(QUERY, hits("a", "b", "c", "d"))


def test_a_query_without_text_and_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(Unsupported, match="`None`"):
        TIGeR(table(), Pictures(ALL)).rank(Query(), hits("a", "b"))
    with pytest.raises(Unsupported, match="`nan`"):
        TIGeR(Table(GIVEN, NONE, dict.fromkeys(TOLD, math.nan)), Pictures(ALL)).rank(QUERY, hits("a", "b"))
    with pytest.raises(BadInput, match="`0` beams"):
        TIGeR(table(), Pictures(ALL), beams=0)
    assert TIGeR(table(), Pictures(ALL)).estimate(1) == Cost(0, 0)


# --- retrieve or draw ------------------------------------------------------------------------------------------------


def test_the_decision_takes_what_gains_more_from_the_text() -> None:
    assert retrieves(1.0, 1.0)
    assert retrieves(1.5, 1.0)
    assert not retrieves(0.9, 1.0)
    assert gains(table(), "sun", [(0, 0), (1, 1)]) == pytest.approx([math.log(0.6 / 0.8), math.log(5)])


def test_a_found_picture_is_shown_where_it_is_better_than_a_drawn_one() -> None:
    found = TIGeR(table(), Pictures(ALL)).answer(QUERY, hits("a", "c", "d"))
    assert (found.hit and found.hit.item.id, found.codes, found.picture) == ("d", (1, 1), None)
    assert found.found == pytest.approx(math.log(5))
    assert found.drawn == pytest.approx(math.log(0.75))


def test_a_drawn_picture_is_shown_where_the_gallery_has_nothing_better() -> None:
    told = {**TOLD, (0, 1): 0.9}
    worse = Table(GIVEN, {**NONE, (0,): [0.8, 0.2]}, told)
    drawn = TIGeR(worse, Pictures(ALL)).answer(QUERY, hits("b"))
    assert (drawn.hit, drawn.codes, drawn.picture) == (None, (0, 0), "drawn (0, 0)")
    assert drawn.found is not None
    assert drawn.found < drawn.drawn
    nothing = TIGeR(table(), Pictures(ALL)).answer(QUERY)
    assert (nothing.hit, nothing.codes, nothing.found) == (None, (0, 0), None)


# --- the small model -------------------------------------------------------------------------------------------------


def test_the_tiny_model_is_a_distribution_in_both_directions() -> None:
    model = PatchLM.tiny(0)
    pictures: list[Codes] = [(0, 1, 2, 3), (7, 7, 7, 7)]
    for text in (None, "any words"):
        by_steps = [
            sum(float(model.next_code(text, [one[:at]])[0, code]) for at, code in enumerate(one)) for one in pictures
        ]
        assert model.picture(text, pictures) == pytest.approx(by_steps, abs=1e-4)
        assert np.exp(model.next_code(text, [()])).sum() < 1  # the rest are words
    assert model.text(pictures, "any words").shape == (2,)
    assert (model.text(pictures, "any") > model.text(pictures, "any words")).all()
    assert model.picture("x " * 4000, pictures).shape == (2,)


def shapes(n: int) -> tuple[np.ndarray, list[list[str]]]:
    """Red and blue squares, left or right."""
    pictures, captions = np.full((n, 8, 8, 3), 200, np.uint8), []
    for number, one in enumerate(pictures):
        left, red = number % 2, number // 2 % 2
        one[2:6, 0 if left else 4 : 4 if left else 8] = (220, 20, 20) if red else (20, 20, 220)
        captions.append([f"a {'red' if red else 'blue'} square on the {'left' if left else 'right'}"])
    return pictures, captions


def test_a_codebook_gives_pictures_back() -> None:
    pictures, _ = shapes(4)
    book = PatchCodebook.fit(pictures, codes=5)
    codes = book.codes(list(pictures))
    assert {len(one) for one in codes} == {4}
    for one, known in zip(codes, pictures, strict=True):
        assert np.abs(book.pixels(one).astype(int) - known).max() <= 1
    with pytest.raises(BadInput, match="patches of `3`"):
        PatchCodebook.fit(pictures, codes=5, patch=3)
    with pytest.raises(BadInput, match="`99` codes"):
        PatchCodebook.fit(pictures, codes=99)
    assert book.codes([]) == []


def test_items_are_read_from_their_files(tmp_path: Path) -> None:
    pictures, _ = shapes(4)
    book = PatchCodebook.fit(pictures, codes=5)
    Image.fromarray(pictures[1]).resize((80, 80), 0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    seen, broken, gone = (
        Item(name, "", Source(name), "image", MediaRef(str(tmp_path / name), "image/png"))
        for name in ("a.png", "b.png", "c.png")
    )
    sound = Item("s", "", Source("s.wav"), "audio", MediaRef("s.wav", "audio/wav"))
    text = Item("t", "words", Source("t.txt"))
    assert book.encode([text, seen, sound]) == [None, book.codes([pictures[1]])[0], None]
    for item in (broken, gone):
        with pytest.raises(UnreadableFile, match=f"`{item.id}`"):
            book.encode([item])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_learns_both_directions_and_goes_on_where_it_was(tmp_path: Path, home: Path) -> None:
    pictures, _ = shapes(32)
    captions = [["a red square" if number // 2 % 2 else "a blue square"] for number in range(32)]
    how = Training(codes=5, width=32, layers=1, steps=100, batch=16, rate=1e-2)
    folder = home / "tiger"
    fit(pictures, captions, folder, how)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-100"}
    again = fit(pictures, captions, folder, how)  # nothing is left to do
    book = PatchCodebook.from_folder(folder)
    right, left, red = book.codes(list(pictures[:3]))
    likely = again.text([left, right, red], "a red square")
    assert likely.argmax() == 2
    assert np.exp(likely[2]) > 0.8
    system = TIGeR.load(card("tiger"), Given(home.parent))  # type: ignore[arg-type]
    for number in (1, 2):
        Image.fromarray(pictures[number]).save(tmp_path / f"{number}.png")
    listed = [
        Hit(Item(name, "", Source(name), "image", MediaRef(str(tmp_path / name), "image/png")), 1.0)
        for name in ("1.png", "2.png")
    ]
    assert ids(system.rank(Query("a red square"), listed).hits) == ["2.png", "1.png"]
    made = system.answer(Query("a blue square"))
    assert made.codes in (left, right)
    assert np.abs(np.asarray(made.picture).astype(int) - pictures[int(made.codes == left)]).max() <= 1
    with pytest.raises(BadInput, match="`31` lists"):
        fit(pictures, captions[1:], folder, how)


class Given:
    """Parts of an empty home folder."""

    device = "cpu"

    def __init__(self, home: Path) -> None:
        self.settings = Settings.load("embedded", home=home)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home" / "weights"


def test_without_a_trained_model_it_says_where_one_goes(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"`tiger` has no `config\.json`") as caught:
        TIGeR.load(card("tiger"), Given(tmp_path))  # type: ignore[arg-type]
    assert "none is shipped" in caught.value.hint
