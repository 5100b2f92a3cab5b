"""Speech to text: Silero VAD finds where somebody speaks, the sound is cut at silences, Moonshine writes it down.

Moonshine: Speech Recognition for Live Transcription and Voice Commands. Jeffries et al. 2024, arXiv:2410.15608. Both
run on onnxruntime from pulled weights; English only. A speech model makes up text for noise and music (375 of 414
five-second clips of rain, dogs and engines gave some), so nothing is transcribed where nobody speaks, and text that
the model is unsure of, that repeats itself or that describes music is thrown away.
"""

from __future__ import annotations

import math
import os
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ... import progress
from ...errors import MissingWeights
from .base import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np

    from .base import Limits

RATE = 16_000
"""Samples a second that both models expect, mono, -1 to 1."""

_FRAME = 512  # samples that the detector judges at once
_CONTEXT = 64  # samples before them that it also sees
_FRAME_S = _FRAME / RATE
_VOICED = 0.5  # probability of speech: the default of the detector's authors
_LEAST_VOICED = 12  # frames (0.4 s): less is a cough
_PAUSE = 47  # frames (1.5 s) without speech end a stretch
_MARGIN = 6  # frames (0.2 s) of sound kept around speech: it begins softly

_START, _END = 1, 2
_CONTROL = re.compile(rb"</?(?:s|unk|pad)>|<<ST_\d+>>")
_TOKENS_PER_S = 6.5  # the model's authors' own bound; more means that it runs in circles
_MOST_TOKENS = 192
_LEAST_LOG_PROBABILITY = -0.5  # mean over tokens: speech gives -0.04 to -0.46 (as loud as hiss), coughs -0.5 and less
_NO_SPEECH = re.compile("[\u2669-\u266f\U0001f3b5\U0001f3b6\u00a9]")
_LOOP = re.compile(r"\b(\w[^.!?]{0,40}?)(?:\W+\1\b){4,}", re.IGNORECASE)

_THREADS = min(4, max(1, os.cpu_count() or 1))

_lock = threading.Lock()


@dataclass(frozen=True)
class Stretch:
    """What somebody says between two silences."""

    start_s: float
    end_s: float
    text: str


def recogniser(limits: Limits) -> Recogniser | None:
    """The recogniser that `limits` names, None where it names none.

    Raises:
        MissingWeights: its files are not there; the hint names the command that brings them.
    """
    from ...manifests import weights

    if limits.speech == "none":
        return None
    if limits.weights is None:
        raise MissingWeights("No folder of weights was given.", "Give `Limits` the folder that `pull` fills.")
    with _lock:
        return _loaded(weights.folder(weights.VOICE, limits.weights), weights.folder(limits.speech, limits.weights))


@lru_cache(maxsize=1)
def _loaded(voice: Path, speech: Path) -> Recogniser:
    return Recogniser(voice, speech)


class Recogniser:
    """Both models, loaded. Safe from many threads: what belongs to one recording is in the call.

    Args:
        voice: folder of the detector.
        speech: folder of the recogniser.
    """

    def __init__(self, voice: Path, speech: Path) -> None:
        self._voice = _session(voice / "silero_vad_16k_sequence.onnx", 1)
        self._encoder = _session(speech / "encoder_model.ort", _THREADS)
        self._decoder = _session(speech / "decoder_model_merged.ort", _THREADS)
        self._vocabulary = _vocabulary((speech / "tokenizer.bin").read_bytes())
        self._outputs = [output.name for output in self._decoder.get_outputs()]
        self._empty = {
            one.name: (1, one.shape[1], 0, one.shape[3]) for one in self._decoder.get_inputs() if "past" in one.name
        }

    def stretches(self, blocks: Iterable[tuple[float, np.ndarray]], longest_s: float) -> Iterator[Stretch]:
        """What is said in `blocks` (start in seconds, float32 samples at `RATE`), which follow each other.

        A stretch ends at a silence of 1.5 s; one of `longest_s` is cut where speech is least likely in its second
        half, mostly between two sentences. A block that starts later than the one before ends begins anew.
        """
        for start_s, end_s, samples in self._spoken(blocks, longest_s):
            progress.step(int(end_s), None, "seconds of speech")
            text = self.transcribed(samples)
            if text:
                yield Stretch(round(start_s, 2), round(end_s, 2), text)

    def transcribed(self, samples: np.ndarray) -> str:
        """The text in `samples` (at most about 30 s), empty where the model found none that can be believed."""
        tokens, log_probability = self._greedy(samples)
        text = b"".join(self._vocabulary[token] for token in tokens).decode("utf-8", errors="ignore")
        text = " ".join(clean(text.replace("\u2581", " "))[0].split())
        return text if log_probability >= _LEAST_LOG_PROBABILITY and is_plausible(text) else ""

    def _spoken(
        self, blocks: Iterable[tuple[float, np.ndarray]], longest_s: float
    ) -> Iterator[tuple[float, float, np.ndarray]]:
        longest = round(longest_s / _FRAME_S)
        cutter = _Cutter(self._voice, 0.0)
        for at, samples in blocks:
            if at > cutter.end_s + _FRAME_S:
                yield from cutter.cut(longest, final=True)
                cutter = _Cutter(self._voice, at)
            cutter.add(samples)
            yield from cutter.cut(longest, final=False)
        yield from cutter.cut(longest, final=True)

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


