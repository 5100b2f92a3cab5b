"""Video: scenes with the text that can be read in them, what is said and shown in them, each with its times."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from ... import progress
from ...errors import MissingExtra, MissingWeights, UnreadableFile
from ..base import MediaRef
from ._container import DEMUXERS, Track, opened, pictures, sound, tag_lines, tags, too_many_pixels
from ._layout import text_of
from ._subtitles import told_in
from ._tags import noted, seen_in, shows
from .audio import document, heard, notes
from .base import Document, Limits, Reader, Section, file_name, name_words, unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from ._speech import Stretch
    from ._tags import Tag
    from .base import Line

_SHORTEST_S = 1.5
_LONGEST_S = 60.0  # a scene that goes on is cut: a citation should not say "somewhere in this hour"
_SPOKEN_S = 10.0  # the longest stretch of speech: it goes whole to the scene that holds its middle
_CHANGE = 27.0  # of all pixels, on average, in 255ths: the detector's own default
_SLIDE_CHANGE, _SLIDE_RATIO = 1.0, 10.0  # a new text on the same ground: little, but much more than around it
_KEY = 0.75  # of a scene, where it is looked at: slides fill up, and the end may be a fade
_SEEN_EDGE = 256  # pixels of what it compares
_LEAST_GAP_S = 0.5
_MOST_RATE, _USUAL_RATE = 240.0, 30.0  # frames a second: what is above is the clock of the file, not its rate
_MOST_DECODED = 1000  # frames from a key frame to the one that is wanted


@dataclass(frozen=True)
class _Seen:
    """What can be read in a key frame, what it shows, and the models that the latter would have taken."""

    text: str = ""
    lines: tuple[Line, ...] = ()
    tags: Sequence[Tag] = ()
    missing: MissingWeights | None = None


class VideoReader(Reader):
    """One section per scene, of modality `video`. A file without pictures is read as sound.

    Every frame of a short video is looked at; of a longer one only key frames, which encoders also put where a scene
    starts: its cuts are as exact as those stand close. Slow fades, and a line added to a slide, are not noticed.
    """

    mimes = frozenset(mime for mime in DEMUXERS if mime.startswith("video/"))

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        with opened(file, uri, mime) as container:
            stream = pictures(container)
            if stream is None:
                return document(container, uri, mime, limits)
            track = Track(container, stream, limits)
            cuts = _cuts(track, uri)
            known = tags(container)
        said, ears, missing = _heard(file, uri, mime, limits)
        end_s = round(max(track.end_s, ears.end_s if ears else 0.0), 2)
        spans = _parts(cuts, end_s, limits)
        told, captions = told_in(file, uri, mime, said, limits)
        spoken = _by_scene(told, [start for start, _ in spans])
        sections: list[Section] = []
        untagged: MissingWeights | None = None
        with opened(file, uri, mime) as container:
            for number, span in enumerate(spans):
                progress.step(number, len(spans), "scenes")
                seen = _seen(container, uri, span, track)
                untagged = untagged or seen.missing
                sections.append(_scene(seen, span, spoken[number], uri, mime))
        if known:
            sections.insert(0, Section(tag_lines(known) + "\n\n", "video", media=MediaRef(uri, mime)))
        remarks = noted(notes(missing, track, ears, captions), untagged)
        meta = {"stripped": 0, "seconds": end_s, "scenes": len(spans), **remarks}
        return Document(uri, known.get("title") or file_name(uri), mime, tuple(sections), meta)


def render(file: BinaryIO, uri: str, mime: str, start_s: float, end_s: float, edge: int, limits: Limits) -> Image:
    """The key frame of the scene from `start_s` to `end_s`, its longer side at most `edge` pixels.

    Raises:
        UnreadableFile: damaged, above a limit, or without pictures.
    """
    with opened(file, uri, mime) as container:
        picture = _frame(container, uri, start_s, end_s, limits)
    picture.thumbnail((edge, edge))
    return picture


def _cuts(track: Track, uri: str) -> list[float]:
    """Where scenes start, in seconds; the first at 0."""
    try:
        from scenedetect.common import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector, ContentDetector
    except ImportError:
        hint = "Run `pip install 'triptych[video]'`."
        raise MissingExtra("The package `scenedetect-headless` is not installed.", hint) from None
    _check_size(track.stream, uri, track.limits)
    short = _is_short(track)
    around = 2 if short else 1  # frames on each side: of key frames a slide may have only two
    slides = AdaptiveDetector(_SLIDE_RATIO, min_scene_len=0, window_width=around, min_content_val=_SLIDE_CHANGE)
    detectors = (ContentDetector(_CHANGE, min_scene_len=0), slides)
    times: list[float] = []
    cuts: list[int] = []
    size: tuple[int, int] | None = None
    for number, frame in enumerate(track.frames(None if short else _key_gap_s(track))):
        if number > 2 * track.limits.max_frames:
            track.cut = "max_frames"
            break
        _check_size(frame, uri, track.limits)
        size = size or _seen_size(frame)
        seen = track.tried(partial(_pixels, frame, *size), None)
        times.append(max(track.at(frame) or 0.0, times[-1] if times else 0.0))
        if seen is not None:
            now = FrameTimecode(number, _USUAL_RATE)
            cuts += [cut.frame_num for detector in detectors for cut in detector.process_frame(now, seen)]
    if size is None:
        raise unreadable(uri, "holds no picture that can be decoded", "Copy it again, or save it anew.")
    return [0.0, *sorted({times[cut] for cut in cuts})]


def _is_short(track: Track) -> bool:
    """Whether every frame is looked at, by what the file says of itself."""
    rate = float(track.stream.average_rate or 0)
    rate = rate if 0 < rate <= _MOST_RATE else _USUAL_RATE
    frames = track.stream.frames or _said_s(track) * rate
    return bool(0 < frames <= track.limits.max_frames)


def _key_gap_s(track: Track) -> float:
    return max(_LEAST_GAP_S, _said_s(track) / track.limits.max_frames)


def _said_s(track: Track) -> float:
    """How long the file says that it is, 0 where it does not."""
    return max(0.0, (track.container.duration or 0) / 1e6)


def _seen_size(frame: Any) -> tuple[int, int]:
    scale = min(1.0, _SEEN_EDGE / max(frame.width, frame.height))
    return max(2, round(frame.width * scale)), max(2, round(frame.height * scale))


def _pixels(frame: Any, width: int, height: int) -> Any:
    return frame.to_ndarray(width=width, height=height, format="bgr24")


def _check_size(frame: Any, uri: str, limits: Limits) -> None:
    if frame.width * frame.height > limits.max_pixels:
        raise too_many_pixels(uri, frame.width, frame.height, limits)


def _parts(cuts: list[float], end_s: float, limits: Limits) -> list[tuple[float, float]]:
    """Scenes from cuts: none too short, at most `max_scenes`, long ones in equal parts.

    >>> _parts([0.0, 0.5, 10.0], 110.0, Limits())
    [(0.0, 10.0), (10.0, 60.0), (60.0, 110.0)]
    """
    shortest = max(_SHORTEST_S, end_s / limits.max_scenes)
    longest = max(_LONGEST_S, 2 * shortest)
    kept = [0.0]
    for cut in cuts:
        if cut - kept[-1] >= shortest and end_s - cut >= shortest:
            kept.append(cut)
    bounds: list[float] = []
    for start, end in pairwise([*kept, end_s]):
        count = max(1, math.ceil((end - start) / longest))
        bounds += [round(start + n * (end - start) / count, 2) for n in range(count)]
    return list(pairwise([*bounds, end_s]))


def _heard(
    file: BinaryIO, uri: str, mime: str, limits: Limits
) -> tuple[list[Stretch], Track | None, MissingWeights | None]:
    """What is said, the sound track (None where there is none), and the models that it would have taken."""
    with opened(file, uri, mime) as container:
        stream = sound(container)
        if stream is None:
            return [], None, None
        track = Track(container, stream, limits)
        said, missing = heard(track, uri, limits, _SPOKEN_S)
    return said, track, missing


def _by_scene(said: list[Stretch], starts: list[float]) -> list[list[str]]:
    """The words of each scene: every stretch goes whole to the scene that holds its middle."""
    words: list[list[str]] = [[] for _ in starts]
    for stretch in said:
        words[bisect_right(starts, (stretch.start_s + stretch.end_s) / 2) - 1].append(stretch.text)
    return words


def _seen(container: Any, uri: str, span: tuple[float, float], track: Track) -> _Seen:
    """What a scene's key frame shows; nothing where it cannot be decoded, which `track` remembers."""
    from ._ocr import read_picture

    try:
        picture = _frame(container, uri, *span, track.limits)
    except UnreadableFile:
        track.damaged = True
        return _Seen()
    text, lines = text_of(read_picture(picture, track.limits.ocr_edge))
    return _Seen(text, lines, *seen_in(picture, track.limits))


