"""`triptych convert`: pickles of tensors become the same safetensors, anything else is refused before it runs, and a
conversion is whole or leaves nothing."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from triptych import progress
from triptych.errors import BadInput, Cancelled, Forbidden, MissingWeights, NotFound
from triptych.retrievers.base import Query
from triptych.retrievers.universal.clip import CLIP
from triptych.server import cli
from triptych.tools import converting
from triptych.tools.converting import convert

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.tensor([1, -2], dtype=torch.int64)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what comes out --------------------------------------------------------------------------------------------------


def pickled_clip(folder: Path) -> CLIP:
    """A tiny model as it was published before safetensors."""
    made = CLIP.tiny(3)
    made.save(folder)
    (folder / "model.safetensors").unlink()
    torch.save(made.model.state_dict(), folder / "pytorch_model.bin")
    return made


def test_a_model_saved_either_way_gives_the_same_vectors(folder: Path, tmp_path: Path) -> None:
    made = pickled_clip(folder)
    asked = [Query("an owl"), Query("rates of the ferry")]
    with pytest.raises(MissingWeights, match=r"has no `model\.safetensors`.*`triptych convert FOLDER`"):
        CLIP.from_folder(folder)
    result = convert(folder)
    assert result.folder == "model" and result.skipped == []
    [file] = result.files
    assert (file.source, file.file) == ("pytorch_model.bin", "model.safetensors")
    assert file.tensors == len(made.model.state_dict())
    assert file.bytes == (folder / file.file).stat().st_size
    assert (folder / "pytorch_model.bin").is_file()
    wanted = CLIP.tiny(3).encode(asked, "query")
    assert np.array_equal(CLIP.from_folder(folder, "float32").encode(asked, "query"), wanted)
    (folder / "model.safetensors").unlink()
    convert(folder, tmp_path / "other" / "place")
    assert np.array_equal(CLIP.from_folder(tmp_path / "other" / "place", "float32").encode(asked, "query"), wanted)
    assert not list(folder.rglob("*.safetensors"))
    assert not list((tmp_path / "other").rglob("*.bin"))


def test_shards_and_their_index_get_their_new_names(folder: Path) -> None:
    where = {}
    for number, (key, values) in enumerate(TENSORS.items(), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({key: values}, folder / name)
        where[key] = name
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": where}))
    files = [file.file for file in convert(folder).files]
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    told = json.loads((folder / "model.safetensors.index.json").read_text())
    assert told == {"metadata": {"total_size": 40}, "weight_map": dict(zip(TENSORS, files, strict=True))}
    for key, name in told["weight_map"].items():
        assert torch.equal(load_file(folder / name)[key], TENSORS[key])


@pytest.mark.parametrize(
    "told", ["{", "[]", '{"weight_map": {"a.weight": "x.bin", "c": "x.bin"}}', '{"weight_map": 3}']
)
def test_an_index_that_does_not_fit_its_shards_is_refused(told: str, folder: Path) -> None:
    torch.save(TENSORS, folder / "x.bin")
    (folder / "x.bin.index.json").write_text(told)
    with pytest.raises(BadInput, match=r"x\.bin\.index\.json"):
        convert(folder)
    assert set(content(folder)) == {"x.bin", "x.bin.index.json"}


@pytest.mark.parametrize("old_format", [False, True])
def test_whatever_torch_saves_of_tensors_is_kept_exactly(old_format: bool, folder: Path) -> None:
    base = torch.arange(24.0)
    tensors = {
        "half": torch.tensor([1.5, -0.0, torch.inf], dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "turned": base.reshape(4, 6).T,
        "part": base[3:9],
        "whole": base,
        "learned": torch.nn.Parameter(torch.ones(2)),
        "truth": torch.tensor([True, False]),
    }
    torch.save(OrderedDict(tensors), folder / "x.pt", _use_new_zipfile_serialization=not old_format)
    [file] = convert(folder / "x.pt").files
    assert file.file == "x.safetensors"
    kept = load_file(folder / "x.safetensors")
    assert kept.keys() == tensors.keys()
    for key, values in tensors.items():
        assert kept[key].dtype == values.dtype and torch.equal(kept[key], values), key


def test_folders_below_are_converted_and_what_a_trainer_keeps_is_passed_over(folder: Path, tmp_path: Path) -> None:
    for name in ("text/pytorch_model.bin", "vision/adapter_model.bin", "x.CKPT"):
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save(TENSORS, folder / name)
    for name in ("training_args.bin", "optimizer.pt", "text/rng_state_0.pth", "scheduler.pt"):
        (folder / name).write_bytes(b"whatever")
    (folder / "text" / "config.json").write_text("{}")
    result = convert(folder, tmp_path / "to")
    assert sorted(result.skipped) == ["optimizer.pt", "scheduler.pt", "text/rng_state_0.pth", "training_args.bin"]
    assert {file.file for file in result.files} == {
        "text/model.safetensors",
        "vision/adapter_model.safetensors",
        "x.safetensors",
    }
    assert set(content(tmp_path / "to")) == {"text/config.json", *(file.file for file in result.files)}


def test_a_folder_inside_the_model_can_be_written_to(folder: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    convert(folder, folder / "new")
    assert set(content(folder / "new")) == {"config.json", "model.safetensors"}


# --- what is refused -------------------------------------------------------------------------------------------------


class Runs:
    """What runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_checkpoint_does_not_run(old_format: bool, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({**TENSORS, "c": Runs(marker)}, folder / "x.pt", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(BadInput, match=r"`x\.pt` holds `[\w.]+`, which is no tensor") as caught:
        convert(folder)
    assert "Never load it" in caught.value.hint
    assert not marker.exists()
    assert set(content(folder)) == {"x.pt"}
    torch.load(folder / "x.pt", weights_only=False)
    assert marker.exists()  # it would have


NOT_TENSORS: dict[str, tuple[Any, str]] = {
    "number": ({**TENSORS, "epoch": 3}, "`epoch` (`int`)"),
    "nested": ({"state_dict": TENSORS}, "`state_dict` (`dict`)"),
    "list": ([TENSORS["a.weight"]], "`list`"),
    "tensor": (TENSORS["a.weight"], "`Tensor`"),
    "named by numbers": ({1: TENSORS["a.weight"]}, "`1` (`named by int`)"),
    "empty": ({}, "no tensors"),
    "sparse": ({"a": TENSORS["a.weight"].to_sparse()}, "`a`"),
}


@pytest.mark.parametrize("what", NOT_TENSORS)
def test_anything_but_tensors_by_name_is_refused(what: str, folder: Path) -> None:
    held, said = NOT_TENSORS[what]
    torch.save(held, folder / "x.bin")
    with pytest.raises(BadInput) as caught:
        convert(folder)
    assert "`x.bin`" in caught.value.message and said in caught.value.message and caught.value.hint
    assert set(content(folder)) == {"x.bin"}


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, body in members.items():
            made.writestr(f"archive/{name}", body)
    return file.getvalue()


DAMAGED = {
    "nothing": b"",
    "words": b"An owl.",
    "a plain pickle": pickle.dumps({"a": 1}),
    "another archive": archive(owl=b"owl"),
    "an archive without its tensors": archive(**{"data.pkl": pickle.dumps({"a": 1}, 2)}),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_checkpoint_is_named(what: str, folder: Path) -> None:
    (folder / "x.bin").write_bytes(DAMAGED[what])
    with pytest.raises(BadInput, match=r"`x\.bin`") as caught:
        convert(folder)
    assert caught.value.hint and str(folder) not in str(caught.value)
    assert set(content(folder)) == {"x.bin"}


@given(data=st.data())
def test_a_damaged_byte_gives_an_error_or_tensors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    torch.save(TENSORS, folder / "x.pt")
    whole = bytearray((folder / "x.pt").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] ^= data.draw(st.integers(1, 255))
    (folder / "x.pt").write_bytes(bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))]))
    try:
        result = convert(folder)
    except BadInput:
        assert set(content(folder)) == {"x.pt"}
    else:
        assert len(load_file(folder / "x.safetensors")) == result.files[0].tensors


