"""UniIR: three fusions against the same by hand, what stands for what is missing, the instruction, the names."""

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
from triptych.retrievers.universal._uniir_fusion import CrossFusion, FeatureFusion
from triptych.retrievers.universal._uniir_momentum import MomentumFitting
from triptych.retrievers.universal._uniir_training import Contrast, Fitting, contrast
from triptych.retrievers.universal.uniir import VARIANTS, UniIR, said, sentence
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
from uniir_in_two import batch, lessons, shapes


def picture(folder: Path, name: str = "a.png", size: tuple[int, int] = (40, 30), noise: float = 60) -> MediaRef:
    Image.effect_noise(size, noise).convert("RGB").save(folder / name)
    return MediaRef(str(folder / name), "image/png")


def made(variant: str) -> UniIR:
    return UniIR.tiny(0, variant)


@pytest.fixture(scope="module", params=VARIANTS)
def any_(request: pytest.FixtureRequest) -> UniIR:
    return made(request.param)


@pytest.fixture(scope="module")
def sf() -> UniIR:
    return made("CLIP_SF")


@pytest.fixture(scope="module")
def ff() -> UniIR:
    return made("CLIP_FF")


@pytest.fixture(scope="module")
def blip() -> UniIR:
    return made("BLIP_FF")


def pixels(encoder: UniIR, media: MediaRef) -> torch.Tensor:
    found: torch.Tensor = encoder.pictures(images=[Image.open(media.uri)], return_tensors="pt")["pixel_values"]
    return found


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).detach().numpy().reshape(-1)


# --- texts and instructions ------------------------------------------------------------------------------------------


def test_a_text_is_a_sentence_as_in_the_authors_data() -> None:
    told = [' "an owl"\r', "Where is it?", "Stop!", " ", "é"]
    assert [sentence(text) for text in told] == ["An owl.", "Where is it?", "Stop!", "", "É."]


def test_the_instruction_stands_before_the_words_of_a_query_only(any_: UniIR, tmp_path: Path) -> None:
    media = picture(tmp_path)
    assert said(Query("an owl", instruction="find a picture of")) == "Find a picture of an owl."
    assert said(Query(media=media, instruction="find a text")) == "Find a text."
    assert said(Query(media=media)) == ""
    assert said(Item("i", "an owl", Source("a.png"), "image", media)) == "An owl."
    one, two, other = any_.encode(
        [
            Query("an owl", media, "find a picture of"),
            Query("find a picture of an owl.", media),
            Query("an owl", media),
        ],
        "query",
    )
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.abs(one - other).max() > 1e-3


def test_documents_and_queries_are_read_alike(any_: UniIR, tmp_path: Path) -> None:
    media = picture(tmp_path)
    items = [Item("i", "an owl", Source("a.png"), "image", media), Item("p", "text", Source("a.pdf"), "page", media)]
    found = any_.encode(items, "document")
    asked = any_.encode([Query("an owl", media), Query(media=media)], "query")
    np.testing.assert_allclose(found, asked, atol=1e-5)
    with pytest.raises(Unsupported, match="no text and no media"):
        any_.encode([Query(instruction="find")], "query")
    assert any_.reads(Query("owl", media)) and not any_.reads(Query())


# --- the sum ---------------------------------------------------------------------------------------------------------


def test_score_fusion_is_the_sum_of_clips_vectors(sf: UniIR, tmp_path: Path) -> None:
    """The two vectors by hand, one input at a time; words alone and a picture alone keep CLIP's own."""
    clip, media = sf.network.clip, picture(tmp_path)
    ids = torch.tensor([sf.tokenizer.encode("An owl.").ids])
    with torch.inference_mode():
        words = clip.text_projection(clip.text_model(input_ids=ids).last_hidden_state[:, -1])
        sight = clip.visual_projection(clip.vision_model(pixels(sf, media)).pooler_output)
    queries = [Query("an owl", media), Query("an owl"), Query(media=media), Query("", media), Query("a cat and a dog")]
    both, text, shown, blank, _ = sf.encode(queries, "query")
    np.testing.assert_allclose(both, unit(words + sight), atol=1e-4)
    np.testing.assert_allclose(text, unit(words), atol=1e-4)
    np.testing.assert_allclose(shown, unit(sight), atol=1e-4)
    np.testing.assert_array_equal(blank, shown)
    # Not the mean of unit vectors: the longer of the two counts more.
    assert np.abs(both - unit(words / words.norm() + sight / sight.norm())).max() > 1e-4


