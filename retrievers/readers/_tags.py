"""What a picture shows, in words: few names of things, and only sure ones.

Two small networks look at it: YOLOX (Ge et al. 2021, arXiv:2107.08430; nano, the 80 things of COCO) for what stands in
it, EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946; the 1,000 classes of ImageNet) for what it is of. Both know
photographs only and take charts for kites and worms, so drawings, screenshots and icons are not shown to them.
"""

from __future__ import annotations

import ast
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...errors import MissingWeights
from ..image._network import network, pixels_of, session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image

    from .base import Limits

Tag = tuple[str, float]
"""A name and how sure the network is, 0 to 1."""

_SURE = 0.6  # on photographs of our own the detector was mostly wrong between 0.4 and 0.6, and mostly right above
_MOST = 6
_LEAST_EDGE = 112  # pixels: what is smaller is an icon
_FLAT = 0.65  # of neighbouring pixels that are equal: photographs have up to 0.6, most drawings 0.7 and more
_SAMPLE = 400_000  # pixels that this is told from
_SEEN_EDGE = 832  # pixels of the longer side at least: both networks see half of it

_KINDS = "classification/imagenet_class_names.py"
_THINGS = "object_detection/coco_class_names.py"
_DETECTOR = "object_detection/YOLOX/model/yolox_nano.onnx"
_DETECTOR_EDGE = 416
_GREY = 114  # what the detector was taught to see around a picture
_TODAY = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "television",
}

_lock = threading.Lock()


def seen_in(picture: Image, limits: Limits) -> tuple[list[Tag], MissingWeights | None]:
    """Names for what an RGB picture shows, the surest first, and the models that it would have taken.

    Nothing is missing where nothing would have been named: for drawings and icons, and where `limits` have no folder
    of weights or ask for no tags.
    """
    from ...manifests import weights

    if limits.weights is None or limits.tags == "none" or not is_photograph(picture):
        return [], None
    try:
        folder = weights.folder(limits.tags, limits.weights)
    except MissingWeights as error:
        return [], error
    with _lock:
        tagger = _loaded(folder)
    return tagger.tags(picture), None


def shows(tags: Iterable[Tag]) -> str:
    """The line that says so, empty where there is nothing to say.

    >>> shows([("dog", 0.93), ("frisbee", 0.71)])
    'Shows: dog, frisbee.'
    """
    names = ", ".join(name for name, _ in tags)
    return f"Shows: {names}." if names else ""


def noted(meta: Mapping[str, str], missing: MissingWeights | None) -> dict[str, str]:
    """`note` and `mend` of a document's `meta`, with what is to be said of pictures that could not be tagged."""
    if missing is None:
        return dict(meta)
    note = f"what pictures show was not recognised. {missing.message}"
    mend = f"{missing.hint.rstrip('.')}, then index again."
    return {"note": " ".join(filter(None, (meta.get("note"), note))), "mend": meta.get("mend") or mend}


def is_photograph(picture: Image) -> bool:
    """Whether an RGB picture was taken, not drawn: of a drawing most neighbouring pixels are exactly equal."""
    import numpy as np
    from PIL.Image import Resampling

    width, height = picture.size
    if min(width, height) < _LEAST_EDGE:
        return False
    rows = max(1, min(height, _SAMPLE // width))
    pixels = np.asarray(picture.resize((width, rows), Resampling.NEAREST))
    equal = (pixels[:, 1:] == pixels[:, :-1]).all(axis=2)
    return float(equal.mean()) < _FLAT


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> Tagger:
    return Tagger(folder)


class Tagger:
    """Both networks, loaded. Safe from many threads.

    Args:
        folder: where the weights `image_tags` stand.
    """

    def __init__(self, folder: Path) -> None:
        self._network = network(folder)
        self._detector = session((folder / _DETECTOR).read_bytes())
        self._kinds = _names(folder / _KINDS)
        self._things = [_TODAY.get(name, name) for name in _names(folder / _THINGS)]

    def tags(self, picture: Image) -> list[Tag]:
        """Names for what an RGB picture shows: at most `_MOST`, the surest first, each once."""
        seen = picture.reduce(max(1, max(picture.size) // _SEEN_EDGE))  # quick, and rough enough to be scaled after
        [kinds] = self._network.classes(pixels_of([seen]))
        best: dict[str, float] = {}
        for names, scores in ((self._things, self._detected(seen)), (self._kinds, kinds)):
            for number in (scores >= _SURE).nonzero()[0]:
                name, score = names[number], round(float(scores[number]), 2)
                best[name] = max(score, best.get(name, 0.0))
        return sorted(best.items(), key=lambda tag: (-tag[1], tag[0]))[:_MOST]

    def _detected(self, picture: Image) -> np.ndarray:
        """How sure the detector is of each of the 80 things, wherever it stands: float32 (80,).

        The network gives, for each of 3,549 places, a box, how sure it is that there is something, and of what.
        """
        pixels = _fitted(picture)
        [places] = self._detector.run(["output"], {"images": pixels})[0]
        scores: np.ndarray = (places[:, 4:5] * places[:, 5:]).max(axis=0)
        return scores


def _fitted(picture: Image) -> np.ndarray:
    """The picture as the detector wants it: float32 (1, 3, 416, 416), blue first, in the top left corner of grey."""
    import numpy as np
    from PIL.Image import Resampling

    scale = _DETECTOR_EDGE / max(picture.size)
    width, height = (max(1, int(edge * scale)) for edge in picture.size)
    pixels: Any = np.full((_DETECTOR_EDGE, _DETECTOR_EDGE, 3), _GREY, np.float32)
    pixels[:height, :width] = np.asarray(picture.resize((width, height), Resampling.BILINEAR))[:, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _names(path: Path) -> list[str]:
    """Names by number, from a table that its package keeps as a Python dictionary: read as data, never run."""
    _, _, table = path.read_text("utf-8").partition("=")
    names: dict[int, str] = ast.literal_eval(table.strip())
    return [names[number].lower() for number in range(len(names))]
