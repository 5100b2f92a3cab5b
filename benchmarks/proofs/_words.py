"""A made-up world for proofs that learn from nothing: things of four properties, and languages that name them.

Every language has its own words of three letters, no word is one of two languages; a thing is named by four of them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from triptych.retrievers.base import Item, Source

PROPERTIES, VALUES = 4, 5
Thing = tuple[int, ...]
"""The value of each property."""


def things(seed: int) -> list[Thing]:
    """All of them, in a drawn order."""
    every = list(itertools.product(range(VALUES), repeat=PROPERTIES))
    random.Random(f"things {seed}").shuffle(every)
    return every


def twins(thing: Thing) -> list[Thing]:
    """Those that differ in one property."""
    return [
        (*thing[:place], value, *thing[place + 1 :])
        for place in range(PROPERTIES)
        for value in range(VALUES)
        if value != thing[place]
    ]


def passage(key: str, text: str) -> Item:
    """One that is read as its text alone, without a title."""
    return Item(key, text, Source("made", 0, len(text)), meta={"title": text})


class Language:
    """Words for things; `number` tells languages apart."""

    def __init__(self, number: int, seed: int) -> None:
        words = ["".join(letters) for letters in itertools.product("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz")]
        random.Random(f"words {seed}").shuffle(words)
        first = number * PROPERTIES * VALUES
        own = words[first : first + PROPERTIES * VALUES]
        self.words = [own[place * VALUES : (place + 1) * VALUES] for place in range(PROPERTIES)]
        self.number = number

    def says(self, thing: Thing, places: Sequence[int] = range(PROPERTIES)) -> str:
        """Its words, or only those of some `places`, in their order."""
        return " ".join(self.words[place][thing[place]] for place in places)

    def item(self, thing: Thing, key: str = "") -> Item:
        """A passage that names it; its id, unless `key` is one, is of language and thing."""
        text = self.says(thing)
        return passage(key or f"{self.number}-{name(thing)}", text)


def name(thing: Thing) -> str:
    """
    >>> name((0, 4, 1, 2))
    '0412'
    """
    return "".join(map(str, thing))
