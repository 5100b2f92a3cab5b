"""Video: scenes with what is written and said in them, each with its times and a key frame to look at."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw, ImageFont

from triptych import MissingExtra, Settings, Triptych
from triptych.retrievers.base import MediaRef
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import video
from triptych.retrievers.readers.base import Document, Limits
from triptych.retrievers.readers.picture import picture

sys.path.append(str(Path(__file__).parent))
from media_files import damaged, make, refused

CLIP = Path(__file__).parent / "data" / "speech.ogg"
PORTRAIT = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
RATE = 16_000
SIZE = (480, 270)
Scene = tuple[str, str, float]
TALK: tuple[Scene, ...] = (
    ("navy", "Annual budget", 5.0),
    ("darkgreen", "New bridge plans", 4.0),
    ("maroon", "Questions and answers", 4.0),
)


def slide(colour: str, text: str, size: tuple[int, int] = SIZE) -> Image.Image:
    made = Image.new("RGB", size, colour)
    ImageDraw.Draw(made).text((20, size[1] // 3), text, "white", ImageFont.load_default(36))
    return made


def decoded(path: Path) -> np.ndarray:
    resampler = av.AudioResampler("flt", "mono", RATE)
    with av.open(str(path)) as container:
        frames = [made for frame in container.decode(audio=0) for made in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def filmed(
    scenes: Sequence[Scene],
    *,
    container: str = "mp4",
    codec: str = "mpeg4",
    fps: int = 10,
    sound: np.ndarray | None = None,
    size: tuple[int, int] = SIZE,
    gop: int = 12,
    rotation: int = 0,
    pictured: Image.Image | None = None,
    start_s: float = 0.0,
    **tags: str,
) -> bytes:
    """A video of coloured slides; `sound` is at 16 kHz."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as made:
        made.metadata.update(tags)
        pictures: Any = made.add_stream(codec, rate=fps)
        pictures.width, pictures.height, pictures.pix_fmt = *size, "yuv420p"
        pictures.codec_context.gop_size = gop
        pictures.bit_rate = 600_000
        if codec == "libvpx":
            pictures.options = {"deadline": "realtime", "cpu-used": "8"}
        if rotation:
            pictures.set_display_rotation(rotation)
        voice: Any = None if sound is None else made.add_stream("libopus" if container == "webm" else "aac", rate=RATE)
        number = round(start_s * fps)
        for colour, text, seconds in scenes:
            frame = av.VideoFrame.from_image(pictured or slide(colour, text, size))
            for _ in range(round(seconds * fps)):
                frame.pts, frame.time_base = number, Fraction(1, fps)
                made.mux(pictures.encode(frame))
                number += 1
        made.mux(pictures.encode(None))
        if voice is not None and sound is not None:
            heard = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), "flt", "mono")
            heard.sample_rate, heard.pts = RATE, round(start_s * RATE)
            resampler = av.AudioResampler(voice.format.name, voice.layout.name, RATE)
            for part in [*resampler.resample(heard), *resampler.resample(None)]:
                made.mux(voice.encode(part))
            made.mux(voice.encode(None))
    return target.getvalue()


def spans(document: Document) -> list[tuple[float, float]]:
    return [(s.start_s, s.end_s) for s in document.sections if s.start_s is not None and s.end_s is not None]


def check(document: Document) -> None:
    """What holds of every video: scenes follow each other from the start to the end of the file."""
    found = spans(document)
    assert all(0 <= start <= end <= document.meta["seconds"] for start, end in found)
    assert [start for start, _ in found] == sorted(start for start, _ in found)
    text = "".join(section.text for section in document.sections)
    items = chunk(document, "hash")
    assert items and all(item.text == text[item.source.start : item.source.end] for item in items)


def colour_of(path: Path, document: Document, number: int) -> tuple[int, ...]:
    """The colour in the corner of what `view` shows for a scene."""
    media = [section for section in document.sections if section.start_s is not None][number].media
    assert media is not None
    seen = picture(path, media.uri, media.mime, None, 256, start_s=media.start_s, end_s=media.end_s)
    shown = Image.open(io.BytesIO(seen.image)).convert("RGB")
    assert shown.size == (seen.width, seen.height) and max(shown.size) == 256
    pixel = shown.getpixel((shown.width - 8, shown.height - 8))
    assert isinstance(pixel, tuple)
    return pixel


# -- scenes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talk() -> bytes:
    return filmed(TALK, sound=decoded(CLIP), title="Town meeting")


