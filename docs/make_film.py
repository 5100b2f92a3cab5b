"""The short film of the sample library: slides with a voice under them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

RATE = 16_000
SIZE = (640, 360)
FPS = 10

Slide = tuple[float, tuple[int, int, int], tuple[str, ...]]
"""Seconds, colour of the ground, lines; the first is the title."""


def film(slides: Sequence[Slide], voice: Path, title: str) -> bytes:
    """An MP4 (H.264, AAC) of `slides`, with the recording `voice` from its start."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as made:
        made.metadata["title"] = title
        pictures: Any = made.add_stream("libx264", rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = *SIZE, "yuv420p"
        pictures.codec_context.thread_count = 1  # several give other bytes from run to run
        pictures.options = {"crf": "26", "g": "50", "tune": "stillimage", "flags": "+bitexact"}
        sound: Any = made.add_stream("aac", rate=RATE, layout="mono", options={"flags": "+bitexact"})
        sound.bit_rate = 24_000
        number = 0
        for seconds, colour, lines in slides:
            frame = av.VideoFrame.from_image(_drawn(colour, lines))
            for _ in range(round(seconds * FPS)):
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                made.mux(pictures.encode(frame))
                number += 1
        made.mux(pictures.encode(None))
        resampler = av.AudioResampler(sound.format.name, "mono", RATE, sound.codec_context.frame_size or 1024)
        for part in [*resampler.resample(_heard(voice)), *resampler.resample(None)]:
            made.mux(sound.encode(part))
        made.mux(sound.encode(None))
    return out.getvalue()


def _drawn(colour: tuple[int, int, int], lines: Sequence[str]) -> Image.Image:
    made = Image.new("RGB", SIZE, colour)
    draw = ImageDraw.Draw(made)
    for row, line in enumerate(lines):
        size, top = (44, 50) if row == 0 else (32, 90 + row * 56)
        draw.text((40, top), line, "white", ImageFont.load_default(size))
    return made


def _heard(voice: Path) -> av.AudioFrame:
    """The whole recording as one frame."""
    resampler = av.AudioResampler("flt", "mono", RATE)
    with av.open(str(voice)) as container:
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    parts += resampler.resample(None)
    frame = av.AudioFrame.from_ndarray(np.concatenate([part.to_ndarray() for part in parts], axis=1), "flt", "mono")
    frame.sample_rate, frame.pts = RATE, 0
    return frame
