"""ColPali: prompts and augmentation tokens, what attends to what, kept vectors, pooling, maps, losses, files."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
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

from triptych.errors import BadInput, Cancelled, MissingWeights, UnreadableFile, Unsupported
from triptych.manifests.registry import card
from triptych.progress import reporting
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.stores.vectors import VectorStore, max_sim
from triptych.retrievers.universal import _colpali_losses as losses
from triptych.retrievers.universal._colpali_backbones import QUERY_TOKENS, Read
from triptych.retrievers.universal._colpali_maps import similarity_map
from triptych.retrievers.universal._colpali_training import Late, Objective, language
from triptych.retrievers.universal._contrastive_training import Adapters, collated
from triptych.retrievers.universal.colpali import DIM, ColPali, Options, pooled

sys.path.append(str(Path(__file__).parent))
import coloured_pages as coloured
import late_in_two

KINDS = ("colpali", "colqwen2", "colqwen2_5", "idefics3")
TINY = {kind: ColPali.tiny(0, kind) for kind in KINDS}
SIZES = [(60, 80), (200, 50), (33, 90), (90, 90)]
QUERIES = [Query("hi"), Query("a longer query, of several words"), Query("")]


def page(path: Path, picture: Image.Image, number: int = 0, mime: str = "image/png") -> Item:
    picture.save(path)
    return Item(f"p{number}", "never read", Source(path.name), "page", MediaRef(str(path), mime))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("pages")
    noise = (Image.effect_noise(size, 60).convert("RGB") for size in SIZES)
    return [page(folder / f"{number}.png", one, number) for number, one in enumerate(noise)]


def text(encoder: ColPali, read: Read) -> str:
    return "".join(encoder.backbone.tokens(read))


def mirrored(encoder: ColPali, reads: list[Read]) -> list[torch.Tensor]:
    """Vectors of inputs whose padding stands on the left, as the published processors of Qwen and Idefics3 put it."""
    longest = max(len(one.ids) for one in reads)
    pad = encoder.backbone.processor.tokenizer.pad_token_id
    ids = torch.stack([torch.cat([torch.full((longest - len(one.ids),), pad), one.ids]) for one in reads])
    mask = torch.stack([torch.arange(longest) >= longest - len(one.ids) for one in reads]).long()
    with torch.inference_mode():
        found = encoder.backbone._vectors(ids, mask, reads)
    return [torch.nn.functional.normalize(one[kept], dim=-1) for one, kept in zip(found, mask.bool(), strict=True)]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_a_page_and_a_query_are_read_with_the_published_prompts(pages: list[Item]) -> None:
    read = {kind: (text(one, one.read(pages[3])), text(one, one.read(Query("who?")))) for kind, one in TINY.items()}
    assert read["colpali"] == (
        "<image>" * 16 + "<bos>Describe the image.\n",
        "<bos>Question: who?" + "<pad>" * 10 + "\n",
    )
    qwen = "<|im_start|>user\n<|vision_start|>{}<|vision_end|>Describe the image.<|im_end|><|endoftext|>"
    for kind in ("colqwen2", "colqwen2_5"):
        patches = TINY[kind].read(pages[3]).patches
        assert patches.shape == (3, 3)
        assert read[kind] == (
            qwen.format("<|image_pad|>" * patches.size),
            "Query: who?" + "<|endoftext|>" * 10 + "\n",
        )
    whole, asked = read["idefics3"]
    assert whole.startswith("<|im_start|>User:<fake_token_around_image><row_1_col_1><image>")
    assert whole.endswith("<image><fake_token_around_image>Describe the image.<end_of_utterance>\nAssistant:")
    assert asked == "Query: who?" + "<end_of_utterance>" * 10


@pytest.mark.parametrize("kind", ["colpali", "colqwen2"])
def test_a_query_is_what_the_models_own_processor_makes_of_it(kind: str) -> None:
    encoder = TINY[kind]
    own = encoder.backbone.processor(text=["who is it?"])["input_ids"][0]
    assert torch.equal(encoder.read(Query("who is it?")).ids, own)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_query_is_cut_before_its_augmentation(kind: str) -> None:
    encoder = TINY[kind]
    short, long = encoder.read(Query("x")), encoder.read(Query("x" * 3000))
    assert len(long.ids) == QUERY_TOKENS
    assert torch.equal(long.ids[-10:], short.ids[-10:])
    assert len(encoder.encode([Query("x" * 3000)], "query")[0]) == QUERY_TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_marks_of_the_model_in_a_query_are_only_text(kind: str) -> None:
    encoder = TINY[kind]
    tokenizer = encoder.backbone.processor.tokenizer
    mark = tokenizer.decode([encoder.backbone.processor.image_token_id])
    read = encoder.read(Query(f"a {mark} b {tokenizer.pad_token}"))
    assert encoder.backbone.processor.image_token_id not in read.ids.tolist()
    assert read.ids.tolist().count(tokenizer.pad_token_id) == encoder.read(Query("")).ids.tolist().count(
        tokenizer.pad_token_id
    )


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_tokens_are_attended_to_and_kept(kind: str) -> None:
    """PaliGemma's are padding tokens: a mask made from ids would drop them."""
    encoder = TINY[kind]
    [vectors] = encoder.encode([Query("abc")], "query")
    read = encoder.read(Query("abc"))
    assert len(vectors) == len(read.ids)
    _, mask = encoder.backbone.vectors([read])
    assert bool(mask.all())


def test_the_places_of_patches_are_those_of_the_picture(pages: list[Item]) -> None:
    for kind, encoder in TINY.items():
        token = encoder.backbone.processor.image_token_id
        for one in pages:
            read = encoder.read(one)
            assert set(read.ids[read.patches.ravel()].tolist()) == {token}, kind
    tiled = TINY["idefics3"].read(pages[3])
    assert tiled.patches.shape == (4, 4)
    names = np.array(TINY["idefics3"].backbone.tokens(tiled))
    before = [names[tiled.patches[row, column] - 1] for row in (0, 2) for column in (0, 2)]
    assert before == [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_padded_batches_equal_one_by_one_on_either_side(kind: str, pages: list[Item]) -> None:
    encoder = TINY[kind]
    for given, side in ((pages, "document"), (QUERIES, "query")):
        reads = [encoder.read(one) for one in given]  # type: ignore[attr-defined]
        if kind != "colpali":
            assert len({len(one.ids) for one in reads}) > 1
        together = encoder.encode(given, side)  # type: ignore[arg-type]
        left = mirrored(encoder, reads)
        for number, one in enumerate(reads):
            [alone] = encoder.vectors([one])
            np.testing.assert_allclose(together[number], alone, atol=1e-4)
            np.testing.assert_allclose(left[number].numpy(), alone, atol=1e-4)
            np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


def test_paligemma_attends_both_ways_and_the_others_only_back() -> None:
    for kind, encoder in TINY.items():
        read = encoder.read(Query("abcdef"))
        other = replace(read, ids=torch.cat([read.ids[:-1], read.ids[:1]]))
        one, changed = encoder.vectors([read, other])
        far = float(np.abs(one[0] - changed[0]).max())
        assert far > 1e-4 if kind == "colpali" else far < 1e-6, kind


@pytest.mark.parametrize("kind", ["colqwen2", "colqwen2_5"])
def test_qwen_counts_rows_and_columns(kind: str, pages: list[Item]) -> None:
    """transformers' class alone counts patches one after the other; published weights know rows and columns."""
    encoder = TINY[kind]
    read = encoder.read(pages[3])
    network = encoder.backbone.network
    given = {"input_ids": read.ids[None], "attention_mask": torch.ones_like(read.ids)[None]}
    shown = {name: read.pixels[name][None] for name in ("pixel_values", "image_grid_thw")}
    with torch.inference_mode():
        flat = network(**given, **shown).embeddings[0].numpy()
        kinds = (given["input_ids"] == encoder.backbone.processor.image_token_id).int()
        places, _ = network.vlm.get_rope_index(given["input_ids"], kinds, shown["image_grid_thw"])
        whole = network.vlm(
            **given, pixel_values=read.pixels["pixel_values"], image_grid_thw=shown["image_grid_thw"],
            mm_token_type_ids=kinds,
        )  # fmt: skip
        wanted = network.embedding_proj_layer(whole.last_hidden_state)[0]
    [found] = encoder.vectors([read])
    first = int(read.patches[0, 0])
    assert places[:, 0, read.patches[1, 2]].tolist() == [first, first + 1, first + 2]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(wanted, dim=-1).numpy(), atol=1e-5)
    assert float(np.abs(found - flat).max()) > 1e-3