def test_an_empty_query_is_the_empty_text_not_a_vector_of_zeros(sf: UniIR) -> None:
    [vector] = sf.encode([Query("")], "query")
    with torch.inference_mode():
        ids = torch.tensor([sf.tokenizer.encode("").ids])
        wanted = sf.network.clip.get_text_features(input_ids=ids).pooler_output
    np.testing.assert_allclose(vector, unit(wanted), atol=1e-4)


# --- the two feature fusions -----------------------------------------------------------------------------------------


def by_hand_ff(ff: UniIR, text: str, sight: torch.Tensor) -> np.ndarray:
    network = ff.network
    pieces = ff.tokenizer.encode(text).ids
    ids = torch.tensor([pieces + [0] * (77 - len(pieces))])
    with torch.inference_mode():
        words = network.clip.text_model(input_ids=ids).last_hidden_state
        states = network.clip.vision_model(sight).last_hidden_state
        patches = network.clip.visual_projection(network.clip.vision_model.post_layernorm(states))
        assert words.shape[1] == 77 and patches.shape[1] == 17
        fused = network.fusion(inputs_embeds=torch.cat([words, patches], dim=1)).last_hidden_state
    return unit(fused.mean(dim=1))


def test_clip_ff_reads_77_places_and_all_patches_without_a_mask(ff: UniIR, tmp_path: Path) -> None:
    media, black = picture(tmp_path), torch.zeros(1, 3, 32, 32)
    queries = [Query("an owl", media), Query("an owl"), Query(media=media), Query("")]
    both, text, shown, nothing = ff.encode(queries, "query")
    np.testing.assert_allclose(both, by_hand_ff(ff, "An owl.", pixels(ff, media)), atol=1e-4)
    np.testing.assert_allclose(text, by_hand_ff(ff, "An owl.", black), atol=1e-4)
    np.testing.assert_allclose(shown, by_hand_ff(ff, "", pixels(ff, media)), atol=1e-4)
    np.testing.assert_allclose(nothing, by_hand_ff(ff, "", black), atol=1e-4)


def by_hand_blip(blip: UniIR, text: str, sight: torch.Tensor) -> np.ndarray:
    network, number = blip.network, blip.tokenizer.token_to_id
    words = blip.tokenizer.encode(text, add_special_tokens=False).ids
    ids = torch.tensor([[number("[CLS]"), *words, number("[SEP]")]])
    with torch.inference_mode():
        states = network.vision(sight).last_hidden_state
        found = network.text(input_ids=ids, encoder_hidden_states=states).last_hidden_state
        pooler = network.text.pooler.dense
        return unit(torch.tanh(found[:, 0] @ pooler.weight.T + pooler.bias))


def test_blip_ff_is_the_pooled_first_state_and_black_stands_for_no_picture(blip: UniIR, tmp_path: Path) -> None:
    media, black = picture(tmp_path), torch.zeros(1, 3, 32, 32)
    queries = [Query("an owl", media), Query("a much longer text than that"), Query(media=media), Query("an owl")]
    both, text, shown, owl = blip.encode(queries, "query")
    np.testing.assert_allclose(both, by_hand_blip(blip, "An owl.", pixels(blip, media)), atol=1e-4)
    np.testing.assert_allclose(text, by_hand_blip(blip, "A much longer text than that.", black), atol=1e-4)
    np.testing.assert_allclose(shown, by_hand_blip(blip, "", pixels(blip, media)), atol=1e-4)
    np.testing.assert_allclose(owl, by_hand_blip(blip, "An owl.", black), atol=1e-4)


