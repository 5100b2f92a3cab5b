"""What describes a poly-encoder, and an example that it learns from: see `poly_encoder`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from ...errors import BadInput


@dataclass(frozen=True)
class Shape:
    """What a poly-encoder is, sections 4.2 to 4.4.

    Attributes:
        variant: where the m vectors of a query come from: learnt `codes`, the `first` m token states, or their `mean`
            (m is 1: the paper's bi-encoder).
        m: vectors of a query; the paper has 16, 64 and 360.
        attention: `basic` dot product, or `scaled` by √d; both times, of codes over states and passage over codes.
        candidate: a passage's vector: the `mean` of its token states, or the `first`.
        scaling: what token states are multiplied by; with raw states of large norm attention is all on one vector.
        query_pieces, passage_pieces: word pieces that are read, both marks included; the paper has 360 and 72.

    Raises:
        BadInput: a value that means nothing.
    """

    variant: Literal["codes", "first", "mean"] = "codes"
    m: int = 16
    attention: Literal["basic", "scaled"] = "basic"
    candidate: Literal["mean", "first"] = "mean"
    scaling: float = 1.0
    query_pieces: int = 128
    passage_pieces: int = 256

    def __post_init__(self) -> None:
        wrong = {
            "variant": self.variant not in ("codes", "first", "mean"),
            "m": self.m < 1 or (self.variant == "mean" and self.m != 1),
            "attention": self.attention not in ("basic", "scaled"),
            "candidate": self.candidate not in ("mean", "first"),
            "scaling": not 0 < self.scaling < inf,
            "query_pieces": self.query_pieces < 3,
            "passage_pieces": self.passage_pieces < 3,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise BadInput(f"`{name}` of a poly-encoder is `{getattr(self, name)}`.", "See `poly_encoder.Shape`.")

    def temperature(self, dim: int) -> float:
        """What logits of attention are divided by."""
        return float(dim**0.5) if self.attention == "scaled" else 1.0


@dataclass(frozen=True)
class Example:
    """A query and a passage that answers it; `others` are further texts that do, and are never counted as wrong."""

    query: str
    passage: str
    others: tuple[str, ...] = ()

    def is_right(self, text: str) -> bool:
        """Whether `text` is known to answer the query."""
        return text == self.passage or text in self.others