def test_a_page_counts_where_it_differs(tmp_path: Path) -> None:
    grey = Image.new("RGB", (112, 112), (128, 128, 128))
    marked = grey.copy()
    marked.paste((255, 0, 0), (56, 0, 112, 56))
    for kind, encoder in TINY.items():
        one, other = (encoder.read(page(tmp_path / f"{n}.png", p, n)) for n, p in enumerate((grey, marked)))
        before, after = encoder.vectors([one, other])
        assert float(np.abs(before[one.patches] - after[one.patches]).max()) > 1e-3, kind


def test_only_patches_are_kept_where_that_is_asked(pages: list[Item]) -> None:
    for kind in KINDS:
        whole = TINY[kind]
        only = ColPali(whole.backbone, Options(pictures_only=True))
        read = whole.read(pages[0])
        [found], [all_] = only.encode(pages[:1], "document"), whole.encode(pages[:1], "document")
        assert len(found) == read.patches.size < len(all_)
        np.testing.assert_allclose(found, all_[np.sort(read.patches.ravel())], atol=1e-5)
        assert len(only.encode(QUERIES[:1], "query")[0]) == len(whole.encode(QUERIES[:1], "query")[0])


def test_max_sim_of_a_page_is_the_double_loop(pages: list[Item]) -> None:
    encoder = TINY["colqwen2"]
    [query] = encoder.encode(QUERIES[1:2], "query")
    for vectors in encoder.encode(pages, "document"):
        loop = sum(max(float(asked @ one) for one in vectors) for asked in query)
        assert max_sim(query, vectors, "cosine") == pytest.approx(loop, abs=1e-4)


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_what_it_does_not_read_is_refused(pages: list[Item], tmp_path: Path) -> None:
    encoder = TINY["colpali"]
    picture = pages[0].media
    for query in (Query(media=picture), Query("with a picture", picture), Query()):
        assert not encoder.reads(query)
        with pytest.raises(Unsupported, match="words alone"):
            encoder.encode([query], "query")
    assert encoder.reads(Query("words"))
    words = Item("w", "text", Source("w.md"))
    assert not encoder.encodes(words)
    with pytest.raises(Unsupported, match="`w` has nothing to look at"):
        encoder.encode([words], "document")
    passage = replace(pages[0], modality="text", text="a passage of that page")
    np.testing.assert_array_equal(encoder.encode([passage], "document")[0], encoder.encode(pages[:1], "document")[0])
    gone = replace(pages[0], media=MediaRef(str(tmp_path / "gone.png"), "image/png"))
    with pytest.raises(UnreadableFile, match=r"gone\.png"):
        encoder.encode([gone], "document")


@pytest.mark.parametrize("kind", KINDS)
def test_odd_pictures_are_read(kind: str, tmp_path: Path) -> None:
    odd = [
        page(tmp_path / "1.png", Image.new("RGB", (1, 1)), 1),
        page(tmp_path / "2.png", Image.new("L", (3, 60), 200), 2),
        page(tmp_path / "3.png", Image.new("P", (50, 40)), 3),
        page(tmp_path / "4.png", Image.new("I;16", (30, 40), 900), 4),
        page(tmp_path / "5.jpg", Image.new("CMYK", (40, 30)), 5, "image/jpeg"),
        page(tmp_path / "6.png", Image.new("RGBA", (700, 20)), 6),
    ]
    for one, rows in zip(odd, TINY[kind].encode(odd, "document"), strict=True):
        assert np.isfinite(rows).all(), one.id
    line = page(tmp_path / "7.png", Image.new("RGB", (900, 2)), 7)
    with pytest.raises(BadInput, match="it is a line"):
        TINY[kind].encode([line], "document")


def test_a_network_that_gives_nan_is_told(pages: list[Item]) -> None:
    broken = ColPali.tiny(3)
    with torch.no_grad():
        broken.backbone.network.embedding_proj_layer.weight.fill_(math.nan)
    with pytest.raises(BadInput, match="`nan`"):
        broken.encode(pages[:1], "document")


