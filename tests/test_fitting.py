"""What every fit stands on: whose folder it is, where it goes on, and batches in parts and across processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from triptych.errors import BadInput
from triptych.retrievers.fitting import (
    CHECKPOINTS,
    CLAIM,
    LOG,
    Course,
    claim,
    gathered,
    in_batch_nll,
    in_parts,
    last_checkpoint,
    of_all,
    rows_before,
    trained,
)

WORKER = Path(__file__).with_name("fit_in_two.py")


@dataclass(frozen=True)
class How:
    rate: float = 1.0
    sides: tuple[str, ...] = ("a", "b")


class Line(nn.Module):
    """One number that learns to be 3."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))

    def forward(self, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.value - wanted) ** 2).mean()}


def collate(rows: list[float]) -> dict[str, torch.Tensor]:
    return {"wanted": torch.tensor(rows)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- whose folder it is ----------------------------------------------------------------------------------------------


def test_a_fit_goes_on_in_its_own_folder_only(tmp_path: Path) -> None:
    data = [How(), {"text": "lone \ud800", "targets": {"b": 1, "a": 2}}]
    claim(tmp_path / "fit", data, how=How())
    claim(tmp_path / "fit", [How(), {"targets": {"a": 2, "b": 1}, "text": "lone \ud800"}], how=How())
    before = files(tmp_path)
    assert list(before) == [f"fit/{CLAIM}"]
    for others, settings in ((data[:1], How()), (data, How(rate=2.0)), (data, How(sides=("a",)))):
        with pytest.raises(BadInput, match="`fit` holds a fit with other settings or data"):
            claim(tmp_path / "fit", others, how=settings)
    with pytest.raises(BadInput, match="`fit` holds a fit of other lessons"):
        claim(tmp_path / "fit", data, "a fit of other lessons", how=How(rate=2.0))
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", f"{CHECKPOINTS}/checkpoint-1/model.safetensors"])
def test_a_folder_with_a_model_of_somebody_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(BadInput, match="holds another model"):
        claim(tmp_path, [], how=How())
    assert files(tmp_path) == {name: b"theirs"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_claim_is_that_of_another_fit(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CLAIM).write_bytes(content)
    with pytest.raises(BadInput, match="holds a fit with other"):
        claim(tmp_path, [], how=How())


def test_the_last_whole_checkpoint_is_the_one_to_go_on_from(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for number in (2, 10, 9):
        (tmp_path / f"checkpoint-{number}").mkdir()
    assert last_checkpoint(tmp_path) is None
    for number in (2, 10):
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}", "utf-8")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


# --- the fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_it_learns_keeps_the_best_and_tells_what_it_came_to(every: int, grouped: bool, tmp_path: Path) -> None:
    network = Line()
    course = Course(epochs=6, batch=2, rate=0.5, every=every, patience=2, decay=0.0)
    groups = [{"params": [network.value], "lr": course.rate}] if grouped else None
    told = trained(network, course, tmp_path, collate, [3.0] * 8, [3.0], label="wanted", groups=groups)
    assert not network.training
    assert told.held_loss is not None
    assert told.held_loss == pytest.approx((float(network.value.detach()) - 3.0) ** 2, abs=1e-6)
    assert told.held_loss < 1.0
    assert 0 < told.steps <= 24
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text("utf-8").splitlines()]
    held = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert min(held) == pytest.approx(told.held_loss)
    assert len(list((tmp_path / CHECKPOINTS).iterdir())) == 2


def test_it_stops_when_it_gets_no_better_unless_it_has_patience_without_end(tmp_path: Path) -> None:
    steps = [
        trained(
            Line(), Course(5, 2, 0.0, patience=n), tmp_path / f"{n}", collate, [3.0] * 2, [3.0], label="wanted"
        ).steps
        for n in (0, 2)
    ]
    assert steps == [5, 3]


class Scaled(nn.Module):
    """A weight and a scale, of which the loss knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.tensor(1.0))

    def forward(self, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": 0 * (self.weight.sum() + self.scale + wanted.sum())}


def test_weights_decay_and_single_numbers_do_not(tmp_path: Path) -> None:
    network = Scaled()
    trained(network, Course(2, 2, 0.1, decay=0.5), tmp_path, collate, [3.0] * 4, label="wanted")
    assert float(network.scale.detach()) == 1.0
    assert float(network.weight.detach().max()) < 0.95


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_it(value: float, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"The loss is `{value}`"):
        trained(Line(value), Course(1, 2, 0.1), tmp_path, collate, [3.0] * 2, label="wanted")


# --- batches ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 9))
def test_parts_are_never_larger_and_give_what_the_whole_gives(chunk: int, rows: int) -> None:
    given_, weight = torch.randn(rows, 3), torch.randn(3, requires_grad=True)
    sizes: list[int] = []

    def read(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        sizes.append(len(one))
        return torch.tanh(one * weight + other)

    made = in_parts(read, chunk, given_, given_ + 1)
    made.square().sum().backward()
    assert max(sizes) <= (chunk or rows)
    found, weight.grad = weight.grad, None
    torch.tanh(given_ * weight + given_ + 1).square().sum().backward()
    torch.testing.assert_close(found, weight.grad, atol=1e-5, rtol=1e-5)


def test_without_processes_a_batch_is_whole() -> None:
    own = torch.randn(3, 2, requires_grad=True)
    assert gathered(own) is own
    assert rows_before(own) == 0
    assert of_all(own.sum()).item() == pytest.approx(own.sum().item())


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = {
        "queries": torch.randn(7, 6, generator=chance),
        "passages": torch.randn(10, 6, generator=chance),
        "positives": torch.tensor([1, 0, 3, 9, 4, 6, 5]),
        "right": torch.rand(7, 10, generator=chance) < 0.2,
    }
    save_file(batch, tmp_path / "batch.safetensors")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, WORKER, tmp_path], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    queries, passages = tower(batch["queries"]), tower(batch["passages"])
    loss = in_batch_nll(queries, passages, batch["positives"], torch.empty(0), batch["right"])
    loss.backward()
    wanted = {f"tower.{name}": one.grad for name, one in tower.named_parameters()}
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) == pytest.approx(loss.item(), abs=1e-5)
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=0)
