"""What the retrievers over one store share: folders of their own, checked queries, batches."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from ...errors import BadInput
from ..stores import lite
from ..stores.milvus import LITE, MilvusStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..base import Query, Space

BATCH = 256
"""Items that are encoded and written between two reports of progress."""


def store_in(folder: Path | None, spaces: Sequence[Space], uri: str = "", token: str = "") -> MilvusStore:
    """A store in `folder`, or in a temporary one that goes when the store does."""
    if folder is not None:
        return MilvusStore(folder, spaces, uri, token=token)
    made = Path(mkdtemp(prefix="triptych-"))
    store = MilvusStore(made, spaces)
    weakref.finalize(store, _remove, made)
    return store


def _remove(folder: Path) -> None:
    lite.close(folder / LITE)
    shutil.rmtree(folder, ignore_errors=True)


def text_of(query: Query) -> str:
    """The query's text.

    Raises:
        BadInput: it has none, or only white space.
    """
    if query.text is None or not query.text.strip():
        raise BadInput("The query has no text.", "Ask with at least one word.")
    return query.text
