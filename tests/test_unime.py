"""UniME: its one-word prompts, left padding, and the losses of its two stages against loops."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from triptych import Settings, progress
from triptych.errors import BadInput, Cancelled, MissingWeights
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.fitting import Course
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM
from triptych.retrievers.universal._contrastive_training import Adapters, Lesson
from triptych.retrievers.universal._mllm import REMOTE, Backbone
from triptych.retrievers.universal._unime_training import Student, taught, vectors_of
from triptych.retrievers.universal.unime import (
    BEYOND,
    HARD,
    TEMPERATURE,
    TURNS,
    UniME,
    distillation,
    hard_negative_loss,
    hard_negatives,
)
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
from mllm_files import headed, picture, put

TINY = {kind: UniME.tiny(0, kind) for kind in TURNS}
SENTENCE = "A man is crossing the street with a red car parked nearby."


@pytest.fixture(params=TURNS)
def unime(request: pytest.FixtureRequest) -> UniME:
    return TINY[request.param]


def prompt(system: UniME, one: Item | Query) -> str:
    said = system.said(one)
    return said.before + said.text + said.after


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_the_prompts_of_the_repository(tmp_path: Path) -> None:
    llava = TINY["llava_next"]
    assert prompt(llava, Query(SENTENCE)) == f"[INST] {SENTENCE}\nSummary above sentence in one word: [/INST]"
    shown = picture(tmp_path, 1)
    assert prompt(llava, shown) == "[INST] <image>\nSummary above image in one word: [/INST]"
    assert prompt(llava, Query(None, shown.media)) == prompt(llava, shown)


def test_what_the_repository_has_no_words_for(unime: UniME, tmp_path: Path) -> None:
    before, after = TURNS[unime.backbone.kind]
    both = picture(tmp_path, 1, "an owl")
    assert prompt(unime, both) == f"{before}<image>\nan owl\nSummary above image and sentence in one word:{after}"
    page = picture(tmp_path, 2, "its own text", "page")
    assert prompt(unime, page) == f"{before}<image>\nSummary above image in one word:{after}"
    told = Query("owls", both.media, "Find a picture like it, but")
    assert prompt(unime, told).startswith(f"{before}<image>\nFind a picture like it, but owls\nSummary")
    alone = Query(None, both.media, "Find a caption.")
    assert prompt(unime, alone) == f"{before}<image>\nFind a caption.\nSummary above image in one word:{after}"
    assert (
        prompt(unime, Query("owls", instruction="Find"))
        == f"{before}Find owls\nSummary above sentence in one word:{after}"
    )
    text = Item("t", "Berlin", Source("a/b.md"), meta={"title": "Rates"})
    assert prompt(unime, text) == f"{before}Rates\nBerlin\nSummary above sentence in one word:{after}"


def test_the_request_is_never_cut(unime: UniME) -> None:
    said = unime.said(Query("owl " * 500))
    ids = unime.backbone.read(said, unime.longest).ids
    assert len(ids) <= unime.longest
    end = unime.backbone.tokenizer.encode(said.after, add_special_tokens=False).ids
    assert ids[-len(end) :] == end


def test_it_is_the_last_hidden_state_of_a_batch_padded_on_the_left(unime: UniME, tmp_path: Path) -> None:
    queries = [Query(SENTENCE), Query("an owl"), Query("")]
    found = unime.encode(queries, "query")
    whole = headed(unime.backbone)
    ids = [unime.backbone.tokenizer.encode(prompt(unime, one)).ids for one in queries]
    longest = max(map(len, ids))
    rows = torch.tensor([[0] * (longest - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    with torch.inference_mode():
        states = whole(rows, attention_mask=mask, output_hidden_states=True).hidden_states[-1][:, -1]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(states, dim=-1).numpy(), atol=1e-5)
    assert unime.encode([picture(tmp_path, 1)], "document").shape == (1, 64)


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(one - max(row)) for one in row]
    return [one / sum(powers) for one in powers]


def cosines(one: torch.Tensor, other: torch.Tensor) -> list[list[float]]:
    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    return [[cosine(a, b) for b in other.tolist()] for a in one.tolist()]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 6), st.integers(0, 99))
def test_distillation_is_the_sum_of_its_equation(count: int, seed: int) -> None:
    student, teacher = drawn(seed, count, 3), drawn(seed + 1, count, 7)
    total = 0.0
    for ours, theirs in zip(cosines(student, student), cosines(teacher, teacher), strict=True):
        p, q = (softmax([one / 0.3 for one in row]) for row in (theirs, ours))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / count
    assert float(distillation(student, teacher, 0.3)) == pytest.approx(total, abs=1e-5)
    assert total >= 0


def test_distillation_compares_similarities_and_not_vectors() -> None:
    teacher = drawn(1, 5, 8)
    turn, _ = torch.linalg.qr(drawn(2, 12, 12))
    student = torch.cat([teacher, torch.zeros(5, 4)], dim=1) @ turn * 7
    assert float(distillation(student, teacher)) == pytest.approx(0, abs=1e-5)
    assert float(distillation(student.roll(1, 0), teacher, 0.3)) > 0.01
    with pytest.raises(BadInput, match="`5` vectors and `4` to learn from"):
        distillation(student, teacher[:4])


def test_only_the_student_learns_and_its_distribution_is_the_one_inside_the_logarithm() -> None:
    student, teacher = drawn(1, 4, 3).requires_grad_(), drawn(2, 4, 5).requires_grad_()
    loss = distillation(student, teacher, 0.3)
    loss.backward()
    assert student.grad is not None and bool(student.grad.abs().max() > 0)
    assert teacher.grad is None
    assert float(loss.detach()) != pytest.approx(float(distillation(teacher, student, 0.3).detach()), rel=1e-2)


# --- stage 2 ---------------------------------------------------------------------------------------------------------


def by_loop(table: list[list[float]], beyond: float, hard: int, temperature: float) -> float:
    """The loss with a list of negatives that is as short as it has to be."""
    total = 0.0
    for row, scores in enumerate(table):
        left = [one for place, one in enumerate(scores) if place != row and not one > scores[row] + beyond]
        chosen = sorted(left, reverse=True)[:hard]
        total -= math.log(softmax([one / temperature for one in (scores[row], *chosen)])[0])
    return total / len(table)


@given(st.integers(1, 12), st.integers(0, 999), st.integers(1, 10), st.sampled_from([-0.5, 0.0, 0.1, 1.0]))
def test_the_loss_is_that_of_a_loop(count: int, seed: int, hard: int, beyond: float) -> None:
    queries, candidates = drawn(seed, count, 4), drawn(seed + 1, count, 4)
    wanted = by_loop(cosines(queries, candidates), beyond, hard, 0.2)
    assert float(hard_negative_loss(queries, candidates, beyond, hard, 0.2)) == pytest.approx(wanted, abs=1e-4)


def test_a_candidate_drops_out_only_when_it_is_better_by_more_than_beta() -> None:
    table = torch.tensor([[0.5, 0.61, 0.59, 0.2], [0.1, 0.9, 0.0, 0.3], [0.0, 0.0, 0.9, 0.0], [0.0, 0.0, 0.0, 0.9]])
    columns, counts = hard_negatives(table)
    assert columns[0][counts[0]].tolist() == [2, 3]
    assert columns[1][counts[1]].tolist() == [3, 0, 2]
    assert counts.sum(dim=1).tolist() == [2, 3, 3, 3]
    nearer, kept = hard_negatives(table, beyond=-0.1)
    assert nearer[0][kept[0]].tolist() == [3]  # the usual sign would leave near ones out


def test_a_copy_of_the_right_candidate_stays_a_negative() -> None:
    vectors = drawn(3, 4, 6)
    vectors[1] = vectors[0]
    queries = vectors + 0.05 * drawn(4, 4, 6)
    similarities = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    columns, counts = hard_negatives(similarities)
    assert columns[0, 0] == 1 and bool(counts[0, 0])
    assert bool(similarities[0, 1] == similarities[0, 0])


def test_what_was_filtered_never_comes_back() -> None:
    """The trap of the released code: fewer candidates left than places."""
    own, others = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    queries, candidates = others.repeat(5, 1), torch.cat([own, others.repeat(4, 1)])
    columns, counts = hard_negatives(queries @ candidates.T)
    assert columns.shape == (5, 4)
    assert counts[0].tolist() == [False] * 4
    assert counts[1:].sum(dim=1).tolist() == [4] * 4
    alone = hard_negative_loss(queries[:1], candidates[:1])
    assert float(alone) == 0
    known = torch.ones(5, 5, dtype=torch.bool)
    assert not hard_negatives(queries @ candidates.T, right=known)[1].any()
    assert float(hard_negative_loss(queries, candidates, right=known)) == 0
    wanted = by_loop(cosines(queries, candidates), BEYOND, HARD, TEMPERATURE)
    assert float(hard_negative_loss(queries, candidates)) == pytest.approx(wanted, abs=1e-5)


def test_rows_without_negatives_have_gradients_that_are_numbers() -> None:
    queries = torch.tensor([[0.0, 1.0]] * 3, requires_grad=True)
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    hard_negative_loss(queries, candidates).backward()
    for one in (queries.grad, candidates.grad):
        assert one is not None and bool(one.isfinite().all())
    assert queries.grad is not None and bool((queries.grad[0] == 0).all())


def test_more_places_than_rows_and_lengths_do_not_matter() -> None:
    queries, candidates = drawn(1, 5, 4), drawn(2, 5, 4)
    few, many = (hard_negative_loss(queries, candidates, hard=hard) for hard in (4, 99))
    assert float(few) == float(many)
    assert float(hard_negative_loss(queries * 9, candidates * 0.1)) == pytest.approx(float(many), rel=1e-4)
    assert (BEYOND, HARD, TEMPERATURE) == (0.1, 8, 0.02)
    for one, other in ((5, 4), (0, 0)):
        with pytest.raises(BadInput, match=f"`{one}` queries and `{other}` candidates"):
            hard_negative_loss(queries[:one], candidates[:other])


def test_candidates_of_no_query_are_negatives_of_all() -> None:
    queries, candidates = drawn(1, 3, 4), drawn(2, 5, 4)
    wanted = 0.0
    for row, scores in enumerate(cosines(queries, candidates)):
        left = sorted((one for place, one in enumerate(scores) if place != row), reverse=True)[:2]
        wanted -= math.log(softmax([one / 0.2 for one in (scores[row], *left)])[0]) / 3
    assert float(hard_negative_loss(queries, candidates, 2.0, 2, 0.2)) == pytest.approx(wanted, abs=1e-4)


# --- learning --------------------------------------------------------------------------------------------------------

TEXTS = [
    f"{what} {where} {when}" for what in ("an owl", "a ferry") for where in ("barn", "sea") for when in ("now", "late")
]


def lesson(folder: Path, texts: list[str] = TEXTS) -> Path:
    """What a text encoder says of them, of another size than the student's vectors."""
    return taught(AllMiniLM.tiny(0), texts, folder)


