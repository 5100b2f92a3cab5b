"""EfficientNet-B0 on onnxruntime: what a picture is of, and the features that this is told from.

One forward pass gives both, and one session serves the reader that tags pictures and the encoder of their vectors.
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image

WEIGHTS = "image_tags"
EDGE = 224
"""Pixels of the square that the network sees."""
CLASSES = 1000
FEATURES = 1280

_MODEL = "classification/EfficientNetB0/model/EfficientNetB0.onnx"
_POOLED = "StatefulPartitionedCall/efficientnetb0/avg_pool/Mean_Squeeze__1097:0"
_THREADS = min(4, max(1, (os.cpu_count() or 1) // 2))  # as for recognition of text: more of them mostly wait
_GRAPH, _OUTPUT, _NAME = 7, 12, 1  # field numbers of ONNX's ModelProto, GraphProto and ValueInfoProto

_lock = threading.Lock()


class Network:
    """EfficientNet-B0 of ImageNet-1k, loaded. Safe from many threads.

    Args:
        folder: where the weights `image_tags` stand.
    """

    def __init__(self, folder: Path) -> None:
        self._session = session(with_output((folder / _MODEL).read_bytes(), _POOLED))

    def classes(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities of ImageNet's classes, float32 (n, 1000), of pictures as `pixels_of` gives them."""
        return self._run("predictions", pixels)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """The last layer before the classifier, averaged over the picture: float32 (n, 1280), above -0.279."""
        return self._run(_POOLED, pixels)

    def _run(self, output: str, pixels: np.ndarray) -> np.ndarray:
        made: np.ndarray = self._session.run([output], {"input_1": pixels})[0]
        return made


def network(folder: Path) -> Network:
    """The network in `folder`, loaded once and shared."""
    with _lock:
        return _loaded(folder)


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> Network:
    return Network(folder)


def pixels_of(pictures: Sequence[Image]) -> np.ndarray:
    """RGB pictures as the network wants them: float32 (n, 224, 224, 3), 0 to 255, each squeezed into the square.

    Nothing is cut off: what stands at the rim of a wide picture counts as well.
    """
    import numpy as np
    from PIL.Image import Resampling

    made = np.empty((len(pictures), EDGE, EDGE, 3), np.float32)
    for row, picture in enumerate(pictures):
        made[row] = np.asarray(picture.resize((EDGE, EDGE), Resampling.BICUBIC, reducing_gap=2.0))
    return made


def session(model: bytes) -> Any:
    """An onnxruntime session of a serialised model, on few threads and without a log."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _THREADS, 1
    options.log_severity_level = 4  # it writes warnings about the files to stderr
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def with_output(model: bytes, name: str) -> bytes:
    """A serialised ONNX model that also gives out its inner tensor `name`.

    A protocol buffer that holds a message twice means the two merged, so a second graph that has nothing but an output
    adds it to the first: no need of a library that takes the file apart.
    """
    return model + _field(_GRAPH, _field(_OUTPUT, _field(_NAME, name.encode())))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer, of a number below 16."""
    length, size = len(content), bytearray()
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2]) + bytes(size) + content
