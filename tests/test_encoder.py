"""all-MiniLM-L6-v2 as an encoder: the vectors of sentence-transformers, in any batch, precision and thread; token
vectors that know their characters; and the text both are made from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych import progress
from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.manifests import weights
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.scripts import folded, latin_share, literal_units
from triptych.retrievers.searchable import searchable_text
from triptych.retrievers.text import all_minilm_l6_v2 as module
from triptych.retrievers.text.all_minilm_l6_v2 import DIM, AllMiniLM, TokenVectors, windows

TEXTS = [
    "A per diem of 120 euros covers meals in Berlin; receipts are not needed.",
    "Hotels are booked through the travel desk, at least five days ahead.",
    "def parse(path):\n    return json.loads(path.read_text())",
    "Ｆull-width, naïve café, 你好世界, 🙂👩‍👩‍👧 and a\u200bzero-width space.",
    "",
    " ".join(f"Clause {n}: the supplier answers for late delivery of part {n}." for n in range(24)),
]


def item(text: str, number: int = 0, **meta: Any) -> Item:
    return Item(f"i{number}", text, Source("notes/Travel_rates-2024.md"), meta=meta)


RANDOM = AllMiniLM.tiny(1)
ITEMS = [item(text, number, title=f"Title {number}") for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(weights_home: Path) -> Path:
    return weights.folder("all_minilm_l6_v2", weights_home / "weights")


@pytest.fixture(scope="module")
def exact(folder: Path) -> AllMiniLM:
    return AllMiniLM.from_folder(folder, "float32")


@pytest.fixture(scope="module")
def brief(folder: Path) -> AllMiniLM:
    return AllMiniLM.from_folder(folder, "bfloat16")


@pytest.fixture
def tiny() -> AllMiniLM:
    return AllMiniLM.tiny(0)


# --- dense vectors ---------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_sentence_transformers(exact: AllMiniLM, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    wanted = reference.encode([searchable_text(one) for one in ITEMS], normalize_embeddings=True)
    found = exact.encode(ITEMS, "document")
    assert found.shape == (len(ITEMS), DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_bfloat16_keeps_the_direction(exact: AllMiniLM, brief: AllMiniLM) -> None:
    assert brief.model.dtype == torch.bfloat16
    cosines = (exact.encode(ITEMS, "document") * brief.encode(ITEMS, "document")).sum(axis=1)
    assert cosines.min() >= 0.999


def test_a_query_is_near_its_answer(brief: AllMiniLM) -> None:
    query = brief.encode([Query("How much money do I get for food on a trip?")], "query")
    assert int(np.argmax(query @ brief.encode(ITEMS[:3], "document").T)) == 0


def test_a_batch_equals_a_loop(exact: AllMiniLM) -> None:
    together = exact.encode(ITEMS, "document")
    alone = np.concatenate([exact.encode([one], "document") for one in ITEMS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(exact.encode(ITEMS[::-1], "document"), together[::-1], atol=1e-5)


def test_nothing_gives_an_empty_array(tiny: AllMiniLM) -> None:
    assert tiny.encode([], "document").shape == tiny.encode([], "query").shape == (0, DIM)
    assert tiny.token_vectors([]) == []


def test_a_query_without_text_is_refused(tiny: AllMiniLM) -> None:
    with pytest.raises(Unsupported, match="`None`"):
        tiny.encode([Query(media=MediaRef("a.png", "image/png"))], "query")


@given(st.lists(st.text(st.characters(), max_size=40), max_size=4))
def test_any_text_has_a_finite_unit_vector(texts: list[str]) -> None:
    found = RANDOM.encode([Query(text) for text in texts], "query")
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_query_vectors_are_cached_and_cannot_be_spoilt(tiny: AllMiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny.encode([Query("abc"), Query("abc")], "query")
    first[:] = 0
    monkeypatch.setattr(tiny.model, "forward", None)
    assert np.linalg.norm(tiny.encode([Query("abc")], "query")) == pytest.approx(1, abs=1e-5)


# --- token vectors ---------------------------------------------------------------------------------------------------


def test_token_vectors_have_unit_length_and_know_their_characters(brief: AllMiniLM) -> None:
    for text, (vectors, offsets) in zip(TEXTS, brief.token_vectors(TEXTS), strict=True):
        assert vectors.shape == (len(offsets), DIM)
        np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
        assert (np.diff(offsets[:, 0]) >= 0).all()
        assert set("".join(text[start:end] for start, end in offsets)) >= {
            c for c in text if c.isascii() and c.isalnum()
        }
        with pytest.raises(ValueError, match="read-only"):
            vectors[:] = 0


def test_the_mean_of_the_tokens_points_where_the_dense_vector_does(exact: AllMiniLM) -> None:
    [one] = exact.token_vectors([TEXTS[0]])
    [dense] = exact.encode([Query(TEXTS[0])], "query")
    mean = one.vectors.astype(np.float32).mean(axis=0)
    assert mean @ dense / np.linalg.norm(mean) > 0.98


def test_a_text_beyond_256_pieces_is_read_whole(brief: AllMiniLM) -> None:
    [one] = brief.token_vectors([TEXTS[5]])
    assert len(one.offsets) > module.MAX_PIECES
    assert one.offsets[-1][1] == len(TEXTS[5])


def test_vectors_do_not_depend_on_what_else_is_asked(folder: Path) -> None:
    one, other = (AllMiniLM.from_folder(folder, "bfloat16") for _ in range(2))
    together = one.token_vectors(TEXTS)
    backwards = [other.token_vectors([text])[0] for text in reversed(TEXTS)][::-1]
    for a, b in zip(together, backwards, strict=True):
        assert np.array_equal(a.vectors, b.vectors)


def test_token_vectors_are_cached_up_to_a_bound(tiny: AllMiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny._tokens._capacity = 3 * 10 * DIM * 2
    made: list[str] = []
    read = tiny._read

    def counted(text: str) -> TokenVectors:
        made.append(text)
        return read(text)

    monkeypatch.setattr(tiny, "_read", counted)
    texts = [letter * 10 for letter in "abcd"]
    tiny.token_vectors(texts[:3])
    tiny.token_vectors(texts[:1])
    tiny.token_vectors(texts[3:])
    tiny.token_vectors(texts[:1])
    assert made == texts
    tiny.token_vectors(texts[1:2])
    assert made == [*texts, texts[1]]
    assert tiny._tokens._used == 3 * 10 * DIM * 2


@given(st.integers(0, 2000), st.integers(2, 300), st.data())
def test_windows_tile_the_text(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    found = list(windows(length, size, overlap))
    assert [n for _, _, first, last in found for n in range(first, last)] == list(range(length))
    assert all(start <= first < last <= end <= start + size for start, end, first, last in found)


# --- threads, progress, seeds ----------------------------------------------------------------------------------------


def test_eight_threads_get_the_answers_of_serial_calls(exact: AllMiniLM, folder: Path) -> None:
    shared = AllMiniLM.from_folder(folder, "float32")

    def ask(number: int) -> tuple[np.ndarray, np.ndarray]:
        one = ITEMS[number % 3]
        return shared.encode([one], "document"), shared.token_vectors([one.text])[0].vectors

    with ThreadPoolExecutor(8) as pool:
        for number, (dense, tokens) in enumerate(pool.map(ask, range(16))):
            one = ITEMS[number % 3]
            np.testing.assert_allclose(dense, exact.encode([one], "document"), atol=1e-5)
            np.testing.assert_allclose(tokens, exact.token_vectors([one.text])[0].vectors, atol=2e-3)


@pytest.mark.parametrize("door", ["encode", "token_vectors"])
def test_work_stops_after_the_first_batch(tiny: AllMiniLM, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_PIECES", 1)
    cancelled, seen = Event(), []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append((done, total))
        if done:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        tiny.encode(ITEMS[:3], "document") if door == "encode" else tiny.token_vectors(TEXTS[:3])
    assert seen[-1] == (1, 3)


def test_the_same_seed_gives_the_same_model() -> None:
    one, two, other = (AllMiniLM.tiny(seed).encode(ITEMS[:2], "document") for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other)


def test_a_folder_with_a_file_missing_says_which(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingWeights, match=r"has no `model\.safetensors`"):
        AllMiniLM.from_folder(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(tiny: AllMiniLM) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    with pytest.raises(BadInput, match=r"no `\[CLS\]`"):
        AllMiniLM(tiny.model, Tokenizer(WordLevel({"a": 0}, unk_token="a")))


# --- what is searched, and in which script ---------------------------------------------------------------------------


@given(st.text(max_size=30), st.text(max_size=10), st.lists(st.text(max_size=10), max_size=3))
def test_the_text_stands_last_and_whole(text: str, title: str, headings: list[str]) -> None:
    assert searchable_text(item(text, title=title, headings=headings)).endswith(text)


def test_title_and_headings_come_first_once() -> None:
    one = item("Meals\nBerlin 120", title="Travel", headings=["Travel", "Rates", "Meals"])
    assert searchable_text(one) == "Travel\nRates\nMeals\nBerlin 120"
    assert searchable_text(item("Berlin 120")) == "Travel rates 2024\nBerlin 120"


def test_a_query_in_another_script_is_not_read(tiny: AllMiniLM) -> None:
    read = ["travel rates", "Ça coûte combien à Zürich ?", "120 €", "🙂", "BERT 模型 explained"]
    unread = ["差旅补贴是多少", "Сколько стоит поездка?", "BERT 模型的工作原理是什么"]
    assert [text for text in read + unread if tiny.reads(Query(text))] == read


def test_scripts() -> None:
    assert latin_share("") == 1.0
    assert literal_units("Größe, 120 km") == []
    assert literal_units("ＮＦＬ冠军") == ["冠军"]
    assert literal_units("我 ок, Командировка") == ["我", "ок", "коман"]
    assert folded("ﾊﾝ Ａ") == "ハン a"


@given(st.text(max_size=40))
def test_every_literal_unit_stands_in_its_text(text: str) -> None:
    assert all(unit in folded(text) for unit in literal_units(text))
    assert 0 <= latin_share(text) <= 1
