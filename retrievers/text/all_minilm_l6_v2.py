"""Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks. Reimers and Gurevych 2019, arXiv:1908.10084

The released checkpoint `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0, 22 M parameters, English), run as it was
trained: at most 256 word pieces, mean of the token states, unit length. The forward pass is transformers' BERT, or the
same in 8-bit integers (`_int8_bert`); what is ours is the batching, the caches, and the token vectors that late
interaction and sentence scoring read: the same token states, each of unit length, with the characters they stand for.
Texts beyond 256 pieces are cut for `encode` (as in training) and read in overlapping windows for `token_vectors`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from ...errors import BadInput, MissingWeights, Unsupported
from ...progress import step
from ..base import Encoder, Item, Query, Side, Space
from ..loading import batches, dtype, encodable, finite, in_int8, quiet, set_threads
from ..scripts import latin_share
from ..searchable import searchable_text
from ._int8_bert import Int8Bert

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..parts import Parts

WEIGHTS = "all_minilm_l6_v2"
DIM = 384
MAX_PIECES = 256
"""Word pieces the model reads at once, `[CLS]` and `[SEP]` included."""
OVERLAP = 64
"""Word pieces that two neighbouring windows of a longer text share."""
BATCH_PIECES = 2048
"""Padded word pieces in one forward pass of `encode`: larger batches leave the processor's cache and are slower."""
QUERY_CACHE = 1024
TOKEN_CACHE_BYTES = 256 * 2**20


class TokenVectors(NamedTuple):
    """Contextual vectors of one text's word pieces, `[CLS]` and `[SEP]` left out.

    Attributes:
        vectors: float16 (tokens, 384), each of unit length, read-only.
        offsets: int32 (tokens, 2), half-open character spans in the text, ascending, read-only.
    """

    vectors: np.ndarray
    offsets: np.ndarray


class AllMiniLM(Encoder):
    """Dense encoder of the space `minilm`. Safe from many threads.

    Args:
        model: a transformers `BertModel` in evaluation mode, its dtype and device used as they are; or an `Int8Bert`.
        tokenizer: the `tokenizers.Tokenizer` of the model; its truncation and padding are turned off here.
    """

    space = Space("minilm", "dense", DIM, "cosine")

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.model = model
        self.tokenizer = tokenizer
        self._cls, self._sep, self._pad = (_special(tokenizer, name) for name in ("[CLS]", "[SEP]", "[PAD]"))
        self._queries: _Cache[np.ndarray] = _Cache(QUERY_CACHE, lambda vector: 1)
        self._tokens: _Cache[TokenVectors] = _Cache(TOKEN_CACHE_BYTES, lambda kept: kept.vectors.nbytes)

    @classmethod
    def load(cls, card: Card, parts: Parts) -> AllMiniLM:
        """From the pulled weights.

        Raises:
            MissingWeights: they are not on this machine.
        """
        from ...manifests.weights import folder

        settings = parts.settings
        found = folder(WEIGHTS, settings.weights)  # where they are missing, torch need not be imported
        return cls.from_folder(found, settings.precision, parts.device, set_threads(settings.threads))

    @classmethod
    def from_folder(
        cls, folder: Path, precision: str = "auto", device: str = "cpu", threads: int | None = None
    ) -> AllMiniLM:
        """From a local sentence-transformers folder: `config.json`, `model.safetensors`, `tokenizer.json`.

        Args:
            precision: see `loading.in_int8` and `loading.dtype`.
            threads: how many texts are read at the same time in int8; as many as torch has threads by default.

        Raises:
            MissingWeights: one of the files is not there.
            BadInput: they are of another model, or damaged.
            Unsupported: int8 on a machine that does not compute in it.
        """
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (folder / name).is_file():
                raise MissingWeights(f"`{WEIGHTS}` has no `{name}`.", "Run `triptych pull embedded`.")
        from ..towers import read_config, read_tokenizer

        size = read_config(folder, "bert").get("hidden_size")
        if size != DIM:
            raise BadInput(f"`{folder.name}` holds a model of `{size}` dimensions.", f"Give one of {DIM}.")
        tokenizer = read_tokenizer(folder, "bert")
        if in_int8(precision, device):
            return cls(Int8Bert.load(folder, threads or set_threads(0)), tokenizer)
        return cls(_bert(folder, dtype(precision, device)).eval().to(device), tokenizer)

    @classmethod
    def tiny(cls, seed: int = 0) -> AllMiniLM:
        """One random layer over single characters, 384 dimensions: for tests, in well under a second."""
        import torch
        from transformers import BertConfig, BertModel

        tokenizer = _character_tokenizer()
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=DIM,
            num_hidden_layers=1,
            num_attention_heads=12,
            intermediate_size=64,
            max_position_embeddings=MAX_PIECES,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = BertModel(config, add_pooling_layer=False)
        return cls(model.eval(), tokenizer)

    def reads(self, query: Query) -> bool:
        """Whether the query's text is in a script the model was trained on: at least half its letters are Latin.

        A query that it does not read is better served by the lexical route alone.
        """
        return latin_share(query.text or "") >= 0.5

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, 384), unit length, in the order of `inputs`; vectors of queries are cached.

        Raises:
            Unsupported: a query without text.
        """
        texts = [_text(given) for given in inputs]
        if side == "document":
            return self._pooled(texts)
        made = [self._queries.get(text, lambda text=text: self._pooled([text])[0]) for text in texts]  # type: ignore[misc]
        return np.stack(made) if made else np.empty((0, DIM), np.float32)

    def token_vectors(self, texts: Sequence[str], side: Side = "document") -> list[TokenVectors]:
        """Token vectors of each text, from a cache bounded in bytes.

        Each text is read alone, so that its vectors never depend on what else is asked or already cached.
        The model treats both sides alike.
        """
        made: list[TokenVectors] = []
        for start in range(0, len(texts), self._width):
            if start:
                step(start, len(texts), "texts")
            made += self._map(self._kept, texts[start : start + self._width])
        return made

    def _kept(self, text: str) -> TokenVectors:
        return self._tokens.get(_digest(text), lambda: self._read(text))

    def _pooled(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.empty((len(texts), DIM), np.float32)
        pieces = [self._framed(encoding.ids) for encoding in self._tokenize(texts)]
        done = 0
        for rows in batches([len(ids) for ids in pieces], BATCH_PIECES * self._width):
            step(done, len(texts), "passages")
            states = self._states([pieces[row] for row in rows])
            vectors[rows] = _unit(np.stack([one.mean(axis=0) for one in states]))
            done += len(rows)
        return vectors

    def _read(self, text: str) -> TokenVectors:
        [encoding] = self._tokenize([text])
        kept = [np.empty((0, DIM), np.float16)]
        for start, end, first, last in windows(len(encoding.ids), MAX_PIECES - 2, OVERLAP):
            [states] = self._states([self._framed(encoding.ids[start:end])])
            kept.append(_unit(states[1 + first - start : 1 + last - start]).astype(np.float16))
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        vectors = np.concatenate(kept)
        vectors.flags.writeable = offsets.flags.writeable = False
        return TokenVectors(vectors, offsets)

    def _tokenize(self, texts: Sequence[str]) -> Any:
        return self.tokenizer.encode_batch([encodable(text) for text in texts], add_special_tokens=False)

    def _framed(self, ids: Sequence[int]) -> list[int]:
        return [self._cls, *ids[: MAX_PIECES - 2], self._sep]

    def _states(self, pieces: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Token states of each sequence: float32 (pieces, 384)."""
        if isinstance(self.model, Int8Bert):
            return list(self.model.map(self.model, pieces))
        import torch

        ids, mask = _padded(pieces, self._pad)
        device = self.model.device
        with torch.inference_mode():
            attention = None if mask.all() else torch.from_numpy(mask).to(device)
            output = self.model(input_ids=torch.from_numpy(ids).to(device), attention_mask=attention)
            states = output.last_hidden_state.float().cpu().numpy()
        return [states[row, : len(sequence)] for row, sequence in enumerate(pieces)]

    def _map(self, work: Callable[[str], TokenVectors], texts: Sequence[str]) -> Iterable[TokenVectors]:
        return self.model.map(work, texts) if isinstance(self.model, Int8Bert) else map(work, texts)

    @property
    def _width(self) -> int:
        """How many texts are read at the same time, each on its own."""
        return self.model.threads if isinstance(self.model, Int8Bert) else 1


