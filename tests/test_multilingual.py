"""The multilingual encoder: one space for many languages, its arithmetic against a plain loop, the same vector in any
batch and thread; whether a text is English; and fusion across languages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych import progress
from triptych.errors import Cancelled, MissingWeights, Unsupported
from triptych.manifests import weights
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.fusion import by_rank
from triptych.retrievers.languages import by_language
from triptych.retrievers.scripts import english, script_share
from triptych.retrievers.text import use_multilingual as module
from triptych.retrievers.text.use_multilingual import DIM, MAX_PIECES, ORDERS, USEMultilingual

SOFA = {
    "en": "A cat is sleeping on the sofa.",
    "zh": "一只猫正在沙发上睡觉。",
    "es": "Un gato está durmiendo en el sofá.",
    "ru": "Кошка спит на диване.",
    "ja": "猫がソファで寝ている。",
    "ar": "قطة نائمة على الأريكة.",
}
REVENUE = {
    "en": "Revenue rose by ten percent last quarter.",
    "zh": "上季度收入增长了百分之十。",
    "es": "Los ingresos aumentaron un diez por ciento en el último trimestre.",
    "ru": "В прошлом квартале выручка выросла на десять процентов.",
    "ja": "前四半期の売上高は10％増加した。",
    "ar": "ارتفعت الإيرادات بنسبة عشرة في المئة في الربع الأخير.",
}
TEXTS = [
    *SOFA.values(),
    "",
    "Ｆull-width 🙂👩‍👩‍👧 and a\u200bzero-width space.",
    "Lone \ud800 surrogate",
    "clause " * 300,
]
ITEMS = [Item(f"i{n}", text, Source(f"notes/{n}.md")) for n, text in enumerate(TEXTS)]
RANDOM = USEMultilingual.tiny(1)


def vectors(encoder: USEMultilingual, *texts: str) -> np.ndarray:
    return encoder.encode([Query(text) for text in texts], "query")


@pytest.fixture(scope="module")
def real(weights_home: Path) -> USEMultilingual:
    return USEMultilingual.from_folder(weights.folder("use_multilingual", weights_home / "weights"))


@pytest.fixture
def tiny() -> USEMultilingual:
    return USEMultilingual.tiny(0)


# --- one space for many languages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", [language for language in SOFA if language != "en"])
def test_a_translation_is_near_and_another_matter_is_far(real: USEMultilingual, language: str) -> None:
    sofa, translated, revenue = vectors(real, SOFA["en"], SOFA[language], REVENUE[language])
    assert sofa @ translated >= 0.7
    assert sofa @ revenue <= 0.2
    assert translated @ revenue <= 0.2


def test_a_question_finds_its_answer_in_the_other_language(real: USEMultilingual) -> None:
    english_ones = [Item(f"e{n}", text, Source("")) for n, text in enumerate((SOFA["en"], REVENUE["en"]))]
    chinese_ones = [Item(f"c{n}", text, Source("")) for n, text in enumerate((SOFA["zh"], REVENUE["zh"]))]
    asked = vectors(real, "收入增长了多少？", "猫在哪里睡觉？")
    assert np.argmax(asked @ real.encode(english_ones, "document").T, axis=1).tolist() == [1, 0]
    asked = vectors(real, "How much did revenue grow?", "Where does the cat sleep?")
    assert np.argmax(asked @ real.encode(chinese_ones, "document").T, axis=1).tolist() == [1, 0]


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_the_arithmetic_is_that_of_a_plain_loop(tiny: USEMultilingual) -> None:
    texts = ["x", "a cat", "sofas everywhere"]
    wanted = [plainly(tiny, ids) for ids in tiny.tokenize(texts)]
    np.testing.assert_allclose(vectors(tiny, *texts), wanted, atol=1e-5)
    np.testing.assert_allclose(
        tiny.encode([Item("", text, Source("")) for text in texts], "document"), wanted, atol=1e-5
    )


def plainly(encoder: USEMultilingual, ids: list[int]) -> np.ndarray:
    """The vector of one text, piece by piece and neighbour by neighbour, in float64."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in encoder.tensors.items()}
    words = np.stack([w["table"][id_] * w["scale"][id_ % 17] + w["lo"][id_ % 17] for id_ in ids])
    features = [words]
    for order in ORDERS:
        x = normed(words @ w[f"proj{order}"] + w[f"proj_b{order}"], w[f"ln_g{order}"], w[f"ln_b{order}"])
        for n in (1, 2):
            made = np.zeros_like(x)
            for at in range(len(ids)):
                for tap in range(order):
                    neighbour = at + tap - (order - 1) // 2
                    if 0 <= neighbour < len(ids):
                        made[at] += w[f"w{n}_{order}"][:, :, tap] @ x[neighbour]
            x = x + np.maximum(made + w[f"b{n}_{order}"], 0)
        features.append(x)
    projected = normed(np.concatenate(features, axis=1), w["ln_g"], w["ln_b"]) @ w["cnn_W"] + w["cnn_b"]
    mean = projected.sum(axis=0) / np.sqrt(len(ids))
    first = np.maximum(np.maximum(mean @ w["d0"], 0) @ w["d1"] + mean @ w["p1"], 0)
    last = np.tanh(np.maximum(first @ w["d2"], 0) @ w["d3"] + first @ w["p3"])
    return last / np.linalg.norm(last)


