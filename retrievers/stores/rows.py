"""Items as rows of the collection and back, exactly; everything a row cannot hold is refused before it is sent."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput
from ..base import Item, MediaRef, Source
from ..searchable import searchable_text
from ..text.analysis import terms
from .filters import FACETS, facets
from .lexicon import LEXICAL, item_weights, lacking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..base import Space

MAX_BYTES = 65_535
"""What one VARCHAR field holds, in UTF-8."""

LIMITS = {
    "id": 256,
    "uri": 4096,
    "document": 256,
    "modality": 16,
    "modified": 32,
    "text": MAX_BYTES,
    "payload": MAX_BYTES,
}
"""The text fields and their sizes in bytes."""

FILTERED = ("uri", "document", "modality", "modified")
"""The text fields that filters read, besides `id`."""

ITEM_FIELDS = ["id", "text", "modality", "payload"]
"""What `to_item` needs."""

METRICS = {"cosine": "COSINE", "ip": "IP"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


def check_spaces(spaces: Sequence[Space]) -> None:
    """Refuse spaces that cannot be fields of a row."""
    for space in spaces:
        free = space.name not in (*LIMITS, LEXICAL.name, FACETS)
        if not (free and space.kind == "dense" and _NAME.fullmatch(space.name) and space.metric in METRICS):
            raise BadInput(f"Space `{space.name}` cannot be a field.", "Dense spaces in snake_case, cosine or ip.")


def flag(space: Space) -> str:
    """The field that says whether a row has a vector of `space`."""
    return f"has_{space.name}"


def to_rows(
    items: Sequence[Item], spaces: Sequence[Space], vectors: Mapping[str, np.ndarray], *, lexical: bool = True
) -> dict[str, dict[str, Any]]:
    """Rows by id. A space that `vectors` leaves out is zeros with its flag down.

    Args:
        lexical: whether the collection has the field of that name.
    """
    known = {space.name for space in spaces}
    for name in vectors:
        if name not in known:
            raise BadInput(f"The store has no space `{name}`.", f"It has: {', '.join(sorted(known)) or 'none'}.")
    given = {space.name: checked(vectors[space.name], space, len(items)) for space in spaces if space.name in vectors}
    rows = {}
    for n, item in enumerate(items):
        row = _row(item)
        if lexical:
            row[LEXICAL.name] = item_weights(terms(searchable_text(item)))
        for space in spaces:
            row[flag(space)] = space.name in given
            row[space.name] = given[space.name][n] if space.name in given else [0.0] * space.dim
        rows[item.id] = row
    return rows


def checked(vectors: Any, space: Space, n: int) -> np.ndarray:
    """`vectors` as float32 (n, space.dim), all finite: Milvus Lite takes NaN in silence."""
    array = np.asarray(vectors, dtype=np.float32)
    if array.shape != (n, space.dim):
        raise BadInput(
            f"Vectors of shape `{array.shape}` were given for space `{space.name}`.", f"It takes ({n}, {space.dim})."
        )
    if not np.isfinite(array).all():
        raise BadInput(f"A vector for space `{space.name}` has NaN or infinity.", "Check the encoder's output.")
    return array


def _row(item: Item) -> dict[str, Any]:
    media = None if item.media is None else asdict(item.media)
    found = facets(item.meta)
    try:
        payload = _json({"source": asdict(item.source), "media": media, "meta": dict(item.meta)})
    except (TypeError, ValueError) as error:
        raise BadInput(f"The metadata of item `{item.id}` is not JSON: {error}.") from None
    row = {
        "id": item.id,
        "uri": item.source.uri,
        "document": str(item.meta.get("document", "")),
        "modality": item.modality,
        "modified": str(item.meta.get("modified", "")),
        "text": item.text,
        "payload": payload,
    }
    for name, value in (*row.items(), (FACETS, _json(found))):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise BadInput(f"The {name} of item `{item.id!a}` is not valid Unicode.") from None
        limit = LIMITS.get(name, MAX_BYTES)
        if size > limit:
            raise BadInput(
                f"The {name} of item `{item.id[:80]}` has {size:,} bytes.", f"A row holds {limit:,}: cut it smaller."
            )
    if not item.id:
        raise BadInput("An item has an empty id.")
    return {**row, FACETS: found}


def booked(row: Mapping[str, Any], spaces: Sequence[Space]) -> list[int]:
    """What the term statistics count of a row: its terms, and a mark for each vector that it lacks."""
    return [*row[LEXICAL.name], *(lacking(n) for n, space in enumerate(spaces) if not row[flag(space)])]


def booked_fields(spaces: Sequence[Space]) -> list[str]:
    """What `booked` reads."""
    return [LEXICAL.name, *map(flag, spaces)]


def to_filter_row(item: Item) -> dict[str, Any]:
    """The id of `item` and what filters read."""
    row = _row(item)
    return {name: row[name] for name in ("id", *FILTERED, FACETS)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_item(row: Mapping[str, Any]) -> Item:
    """The item that the row was made of."""
    stored = json.loads(row["payload"])
    source, media = stored["source"], stored["media"]
    if source["box"] is not None:
        source["box"] = tuple(source["box"])
    return Item(
        id=row["id"],
        text=row["text"],
        source=Source(**source),
        modality=row["modality"],
        media=None if media is None else MediaRef(**media),
        meta=stored["meta"],
    )
