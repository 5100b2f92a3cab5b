"""The graph of the evidence: facts as edges between entities, each edge once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import regex

if TYPE_CHECKING:
    from ..fit import Evidence, Part
    from ._triplets import Triplet

_ARTICLE = regex.compile(r"^(?:the|a|an)\s+")


class Fact(NamedTuple):
    """A triplet of a unit, or (None) a unit that gives none and stands for itself; `text` is what is embedded."""

    part: Part
    triplet: Triplet | None
    text: str


@dataclass(frozen=True)
class Graph:
    """The facts in reading order, each edge once.

    Attributes:
        entities: which facts touch an entity (lower case, without article), by its name.
        repeated: hits with an edge that an earlier hit has.
    """

    facts: tuple[Fact, ...]
    entities: Mapping[str, tuple[int, ...]]
    repeated: frozenset[int] = frozenset()


def graph(facts: Sequence[Fact], evidence: Evidence) -> Graph:
    """The graph of `facts`, each edge and each repeated unit once."""
    kept: list[Fact] = []
    entities: dict[str, list[int]] = {}
    seen: set[tuple[str, ...]] = set()
    repeated: set[int] = set()
    for fact in facts:
        one = fact.triplet
        names = [] if one is None else [entity(one.subject), entity(one.object)]
        said = (fact.text if one is None else one.relation).casefold()
        key = (said, *names)
        if said and key in seen and not evidence.unit(fact.part).needs:
            repeated.add(fact.part.hit)
            continue
        seen.add(key)
        for name in dict.fromkeys(names):
            entities.setdefault(name, []).append(len(kept))
        kept.append(fact)
    return Graph(tuple(kept), {name: tuple(where) for name, where in entities.items()}, frozenset(repeated))


def entity(name: str) -> str:
    """The name of a node.

    >>> entity("The  Spree")
    'spree'
    """
    bare: str = _ARTICLE.sub("", " ".join(name.casefold().split()))
    return bare


def verbalised(triplets: Sequence[Triplet]) -> str:
    """One sentence from triplets of one clause: the subject and the verb once, then each link with its object.

    What stood before the verb (`In 1906, …`) comes last.
    """
    ordered = sorted(triplets, key=lambda one: (one.place < one.clause[1][0], one.place))
    told = " ".join(f"{one.link} {one.object}".strip() for one in ordered)
    return f"{ordered[0].subject} {ordered[0].verb} {told}."
