"""BLIP_FF learns: its loss against loops, the slow copy, the queue, processes of two, going on, and that it learns."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from triptych.errors import BadInput, Cancelled
from triptych.progress import reporting
from triptych.retrievers.base import Query
from triptych.retrievers.universal._uniir_momentum import (
    COLDEST,
    HOTTEST,
    LONGEST,
    TEMPERATURE,
    MomentumContrast,
    MomentumFitting,
    approach,
    both_ways,
)
from triptych.retrievers.universal._uniir_training import units
from triptych.retrievers.universal.uniir import UniIR
from triptych.tools.evaluation.result import Result

sys.path.append(str(Path(__file__).parent))
import uniir_in_two
from uniir_in_two import BATCHES, LEARN, batch, course, learning, lessons, shapes

PROOFS = Path(__file__).resolve().parent.parent / "benchmarks" / "proofs"
SMALL = MomentumFitting(epochs=8, batch=8, rate=3e-3, decay=0.0, momentum=0.9)


@pytest.fixture(scope="module")
def blip() -> UniIR:
    return UniIR.tiny(0, "BLIP_FF")


class Still(torch.nn.Module):
    """A network of one weight, for what is not about networks."""

    dim = 3

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([weight]))


def still(lessons: int = 10, **how: Any) -> MomentumContrast:
    return MomentumContrast(Still(), lessons, MomentumFitting(**how))


# --- the loss --------------------------------------------------------------------------------------------------------


def by_hand(fast: Any, slow: Any, others: Any, keys: list[int], theirs: list[int], heat: float, share: float) -> float:
    """One way of the loss, in numbers and loops."""
    total = 0.0
    for row in range(len(fast)):
        scores = [sum(a * b for a, b in zip(fast[row], other, strict=True)) / heat for other in others]
        weights = [math.exp(sum(a * b for a, b in zip(slow[row], other, strict=True)) / heat) for other in others]
        right = [column for column in range(len(others)) if theirs[column] == keys[row]]
        most = max(scores)
        whole = most + math.log(sum(math.exp(score - most) for score in scores))
        for column in range(len(others)):
            target = share * weights[column] / sum(weights) + (1 - share) * (column in right) / len(right)
            total -= target * (scores[column] - whole)
    return total / len(fast)


@pytest.mark.parametrize(("share", "heat"), [(0.0, 0.07), (0.4, 0.07), (1.0, 0.5)])
def test_the_loss_is_that_of_loops_and_duplicates_share_what_is_right(share: float, heat: float) -> None:
    drawn = torch.Generator().manual_seed(1)
    fast, slow = (torch.nn.functional.normalize(torch.randn(2, 4, 6, generator=drawn), dim=-1) for _ in range(2))
    old = torch.nn.functional.normalize(torch.randn(2, 5, 6, generator=drawn), dim=-1)
    keys, queued = [7, 8, 7, 9], [8, 8, 1, 2, 7]  # 7 twice in the batch and once in the queue, 8 once and twice
    every = [torch.cat([slow[side], old[side]]) for side in (0, 1)]
    found = both_ways(
        (fast[0] / heat, fast[1] / heat),
        (slow[0] / heat, slow[1] / heat),
        (every[0], every[1]),
        torch.tensor(keys),
        torch.tensor(keys + queued),
        share,
    )
    wanted = [
        by_hand(fast[own].tolist(), slow[own].tolist(), every[1 - own].tolist(), keys, keys + queued, heat, share)
        for own in (0, 1)
    ]
    assert float(found) == pytest.approx(sum(wanted) / 2, abs=1e-5)


def test_a_step_is_slow_copy_loss_and_queue_in_that_order(blip: UniIR, tmp_path: Path) -> None:
    """Two steps by hand: the slow copy moves before it reads, the queue is read before it is filled."""
    told = lessons(shapes(tmp_path))
    _, learner = learning("BLIP_FF")
    with torch.no_grad():
        for weights in learner.network.parameters():
            weights *= 1.1
    slow = UniIR.tiny(0, "BLIP_FF").network
    queue: list[Any] = [torch.zeros(0, 32), torch.zeros(0, 32), torch.zeros(0, dtype=torch.long)]
    for number, drawn in enumerate((told[:5], told[3:6])):
        given = batch(blip, drawn)
        loss = learner(**given)["loss"]
        with torch.no_grad():
            approach(slow, learner.network, 0.5)
            parts = [given[name] for name in ("ids", "mask", "worded", "pixels", "shown")]
            fast, old = (units(one, 0, *parts).chunk(2) for one in (learner.network, slow))
            every = [torch.cat([old[side], queue[side]]).tolist() for side in (0, 1)]
        keys = given["keys"].tolist()
        theirs = [*keys, *queue[2].tolist()]
        share = 0.4 * (0, 5 / 8)[number]
        wanted = [
            by_hand(fast[own].tolist(), old[own].tolist(), every[1 - own], keys, theirs, TEMPERATURE, share)
            for own in (0, 1)
        ]
        assert loss.item() == pytest.approx(sum(wanted) / 2, abs=1e-4)
        queue = [torch.cat([kept, new]) for kept, new in zip(queue, (*old, given["keys"]), strict=True)]
    assert int(learner.put) == 8
    order = [7, 1, 2, 3, 4, 5, 6]  # the eighth lies where the first lay
    torch.testing.assert_close(learner.asked, queue[0][order], atol=1e-5, rtol=0)
    torch.testing.assert_close(learner.told, queue[1][order], atol=1e-5, rtol=0)
    assert learner.keys.tolist() == queue[2][order].tolist()


def test_what_is_held_back_is_judged_by_the_network_alone(blip: UniIR, tmp_path: Path) -> None:
    given = batch(blip, lessons(shapes(tmp_path)))
    _, learner = learning("BLIP_FF")
    learner(**given)
    before = {name: values.clone() for name, values in learner.state_dict().items()}
    learner.eval()
    with torch.no_grad():
        found = [learner(**given)["loss"].item() for _ in range(2)]
        for name, weights in learner.slow.named_parameters():
            weights.add_(1.0 if "bias" in name else 0.0)
        parts = [given[name] for name in ("ids", "mask", "worded", "pixels", "shown")]
        fast = [one.tolist() for one in units(learner.network, 0, *parts).chunk(2)]
        found.append(learner(**given)["loss"].item())
    keys = given["keys"].tolist()
    wanted = sum(by_hand(fast[own], fast[own], fast[1 - own], keys, keys, TEMPERATURE, 0.0) for own in (0, 1)) / 2
    assert found == pytest.approx([wanted] * 3, abs=1e-4)
    for name in ("asked", "told", "keys", "put", "temperature"):
        torch.testing.assert_close(learner.state_dict()[name], before[name])


# --- temperature, slow copy, queue -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("given_", "held"), [(-1.0, COLDEST), (0.0004, COLDEST), (0.2, 0.2), (3.0, HOTTEST)])
def test_the_temperature_is_held_and_learns_at_its_ends(
    given_: float, held: float, blip: UniIR, tmp_path: Path
) -> None:
    _, learner = learning("BLIP_FF")
    assert learner.temperature.item() == pytest.approx(TEMPERATURE)
    with torch.no_grad():
        learner.temperature.fill_(given_)
    learner(**batch(blip, lessons(shapes(tmp_path))[:4]))["loss"].backward()
    assert learner.temperature.item() == pytest.approx(held)
    gradient = learner.temperature.grad
    assert gradient is not None and gradient.item() != 0.0 and math.isfinite(gradient.item())


@given(st.floats(0, 0.999), st.integers(1, 30), st.floats(-3, 3))
@settings(deadline=None, max_examples=30)
def test_the_slow_copy_is_the_closed_form(momentum: float, steps: int, start: float) -> None:
    """Of weights 1, 2, 3, … : what is kept of the start, and of each a share that fades."""
    slow, network = Still(start), Still()
    with torch.no_grad():
        for number in range(steps):
            network.weight.fill_(number + 1.0)
            approach(slow, network, momentum)
    faded = sum((1 - momentum) * momentum ** (steps - 1 - number) * (number + 1.0) for number in range(steps))
    assert slow.weight.item() == pytest.approx(momentum**steps * start + faded, abs=1e-3)


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_the_queue_keeps_the_last_whatever_the_batches(size: int, batches: list[int]) -> None:
    learner, told = still(queue=size), 0
    for rows in batches:
        numbers = torch.arange(told, told + rows)
        learner._enqueue(numbers[:, None].expand(-1, 3).float(), -numbers[:, None].expand(-1, 3).float(), numbers)
        told += rows
    kept = min(size, told)
    assert int(learner.put) == told
    assert sorted(learner.keys[:kept].tolist()) == list(range(told - kept, told))
    assert all(int(key) % size == place for place, key in enumerate(learner.keys[:kept]))
    np.testing.assert_array_equal(learner.asked[:kept, 0], learner.keys[:kept])
    np.testing.assert_array_equal(learner.told[:kept, 0], -learner.keys[:kept])


def test_the_queue_is_as_long_as_the_lessons_at_most_and_the_share_rises_over_an_epoch() -> None:
    assert [len(still(many).keys) for many in (10, LONGEST + 5)] == [10, LONGEST]
    assert len(still(10, queue=3).keys) == 3
    learner, found = still(10), []
    for put in (0, 5, 10, 400):
        learner.put.fill_(put)
        found.append(learner.share())
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"distilled": 1.1}, {"queue": -1}])
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(BadInput, match=f"`{name}` is `{value}`"):
        still(**wrong)


# --- parts and processes ---------------------------------------------------------------------------------------------


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    assert one.keys() == other.keys()
    assert largest > 0.01
    for name, gradient in other.items():
        torch.testing.assert_close(one[name], gradient, atol=2e-5 * max(1.0, largest), rtol=1e-4)


def test_read_in_parts_the_steps_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    told, found = lessons(shapes(tmp_path)), []
    for chunk in (0, 3):
        encoder, network = learning("BLIP_FF", chunk)
        found.append(course(network, [batch(encoder, told[:5]), batch(encoder, told[3:])]))
    (one, first), (other, second) = found
    assert one == pytest.approx(other, abs=1e-4)
    assert "temperature" in first and not any(name.startswith("slow.") for name in first)
    same(first, second)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """The temperature and CLIP's scale, too; and the queue is the same."""
    told = lessons(shapes(tmp_path))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, uniir_in_two.__file__, tmp_path], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    made = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for variant in LEARN:
        encoder, network = learning(variant)
        losses, gradients = course(network, [batch(encoder, [*told[one], *told[other]]) for one, other in BATCHES])
        queue = {f"{variant}.{name}": one for name, one in network.named_buffers() if "." not in name}
        wanted = {f"{variant}.{name}": one for name, one in gradients.items()}
        assert any(name.endswith(("temperature", "logit_scale")) for name in wanted)
        for rank in (0, 1):
            theirs = {name: values for name, values in made[rank].items() if name.startswith(variant)}
            told_ = json.loads((tmp_path / f"{rank}.json").read_text("utf-8"))[variant]
            assert told_ == pytest.approx(losses, abs=1e-4)
            for name, values in queue.items():
                torch.testing.assert_close(theirs.pop(name), values, atol=1e-4, rtol=0)
            same(theirs, wanted)