def normed(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) * gain + bias


def test_a_batch_equals_a_loop(real: USEMultilingual) -> None:
    together = real.encode(ITEMS, "document")
    assert together.shape == (len(ITEMS), DIM)
    assert together.dtype == np.float32
    alone = np.concatenate([real.encode([one], "document") for one in ITEMS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(real.encode(ITEMS[::-1], "document"), together[::-1], atol=1e-5)


def test_a_long_text_is_cut(tiny: USEMultilingual) -> None:
    long, other = "a" * (MAX_PIECES - 2), "b"
    one, longer, shorter = vectors(tiny, long, long + other, long[:-1] + other)
    np.testing.assert_allclose(one, longer, atol=1e-6)
    assert np.abs(one - shorter).max() > 1e-4


def test_nothing_gives_an_empty_array(tiny: USEMultilingual) -> None:
    assert tiny.encode([], "document").shape == tiny.encode([], "query").shape == (0, DIM)


def test_a_query_without_text_is_refused_and_not_read(tiny: USEMultilingual) -> None:
    picture = Query(media=MediaRef("a.png", "image/png"))
    assert not tiny.reads(picture)
    with pytest.raises(Unsupported, match="`None`"):
        tiny.encode([picture], "query")


@given(st.lists(st.text(st.characters(), max_size=40), max_size=4))
def test_any_text_has_a_finite_unit_vector(texts: list[str]) -> None:
    found = vectors(RANDOM, *texts)
    assert found.shape == (len(texts), DIM)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_query_vectors_are_cached_and_cannot_be_spoilt(tiny: USEMultilingual, monkeypatch: pytest.MonkeyPatch) -> None:
    first = vectors(tiny, "abc", "abc")
    first[:] = 0
    monkeypatch.setattr(tiny, "tokenize", None)
    assert np.linalg.norm(vectors(tiny, "abc")) == pytest.approx(1, abs=1e-5)


# --- threads, progress, doors ----------------------------------------------------------------------------------------


def test_eight_threads_get_the_answers_of_serial_calls(real: USEMultilingual) -> None:
    serial = [real.encode([one], "document") for one in ITEMS]
    with ThreadPoolExecutor(8) as pool:
        for made, wanted in zip(pool.map(lambda one: real.encode([one], "document"), ITEMS), serial, strict=True):
            np.testing.assert_allclose(made, wanted, atol=1e-5)


def test_work_stops_after_the_first_batch(tiny: USEMultilingual, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_PIECES", 1)
    cancelled, seen = Event(), []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append((done, total))
        if done:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        tiny.encode(ITEMS[:3], "document")
    assert seen[-1] == (1, 3)


def test_the_same_seed_gives_the_same_model() -> None:
    one, two, other = (vectors(USEMultilingual.tiny(seed), "abc") for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("name", ["sp.model", "weights.npz"])
def test_a_folder_with_a_file_missing_says_which(tmp_path: Path, name: str) -> None:
    for other in {"sp.model", "weights.npz"} - {name}:
        (tmp_path / other).touch()
    with pytest.raises(MissingWeights, match=f"has no `{name}`"):
        USEMultilingual.from_folder(tmp_path)


# --- which language --------------------------------------------------------------------------------------------------


def test_queries_in_the_scripts_of_training_are_read(tiny: USEMultilingual) -> None:
    read = [*SOFA.values(), "휴가는 며칠인가요", "ฉันมีวันลากี่วัน", "120 €", "BERT 模型"]
    unread = ["Πόσες μέρες άδεια έχω;", "כמה ימי חופשה יש לי", "मेरे पास कितनी छुट्टियाँ हैं"]
    assert [text for text in read + unread if tiny.reads(Query(text))] == read


@pytest.mark.parametrize(
    "text",
    [
        "What did the CEO say about margins?",
        "parental leave 2024",
        "",
        "🙂 120 €",
        "import os\nfor y in range(e): os.path.join(w, x)",
        "The café in the Rue de la Paix was founded by Söhne und Töchter of the emigrants, and it is open on Sundays.",
    ],
)
def test_english_is_told_as_english(text: str) -> None:
    assert english(text)


@pytest.mark.parametrize(
    "text",
    [
        *(text for language, text in (SOFA | {"": REVENUE["es"]}).items() if language != "en"),
        "Wie viele Urlaubstage habe ich?",
        "Quelle est la durée du congé parental ?",
        "politica de vacaciones para empleados",
        "Hoeveel vakantiedagen heb ik?",
        "Ile dni urlopu mi przysługuje?",
        "Kaç gün izin hakkım var?",
        "Quanti giorni di ferie mi spettano?",
        "Onde fica a sede da empresa em São Paulo?",
        "BERT 模型的工作原理是什么",
    ],
)
def test_other_languages_are_told_from_english(text: str) -> None:
    assert not english(text)


@given(st.text(max_size=60))
def test_shares_add_up(text: str) -> None:
    assert isinstance(english(text), bool)
    latin, han = script_share(text, ["Latin"]), script_share(text, ["Han"])
    assert 0 <= latin <= 1
    if any(character.isalpha() for character in text):
        assert script_share(text, ["Latin", "Han"]) == pytest.approx(latin + han)


# --- fusion across languages -----------------------------------------------------------------------------------------

IDS = st.lists(st.sampled_from([f"{language}{n}" for language in "ez" for n in range(8)]), unique=True, max_size=12)


def ids(ranked: list[tuple[str, float]]) -> list[str]:
    return [id_ for id_, _ in ranked]


@given(IDS, IDS, IDS)
def test_every_id_stands_once_and_languages_keep_their_places(one: list[str], two: list[str], many: list[str]) -> None:
    own = {id_ for id_ in {*one, *two, *many} if id_.startswith("e")}
    found = by_language(one, two, many, own)
    assert sorted(ids(found)) == sorted({*one, *two, *many})
    assert [id_[0] for id_ in ids(found)[: len(many)]] == [id_[0] for id_ in many]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)


@given(IDS, IDS)
def test_one_language_is_plain_rank_fusion(one: list[str], two: list[str]) -> None:
    everything = {*one, *two}
    assert ids(by_language(one, two, [], everything)) == ids(by_rank([one, two]))
    assert ids(by_language(one, [], two, everything)) == ids(by_rank([one, two]))
    assert ids(by_language(one, [], two, set())) == ids(by_rank([one, two]))


def test_routes_that_cannot_read_the_answer_do_not_bury_it() -> None:
    wrong = [f"e{n}" for n in range(50)]
    found = ids(by_language(wrong, wrong, ["z0", *wrong], set(wrong)))
    assert found[:3] == ["z0", "e0", "e1"]
    assert ids(by_rank([wrong, wrong, ["z0", *wrong]])).index("z0") > 10
