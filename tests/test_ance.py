"""ANCE: RoBERTa's pieces, positions and first token, the released key names, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych import Settings
from triptych.errors import BadInput, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source, Space
from triptych.retrievers.text._training import Fitting, Question
from triptych.retrievers.text.ance import ANCE, DIM, lowered
from triptych.retrievers.towers import characters, padded, vectors_of
from triptych.tools.stages import Stages

TEXTS = ["Berlin costs 120 euros.", "", "x" * 700, "ünïcode 你好 🙂", "the cat sat on the mat " * 12]


def item(text: str, number: int = 0, **meta: Any) -> Item:
    return Item(f"i{number}", text, Source("notes/rates.md"), meta=meta)


ITEMS = [item(text, number, title=f"Title {number}") for number, text in enumerate(TEXTS)]
QUERIES = [Query(text) for text in ("berlin", "what is it?", "")]
HIDDEN, INNER = 24, 32
CONFIG = {
    "model_type": "roberta",
    "vocab_size": 260,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def ance() -> ANCE:
    return ANCE.tiny(0)


def published(start: str = "", seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of the released file, with what it has beyond the encoder's."""
    square, wide = (HIDDEN, HIDDEN), (INNER, HIDDEN)
    layer = "roberta.encoder.layer.0"
    matrices = {
        f"{layer}.attention.self.query": square,
        f"{layer}.attention.self.key": square,
        f"{layer}.attention.self.value": square,
        f"{layer}.attention.output.dense": square,
        f"{layer}.intermediate.dense": wide,
        f"{layer}.output.dense": wide[::-1],
        "roberta.pooler.dense": square,
        "classifier.dense": square,
        "classifier.out_proj": (2, HIDDEN),
        "embeddingHead": (DIM, HIDDEN),
    }
    norms = {
        "roberta.embeddings.LayerNorm": HIDDEN,
        f"{layer}.attention.output.LayerNorm": HIDDEN,
        f"{layer}.output.LayerNorm": HIDDEN,
        "norm": DIM,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "roberta.embeddings.word_embeddings.weight": (260, HIDDEN),
        "roberta.embeddings.position_embeddings.weight": (514, HIDDEN),
        "roberta.embeddings.token_type_embeddings.weight": (1, HIDDEN),
        **{f"{name}.weight": shape for name, shape in matrices.items()},
        **{f"{name}.bias": shape[:1] for name, shape in matrices.items()},
        **{f"{name}.{part}": (size,) for name, size in norms.items() for part in ("weight", "bias")},
    }
    chance = torch.Generator().manual_seed(seed)
    made = {start + name: torch.randn(shape, generator=chance) * 0.3 for name, shape in shapes.items()}
    return made | {f"{start}roberta.embeddings.position_ids": torch.arange(514)[None]}


