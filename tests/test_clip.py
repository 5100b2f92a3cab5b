"""CLIP: where a text's vector is taken, what pads, how a picture becomes a square; frames, names, wrong folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych import Settings
from triptych.errors import BadInput, MissingWeights, UnreadableFile, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.universal.clip import CLIP, MARKS, tiny_parts
from triptych.tools.stages import Stages

TEXTS = ["an owl", "", "🙂 ünïcode 你好", "the cat sat on the mat " * 30]


def picture(folder: Path, name: str = "a.png", size: tuple[int, int] = (40, 30), noise: float = 60) -> MediaRef:
    Image.effect_noise(size, noise).convert("RGB").save(folder / name)
    return MediaRef(str(folder / name), "image/png")


def shown(media: MediaRef, text: str = "", **kind: Any) -> Item:
    return Item("i", text, Source("a.png"), kind.get("modality", "image"), media)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return CLIP.tiny(0)


@pytest.fixture(scope="module")
def folder(clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip")
    clip.save(made)
    return made


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_is_the_state_of_its_first_end_mark(clip: CLIP) -> None:
    """One text at a time, without padding, pooled by hand, is what a padded batch gives."""
    begin, end = (clip.tokenizer.token_to_id(mark) for mark in MARKS)
    together = clip.encode([Query(text) for text in TEXTS], "query")
    for text, vector in zip(TEXTS, together, strict=True):
        ids = clip.tokenizer.encode(text).ids
        assert ids[0] == begin and ids[-1] == end and ids.count(end) == 1
        ids = [*ids[:76], end] if len(ids) > 77 else ids
        with torch.inference_mode():
            states = clip.model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            wanted = clip.model.text_projection(states[-1])
        np.testing.assert_allclose(vector, (wanted / wanted.norm()).numpy(), atol=1e-4)


def test_what_follows_the_end_mark_changes_nothing(clip: CLIP) -> None:
    short, long = clip.tokenizer.encode("an owl").ids, clip.tokenizer.encode("the cat sat on the mat").ids
    with torch.inference_mode():
        torch.testing.assert_close(clip._of_texts([short, long])[0], clip._of_texts([short])[0], atol=1e-5, rtol=0)


def test_words_written_like_a_mark_end_a_text_and_nothing_breaks(clip: CLIP) -> None:
    one, other = clip.encode([Query("owl<|endoftext|>cat"), Query("owl")], "query")
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_77_pieces_are_read(clip: CLIP) -> None:
    [ids] = clip._dual.frame(["a " * 200])
    assert len(ids) == 77 and ids[-1] == clip.tokenizer.token_to_id(MARKS[1])
    one, other = clip.encode([Query("a " * 75 + "b"), Query("a " * 75 + "c")], "query")
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_passage_is_read_with_its_title_and_a_picture_without_its_words(clip: CLIP, tmp_path: Path) -> None:
    passage = Item("i", "costs 120", Source("a.md"), meta={"title": "Berlin"})
    np.testing.assert_allclose(
        clip.encode([passage], "document"), clip.encode([Query("Berlin\ncosts 120")], "query"), atol=1e-5
    )
    media = picture(tmp_path)
    bare, asked = clip.encode([shown(media)], "document"), clip.encode([Query(media=media)], "query")
    np.testing.assert_array_equal(bare, asked)
    for other in (shown(media, "an owl"), shown(media, "text", modality="page")):
        np.testing.assert_array_equal(bare, clip.encode([other], "document"))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_is_its_middle_square_at_the_models_size(clip: CLIP, tmp_path: Path) -> None:
    """By hand: shorter side to 32 by bicubic, the middle cut out, CLIP's mean and deviation."""
    wide = Image.effect_noise((64, 32), 90).convert("RGB")
    wide.save(tmp_path / "wide.png")
    pixels = np.asarray(wide.crop((16, 0, 48, 32)), np.float32) / 255
    pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    with torch.inference_mode():
        states = clip.model.vision_model(torch.tensor(pixels).permute(2, 0, 1)[None].float()).pooler_output
        wanted = clip.model.visual_projection(states)[0].numpy()
    [vector] = clip.encode([Query(media=MediaRef(str(tmp_path / "wide.png"), "image/png"))], "query")
    np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-4)