def convertible(folder: Path) -> Path:
    """Another folder that has settings already."""
    made = folder.parent / "other"
    made.mkdir()
    (made / "config.json").write_text("mine")
    return made


def test_a_file_that_is_there_is_never_written_over(folder: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin")
    (folder / "model.safetensors").write_bytes(b"mine")
    before = content(folder)
    with pytest.raises(BadInput, match=r"`model\.safetensors` is there already"):
        convert(folder)
    assert content(folder) == before
    (folder / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"`config\.json` is there already"):
        convert(folder, convertible(folder))
    torch.save(TENSORS, folder / "x.pt")
    torch.save(TENSORS, folder / "x.pth")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"would both be `x\.safetensors`"):
        convert(folder)


def test_what_is_not_there_is_said(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"x")
    for source, said in ((folder / "gone", "There is no `gone`"), (folder, "`model` holds no checkpoint")):
        with pytest.raises(NotFound, match=said):
            convert(source)


# --- whole or not at all ---------------------------------------------------------------------------------------------


def test_a_broken_file_of_several_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    torch.save(TENSORS, folder / "a.bin")
    (folder / "b.bin").write_bytes(b"x")
    (folder / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"`b\.bin`"):
        convert(folder, tmp_path / "to" / "deep")
    assert not (tmp_path / "to").exists()
    assert set(content(folder)) == {"a.bin", "b.bin", "config.json"}


