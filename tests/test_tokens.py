"""Counting tokens."""

from __future__ import annotations

import doctest
import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput
from triptych.refiners.tokens import TOKENIZERS, count


def test_doctest() -> None:
    assert doctest.testmod(importlib.import_module("triptych.refiners.tokens")).failed == 0


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_known_counts(tokenizer: str) -> None:
    assert count("", tokenizer) == 0
    assert count("hello world", tokenizer) == 2
    assert count("hello " * 1000, tokenizer) in range(1000, 1003)


def test_the_spelling_of_a_special_token_is_ordinary_text() -> None:
    assert count("<|endoftext|>") > 1


def test_unknown_tokenizer() -> None:
    with pytest.raises(BadInput, match="`p50k_base`") as error:
        count("text", "p50k_base")
    assert "o200k_base" in error.value.hint


@given(st.text(max_size=60))
def test_any_text_counts_between_one_and_its_bytes(text: str) -> None:
    assert (count(text) > 0) == bool(text)
    assert count(text) <= len(text.encode())


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_long_texts_count_like_their_parts(tokenizer: str) -> None:
    sentence = "The budget of 2,000 tokens, it's said, isn't \n/ exceeded: naïve cafés agree.  "
    one, many = count(sentence * 100, tokenizer), count(sentence * 20_000, tokenizer)
    assert many == pytest.approx(one * 200, abs=200)
    assert count("word " * 40_000, tokenizer) == pytest.approx(40_001, abs=2)
    assert count("x" * 250_000, tokenizer) > 1000
