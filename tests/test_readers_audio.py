"""Sound: what is said and when, no words where nobody speaks, and no bad file does worse than one named error.

`data/speech.ogg` says two sentences of ours, 2.5 seconds apart, read by the synthesiser espeak-ng (voice en-us,
145 words a minute), coded as Opus.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych import Cancelled, MissingExtra, MissingWeights, Settings, Triptych, UnreadableFile, progress
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import _container, _speech, detect, read
from triptych.retrievers.readers.base import Document, Limits
from triptych.retrievers.readers.picture import picture

sys.path.append(str(Path(__file__).parent))
from media_files import damaged, make, refused

CLIP = Path(__file__).parent / "data" / "speech.ogg"
RATE = 16_000
SPEECH = "moonshine_tiny_en"
FIRST, SECOND = ("committee", "build", "new", "bridge", "river"), ("meeting", "town", "hall", "october")


@pytest.fixture(scope="module")
def hearing(weights_home: Path) -> Limits:
    return Limits(weights=weights_home / "weights", speech=SPEECH)


def decoded(path: Path, rate: int = RATE) -> np.ndarray:
    """The samples of a file, mono float32."""
    resampler = av.AudioResampler("flt", "mono", rate)
    with av.open(str(path)) as container:
        frames = [made for frame in container.decode(audio=0) for made in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def coded(
    samples: np.ndarray, codec: str, container: str, rate: int = RATE, layout: str = "mono", **tags: str
) -> bytes:
    """`samples` at 16 kHz as a file."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as made:
        made.metadata.update(tags)
        stream: Any = made.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], "flt", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(stream.format.name, layout, rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            made.mux(stream.encode(part))
        made.mux(stream.encode(None))
    return target.getvalue()


@pytest.fixture(scope="module")
def said() -> np.ndarray:
    return decoded(CLIP)


def check(document: Document) -> None:
    """What holds of every document with times: none goes back, none lies after the end."""
    times = [(s.start_s, s.end_s) for s in document.sections if s.start_s is not None and s.end_s is not None]
    assert [start for start, _ in times] == sorted(start for start, _ in times)
    assert all(0 <= start <= end <= document.meta["seconds"] for start, end in times)
    text = "".join(section.text for section in document.sections)
    items = chunk(document, "hash")
    assert items and all(item.text == text[item.source.start : item.source.end] for item in items)


def words_of(document: Document) -> list[str]:
    return [section.text.lower() for section in document.sections if section.meta.get("speech")]


# -- speech ------------------------------------------------------------------------------------------------------------


def test_speech_is_cut_at_silence_and_knows_its_times(hearing: Limits) -> None:
    document = read(CLIP, "box/speech.ogg", hearing)
    check(document)
    assert (document.mime, document.title) == ("audio/ogg", "Minutes of the committee")
    tags, first, second = document.sections
    assert tags.text == "Title: Minutes of the committee\nArtist: Speech synthesiser\n\n"
    assert all(word in first.text.lower() for word in FIRST)
    assert all(word in second.text.lower() for word in SECOND)
    assert [(s.modality, dict(s.meta)) for s in (first, second)] == [("audio", {"speech": True})] * 2
    assert (first.start_s, first.end_s) == (pytest.approx(0.8, abs=0.3), pytest.approx(4.3, abs=0.4))
    assert (second.start_s, second.end_s) == (pytest.approx(7.0, abs=0.3), pytest.approx(11.5, abs=0.4))
    assert second.media is not None and second.start_s is not None
    assert (second.media.uri, second.media.mime, second.media.start_s) == ("box/speech.ogg", "audio/ogg", 7.01)
    assert "note" not in document.meta
    last = chunk(document, "hash")[-1]
    assert (last.source.start_s, last.source.end_s, last.modality) == (second.start_s, second.end_s, "audio")


@pytest.mark.parametrize(
    ("codec", "container", "mime"),
    [
        ("pcm_s16le", "wav", "audio/wav"),
        ("libmp3lame", "mp3", "audio/mpeg"),
        ("flac", "flac", "audio/flac"),
        ("aac", "ipod", "audio/mp4"),
        ("aac", "adts", "audio/aac"),
        ("pcm_s16be", "aiff", "audio/aiff"),
        ("pcm_s16be", "au", "audio/basic"),
        ("pcm_s16be", "caf", "audio/x-caf"),
        ("libopus", "webm", "video/webm"),
        ("flac", "matroska", "video/x-matroska"),
        ("aac", "mp4", "video/mp4"),
        ("wmav2", "asf", "video/x-ms-asf"),
    ],
)
def test_every_container_is_known_by_its_content(
    tmp_path: Path, said: np.ndarray, hearing: Limits, codec: str, container: str, mime: str
) -> None:
    rate = 16_000 if codec == "libopus" else 44_100
    document = make(tmp_path, "notes.txt", coded(said, codec, container, rate, "stereo"), hearing)
    check(document)
    assert document.mime == mime
    first, second = words_of(document)
    assert "committee" in first and "meeting" in second
    assert document.meta["seconds"] == pytest.approx(12.35, abs=0.2)


def test_an_mp3_behind_tags(tmp_path: Path, said: np.ndarray, hearing: Limits) -> None:
    content = coded(said, "libmp3lame", "mp3", title="Board  meeting\u200b", artist="A. Clerk", encoder="secret")
    assert content.startswith(b"ID3")
    document = make(tmp_path, "a.mp3", content, hearing)
    assert document.title == "Board meeting"
    assert document.sections[0].text == "Title: Board meeting\nArtist: A. Clerk\n\n"
    plain = coded(said, "libmp3lame", "mp3")
    bare = plain[10 + sum((byte & 127) << shift for byte, shift in zip(plain[6:10], (21, 14, 7, 0), strict=True)) :]
    assert make(tmp_path, "b.mp3", bare, hearing).mime == "audio/mpeg"
    flac = b"ID3\x04\0\0\0\0\0\x05hello" + coded(said[:RATE], "flac", "flac")
    assert detect.kind_of(io.BytesIO(flac), "a.flac") == "audio/flac"


def test_speech_without_a_pause_is_cut_between_words(tmp_path: Path, said: np.ndarray, hearing: Limits) -> None:
    both = np.concatenate([said[int(0.8 * RATE) : int(4.3 * RATE)], said[int(7.0 * RATE) : int(11.5 * RATE)]])
    document = make(tmp_path, "a.wav", coded(np.tile(both, 6), "pcm_s16le", "wav"), hearing)
    check(document)
    spans = [(s.start_s, s.end_s) for s in document.sections if s.start_s is not None and s.end_s is not None]
    assert len(spans) >= 2 and all(end - start <= 24.1 for start, end in spans)
    assert sum(" ".join(words_of(document)).count(word) for word in ("committee", "october")) >= 10


def test_threads_hear_the_same(hearing: Limits) -> None:
    alone = read(CLIP, "a.ogg", hearing)
    heard: list[Document] = []
    threads = [threading.Thread(target=lambda: heard.append(read(CLIP, "a.ogg", hearing))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == [alone] * 3


def test_reading_can_be_cancelled(hearing: Limits) -> None:
    stop = threading.Event()
    stop.set()
    with progress.reporting(cancelled=stop), pytest.raises(Cancelled):
        read(CLIP, "a.ogg", hearing)


# -- no speech ---------------------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(7).normal(0, 0.1, 6 * RATE)
TIME = np.arange(6 * RATE) / RATE


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(6 * RATE),
        NOISE,
        NOISE * (np.sin(TIME * 3) > 0.9),
        0.3 * np.sin(TIME * 2765) * np.sin(TIME * 12),
        sum(0.1 * np.sin(TIME * 2 * np.pi * f) * (np.sin(TIME * f / 99) > 0) for f in (220, 277, 330, 440)),
    ],
    ids=["silence", "hiss", "knocks", "tremolo", "chords"],
)
def test_where_nobody_speaks_there_are_no_words(tmp_path: Path, samples: np.ndarray, hearing: Limits) -> None:
    document = make(tmp_path, "rain_on_a_roof.flac", coded(samples, "flac", "flac", artist="Weather"), hearing)
    check(document)
    [section] = document.sections
    assert section.text == "rain on a roof\nArtist: Weather"
    assert (section.start_s, section.end_s, dict(section.meta)) == (0.0, 6.0, {"named": True})
    assert "note" not in document.meta


def test_a_speech_model_that_makes_things_up_is_not_believed() -> None:
    for text in ("\u266a\u266a \u266a", "\u00a9 transcript of nothing", "...", "", "10, 10, 10, 10, 10, 10"):
        assert not _speech.is_plausible(text)
    assert not _speech.is_plausible("I'm going to go to the hospital. " * 4)
    assert not _speech.is_plausible("And then, then, then, then, then, then")
    for text in (
        "Yes.",
        "No, no, no, that is not what I meant.",
        "It was the best of times, it was the worst of times.",
    ):
        assert _speech.is_plausible(text)


def test_a_stretch_ends_at_a_pause_or_where_speech_is_least_likely() -> None:
    speech = np.zeros(400, np.float32)
    assert _speech.first_stretch(speech, 300, final=True) is None
    speech[20:60] = 1
    speech[70:90] = 1  # a breath
    assert _speech.first_stretch(speech[:100], 300, final=False) is None
    assert _speech.first_stretch(speech[:100], 300, final=True) == (20, 90)
    assert _speech.first_stretch(speech, 300, final=False) == (20, 90)
    speech[20:] = 1
    speech[205:215] = 0.2
    start, end = _speech.first_stretch(speech, 300, final=False) or (0, 0)
    assert start == 20 and 205 <= end <= 215


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_without_weights_the_name_and_tags_are_still_found(tmp_path: Path) -> None:
    document = read(CLIP, "box/minutes_october.ogg", Limits(weights=tmp_path, speech=SPEECH))
    check(document)
    [section] = document.sections
    assert section.text == "minutes october\nTitle: Minutes of the committee\nArtist: Speech synthesiser"
    assert document.meta["seconds"] == pytest.approx(12.35, abs=0.1)
    assert document.meta["note"].startswith("speech was not recognised.")
    assert document.meta["mend"] == "Run `triptych pull embedded`, then index again."
    off = read(CLIP, "box/minutes_october.ogg", Limits(speech="none"))
    assert off.sections == document.sections and "note" not in off.meta
    with pytest.raises(MissingWeights):
        _speech.recogniser(Limits(speech=SPEECH))


@pytest.fixture
def box(tmp_path: Path) -> Path:
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "minutes.ogg").write_bytes(CLIP.read_bytes())
    return folder


