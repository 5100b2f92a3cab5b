"""UniME-V2: prompts, squares, what is mined, what the judge is asked and says, and the loss against a loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych import Settings
from triptych.errors import BadInput, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.fitting import Course
from triptych.retrievers.lm import LM, Prompt, ScriptedLM
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal._mllm import Backbone
from triptych.retrievers.universal.unime_v2 import (
    EPSILON,
    JUDGE,
    MINED,
    SQUARES,
    TEMPERATURE,
    UniMEV2,
    alignment,
    judge_prompt,
    judged,
    mined,
)
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
from mllm_files import picture, put

TINY = {kind: UniMEV2.tiny(0, kind) for kind in SQUARES}


@pytest.fixture(params=SQUARES)
def unime(request: pytest.FixtureRequest) -> UniMEV2:
    return TINY[request.param]


def text(number: int, words: str) -> Item:
    return Item(f"t{number}", words, Source(f"a/{number}.md"), meta={"title": words.split()[0]})


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_the_prompts_of_the_example_and_of_its_data(unime: UniMEV2, tmp_path: Path) -> None:
    def prompt(one: Item | Query, side: str) -> str:
        said = unime.said(one, side)  # type: ignore[arg-type]
        return said.before + said.text + said.after

    mark = {"qwen2_vl": "<|image_pad|>", "llava_onevision": "<image>"}[unime.backbone.kind]
    shown, both = picture(tmp_path, 1), picture(tmp_path, 2, "an owl")
    assert prompt(shown, "document") == f"{mark} Find an image caption describing the given image."
    assert prompt(Query(None, shown.media), "query") == prompt(shown, "document")
    assert prompt(Query("A man is crossing."), "query") == "A man is crossing."
    assert prompt(text(1, "Rates in Berlin"), "document") == "Rates in Berlin"
    asked = Query("what is it?", both.media)
    assert prompt(asked, "query") == f"{mark} Represent the given image with the following question: what is it?"
    assert prompt(both, "document") == f"{mark} Represent the given image with related text information: an owl"
    assert prompt(Query("owl", both.media, "Find it:"), "query") == f"{mark} Find it: owl"


def test_pictures_are_the_squares_of_the_training(tmp_path: Path) -> None:
    for kind, edge in {"qwen2_vl": 672, "llava_onevision": 336}.items():
        [shown] = UniMEV2(TINY[kind].backbone).said(picture(tmp_path, 1, width=99), "document").pictures
        assert shown.size == (edge, edge)


# --- mining ----------------------------------------------------------------------------------------------------------


def test_what_is_as_like_as_the_right_one_is_not_mined() -> None:
    found = mined(np.array([0.9, 0.2, 0.5, 0.5, 0.7, 0.49, 0.1]), right=0.5)
    assert found.tolist() == [5, 1, 6]
    assert mined(np.array([0.9, 0.8]), right=0.5).tolist() == []


@given(st.lists(st.floats(-1, 1), max_size=120), st.floats(-1, 1))
def test_at_most_fifty_most_alike_first(similarities: list[float], right: float) -> None:
    found = mined(np.array(similarities), right).tolist()
    below = sorted((one for one in similarities if one < right), reverse=True)
    assert [similarities[place] for place in found] == below[:MINED]
    assert MINED == 50 and len(set(found)) == len(found)


# --- the judge -------------------------------------------------------------------------------------------------------


class Judge(LM):
    """Says Yes by as much as the candidate repeats words of the query."""

    can = frozenset({"logits", "images"})

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        assert list(candidates) == ["Yes", "No"]
        self.asked += prompts
        rows = [[float(sum(str(part).count("owl") for part in prompt)), 1.0] for prompt in prompts]
        return np.array(rows, np.float32)


def test_the_judge_says_yes_or_no_of_one_candidate_at_a_time() -> None:
    lm = Judge()
    found = judged(lm, Query("owl"), [text(1, "An owl, an owl"), text(2, "A ferry")])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [1 / (1 + math.exp(-2)), 0.5], atol=1e-6)
    assert list(lm.asked[1]) == [JUDGE, "Query:", "owl", "Candidate:", "A ferry"]
    assert judged(lm, Query("owl"), []).shape == (0,)


def test_pictures_are_shown_in_front_of_the_words(tmp_path: Path) -> None:
    shown, page = picture(tmp_path, 1, "an owl"), picture(tmp_path, 2, modality="page")
    assert judge_prompt(Query("owl", shown.media), page) == [
        JUDGE,
        "Query:",
        shown.media,
        "owl",
        "Candidate:",
        page.media,
    ]
    assert judge_prompt(Query("owl"), shown)[-2:] == [shown.media, "an owl"]
    blind = ScriptedLM(can=["logits"])
    with pytest.raises(Unsupported, match="`images`"):
        judged(blind, Query("owl"), [page])
    assert judged(blind, Query("owl"), [text(1, "An owl")]).shape == (1,)
    with pytest.raises(Unsupported, match="`logits`"):
        judged(ScriptedLM(can=["generate"]), Query("owl"), [text(1, "An owl")])


def test_large_logits_are_no_overflow() -> None:
    class Sure(Judge):
        def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
            return np.array([[4000, -4000], [-4000, 4000]], np.float32)

    assert judged(Sure(), Query("q"), [text(1, "a"), text(2, "b")]).tolist() == [1, 0]


# --- the loss --------------------------------------------------------------------------------------------------------


def by_loop(cosines: list[list[float]], scores: list[list[float]], temperature: float) -> float:
    total = 0.0
    for row, wanted in zip(cosines, scores, strict=True):
        p, t = ([math.exp((one - max(values)) / temperature) for one in values] for values in (row, wanted))
        p, t = ([one / sum(values) for one in values] for values in (p, t))
        forth = sum(b * (math.log(b + EPSILON) - math.log(a + EPSILON)) for a, b in zip(p, t, strict=True))
        back = sum(a * (math.log(a + EPSILON) - math.log(b + EPSILON)) for a, b in zip(p, t, strict=True))
        total += 0.5 * (forth + back)
    return total / len(cosines)


TABLES = st.lists(st.tuples(*[st.floats(0, 1)] * 9), min_size=1, max_size=4)


@given(TABLES, st.data())
def test_the_loss_is_that_of_a_loop(cosines: list[tuple[float, ...]], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.tuples(*[st.floats(0, 1)] * 9), min_size=len(cosines), max_size=len(cosines)))
    found = float(alignment(torch.tensor(cosines), torch.tensor(scores)))
    assert found == pytest.approx(by_loop([*map(list, cosines)], [*map(list, scores)], TEMPERATURE), rel=1e-3, abs=1e-4)
    assert found >= -1e-6


def test_it_is_symmetric_and_zero_where_they_agree() -> None:
    one, other = torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0.7, 0.72, 0.2]])
    assert float(alignment(one, other)) == pytest.approx(float(alignment(other, one)), rel=1e-6)
    assert float(alignment(one, one + 0.05)) == pytest.approx(0, abs=1e-5)
    assert (TEMPERATURE, EPSILON) == (0.02, 1e-8)


def gradient(cosines: list[float]) -> torch.Tensor:
    """Of the loss with a judge that is sure of the first one."""
    ours, scores = torch.tensor([cosines], requires_grad=True), torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    loss = alignment(ours, scores)
    loss.backward()
    assert scores.grad is None
    assert ours.grad is not None
    assert bool(ours.grad.isfinite().all())
    assert math.isfinite(float(loss.detach()))
    return ours.grad[0]


def test_a_judge_that_is_sure_draws_the_right_one_up_and_the_others_down() -> None:
    right, wrong, far = gradient([0.5, 0.6, 0.1]).tolist()
    assert right < -1 and wrong > 1 and abs(far) < 0.01


def test_a_right_one_that_is_far_behind_learns_nothing() -> None:
    """What is added before the logarithm holds back probabilities below it: a gap of tau * ln(1 / epsilon) = 0.37."""
    gap = TEMPERATURE * math.log(1 / EPSILON)
    near, beyond = (float(gradient([0.5, 0.5 + gap + more, 0.1])[0]) for more in (-0.1, 0.1))
    assert near < -20
    assert abs(beyond) < 1


def test_there_is_a_score_for_each() -> None:
    with pytest.raises(BadInput, match=r"`\(1, 3\)` and scores `\(1, 2\)`"):
        alignment(torch.ones(1, 3), torch.ones(1, 2))


# --- learning --------------------------------------------------------------------------------------------------------


def judged_lessons(folder: Path) -> list[Lesson]:
    """Each asks for one of four items and has two others, of which the judge likes the first as well."""
    items = [picture(folder, 1), text(2, "an owl"), text(3, "a ferry"), text(4, "the printer")]
    return [
        Lesson(Query(f"number {n}"), items[n], (items[n - 1], items[n - 2]), scores=(0.9, 0.9, 0.0)) for n in range(4)
    ]


def test_it_learns_what_the_judge_says_and_not_the_label(tmp_path: Path) -> None:
    system, lessons = TINY["qwen2_vl"], judged_lessons(tmp_path)
    course, adapters = Course(epochs=40, batch=4, rate=1e-3, every=40), Adapters(0, chunk=3)
    made = system.fit(lessons, tmp_path / "fit", course=course, adapters=adapters)
    for ours, learned in ((system, False), (made, True), (UniMEV2.from_folder(tmp_path / "fit", "float32"), True)):
        ours.edge = system.edge
        queries = ours.encode([one.query for one in lessons], "query")
        lists = [ours.encode([one.right, *one.wrong], "document") for one in lessons]
        cosines = torch.tensor(np.einsum("qd,qcd->qc", queries, np.stack(lists)))
        loss = float(alignment(cosines, torch.tensor([one.scores for one in lessons])))
        assert (loss < 1.0) is learned
        if learned:
            assert bool((cosines[:, :2].amin(1) > cosines[:, 2]).all())
            assert float((cosines[:, 0] - cosines[:, 1]).abs().max()) < 0.1


def test_scores_for_each_candidate_and_a_loss_are_part_of_the_fit(tmp_path: Path) -> None:
    system, lessons = TINY["qwen2_vl"], judged_lessons(tmp_path)
    for wrong in (replace(lessons[0], scores=(1.0,)), replace(lessons[0], wrong=(), scores=(1.0,))):
        with pytest.raises(BadInput, match=f"`{len(wrong.wrong)}` wrong items and `1` scores"):
            system.fit([wrong], tmp_path / "fit")
    assert not (tmp_path / "fit").exists()

    def first_alone(cosines: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return -cosines[:, 0].mean()

    course, adapters = Course(epochs=1, batch=4, rate=1e-3), Adapters(0)
    system.fit(lessons, tmp_path / "fit", course=course, adapters=adapters, loss=first_alone)
    with pytest.raises(BadInput, match="other settings or data"):
        system.fit(lessons, tmp_path / "fit", course=course, adapters=adapters)


# --- doors -----------------------------------------------------------------------------------------------------------


def test_load_and_what_is_refused(unime: UniMEV2, tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    with pytest.raises(MissingWeights) as caught:
        UniMEV2.load(card("unime_v2"), Stages(settings))
    assert "`TianchengGu/UniME-V2-Qwen2VL-7B`" in caught.value.hint
    put(settings.weights / "unime_v2", unime.backbone)
    given_ = [Query("an owl"), Query(media=MediaRef(str(picture(tmp_path, 1).media.uri), "image/png"))]  # type: ignore[union-attr]
    made = UniMEV2.load(card("unime_v2"), Stages(settings))
    assert made.edge == SQUARES[unime.backbone.kind]
    assert made.encode(given_, "query").shape == (2, 64)
    with pytest.raises(BadInput, match="The backbone is `llava_next`"):
        UniMEV2(Backbone.tiny("llava_next"))
