"""SigLIP: texts filled up and read without a mask, squeezed pictures, the second version's two types; wrong folders."""

from __future__ import annotations

import json
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
from triptych.retrievers.universal.siglip import FIXED, FLEXIBLE, SigLIP, canonical, framed
from triptych.tools.stages import Stages

TEXTS = ["An owl!", "", "🙂 ünïcode 你好", "the cat sat on the mat " * 30]
BOTH = (FIXED, FLEXIBLE)


def picture(folder: Path, name: str = "a.png", size: tuple[int, int] = (40, 30), noise: float = 60) -> MediaRef:
    Image.effect_noise(size, noise).convert("RGB").save(folder / name)
    return MediaRef(str(folder / name), "image/png")


@pytest.fixture(scope="module", params=BOTH)
def siglip(request: pytest.FixtureRequest) -> SigLIP:
    return SigLIP.tiny(0, request.param)


@pytest.fixture(scope="module")
def fixed() -> SigLIP:
    return SigLIP.tiny(0)


@pytest.fixture(scope="module")
def flexible() -> SigLIP:
    return SigLIP.tiny(0, FLEXIBLE)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_every_text_is_64_pieces_with_its_end_before_what_fills_up(fixed: SigLIP, flexible: SigLIP) -> None:
    for made, end, pad in ((fixed, "</s>", "</s>"), (flexible, "<eos>", "<pad>")):
        number = made.tokenizer.get_vocab().__getitem__
        short, nothing, long = made._frame(["owl", "", "owl " * 99])
        assert [len(ids) for ids in (short, nothing, long)] == [64, 64, 64]
        assert nothing == [number(end), *[number(pad)] * 63]
        place = short.index(number(end))
        assert 3 <= place <= 4 and short[place + 1 :] == [number(pad)] * (63 - place)
        assert long[-1] == number(end) and number(end) not in long[:-1]


def test_a_text_is_the_last_state_and_what_fills_up_is_attended_to(siglip: SigLIP) -> None:
    together = siglip.encode([Query(text) for text in TEXTS], "query")
    for text, vector in zip(TEXTS, together, strict=True):
        ids = torch.tensor(siglip._frame([text]))
        with torch.inference_mode():
            states = siglip.model.text_model(input_ids=ids).last_hidden_state[0]
            wanted = siglip.model.text_model.head(states[63])
        np.testing.assert_allclose(vector, (wanted / wanted.norm()).numpy(), atol=1e-4)
    ids = torch.tensor(siglip._frame(["owl"]))
    bare = ids[:, :4]
    with torch.inference_mode():
        cut = siglip.model.get_text_features(input_ids=bare).pooler_output[0]
    [vector] = siglip.encode([Query("owl")], "query")
    assert abs(float(vector @ (cut / cut.norm()).numpy())) < 0.9999


def test_case_never_counts_and_punctuation_counts_in_the_second_version_only(fixed: SigLIP, flexible: SigLIP) -> None:
    assert canonical(" A  photo,\nof a (small) CAT! ") == "a photo of a small cat"
    for made in (fixed, flexible):
        one, other = made.encode([Query("An OWL"), Query("an owl")], "query")
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert fixed._frame(["an owl!"]) == fixed._frame(["an owl"])
    assert flexible._frame(["an owl!"]) != flexible._frame(["an owl"])
    assert (fixed.many_languages, flexible.many_languages) == (False, True)


def test_whatever_marks_and_padding_the_tokenizers_file_has_these_count(flexible: SigLIP) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    other = Tokenizer.from_str(flexible.tokenizer.to_str())
    other.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    other.enable_padding(direction="left", length=80)
    other.enable_truncation(5)
    assert framed(other, 64)(TEXTS) == flexible._frame(TEXTS)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_is_squeezed_not_cropped(fixed: SigLIP, tmp_path: Path) -> None:
    wide = Image.effect_noise((64, 32), 90).convert("RGB")
    wide.save(tmp_path / "wide.png")
    pixels = np.asarray(wide.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
    with torch.inference_mode():
        made = fixed.model.vision_model(torch.tensor(pixels).permute(2, 0, 1)[None])
        wanted = made.pooler_output[0].numpy()
    [vector] = fixed.encode([Query(media=MediaRef(str(tmp_path / "wide.png"), "image/png"))], "query")
    np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-4)


def test_the_flexible_type_keeps_the_shape_and_masks_what_fills_up(flexible: SigLIP, tmp_path: Path) -> None:
    """A picture of fewer patches than fit is what these alone give."""
    wide = Image.effect_noise((32, 16), 90).convert("RGB")
    wide.save(tmp_path / "wide.png")
    made = flexible.pictures(images=[wide], return_tensors="pt")
    [(high, broad)] = made["spatial_shapes"].tolist()
    count = high * broad
    assert broad > high and count < 16 and made["pixel_attention_mask"].sum() == count
    with torch.inference_mode():
        alone = flexible.model.get_image_features(
            pixel_values=made["pixel_values"][:, :count],
            pixel_attention_mask=made["pixel_attention_mask"][:, :count],
            spatial_shapes=made["spatial_shapes"],
        ).pooler_output[0]
    media = MediaRef(str(tmp_path / "wide.png"), "image/png")
    many = flexible.encode([Query(media=picture(tmp_path)), Query(media=media)], "query")
    np.testing.assert_allclose(many[1], (alone / alone.norm()).numpy(), atol=1e-4)


