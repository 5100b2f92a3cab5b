"""Whether a library is whole: the catalogue, the store's rows with their vectors, and the term statistics, held against
each other. What changed on disk since is told apart: that is no damage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import StoreError
from ..progress import step
from ..retrievers.readers.detect import archive_of
from ..retrievers.stores.auditing import Audit
from .catalog import digest
from .indexing import changed, sha256
from .operations import Clock
from .roots import Roots
from .schemas import Damage, StaleFile, VerifyOut

if TYPE_CHECKING:
    from pathlib import Path

    from ..retrievers.stores.auditing import Audited
    from ..retrievers.stores.milvus import MilvusStore
    from .attached import Attached
    from .catalog import Catalog, Expected, FileRow
    from .spaces import Spaces

BY_SOURCE = frozenset({"missing", "text", "payload"})
"""Faults that only the file can mend; for the others the store has the right text."""


@dataclass
class Findings:
    """What one look at everything found.

    Attributes:
        passages: rows of the store.
        faults: of each damaged passage, by id: `missing`, `text`, `payload`, `vector`, `words`.
        uris: the file of each damaged passage.
        intact: digest by id of the passages that are as they should be.
        extra: ids of the store that no file has.
        terms: how many term statistics are off, -1 when they cannot be read.
        catalogue: what is wrong with the catalogue itself.
    """

    passages: int = 0
    faults: dict[str, frozenset[str]] = field(default_factory=dict)
    uris: dict[str, str] = field(default_factory=dict)
    intact: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    terms: int = 0
    catalogue: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.faults or self.extra or self.terms or self.catalogue)

    def of_files(self) -> list[Damage]:
        """The damage by file."""
        by_uri: dict[str, list[frozenset[str]]] = {}
        for one, faults in self.faults.items():
            by_uri.setdefault(self.uris[one], []).append(faults)
        return [
            Damage(uri=uri, passages=len(rows), what=dict(sorted(Counter(f for row in rows for f in row).items())))
            for uri, rows in sorted(by_uri.items())
        ]


def verified(
    name: str, catalog: Catalog, store: MilvusStore, space: str, spaces: Spaces, attached: Attached
) -> VerifyOut:
    """What `verify` answers about the library `name`; the rest as for `examined`."""
    clock = Clock()
    found = examined(catalog, store, space)
    rows, off = catalog.files(), {**spaces.off(), **attached.off()}
    return VerifyOut(
        library=name,
        whole=found.whole and not off,
        files=sum(row.was_read for row in rows),
        passages=found.passages,
        damaged=found.of_files(),
        extra=len(found.extra),
        terms=found.terms,
        catalogue=found.catalogue,
        spaces=off,
        stale=list(stale(rows, Roots(catalog.roots()))),
        ms=clock.total(),
    )


def examined(catalog: Catalog, store: MilvusStore, space: str) -> Findings:
    """Everything that is wrong with a library that nobody writes to now.

    Args:
        space: the dense space that every passage of an encoded file has a vector in.

    Raises:
        StoreError: the store cannot be opened or read.
    """
    found = Findings(catalogue=catalog.faults())
    expected = catalog.expected()
    audit = Audit(store)
    for row in audit.rows():
        step(found.passages, len(expected), "passages")
        found.passages += 1
        _compare(found, row, expected.pop(row.id, None), space)
    for one, lost in expected.items():
        found.faults[one], found.uris[one] = frozenset({"missing"}), lost.uri
    try:
        found.terms = audit.terms_off()
    except StoreError:
        found.terms = -1
    return found


def _compare(found: Findings, row: Audited, right: Expected | None, space: str) -> None:
    if right is None:
        found.extra.append(row.id)
        return
    faults = set(row.faults)
    if row.uri != right.uri:
        faults.add("payload")
    if row.item is not None and digest(row.item) != right.digest:
        faults.add("text")
    if right.encoded and space not in row.spaces:
        faults.add("vector")
    if faults:
        found.faults[row.id], found.uris[row.id] = frozenset(faults), right.uri
    else:
        found.intact[row.id] = right.digest


def stale(rows: Iterable[FileRow], roots: Roots) -> Iterator[StaleFile]:
    """Files that are gone, or have other bytes than when they were read; those in archives change with these."""
    for row in rows:
        path = roots.find(row.uri)
        if path is None:
            yield StaleFile(uri=row.uri, why="gone")
        elif archive_of(path) is None and _differs(row, path):
            yield StaleFile(uri=row.uri, why="changed")


def _differs(row: FileRow, path: Path) -> bool:
    try:
        stat = path.stat()
        same = (row.size, row.mtime_ns) == (stat.st_size, changed(stat))
        return not same and sha256(path) != row.content_hash
    except OSError:
        return True
