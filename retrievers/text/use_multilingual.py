"""Multilingual Universal Sentence Encoder for Semantic Retrieval. Yang et al. 2019, arXiv:1907.04307

The convolutional model that Google released (Apache-2.0): one space for 16 languages (Arabic, Chinese in both scripts,
Dutch, English, French, German, Italian, Japanese, Korean, Polish, Portuguese, Russian, Spanish, Thai, Turkish), so
that a question in one finds passages in another. The weights are a third party's conversion, with the vectors of the
128,000 word pieces in 6 bits and everything else in float32. The forward pass is ours, over those arrays; the training
tasks are not here. Vectors of word pieces → n-grams of order 2, 3 and 5, two residual convolutions each → the sum over
all pieces, by the square root of their number → four dense layers → unit length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from ...errors import BadInput, MissingWeights, Unsupported
from ...progress import step
from ..base import Encoder, Item, Query, Side, Space
from ..loading import batches, encodable, finite
from ..scripts import script_share
from ..searchable import searchable_text

if TYPE_CHECKING:
    from pathlib import Path

    from ...manifests.registry import Card
    from ..parts import Parts

WEIGHTS = "use_multilingual"
MENDS = "Run `triptych pull embedded`."
DIM = 512
ORDERS = (2, 3, 5)
WIDTH = 256
"""Channels of each order's n-grams."""
HIDDEN = 320
BLOCKS = 17
"""The table of word pieces is cut into so many blocks, each with a scale of its own: piece `i` is in block `i % 17`."""
MAX_PIECES = 256
"""Word pieces that are read of a text, both marks included. The model itself has no limit, but what is read blurs the
rest: nDCG@10 with all pieces, 256, 128 was .221, .231, .228 on Cranfield, .869, .876, .901 on recipes in Chinese, and
.820, .816, .805 from Chinese questions to English paragraphs. Means of windows were no better than all pieces."""
BATCH_PIECES = 4096
QUERY_CACHE = 1024
_EPSILON = 1e-12
_SCRIPTS = ("Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic", "Thai")

Tokenize = Callable[[Sequence[str]], list[list[int]]]


class USEMultilingual(Encoder):
    """Dense encoder of the space `multilingual`. Safe from many threads; always float32.

    Args:
        tensors: torch tensors as `_tensors` makes them from the weights' file; all on one device.
        tokenize: texts → ids of word pieces, the begin and end marks included; never an empty list.
    """

    space = Space("multilingual", "dense", DIM, "cosine")
    many_languages = True

    def __init__(self, tensors: Mapping[str, Any], tokenize: Tokenize) -> None:
        self.tensors = tensors
        self.tokenize = tokenize
        self._query = lru_cache(QUERY_CACHE)(lambda text: self._vectors([text])[0])

    @classmethod
    def load(cls, card: Card, parts: Parts) -> USEMultilingual:
        """From the pulled weights.

        Raises:
            MissingWeights: they are not on this machine.
        """
        from ...manifests.weights import folder

        return cls.from_folder(folder(WEIGHTS, parts.settings.weights), parts.device)

    @classmethod
    def from_folder(cls, folder: Path, device: str = "cpu") -> USEMultilingual:
        """From a folder with `sp.model` and `weights.npz`.

        Raises:
            MissingWeights: one of the files is not there.
            BadInput: it is of another model, or damaged.
        """
        for name in ("sp.model", "weights.npz"):
            if not (folder / name).is_file():
                raise MissingWeights(f"`{WEIGHTS}` has no `{name}`.", MENDS)
        tensors, processor = _read(folder / "weights.npz", device), _processor(folder / "sp.model")

        def tokenize(texts: Sequence[str]) -> list[list[int]]:
            found: list[list[int]] = processor.encode(
                [encodable(text) for text in texts], out_type=int, add_bos=True, add_eos=True, num_threads=1
            )
            return found

        return cls(tensors, tokenize)

    @classmethod
    def tiny(cls, seed: int = 0) -> USEMultilingual:
        """Random weights over the bytes of a text: for tests, in well under a second."""
        return cls(_tensors(_random_arrays(seed), "cpu"), _bytes)

    def reads(self, query: Query) -> bool:
        """Whether at least half the letters of the query are of a script that the model was trained on."""
        return query.text is not None and script_share(query.text, _SCRIPTS) >= 0.5

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, 512), unit length, in the order of `inputs`; vectors of queries are cached.

        Raises:
            Unsupported: a query without text.
        """
        texts = [_text(given) for given in inputs]
        if side == "document":
            return self._vectors(texts)
        return np.stack([self._query(text) for text in texts]) if texts else np.empty((0, DIM), np.float32)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.empty((len(texts), DIM), np.float32)
        pieces = [_cut(ids) for ids in self.tokenize(texts)]
        done = 0
        for rows in batches([len(ids) for ids in pieces], BATCH_PIECES):
            step(done, len(texts), "passages")
            vectors[rows] = self._forward([pieces[row] for row in rows])
            done += len(rows)
        return finite(vectors)

    def _forward(self, pieces: Sequence[Sequence[int]]) -> np.ndarray:
        import torch

        shape = (len(pieces), max(map(len, pieces)))
        ids, mask = np.zeros(shape, np.int64), np.zeros((*shape, 1), np.float32)
        for row, sequence in enumerate(pieces):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        device = self.tensors["table"].device
        with torch.inference_mode():
            made = sentence_vectors(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), self.tensors)
        return np.asarray(made.cpu().numpy())


def sentence_vectors(ids: Any, mask: Any, w: Mapping[str, Any]) -> Any:
    """Unit vectors (batch, 512).

    Args:
        ids: of word pieces, int64 (batch, pieces), padded with any id.
        mask: float32 (batch, pieces, 1), 1 where there is a piece.
        w: see `_tensors`.
    """
    import torch

    block = ids % BLOCKS
    words = w["table"][ids].float() * w["scale"][block][..., None] + w["lo"][block][..., None]
    ngrams = [_ngrams(words, mask, order, w) for order in ORDERS]
    features = _norm(torch.cat([words, *ngrams], -1), w["ln_g"], w["ln_b"])
    number = mask.sum(1)
    # The projection is linear, so it may follow the sum over the pieces.
    mean = ((features * mask).sum(1) @ w["cnn_W"] + number * w["cnn_b"]) / number.sqrt()
    first = ((mean @ w["d0"]).relu() @ w["d1"] + mean @ w["p1"]).relu()
    last = (first @ w["d2"]).relu() @ w["d3"] + first @ w["p3"]
    return torch.nn.functional.normalize(last.tanh(), dim=1)


def _ngrams(words: Any, mask: Any, order: int, w: Mapping[str, Any]) -> Any:
    """(batch, pieces, 256): two residual convolutions over `order` pieces, as if nothing stood beyond a text's ends."""
    from torch.nn.functional import conv1d, pad

    before = (order - 1) // 2
    x = _norm(words @ w[f"proj{order}"] + w[f"proj_b{order}"], w[f"ln_g{order}"], w[f"ln_b{order}"])
    for n in (1, 2):
        around = pad((x * mask).transpose(1, 2), (before, order - 1 - before))
        x = x + conv1d(around, w[f"w{n}_{order}"], w[f"b{n}_{order}"]).relu().transpose(1, 2)
    return x