def test_blip_reads_100_pieces_attends_to_both_sides_and_to_the_picture(blip: UniIR, tmp_path: Path) -> None:
    [ids] = blip._frame(["a " * 300])
    assert len(ids) == 100
    assert all(hasattr(layer, "crossattention") for layer in blip.network.text.encoder.layer)
    one, other = blip.encode([Query("owl a"), Query("owl b")], "query")
    assert np.abs(one - other).max() > 1e-4  # the first state sees what comes after it
    first, second = (picture(tmp_path, f"{n}.png", noise=n) for n in (10, 90))
    one, other = blip.encode([Query("owl", first), Query("owl", second)], "query")
    assert np.abs(one - other).max() > 1e-4


def test_a_batch_is_a_loop_whatever_its_inputs_have(any_: UniIR, tmp_path: Path) -> None:
    media = [picture(tmp_path, f"{n}.png", noise=30 * n) for n in range(3)]
    mixed = [Query("owl"), Query("a cat", media[0]), Query(media=media[1]), Query(""), Query("x " * 90, media[2])]
    together = any_.encode(mixed, "query")
    np.testing.assert_allclose(together, np.concatenate([any_.encode([one], "query") for one in mixed]), atol=1e-5)
    assert np.unique(together.round(5), axis=0).shape == together.shape
    assert any_.encode([], "document").shape == (0, any_.space.dim)


