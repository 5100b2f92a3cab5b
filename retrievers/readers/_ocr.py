"""Recognising text in a picture with RapidOCR (PP-OCR models, inside its wheel; nothing is downloaded)."""

from __future__ import annotations

import logging
import math
import os
import threading
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any

from ... import progress
from ._layout import Row, Word, reading_order
from .base import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from ..base import Box

_LONGEST_SHAPE = 3.0  # height of a picture by its width: above, it is read in tiles
_OVERLAP = 0.04  # of a tile's length: more than a line of text is high
_LETTER = 0.7  # letter size, of the height of a detected box, which has a margin
_MOST_TILT = math.radians(15)
_DETECTION_EDGE = 1280
_THREADS = min(4, os.cpu_count() or 1)
_Found = tuple[str, list[list[float]]]
"""Text and the four corners of its box, clockwise from the top left of the text, in pixels of the whole picture."""

_lock = threading.Lock()


@lru_cache(maxsize=1)
def _engine() -> Any:
    """The engine, made once; `_lock` is held by the caller. Its log goes to ours, errors only."""
    import rapidocr

    log = logging.getLogger("RapidOCR")
    log.handlers.clear()
    log.propagate = True
    parameters = {
        "Global.log_level": "error",
        "Global.max_side_len": 10**6,
        "EngineConfig.onnxruntime.intra_op_num_threads": _THREADS,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Global.use_cls": False,  # turns more lines that stand upright than it mends
        "Det.use_dilation": False,
        "Det.limit_type": "max",
        "Det.limit_side_len": _DETECTION_EDGE,
        "Rec.rec_batch_num": 1,  # a batch is as slow as its longest line
    }
    return rapidocr.RapidOCR(params=parameters)


def read_picture(picture: Image, edge: int) -> list[Row]:
    """Lines of text in `picture`, in reading order; boxes are fractions of the whole picture.

    A picture higher than `edge` and than three times its width is read in overlapping tiles; each picture or tile is
    scaled down to `edge` pixels on its longer side, and corners are scaled up and shifted back to the whole picture
    before they become fractions of it. A slight tilt is measured over all lines and taken out before words on one line
    are joined.
    """
    found = [one for tile in _tiles(*picture.size, edge) for one in _found(picture, tile, edge)]
    seen = [one for one in found if _is_plausible(one, picture.width * picture.height)]
    return reading_order(_words(_once(seen), *picture.size))


def _tiles(width: int, height: int, edge: int) -> list[tuple[int, int, int, int]]:
    """Boxes `left, top, right, bottom` in pixels that cover the picture from top to bottom."""
    if height <= max(edge, _LONGEST_SHAPE * width):
        return [(0, 0, width, height)]
    count = math.ceil(height / (_LONGEST_SHAPE / 2 * width))
    length = height / count
    tops = [max(0, int((n - _OVERLAP) * length)) for n in range(count)]
    bottoms = [min(height, math.ceil((n + 1 + _OVERLAP) * length)) for n in range(count)]
    return [(0, top, width, bottom) for top, bottom in zip(tops, bottoms, strict=True)]


def _found(picture: Image, tile: tuple[int, int, int, int], edge: int) -> list[_Found]:
    """What is recognised in one tile, in pixels of the whole picture."""
    import numpy as np

    progress.step(0)
    part = picture if tile == (0, 0, *picture.size) else picture.crop(tile)
    scale = min(1.0, edge / max(part.size))
    if scale < 1:
        part = part.resize((max(1, round(part.width * scale)), max(1, round(part.height * scale))))
    pixels = np.ascontiguousarray(np.asarray(part.convert("RGB"))[:, :, ::-1])
    with _lock:
        found = _engine()(pixels)
    if not found.txts:
        return []
    corners = np.asarray(found.boxes, dtype=float) / scale + np.array(tile[:2], dtype=float)
    return [(clean(text)[0].strip(), quad) for text, quad in zip(found.txts, corners.tolist(), strict=True)]


def _is_plausible(one: _Found, area: int) -> bool:
    """Whether there is text, and not one character as large as a tenth of the picture: an edge taken for a dash."""
    text, corners = one
    return len(text) > 1 or (len(text) == 1 and _width(corners) * _height(corners) < 0.1 * area)


def _once(found: Sequence[_Found]) -> list[_Found]:
    """Without what two overlapping tiles both saw: of boxes that cover each other by half the larger one stays."""
    kept: list[tuple[_Found, Box]] = []
    for one in sorted(found, key=lambda f: -_width(f[1]) * _height(f[1])):
        box = _around(one[1])
        if not any(_share(box, other) > 0.5 for _, other in kept):
            kept.append((one, box))
    return [one for one, _ in kept]


def _words(found: Sequence[_Found], width: int, height: int) -> list[Word]:
    """Words with the tilt of the picture taken out of their positions, not out of their boxes."""
    tilts = [_tilt(corners) for _, corners in found if _width(corners) > 3 * _height(corners)]
    tilt = median(tilts) if tilts else 0.0
    turn = -tilt if abs(tilt) < _MOST_TILT else 0.0
    cos, sin = math.cos(turn), math.sin(turn)
    words = []
    for text, corners in found:
        left, top, right, bottom = _around([[x * cos - y * sin, x * sin + y * cos] for x, y in corners])
        x0, y0, x1, y1 = _around(corners)
        box = (max(0.0, x0 / width), max(0.0, y0 / height), min(1.0, x1 / width), min(1.0, y1 / height))
        words.append(Word(text, left, top, right, bottom, _LETTER * min(bottom - top, right - left), box))
    return words


def _tilt(corners: list[list[float]]) -> float:
    return math.atan2(corners[1][1] - corners[0][1], corners[1][0] - corners[0][0])


def _width(corners: list[list[float]]) -> float:
    return math.dist(corners[0], corners[1])


def _height(corners: list[list[float]]) -> float:
    return math.dist(corners[0], corners[3])


def _around(corners: Sequence[Sequence[float]]) -> Box:
    xs, ys = [c[0] for c in corners], [c[1] for c in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _share(box: Box, other: Box) -> float:
    """The part of `box` that `other` covers."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, wide) * max(0.0, high) / max((box[2] - box[0]) * (box[3] - box[1]), 1e-6)
