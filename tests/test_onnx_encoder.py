"""The encoder in 8-bit integers: near the float32 vectors on real text, the same in any company, where it is chosen."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from triptych import progress
from triptych.errors import BadInput, Cancelled, Unsupported
from triptych.manifests import weights
from triptych.retrievers import loading
from triptych.retrievers.base import Item, Query, Source
from triptych.retrievers.text import all_minilm_l6_v2 as module
from triptych.retrievers.text._int8_bert import LOUD, Int8Bert, graph, loudness, quantized
from triptych.retrievers.text.all_minilm_l6_v2 import AllMiniLM

STATION = Path(__file__).resolve().parent.parent / "benchmarks" / "data" / "station"
PASSAGES = [json.loads(line) for line in (STATION / "corpus.jsonl").read_text("utf-8").splitlines()]
QUERIES = [Query(json.loads(line)["text"]) for line in (STATION / "queries.jsonl").read_text("utf-8").splitlines()]
ITEMS = [Item(row["id"], row["text"], Source("")) for row in PASSAGES]
LONG = " ".join(row["text"] for row in PASSAGES[:4])
HIDDEN, WIDE = 48, LOUD + 64

needs_vnni = pytest.mark.skipif(not loading.in_int8("auto"), reason="needs a processor with AVX-512 VNNI")


@pytest.fixture(scope="module")
def folder(weights_home: Path) -> Path:
    return weights.folder("all_minilm_l6_v2", weights_home / "weights")


@pytest.fixture(scope="module")
def int8(folder: Path) -> AllMiniLM:
    return AllMiniLM.from_folder(folder, "int8", threads=2)


@pytest.fixture(scope="module")
def brief(folder: Path) -> AllMiniLM:
    return AllMiniLM.from_folder(folder, "bfloat16")


# --- the graph -------------------------------------------------------------------------------------------------------


@given(arrays.arrays(np.float32, (5, 3), elements=st.floats(-8, 8, width=32)))
def test_a_quantised_matrix_is_off_by_half_a_step_at_most(matrix: np.ndarray) -> None:
    whole, scales = quantized(matrix)
    assert whole.dtype == np.int8
    assert scales.dtype == np.float32
    assert (np.abs(whole * scales - matrix) <= scales * 0.5001).all()


def test_loud_units_are_those_with_large_inputs() -> None:
    matrix = np.array([[1, 3, 0], [1, 0, 0]], np.float32)
    found = loudness(matrix, np.array([0, 0, 2], np.float32), np.ones(2, np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(found, [4 * 2**0.5, 12, 2], rtol=1e-6)


@pytest.fixture(scope="module")
def random_bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=WIDE,
        max_position_embeddings=16,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = BertModel(config, add_pooling_layer=False).eval()
    where = tmp_path_factory.mktemp("bert")
    model.save_pretrained(where)
    return model, where


@needs_vnni
@pytest.mark.parametrize("length", [1, 2, 16])
def test_the_graph_computes_what_bert_computes(random_bert: tuple[Any, Path], length: int) -> None:
    model, where = random_bert
    ids = [(7 * place) % 50 for place in range(length)]
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    found = Int8Bert.load(where, 1)(ids)
    assert found.shape == (length, HIDDEN)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).mean() < 0.03


def test_the_same_weights_give_the_same_graph(random_bert: tuple[Any, Path]) -> None:
    model, where = random_bert
    config = json.loads((where / "config.json").read_text("utf-8"))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert graph(config, tensors) == graph(config, tensors)


def test_the_first_state_alone_is_that_of_the_whole(random_bert: tuple[Any, Path]) -> None:
    model, where = random_bert
    config = json.loads((where / "config.json").read_text("utf-8"))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    feed = {"ids": np.array([[2, 9, 14, 30, 7, 3]]), "places": np.arange(6)}
    whole, first = (
        onnxruntime.InferenceSession(graph(config, tensors, only), providers=["CPUExecutionProvider"]).run(None, feed)[
            0
        ]
        for only in (False, True)
    )
    assert whole.shape[:2] == (1, 6) and first.shape[:2] == (1, 1)
    np.testing.assert_allclose(first[:, 0], whole[:, 0], atol=0.05)
    assert np.abs(first[:, 0] - whole[:, 1]).max() > 0.5


# --- real text -------------------------------------------------------------------------------------------------------


@needs_vnni
def test_every_vector_keeps_its_direction(int8: AllMiniLM, folder: Path) -> None:
    exact = AllMiniLM.from_folder(folder, "float32")
    asked, wanted = int8.encode(QUERIES, "query"), exact.encode(QUERIES, "query")
    found, real = int8.encode(ITEMS[:40], "document"), exact.encode(ITEMS[:40], "document")
    assert min((asked * wanted).sum(axis=1).min(), (found * real).sum(axis=1).min()) >= 0.99
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@needs_vnni
def test_a_library_of_bfloat16_answers_queries_in_int8(int8: AllMiniLM, brief: AllMiniLM) -> None:
    """One library may be written and asked on processors that compute in different forms."""
    library, asked = brief.encode(ITEMS, "document"), brief.encode(QUERIES, "query")
    scores, wanted = int8.encode(QUERIES, "query") @ library.T, asked @ library.T
    np.testing.assert_allclose(scores, wanted, atol=0.06)
    best, other = (np.argsort(-found, axis=1)[:, :10] for found in (scores, wanted))
    shared = [len({*one} & {*two}) / 10 for one, two in zip(best, other, strict=True)]
    assert np.mean(shared) >= 0.9


@needs_vnni
def test_a_vector_is_the_same_to_the_last_bit_in_any_company(int8: AllMiniLM, folder: Path) -> None:
    together = int8.encode(ITEMS[:12], "document")
    assert np.array_equal(int8.encode(ITEMS[11::-1], "document"), together[::-1])
    assert np.array_equal(np.concatenate([int8.encode([one], "document") for one in ITEMS[:12]]), together)
    assert np.array_equal(AllMiniLM.from_folder(folder, "int8", threads=1).encode(ITEMS[:12], "document"), together)


@needs_vnni
def test_token_vectors_are_read_whole_and_near_those_of_bfloat16(int8: AllMiniLM, brief: AllMiniLM) -> None:
    texts = [LONG, "", ITEMS[0].text, LONG]
    for one, other in zip(int8.token_vectors(texts), brief.token_vectors(texts), strict=True):
        assert np.array_equal(one.offsets, other.offsets)
        cosines = (one.vectors.astype(np.float32) * other.vectors.astype(np.float32)).sum(axis=1)
        assert not len(cosines) or cosines.mean() > 0.98
    assert len(int8.token_vectors([LONG])[0].offsets) > module.MAX_PIECES


# --- threads and progress --------------------------------------------------------------------------------------------


@needs_vnni
def test_eight_threads_get_the_answers_of_serial_calls(int8: AllMiniLM, folder: Path) -> None:
    shared = AllMiniLM.from_folder(folder, "int8", threads=2)

    def ask(number: int) -> tuple[np.ndarray, np.ndarray]:
        some = ITEMS[number % 3 : number % 3 + 3]
        return shared.encode(some, "document"), shared.token_vectors([one.text for one in some])[0].vectors

    with ThreadPoolExecutor(8) as pool:
        for number, (dense, tokens) in enumerate(pool.map(ask, range(16))):
            some = ITEMS[number % 3 : number % 3 + 3]
            assert np.array_equal(dense, int8.encode(some, "document"))
            assert np.array_equal(tokens, int8.token_vectors([some[0].text])[0].vectors)


@needs_vnni
@pytest.mark.parametrize("door", ["encode", "token_vectors"])
def test_work_stops_after_the_first_batch(int8: AllMiniLM, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_PIECES", 1)
    cancelled, seen = Event(), []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append((done, total))
        if done:
            cancelled.set()

    texts = [f"text {number}" for number in range(6)]
    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        if door == "encode":
            int8.encode([Item(text, text, Source("")) for text in texts], "document")
        else:
            int8.token_vectors(texts)
    assert 0 < seen[-1][0] < 6


# --- what is chosen --------------------------------------------------------------------------------------------------


def test_auto_is_int8_where_the_processor_sums_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    assert loading.in_int8("auto") and loading.in_int8("int8")
    assert not loading.in_int8("float32") and not loading.in_int8("bfloat16") and not loading.in_int8("auto", "cuda")
    assert loading.dtype("int8") == torch.float32, "models without a form in int8 compute as in `auto`"
    assert loading.computed_in("auto") == "int8 and float32"
    assert loading.computed_in("bfloat16") == "bfloat16"


def test_int8_is_refused_where_it_would_be_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert not loading.in_int8("auto")
    with pytest.raises(Unsupported, match="`cpu` does not compute in `int8`"):
        loading.in_int8("int8")
    with pytest.raises(Unsupported, match="`cuda:0`"):
        loading.in_int8("int8", "cuda:0")
    with pytest.raises(BadInput, match="`int4`"):
        loading.in_int8("int4")


def test_the_setting_threads_is_what_torch_computes_with() -> None:
    before = torch.get_num_threads()
    try:
        assert loading.set_threads(before + 1) == torch.get_num_threads() == before + 1
        assert loading.set_threads(0) == before + 1
    finally:
        torch.set_num_threads(before)
