"""Contract of the third panel: fit evidence into a token budget, every kept character traceable to its source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .tokens import DEFAULT_TOKENIZER

if TYPE_CHECKING:
    from ..retrievers.base import Hit, Item, Query

Render = Callable[[Sequence["Passage"], int], str]
"""The text a model will see, made from the kept passages and the number of dropped ones."""


def plain(passages: Sequence[Passage], dropped: int) -> str:
    """Passage texts, a blank line between them."""
    return "\n\n".join(p.text for p in passages)


@dataclass(frozen=True)
class Budget:
    """At most `tokens` tokens of `tokenizer`, counted over `render(passages, dropped)`: the whole text a model sees."""

    tokens: int
    tokenizer: str = DEFAULT_TOKENIZER
    render: Render = plain


@dataclass(frozen=True)
class Piece:
    """A run of kept text.

    With a span: `text == item.text[span[0]:span[1]]`. Without: a joiner or fence of ours, or generated text; `why`
    says which (`"joiner"`, `"fence"`, `"generated"`), and `made_from` from which spans.
    """

    text: str
    span: tuple[int, int] | None
    why: str = ""
    made_from: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Passage:
    """What is left of one item. `text` is the pieces joined, nothing else."""

    item: Item
    pieces: tuple[Piece, ...]
    score: float = 0.0

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Dropped:
    """An item that left nothing behind: why (`"budget"`, `"below floor"`, `"duplicate"`, `"empty"`), and its tokens."""

    id: str
    reason: str
    tokens: int


@dataclass(frozen=True)
class Refined:
    """Evidence inside a budget.

    Attributes:
        used: tokens of the rendered passages, never above the budget.
        original: tokens of the texts that came in.
        unused: when under 90 % of the budget is used although more evidence exists: the next whole unit that did
            not fit, with its tokens.
        soft: soft prompts or kept visual tokens, for readers we run ourselves.
    """

    passages: tuple[Passage, ...]
    used: int
    original: int
    dropped: tuple[Dropped, ...] = ()
    unused: str | None = None
    soft: Any = None


class Refiner(ABC):
    """Fits hits (best first) into a budget. The same input gives the same bytes."""

    @abstractmethod
    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """Evidence of at most `budget.tokens` tokens, in the order of `hits`.

        Raises:
            BadInput: the budget is below the smallest block that can be rendered; the message names that minimum.
        """
