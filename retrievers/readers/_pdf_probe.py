"""Whether the pages of a PDF can be parsed, tried in a process of its own.

A file of a kilobyte can be written so that a page draws itself over and over: the library then parses for days, in one
step that cannot be stopped. So this file is run as a program: it takes requests on its standard input and answers on
its standard output, holds itself to `MEMORY` bytes, and may die. It knows nothing of the package.

Request: a line of JSON `{"size", "first", "last"}` (pages from 1), then `size` bytes. Answer: for each page a line with
the number of its characters, as soon as it is known; then an empty line, at once if the file does not open.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing, suppress
from typing import BinaryIO

MEMORY = 2_000_000_000


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    import pypdfium2

    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while line := requests.readline():
        asked = json.loads(line)
        data = requests.read(asked["size"])
        with suppress(pypdfium2.PdfiumError):  # whoever opens it next says what is wrong with it
            _try_pages(data, asked["first"], asked["last"], answers)
        answers.write(b"\n")
        answers.flush()


def _try_pages(data: bytes, first: int, last: int, answers: BinaryIO) -> None:
    import pypdfium2

    with closing(pypdfium2.PdfDocument(data)) as pdf:
        for number in range(first, min(last, len(pdf)) + 1):
            with closing(pdf[number - 1]) as page, closing(page.get_textpage()) as text:
                answers.write(b"%d\n" % text.count_chars())
                answers.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
