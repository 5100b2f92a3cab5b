"""The process in which PDF pages are tried before they are read here (`_pdf_probe`), and when it is given up."""

from __future__ import annotations

import json
from functools import cache

from ... import progress
from . import _pdf_probe
from ._child import Child
from .base import unreadable

_SECONDS = 15.0  # for one page; sound ones take a hundredth of a second
_MOST_CHARACTERS = 500_000  # on one page


def check(data: bytes, uri: str, first: int, last: int) -> None:
    """Return if pages `first` to `last` (from 1, both included; fewer if there are fewer) of the PDF `data` can be
    parsed. A file that does not open, or a page that does not, is for the caller to find.

    Raises:
        UnreadableFile: a page takes more time or memory than any that is meant to be read, or has more characters.
    """
    number = _probe().tried(data, first, last)
    if number is not None:
        what = f"has a page, `{number}`, that takes too much to read"
        raise unreadable(uri, what, "Print it to a new PDF, or take the page out.")


class _Probe(Child):
    """The program that tries pages."""

    def __init__(self) -> None:
        super().__init__(_pdf_probe)

    def tried(self, data: bytes, first: int, last: int) -> int | None:
        """The first page that takes too much; None if all are sound."""
        request = json.dumps({"size": len(data), "first": first, "last": last}).encode() + b"\n" + data
        with self.lock:
            number, sound = first, False
            try:
                while not sound:
                    line = self.answer(request if number == first else b"", _SECONDS)
                    sound = line == b"\n"
                    if not sound and (not line.strip().isdigit() or int(line) > _MOST_CHARACTERS):
                        return number
                    if not sound:
                        progress.step(number - first, None, "pages tried")
                        number += 1
                return None
            finally:
                if not sound:
                    self.end()


@cache
def _probe() -> _Probe:
    return _Probe()
