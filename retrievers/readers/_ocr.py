"""Recognising text in a picture with RapidOCR (PP-OCR models, inside its wheel; nothing is downloaded)."""

from __future__ import annotations

import logging
import math
import os
import threading
from dataclasses import dataclass, replace
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
_MOST_TILES = 60  # of a picture like a thread, which has no text
_OVERLAP = 0.04  # of a tile's length: more than a line of text is high
_LETTER = 0.7  # letter size, of the height of a detected box, which has a margin
_MOST_TILT = math.radians(15)
_LEAST_SCORE = 0.7  # for text that runs up or down the page, which is misread more often
_DETECTION_EDGE = 1280
_THREADS = min(4, max(1, (os.cpu_count() or 1) // 2))  # a second thread on two cores mostly waits, and burns

_lock = threading.Lock()


@dataclass(frozen=True)
class _Found:
    """A line of text, how sure the engine is (0 to 1), and its corners, clockwise from the top left of the text, in
    pixels of the whole picture."""

    text: str
    score: float
    corners: tuple[tuple[float, float], ...]

    @property
    def wide(self) -> float:
        return math.dist(self.corners[0], self.corners[1])

    @property
    def high(self) -> float:
        return math.dist(self.corners[0], self.corners[3])

    @property
    def turned(self) -> bool:
        """Whether it runs up or down the picture: higher than text of so many characters can be."""
        return len(self.text) > 2 and self.high > (1.5 if len(self.text) > 4 else 2.5) * self.wide

    @property
    def tilt(self) -> float:
        (x0, y0), (x1, y1) = self.corners[:2]
        return math.atan2(y1 - y0, x1 - x0)


def read_picture(picture: Image, edge: int) -> list[Row]:
    """Lines of text in `picture` (RGB), in reading order; boxes are fractions of the whole picture.

    A picture higher than `edge` and than three times its width is read in overlapping tiles; each picture or tile is
    scaled down to `edge` pixels on its longer side, and corners are scaled up and shifted back to the whole picture
    before they become fractions of it. A slight tilt is measured over all lines and taken out before words on one line
    are joined. A page that lies on its side is turned, and its boxes are turned back.
    """
    from PIL.Image import Transpose

    words = _words(found := _read(picture, edge), *picture.size)
    if sum(len(one.text) for one in found if one.turned) * 2 > sum(len(one.text) for one in found):
        turns = {turn: _read(picture.transpose(turn), edge) for turn in (Transpose.ROTATE_90, Transpose.ROTATE_270)}
        turn = max(turns, key=lambda turn: sum(one.score * len(one.text) for one in turns[turn]))
        back = _from_left if turn == Transpose.ROTATE_90 else _from_right
        words = [replace(word, box=back(word.box)) for word in _words(turns[turn], picture.height, picture.width)]
    return reading_order(words)


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
        "Global.use_cls": False,  # turns more lines that stand upright than it mends
        "EngineConfig.onnxruntime.intra_op_num_threads": _THREADS,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Det.use_dilation": False,
        "Det.limit_type": "max",
        "Det.limit_side_len": _DETECTION_EDGE,
        "Rec.rec_batch_num": 1,  # a batch is as slow as its longest line
        "Rec.rec_img_shape": [3, 48, 160],  # shorter words are padded to this width: 320 costs twice the time
    }
    return rapidocr.RapidOCR(params=parameters)


def _read(picture: Image, edge: int) -> list[_Found]:
    """What is recognised in the whole picture, each line once."""
    tiles = _tiles(*picture.size, edge)
    found: list[_Found] = []
    for number, tile in enumerate(tiles):
        progress.step(number, len(tiles), "parts of a picture")
        found += _read_tile(picture, tile, edge)
    area = picture.width * picture.height
    seen = [one for one in found if _is_plausible(one, area)]
    return _once(seen) if len(tiles) > 1 else seen


def _tiles(width: int, height: int, edge: int) -> list[tuple[int, int, int, int]]:
    """Boxes `left, top, right, bottom` in pixels that cover the picture from top to bottom."""
    if height <= max(edge, _LONGEST_SHAPE * width):
        return [(0, 0, width, height)]
    count = min(_MOST_TILES, math.ceil(height / (_LONGEST_SHAPE / 2 * width)))
    length = height / count
    tops = [max(0, int((n - _OVERLAP) * length)) for n in range(count)]
    bottoms = [min(height, math.ceil((n + 1 + _OVERLAP) * length)) for n in range(count)]
    return [(0, top, width, bottom) for top, bottom in zip(tops, bottoms, strict=True)]


def _read_tile(picture: Image, tile: tuple[int, int, int, int], edge: int) -> list[_Found]:
    import numpy as np

    part = picture if tile == (0, 0, *picture.size) else picture.crop(tile)
    scale = min(1.0, edge / max(part.size))
    if scale < 1:
        part = part.resize((max(1, round(part.width * scale)), max(1, round(part.height * scale))))
    pixels = np.ascontiguousarray(np.asarray(part)[:, :, ::-1])
    found = []
    with _lock:
        read = _engine()(pixels, use_det=True)
        for text, score, box in zip(read.txts, read.scores, read.boxes, strict=True) if read.txts else ():
            corners = tuple((x / scale + tile[0], y / scale + tile[1]) for x, y in box.tolist())
            one = _Found(clean(text)[0].strip(), float(score), corners)
            found.append(_read_upwards(one, pixels, box) if one.turned else one)
    return found


def _read_upwards(one: _Found, pixels: Any, box: Any) -> _Found:
    """`one`, which the engine read downwards, or the same read upwards if that makes more sense.

    `pixels` is the picture, `box` the corners in it; `_lock` is held by the caller.
    """
    import numpy as np

    (left, top), (right, bottom) = box.min(axis=0).astype(int), np.ceil(box.max(axis=0)).astype(int)
    upright = np.ascontiguousarray(np.rot90(pixels[max(0, top) : bottom, max(0, left) : right], -1))
    read = _engine()(upright, use_det=False)
    if not read.txts or read.scores[0] <= one.score:
        return one
    return replace(one, text=clean(read.txts[0])[0].strip(), score=float(read.scores[0]))


def _is_plausible(one: _Found, area: int) -> bool:
    """Whether there is text: no guess at text that is turned, no lone mark, and no single letter as large as a tenth of
    the picture, which is an edge taken for a dash."""
    if one.turned and one.score < _LEAST_SCORE:
        return False
    return len(one.text) > 1 or (one.text.isalnum() and one.wide * one.high < 0.1 * area)


def _once(found: Sequence[_Found]) -> list[_Found]:
    """Without what two overlapping tiles both saw: of boxes that cover each other by half the larger one stays."""
    kept: list[tuple[_Found, Box]] = []
    for one in sorted(found, key=lambda one: -one.wide * one.high):
        box = _around(one.corners)
        if not any(_share(box, other) > 0.5 for _, other in kept):
            kept.append((one, box))
    return [one for one, _ in kept]


def _words(found: Sequence[_Found], width: int, height: int) -> list[Word]:
    """Words with the tilt of the picture taken out of their positions, not out of their boxes."""
    tilts = [one.tilt for one in found if one.wide > 3 * one.high]
    tilt = median(tilts) if tilts else 0.0
    turn = -tilt if abs(tilt) < _MOST_TILT else 0.0
    cos, sin = math.cos(turn), math.sin(turn)
    words = []
    for one in found:
        left, top, right, bottom = _around([(x * cos - y * sin, x * sin + y * cos) for x, y in one.corners])
        x0, y0, x1, y1 = _around(one.corners)
        box = (max(0.0, x0 / width), max(0.0, y0 / height), min(1.0, x1 / width), min(1.0, y1 / height))
        size = _LETTER * min(bottom - top, right - left)
        words.append(Word(one.text, left, top, right, bottom, size, box, turned=one.turned))
    return words


def _from_left(box: Box) -> Box:
    """A box of a picture that was turned counter-clockwise, in the picture as it was."""
    x0, y0, x1, y1 = box
    return 1 - y1, x0, 1 - y0, x1


def _from_right(box: Box) -> Box:
    """A box of a picture that was turned clockwise, in the picture as it was."""
    x0, y0, x1, y1 = box
    return y0, 1 - x1, y1, 1 - x0


def _around(corners: Sequence[tuple[float, float]]) -> Box:
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _share(box: Box, other: Box) -> float:
    """The part of `box` that `other` covers."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, wide) * max(0.0, high) / max((box[2] - box[0]) * (box[3] - box[1]), 1e-6)