def test_a_scene_is_what_is_written_and_said_in_it(tmp_path: Path, talk: bytes, weights_home: Path) -> None:
    limits = Limits(weights=weights_home / "weights", speech="moonshine_tiny_en")
    document = make(tmp_path, "talk.mp4", talk, limits)
    check(document)
    assert (document.mime, document.title) == ("video/mp4", "Town meeting")
    tags, first, second, third = document.sections
    assert tags.text == "Title: Town meeting\n\n"
    assert spans(document) == [(0.0, 5.0), (5.0, 9.0), (9.0, 13.0)]
    assert first.text.startswith("Annual budget\n\nThe committee decided")
    assert second.text == "New bridge plans\n\n"
    assert third.text.startswith("Questions and answers\n\nThe next meeting")
    assert dict(first.meta) == {"ocr": True, "speech": True} and dict(second.meta) == {"ocr": True}
    assert first.modality == "video"
    assert third.media == MediaRef("box/talk.mp4", "video/mp4", start_s=9.0, end_s=13.0)
    [(start, end, x0, y0, x1, y1)] = first.lines
    assert first.text[start:end] == "Annual budget"
    assert 0 < x0 < 0.1 and 0.2 < y0 < y1 < 0.6 and x1 < 0.8
    item = chunk(document, "hash")[1]
    assert (item.source.start_s, item.source.end_s, item.modality) == (0.0, 5.0, "video")
    assert item.source.box is not None


def test_the_key_frame_of_a_scene_can_be_viewed(tmp_path: Path, talk: bytes) -> None:
    document = make(tmp_path, "talk.mp4", talk)
    colours = [colour_of(tmp_path / "talk.mp4", document, number) for number in range(3)]
    for colour, channel in zip(colours, (2, 1, 0), strict=True):
        assert colour[channel] > 60 and sum(colour) < 60 + colour[channel]


@pytest.mark.parametrize(
    ("container", "codec", "mime"),
    [
        ("mp4", "libx264", "video/mp4"),
        ("mov", "mpeg4", "video/quicktime"),
        ("matroska", "libx264", "video/x-matroska"),
        ("webm", "libvpx", "video/webm"),
        ("avi", "mpeg4", "video/x-msvideo"),
        ("mpegts", "libx264", "video/mp2t"),
        ("mpeg", "mpeg2video", "video/mpeg"),
        ("flv", "libx264", "video/x-flv"),
        ("asf", "mpeg4", "video/x-ms-asf"),
        ("3gp", "mpeg4", "video/3gpp"),
    ],
)
def test_every_container_is_known_by_its_content(tmp_path: Path, container: str, codec: str, mime: str) -> None:
    document = make(tmp_path, "notes.txt", filmed(TALK, container=container, codec=codec, fps=25, size=(352, 288)))
    check(document)
    assert document.mime == mime
    starts = [start for start, _ in spans(document)]
    assert starts == [pytest.approx(at, abs=0.1) for at in (0, 5, 9)]
    assert [section.text.split()[0] for section in document.sections] == ["Annual", "New", "Questions"]
    assert document.meta["seconds"] == pytest.approx(13, abs=0.2)
    assert colour_of(tmp_path / "notes.txt", document, 1)[1] > 60


def test_slides_that_differ_in_their_text_are_scenes(tmp_path: Path) -> None:
    titles = ("Title of the talk", "Agenda for today", "Forty-two results")
    document = make(tmp_path, "a.mp4", filmed([("black", title, 5.0) for title in titles], codec="libx264", fps=25))
    assert spans(document) == [(0.0, 5.0), (5.0, 10.0), (10.0, 15.0)]
    assert [section.text for section in document.sections] == [f"{title}\n\n" for title in titles]


def test_a_long_video_is_read_by_its_key_frames(tmp_path: Path) -> None:
    content = filmed(TALK, codec="libx264", fps=25)
    document = make(tmp_path, "a.mp4", content, Limits(max_frames=60))
    check(document)
    assert [start for start, _ in spans(document)] == [pytest.approx(at, abs=0.5) for at in (0, 5, 9)]
    assert [section.text.split()[0] for section in document.sections] == ["Annual", "New", "Questions"]


def test_a_scene_that_goes_on_is_cut_and_a_flash_is_none(tmp_path: Path) -> None:
    scenes = [("navy", "Lecture one", 70.0), ("white", "", 0.5), ("navy", "Lecture one", 59.5)]
    document = make(tmp_path, "a.mp4", filmed(scenes, fps=4))
    check(document)
    found = spans(document)
    assert found == [(0.0, 35.0), (35.0, 70.0), (70.0, 130.0)]
    assert all(section.text == "Lecture one\n\n" for section in document.sections)
    few = make(tmp_path, "b.mp4", filmed(TALK * 4, fps=4), Limits(max_scenes=3))
    assert len(spans(few)) <= 3


def test_a_video_without_words_is_found_by_its_name(tmp_path: Path) -> None:
    document = make(tmp_path, "oslo_harbour.mp4", filmed([("navy", "", 3.0), ("maroon", "", 3.0)]))
    check(document)
    assert [section.text for section in document.sections] == ["oslo harbour\n\n"] * 2
    assert [dict(section.meta) for section in document.sections] == [{"named": True}] * 2


