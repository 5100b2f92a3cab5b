"""From a collection's passages to the items that systems find and order.

A passage with a text is one item, with the passage's id. A passage without one is read from its media file by the
readers and models that the product uses, and all items of the file stand for it; a file in which no word is found has
those of its name, as in the product. Where a passage has both, its text counts and the file is not read.

`--passages` says otherwise (see `sides`): texts are then cut as a library cuts them, and media files are read under a
name that tells nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from mimetypes import guess_type
from typing import TYPE_CHECKING

from ... import progress
from ...errors import BadInput, UnreadableFile
from ...retrievers.base import Item, MediaRef, Source
from ...retrievers.chunking import chunk
from ...retrievers.readers import read
from ...retrievers.readers.base import Document, Limits, Section

if TYPE_CHECKING:
    from ...settings import Settings
    from .datasets import Collection, Passage


@dataclass(frozen=True)
class Corpus:
    """Passages as items.

    Attributes:
        name: of the data.
        items_of: passage id → its items, in the order of the corpus; a passage that says nothing has none.
        modalities: what the passages hold; `"text"` only where one gives some.
        problems: what was wrong with files that could not be read.
        remarks: what was not read of a file, one for each such file.
    """

    name: str
    items_of: Mapping[str, tuple[Item, ...]]
    modalities: frozenset[str]
    problems: tuple[UnreadableFile, ...] = ()
    remarks: tuple[str, ...] = ()

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
        if self.remarks:
            yield f"{len(self.remarks):,} media files were read in part; the first: {self.remarks[0]}"
        if named := self._with("named"):
            tagged = self._with("named", "tags")
            seen = f", and for {tagged:,} of them what a small network sees in the picture" if tagged else ""
            yield f"In {named:,} media files no word was found: those of the files' names stand for them{seen}."

    def _with(self, *marks: str) -> int:
        """How many passages have an item with all of these marks."""
        return sum(
            any(all(item.meta.get(mark) for mark in marks) for item in items) for items in self.items_of.values()
        )


def limits(settings: Settings) -> Limits:
    """What a library of these settings reads files with."""
    return Limits(weights=settings.weights, speech=settings.speech, tags=settings.tags)


def corpus(data: Collection, only: Container[str] | None = None, within: Limits | None = None) -> Corpus:
    """The items of `data`'s passages.

    Args:
        only: ids of the passages that are needed; default: all.
        within: what media files are read with; default: without any model but that of text in pictures.
    """
    wanted = [passage for key, passage in data.passages.items() if only is None or key in only]
    found: dict[str, tuple[Item, ...]] = {}
    problems, remarks = [], []
    for done, passage in enumerate(wanted):
        progress.step(done, len(wanted), "passages read")
        try:
            document = _document(passage, data, within or Limits())
        except UnreadableFile as error:
            found[passage.id] = ()
            problems.append(error)
            continue
        found[passage.id] = tuple(_whole(passage, data) if document is None else _cut(passage, data, document))
        if document is not None and (note := document.meta.get("note")):
            remarks.append(note)
    held = {"text"} if any(found.values()) else set()
    held |= {passage.modality for passage in wanted if passage.media is not None}
    return Corpus(data.info.name, found, frozenset(held), tuple(problems), tuple(remarks))


def _document(passage: Passage, data: Collection, within: Limits) -> Document | None:
    """What is to be cut into items; None where the passage is one item as it stands.

    Raises:
        UnreadableFile: its media file.
    """
    if passage.media is not None and not passage.text.strip():
        uri = _uri(passage, data)
        return read(passage.media, _blind(passage, uri) if data.side else uri, within)
    if data.side:
        return Document("", passage.title, "text/plain", (Section(passage.text),))
    return None


def _whole(passage: Passage, data: Collection) -> Iterator[Item]:
    if not (passage.title.strip() or passage.text.strip()):
        return
    uri = _uri(passage, data)
    media = MediaRef(uri, guess_type(uri)[0] or "application/octet-stream") if uri else None
    # No uri in the source: the file's name would count as a title where there is none.
    yield Item(passage.id, passage.text, Source("", 0, len(passage.text)), passage.modality, media, _titled(passage))


def _cut(passage: Passage, data: Collection, document: Document) -> Iterator[Item]:
    uri = _uri(passage, data)
    # The id takes the place of the content's hash: two passages may show one file.
    for item in chunk(document, passage.id):
        media = replace(item.media, uri=uri) if item.media else None
        yield replace(item, media=media, meta={**item.meta, **_titled(passage)})


def _titled(passage: Passage) -> dict[str, str]:
    return {"title": passage.title} if passage.title.strip() else {}


def _uri(passage: Passage, data: Collection) -> str:
    """The media file's path inside the data's folder, `""` without one."""
    return str(passage.media.relative_to(data.folder.resolve()).as_posix()) if passage.media else ""


def _blind(passage: Passage, uri: str) -> str:
    """A name with the file's suffix and nothing else of it, the same whatever the order of the corpus."""
    _, dot, suffix = uri.rpartition(".")
    return sha256(passage.id.encode()).hexdigest()[:8] + dot + suffix
