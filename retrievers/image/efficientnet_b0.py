"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. Tan and Le 2019, arXiv:1905.11946

Pictures that look alike, found by the features of EfficientNet-B0: the 1,280 numbers that its classifier of ImageNet-1k
reads, averaged over the picture, scaled to unit length. The paper trains the network to classify; taking its features
for search is ours, and nothing is trained for it. The weights are those of Keras as ONNX (`image_tags`, Apache-2.0).

It finds crops, mirrored and re-encoded copies, and pictures of the same kind of thing. It knows no words: a text query
has no vector in this space, and two charts or two pages of text look much the same to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import Unsupported
from ...progress import step
from ..base import Encoder, Item, MediaRef, Modality, Query, Side, Space
from ._network import EDGE, FEATURES, WEIGHTS, network, pixels_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...manifests.registry import Card
    from ..parts import Parts

BATCH = 8
"""Pictures in one forward pass: more of them are no faster on a processor, and none can be cancelled half-way."""
DRAWN_EDGE = 2 * EDGE
"""Pixels of the longer side of a picture, page or frame before it is squeezed into the network's square."""


class Features(Protocol):
    """What the encoder stands on: a network that turns pixels into features."""

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (n, 224, 224, 3), 0 to 255, to float32 (n, 1280)."""


class EfficientNetB0(Encoder):
    """Dense encoder of the space `visual`. Safe from many threads.

    Items and queries are encoded by what they show, whatever their text: their `media.uri` must be **a path on this
    machine**, which the caller has resolved and allowed, and is opened as it stands. Of a PDF or TIFF the page
    `media.page` is drawn, of a video the key frame of the scene from `media.start_s` to `media.end_s`.

    Args:
        net: the network; a pulled one is made by `load`.
    """

    space = Space("visual", "dense", FEATURES, "cosine")
    modalities: tuple[Modality, ...] = ("image", "page", "video")
    looks = True

    def __init__(self, net: Features) -> None:
        self.net = net

    @classmethod
    def load(cls, card: Card, parts: Parts) -> EfficientNetB0:
        """From the pulled weights; the session is shared with the reader that tags pictures.

        Raises:
            MissingWeights: they are not on this machine.
        """
        from ...manifests.weights import folder

        return cls(network(folder(WEIGHTS, parts.settings.weights)))

    @classmethod
    def tiny(cls, seed: int) -> EfficientNetB0:
        """Stands in without weights: colours and edges of 49 patches, mixed at random."""
        return cls(_Patches(seed))

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """float32 (n, 1280), each of unit length; queries and documents are encoded alike.

        Raises:
            Unsupported: one of `inputs` has nothing to show.
            UnreadableFile: a file is gone, damaged, of another kind, or cannot be shown as a picture.
            Cancelled, TimedOut: see `progress`.
        """
        shown = [_media(one) for one in inputs]
        vectors = np.zeros((len(shown), FEATURES), np.float32)
        for start in range(0, len(shown), BATCH):
            step(start, len(shown), "pictures")
            batch = shown[start : start + BATCH]
            vectors[start : start + BATCH] = _unit(self.net.features(pixels_of([_drawn(one) for one in batch])))
        step(len(shown), len(shown), "pictures")
        return vectors


def _media(given: Item | Query) -> MediaRef:
    if given.media is None:
        what = f"the item `{given.id}`" if isinstance(given, Item) else "the query"
        raise Unsupported(f"EfficientNet-B0 looks at pictures, and {what} has no `media`.", "Ask with a picture.")
    return given.media


def _drawn(media: MediaRef) -> Any:
    from ..readers.picture import drawn

    return drawn(media, DRAWN_EDGE)


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of unit length; a row of zeros, which no picture gives, stays one."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: np.ndarray = features / np.maximum(lengths, 1e-12)
    return unit


class _Patches:
    """Mean colour of 7 × 7 patches and the mean change to the right and down in each, projected at random."""

    _SIDE = 7

    def __init__(self, seed: int) -> None:
        seen = self._SIDE**2 * 9
        self._mix = np.random.default_rng(seed).normal(size=(seen, FEATURES)).astype(np.float32) / seen**0.5

    def features(self, pixels: np.ndarray) -> np.ndarray:
        across = np.abs(np.diff(pixels, axis=2, append=pixels[:, :, -1:]))
        down = np.abs(np.diff(pixels, axis=1, append=pixels[:, -1:]))
        seen = np.concatenate([pixels, across, down], axis=3) / 255
        patch = EDGE // self._SIDE
        means = seen.reshape(len(pixels), self._SIDE, patch, self._SIDE, patch, 9).mean(axis=(2, 4))
        # One row at a time: a product of matrices rounds by how many rows it has, and a batch must equal a loop.
        made: np.ndarray = np.stack([row @ self._mix for row in means.reshape(len(pixels), -1) + 0.01])
        return made
