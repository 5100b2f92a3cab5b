"""Subtitles, from a track or a file: what is said when, no markup, and no bad file does worse than one named error."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import _subtitles, detect
from triptych.retrievers.readers._speech import Stretch
from triptych.retrievers.readers._subtitles import SRT, VTT, lines_of, passages
from triptych.retrievers.readers.base import Document, Limits

sys.path.append(str(Path(__file__).parent))
from media_files import damaged, make, refused, subtitled

CLIP = Path(__file__).parent / "data" / "speech.ogg"
CUES = [
    (0.5, 1.5, r"The {\i1}ferry{\i0} leaves"),
    (1.5, 2.5, r"at\Nnoon. Sharp."),
    (4.0, 5.5, "Bring <b>boots</b> & bread."),
]
VTT_FILE = """WEBVTT - a film

STYLE
::cue { color: red }

NOTE nobody sees this
or this

opening
00:01.000 --> 00:04.000 align:start
<v Roger Bingham>Tom &amp; <i>Jerry</i> <00:02.000>went &lt;out&gt;

chapter two
00:06.500 --> 00:08.000
- one
- two
00:09.000 --> 01:00:10.000
no blank before
"""
SRT_FILE = """\ufeff1
00:00:01,000 --> 00:00:02,500
<font color="#fff">Hi</font> {\\an8}there {really}

2
00:00:03.250 --> 00:00:04.000
if x < y and y > z

3
00:00:20,000 --> 00:00:21,000
C:\\new

