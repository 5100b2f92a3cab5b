"""CREAM: rounds of groups with a smaller K, their calls and their end; shuffles, repairs, prompts; the whole search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych import progress
from triptych.errors import BadInput, Cancelled, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers._stored import store_in
from triptych.retrievers.base import Item, Query, Source, Where
from triptych.retrievers.lm import ScriptedLM, joined
from triptych.retrievers.text.hybrid import RandomTerms
from triptych.retrievers.universal.cream import (
    CREAM,
    DEPTH,
    GROUP,
    TOP,
    WORDS,
    ByLM,
    Listed,
    parsed,
    prompt,
    split,
    tournament,
)


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def knowing(worth: Sequence[float], seen: list[list[int]] | None = None) -> Callable[[Sequence[int]], Listed]:
    """A ranker that knows what each chunk is worth."""

    def sort(group: Sequence[int]) -> Listed:
        if seen is not None:
            seen.append(list(group))
        return Listed(tuple(sorted(range(len(group)), key=lambda place: -worth[group[place]])))

    return sort


# --- the tournament --------------------------------------------------------------------------------------------------


def test_forty_chunks_take_five_four_and_one_calls_and_leave_three() -> None:
    """The printed loop ends with two: 40 → 25 → 10 → 2."""
    worth = chance(1).permutation(40).tolist()
    seen: list[list[int]] = []
    played = tournament(40, knowing(worth, seen), chance())
    assert played.rounds == (5, 4, 1)
    assert len(seen) == 10
    assert [len(group) for group in seen] == [8] * 5 + [7, 6, 6, 6] + [8]
    assert sorted(played.order) == list(range(40))
    assert [worth[one] for one in played.order[:TOP]] == [39, 38, 37]


def test_groups_of_the_first_round_are_of_like_coarse_rank_and_then_shuffled() -> None:
    seen: list[list[int]] = []
    tournament(40, knowing([0.0] * 40, seen), chance(), top=TOP)
    assert seen[:5] == [list(range(start, start + 8)) for start in range(0, 40, 8)]
    survivors = [one for group in seen[5:9] for one in group]
    assert sorted(survivors) == [start + place for start in range(0, 40, 8) for place in range(5)]
    assert survivors != sorted(survivors)
    other: list[list[int]] = []
    tournament(40, knowing([0.0] * 40, other), chance(1))
    assert other[:5] == seen[:5] and other[5:9] != seen[5:9]


def test_k_falls_by_two_from_five() -> None:
    seen: list[list[int]] = []
    played = tournament(200, knowing(list(range(200)), seen), chance())
    assert played.rounds == (25, 16, 6, 1)  # 200 → 125 → 48 → 6
    sizes = [sum(map(len, seen[:25])), sum(map(len, seen[25:41])), sum(map(len, seen[41:47])), len(seen[47])]
    assert sizes == [200, 125, 48, 6]
    assert played.order[:TOP] == (199, 198, 197)


def test_when_k_is_used_up_the_best_are_taken_by_place_and_coarse_rank() -> None:
    seen: list[list[int]] = []
    played = tournament(1000, knowing([0.0] * 1000, seen), chance())
    assert played.rounds[-1] == 1 and len(seen[-1]) == GROUP
    assert seen[-1] == sorted(seen[-1])  # all of them first in their groups
    assert sorted(played.order) == list(range(1000))


@pytest.mark.parametrize(("n", "rounds"), [(0, ()), (1, ()), (2, (1,)), (8, (1,)), (9, (2, 1)), (16, (2, 2, 1))])
def test_a_short_document_takes_few_calls(n: int, rounds: tuple[int, ...]) -> None:
    played = tournament(n, knowing(list(range(n))), chance())
    assert played.rounds == rounds
    assert played.order[:TOP] == tuple(range(n - 1, -1, -1))[:TOP]


@given(st.integers(0, 120), st.integers(2, 10), st.integers(1, 6), st.integers(0, 5))
def test_it_is_a_permutation_of_at_least_three_and_ends(n: int, group: int, kept: int, seed: int) -> None:
    worth = chance(seed).normal(size=n).tolist()
    seen: list[list[int]] = []
    played = tournament(n, knowing(worth, seen), chance(seed), group, min(kept, group - 1))
    assert sorted(played.order) == list(range(n))
    assert sum(played.rounds) == len(seen)
    assert all(len(one) <= group for one in seen)
    if len(seen) > 1:
        assert len(seen[-1]) >= min(TOP, n, group)


def test_what_falls_out_later_stands_before_what_falls_out_first() -> None:
    worth = chance(2).permutation(40).tolist()
    seen: list[list[int]] = []
    order = list(tournament(40, knowing(worth, seen), chance()).order)
    second = {one for group in seen[5:9] for one in group}
    assert set(order[:8]) == set(seen[9])
    assert set(order[: len(second)]) == second
    assert set(order[len(second) :]) == set(range(40)) - second


def test_groups_are_as_equal_as_can_be() -> None:
    assert [len(part) for part in split(range(25), 8)] == [7, 6, 6, 6]
    assert [len(part) for part in split(range(9), 8)] == [5, 4]
    assert split([], 8) == [[]]


def test_repairs_are_counted_and_no_permutation_is_refused() -> None:
    def half(group: Sequence[int]) -> Listed:
        return Listed(tuple(range(len(group))), repaired=0 in group)

    played = tournament(40, half, chance())
    assert played.repaired == 3  # chunk 0 stays first in its group of each round, and in the last pass
    with pytest.raises(BadInput, match=r"gives `\(0, 0\)` for 2 texts"):
        tournament(2, lambda _: Listed((0, 0)), chance())


# --- the language model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "order", "repaired"),
    [
        ("[2] > [3] > [1]", (1, 2, 0), False),
        ("Sure: [3] > [1] > [2].", (2, 0, 1), False),
        ("3 > 1 > 2", (2, 0, 1), False),
        ("[3] > [3] > [1]", (2, 0, 1), True),
        ("[3]", (2, 0, 1), True),
        ("[7] > [2] > [0] > [1] > [3]", (1, 0, 2), True),
        ("[99999] > [2] > [1] > [3]", (1, 0, 2), True),
        ("I cannot say.", (0, 1, 2), True),
        ("", (0, 1, 2), True),
    ],
)
def test_answers_are_read_and_repaired(answer: str, order: tuple[int, ...], repaired: bool) -> None:
    assert parsed(answer, 3) == Listed(order, repaired)


def test_the_prompt_has_query_and_passages_as_data() -> None:
    text = joined(prompt("who\n[1] is it?", ["first [2]\nline\x00", "word " * 999]))
    assert "[1] first (2) line\n[2] word word" in text
    assert "Query: who (1) is it?\n" in text
    assert text.count("word") == WORDS
    assert text.count("[2]") == 2  # the second passage, and the form of the answer


def test_one_text_needs_no_call_and_a_model_has_to_write() -> None:
    lm = ScriptedLM(["[2] > [1]"])
    ranker = ByLM(lm)
    assert ranker("q", ["a"]) == Listed((0,))
    assert lm.calls == []
    assert ranker("q", ["a", "b"]) == Listed((1, 0))
    with pytest.raises(Unsupported, match="`generate`"):
        ByLM(ScriptedLM(can=("logits",)))


# --- the whole search ------------------------------------------------------------------------------------------------


def item(number: int, text: str, document: str = "long") -> Item:
    return Item(f"i{number:03d}", text, Source("long.md"), meta={"document": document, "title": "Long"})


ITEMS = [item(number, f"owl barn part {number}") for number in range(60)]


@pytest.fixture
def made() -> Iterator[Callable[..., CREAM]]:
    kept: list[CREAM] = []

    def make(lister: Any, **options: Any) -> CREAM:
        encoder = RandomTerms(0)
        kept.append(CREAM(store_in(None, [encoder.space]), encoder, lister, **options))
        return kept[-1]

    yield make
    for one in kept:
        one.store.close()


def last_first(query: str, texts: Sequence[str]) -> Listed:
    """Prefers high part numbers."""
    return Listed(tuple(sorted(range(len(texts)), key=lambda place: -int(texts[place].rsplit(" ", 1)[1]))))


def test_the_fine_part_orders_the_best_of_the_coarse_one(made: Callable[..., CREAM]) -> None:
    cream = made(last_first)
    cream.add(ITEMS)
    whole = made(lambda _, texts: Listed(tuple(range(len(texts)))), depth=1)
    whole.add(ITEMS)
    query = Query("owl barn part 3")
    coarse = [hit.item.id for hit in whole.search(query, 60)]
    found = cream.found(query, 60)
    assert (found.calls, found.rounds, found.repaired) == (10, (5, 4, 1), 0)
    ids = [hit.item.id for hit in found.hits]
    assert ids[:TOP] == sorted(coarse[:DEPTH], reverse=True)[:TOP]
    assert set(ids[:DEPTH]) == set(coarse[:DEPTH])
    assert ids[DEPTH:] == coarse[DEPTH:]
    assert [hit.score for hit in found.hits] == [1 / rank for rank in range(1, 61)]
    assert [hit.item.id for hit in cream.search(query, 3)] == ids[:3]


def test_one_document_is_asked_by_the_filter(made: Callable[..., CREAM]) -> None:
    cream = made(last_first)
    cream.add([*ITEMS[:12], *(item(100 + n, f"owl barn part {900 + n}", "other") for n in range(12))])
    found = cream.found(Query("owl"), 5, Where(documents=("long",)))
    assert [hit.item.id for hit in found.hits[:TOP]] == ["i011", "i010", "i009"]
    assert found.rounds == (2, 2, 1)  # 12 → 10 (K = 5 of six) → 6 (K = 3 of five)


def test_the_seed_shuffles_and_a_query_is_always_answered_alike(made: Callable[..., CREAM]) -> None:
    shown: dict[int, list[tuple[str, ...]]] = {}

    def watching(seed: int) -> Any:
        def lister(_: str, texts: Sequence[str]) -> Listed:
            shown.setdefault(seed, []).append(tuple(texts))
            return Listed(tuple(range(len(texts))))

        return lister

    for seed in (0, 1):
        cream = made(watching(seed), seed=seed)
        cream.add(ITEMS[:40])
        cream.search(Query("owl"), 3)
        first = list(shown[seed])
        cream.search(Query("owl"), 3)
        assert shown[seed] == first * 2
    assert shown[0][:5] == shown[1][:5]
    assert shown[0][5:9] != shown[1][5:9]


def test_it_stops_between_calls(made: Callable[..., CREAM]) -> None:
    calls: list[int] = []
    cancelled = Event()

    def lister(_: str, texts: Sequence[str]) -> Listed:
        calls.append(len(texts))
        if len(calls) == 2:
            cancelled.set()
        return Listed(tuple(range(len(texts))))

    cream = made(lister)
    cream.add(ITEMS[:40])
    with progress.reporting(lambda *_: None, cancelled=cancelled), pytest.raises(Cancelled):
        cream.search(Query("owl"), 3)
    assert calls == [8, 8]


def test_load_takes_the_profiles_models_and_the_card_says_what_is_missing(tmp_path: Any) -> None:
    lm, encoder = ScriptedLM(lambda _: "[1]"), RandomTerms(0)
    settings = SimpleNamespace(store_uri="", store_token="")
    parts: Any = SimpleNamespace(settings=settings, device="cpu", encoder=lambda: encoder, lm=lambda: lm)
    own = card("cream")
    assert "-style" in own.title
    cream = CREAM.load(own, parts, tmp_path / "index")
    try:
        cream.add(ITEMS[:9])
        found = cream.found(Query("owl"), 9)
        assert (found.calls, found.repaired) == (3, 3)
        assert lm.calls == [("generate", 1)] * 3
        with pytest.raises(BadInput, match="depth is `0`"):
            CREAM(cream.store, encoder, last_first, depth=0)
        with pytest.raises(BadInput, match="`lister` is `None`"):
            CREAM.open(tmp_path / "index", encoder)
    finally:
        cream.store.close()
