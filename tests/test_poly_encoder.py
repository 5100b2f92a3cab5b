"""Poly-encoder: the two attentions of the paper, what m = 1 comes to, the search that misses nothing, and learning."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file

from triptych import progress
from triptych.errors import BadInput, Cancelled, MissingWeights, StoreError
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, Query, Source, Space, Where
from triptych.retrievers.fitting import CHECKPOINTS
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.stores.vectors import VectorStore
from triptych.retrievers.text import poly_encoder as module
from triptych.retrievers.text._poly_network import SHAPE, PolyNetwork, read, write
from triptych.retrievers.text._poly_training import Collator, Fitting
from triptych.retrievers.text.poly_encoder import Example, PolyEncoder, Shape, poly_scores

WORDS = ("owl", "barn", "ferry", "noon", "hotel", "desk", "fox", "moon", "rain", "salt")
TEXTS = [f"{a} {b} {a}{b}" for a in WORDS for b in WORDS if a != b]
ITEMS = [Item(f"i{n:03}", text, Source(f"notes/{n % 2}/{n}.md")) for n, text in enumerate(TEXTS)]
QUERY = "where is the owl and when is the ferry"
SMALL = Shape(m=4, query_pieces=64, passage_pieces=128)
SHAPES = [
    SMALL,
    replace(SMALL, attention="scaled"),
    replace(SMALL, candidate="first", scaling=0.25),
    replace(SMALL, variant="first", m=3),
    replace(SMALL, variant="mean", m=1),
]


@pytest.fixture(scope="module")
def filled() -> PolyEncoder:
    made = PolyEncoder.tiny(0)
    made.add(ITEMS)
    return made


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a BERT, as they stand on a model hub."""
    folder = tmp_path_factory.mktemp("bert")
    tiny = PolyEncoder.tiny(5)
    tiny.network.context.save_pretrained(folder)
    tiny.pieces.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def scores_of(poly: PolyEncoder, query: str, texts: list[str]) -> np.ndarray:
    temperature = poly.network.shape.temperature(poly.vectors.space.dim)
    return poly_scores(poly.contexts(query), poly.candidates(texts), temperature)


# --- the mechanism ---------------------------------------------------------------------------------------------------


def looped(contexts: np.ndarray, candidate: np.ndarray, temperature: float) -> float:
    """Section 4.4, word by word: what the candidate attends to, times the candidate."""
    weights = softmax([float(context @ candidate) / temperature for context in contexts])
    attended = [sum(w * float(row[n]) for w, row in zip(weights, contexts, strict=True)) for n in range(len(candidate))]
    return sum(a * float(y) for a, y in zip(attended, candidate, strict=True))


FLOATS = st.floats(-8, 8, width=32)


@given(
    arrays(np.float32, (3, 5), elements=FLOATS), arrays(np.float32, (4, 5), elements=FLOATS), st.sampled_from([1, 3])
)
def test_a_score_is_that_of_the_papers_formula(contexts: np.ndarray, candidates: np.ndarray, temperature: int) -> None:
    found = poly_scores(contexts, candidates, temperature)
    wanted = [looped(contexts.astype(float), one.astype(float), temperature) for one in candidates]
    assert found == pytest.approx(wanted, abs=1e-5)
    each = candidates.astype(float) @ contexts.astype(float).T
    assert (found <= each.max(axis=1) + 1e-5).all(), "the bound that the search relies on"
    assert (found >= each.mean(axis=1) - 1e-5).all()


