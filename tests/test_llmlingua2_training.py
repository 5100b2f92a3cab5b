"""LLMLingua-2 learns: what a teacher keeps becomes labels, written text is aligned, fits go on and load again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, Cancelled
from triptych.progress import reporting
from triptych.refiners.base import Budget, Passage, Piece, Refined, Refiner
from triptych.refiners.hard._llmlingua2_training import (
    IGNORED,
    Example,
    aligned,
    distilled,
    labelled,
    reliable,
    untrained,
)
from triptych.refiners.hard.llmlingua2 import CHUNK, LLMLingua2
from triptych.refiners.tokens import count
from triptych.retrievers.fitting import Course

if TYPE_CHECKING:
    from triptych.retrievers.base import Hit, Query

TEXT = "The mill was built in 1911. Nobody knows who paid for it. The mayor opened it on a cold day."
COURSE = Course(epochs=16, batch=4, rate=1e-2, patience=0)


@pytest.fixture(scope="module")
def tiny() -> LLMLingua2:
    return LLMLingua2.tiny()


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Words in capitals stay."""
    chance = random.Random(0)
    made = []
    for _ in range(24):
        words = ["".join(chance.choices("abcdefg", k=3)) for _ in range(8)]
        words = [word.upper() if chance.random() < 0.5 else word for word in words]
        text = " ".join(words)
        made.append(Example(text, tuple((4 * n, 4 * n + 3) for n, word in enumerate(words) if word.isupper())))
    return made


class Longest(Refiner):
    """The longest words that the budget holds, by their spans; or, as `writing`, in words of its own."""

    def __init__(self, writing: bool = False) -> None:
        self.writing = writing
        self.asked: list[tuple[str, int]] = []

    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        [hit] = hits
        assert query is None
        self.asked.append((hit.item.text, budget.tokens))
        text = hit.item.text
        spans = sorted(((text.index(word), text.index(word) + len(word)) for word in {*text.split()}), key=self._short)
        kept = sorted(spans[: budget.tokens])
        joined = " ".join(text[start:end] for start, end in kept)
        pieces = [Piece(text[start:end], (start, end), "kept") for start, end in kept]
        if self.writing:
            pieces = [Piece(joined.lower(), None, "generated")]
        return Refined((Passage(hit.item, tuple(pieces)),), budget.tokens, count(text))

    @staticmethod
    def _short(span: tuple[int, int]) -> tuple[int, int]:
        return span[0] - span[1], span[0]


def said(example: Example) -> list[str]:
    return [example.text[start:end] for start, end in example.kept]


# examples


def test_a_teachers_spans_are_the_labels(tiny: LLMLingua2) -> None:
    teacher = Longest()
    [example] = distilled(teacher, [TEXT], tiny.tokenizer, 0.25)
    assert teacher.asked == [(TEXT, round(count(TEXT) / 4))]
    assert said(example)[:3] == ["built", "1911.", "Nobody"]
    assert (example.variation, example.gap) == (0, 0)


def test_long_texts_are_compressed_in_chunks_that_end_with_a_sentence(tiny: LLMLingua2) -> None:
    text = " ".join(f"In {1900 + n} {TEXT}" for n in range(14))
    teacher = Longest()
    made = list(distilled(teacher, [text, " "], tiny.tokenizer))
    assert len(made) > 1
    assert " ".join(example.text for example in made) == text
    assert all(example.text.endswith(".") for example in made)
    assert all(len(tiny.tokenizer.encode(one.text, add_special_tokens=False).ids) <= CHUNK for one in made)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_a_share_that_leaves_nothing_to_learn_is_refused(tiny: LLMLingua2, keep: float) -> None:
    with pytest.raises(BadInput, match=f"`{keep}`"):
        list(distilled(Longest(), [TEXT], tiny.tokenizer, keep))


def test_written_text_is_found_again(tiny: LLMLingua2) -> None:
    [spans] = distilled(Longest(), [TEXT], tiny.tokenizer)
    [written] = distilled(Longest(writing=True), [TEXT], tiny.tokenizer)
    assert written.kept == spans.kept
    assert written.variation == 0


def test_words_that_are_not_there_and_words_that_are_missed_are_counted() -> None:
    example = aligned("a mill and a mayor", "mills a big mayor")
    assert said(example) == ["a", "mill", "mayor"]
    assert example.variation == 0.25
    assert example.gap == pytest.approx(1 / 5)
    assert aligned("", "word") == Example("", (), 1.0, 0.0)


