"""Files of subtitles (SubRip, WebVTT): what is said, in passages with their times."""

from __future__ import annotations

from typing import BinaryIO

from ._subtitles import SRT, VTT, lines_of, passages
from .base import Document, Limits, Reader, Section, file_name, unreadable
from .text import read_text

_LONGEST_S = 24.0  # of one passage, as of speech that is recognised


class SubtitleReader(Reader):
    """Sections of modality `text` with `start_s` and `end_s`, which are times in the film that the file belongs to."""

    mimes = frozenset({SRT, VTT})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        text, stripped = read_text(file, uri)
        try:
            lines, cut = lines_of(text, mime, limits.max_rows)
        except ValueError:
            raise unreadable(uri, "is a damaged file of subtitles", "Save it anew, or remove it.") from None
        timed = [line for line in lines if line.start_s <= limits.max_seconds]
        sections = tuple(
            Section(f"{part.text}\n", start_s=part.start_s, end_s=part.end_s, meta={"subtitles": True})
            for part in passages(timed, _LONGEST_S)
        )
        if not sections:
            raise unreadable(uri, "has no line that is shown", "Remove it, or give a file with subtitles.")
        note = _note(limits, cut=cut, late=len(timed) < len(lines))
        return Document(uri, file_name(uri), mime, sections, {"stripped": stripped, **note})


def _note(limits: Limits, *, cut: bool, late: bool) -> dict[str, str]:
    if cut:
        return {"note": f"only the first {limits.max_rows} cues were read (`max_rows` = {limits.max_rows})."}
    if late:
        most = limits.max_seconds
        return {"note": f"only the first {most} seconds were read (`max_seconds` = {most})."}
    return {}
