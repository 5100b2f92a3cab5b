"""Robust Speech Recognition via Large-Scale Weak Supervision. Radford et al. 2022, arXiv:2212.04356 (Whisper).

The authors' base model (MIT), 99 languages, converted for CTranslate2, which runs it in 8 bits. Beam search and the
thresholds are those of section 4.5; its retries at higher temperatures are left out: what falls below a threshold is
thrown away, so that the same sound gives the same text. The language of a recording is the one that its stretches so
far make most likely; where that stays unlikely nothing is written down.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtra
from ._speech import RATE
from .base import clean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_BEAM = 5
_MOST_TOKENS = 224
_LEAST_LOG_PROBABILITY = -1.0  # mean over tokens
_MOST_COMPRESSION = 2.4  # of the text by zlib: more means that it runs in circles
_LEAST_LANGUAGE = 0.5  # probability of the likeliest language
_BEFORE, _AFTER = "<|startoftranscript|>", ("<|transcribe|>", "<|notimestamps|>")

_THREADS = min(4, max(1, os.cpu_count() or 1))


class Whisper:
    """The model. Safe from many threads: what belongs to one recording is in what `begin` gives.

    Args:
        model: `ctranslate2.models.Whisper`.
        tokenizer: `tokenizers.Tokenizer` of the same vocabulary.
        features: samples to the log-mel spectrum of 30 s, float32 (1, 80, 3000).
    """

    def __init__(self, model: Any, tokenizer: Any, features: Callable[[np.ndarray], Any]) -> None:
        self._model, self._tokenizer, self._features = model, tokenizer, features

    @classmethod
    def load(cls, folder: Path) -> Whisper:
        """The model in `folder`.

        Raises:
            MissingExtra: CTranslate2 is not installed.
        """
        try:
            from ctranslate2 import StorageView
            from ctranslate2.models import Whisper as Model
        except ImportError:
            hint = "Run `pip install 'triptych[whisper]'`."
            raise MissingExtra("The package `ctranslate2` is not installed.", hint) from None
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor

        extractor = WhisperFeatureExtractor()

        def features(samples: np.ndarray) -> Any:
            found = extractor(samples, sampling_rate=RATE, return_tensors="np").input_features
            return StorageView.from_array(found.astype("float32"))

        model = Model(str(folder), device="cpu", compute_type="int8", inter_threads=1, intra_threads=_THREADS)
        return cls(model, Tokenizer.from_file(str(folder / "tokenizer.json")), features)

    def begin(self) -> Callable[[np.ndarray], str]:
        """What writes down the stretches of one recording, and remembers its language."""
        heard: dict[str, float] = {}

        def transcribed(samples: np.ndarray) -> str:
            return self._transcribed(samples, heard)

        return transcribed

    def _transcribed(self, samples: np.ndarray, heard: dict[str, float]) -> str:
        """The text in `samples` (at most 30 s), empty where it cannot be believed. `heard`: language to seconds."""
        states = self._model.encode(self._features(samples))
        seconds = len(samples) / RATE
        for language, probability in self._model.detect_language(states)[0]:
            heard[language] = heard.get(language, 0.0) + probability * seconds
        language = max(heard, key=lambda one: heard[one])
        if heard[language] < _LEAST_LANGUAGE * sum(heard.values()):
            return ""
        prompt = [self._tokenizer.token_to_id(mark) for mark in (_BEFORE, language, *_AFTER)]
        found = self._model.generate(
            states, [prompt], beam_size=_BEAM, max_length=_MOST_TOKENS, return_scores=True, suppress_blank=True
        )[0]
        text = " ".join(clean(self._tokenizer.decode(found.sequences_ids[0]))[0].split())
        return text if found.scores[0] >= _LEAST_LOG_PROBABILITY and not _runs_in_circles(text) else ""


def _runs_in_circles(text: str) -> bool:
    data = text.encode()
    return len(data) > _MOST_COMPRESSION * len(zlib.compress(data))
