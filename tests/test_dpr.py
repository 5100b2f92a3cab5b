"""DPR: the state of [CLS], raw inner products, two encoders, and the published key names; what else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from triptych import Settings
from triptych.errors import BadInput, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source, Space
from triptych.retrievers.stores.vectors import VectorStore
from triptych.retrievers.text._training import Fitting, Question
from triptych.retrievers.text.dpr import DIM, DPR, FOLDERS, passage_text
from triptych.retrievers.towers import characters, padded, vectors_of
from triptych.tools.stages import Stages

TEXTS = ["Berlin costs 120 euros.", "", "x" * 700, "ünïcode 你好 🙂", "the cat sat on the mat " * 12]


def item(text: str, number: int = 0, **meta: Any) -> Item:
    return Item(f"i{number}", text, Source("notes/rates.md"), meta=meta)


ITEMS = [item(text, number, title=f"Title {number}") for number, text in enumerate(TEXTS)]
QUERIES = [Query(text) for text in ("berlin", "what is it?", "")]
HIDDEN, LAYERS, INNER = 24, 2, 32
CONFIG = {
    "model_type": "dpr",
    "vocab_size": 192,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "projection_dim": 0,
}


@pytest.fixture(scope="module")
def dpr() -> DPR:
    return DPR.tiny(0)


def published(start: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of the released files, the unused pooler included."""
    square, wide = (HIDDEN, HIDDEN), (INNER, HIDDEN)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], HIDDEN),  # type: ignore[dict-item]
        "embeddings.position_embeddings.weight": (64, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
        "pooler.dense.weight": square,
        "pooler.dense.bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for part, shape in {
            "attention.self.query": square,
            "attention.self.key": square,
            "attention.self.value": square,
            "attention.output.dense": square,
            "intermediate.dense": wide,
            "output.dense": wide[::-1],
        }.items():
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shapes[f"encoder.layer.{layer}.{part}.bias"] = (HIDDEN,)
    chance = torch.Generator().manual_seed(seed)
    made = {start + name: torch.randn(shape, generator=chance) * 0.3 for name, shape in shapes.items()}
    return made | {f"{start}embeddings.position_ids": torch.arange(64)[None]}


def put(folder: Path, weights: dict[str, torch.Tensor], **changed: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    save_file(weights, folder / "model.safetensors")
    characters("bert").save(str(folder / "tokenizer.json"))
    return folder


def put_pair(folder: Path) -> Path:
    for seed, name in enumerate(FOLDERS):
        put(folder / name, published(f"{name}.bert_model.", seed))
    return folder


# --- what it computes ------------------------------------------------------------------------------------------------


def test_a_passage_is_title_and_text_in_one_segment(dpr: DPR) -> None:
    vocabulary = dpr.tokenizer.get_vocab()
    told = ["[CLS]", "a", "##b", "[SEP]", "c", "[SEP]"]
    ids = torch.tensor([[vocabulary[piece] for piece in told]])
    made = dpr.encode([item("c", title="ab")], "document")
    with torch.no_grad():
        zeros, pair = (
            dpr.passage(input_ids=ids, token_type_ids=torch.tensor([kinds])).pooler_output.numpy()
            for kinds in ([0] * 6, [0, 0, 0, 0, 1, 1])
        )
        state = dpr.passage.ctx_encoder.bert_model(input_ids=ids).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(made, zeros, atol=1e-5)
    np.testing.assert_allclose(made, state, atol=1e-5)
    assert not np.allclose(made, pair, atol=1e-3)


def test_title_and_headings_stand_before_the_text() -> None:
    assert passage_text(item("c", title="ab", headings=["Rates"])) == ("ab\nRates", "c")
    assert passage_text(item("ab: more", title="ab")) == "ab: more"
    assert passage_text(item("", title="ab")) == ("ab", "")
    assert passage_text(Query("ab")) == "ab"


@given(st.integers(0, 300), st.integers(0, 300))
def test_256_pieces_are_read_and_the_longer_part_is_cut(title: int, text: int) -> None:
    dpr = SHARED
    [ids] = dpr._frame([("a " * title, "b " * text)])
    a, b = (ids.count(dpr.tokenizer.get_vocab()[letter]) for letter in "ab")
    assert len(ids) == min(256, 3 + title + text)
    assert (a, b) == (title, text) if title + text <= 253 else (a == title or a >= b - 1) and (b == text or b >= a - 1)


SHARED = DPR.tiny(7)


def test_questions_and_passages_have_encoders_of_their_own(dpr: DPR) -> None:
    question, passage = dpr.encode([Query("same")], "query"), dpr.encode([Query("same")], "document")
    assert np.abs(question - passage).max() > 0.1
    tied = DPR(dpr.question, dpr.question, dpr.tokenizer)
    np.testing.assert_allclose(
        tied.encode([Query("same")], "query"), tied.encode([Query("same")], "document"), atol=1e-5
    )


def test_vectors_are_not_normalised_and_the_space_says_so(dpr: DPR) -> None:
    assert dpr.space == DPR.space == Space("dpr", "dense", DIM, "ip")
    found = dpr.encode(ITEMS, "document")
    assert found.shape == (len(ITEMS), DIM)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1).min() > 2


