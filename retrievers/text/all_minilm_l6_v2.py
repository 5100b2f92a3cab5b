"""Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks. Reimers and Gurevych 2019, arXiv:1908.10084

The released checkpoint `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0, 22 M parameters, English), run as it was
trained: at most 256 word pieces, mean of the token states, unit length. The forward pass is transformers' BERT; what
is ours is the batching, the caches, and the token vectors that late interaction and sentence scoring read: the same
token states, each of unit length, with the characters they stand for. Texts beyond 256 pieces are cut for `encode`
(as in training) and read in overlapping windows for `token_vectors`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from ...errors import BadInput, MissingWeights, Unsupported
from ...progress import step
from ..base import Encoder, Item, Query, Side, Space
from ..loading import batches, dtype, encodable, quiet
from ..scripts import latin_share
from ..searchable import searchable_text

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
        model: a transformers `BertModel` in evaluation mode; its dtype and device are used as they are.
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
        return cls.from_folder(folder(WEIGHTS, settings.weights), settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> AllMiniLM:
        """From a local sentence-transformers folder: `config.json`, `model.safetensors`, `tokenizer.json`.

        Raises:
            MissingWeights: one of the files is not there.
        """
        from tokenizers import Tokenizer
        from transformers import BertModel

        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (folder / name).is_file():
                raise MissingWeights(f"`{WEIGHTS}` has no `{name}`.", "Run `triptych pull embedded`.")
        with quiet():
            model = BertModel.from_pretrained(
                folder,
                dtype=dtype(precision, device),
                attn_implementation="sdpa",
                add_pooling_layer=False,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        return cls(model.eval().to(device), Tokenizer.from_file(str(folder / "tokenizer.json")))

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
        made = []
        for done, text in enumerate(texts):
            if done:
                step(done, len(texts), "texts")
            made.append(self._tokens.get(_digest(text), lambda text=text: self._read(text)))  # type: ignore[misc]
        return made

    def _pooled(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        vectors = np.empty((len(texts), DIM), np.float32)
        pieces = [self._framed(encoding.ids) for encoding in self._tokenize(texts)]
        done = 0
        for rows in batches([len(ids) for ids in pieces], BATCH_PIECES):
            step(done, len(texts), "passages")
            ids, mask = _padded([pieces[row] for row in rows], self._pad)
            states = self._forward(ids, mask)
            weights = torch.from_numpy(mask).to(states)[:, :, None]
            pooled = (states * weights).sum(1) / weights.sum(1)
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
            done += len(rows)
        return vectors

    def _read(self, text: str) -> TokenVectors:
        import torch

        [encoding] = self._tokenize([text])
        kept = [np.empty((0, DIM), np.float16)]
        for start, end, first, last in windows(len(encoding.ids), MAX_PIECES - 2, OVERLAP):
            ids, mask = _padded([self._framed(encoding.ids[start:end])], self._pad)
            states = torch.nn.functional.normalize(self._forward(ids, mask)[0], dim=1)
            kept.append(states[1 + first - start : 1 + last - start].cpu().numpy().astype(np.float16))
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        vectors = np.concatenate(kept)
        vectors.flags.writeable = offsets.flags.writeable = False
        return TokenVectors(vectors, offsets)

    def _tokenize(self, texts: Sequence[str]) -> Any:
        return self.tokenizer.encode_batch([encodable(text) for text in texts], add_special_tokens=False)

    def _framed(self, ids: Sequence[int]) -> list[int]:
        return [self._cls, *ids[: MAX_PIECES - 2], self._sep]

    def _forward(self, ids: np.ndarray, mask: np.ndarray) -> Any:
        """Token states of a padded batch: float32 tensor (batch, pieces, 384)."""
        import torch

        device = self.model.device
        with torch.inference_mode():
            attention = None if mask.all() else torch.from_numpy(mask).to(device)
            output = self.model(input_ids=torch.from_numpy(ids).to(device), attention_mask=attention)
        return output.last_hidden_state.float()


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
