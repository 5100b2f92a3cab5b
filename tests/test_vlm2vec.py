"""VLM2Vec: the instruction in the query, bare marks without a chat template, the last token, adapters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych import Settings
from triptych.errors import BadInput, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.fitting import Course
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal._mllm import REMOTE, Backbone
from triptych.retrievers.universal.vlm2vec import BACKBONES, VLM2Vec
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
from media_files import subtitled
from mllm_files import picture, put, put_adapter

TINY = {kind: VLM2Vec.tiny(0, kind) for kind in BACKBONES}
QUESTION = "What is in the image"


@pytest.fixture(params=BACKBONES)
def vlm2vec(request: pytest.FixtureRequest) -> VLM2Vec:
    return TINY[request.param]


def prompt(system: VLM2Vec, given: Any, side: Any) -> str:
    said = system.said(given, side)
    assert said.before.count(system.backbone.mark) == len(said.pictures)
    return said.before + said.text + said.after


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_the_prompts_of_the_repositorys_examples(vlm2vec: VLM2Vec, tmp_path: Path) -> None:
    shown = picture(tmp_path, 1)
    mark = "<|image_pad|>" if vlm2vec.backbone.kind == "qwen2_vl" else "<image>"
    both = Query(QUESTION, shown.media)
    assert prompt(vlm2vec, both, "query") == f"{mark} Represent the given image with the following question: {QUESTION}"
    words = Query("A cat and a dog.")
    asked = "Find me an everyday image that matches the given caption: A cat and a dog."
    assert prompt(vlm2vec, words, "query") == asked
    assert prompt(vlm2vec, shown, "document") == f"{mark} Represent the given image."
    text = Item("t", "A cat and a dog", Source("a/cat.md"), meta={"title": "Pets"})
    assert prompt(vlm2vec, text, "document") == "Pets\nA cat and a dog"


def test_a_querys_own_instruction_replaces_the_words_and_a_documents_words_stay(
    vlm2vec: VLM2Vec, tmp_path: Path
) -> None:
    shown = picture(tmp_path, 1)
    mark = vlm2vec.backbone.mark
    told = "Find a document image that matches the given query:"
    assert prompt(vlm2vec, Query("rates", instruction=told), "query") == f"{told} rates"
    assert prompt(vlm2vec, Query(None, shown.media, told), "query") == f"{mark} {told}"
    assert prompt(vlm2vec, Query("rates", instruction=told), "document") == "rates"


def test_pages_and_pictures_with_words_as_the_training_data_has_them(vlm2vec: VLM2Vec, tmp_path: Path) -> None:
    mark = vlm2vec.backbone.mark
    page = picture(tmp_path, 1, "its own text", "page")
    assert prompt(vlm2vec, page, "document") == f"{mark} Understand the content of the provided document image."
    both = picture(tmp_path, 2, "an owl")
    assert (
        prompt(vlm2vec, both, "document") == f"{mark} Represent the given image with related text information: an owl"
    )
    like = Query(None, both.media)
    assert prompt(vlm2vec, like, "query") == f"{mark} Find a day-to-day image that looks similar to the provided image."


def test_a_video_is_frames_with_a_token_between_them(vlm2vec: VLM2Vec, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(subtitled("mp4", []))
    film = Item("v", "", Source("film.mp4"), "video", MediaRef(str(path), "video/mp4", start_s=0.0, end_s=6.0))
    said = vlm2vec.said(film, "document")
    mark = vlm2vec.backbone.mark
    assert said.before == f"{mark} {mark} Represent the given video."
    first, second = (np.asarray(one).mean(axis=(0, 1)) for one in said.pictures)
    assert np.abs(first - second).max() > 20
    asked = Query(None, film.media)
    assert vlm2vec.said(asked, "query").before == said.before
    np.testing.assert_allclose(vlm2vec.encode([film], "document"), vlm2vec.encode([asked], "query"), atol=1e-6)
    assert VLM2Vec(vlm2vec.backbone).frames == 8


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_the_same_picture_has_another_vector_for_another_task(vlm2vec: VLM2Vec, tmp_path: Path) -> None:
    media = picture(tmp_path, 1).media
    found = vlm2vec.encode(
        [Query(None, media, told) for told in ("What colour?", "Which animal?", "What colour?")], "query"
    )
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)
    assert found[0] @ found[1] < 0.999
    alike = vlm2vec.encode([Query("a", instruction=told) for told in ("one", "two")], "document")
    np.testing.assert_allclose(alike[0], alike[1], atol=1e-6)


def test_an_empty_text_is_read_and_no_query_is_not(vlm2vec: VLM2Vec) -> None:
    found = vlm2vec.encode([Query(""), Query(" \n")], "document")
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert vlm2vec.said(Query(""), "document").before == " "
    with pytest.raises(Unsupported, match="no text and no media"):
        vlm2vec.encode([Query()], "query")
    assert not vlm2vec.reads(Query())


def test_other_backbones_are_refused() -> None:
    with pytest.raises(BadInput, match="The backbone is `llava_onevision`"):
        VLM2Vec(Backbone.tiny("llava_onevision"))


# --- learning --------------------------------------------------------------------------------------------------------


def test_it_learns_what_an_instruction_asks_of_a_picture(tmp_path: Path) -> None:
    vlm2vec, told = TINY["qwen2_vl"], ("What is it?", "Where is it?")
    lessons = []
    for number in range(4):
        shown = picture(tmp_path, number).media
        for group, instruction in enumerate(told):
            answer = Item(f"{group}{number}", f"{instruction[:5]} {number}", Source("a.txt"))
            lessons.append(Lesson(Query(None, shown, instruction), answer, group=str(group)))
    course = Course(epochs=30, batch=8, rate=3e-3, every=30)
    made = vlm2vec.fit(lessons, tmp_path / "fit", course=course, adapters=Adapters(0, chunk=4), run=4)
    found = []
    for system in (vlm2vec, made, VLM2Vec.from_folder(tmp_path / "fit", "float32")):
        scores = system.encode([one.query for one in lessons], "query")
        scores = scores @ system.encode([one.right for one in lessons], "document").T
        found.append(float((scores.argmax(axis=1) == np.arange(len(lessons))).mean()))
    assert found[0] < 0.5 < found[1] == found[2]
    with pytest.raises(BadInput, match="other settings or data"):
        vlm2vec.fit(lessons, tmp_path / "fit", course=course, adapters=Adapters(0, chunk=4), run=2)


# --- doors -----------------------------------------------------------------------------------------------------------


def test_load_names_what_can_be_loaded_and_loads_it(vlm2vec: VLM2Vec, tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    ours = card("vlm2vec")
    assert [one["name"][:24] for one in ours.checkpoints if one["format"] == REMOTE] == ["TIGER-Lab/VLM2Vec-Full: "]
    with pytest.raises(MissingWeights) as caught:
        VLM2Vec.load(ours, Stages(settings))
    assert "`VLM2Vec/VLM2Vec-V2.0`" in caught.value.hint
    assert "VLM2Vec-Full" not in caught.value.hint
    folder = put(settings.weights / "vlm2vec", vlm2vec.backbone)
    given = [Query("an owl"), Query(QUESTION, picture(tmp_path, 1).media)]
    plain = VLM2Vec.load(ours, Stages(settings)).encode(given, "query")
    assert (plain * vlm2vec.encode(given, "query")).sum(axis=1).min() > 0.98
    put_adapter(folder, vlm2vec.backbone)
    adapted = VLM2Vec.from_folder(folder, "float32").encode(given, "query")
    assert np.abs(adapted - plain).max() > 0.01