def test_a_library_says_what_is_missing_and_reads_it_once_it_is_there(
    bare_home: Path, box: Path, weights_home: Path
) -> None:
    with Triptych("sounds", Settings.load()) as library:
        done = library.index(box)
        [problem] = done.problems
        assert (done.indexed, problem.type, problem.uri) == (1, "MissingWeights", "box/minutes.ogg")
        assert "speech was not recognised" in problem.message and "triptych pull embedded" in problem.hint
        assert (library.status().files, len(library.status().problems)) == (1, 1)
        assert [hit.uri for hit in library.search("minutes of the committee").hits] == ["box/minutes.ogg"]
        assert not library.search("bridge across the river").hits
        (bare_home / "weights").symlink_to(weights_home / "weights", target_is_directory=True)
        done = library.index(box)
        assert (done.indexed, done.problems) == (1, [])
        assert library.index(box).unchanged == 1
        hit = library.search("bridge across the river").hits[0]
        assert (hit.modality, hit.start_s) == ("audio", pytest.approx(0.86, abs=0.2))
        assert hit.where.startswith("box/minutes.ogg 0.")


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match="`av`") as caught:
        read(CLIP, "box/a.ogg")
    assert "triptych[" in caught.value.hint


# -- limits and damage -------------------------------------------------------------------------------------------------


