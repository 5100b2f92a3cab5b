"""Resources: documents, passages, pages and clips under `triptych://` addresses, with their templates.

    triptych://doc/{+uri}{?library}       a document's text
    triptych://passage/{id}{?library}     a passage's text
    triptych://page/{id}{?library}        the page, picture or key frame behind a passage, as an image
    triptych://clip/{id}{?library}        the sound behind a passage, as WAV

An address is taken apart here and its parts are looked up; none of them is ever joined to a path.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from ..errors import BadInput, NotFound, Unsupported
from ..tools.viewing import small_enough
from . import documents

if TYPE_CHECKING:
    from ..tools.library import Triptych
    from .service import Open

SCHEME = "triptych://"
MAX_ADDRESS = 4096
PAGE_EDGE = 1024
LISTED = 100
"""Documents on one page of `resources/list`."""
_ADDRESS = re.compile(r"triptych://(?P<kind>doc|passage|page|clip)/(?P<rest>.+?)(?:\?library=(?P<library>[^?&#/]*))?")


@dataclass(frozen=True)
class Template:
    """One kind of resource; `argument` is the part of the address that completion helps with."""

    name: str
    title: str
    address: str
    argument: str
    mime: str | None
    description: str


TEMPLATES = (
    Template(
        "doc",
        "Document",
        "triptych://doc/{+uri}{?library}",
        "uri",
        "text/plain",
        "The text of an indexed document, as much of it as one answer may hold. `uri` as answers give it.",
    ),
    Template(
        "passage",
        "Passage",
        "triptych://passage/{id}{?library}",
        "id",
        "text/plain",
        "The full text of a passage. `id` as answers give it.",
    ),
    Template(
        "page",
        "Page or picture",
        "triptych://page/{id}{?library}",
        "id",
        None,
        "The PDF page, picture or key frame behind a passage, as PNG or JPEG.",
    ),
    Template(
        "clip",
        "Clip",
        "triptych://clip/{id}{?library}",
        "id",
        "audio/wav",
        "The sound behind a passage of a recording or film, as WAV; long ones are cut.",
    ),
)


@dataclass(frozen=True)
class Read:
    """What is at an address: text or bytes; `meta` is for programs."""

    content: str | bytes
    mime: str
    meta: dict[str, Any] = field(default_factory=dict)


def address_of(kind: str, name: str, library: str | None = None) -> str:
    """The address of a document (`kind` is `doc`, `name` its uri) or of what is behind a passage's id.

    >>> address_of("doc", "handbook/travel rules.md", "work")
    'triptych://doc/handbook/travel%20rules.md?library=work'
    """
    return f"{SCHEME}{kind}/{quote(name, safe='/')}" + (f"?library={quote(library, safe='')}" if library else "")


def taken_apart(address: str) -> tuple[str, str, str | None]:
    """Kind, uri or id, and library of an address.

    Raises:
        NotFound: it is none of ours.
    """
    found = _ADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS else None
    if found is None:
        hint = "Addresses look like " + ", ".join(f"`{one.address}`" for one in TEMPLATES) + "."
        raise NotFound(f"There is no resource `{address[:80]}`.", hint)
    name = unquote(found["rest"], errors="replace")
    return found["kind"], name, unquote(found["library"], errors="replace") if found["library"] else None


def read(sessions: Open, address: str, *, most_chars: int, most_bytes: int) -> Read:
    """What is at `address`.

    Args:
        most_chars: of text; the budget cap of the library's settings holds as well.
        most_bytes: of a picture or of sound.

    Raises:
        NotFound: nothing is there.
        Unsupported: there is nothing to see or hear behind the passage.
    """
    kind, name, library = taken_apart(address)
    session = sessions(library)
    if kind == "doc":
        budget = session.settings.max_tokens_cap
        made = documents.text(session, name, budget, most_chars)
        told = {"title": made.title, "shown": made.shown, "passages": made.passages, "stripped": made.stripped}
        return Read(made.text, "text/plain", told)
    if kind == "passage":
        passage = session.fetch(name)
        told = {"title": passage.title, "uri": passage.uri, "metadata": passage.metadata}
        return Read(passage.text[:most_chars], "text/plain", told)
    return _page(session, name, most_bytes) if kind == "page" else _clip(session, name, most_bytes)


def _page(session: Triptych, name: str, most_bytes: int) -> Read:
    seen = small_enough(session, name, PAGE_EDGE, None, most_bytes)
    told = {"title": seen.title, "where": seen.where, "width": seen.width, "height": seen.height}
    return Read(seen.image, seen.mime, told)


def _clip(session: Triptych, name: str, most_bytes: int) -> Read:
    from ..retrievers.readers.clip import clip

    passage = session.fetch(name)
    path, mime = documents.file_of(session, passage.uri)
    if not mime.startswith(documents.HEARD_KINDS):
        raise Unsupported(f"`{passage.uri}` has nothing to listen to.", "Use `fetch` for its text.")
    start_s, end_s = (passage.metadata.get(key) for key in ("start_s", "end_s"))
    made = clip(path, passage.uri, mime, float(start_s or 0.0), end_s, most_bytes)
    return Read(made.wav, "audio/wav", {"title": passage.title, "start_s": made.start_s, "end_s": made.end_s})


def page_of(session: Triptych, cursor: str | None) -> tuple[list[tuple[str, str, str, int]], str | None]:
    """One page of documents as `(address, uri, mime, size)`, and the cursor of the next.

    Raises:
        BadInput: a cursor that is none of ours.
    """
    rows = documents.listed(session, _uncursed(cursor), LISTED + 1)
    shown = rows[:LISTED]
    more = base64.urlsafe_b64encode(shown[-1].uri.encode()).decode() if len(rows) > LISTED else None
    return [(address_of("doc", row.uri), row.uri, row.mime, row.size) for row in shown], more


def _uncursed(cursor: str | None) -> str:
    if cursor is None:
        return ""
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise BadInput(f"The cursor `{cursor[:80]}` is none.", "Begin without one.") from None