def test_frames_of_a_scene_count_alike(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych.retrievers.universal import _inputs

    drawn = {start: Image.effect_noise((32, 32), 40 + 20 * start).convert("RGB") for start in range(4)}
    monkeypatch.setattr(_inputs, "drawn", lambda media, edge: drawn[int(media.start_s)])
    scene = Item("v", "", Source("a.mp4"), "video", MediaRef("a.mp4", "video/mp4", start_s=0.0, end_s=4.0))
    [vector] = clip.encode([scene], "document")
    with torch.inference_mode():
        each = clip._of_pictures([drawn[start] for start in range(4)]).numpy()
    wanted = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-5)
    many = clip.encode([scene, shown(MediaRef("b.png", "image/png", start_s=2.0)), scene], "document")
    np.testing.assert_allclose(many[[0, 2]], [vector, vector], atol=1e-5)
    np.testing.assert_allclose(many[1], each[2] / np.linalg.norm(each[2]), atol=1e-5)


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "I;16", "RGBA"])
def test_pictures_of_any_kind_have_a_vector(mode: str, clip: CLIP, tmp_path: Path) -> None:
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new(mode, (1, 1)).save(tmp_path / name)
    media = MediaRef(str(tmp_path / name), "image/jpeg" if mode == "CMYK" else "image/png")
    assert np.isfinite(clip.encode([Query(media=media)], "query")).all()


def test_a_line_and_a_file_that_is_gone_are_named(clip: CLIP, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"`line\.png` has 300 × 1 pixels"):
        clip.encode([Query(media=picture(tmp_path, "line.png", (300, 1)))], "query")
    with pytest.raises(UnreadableFile, match=r"gone\.png"):
        clip.encode([Query(media=MediaRef(str(tmp_path / "gone.png"), "image/png"))], "query")


# --- queries ---------------------------------------------------------------------------------------------------------


