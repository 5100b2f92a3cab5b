"""ColBERT: queries filled up with masks, passages without punctuation, MaxSim; published names; two ways to learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.progress import reporting
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.stores.vectors import VectorStore, max_sim
from triptych.retrievers.text import _late_interaction as losses
from triptych.retrievers.text import colbert as module
from triptych.retrievers.text._colbert_training import Fitting, Lesson
from triptych.retrievers.text.colbert import DIM, ColBERT, Lengths

TEXTS = ["The cat sat.", "", "?!,", "x " * 500, "Zoë paid 12 €, 你好 🙂", "a", "hello, world"]
TINY = ColBERT.tiny(0)


def item(text: str, number: int = 0) -> Item:
    return Item(f"i{number}", text, Source("", 0, len(text)))


ITEMS = [item(text, number) for number, text in enumerate(TEXTS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model as the published one stands on its hub."""
    TINY.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def pieces(text: str, side: Any) -> list[str | None]:
    return [TINY.tokenizer.id_to_token(number) for number in TINY.sequences([text], side)[0]]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_a_query_is_marked_and_filled_up_with_masks() -> None:
    assert pieces("ab c", "query") == ["[CLS]", "[unused0]", "a", "##b", "c", "[SEP]", *["[MASK]"] * 26]
    [vectors] = TINY.encode([Query("ab c")], "query")
    assert vectors.shape == (32, DIM)
    assert vectors.dtype == np.float32


def test_a_passage_is_marked_and_loses_its_punctuation() -> None:
    assert pieces("a, b!", "document") == ["[CLS]", "[unused1]", "a", ",", "b", "!", "[SEP]"]
    [vectors] = TINY.encode([item("a, b!")], "document")
    assert len(vectors) == 5
    [whole] = _states(TINY.sequences(["a, b!"], "document"), "document")
    np.testing.assert_allclose(vectors, whole[[0, 1, 2, 4, 6]], atol=1e-6)


def _states(sequences: list[list[int]], side: Any) -> list[np.ndarray]:
    """All vectors, by the network alone."""
    found = []
    for ids in sequences:
        row, mask, _ = TINY.padded([ids], side)
        with torch.inference_mode():
            found.append(TINY.network(torch.from_numpy(row), torch.from_numpy(mask))[0].numpy())
    return found


def test_texts_beyond_the_window_are_cut_with_their_end_mark() -> None:
    assert pieces("q " * 500, "query") == ["[CLS]", "[unused0]", *["q"] * 29, "[SEP]"]
    assert pieces("q " * 500, "document") == ["[CLS]", "[unused1]", *["q"] * 217, "[SEP]"]
    lengths = [len(one) for one in TINY.encode(ITEMS, "document")]
    assert max(lengths) == 220
    assert min(lengths) == 3


def test_no_piece_attends_to_a_mask_but_masks_have_vectors_of_their_own() -> None:
    [ids] = TINY.sequences(["ab c"], "query")
    [with_masks] = _states([ids], "query")
    [without] = _states([ids[:6]], "query")
    np.testing.assert_allclose(with_masks[:6], without, atol=1e-5)
    assert np.abs(with_masks[6] - with_masks[7]).max() > 1e-3
    [other] = TINY.encode([Query("ab d")], "query")
    assert np.abs(with_masks[20] - other[20]).max() > 1e-3


def test_vectors_have_unit_length_and_do_not_depend_on_padding() -> None:
    together = TINY.encode(ITEMS, "document")
    for one, found in zip(ITEMS, together, strict=True):
        [alone] = TINY.encode([one], "document")
        np.testing.assert_allclose(found, alone, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    backwards = TINY.encode(ITEMS[::-1], "document")[::-1]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(together, backwards, strict=True))


def test_nothing_gives_nothing_and_media_is_refused() -> None:
    assert TINY.encode([], "document") == TINY.encode([], "query") == []
    with pytest.raises(Unsupported, match="`None`"):
        TINY.encode([Query(media=MediaRef("a.png", "image/png"))], "query")
    assert [TINY.reads(Query(text)) for text in ("travel", "差旅补贴", None)] == [True, False, False]


def test_nan_is_refused_before_anything_is_written() -> None:
    broken = ColBERT.tiny(1)
    with torch.no_grad():
        broken.network.linear.weight[0, 0] = torch.nan
    with pytest.raises(BadInput, match="gives `nan`"):
        broken.encode(ITEMS, "document")