def _scene(seen: _Seen, span: tuple[float, float], said: list[str], uri: str, mime: str) -> Section:
    meta: dict[str, Any] = {name: True for name, there in (("ocr", seen.text), ("speech", said)) if there}
    meta = meta or {"named": True}
    if seen.tags:
        meta["tags"] = [list(tag) for tag in seen.tags]
    words = list(filter(None, (seen.text, " ".join(said)))) or [name_words(uri)]
    text = "\n\n".join(filter(None, (*words, shows(seen.tags))))
    start_s, end_s = span
    media = MediaRef(uri, mime, start_s=start_s, end_s=end_s)
    return Section(f"{text}\n\n", "video", lines=seen.lines, media=media, start_s=start_s, end_s=end_s, meta=meta)


def _frame(container: Any, uri: str, start_s: float, end_s: float, limits: Limits) -> Image:
    """The frame shown late in a scene (`_KEY`); in a long video the key frame nearest before, if the scene has one.

    Upright, RGB. At most `_MOST_DECODED` frames are decoded to get there.

    Raises:
        UnreadableFile: no frame can be decoded, or it is above a limit.
    """
    stream = pictures(container)
    if stream is None:
        raise unreadable(uri, "has no pictures", "Read its text instead.")
    _check_size(stream, uri, limits)
    track = Track(container, stream, limits)
    wanted, short = start_s + _KEY * (end_s - start_s), _is_short(track)
    offset = round((wanted + track.zero_s) / float(stream.time_base))
    track.tried(partial(container.seek, offset, stream=stream), None)
    best: Any = None
    for number, frame in enumerate(track.frames()):
        _check_size(frame, uri, limits)
        at = track.at(frame) or 0.0
        if best is None or at <= wanted:
            best = frame
        if at >= (wanted if short else start_s) or number > _MOST_DECODED:
            break
    picture = track.tried(best.to_image, None) if best is not None else None
    if picture is None:
        raise unreadable(uri, "holds no picture that can be decoded", "Copy it again, or save it anew.")
    upright: Image = picture.convert("RGB").rotate(best.rotation, expand=True)
    return upright
