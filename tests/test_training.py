"""How dense encoders learn: losses against loops, GradCache against the whole batch, mining, and fits that go on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych import progress
from triptych.errors import BadInput, Cancelled
from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.fitting import in_batch_nll
from triptych.retrievers.text._training import (
    Fitting,
    Question,
    Sides,
    Towers,
    _Draws,
    batch_of,
    fit,
    mined,
    nearest,
    pair_nll,
)
from triptych.retrievers.text.ance import ANCE
from triptych.retrievers.text.dpr import DPR
from triptych.retrievers.towers import padded, vectors_of

NAMES = "amber birch cedar delta ember fjord grove heath".split()
ITEMS = [
    Item(f"p{n}", f"the {name} stands here", Source("notes/a.md"), meta={"title": name}) for n, name in enumerate(NAMES)
]
QUESTIONS = [
    Question(f"where is {name}", (ITEMS[n],), tuple(ITEMS[:n] + ITEMS[n + 1 :])) for n, name in enumerate(NAMES)
]
FITTING = Fitting(epochs=3, batch=4, rate=1e-3, hard=1, seed=5)
SYSTEMS: dict[str, Any] = {"dpr": DPR.tiny(0), "ance": ANCE.tiny(0)}


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(name: str, out_dir: Path, fitting: Fitting = FITTING, **more: Any) -> Any:
    mine = {"items": ITEMS, "depth": 4} if name == "ance" else {}
    return SYSTEMS[name].fit(QUESTIONS, out_dir, fitting=fitting, **mine, **more)


def weights(system: Any) -> list[torch.Tensor]:
    towers = [system.tower] if isinstance(system, ANCE) else [system.question, system.passage]
    return [one for tower in towers for one in tower.state_dict().values()]


# --- losses ----------------------------------------------------------------------------------------------------------


def test_the_in_batch_loss_is_that_of_a_loop() -> None:
    queries, passages, positives = vectors(3, 8), vectors(5, 8, seed=1), torch.tensor([4, 0, 2])
    right = torch.zeros(3, 5, dtype=torch.bool)
    right[0, 4] = right[1, 0] = right[2, 2] = True
    right[1, 3] = True  # a second right answer is no negative
    wanted = 0.0
    for row in range(3):
        scores = [float(queries[row] @ passages[column]) for column in range(5)]
        against = [s for column, s in enumerate(scores) if column == positives[row] or not right[row, column]]
        wanted -= scores[int(positives[row])] - math.log(sum(map(math.exp, against)))
    found = in_batch_nll(queries, passages, positives, torch.full((3, 1), -1), right)
    assert float(found) == pytest.approx(wanted / 3, abs=1e-5)


def test_the_loss_of_pairs_is_that_of_a_loop() -> None:
    queries, passages, positives = vectors(3, 8), vectors(5, 8, seed=1), torch.tensor([4, 0, 2])
    negatives = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    pairs = [(0, 4, 0), (0, 4, 1), (1, 0, 2)]
    wanted = [
        -torch.log_softmax(torch.stack([queries[q] @ passages[p], queries[q] @ passages[n]]), 0)[0] for q, p, n in pairs
    ]
    found = pair_nll(queries, passages, positives, negatives, torch.zeros(3, 5, dtype=torch.bool))
    assert float(found) == pytest.approx(float(torch.stack(wanted).mean()), abs=1e-5)


def test_without_any_negative_there_is_nothing_to_learn() -> None:
    queries = vectors(2, 4).requires_grad_()
    loss = pair_nll(queries, vectors(2, 4), torch.tensor([0, 1]), torch.full((2, 1), -1), torch.eye(2).bool())
    loss.backward()
    assert loss.item() == 0
    assert queries.grad is not None
    assert not queries.grad.any()


# --- GradCache -------------------------------------------------------------------------------------------------------


def gradients(network: Towers, chunk: int) -> tuple[float, list[torch.Tensor]]:
    network.zero_grad()
    network.chunk = chunk
    sides = sides_of(SYSTEMS["dpr"])
    loss = network(**batch_of([_Draws(QUESTIONS, FITTING)[n] for n in range(8)], sides))["loss"]
    loss.backward()
    return loss.item(), [one.grad.clone() for one in network.parameters() if one.grad is not None]


def sides_of(dpr: DPR) -> Sides:
    return Sides(dpr._frame, lambda items: dpr._frame([item.text for item in items]), dpr._pad)


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_parts_are_those_of_the_whole_batch(chunk: int, tied: bool) -> None:
    dpr = SYSTEMS["dpr"]
    network = Towers(dpr.question, dpr.question if tied else dpr.passage, in_batch_nll).eval()
    loss, whole = gradients(network, 0)
    again, parts = gradients(network, chunk)
    assert again == pytest.approx(loss, abs=1e-5)
    assert len(parts) == len(whole) > 10
    for one, other in zip(parts, whole, strict=True):
        scale = max(1.0, float(other.abs().max()))
        assert float((one - other).abs().max()) / scale < 1e-5


def test_parts_are_read_twice_and_never_together_and_dropout_is_the_same_both_times() -> None:
    dpr = DPR.tiny(3)
    network = Towers(dpr.question, dpr.passage, in_batch_nll).train()
    read: list[torch.Tensor] = []
    embeddings = dpr.passage.ctx_encoder.bert_model.embeddings
    embeddings.register_forward_hook(lambda module, given, output: read.append(output.detach().clone()))
    gradients(network, 3)
    assert sorted(map(len, read)) == [2, 2, 3, 3, 3, 3]
    first, again = read[:3], read[3:]
    assert all(any(one.shape == other.shape and torch.equal(one, other) for other in again) for one in first)


# --- batches and negatives -------------------------------------------------------------------------------------------


def test_a_passage_of_two_questions_is_read_once_and_right_for_both() -> None:
    twins = [Question("a", (ITEMS[0], ITEMS[1])), Question("b", (ITEMS[1],), (ITEMS[0],))]
    drawn = [(twins[0], [ITEMS[0]]), (twins[1], [ITEMS[1], ITEMS[0]])]
    batch = batch_of(drawn, sides_of(SYSTEMS["dpr"]))
    assert len(batch["passage_ids"]) == 2
    assert batch["positives"].tolist() == [0, 1]
    assert batch["negatives"].tolist() == [[-1], [0]]
    assert batch["right"].tolist() == [[True, True], [False, True]]


def test_draws_change_with_the_epoch_and_not_with_who_asks() -> None:
    one, other = _Draws(QUESTIONS, FITTING), _Draws(QUESTIONS, FITTING)
    drawn = []
    for one.epoch in range(4):
        other.epoch = one.epoch
        drawn.append([item.id for item in one[2][1]])
        assert [item.id for item in other[2][1]] == drawn[-1]
        assert drawn[-1][0] == "p2" != drawn[-1][1]
    assert len({negative for _, negative in drawn}) > 1


@given(st.lists(st.permutations(range(8)), min_size=3, max_size=3), st.integers(0, 5), st.none() | st.integers(0, 9))
def test_what_is_mined_is_found_and_not_right(orders: list[list[int]], count: int, seed: int | None) -> None:
    rankings = [[ITEMS[n] for n in order] for order in orders]
    found = mined(QUESTIONS[:3], rankings, count, answers=lambda question, item: item.id == "p7", seed=seed)
    for question, order in zip(found, rankings, strict=True):
        assert len(question.others) == count
        assert not {"p7", question.right[0].id} & {item.id for item in question.others}
        if seed is None:
            allowed = [item for item in order if item.id not in ("p7", question.right[0].id)]
            assert list(question.others) == allowed[:count]


def test_the_own_index_is_the_order_of_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych.retrievers.text import _training

    monkeypatch.setattr(_training, "BLOCK", 3)
    encoder = SYSTEMS["ance"]
    passages = encoder.encode(ITEMS, "document")
    for question, found in zip(QUESTIONS, nearest(encoder, QUESTIONS, ITEMS, 5), strict=True):
        [query] = encoder.encode([Query(question.text)], "query")
        scores = [float(np.dot(query, passage)) for passage in passages]
        wanted = sorted(range(8), key=lambda n: -scores[n])[:5]
        assert [scores[ITEMS.index(item)] for item in found] == pytest.approx([scores[n] for n in wanted], abs=1e-3)


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4))
def test_padding_is_masked(pieces: list[list[int]]) -> None:
    ids, mask = padded(pieces, 0)
    assert mask.sum(1).tolist() == [len(one) for one in pieces]
    assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == pieces


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_fit_learns_and_is_taken_back_from_its_folder(name: str, tmp_path: Path) -> None:
    start = SYSTEMS[name]
    before = [one.clone() for one in weights(start)]
    made = started(name, tmp_path / "fit", Fitting(epochs=6, batch=8, rate=1e-3))
    again = type(start).from_folder(tmp_path / "fit", "float32")
    for one, other in zip(weights(made), weights(again), strict=True):
        assert torch.equal(one, other)
    np.testing.assert_array_equal(made.encode(ITEMS, "document"), again.encode(ITEMS, "document"))
    assert all(torch.equal(one, other) for one, other in zip(before, weights(start), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "fit" / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["epoch"] == 6


def test_a_fit_tells_right_from_wrong_what_it_has_learned(tmp_path: Path) -> None:
    made = started("ance", tmp_path, Fitting(epochs=8, batch=4, rate=1e-4, hard=2))
    scores = made.encode([Query(one.text) for one in QUESTIONS], "query") @ made.encode(ITEMS, "document").T
    assert (scores.argmax(1) == np.arange(8)).mean() >= 0.75


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_fit_that_was_stopped_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = started(name, tmp_path / "whole")
    stop = Event()
    steps: list[int] = []

    def on_step(done: int, total: int | None, what: str) -> None:
        if what == "training steps":
            steps.append(done)
            if done == 3:
                stop.set()

    with progress.reporting(on_step, cancelled=stop), pytest.raises(Cancelled):
        started(name, tmp_path / "parts")
    assert steps == [1, 2, 3]
    assert not list((tmp_path / "parts").rglob("tokenizer.json"))
    steps.clear()
    torn = tmp_path / "parts" / "checkpoints" / "checkpoint-4"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"cut off")
    with progress.reporting(lambda done, total, what: steps.append(done) if what == "training steps" else None):
        parts = started(name, tmp_path / "parts")
    assert steps == [3, 4, 5, 6]
    for one, other in zip(weights(parts), weights(whole), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_fit_stops_when_held_questions_get_worse_and_keeps_its_best(tmp_path: Path) -> None:
    fitting = Fitting(epochs=9, batch=4, rate=0.05, patience=1)
    made = started("dpr", tmp_path, fitting, held=QUESTIONS[:4])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert 2 <= len(losses) < 9
    assert min(losses[:-1]) <= losses[-1]
    draws = _Draws(QUESTIONS[:4], fitting)
    sides = sides_of(made)
    sides = Sides(sides.questions, lambda items: made._frame([(item.title, item.text) for item in items]), sides.pad)
    with torch.no_grad():
        loss = Towers(made.question, made.passage, in_batch_nll)(**batch_of([draws[n] for n in range(4)], sides))
    assert loss["loss"].item() == pytest.approx(min(losses), abs=1e-4)


def test_the_negatives_of_every_epoch_are_those_of_the_encoder_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triptych.retrievers.text import _training

    indexes: list[np.ndarray] = []

    def spied(encoder: Any, questions: Any, items: Any, depth: int) -> Any:
        assert not encoder.tower.training
        indexes.append(encoder.encode(items, "document"))
        return nearest(encoder, questions, items, depth)

    monkeypatch.setattr(_training, "nearest", spied)
    started("ance", tmp_path)
    assert len(indexes) == FITTING.epochs
    np.testing.assert_array_equal(indexes[0], SYSTEMS["ance"].encode(ITEMS, "document"))
    assert not np.allclose(indexes[0], indexes[1])


@pytest.mark.parametrize(
    ("questions", "fitting", "named"),
    [
        ([], FITTING, "`0` passages"),
        ([Question(" ", (ITEMS[0],)), QUESTIONS[1]], FITTING, "no text or no passage"),
        ([Question("a", ()), QUESTIONS[1]], FITTING, "no text or no passage"),
        ([Question("a", (ITEMS[0],))], FITTING, "`1` passages"),
        (QUESTIONS, Fitting(epochs=0), "`0` epochs"),
        (QUESTIONS, Fitting(patience=2), "patience is `2`"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_and_nothing_is_written(
    questions: list[Question], fitting: Fitting, named: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=named):
        SYSTEMS["dpr"].fit(questions, tmp_path / "fit", fitting=fitting)
    assert not (tmp_path / "fit").exists()


def test_a_folder_of_another_fit_is_refused(tmp_path: Path) -> None:
    fitting = Fitting(epochs=1, batch=8)
    started("dpr", tmp_path, fitting)
    started("dpr", tmp_path, fitting)
    with pytest.raises(BadInput, match="holds a fit with other settings or data"):
        started("dpr", tmp_path, Fitting(epochs=1, batch=8, seed=1))
    with pytest.raises(BadInput, match="holds a fit with other settings or data"):
        SYSTEMS["dpr"].fit(QUESTIONS[1:], tmp_path, fitting=fitting)


def test_a_loss_that_is_not_finite_stops_the_fit_and_no_model_is_saved(tmp_path: Path) -> None:
    broken = ANCE.tiny(1)
    torch.nn.init.constant_(broken.tower.norm.bias, torch.nan)
    with pytest.raises(BadInput, match="`nan`"):
        broken.warm(QUESTIONS, tmp_path, fitting=FITTING)
    assert not (tmp_path / "model.safetensors").exists()


def test_bfloat16_and_parts_go_together(tmp_path: Path) -> None:
    dpr = SYSTEMS["dpr"]
    network = Towers(dpr.question, dpr.question, in_batch_nll, chunk=3)
    before = vectors_of(network.question, *padded(dpr._frame(["a"]), 0)).detach()
    copy = Towers(DPR.tiny(0).question, DPR.tiny(0).question, in_batch_nll, chunk=3)
    fit(copy, QUESTIONS, tmp_path, sides_of(dpr), fitting=Fitting(epochs=1, batch=8, rate=1e-3, chunk=3, bf16=True))
    after = vectors_of(copy.question.eval(), *padded(dpr._frame(["a"]), 0)).detach()
    assert after.dtype == torch.float32
    assert torch.isfinite(after).all()
    assert not torch.allclose(before, after)
