"""What the tests of sound and of film share: a file written and read, refused, or damaged."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from triptych import UnreadableFile
from triptych.retrievers.readers import read

if TYPE_CHECKING:
    from triptych.retrievers.readers.base import Document, Limits


def make(folder: Path, name: str, content: bytes, limits: Limits | None = None) -> Document:
    path = folder / name
    path.write_bytes(content)
    return read(path, f"box/{name}", limits)


def refused(folder: Path, name: str, content: bytes, limits: Limits | None = None) -> UnreadableFile:
    start = time.monotonic()
    with pytest.raises(UnreadableFile) as caught:
        make(folder, name, content, limits)
    assert time.monotonic() - start < 5
    assert f"`box/{name}`" in caught.value.message
    assert caught.value.hint
    return caught.value


def damaged(folder: Path, files: list[bytes], data: st.DataObject, check: Callable[[Document], None]) -> None:
    """One of `files` with bytes changed and its end cut off is refused by name, or what is left of it holds."""
    content = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    start = time.monotonic()
    try:
        check(make(folder, "a.bin", bytes(content[:cut])))
    except UnreadableFile as error:
        assert "`box/a.bin`" in error.message and error.hint
    assert time.monotonic() - start < 5
