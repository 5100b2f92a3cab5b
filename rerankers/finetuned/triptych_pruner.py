"""Triptych pruner: one pass says which words of a passage answer a question, and how well the passage does.

After Provence, Chirkova et al. 2025, arXiv:2501.16214, which puts a reranker's score and a pruner's labels into one
cross-encoder. Ours is small (all-MiniLM-L6-v2, Apache-2.0, 22 M parameters), was trained on two thousand questions
instead of a large collection with a language model's labels, and ships with the package in 8-bit integers: data,
licence (CC BY-SA 4.0) and figures stand in `weights_pruner/MODEL_CARD.md`. It reads English.

`triptych_reranker` orders hits by the score, the refiner `triptych_pruner` cuts by the words; both share what was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import BadInput
from ...progress import step
from ...retrievers.chunking import sentences
from ...retrievers.loading import encodable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_PIECES = 400
"""Word pieces of question and passage together; a longer passage is read in windows that end with a sentence."""
QUERY_PIECES = 64
"""Of a longer question the beginning is read."""
READINGS = 4096
"""Passages that are remembered with what was read in them."""
FOLDER = "weights_pruner"


class Reading(NamedTuple):
    """What one pass says about a text.

    Attributes:
        score: how likely the text answers the question, 0 to 1; of several windows the best.
        offsets: int32 (tokens, 2), half-open character spans in the text, ascending, read-only.
        keep: float32 (tokens,), how likely each token stays, 0 to 1, read-only.
        tokens: word pieces that were read, with the question's.
    """

    score: float
    offsets: np.ndarray
    keep: np.ndarray
    tokens: int


class Pruner:
    """Reads texts for a question. Safe from many threads.

    Args:
        session: an onnxruntime session over `_pruner_export.exported`, with one thread for each run.
        tokenizer: of the encoder; its truncation and padding are turned off here.
        threads: texts that are read at the same time.
    """

    def __init__(self, session: Any, tokenizer: Tokenizer, threads: int = 1) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.threads = threads
        self._session = session
        self._tokenizer = tokenizer
        self._cls, self._sep = special(tokenizer, "[CLS]"), special(tokenizer, "[SEP]")
        self._pool = ThreadPoolExecutor(threads, "pruner")
        self._kept = lru_cache(READINGS)(self._read)

    @classmethod
    def shipped(cls, precision: str = "auto", threads: int = 0) -> Pruner:
        """With the weights in the package, in 8-bit integers where the processor computes in them.

        Args:
            precision: see `loading.in_int8`; without 8-bit integers it computes in float32.
            threads: as many as torch has by default.
        """
        from tokenizers import Tokenizer

        from ...retrievers.loading import in_int8, set_threads
        from ._pruner_export import in_float32

        folder = resources.files(__package__) / FOLDER
        model = (folder / "model.onnx").read_bytes()
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
        return cls(session(model if in_int8(precision) else in_float32(model)), tokenizer, threads=set_threads(threads))

    @classmethod
    def tiny(cls, seed: int = 0) -> Pruner:
        """One random layer over single characters: for tests, in well under a second."""
        from ._pruner_export import exported, random_weights

        config, weights, tokenizer = random_weights(seed)
        return cls(session(exported(config, weights, MAX_PIECES)), tokenizer)

    def read(self, query: str, texts: Sequence[str]) -> list[Reading]:
        """A reading of each text. Each is read alone, so that it never depends on what else is asked or remembered."""
        made: list[Reading] = []
        for start in range(0, len(texts), self.threads):
            if start:
                step(start, len(texts), "texts")
            group = texts[start : start + self.threads]
            if len(group) == 1:
                made.append(self._kept(query, group[0]))
            else:
                made += self._pool.map(lambda text: self._kept(query, text), group)
        return made

    def _read(self, query: str, text: str) -> Reading:
        asked = self._tokenizer.encode(encodable(query), add_special_tokens=False).ids[:QUERY_PIECES]
        asked = [self._cls, *asked, self._sep]
        found = self._tokenizer.encode(encodable(text), add_special_tokens=False)
        offsets = np.array(found.offsets, np.int32).reshape(-1, 2)
        read = [
            self._logits(asked, found.ids[start:end])
            for start, end in windows(text, offsets[:, 0], MAX_PIECES - len(asked) - 1)
        ]
        keep = _share(np.concatenate([np.empty(0, np.float32), *(logits for logits, _ in read)]))
        offsets.flags.writeable = keep.flags.writeable = False
        score = max((float(_share(np.array(score))) for _, score in read), default=0.0)
        return Reading(score, offsets, keep, len(found.ids) + len(read) * (len(asked) + 1))

    def _logits(self, asked: Sequence[int], ids: Sequence[int]) -> tuple[np.ndarray, float]:
        """Of one window: float32 (pieces,) of its word pieces, and of the whole."""
        places = np.arange(len(asked) + len(ids) + 1)
        places[len(asked) :] += MAX_PIECES
        keep, relevance = self._session.run(
            ["keep", "relevance"], {"ids": np.array([[*asked, *ids, self._sep]], np.int64), "places": places}
        )
        return keep[0, len(asked) : -1], float(relevance[0, 0])


def special(tokenizer: Tokenizer, name: str) -> int:
    """The id of a token that frames texts.

    Raises:
        BadInput: the tokenizer has none of that name.
    """
    found = tokenizer.token_to_id(name)
    if found is None:
        raise BadInput(f"The tokenizer has no `{name}`.", "Use the tokenizer of a BERT model.")
    return int(found)


def session(model: bytes) -> Any:
    """An onnxruntime session with one thread for each run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Beyond the basic level sums and norms are joined into an operation that is several times as slow.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def windows(text: str, starts: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges of word pieces that tile the text, each at most `size` long and ending with a sentence.

    A sentence that is longer is cut.

    Args:
        starts: (pieces,), where each piece starts in the text, ascending.
    """
    if len(starts) <= size:
        if len(starts):
            yield 0, len(starts)
        return
    ends = [int(end) for end in np.searchsorted(starts, [end for _, end in sentences(text)])]
    first = last = 0
    for end in ends:
        if end - first > size and last > first:
            yield first, last
            first = last
        while end - first > size:
            yield first, first + size
            first += size
        last = end
    if last > first:
        yield first, last


def _share(logits: np.ndarray) -> np.ndarray:
    """The logistic function, float32 of the same shape."""
    made: np.ndarray = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
    return made
