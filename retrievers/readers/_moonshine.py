"""Moonshine: Speech Recognition for Live Transcription and Voice Commands. Jeffries et al. 2024, arXiv:2410.15608.

The authors' tiny English model (MIT) on onnxruntime, with the greedy loop of the paper. Text that the model is unsure
of is thrown away. It knows up to 30 s at once, and no other language than English.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any

from ._speech import RATE, session
from .base import clean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_START, _END = 1, 2
_CONTROL = re.compile(rb"</?(?:s|unk|pad)>|<<ST_\d+>>")
_TOKENS_PER_S = 6.5  # the model's authors' own bound; more means that it runs in circles
_MOST_TOKENS = 192
_LEAST_LOG_PROBABILITY = -0.5  # mean over tokens: speech gives -0.04 to -0.46 (as loud as hiss), coughs -0.5 and less

_THREADS = min(4, max(1, os.cpu_count() or 1))


class Moonshine:
    """The model. Safe from many threads.

    Args:
        encoder, decoder: sessions of onnxruntime.
        vocabulary: the bytes of each token, by id.
    """

    def __init__(self, encoder: Any, decoder: Any, vocabulary: list[bytes]) -> None:
        self._encoder, self._decoder, self._vocabulary = encoder, decoder, vocabulary
        self._outputs = [output.name for output in self._decoder.get_outputs()]
        self._empty = {
            one.name: (1, one.shape[1], 0, one.shape[3]) for one in self._decoder.get_inputs() if "past" in one.name
        }

    @classmethod
    def load(cls, folder: Path) -> Moonshine:
        """The model in `folder`."""
        encoder = session(folder / "encoder_model.ort", _THREADS)
        decoder = session(folder / "decoder_model_merged.ort", _THREADS)
        return cls(encoder, decoder, _vocabulary((folder / "tokenizer.bin").read_bytes()))

    def begin(self) -> Callable[[np.ndarray], str]:
        """What writes down the stretches of one recording; this model remembers nothing of those before."""
        return self.transcribed

    def transcribed(self, samples: np.ndarray) -> str:
        """The text in `samples` (float32 at `RATE`, at most about 30 s), empty where the model is unsure of it."""
        tokens, log_probability = self._greedy(samples)
        text = b"".join(self._vocabulary[token] for token in tokens).decode("utf-8", errors="ignore")
        text = " ".join(clean(text.replace("\u2581", " "))[0].split())
        return text if log_probability >= _LEAST_LOG_PROBABILITY else ""

    def _greedy(self, samples: np.ndarray) -> tuple[list[int], float]:
        """The most likely token after each other until the end mark, and their mean log probability.

        Encoder: samples (1, n) to states (1, about n / 384, 288). Decoder: one token, the states, and per layer keys
        and values of the tokens before (which grow) and of the states (which its first call computes).
        """
        import numpy as np

        mask = np.ones((1, len(samples)), np.int64)
        states = self._encoder.run(None, {"input_values": samples[None], "attention_mask": mask})[0]
        past: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in self._empty.items()}
        fixed = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        tokens, total = [_START], 0.0
        for step in range(min(_MOST_TOKENS, math.ceil(_TOKENS_PER_S * len(samples) / RATE) + 2)):
            given = {"input_ids": np.array([tokens[-1:]], np.int64), "use_cache_branch": np.array([step > 0])}
            logits, *present = self._decoder.run(None, {**fixed, **given, **past})
            scores = logits[0, -1].astype(np.float64)
            token = int(scores.argmax())
            total -= float(np.log(np.exp(scores - scores[token]).sum()))
            tokens.append(token)
            if token == _END:
                break
            for name, value in zip(self._outputs[1:], present, strict=True):
                if step == 0 or ".decoder." in name:
                    past[name.replace("present", "past_key_values")] = value
        return [token for token in tokens[1:] if token != _END], total / (len(tokens) - 1)


def _vocabulary(data: bytes) -> list[bytes]:
    """Tokens by id: each is its length in bytes (from 128 on in two: the low seven bits, then the rest) and its bytes.

    Marks that are no text become empty.
    """
    tokens: list[bytes] = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length > 127:
            length += (data[at] - 1) * 128
            at += 1
        token = data[at : at + length]
        tokens.append(b"" if _CONTROL.fullmatch(token) else token)
        at += length
    return tokens
