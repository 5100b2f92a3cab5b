"""Bad and odd input over all encoders that look at pictures and pages: a vector or a typed error that names what it is
about, and the rest of a batch is encoded all the same."""

from __future__ import annotations

import json
import resource
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych import Settings, Triptych
from triptych.errors import BadInput, MissingWeights, TriptychError, UnreadableFile, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.further import Further
from triptych.retrievers.readers.picture import drawn
from triptych.retrievers.stores.vectors import VectorStore
from triptych.retrievers.universal._inputs import pictured, seen
from triptych.retrievers.universal._mllm import Backbone
from triptych.retrievers.universal.endpoint_encoder import EndpointEncoder

sys.path.append(str(Path(__file__).parent))
from media_files import subtitled

LOOKERS = (
    *("clip", "colpali", "dse", "gme", "ovis", "siglip", "uniir", "unime", "unime_v2", "vista", "vlm2vec"),
    *("colpali colqwen2", "colpali idefics3", "unime llava_onevision"),
)
"""Ids of systems, some with another backbone."""
MIXED = ("gme", "ovis", "uniir", "unime", "unime_v2", "vista", "vlm2vec")
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif", ".tif": "image/tiff"}
ORIENTATION = 0x0112


def made(name: str, seed: int = 0) -> Any:
    id_, _, kind = name.partition(" ")
    return card(id_, "retriever").resolve().tiny(seed, **({"kind": kind} if kind else {}))


@pytest.fixture(scope="module")
def tiny() -> Callable[[str], Any]:
    known: dict[str, Any] = {}
    return lambda name: known.setdefault(name, made(name)) if name not in known else known[name]


@pytest.fixture(params=LOOKERS)
def looker(request: pytest.FixtureRequest, tiny: Callable[[str], Any]) -> Any:
    return tiny(request.param)


def shown(path: Path, text: str = "", mime: str = "") -> Item:
    media = MediaRef(str(path), mime or TYPES[path.suffix])
    return Item(path.stem, text, Source(f"box/{path.name}"), "image", media)


def encoded(encoder: Any, *items: Item) -> list[np.ndarray]:
    """The vectors of items, checked."""
    found = [np.atleast_2d(one) for one in encoder.encode(items, "document")]
    for one in found:
        assert np.isfinite(one).all()
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-3)
    return found