def test_work_stops_after_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_PIECES", 1)
    cancelled = Event()
    with reporting(lambda done, total, what: cancelled.set() if done else None, cancelled=cancelled):
        with pytest.raises(Cancelled):
            TINY.encode(ITEMS, "document")


def test_the_same_seed_gives_the_same_model() -> None:
    one, two, other = (ColBERT.tiny(seed).encode(ITEMS[:1], "document")[0] for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other)


# --- MaxSim ----------------------------------------------------------------------------------------------------------


def test_max_sim_equals_the_double_loop_and_leaves_out_what_is_not_kept() -> None:
    chance = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(2, 3, 4, generator=chance), torch.randn(6, 5, 4, generator=chance)
    kept = torch.rand(6, 5, generator=chance) > 0.4
    kept[:, 0] = True
    documents[~kept] = 100.0  # what is left out would win every time
    found = losses.max_sim(queries, documents, kept)
    for a, query in enumerate(queries):
        for b, document in enumerate(documents):
            wanted = sum(max(float(q @ d) for d, k in zip(document, kept[b], strict=True) if k) for q in query)
            assert float(found[a, b]) == pytest.approx(wanted, abs=1e-4)
            assert max_sim(query.numpy(), document[kept[b]].numpy(), "ip") == pytest.approx(wanted, abs=1e-4)
    own = losses.own_scores(queries, documents, kept)
    torch.testing.assert_close(own, torch.stack([found[0, :3], found[1, 3:]]))


def test_squared_distance_of_unit_vectors_gives_the_same_order() -> None:
    [query] = TINY.encode([Query("a b")], "query")
    documents = TINY.encode(ITEMS, "document")
    cosine = [max_sim(query, one, "cosine") for one in documents]
    distance = [-sum(min(float(((q - d) ** 2).sum()) for d in one) for q in query) for one in documents]
    np.testing.assert_allclose(distance, [2 * score - 2 * len(query) for score in cosine], atol=1e-2)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_pairs_cost_the_cross_entropy_of_right_against_wrong() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    pairs = [(2, 1), (2, 0), (0, 3), (0, 1)]
    wanted = -sum(math.log(math.exp(right) / (math.exp(right) + math.exp(wrong))) for right, wrong in pairs) / 4
    assert float(losses.pairwise(scores)) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(BadInput, match="`1` passage"):
        losses.pairwise(scores[:, :1])


def test_distillation_is_the_divergence_from_the_teacher_to_us() -> None:
    scores, teacher = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[5.0, 0.0, 1.0]])
    p, q = (0.5 * teacher).softmax(1)[0], scores.softmax(1)[0]
    wanted = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    assert float(losses.distillation(scores, teacher, alpha=0.5)) == pytest.approx(wanted, abs=1e-6)
    assert float(losses.distillation(scores, scores)) == pytest.approx(0, abs=1e-6)
    other = sum(float(b) * math.log(float(b) / float(a)) for a, b in zip(p, q, strict=True))
    assert abs(wanted - other) > 1e-3


def test_in_batch_the_right_passage_is_each_querys_first() -> None:
    scores = torch.tensor([[9.0, 0, 0, 0], [0, 0, 9.0, 0]])
    assert float(losses.in_batch(scores, 2)) < 0.001
    assert float(losses.in_batch(scores.flip(0), 2)) > 8


# --- where it comes from ---------------------------------------------------------------------------------------------


