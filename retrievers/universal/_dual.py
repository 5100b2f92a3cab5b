"""What dual encoders share: an input is words or a picture, each in batches of like size; a video is several pictures.

A tower of text reads ids, a tower of pictures what the model's own processor makes of them, and both give vectors
(inputs, dim) of one space, not yet of unit length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import BadInput, Unsupported
from ...progress import step
from ..base import Item, Query
from ..loading import batches, encodable
from ._inputs import seen, shows, words
from ._vectors import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image
    from tokenizers import Tokenizer

BATCH_TOKENS = 2048
"""Word pieces or patches in one forward pass: larger batches leave the processor's cache and are slower."""
EDGE = 1024
"""Pixels that the longer side of a picture has at most before the model's own processor makes it small: a second
scaling is seen in the pixels of larger pictures only."""
FRAMES = 4
"""Of a scene of a video."""


@dataclass(frozen=True)
class Dual:
    """Two towers of one space.

    Attributes:
        frame: texts to ids with the model's marks, cut to its longest.
        texts: ids, as many as fit one forward pass, to a tensor (texts, dim).
        pictures: the same of pictures.
        patches: tokens that one picture is to its tower.
        frames: pictures that a scene of a video is read as.
    """

    frame: Callable[[Sequence[str]], list[list[int]]]
    texts: Callable[[Sequence[list[int]]], torch.Tensor]
    pictures: Callable[[Sequence[Image]], torch.Tensor]
    patches: int
    frames: int = FRAMES

    def encode(self, inputs: Sequence[Item] | Sequence[Query], dim: int) -> np.ndarray:
        """Float32 (n, dim) of unit length. The vector of a scene is the mean of its frames' unit vectors (CLIP4Clip's
        mean pooling, arXiv:2104.08860), made one of unit length.

        Raises:
            Unsupported: one has both words and a picture, or neither.
            UnreadableFile, BadInput: a picture cannot be read, or the model gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        vectors = np.empty((len(inputs), dim), np.float32)
        shown = [row for row in range(len(inputs)) if shows(inputs[row])]
        told = [row for row in range(len(inputs)) if not shows(inputs[row])]
        ids = self.frame([words(inputs[row]) for row in told])
        done = 0
        for batch in batches([len(one) for one in ids], BATCH_TOKENS):
            step(done, len(inputs), "inputs")
            with torch.inference_mode():
                vectors[[told[place] for place in batch]] = unit(self.texts([ids[place] for place in batch]))
            done += len(batch)
        size = max(1, BATCH_TOKENS // self.patches)
        for start in range(0, len(shown), size):
            step(done, len(inputs), "inputs")
            rows = shown[start : start + size]
            vectors[rows] = self._shown([seen(inputs[row], EDGE, self.frames).pictures for row in rows], size)
            done += len(rows)
        return vectors

    def _shown(self, given: Sequence[Sequence[Image]], size: int) -> np.ndarray:
        """One vector for each tuple of pictures."""
        flat = [picture for pictures in given for picture in pictures]
        with torch.inference_mode():
            made = [unit(self.pictures(flat[start : start + size])) for start in range(0, len(flat), size)]
        ends = np.cumsum([len(pictures) for pictures in given])
        groups = np.split(np.concatenate(made), ends[:-1])
        return np.stack([group[0] if len(group) == 1 else _mean(group) for group in groups])


def _mean(vectors: np.ndarray) -> np.ndarray:
    return unit(torch.from_numpy(vectors.mean(axis=0)))


def reads_one(query: Query) -> bool:
    """Whether a query has words or a picture, and not both."""
    return (query.text is None) != (query.media is None)


def refuse_both(inputs: Sequence[Item] | Sequence[Query], name: str) -> None:
    """Raise `Unsupported` for a query of words and a picture."""
    for one in inputs:
        if isinstance(one, Query) and one.text is not None and one.media is not None:
            both = f"`{name}` reads words or a picture, and the query has both."
            raise Unsupported(both, "Ask with one of them, or use the retriever `uniir`, which reads both.")


# --- texts and pictures ----------------------------------------------------------------------------------------------


def framing(tokenizer: Tokenizer, longest: int, padded: str = "") -> Callable[[Sequence[str]], list[list[int]]]:
    """Texts to the ids of at most `longest` pieces, the tokenizer's own marks included.

    Args:
        padded: a piece; texts are filled up with it, on the right, to `longest`.
    """
    from tokenizers import Tokenizer as Copy

    own = Copy.from_str(tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(longest)
    if padded:
        own.enable_padding(length=longest, pad_id=own.token_to_id(padded), pad_token=padded)

    def frame(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in own.encode_batch([encodable(text) for text in texts])]

    return frame


def fits(tokenizer: Tokenizer, size: int) -> None:
    """Raise `BadInput` if the tokenizer knows more pieces than the model's `size`."""
    known = tokenizer.get_vocab_size()
    if known > size:
        raise BadInput(f"The tokenizer knows `{known}` pieces, the model `{size}`.", "Give the model's own tokenizer.")


def squares(pictures: Any, edge: int) -> None:
    """Raise `BadInput` unless the processor makes squares of `edge` pixels of any picture."""
    from PIL import Image

    made = pictures(images=[Image.new("RGB", (3, 5))], return_tensors="pt")["pixel_values"].shape[-2:]
    if tuple(made) != (edge, edge):
        size = " × ".join(map(str, made))
        wrong = f"The processor makes pictures of `{size}` pixels, the model reads `{edge}`."
        raise BadInput(wrong, "Give the model's own `preprocessor_config.json`.")