# --- pooling ---------------------------------------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    made: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def test_pooling_finds_planted_clusters_and_gives_their_means() -> None:
    chance = np.random.default_rng(0)
    centres = unit(chance.normal(size=(4, 16)))
    rows = unit(np.repeat(centres, 3, axis=0) + 0.02 * chance.normal(size=(12, 16)))
    order = chance.permutation(12)
    found = pooled(rows[order], 3)
    assert found.shape == (4, 16) and found.dtype == np.float32
    wanted = unit(np.stack([rows[3 * n : 3 * n + 3].mean(axis=0) for n in dict.fromkeys((order // 3).tolist())]))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "factor", "kept"), [(10, 1, 10), (10, 2, 5), (10, 3, 3), (2, 3, 1), (1, 3, 1), (7, 9, 1)]
)
def test_pooling_keeps_one_of_factor(n: int, factor: int, kept: int) -> None:
    rows = unit(np.random.default_rng(n).normal(size=(n, 8)))
    assert len(pooled(rows, factor)) == kept


def test_factor_one_changes_nothing_and_pooling_is_of_pages_alone(pages: list[Item]) -> None:
    whole = TINY["idefics3"]
    [rows] = whole.encode(pages[:1], "document")
    assert pooled(rows, 1) is rows
    two, three = (ColPali(whole.backbone, Options(factor)) for factor in (2, 3))
    assert [len(one.encode(pages[:1], "document")[0]) for one in (two, three)] == [len(rows) // 2, len(rows) // 3]
    assert len(two.encode(QUERIES[:1], "query")[0]) == len(whole.encode(QUERIES[:1], "query")[0])
    with pytest.raises(BadInput, match="factor is `0`"):
        ColPali(whole.backbone, Options(0))


# --- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_has_the_cosines_of_the_patches_and_the_score_is_their_best(kind: str, pages: list[Item]) -> None:
    encoder = ColPali(TINY[kind].backbone, Options(factor=3))
    found = similarity_map(encoder, pages[1], "who?")
    [asked] = encoder.encode([Query("who?")], "query")
    only = ColPali(TINY[kind].backbone, Options(pictures_only=True))
    [patches] = only.encode([pages[1]], "document")
    read = encoder.read(pages[1])
    assert found.grids.shape == (len(found.tokens), *read.patches.shape)
    assert "".join(found.tokens).startswith(encoder.backbone.around[0] + "who?")
    assert float(found.grids.max(axis=(1, 2)).sum()) == pytest.approx(max_sim(asked, patches, "cosine"), abs=1e-3)
    rank = np.argsort(np.argsort(read.patches.ravel())).reshape(read.patches.shape)
    assert found.grids[2, -1, 0] == pytest.approx(float(asked[2] @ patches[rank[-1, 0]]), abs=1e-4)


def test_a_map_is_drawn_over_its_page(pages: list[Item]) -> None:
    found = similarity_map(TINY["colqwen2"], pages[1], "who?")
    rows, columns = found.grids.shape[1:]
    grids = np.zeros_like(found.grids)
    grids[4, 0, columns - 1] = 1.0
    drawn = replace(found, grids=grids, page=Image.new("RGB", (columns * 20, rows * 20), "white"))
    with Image.open(io.BytesIO(drawn.png(4))) as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    assert seen.shape == (rows * 20, columns * 20, 3)
    assert seen[5, -5, 2] < 120 < seen[-5, 5, 2]
    assert drawn.png() != drawn.png(0)
    with pytest.raises(BadInput, match=f"`{len(found.tokens)}`"):
        drawn.png(len(found.tokens))


# --- losses ----------------------------------------------------------------------------------------------------------


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    queries, documents = (torch.randn(3, n, 8, generator=chance) for n in (4, 6))
    asked, kept = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    asked[0, 2:] = False
    kept[1, 3:] = False
    queries, documents = (torch.nn.functional.normalize(one, dim=-1) for one in (queries, documents))
    return queries * asked[..., None], documents, asked, kept


def test_scores_are_the_loop_over_a_querys_own_vectors() -> None:
    queries, documents, asked, kept = batch()
    documents[~kept] = queries[1, 0] * 9  # what is padded would win
    found = losses.scores(queries, documents, asked, kept)
    for a in range(3):
        for b in range(3):
            best = [max(float(q @ d) for d in documents[b][kept[b]]) for q in queries[a][asked[a]]]
            assert float(found[a, b]) == pytest.approx(sum(best) / len(best), abs=1e-5)
            smooth = [0.1 * math.log(sum(math.exp(float(q @ d) / 0.1) for d in documents[b][kept[b]]))
                      for q in queries[a][asked[a]]]  # fmt: skip
            softer = losses.scores(queries, documents, asked, kept, smooth=0.1)
            assert float(softer[a, b]) == pytest.approx(sum(smooth) / len(smooth), abs=1e-4)


def test_pairwise_counts_the_hardest_wrong_page_alone() -> None:
    found = torch.tensor([[0.5, 0.7, 0.1], [0.2, 0.9, 0.3], [0.0, 0.1, 0.4]], requires_grad=True)
    gaps = [0.7 - 0.5, 0.3 - 0.9, 0.1 - 0.4]
    wanted = sum(math.log1p(math.exp(gap)) for gap in gaps) / 3
    loss = losses.pairwise(found)
    assert loss.item() == pytest.approx(wanted, abs=1e-6)
    loss.backward()
    assert found.grad is not None
    assert (found.grad != 0).tolist() == [[True, True, False], [False, True, True], [False, True, True]]
    half = sum(math.log1p(math.exp(gap / 0.5)) for gap in gaps) / 3
    assert losses.pairwise(found, 0.5).item() == pytest.approx(half, abs=1e-6)
    assert losses.pairwise(found).item() != pytest.approx(losses.info_nce(found).item(), abs=1e-3)


def test_info_nce_is_the_cross_entropy_of_the_right_page() -> None:
    found = torch.tensor([[0.5, 0.45, 0.1], [0.2, 0.3, 0.25]])
    rows = [(0.5, [0.5, 0.45, 0.1]), (0.3, [0.2, 0.3, 0.25])]
    wanted = (
        -sum(math.log(math.exp(right / 0.02) / sum(math.exp(one / 0.02) for one in row)) for right, row in rows) / 2
    )
    assert float(losses.info_nce(found)) == pytest.approx(wanted, abs=1e-5)


def test_gathered_pages_are_found_behind_an_offset() -> None:
    found = torch.rand(2, 6)
    turned = found.roll(-3, 1)
    for loss in (losses.pairwise, losses.info_nce):
        assert float(loss(found, offset=3)) == pytest.approx(float(loss(turned)), abs=1e-5)
        for pages, offset in ((1, 0), (3, 2), (6, -1)):
            with pytest.raises(BadInput, match=f"`{pages}` pages"):
                loss(torch.rand(2 if pages > 1 else 1, pages), offset=offset)


def test_wrong_pages_that_score_almost_as_the_right_one_count_half() -> None:
    given = torch.tensor([[0.8, 0.77, 0.75], [0.9, 0.8, 0.1], [-0.3, -0.2, -0.1]])
    wanted = torch.tensor([[0.8, 0.385, 0.75], [0.45, 0.8, 0.1], [-0.3, -0.2, -0.1]])
    torch.testing.assert_close(losses.doubted(given), wanted)


def test_a_querys_own_pages_are_scored_by_it_alone() -> None:
    queries, documents, asked, kept = batch()
    given, there = torch.cat([documents, documents.flip(0)]), torch.cat([kept, kept.flip(0)])
    every = losses.scores(queries, given, asked, there)
    own = losses.own_scores(queries, given, asked, there)
    for row in range(3):
        torch.testing.assert_close(own[row], every[row, 2 * row : 2 * row + 2])
    wanted = sum(math.log1p(math.exp(float(own[a, b]) - 0.1 * a)) for a in range(3) for b in range(2)) / 6
    assert float(losses.beside(torch.tensor([0.0, 0.1, 0.2]), own)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", ["pairwise", "info_nce"])
def test_what_is_learned_is_the_losses_of_a_loop(kind: Any) -> None:
    queries, documents, asked, kept = batch()
    wrong, _, _, there = batch(1)
    wrong, there = wrong[:, [0, 1, 2, 3, 0, 1]] * 1.0, there
    pages_ = torch.cat([documents * kept[..., None], wrong * there[..., None]])
    right = torch.zeros(3, 6, dtype=torch.bool)
    right[0, 2] = True  # the third query's page answers the first, too
    found = losses.scores(queries, documents, asked, kept)
    own = losses.own_scores(queries, wrong, asked, there)[:, 0]
    in_batch, explicit = 0.0, 0.0
    for row in range(3):
        others = [float(found[row, n]) for n in range(3) if n != row and not right[row, n]]
        positive = float(found[row, row])
        explicit += math.log1p(math.exp(float(own[row]) - positive)) / 3
        if kind == "pairwise":
            in_batch += math.log1p(math.exp(max(others) - positive)) / 3
        else:
            in_batch += math.log(sum(math.exp((one - positive) / 0.02) for one in [*others, positive])) / 3
    assert float(Objective(kind)(queries, pages_[:3], right[:, :3])) == pytest.approx(in_batch, abs=1e-4)
    assert float(Objective(kind, in_batch=0.2)(queries, pages_, right)) == pytest.approx(
        0.2 * in_batch + 0.8 * explicit, abs=1e-4
    )
    with pytest.raises(BadInput, match="The loss is `triplet`"):
        Objective("triplet")  # type: ignore[arg-type]


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["colpali", "colqwen2"])
def test_it_learns_stops_goes_on_and_is_taken_back(kind: str, tmp_path: Path) -> None:
    start, items = ColPali.tiny(0, kind), coloured.pages(tmp_path)
    told, course = coloured.lessons(items, wrong=1, times=9), replace(coloured.COURSE, every=5)
    how: dict[str, Any] = {"course": course, "adapters": coloured.WHOLE, "objective": Objective("info_nce")}

    def stop(done: int, total: int | None, what: str) -> None:
        if done >= 17:
            raise Cancelled("Enough.", "Go on.")

    with reporting(stop), pytest.raises(Cancelled):
        start.fit(told, tmp_path / "fit", **how)
    assert {path.name for path in (tmp_path / "fit" / "checkpoints").iterdir()} == {"checkpoint-10", "checkpoint-15"}
    learned = start.fit(told, tmp_path / "fit", **how)
    whole = start.fit(told, tmp_path / "whole", **how)
    assert coloured.found(start, items) < coloured.found(learned, items) >= 3
    again = ColPali.from_folder(tmp_path / "fit", "float32")
    for one, other, third in zip(
        *(encoder.encode(items, "document") for encoder in (learned, whole, again)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)
        np.testing.assert_allclose(one, third, atol=1e-5)
    with pytest.raises(BadInput, match="holds a fit with other"):
        start.fit(told, tmp_path / "fit", **how | {"objective": Objective()})


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_change_the_language_part_and_the_projection_alone(kind: str, tmp_path: Path) -> None:
    start, items = TINY[kind], coloured.pages(tmp_path)
    learned = start.fit(
        coloured.lessons(items), tmp_path / "fit", course=coloured.COURSE, adapters=Adapters(rank=4, chunk=3)
    )
    network = start.backbone.network
    inside = next(name for name, part in network.named_modules() if part is language(network))
    before, after = network.state_dict(), learned.backbone.network.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith(inside) for key in changed)
    assert all(key.startswith((f"{inside}.", f"{start.backbone.projection}.")) for key in changed)
    assert f"{start.backbone.projection}.weight" in changed


@pytest.mark.parametrize("kind", KINDS)
def test_read_in_parts_the_gradients_are_those_of_the_whole_batch(kind: str, tmp_path: Path) -> None:
    encoder, items = ColPali.tiny(1, kind), coloured.pages(tmp_path)
    told = [
        replace(one, query=Query(one.query.text or "" + "?" * n)) for n, one in enumerate(coloured.lessons(items, 1))
    ]
    batch = collated(told, lambda one, side: encoder.read(one))
    made = [coloured.gradients(Late(encoder.backbone, Objective(), chunk), batch) for chunk in (0, 3)]
    coloured.same(*made)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    coloured.pages(tmp_path)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, late_in_two.__file__, tmp_path], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    encoder, late = late_in_two.learner(0)
    batch = collated(late_in_two.told(tmp_path), lambda one, side: encoder.read(one))
    wanted = coloured.gradients(late, batch)
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text("utf-8"))
        assert told == pytest.approx(late(**batch)["loss"].item(), abs=1e-5)
        coloured.same(load_file(tmp_path / f"{rank}.safetensors"), wanted)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_under_the_published_names_is_loaded(kind: str, pages: list[Item], tmp_path: Path) -> None:
    tiny = ColPali(TINY[kind].backbone, Options(factor=2, pictures_only=True))
    tiny.save(tmp_path)
    names = {name.rpartition(".")[0] for name in load_file(tmp_path / "model.safetensors")}
    if kind == "idefics3":
        assert {"linear", "model.connector.modality_projection.proj", "model.text_model.norm"} <= names
    else:
        assert "embedding_proj_layer" in names
        assert {name.partition(".")[0] for name in names} == {"embedding_proj_layer", "vlm"}
    loaded = ColPali.from_folder(tmp_path, "float32")
    assert loaded.options == tiny.options
    for given, side in ((pages, "document"), (QUERIES, "query")):
        both = zip(tiny.encode(given, side), loaded.encode(given, side), strict=True)  # type: ignore[arg-type]
        for one, other in both:
            np.testing.assert_allclose(one, other, atol=1e-5)
    rough = ColPali.from_folder(tmp_path, "bfloat16", options=Options())
    [exact] = TINY[kind].encode(pages[:1], "document")
    [found] = rough.encode(pages[:1], "document")
    assert found.dtype == np.float32
    assert float((exact * found).sum(axis=1).mean()) > 0.98


def test_prompts_of_the_folder_win(tmp_path: Path) -> None:
    TINY["colpali"].save(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"query_prefix": "Query: "}), "utf-8")
    loaded = ColPali.from_folder(tmp_path, "float32")
    assert text(loaded, loaded.read(Query("x"))).startswith("<bos>Query: x<pad>")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_an_adapter_beside_its_base_is_merged(pages: list[Item], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    TINY["idefics3"].save(tmp_path)
    own = ColPali.tiny(0, "idefics3").backbone.network
    adapter = get_peft_model(own, LoraConfig(r=2, target_modules=["q_proj", "linear"]))
    for name, weights in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.5)
    adapter.save_pretrained(str(tmp_path))
    before = TINY["idefics3"].encode(pages[:1], "document")[0]
    merged = ColPali.from_folder(tmp_path, "float32")
    with torch.inference_mode():
        read = merged.read(pages[0])
        shown = {name: values[None] for name, values in read.pixels.items()}
        wanted = adapter(input_ids=read.ids[None], attention_mask=torch.ones(1, len(read.ids)).long(), **shown)[0]
    [found] = merged.vectors([read])
    np.testing.assert_allclose(found, torch.nn.functional.normalize(wanted, dim=-1).numpy(), atol=1e-4)
    assert float(np.abs(found - before).max()) > 1e-2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("embedding_proj_layer.weight"), r"lacks `embedding_proj_layer\.weight`"),
        (lambda tensors: tensors.update({"custom_text_proj.weight": torch.zeros(2)}), r"unknown `custom_text_proj"),
        (lambda tensors: tensors.update({"embedding_proj_layer.bias": torch.zeros(96)}), "shape of `embedding_proj"),
    ],
)
def test_other_keys_are_named(change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path) -> None:
    TINY["colqwen2"].save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=told):
        ColPali.from_folder(tmp_path)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    TINY["colqwen2"].save(tmp_path)
    picture = json.loads((tmp_path / "preprocessor_config.json").read_text("utf-8"))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**picture, "image_processor_type": "SiglipImageProcessor"}), "utf-8"
    )
    with pytest.raises(BadInput, match="prepares pictures by `SiglipImageProcessor`"):
        ColPali.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(MissingWeights, match=r"no `tokenizer\.json`"):
        ColPali.from_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen2_vl"}), "utf-8")
    with pytest.raises(BadInput, match="type `qwen2_vl`"):
        ColPali.from_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"no `model\.safetensors`"):
        ColPali.from_folder(tmp_path)