# --- the fit ---------------------------------------------------------------------------------------------------------


def right(encoder: UniIR, folder: Path, *, instructed: bool = True) -> int:
    """Of eight questions, how many find their own answer first."""
    items = shapes(folder)
    asked = [one.query if instructed else Query(one.query.text) for one in lessons(items)]
    scores = encoder.encode(asked, "query") @ encoder.encode(items, "document").T
    return int((scores.argmax(axis=1) == np.arange(len(items))).sum())


def test_it_learns_what_an_instruction_asks_for_and_is_taken_back(blip: UniIR, tmp_path: Path) -> None:
    told = lessons(shapes(tmp_path)) * 5
    learned = blip.fit(told, tmp_path / "fit", fitting=SMALL)
    assert right(blip, tmp_path) <= 3
    assert right(learned, tmp_path) >= 7
    assert right(learned, tmp_path, instructed=False) <= 4
    again = UniIR.from_folder(tmp_path / "fit", "float32")
    asked = [one.query for one in told[:8]]
    np.testing.assert_allclose(again.encode(asked, "query"), learned.encode(asked, "query"), atol=1e-5)
    with pytest.raises(BadInput, match="holds a fit with other settings or data"):
        blip.fit(told[:4], tmp_path / "fit", fitting=SMALL)