def noise(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


# --- pictures --------------------------------------------------------------------------------------------------------


def kept(folder: Path, name: str, picture: Image.Image, **how: Any) -> Path:
    path = folder / name
    picture.save(path, **how)
    return path


def cmyk(folder: Path) -> tuple[Path, Path]:
    odd = kept(folder, "cmyk.jpg", noise().convert("CMYK"))
    with Image.open(odd) as opened:
        return odd, kept(folder, "rgb.png", opened.convert("RGB"))


def palette(folder: Path) -> tuple[Path, Path]:
    """Every fourth colour is to be looked through: on white, as paper is."""
    picture = noise().quantize(8)
    odd = kept(folder, "palette.png", picture, transparency=bytes([0, 255, 255, 255] * 2))
    white = np.asarray(picture.convert("RGB")).copy()
    white[np.asarray(picture) % 4 == 0] = 255
    return odd, kept(folder, "white.png", Image.fromarray(white))


def sixteen_bits(folder: Path) -> tuple[Path, Path]:
    grey = np.random.default_rng(0).permutation(np.resize(np.arange(256), 48 * 40)).reshape(40, 48)
    odd = kept(folder, "deep.png", Image.fromarray((grey * 257).astype(np.uint16)))
    return odd, kept(folder, "grey.png", Image.fromarray(grey.astype(np.uint8)))


def animated(folder: Path) -> tuple[Path, Path]:
    frames = [noise(seed=seed).quantize(16) for seed in range(3)]
    odd = kept(folder, "moving.gif", frames[0], save_all=True, append_images=frames[1:], duration=40)
    return odd, kept(folder, "still.png", frames[0].convert("RGB"))


def turned(folder: Path) -> tuple[Path, Path]:
    """A picture that its camera was held on the side for."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    odd = kept(folder, "turned.jpg", noise(), exif=exif)
    with Image.open(odd) as opened:
        return odd, kept(folder, "upright.png", opened.convert("RGB").transpose(Image.Transpose.ROTATE_270))


ODD = {one.__name__: one for one in (cmyk, palette, sixteen_bits, animated, turned)}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_picture_is_opened_as_the_plain_one(kind: str, tmp_path: Path) -> None:
    odd, plain = (np.asarray(drawn(shown(path).media, 256), np.int16) for path in ODD[kind](tmp_path))  # type: ignore[arg-type]
    assert odd.shape == plain.shape
    assert np.abs(odd - plain).max() <= (1 if kind == "sixteen_bits" else 0)


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_picture_has_the_vector_of_the_plain_one(kind: str, looker: Any, tmp_path: Path) -> None:
    odd, plain = encoded(looker, *map(shown, ODD[kind](tmp_path)))
    assert odd.shape == plain.shape
    assert (odd * plain).sum(axis=1).min() > (0.99 if kind == "sixteen_bits" else 0.99999)


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (1, 100)])
def test_the_smallest_pictures_have_vectors(size: tuple[int, int], looker: Any, tmp_path: Path) -> None:
    small = shown(kept(tmp_path, "small.png", noise(*size)))
    assert len(encoded(looker, small, shown(kept(tmp_path, "usual.png", noise())))) == 2


def huge(path: Path, edge: int = 20_000) -> Path:
    """A white PNG of `edge` × `edge` pixels, of one bit each: 50 MB of nothing in 50 kB."""
    rows = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (edge // 8)
    packed = b"".join(rows.compress(row) for _ in range(edge)) + rows.flush()
    head = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.fixture(scope="module")
def huge_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return huge(tmp_path_factory.mktemp("huge") / "huge.png")


def test_a_huge_picture_is_refused_before_it_is_decoded(looker: Any, huge_picture: Path, tmp_path: Path) -> None:
    encoded(looker, shown(kept(tmp_path, "usual.png", noise())))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableFile, match=r"`huge\.png` is a picture of far too many pixels.*`max_pixels`"):
        looker.encode([shown(huge_picture)], "document")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # in KiB; as RGB it has 1.2 GB


BROKEN: dict[str, tuple[bytes | None, str]] = {
    "gone.png": (None, "gone|no such|is not there|cannot be"),
    "empty.png": (b"", "empty|kind"),
    "cut.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "damaged"),
    "other.png": (b"GIF89a\x01\0\x01\0\0\0\0;", "was image/png and is now image/gif"),
    "words.png": (b"An owl.", "is now|kind"),
}


def broken(folder: Path, name: str) -> Item:
    content, _ = BROKEN[name]
    path = folder / name
    if content is not None:
        path.write_bytes(content)
    return shown(path)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_named_without_its_folder(name: str, tmp_path: Path) -> None:
    item = broken(tmp_path, name)
    for read in (seen, pictured):
        with pytest.raises(BadInput, match=f"`{name}`") as caught:
            read(item, 256)
        assert str(tmp_path) not in str(caught.value)
        assert caught.value.hint


def test_a_line_and_what_is_no_picture_are_refused(looker: Any, tmp_path: Path) -> None:
    line = shown(kept(tmp_path, "line.png", noise(500, 2)))
    words = tmp_path / "words.txt"
    words.write_text("An owl.")
    for item, what in ((line, "`line.png` has 500 × 2 pixels.*a line"), (shown(words, mime="text/plain"), "cannot be")):
        with pytest.raises(UnreadableFile, match=what):
            looker.encode([item], "document")


def test_a_picture_just_above_the_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"9000 × 9000 pixels.*64000000"):
        drawn(shown(huge(tmp_path / "large.png", 9000)).media, 256)  # type: ignore[arg-type]


# --- several frames --------------------------------------------------------------------------------------------------

FRAMES = {"clip": 4, "siglip": 4, "gme": 2, "ovis": 4, "vlm2vec": 2}
"""Of a scene, as the toys are set; other systems read one key frame."""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    path.write_bytes(subtitled("mp4", []))
    return path


def scene(film: Path, start_s: float = 0.0, end_s: float = 6.0) -> Item:
    media = MediaRef(str(film), "video/mp4", start_s=start_s, end_s=end_s)
    return Item("scene", "", Source("box/film.mp4"), "video", media)


@pytest.mark.parametrize("name", [name for name in LOOKERS if name != "dse"])
def test_a_scene_has_one_vector_of_as_many_frames_as_the_system_reads(
    name: str, tiny: Callable[[str], Any], film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, drawings = tiny(name), []

    def counted(media: MediaRef, edge: int) -> Image.Image:
        drawings.append((media.start_s, media.end_s))
        return drawn(media, edge)

    monkeypatch.setattr("triptych.retrievers.universal._inputs.drawn", counted)
    frames = FRAMES.get(name, 1)
    [found] = encoded(encoder, scene(film))
    assert drawings == [(6 * part / frames, 6 * (part + 1) / frames) for part in range(frames)]
    assert len(found) == 1 or encoder.space.kind == "multi"
    if frames > 1:
        [part] = encoded(encoder, scene(film, 0.0, 0.5))
        assert np.abs(found - part).max() > 1e-4


def test_frames_of_gme_share_what_one_picture_may_have(tiny: Callable[[str], Any], film: Path, tmp_path: Path) -> None:
    gme = tiny("gme")
    large = shown(kept(tmp_path, "large.png", noise(640, 480)))
    counts = [sum(gme.backbone._looked(gme.said(one, "document").pictures)[0]) for one in (large, scene(film))]
    assert counts[0] > 8 and counts[1] <= 20  # two of at most 8, and what rounding to whole patches adds


def test_who_reads_no_video_says_what_it_reads(tiny: Callable[[str], Any], film: Path) -> None:
    with pytest.raises(Unsupported, match="pages and pictures, and `scene` is video"):
        tiny("dse").encode([scene(film)], "document")


# --- words -----------------------------------------------------------------------------------------------------------

LONG = "The owl sleeps in the old barn. " * 1000


def test_text_beyond_the_window_is_cut_at_its_end(looker: Any) -> None:
    one, other = (looker.encode([Query(LONG + end)], "query")[0] for end in ("", "A fox crossed the road."))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.isfinite(one).all()


@pytest.mark.parametrize("name", MIXED)
def test_text_beyond_the_window_leaves_the_picture_in_it(name: str, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    encoder = tiny(name)
    first, second = (shown(kept(tmp_path, f"{seed}.png", noise(seed=seed)), LONG) for seed in (1, 2))
    one, other = encoded(encoder, first, second)
    again, fox = encoded(encoder, first, replace(first, text="A fox."))
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(again - fox).max() > 1e-3
    np.testing.assert_allclose(one, again, atol=1e-5)


@pytest.mark.parametrize("query", [Query(), Query(instruction="Find a picture of an owl.")])
def test_a_query_without_text_and_media_is_refused(query: Query, looker: Any) -> None:
    assert not looker.reads(query)
    with pytest.raises(Unsupported) as caught:
        looker.encode([Query("an owl"), query], "query")
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", " \n", "\ud800", "\u0301\u200b", "<image><|image_pad|><|im_end|></s>"])
def test_a_query_of_odd_text_is_only_text(text: str, looker: Any) -> None:
    [found] = looker.encode([Query(text)], "query")
    assert np.isfinite(found).all()


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_broken_item_of_a_batch_is_named_and_the_others_are_encoded(looker: Any, tmp_path: Path) -> None:
    good = [shown(kept(tmp_path, f"{seed}.png", noise(seed=seed))) for seed in (1, 2)]
    batch = [good[0], broken(tmp_path, "cut.png"), good[1]]
    with pytest.raises(UnreadableFile, match=r"`cut\.png`"):
        looker.encode(batch, "document")
    with_space = Further(looker, VectorStore(tmp_path / "library", looker.space), lambda media: media)
    assert with_space.add(batch) == 2
    assert with_space.vectors.ids() == ["1", "2"]
    assert [(item.id, type(error)) for item, error in with_space.refused] == [("cut", UnreadableFile)]
    with_space.vectors.close()


# --- models ----------------------------------------------------------------------------------------------------------


def networks(value: Any, depth: int = 3) -> Iterator[torch.nn.Module]:
    """The networks in an encoder, wherever it keeps them."""
    if isinstance(value, torch.nn.Module):
        yield value
    elif depth and (hasattr(value, "__dict__") and type(value).__module__.startswith("triptych")):
        names = [one.name for one in fields(value)] if is_dataclass(value) else list(vars(value))
        for name in names:
            yield from networks(getattr(value, name), depth - 1)


@pytest.mark.parametrize("name", LOOKERS)
def test_nan_from_a_model_is_an_error_on_both_sides_and_of_no_item(name: str, tmp_path: Path) -> None:
    encoder = made(name)
    with torch.no_grad():
        for weights in (one for network in networks(encoder) for one in network.parameters()):
            weights.fill_(torch.nan)
    item = shown(kept(tmp_path, "usual.png", noise()))
    with_space = Further(encoder, VectorStore(tmp_path / "library", encoder.space), lambda media: media)
    for call in (lambda: encoder.encode([item], "document"), lambda: encoder.encode([Query("an owl")], "query")):
        with pytest.raises(BadInput, match=r"`nan`|NaN"):
            call()
    with pytest.raises(BadInput, match=r"`nan`|NaN"):
        with_space.add([item])
    assert with_space.refused == []
    with_space.vectors.close()


@pytest.fixture(scope="module")
def folders(tiny: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    top = tmp_path_factory.mktemp("models")

    def saved(name: str) -> Path:
        folder = top / name.replace(" ", "-")
        if not folder.exists():
            tiny(name).save(folder)
        return folder

    return saved


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Change the settings of the picture processor in `folder`; what puts them back."""
    [path] = folder.rglob("preprocessor_config.json")
    before = path.read_text("utf-8")
    changed = change(json.loads(before))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed), "utf-8")

    def put_back() -> None:
        path.write_text(before, "utf-8")

    return put_back


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "of another class": lambda said: {**said, "image_processor_type": "BeitImageProcessor"},
    "no JSON": lambda said: "{",
    "no object": lambda said: [],
    "nonsense": lambda said: {**said, "size": {"owl": 3}, "crop_size": {"owl": 3}, "patch_size": "owl"},
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", LOOKERS)
def test_a_wrong_picture_processor_is_refused(name: str, what: str, folders: Callable[[str], Path]) -> None:
    folder, kind = folders(name), card(name.split()[0], "retriever").resolve()
    kind.from_folder(folder)
    put_back = rewritten(folder, WRONG[what])
    try:
        with pytest.raises((BadInput, MissingWeights)) as caught:
            kind.from_folder(folder)
    finally:
        put_back()
    assert "`" in caught.value.message and caught.value.hint
    assert str(folder.parent) not in str(caught.value)


