"""How much each term of a text matters, told by a BERT encoder with one linear unit over each word's first piece.

Dai & Callan 2019, arXiv:1910.10687. What `deepct` and `hdct` share: the network, which word pieces stand for
which terms of the lexical index, and the integers that weights become. Terms are those of `analysis`, so that a weight
is about what the index counts: every word of the encoder's tokenizer brings the terms that `analysis` finds in it, and
terms of several such words (`covid19` of `COVID-19`) have the largest weight of the words between the same two spaces.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import BadInput
from ...progress import step
from ..given import given_folder
from ..loading import batches, dtype, encodable, quiet
from ._term_network import FILES, fitted, network_of, special, tokenizer_of, untrained
from .analysis import terms

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Encoding, Tokenizer

    from ...manifests.registry import Card
    from ..parts import Parts

LONGEST = 256
"""Word pieces that are read at once, `[CLS]` and `[SEP]` included (the paper cuts at 128). What a longer text has more
is read in further windows, each with its own context."""
BATCH_PIECES = 2048
"""Padded word pieces in one forward pass."""
TOGETHER = 1024
"""Texts whose word pieces are in memory at the same time."""
MAX_COUNT = 10_000
"""No term is counted more often: a weight is meant to lie between 0 and 1."""


class Word(NamedTuple):
    """One word of the encoder's tokenizer: the place of its first piece, and the terms of the index in it."""

    place: int
    terms: tuple[str, ...]


class Chunk(NamedTuple):
    """What stands between two spaces: its words, and the terms that only several of them together make."""

    words: tuple[Word, ...]
    joined: tuple[str, ...]