def test_a_checkpoint_with_the_published_names_is_loaded(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    assert {"linear.weight", "bert.embeddings.word_embeddings.weight"} <= names
    assert {name.partition(".")[0] for name in names} == {"bert", "linear"}

    def as_published(tensors: dict[str, Any]) -> None:
        tensors["bert.pooler.dense.weight"] = torch.zeros(32, 32)
        tensors["bert.embeddings.position_ids"] = torch.arange(256)[None]

    loaded = ColBERT.from_folder(changed(folder, as_published))
    for one, other in zip(TINY.encode(ITEMS, "document"), loaded.encode(ITEMS, "document"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("linear.weight"), r"has no `linear\.weight`"),
        (lambda tensors: tensors.pop("bert.encoder.layer.0.output.dense.bias"), r"has no `bert\.encoder\.layer\.0"),
        (lambda tensors: tensors.update({"bert.encoder.layer.1.output.dense.bias": torch.zeros(32)}), "has `bert.enc"),
        (lambda tensors: tensors.update({"linear.bias": torch.zeros(DIM)}), r"has `linear\.bias`"),
        (lambda tensors: tensors.update({"linear.weight": torch.zeros(96, 32)}), r"shape `\(96, 32\)` and not \(128"),
    ],
)
def test_other_tensors_are_named(folder: Path, change: Callable[[dict[str, Any]], None], told: str) -> None:
    with pytest.raises(Unsupported, match=told):
        ColBERT.from_folder(changed(folder, change))


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}), "utf-8")
    with pytest.raises(Unsupported, match="is a `roberta`"):
        ColBERT.from_folder(folder)
    (folder / "config.json").write_text("no json", "utf-8")
    with pytest.raises(Unsupported, match="`checkpoint` cannot be read"):
        ColBERT.from_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"has no `model\.safetensors`"):
        ColBERT.from_folder(folder)


def test_lengths_are_those_beside_the_weights(folder: Path) -> None:
    (folder / "artifact.metadata").write_text(json.dumps({"query_maxlen": 8, "doc_maxlen": 16}), "utf-8")
    loaded = ColBERT.from_folder(folder)
    assert [len(one) for one in loaded.encode([Query("x " * 99)], "query")] == [8]
    assert len(loaded.encode([item("x " * 99)], "document")[0]) == 16
    (folder / "artifact.metadata").unlink()
    assert ColBERT.from_folder(folder).lengths == Lengths(32, 220)
    with pytest.raises(BadInput, match="reads 4 to 256 pieces"):
        ColBERT(TINY.network, TINY.tokenizer, Lengths(32, 300))


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    with pytest.raises(BadInput, match=r"no `\[CLS\]`"):
        ColBERT(TINY.network, Tokenizer(WordLevel({"a": 0}, unk_token="a")))


def test_any_bert_can_begin(folder: Path) -> None:
    def plain(tensors: dict[str, Any]) -> None:
        tensors.pop("linear.weight")
        for name in list(tensors):
            tensors[name.removeprefix("bert.")] = tensors.pop(name)

    begun = ColBERT.from_bert(changed(folder, plain), seed=1)
    rows = begun.network.linear.weight.detach()
    torch.testing.assert_close(rows.T @ rows, torch.eye(32), atol=1e-5, rtol=0)
    same = begun.network.bert.state_dict()
    assert all(torch.equal(values, same[name]) for name, values in TINY.network.bert.state_dict().items())


def test_load_reads_the_folder_of_the_home(folder: Path, tmp_path: Path) -> None:
    settings = SimpleNamespace(weights=tmp_path, precision="float32", threads=0)
    parts: Any = SimpleNamespace(settings=settings, device="cpu")
    with pytest.raises(MissingWeights, match=r"has no `config\.json`") as caught:
        ColBERT.load(card("colbert"), parts)
    assert "`colbert-ir/colbertv2.0`" in caught.value.hint
    (tmp_path / "colbert").symlink_to(folder)
    [found] = ColBERT.load(card("colbert"), parts).encode([Query("a")], "query")
    np.testing.assert_allclose(found, TINY.encode([Query("a")], "query")[0], atol=1e-6)


# --- learning --------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrst"
LESSONS = [Lesson(f"{a} {a} ?", (f"{a} yes", f"{LETTERS[n - 1]} no"), (4.0, 0.0)) for n, a in enumerate(LETTERS)]
QUICK = Fitting(rate=3e-3, batch=5, epochs=6, every=4, held=0.2, patience=99)


def right(colbert: ColBERT) -> float:
    """Share of lessons whose first passage scores higher than their second."""
    won = 0
    for lesson in LESSONS:
        [query] = colbert.encode([Query(lesson.query)], "query")
        yes, no = (
            max_sim(query, one, "cosine") for one in colbert.encode(list(map(item, lesson.passages)), "document")
        )
        won += yes > no
    return won / len(LESSONS)


