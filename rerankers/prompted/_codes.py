"""Pictures as sequences of codes: what TIGeR asks of a model and its image tokenizer, and the trie of a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from ...retrievers.base import Item

Codes = tuple[int, ...]
Found = list[tuple[Codes, float]]
"""Sequences, or beginnings of some, with their scores; best first."""


class SequenceModel(Protocol):
    """A model of text and image tokens in one sequence. All log-probabilities are natural, and finite.

    Attributes:
        length: codes per picture.
        codes: how many different ones there are.
    """

    length: int
    codes: int

    def next_code(self, text: str | None, prefixes: Sequence[Codes]) -> np.ndarray:
        """Float (len(prefixes), codes): log P(code | text, prefix); prefixes of one length, text None for no text."""

    def picture(self, text: str | None, pictures: Sequence[Codes]) -> np.ndarray:
        """Float (len(pictures),): log P(all codes | text)."""

    def text(self, pictures: Sequence[Codes], text: str) -> np.ndarray:
        """Float (len(pictures),): log P(text | all codes)."""


class ImageTokenizer(Protocol):
    """Turns pictures into codes and back."""

    def encode(self, items: Sequence[Item]) -> list[Codes | None]:
        """The codes of each item's picture, `SequenceModel.length` of them; None where it has no picture."""

    def decode(self, codes: Codes) -> Any:
        """A picture (PIL image)."""


class Trie:
    """The sequences of a gallery by their beginnings. Pictures with the same codes stand at the same end."""

    def __init__(self, gallery: Sequence[tuple[int, Codes]]) -> None:
        self._places: dict[Codes, list[int]] = {}
        self._next: dict[Codes, set[int]] = {}
        self._whole: dict[Codes, set[Codes]] = {}
        for place, codes in gallery:
            for end in range(len(codes) + 1):
                self._places.setdefault(codes[:end], []).append(place)
                self._whole.setdefault(codes[:end], set()).add(codes)
                if end:
                    self._next.setdefault(codes[: end - 1], set()).add(codes[end - 1])

    def allowed(self, prefix: Codes) -> list[int]:
        """The codes that can follow; none where no picture begins so, or where it is at its end."""
        return sorted(self._next.get(prefix, ()))

    def only(self, prefix: Codes) -> Codes | None:
        """The one sequence that begins with `prefix`; None where there are several."""
        [one, *more] = self._whole[prefix]
        return None if more else one

    def places(self, prefix: Codes) -> list[int]:
        """The numbers of all pictures that begin with it, in the order given."""
        return self._places[prefix]
