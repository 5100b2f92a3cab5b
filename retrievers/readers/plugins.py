"""Readers from other packages, found by the entry points of the group `triptych.readers`.

An entry point's name is a MIME type, its value `module:Class`, a `Reader`. How a file of that type is told from others:

    @classmethod
    def recognise(cls, head: bytes, name: str) -> bool

gets the first 64 KiB and the file's name. Without it the name's extension decides, as the system's table of MIME types
has it. Plug-ins are asked, in the order of their names, about files that no reader here takes and about plain text.
"""

from __future__ import annotations

import logging
import mimetypes
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ...errors import TriptychError, UnreadableFile
from .base import Document, file_name, unreadable

if TYPE_CHECKING:
    from typing import BinaryIO

    from .base import Limits

GROUP = "triptych.readers"

log = logging.getLogger(__name__)


def plugin_for(head: bytes, uri: str) -> str | None:
    """The MIME type under which a plug-in takes the file that begins with `head`; None if none does."""
    name = file_name(uri)
    return next((mime for mime in sorted(_entries()) if _takes(mime, head, name)), None)


def read(file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
    """The document that the plug-in for `mime` makes of `file`.

    Raises:
        UnreadableFile: the plug-in says so, cannot be loaded, fails, or gives something else than a document.
    """
    plugin = _loaded(mime)
    if isinstance(plugin, Exception):
        raise _broken(uri, mime, f"cannot be loaded ({type(plugin).__name__})") from plugin
    try:
        document = plugin().read(file, uri, mime, limits)
    except TriptychError:
        raise
    except Exception as error:
        raise _broken(uri, mime, f"failed with {type(error).__name__}") from error
    if not isinstance(document, Document):
        raise _broken(uri, mime, f"gave `{type(document).__name__}` instead of a document")
    return document


def _takes(mime: str, head: bytes, name: str) -> bool:
    """Whether the plug-in for `mime` takes such a file; one that cannot say so has the files of its extension."""
    recognise = getattr(_loaded(mime), "recognise", None)
    if recognise is None:
        return mimetypes.guess_type(name)[0] == mime
    try:
        return bool(recognise(head, name))
    except Exception as error:
        log.warning("The plug-in reader for %s failed to recognise a file: %s.", mime, type(error).__name__)
        return False


@cache
def _entries() -> dict[str, metadata.EntryPoint]:
    """The entry points by MIME type, without the types that are read here; of several for one, the first by value."""
    from . import _READERS

    found = sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value), reverse=True)
    return {entry.name: entry for entry in found if entry.name not in _READERS}


@cache
def _loaded(mime: str) -> Any:
    """The class of a plug-in, or the exception that loading it ended in."""
    try:
        return _entries()[mime].load()
    except Exception as error:
        log.warning("The plug-in reader for %s cannot be loaded.", mime, exc_info=True)
        return error


def _broken(uri: str, mime: str, what: str) -> UnreadableFile:
    entry = _entries()[mime].value
    return unreadable(
        uri, f"is of the kind `{mime}`, whose plug-in `{entry}` {what}", "Update or uninstall its package."
    )
