"""Subtitles: lines with times, from a track of a film or recording or from a file of their own, without their markup.

Files are parsed with webvtt-py, tracks are decoded by FFmpeg, which makes an ASS event of each line. Of a file's tracks
one is read: in the language of its sound where the file names both, else the first. Tracks that hold pictures of text
(DVD, Blu-ray) are not read.
"""

from __future__ import annotations

import io
import re
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from ... import progress
from ._container import Track, opened, sound
from ._speech import Stretch
from .base import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .base import Limits

VTT, SRT = "text/vtt", "application/x-subrip"

_STAMP = r"(?:\d{1,10}:)?\d{1,2}:\d{1,2}[.,]\d{1,3}"
_VTT_START = re.compile(r"\ufeff?WEBVTT(?:[ \t][^\n]*)?(?:\n|\Z)")
_SRT_START = re.compile(rf"\ufeff?\s{{0,64}}(?:\d{{1,10}}[ \t]*\n)?[ \t]*{_STAMP}[ \t]+-->[ \t]+{_STAMP}[^\n]*\n")
_ARROW = re.compile(rf"^[ \t]*({_STAMP})[ \t]*-->[ \t]*({_STAMP})|-->", re.MULTILINE)
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?[ \t]([^<>]+)>")
_TAG = re.compile(r"</?(?:[A-Za-z][^<>]*|[\d:.]+)?>|\{\\[^{}]*\}")
_MARK = re.compile(r"\\(?P<brace>[{}])(?:\{\})?|(?P<line>\\[Nn])|(?P<blank>\\h)|\{[^{}]*\}")
_EVENT_FIELDS = 8  # of an ASS event before its text
_TEXT_CODECS = frozenset({"ass", "ssa", "srt", "subrip", "mov_text", "webvtt", "text"})
_UNSAID = frozenset({"", "und", "mis", "mul", "zxx"})

_PAUSE_S = 4.0  # without a line ends a passage
_AROUND_S = 1.0  # a line is often shown somewhat before or after it is said
_SENTENCE_END = tuple(".!?…。！？")


def kind_of(text: str) -> str | None:
    """The MIME type of a text that begins like a file of subtitles, whatever its name.

    >>> kind_of("WEBVTT - a film"), kind_of("1\\n00:00:01,000 --> 00:00:02,000\\nHello"), kind_of("1\\nHello")
    ('text/vtt', 'application/x-subrip', None)
    """
    if _VTT_START.match(text):
        return VTT
    return SRT if _SRT_START.match(text) else None


def lines_of(text: str, mime: str, most: int) -> tuple[list[Stretch], bool]:
    """The lines of a file, sorted by start, each once; and whether there are more than `most` cues, which are left out.

    What a cue says of where and how it is drawn, notes, styles and cue names are no lines. A cue that ends before it
    starts has no length.

    Raises:
        ValueError: it cannot be parsed.
    """
    from webvtt import from_buffer
    from webvtt.errors import MalformedFileError

    whole, text = text, _first_cues(text, most)
    head = "" if mime == VTT else "WEBVTT\n\n"
    try:
        captions = from_buffer(io.StringIO(head + _ARROW.sub(_as_webvtt, text))).captions
    except MalformedFileError as error:
        raise ValueError(str(error)) from None
    found: list[tuple[float, float, list[str]]] = []
    for number, caption in enumerate(captions):
        if number % 1000 == 0:
            progress.step(number, len(captions), "subtitles")
        plain = _TAG.sub("", _VOICE.sub(r"\1: ", caption.raw_text))
        found.append((caption.start_in_seconds, caption.end_in_seconds, plain.split("\n")))
    return _tidied(found), len(text) < len(whole)


def track_lines(container: Any, limits: Limits) -> tuple[list[Stretch], Track | None]:
    """The lines of the track of subtitles that suits the sound best, and that track; none where there is no such track.

    The container is read anew from its start.
    """
    stream = _track(container)
    if stream is None:
        return [], None
    track = Track(container, stream, limits)
    track.tried(partial(container.seek, 0), None)
    found: list[tuple[float, float, list[str]]] = []
    for packet in track.packets():
        if len(found) >= limits.max_rows:
            track.cut = "max_rows"
            break
        at = track.at(packet)
        events: list[Any] = track.tried(packet.decode, [])
        lasts = float(packet.duration or 0) * float(packet.time_base or 0)
        texts = [text for event in events if (text := _event_text(event))]
        if at is not None and texts:
            found.append((at, at + max(0.0, lasts), "\n".join(texts).split("\n")))
    return _tidied(found), track


def with_subtitles(
    container: Any, said: Sequence[Stretch], limits: Limits
) -> tuple[list[Stretch], list[Stretch], Track | None]:
    """What was recognised and is not in the subtitles, the subtitles, and their track.

    Somebody wrote the subtitles: speech that they cover at least by half is theirs. Where they are in another language
    than the sound, and the file says so, they cover nothing.
    """
    lines, track = track_lines(container, limits)
    if track is None or _is_translated(container, track.stream):
        return list(said), lines, track
    return [one for one in said if _covered_s(one, lines) < (one.end_s - one.start_s) / 2], lines, track


