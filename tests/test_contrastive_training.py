"""How encoders of a mixed space learn from pairs: GradCache, two processes, runs of one data set, fits that go on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from triptych.errors import BadInput
from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._contrastive_training import (
    TEMPERATURE,
    Adapters,
    Contrast,
    Lesson,
    Runs,
    adapt,
    begun,
    collated,
    info_nce,
    key_of,
)
from triptych.retrievers.universal.vlm2vec import BACKBONES, VLM2Vec

sys.path.append(str(Path(__file__).parent))
from contrast_in_two import batch, contrast, lessons
from mllm_files import noise

WORKER = Path(__file__).with_name("contrast_in_two.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the pictures of `lessons`."""
    noise(1).save(tmp_path / "1.png")
    noise(2, 70, 30).save(tmp_path / "2.png")
    return tmp_path


def named(count: int, groups: int = 1, wrong: int = 0) -> list[Lesson]:
    other = tuple(Item(f"w{n}", "wrong", Source("w")) for n in range(wrong))
    return [Lesson(Query(f"q{n}"), Item(f"i{n}", "right", Source("a")), other, str(n % groups)) for n in range(count)]


def learned(network: Contrast) -> dict[str, torch.Tensor]:
    return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}


# --- the loss --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 99))
def test_info_nce_is_that_of_a_loop(count: int, more: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    queries, candidates = torch.randn(count, 3, generator=chance), torch.randn(count + more, 3, generator=chance)
    right = torch.rand(count, count + more, generator=chance) < 0.3
    right.fill_diagonal_(False)
    total = 0.0
    for row, query in enumerate(queries):
        cosines = [float(torch.cosine_similarity(query, one, dim=0)) / 0.5 for one in candidates]
        counted = [one for place, one in enumerate(cosines) if not right[row, place]]
        total += math.log(sum(map(math.exp, counted))) - cosines[row]
    assert float(info_nce(queries, candidates, right, 0.5)) == pytest.approx(total / count, abs=1e-4)
    assert TEMPERATURE == 0.02


def test_what_answers_two_queries_is_no_negative_of_either() -> None:
    vectors = {"q0": [1.0, 0.0], "q1": [0.0, 1.0], "same": [0.6, 0.8], "wrong": [-1.0, 0.0]}
    item = Item("same", "same", Source("a"))
    drawn = [Lesson(Query(name), item, (Item("wrong", "wrong", Source("w")),)) for name in ("q0", "q1")]
    made = collated(drawn, lambda one, side: vectors[one.text])
    assert made["first"].tolist() == [True, True, False, False]
    assert made["keys"].tolist() == [key_of(item)] * 2 + [key_of(drawn[0].wrong[0])] * 2
    network = Contrast(nn.Linear(1, 1), torch.tensor, info_nce)
    wanted = 0.0
    for name in ("q0", "q1"):
        own, other = (sum(a * b for a, b in zip(vectors[name], vectors[one], strict=True)) for one in ("same", "wrong"))
        wanted += math.log1p(2 * math.exp((other - own) / TEMPERATURE)) / 2
    assert float(network(**made)["loss"]) == pytest.approx(wanted, abs=1e-4)


# --- large batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("rank", [0, 2])
def test_gradients_in_parts_are_those_of_the_whole_batch(kind: str, rank: int, folder: Path) -> None:
    """Of pictures, words and both; of all weights or of adapters alone."""
    found = []
    for chunk in (0, 1, 3):
        system = VLM2Vec.tiny(0, kind)
        model = system.backbone.model
        adapt(model, model.language_model, Adapters(rank, dropout=0.0), 0)
        network = contrast(system, chunk)
        loss = network(**batch(system, lessons(folder)))["loss"]
        loss.backward()
        found.append({"loss": loss.detach(), **learned(network)})
    whole, *parts = found
    assert len(whole) > 10
    most = max(float(one.abs().max()) for one in whole.values())
    for part in parts:
        assert part.keys() == whole.keys()
        for name, one in whole.items():
            torch.testing.assert_close(part[name], one, atol=1e-5 * max(most, 1.0), rtol=1e-4)


def test_two_processes_learn_what_one_learns(folder: Path) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, WORKER, folder], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    system = VLM2Vec.tiny(0)
    network = contrast(system)
    loss = network(**batch(system, lessons(folder)))["loss"]
    loss.backward()
    wanted = learned(network)
    most = max(float(one.abs().max()) for one in wanted.values())
    for rank in (0, 1):
        assert json.loads((folder / f"{rank}.json").read_text("utf-8")) == pytest.approx(loss.item(), abs=1e-4)
        found = load_file(folder / f"{rank}.safetensors")
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(most, 1.0), rtol=1e-4)


def test_a_checkpoint_holds_what_learns_alone() -> None:
    system = VLM2Vec.tiny(0)
    network = contrast(system)
    model = system.backbone.model
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()
    merge = adapt(model, model.language_model, Adapters(2), 0)
    kept = network.state_dict()
    assert kept and all("lora_" in key for key in kept)
    before = {key: values.clone() for key, values in model.state_dict().items()}
    network.load_state_dict({key: values + 1 for key, values in kept.items()})
    assert all(torch.equal(values, before[key]) != ("lora_" in key) for key, values in model.state_dict().items())
    merge()
    assert not any("lora_" in key for key in model.state_dict())


# --- runs ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 8), st.integers(0, 3))
def test_runs_are_of_one_group_and_an_epoch_has_every_lesson_once(
    count: int, groups: int, length: int, epoch: int
) -> None:
    data = named(count, groups)
    runs = Runs(data, length, 7)
    runs.start(epoch)
    drawn = [runs[number] for number in range(len(runs))]
    assert Counter(lesson.query.text for run in drawn for lesson in run) == Counter(one.query.text for one in data)
    assert all(len({lesson.group for lesson in run}) == 1 and len(run) <= length for run in drawn)
    sizes = Counter(lesson.group for lesson in data)
    assert len(runs) == sum(-(-size // length) for size in sizes.values())
    again = Runs(data, length, 7)
    again.start(epoch)
    assert [again[number] for number in range(len(again))] == drawn


def test_every_epoch_draws_other_runs() -> None:
    runs = Runs(named(40, 2), 4, 0)
    before = [runs[number] for number in range(len(runs))]
    runs.start(1)
    assert [runs[number] for number in range(len(runs))] != before


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def begin(data: list[Lesson], size: int = 4, run: int = 1) -> None:
        begun(data, [], tmp_path / "fit", Course(1, size, 1e-3), run)

    for data, size in (([], 4), (named(1), 4), (named(4), 1)):
        with pytest.raises(BadInput, match="lessons in a batch leave nothing to tell apart"):
            begin(data, size)
    with pytest.raises(BadInput, match="`0` to `2` wrong items"):
        begin([*named(2), *named(2, wrong=2)])
    for run in (0, 3):
        with pytest.raises(BadInput, match=f"Batches of `4` are not made of runs of `{run}`"):
            begin(named(4), run=run)
    assert not (tmp_path / "fit").exists()
    begin(named(1, wrong=1))
    with pytest.raises(BadInput, match="`fit` holds a fit with other settings or data"):
        begin(named(2, wrong=1))