def gap(system: UniME, folder: Path) -> float:
    ours = system.encode([Query(one) for one in TEXTS], "query")
    return float(distillation(torch.from_numpy(ours), torch.from_numpy(np.array(vectors_of(folder, TEXTS)))))


def test_the_language_part_learns_from_a_text_encoder_and_the_rest_stays(tmp_path: Path) -> None:
    unime = TINY["llava_next"]
    folder = lesson(tmp_path / "teacher")
    assert vectors_of(folder, TEXTS).shape[1] != unime.space.dim
    before = {key: values.clone() for key, values in unime.backbone.model.state_dict().items()}
    course = Course(epochs=8, batch=8, rate=1e-2, every=8)
    made = unime.fit(TEXTS, folder, tmp_path / "fit", course=course, adapters=Adapters(rank=4, dropout=0.0))
    assert gap(made, folder) < 0.5 * gap(unime, folder)
    after = made.backbone.model.state_dict()
    assert after.keys() == before.keys()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved and all(key.startswith("language_model.layers.") and "_proj" in key for key in moved)
    assert all(torch.equal(values, before[key]) for key, values in unime.backbone.model.state_dict().items())
    again = UniME.from_folder(tmp_path / "fit", "float32")
    np.testing.assert_allclose(
        again.encode([Query("an owl")], "query"), made.encode([Query("an owl")], "query"), atol=1e-6
    )
    [kept] = (tmp_path / "fit" / "checkpoints").glob("checkpoint-8/model.safetensors")
    assert all("lora_" in key for key in load_file(kept))


def test_a_stopped_fit_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    folder, system = lesson(tmp_path / "teacher"), UniME.tiny(1)
    course, adapters = Course(epochs=2, batch=4, rate=1e-2, every=2), Adapters(rank=2)
    straight = system.fit(TEXTS, folder, tmp_path / "one", course=course, adapters=adapters)
    stop = Event()

    def told(done: int, total: int | None, what: str) -> None:
        if what == "training steps" and done >= 3:
            stop.set()

    with progress.reporting(told, cancelled=stop), pytest.raises(Cancelled):
        system.fit(TEXTS, folder, tmp_path / "two", course=course, adapters=adapters)
    gone_on = system.fit(TEXTS, folder, tmp_path / "two", course=course, adapters=adapters)
    for key, values in straight.backbone.model.state_dict().items():
        torch.testing.assert_close(gone_on.backbone.model.state_dict()[key], values, atol=1e-4, rtol=0)
    with pytest.raises(BadInput, match="other settings or data"):
        system.fit(TEXTS, folder, tmp_path / "one", course=course, adapters=Adapters(rank=3))


def test_a_batch_read_in_parts_has_the_same_gradients() -> None:
    language = UniME.tiny(2).backbone.model.language_model
    ids = torch.randint(0, 200, (6, 5), generator=torch.Generator().manual_seed(0))
    mask, teacher = torch.ones(6, 5, dtype=torch.long), drawn(1, 6, 7)
    mask[0, :3] = 0
    found = []
    for chunk in (0, 2):
        language.zero_grad()
        loss = Student(language, distillation, chunk)(ids, mask, teacher)["loss"]
        loss.backward()
        found.append((loss.detach(), language.layers[0].self_attn.q_proj.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


NAMES = "amber birch cedar delta ember fjord grove heath".split()


def pairs(folder: Path) -> list[Lesson]:
    """Names with the picture, or the text, that each stands for."""
    shown = [replace(picture(folder, n), id=f"i{n}") for n in range(4)]
    told = [Item(f"i{n}", f"where {NAMES[n - 4]} grows", Source("a.txt")) for n in range(4, 8)]
    return [Lesson(Query(name, instruction="Find it:"), one) for name, one in zip(NAMES, shown + told, strict=True)]


def untold(system: UniME, data: list[Lesson]) -> float:
    """The loss over all lessons."""
    items = system.encode([one.right for one in data], "document")
    queries = system.encode([one.query for one in data], "query")
    return float(hard_negative_loss(torch.from_numpy(queries), torch.from_numpy(items)))


@pytest.mark.parametrize("rank", [0, 4])
def test_the_second_stage_learns_from_pairs_of_any_modality(rank: int, tmp_path: Path) -> None:
    unime, data = TINY["llava_next"], pairs(tmp_path)
    before = {key: values.clone() for key, values in unime.backbone.model.state_dict().items()}
    course = Course(epochs=40, batch=8, rate=2e-3 if rank == 0 else 5e-3, every=40)
    adapters = Adapters(rank, dropout=0.0, chunk=3)
    made = unime.fit_pairs(data, tmp_path / "fit", course=course, adapters=adapters, hard=4)
    assert untold(made, data) < 0.7 * untold(unime, data)
    assert all(torch.equal(values, before[key]) for key, values in unime.backbone.model.state_dict().items())
    moved = {key for key, values in made.backbone.model.state_dict().items() if not torch.equal(values, before[key])}
    assert moved and all(key.startswith("language_model.layers.") for key in moved) == bool(rank)
    again = UniME.from_folder(tmp_path / "fit", "float32")
    again.longest = made.longest
    np.testing.assert_allclose(
        again.encode([one.right for one in data], "document"),
        made.encode([one.right for one in data], "document"),
        atol=1e-5,
    )
    with pytest.raises(BadInput, match="`fit` holds a fit with other settings or data"):
        unime.fit_pairs(data, tmp_path / "fit", course=course, adapters=adapters, hard=5)


def test_a_stopped_second_stage_goes_on(tmp_path: Path) -> None:
    system, data = UniME.tiny(1), pairs(tmp_path)
    course, adapters = Course(epochs=3, batch=4, rate=1e-3, every=2), Adapters(rank=0, chunk=2)
    straight = system.fit_pairs(data, tmp_path / "one", course=course, adapters=adapters)
    stop = Event()

    def told(done: int, total: int | None, what: str) -> None:
        if what == "training steps" and done >= 3:
            stop.set()

    with progress.reporting(told, cancelled=stop), pytest.raises(Cancelled):
        system.fit_pairs(data, tmp_path / "two", course=course, adapters=adapters)
    gone_on = system.fit_pairs(data, tmp_path / "two", course=course, adapters=adapters)
    for key, values in straight.backbone.model.state_dict().items():
        torch.testing.assert_close(gone_on.backbone.model.state_dict()[key], values, atol=1e-4, rtol=0)


def test_a_teacher_of_other_texts_is_refused(tmp_path: Path) -> None:
    folder = lesson(tmp_path / "teacher")
    with pytest.raises(BadInput, match="vectors of other texts"):
        TINY["llava_next"].fit(TEXTS[::-1], folder, tmp_path / "fit")
    with pytest.raises(BadInput, match=r"no `teacher\.npy`"):
        TINY["llava_next"].fit(TEXTS, tmp_path, tmp_path / "fit")
    with pytest.raises(BadInput, match="`1` texts"):
        TINY["llava_next"].fit(TEXTS[:1], folder, tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


# --- doors -----------------------------------------------------------------------------------------------------------


def test_load_and_what_is_refused(unime: UniME, tmp_path: Path) -> None:
    settings = Settings.load("embedded", home=tmp_path)
    ours = card("unime")
    with pytest.raises(MissingWeights) as caught:
        UniME.load(ours, Stages(settings))
    assert "`DeepGlint-AI/UniME-LLaVA-1.6-7B`" in caught.value.hint and "Phi" not in caught.value.hint
    assert [one["name"].split(":")[0] for one in ours.checkpoints if one["format"] == REMOTE] == [
        "DeepGlint-AI/UniME-Phi3.5-V-4.2B"
    ]
    put(settings.weights / "unime", unime.backbone)
    assert UniME.load(ours, Stages(settings)).encode([Query("an owl")], "query").shape == (1, 64)
    with pytest.raises(BadInput, match="The backbone is `qwen2_vl`"):
        UniME(Backbone.tiny("qwen2_vl"))