class _Cutter:
    """Sound that has not been cut yet, and the probability of speech in each of its frames."""

    def __init__(self, voice: Any, start_s: float) -> None:
        import numpy as np

        self._voice = voice
        self._start_s = start_s  # of the first sample kept
        self._samples = np.zeros(0, np.float32)
        self._speech = np.zeros(0, np.float32)
        self._state = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
        self._before = np.zeros(_CONTEXT, np.float32)

    @property
    def end_s(self) -> float:
        return self._start_s + len(self._samples) / RATE

    def add(self, samples: np.ndarray) -> None:
        import numpy as np

        self._samples = np.concatenate([self._samples, samples.astype(np.float32, copy=False)])
        fresh = self._samples[len(self._speech) * _FRAME :]
        fresh = fresh[: len(fresh) // _FRAME * _FRAME]
        if not len(fresh):
            return
        seen = np.lib.stride_tricks.sliding_window_view(np.concatenate([self._before, fresh]), _FRAME + _CONTEXT)
        speech, hidden, cell = self._voice.run(None, {"input": np.ascontiguousarray(seen[::_FRAME]), **self._state})
        self._state, self._before = {"h": hidden, "c": cell}, fresh[-_CONTEXT:]
        self._speech = np.concatenate([self._speech, speech])

    def cut(self, longest: int, *, final: bool) -> Iterator[tuple[float, float, np.ndarray]]:
        """Stretches that are complete: where speech starts and ends, and the samples with some margin around it."""
        import numpy as np

        while True:
            span = first_stretch(self._speech, longest, final=final)
            if span is None:
                break
            start, end = span
            low, high = max(0, start - _MARGIN), end
            while high < min(len(self._speech), end + _MARGIN) and self._speech[high] < _VOICED:
                high += 1
            if np.count_nonzero(self._speech[start:end] >= _VOICED) >= _LEAST_VOICED:
                bounds = self._start_s + start * _FRAME_S, self._start_s + end * _FRAME_S
                yield *bounds, self._samples[low * _FRAME : high * _FRAME]
            self._drop(high)
        if not (self._speech >= _VOICED).any():
            self._drop(max(0, len(self._speech) - _MARGIN))

    def _drop(self, frames: int) -> None:
        self._start_s += frames * _FRAME_S
        self._samples, self._speech = self._samples[frames * _FRAME :], self._speech[frames:]


def first_stretch(speech: np.ndarray, longest: int, *, final: bool) -> tuple[int, int] | None:
    """Frames `start, end` of the first stretch in `speech` (probabilities), None while it may still go on."""
    import numpy as np

    voiced = np.flatnonzero(speech >= _VOICED)
    if not len(voiced):
        return None
    pauses = np.flatnonzero(np.diff(voiced) > _PAUSE)
    start, end = int(voiced[0]), int(voiced[pauses[0] if len(pauses) else -1]) + 1
    if end - start > longest:
        middle = start + longest // 2
        likely = np.convolve(speech[middle : start + longest], np.ones(5) / 5, "same")
        return start, middle + int(likely.argmin()) + 1
    return (start, end) if final or len(pauses) or len(speech) - end > _PAUSE else None


def is_plausible(text: str) -> bool:
    """Whether `text` can be speech: it has letters, describes no music, and does not go round in circles.

    >>> is_plausible("Yes, yes, I am coming."), is_plausible("\u266a\u266a"), is_plausible("oh oh oh oh oh oh oh")
    (True, False, False)
    """
    words = re.findall(r"\w+", text.lower())
    if not words or _NO_SPEECH.search(text) or _LOOP.search(text):
        return False
    return len(words) < 8 or 4 * len(set(words)) > len(words)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # it writes warnings about the files to stderr
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


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