def test_words_and_a_picture_at_once_are_for_another_retriever(clip: CLIP, tmp_path: Path) -> None:
    media = picture(tmp_path)
    told = [Query("owl"), Query(media=media), Query("owl", media), Query()]
    assert [clip.reads(query) for query in told] == [True, True, False, False]
    with pytest.raises(Unsupported) as caught:
        clip.encode([told[2]], "query")
    assert "`uniir`" in str(caught.value)
    with pytest.raises(Unsupported, match="no text and no media"):
        clip.encode([told[3]], "query")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_the_published_names_and_settings_load(clip: CLIP, folder: Path, tmp_path: Path) -> None:
    """As OpenAI's checkpoints have them: sizes as bare numbers, position ids among the weights, the old end id, words
    and merges instead of `tokenizer.json`."""
    layer = "encoder.layers.0"
    parts = [f"{layer}.{part}" for part in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")]
    parts += [f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    texts = [*(f"text_model.{part}" for part in parts), "text_model.final_layer_norm"]
    sights = [*(f"vision_model.{part}" for part in parts), "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    names = {f"{part}.{kind}" for part in (*texts, *sights) for kind in ("weight", "bias")} | {
        "logit_scale",
        "text_model.embeddings.position_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
        "text_projection.weight",
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "visual_projection.weight",
    }
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == names
    counted = {f"{tower}_model.embeddings.position_ids": torch.arange(9)[None] for tower in ("text", "vision")}
    save_file(weights | counted, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings: dict[str, Any] = {
        "crop_size": 32,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
    }
    settings |= {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32}
    settings |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "vocab.json").write_text(json.dumps(clip.tokenizer.get_vocab()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    made = CLIP.from_folder(tmp_path, "float32")
    inputs = [*(Query(text) for text in TEXTS), Query(media=picture(tmp_path))]
    np.testing.assert_allclose(made.encode(inputs, "query"), clip.encode(inputs, "query"), atol=1e-5)


def altered(folder: Path, target: Path, change: Callable[[Path], None]) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return target


def weights(drop: str = "", **add: torch.Tensor) -> Callable[[Path], None]:
    def change(target: Path) -> None:
        found = load_file(target / "model.safetensors")
        found.pop(drop, None)
        save_file(found | add, target / "model.safetensors", {"format": "pt"})

    return change


def setting(name: str, *path: str, value: Any) -> Callable[[Path], None]:
    def change(target: Path) -> None:
        found = json.loads((target / name).read_text())
        inner = found
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value
        (target / name).write_text(json.dumps(found))

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (weights(drop="visual_projection.weight"), r"lacks `visual_projection\.weight`"),
        (weights(lora_a=torch.ones(3)), r"has an unknown `lora_a`"),
        (weights(logit_scale=torch.ones(3)), r"has another shape of `logit_scale`"),
        (setting("config.json", "model_type", value="siglip"), "model of type `siglip`"),
        (setting("preprocessor_config.json", "image_processor_type", value="SiglipImageProcessor"), "`SiglipImageProc"),
        (
            setting("preprocessor_config.json", "crop_size", value=16),
            "pictures of `16 × 16` pixels, the model reads `32`",
        ),
        (
            setting("config.json", "text_config", "eos_token_id", value=7),
            "ends texts with `7`, the tokenizer with `513`",
        ),
        (
            setting("config.json", "text_config", "vocab_size", value=9),
            "knows `514` pieces, the model `9`|another shape",
        ),
        (lambda target: (target / "tokenizer.json").write_text("{"), r"`tokenizer\.json` is damaged|json` is damaged"),
    ],
)
def test_another_models_files_are_refused_by_name(
    change: Callable[[Path], None], named: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=named):
        CLIP.from_folder(altered(folder, tmp_path / "wrong", change), "float32")


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(gone: str, folder: Path, tmp_path: Path) -> None:
    target = altered(folder, tmp_path / "part", lambda target: (target / gone).unlink())
    with pytest.raises(MissingWeights, match=f"`part` has no `{gone}`"):
        CLIP.from_folder(target)


def test_a_bert_tokenizer_is_refused(clip: CLIP) -> None:
    from triptych.retrievers.towers import characters

    with pytest.raises(BadInput, match=r"does not put `<\|startoftext\|>`"):
        CLIP(clip.model, characters("bert"), clip.pictures)


def test_a_model_that_gives_nan_is_an_error() -> None:
    from transformers import CLIPModel

    model, tokenizer = tiny_parts(0, CLIPModel)
    with torch.no_grad():
        model.text_projection.weight[0] = torch.nan
    made = CLIP(model, tokenizer, CLIP.tiny(0).pictures)
    with pytest.raises(BadInput, match="`nan`"):
        made.encode([Query("owl")], "query")


def test_load_says_what_to_put_where_and_loads_it_then(clip: CLIP, tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    with pytest.raises(MissingWeights, match=r"`clip` has no `config\.json`"):
        CLIP.load(card("clip"), Stages(settings))
    clip.save(settings.weights / "clip")
    made = CLIP.load(card("clip"), Stages(settings))
    assert made.space.dim == 24
    vectors = made.encode([Query("owl")], "query")
    np.testing.assert_allclose(vectors, clip.encode([Query("owl")], "query"), atol=0.03)  # bfloat16


def test_vectors_keep_their_order_and_nothing_gives_nothing(clip: CLIP, tmp_path: Path) -> None:
    media = [picture(tmp_path, f"{number}.png", noise=20 * number) for number in range(3)]
    mixed = [one for text, shot in zip(TEXTS, media, strict=False) for one in (Query(text), Query(media=shot))]
    together = clip.encode(mixed, "query")
    np.testing.assert_allclose(together, np.concatenate([clip.encode([one], "query") for one in mixed]), atol=1e-5)
    assert clip.encode([], "document").shape == (0, 24)
    assert np.unique(together.round(4), axis=0).shape == together.shape
