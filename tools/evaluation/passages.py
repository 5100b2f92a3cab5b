"""From a collection's passages to the items that systems find and order.

A passage with a text is one item, with the passage's id. A passage without one is read from its media file by the
readers that the product uses, and all items of the file stand for it; a picture without recognisable text has the words
of its file name, as in the product. Where a passage has both, its text counts and the file is not read.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from mimetypes import guess_type
from typing import TYPE_CHECKING

from ... import progress
from ...errors import BadInput, UnreadableFile
from ...retrievers.base import Item, MediaRef, Source
from ...retrievers.chunking import chunk
from ...retrievers.readers import read

if TYPE_CHECKING:
    from .datasets import Collection, Passage


@dataclass(frozen=True)
class Corpus:
    """Passages as items.

    Attributes:
        name: of the data.
        items_of: passage id → its items, in the order of the corpus; a passage that says nothing has none.
        modalities: what the passages hold; `"text"` only where one gives some.
        problems: what was wrong with files that could not be read.
    """

    name: str
    items_of: Mapping[str, tuple[Item, ...]]
    modalities: frozenset[str]
    problems: tuple[UnreadableFile, ...] = ()

    @cached_property
    def passage_of(self) -> dict[str, str]:
        """Item id → passage id."""
        return {item.id: key for key, items in self.items_of.items() for item in items}

    @property
    def items(self) -> list[Item]:
        """All items, in the order of the corpus."""
        return [item for items in self.items_of.values() for item in items]

    def passages(self, item_ids: Sequence[str]) -> list[str]:
        """Passage ids in the order of their best items, each once."""
        return list(dict.fromkeys(self.passage_of[key] for key in item_ids))

    def check(self, name: str, reads: Sequence[str]) -> None:
        """Refuse the system `name` when no passage holds any of the modalities that it reads.

        Raises:
            BadInput: so it is.
        """
        if self.modalities.isdisjoint(reads):
            why = f" The first file that gave no text: {self.problems[0].message}" if self.problems else ""
            raise BadInput(
                f"`{name}` reads {', '.join(reads)}, and no passage of `{self.name}` gives any.",
                f"Choose a system that reads what the passages hold, or give them a text.{why}",
            )

    def notes(self) -> Iterator[str]:
        """What was not as usual, with how many passages."""
        if silent := sum(not items for items in self.items_of.values()) - len(self.problems):
            yield f"{silent:,} of {len(self.items_of):,} passages have neither text nor title."
        if self.problems:
            yield f"{len(self.problems):,} media files could not be read; the first: {self.problems[0].message}"
        if named := sum(any(item.meta.get("named") for item in items) for items in self.items_of.values()):
            yield f"{named:,} pictures have no recognisable text: the words of their file names stand for them."


def corpus(data: Collection, only: Container[str] | None = None) -> Corpus:
    """The items of `data`'s passages.

    Args:
        only: ids of the passages that are needed; default: all.
    """
    wanted = [passage for key, passage in data.passages.items() if only is None or key in only]
    found: dict[str, tuple[Item, ...]] = {}
    problems = []
    for done, passage in enumerate(wanted):
        progress.step(done, len(wanted), "passages read")
        try:
            found[passage.id] = tuple(_items(passage, data))
        except UnreadableFile as error:
            found[passage.id] = ()
            problems.append(error)
    held = {"text"} if any(found.values()) else set()
    held |= {passage.modality for passage in wanted if passage.media is not None}
    return Corpus(data.info.name, found, frozenset(held), tuple(problems))


def _items(passage: Passage, data: Collection) -> Iterator[Item]:
    title = {"title": passage.title} if passage.title.strip() else {}
    uri = str(passage.media.relative_to(data.folder.resolve()).as_posix()) if passage.media else ""
    if passage.media is None or passage.text.strip():
        if title or passage.text.strip():
            media = MediaRef(uri, guess_type(uri)[0] or "application/octet-stream") if uri else None
            # No uri in the source: the file's name would count as a title where there is none.
            source = Source("", 0, len(passage.text))
            yield Item(passage.id, passage.text, source, passage.modality, media, title)
        return
    # The id takes the place of the content's hash: two passages may show one file.
    for item in chunk(read(passage.media, uri), passage.id):
        yield replace(item, meta={**item.meta, **title})
