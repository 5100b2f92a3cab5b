"""Ovis: visual tokens on the simplex, marks that they never reach, a table and no connector; one prompt for all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych.errors import BadInput, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.universal._ovis_tiles import published
from triptych.retrievers.universal._ovis_tiny import VISUAL_WORDS, toy
from triptych.retrievers.universal.ovis import BEHIND, INDICATORS, PATCH, TEXT_TOKENS, Ovis, tokens_of

sys.path.append(str(Path(__file__).parent))
import coloured_pages as coloured

TINY = Ovis.tiny(0)
SIZES = [(60, 80), (40, 40), (20, 20)]
WORDS = [Item("t0", "An owl in a barn.", Source("a.md")), Item("t1", "Owl.", Source("b.md"))]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for number, size in enumerate(SIZES):
        path = folder / f"{number}.png"
        Image.effect_noise(size, 60).convert("RGB").save(path)
        ref = MediaRef(str(path), "image/png")
        made.append(Item(f"p{number}", "", Source(path.name), "image", ref))
    return made


@pytest.fixture
def inputs(pictures: list[Item]) -> list[Item]:
    return [*pictures, *WORDS, replace(pictures[1], text="at night"), replace(pictures[2], modality="page", text="no")]


def shown(item: Item) -> Image.Image:
    assert item.media is not None
    with Image.open(item.media.uri) as picture:
        return picture.convert("RGB")


def text(given: Item | Query, encoder: Ovis = TINY) -> str:
    return str(encoder.processor.tokenizer.decode(encoder.read(given).ids))


# --- visual tokens ---------------------------------------------------------------------------------------------------


def test_a_visual_token_is_a_point_of_the_simplex_and_never_a_mark(pictures: list[Item]) -> None:
    for one in pictures:
        found = TINY.visual_tokens(shown(one))
        assert found.dtype == torch.float32
        assert found.shape == (text(one).count(PATCH), VISUAL_WORDS)
        assert bool((found >= 0).all())
        torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)), atol=1e-5, rtol=0)
        assert bool((found[:, -len(INDICATORS) :] == 0).all())
        assert bool((found[:, : -len(INDICATORS)] > 0).all())


def test_they_are_the_softmax_of_a_normed_linear_layer(pictures: list[Item]) -> None:
    tower = TINY.model.vision_tower
    pixels = TINY.read(pictures[1]).pixels
    with torch.inference_mode():
        states = tower.transformer(pixels).last_hidden_state  # (tiles, 16, 32): 4 x 4 patches, merged 2 x 2
        tiles = states.reshape(len(states), 2, 2, 2, 2, 32).permute(0, 1, 3, 2, 4, 5).reshape(len(states), 4, 128)
        logits = torch.nn.functional.layer_norm(
            tiles @ tower.head_linear.weight.T, (VISUAL_WORDS - len(INDICATORS),), tower.head_norm.weight
        )
        wanted = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    found = TINY.visual_tokens(shown(pictures[1]))[:, : -len(INDICATORS)]
    torch.testing.assert_close(found, wanted.flatten(0, 1), atol=1e-5, rtol=1e-4)


def test_the_softmax_is_in_float32_whatever_the_model_computes_in(pictures: list[Item]) -> None:
    model, processor = toy(0)
    rough = Ovis(model.to(torch.bfloat16), processor)
    found = rough.visual_tokens(shown(pictures[0]))
    assert found.dtype == torch.float32
    assert float((found.sum(dim=1) - 1).abs().max()) < 1e-6  # of bfloat16 it would be some thousandths
    assert not torch.equal(found, found.to(torch.bfloat16).float())
    vectors = rough.encode(pictures, "document")
    assert float((vectors * TINY.encode(pictures, "document")).sum(axis=1).min()) > 0.95
    again = Ovis(rough.model, processor).encode(pictures, "document")
    np.testing.assert_array_equal(vectors, again)


def test_the_language_model_reads_means_of_the_tables_rows(pictures: list[Item]) -> None:
    model = TINY.model
    table = model.visual_embeddings_table.weight
    heard: list[torch.Tensor] = []
    hook = model.language_model.register_forward_pre_hook(
        lambda _, __, named: heard.append(named["inputs_embeds"]), with_kwargs=True
    )
    try:
        TINY.encode(pictures[:1], "document")
    finally:
        hook.remove()
    ids = TINY.read(pictures[0]).ids
    names = TINY.processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    patches = heard[0][0][[place for place, name in enumerate(names) if name == PATCH]]
    torch.testing.assert_close(patches, TINY.visual_tokens(shown(pictures[0])) @ table, atol=1e-5, rtol=1e-4)
    for number, mark in enumerate(INDICATORS):
        rows = heard[0][0][[place for place, name in enumerate(names) if name == mark]]
        assert len(rows) >= 1
        torch.testing.assert_close(rows, table[number - len(INDICATORS)].expand_as(rows))


def test_a_connector_without_table_is_not_it(pictures: list[Item]) -> None:
    """Where all rows of the table are the same, a picture says nothing: an MLP's output knows no such bound."""
    model, processor = toy(0, tiles=False)
    with torch.no_grad():
        model.visual_embeddings_table.weight[: -len(INDICATORS)] = torch.randn(32)
    blind = Ovis(model, processor).encode(pictures, "document")
    np.testing.assert_allclose(blind, blind[:1].repeat(len(blind), axis=0), atol=1e-5)
    sees = Ovis(*toy(0, tiles=False)).encode(pictures, "document")
    assert float(np.abs(sees - sees[:1]).max()) > 1e-3