OTHER_SHAPES = [
    ("qwen2_vl", {"patch_size": 16}),
    ("qwen2_vl", {"merge_size": 1}),
    ("qwen2_5_vl", {"temporal_patch_size": 1}),
    ("llava_next", {"crop_size": {"height": 42, "width": 42}}),
    ("llava_next", {"image_grid_pinpoints": [[56, 56]]}),
    ("llava_onevision", {"size": {"height": 42, "width": 42}}),
]


@pytest.mark.parametrize(("kind", "changed"), OTHER_SHAPES)
def test_a_processor_for_patches_of_another_size_is_refused(kind: str, changed: dict[str, Any]) -> None:
    backbone = Backbone.tiny(kind)
    pictures = type(backbone.pictures)(**{**backbone.pictures.to_dict(), **changed})
    with pytest.raises(BadInput, match="Pictures are prepared for"):
        Backbone(backbone.model, backbone.tokenizer, pictures)


# --- in a library ----------------------------------------------------------------------------------------------------


def test_indexing_names_what_has_no_vector(bare_home: Path, tmp_path: Path, tiny: Callable[[str], Any]) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for seed in (1, 2):
        kept(docs, f"{seed}.png", noise(seed=seed))
    kept(docs, "line.png", noise(500, 2))
    (docs / "cut.png").write_bytes(BROKEN["cut.png"][0] or b"")
    tiny("clip").save(bare_home / "weights" / "clip")
    with Triptych("mine", Settings.load()) as library:
        assert [problem.uri for problem in library.index(docs).problems] == ["docs/cut.png"]
        for _ in range(2):
            [cut, line] = sorted(library.index(docs, retrievers=["clip"]).problems, key=lambda one: one.uri)
            assert (cut.uri, line.uri, line.type) == ("docs/cut.png", "docs/line.png", "UnreadableFile")
            assert "`clip` has no vector of it" in line.message and "`line.png`" in line.message and line.hint
        assert library.status().store["retrievers"] == {"clip": 2}