def test_what_lies_behind_the_limit_is_not_read_and_the_note_says_so(tmp_path: Path, hearing: Limits) -> None:
    limits = Limits(weights=hearing.weights, speech=SPEECH, max_seconds=6)
    document = read(CLIP, "box/a.ogg", limits)
    assert document.meta["note"] == "only the first 6 seconds were read (`max_seconds` = 6)."
    assert 6 <= document.meta["seconds"] < 7.1
    assert len(words_of(document)) == 1
    assert (
        "`max_media_bytes` = 100" in refused(tmp_path, "a.ogg", CLIP.read_bytes(), Limits(max_media_bytes=100)).message
    )
    assert make(tmp_path, "b.ogg", CLIP.read_bytes(), Limits(max_bytes=100)).mime == "audio/ogg"


def test_hours_of_silence_in_a_small_file_are_read_in_bounded_time(tmp_path: Path, hearing: Limits) -> None:
    content = coded(np.zeros(3600 * RATE // 4), "flac", "flac", 4000)
    start = time.monotonic()
    document = make(tmp_path, "a.flac", content, hearing)
    assert document.meta["seconds"] == pytest.approx(900, abs=1)
    assert time.monotonic() - start < 20


def wav(rate: int, samples: bytes = b"\x80" * 4000, size: int | None = None) -> bytes:
    """An 8-bit mono WAV file of any sample rate."""
    numbers = [rate, rate, 1, 8]
    form = (1).to_bytes(2, "little") * 2 + b"".join(
        number.to_bytes(width, "little") for number, width in zip(numbers, (4, 4, 2, 2), strict=True)
    )
    length = (len(samples) if size is None else size).to_bytes(4, "little")
    return b"RIFF" + length + b"WAVEfmt " + len(form).to_bytes(4, "little") + form + b"data" + length + samples


@pytest.mark.parametrize("rate", [1, 50, 2**31 - 1])
def test_an_absurd_sample_rate_is_refused(tmp_path: Path, rate: int) -> None:
    assert "samples a second" in refused(tmp_path, "a.wav", wav(rate), Limits()).message


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\x24\0\0\0WAVEfmt ",
        wav(16_000, b""),
        b"OggS" + b"\0" * 40,
        b"fLaC\0\0\0\x22" + b"\0" * 60,
        b"ID3\x04\0\0\0\0\x01\0" + b"\0" * 200,
        b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42" + b"\0\0\0\x08moov",
        b"\x1a\x45\xdf\xa3" + b"\xff" * 50,
        b"FORM\0\0\0\x10AIFFCOMM",
        b"\xff\xfb\x90\x64" + b"\0" * 30,
    ],
    ids=["wav", "no samples", "ogg", "flac", "mp3", "m4a", "matroska", "aiff", "frame"],
)
def test_a_header_and_no_sound_is_a_named_error(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, "a.bin", content)


