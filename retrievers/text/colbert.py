"""ColBERT: Efficient and Effective Passage Search via Late Interaction. Khattab and Zaharia 2020, arXiv:2004.12832

Every word piece of a query and of a passage has a vector of 128 dimensions; a passage's score is the sum, over the
query's vectors, of each one's best match among the passage's (MaxSim). A query is `[CLS] [Q] words [SEP]`, filled up
with `[MASK]` to 32 pieces, whose vectors count but which no other piece attends to; a passage is `[CLS] [D] words
[SEP]`, at most 220 pieces, without the vectors of punctuation. `[Q]` and `[D]` are `[unused0]` and `[unused1]`. Longer
texts are cut, as they were in training.

The same file holds ColBERTv2 (Santhanam et al. 2022, arXiv:2112.01488): its checkpoints have the same shape; `fit`
learns by either paper's loss; compressed vectors are in `_residual`, and search over them (PLAID, arXiv:2205.09707) is
the retriever `plaid`. In a library the vectors of this one stand as they are, in a further space (`stores.vectors`),
searched exactly; the first search reads them all, which takes minutes for some thousand passages: take `plaid` there.

Weights: `colbert-ir/colbertv2.0` or whatever else has its names; no package carries one, so put one into
`weights/colbert` of the home folder, or learn one from any BERT with `from_bert(…).fit(…)`. The code is ours. What
differs: vectors are compared by cosine alone (the papers' squared distance of unit vectors gives the same order), and
a new linear layer begins with orthogonal rows. It reads English, as its checkpoints do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import punctuation
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput, MissingWeights, Unsupported
from ...progress import step
from ..base import Encoder, Item, Query, Side, Space
from ..given import given_folder
from ..loading import batches, dtype, encodable, quiet, set_threads
from ..scripts import latin_share
from ..searchable import searchable_text

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from ...manifests.registry import Card
    from ..parts import Parts
    from ._colbert_training import Fitting, Lesson

DIM = 128
QUERY_PIECES, DOCUMENT_PIECES = 32, 220
BATCH_PIECES = 4096
"""Padded word pieces in one forward pass."""
CONFIG, WEIGHTS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
LENGTHS = "artifact.metadata"
"""JSON beside published checkpoints: among other things the lengths of queries and passages."""
MARKS = {"query": "[unused0]", "document": "[unused1]"}
NAMES = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", *MARKS.values())


@dataclass(frozen=True)
class Lengths:
    """Word pieces that are read of each, with the three around them."""

    query: int = QUERY_PIECES
    document: int = DOCUMENT_PIECES


class ColBERT(Encoder):
    """Multi-vector encoder of the space `colbert`. Safe from many threads.

    Args:
        network: a `_late_interaction.Network` in evaluation mode, its dtype and device used as they are.
        tokenizer: of the BERT; its truncation and padding are turned off here.

    Raises:
        BadInput: the tokenizer is no BERT's, or a length that leaves no room for words or that the model cannot read.
    """

    space = Space("colbert", "multi", DIM, "cosine")
    modalities = ("text",)

    def __init__(self, network: Any, tokenizer: Tokenizer, lengths: Lengths | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.network = network
        self.tokenizer = tokenizer
        self.lengths = lengths or Lengths()
        self._ids = {name: _special(tokenizer, name) for name in NAMES}
        longest = network.bert.config.max_position_embeddings
        if not all(4 <= length <= longest for length in (self.lengths.query, self.lengths.document)):
            raise BadInput(f"The lengths are `{self.lengths}`.", f"This model reads 4 to {longest} pieces.")

    @classmethod
    def load(cls, card: Card, parts: Parts) -> ColBERT:
        """From `weights/colbert` of the home folder.

        Raises:
            MissingWeights: one of `FILES` is not there.
            Unsupported: they are of another model; says what differs.
        """
        settings = parts.settings
        set_threads(settings.threads)
        return cls.from_folder(given_folder(card, settings, *FILES), settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "float32", device: str = "cpu") -> ColBERT:
        """From a local folder with the files and names of the published checkpoints.

        Args:
            precision: see `loading.dtype`.

        Raises:
            MissingWeights, Unsupported: as `load`.
        """
        from ._late_interaction import Network

        config, tensors, tokenizer = _read(folder)
        network = Network.of(config, tensors, DIM).to(device=device, dtype=dtype(precision, device))
        return cls(network, tokenizer, _lengths(folder))

    @classmethod
    def from_bert(cls, folder: Path, seed: int = 0, device: str = "cpu") -> ColBERT:
        """A BERT's weights under a linear layer that has learned nothing yet: what `fit` begins with.

        Raises:
            MissingWeights, Unsupported: as `load`.
        """
        from ._late_interaction import Network

        config, tensors, tokenizer = _read(folder)
        return cls(Network.over(config, tensors, DIM, seed).to(device), tokenizer)

    @classmethod
    def tiny(cls, seed: int = 0) -> ColBERT:
        """One random layer over single characters: for tests."""
        import torch

        from ._late_interaction import blank

        tokenizer = _character_tokenizer()
        config = {
            "model_type": "bert",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = blank(config, DIM)
        return cls(network.eval(), tokenizer)

    def fit(self, data: Sequence[Lesson], out_dir: Path, fitting: Fitting | None = None) -> ColBERT:
        """Another ColBERT, which begins as this one and learned from `data`; this one stays as it is.

        It is saved in `out_dir`, from where `from_folder` takes it, with the checkpoints of its training: called again
        with the same data, it goes on from the last.

        Raises:
            BadInput: too few lessons, lessons that do not suit the loss, or `out_dir` holds a fit of other data.
            Cancelled, TimedOut: see `progress`.
        """
        from ._colbert_training import Fitting, learned

        return learned(self, data, out_dir, fitting or Fitting())

    def save(self, folder: Path) -> None:
        """Write `FILES` and the lengths into `folder`, under the published names."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: values.detach().cpu().contiguous() for name, values in self.network.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(self.network.bert.config.to_dict(), indent=1), "utf-8")
        self.tokenizer.save(str(folder / TOKENIZER))
        told = {"dim": DIM, "query_maxlen": self.lengths.query, "doc_maxlen": self.lengths.document}
        (folder / LENGTHS).write_text(json.dumps(told), "utf-8")

    def reads(self, query: Query) -> bool:
        """Whether at least half of the query's letters are Latin; see `AllMiniLM.reads`."""
        return query.text is not None and latin_share(query.text) >= 0.5

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> list[np.ndarray]:
        """Float32 (pieces, 128) of each input, of unit length: 32 of a query, at most 220 of a passage.

        Raises:
            Unsupported: a query without text.
            BadInput: the model gives NaN.
        """
        sequences = self.sequences([_text(given) for given in inputs], side)
        found: list[np.ndarray] = [np.empty((0, DIM), np.float32)] * len(sequences)
        done = 0
        for rows in batches([len(ids) for ids in sequences], BATCH_PIECES):
            step(done, len(sequences), "passages")
            for row, vectors in zip(rows, self._vectors([sequences[row] for row in rows], side), strict=True):
                found[row] = vectors
            done += len(rows)
        return found

    def sequences(self, texts: Sequence[str], side: Side) -> list[list[int]]:
        """Word pieces as the network reads them, queries filled up to their length."""
        mark, cls, sep = (self._ids[name] for name in (MARKS[side], "[CLS]", "[SEP]"))
        length = self.lengths.query if side == "query" else self.lengths.document
        given = self.tokenizer.encode_batch([encodable(text) for text in texts], add_special_tokens=False)
        made = [[cls, mark, *one.ids[: length - 3], sep] for one in given]
        if side == "document":
            return made
        return [[*ids, *[self._ids["[MASK]"]] * (length - len(ids))] for ids in made]

    def padded(self, sequences: Sequence[Sequence[int]], side: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids int64, what is attended to int64, and whose vectors are kept bool, each (batch, longest)."""
        longest = max(map(len, sequences))
        ids = np.array([[*one, *[self._ids["[PAD]"]] * (longest - len(one))] for one in sequences], np.int64)
        there = np.arange(longest) < np.array([len(one) for one in sequences])[:, None]
        if side == "query":
            return ids, (there & (ids != self._ids["[MASK]"])).astype(np.int64), there
        return ids, there.astype(np.int64), there & ~np.isin(ids, self._punctuation)

    def _vectors(self, sequences: Sequence[Sequence[int]], side: Side) -> Iterator[np.ndarray]:
        import torch

        ids, mask, kept = self.padded(sequences, side)
        device = self.network.linear.weight.device
        with torch.inference_mode():
            found = self.network(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).cpu().numpy()
        if not np.isfinite(found[kept]).all():
            raise BadInput("The ColBERT network gives `nan`.", "Its weights are damaged: put them there again.")
        yield from (one[rows] for one, rows in zip(found, kept, strict=True))

    @cached_property
    def _punctuation(self) -> np.ndarray:
        """Ids of ASCII punctuation that is a piece of its own."""
        found = [self.tokenizer.encode(sign, add_special_tokens=False).ids for sign in punctuation]
        return np.array([ids[0] for ids in found if len(ids) == 1], np.int64)


def _special(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise BadInput(f"The tokenizer has no `{name}`.", "Use the tokenizer of a BERT model.")
    return int(found)


def _text(given: Item | Query) -> str:
    if isinstance(given, Item):
        return searchable_text(given)
    if given.text is None:
        raise Unsupported("ColBERT reads text, and the query has `None`.", "Ask with text.")
    return given.text


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Tokenizer]:
    """Configuration, tensors and tokenizer of a folder.

    Raises:
        MissingWeights: one of `FILES` is not there.
        Unsupported: one of them is something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    for name in FILES:
        if not (folder / name).is_file():
            raise MissingWeights(f"`{folder.name}` has no `{name}`.", "Put the checkpoint's files there.")
    try:
        with quiet():
            config = json.loads((folder / CONFIG).read_text("utf-8"))
            return config, load_file(folder / WEIGHTS), Tokenizer.from_file(str(folder / TOKENIZER))
    except (ValueError, SafetensorError) as error:
        raise Unsupported(f"`{folder.name}` cannot be read: {error}.", "Put the checkpoint's files there.") from None


def _lengths(folder: Path) -> Lengths:
    """Those told beside the weights, else the published defaults."""
    path = folder / LENGTHS
    if not path.is_file():
        return Lengths()
    try:
        told = json.loads(path.read_text("utf-8"))
        return Lengths(int(told.get("query_maxlen", QUERY_PIECES)), int(told.get("doc_maxlen", DOCUMENT_PIECES)))
    except (ValueError, TypeError, AttributeError) as error:
        raise Unsupported(f"`{LENGTHS}` cannot be read: {error}.", "Put the checkpoint's own there.") from None


def _character_tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    letters = [chr(code) for code in range(33, 127)]
    names = ["[PAD]", "[UNK]", *NAMES[:2], "[MASK]", *MARKS.values(), *letters, *(f"##{one}" for one in letters)]
    tokenizer = Tokenizer(WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer
