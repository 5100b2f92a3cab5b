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
    """At most `tokens` tokens of `tokenizer`, counted over `render(passages, dropped)`: the whole text a model sees.

    Attributes:
        protect: regular expressions; what they match is never torn, and reported where it is lost.
    """

    tokens: int
    tokenizer: str = DEFAULT_TOKENIZER
    render: Render = plain
    protect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A run of kept text.

    With a span: `text == item.text[span[0]:span[1]]`. Without: a joiner of ours, or generated text; `why` says which
    (`"joiner"`, `"generated"`), and `made_from` which spans it stands for.
    """

    text: str
    span: tuple[int, int] | None
    why: str = ""
    made_from: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Cut:
    """A part of a kept passage that is not shown; `fetch(id, span)` gives it back.

    Attributes:
        span: half-open, in the item's text.
        why: `"budget"` (a whole unit had no room), `"pruned"` (words of a unit that stays), `"duplicate"`.
        tokens: how many it has.
        protected: places in it that compression protects (numbers, dates, identifiers, negations, …), lost with it.
    """

    span: tuple[int, int]
    why: str
    tokens: int
    protected: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Passage:
    """What is left of one item. `text` is the pieces joined, nothing else.

    Attributes:
        tokens: of `text`: the passage's share of the budget.
        original: tokens of the item's whole text.
        cut: what is not shown, in reading order.
    """

    item: Item
    pieces: tuple[Piece, ...]
    score: float = 0.0
    tokens: int = 0
    original: int = 0
    cut: tuple[Cut, ...] = ()

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
        note: what the reader of the result should know of how it was made, such as another route for some script.
    """

    passages: tuple[Passage, ...]
    used: int
    original: int
    dropped: tuple[Dropped, ...] = ()
    unused: str | None = None
    soft: Any = None
    note: str | None = None


class Refiner(ABC):
    """Fits hits (best first) into a budget. The same input gives the same bytes."""

    @abstractmethod
    def refine(self, query: Query | None, hits: Sequence[Hit], budget: Budget) -> Refined:
        """Evidence of at most `budget.tokens` tokens, in the order of `hits`.

        Raises:
            BadInput: the budget is below the smallest block that can be rendered; the message names that minimum.
        """