def windows(length: int, size: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows `(start, end, first, last)` over `length` pieces: read `[start, end)`, keep `[first, last)`.

    The kept parts tile `[0, length)`; inside an overlap each window keeps the half that is farther from its edge.

    >>> list(windows(10, 6, 2))
    [(0, 6, 0, 5), (4, 10, 5, 10)]
    """
    first = 0
    for start in range(0, max(length - overlap, 1), size - overlap):
        end = min(start + size, length)
        last = length if end == length else end - overlap // 2
        if last > first:
            yield start, end, first, last
        first = last


def _text(given: Item | Query) -> str:
    if isinstance(given, Item):
        return searchable_text(given)
    if given.text is None:
        raise Unsupported("all-MiniLM-L6-v2 reads text, and the query has `None`.", "Ask with text.")
    return given.text


def _bert(folder: Path, wanted: Any) -> Any:
    """The `BertModel` in `folder`, in the torch dtype `wanted`; transformers itself would fill gaps at random.

    Raises:
        BadInput: a tensor is missing, unknown or of another shape, or the file is damaged.
    """
    from safetensors import SafetensorError
    from transformers import BertModel

    try:
        with quiet():
            model, told = BertModel.from_pretrained(
                folder,
                dtype=wanted,
                attn_implementation="sdpa",
                add_pooling_layer=False,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise BadInput(f"`model.safetensors` cannot be read: {error}.", "Run `triptych pull embedded`.") from None
    unknown = [key for key in told["unexpected_keys"] if not key.startswith(("pooler.", "embeddings.position_ids"))]
    mismatched = [one if isinstance(one, str) else one[0] for one in told["mismatched_keys"]]
    for key in sorted([*told["missing_keys"], *unknown, *mismatched]):
        raise BadInput(f"`model.safetensors` has no such `{key}` as the model.", "Give the weights of this model.")
    return model


def _unit(rows: np.ndarray) -> np.ndarray:
    """Each row of float32 (n, 384) at unit length."""
    return finite(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny))


def _padded(pieces: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, int64 (batch, longest)."""
    shape = (len(pieces), max(map(len, pieces)))
    ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for row, sequence in enumerate(pieces):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask


def _special(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise BadInput(f"The tokenizer has no `{name}`.", "Use the tokenizer of a BERT model.")
    return int(found)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _character_tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    letters = [chr(code) for code in range(33, 127)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


Kept = TypeVar("Kept")


class _Cache(Generic[Kept]):
    """Least recently used values up to a total `size`. Two threads that miss at once both compute; one value stays."""

    def __init__(self, capacity: int, size: Callable[[Kept], int]) -> None:
        self._capacity = capacity
        self._size = size
        self._used = 0
        self._values: OrderedDict[Any, Kept] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, make: Callable[[], Kept]) -> Kept:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = made
                self._used += self._size(made)
            while self._used > self._capacity and len(self._values) > 1:
                _, oldest = self._values.popitem(last=False)
                self._used -= self._size(oldest)
            return self._values.get(key, made)
