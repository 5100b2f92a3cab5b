"""Speech to text: Silero VAD finds where somebody speaks, the sound is cut at silences, a model writes it down.

The detector runs on onnxruntime; who writes is the setting `speech`: `_moonshine.py` (English) or `_whisper.py` (99
languages), from pulled weights. A speech model makes up text for noise and music (Moonshine for 375 of 414 five-second
clips of rain, dogs and engines), so nothing is transcribed where nobody speaks, and text that the model is unsure of,
that repeats itself or that describes music is thrown away.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ... import progress
from ...errors import BadInput, MissingWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy as np

    from .base import Limits

RATE = 16_000
"""Samples a second that all models expect, mono, -1 to 1."""

_FRAME = 512  # samples that the detector judges at once
_CONTEXT = 64  # samples before them that it also sees
_FRAME_S = _FRAME / RATE
_VOICED = 0.5  # probability of speech: the default of the detector's authors
_LEAST_VOICED = 12  # frames (0.4 s): less is a cough
_PAUSE = 47  # frames (1.5 s) without speech end a stretch
_MARGIN = 6  # frames (0.2 s) of sound kept around speech: it begins softly

_NO_SPEECH = re.compile("[\u2669-\u266f\U0001f3b5\U0001f3b6\u00a9]")
_LOOP = re.compile(r"\b(\w[^.!?]{0,40}?)(?:\W+\1\b){4,}", re.IGNORECASE)

_WRITERS = {"moonshine_tiny_en": "_moonshine:Moonshine", "whisper_base": "_whisper:Whisper"}

_lock = threading.Lock()


@dataclass(frozen=True)
class Stretch:
    """What somebody says between two silences."""

    start_s: float
    end_s: float
    text: str


class Writer(Protocol):
    """A model that writes speech down."""

    def begin(self) -> Callable[[np.ndarray], str]:
        """What turns the stretches of one recording, in order, into text: float32 samples at `RATE`, at most about
        25 s; empty where it does not believe itself."""


def recogniser(limits: Limits) -> Recogniser | None:
    """The recogniser that `limits` names, None where it names none.

    Raises:
        BadInput: `limits.speech` is no model for speech.
        MissingWeights: its files are not there; the hint names the command that brings them.
        MissingExtra: the package that runs it is not installed.
    """
    from ...manifests import weights

    if limits.speech == "none":
        return None
    if limits.speech not in _WRITERS:
        raise BadInput(f"`{limits.speech}` does not recognise speech.", f"Use one of: {', '.join(_WRITERS)}, none.")
    if limits.weights is None:
        raise MissingWeights("No folder of weights was given.", "Give `Limits` the folder that `pull` fills.")
    with _lock:
        voice, speech = weights.folder(weights.VOICE, limits.weights), weights.folder(limits.speech, limits.weights)
        return _loaded(voice, speech, _WRITERS[limits.speech])


@lru_cache(maxsize=1)
def _loaded(voice: Path, speech: Path, entry: str) -> Recogniser:
    module, name = entry.split(":")
    writer: Writer = getattr(import_module(f".{module}", __package__), name).load(speech)
    return Recogniser(voice, writer)


class Recogniser:
    """The detector and a writer, loaded. Safe from many threads: what belongs to one recording is in the call.

    Args:
        voice: folder of the detector.
    """

    def __init__(self, voice: Path, writer: Writer) -> None:
        self._voice = session(voice / "silero_vad_16k_sequence.onnx", 1)
        self._writer = writer

    def stretches(self, blocks: Iterable[tuple[float, np.ndarray]], longest_s: float) -> Iterator[Stretch]:
        """What is said in `blocks` (start in seconds, float32 samples at `RATE`), which follow each other.

        A stretch ends at a silence of 1.5 s; one of `longest_s` is cut where speech is least likely in its second
        half, mostly between two sentences. A block that starts later than the one before ends begins anew.
        """
        written = self._writer.begin()
        for start_s, end_s, samples in self._spoken(blocks, longest_s):
            progress.step(int(end_s), None, "seconds of speech")
            text = written(samples)
            if text and is_plausible(text):
                yield Stretch(round(start_s, 2), round(end_s, 2), text)

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


def session(path: Path, threads: int) -> Any:
    """The model at `path` on onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # it writes warnings about the files to stderr
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