def test_a_scene_is_its_one_key_frame(sf: UniIR, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych.retrievers.universal import _inputs

    asked: list[MediaRef] = []

    def drawn(media: MediaRef, edge: int) -> Image.Image:
        asked.append(media)
        return Image.effect_noise((32, 32), 40).convert("RGB")

    monkeypatch.setattr(_inputs, "drawn", drawn)
    media = MediaRef("a.mp4", "video/mp4", start_s=0.0, end_s=8.0)
    sf.encode([Item("v", "said in it", Source("a.mp4"), "video", media)], "document")
    assert asked == [media]


def test_parts_that_do_not_fit_are_refused(ff: UniIR, blip: UniIR, sf: UniIR) -> None:
    from transformers import BlipVisionConfig, BlipVisionModel

    with pytest.raises(BadInput, match="`32`, `24` and `24` dimensions"):
        FeatureFusion(sf.network.clip, ff.network.fusion)
    tower: dict[str, Any] = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    with pytest.raises(BadInput, match="states of `24` and `16` dimensions"):
        CrossFusion(BlipVisionModel(BlipVisionConfig(**tower, hidden_size=16)), blip.network.text)
    with pytest.raises(BadInput, match="does not put"):
        UniIR(sf.network, blip.tokenizer, sf.pictures)
    with pytest.raises(BadInput, match=r"no `\[CLS\]`|pieces, the model"):
        UniIR(blip.network, sf.tokenizer, blip.pictures)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def as_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of OpenAI's CLIP below `clip_model.`, written here from OpenAI's module tree, not from ours."""
    found: dict[str, torch.Tensor] = {"logit_scale": weights["logit_scale"]}
    found["text_projection"] = weights["text_projection.weight"].T.contiguous()
    found["visual.proj"] = weights["visual_projection.weight"].T.contiguous()
    found["token_embedding.weight"] = weights["text_model.embeddings.token_embedding.weight"]
    found["positional_embedding"] = weights["text_model.embeddings.position_embedding.weight"]
    sight = "vision_model.embeddings."
    found["visual.class_embedding"] = weights[f"{sight}class_embedding"]
    found["visual.positional_embedding"] = weights[f"{sight}position_embedding.weight"]
    found["visual.conv1.weight"] = weights[f"{sight}patch_embedding.weight"]
    for kind in ("weight", "bias"):
        found[f"ln_final.{kind}"] = weights[f"text_model.final_layer_norm.{kind}"]
        found[f"visual.ln_pre.{kind}"] = weights[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = weights[f"vision_model.post_layernorm.{kind}"]
        for start, tower in (("", "text_model"), ("visual.", "vision_model")):
            layer, block = f"{tower}.encoder.layers.0.", f"{start}transformer.resblocks.0."
            parts = [weights[f"{layer}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            found[f"{block}attn.out_proj.{kind}"] = weights[f"{layer}self_attn.out_proj.{kind}"]
            found[f"{block}ln_1.{kind}"] = weights[f"{layer}layer_norm1.{kind}"]
            found[f"{block}ln_2.{kind}"] = weights[f"{layer}layer_norm2.{kind}"]
            found[f"{block}mlp.c_fc.{kind}"] = weights[f"{layer}mlp.fc1.{kind}"]
            found[f"{block}mlp.c_proj.{kind}"] = weights[f"{layer}mlp.fc2.{kind}"]
    return {f"clip_model.{name}": values.clone() for name, values in found.items()}


def test_the_authors_names_load(sf: UniIR, tmp_path: Path) -> None:
    sf.save(tmp_path)
    theirs = as_published(load_file(tmp_path / "model.safetensors"))
    save_file(theirs, tmp_path / "model.safetensors")
    again = UniIR.from_folder(tmp_path, "float32")
    queries = [Query("an owl", picture(tmp_path)), Query("a cat")]
    np.testing.assert_allclose(again.encode(queries, "query"), sf.encode(queries, "query"), atol=1e-5)
    for change, named in (
        ({"clip_model.visual.proj": None}, r"lacks `visual_projection\.weight`"),
        ({"clip_model.queue": torch.ones(2)}, r"has an unknown `clip_model\.queue`"),
        ({"clip_model.ln_final.bias": torch.ones(2)}, r"another shape of `text_model\.final_layer_norm\.bias`"),
    ):
        wrong = {key: values for key, values in (theirs | change).items() if values is not None}
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(BadInput, match=named):
            UniIR.from_folder(tmp_path, "float32")


def test_the_authors_names_for_blip_load_and_their_shapes_are_the_settings(tmp_path: Path) -> None:
    """Written here from BLIP's module tree; what serves training (momentum, queues, temperature) is left out."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    toy = made("BLIP_FF")
    tower: dict[str, Any] = {"intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.2}
    sight = BlipVisionConfig(
        **tower, hidden_size=128, num_attention_heads=2, image_size=32, patch_size=8, layer_norm_eps=1e-6
    )
    words: dict[str, Any] = tower | {"hidden_size": 192, "num_attention_heads": 3, "encoder_hidden_size": 128}
    words |= {"vocab_size": toy.tokenizer.get_vocab_size(), "max_position_embeddings": 100, "is_decoder": True}
    network = CrossFusion(BlipVisionModel(sight).eval(), BlipTextModel(BlipTextConfig(**words)).eval())
    given, theirs = network.vision.state_dict(), {}
    theirs["visual_encoder.cls_token"] = given["embeddings.class_embedding"]
    theirs["visual_encoder.pos_embed"] = given["embeddings.position_embedding"]
    for kind in ("weight", "bias"):
        theirs[f"visual_encoder.patch_embed.proj.{kind}"] = given[f"embeddings.patch_embedding.{kind}"]
        theirs[f"visual_encoder.norm.{kind}"] = given[f"post_layernorm.{kind}"]
        for layer in range(2):
            start, block = f"encoder.layers.{layer}.", f"visual_encoder.blocks.{layer}."
            theirs[f"{block}norm1.{kind}"] = given[f"{start}layer_norm1.{kind}"]
            theirs[f"{block}norm2.{kind}"] = given[f"{start}layer_norm2.{kind}"]
            theirs[f"{block}attn.qkv.{kind}"] = given[f"{start}self_attn.qkv.{kind}"]
            theirs[f"{block}attn.proj.{kind}"] = given[f"{start}self_attn.projection.{kind}"]
            theirs[f"{block}mlp.fc1.{kind}"] = given[f"{start}mlp.fc1.{kind}"]
            theirs[f"{block}mlp.fc2.{kind}"] = given[f"{start}mlp.fc2.{kind}"]
    theirs |= {f"text_encoder.{key}": values for key, values in network.text.state_dict().items()}
    assert "text_encoder.encoder.layer.1.crossattention.self.query.weight" in theirs
    assert "text_encoder.pooler.dense.weight" in theirs
    spare = {key.replace("encoder.", "encoder_m.", 1): values for key, values in theirs.items()}
    spare |= {
        "temp": torch.ones(()),
        "query_queue": torch.ones(4, 2),
        "text_encoder.embeddings.position_ids": torch.ones(1),
    }
    path = tmp_path / "model.safetensors"
    save_file({key: values.clone() for key, values in (theirs | spare).items()}, path)
    toy.pictures.save_pretrained(tmp_path)
    toy.tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = UniIR.from_folder(tmp_path, "float32")
    wanted = UniIR(network.eval(), toy.tokenizer, toy.pictures)
    queries = [Query("an owl", picture(tmp_path)), Query("a cat"), Query(media=picture(tmp_path))]
    np.testing.assert_allclose(again.encode(queries, "query"), wanted.encode(queries, "query"), atol=1e-5)
    for key, named in (
        ("visual_encoder.norm.bias", r"lacks `post_layernorm\.bias`"),
        ("visual_encoder.pos_embed", r"lacks `embeddings\.position_embedding`"),
        ("text_encoder.pooler.dense.bias", r"lacks `pooler\.dense\.bias`"),
    ):
        save_file({name: values.clone() for name, values in theirs.items() if name != key}, path)
        with pytest.raises(BadInput, match=named):
            UniIR.from_folder(tmp_path, "float32")


def test_what_is_saved_is_read_as_the_same_network(any_: UniIR, tmp_path: Path) -> None:
    any_.save(tmp_path)
    again = UniIR.from_folder(tmp_path, "float32")
    assert type(again.network) is type(any_.network)
    queries = [Query("an owl", picture(tmp_path)), Query("a cat"), Query(media=picture(tmp_path))]
    np.testing.assert_allclose(again.encode(queries, "query"), any_.encode(queries, "query"), atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "file", "named"),
    [
        ("CLIP_SF", "config.json", "model of type `bert`"),
        ("CLIP_FF", "fusion/config.json", "`fusion` holds a model of type `bert`"),
        ("BLIP_FF", "vision/config.json", "`vision` holds a model of type `bert`"),
        ("BLIP_FF", "text/config.json", "`text` holds a model of type `bert`"),
        ("CLIP_SF", "preprocessor_config.json", "`BertImageProcessor`"),
    ],
)
def test_other_architectures_are_refused(variant: str, file: str, named: str, tmp_path: Path) -> None:
    made(variant).save(tmp_path)
    kind: dict[str, Any] = {"model_type": "bert", "image_processor_type": "BertImageProcessor"}
    (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | kind))
    with pytest.raises(BadInput, match=named):
        UniIR.from_folder(tmp_path, "float32")


