"""Pictures as vectors: what looks alike lies close, whatever file it stands in; and the network behind it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw, ImageOps

from triptych import Settings, progress
from triptych.errors import Cancelled, MissingWeights, UnreadableFile, Unsupported
from triptych.manifests import registry, weights
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.image import _network
from triptych.retrievers.image import efficientnet_b0 as module
from triptych.retrievers.image.efficientnet_b0 import EfficientNetB0
from triptych.retrievers.readers.picture import drawn

SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "sample" / "vessey-holm"
PHOTOS = (
    Path(get_sample_data("grace_hopper.jpg", asfileobj=False)),
    SAMPLE / "photos" / "landing-sign.jpg",
    SAMPLE / "photos" / "receipt-chandlery.jpg",
    SAMPLE / "photos" / "specimen-label.jpg",
)


class Home:
    """The parts that `load` asks for."""

    device = "cpu"

    def __init__(self, home: Path) -> None:
        self.settings = Settings.load(home=home)


def load(home: Path) -> EfficientNetB0:
    return EfficientNetB0.load(registry.card("efficientnet_b0"), Home(home))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoder(weights_home: Path) -> EfficientNetB0:
    return load(weights_home)


@pytest.fixture
def tiny() -> EfficientNetB0:
    return EfficientNetB0.tiny(0)


def item(path: Path, mime: str = "image/jpeg", **where: object) -> Item:
    media = replace(MediaRef(str(path), mime), **where)  # type: ignore[arg-type]
    return Item(path.stem, "never read", Source(path.name), "image", media)


ITEMS = [item(path) for path in PHOTOS]


def query(path: Path, image: Image.Image, kind: str = "PNG", **options: object) -> Query:
    image.save(path, kind, **options)
    return Query(media=MediaRef(str(path), f"image/{kind.lower()}"))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["tiny", "load"])
def test_vectors_have_unit_length_and_a_batch_equals_a_loop(
    door: str, encoder: EfficientNetB0, tiny: EfficientNetB0
) -> None:
    one = encoder if door == "load" else tiny
    found = one.encode(ITEMS, "document")
    assert (found.shape, found.dtype) == ((len(ITEMS), one.space.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    alone = np.concatenate([one.encode([each], "document") for each in ITEMS])
    np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(one.encode(ITEMS[::-1], "document")[::-1], found, atol=1e-5)
    np.testing.assert_allclose(one.encode([Query(media=each.media) for each in ITEMS], "query"), found, atol=1e-5)


def test_a_changed_copy_is_nearest_to_its_original(tmp_path: Path, encoder: EfficientNetB0) -> None:
    documents = encoder.encode(ITEMS, "document")
    for number, path in enumerate(PHOTOS):
        image = opened(path)
        wide, high = image.size
        copies = [
            query(tmp_path / "crop.png", image.crop((wide // 6, high // 6, wide, high))),
            query(tmp_path / "flip.png", ImageOps.mirror(image)),
            query(tmp_path / "grey.png", image.convert("L")),
            query(tmp_path / "poor.jpg", image.resize((wide // 2, high // 2)), "JPEG", quality=20),
        ]
        assert (encoder.encode(copies, "query") @ documents.T).argmax(axis=1).tolist() == [number] * len(copies)


def test_what_is_shown_counts_and_not_the_file_it_stands_in(tmp_path: Path, encoder: EfficientNetB0) -> None:
    image = opened(PHOTOS[0])
    pages = [Image.new("RGB", image.size, "white"), image]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "a.pdf", save_all=True, append_images=pages[1:])
    same = [
        item(tmp_path / "a.tiff", "image/tiff", page=2),
        item(tmp_path / "a.pdf", "application/pdf", page=2),
        ITEMS[0],
    ]
    found = encoder.encode(same, "document")
    assert (found @ found.T).min() > 0.9
    blank = encoder.encode([item(tmp_path / "a.pdf", "application/pdf", page=1)], "document")
    assert (blank @ found.T).max() < 0.5


def test_nothing_gives_an_empty_array(tiny: EfficientNetB0) -> None:
    assert tiny.encode([], "document").shape == tiny.encode([], "query").shape == (0, 1280)


def test_words_have_no_vector_here(tiny: EfficientNetB0) -> None:
    assert not tiny.reads(Query("a red bus")) and tiny.reads(Query(media=ITEMS[0].media))
    assert tiny.encodes(ITEMS[0]) and not tiny.encodes(Item("a", "words", Source("a.md")))
    with pytest.raises(Unsupported, match="the query has no `media`"):
        tiny.encode([Query("a red bus")], "query")
    with pytest.raises(Unsupported, match="the item `a` has no `media`"):
        tiny.encode([Item("a", "words", Source("a.md"))], "document")


def test_the_same_seed_gives_the_same_vectors() -> None:
    one, two, other = (EfficientNetB0.tiny(seed).encode(ITEMS[:2], "document") for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_any_picture_has_a_finite_unit_vector(
    tmp_path: Path, tiny: EfficientNetB0, size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    found = tiny.encode([query(tmp_path / "a.png", Image.new("RGB", size, colour))], "query")
    assert np.isfinite(found).all()
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_eight_threads_get_the_answers_of_serial_calls(encoder: EfficientNetB0) -> None:
    serial = encoder.encode(ITEMS, "document")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: encoder.encode([ITEMS[n % len(ITEMS)]], "document")[0], range(16)))
    for number, vector in enumerate(found):
        np.testing.assert_allclose(vector, serial[number % len(ITEMS)], atol=1e-5)


def test_work_stops_after_the_first_batch(tiny: EfficientNetB0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    cancelled, seen = Event(), []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append((done, total))
        if done:
            cancelled.set()

    with progress.reporting(on_step, cancelled=cancelled), pytest.raises(Cancelled):
        tiny.encode(ITEMS[:3], "document")
    assert seen[-1] == (1, 3)


# -- what is drawn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "mime", "message"),
    [
        ("gone.png", None, "image/png", "`gone.png`"),
        ("a.png", b"\x89PNG\r\n\x1a\n broken", "image/png", "`a.png` is a damaged picture"),
        ("a.png", b"just words", "image/png", "`a.png` was image/png and is now text/plain"),
        ("a.txt", b"just words", "text/plain", "`a.txt` is text/plain, which cannot be shown"),
    ],
)
def test_what_cannot_be_drawn_is_named_without_its_folder(
    tmp_path: Path, tiny: EfficientNetB0, name: str, content: bytes | None, mime: str, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        tiny.encode([item(tmp_path / name, mime)], "document")
    assert message in caught.value.message
    assert str(tmp_path) not in str(caught.value)


def test_a_picture_is_drawn_upright_and_no_larger_than_asked(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 40, 100), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "a.jpg", exif=exif)
    shown = drawn(MediaRef(str(tmp_path / "a.jpg"), "image/jpeg"), 100)
    assert (shown.mode, shown.size) == ("RGB", (100, 50))
    pixel = shown.getpixel((5, 25))
    assert isinstance(pixel, tuple) and pixel[0] > 200 > 60 > pixel[1]


# -- the network -------------------------------------------------------------------------------------------------------


def test_the_added_output_is_what_the_classifier_reads(weights_home: Path, encoder: EfficientNetB0) -> None:
    folder = weights.folder("image_tags", weights_home / "weights")
    assert encoder.net is _network.network(folder)
    pixels = _network.pixels_of([opened(PHOTOS[0])])
    assert (pixels.shape, pixels.dtype) == ((1, 224, 224, 3), np.float32)
    assert 0 <= pixels.min() and pixels.max() <= 255
    net = _network.network(folder)
    features, classes = net.features(pixels), net.classes(pixels)
    assert (features.shape, classes.shape) == ((1, _network.FEATURES), (1, _network.CLASSES))
    assert features.min() > -0.279 and classes.sum() == pytest.approx(1, abs=1e-4)
    plain = onnxruntime.InferenceSession((folder / _network._MODEL).read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(plain.run(None, {"input_1": pixels})[0], classes, atol=1e-5)


def test_lengths_above_127_take_two_bytes() -> None:
    name = "n" * 300
    added = _network.with_output(b"", name)
    assert added == b"\x3a\xb2\x02\x62\xaf\x02\x0a\xac\x02" + name.encode()


def test_without_weights_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="`image_tags` are missing") as caught:
        load(tmp_path)
    assert "pull" in caught.value.hint


def test_pictures_are_squeezed_and_not_cut() -> None:
    wide = Image.new("RGB", (900, 100), "black")
    wide.paste("white", (800, 0, 900, 100))
    [pixels] = _network.pixels_of([wide])
    assert pixels[:, -10:].mean() > 240 and pixels[:, :150].mean() < 10