def test_stopped_it_leaves_nothing(folder: Path) -> None:
    for name in "abc":
        torch.save(TENSORS, folder / f"{name}.bin")

    def stop(done: int, total: int | None, what: str) -> None:
        if done == 2:
            raise Cancelled("Stopped.")

    with progress.reporting(stop), pytest.raises(Cancelled):
        convert(folder)
    assert set(content(folder)) == {"a.bin", "b.bin", "c.bin"}


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(TENSORS, folder / "x.bin")

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converting, "_save", full)
    with pytest.raises(Forbidden, match="No space left"):
        convert(folder)
    assert set(content(folder)) == {"x.bin"}


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: str) -> tuple[int, str]:
        code = cli.main(["convert", *arguments])
        return code, capsys.readouterr().out

    return call


def test_the_command_tells_what_it_made(run: Callable[..., tuple[int, str]], folder: Path, tmp_path: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin")
    code, out = run(str(folder), "--to", str(tmp_path / "to"), "--json")
    assert code == 0
    told = converting.ConvertOut.model_validate_json(out)
    assert (told.folder, [file.tensors for file in told.files]) == ("to", [2])
    code, out = run(str(folder))
    assert code == 0 and out.startswith("pytorch_model.bin → model.safetensors: 2 tensors")


def test_the_command_takes_the_id_of_a_system(run: Callable[..., tuple[int, str]], bare_home: Path) -> None:
    folder = bare_home / "weights" / "clip"
    folder.mkdir(parents=True)
    torch.save(TENSORS, folder / "pytorch_model.bin")
    assert run("clip")[0] == 0
    assert (folder / "model.safetensors").is_file()
    code, out = run("uniir", "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "NotFound"


def test_the_command_refuses_as_json(run: Callable[..., tuple[int, str]], folder: Path) -> None:
    torch.save({"epoch": 3}, folder / "x.bin")
    code, out = run(str(folder), "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "BadInput"


def test_a_folder_that_may_not_be_written_is_forbidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(TENSORS, folder / "x.bin")

    def denied(self: Path, **how: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(Forbidden, match="Permission denied"):
        convert(folder, folder.parent / "to")
    assert not (folder.parent / "to").exists()
