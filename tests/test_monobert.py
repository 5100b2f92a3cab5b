"""monoBERT: one pass over query and passage, long passages in windows, and the same network in 8-bit integers."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sentence_transformers import CrossEncoder
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.progress import reporting
from triptych.rerankers.base import Limits
from triptych.rerankers.finetuned import monobert
from triptych.rerankers.finetuned._int8_cross import Int8Cross, exported
from triptych.rerankers.finetuned.monobert import AGAIN, MonoBERT, relevance
from triptych.retrievers.base import Hit, Item, Query, Source

QUERY = "where did the cat sit"
TEXTS = [
    "The cat sat on the mat.",
    "Stocks fell on Monday.",
    "",
    "A cat is a pet.",
    "x " * 300,
    "Zoë paid 12 €",
    "你好",
]
NAMES = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}


def hits(texts: list[str]) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source("f.txt"), meta={"title": text[:9]}), -n) for n, text in enumerate(texts)]


def scores(reranker: MonoBERT, texts: list[str], query: str = QUERY) -> list[float]:
    return [float(one.score or 0) for one in reranker.read(query, texts)]


def saved(reranker: MonoBERT, folder: Path, **config: Any) -> Path:
    """A folder as they stand on a model hub."""
    reranker.model.save_pretrained(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=reranker._plain, model_max_length=512, model_input_names=names, **NAMES
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny() -> MonoBERT:
    return MonoBERT.tiny(0)


@pytest.fixture(scope="module")
def folder(tiny: MonoBERT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny, tmp_path_factory.mktemp("cross"))


# --- what is read, and what is made of it ----------------------------------------------------------------------------


def test_scores_are_those_of_sentence_transformers(folder: Path, tiny: MonoBERT) -> None:
    short = [text for text in TEXTS if len(text) < 300]
    stock = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    logits = stock.predict(
        [(QUERY, text) for text in short], activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    wanted = torch.log_softmax(torch.from_numpy(logits), dim=1)[:, 1]
    loaded = MonoBERT.from_folder(folder, "float32")
    assert scores(loaded, short) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert scores(tiny, short) == pytest.approx(wanted.tolist(), abs=1e-5)


def test_query_and_passage_are_two_segments_between_the_marks(tiny: MonoBERT) -> None:
    [[pair]] = tiny._pairs("ab", ["cd"])
    tokens = [tiny._plain.id_to_token(token) for token in pair.ids]
    assert tokens == ["[CLS]", "a", "##b", "[SEP]", "c", "##d", "[SEP]"]
    assert list(pair.segments) == [0, 0, 0, 0, 1, 1, 1]


def test_a_query_is_cut_after_64_tokens(tiny: MonoBERT) -> None:
    [[pair]] = tiny._pairs("q " * 500, ["p"])
    assert list(pair.segments).count(0) == 64 + 2
    assert scores(tiny, TEXTS, "q " * 500) == scores(tiny, TEXTS, "q " * 64 + "z")


def test_a_long_passage_counts_by_its_best_window(tiny: MonoBERT) -> None:
    text = " ".join(chr(97 + n * n % 26) for n in range(1200))
    [pairs] = tiny._pairs("cat", [text])
    assert len(pairs) == 3
    assert all(len(pair.ids) <= 512 for pair in pairs)
    [read] = tiny.read("cat", [text])
    assert read.score == pytest.approx(max(relevance(tiny._logits([pair]))[0] for pair in pairs), abs=1e-5)
    assert read.tokens == sum(len(pair.ids) for pair in pairs)


def test_a_passage_without_end_is_read_so_far(tiny: MonoBERT) -> None:
    [pairs] = tiny._pairs("cat", ["word " * 20_000])
    assert len(pairs) == monobert.WINDOWS


def test_batches_change_nothing(tiny: MonoBERT) -> None:
    together = scores(tiny, TEXTS)
    assert together == pytest.approx([scores(tiny, [text])[0] for text in TEXTS], abs=1e-5)


@given(arrays(np.float32, (5, 2), elements=st.floats(-50, 50, width=32)))
def test_two_labels_give_a_log_softmax(logits: np.ndarray) -> None:
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), dim=1)[:, 1].numpy()
    assert relevance(logits) == pytest.approx(wanted, abs=1e-9)


def test_one_label_gives_its_logit_and_three_are_refused() -> None:
    assert relevance(np.array([[1.5], [-2.0]], np.float32)).tolist() == [1.5, -2.0]
    with pytest.raises(Unsupported, match="`3` labels"):
        relevance(np.zeros((1, 3), np.float32))


def test_a_ranking_is_by_score_and_counts_a_call_for_each_passage(tiny: MonoBERT) -> None:
    found = tiny.rank(Query(QUERY), hits(TEXTS))
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    assert all(hit.score < 0 for hit in found.hits)
    assert (found.calls, found.complete) == (len(TEXTS), True)
    limited = tiny.rank(Query(QUERY), hits(TEXTS), Limits(calls=3))
    assert (limited.calls, limited.reason) == (3, "calls limit: 3 of 7 hits")
    with pytest.raises(Unsupported, match="monoBERT reads text"):
        tiny.rank(Query(None), hits(TEXTS))


def test_work_stops_between_batches(tiny: MonoBERT) -> None:
    cancelled = Event()
    with reporting(lambda done, total, what: cancelled.set() if done else None, cancelled=cancelled):
        with pytest.raises(Cancelled):
            tiny.read(QUERY, ["a " * 400] * 12)


# --- where it comes from ---------------------------------------------------------------------------------------------


def test_without_weights_the_card_says_which(tmp_path: Path) -> None:
    settings = SimpleNamespace(weights=tmp_path, precision="auto", threads=1)
    parts: Any = SimpleNamespace(settings=settings, device="cpu")
    with pytest.raises(MissingWeights, match=r"has no `config\.json`") as caught:
        MonoBERT.load(card("monobert"), parts)
    assert "`castorini/monobert-large-msmarco`" in caught.value.hint
    assert "`weights/monobert`" in caught.value.hint


def test_load_reads_the_folder_of_the_home(folder: Path, tmp_path: Path, tiny: MonoBERT) -> None:
    (tmp_path / "monobert").symlink_to(folder)
    parts: Any = SimpleNamespace(
        settings=SimpleNamespace(weights=tmp_path, precision="float32", threads=0), device="cpu"
    )
    assert scores(MonoBERT.load(card("monobert"), parts), TEXTS) == pytest.approx(scores(tiny, TEXTS), abs=1e-5)


def test_a_model_without_room_for_a_passage_is_refused(tiny: MonoBERT) -> None:
    with pytest.raises(BadInput, match="reads `100` tokens"):
        MonoBERT(tiny.model, tiny._plain, 100)


# --- 8-bit integers --------------------------------------------------------------------------------------------------


def test_int8_gives_nearly_the_same_scores_and_windows(tiny: MonoBERT) -> None:
    rng = np.random.default_rng(1)
    texts = ["".join(chr(97 + n) for n in rng.integers(0, 26, rng.integers(5, 60))) for _ in range(100)] + TEXTS
    whole, small = np.array(scores(tiny, texts)), np.array(scores(tiny.in_int8(2), texts))
    assert np.corrcoef(whole, small)[0, 1] > 0.99
    assert np.abs(whole - small).max() < 0.1 * np.ptp(whole)
    best = set(np.argsort(-whole)[:10]) & set(np.argsort(-small)[:10])
    assert len(best) >= 9


def test_int8_reads_its_best_again_in_full(tiny: MonoBERT) -> None:
    texts = [f"passage {n} about {'wind ' * (n % 7)}" for n in range(AGAIN + 10)]
    hits = [Hit(Item(f"{n:02}", text, Source("")), 1.0 - n / 100) for n, text in enumerate(texts)]
    small, query = tiny.in_int8(1), Query("wind")
    made = small.rank(query, hits)
    assert sorted(hit.item.id for hit in made.hits) == [hit.item.id for hit in hits]
    assert made.calls == len(hits) + AGAIN == small.estimate(len(hits)).calls
    values = [hit.score for hit in made.hits]
    assert values == sorted(values, reverse=True)
    best = [hit for hit in hits if hit.item.id in {one.item.id for one in made.hits[:AGAIN]}]
    assert {hit.item.id: hit.score for hit in tiny.rank(query, best).hits} == {
        hit.item.id: hit.score for hit in made.hits[:AGAIN]
    }


def test_a_limit_of_calls_holds_for_both_readings(tiny: MonoBERT) -> None:
    hits = [Hit(Item(str(n), f"wind {n}", Source("")), 1.0) for n in range(5)]
    made = tiny.in_int8(1).rank(Query("wind"), hits, Limits(calls=7))
    assert (made.calls, made.complete) == (7, False)
    assert "calls limit" in (made.reason or "")


def test_int8_reads_the_segments_and_the_head(tiny: MonoBERT) -> None:
    """With the names of transformers' `BertForSequenceClassification`: a wrong one would leave its tensor unread."""
    assert {name.split(".")[0] for name in tiny.model.state_dict()} == {"bert", "classifier"}
    before = np.array(scores(tiny.in_int8(1), TEXTS))
    for name in ("bert.embeddings.token_type_embeddings", "bert.pooler.dense", "classifier"):
        other = BertForSequenceClassification(tiny.model.config).eval()
        other.load_state_dict(tiny.model.state_dict())
        with torch.no_grad():
            other.get_parameter(f"{name}.weight")[1].neg_()
        changed = MonoBERT(other, tiny._plain)
        found = np.array(scores(changed.in_int8(1), TEXTS))
        assert np.abs(found - before).max() > 0.01
        assert found == pytest.approx(scores(changed, TEXTS), abs=0.1)


def test_int8_of_another_architecture_is_refused(tiny: MonoBERT) -> None:
    weights = {name: values.numpy() for name, values in tiny.model.state_dict().items()}
    config = {**tiny.model.config.to_dict(), "hidden_act": "relu"}
    with pytest.raises(Unsupported, match="hidden_act `relu`"):
        exported(config, weights, 512)
    with pytest.raises(Unsupported, match="model_type `roberta`"):
        Int8Cross({**config, "model_type": "roberta"}, weights, 512, 1)


@pytest.mark.parametrize(
    ("precision", "kind"), [("auto", Int8Cross), ("int8", Int8Cross), ("bfloat16", torch.nn.Module)]
)
def test_precision_decides_where_the_processor_sums_int8(
    folder: Path, precision: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.retrievers.loading._sums_int8", lambda: True)
    made = MonoBERT.from_folder(folder, precision, threads=1)
    assert isinstance(made.model, kind)
    assert scores(made, TEXTS) == pytest.approx(scores(MonoBERT.from_folder(folder, "float32"), TEXTS), abs=0.2)
