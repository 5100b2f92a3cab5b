"""CPC learns: an adapter that changes nothing at first, batches in context, folders that load, fits that go on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from torch.nn import functional

from triptych.errors import BadInput, Cancelled
from triptych.progress import reporting
from triptych.refiners.hard._cpc_training import Example, Training, adaptable, batch_of, example, info_nce, row
from triptych.refiners.hard.cpc import CPC

pytest.importorskip("peft")

NAMES = ["Marta", "Ines", "Ruth", "Nora", "Hana", "Eva", "Joan", "Sara"]
COURSE = Training(epochs=4, batch=4, rate=1e-2, rank=4, alpha=8)


@pytest.fixture(scope="module")
def tiny() -> CPC:
    return CPC.tiny()


@pytest.fixture(scope="module")
def questions() -> list[Example]:
    """The sentence behind the one with the name answers."""
    chance = random.Random(0)
    made = []
    for n in range(16):
        here, there = chance.sample(NAMES, 2)
        parts = (f"{here} left.", f"She saw {n}.", f"{there} came.", f"She saw {n + 1}.")
        made.append(Example(f"What did {here} see?", parts, 1))
    return made


def loss(cpc: CPC, data: list[Example]) -> float:
    """Of right sentences among those of their own context, by what the refiner computes."""
    rows = [functional.cross_entropy(torch.tensor(20 * cpc.scores(one.question, one.sentences)), torch.tensor(1))
            for one in data]  # fmt: skip
    return float(torch.stack(rows).mean())


# data


def test_the_sentence_of_a_span_is_right() -> None:
    text = "It was built in 1911.  Who paid is not known. The mayor did."
    assert example("When?", text, (16, 20)) == Example(
        "When?", ("It was built in 1911.", "Who paid is not known.", "The mayor did."), 0
    )
    for span, touched in ((10, 30), 2), ((500, 501), 0):
        with pytest.raises(BadInput, match=f"touches `{touched}` sentences"):
            example("When?", text, span)


def test_a_batch_numbers_sentences_and_puts_the_right_ones_first(tiny: CPC) -> None:
    training = Training(negatives=2, longest=12)
    data = [Example("a?", ("one", "two", "six"), 1), Example("bc", ("x", "", "yz", "no longer read"), 2)]
    rows = [row(tiny.tokenizer, one, n, training) for n, one in enumerate(data)]
    assert [len(one.sentences) for one in rows] == [3, 3]
    assert rows[1].others == [0]
    made = batch_of(rows)
    assert made["sentence"].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2], [3, 5, 5, -1, -1, -1, -1, -1, -1]]
    assert made["mask"].tolist() == (made["sentence"] >= 0).long().tolist()
    assert made["chosen"].tolist() == [1, 5, 0, 2, 3]
    assert made["question_ids"].shape == (2, 2)


def test_negatives_follow_the_seed(tiny: CPC) -> None:
    one = Example("a?", tuple("abcdefgh"), 0)
    drawn = [row(tiny.tokenizer, one, place, Training(seed=seed)).others for seed in (0, 0, 1) for place in range(5)]
    assert drawn[:5] == drawn[5:10] != drawn[10:]
    assert all(len(set(others)) == 2 and 0 not in others for others in drawn)


@pytest.mark.parametrize(
    ("one", "named"), [(Example("a?", ("x" * 40, "y"), 1), "`a?` is not read"), (Example("", ("x",), 0), "no tokens")]
)
def test_what_cannot_be_read_is_told(tiny: CPC, one: Example, named: str) -> None:
    with pytest.raises(BadInput, match=named.replace("?", r"\?")):
        row(tiny.tokenizer, one, 0, Training(longest=12))


# the network


def test_the_loss_is_a_softmax_over_all_candidates() -> None:
    generator = torch.Generator().manual_seed(0)
    questions, candidates = torch.randn(2, 8, generator=generator), torch.randn(5, 8, generator=generator)
    cosines = functional.cosine_similarity(questions[:, None], candidates[None], dim=-1).numpy()
    weights = np.exp(20 * cosines)
    expected = -np.log(weights[[0, 1], [0, 1]] / weights.sum(1)).mean()
    assert float(info_nce(questions, candidates)) == pytest.approx(expected, rel=1e-4)


def test_a_new_adapter_changes_nothing_and_reads_as_the_refiner_does(tiny: CPC, questions: list[Example]) -> None:
    network, _ = adaptable(tiny.model, COURSE)
    rows = [row(tiny.tokenizer, one, n, Training(negatives=9)) for n, one in enumerate(questions[:2])]
    made = batch_of(rows)
    with torch.inference_mode():
        states = network.read(made["ids"], made["mask"])
        found = float(network(**made)["loss"])
    for n, one in enumerate(rows):
        ids = [token for sentence in one.sentences for token in sentence]
        np.testing.assert_allclose(states[n, : len(ids)].numpy(), tiny.states(ids), atol=1e-4)
    assert found > 0
    assert {name.split(".")[-3] for name in network.state_dict()} == {"lora_A", "lora_B"}
    assert not any("lora" in name for name, _ in tiny.model.named_parameters())


# fits


def test_a_fit_lowers_the_loss_and_its_folders_load(tiny: CPC, questions: list[Example], tmp_path: Path) -> None:
    made = tiny.fit(questions, tmp_path, training=COURSE)
    assert loss(made, questions) < 0.8 * loss(tiny, questions)
    again = CPC.from_folder(tmp_path / "base", tmp_path / "adapter", "float32")
    plain = CPC.from_folder(tmp_path / "base", None, "float32")
    one = questions[0]
    np.testing.assert_array_equal(again.scores(one.question, one.sentences), made.scores(one.question, one.sentences))
    np.testing.assert_allclose(
        plain.scores(one.question, one.sentences), tiny.scores(one.question, one.sentences), atol=1e-6
    )
    written = (tmp_path / "adapter" / "adapter_config.json").read_text("utf-8")
    assert json.loads(written)["r"] == 4
    assert str(tmp_path) not in written


def test_a_fit_that_was_stopped_ends_as_if_it_had_not_been(tiny: CPC, questions: list[Example], tmp_path: Path) -> None:
    event = Event()

    def stop(done: int, total: int | None, what: str) -> None:
        if what == "training steps" and done == 10:
            event.set()

    with reporting(stop, cancelled=event), pytest.raises(Cancelled):
        tiny.fit(questions, tmp_path / "stopped", training=COURSE)
    assert not (tmp_path / "stopped" / "adapter").exists()
    on = tiny.fit(questions, tmp_path / "stopped", training=COURSE)
    whole = tiny.fit(questions, tmp_path / "whole", training=COURSE)
    one = questions[3]
    np.testing.assert_allclose(on.scores(one.question, one.sentences), whole.scores(one.question, one.sentences))


def test_a_folder_of_another_fit_and_nothing_to_learn_are_refused(
    tiny: CPC, questions: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="`0` questions"):
        tiny.fit([], tmp_path)
    short = Training(epochs=1, batch=16, rank=2, alpha=2)
    tiny.fit(questions, tmp_path, training=short)
    with pytest.raises(BadInput, match="holds a fit with other settings or data"):
        tiny.fit(questions[:8], tmp_path, training=short)
