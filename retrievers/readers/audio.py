"""Sound: what is said in it, cut at silences, or its subtitles, with times; else the words of its name and tags."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from ...errors import MissingWeights
from ..base import MediaRef
from ._container import DEMUXERS, Track, opened, sound, tag_lines, tags
from ._subtitles import passages, with_subtitles
from .base import Document, Limits, Reader, Section, file_name, name_words, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from ._speech import Stretch

_LONGEST_S = 24.0  # of one passage: the model knows up to 30 s
_LEAST_RATE, _MOST_RATE = 2_000, 768_000  # samples a second; outside, resampling costs more than the file is worth
_GAP_S = 0.2  # a jump in a file's own times that is taken for a pause in the recording


class AudioReader(Reader):
    """One section per stretch of speech or passage of subtitles, of modality `audio`; the file's tags are one too.

    Where nobody speaks, or the speech model is not here, the words of the file name and tags stand for it.
    """

    mimes = frozenset(mime for mime in DEMUXERS if mime.startswith("audio/"))

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        with opened(file, uri, mime) as container:
            return document(container, uri, mime, limits)


def document(container: Any, uri: str, mime: str, limits: Limits) -> Document:
    """The sound of an open file as a document."""
    stream = sound(container)
    if stream is None:
        raise unreadable(
            uri, "holds neither sound nor pictures that can be decoded", "Open it in a player, or save it anew."
        )
    track = Track(container, stream, limits)
    said, missing = heard(track, uri, limits, _LONGEST_S)
    known = tags(container)
    if not track.end_s:
        raise unreadable(uri, "holds no sound that can be decoded", "Copy it again, or save it anew.")
    said, lines, captions = with_subtitles(container, said, limits)
    sections = [_timed(stretch, uri, mime, "speech") for stretch in said]
    sections += [_timed(stretch, uri, mime, "subtitles") for stretch in passages(lines, _LONGEST_S)]
    sections.sort(key=lambda section: (section.start_s or 0.0, section.end_s or 0.0))
    end_s = max([track.end_s, *(section.end_s or 0.0 for section in sections)])
    if not sections:
        text = "\n".join(filter(None, (name_words(uri), tag_lines(known))))
        media = MediaRef(uri, mime, start_s=0.0, end_s=round(end_s, 2))
        sections = [Section(text, "audio", media=media, start_s=0.0, end_s=media.end_s, meta={"named": True})]
    elif known:
        sections = [Section(tag_lines(known) + "\n\n", "audio", media=MediaRef(uri, mime)), *sections]
    meta = {"stripped": 0, "seconds": round(end_s, 2), **notes(missing, track, captions)}
    return Document(uri, known.get("title") or file_name(uri), mime, tuple(sections), meta)


def heard(track: Track, uri: str, limits: Limits, longest_s: float) -> tuple[list[Stretch], MissingWeights | None]:
    """What is said in a sound track, and the models that it would have taken. The track is read either way."""
    from ._speech import recogniser

    missing = None
    try:
        model = recogniser(limits)
    except MissingWeights as error:
        model, missing = None, error
    blocks = samples(track, uri)
    if model is not None:
        return list(model.stretches(blocks, longest_s)), missing
    next(blocks, None)  # a first second shows whether there is sound at all
    for _ in track.packets():
        continue  # the rest only says how long it is
    return [], missing


def samples(track: Track, uri: str) -> Iterator[tuple[float, np.ndarray]]:
    """The sound as `start in seconds, float32 samples`: mono, 16 kHz, about a second at a time.

    Raises:
        UnreadableFile: it has an absurd sample rate.
    """
    import numpy as np

    from ._speech import RATE

    parts: list[np.ndarray] = []
    start_s, length = 0.0, 0
    for at, part in _resampled(track, uri):
        now = start_s + length / RATE
        if now > track.limits.max_seconds:
            track.cut = "max_seconds"
            break
        gap = at is not None and now + _GAP_S < at
        if parts and (gap or length >= RATE):
            yield start_s, np.concatenate(parts)
            parts, start_s, length = [], now, 0
        if gap and at is not None:
            start_s = at
        parts.append(part)
        length += len(part)
    if parts:
        yield start_s, np.concatenate(parts)
    track.end_s = max(track.end_s, start_s + length / RATE)


def _resampled(track: Track, uri: str) -> Iterator[tuple[float | None, np.ndarray]]:
    import av

    from ._speech import RATE

    resampler: Any = None
    kind: tuple[str, str, int] | None = None
    for frame in track.frames():
        if not _LEAST_RATE <= frame.sample_rate <= _MOST_RATE:
            what = f"has {frame.sample_rate} samples a second"
            raise unreadable(uri, what, f"From {_LEAST_RATE} to {_MOST_RATE} can be read.")
        if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            resampler = av.AudioResampler("flt", "mono", RATE)
        at = track.at(frame)
        parts: list[Any] = track.tried(partial(resampler.resample, frame), [])
        for made in parts:
            yield at, made.to_ndarray()[0]
    rest: list[Any] = track.tried(partial(resampler.resample, None), []) if resampler else []
    for made in rest:
        yield None, made.to_ndarray()[0]


def notes(missing: MissingWeights | None, *tracks: Track | None) -> dict[str, str]:
    """`note` (what was left out) and `mend` (what brings it back) for a document's `meta`, where there is a need."""
    found = [_damage(track) for track in tracks if track is not None]
    if missing is not None:
        found.insert(0, f"speech was not recognised. {missing.message}")
    note = " ".join(dict.fromkeys(filter(None, found)))
    mend = {} if missing is None else {"mend": f"{missing.hint.rstrip('.')}, then index again."}
    return {**({"note": note} if note else {}), **mend}


def _damage(track: Track) -> str:
    if track.cut:
        limit = f"`{track.cut}` = {getattr(track.limits, track.cut)}"
        return f"only the first {track.end_s:.0f} seconds were read ({limit})."
    return "it is damaged; what could be decoded was read." if track.damaged else ""


def _timed(stretch: Stretch, uri: str, mime: str, how: str) -> Section:
    media = MediaRef(uri, mime, start_s=stretch.start_s, end_s=stretch.end_s)
    meta = {how: True}
    return Section(f"{stretch.text}\n", "audio", media=media, start_s=media.start_s, end_s=media.end_s, meta=meta)
