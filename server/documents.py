"""The documents of a library as whole texts: listed by uri, put together from their passages, inside a budget.

Uris and ids are looked up in the library's catalogue and nowhere else, so that nothing a client writes becomes a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import progress
from ..errors import NotFound
from ..refiners.tokens import count
from ..tools.catalog import FILE, Catalog
from ..tools.roots import Roots

if TYPE_CHECKING:
    from pathlib import Path

    from ..tools.catalog import FileRow
    from ..tools.library import Triptych
    from ..tools.schemas import FetchOut

CUT = "\n[Cut after {shown} of {passages} passages: `retrieve` with this uri as `uri_prefix` finds the rest.]"
SHOWN_KINDS = ("application/pdf", "image/", "video/")
HEARD_KINDS = ("audio/", "video/")


@dataclass(frozen=True)
class Text:
    """A document's text, or its beginning.

    Attributes:
        shown: how many of its `passages` the text holds.
        stripped: invisible characters that were removed when the document was read.
    """

    text: str
    title: str
    shown: int
    passages: int
    stripped: int


@contextmanager
def _catalog(session: Triptych) -> Iterator[Catalog | None]:
    """The library's catalogue, None where the library is not there: a catalogue must not be made by asking."""
    if not (session.folder / FILE).is_file():
        yield None
        return
    with closing(Catalog(session.folder)) as found:
        yield found


def listed(session: Triptych, after: str = "", most: int = 100) -> list[FileRow]:
    """At most `most` documents whose uri comes after `after`, by uri; without files that hold no passage."""
    found: list[FileRow] = []
    with _catalog(session) as catalog:
        for row in catalog.files() if catalog else []:
            if row.uri > after and row.was_read and catalog and catalog.live(row.uri):
                found.append(row)
                if len(found) == most:
                    break
    return found


def uris(session: Triptych, typed: str, most: int) -> list[str]:
    """At most `most` uris that begin with `typed`, and after them those that hold it, whatever the case."""
    wanted = typed.casefold()
    with _catalog(session) as catalog:
        named = [row.uri for row in catalog.files() if row.was_read] if catalog else []
    found = [uri for uri in named if wanted in uri.casefold()]
    return sorted(found, key=lambda uri: (not uri.casefold().startswith(wanted), uri))[:most]


def ids(session: Triptych, typed: str, most: int, kinds: tuple[str, ...] = ()) -> list[str]:
    """At most `most` ids of passages that begin with `typed`, in the order of their documents.

    Args:
        kinds: only of files whose MIME type begins with one of these.
    """
    found: list[str] = []
    with _catalog(session) as catalog:
        for row in catalog.files() if catalog else []:
            if kinds and not row.mime.startswith(kinds):
                continue
            found += [one for one in catalog.live(row.uri) if one.startswith(typed)] if catalog else []
            if len(found) >= most:
                break
    return found[:most]


def text(session: Triptych, uri: str, budget: int, most_chars: int) -> Text:
    """The text of the document `uri`, whole passages from its beginning, at most `budget` tokens and `most_chars`.

    Raises:
        NotFound: the library has no such document.
    """
    with _catalog(session) as catalog:
        named = list(catalog.live(uri)) if catalog else []
    if not named:
        raise NotFound(f"There is no document `{uri}`.", "`resources/list` names the documents; `search` finds them.")
    tokenizer = session.settings.tokenizer
    room = budget - count(CUT.format(shown=len(named), passages=len(named)), tokenizer)
    parts: list[str] = []
    chars = tokens = 0
    last: FetchOut | None = None
    title, stripped = "", 0
    for number, one in enumerate(named):
        progress.step(number, len(named), "passages")
        passage = session.fetch(one)
        part = _next(last, passage)
        chars, tokens = chars + len(part), tokens + count(part, tokenizer)
        if chars > most_chars - len(CUT) - 40 or tokens > room:
            break
        parts.append(part)
        title, stripped, last = passage.title, int(passage.metadata.get("stripped") or 0), passage
    shown = len(parts)
    end = CUT.format(shown=shown, passages=len(named)) if shown < len(named) else ""
    return Text("".join([*parts, end]), title, shown, len(named), stripped)


def file_of(session: Triptych, uri: str) -> tuple[Path, str]:
    """The file that the indexed document `uri` was read from, and its MIME type.

    Raises:
        NotFound: it is not indexed, or gone.
        Forbidden: it leads out of its folder now.
    """
    with _catalog(session) as catalog:
        row = catalog.file(uri) if catalog else None
        if catalog is None or row is None:
            raise NotFound(f"There is no document `{uri}`.", "`resources/list` names the documents.")
        return Roots(catalog.roots()).path_of(uri), row.mime


def _next(last: FetchOut | None, passage: FetchOut) -> str:
    """What `passage` adds to a text that ends with `last`: passages may overlap, and offsets begin anew on a page."""
    if last is None:
        return passage.text
    start, end = (int(one) for one in passage.metadata.get("source_span") or (0, 0))
    before = int((last.metadata.get("source_span") or (0, 0))[1])
    same = passage.metadata.get("page") == last.metadata.get("page")
    if same and start < before <= end:
        return passage.text[before - start :]
    return passage.text if same and start == before else f"\n{passage.text}"
