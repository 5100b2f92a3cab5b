"""VISTA: a text alone is the embedder's own to the last bit, where patches and words stand, towers of other kinds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych import Settings
from triptych.errors import BadInput, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.towers import characters, seeded
from triptych.retrievers.universal._contrastive_training import Contrast, Lesson, collated, info_nce
from triptych.retrievers.universal.clip import CLIP
from triptych.retrievers.universal.vista import VISTA, Towers
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
import coloured_pages as coloured

PATCHES = 16
TEXTS = ["an owl", "", "the cat sat on the mat", "🙂 ünïcode 你好"]


def picture(folder: Path, name: str = "a.png", size: tuple[int, int] = (40, 30), noise: float = 60) -> MediaRef:
    Image.effect_noise(size, noise).convert("RGB").save(folder / name)
    return MediaRef(str(folder / name), "image/png")


@pytest.fixture(scope="module")
def vista() -> VISTA:
    return VISTA.tiny(0)


def ids_of(vista: VISTA, text: str) -> torch.Tensor:
    words = vista.tokenizer.encode(text, add_special_tokens=False).ids
    number = vista.tokenizer.token_to_id
    return torch.tensor([number("[CLS]"), *words, number("[SEP]")])


def by_hand(vista: VISTA, media: MediaRef, text: str) -> np.ndarray:
    """One input without padding, every table looked up by itself."""
    towers, table = vista.towers, vista.towers.text.embeddings
    words, places, kind = (
        part.weight for part in (table.word_embeddings, table.position_embeddings, table.token_type_embeddings)
    )
    pixels = vista.pictures(images=[Image.open(media.uri)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = towers.vision(pixels).last_hidden_state[0]
        assert len(states) == PATCHES + 1
        patches = states[1:] @ towers.projection.weight.T + towers.projection.bias
        shown = [table.LayerNorm(patch + places[1 + number]) for number, patch in enumerate(patches)]
        ids = ids_of(vista, text)
        first = table.LayerNorm(words[ids[0]] + places[0] + kind[0])
        rest = [
            table.LayerNorm(words[piece] + places[1 + PATCHES + number] + kind[0])
            for number, piece in enumerate(ids[1:])
        ]
        vector = towers.text.encoder(torch.stack([first, *shown, *rest])[None]).last_hidden_state[0, 0]
    found: np.ndarray = (vector / vector.norm()).numpy()
    return found


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_alone_is_the_embedders_own_to_the_last_bit(vista: VISTA, tmp_path: Path) -> None:
    """Against BERT as transformers loads it, alone: the difference is 0, not small."""
    from transformers import BertModel

    vista.save(tmp_path)
    bert = BertModel.from_pretrained(tmp_path / "text", add_pooling_layer=False).eval()
    for text in TEXTS:
        [vector] = vista.encode([Query(text)], "query")
        with torch.inference_mode():
            ids = ids_of(vista, text)[None]
            own = bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
        wanted = torch.nn.functional.normalize(own, dim=-1).numpy()[0]
        assert np.abs(vector - wanted).max() == 0


def test_texts_beside_pictures_keep_that_vector(vista: VISTA, tmp_path: Path) -> None:
    mixed = [Query("an owl"), Query("an owl", picture(tmp_path)), Query(media=picture(tmp_path))]
    np.testing.assert_array_equal(vista.encode(mixed, "query")[:1], vista.encode(mixed[:1], "query"))


def test_an_instruction_of_a_query_stands_before_its_words(vista: VISTA, tmp_path: Path) -> None:
    media = picture(tmp_path)
    for given, same in (
        (Query("owl", instruction="find"), Query("find owl")),
        (Query("owl", media, "find"), Query("find owl", media)),
        (Query(media=media, instruction="find"), Query("find", media)),
    ):
        np.testing.assert_allclose(vista.encode([given], "query"), vista.encode([same], "query"), atol=1e-6)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_patches_stand_between_the_first_piece_and_the_words(text: str, vista: VISTA, tmp_path: Path) -> None:
    media = picture(tmp_path)
    [vector] = vista.encode([Query(text, media)], "query")
    np.testing.assert_allclose(vector, by_hand(vista, media, text), atol=1e-5)


def test_a_picture_alone_is_one_with_an_empty_text(vista: VISTA, tmp_path: Path) -> None:
    media = picture(tmp_path)
    alone, empty = vista.encode([Query(media=media), Query("", media)], "query")
    np.testing.assert_array_equal(alone, empty)
    items = [Item("i", "", Source("a.png"), "image", media), Item("p", "words", Source("a.pdf"), "page", media)]
    for found in vista.encode(items, "document"):
        np.testing.assert_allclose(found, alone, atol=1e-5)
    worded = vista.encode([Item("i", "an owl", Source("a.png"), "image", media)], "document")
    np.testing.assert_allclose(worded, vista.encode([Query("an owl", media)], "query"), atol=1e-6)


def test_padding_changes_nothing(vista: VISTA, tmp_path: Path) -> None:
    media = [picture(tmp_path, f"{n}.png", noise=30 + 20 * n) for n in range(4)]
    mixed = [one for text, shot in zip(TEXTS, media, strict=True) for one in (Query(text), Query(text, shot))]
    together = vista.encode(mixed, "query")
    np.testing.assert_allclose(together, np.concatenate([vista.encode([one], "query") for one in mixed]), atol=1e-5)
    np.testing.assert_allclose(vista.encode(mixed[::-1], "query"), together[::-1], atol=1e-5)
    assert np.unique(together.round(4), axis=0).shape == together.shape
    assert vista.encode([], "query").shape == (0, 32)


def test_words_beside_a_picture_are_cut_to_the_positions_left(vista: VISTA, tmp_path: Path) -> None:
    media = picture(tmp_path)
    assert len(vista._alone(["a " * 300])[0]) == 128
    assert len(vista._beside(["a " * 300])[0]) == 128 - PATCHES
    fits = "a " * (128 - PATCHES - 2)
    one, other, shorter = vista.encode(
        [Query(f"{fits} b", media), Query(f"{fits} c", media), Query(fits[2:] + "b", media)], "query"
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(one - shorter).max() > 1e-5


def test_a_query_of_nothing_is_refused(vista: VISTA) -> None:
    with pytest.raises(Unsupported, match="no text and no media"):
        vista.encode([Query()], "query")


# --- towers of other kinds -------------------------------------------------------------------------------------------


def put_xlm(folder: Path) -> Path:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = characters("roberta")
    tower: dict[str, Any] = {
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    }
    size: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32, "max_position_embeddings": 130}
    ends: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    model = seeded(3, lambda: XLMRobertaModel(XLMRobertaConfig(**tower, **size, **ends)).eval())
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_xlm_roberta_keeps_its_own_positions_for_texts_and_has_1_to_p_for_patches(vista: VISTA, tmp_path: Path) -> None:
    """XLM-RoBERTa counts from 2; beside a picture the authors count from 0 all the same."""
    from transformers import XLMRobertaModel

    vista.save(tmp_path / "vista")
    text = put_xlm(tmp_path / "xlm")
    made = VISTA.from_parts(text, tmp_path / "vista" / "vision", seed=1, precision="float32")
    base = XLMRobertaModel.from_pretrained(text).eval()
    ids = torch.tensor([[0, *made.tokenizer.encode("an owl").ids, 2]])
    with torch.inference_mode():
        own = base(input_ids=ids).last_hidden_state[:, 0]
    [vector, _] = made.encode([Query("an owl"), Query("a longer text than that")], "query")
    np.testing.assert_allclose(vector, torch.nn.functional.normalize(own, dim=-1).numpy()[0], atol=1e-5)
    assert len(made._alone(["a" * 300])[0]) == 128

    media, table = picture(tmp_path), base.embeddings
    pixels = made.pictures(images=[Image.open(media.uri)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        patches = made.towers.projection(made.towers.vision(pixels).last_hidden_state[0, 1:])
        shown = table.LayerNorm(patches + table.position_embeddings.weight[1 : 1 + PATCHES])
        places = [0, *range(1 + PATCHES, PATCHES + ids.shape[1])]
        plain = table.word_embeddings(ids[0]) + table.position_embeddings.weight[places]
        said = table.LayerNorm(plain + table.token_type_embeddings.weight[0])
        states = base.encoder(torch.cat([said[:1], shown, said[1:]])[None]).last_hidden_state[:, 0]
    [vector] = made.encode([Query("an owl", media)], "query")
    np.testing.assert_allclose(vector, torch.nn.functional.normalize(states, dim=-1).numpy()[0], atol=1e-5)


def test_a_clip_gives_its_normed_patches(vista: VISTA, tmp_path: Path) -> None:
    vista.save(tmp_path / "vista")
    clip = CLIP.tiny(2)
    clip.save(tmp_path / "clip")
    made = VISTA.from_parts(tmp_path / "vista" / "text", tmp_path / "clip", precision="float32")
    media = picture(tmp_path)
    pixels = clip.pictures(images=[Image.open(media.uri)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        tower = clip.model.vision_model
        wanted = made.towers.projection(tower.post_layernorm(tower(pixels).last_hidden_state)[:, 1:])
        torch.testing.assert_close(made.towers._patches(pixels), wanted, atol=1e-5, rtol=1e-4)
    made.save(tmp_path / "both")
    again = VISTA.from_folder(tmp_path / "both", "float32")
    queries = [Query("owl", media), Query("owl")]
    np.testing.assert_allclose(again.encode(queries, "query"), made.encode(queries, "query"), atol=1e-5)


def test_a_start_differs_by_its_seed_in_the_projection_only(vista: VISTA, tmp_path: Path) -> None:
    vista.save(tmp_path)
    one, same, other = (
        VISTA.from_parts(tmp_path / "text", tmp_path / "vision", seed, precision="float32") for seed in (1, 1, 2)
    )
    queries = [Query("owl"), Query("owl", picture(tmp_path))]
    first, second, third = (made.encode(queries, "query") for made in (one, same, other))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], third[0])
    assert np.abs(first[1] - third[1]).max() > 1e-4


# --- folders ---------------------------------------------------------------------------------------------------------


def test_checkpoints_with_parts_that_are_not_read_load(vista: VISTA, tmp_path: Path) -> None:
    """A pooler, a classifier, counters: as published BGE and ViT folders have them."""
    vista.save(tmp_path)
    for part, extra in (("text", "pooler.dense.weight"), ("vision", "classifier.weight")):
        path = tmp_path / part / "model.safetensors"
        save_file(load_file(path) | {extra: torch.ones(2)}, path, {"format": "pt"})
    made = VISTA.from_folder(tmp_path, "float32")
    queries = [Query("owl"), Query("owl", picture(tmp_path))]
    np.testing.assert_allclose(made.encode(queries, "query"), vista.encode(queries, "query"), atol=1e-6)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("text/config.json", {"model_type": "gpt2"}, "`text` holds a model of type `gpt2`"),
        ("vision/config.json", {"model_type": "eva"}, "`vision` holds a model of type `eva`"),
        ("vision/preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "`CLIPImageProcessor`"),
        ("vision/preprocessor_config.json", {"size": {"height": 16, "width": 16}}, "`16 × 16` pixels"),
        ("text/model.safetensors", {"encoder.layer.0.output.dense.bias": None}, "`text` lacks `encoder.layer.0"),
        ("vision/model.safetensors", {"lora": torch.ones(2)}, "`vision` has an unknown `lora`"),
        ("visual_proj.safetensors", {"visual_proj.bias": None}, "lacks `visual_proj.bias`"),
        ("visual_proj.safetensors", {"visual_proj.weight": torch.ones(2)}, "another shape of `visual_proj.weight`"),
    ],
)
def test_another_models_files_are_refused_by_name(
    file: str, change: dict[str, Any], named: str, vista: VISTA, tmp_path: Path
) -> None:
    vista.save(tmp_path)
    path = tmp_path / file
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        found = {key: values for key, values in (load_file(path) | change).items() if values is not None}
        save_file(found, path, {"format": "pt"})
    with pytest.raises(BadInput, match=named):
        VISTA.from_folder(tmp_path, "float32")


@pytest.mark.parametrize("gone", ["visual_proj.safetensors", "text/tokenizer.json", "vision/preprocessor_config.json"])
def test_a_missing_file_is_named(gone: str, vista: VISTA, tmp_path: Path) -> None:
    vista.save(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(MissingWeights, match=f"has no `{Path(gone).name}`"):
        VISTA.from_folder(tmp_path)


def test_more_patches_than_positions_and_parts_of_two_models_are_refused(vista: VISTA) -> None:
    from transformers import BertConfig, BertModel

    size: dict[str, Any] = {
        "vocab_size": vista.tokenizer.get_vocab_size(),
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    short, narrow = (
        BertModel(BertConfig(**size, hidden_size=width, max_position_embeddings=longest), add_pooling_layer=False)
        for width, longest in ((32, 17), (16, 128))
    )
    towers = vista.towers
    with pytest.raises(BadInput, match="`16` patches, the text embedder `17` positions"):
        VISTA(Towers(short, towers.vision, towers.projection), vista.tokenizer, vista.pictures)
    with pytest.raises(BadInput, match="projection goes from `24` to `32`"):
        VISTA(Towers(narrow, towers.vision, towers.projection), vista.tokenizer, vista.pictures)
    with pytest.raises(BadInput, match="pieces, the model"):
        VISTA(towers, characters("roberta"), vista.pictures)


def test_load_says_how_to_make_one_and_loads_it_then(vista: VISTA, tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    with pytest.raises(MissingWeights, match=r"from_parts"):
        VISTA.load(card("vista"), Stages(settings))
    vista.save(settings.weights / "vista")
    made = VISTA.load(card("vista"), Stages(settings))
    queries = [Query("an owl", picture(tmp_path)), Query("an owl")]
    np.testing.assert_allclose(made.encode(queries, "query"), vista.encode(queries, "query"), atol=0.05)  # bfloat16


def test_a_model_that_gives_nan_is_an_error(tmp_path: Path) -> None:
    broken = VISTA.tiny(1)
    with torch.no_grad():
        broken.towers.projection.bias[0] = torch.nan
    assert np.isfinite(broken.encode([Query("owl")], "query")).all()
    with pytest.raises(BadInput, match="`nan`"):
        broken.encode([Query("owl", picture(tmp_path))], "query")


def test_it_learns_what_answers_and_is_taken_back(tmp_path: Path) -> None:
    start, items = VISTA.tiny(), coloured.pages(tmp_path, "image")
    told = coloured.lessons(items, wrong=1, times=10)
    learned = start.fit(told, tmp_path / "fit", course=coloured.COURSE)
    assert coloured.found(start, items) < coloured.found(learned, items) >= 3
    again = VISTA.from_folder(tmp_path / "fit", "float32")
    np.testing.assert_allclose(again.encode(items, "document"), learned.encode(items, "document"), atol=1e-5)
    with pytest.raises(BadInput, match="holds a fit with other"):
        start.fit(told[:4], tmp_path / "fit", course=coloured.COURSE)


def test_the_text_embedder_does_not_learn(tmp_path: Path) -> None:
    start, items = VISTA.tiny(), coloured.pages(tmp_path, "image")
    asked = [Query("an owl"), Query("red")]
    for alone in (False, True):
        learned = start.fit(
            coloured.lessons(items), tmp_path / f"{alone}", course=coloured.COURSE, only_projection=alone
        )
        np.testing.assert_array_equal(learned.encode(asked, "query"), start.encode(asked, "query"))
        assert np.abs(learned.encode(items, "document") - start.encode(items, "document")).max() > 1e-3
        [one, other] = (encoder.towers.vision.state_dict() for encoder in (start, learned))
        assert all(torch.equal(one[key], other[key]) for key in one) is alone


def test_read_in_parts_the_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    encoder, items = VISTA.tiny(1), coloured.pages(tmp_path, "image")
    told = [*coloured.lessons(items), Lesson(Query("mixed", items[0].media), Item("t", "a text", Source("t.md")))]
    batch = collated(told, lambda one, side: encoder._read(one))
    learns = torch.nn.ModuleList([encoder.towers.vision, encoder.towers.projection])
    made = [coloured.gradients(Contrast(learns, encoder._vectors, info_nce, chunk), batch) for chunk in (0, 2)]
    coloured.same(*made)
