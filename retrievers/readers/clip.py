"""What a passage sounds like: its stretch of a recording or film, as WAV."""

from __future__ import annotations

import io
import wave
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import Unsupported
from ._container import Track, sound
from ._container import opened as container_of
from .audio import samples
from .base import Limits, unreadable
from .detect import kind_of, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

_HEADER = 44
_WIDTH = 2  # bytes of a sample
_LEAD_S = 1.0  # decoders need a little of what comes before


@dataclass(frozen=True)
class Clip:
    """Sound from `start_s` to `end_s` of its file: a WAV file, mono, 16 bits, 16 kHz."""

    wav: bytes
    start_s: float
    end_s: float


def clip(
    path: Path, uri: str, mime: str, start_s: float, end_s: float | None, most_bytes: int, limits: Limits | None = None
) -> Clip:
    """The sound of the file at `path` from `start_s` to `end_s` (None: to its end), cut to `most_bytes` bytes.

    Raises:
        Unsupported: it is silent there, or has no sound.
        UnreadableFile: as `read`; or the file is no longer of kind `mime`.
    """
    from ._speech import RATE

    known = limits or Limits()
    longest_s = longest(most_bytes)
    until = start_s + longest_s if end_s is None else min(end_s, start_s + longest_s)
    with _container_in(path, uri, mime, known) as container:
        heard = _heard(container, uri, start_s, until, known)
    if not len(heard):
        raise Unsupported(f"`{uri}` has no sound there.", "Use `fetch` for its text, `view` for its picture.")
    return Clip(_wav(heard, RATE), round(start_s, 2), round(start_s + len(heard) / RATE, 2))


def longest(most_bytes: int) -> float:
    """Seconds of sound in a clip of `most_bytes` bytes."""
    from ._speech import RATE

    return max(0, most_bytes - _HEADER) / (_WIDTH * RATE)


def has_sound(path: Path, uri: str, mime: str, limits: Limits | None = None) -> bool:
    """Whether there is anything to hear in the recording or film at `path`.

    Raises:
        UnreadableFile: it cannot be opened, or is no longer of kind `mime`.
    """
    if mime.startswith("audio/"):
        return True
    with _container_in(path, uri, mime, limits or Limits()) as container:
        return sound(container) is not None


@contextmanager
def _container_in(path: Path, uri: str, mime: str, limits: Limits) -> Iterator[Any]:
    with opened(path, uri, limits) as file:
        if kind_of(file, uri) != mime:
            raise unreadable(uri, f"is no longer {mime}", "Index it again.")
        with container_of(file, uri, mime) as container:
            yield container


def _heard(container: Any, uri: str, start_s: float, end_s: float, limits: Limits) -> np.ndarray:
    """float32 samples between the two times; what is missing in between is left out."""
    import numpy as np

    from ._speech import RATE

    nothing = np.zeros(0, np.float32)
    stream = sound(container)
    if stream is None:
        return nothing
    track = Track(container, stream, limits)
    if start_s > _LEAD_S:
        back = int((start_s - _LEAD_S + track.zero_s) * 1e6)
        track.tried(lambda: container.seek(back), None)  # where that fails it is decoded from its beginning
    parts = []
    for at, block in samples(track, uri):
        first, last = round((start_s - at) * RATE), round((end_s - at) * RATE)
        if last <= 0:
            break
        parts.append(block[max(0, first) : last])
    return np.concatenate(parts) if parts else nothing


def _wav(heard: np.ndarray, rate: int) -> bytes:
    whole = (heard.clip(-1.0, 1.0) * 32767).astype("<i2")
    with io.BytesIO() as made:
        with wave.open(made, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(_WIDTH)
            file.setframerate(rate)
            file.writeframes(whole.tobytes())
        return made.getvalue()