def test_padding_does_not_change_a_vector(dpr: DPR) -> None:
    ids, mask = padded(dpr._frame(["the cat", "a much longer one than that"]), dpr._pad)
    wide = torch.nn.functional.pad(ids, (0, 40)), torch.nn.functional.pad(mask, (0, 40))
    with torch.no_grad():
        torch.testing.assert_close(
            vectors_of(dpr.passage, ids, mask), vectors_of(dpr.passage, *wide), atol=1e-5, rtol=0
        )


def test_a_batch_equals_a_loop_and_keeps_its_order(dpr: DPR) -> None:
    together = dpr.encode(ITEMS, "document")
    np.testing.assert_allclose(together, np.concatenate([dpr.encode([one], "document") for one in ITEMS]), atol=1e-5)
    np.testing.assert_allclose(dpr.encode(ITEMS[::-1], "document"), together[::-1], atol=1e-5)
    assert dpr.encode([], "document").shape == dpr.encode([], "query").shape == (0, DIM)


def test_cached_vectors_of_queries_cannot_be_spoilt(dpr: DPR) -> None:
    first = dpr.encode(QUERIES, "query")
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(dpr.encode(QUERIES, "query"), kept)


def test_a_store_orders_by_raw_inner_product(dpr: DPR, tmp_path: Path) -> None:
    store = VectorStore(tmp_path, dpr.space)
    vectors = dpr.encode(ITEMS, "document") * np.array([[1.0], [3.0], [0.5], [2.0], [1.5]], np.float32)
    store.upsert(ITEMS, vectors)
    [query] = dpr.encode(QUERIES[:1], "query")
    scores = vectors @ query
    found = store.search(query, 9)
    assert [id_ for id_, _ in found] == [f"i{n}" for n in np.argsort(-scores, kind="stable")]
    np.testing.assert_allclose([score for _, score in found], sorted(scores, reverse=True), rtol=1e-4)
    with pytest.raises(BadInput, match="shape"):
        store.upsert(ITEMS[:1], np.ones((1, HIDDEN), np.float32))
    store.close()


def test_what_is_not_text_or_not_latin(dpr: DPR) -> None:
    with pytest.raises(Unsupported, match="`None`"):
        dpr.encode([Query(media=MediaRef("a.png", "image/png"))], "query")
    assert [dpr.reads(Query(text)) for text in ("travel", "差旅补贴是多少", "120", None)] == [True, False, True, False]


# --- published weights -----------------------------------------------------------------------------------------------


def test_the_published_names_load(tmp_path: Path) -> None:
    made = DPR.from_folder(put_pair(tmp_path), "float32")
    assert made.space.dim == HIDDEN
    for seed, (name, tower) in enumerate(zip(FOLDERS, (made.question, made.passage), strict=True)):
        given = published(f"{name}.bert_model.", seed)
        own = tower.state_dict()
        assert own.keys() == {key for key in given if "pooler" not in key and "position_ids" not in key}
        assert all(torch.equal(own[key], given[key]) for key in own)
    assert np.isfinite(made.encode(ITEMS, "document")).all()


def test_the_names_of_the_authors_own_checkpoint_load(tmp_path: Path) -> None:
    whole = published("question_model.", 0) | published("ctx_model.", 1)
    for name in FOLDERS:
        put(tmp_path / "one" / name, whole)
    put_pair(tmp_path / "two")
    one, two = (DPR.from_folder(tmp_path / name, "float32") for name in ("one", "two"))
    for side in ("query", "document"):
        np.testing.assert_array_equal(one.encode(ITEMS, side), two.encode(ITEMS, side))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"drop": "encoder.layer.1.output.dense.bias"},
            r"lacks `ctx_encoder\.bert_model\.encoder\.layer\.1\.output\.de",
        ),
        ({"add": "encode_proj.weight"}, r"has an unknown `ctx_encoder\.bert_model\.encode_proj\.weight`"),
        ({"resize": "embeddings.LayerNorm.bias"}, r"has another shape of `ctx_encoder\.bert_model\.embeddings\.LayerN"),
    ],
)
def test_other_keys_are_refused_by_name(change: dict[str, str], named: str, tmp_path: Path) -> None:
    put(tmp_path / FOLDERS[0], published("question_encoder.bert_model."))
    weights = published("ctx_encoder.bert_model.")
    for what, key in change.items():
        key = f"ctx_encoder.bert_model.{key}"
        if what == "drop":
            del weights[key]
        else:
            weights[key] = torch.ones(3)
    put(tmp_path / FOLDERS[1], weights)
    with pytest.raises(BadInput, match=named):
        DPR.from_folder(tmp_path, "float32")


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(gone: str, tmp_path: Path) -> None:
    (put_pair(tmp_path) / FOLDERS[0] / gone).unlink()
    with pytest.raises(MissingWeights, match=f"`question_encoder` has no `{gone}`"):
        DPR.from_folder(tmp_path)