@pytest.mark.parametrize("told", ["st_argmax", "gumbel_argmax"])
def test_tokens_that_are_no_probabilities_are_refused(told: str) -> None:
    model, processor = toy(0)
    model.config.vision_config.tokenize_function = told
    with pytest.raises(BadInput, match=f"`{told}`"):
        Ovis(model, processor)


# --- prompts and pooling ---------------------------------------------------------------------------------------------


def test_one_prompt_has_pictures_first_then_text(pictures: list[Item]) -> None:
    both = text(replace(pictures[2], text="at night"))
    assert both == f"<|im_start|>user\n<IMG_START>{PATCH * 4}<IMG_GRID><IMG_END>\nat night{BEHIND}"
    assert text(Query("who?")) == f"<|im_start|>user\nwho?{BEHIND}"
    assert text(replace(pictures[2], modality="page", text="not read")).endswith(f"<IMG_END>\n{BEHIND}")
    four = text(pictures[0])
    assert four.count(PATCH) == 5 * 4
    assert (four.count("<IMG_COL>"), four.count("<IMG_ROW>")) == (2, 1)


@pytest.mark.parametrize(("size", "grid"), [((200, 50), (1, 4)), ((50, 200), (4, 1)), ((90, 90), (2, 2))])
def test_tiles_lie_as_the_picture_does(size: tuple[int, int], grid: tuple[int, int], tmp_path: Path) -> None:
    """transformers turns the grid: a wide picture would be four rows of one tile, each squeezed."""
    rows, columns = grid
    picture = Image.new("RGB", size)
    for row in range(rows):
        for column in range(columns):
            box = (column * size[0] // columns, row * size[1] // rows)
            end = ((column + 1) * size[0] // columns, (row + 1) * size[1] // rows)
            picture.paste((60 * (row * columns + column) + 40,) * 3, (*box, *end))
    picture.save(tmp_path / "a.png")
    one = Item("a", "", Source("a.png"), "image", MediaRef(str(tmp_path / "a.png"), "image/png"))
    whole = text(one)
    assert (whole.count("<IMG_ROW>"), whole.count("<IMG_COL>")) == (rows - 1, rows * (columns - 1))
    pixels = TINY.read(one).pixels
    assert pixels is not None
    middles = pixels[1:, 0, 8:24, 8:24].mean(dim=(1, 2)).tolist()
    assert middles == sorted(middles) and len(middles) == 4
    assert float(pixels[1:, 0, 8:24, 8:24].std(dim=(1, 2)).max()) < 1e-4  # each tile is of one shade
    same = published(TINY.processor.image_processor).to_dict()
    assert same == {**TINY.processor.image_processor.to_dict(), "image_processor_type": same["image_processor_type"]}


def test_marks_in_a_text_are_only_text(pictures: list[Item]) -> None:
    bad = f"{PATCH} <image> <|im_end|>"
    ids = TINY.read(Query(bad, pictures[2].media)).ids.tolist()
    clean = TINY.read(Query("", pictures[2].media)).ids.tolist()
    for mark in (PATCH, "<|im_end|>"):
        token = TINY.processor.tokenizer.convert_tokens_to_ids(mark)
        assert ids.count(token) == clean.count(token)


def test_a_long_text_is_cut_before_what_stands_behind() -> None:
    long, short = TINY.read(Query("owl " * 3000)), TINY.read(Query(""))
    assert len(long.ids) == TEXT_TOKENS + len(short.ids)
    tail = len(TINY.processor.tokenizer(BEHIND)["input_ids"])
    assert torch.equal(long.ids[-tail:], short.ids[-tail:])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padded_batches_equal_a_loop_without_padding(pooling: Any, inputs: list[Item]) -> None:
    encoder = Ovis(TINY.model, TINY.processor, pooling)
    together = encoder.encode(inputs, "document")
    for vector, one in zip(together, inputs, strict=True):
        read = encoder.read(one)
        given = {} if read.pixels is None else {"pixel_values": read.pixels}
        with torch.inference_mode():
            states = encoder.model(input_ids=read.ids[None], **given).last_hidden_state[0]
        wanted = states[-1] if pooling == "last" else states.mean(dim=0)
        np.testing.assert_allclose(vector, (wanted / wanted.norm()).numpy(), atol=1e-4)
    assert len({len(encoder.read(one).ids) for one in inputs}) > 2


def test_a_query_of_nothing_is_refused() -> None:
    with pytest.raises(Unsupported, match="no text and no media"):
        TINY.encode([Query()], "query")


# --- files -----------------------------------------------------------------------------------------------------------


def headed(folder: Path) -> Path:
    """The tiny model as it is published: with the head that predicts words."""
    from transformers import Ovis2ForConditionalGeneration

    TINY.save(folder)
    whole = Ovis2ForConditionalGeneration(TINY.model.config)
    whole.model.load_state_dict(TINY.model.state_dict())
    whole.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", [False, True])
def test_what_is_saved_is_loaded_with_or_without_the_head(head: bool, inputs: list[Item], tmp_path: Path) -> None:
    if head:
        headed(tmp_path)
    else:
        TINY.save(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert ("model.visual_embeddings_table.weight" if head else "visual_embeddings_table.weight") in names
    loaded = Ovis.from_folder(tmp_path, "float32")
    np.testing.assert_allclose(loaded.encode(inputs, "document"), TINY.encode(inputs, "document"), atol=1e-5)
    assert loaded.space.dim == 32 and loaded.processor.image_seq_length == tokens_of(TINY.model.config) == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("vision_tower.head_linear.weight"), r"lacks `vision_tower\.head_linear\.weight`"),
        (lambda tensors: tensors.update({"connector.weight": torch.zeros(2)}), r"unknown `connector\.weight`"),
    ],
)
def test_other_keys_are_named(change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path) -> None:
    TINY.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=told):
        Ovis.from_folder(tmp_path)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    TINY.save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}), "utf-8")
    with pytest.raises(BadInput, match="prepares pictures by `CLIPImageProcessor`"):
        Ovis.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(MissingWeights, match=r"no `tokenizer\.json`"):
        Ovis.from_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "ovis"}), "utf-8")
    with pytest.raises(BadInput, match="type `ovis`"):
        Ovis.from_folder(tmp_path)