@pytest.mark.parametrize("turn", [0, 90, -90])
def test_a_video_that_lies_on_its_side_is_turned(tmp_path: Path, turn: int) -> None:
    """What a telephone writes: the picture as its sensor lies, and how far it must be turned counter-clockwise."""
    upright = Image.new("RGB", (270, 480), "navy")
    upright.paste("maroon", (0, 0, 270, 100))
    lying = upright.rotate(-turn, expand=True)
    content = filmed([("navy", "", 3.0)], pictured=lying, size=lying.size, rotation=turn)
    check(make(tmp_path, "b.mp4", content))
    seen = picture(tmp_path / "b.mp4", "box/b.mp4", "video/mp4", None, 480, start_s=0.0, end_s=3.0)
    shown = Image.open(io.BytesIO(seen.image)).convert("RGB")
    assert shown.size == (270, 480)
    for at, channel in (((135, 40), 0), ((135, 400), 2)):
        pixel = shown.getpixel(at)
        assert isinstance(pixel, tuple) and pixel[channel] == max(pixel) > 60


def test_a_file_that_does_not_start_at_zero(tmp_path: Path) -> None:
    content = filmed(TALK, container="mpegts", codec="libx264", fps=25, size=(352, 288), start_s=100.0)
    document = make(tmp_path, "a.ts", content)
    check(document)
    assert [start for start, _ in spans(document)] == [pytest.approx(at, abs=0.1) for at in (0, 5, 9)]
    assert colour_of(tmp_path / "a.ts", document, 2)[0] > 60


def test_a_library_shows_and_cites_scenes(tmp_home: Path, tmp_path: Path, talk: bytes) -> None:
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "talk.mp4").write_bytes(talk)
    with Triptych("videos", Settings.load()) as library:
        assert library.index(folder).problems == []
        hit = library.search("when is the next meeting in the town hall").hits[0]
        assert hit.where == "box/talk.mp4 9.0-13.0s"
        seen = library.view(hit.id, max_edge=240)
        assert (seen.where, max(seen.width, seen.height)) == (hit.where, 240)
        pixel = Image.open(io.BytesIO(seen.image)).convert("RGB").getpixel((230, 125))
        assert isinstance(pixel, tuple) and pixel[0] > 60 > pixel[1]


def test_a_scene_says_what_it_shows(tmp_path: Path, weights_home: Path) -> None:
    with Image.open(PORTRAIT) as image:
        portrait = image.convert("RGB").crop((150, 0, 460, 400)).resize((310, 400))
    film = filmed([("navy", "", 3.0)], pictured=portrait, size=portrait.size, codec="libx264", fps=25)
    document = make(tmp_path, "new_year.mp4", film, Limits(weights=weights_home / "weights"))
    check(document)
    [scene] = document.sections
    assert scene.text == "new year\n\nShows: person.\n\n"
    assert scene.meta["named"] is True
    [[name, sure]] = scene.meta["tags"]
    assert name == "person" and 0.6 <= sure <= 1
    assert chunk(document, "hash")[0].meta["tags"] == scene.meta["tags"]

    spoken = make(
        tmp_path,
        "a.mp4",
        filmed([("navy", "", 9.0)], pictured=portrait, size=portrait.size, sound=decoded(CLIP)),
        Limits(weights=weights_home / "weights", speech="moonshine_tiny_en"),
    ).sections[0]
    assert spoken.text.startswith("The committee decided") and spoken.text.endswith("\n\nShows: person.\n\n")
    assert spoken.meta["speech"] is True and "named" not in spoken.meta


def test_without_weights_for_tags_the_scenes_are_read(tmp_path: Path) -> None:
    with Image.open(PORTRAIT) as image:
        portrait = image.convert("RGB").crop((150, 0, 460, 400))
    film = filmed([("navy", "", 2.0)], pictured=portrait, size=portrait.size)
    document = make(tmp_path, "a.mp4", film, Limits(weights=tmp_path))
    assert "what pictures show was not recognised" in document.meta["note"] and "pull" in document.meta["mend"]
    spoken = filmed([("navy", "", 2.0)], pictured=portrait, size=portrait.size, sound=decoded(CLIP))
    both = make(tmp_path, "b.mp4", spoken, Limits(weights=tmp_path, speech="moonshine_tiny_en"))
    assert "speech was not recognised" in both.meta["note"] and "what pictures show was not" in both.meta["note"]
    assert both.meta["mend"] == document.meta["mend"]
    assert "note" not in make(tmp_path, "c.mp4", film, Limits(weights=tmp_path, tags="none")).meta


# -- what is missing, limits, damage -----------------------------------------------------------------------------------