"""


@pytest.fixture(scope="module")
def said() -> np.ndarray:
    resampler = av.AudioResampler("flt", "mono", 16_000)
    with av.open(str(CLIP), "r") as container:
        frames = [made for frame in container.decode(audio=0) for made in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


@pytest.fixture(scope="module")
def hearing(weights_home: Path) -> Limits:
    return Limits(weights=weights_home / "weights", speech="moonshine_tiny_en")


def check(document: Document) -> None:
    """What holds of every document with times: none goes back, and every passage is where it says."""
    times = [(s.start_s, s.end_s) for s in document.sections if s.start_s is not None and s.end_s is not None]
    assert all(0 <= start <= end for start, end in times)
    assert [start for start, _ in times] == sorted(start for start, _ in times)
    text = "".join(section.text for section in document.sections)
    items = chunk(document, "hash")
    assert items and all(item.text == text[item.source.start : item.source.end] for item in items)


def told(document: Document) -> list[tuple[float | None, float | None, str]]:
    return [(section.start_s, section.end_s, section.text) for section in document.sections]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_webvtt_file_is_its_lines_with_times(tmp_path: Path) -> None:
    document = make(tmp_path, "film.txt", VTT_FILE.encode())
    check(document)
    assert document.mime == VTT and {section.modality for section in document.sections} == {"text"}
    assert told(document) == [
        (1.0, 8.0, "Roger Bingham: Tom & Jerry went <out> - one - two\n"),
        (9.0, 3610.0, "no blank before\n"),
    ]
    assert all(section.meta == {"subtitles": True} for section in document.sections)


def test_a_subrip_file_is_its_lines_with_times(tmp_path: Path) -> None:
    document = make(tmp_path, "film.srt", SRT_FILE.encode())
    check(document)
    assert document.mime == SRT and document.title == "film.srt"
    assert told(document) == [
        (1.0, 4.0, "Hi there {really} if x < y and y > z\n"),
        (20.0, 21.0, "C:\\new\n"),
    ]
    assert [(item.source.start_s, item.source.end_s) for item in chunk(document, "hash")] == [(1.0, 4.0), (20.0, 21.0)]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_of_old_players(tmp_path: Path, encoding: str, ends: str) -> None:
    text = SRT_FILE.lstrip("\ufeff").replace("Hi", "Übermäßig heiß").replace("\n", ends)
    document = make(tmp_path, "film.srt", text.encode(encoding))
    assert document.mime == SRT and document.sections[0].text.startswith("Übermäßig heiß there")


@pytest.mark.parametrize(
    ("text", "name", "mime"),
    [
        ("WEBVTT\n\n00:01.000 --> 00:02.000\na", "a.bin", VTT),
        ("WEBVTTX\n", "a.vtt", "text/plain"),
        ("WEBVTT is a format.\n", "a.md", "text/markdown"),
        ("00:00:01,000 --> 00:00:02,000\na", "a", SRT),
        ("\n\n1\n0:00:01.5 --> 0:00:02.0 X1:40\na", "a.srt", SRT),
        ("1\nThe arrow --> points at 00:00:02,000\n", "a.srt", "text/plain"),
        ("Shopping\n00:00:01,000 --> 00:00:02,000\n", "a.txt", "text/plain"),
    ],
)
def test_subtitles_are_known_by_what_they_hold(tmp_path: Path, text: str, name: str, mime: str) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    with path.open("rb") as file:
        assert detect.kind_of(file, name) == mime


def test_cues_in_no_order_overlapping_or_backwards(tmp_path: Path) -> None:
    cues = ["00:00:05,000 --> 00:00:06,000\nsecond", "00:00:01,000 --> 00:00:05,500\nfirst"]
    cues += ["00:00:09,000 --> 00:00:07,000\nthird", "-00:00:01,000 --> 00:00:02,000\nbefore time"]
    document = make(tmp_path, "a.srt", "\n\n".join(cues).encode())
    check(document)
    assert [one.text for one in lines_of("\n\n".join(cues[:3]), SRT, 9)[0]] == ["first", "second", "third"]
    assert document.sections[-1].end_s == 9.0
    arrows = "1\n00:00:01,000 --> 00:00:02,000\nthe arrow --> there\n"
    assert told(make(tmp_path, "b.srt", arrows.encode())) == [(1.0, 2.0, "the arrow --> there\n")]


def test_captions_that_roll_stand_once() -> None:
    rolling = ["a b", "a b\nc d", "c d", "c d\ne f", "e f", "e f", "a b"]
    text = "WEBVTT\n\n" + "".join(f"00:{n:02}.000 --> 00:{n + 1:02}.000\n{cue}\n\n" for n, cue in enumerate(rolling))
    assert [one.text for one in lines_of(text, VTT, 99)[0]] == ["a b", "c d", "e f", "a b"]


def test_a_hundred_thousand_cues_are_cut_and_said_so(tmp_path: Path) -> None:
    cues = "".join(f"{n}\n00:00:{n % 60:02},{n // 60 % 1000:03} --> 00:01:00,000\nline {n}\n\n" for n in range(100_000))
    start = time.monotonic()
    document = make(tmp_path, "a.srt", cues.encode(), Limits(max_rows=5000))
    assert time.monotonic() - start < 10
    assert document.meta["note"] == "only the first 5000 cues were read (`max_rows` = 5000)."
    assert "line 4999" in "".join(section.text for section in document.sections)
    assert "line 5000" not in "".join(section.text for section in document.sections)
    late = make(tmp_path, "b.srt", b"00:00:01,000 --> 00:00:02,000\na\n\n10:00:00,000 --> 10:00:01,000\nb\n")
    assert told(late) == [(1.0, 2.0, "a\n")] and "`max_seconds` = 14400" in late.meta["note"]


@pytest.mark.parametrize(
    "content",
    [
        b"WEBVTT\n\n",
        b"WEBVTT\n\nNOTE only\n",
        b"1\n00:00:01,000 --> 00:00:02,000\n\n",
        b"WEBVTT\n\n00:01.000 --> never\nx\n",
    ],
    ids=["empty", "note", "silent", "no time"],
)
def test_no_line_at_all_is_a_named_error(tmp_path: Path, content: bytes) -> None:
    assert "no line that is shown" in refused(tmp_path, "a.srt", content).message


@pytest.mark.parametrize("body", ["<" * 300_000, "<v " * 100_000, "{\\" * 150_000, "1:" * 150_000, "-->" * 100_000])
@pytest.mark.parametrize("head", ["WEBVTT\n\n00:01.000 --> 00:02.000\nx ", "1\n00:00:01,000 --> 00:00:02,000\nx "])
def test_markup_without_an_end_takes_no_time(tmp_path: Path, head: str, body: str) -> None:
    start = time.monotonic()
    check(make(tmp_path, "a.srt", (head + body).encode()))
    assert time.monotonic() - start < 5


times = st.floats(0, 100_000).map(lambda s: f"{int(s // 3600):02}:{int(s // 60 % 60):02}:{s % 60:06.3f}")
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["<i>", "{\\an8}", "NOTE", "-->", "7", "<v A>x"]
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cues=st.lists(st.tuples(times, times, texts), min_size=1, max_size=8),
    mime=st.sampled_from([SRT, VTT]),
    glue=st.sampled_from(["\n\n", "\n", "\n\n7\n"]),
)
@example(cues=[("00:00:01.000", "00:00:02.000", "NOTE")], mime=SRT, glue="\n")
def test_any_cues_make_lines_in_order(cues: list[tuple[str, str, str]], mime: str, glue: str) -> None:
    text = glue.join(f"{start} --> {end}\n{line}" for start, end, line in cues)
    lines, _ = lines_of(f"WEBVTT\n\n{text}" if mime == VTT else text.replace(".", ","), mime, 99)
    assert [one.start_s for one in lines] == sorted(one.start_s for one in lines)
    assert all(0 <= one.start_s <= one.end_s and one.text == " ".join(one.text.split()) != "" for one in lines)
    assert " ".join(one.text for one in passages(lines, 24.0)) == " ".join(one.text for one in lines)


def test_passages_end_with_sentences_pauses_and_at_their_longest() -> None:
    def made(*spans: tuple[float, float, str]) -> list[tuple[float, float, str]]:
        return [(one.start_s, one.end_s, one.text) for one in passages([Stretch(*span) for span in spans], 24.0)]

    assert made() == []
    assert made((0, 14, "One."), (14, 20, "two")) == [(0, 14, "One."), (14, 20, "two")]
    assert made((0, 10, "One."), (10, 20, "two")) == [(0, 20, "One. two")]
    assert made((0, 1, "a"), (5.1, 6, "b")) == [(0, 1, "a"), (5.1, 6, "b")]
    assert made((0, 20, "a"), (20, 25, "b")) == [(0, 20, "a"), (20, 25, "b")]
    assert made((0, 99, "a"), (1, 2, "b")) == [(0, 99, "a"), (1, 2, "b")]


# -- tracks ------------------------------------------------------------------------------------------------------------

TRACKS = [("matroska", "subrip"), ("matroska", "ass"), ("matroska", "webvtt"), ("webm", "webvtt")]
TRACKS += [("mp4", "mov_text"), ("mov", "mov_text")]


@pytest.mark.parametrize(("container", "codec"), TRACKS)
def test_lines_stand_in_the_scene_that_shows_them(tmp_path: Path, container: str, codec: str) -> None:
    document = make(tmp_path, "a_film.bin", subtitled(container, [(codec, "eng", CUES)]))
    check(document)
    first, second = document.sections
    assert (first.start_s, first.end_s, second.start_s) == (0.0, 3.0, 3.0)
    assert first.text.startswith("The ferry leaves at noon. Sharp.")
    assert second.text.startswith("Bring boots & bread.")


def test_a_recording_with_subtitles_is_cut_like_them(tmp_path: Path, said: np.ndarray) -> None:
    content = subtitled("matroska", [("subrip", "", CUES)], pictures=False, sound=said)
    document = make(tmp_path, "a_talk.mka", content)
    check(document)
    assert told(document) == [(0.5, 5.5, "The ferry leaves at noon. Sharp. Bring boots & bread.\n")]
    assert document.sections[0].modality == "audio" and document.sections[0].meta == {"subtitles": True}


@pytest.mark.parametrize(
    ("spoken", "written", "both"), [("eng", "eng", False), ("", "ger", False), ("eng", "ger", True)]
)
def test_subtitles_win_over_what_is_recognised_unless_they_are_translated(
    tmp_path: Path, said: np.ndarray, hearing: Limits, spoken: str, written: str, both: bool
) -> None:
    """The clip's two sentences stand 2.5 s apart; only the first of them has a line."""
    cue = (0.2, 5.0, "Das Komitee baut eine Brücke.")
    content = subtitled("matroska", [("subrip", written, [cue])], pictures=False, sound=said, spoken=spoken)
    document = make(tmp_path, "a.mka", content, hearing)
    check(document)
    text = " ".join(section.text for section in document.sections)
    assert "Das Komitee baut eine Brücke." in text and "October" in text
    assert ("committee" in text) is both
    film = make(
        tmp_path, "a.mkv", subtitled("matroska", [("subrip", written, [cue])], sound=said, spoken=spoken), hearing
    )
    text = " ".join(section.text for section in film.sections)
    assert ("committee" in text) is both and "Komitee" in text and "October" in text