# --- an endpoint -----------------------------------------------------------------------------------------------------


class Endless:
    """An endpoint that counts what it is asked."""

    name = "stand-in"

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def post(self, path: str, bodies: Any) -> list[dict[str, Any]]:
        self.bodies += bodies
        rows = [len(body.get("input", "1")) for body in bodies]
        return [{"data": [{"index": n, "embedding": [1.0, 2.0]} for n in range(count)]} for count in rows]


def test_an_endpoint_is_sent_pictures_as_they_are_meant_to_be_seen(tmp_path: Path) -> None:
    client = Endless()
    encoder = EndpointEncoder(client, "model", 2, images=True)
    pairs = [make(tmp_path) for kind, make in ODD.items() if kind in ("palette", "animated")]
    assert len(encoded(encoder, *(shown(path) for pair in pairs for path in pair))) == 4
    sent = [body["messages"][0]["content"][0]["image_url"]["url"] for body in client.bodies]
    assert sent[0] == sent[1] and sent[2] == sent[3] and sent[0] != sent[2]


@pytest.mark.parametrize("name", BROKEN)
def test_an_endpoint_is_not_asked_where_a_picture_is_broken(name: str, tmp_path: Path) -> None:
    client = Endless()
    encoder = EndpointEncoder(client, "model", 2, images=True)
    with pytest.raises(TriptychError, match=f"`{name}`"):
        encoder.encode([shown(kept(tmp_path, "usual.png", noise())), broken(tmp_path, name)], "document")
    assert client.bodies == []