def test_without_speech_weights_the_pictures_are_read(tmp_path: Path, talk: bytes) -> None:
    document = make(tmp_path, "talk.mp4", talk, Limits(weights=tmp_path, speech="moonshine_tiny_en"))
    assert [section.text for section in document.sections[1:]] == [f"{text}\n\n" for _, text, _ in TALK]
    assert "speech was not recognised" in document.meta["note"] and "pull" in document.meta["mend"]
    silent = make(tmp_path, "b.mp4", filmed(TALK), Limits(weights=tmp_path, speech="moonshine_tiny_en"))
    assert "note" not in silent.meta


@pytest.mark.parametrize("module", ["av", "scenedetect"])
def test_without_a_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, talk: bytes, module: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        make(tmp_path, "a.mp4", talk)
    assert "triptych[video]" in caught.value.hint


def test_limits(tmp_path: Path, talk: bytes) -> None:
    document = make(tmp_path, "a.mp4", talk, Limits(max_seconds=6))
    check(document)
    assert spans(document) == [(0.0, pytest.approx(6.1, abs=0.2))] or spans(document)[-1][1] < 7.1
    assert document.meta["note"].startswith("only the first 6 seconds were read (`max_seconds` = 6)")
    assert (
        "480 × 270 pixels, more than `max_pixels` = 1000"
        in refused(tmp_path, "b.mp4", talk, Limits(max_pixels=1000)).message
    )
    assert "`max_media_bytes`" in refused(tmp_path, "c.mp4", talk, Limits(max_media_bytes=1000)).message


def test_a_video_whose_frames_are_all_broken_is_a_named_error(tmp_path: Path) -> None:
    content = bytearray(filmed([("navy", "words", 3.0)], container="avi"))
    start = content.index(b"movi")
    content[start + 4 : content.index(b"idx1")] = bytes(content.index(b"idx1") - start - 4)
    assert "no picture that can be decoded" in refused(tmp_path, "a.avi", bytes(content)).message


def test_pictures_in_an_unknown_code_are_left_out(tmp_path: Path) -> None:
    """Such a track has no decoder and no size; found by fuzzing."""
    silent = filmed(TALK, container="matroska").replace(b"V_MPEG4/ISO/ASP", b"V_NOBODYS/IDEAS")
    assert "neither sound nor pictures" in refused(tmp_path, "a.mkv", silent).message
    content = filmed(TALK, container="matroska", sound=decoded(CLIP)).replace(b"V_MPEG4/ISO/ASP", b"V_NOBODYS/IDEAS")
    [section] = make(tmp_path, "town_talk.mkv", content).sections
    assert (section.modality, section.text) == ("audio", "town talk")


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\x18ftypisom\0\0\0\0isommp41",
        b"\0\0\0\x18ftypisom\0\0\0\0isommp41\0\0\0\x08moov",
        b"RIFF\x10\0\0\0AVI LIST",
        b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska",
        b"FLV\x01\x05\0\0\0\x09\0\0\0\0",
        b"\0\0\x01\xba" + b"\xff" * 100,
        (b"G" + b"\0" * 187) * 5,
    ],
    ids=["mp4", "moov", "avi", "matroska", "flv", "mpeg", "ts"],
)
def test_a_header_and_no_frames_is_a_named_error(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, "a.bin", content)


def test_a_video_cut_short_keeps_what_is_there(tmp_path: Path) -> None:
    content = filmed(TALK, container="matroska")
    document = make(tmp_path, "a.mkv", content[: len(content) // 2])
    check(document)
    assert document.sections[0].text == "Annual budget\n\n"
    assert document.meta["seconds"] < 12
    assert "moov" not in refused(tmp_path, "a.mp4", filmed(TALK)[:-3000]).message


def test_parts_are_neither_too_short_nor_too_long_nor_too_many() -> None:
    assert video._parts([0.0], 0.0, Limits()) == [(0.0, 0.0)]
    assert video._parts([0.0, 0.1, 0.2, 4.0, 4.1, 9.9], 10.0, Limits()) == [(0.0, 4.0), (4.0, 10.0)]
    assert len(video._parts([float(n) for n in range(10_000)], 10_000.0, Limits())) <= 500
    assert len(video._parts([0.0], 14_400.0, Limits())) == 240


FILES = [("mp4", "mpeg4"), ("matroska", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx"), ("mpegts", "mpeg2video")]


@pytest.fixture(scope="module")
def short_files() -> list[bytes]:
    scenes = [("navy", "a", 0.6), ("maroon", "b", 0.6)]
    return [filmed(scenes, container=container, codec=codec, fps=25, size=(96, 64)) for container, codec in FILES]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_a_named_error_or_in_what_is_left(
    tmp_path: Path, short_files: list[bytes], data: st.DataObject
) -> None:
    damaged(tmp_path, short_files, data, check)