def test_a_fit_that_goes_on_ends_as_one_that_was_not_stopped(blip: UniIR, tmp_path: Path) -> None:
    """The slow copy, the queue and its next place are the same, too."""
    told = lessons(shapes(tmp_path))
    fitting = MomentumFitting(epochs=3, batch=3, rate=1e-3, momentum=0.5, queue=7)
    whole = blip.fit(told, tmp_path / "whole", fitting=fitting)
    stop = Event()

    def watch(done: int, total: int | None, what: str) -> None:
        if what == "training steps" and done == 5:  # in the midst of the second epoch
            stop.set()

    with reporting(watch, cancelled=stop), pytest.raises(Cancelled):
        blip.fit(told, tmp_path / "parts", fitting=fitting)
    resumed = blip.fit(told, tmp_path / "parts", fitting=fitting)
    asked = [one.query for one in told]
    np.testing.assert_allclose(resumed.encode(asked, "query"), whole.encode(asked, "query"), atol=1e-5)
    last = "checkpoints/checkpoint-9/model.safetensors"
    one, other = (load_file(tmp_path / name / last) for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert {"asked", "told", "keys", "put", "temperature"} < one.keys()
    assert any(name.startswith("slow.") for name in one) and int(one["put"]) == 24
    for name, values in one.items():
        torch.testing.assert_close(other[name], values, atol=1e-5, rtol=1e-4)


def test_it_stops_where_held_lessons_get_no_better(blip: UniIR, tmp_path: Path) -> None:
    told = lessons(shapes(tmp_path))
    hot = MomentumFitting(epochs=12, batch=4, rate=0.05, decay=0.0, momentum=0.5, queue=8, patience=1)
    blip.fit(told[:4], tmp_path / "fit", held=told[4:], fitting=hot)
    log = [json.loads(line) for line in (tmp_path / "fit" / "log.jsonl").read_text("utf-8").splitlines()]
    held = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert 2 <= len(held) < 12
    assert held[-1] >= min(held)


def test_its_proof_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROOFS))
    before = set(sys.modules)
    try:
        made, world = importlib.import_module("uniir_blip_ff"), importlib.import_module("uniir")
        monkeypatch.setattr(world, "SHOTS", 1)
        monkeypatch.setattr(world, "FITTING", replace(world.FITTING, epochs=1))
        monkeypatch.setattr(sys, "argv", ["uniir_blip_ff", "--seeds", "1", "--out", str(tmp_path)])
        made.main()
        told = Result.read(tmp_path / "uniir_blip_ff.json")
        assert {arm.system for arm in told.arms} == {*made.ARMS, "blip_ff_untrained"}
        assert {test.metric for test in told.comparisons} == set(world.METRICS)
    finally:
        for name in ("_proof", "_shapes", "uniir", "uniir_blip_ff"):
            if name not in before:
                sys.modules.pop(name, None)