def test_an_old_tokenizer_file_serves(tmp_path: Path) -> None:
    folder = put_pair(tmp_path) / FOLDERS[0]
    one = DPR.from_folder(tmp_path, "float32").encode(QUERIES, "query")
    words = characters("bert").get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)))
    np.testing.assert_allclose(DPR.from_folder(tmp_path, "float32").encode(QUERIES, "query"), one, atol=1e-5)


def test_other_architectures_and_damaged_files_are_refused(tmp_path: Path) -> None:
    for name, model_type in zip(FOLDERS, ("roberta", "dpr"), strict=True):
        put(tmp_path / "other" / name, published(f"{name}.bert_model."), model_type=model_type)
    with pytest.raises(BadInput, match="model of type `roberta`"):
        DPR.from_folder(tmp_path / "other")
    broken = put_pair(tmp_path / "broken") / FOLDERS[1]
    (broken / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(BadInput, match=r"`model\.safetensors` cannot be read"):
        DPR.from_folder(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is no JSON"):
        DPR.from_folder(tmp_path / "broken")


def test_encoders_of_two_sizes_are_refused(dpr: DPR, tmp_path: Path) -> None:
    small = DPR.from_folder(put_pair(tmp_path), "float32")
    with pytest.raises(BadInput, match="`768` and `24` dimensions"):
        DPR(dpr.question, small.passage, dpr.tokenizer)


def test_a_tokenizer_of_another_kind_is_refused(dpr: DPR) -> None:
    with pytest.raises(BadInput, match=r"no `\[CLS\]`"):
        DPR(dpr.question, dpr.passage, characters("roberta"))


def test_nan_from_a_model_is_an_error(tmp_path: Path) -> None:
    weights = published("question_encoder.bert_model.")
    weights["question_encoder.bert_model.embeddings.LayerNorm.bias"][0] = torch.nan
    put(tmp_path / FOLDERS[0], weights, tied=True)
    with pytest.raises(BadInput, match="`nan`"):
        DPR.from_folder(tmp_path, "float32").encode(ITEMS, "document")


# --- doors -----------------------------------------------------------------------------------------------------------


def test_load_says_what_to_put_where_and_loads_it_then(tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    with pytest.raises(MissingWeights, match="facebook/dpr-question_encoder-single-nq-base"):
        DPR.load(card("dpr"), Stages(settings))
    put_pair(settings.weights / "dpr")
    assert DPR.load(card("dpr"), Stages(settings)).encode(ITEMS, "document").shape == (len(ITEMS), HIDDEN)


def test_a_bert_model_gives_both_sides(tmp_path: Path) -> None:
    folder = put(tmp_path / "bert", published("bert."), model_type="bert")
    made = DPR.from_bert(folder)
    np.testing.assert_allclose(made.encode(QUERIES, "query"), made.encode(QUERIES, "document"), atol=1e-5)
    assert made.question is not made.passage
    tied = DPR.from_bert(folder, tied=True)
    np.testing.assert_allclose(tied.encode(QUERIES, "query"), made.encode(QUERIES, "query"), atol=1e-5)
    tied.save(tmp_path / "tied")
    assert not (tmp_path / "tied" / FOLDERS[1]).exists()
    again = DPR.from_folder(tmp_path / "tied", "float32")
    assert again.question is again.passage
    np.testing.assert_array_equal(again.encode(ITEMS, "document"), tied.encode(ITEMS, "document"))


def test_what_is_saved_has_the_published_names(tmp_path: Path) -> None:
    made = DPR.from_folder(put_pair(tmp_path / "given"), "float32")
    made.save(tmp_path / "saved")
    for name in FOLDERS:
        keys = load_file(tmp_path / "saved" / name / "model.safetensors").keys()
        wanted = published(f"{name}.bert_model.")
        assert keys == {key for key in wanted if "pooler" not in key and "position_ids" not in key}


def test_tied_encoders_learn_as_one(tmp_path: Path) -> None:
    folder = put(tmp_path / "bert", published("bert."), model_type="bert")
    questions = [Question(f"q {one.title}", (one,)) for one in ITEMS]
    tied = DPR.from_bert(folder, tied=True)
    made = tied.fit(questions, tmp_path / "fit", fitting=Fitting(epochs=1, batch=3, rate=1e-3))
    assert made.question is made.passage
    assert not (tmp_path / "fit" / FOLDERS[1]).exists()
    assert not np.allclose(made.encode(QUERIES, "query"), tied.encode(QUERIES, "query"), atol=1e-3)
    again = DPR.from_folder(tmp_path / "fit", "float32")
    np.testing.assert_array_equal(again.encode(QUERIES, "document"), made.encode(QUERIES, "document"))


def test_the_same_seed_gives_the_same_model() -> None:
    one, two, other = (DPR.tiny(seed).encode(ITEMS[:2], "document") for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other)
