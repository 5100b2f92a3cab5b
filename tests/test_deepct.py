"""DeepCT: which word pieces stand for which terms, what is learned and how it is counted, and BM25 over the counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from triptych import progress
from triptych.errors import BadInput, Cancelled, MissingWeights, StoreError, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, Query, Source, Where
from triptych.retrievers.text import _term_weights as module
from triptych.retrievers.text._term_training import Example, Training, error, examples, fit, recall, word_targets
from triptych.retrievers.text._term_weights import TermWeights, chunks, counts
from triptych.retrievers.text.analysis import terms
from triptych.retrievers.text.bm25 import BM25
from triptych.retrievers.text.deepct import ROOT, DeepCT, Rewriting

TEXTS = [
    "Warm water: COVID-19, state-of-the-art, 3.5 mg; it isn't parseHTML_v2.",
    "warm Warm warming",
    "",
    " ".join(f"word{n} and more," for n in range(40)),
    "你好世界 мир",
]
RANDOM = TermWeights.tiny(1)


class Fixed:
    """Weights by text, instead of a model."""

    def __init__(self, known: Mapping[str, Mapping[str, float]]) -> None:
        self.known = known

    def weights(self, texts: Sequence[str]) -> list[dict[str, float]]:
        return [dict(self.known[text.split("\n")[-1]]) for text in texts]


def item(id_: str, text: str, **meta: Any) -> Item:
    return Item(id_, text, Source(f"{id_}.txt"), meta={"title": "of", **meta})


def parts(home: Path) -> Any:
    settings = SimpleNamespace(weights=home, precision="float32", store_uri="", store_token="")
    return SimpleNamespace(settings=settings, device="cpu")


def value_at(weigher: TermWeights, ids: Sequence[int], place: int) -> float:
    framed = torch.tensor([[weigher.cls, *ids, weigher.sep]])
    with torch.inference_mode():
        return float(weigher.model(input_ids=framed).logits[0, 1 + place, 0])


# --- words, pieces, terms --------------------------------------------------------------------------------------------


def test_a_word_weighs_what_its_first_piece_does() -> None:
    text = "warm water"
    [encoding] = RANDOM.encode([text])
    assert len(encoding.ids) == 9
    [found] = RANDOM.weights([text])
    assert found.keys() == {"warm", "water"}
    assert found["warm"] == pytest.approx(max(value_at(RANDOM, encoding.ids, 0), 0), abs=1e-5)
    assert found["water"] == pytest.approx(max(value_at(RANDOM, encoding.ids, 4), 0), abs=1e-5)


def test_a_repeated_word_has_its_largest_weight_and_no_weight_is_negative() -> None:
    weigher = TermWeights.tiny(1)
    [encoding] = weigher.encode(["warm warm warming"])
    values = [value_at(weigher, encoding.ids, place) for place in (0, 4, 8)]
    assert len({round(value, 6) for value in values}) == 3
    assert weigher.weights(["warm warm warming"])[0] == pytest.approx({"warm": max(values)}, abs=1e-5)
    weigher.model.classifier.bias.data.fill_(-9.0)
    assert weigher.weights(["warm warm warming"])[0] == {"warm": 0.0}


def test_the_same_word_weighs_otherwise_in_another_passage() -> None:
    one, other = RANDOM.weights(["warm water of the sea", "the price of water rights"])
    assert abs(one["water"] - other["water"]) > 1e-3


def test_a_term_of_several_words_has_the_largest_weight_of_them() -> None:
    [encoding] = RANDOM.encode(["COVID-19 3.5"])
    [found] = RANDOM.weights(["COVID-19 3.5"])
    assert found.keys() == {"covid19", "covid", "19", "3.5"}
    assert found["covid19"] == max(found["covid"], found["19"])
    places = [encoding.offsets.index(span) for span in ((9, 10), (10, 11), (11, 12))]
    assert found["3.5"] == pytest.approx(max(value_at(RANDOM, encoding.ids, place) for place in places), abs=1e-5)


@given(st.text(max_size=60))
def test_every_term_of_the_index_has_a_weight_and_nothing_else_has(text: str) -> None:
    [found] = RANDOM.weights([text])
    assert found.keys() == set(terms(text))
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_a_batch_equals_a_loop_and_padding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    together = RANDOM.weights(TEXTS)
    alone = [RANDOM.weights([text])[0] for text in TEXTS]
    monkeypatch.setattr(module, "BATCH_PIECES", 1)
    monkeypatch.setattr(module, "TOGETHER", 2)
    small = RANDOM.weights(TEXTS)
    for one, other, third in zip(together, alone, small, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert one == pytest.approx(third, abs=1e-5)


def test_what_goes_beyond_the_window_is_read_in_windows_of_its_own() -> None:
    text = TEXTS[3]
    [encoding] = RANDOM.encode([text])
    assert len(encoding.ids) > 2 * RANDOM.longest
    start, end = list(RANDOM.windows(len(encoding.ids)))[1]
    place = next(n for n in range(start, end) if encoding.tokens[n] == "w" and n > start + 5)
    word = text[encoding.offsets[place][0] :].split()[0]
    wanted = value_at(RANDOM, encoding.ids[start:end], place - start)
    assert RANDOM.weights([text])[0][word.strip(",")] == pytest.approx(max(wanted, 0), abs=1e-5)


# --- counts ----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text("ab", min_size=1), st.floats(-1, 2)), st.integers(1, 200), st.booleans(), st.booleans())
def test_counts_are_those_of_the_formula(weights: dict[str, float], scale: int, root: bool, keep_all: bool) -> None:
    wanted = {}
    for term, y in weights.items():
        tf = round(scale * math.sqrt(y)) if root and y > 0 else round(scale * max(y, 0.0))
        if tf > 0 or keep_all:
            wanted[term] = max(tf, 1)
    assert counts(weights, scale, root=root, keep_all=keep_all) == wanted


def test_a_word_that_comes_to_nothing_vanishes_unless_all_are_kept() -> None:
    weights = {"a": 0.004, "b": 0.5, "c": -3.0, "d": 1e9}
    assert counts(weights, 100) == {"b": 50, "d": module.MAX_COUNT}
    assert counts(weights, 100, keep_all=True) == {"a": 1, "b": 50, "c": 1, "d": module.MAX_COUNT}
    assert counts(weights, 100, root=True)["a"] == round(100 * math.sqrt(0.004)) == 6


# --- what is learned -------------------------------------------------------------------------------------------------


def test_targets_are_the_share_of_a_passages_queries_that_hold_the_term() -> None:
    [one, other] = examples(
        [("how warm is the water", "A"), ("waters", "A"), ("waters", "A"), ("ice", "B"), ("is it", "A")]
    )
    assert (one.text, other.text) == ("A", "B")
    assert one.targets == {"how": 0.25, "warm": 0.25, "water": 0.75}
    assert other.targets == {"ice": 1.0}
    assert recall(["the"]) == {}


def test_targets_stand_at_first_pieces_of_words_that_the_index_has() -> None:
    text = "the warm water is COVID-19"
    [encoding] = RANDOM.encode([text])
    wanted, mask = word_targets(chunks(text, encoding), {"water": 0.5, "covid19": 1.0, "the": 1.0}, len(encoding.ids))
    starts = [span[0] for span in encoding.offsets]
    at = {word: starts.index(text.index(word)) for word in ("warm", "water", "COVID", "19")}
    assert set(np.flatnonzero(mask)) == set(at.values())
    assert {word: float(wanted[place]) for word, place in at.items()} == {
        "warm": 0.0,
        "water": 0.5,
        "COVID": 1.0,
        "19": 1.0,
    }


def test_the_loss_is_the_mean_squared_error_where_the_mask_is() -> None:
    random = torch.Generator().manual_seed(0)
    values, targets = (torch.rand(3, 5, generator=random) for _ in range(2))
    mask = (torch.rand(3, 5, generator=random) > 0.5).float()
    rows = [(v - t) ** 2 for v, t, m in zip(values.flatten(), targets.flatten(), mask.flatten(), strict=True) if m]
    assert float(error(values, targets, mask)) == pytest.approx(float(sum(rows)) / len(rows), abs=1e-6)
    assert float(error(values, targets, torch.zeros(3, 5))) == 0.0


ABOUT = [
    Example(f"about {name}, beside {other}", {name: 1.0})
    for name, other in [("ax", "bo"), ("bo", "cy"), ("cy", "ax"), ("di", "ex"), ("ex", "di"), ("bo", "ax")]
]
QUICK = Training(epochs=30, batch=6, rate=2e-2, every=10)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    TermWeights.tiny(0).save(folder)
    return folder


@pytest.fixture(scope="module")
def made(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TermWeights, Path]:
    out = tmp_path_factory.mktemp("fit") / "out"
    return DeepCT.fit(ABOUT, out, start, QUICK), out


def test_it_learns_what_no_word_alone_tells(made: tuple[TermWeights, Path]) -> None:
    found = made[0].weights([example.text for example in ABOUT])
    errors = [
        (one[term] - example.targets.get(term, 0)) ** 2
        for one, example in zip(found, ABOUT, strict=True)
        for term in one
    ]
    per_word: dict[str, list[float]] = {}
    for example in ABOUT:
        for term in set(terms(example.text)):
            per_word.setdefault(term, []).append(example.targets.get(term, 0.0))
    static = [np.var(values) for values in per_word.values() for _ in values]
    assert np.mean(errors) < 0.5 * np.mean(static)


def test_a_fitted_folder_is_taken_back(made: tuple[TermWeights, Path]) -> None:
    again = TermWeights.from_folder(made[1], "float32")
    text = [ABOUT[0].text]
    assert again.weights(text)[0] == pytest.approx(made[0].weights(text)[0], abs=1e-6)


def test_the_same_seed_gives_the_same_model_and_a_stopped_fit_goes_on(
    made: tuple[TermWeights, Path], start: Path, tmp_path: Path
) -> None:
    cancelled, seen = Event(), []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append((done, total))
        if done == 25:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        DeepCT.fit(ABOUT, tmp_path / "out", start, QUICK)
    assert seen[-1] == (25, 30)
    with progress.reporting(lambda done, total, what: seen.append((done, total))):
        again = DeepCT.fit(ABOUT, tmp_path / "out", start, QUICK)
    assert (20, 30) in seen[26:]
    assert (0, 30) not in seen[26:]
    for name, value in load_file(made[1] / "model.safetensors").items():
        torch.testing.assert_close(again.model.state_dict()[name], value, atol=1e-5, rtol=0)


def test_another_fit_in_the_same_folder_is_refused(made: tuple[TermWeights, Path], start: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`out` holds another fit"):
        DeepCT.fit(ABOUT[:2], made[1], start, QUICK)
    with pytest.raises(BadInput, match="holds another model"):
        DeepCT.fit(ABOUT, start, start, QUICK)
    with pytest.raises(BadInput, match="`0` passages"):
        DeepCT.fit([], tmp_path, start)


def test_it_stops_when_what_was_held_back_gets_no_better(start: Path, tmp_path: Path) -> None:
    held = [Example("zu, beside qi", {"qi": 1.0})]
    steps = []
    hasty = Training(epochs=200, batch=6, rate=5e-2, every=1, patience=2)
    with progress.reporting(lambda done, total, what: steps.append(done)):
        weigher = DeepCT.fit(ABOUT, tmp_path / "out", start, hasty, held)
    assert max(steps) < 150
    assert not weigher.model.training


def test_pairs_are_enough(start: Path, tmp_path: Path) -> None:
    weigher, once = TermWeights.untrained(start, 3), Training(epochs=1, seed=3)
    fit(weigher, examples([("warm", "warm water")]), tmp_path / "a", once)
    other = DeepCT.fit([("warm", "warm water")], tmp_path / "b", start, once)
    assert other.weights(["warm water"])[0] == pytest.approx(weigher.weights(["warm water"])[0], abs=1e-6)


# --- weights from elsewhere ------------------------------------------------------------------------------------------


def published(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder under the names of the authors' variables, kernels turned."""
    found = {}
    for key, value in load_file(folder / "model.safetensors").items():
        name = key.replace("classifier.", "tw_output_").replace(".weight", "/weight").replace(".", "/")
        name = name.replace("tw_output_weight", "tw_output_weights").replace("tw_output_/weight", "tw_output_weights")
        name = name.replace("/layer/", "/layer_")
        if "embeddings/weight" in name:
            name = name.removesuffix("/weight")
        elif "LayerNorm" in name:
            name = name.replace("/weight", "/gamma").replace("/bias", "/beta")
        elif name.endswith("/weight"):
            name, value = name.replace("/weight", "/kernel"), value.T.contiguous()
        found[name] = value
    found["bert/pooler/dense/kernel"] = torch.zeros(16, 16)
    found["bert/pooler/dense/bias"] = torch.zeros(16)
    return found


