"""Pictures: what they show in words, what their files say of them, and kinds of files that few programs read right."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, TiffImagePlugin

from triptych import Settings, Triptych
from triptych.manifests import weights
from triptych.retrievers.base import MediaRef
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import _tags
from triptych.retrievers.readers.base import Document, Limits
from triptych.retrievers.readers.picture import drawn

sys.path.append(str(Path(__file__).parent))
from media_files import damaged, make, refused

PORTRAIT = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
DESCRIPTION, TITLE_XP, COMMENT_XP, EXIF, GPS, TAKEN, OFFSET = 0x10E, 0x9C9B, 0x9C9C, 0x8769, 0x8825, 0x9003, 0x9011


@pytest.fixture(scope="module")
def limits(weights_home: Path) -> Limits:
    return Limits(weights=weights_home / "weights")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """An officer in uniform; nothing is written on what is left of it."""
    with Image.open(PORTRAIT) as image:
        return image.convert("RGB").crop((150, 0, 460, 400))


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def page(text: str = "words", size: tuple[int, int] = (480, 300)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((30, 60), text, "black", ImageFont.load_default(40))
    return image


def check(document: Document) -> None:
    text = "".join(section.text for section in document.sections)
    assert text.strip()
    assert all(item.text == text[item.source.start : item.source.end] for item in chunk(document, "hash"))


# -- what a picture shows ----------------------------------------------------------------------------------------------


def test_tags_follow_the_words_in_a_line_of_their_own(tmp_path: Path, limits: Limits) -> None:
    document = make(tmp_path, "portrait.jpg", PORTRAIT.read_bytes(), limits)
    [section] = document.sections
    assert section.text.endswith("HOPPER\n\nShows: person, tie.")
    assert section.meta["ocr"] is True
    assert [(name, 0.6 <= sure <= 1) for name, sure in section.meta["tags"]] == [("person", True), ("tie", True)]
    assert "HOPPER" in [section.text[start:end] for start, end, *_ in section.lines][-1]
    assert "note" not in document.meta
    [item] = chunk(document, "hash")
    assert (item.text, item.meta["tags"]) == (section.text, section.meta["tags"])


def test_a_picture_without_words_keeps_those_of_its_name(tmp_path: Path, photo: Image.Image, limits: Limits) -> None:
    [section] = make(tmp_path, "new_year-party.png", saved(photo, "PNG"), limits).sections
    assert section.text.startswith("new year party\n\nShows: ") and "person" in section.text
    assert section.meta["named"] is True


def test_only_what_is_sure_is_named_each_once_the_surest_first(limits: Limits, photo: Image.Image) -> None:
    tags, missing = _tags.seen_in(photo, limits)
    names, sure = zip(*tags, strict=True)
    assert missing is None and 0 < len(tags) <= 6
    assert len(set(names)) == len(names) and list(sure) == sorted(sure, reverse=True) and min(sure) >= 0.6
    assert all(name == name.lower() for name in names)
    assert _tags.seen_in(Image.effect_noise((300, 200), 60).convert("RGB"), limits) == ([], None)


def test_the_names_are_those_of_the_classes(limits: Limits) -> None:
    assert limits.weights is not None
    tagger = _tags.Tagger(weights.folder("image_tags", limits.weights))
    assert (len(tagger._kinds), len(tagger._things)) == (1000, 80)
    assert (tagger._kinds[0], tagger._kinds[999], tagger._things[0]) == ("tench", "toilet tissue", "person")
    assert set(_tags._TODAY.values()) <= set(tagger._things)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_drawings_are_not_photographs(tmp_path: Path, kind: str) -> None:
    slide = Image.new("RGB", (960, 540), "navy")
    ImageDraw.Draw(slide).text((60, 200), "New bridge plans", "white", ImageFont.load_default(60))
    chart = Image.new("RGB", (600, 400), "white")
    for n, height in enumerate((120, 260, 180, 310)):
        ImageDraw.Draw(chart).rectangle((80 + 120 * n, 360 - height, 150 + 120 * n, 360), "steelblue")
    for image in (slide, chart, page("A page of words"), Image.new("RGB", (300, 300), "teal")):
        with Image.open(io.BytesIO(saved(image, kind))) as again:
            assert not _tags.is_photograph(again.convert("RGB"))


def test_photographs_stay_photographs(photo: Image.Image) -> None:
    with Image.open(io.BytesIO(saved(photo, "JPEG", quality=25))) as poor:
        versions = [poor.convert("RGB"), photo.convert("L").convert("RGB"), photo.resize((1600, 1600))]
    assert all(_tags.is_photograph(one) for one in [photo, *versions])
    assert not _tags.is_photograph(photo.resize((64, 64)))
    for size in ((1, 1), (1, 4000), (4000, 1), (113, 20_000)):
        _tags.is_photograph(photo.resize(size))


def test_missing_weights_are_said_and_how_to_bring_them(tmp_path: Path, photo: Image.Image) -> None:
    bare = Limits(weights=tmp_path)
    document = make(tmp_path, "a.jpg", saved(photo), bare)
    assert document.meta["note"] == "what pictures show was not recognised. The weights `image_tags` are missing."
    assert document.meta["mend"] == "Run `triptych pull embedded`, then index again."
    assert document.sections[0].text == "a" and "tags" not in document.sections[0].meta
    assert "note" not in make(tmp_path, "b.png", saved(page(), "PNG"), bare).meta


@pytest.mark.parametrize("off", [Limits(), Limits(weights=Path("nowhere"), tags="none")])
def test_tags_can_be_turned_off(tmp_path: Path, photo: Image.Image, off: Limits) -> None:
    document = make(tmp_path, "a.jpg", saved(photo), off)
    assert document.sections[0].text == "a" and "note" not in document.meta


def test_a_library_finds_a_picture_by_what_it_shows(tmp_home: Path, tmp_path: Path, photo: Image.Image) -> None:
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "img_0001.jpg").write_bytes(saved(photo))
    (folder / "img_0002.png").write_bytes(saved(page("Annual budget"), "PNG"))
    with Triptych("pictures", Settings.load()) as library:
        assert library.index(folder).problems == []
        assert library.search("a person").hits[0].where.startswith("box/img_0001.jpg")


def test_pictures_are_read_again_when_the_weights_have_come(
    tmp_path: Path, weights_home: Path, photo: Image.Image
) -> None:
    home, box = tmp_path / "home", tmp_path / "box"
    (home / "weights").mkdir(parents=True)
    box.mkdir()
    for name in weights.models():
        if name != "image_tags":
            (home / "weights" / name).symlink_to(weights_home / "weights" / name)
    (box / "a.jpg").write_bytes(saved(photo))
    with Triptych("pictures", Settings.load(home=home)) as library:
        [problem] = library.index(box).problems
        assert problem.type == "MissingWeights" and "pull" in problem.hint
        (home / "weights" / "image_tags").symlink_to(weights_home / "weights" / "image_tags")
        again = library.index(box)
        assert (again.problems, again.indexed) == ([], 1)
        assert library.index(box).unchanged == 1


def test_eight_threads_get_the_tags_of_serial_calls(photo: Image.Image, limits: Limits) -> None:
    pictures = [photo, photo.rotate(90), photo.crop((0, 0, 300, 300)), photo.convert("L").convert("RGB")] * 2
    serial = [_tags.seen_in(one, limits) for one in pictures]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda one: _tags.seen_in(one, limits), pictures)) == serial


# -- what the file says ------------------------------------------------------------------------------------------------


def exif_of(tags: dict[int, Any], taken: dict[int, Any] | None = None, gps: dict[int, Any] | None = None) -> bytes:
    exif = Image.Exif()
    exif.update(tags)
    exif.get_ifd(EXIF).update(taken or {})
    exif.get_ifd(GPS).update(gps or {})
    return exif.tobytes()


def xmp_of(title: str, description: str) -> bytes:
    def told(name: str, text: str) -> str:
        return f'<dc:{name}><rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></dc:{name}>'

    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">{told("title", title)}'
        f"{told('description', description)}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """A JPEG with one more segment at its start."""
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def iptc_of(caption: bytes) -> bytes:
    record = b"\x1c\x02\x78" + len(caption).to_bytes(2, "big") + caption
    resource = b"8BIM\x04\x04\0\0" + len(record).to_bytes(4, "big") + record + b"\0" * (len(record) % 2)
    return b"Photoshop 3.0\0" + resource


PLAIN = Image.new("RGB", (40, 30), (60, 90, 140))
CHUNKS = PngImagePlugin.PngInfo()
CHUNKS.add_text("Title", "Harbour")
CHUNKS.add_itxt("Description", "Fish market at dawn, Bergen")


@pytest.mark.parametrize(
    ("name", "content", "caption"),
    [
        ("a.jpg", saved(PLAIN, exif=exif_of({DESCRIPTION: "Fish market at dawn"})), "Fish market at dawn"),
        ("a.jpg", saved(PLAIN, exif=exif_of({DESCRIPTION: "Märkte in Zürich 鱼市".encode()})), "Märkte in Zürich 鱼市"),
        ("a.jpg", saved(PLAIN, exif=exif_of({TITLE_XP: "鱼市\0".encode("utf-16-le")})), "鱼市"),
        ("a.jpg", saved(PLAIN, exif=exif_of({COMMENT_XP: "At dawn\0".encode("utf-16-le")})), "At dawn"),
        ("a.jpg", saved(PLAIN, xmp=xmp_of("Harbour", "Fish &amp; boats")), "Harbour\nFish & boats"),
        ("a.jpg", with_segment(saved(PLAIN), 0xED, iptc_of("Fischmarkt früh".encode())), "Fischmarkt früh"),
        ("a.jpg", with_segment(saved(PLAIN), 0xED, iptc_of("Fischmarkt früh".encode("latin-1"))), "Fischmarkt früh"),
        ("a.png", saved(PLAIN, "PNG", pnginfo=CHUNKS), "Harbour\nFish market at dawn, Bergen"),
        ("a.webp", saved(PLAIN, "WEBP", exif=exif_of({DESCRIPTION: "Fish market"})), "Fish market"),
        ("a.tiff", saved(PLAIN, "TIFF", description="Fish market"), "Fish market"),
        (
            "a.jpg",
            saved(PLAIN, exif=exif_of({DESCRIPTION: "Fish market"}), xmp=xmp_of("fish market", "Fish market, Bergen")),
            "Fish market, Bergen",
        ),
        ("a.jpg", saved(PLAIN, exif=exif_of({DESCRIPTION: "Fish\u200b\r\n  market\x07".encode()})), "Fish market"),
    ],
    ids=["exif", "utf-8", "xp title", "xp", "xmp", "iptc", "iptc latin-1", "png", "webp", "tiff", "twice", "unclean"],
)
def test_the_caption_of_a_file_is_its_text(tmp_path: Path, name: str, content: bytes, caption: str) -> None:
    [section] = make(tmp_path, name, content).sections
    assert (section.text, dict(section.meta)) == (caption, {})


@pytest.mark.parametrize(
    "words",
    ["OLYMPUS DIGITAL CAMERA         ", "SONY DSC", "Created with GIMP", "", "\0\0", '{"shape": [3]}', "ImageJ=1.5"],
)
def test_what_a_machine_wrote_is_no_caption(tmp_path: Path, words: str) -> None:
    [section] = make(tmp_path, "harbour.jpg", saved(PLAIN, exif=exif_of({DESCRIPTION: words}))).sections
    assert (section.text, dict(section.meta)) == ("harbour", {"named": True})


def test_text_caption_and_tags_stand_in_this_order(tmp_path: Path, limits: Limits) -> None:
    with Image.open(PORTRAIT) as image:
        content = saved(image, exif=exif_of({DESCRIPTION: "Portrait, 1983"}))
    [section] = make(tmp_path, "a.jpg", content, limits).sections
    assert section.text.endswith("HOPPER\n\nPortrait, 1983\n\nShows: person, tie.")


@pytest.mark.parametrize(
    ("stamp", "offset", "taken"),
    [
        ("2024:05:01 08:00:30", "+02:00", "2024-05-01T06:00:30Z"),
        ("2024:05:01 00:30:00", "+05:30", "2024-04-30T19:00:00Z"),
        ("2024:05:01 08:00:30", "", "2024-05-01T08:00:30"),
        ("2024:05:01 08:00:30", "Z?", "2024-05-01T08:00:30"),
        ("0000:00:00 00:00:00", "", None),
        ("2024:13:41 08:00:30", "", None),
        ("0001:01:01 00:00:00", "+14:00", None),
        ("yesterday", "", None),
    ],
)
def test_when_it_was_taken(tmp_path: Path, stamp: str, offset: str, taken: str | None) -> None:
    content = saved(PLAIN, exif=exif_of({}, {TAKEN: stamp, OFFSET: offset}))
    assert make(tmp_path, "a.jpg", content).sections[0].meta.get("taken") == taken


@pytest.mark.parametrize(
    ("gps", "place"),
    [
        ({1: "N", 2: (60.0, 23.0, 33.0), 3: "E", 4: (5.0, 19.0, 12.0)}, (60.3925, 5.32)),
        ({1: "S", 2: (33.0, 51.0, 0.0), 3: "W", 4: (70.0, 30.0, 0.0)}, (-33.85, -70.5)),
        ({1: "N", 2: (160.0, 0.0, 0.0), 3: "E", 4: (5.0, 0.0, 0.0)}, None),
        ({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}, None),
        ({2: (60.0, 23.0, TiffImagePlugin.IFDRational(0, 0)), 4: (5.0, 19.0, 12.0)}, None),
        ({2: (60.0, 23.0)}, None),
    ],
)
def test_where_it_was_taken(tmp_path: Path, gps: dict[int, Any], place: tuple[float, float] | None) -> None:
    meta = make(tmp_path, "a.jpg", saved(PLAIN, exif=exif_of({}, gps=gps))).sections[0].meta
    assert (meta.get("latitude"), meta.get("longitude")) == (place or (None, None))


def test_every_page_of_a_tiff_has_its_own_caption(tmp_path: Path) -> None:
    pages = [page("FIRST PAGE"), page("SECOND PAGE")]
    pages[1].encoderinfo = {"description": "Of the second"}  # the only way to tell Pillow what is of one page only
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], description="Of the first")
    sections = make(tmp_path, "a.tiff", content).sections
    assert [section.text for section in sections] == ["FIRST PAGE\n\nOf the first", "SECOND PAGE\n\nOf the second"]


def test_a_caption_is_cut_to_a_length(tmp_path: Path) -> None:
    content = saved(PLAIN, exif=exif_of({DESCRIPTION: "word " * 10_000}))
    assert 1900 < len(make(tmp_path, "a.jpg", content).sections[0].text) <= 2000


NESTED = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + b"<a>" * 9000 + b"</a>" * 9000 + b"</x:xmpmeta>"
BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>'


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says that it goes on without what is broken
@pytest.mark.parametrize(
    "content",
    [
        saved(PLAIN, exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x0e\0\x02\xff\xff\xff\xff\0\0\0\x08" * 50),
        saved(PLAIN, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        saved(PLAIN, exif=b"Exif\0\0garbage"),
        saved(PLAIN, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
        saved(PLAIN, exif=exif_of({DESCRIPTION: b"\xff\xfe" * 9000})[:-400]),
        saved(PLAIN, xmp=NESTED),
        saved(PLAIN, xmp=BOMB),
        saved(PLAIN, xmp=b"<x:xmpmeta"),
        with_segment(saved(PLAIN), 0xED, b"Photoshop 3.0\08BIM\x04\x04\0\0\x7f\xff\xff\xff\x1c\x02\x78\xff\xff"),
        with_segment(saved(PLAIN), 0xED, iptc_of(b"x" * 60_000)[:-9]),
    ],
    ids=["tags", "far", "garbage", "loop", "cut", "nested", "bomb", "broken", "iptc", "iptc cut"],
)
def test_a_hostile_description_does_not_keep_a_picture_from_being_read(tmp_path: Path, content: bytes) -> None:
    check(make(tmp_path, "harbour.jpg", content))


DESCRIBED = [
    saved(PLAIN, exif=exif_of({DESCRIPTION: "Fish", 0x112: 6}, {TAKEN: "2024:05:01 08:00:30"}), xmp=xmp_of("a", "b")),
    saved(
        PLAIN, "PNG", pnginfo=CHUNKS, exif=exif_of({DESCRIPTION: "Fish", 0x112: 3}, gps={1: "N", 2: (60.0, 2.0, 3.0)})
    ),
    saved(PLAIN, "TIFF", description="Fish market"),
    saved(PLAIN, "WEBP", exif=exif_of({DESCRIPTION: "Fish"}), xmp=xmp_of("a", "b")),
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_a_named_error_or_in_what_is_left(tmp_path: Path, data: st.DataObject) -> None:
    damaged(tmp_path, DESCRIBED, data, check)


# -- kinds of pictures -------------------------------------------------------------------------------------------------


def colour_of(path: Path, mime: str) -> tuple[int, ...]:
    pixel = drawn(MediaRef(str(path), mime), 64).getpixel((3, 3))
    assert isinstance(pixel, tuple)
    return pixel


def sixteen_bits() -> Image.Image:
    values = np.full((60, 90), 1000, np.uint16)
    values[:, 45:] = 3000
    return Image.fromarray(values)


def see_through() -> Image.Image:
    image = Image.new("P", (60, 40), 0)
    image.putpalette([0, 0, 0, 200, 30, 30])
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("content", "mime", "colour"),
    [
        (saved(Image.new("CMYK", (60, 40), (0, 255, 255, 0))), "image/jpeg", (255, 0, 0)),
        (saved(Image.new("CMYK", (60, 40), (0, 255, 255, 0)), "TIFF"), "image/tiff", (255, 0, 0)),
        (saved(sixteen_bits(), "PNG"), "image/png", (0, 0, 0)),
        (saved(sixteen_bits(), "TIFF"), "image/tiff", (0, 0, 0)),
        (saved(see_through(), "PNG"), "image/png", (255, 255, 255)),
        (saved(see_through(), "GIF"), "image/gif", (255, 255, 255)),
        (saved(Image.new("LA", (60, 40), (0, 0)), "PNG"), "image/png", (255, 255, 255)),
        (saved(Image.new("RGBA", (60, 40), (0, 0, 0, 51)), "PNG"), "image/png", (204, 204, 204)),
        (saved(Image.new("1", (60, 40), 1), "PNG"), "image/png", (255, 255, 255)),
        (saved(Image.new("1", (1, 1), 0), "PNG"), "image/png", None),
        (
            saved(Image.new("L", (60, 40), 7), "GIF", save_all=True, append_images=[Image.new("L", (60, 40), 200)]),
            "image/gif",
            (7, 7, 7),
        ),
    ],
    ids=["cmyk", "cmyk tiff", "16 bit", "16 bit tiff", "palette", "gif", "la", "alpha", "bits", "1x1", "animated"],
)
def test_pictures_of_every_kind_look_as_they_should(
    tmp_path: Path, limits: Limits, content: bytes, mime: str, colour: tuple[int, ...] | None
) -> None:
    document = make(tmp_path, "grey_sea.img", content, limits)
    assert (document.mime, document.meta["pages"], len(document.sections)) == (mime, 1, 1)
    assert (document.sections[0].text, dict(document.sections[0].meta)) == ("grey sea", {"named": True})
    if colour is not None:
        assert colour_of(tmp_path / "grey_sea.img", mime) == pytest.approx(colour, abs=3)


def test_a_photograph_cut_short_is_a_named_error(tmp_path: Path, photo: Image.Image, limits: Limits) -> None:
    whole = saved(photo)
    for size in (len(whole) // 3, len(whole) - 200):
        assert "damaged picture" in refused(tmp_path, "a.jpg", whole[:size], limits).message
