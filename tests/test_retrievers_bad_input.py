"""Bad input over all dense systems: a typed error or an answer, and nothing half-done stays."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from triptych import Settings, Triptych
from triptych.errors import BadInput, MissingWeights, StoreError, TriptychError, Unsupported
from triptych.manifests.registry import packaged
from triptych.retrievers.base import Encoder, Item, Query, Source
from triptych.retrievers.text import use_multilingual
from triptych.retrievers.text._poly_network import PolyNetwork, write
from triptych.retrievers.text._poly_shape import Shape
from triptych.retrievers.text.ance import ANCE
from triptych.retrievers.text.dpr import DPR
from triptych.retrievers.towers import characters

BROUGHT = ("dpr", "ance", "colbert", "poly_encoder")
"""Systems whose weights the user brings into `weights/ID`; those of the others are pinned by hash."""
DENSE = (*BROUGHT, "all_minilm_l6_v2", "use_multilingual")
KINDS = {id_: packaged()[id_].resolve() for id_ in DENSE}
NAN = "`nan`|NaN"
TEXT = "The owl sleeps in the old barn of the village."
ODD = ["owl " * 1000, "你好世界", "🙂👩‍👩‍👧", "zzqx", "\u0301\u200b", "' or 1==1 \\", "\ud800 owl"]
"""Queries beyond the window, without a word of the vocabulary, or of nothing to see."""
NOTHING = (",'');", ",'{}');")
SMALL = {"num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 512}


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return {id_: kind.tiny(0) for id_, kind in KINDS.items()}


def network_of(made: Any) -> Callable[[], Iterator[torch.Tensor]]:
    """The tensors that a system computes with."""
    modules = [getattr(made, name, None) for name in ("question", "passage", "tower", "network", "model")]
    found = [values for one in modules if isinstance(one, torch.nn.Module) for values in one.parameters()]
    return lambda: iter(found or made.tensors.values())


def broken(made: Any) -> Any:
    """The same system with NaN for every weight."""
    with torch.no_grad():
        for values in network_of(made)():
            if values.is_floating_point():
                values.fill_(torch.nan)
    return made


def saved(id_: str, made: Any, folder: Path) -> Path:
    """What `from_folder` of that system reads, instead of whatever is in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    if id_ == "poly_encoder":
        write(folder, made.network, made.pieces.tokenizer)
    elif id_ == "all_minilm_l6_v2":
        made.model.save_pretrained(folder)
        made.tokenizer.save(str(folder / "tokenizer.json"))
    elif id_ == "use_multilingual":
        folder.mkdir(parents=True)
        arrays: dict[str, Any] = dict(use_multilingual._random_arrays(0))
        np.savez(folder / "weights.npz", **arrays)
        (folder / "sp.model").write_bytes(b"no model")
    else:
        made.save(folder)
    return folder


def other_size(id_: str, folder: Path) -> Path:
    """A sound model of the right architecture, whose vectors have another length than those of `tiny`."""
    words = characters("bert")
    sizes: dict[str, Any] = {"vocab_size": words.get_vocab_size(), "hidden_size": 24, "num_attention_heads": 2, **SMALL}
    if id_ == "dpr":
        config = DPRConfig(projection_dim=12, **sizes)
        return saved(id_, DPR(DPRQuestionEncoder(config).eval(), DPRContextEncoder(config).eval(), words), folder)
    if id_ == "ance":
        sizes |= {"vocab_size": 260, "max_position_embeddings": 514}
        return saved(id_, ANCE.random(characters("roberta"), 0, 12, **sizes), folder)
    if id_ == "poly_encoder":
        shutil.rmtree(folder, ignore_errors=True)
        bert = BertConfig(**sizes)
        write(folder, PolyNetwork(Shape(m=2, query_pieces=64, passage_pieces=128), bert).eval(), words)
        return folder
    if id_ == "colbert":
        saved(id_, KINDS[id_].tiny(0), folder)
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, "linear.weight": tensors["linear.weight"][:12].clone()}, folder / "model.safetensors")
        return folder
    if id_ == "all_minilm_l6_v2":
        BertModel(BertConfig(**sizes)).save_pretrained(folder)
        words.save(str(folder / "tokenizer.json"))
        return folder
    saved(id_, None, folder)
    arrays: dict[str, Any] = dict(use_multilingual._random_arrays(0))
    np.savez(folder / "weights.npz", **{**arrays, "d3": arrays["d3"][:, :12]})
    return folder


def content(folder: Path) -> dict[str, object]:
    """What every file below `folder` says; of a database its rows, not how its pages lie, and no list of nothing."""
    found: dict[str, object] = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        if path.suffix == ".sqlite":
            with sqlite3.connect(path) as database:
                found[str(path)] = sorted(row for row in database.iterdump() if not row.endswith(NOTHING))
            database.close()
        else:
            found[str(path)] = path.read_bytes()
    return found


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("models")
    return {id_: saved(id_, made, top / id_) for id_, made in tiny.items()}


@pytest.mark.parametrize("id_", DENSE)
def test_a_folder_of_any_other_model_is_refused(id_: str, folders: dict[str, Path]) -> None:
    for other, folder in folders.items():
        if other == id_ and id_ != "use_multilingual":
            continue  # the tiny one of the exception has no vocabulary to save
        before = content(folder)
        with pytest.raises((BadInput, MissingWeights, Unsupported)) as caught:
            KINDS[id_].from_folder(folder)
        assert "`" in caught.value.message and caught.value.hint, other
        assert str(folder.parent) not in caught.value.message
        assert content(folder) == before


