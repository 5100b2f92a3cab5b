"""Backbones of multimodal language models: positions, padding, pooling, tokens of pictures, what is cut, published key
names, adapters; against transformers' own classes with head and, for the counts, what these make of a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych.errors import BadInput, MissingWeights
from triptych.retrievers.universal._mllm import BATCH_TOKENS, KINDS, Backbone, Said, instructed, packed
from triptych.retrievers.universal._vectors import last

sys.path.append(str(Path(__file__).parent))
from mllm_files import HEADED, headed, keys, noise, put, put_adapter

TINY = {kind: Backbone.tiny(kind, 0) for kind in KINDS}
PICTURES = (noise(1), noise(2, 90, 20), noise(3, 20, 100))


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return TINY[request.param]


def inputs(backbone: Backbone) -> list[Said]:
    mark = backbone.mark
    return [
        Said("", "an owl sleeps"),
        Said(f"{mark} ", "hi", " there", PICTURES[:1]),
        Said(f"{mark} see", pictures=PICTURES[1:2]),
        Said(f"{mark} {mark}\n", "two", "!", PICTURES[1:]),
        Said("", "a much longer text than any of the others " * 3, "?"),
        Said(mark, "x", pictures=PICTURES[2:]),
    ]


def same(one: Said) -> Said:
    return one


def vectors(backbone: Backbone, said: Sequence[Said], longest: int = 400) -> np.ndarray:
    return backbone.vectors(said, same, longest)


# --- what it computes ------------------------------------------------------------------------------------------------


def expanded(backbone: Backbone, said: Said) -> str:
    """The prompt with as many marks as the class with the head finds features."""
    counts, _ = backbone._looked(said.pictures)
    parts = f"{said.before}{said.text}{said.after}".split(backbone.mark)
    marks = [backbone.mark * count for count in counts]
    return "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=True))


def test_it_is_the_last_hidden_state_of_the_published_class(backbone: Backbone) -> None:
    whole = headed(backbone)
    for said in inputs(backbone):
        ids = torch.tensor([backbone.tokenizer.encode(expanded(backbone, said)).ids])
        asked: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        asked |= backbone._looked(said.pictures)[1]
        if "image_grid_thw" in asked:
            asked["mm_token_type_ids"] = (ids == whole.config.image_token_id).int()
        with torch.inference_mode():
            state = whole(**asked, output_hidden_states=True).hidden_states[-1][0, -1]
        wanted = torch.nn.functional.normalize(state, dim=0).numpy()
        np.testing.assert_allclose(vectors(backbone, [said])[0], wanted, atol=1e-5)


def test_padding_batches_and_order_change_nothing(backbone: Backbone) -> None:
    said = inputs(backbone)
    together = vectors(backbone, said)
    alone = np.concatenate([vectors(backbone, [one]) for one in said])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(vectors(backbone, said[::-1]), together[::-1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.abs(together @ together.T - np.eye(len(said))).max() < 0.999


def test_padding_stands_on_the_left_and_the_last_token_is_taken(backbone: Backbone) -> None:
    read = [backbone.read(one, 400) for one in inputs(backbone)]
    seen: dict[str, torch.Tensor] = {}
    handle = backbone.model.register_forward_pre_hook(lambda _, __, asked: seen.update(asked), with_kwargs=True)
    with torch.inference_mode():
        states, mask = backbone.states(read)
    handle.remove()
    lengths = [len(one.ids) for one in read]
    assert mask.sum(dim=1).tolist() == lengths
    assert bool(mask[:, -1].all()) and mask[:, 0].sum() == lengths.count(max(lengths))
    torch.testing.assert_close(last(states, mask), states[:, -1])
    pad = backbone.token(KINDS[backbone.kind].pad)
    assert seen["input_ids"][mask == 0].unique().tolist() == [pad]
    first = mask.argmax(dim=1)
    places = seen["position_ids"].reshape(-1, *mask.shape)[0]
    assert [int(row[at]) for row, at in zip(places, first, strict=True)] == [0] * len(read)


def test_qwen_counts_rows_and_columns_of_a_picture_and_keeps_nothing() -> None:
    backbone = TINY["qwen2_vl"]
    read = backbone.read(Said(f"ab{backbone.mark}c", pictures=PICTURES[1:2]), 99)
    _, high, wide = (int(n) for n in read.seen["image_grid_thw"][0])
    assert (high, wide) == (2, 10)
    ids = torch.tensor([read.ids])
    found = backbone._places(ids, torch.ones_like(ids), read.seen)[:, 0].tolist()
    at = range(2, 2 + high * wide // 4)
    assert [(found[1][n], found[2][n]) for n in at] == [(2, 2 + x) for x in range(5)]
    assert [axis[-1] for axis in found] == [2 + 5] * 3
    vectors(backbone, inputs(backbone))
    assert backbone.model.rope_deltas is None


def test_a_window_is_prepared_and_a_batch_read_at_a_time(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych.retrievers.universal import _mllm

    sizes: list[int] = []
    whole = backbone.states
    monkeypatch.setattr(_mllm, "BATCH_TOKENS", 40)
    monkeypatch.setattr(_mllm, "WINDOW", 3)

    def counted(read: Sequence[Any]) -> Any:
        sizes.append(sum(len(one.ids) for one in read))
        return whole(read)

    monkeypatch.setattr(backbone, "states", counted)
    said = inputs(backbone)
    found = vectors(backbone, said)
    monkeypatch.undo()
    np.testing.assert_allclose(found, vectors(backbone, said), atol=1e-5)
    assert len(sizes) > 2
    assert BATCH_TOKENS == 8192


def test_bfloat16_gives_float32_of_length_one(tmp_path: Path, backbone: Backbone) -> None:
    made = Backbone.from_folder(put(tmp_path / "m", backbone), [backbone.kind], "bfloat16")
    assert made.model.dtype == torch.bfloat16
    found, wanted = vectors(made, inputs(backbone)), vectors(backbone, inputs(backbone))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * wanted).sum(axis=1).min() > 0.98


def test_nan_from_a_model_is_an_error() -> None:
    backbone = Backbone.tiny("qwen2_vl", 3)
    with torch.no_grad():
        backbone.model.language_model.norm.weight[0] = torch.nan
    with pytest.raises(BadInput, match="`nan`"):
        vectors(backbone, [Said("", "a")])


# --- pictures --------------------------------------------------------------------------------------------------------

NEXT = transformers.LlavaNextConfig()
OV = transformers.LlavaOnevisionConfig()
EDGES = st.integers(1, 3000)


@settings(max_examples=30)
@given(
    st.sampled_from([NEXT, OV]), st.one_of(st.tuples(EDGES, EDGES), st.sampled_from([(1, 1), (20, 2000), (2000, 20)]))
)
def test_llava_counts_what_its_model_makes_of_a_picture(config: Any, size: tuple[int, int]) -> None:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    tiles = image_size_to_num_patches(list(size), config.image_grid_pinpoints, config.vision_config.image_size)
    side = config.vision_config.image_size // config.vision_config.patch_size
    model: Any = transformers.LlavaNextModel if config is NEXT else transformers.LlavaOnevisionModel
    told = {"vision_feature_select_strategy": "default"} if config is NEXT else {"vision_aspect_ratio": "anyres_max_9"}
    made, _ = model.pack_image_features(
        SimpleNamespace(config=config),
        [torch.zeros(tiles, side * side, 1)],
        [list(size)],
        image_newline=torch.zeros(1),
        **told,
    )
    assert packed(size, config) == len(made[0])


def test_qwen_counts_patches_merged_in_squares() -> None:
    for picture in PICTURES:
        [count], seen = TINY["qwen2_vl"]._looked([picture])
        assert count == len(seen["pixel_values"]) // 4
        assert 4 <= count <= 16


def test_bounds_of_a_picture_are_in_tokens() -> None:
    backbone = Backbone.tiny("qwen2_vl", 0)
    before = backbone.pictures
    backbone.bound(256, 1280)
    for picture in (Image.new("RGB", (1, 1)), noise(1, 300, 3), noise(1, 2000, 1500)):
        [count], _ = backbone._looked([picture])
        assert 256 <= count <= 1280
    assert before.size["longest_edge"] == 112**2


def test_the_smallest_and_narrowest_pictures_are_seen(backbone: Backbone) -> None:
    shapes = ((1, 1), (100, 1), (1, 100), (2, 3))
    said = [Said(backbone.mark, " see", pictures=(noise(4, *shape),)) for shape in shapes]
    assert np.isfinite(vectors(backbone, said)).all()


def test_one_of_several_pictures_is_one_square_to_onevision() -> None:
    backbone = TINY["llava_onevision"]
    assert backbone._looked(PICTURES)[0] == [5, 5, 5]
    assert backbone._looked(PICTURES)[1]["batch_num_images"].tolist() == [3]
    assert backbone._looked(PICTURES[:1])[0][0] > 5
    assert TINY["llava_next"]._looked(PICTURES)[0] == [TINY["llava_next"]._looked([one])[0][0] for one in PICTURES]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_marks_in_a_text_are_words(backbone: Backbone) -> None:
    special = [one.content for one in backbone.tokenizer.get_added_tokens_decoder().values()]
    numbers = {backbone.tokenizer.token_to_id(one) for one in special}
    hostile = "".join(special) + special[-1][:3] + special[-1] + special[-1][3:] + "\ud800"
    begun = set(backbone.tokenizer.encode("").ids)
    ids = backbone.read(Said(f"{backbone.mark}", hostile, pictures=PICTURES[:1]), 500).ids
    assert set(ids) & numbers == {backbone.token(backbone.mark)} | begun
    assert ids.count(backbone.token(backbone.mark)) == backbone._looked(PICTURES[:1])[0][0]
    assert backbone.plain("no <b>mark</b> | <|here|>") == "no <b>mark</b> | <|here|>"


@given(st.sampled_from(list(KINDS)), st.text(max_size=80), st.integers(10, 90), st.booleans())
def test_only_the_text_is_cut(kind: str, text: str, longest: int, shown: bool) -> None:
    backbone = TINY[kind]
    pictures = PICTURES[:1] if shown else ()
    before = f"in{backbone.mark * shown}: "
    read, bare = (backbone.read(Said(before, words, " end", pictures), longest).ids for words in (text, ""))
    assert len(read) <= max(longest, len(bare))
    ends = backbone.tokenizer.encode(" end", add_special_tokens=False).ids
    assert read[-len(ends) :] == ends
    assert read[: len(bare) - len(ends)] == bare[: -len(ends)]
    whole = backbone.read(Said(before, text, " end", pictures), 10_000).ids
    assert read == whole or len(whole) > longest
    kept = read[len(bare) - len(ends) : -len(ends)]
    assert whole[len(bare) - len(ends) :][: len(kept)] == kept
    if len(whole) > longest >= len(bare):
        assert longest - len(read) < 4  # bytes of one character


def test_pictures_and_marks_go_together(backbone: Backbone) -> None:
    with pytest.raises(BadInput, match="`1` marks stand for `0` pictures"):
        backbone.read(Said(backbone.mark, "a"), 99)
    with pytest.raises(BadInput, match="`0` marks stand for `1` pictures"):
        backbone.read(Said("", "a", "", PICTURES[:1]), 99)


def test_nothing_at_all_is_still_a_token() -> None:
    backbone = TINY["qwen2_vl"]
    with pytest.raises(BadInput, match="no last token"):
        backbone.read(Said(), 99)
    assert len(backbone.read(instructed(backbone, "", "", ()), 99).ids) == 1
    assert len(TINY["llava_next"].read(Said(), 99).ids) == 1  # what begins every text


def test_an_instruction_cannot_bring_marks() -> None:
    backbone = TINY["qwen2_vl"]
    said = instructed(backbone, f"{backbone.mark} find", "b", PICTURES[:1])
    assert said.before.count(backbone.mark) == 1
    assert backbone.read(said, 99).ids


# --- published files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False])
def test_the_published_names_load(backbone: Backbone, old: bool, tmp_path: Path) -> None:
    folder = put(tmp_path / "m", backbone, old=old)
    starts = {key.split(".layers.")[0] for key in keys(folder) if ".layers." in key and "vision" not in key}
    part = "model" if backbone.kind.startswith("qwen") else "language_model.model"
    assert starts == {part if old else "model.language_model"}
    made = Backbone.from_folder(folder, [backbone.kind], "float32")
    wanted = backbone.model.state_dict()
    assert made.model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(values, wanted[key]) for key, values in made.model.state_dict().items())
    np.testing.assert_array_equal(vectors(made, inputs(backbone)), vectors(backbone, inputs(backbone)))


def test_what_is_saved_loads_again(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save(tmp_path / "m")
    made = Backbone.from_folder(tmp_path / "m", [backbone.kind], "float32")
    np.testing.assert_array_equal(vectors(made, inputs(backbone)), vectors(backbone, inputs(backbone)))


def changed(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_other_keys_are_refused_by_name(backbone: Backbone, tmp_path: Path) -> None:
    folder = put(tmp_path / "m", backbone)
    key = next(key for key in sorted(keys(folder)) if key.endswith("layers.1.self_attn.q_proj.weight"))
    name = key.replace("language_model.model.", "").removeprefix("model.").replace(".", r"\.")
    kind = [backbone.kind]
    changed(folder, lambda tensors: tensors.update({"spare.weight": torch.ones(2)}))
    with pytest.raises(BadInput, match=r"has an unknown `spare\.weight`"):
        Backbone.from_folder(folder, kind, "float32")
    changed(folder, lambda tensors: (tensors.pop("spare.weight"), tensors.update({key: torch.ones(3, 3)})))
    with pytest.raises(BadInput, match=f"has another shape of `.*{name}"):
        Backbone.from_folder(folder, kind, "float32")
    changed(folder, lambda tensors: tensors.pop(key))
    with pytest.raises(BadInput, match=f"lacks `.*{name}"):
        Backbone.from_folder(folder, kind, "float32")


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(gone: str, tmp_path: Path) -> None:
    (put(tmp_path / "m", TINY["qwen2_vl"]) / gone).unlink()
    with pytest.raises(MissingWeights, match=f"`m` has no `{gone}`"):
        Backbone.from_folder(tmp_path / "m", ["qwen2_vl"])


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "m", TINY["qwen2_vl"])
    with pytest.raises(BadInput, match=r"type `qwen2_vl`.*"):
        Backbone.from_folder(folder, ["llava_next"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "phi3_v"}))
    with pytest.raises(BadInput, match="type `phi3_v`"):
        Backbone.from_folder(folder, list(KINDS))
    (folder / "config.json").write_text(json.dumps(config))
    TINY["llava_next"].pictures.save_pretrained(folder)
    with pytest.raises(BadInput, match="LlavaNextImageProcessor"):
        Backbone.from_folder(folder, ["qwen2_vl"])
    TINY["qwen2_vl"].pictures.save_pretrained(folder)
    TINY["llava_next"].tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(BadInput, match="no `<|image_pad|>`".replace("|", r"\|")):
        Backbone.from_folder(folder, ["qwen2_vl"])


def test_parts_of_two_models_do_not_go_together() -> None:
    one, other = TINY["llava_next"], TINY["llava_onevision"]
    with pytest.raises(BadInput, match="prepares the pictures"):
        Backbone(one.model, one.tokenizer, other.pictures)
    pictures = transformers.LlavaNextImageProcessorPil(image_grid_pinpoints=[[56, 56]])
    with pytest.raises(BadInput, match=r"`\[\[56, 56\]\]`"):
        Backbone(one.model, one.tokenizer, pictures)
    tokenizer = TINY["qwen2_vl"].tokenizer
    moved = type(tokenizer).from_str(
        tokenizer.to_str()
        .replace("<|vision_end|>", "<|x|>")
        .replace("<|image_pad|>", "<|vision_end|>")
        .replace("<|x|>", "<|image_pad|>")
    )
    with pytest.raises(BadInput, match=r"`<\|image_pad\|>` is token `260`, and the model's `261`"):
        Backbone(TINY["qwen2_vl"].model, moved, TINY["qwen2_vl"].pictures)


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False])
def test_an_adapter_is_merged_under_both_names(backbone: Backbone, old: bool, tmp_path: Path) -> None:
    folder = put(tmp_path / "m", backbone)
    added = put_adapter(folder, backbone, old=old)
    made = Backbone.from_folder(folder, [backbone.kind], "float32")
    assert len(added) == 2
    own = backbone.model.state_dict()
    for key, values in made.model.state_dict().items():
        wanted = own[key] + added.get(key.removesuffix(".weight"), 0)
        torch.testing.assert_close(values, wanted, atol=1e-6, rtol=0)
    assert made.model.state_dict().keys() == own.keys()
    assert np.abs(vectors(made, inputs(backbone)) - vectors(backbone, inputs(backbone))).max() > 0.01


def test_an_adapter_that_would_not_be_used_is_refused(tmp_path: Path) -> None:
    backbone = TINY["qwen2_vl"]
    folder = put(tmp_path / "m", backbone)
    put_adapter(folder, backbone)
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    one, other = sorted(whole)[:2]
    save_file({key: values for key, values in whole.items() if key != one}, path)
    with pytest.raises(BadInput, match="The adapter in `m` lacks"):
        Backbone.from_folder(folder, ["qwen2_vl"], "float32")
    save_file(whole | {"base_model.model.lm_head.lora_A.weight": torch.ones(2)}, path)
    with pytest.raises(BadInput, match=r"has an unknown `lm_head\.lora_A"):
        Backbone.from_folder(folder, ["qwen2_vl"], "float32")
    save_file(whole | {other: torch.ones(1, 1)}, path)
    with pytest.raises(BadInput, match="does not fit"):
        Backbone.from_folder(folder, ["qwen2_vl"], "float32")
    path.unlink()
    with pytest.raises(MissingWeights, match="adapter_model"):
        Backbone.from_folder(folder, ["qwen2_vl"], "float32")


def test_every_kind_has_its_class_with_head() -> None:
    assert HEADED.keys() == KINDS.keys()
    assert all(one != other for one, other in pairwise(sorted(KINDS)))