def told_in(
    file: BinaryIO, uri: str, mime: str, said: Sequence[Stretch], limits: Limits
) -> tuple[list[Stretch], Track | None]:
    """What is said in a film, by its subtitles and by recognition (see `with_subtitles`), in order; and their track."""
    with opened(file, uri, mime) as container:
        rest, lines, track = with_subtitles(container, said, limits)
    return sorted([*rest, *lines], key=lambda one: (one.start_s, one.end_s)), track


def passages(lines: Iterable[Stretch], longest_s: float) -> Iterator[Stretch]:
    """Lines that follow each other joined into passages of at most `longest_s`, which end with a sentence if they can.

    A pause of 4 s also ends one. A line longer than `longest_s` stands alone.
    """
    waiting: list[Stretch] = []
    for line in lines:
        if waiting and _ends(waiting, line, longest_s):
            yield _joined(waiting)
            waiting = []
        waiting.append(line)
    if waiting:
        yield _joined(waiting)


def _ends(waiting: Sequence[Stretch], line: Stretch, longest_s: float) -> bool:
    start_s, end_s = waiting[0].start_s, max(one.end_s for one in waiting)
    if line.start_s - end_s > _PAUSE_S or max(end_s, line.end_s) - start_s > longest_s:
        return True
    return end_s - start_s > longest_s / 2 and waiting[-1].text.endswith(_SENTENCE_END)


def _joined(lines: Sequence[Stretch]) -> Stretch:
    return Stretch(lines[0].start_s, max(one.end_s for one in lines), " ".join(one.text for one in lines))


def _first_cues(text: str, most: int) -> str:
    """`text` up to the line of times of the cue after the first `most`."""
    cues = (arrow.start() for arrow in _ARROW.finditer(text) if arrow[1] is not None)
    return text[: next(islice(cues, most, None), len(text))]


def _as_webvtt(arrow: re.Match[str]) -> str:
    """The times of a cue as WebVTT writes them; an arrow that stands in the text of a cue, which would end it."""
    start, end = arrow.groups()
    return "--&gt;" if start is None else f"{start} --> {end}".replace(",", ".")


def _tidied(found: list[tuple[float, float, list[str]]]) -> list[Stretch]:
    """Cues by their start, each in one line; what the next cue shows again, as captions that roll do, stands once."""
    found.sort(key=lambda cue: cue[:2])
    made: list[Stretch] = []
    before: list[str] = []
    for start_s, end_s, lines in found:
        now = [text for line in lines if (text := one_line(line))]
        fresh = now[_shared(before, now) :]
        if fresh:
            made.append(Stretch(round(start_s, 2), round(max(start_s, end_s), 2), " ".join(fresh)))
        before = now or before
    return made


def _shared(before: Sequence[str], now: Sequence[str]) -> int:
    """How many of the last lines of `before` are the first of `now`."""
    most = min(len(before), len(now))
    return next((count for count in range(most, 0, -1) if before[-count:] == now[:count]), 0)


def _event_text(event: Any) -> str:
    """The text of a decoded line, as a player shows it."""
    ass = getattr(event, "ass", b"").decode("utf-8", errors="replace")
    return _TAG.sub("", _MARK.sub(_shown, ass.split(",", _EVENT_FIELDS)[-1]))


def _shown(mark: re.Match[str]) -> str:
    return mark["brace"] or ("\n" if mark["line"] else " " if mark["blank"] else "")


def _track(container: Any) -> Any | None:
    """The track to read; one that is only there for a few foreign words comes last."""
    import av.stream

    forced = av.stream.Disposition.forced
    tracks = [
        stream
        for stream in container.streams.subtitles
        if stream.codec_context is not None and stream.codec_context.name in _TEXT_CODECS
    ]
    heard = _language(sound(container))
    return min(
        tracks,
        key=lambda stream: (bool(stream.disposition & forced), not heard or _language(stream) != heard),
        default=None,
    )


def _is_translated(container: Any, stream: Any) -> bool:
    heard, written = _language(sound(container)), _language(stream)
    return bool(heard and written and heard != written)


def _language(stream: Any | None) -> str:
    """The language that a track says it is in, `""` where it does not say."""
    said = str(stream.metadata.get("language", "")).lower() if stream is not None else ""
    return "" if said in _UNSAID else said


def _covered_s(said: Stretch, lines: Sequence[Stretch]) -> float:
    """Seconds of `said` in which a line is shown, or one second before or after it."""
    covered, until = 0.0, said.start_s
    for line in lines:
        if line.start_s - _AROUND_S >= said.end_s:
            break
        start, end = max(until, line.start_s - _AROUND_S), min(said.end_s, line.end_s + _AROUND_S)
        covered += max(0.0, end - start)
        until = max(until, end)
    return covered