def _norm(x: Any, gain: Any, bias: Any) -> Any:
    from torch.nn.functional import layer_norm

    return layer_norm(x, gain.shape, gain, bias, _EPSILON)


def _read(file: Path, device: str) -> dict[str, Any]:
    """See `_tensors`.

    Raises:
        BadInput: an array is missing or of another shape, or the file is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, BadZipFile):
        raise BadInput(f"`{file.name}` cannot be read: it is no archive of arrays, or damaged.", MENDS) from None
    for name, shape in _shapes().items():
        if name not in arrays:
            raise BadInput(f"`{file.name}` has no `{name}`.", MENDS)
        given = arrays[name].shape
        if given[-len(shape) :] != shape:  # of the table's blocks the width alone is fixed
            raise BadInput(f"`{name}` in `{file.name}` has the shape `{given}` instead of `{shape}`.", MENDS)
    return _tensors(arrays, device)


def _processor(file: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError):  # its message has the file's whole path
        raise BadInput(f"`{file.name}` cannot be read: it is no SentencePiece model, or damaged.", MENDS) from None


def _tensors(arrays: Mapping[str, np.ndarray], device: str) -> dict[str, Any]:
    """What `USEMultilingual` takes, from the file's arrays: one table, and n-gram weights as convolutions want them."""
    import torch

    blocks = [arrays[f"q{n}"] for n in range(1, BLOCKS + 1)]
    table = np.stack(blocks, axis=1).reshape(-1, DIM)
    kernels = {
        name: np.ascontiguousarray(arrays[name].reshape(order, WIDTH, WIDTH).transpose(2, 1, 0))
        for order in ORDERS
        for name in (f"w1_{order}", f"w2_{order}")
    }
    kept = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    return {name: torch.from_numpy(array).to(device) for name, array in {**kept, **kernels, "table": table}.items()}


def _cut(ids: list[int]) -> list[int]:
    return [*ids[: MAX_PIECES - 1], ids[-1]] if len(ids) > MAX_PIECES else ids


def _text(given: Item | Query) -> str:
    if isinstance(given, Item):
        return searchable_text(given)
    if given.text is None:
        raise Unsupported("The multilingual encoder reads text, and the query has `None`.", "Ask with text.")
    return given.text


def _bytes(texts: Sequence[str]) -> list[list[int]]:
    return [[1, *(3 + byte for byte in text.encode("utf-8", "replace")), 2] for text in texts]


def _shapes() -> dict[str, tuple[int, ...]]:
    """Of the arrays in the weights' file; `q…` are blocks of the table, of any length."""
    features = DIM + len(ORDERS) * WIDTH
    return {
        "cnn_W": (features, DIM),
        "d0": (DIM, HIDDEN),
        "d1": (HIDDEN, HIDDEN),
        "p1": (DIM, HIDDEN),
        "d2": (HIDDEN, DIM),
        "d3": (DIM, DIM),
        "p3": (HIDDEN, DIM),
        **{f"proj{order}": (DIM, WIDTH) for order in ORDERS},
        **{f"w{n}_{order}": (order * WIDTH, WIDTH) for order in ORDERS for n in (1, 2)},
        **dict.fromkeys(("ln_g", "ln_b"), (features,)),
        **dict.fromkeys(("scale", "lo"), (BLOCKS,)),
        "cnn_b": (DIM,),
        **{f"{name}{order}": (WIDTH,) for order in ORDERS for name in ("ln_g", "ln_b", "proj_b", "b1_", "b2_")},
        **{f"q{n}": (DIM,) for n in range(1, BLOCKS + 1)},
    }


def _random_arrays(seed: int) -> dict[str, np.ndarray]:
    """Arrays with the names and shapes of the weights' file, for 272 pieces."""
    random, arrays = np.random.default_rng(seed), {}
    for name, shape in _shapes().items():
        if len(shape) > 1:
            arrays[name] = random.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        elif name.startswith("q"):
            arrays[name] = random.integers(0, 256, (16, *shape), np.uint8)
        else:
            arrays[name] = np.full(shape, float(name.startswith(("ln_g", "scale"))), np.float32)
    return arrays