def test_vectors_of_another_size_are_refused(tmp_path: Path) -> None:
    TINY["colqwen2"].save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "embedding_dim": 32}), "utf-8")
    tensors = load_file(tmp_path / "model.safetensors")
    short = {name: values[:32] for name, values in tensors.items() if name.startswith("embedding_proj")}
    save_file({**tensors, **short}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="`32` numbers"):
        ColPali.from_folder(tmp_path)


def test_load_reads_the_folder_of_the_home(pages: list[Item], tmp_path: Path) -> None:
    settings = SimpleNamespace(weights=tmp_path, precision="float32", threads=0)
    parts: Any = SimpleNamespace(settings=settings, device="cpu")
    with pytest.raises(MissingWeights, match=r"has no `config\.json`") as caught:
        ColPali.load(card("colpali"), parts)
    assert "`vidore/colpali-v1.3-hf`" in caught.value.hint
    assert "not loadable" not in caught.value.hint
    TINY["colqwen2"].save(tmp_path / "colpali")
    loaded = ColPali.load(card("colpali"), parts)
    np.testing.assert_allclose(
        loaded.encode(pages[:1], "document")[0], TINY["colqwen2"].encode(pages[:1], "document")[0], atol=1e-5
    )


def test_the_store_finds_what_max_sim_finds(pages: list[Item], tmp_path: Path) -> None:
    encoder = ColPali(TINY["colqwen2"].backbone, Options(factor=3, pictures_only=True))
    vectors = encoder.encode(pages, "document")
    store = VectorStore(tmp_path, ColPali.space)
    try:
        store.upsert(pages, vectors)
        [query] = encoder.encode([Query("which page?")], "query")
        assert query.shape[1] == DIM
        found = store.search(query, 4)
    finally:
        store.close()
    scores = {one.id: max_sim(query, rows, "cosine") for one, rows in zip(pages, vectors, strict=True)}
    assert dict(found) == pytest.approx(scores, abs=1e-3)
    assert [id_ for id_, _ in found] == sorted(scores, key=lambda id_: -scores[id_])