def test_a_word_is_looked_for_near_the_one_before() -> None:
    text = " ".join(["port", *["x"] * 200, "old", "port", *["y"] * 5])
    assert aligned(text, "old port").kept == ((0, 4),)
    text = " ".join(["port", *["x"] * 60, "old", "port"])
    assert said(aligned(text, "old port")) == ["old", "port"]
    assert aligned(text, "old port").kept[1][0] > 100


@given(st.lists(st.sampled_from(["mill", "mayor", "day", "of", "1911"]), max_size=12), st.data())
def test_what_was_only_left_out_is_found_word_for_word(words: list[str], data: st.DataObject) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    kept = [word for word, holds in zip(words, mask, strict=True) if holds]
    example = aligned(" ".join(words), " ".join(kept))
    assert example.variation == 0
    assert sorted(said(example)) == sorted(kept)


def test_the_doubtful_tenth_is_left_out() -> None:
    many = [Example(str(n), (), variation=n / 100, gap=(19 - n) / 100) for n in range(20)]
    assert [one.text for one in reliable(many)] == [str(n) for n in range(2, 18)]
    same = [Example(str(n), ()) for n in range(20)]
    assert reliable(same) == same
    assert reliable([]) == []


def test_tokens_that_touch_what_is_kept_are_kept(tiny: LLMLingua2) -> None:
    row = labelled(tiny.tokenizer, Example("ab c de", ((0, 2), (5, 6))))
    assert row["labels"].tolist() == [IGNORED, 1, 1, 0, 1, 0, IGNORED]
    assert len(row["input_ids"]) == 7
    assert len(labelled(tiny.tokenizer, Example("a " * 600, ()))["labels"]) == CHUNK + 2


# fits


def right(refiner: LLMLingua2, examples: Sequence[Example]) -> float:
    """The share of words on the right side of 0.5."""
    found = []
    for one in examples:
        decided = refiner.decide(one.text, 0.5)
        pairs = zip(decided.spans, decided.probabilities, strict=True)
        found += [(value > 0.5) == (span in one.kept) for span, value in pairs]
    return float(np.mean(found))


def test_a_classifier_learns_and_its_folder_loads(tiny: LLMLingua2, examples: list[Example], tmp_path: Path) -> None:
    before = tiny.decide(examples[0].text, 0.5).probabilities
    made = tiny.fit(examples[:20], tmp_path, held=examples[20:], course=COURSE)
    assert right(made, examples[20:]) > 0.9 > right(tiny, examples[20:])
    again = LLMLingua2.from_folder(tmp_path, "float32")
    ours, theirs = made.decide(examples[0].text, 0.5), again.decide(examples[0].text, 0.5)
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-6)
    assert np.array_equal(tiny.decide(examples[0].text, 0.5).probabilities, before)


def test_a_fit_that_was_stopped_ends_as_if_it_had_not_been(
    tiny: LLMLingua2, examples: list[Example], tmp_path: Path
) -> None:
    event = Event()

    def stop(done: int, total: int | None, what: str) -> None:
        if what == "training steps" and done == 8:
            event.set()

    course = Course(epochs=2, batch=4, rate=1e-2)
    with reporting(stop, cancelled=event), pytest.raises(Cancelled):
        tiny.fit(examples, tmp_path / "stopped", course=course)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    on = tiny.fit(examples, tmp_path / "stopped", course=course)
    whole = tiny.fit(examples, tmp_path / "whole", course=course)
    np.testing.assert_allclose(
        on.decide(examples[0].text, 0.5).probabilities, whole.decide(examples[0].text, 0.5).probabilities, atol=1e-6
    )


def test_a_folder_of_another_fit_and_nothing_to_learn_are_refused(
    tiny: LLMLingua2, examples: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="`0` chunks"):
        tiny.fit([], tmp_path)
    course = Course(epochs=1, batch=24, rate=1e-5)
    tiny.fit(examples, tmp_path, course=course)
    with pytest.raises(BadInput, match="holds a fit with other settings or data"):
        tiny.fit(examples[:8], tmp_path, course=course)


def test_a_fit_begins_with_an_encoder_under_a_head_by_seed(tiny: LLMLingua2, tmp_path: Path) -> None:
    tiny.model.bert.save_pretrained(tmp_path)
    tiny.tokenizer.save(str(tmp_path / "tokenizer.json"))
    one, same, other = (untrained(tmp_path, seed).decide(TEXT, 0.5).probabilities for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