def test_the_track_in_the_language_of_the_sound_is_read(tmp_path: Path, said: np.ndarray) -> None:
    tracks = [("subrip", name, [(0.5, 1.5, f"in {name}")]) for name in ("ger", "eng", "fre")]
    for spoken, expected in (("eng", "in eng"), ("fre", "in fre"), ("spa", "in ger"), ("", "in ger")):
        content = subtitled("matroska", tracks, sound=said, spoken=spoken)
        assert expected in make(tmp_path, "a.mkv", content).sections[0].text, spoken


def test_more_lines_than_rows_are_cut_and_said_so(tmp_path: Path) -> None:
    cues = [(n / 10, n / 10 + 0.1, f"line {n}") for n in range(50)]
    document = make(tmp_path, "a.mkv", subtitled("matroska", [("subrip", "", cues)]), Limits(max_rows=20))
    text = " ".join(section.text for section in document.sections)
    assert "line 19" in text and "line 20" not in text
    assert "`max_rows` = 20" in document.meta["note"]


def test_an_event_is_what_a_player_shows() -> None:
    class Event:
        ass = rb"7,0,Default,,0,0,0,,{\an8\pos(1,2)}One,\htwo{a remark}\Nthree \{four\} <i>five</i> 6 < 7"

    assert _subtitles._event_text(Event()) == "One, two\nthree {four} five 6 < 7"


def test_speech_is_covered_by_half() -> None:
    lines = [Stretch(2.0, 4.0, "a"), Stretch(3.0, 5.0, "b"), Stretch(20.0, 21.0, "c")]
    assert _subtitles._covered_s(Stretch(0.0, 10.0, ""), lines) == 5.0
    assert _subtitles._covered_s(Stretch(8.0, 12.0, ""), lines) == 0.0


@pytest.fixture(scope="module")
def short_files() -> list[bytes]:
    return [subtitled(container, [(codec, "eng", CUES)], seconds=1.0) for container, codec in TRACKS]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_a_named_error_or_in_what_is_left(
    tmp_path: Path, short_files: list[bytes], data: st.DataObject
) -> None:
    damaged(tmp_path, [*short_files, VTT_FILE.encode(), SRT_FILE.encode()], data, check)
