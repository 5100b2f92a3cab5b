"""LLMLingua-2: the package's decisions where words are the same, and text that stands in the source everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llmlingua import PromptCompressor
from transformers import PreTrainedTokenizerFast

from triptych.errors import BadInput, Cancelled, MissingWeights, Unsupported
from triptych.manifests.registry import card
from triptych.progress import reporting
from triptych.refiners.base import Budget
from triptych.refiners.hard.llmlingua2 import CHUNK, LLMLingua2, chunks, fullest, threshold
from triptych.refiners.tokens import count
from triptych.retrievers.base import Hit, Item, Query, Source

PLAIN = (
    "the council met in the old town hall on monday to talk about the new bridge over the river and about the cost "
    "of the work that the city wants to begin next year although nobody knows who will pay for it in the end"
)
MIXED = (
    "Set API_KEY=x9 before 09:30. Zoë paid 12 € in cafe\u0301 noir, not 15 €! 柏林是德国的首都。"
    "酒店每晚最高一百二十欧元。 Write to a.b@c.org or call f(x, y)."
)
TABLE = "| City | Rate |\n|---|---|\n| Berlin | 120 |\n| Paris | 150 |\n| Rome | 140 |\n| Oslo | 190 |"


class Stock(PromptCompressor):
    """The `llmlingua` package over a model that is there: its constructor downloads, its LLMLingua-2 path does not."""

    def __init__(self, refiner: LLMLingua2) -> None:
        names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        self.model = refiner.model
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=refiner.tokenizer, **names)
        self.model_name = "bert-base-multilingual-cased"
        self.device = "cpu"
        self.max_batch_size, self.max_seq_len, self.max_force_token = 50, 512, 100
        self.special_tokens = set(names.values())
        self.added_tokens: list[str] = []
        self.oai_tokenizer = SimpleNamespace(encode=lambda text: range(count(text, "cl100k_base")))

    def labels(self, text: str, rate: float, **options: Any) -> list[tuple[str, bool]]:
        told = self.compress_prompt_llmlingua2([text], rate=rate, return_word_label=True, **options)
        pairs = [pair.rpartition(" ") for pair in told["fn_labeled_original_prompt"].split("\t\t|\t\t")]
        return [(word, label == "1") for word, _, label in pairs]


@pytest.fixture(scope="module")
def tiny() -> LLMLingua2:
    return LLMLingua2.tiny()


def hits(*texts: str) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source(f"notes/{n}.md")), 1.0 - n / 10) for n, text in enumerate(texts)]


def is_subsequence(words: Sequence[str], whole: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in words)


# the paper's rule


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.2, 0.33, 0.5, 0.8])
def test_decisions_are_the_packages(seed: int, rate: float) -> None:
    refiner = LLMLingua2.tiny(seed)
    decided = refiner.decide(PLAIN, rate)
    ours = [(PLAIN[start:end], bool(kept)) for (start, end), kept in zip(decided.spans, decided.kept, strict=True)]
    assert ours == Stock(refiner).labels(PLAIN, rate)
    assert 0 < sum(kept for _, kept in ours) < len(ours)


def test_decisions_are_the_packages_over_several_chunks(tiny: LLMLingua2) -> None:
    text = " . ".join(f"in year {n} {PLAIN}" for n in range(8)) + " ."
    decided = tiny.decide(text, 0.4)
    assert len(list(chunks([len(tiny.tokenizer.encode(text, add_special_tokens=False).ids)], CHUNK))) > 2
    ours = [(text[start:end], bool(kept)) for (start, end), kept in zip(decided.spans, decided.kept, strict=True)]
    theirs = Stock(tiny).labels(text, 0.4)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert [word for word, _ in ours] == [word for word, _ in theirs]
    assert same >= 0.9 * len(ours)  # the package closes a chunk one token later, so that a few thresholds differ


def test_digits_and_forced_words_are_kept_as_in_the_package(tiny: LLMLingua2) -> None:
    text = PLAIN.replace("monday", "8 march").replace("next year", "in 2031")
    refiner = LLMLingua2(tiny.model, tiny.tokenizer, digits=True)
    decided = refiner.decide(text, 0.3)
    ours = [(text[start:end], bool(kept)) for (start, end), kept in zip(decided.spans, decided.kept, strict=True)]
    assert ours == Stock(tiny).labels(text, 0.3, force_reserve_digit=True)
    assert ("8", True) in ours and ("2031", True) in ours
    forced = LLMLingua2(tiny.model, tiny.tokenizer, force=["bridge", "river"]).decide(text + " Bridge. (river)", 0.1)
    kept = {(text + " Bridge. (river)")[a:b] for (a, b), holds in zip(forced.spans, forced.kept, strict=True) if holds}
    assert {"bridge", "river", "(river)"} <= kept
    assert forced.probabilities.max() == 1


def test_the_threshold_weighs_words_by_their_tokens() -> None:
    values = [0.9, 0.1, 0.5, 0.7]
    assert threshold(values, [1, 1, 1, 1], 0.5) < threshold(values, [9, 1, 1, 1], 0.5)
    assert threshold([], [], 0.5) == 0
    assert threshold(values, [1, 1, 1, 1], 0.001) == 0.9


def test_everything_is_kept_at_one(tiny: LLMLingua2) -> None:
    assert tiny.decide(PLAIN, 1.0).kept.all()
    assert tiny.decide("", 0.5).spans == ()
    for keep in (0.0, 1.1):
        with pytest.raises(BadInput, match=f"`{keep}`"):
            tiny.decide(PLAIN, keep)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 12))
def test_chunks_tile_the_tokens_at_sentence_ends(lengths: list[int], size: int) -> None:
    ends = np.cumsum(lengths).tolist()
    found = list(chunks(ends, size))
    assert [token for start, end in found for token in range(start, end)] == list(range(ends[-1]))
    assert all(0 < end - start <= size for start, end in found)
    for start, end in found:
        fits = [one for one in ends if start < one <= start + size]
        assert end == (fits[-1] if fits else min(start + size, ends[-1]))


# the text that comes back


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_text_is_rebuilt_from_offsets(tiny: LLMLingua2, keep: float) -> None:
    decided = tiny.decide(MIXED, keep)
    assert "".join(MIXED[start:end] for start, end in decided.spans) == "".join(MIXED.split())
    stock = Stock(tiny).compress_prompt_llmlingua2([MIXED], rate=0.99)["compressed_prompt"]
    assert "API_KEY=x9" not in stock  # what offsets are for


@settings(max_examples=30)
@given(
    texts=st.lists(
        st.text(alphabet=st.sampled_from("abc DE_1 .,!\n柏林。é👩‍🔬🇩| -"), min_size=1, max_size=120),
        min_size=1,
        max_size=3,
    ),
    tokens=st.integers(1, 60),
)
def test_output_is_a_subsequence_of_the_words(texts: list[str], tokens: int) -> None:
    given_hits = hits(*texts)
    try:
        refined = TINY.refine(Query("b"), given_hits, Budget(tokens))
    except BadInput as error:
        assert int(re.findall(r"\d+", error.hint)[0]) > tokens
        return
    assert refined.used <= tokens
    for passage in refined.passages:
        kept = "".join(piece.text for piece in passage.pieces if piece.span is not None)
        assert is_subsequence("".join(kept.split()), passage.item.text)
        assert all(p.text == passage.item.text[slice(*p.span)] for p in passage.pieces if p.span is not None)
        assert all(piece.why == "joiner" for piece in passage.pieces if piece.span is None)


TINY = LLMLingua2.tiny()


def test_the_most_probable_words_stay(tiny: LLMLingua2) -> None:
    refined = tiny.refine(None, hits(PLAIN), Budget(20))
    decided = tiny.decide(PLAIN, 0.5)
    kept = {piece.span for piece in refined.passages[0].pieces if piece.span is not None}
    covered = [any(a <= start and end <= b for a, b in kept) for start, end in decided.spans]
    order = np.argsort(-decided.probabilities)
    ranks = sorted(int(np.flatnonzero(order == n)[0]) for n, holds in enumerate(covered) if holds)
    assert refined.used >= 18
    assert ranks[-1] <= len(ranks) + 2  # the last ones are those that the budget had room for


def test_tables_lose_rows(tiny: LLMLingua2) -> None:
    for tokens in range(25, 60, 5):
        refined = tiny.refine(None, hits(TABLE, PLAIN), Budget(tokens))
        lines = [line for p in refined.passages if p.item.id == "p0" for line in p.text.split("\n")]
        assert set(lines) <= {*TABLE.split("\n"), "…"}
        assert not lines or lines[:2] == TABLE.split("\n")[:2]


def test_numbers_and_negations_stay_with_their_sentence(tiny: LLMLingua2) -> None:
    text = "the rate of a night in the hotel is not above 120 EUR and the breakfast does not cost 15 EUR for a guest."
    for tokens in range(14, 28):
        [passage] = tiny.refine(None, hits(text), Budget(tokens)).passages
        if len(passage.text) > len("the rate of a night"):
            assert passage.text.count("not") == 2
            assert "120 EUR" in passage.text and "15 EUR" in passage.text


def test_passages_can_be_filtered_first(tiny: LLMLingua2) -> None:
    texts = [f"note {n} {PLAIN[n:]}" for n in range(8)]
    assert fullest([0.2, 0.8, 0.4, 0.6], 0.5) == [False, True, False, True]
    coarse = LLMLingua2(tiny.model, tiny.tokenizer, contexts=True)
    budget = Budget(60)
    kept = coarse.refine(None, hits(*texts), budget)
    every = tiny.refine(None, hits(*texts), budget)
    assert len(kept.passages) < len(every.passages)
    assert {d.reason for d in kept.dropped} == {"budget"}
    assert kept.used <= 60


# doors


def test_a_local_folder_loads(tmp_path: Path, tiny: LLMLingua2) -> None:
    folder = tmp_path / "weights" / "llmlingua2"
    parts: Any = SimpleNamespace(
        settings=SimpleNamespace(weights=tmp_path / "weights", precision="float32"), device="cpu"
    )
    with pytest.raises(MissingWeights, match=r"`llmlingua2` has no `config.json`.*bert-base-multilingual") as caught:
        LLMLingua2.load(card("llmlingua2"), parts)
    assert str(tmp_path) not in str(caught.value)
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save(str(folder / "tokenizer.json"))
    loaded = LLMLingua2.load(card("llmlingua2"), parts)
    np.testing.assert_allclose(
        loaded.decide(PLAIN, 0.5).probabilities, tiny.decide(PLAIN, 0.5).probabilities, atol=1e-6
    )
    assert loaded.refine(None, hits(PLAIN), Budget(20)) == tiny.refine(None, hits(PLAIN), Budget(20))


def test_what_is_no_token_classifier_of_two_labels_is_refused(tmp_path: Path, tiny: LLMLingua2) -> None:
    tiny.model.bert.save_pretrained(tmp_path)
    tiny.tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Unsupported, match="`BertModel`"):
        LLMLingua2.from_folder(tmp_path)
    with pytest.raises(Unsupported, match="`3` labels"):
        LLMLingua2(SimpleNamespace(config=SimpleNamespace(num_labels=3)), tiny.tokenizer)


def test_tiny_follows_its_seed() -> None:
    one, same, other = (LLMLingua2.tiny(seed).decide(PLAIN, 0.5).probabilities for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_chunks_are_reported_and_can_be_cancelled(tiny: LLMLingua2) -> None:
    event = Event()
    event.set()
    with reporting(cancelled=event), pytest.raises(Cancelled):
        tiny.refine(None, hits(PLAIN), Budget(20))
    steps: list[tuple[int, int | None, str]] = []
    with reporting(lambda *step: steps.append(step)):
        tiny.refine(None, hits(*[f"{n} {PLAIN}" for n in range(60)]), Budget(200))
    chunks = [(done, total) for done, total, what in steps if what == "chunks"]
    assert len(chunks) > 2
    assert all(done < (total or 0) for done, total in chunks)


def test_threads_give_the_serial_answers(tiny: LLMLingua2) -> None:
    budgets = [Budget(tokens) for tokens in range(20, 60, 5)]
    serial = [tiny.refine(None, hits(PLAIN, MIXED), budget) for budget in budgets]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda budget: tiny.refine(None, hits(PLAIN, MIXED), budget), budgets)) == serial
