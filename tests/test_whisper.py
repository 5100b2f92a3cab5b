"""Whisper: other languages are written down, and what cannot be believed is not.

`data/german.ogg` says two sentences of ours, read by the synthesiser espeak-ng (voice de, 130 words a minute), as Opus.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from triptych import BadInput, MissingExtra
from triptych.retrievers.readers import _speech, read
from triptych.retrievers.readers._whisper import Whisper
from triptych.retrievers.readers.base import Limits

DATA = Path(__file__).parent / "data"
SECOND = np.zeros(16_000, np.float32)
WORDS = ["<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>", "<|de|>", "<|nl|>", "ja ", "wohl ", "nein "]
JA, NEIN = WORDS.index("ja "), WORDS.index("nein ")

Answer = tuple[dict[str, float], list[int], float]


class Model:
    """What CTranslate2's model is asked, answered from a script: languages with their probabilities, tokens, score."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.turn = answers, -1
        self.prompts: list[list[str]] = []

    def encode(self, features: Any) -> Any:
        self.turn += 1
        return features

    def detect_language(self, states: Any) -> list[list[tuple[str, float]]]:
        return [list(self.answers[self.turn][0].items())]

    def generate(self, states: Any, prompts: list[list[int]], **options: Any) -> list[Any]:
        self.prompts.append([WORDS[token] for token in prompts[0]])
        _, tokens, score = self.answers[self.turn]
        return [SimpleNamespace(sequences_ids=[tokens], scores=[score])]


def written(*answers: Answer, seconds: tuple[int, ...] = ()) -> tuple[list[str], Model]:
    """What is written down of stretches so many seconds long, and the model that was asked."""
    model = Model(*answers)
    tokenizer = SimpleNamespace(token_to_id=WORDS.index, decode=lambda ids: "".join(WORDS[one] for one in ids))
    listen = Whisper(model, tokenizer, lambda samples: samples).begin()
    return [listen(np.tile(SECOND, length)) for length in seconds or [1] * len(answers)], model


def test_the_language_is_the_likeliest_of_all_that_was_heard() -> None:
    german, dutch = {"<|de|>": 0.9, "<|nl|>": 0.1}, {"<|de|>": 0.4, "<|nl|>": 0.6}
    texts, model = written((german, [JA], -0.1), (dutch, [NEIN], -0.1), (dutch, [JA], -0.1), seconds=(3, 1, 30))
    assert texts == ["ja", "nein", "ja"]
    assert [prompt[1] for prompt in model.prompts] == ["<|de|>", "<|de|>", "<|nl|>"]
    assert model.prompts[0] == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]


@pytest.mark.parametrize(
    "answer",
    [
        ({"<|de|>": 0.4, "<|nl|>": 0.35, "<|en|>": 0.25}, [JA], -0.1),
        ({"<|de|>": 0.9}, [JA], -1.1),
        ({"<|de|>": 0.9}, [JA, NEIN] * 40, -0.1),
        ({"<|de|>": 0.9}, [], -0.1),
    ],
    ids=["language", "score", "circle", "silence"],
)
def test_what_cannot_be_believed_is_not_written(answer: Answer) -> None:
    assert written(answer)[0] == [""]


def test_without_ctranslate2_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(MissingExtra) as caught:
        Whisper.load(tmp_path)
    assert "triptych[whisper]" in caught.value.hint


def test_a_model_that_does_not_hear_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`all_minilm_l6_v2` does not recognise speech") as caught:
        _speech.recogniser(Limits(weights=tmp_path, speech="all_minilm_l6_v2"))
    assert "moonshine_tiny_en, whisper_base, none" in caught.value.hint


def heard(name: str, limits: Limits) -> str:
    return " ".join(section.text for section in read(DATA / name, name, limits).sections if section.meta.get("speech"))


def test_german_and_english_are_written_down(weights_home: Path) -> None:
    limits = Limits(weights=weights_home / "weights", speech="whisper_base")
    with ThreadPoolExecutor(2) as pool:
        german, english = pool.map(lambda name: heard(name, limits), ("german.ogg", "speech.ogg"))
    assert all(word in german for word in ("fährt heute nicht", "Wind zu stark", "nächste Schiff", "Donnerstag"))
    assert all(word in english for word in ("committee decided", "river", "next meeting", "town hall", "October"))
    assert german == heard("german.ogg", limits)


def test_the_english_model_makes_up_nothing_for_german(weights_home: Path) -> None:
    assert heard("german.ogg", Limits(weights=weights_home / "weights", speech="moonshine_tiny_en")) == ""