@pytest.fixture
def theirs(start: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((start / name).read_bytes())
    save_file(published(start), folder / "model.safetensors")
    return folder


def test_the_published_names_are_read(theirs: Path, start: Path) -> None:
    names = load_file(theirs / "model.safetensors")
    assert names["tw_output_weights"].shape == (1, 16)
    assert names["tw_output_bias"].shape == (1,)
    assert names["bert/encoder/layer_0/intermediate/dense/kernel"].shape == (16, 32)
    assert {"bert/embeddings/word_embeddings", "bert/encoder/layer_0/attention/output/LayerNorm/gamma"} <= names.keys()
    assert TermWeights.from_folder(theirs, "float32").weights(TEXTS[:2]) == [
        pytest.approx(one, abs=1e-6) for one in TermWeights.from_folder(start, "float32").weights(TEXTS[:2])
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("tw_output_bias"), "no tensor `classifier.bias`"),
        (
            lambda t: t.pop("bert/encoder/layer_0/output/dense/kernel"),
            "no tensor `bert.encoder.layer.0.output.dense.weight`",
        ),
        (lambda t: t.update({"cls/predictions/output_bias": torch.zeros(3)}), "unknown tensor `cls.predictions"),
        (lambda t: t.update({"tw_output_weights": torch.zeros(2, 16)}), r"`classifier.weight` is `\(2, 16\)`"),
    ],
)
def test_a_wrong_tensor_is_named(theirs: Path, change: Any, named: str) -> None:
    tensors = load_file(theirs / "model.safetensors")
    change(tensors)
    save_file(tensors, theirs / "model.safetensors")
    with pytest.raises(BadInput, match=named):
        TermWeights.from_folder(theirs)