@pytest.mark.parametrize("fitting", [QUICK, Fitting(**{**vars(QUICK), "loss": "teacher", "in_batch": True})])
def test_it_learns_and_what_it_learned_is_loaded(fitting: Fitting, tmp_path: Path) -> None:
    before = TINY.network.linear.weight.clone()
    taught = TINY.fit(LESSONS, tmp_path, fitting)
    assert torch.equal(before, TINY.network.linear.weight)
    assert right(taught) >= max(0.9, right(TINY))
    loaded = ColBERT.from_folder(tmp_path)
    np.testing.assert_allclose(loaded.encode(ITEMS, "document")[0], taught.encode(ITEMS, "document")[0], atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    told = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert told[-1] < told[0]


def test_an_interrupted_fit_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = TINY.fit(LESSONS, tmp_path / "whole", QUICK)
    cancelled, steps = Event(), []

    def watch(done: int, total: int | None, what: str) -> None:
        if what == "training steps":
            steps.append(done)
            if done == 10:
                cancelled.set()

    with reporting(watch, cancelled=cancelled), pytest.raises(Cancelled):
        TINY.fit(LESSONS, tmp_path / "cut", QUICK)
    with reporting(watch):
        resumed = TINY.fit(LESSONS, tmp_path / "cut", QUICK)
    assert steps[:10] == list(range(1, 11))
    assert steps[10] == 9  # the checkpoint before was of step 8
    torch.testing.assert_close(whole.network.linear.weight, resumed.network.linear.weight, atol=1e-5, rtol=1e-4)


def test_it_stops_when_it_no_longer_learns(tmp_path: Path) -> None:
    steps: list[int] = []
    still = Fitting(**{**vars(QUICK), "rate": 0.0, "every": 1, "patience": 2})
    with reporting(lambda done, total, what: steps.append(done) if what == "training steps" else None):
        TINY.fit(LESSONS, tmp_path, still)
    assert steps[-1] < 24


def test_only_the_last_layers_learn(tmp_path: Path) -> None:
    taught = TINY.fit(LESSONS, tmp_path, Fitting(**{**vars(QUICK), "layers": 0, "epochs": 1}))
    frozen, other = TINY.network.state_dict(), taught.network.state_dict()
    assert [name for name in frozen if not torch.equal(frozen[name], other[name])] == ["linear.weight"]


@pytest.mark.parametrize(
    ("lessons", "loss", "told"),
    [
        (LESSONS[:1], "pairs", "`1` lessons"),
        ([*LESSONS, Lesson("q", ("a",))], "pairs", r"of \[1, 2\] passages"),
        ([Lesson("q", ("a",)), Lesson("r", ("b",))], "pairs", "`1` passage"),
        ([LESSONS[0], Lesson("q", ("a", "b"))], "teacher", "Lesson `1` has no teacher"),
        ([LESSONS[0], Lesson("q", ("a", "b"), (math.nan, 1.0))], "teacher", "Lesson `1` has no teacher"),
    ],
)
def test_lessons_that_do_not_suit_are_refused(lessons: list[Lesson], loss: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=told):
        TINY.fit(lessons, tmp_path / "none", Fitting(loss=loss))
    assert not (tmp_path / "none").exists()


def test_a_folder_with_another_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text(json.dumps({"lessons": "others"}), "utf-8")
    with pytest.raises(BadInput, match="holds a fit of other lessons"):
        TINY.fit(LESSONS, tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]


# --- in a library's store --------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    made = VectorStore(tmp_path / "library", ColBERT.space)
    yield made
    made.close()


def test_the_store_finds_what_max_sim_finds(store: VectorStore) -> None:
    vectors = TINY.encode(ITEMS, "document")
    store.upsert(ITEMS, vectors)
    [query] = TINY.encode([Query("hello cat")], "query")
    scores = {one.id: max_sim(query, rows, "cosine") for one, rows in zip(ITEMS, vectors, strict=True)}
    found = store.search(query, 4)
    assert [key for key, _ in found] == sorted(scores, key=lambda key: (-round(scores[key], 4), key))[:4]


def test_vectors_of_another_dimension_are_refused_and_nothing_is_written(store: VectorStore) -> None:
    store.upsert(ITEMS[:1], TINY.encode(ITEMS[:1], "document"))
    with pytest.raises(BadInput, match=r"shape `\(3, 96\)`"):
        store.upsert(ITEMS[1:2], [np.ones((3, 96), np.float32)])
    assert store.ids() == ["i0"]