def test_an_item_is_what_it_shows_or_its_words(siglip: SigLIP, tmp_path: Path) -> None:
    media = picture(tmp_path)
    item = Item("i", "an owl", Source("a.png"), "image", media)
    np.testing.assert_allclose(
        siglip.encode([item], "document"), siglip.encode([Query(media=media)], "query"), atol=1e-6
    )
    passage = Item("i", "costs 120", Source("a.md"), meta={"title": "Berlin"})
    np.testing.assert_allclose(
        siglip.encode([passage], "document"), siglip.encode([Query("Berlin\ncosts 120")], "query"), atol=1e-6
    )
    assert [siglip.reads(query) for query in (Query("a"), Query(media=media), Query("a", media), Query())] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(Unsupported, match="`siglip` reads words or a picture"):
        siglip.encode([Query("owl", media)], "query")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_and_gives_the_same(siglip: SigLIP, tmp_path: Path) -> None:
    siglip.save(tmp_path / "saved")
    keys = load_file(tmp_path / "saved" / "model.safetensors").keys()
    for name in (
        "logit_bias",
        "logit_scale",
        "text_model.head.weight",
        "text_model.embeddings.token_embedding.weight",
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.head.probe",
        "vision_model.head.attention.in_proj_weight",
    ):
        assert name in keys
    made = SigLIP.from_folder(tmp_path / "saved", "float32")
    inputs = [*(Query(text) for text in TEXTS), Query(media=picture(tmp_path))]
    np.testing.assert_allclose(made.encode(inputs, "query"), siglip.encode(inputs, "query"), atol=1e-5)


@pytest.mark.parametrize(
    ("file", "key", "value", "named"),
    [
        ("config.json", "model_type", "clip", "model of type `clip`"),
        ("config.json", "model_type", "siglip2", "`SiglipImageProcessor`"),
        ("preprocessor_config.json", "image_processor_type", "CLIPImageProcessor", "`CLIPImageProcessor`"),
        ("preprocessor_config.json", "size", {"height": 16, "width": 16}, "`16 × 16` pixels, the model reads `32`"),
        ("model.safetensors", "logit_bias", None, "lacks `logit_bias`"),
        ("model.safetensors", "lora", torch.ones(2), "has an unknown `lora`"),
    ],
)
def test_another_models_files_are_refused_by_name(
    file: str, key: str, value: Any, named: str, fixed: SigLIP, tmp_path: Path
) -> None:
    fixed.save(tmp_path)
    if file == "model.safetensors":
        found = load_file(tmp_path / file) | {key: value}
        save_file({name: one for name, one in found.items() if one is not None}, tmp_path / file, {"format": "pt"})
    else:
        (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | {key: value}))
    with pytest.raises(BadInput, match=named):
        SigLIP.from_folder(tmp_path, "float32")


def test_patches_of_another_size_and_a_foreign_tokenizer_are_refused(fixed: SigLIP, flexible: SigLIP) -> None:
    from transformers import Siglip2ImageProcessorPil

    from triptych.retrievers.towers import characters

    with pytest.raises(BadInput, match="patches of `16` pixels, the model reads `8`"):
        SigLIP(flexible.model, flexible.tokenizer, Siglip2ImageProcessorPil())
    with pytest.raises(BadInput, match="`</s>`"):
        framed(characters("bert"), 64)
    with pytest.raises(BadInput, match="pieces, the model"):
        SigLIP(fixed.model, characters("bert"), fixed.pictures)


def test_load_says_what_to_put_where_and_loads_it_then(siglip: SigLIP, tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    with pytest.raises(MissingWeights, match=r"`siglip` has no `config\.json`"):
        SigLIP.load(card("siglip"), Stages(settings))
    siglip.save(settings.weights / "siglip")
    made = SigLIP.load(card("siglip"), Stages(settings))
    vectors = made.encode([Query("owl")], "query")
    np.testing.assert_allclose(vectors, siglip.encode([Query("owl")], "query"), atol=0.03)  # bfloat16
    (settings.weights / "siglip" / "tokenizer.json").unlink()
    with pytest.raises(MissingWeights, match=r"tokenizer\.json"):
        SigLIP.load(card("siglip"), Stages(settings))


def test_a_model_that_gives_nan_is_an_error() -> None:
    made = SigLIP.tiny(1)
    with torch.no_grad():
        made.model.text_model.head.weight[0] = torch.nan
    with pytest.raises(BadInput, match="`nan`"):
        made.encode([Query("owl")], "query")


def test_a_batch_is_a_loop_for_both_types(siglip: SigLIP, tmp_path: Path) -> None:
    media = [picture(tmp_path, f"{n}.png", size=(20 + 20 * n, 30), noise=30 + 20 * n) for n in range(4)]
    mixed = [one for text, shot in zip(TEXTS, media, strict=True) for one in (Query(text), Query(media=shot))]
    together = siglip.encode(mixed, "query")
    np.testing.assert_allclose(together, np.concatenate([siglip.encode([one], "query") for one in mixed]), atol=1e-5)
    assert siglip.encode([], "query").shape == (0, 32)
