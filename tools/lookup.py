"""What a caller of a session names: a passage by its id, a picture to look like, passages to rerank or compress."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ..errors import BadInput, NotFound, StaleId, Unsupported
from ..retrievers.base import Hit, Item, MediaRef
from .results import given_item
from .roots import existing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .collection import Collection
    from .schemas import Given

MAX_CANDIDATES = 1000
_ADDRESS = re.compile(r"triptych://(?:page|passage)/([^?#]+)(?:\?library=[^?&#/]*)?")


def item_of(collection: Collection, id: str) -> Item:
    """The passage `id`.

    Raises:
        NotFound: no such id; `StaleId` where its document has changed since, naming the successor.
    """
    found = collection.get([id])
    if found:
        return found[0]
    successor = collection.successor(id)
    if successor is not None:
        raise StaleId(f"The document of `{id}` has changed since.", f"Its text is now in `{successor}`.")
    raise NotFound(f"There is no passage `{id}`.", "Take ids from `search` or `retrieve`.")


def looked_at(collection: Collection, like: str | Path, retriever: str | None = None) -> MediaRef:
    """The picture behind a passage, or in a file, with its path as uri.

    Args:
        like: a passage's id or its `triptych://` address; the uri of a file below the library's folders, as answers
            give it; or a path.
        retriever: that is to look at it; the library's own search without.

    Raises:
        Unsupported: nothing to look at, or the library has no space of pictures.
        NotFound: there is no such passage or file; Forbidden: the file is outside.
    """
    from ..retrievers.readers.picture import reference

    if not collection.looks(retriever):
        raise Unsupported(
            f"`{retriever}` does not look at pictures."
            if retriever
            else f"The library `{collection.name}` has no space of pictures.",
            "Index pictures with the profile's models, or add one: `triptych index PATH --space efficientnet_b0`.",
        )
    if isinstance(like, Path):
        return reference(existing(like))
    address = _ADDRESS.fullmatch(like)
    if address is None and "/" in like:
        return reference(collection.path_of(like))
    item = item_of(collection, unquote(address[1]) if address else like)
    if item.media is None or item.modality == "audio":
        raise Unsupported(f"`{item.source.uri}` has nothing to look at.", "Name a passage with a picture.")
    return collection.located(item.media)


def candidates_of(candidates: Sequence[str | Given], opened: Callable[[], Collection]) -> list[Hit]:
    """The passages that the caller gives, in that order; the library is `opened` only for those given by id.

    Raises:
        BadInput: none, more than `MAX_CANDIDATES`, or one twice.
        NotFound: see `item_of`.
    """
    if not candidates:
        raise BadInput("No passages are given.", "Give ids of this library, or passages with a text.")
    if len(candidates) > MAX_CANDIDATES:
        raise BadInput(f"`{len(candidates)}` passages are given.", f"Give at most {MAX_CANDIDATES:,} at once.")
    items = [
        item_of(opened(), given) if isinstance(given, str) else given_item(n, given)
        for n, given in enumerate(candidates, 1)
    ]
    twice, times = Counter(item.id for item in items).most_common(1)[0]
    if times > 1:
        raise BadInput(f"The passage `{twice}` is given twice.", "Give each passage once.")
    return [Hit(item, 0.0) for item in items]
