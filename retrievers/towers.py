"""What dense encoders made of transformers share: tokenizers, padded batches, published key names, random models.

A tower is a torch module that reads `input_ids` and `attention_mask`, both int64 (texts, pieces), and gives one vector
per text: as a tensor (texts, dim), or as the `pooler_output` of a transformers output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BadInput, MissingWeights
from ..progress import step
from . import loading
from .loading import CONFIG, batches, config_of, encodable, finite

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

WEIGHTS = "model.safetensors"
BATCH_PIECES = 2048
"""Padded word pieces in one forward pass: larger batches leave the processor's cache and are slower."""

VOCABULARIES = {"bert": ("vocab.txt",), "roberta": ("vocab.json", "merges.txt")}
"""Files of a tokenizer that was saved without `tokenizer.json`."""
MARKS = {"bert": ("[CLS]", "[SEP]", "[PAD]"), "roberta": ("<s>", "</s>", "<pad>")}


class NormedRoberta(nn.Module):
    """Layer norm of a linear map of the first token's state (ANCE, arXiv:2007.00808), with the released key names.

    Args:
        roberta: a transformers `RobertaModel` without pooler.
        dim: of the vectors.
    """

    def __init__(self, roberta: Any, dim: int) -> None:
        super().__init__()
        self.roberta = roberta
        self.embeddingHead = nn.Linear(roberta.config.hidden_size, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.roberta(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors: Tensor = self.norm(self.embeddingHead(states[:, 0]))
        return vectors


# --- vectors ---------------------------------------------------------------------------------------------------------


def vectors_of(tower: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """One vector per text, (texts, dim)."""
    found = tower(input_ids=ids, attention_mask=mask)
    vectors: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return vectors


def padded(pieces: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (texts, longest)."""
    shape = (len(pieces), max(map(len, pieces)))
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(pieces):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


def embedded(tower: nn.Module, pieces: Sequence[Sequence[int]], pad: int, dim: int) -> np.ndarray:
    """Float32 (texts, dim), in the order of `pieces`, in batches of like length.

    Raises:
        BadInput: the tower gives NaN or infinity.
    """
    vectors = np.empty((len(pieces), dim), np.float32)
    device = next(tower.parameters()).device
    done = 0
    for rows in batches([len(ids) for ids in pieces], BATCH_PIECES):
        step(done, len(pieces), "passages")
        ids, mask = padded([pieces[row] for row in rows], pad)
        with torch.inference_mode():
            vectors[rows] = vectors_of(tower, ids.to(device), mask.to(device)).float().cpu().numpy()
        done += len(rows)
    return finite(vectors)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def framing(tokenizer: Tokenizer, kind: str, longest: int) -> tuple[Callable[[Sequence[Any]], list[list[int]]], int]:
    """A function from texts, or pairs of texts, to the ids of at most `longest` pieces with the model's marks around
    them, and the id that pads. The longer text of a pair is cut first.

    Args:
        kind: `"bert"` (`[CLS] a [SEP] b [SEP]`) or `"roberta"` (`<s> a </s></s> b </s>`).

    Raises:
        BadInput: the tokenizer has no such marks.
    """
    from tokenizers import Tokenizer as Copy
    from tokenizers.processors import BertProcessing, RobertaProcessing

    begin, end, pad = (_mark(tokenizer, mark, kind) for mark in MARKS[kind])
    own = Copy.from_str(tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(longest, strategy="longest_first")
    bert = kind == "bert"
    own.post_processor = BertProcessing(end, begin) if bert else RobertaProcessing(end, begin, add_prefix_space=False)

    def frame(texts: Sequence[Any]) -> list[list[int]]:
        clean = [encodable(one) if isinstance(one, str) else tuple(map(encodable, one)) for one in texts]
        return [encoding.ids for encoding in own.encode_batch(clean)]

    return frame, pad[1]


def _mark(tokenizer: Tokenizer, mark: str, kind: str) -> tuple[str, int]:
    number = tokenizer.token_to_id(mark)
    if number is None:
        raise BadInput(f"The tokenizer has no `{mark}`.", f"Use the tokenizer of a {kind} model.")
    return mark, number


def read_tokenizer(folder: Path, kind: str) -> Tokenizer:
    """From `tokenizer.json`, else from the files of `VOCABULARIES`; raises as `loading.read_tokenizer`."""
    return loading.read_tokenizer(folder, VOCABULARIES[kind], f"{kind.capitalize()}Tokenizer")


# --- weights ---------------------------------------------------------------------------------------------------------


def read_config(folder: Path, *kinds: str) -> dict[str, Any]:
    """`config.json` of a model of one of the architectures `kinds`; also checks that its weights are there.

    Raises:
        MissingWeights: a file is not there.
        BadInput: no JSON object, or of another architecture.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingWeights(f"`{folder.name}` has no `{name}`.", "Put the model's files there, as safetensors.")
    return config_of(folder, *kinds)


def read_weights(module: nn.Module, file: Path, renamed: Mapping[str, str], spare: Sequence[str] = ()) -> None:
    """Fill `module` from a safetensors file, every key of which has to be used and every parameter be there.

    Args:
        renamed: how a key may begin in the file → how it begins in the module; the first that fits counts.
        spare: parts of keys that released files have and the module does not need.

    Raises:
        BadInput: it is no safetensors file, or keys or shapes are not those of the module; names the first.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise BadInput(f"`{file.name}` cannot be read: {error}.", "Put the file there again.") from None
    wanted = module.state_dict()
    given: dict[str, Tensor] = {}
    for key, values in weights.items():
        old = next((start for start in renamed if key.startswith(start)), "")
        own = renamed.get(old, "") + key[len(old) :]
        if own in wanted or not any(part in key for part in spare):
            given[own] = values
    wrong = {
        "lacks": sorted(wanted.keys() - given.keys()),
        "has an unknown": sorted(given.keys() - wanted.keys()),
        "has another shape of": [key for key in wanted if key in given and given[key].shape != wanted[key].shape],
    }
    for what, keys in wrong.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise BadInput(f"`{file.name}` {what} `{keys[0]}`{more}.", "Give the weights of this architecture.")
    module.load_state_dict(given)


# --- random models ---------------------------------------------------------------------------------------------------


def characters(kind: str) -> Tokenizer:
    """Of single characters (bert) or bytes (roberta), with the marks of that kind: for tests."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    if kind == "bert":
        letters = [chr(code) for code in range(33, 127)]
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
        made = Tokenizer(models.WordPiece({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        return made
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def seeded(seed: int, make: Callable[[], Any]) -> Any:
    """What `make` makes with torch's random numbers from `seed` on, which stay as they were for everybody else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