def put(folder: Path, weights: dict[str, torch.Tensor], **changed: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    save_file(weights, folder / "model.safetensors")
    characters("roberta").save(str(folder / "tokenizer.json"))
    return folder


# --- what it computes ------------------------------------------------------------------------------------------------


def test_a_vector_is_the_normed_map_of_the_first_state(ance: ANCE) -> None:
    vocabulary = ance.tokenizer.get_vocab()
    ids = torch.tensor([[vocabulary[piece] for piece in ("<s>", "a", "b", "Ġ", "c", "</s>")]])
    tower = ance.tower
    with torch.no_grad():
        state = tower.roberta(input_ids=ids).last_hidden_state[0, 0]
        mapped = tower.embeddingHead.weight @ state + tower.embeddingHead.bias
        centred = mapped - mapped.mean()
        wanted = centred / torch.sqrt(centred.pow(2).mean() + tower.norm.eps) * tower.norm.weight + tower.norm.bias
    np.testing.assert_allclose(ance.encode([Query("ab c")], "query")[0], wanted.numpy(), atol=1e-5)


def test_both_sides_are_one_encoder(ance: ANCE) -> None:
    np.testing.assert_allclose(ance.encode(QUERIES, "query"), ance.encode(QUERIES, "document"), atol=1e-5)


def test_text_is_lower_cased_title_first(ance: ANCE) -> None:
    assert lowered(item("Costs 120", title="Berlin", headings=["Per  diem"])) == "berlin per diem costs 120"
    np.testing.assert_array_equal(ance.encode([Query("BERLIN")], "query"), ance.encode([Query("berlin")], "query"))


def test_pieces_are_bytes_between_marks_without_segments(ance: ANCE) -> None:
    vocabulary = ance.tokenizer.get_vocab()
    [ids] = ance._told(["é"])
    assert ids == [vocabulary["<s>"], vocabulary["Ã"], vocabulary["©"], vocabulary["</s>"]]
    assert ance.tower.roberta.config.type_vocab_size == 1
    assert (vocabulary["<s>"], vocabulary["<pad>"], vocabulary["</s>"]) == (0, 1, 2)


def test_64_pieces_of_a_question_and_512_of_a_passage_are_read(ance: ANCE) -> None:
    [short], [long] = ance._asked(["x" * 700]), ance._told(["x" * 700])
    assert (len(short), len(long)) == (64, 512)
    assert short[-1] == long[-1] == 2
    assert ance.tower.roberta.config.max_position_embeddings == 514
    assert np.isfinite(ance.encode([Query("x" * 700)], "query")).all()


def test_positions_are_counted_from_the_padding_on(ance: ANCE) -> None:
    pieces = ance._told(["the cat sat", "cat"])
    read: list[torch.Tensor] = []
    positions = ance.tower.roberta.embeddings.position_embeddings
    handle = positions.register_forward_hook(lambda module, given, output: read.append(given[0]))
    with torch.no_grad():
        vectors_of(ance.tower, *padded(pieces, ance._pad))
    handle.remove()
    long, short = map(len, pieces)
    assert read[0].tolist() == [list(range(2, 2 + long)), [*range(2, 2 + short), *[1] * (long - short)]]


def test_padding_does_not_change_a_vector(ance: ANCE) -> None:
    ids, mask = padded(ance._told(["the cat", "a much longer one than that"]), ance._pad)
    wide = torch.nn.functional.pad(ids, (0, 40), value=1), torch.nn.functional.pad(mask, (0, 40))
    with torch.no_grad():
        torch.testing.assert_close(vectors_of(ance.tower, ids, mask), vectors_of(ance.tower, *wide), atol=1e-5, rtol=0)


def test_a_batch_equals_a_loop_and_keeps_its_order(ance: ANCE) -> None:
    together = ance.encode(ITEMS, "document")
    np.testing.assert_allclose(together, np.concatenate([ance.encode([one], "document") for one in ITEMS]), atol=1e-5)
    np.testing.assert_allclose(ance.encode(ITEMS[::-1], "document"), together[::-1], atol=1e-5)
    assert ance.encode([], "document").shape == ance.encode([], "query").shape == (0, DIM)
    assert ance.space == ANCE.space == Space("ance", "dense", DIM, "ip")


def test_what_is_not_text_or_not_latin(ance: ANCE) -> None:
    with pytest.raises(Unsupported, match="`None`"):
        ance.encode([Query(media=MediaRef("a.png", "image/png"))], "query")
    assert [ance.reads(Query(text)) for text in ("travel", "差旅补贴是多少", "120", None)] == [True, False, True, False]


# --- released weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["", "ance_encoder."])
def test_the_released_names_load(start: str, tmp_path: Path) -> None:
    made = ANCE.from_folder(put(tmp_path / "ance", published(start)), "float32")
    own, given = made.tower.state_dict(), published()
    assert own.keys() == {key for key in given if not any(part in key for part in ("classifier", "pooler", "_ids"))}
    assert all(torch.equal(own[key], given[key]) for key in own)
    assert made.encode(ITEMS, "document").shape == (len(ITEMS), DIM)


@pytest.mark.parametrize(
    ("key", "values", "named"),
    [
        ("embeddingHead.bias", None, "lacks `embeddingHead.bias`"),
        ("projection.weight", torch.ones(3), "has an unknown `projection.weight`"),
        ("norm.weight", torch.ones(3), "has another shape of `norm.weight`"),
    ],
)
def test_other_keys_are_refused_by_name(key: str, values: torch.Tensor | None, named: str, tmp_path: Path) -> None:
    weights = published()
    weights.pop(key, None)
    weights |= {} if values is None else {key: values}
    with pytest.raises(BadInput, match=named):
        ANCE.from_folder(put(tmp_path / "ance", weights), "float32")


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="model of type `bert`"):
        ANCE.from_folder(put(tmp_path / "ance", published(), model_type="bert"))


def test_another_padding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pads with `1`"):
        ANCE.from_folder(put(tmp_path / "ance", published(), pad_token_id=0), "float32")


def test_a_tokenizer_of_another_kind_is_refused(ance: ANCE) -> None:
    with pytest.raises(BadInput, match="no `<s>`"):
        ANCE(ance.tower, characters("bert"))


def test_nan_from_a_model_is_an_error(tmp_path: Path) -> None:
    weights = published()
    weights["norm.bias"][0] = torch.nan
    with pytest.raises(BadInput, match="`nan`"):
        ANCE.from_folder(put(tmp_path / "ance", weights), "float32").encode(ITEMS, "document")


def test_an_old_tokenizers_files_serve(tmp_path: Path) -> None:
    folder = put(tmp_path / "ance", published())
    one = ANCE.from_folder(folder, "float32").encode(QUERIES, "query")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingWeights, match=r"no `tokenizer\.json` and no `vocab\.json`"):
        ANCE.from_folder(folder)
    (folder / "vocab.json").write_text(json.dumps(characters("roberta").get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    np.testing.assert_allclose(ANCE.from_folder(folder, "float32").encode(QUERIES, "query"), one, atol=1e-5)


# --- doors -----------------------------------------------------------------------------------------------------------


def test_load_says_what_to_put_where_and_loads_it_then(tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    with pytest.raises(MissingWeights, match="castorini/ance-msmarco-passage"):
        ANCE.load(card("ance"), Stages(settings))
    put(settings.weights / "ance", published())
    assert ANCE.load(card("ance"), Stages(settings)).encode(ITEMS, "document").shape == (len(ITEMS), DIM)


def test_a_roberta_model_gets_a_new_head(tmp_path: Path) -> None:
    weights = {key: values for key, values in published().items() if key.startswith("roberta.")}
    weights["lm_head.bias"] = torch.ones(260)
    folder = put(tmp_path / "roberta", weights)
    one, two, other = (ANCE.from_roberta(folder, 16, seed) for seed in (0, 0, 1))
    vectors = [each.encode(QUERIES, "query") for each in (one, two, other)]
    assert vectors[0].shape == (3, 16)
    assert np.array_equal(vectors[0], vectors[1])
    assert not np.allclose(vectors[0], vectors[2])
    one.save(tmp_path / "saved")
    again = ANCE.from_folder(tmp_path / "saved", "float32")
    assert again.space.dim == 16
    np.testing.assert_array_equal(again.encode(QUERIES, "query"), vectors[0])
    assert "embeddingHead.weight" in load_file(tmp_path / "saved" / "model.safetensors")


def test_a_warm_start_learns_from_the_negatives_that_are_given(ance: ANCE, tmp_path: Path) -> None:
    questions = [Question(f"q {one.title}", (one,), (ITEMS[n - 1],)) for n, one in enumerate(ITEMS)]
    made = ance.warm(questions, tmp_path, fitting=Fitting(epochs=2, batch=5, rate=1e-3))
    again = ANCE.from_folder(tmp_path, "float32")
    np.testing.assert_array_equal(made.encode(ITEMS, "document"), again.encode(ITEMS, "document"))
    assert not np.allclose(made.encode(ITEMS, "document"), ance.encode(ITEMS, "document"), atol=1e-3)


def test_without_negatives_there_is_nothing_to_learn_from_pairs(ance: ANCE, tmp_path: Path) -> None:
    questions = [Question(f"q {one.title}", (one,)) for one in ITEMS]
    with pytest.raises(BadInput, match="none has a negative"):
        ance.warm(questions, tmp_path / "warm")
    with pytest.raises(BadInput, match="none has a negative"):
        ance.fit(questions[:2], tmp_path / "fit", items=[])
    assert not (tmp_path / "warm").exists()
    assert not (tmp_path / "fit" / "model.safetensors").exists()


def test_the_same_seed_gives_the_same_model() -> None:
    one, two, other = (ANCE.tiny(seed).encode(ITEMS[:2], "document") for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other)