@pytest.mark.parametrize(
    ("id_", "file"),
    [
        *(("all_minilm_l6_v2", name) for name in ("config.json", "model.safetensors", "tokenizer.json")),
        *(("use_multilingual", name) for name in ("sp.model", "weights.npz")),
    ],
)
def test_a_damaged_file_is_named(id_: str, file: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[id_], tmp_path / id_)
    (folder / file).write_bytes(b"\x00 damaged")
    with pytest.raises(BadInput, match=f"`.*{file}`"):
        KINDS[id_].from_folder(folder)


def test_gaps_in_a_model_are_not_filled_at_random(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = saved("all_minilm_l6_v2", tiny["all_minilm_l6_v2"], tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    for changed in (
        {key: values for key, values in whole.items() if key != name},
        {**whole, name: whole[name][:, :8].clone()},
        {**whole, "classifier.weight": torch.zeros(2, 384)},
    ):
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(BadInput, match=r"no such `(encoder\.layer\.0\.output\.dense|classifier)\.weight`"):
            KINDS["all_minilm_l6_v2"].from_folder(folder, "float32")


@pytest.mark.parametrize("id_", ["colbert", "all_minilm_l6_v2", "use_multilingual"])
def test_where_the_length_of_vectors_is_fixed_another_is_refused(id_: str, tmp_path: Path) -> None:
    with pytest.raises((BadInput, Unsupported), match=r"`24`|linear\.weight|`d3`"):
        KINDS[id_].from_folder(other_size(id_, tmp_path / "model"))


@pytest.mark.parametrize("id_", DENSE)
def test_nan_from_a_model_is_an_error_on_both_sides(id_: str) -> None:
    made = broken(KINDS[id_].tiny(0))
    item = Item("a", TEXT, Source("a.md"))
    with pytest.raises(BadInput, match=NAN):
        made.encode([item], "document") if isinstance(made, Encoder) else made.add([item])
    if isinstance(made, Encoder):
        with pytest.raises(BadInput, match=NAN):
            made.encode([Query("owl")], "query")


# --- in a library ----------------------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "owl.md").write_text(TEXT, "utf-8")
    (folder / "empty.md").write_text("", "utf-8")
    (folder / "blank.txt").write_text(" \n\u200b\n", "utf-8")
    return folder


class Watched:
    """A library whose files are compared."""

    def __init__(self) -> None:
        self.library = Triptych("mine", Settings.load())
        self.weights = self.library.settings.weights

    def content(self) -> dict[str, object]:
        self.library.close()
        return content(self.library.folder)


@pytest.fixture
def watched(bare_home: Path) -> Iterator[Watched]:
    made = Watched()
    yield made
    made.library.close()


@pytest.mark.parametrize("id_", BROUGHT)
def test_a_wrong_or_broken_model_leaves_the_library_as_it_was(
    id_: str, tiny: dict[str, Any], watched: Watched, docs: Path
) -> None:
    library, brought = watched.library, watched.weights / id_
    library.index(docs)
    before = watched.content()
    other = BROUGHT[BROUGHT.index(id_) - 1]
    saved(other, tiny[other], brought)
    with pytest.raises((BadInput, MissingWeights, Unsupported)):
        library.index(docs, retrievers=[id_])
    assert watched.content() == before
    saved(id_, broken(KINDS[id_].tiny(0)), brought)
    with pytest.raises(BadInput, match=NAN):
        library.index(docs, retrievers=[id_])
    assert watched.content() == before
    saved(id_, tiny[id_], brought)  # mended while the session lives
    library.index(docs, retrievers=[id_])
    assert len(library.search("owl", retriever=id_).hits) == 1


@pytest.mark.parametrize("id_", BROUGHT)
def test_a_library_of_one_passage_answers_whatever_is_asked(
    id_: str, tiny: dict[str, Any], watched: Watched, docs: Path
) -> None:
    saved(id_, tiny[id_], watched.weights / id_)
    library = watched.library
    library.index(docs, retrievers=[id_])
    assert library.status().store["retrievers"] == {id_: library.status().items}
    before = watched.content()
    for query in ODD:
        try:
            hits = library.search(query, 5, retriever=id_).hits
        except TriptychError as error:  # of a script that it does not read, or nothing but marks
            assert error.hint, query
        else:
            assert len(hits) <= library.status().items
    with pytest.raises(BadInput, match="characters"):
        library.search("owl " * 2000, retriever=id_)
    assert watched.content() == before


@pytest.mark.parametrize("id_", BROUGHT)
def test_vectors_of_another_length_are_never_mixed_with_those_that_are_there(
    id_: str, tiny: dict[str, Any], watched: Watched, docs: Path
) -> None:
    library, brought = watched.library, watched.weights / id_
    saved(id_, tiny[id_], brought)
    library.index(docs, retrievers=[id_])
    before = watched.content()
    other_size(id_, brought)
    with pytest.raises((StoreError, Unsupported)):
        library.search("owl", retriever=id_)
    assert watched.content() == before
    (docs / "fox.md").write_text("A fox crossed the road.", "utf-8")
    assert f"retrievers/{id_}" in [problem.uri for problem in library.index(docs).problems]
    assert len(library.search("owl fox").hits) == 2
    if id_ == "colbert":  # has no such size: see above
        saved(id_, KINDS[id_].tiny(1), brought)
    library.rebuild()
    assert len(library.search("owl fox", retriever=id_).hits) == 2
    assert library.verify().whole