def test_a_folder_of_another_kind_says_so(theirs: Path) -> None:
    (theirs / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(BadInput, match="kind `roberta`"):
        TermWeights.from_folder(theirs)
    (theirs / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"`config\.json` of `theirs` is damaged"):
        TermWeights.untrained(theirs)
    (theirs / "tokenizer.json").write_text("[]")
    (theirs / "model.safetensors").write_bytes(b"no")
    (theirs / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match=r"`model\.safetensors` of `theirs` is damaged"):
        TermWeights.from_folder(theirs)
    (theirs / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"no `model\.safetensors`"):
        TermWeights.from_folder(theirs)


def test_a_model_with_another_head_or_tokenizer_is_refused() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    with pytest.raises(BadInput, match=r"no `\[CLS\]`"):
        TermWeights(RANDOM.model, Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(BadInput, match="`3` word pieces"):
        words = Tokenizer(WordLevel({"[CLS]": 0, "[SEP]": 1, "[PAD]": 2}, unk_token="[PAD]"))
        TermWeights(SimpleNamespace(config=SimpleNamespace(num_labels=1, vocab_size=2)), words)
    with pytest.raises(BadInput, match="`4` word pieces"):
        TermWeights(RANDOM.model, RANDOM.tokenizer, 4)
    with pytest.raises(BadInput, match="`2` outputs"):
        TermWeights(SimpleNamespace(config=SimpleNamespace(num_labels=2)), RANDOM.tokenizer)


def test_load_takes_what_was_fitted_and_says_what_is_missing(made: tuple[TermWeights, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"`DeepCT\.fit` into `weights/deepct`"):
        DeepCT.load(card("deepct"), parts(tmp_path))
    (tmp_path / "deepct").symlink_to(made[1], target_is_directory=True)
    loaded = DeepCT.load(card("deepct"), parts(tmp_path), tmp_path / "store", Rewriting(keep_all=True))
    loaded.add([item("a", ABOUT[0].text)])
    assert [hit.item.id for hit in loaded.search(Query("ax"), 3)] == ["a"]


# --- search ----------------------------------------------------------------------------------------------------------

KNOWN = {
    "a": {"warm": 0.9, "water": 0.3, "sea": 0.002},
    "b": {"water": 0.8},
    "c": {"warm": 0.1, "water": 0.1, "sea": 0.4, "salt": 0.2},
    "d": {"ice": 1.2},
}


def fixed(rewriting: Rewriting | None = None) -> DeepCT:
    made = DeepCT.tiny(0, rewriting)
    made.weigher = Fixed(KNOWN)  # type: ignore[assignment]
    return made


def bm25(counted: Mapping[str, Mapping[str, int]], query: Sequence[str], k1: float, b: float) -> dict[str, float]:
    """The formula of the sheet, in a plain loop."""
    mean = sum(sum(one.values()) for one in counted.values()) / len(counted)
    scores = {}
    for id_, one in counted.items():
        score = 0.0
        for term in query:
            df = sum(term in other for other in counted.values())
            if term in one:
                idf = math.log(1 + (len(counted) - df + 0.5) / (df + 0.5))
                score += idf * one[term] / (one[term] + k1 * (1 - b + b * sum(one.values()) / mean))
        if score:
            scores[id_] = score
    return scores


@pytest.mark.parametrize("rewriting", [Rewriting(), ROOT, Rewriting(scale=10, keep_all=True, k1=0.5, b=0.3)])
def test_scores_are_bm25_over_the_rewritten_collection(rewriting: Rewriting) -> None:
    retriever = fixed(rewriting)
    retriever.add([item(id_, id_) for id_ in KNOWN])
    counted = {id_: rewriting.counts(weights) for id_, weights in KNOWN.items()}
    for gone in ("", "b"):
        if gone:
            assert retriever.delete(Where(ids=(gone,))) == 1
            del counted[gone]
        found = {hit.item.id: hit.score for hit in retriever.search(Query("warm waters of the sea"), 9)}
        assert found == pytest.approx(bm25(counted, ["warm", "water", "sea"], rewriting.k1, rewriting.b), abs=1e-5)


def test_a_word_that_vanished_is_not_found() -> None:
    retriever = fixed()
    retriever.add([item(id_, id_) for id_ in KNOWN])
    assert [hit.item.id for hit in retriever.search(Query("sea"), 9)] == ["c"]
    assert retriever.search(Query("unheard"), 9) == []
    assert retriever.search(Query("the of"), 9) == []
    assert [hit.item.id for hit in retriever.search(Query("ice " * 600), 9)] == ["d"]
    with pytest.raises(BadInput, match="no text"):
        retriever.search(Query(" "), 9)


@pytest.mark.parametrize("text", ["one passage", "", "of the", "🙂"])
def test_a_library_of_one_passage(text: str) -> None:
    retriever = DeepCT.tiny()
    retriever.add([item("a", text)])
    assert retriever.stats().items == 1
    assert [hit.item.id for hit in retriever.search(Query("passage"), 3)] == (["a"] if "passage" in text else [])


def test_nothing_is_written_when_the_model_gives_nan() -> None:
    retriever = DeepCT.tiny()
    assert retriever.weigher is not None
    retriever.weigher.model.classifier.bias.data.fill_(math.nan)
    with pytest.raises(BadInput, match="`NaN`"):
        retriever.add([item("a", "warm water")])
    assert retriever.stats().items == 0


def test_what_was_saved_is_searched_without_the_model(tmp_path: Path) -> None:
    retriever = fixed(ROOT)
    retriever.add([item(id_, id_) for id_ in KNOWN])
    retriever.save(tmp_path / "saved")
    opened = DeepCT.open(tmp_path / "saved")
    assert opened.rewriting == ROOT
    asked = Query("warm water")
    assert [(hit.item.id, round(hit.score, 6)) for hit in opened.search(asked, 9)] == [
        (hit.item.id, round(hit.score, 6)) for hit in retriever.search(asked, 9)
    ]
    with pytest.raises(Unsupported, match="without its model"):
        opened.add([item("a", "a")])
    with pytest.raises(StoreError, match="not one of DeepCT"):
        DeepCT(BM25.tiny().store, None)
    BM25.tiny().save(tmp_path / "other")
    with pytest.raises(StoreError):
        DeepCT.open(tmp_path / "other")


def test_wrong_figures_are_refused() -> None:
    with pytest.raises(BadInput, match="`0`"):
        Rewriting(scale=0)
    with pytest.raises(BadInput, match="`2`"):
        Rewriting(b=2)
    with pytest.raises(StoreError, match="`5`"):
        Rewriting.of("5")