@pytest.mark.parametrize(
    "content",
    [
        "явка состоится завтра в полдень".encode("cp1251"),
        "я вчера был дома".encode("cp1251"),
        "\ufeffwords".encode("utf-16-le"),
        b"GET the report. " * 40,
        b"ID3 is a format of tags",
        b"OggSplit is a program",
    ],
)
def test_text_that_begins_like_sound_is_text(content: bytes) -> None:
    assert detect.kind_of(io.BytesIO(content), "a.txt") == "text/plain"


def test_pictures_in_the_same_kind_of_box_are_no_video(tmp_path: Path) -> None:
    for brand in (b"heic", b"avif", b"mif1"):
        error = refused(tmp_path, "a.heic", b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + b"\0" * 40)
        assert "readable kind" in error.message


def test_a_place_outside_a_file_is_refused_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], said: np.ndarray
) -> None:
    """PyAV writes what `seek` raises to stderr; found by fuzzing."""
    source = _container._Source(io.BytesIO(b"abc"))
    assert [source.seek(place) for place in (-1, 2**80, 2)] == [-1, -1, 2]
    content = bytearray(coded(said[:RATE], "aac", "ipod"))
    at = content.index(b"stco") + 12
    content[at : at + 4] = b"\xff\xff\xff\xff"
    refused(tmp_path, "a.m4a", bytes(content[: len(content) - 4]) + b"\xff" * 4)
    assert capfd.readouterr().err == ""


def test_sound_cannot_be_viewed(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="cannot be shown"):
        picture(CLIP, "box/a.ogg", "audio/ogg", None, 200)


FILES = [("pcm_s16le", "wav"), ("libmp3lame", "mp3"), ("flac", "flac"), ("aac", "ipod"), ("libopus", "ogg")]


@pytest.fixture(scope="module")
def short_files(said: np.ndarray) -> list[bytes]:
    return [coded(said[RATE : 2 * RATE], codec, container) for codec, container in FILES]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_a_named_error_or_in_what_is_left(
    tmp_path: Path, short_files: list[bytes], data: st.DataObject
) -> None:
    damaged(tmp_path, short_files, data, check)
