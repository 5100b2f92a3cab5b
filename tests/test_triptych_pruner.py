"""Our own pruner: what it reads, how it learns, the weights in the package, and what the refiner makes of them."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from triptych.errors import Unsupported
from triptych.refiners.base import Budget
from triptych.refiners.hard.triptych_pruner import NOTE, KeepRelevance, TriptychPruner
from triptych.rerankers.finetuned import triptych_pruner
from triptych.rerankers.finetuned._pruner_export import exported, in_float32, random_weights
from triptych.rerankers.finetuned._pruner_training import Collator, Example, Network, fit, sentence_logits
from triptych.rerankers.finetuned.triptych_pruner import FOLDER, MAX_PIECES, Pruner, session, windows
from triptych.rerankers.finetuned.triptych_reranker import TriptychReranker
from triptych.retrievers.base import Hit, Item, Query, Source

TEXTS = [
    "Leo wrote it. Nobody else did, at 9 am.",
    "",
    "x" * 900,
    "One is short. Two is a longer one. " * 30,
    "中文 👩‍🔬",
]
BERLIN = (
    "Berlin is the capital of Germany. A hotel night there costs at most 120 EUR. Breakfast is not included in that "
    "rate. Trains run every ten minutes. The river Spree crosses the city from east to west, past many old museums."
)
WEIGHTS = resources.files("triptych.rerankers.finetuned") / FOLDER


@pytest.fixture(scope="module")
def tiny() -> Pruner:
    return Pruner.tiny(0)


@pytest.fixture(scope="module")
def shipped() -> Pruner:
    return Pruner.shipped(threads=1)


def hits(*texts: str) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source(f"{n}.md"), meta={"title": "A"}), 1.0) for n, text in enumerate(texts)]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_reading_says_something_about_every_token(tiny: Pruner) -> None:
    for text, reading in zip(TEXTS, tiny.read("who wrote it?", TEXTS), strict=True):
        assert len(reading.offsets) == len(reading.keep)
        assert 0 <= reading.score <= 1
        assert ((reading.keep >= 0) & (reading.keep <= 1)).all()
        assert (np.diff(reading.offsets[:, 0]) >= 0).all()
        assert reading.offsets.max(initial=0) <= len(text)
        assert not reading.keep.flags.writeable
    [nothing] = tiny.read("who?", [""])
    assert (nothing.score, len(nothing.keep), nothing.tokens) == (0.0, 0, 0)


def test_a_text_is_read_as_it_is_alone() -> None:
    together = Pruner(*_parts(0), threads=3).read("who wrote it?", TEXTS)
    alone = [Pruner.tiny(0).read("who wrote it?", [text])[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one.score == other.score
        assert np.array_equal(one.keep, other.keep)


def test_what_was_read_is_remembered(tiny: Pruner, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny.read("who?", TEXTS[:1])
    monkeypatch.setattr(tiny, "_session", None)
    assert tiny.read("who?", TEXTS[:1])[0] is before[0]


def test_a_lone_surrogate_and_a_long_query_are_read(tiny: Pruner) -> None:
    [reading] = tiny.read("why " * 2000, ["\ud800 lone"])
    assert len(reading.keep) == 5


@given(
    st.lists(st.sampled_from(["One. ", "Two and three. ", "word " * 9, "x" * 30, "\n\n", "你好。"])), st.integers(1, 9)
)
def test_windows_tile_the_text_and_end_with_sentences(parts: list[str], size: int) -> None:
    text = "".join(parts)
    starts = np.array([n for n, character in enumerate(text) if not character.isspace()])
    found = list(windows(text, starts, size))
    assert [n for start, end in found for n in range(start, end)] == list(range(len(starts)))
    assert all(0 < end - start <= size for start, end in found)


def test_a_long_text_is_cut_between_sentences() -> None:
    text = "One is short. " * 4
    starts = np.array([n for n, character in enumerate(text) if not character.isspace()])
    assert list(windows(text, starts, 25)) == [(0, 22), (22, 44)]


def _parts(seed: int) -> tuple[Any, Any]:
    config, weights, tokenizer = random_weights(seed)
    return session(exported(config, weights, MAX_PIECES)), tokenizer


# --- the exported graph ----------------------------------------------------------------------------------------------


def test_both_forms_of_the_graph_say_what_the_network_says() -> None:
    config, weights, _ = random_weights(0)
    network = Network(BertModel(BertConfig(**config, hidden_act="gelu"), add_pooling_layer=False))
    heads = ("keep", "relevance")
    named = {name if name.startswith(heads) else f"bert.{name}": torch.from_numpy(w) for name, w in weights.items()}
    network.load_state_dict(named)
    ids, kinds = torch.tensor([[2, 5, 6, 3, 7, 8, 9, 3]]), torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    with torch.inference_mode():
        keep, relevance = network.eval().read(ids, kinds, torch.ones_like(ids))
    model = exported(config, weights, MAX_PIECES)
    feed = {"ids": ids.numpy(), "places": np.arange(8) + MAX_PIECES * kinds[0].numpy()}
    for form, off in ((model, 0.1), (in_float32(model), 0.05)):
        found = session(form).run(["keep", "relevance"], feed)
        assert np.abs(found[0] - keep.numpy()).max() < off
        assert abs(found[1][0, 0] - float(relevance)) < off


# --- learning --------------------------------------------------------------------------------------------------------


def example(text: str, kept: str, query: str = "who?", positive: bool = True) -> Example:
    start = text.find(kept) if kept else len(text)
    levels = np.zeros(len(text), np.float32)
    levels[start : start + len(kept)] = 1
    numbers = np.array([int(n >= len(text) // 2) for n in range(len(text))], np.int64)
    targets = np.array([float(levels[numbers == n].any()) for n in (0, 1)], np.float32)
    return Example(query, text, levels, numbers, targets, np.full(2, np.nan, np.float32), positive)


@pytest.fixture
def learner() -> tuple[Network, Collator]:
    config, _, tokenizer = random_weights(0)
    torch.manual_seed(0)
    return Network(BertModel(BertConfig(**config), add_pooling_layer=False)), Collator(tokenizer)


QUESTIONS = [
    [example("leo did it so it is", "leo", "who?"), example("nobody at all has", "", "who?", False)],
    [example("it is not so ida can", "ida", "who else?"), example("rain and wind came on", "", "who else?", False)],
]


def test_a_batch_holds_what_is_known_piece_by_piece(learner: tuple[Network, Collator]) -> None:
    _, collate = learner
    batch = collate(QUESTIONS)
    assert batch["ids"].shape == batch["levels"].shape == batch["sentences"].shape
    assert batch["question"].tolist() == [0, 0, 1, 1]
    assert batch["passage_of"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch["positive"].tolist() == [1, 0, 1, 0]
    first = batch["levels"][0][batch["kinds"][0] == 1]
    assert first[:3].tolist() == [1, 1, 1] and not first[3:].any()
    assert set(batch["sentences"].flatten().tolist()) == {-1, *range(8)}
    assert ((batch["known"] == 1) == (batch["sentences"] >= 0)).all()


def test_a_sentence_is_worth_the_mean_over_its_pieces() -> None:
    pieces, numbers = torch.tensor([[9.0, 1.0, 3.0, 5.0]]), torch.tensor([[-1, 0, 0, 1]])
    assert sentence_logits(pieces, numbers, 3).tolist() == [2, 5, 0]


def test_losses_fall_where_the_network_is_right(learner: tuple[Network, Collator]) -> None:
    network, collate = learner
    batch = collate(QUESTIONS)
    told = {name: float(loss.detach()) for name, loss in network(**batch).items()}
    assert told["teacher"] == 0
    assert told["loss"] == pytest.approx(
        told["words"] + told["sentences"] + told["passages"] + 0.5 * told["absolute"], rel=1e-5
    )
    right = triptych_losses(20 * (2 * batch["levels"] - 1), 20 * (2 * batch["positive"] - 1), batch)
    assert right["passages"] < 1e-6 < told["passages"]
    assert right["words"] < 1e-6 < told["words"]


def triptych_losses(pieces: torch.Tensor, passages: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    from triptych.rerankers.finetuned._pruner_training import _losses

    return {name: float(loss) for name, loss in _losses(pieces, passages, batch).items()}


def test_training_is_seeded_and_goes_on_where_it_stopped(learner: tuple[Network, Collator], tmp_path: Path) -> None:
    network, collate = learner
    start = {name: value.clone() for name, value in network.state_dict().items()}
    data = QUESTIONS * 4

    def trained(folder: str) -> dict[str, torch.Tensor]:
        network.load_state_dict(start)
        return dict(fit(network, data, tmp_path / folder, collate, questions=2, every=2, seed=3).state_dict())

    first = {name: value.clone() for name, value in trained("one").items()}
    assert all(torch.equal(first[name], value) for name, value in trained("two").items())
    assert not torch.equal(first["keep.weight"], start["keep.weight"])
    assert torch.equal(first["bert.embeddings.word_embeddings.weight"], start["bert.embeddings.word_embeddings.weight"])
    again = trained("one")
    assert all(torch.equal(first[name], value) for name, value in again.items())
    logged = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text("utf-8").splitlines()]
    assert {row["step"] for row in logged} == {4}


# --- the weights in the package --------------------------------------------------------------------------------------


def test_the_weights_are_small_and_have_a_card() -> None:
    files = {Path(str(path)).name: len(path.read_bytes()) for path in WEIGHTS.iterdir()}
    assert {"model.onnx", "tokenizer.json", "MODEL_CARD.md"} == set(files)
    assert sum(files.values()) <= 25 * 10**6
    card = (WEIGHTS / "MODEL_CARD.md").read_text("utf-8")
    assert "CC BY-SA 4.0" in card and "Natural Questions" in card and "all-MiniLM-L6-v2" in card


def test_the_passage_that_answers_comes_first(shipped: Pruner) -> None:
    texts = ["The museum opens at nine.", "A hotel night in Berlin costs at most 120 EUR.", "Berlin is a large city."]
    found = TriptychReranker(shipped).rank(Query("How much is a hotel in Berlin?"), hits(*texts))
    assert found.hits[0].item.id == "p1"
    assert found.tokens > 20


def test_the_sentence_that_answers_is_wanted_most(shipped: Pruner) -> None:
    spans = [(0, 33), (34, 76), (77, 119), (120, 149), (150, len(BERLIN))]
    scores = KeepRelevance(shipped).sentence_scores("How much does a hotel night cost?", BERLIN, spans)
    assert int(np.argmax(scores)) == 1


def test_a_window_with_the_answer_far_in_is_found(shipped: Pruner) -> None:
    filler = "The committee discussed the minutes of the previous meeting at length. " * 60
    text = filler + "The reactor reached criticality in March 1957. " + filler
    [reading] = shipped.read("When did the reactor reach criticality?", [text])
    assert len(reading.keep) > 2 * MAX_PIECES
    start, _ = reading.offsets[int(np.argmax(reading.keep))]
    assert len(filler) <= start < len(filler) + 47


# --- reranker and refiner --------------------------------------------------------------------------------------------


def test_a_query_without_text_is_refused() -> None:
    with pytest.raises(Unsupported, match="`None`"):
        TriptychReranker.tiny().rank(Query(), hits("a", "b"))


def test_passages_in_another_language_keep_their_places() -> None:
    given_hits = hits(
        "柏林是德国的首都。", "The cat sleeps on the mat.", "巴黎是法国的首都。", "A cat is a pet and it sleeps."
    )
    found = TriptychReranker.tiny().rank(Query("Where does the cat sleep?"), given_hits)
    assert [hit.item.id for hit in found.hits][::2] == ["p0", "p2"]
    untouched = TriptychReranker.tiny().rank(Query("柏林是什么"), given_hits[1:])
    assert [hit.item.id for hit in untouched.hits] == ["p1", "p2", "p3"]


def test_reranking_and_pruning_read_each_passage_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = TriptychReranker.tiny()
    given_hits = hits(BERLIN, BERLIN.replace("Berlin", "Paris"))
    reranker.rank(Query("How much is a hotel?"), given_hits)
    monkeypatch.setattr(reranker.pruner, "_session", None)
    refined = TriptychPruner(reranker.pruner).refine(Query("How much is a hotel?"), given_hits, Budget(30))
    assert 27 <= refined.used <= 30


def test_a_sentence_at_the_edge_keeps_its_numbers_and_negations(shipped: Pruner) -> None:
    refined = TriptychPruner(shipped).refine(Query("How much is a hotel night in Berlin?"), hits(BERLIN), Budget(12))
    assert "120 EUR" in refined.passages[0].text
    assert refined.used <= 12


@pytest.mark.parametrize("query", ["柏林的酒店多少钱一晚", "Was kostet eine Nacht im Hotel in der Stadt?"])
def test_another_language_takes_the_other_route_and_says_so(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refiner = TriptychPruner.tiny()
    monkeypatch.setattr(refiner._pruner, "read", lambda *_: pytest.fail("read by a network of English"))
    refined = refiner.refine(Query(query), hits(BERLIN, "柏林是德国的首都。酒店每晚一百二十欧元。"), Budget(25))
    assert refined.note == NOTE
    assert refiner.refine(Query("How much?"), hits("short"), Budget(25)).note is None


def test_the_module_names_its_source() -> None:
    assert "arXiv:2501.16214" in (triptych_pruner.__doc__ or "")