def test_codes_attend_over_the_token_states() -> None:
    for shape in SHAPES[:3]:
        poly = PolyEncoder.tiny(1, shape)
        network = poly.network
        [ids] = poly.pieces.queries([QUERY])
        with torch.no_grad():
            states = network.context(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy() * shape.scaling
            codes = network.codes.numpy()  # type: ignore[union-attr]
        temperature = shape.temperature(states.shape[1])
        wanted = []
        for code in codes:
            weights = softmax([float(code @ state) / temperature for state in states])
            wanted.append(sum(w * state for w, state in zip(weights, states, strict=True)))
        np.testing.assert_allclose(poly.contexts(QUERY), wanted, atol=1e-5)


def test_first_takes_the_first_states_as_many_as_there_are() -> None:
    poly = PolyEncoder.tiny(1, SHAPES[3])
    [ids] = poly.pieces.queries([QUERY])
    with torch.no_grad():
        states = poly.network.context(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(poly.contexts(QUERY), states[:3], atol=1e-6)
    assert len(PolyEncoder.tiny(1, replace(SHAPES[3], m=60)).contexts("a")) == 3


@pytest.mark.parametrize("variant", ["codes", "first", "mean"])
def test_one_vector_is_a_bi_encoder(variant: Any) -> None:
    """Its scores are inner products and its order is that of the store's own search."""
    poly = PolyEncoder.tiny(2, replace(SMALL, variant=variant, m=1))
    poly.add(ITEMS)
    [context] = poly.contexts(QUERY)
    assert scores_of(poly, QUERY, TEXTS) == pytest.approx(poly.candidates(TEXTS) @ context, abs=1e-4)
    plain = poly.vectors.search(context, 20)
    found = poly.search(Query(QUERY), 20)
    assert [hit.score for hit in found] == pytest.approx([score for _, score in plain], abs=1e-4)
    assert {hit.item.id for hit in found[:5]} == {id_ for id_, _ in plain[:5]}


def test_a_code_of_zeros_is_the_mean() -> None:
    poly, mean = PolyEncoder.tiny(2, replace(SMALL, m=1)), PolyEncoder.tiny(2, SHAPES[4])
    mean.network.context.load_state_dict(poly.network.context.state_dict())
    with torch.no_grad():
        poly.network.codes.zero_()  # type: ignore[union-attr]
    np.testing.assert_allclose(poly.contexts(QUERY), mean.contexts(QUERY), atol=1e-6)


def test_the_order_of_several_vectors_is_no_order_of_inner_products() -> None:
    """What makes it more than a bi-encoder: each of two passages wins by the facet that it matches."""
    contexts = np.array([[6.0, 0.0], [0.0, 6.0]])
    left, right, both = np.array([[1.0, 0.0], [0.0, 1.0], [0.55, 0.55]])
    assert poly_scores(contexts, np.array([left, right])).min() > poly_scores(contexts, both[None])[0]
    middle = contexts.mean(axis=0)
    assert both @ middle > max(left @ middle, right @ middle)


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_in_training_are_those_of_a_search(shape: Shape) -> None:
    poly = PolyEncoder.tiny(3, shape)
    queries = [QUERY, "fox", "a"]
    with torch.no_grad():
        contexts = poly.network.contexts(*poly.pieces.padded(poly.pieces.queries(queries)))
        candidates = poly.network.candidates(*poly.pieces.padded(poly.pieces.passages(TEXTS[:5])))
        found = poly.network.scores(*contexts, candidates).numpy()
    for query, row in zip(queries, found, strict=True):
        assert row == pytest.approx(scores_of(poly, query, TEXTS[:5]), abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_and_batches_change_nothing(shape: Shape) -> None:
    poly = PolyEncoder.tiny(3, shape)
    texts = ["owl", "", "a much longer text of many more pieces", "你好 🙂"]
    together = poly.candidates(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(poly.candidates([text])[0], row, atol=1e-5)
    ids, mask = poly.pieces.padded(poly.pieces.queries(["owl", texts[2]]))
    with torch.no_grad():
        made, there = poly.network.contexts(ids, mask)
    np.testing.assert_allclose(made[0][there[0]].numpy(), poly.contexts("owl"), atol=1e-5)


def test_a_text_beyond_the_window_is_read_to_its_end_of_it() -> None:
    poly = PolyEncoder.tiny(0)
    long = " ".join(chr(97 + n * n % 26) for n in range(500))
    assert len(poly.pieces.queries([long])[0]) == 64
    assert len(poly.pieces.passages([long])[0]) == 128
    assert np.array_equal(poly.contexts(long), poly.contexts(long + " owl"))


# --- the search ------------------------------------------------------------------------------------------------------


def exhaustive(poly: PolyEncoder, query: str, k: int, items: list[Item]) -> list[str]:
    scores = scores_of(poly, query, [searchable_text(item) for item in items])
    return [
        item.id for _, item in sorted(zip(-scores.round(4), items, strict=True), key=lambda row: (row[0], row[1].id))
    ][:k]


@pytest.mark.parametrize("first", [1, 4, 64])
def test_a_search_finds_what_scoring_everything_finds(
    filled: PolyEncoder, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORTLIST", first)
    for query in (QUERY, "fox moon", "salt", "zzz", "🙂"):
        for k in (1, 5, 90):
            assert [hit.item.id for hit in filled.search(Query(query), k)] == exhaustive(filled, query, k, ITEMS)


def test_a_search_stops_at_the_most_candidates(filled: PolyEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTLIST", 1)
    monkeypatch.setattr(module, "MOST_CANDIDATES", 1)
    scored: list[int] = []
    plain = poly_scores

    def counted(contexts: np.ndarray, candidates: np.ndarray, temperature: float) -> np.ndarray:
        scored.append(len(candidates))
        return plain(contexts, candidates, temperature)

    monkeypatch.setattr(module, "poly_scores", counted)
    assert len(filled.search(Query(QUERY), 3)) == 3
    assert len(scored) == 1
    assert scored[0] <= 4 * 6


def test_a_filter_holds_in_every_list(filled: PolyEncoder) -> None:
    where = Where(uri_prefix="notes/1/")
    found = filled.search(Query(QUERY), 10, where)
    assert [hit.item.id for hit in found] == exhaustive(filled, QUERY, 10, ITEMS[1::2])


def test_equal_passages_stand_by_id() -> None:
    poly = PolyEncoder.tiny(0)
    poly.add([Item(f"n{n}", "the same owl", Source("a.txt")) for n in (3, 1, 2)])
    assert [hit.item.id for hit in poly.search(Query("owl"), 3)] == ["n1", "n2", "n3"]


def test_an_interrupted_add_leaves_nothing_that_takes_a_place() -> None:
    """An item without its vector is not found until it is added again."""
    poly = PolyEncoder.tiny(0)
    poly.store.upsert(ITEMS[:2], {})
    assert poly.search(Query("owl"), 5) == []
    poly.add(ITEMS[:2])
    assert len(poly.search(Query("owl"), 5)) == 2


def test_vectors_of_nan_are_refused_and_nothing_is_written() -> None:
    poly = PolyEncoder.tiny(0)
    with torch.no_grad():
        poly.network.candidate.embeddings.word_embeddings.weight.fill_(math.nan)
    with pytest.raises(BadInput, match="NaN"):
        poly.add(ITEMS[:3])
    assert (poly.stats().items, poly.vectors.count()) == (0, 0)
    with torch.no_grad():
        poly.network.context.embeddings.word_embeddings.weight.fill_(math.nan)
    with pytest.raises(BadInput, match="NaN"):
        poly.search(Query("owl"), 3)


def test_a_library_of_another_dimension_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model", PolyEncoder.tiny(0).network, PolyEncoder.tiny(0).pieces.tokenizer)
    other = VectorStore(tmp_path / "library", Space("poly_encoder", "dense", 8, "ip"))
    other.upsert(ITEMS[:1], np.ones((1, 8), np.float32))
    other.close()
    poly = PolyEncoder.from_folder(tmp_path / "model", tmp_path / "library", None)
    with pytest.raises(StoreError):
        poly.add(ITEMS[:2])


# --- its folder ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for number, shape in enumerate(SHAPES):
        poly = PolyEncoder.tiny(4, shape)
        write(tmp_path / str(number), poly.network, poly.pieces.tokenizer)
        again = PolyEncoder.from_folder(tmp_path / str(number), precision="float32")
        assert again.network.shape == shape
        assert np.array_equal(again.contexts(QUERY), poly.contexts(QUERY))
        assert np.array_equal(again.candidates(TEXTS[:3]), poly.candidates(TEXTS[:3]))


def changed(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("codes"), "lacks `codes`"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown `extra`"),
        (lambda t: t.update(codes=torch.zeros(4, 8)), "another shape of `codes`"),
        (lambda t: t.pop("candidate.embeddings.LayerNorm.bias"), "lacks `candidate.embeddings.LayerNorm.bias`"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, change: Any, named: str) -> None:
    poly = PolyEncoder.tiny(0)
    write(tmp_path, poly.network, poly.pieces.tokenizer)
    with pytest.raises(BadInput, match=named):
        read(changed(tmp_path, change))


def test_a_folder_of_something_else_says_what_it_is(start: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no poly-encoder"):
        read(start)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    for door in (read, lambda folder: PolyNetwork.started(folder, SMALL, 0)):
        with pytest.raises(BadInput, match="`roberta`"):
            door(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", SHAPE: {"colour": "blue"}}))
    with pytest.raises(BadInput, match="colour"):
        read(tmp_path)


def test_without_weights_the_card_says_what_makes_them(tmp_path: Path) -> None:
    settings = SimpleNamespace(weights=tmp_path, precision="float32", store_uri="", store_token="")
    parts: Any = SimpleNamespace(settings=settings, device="cpu")
    with pytest.raises(MissingWeights, match=r"PolyEncoder\.fit") as caught:
        PolyEncoder.load(card("poly_encoder"), parts)
    assert "none that are published" in caught.value.message
    tiny = PolyEncoder.tiny(0)
    write(tmp_path / "poly_encoder", tiny.network, tiny.pieces.tokenizer)
    loaded = PolyEncoder.load(card("poly_encoder"), parts)
    assert np.array_equal(loaded.contexts(QUERY), tiny.contexts(QUERY))


@pytest.mark.parametrize(
    "wrong",
    [
        {"variant": "last"},
        {"m": 0},
        {"variant": "mean", "m": 2},
        {"attention": "x"},
        {"scaling": 0},
        {"query_pieces": 2},
    ],
)
def test_a_shape_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="of a poly-encoder is"):
        Shape(**wrong)


def test_more_pieces_than_the_model_reads_are_refused() -> None:
    with pytest.raises(BadInput, match="`500` word pieces"):
        PolyEncoder.tiny(0, Shape(passage_pieces=500))


# --- learning --------------------------------------------------------------------------------------------------------

PAIRS = [Example(f"{a} {b}", f"passage {b}{a}", (f"passage {a}{b}",)) for a in WORDS[:6] for b in WORDS[:6] if a != b]
FAST = Fitting(epochs=4, batch=8, rate=5e-3, code_rate=5e-2, every=10)


def test_learning_lowers_the_loss_and_is_read_back(start: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    with progress.reporting(lambda done, total, what: steps.append(done)):
        fitted = PolyEncoder.fit(PAIRS, tmp_path, start, SMALL, PAIRS[:8], FAST)
    poly = PolyEncoder.from_folder(tmp_path, precision="float32")
    before = PolyNetwork.started(start, SMALL, 0).eval()
    batch = Collator(poly.pieces, {})(PAIRS[:8])
    with torch.no_grad():
        assert poly.network(**batch)["loss"] < before(**batch)["loss"] - 0.1
    assert fitted.held_loss is not None
    assert fitted.steps > 0
    assert max(steps) >= fitted.steps - 1


def test_the_same_seed_learns_the_same(start: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        PolyEncoder.fit(PAIRS, tmp_path / name, start, SMALL, how=replace(FAST, epochs=1))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(values, two[name]) for name, values in one.items())


def test_a_fit_that_was_stopped_goes_on(start: Path, tmp_path: Path) -> None:
    how = replace(FAST, epochs=2, every=2)

    def stop(done: int, total: int | None, what: str) -> None:
        if done == 5:
            raise Cancelled("stopped")

    with progress.reporting(stop), pytest.raises(Cancelled):
        PolyEncoder.fit(PAIRS, tmp_path / "cut", start, SMALL, how=how)
    assert (tmp_path / "cut" / CHECKPOINTS / "checkpoint-4").is_dir()
    seen: list[int] = []
    with progress.reporting(lambda done, total, what: seen.append(done)):
        PolyEncoder.fit(PAIRS, tmp_path / "cut", start, SMALL, how=how)
    assert min(seen) == 4
    PolyEncoder.fit(PAIRS, tmp_path / "whole", start, SMALL, how=how)
    cut, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    for name, values in whole.items():
        assert torch.allclose(values, cut[name], atol=1e-5), name
    with pytest.raises(BadInput, match="other settings or data"):
        PolyEncoder.fit(PAIRS[1:], tmp_path / "cut", start, SMALL, how=how)


def test_what_is_frozen_stays(start: Path, tmp_path: Path) -> None:
    PolyEncoder.fit(PAIRS, tmp_path, start, SMALL, how=replace(FAST, epochs=1, layers=0, candidates=False))
    before = PolyNetwork.started(start, SMALL, 0).state_dict()
    after = load_file(tmp_path / "model.safetensors")
    moved = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert moved == {"codes"}
    with pytest.raises(BadInput, match="Nothing learns"):
        PolyEncoder.fit(PAIRS, tmp_path / "b", start, SHAPES[4], how=replace(FAST, layers=0, candidates=False))


def test_a_passage_that_also_answers_is_no_negative() -> None:
    poly = PolyEncoder.tiny(0)
    batch = Collator(poly.pieces, {})([Example("a", "one", ("two",)), Example("b", "two"), Example("c", "one")])
    assert batch["right"].tolist() == [[True, True, True], [False, True, False], [True, False, True]]
    with torch.no_grad():
        contexts = poly.network.contexts(batch["ids"], batch["mask"])
        candidates = poly.network.candidates(batch["candidate_ids"], batch["candidate_mask"])
        scores = poly.network.scores(*contexts, candidates)
        wanted = -(math.log(1) + sum(torch.log_softmax(scores[row, columns], 0)[at] for row, columns, at in
                                     [(1, [0, 1, 2], 1), (2, [1, 2], 1)])) / 3  # fmt: skip
        assert float(poly.network(**batch)["loss"]) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize(
    ("data", "named"),
    [([], "`0` examples"), ([Example("a", "x"), Example("b", "x")], "`2` examples"),
     ([Example(" ", "x"), Example("b", "y")], "no query"), ([Example("a", ""), Example("b", "y")], "no query or no")],
)  # fmt: skip
def test_data_that_teach_nothing_are_refused(start: Path, tmp_path: Path, data: list[Example], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        PolyEncoder.fit(data, tmp_path / "out", start, SMALL)
    assert not (tmp_path / "out").exists()


def test_a_loss_of_nan_ends_it_and_no_model_is_written(start: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="The loss is `nan`"):
        PolyEncoder.fit(PAIRS, tmp_path, start, SMALL, how=replace(FAST, rate=1e30))
    assert not (tmp_path / "model.safetensors").exists()
