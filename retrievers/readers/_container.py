"""Sound and video files opened with PyAV: one demuxer by name, tracks with sane times, and a damaged packet left out.

All times are seconds from the start of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ... import progress
from ...errors import MissingExtra, UnreadableFile
from .base import one_line, parsing, unreadable

if TYPE_CHECKING:
    from .base import Limits

DEMUXERS = {
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mp4": "mov",
    "audio/aiff": "aiff",
    "audio/amr": "amr",
    "audio/basic": "au",
    "audio/x-caf": "caf",
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/3gpp": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    "video/ogg": "ogg",
    "video/x-msvideo": "avi",
    "video/x-ms-asf": "asf",
    "video/x-flv": "flv",
    "video/mpeg": "mpeg",
    "video/mp2t": "mpegts",
}
"""MIME types and the demuxer each is opened with. No other is tried: some would open further files or addresses."""

_TAGS = ("title", "artist", "album", "show", "genre", "date", "comment", "description", "synopsis", "lyrics")
_Made = TypeVar("_Made")

_LONGEST_TAG = 5000
_MOST_BARREN = 5000  # packets in a row that give nothing: what is left is not worth reading


@dataclass
class Track:
    """One stream of an open file, read once from where the file stands.

    Attributes:
        end_s: where the last packet read so far ends.
        damaged: some of it could not be decoded, or the file could not be read to its end.
        cut: the limit at which reading stopped.
    """

    container: Any
    stream: Any
    limits: Limits
    end_s: float = 0.0
    damaged: bool = False
    cut: str = ""
    zero_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.zero_s = (self.container.start_time or 0) / 1e6
        decoder = self.stream.codec_context
        if not decoder.is_open:
            decoder.thread_type = "AUTO"
            decoder.options = {"max_pixels": str(self.limits.max_pixels)}

    def at(self, timed: Any) -> float | None:
        """When a packet or frame is due, None where it does not say."""
        if timed.pts is None or timed.time_base is None:
            return None
        return max(0.0, float(timed.pts) * float(timed.time_base) - self.zero_s)

    def tried(self, work: Callable[[], _Made], otherwise: _Made) -> _Made:
        """What `work` makes; `otherwise` where it trips over damage, which is remembered."""
        import av

        try:
            return work()
        except (av.FFmpegError, ValueError, OverflowError):
            self.damaged = True
            return otherwise

    def packets(self) -> Iterator[Any]:
        """Packets in the order of the file, the empty one that ends it included."""
        source = self.container.demux(self.stream)
        while (packet := self.tried(lambda: next(source, None), None)) is not None:
            at = self.at(packet)
            if at is not None and at > self.limits.max_seconds:
                self.cut = "max_seconds"
                return
            if at is not None and packet.size:
                lasts = max(0.0, (packet.duration or 0) * float(packet.time_base))
                self.end_s = max(self.end_s, min(at + lasts, self.limits.max_seconds))
            yield packet

    def frames(self, keys_every_s: float | None = None) -> Iterator[Any]:
        """Decoded frames; with `keys_every_s` only key frames, and none sooner than that after another."""
        barren, due = 0, 0.0
        for number, packet in enumerate(self.packets()):
            if number % 64 == 0:
                progress.step(int(self.end_s), None, "seconds of sound or video")
            if keys_every_s is not None and packet.size:
                at = self.at(packet)
                if not packet.is_keyframe or (at is not None and at < due):
                    continue
                due = (due if at is None else at) + keys_every_s
            decoded: list[Any] = self.tried(packet.decode, [])
            yield from decoded
            barren = 0 if decoded else barren + 1
            if barren > _MOST_BARREN:
                self.damaged = True
                return


@contextmanager
def opened(file: BinaryIO, uri: str, mime: str) -> Iterator[Any]:
    """The container in `file`.

    Raises:
        MissingExtra: PyAV is not installed.
        UnreadableFile: it cannot be opened.
    """
    try:
        import av
    except ImportError:
        hint = "Run `pip install 'triptych[video]'` (or `[audio]` for sound alone)."
        raise MissingExtra("The package `av` is not installed.", hint) from None
    file.seek(0)
    with parsing(uri, "sound or video file"):
        container = av.open(_Source(file), "r", format=DEMUXERS[mime], metadata_errors="replace")
    with container:
        yield container


class _Source:
    """A file as PyAV reads it. It would write an exception from `seek` to stderr; -1 says the same in silence."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def sound(container: Any) -> Any | None:
    """The first sound track that can be decoded."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def pictures(container: Any) -> Any | None:
    """The first picture track that can be decoded; a cover that is attached to a song is none."""
    import av.stream

    cover = av.stream.Disposition.attached_pic
    tracks = (stream for stream in container.streams.video if stream.codec_context is not None)
    return next((stream for stream in tracks if not stream.disposition & cover), None)


def tags(container: Any) -> dict[str, str]:
    """What the file says of itself: title, artist and the like, each in one line."""
    found: dict[str, str] = {}
    for source in (container, *container.streams):
        for name, value in source.metadata.items():
            key, text = name.lower(), one_line(str(value))[:_LONGEST_TAG]
            if key in _TAGS and text:
                found.setdefault(key, text)
    return {name: found[name] for name in _TAGS if name in found}


def tag_lines(tags: dict[str, str]) -> str:
    """Tags as text, one a line."""
    return "\n".join(f"{name.capitalize()}: {value}" for name, value in tags.items())


def too_many_pixels(uri: str, width: int, height: int, limits: Limits) -> UnreadableFile:
    what = f"has frames of {width} × {height} pixels, more than `max_pixels` = {limits.max_pixels}"
    return unreadable(uri, what, "Scale it down.")