class TermWeights:
    """Weights of terms in their context. Safe from many threads.

    Args:
        model: a transformers `BertForTokenClassification` with one label, its dtype and device used as they are.
        tokenizer: its `tokenizers.Tokenizer`; truncation and padding are turned off here.
        longest: word pieces that are read at once, if the model has so many positions.

    Raises:
        BadInput: a model with another head, `longest` below 8, or a tokenizer of another model.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, longest: int = LONGEST) -> None:
        if model.config.num_labels != 1:
            raise BadInput(f"The model has `{model.config.num_labels}` outputs for a word piece.", "It needs one.")
        if longest < 8:
            raise BadInput(f"`{longest}` word pieces at once.", "It needs 8 or more.")
        if tokenizer.get_vocab_size() > model.config.vocab_size:
            raise BadInput(
                f"The tokenizer knows `{tokenizer.get_vocab_size():,}` word pieces.", "Use that of the model."
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.model = model
        self.tokenizer = tokenizer
        self.longest = min(longest, int(model.config.max_position_embeddings))
        self.cls, self.sep, self.pad = (special(tokenizer, name) for name in ("[CLS]", "[SEP]", "[PAD]"))

    @classmethod
    def load(cls, card: Card, parts: Parts) -> TermWeights:
        """From `weights/ID` of the home folder, where `fit` or the user put them. Nothing is downloaded.

        Raises:
            MissingWeights: a file is not there.
        """
        where = f"`weights/{card.id}` of the home folder (`TRIPTYCH_HOME`)"
        hint = f"Train with `{card.entry.partition(':')[2]}.fit` into {where}, or put a fitted model there."
        folder = given_folder(card, parts.settings, *FILES, hint=hint)
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(cls, folder: Path, precision: str = "auto", device: str = "cpu") -> TermWeights:
        """From a folder that `fit` wrote, or one with the variables of the authors' program as `model.safetensors`.

        Raises:
            MissingWeights, BadInput: see `_term_network.fitted`.
        """
        with quiet():
            network = fitted(folder)
        return cls(network.to(device, dtype(precision, device)), tokenizer_of(folder))

    @classmethod
    def untrained(cls, folder: Path, seed: int = 0) -> TermWeights:
        """The BERT encoder in `folder` (transformers' or sentence-transformers' files) under a new head, in float32.

        Raises:
            MissingWeights, BadInput: see `_term_network.untrained`.
        """
        with quiet():
            network = untrained(folder, seed)
        return cls(network, tokenizer_of(folder))

    @classmethod
    def tiny(cls, seed: int = 0) -> TermWeights:
        """One random layer over single characters; weights lie around .5: for tests, in well under a second."""
        from transformers import BertConfig

        from ..towers import characters, seeded

        tokenizer = characters("bert")
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        network = seeded(seed, lambda: network_of(config))
        network.classifier.bias.data.fill_(0.5)
        return cls(network.eval(), tokenizer)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads; the model is in float32 then."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.model.float().save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))

    def weights(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """For each text its terms with their weights: the largest of all places where a term stands, at least 0.

        Raises:
            BadInput: the model gives NaN or infinity.
        """
        found: list[dict[str, float]] = []
        for start in range(0, len(texts), TOGETHER):
            found += self._weights(texts[start : start + TOGETHER], start, len(texts))
        return found

    def _weights(self, texts: Sequence[str], before: int, total: int) -> list[dict[str, float]]:
        """Those of some texts, after `before` of `total`."""
        encodings = self.encode(texts)
        places: list[np.ndarray] = [np.zeros(len(encoding.ids), np.float32) for encoding in encodings]
        parts = [(n, *span) for n, encoding in enumerate(encodings) for span in self.windows(len(encoding.ids))]
        done = 0
        for rows in batches([2 + end - start for _, start, end in parts], BATCH_PIECES):
            step(before + len(texts) * done // len(parts), total, "passages")
            chosen = [parts[row] for row in rows]
            values = self._read([encodings[n].ids[start:end] for n, start, end in chosen])
            for (n, start, end), value in zip(chosen, values, strict=True):
                places[n][start:end] = value
            done += len(rows)
        return [
            term_weights(chunks(text, encoding), value)
            for text, encoding, value in zip(texts, encodings, places, strict=True)
        ]

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Word pieces of each text, without marks, whole."""
        found: list[Encoding] = self.tokenizer.encode_batch([encodable(one) for one in texts], add_special_tokens=False)
        return found

    def windows(self, length: int) -> Iterator[tuple[int, int]]:
        """Spans of word pieces that are read together."""
        size = self.longest - 2
        return ((start, min(start + size, length)) for start in range(0, length, size))

    def _read(self, pieces: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The head's value at every piece of each sequence."""
        import torch

        framed = [[self.cls, *ids, self.sep] for ids in pieces]
        ids = np.full((len(framed), max(map(len, framed))), self.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, one in enumerate(framed):
            ids[row, : len(one)], mask[row, : len(one)] = one, 1
        device = self.model.device
        with torch.inference_mode():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            logits = self.model(**{name: value.to(device) for name, value in given.items()}).logits
        values = logits[..., 0].float().cpu().numpy()
        found = [values[row, 1 : len(one) - 1] for row, one in enumerate(framed)]
        if not all(np.isfinite(one).all() for one in found):
            raise BadInput("The model gives `NaN` or infinity for a word.", "Check its weights; train it again.")
        return found


def chunks(text: str, encoding: Encoding) -> list[Chunk]:
    """What stands between spaces in `text`, as words of the tokenizer with the index's terms."""
    starts = [(place, start, end) for place, (start, end) in enumerate(encoding.offsets)]
    words = [
        (own[0][0], own[0][1], own[-1][2])
        for _, found in groupby(starts, key=lambda one: encoding.word_ids[one[0]])
        for own in [list(found)]
    ]
    made, at = [], 0
    for match in re.finditer(r"\S+", text):
        inside = []
        while at < len(words) and words[at][1] < match.end():
            inside.append(words[at])
            at += 1
        made.append(_chunk(inside, text, terms(match.group())))
    return made


def _chunk(inside: Sequence[tuple[int, int, int]], text: str, wanted: Sequence[str]) -> Chunk:
    """Words `(place, start, end)` with those of the `wanted` terms that stand in them; if none has any, with all."""
    left = dict.fromkeys(wanted)
    found = []
    for place, start, end in inside:
        found.append(Word(place, tuple(term for term in dict.fromkeys(terms(text[start:end])) if term in left)))
    own = {term for word in found for term in word.terms}
    joined = tuple(term for term in left if term not in own)
    if own or not joined:
        return Chunk(tuple(found), joined)
    return Chunk(tuple(Word(place, joined) for place, _, _ in inside), () if inside else joined)


def term_weights(parts: Sequence[Chunk], values: np.ndarray) -> dict[str, float]:
    """The largest value at any of a term's places, at least 0; a term that the tokenizer lost has 0.

    Args:
        values: float (pieces,), the head's.
    """
    found: dict[str, float] = {}
    for words, joined in parts:
        given = [(word.terms, float(values[word.place])) for word in words]
        given.append((joined, max((value for _, value in given), default=0.0)))
        for own, value in given:
            for term in own:
                found[term] = max(found.get(term, 0.0), value)
    return found


def counts(weights: Mapping[str, float], scale: int, *, root: bool = False, keep_all: bool = False) -> dict[str, int]:
    """TF: round(scale·y), or round(scale·sqrt(y)); terms that come to 0 vanish.

    Args:
        weights: y of each term; below 0 counts as 0.
        keep_all: they stay, once.
    """
    least = 1 if keep_all else 0
    made = {}
    for term, weight in weights.items():
        value = max(weight, 0.0)
        made[term] = min(max(round(scale * (math.sqrt(value) if root else value)), least), MAX_COUNT)
    return {term: count for term, count in made.items() if count}