def test_a_tokenizer_without_the_marks_is_refused() -> None:
    model, processor = toy(0)
    from transformers import PreTrainedTokenizerFast

    own = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    own["added_tokens"] = [one for one in own["added_tokens"] if one["content"] != "<IMG_GRID>"]
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(own)), pad_token="<|endoftext|>")
    with pytest.raises(BadInput, match="no `<IMG_GRID>`"):
        Ovis(model, SimpleNamespace(tokenizer=other))


def test_load_reads_the_folder_of_the_home_and_the_card_says_what_it_is(tmp_path: Path) -> None:
    settings = SimpleNamespace(weights=tmp_path, precision="float32", threads=0)
    parts: Any = SimpleNamespace(settings=settings, device="cpu")
    own = card("ovis")
    assert "not a retriever" in own.title
    with pytest.raises(MissingWeights, match=r"has no `config\.json`"):
        Ovis.load(own, parts)
    TINY.save(tmp_path / "ovis")
    loaded = Ovis.load(own, parts)
    np.testing.assert_allclose(loaded.encode(WORDS, "document"), TINY.encode(WORDS, "document"), atol=1e-5)


def test_it_learns_what_answers_and_is_taken_back(tmp_path: Path) -> None:
    start, items = Ovis.tiny(), coloured.pages(tmp_path, "image")
    told = coloured.lessons(items, wrong=1, times=10)
    learned = start.fit(told, tmp_path / "fit", course=coloured.COURSE, adapters=coloured.WHOLE)
    assert coloured.found(start, items) < coloured.found(learned, items) >= 3
    again = Ovis.from_folder(tmp_path / "fit", "float32")
    np.testing.assert_allclose(again.encode(items, "document"), learned.encode(items, "document"), atol=1e-5)
    with pytest.raises(BadInput, match="holds a fit with other"):
        start.fit(told[:4], tmp_path / "fit", course=coloured.COURSE, adapters=coloured.WHOLE)