@pytest.mark.parametrize(
    ("variant", "gone"),
    [("CLIP_SF", "model.safetensors"), ("CLIP_FF", "fusion/model.safetensors"), ("BLIP_FF", "vision/config.json")],
)
def test_a_missing_file_is_named(variant: str, gone: str, tmp_path: Path) -> None:
    made(variant).save(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(MissingWeights, match=f"has no `{Path(gone).name}`"):
        UniIR.from_folder(tmp_path)


def test_load_says_what_to_put_where_and_loads_it_then(any_: UniIR, tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    with pytest.raises(MissingWeights, match=r"clip_sf_large\.pth"):
        UniIR.load(card("uniir"), Stages(settings))
    any_.save(settings.weights / "uniir")
    again: Any = UniIR.load(card("uniir"), Stages(settings))
    queries = [Query("an owl", picture(tmp_path))]
    np.testing.assert_allclose(again.encode(queries, "query"), any_.encode(queries, "query"), atol=0.05)  # bfloat16


def test_a_model_that_gives_nan_is_an_error() -> None:
    broken = made("CLIP_FF")
    with torch.no_grad():
        broken.network.fusion.encoder.final_layer_norm.weight[0] = torch.nan
    with pytest.raises(BadInput, match="`nan`"):
        broken.encode([Query("owl")], "query")


# --- learning --------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_loop_without_twins() -> None:
    made = torch.nn.functional.normalize(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    keys = torch.tensor([7, 8, 7, 9, 10])
    for scale in (3.0, 100.0):
        wanted = 0.0
        for row in range(5):
            kept = [other for other in range(5) if other == row or keys[other] != keys[row]]
            scores = torch.stack([made[0, row] @ made[1, other] * scale for other in kept])
            wanted += float(torch.logsumexp(scores, 0) - made[0, row] @ made[1, row] * scale) / 5
        assert float(contrast(made[0] * scale, made[1], keys)) == pytest.approx(wanted, abs=1e-4)


def test_the_scale_is_held_at_most_at_100(tmp_path: Path) -> None:
    encoder, found = made("CLIP_SF"), []
    given = batch(encoder, lessons(shapes(tmp_path))[:4])
    for scale in (20.0, 100.0, 1000.0):
        with torch.no_grad():
            encoder.network.clip.logit_scale.fill_(np.log(scale))
            found.append(Contrast(encoder.network)(**given)["loss"].item())
    assert found[1] == pytest.approx(found[2], rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=1e-2)


@pytest.mark.parametrize("variant", ["CLIP_SF", "CLIP_FF"])
def test_read_in_parts_the_gradients_are_those_of_the_whole_batch(variant: str, tmp_path: Path) -> None:
    encoder, found = made(variant), []
    given = batch(encoder, lessons(shapes(tmp_path))[:4])
    for chunk in (0, 3):
        network = Contrast(encoder.network, chunk)
        network.zero_grad()
        network(**given)["loss"].backward()
        found.append({name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert "network.clip.logit_scale" in found[0]
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    assert largest > 0.1
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-5 * max(1.0, largest), rtol=1e-4)


def test_it_learns_what_an_instruction_asks_for(tmp_path: Path) -> None:
    """The same word asks for a picture or for a text: without its instruction it could not be right twice."""
    items = shapes(tmp_path)
    told = lessons(items)
    start = made("CLIP_SF")

    def right(encoder: UniIR, queries: list[Query]) -> int:
        scores = encoder.encode(queries, "query") @ encoder.encode(items, "document").T
        return int((scores.argmax(axis=1) == np.arange(len(items))).sum())

    asked = [one.query for one in told]
    fitting = Fitting(epochs=4, batch=8, rate=1e-2, decay=0.0)
    learned = start.fit(told * 5, tmp_path / "fit", fitting=fitting)
    assert right(start, asked) <= 4
    assert right(learned, asked) >= 7
    assert right(learned, [Query(query.text) for query in asked]) <= 4
    again = UniIR.from_folder(tmp_path / "fit", "float32")
    np.testing.assert_allclose(again.encode(asked, "query"), learned.encode(asked, "query"), atol=1e-5)
    with pytest.raises(BadInput, match="holds a fit with other settings or data"):
        start.fit(told[:4], tmp_path / "fit", fitting=fitting)


def test_clip_ff_learns_is_taken_back_and_goes_on(ff: UniIR, tmp_path: Path) -> None:
    told, fitting = lessons(shapes(tmp_path)), Fitting(epochs=2, batch=4, rate=1e-3, decay=0.0)
    learned = ff.fit(told, tmp_path / "fit", fitting=fitting)
    again = ff.fit(told, tmp_path / "fit", fitting=fitting)  # from its last checkpoint: nothing is left to learn
    asked = [one.query for one in told]
    vectors = learned.encode(asked, "query")
    assert np.abs(vectors - ff.encode(asked, "query")).max() > 1e-3
    np.testing.assert_allclose(again.encode(asked, "query"), vectors, atol=1e-5)
    saved = UniIR.from_folder(tmp_path / "fit", "float32")
    np.testing.assert_allclose(saved.encode(asked, "query"), vectors, atol=1e-5)


def test_what_cannot_be_learned_is_refused(blip: UniIR, sf: UniIR, tmp_path: Path) -> None:
    told = lessons(shapes(tmp_path))
    with pytest.raises(BadInput, match="are a `Fitting`"):
        blip.fit(told, tmp_path / "fit", fitting=Fitting())
    with pytest.raises(BadInput, match="are a `MomentumFitting`"):
        sf.fit(told, tmp_path / "fit", fitting=MomentumFitting())
    with pytest.raises(BadInput, match="`1` lessons in a batch"):
        sf.fit(told[:1], tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
    blip.save(tmp_path / "fit")
    with pytest.raises(BadInput, match="`fit` holds another model"):
        blip.fit(told, tmp_path / "fit")
