"""What the tests of sound, film and subtitles share: a file written and read, refused, damaged; a film with lines."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from av.subtitles.subtitle import SubtitleSet
from hypothesis import strategies as st
from PIL import Image

from triptych import UnreadableFile
from triptych.retrievers.readers import read

if TYPE_CHECKING:
    from triptych.retrievers.readers.base import Document, Limits

RATE = 16_000
_STYLES = (
    b"[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\nStyle: Default,Arial,16\n\n"
    b"[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)
_MILLI = Fraction(1, 1000)

Cue = tuple[float, float, str]
"""Start, end, and the text as ASS writes it."""


def make(folder: Path, name: str, content: bytes, limits: Limits | None = None) -> Document:
    path = folder / name
    path.write_bytes(content)
    return read(path, f"box/{name}", limits)


def refused(folder: Path, name: str, content: bytes, limits: Limits | None = None) -> UnreadableFile:
    start = time.monotonic()
    with pytest.raises(UnreadableFile) as caught:
        make(folder, name, content, limits)
    assert time.monotonic() - start < 5
    assert f"`box/{name}`" in caught.value.message
    assert caught.value.hint
    return caught.value


def damaged(folder: Path, files: list[bytes], data: st.DataObject, check: Callable[[Document], None]) -> None:
    """One of `files` with bytes changed and its end cut off is refused by name, or what is left of it holds."""
    content = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    start = time.monotonic()
    try:
        check(make(folder, "a.bin", bytes(content[:cut])))
    except UnreadableFile as error:
        assert "`box/a.bin`" in error.message and error.hint
    assert time.monotonic() - start < 5


def subtitled(
    container: str,
    tracks: Sequence[tuple[str, str, Sequence[Cue]]],
    *,
    seconds: float = 6.0,
    pictures: bool = True,
    sound: np.ndarray | None = None,
    spoken: str = "",
) -> bytes:
    """A file with `tracks` of subtitles, each a codec, a language and cues.

    Its pictures are two plain colours, one after the other. `sound` is at 16 kHz, in the language `spoken`.
    """
    target = io.BytesIO()
    with av.open(target, "w", format=container) as made:
        shown: Any = made.add_stream("libvpx" if container == "webm" else "mpeg4", rate=10) if pictures else None
        if pictures:
            shown.width, shown.height, shown.pix_fmt = 96, 64, "yuv420p"
        voice: Any = made.add_stream("aac", rate=RATE, layout="mono") if sound is not None else None
        if spoken:
            voice.metadata["language"] = spoken
        lines = [_track(made, codec, language) for codec, language, _ in tracks]
        if pictures:
            _film(made, shown, seconds)
        if sound is not None:
            _record(made, voice, sound)
        for line, (_, _, cues) in zip(lines, tracks, strict=True):
            for number, cue in enumerate(cues):
                made.mux(_packet(line, number, *cue))
    return target.getvalue()


def _track(made: Any, codec: str, language: str) -> Any:
    line = made.add_stream(codec)
    line.codec_context.subtitle_header, line.codec_context.time_base, line.time_base = _STYLES, _MILLI, _MILLI
    if language:
        line.metadata["language"] = language
    return line


def _film(made: Any, stream: Any, seconds: float) -> None:
    for number in range(round(seconds * 10)):
        colour = "navy" if number < seconds * 5 else "maroon"
        frame = av.VideoFrame.from_image(Image.new("RGB", (96, 64), colour))
        frame.pts, frame.time_base = number, Fraction(1, 10)
        made.mux(stream.encode(frame))
    made.mux(stream.encode(None))


def _record(made: Any, stream: Any, sound: np.ndarray) -> None:
    heard = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), "flt", "mono")
    heard.sample_rate, heard.pts = RATE, 0
    resampler = av.AudioResampler(stream.format.name, "mono", RATE)
    for part in [*resampler.resample(heard), *resampler.resample(None)]:
        made.mux(stream.encode(part))
    made.mux(stream.encode(None))


def _packet(line: Any, number: int, start: float, end: float, text: str) -> Any:
    lasts = round((end - start) * 1000)
    event = SubtitleSet.create(f"{number},0,Default,,0,0,0,,{text}".encode(), 0, lasts, round(start * 1e6))
    packet = line.codec_context.encode_subtitle(event)
    packet.stream, packet.time_base, packet.duration = line, _MILLI, lasts
    packet.pts = packet.dts = round(start * 1000)
    return packet
