"""DSE: pages as squares, questions with a dummy picture, one template, the end token, vectors that can be shortened."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych import Settings
from triptych.errors import BadInput, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.universal._contrastive_training import Adapters, Contrast, collated, info_nce
from triptych.retrievers.universal._mllm import REMOTE, Backbone
from triptych.retrievers.universal._vectors import last
from triptych.retrievers.universal.dse import DSE, LONGEST, squared
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
from coloured_pages import COURSE, WHOLE, found, gradients, lessons, pages, same
from mllm_files import picture, put

TINY = DSE.tiny(0)
FRAME = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
)


def test_question_and_page_are_one_template(tmp_path: Path) -> None:
    question, page = TINY.said(Query("where?")), TINY.said(picture(tmp_path, 1, "its text", "page"))
    assert question.before + question.text + question.after == FRAME[0] + "Query: where?" + FRAME[1]
    assert page.before + page.text + page.after == FRAME[0] + "What is shown in this image?" + FRAME[1]
    assert len(question.pictures) == len(page.pictures) == 1


def test_a_page_is_a_square_of_748_and_the_dummy_is_black(tmp_path: Path) -> None:
    whole = DSE(Backbone.tiny("qwen2_vl"))
    [page] = whole.said(picture(tmp_path, 1, width=300, height=400)).pictures
    assert page.size == squared(748) == (756, 756)
    [dummy] = whole.said(Query("where?")).pictures
    assert dummy.size == squared(28) == (56, 56)
    assert dummy.getextrema() == ((0, 0),) * 3
    assert whole.backbone._looked([page])[0] == [27 * 27]
    assert whole.backbone._looked([dummy])[0] == [4]
    assert squared(680) == (672, 672)


@given(st.integers(0, 600))
def test_a_question_of_128_tokens_keeps_its_end(length: int) -> None:
    ids = TINY.backbone.read(TINY.said(Query("w" * length)), LONGEST["query"]).ids
    assert len(ids) <= LONGEST["query"]
    assert ids[-1] == TINY.backbone.token("<|endoftext|>")
    assert ids.count(TINY.backbone.token("<|image_pad|>")) == 4


def test_the_first_numbers_are_a_vector_of_their_own(tmp_path: Path) -> None:
    short = DSE(TINY.backbone, dim=16, edge=112)
    pages, asked = [picture(tmp_path, n, modality="page") for n in range(3)], [Query("where?"), Query("who?")]
    assert short.space.dim == 16 and TINY.space.dim == 64
    for given_, side in ((pages, "document"), (asked, "query")):
        whole, part = TINY.encode(given_, side), short.encode(given_, side)  # type: ignore[arg-type]
        np.testing.assert_allclose(
            part, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-5
        )
    with pytest.raises(BadInput, match="dim is `65`"):
        DSE(TINY.backbone, dim=65)


def test_the_text_of_a_page_is_not_read(tmp_path: Path) -> None:
    one, two = (picture(tmp_path, 1, text, "page") for text in ("an owl", "a barn"))
    np.testing.assert_array_equal(TINY.encode([one], "document"), TINY.encode([two], "document"))


def test_it_finds_pages_by_words_and_nothing_else(tmp_path: Path) -> None:
    page = picture(tmp_path, 1, modality="page")
    text = Item("t", "an owl", Source("a.md"))
    assert (TINY.encodes(page), TINY.encodes(text)) == (True, False)
    assert not TINY.encodes(Item("v", "", Source("a.mp4"), "video", page.media))
    assert [TINY.reads(one) for one in (Query("a"), Query(None, page.media), Query("a", page.media), Query())] == [
        True,
        False,
        False,
        False,
    ]
    for wrong, side in ((Query(None, page.media), "query"), (Query("a", page.media), "query"), (text, "document")):
        with pytest.raises(Unsupported):
            TINY.encode([wrong], side)  # type: ignore[arg-type,list-item]


def test_load_and_what_is_refused(tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    ours = card("dse")
    with pytest.raises(MissingWeights) as caught:
        DSE.load(ours, Stages(settings))
    assert "`MrLight/dse-qwen2-2b-mrl-v1`" in caught.value.hint and "phi3" not in caught.value.hint
    assert sum(one["format"] == REMOTE for one in ours.checkpoints) == 4
    put(settings.weights / "dse", TINY.backbone)
    assert DSE.load(ours, Stages(settings)).encode([Query("where?")], "query").shape == (1, 64)
    assert DSE.from_folder(settings.weights / "dse", "float32", dim=8).space.dim == 8
    with pytest.raises(BadInput, match="The backbone is `llava_next`"):
        DSE(Backbone.tiny("llava_next"))


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 16])
def test_it_learns_which_page_answers_and_is_taken_back(dim: int, tmp_path: Path) -> None:
    start, items = DSE(TINY.backbone, dim=dim, edge=56), pages(tmp_path)
    told = lessons(items, wrong=1, times=10)
    learned = start.fit(told, tmp_path / "fit", course=COURSE, adapters=WHOLE)
    assert found(start, items) < found(learned, items) >= 3
    assert learned.space.dim == (dim or 64)
    again = DSE(Backbone.from_folder(tmp_path / "fit", ("qwen2_vl",), "float32"), dim, 56)
    np.testing.assert_allclose(again.encode(items, "document"), learned.encode(items, "document"), atol=1e-5)
    put_back = start.fit(told, tmp_path / "fit", course=COURSE, adapters=WHOLE)  # all of it is learned: nothing is left
    np.testing.assert_allclose(put_back.encode(items, "document"), learned.encode(items, "document"), atol=1e-5)
    for others, settings in ((told[:20], WHOLE), (told, Adapters(rank=0, chunk=1))):
        with pytest.raises(BadInput, match="holds a fit with other"):
            start.fit(others, tmp_path / "fit", course=COURSE, adapters=settings)


def test_adapters_change_the_language_part_alone(tmp_path: Path) -> None:
    start, items = DSE(TINY.backbone, edge=56), pages(tmp_path)
    learned = start.fit(lessons(items, times=2), tmp_path / "fit", course=COURSE, adapters=Adapters(rank=4, chunk=3))
    before, after = (one.backbone.model.state_dict() for one in (start, learned))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("language_model.layers.") and "_proj." in key for key in changed)


def test_read_in_parts_the_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    encoder = DSE(Backbone.tiny("qwen2_vl", 1), edge=56)
    batch = collated(lessons(pages(tmp_path), wrong=1), lambda one, side: encoder.backbone.read(encoder.said(one), 128))
    made = [
        gradients(
            Contrast(encoder.backbone.model, lambda read: last(*encoder.backbone.states(read)), info_nce, chunk), batch
        )
        for chunk in (0, 3)
    ]
    same(*made)
