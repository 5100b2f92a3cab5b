"""Further spaces of a library: they follow its items, are asked where their encoder reads, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych import BadInput, Settings, StoreError, Triptych
from triptych.errors import MissingWeights, UnreadableFile, Unsupported
from triptych.retrievers.base import Encoder, Hit, Item, MediaRef, Modality, Query, Side, Source, Space, Where
from triptych.retrievers.further import Further
from triptych.retrievers.stores.milvus import MilvusStore
from triptych.retrievers.stores.vectors import VectorStore
from triptych.retrievers.text.hybrid import Hybrid, RandomTerms
from triptych.tools import given as identity
from triptych.tools import spaces as module
from triptych.tools.collection import Collection
from triptych.tools.stages import Stages

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "rust": (0.9, 0.1, 0.0)}


class Colours(Encoder):
    """Looks at a "picture": a file with the name of a colour in it."""

    space = Space("colours", "dense", 3)
    modalities = ("image",)
    looks = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.batches: list[int] = []

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        self.batches.append(len(inputs))
        return np.array([self._one(given.media) for given in inputs], np.float32).reshape(-1, 3)

    def _one(self, media: MediaRef | None) -> tuple[float, float, float]:
        assert media is not None
        self.seen.append(media.uri)
        path = Path(media.uri)
        if not path.is_file():
            raise UnreadableFile(f"`{path.name}` is gone.", "Index again.")
        return COLOURS[path.read_text("utf-8")]


class Digits(Encoder):
    """A text encoder for queries of digits, which the base encoder does not read: one dimension for each digit."""

    space = Space("digits", "dense", 10)

    def __init__(self) -> None:
        self.encoded = 0

    def reads(self, query: Query) -> bool:
        return any(letter.isdigit() for letter in query.text or "")

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        self.encoded += len(inputs) if side == "document" else 0
        rows = [[(given.text or "").count(str(digit)) + 0.01 for digit in range(10)] for given in inputs]
        return np.array(rows, np.float32).reshape(-1, 10)


class Letters(RandomTerms):
    """The base encoder: no digits."""

    def __init__(self) -> None:
        super().__init__(0)

    def reads(self, query: Query) -> bool:
        return not any(letter.isdigit() for letter in query.text or "")


def item(name: str, text: str, modality: Modality = "text", media: str | None = None) -> Item:
    shown = None if media is None else MediaRef(media, "image/png")
    return Item(name, text, Source(f"root/{name}", 0, len(text)), modality, shown, {"document": name, "title": "-"})


@pytest.fixture
def pictures(tmp_path: Path) -> list[Item]:
    made = []
    for colour in COLOURS:
        (tmp_path / colour).write_text(colour, "utf-8")
        made.append(item(f"{colour}.png", f"a picture {colour[0]}", "image", colour))
    return made


@pytest.fixture
def hybrid(tmp_path: Path) -> Iterator[Hybrid]:
    def located(media: MediaRef) -> MediaRef:
        return MediaRef(str(tmp_path / media.uri), media.mime)

    folder = tmp_path / "library"
    base, encoder = MilvusStore(folder, [RandomTerms.space]), Letters()
    further = [
        Further(Colours(), VectorStore(folder, Colours.space), located),
        Further(Digits(), VectorStore(folder, Digits.space), located),
    ]
    yield Hybrid(base, encoder, further)
    for one in further:
        one.vectors.close()
    base.close()


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


def test_a_picture_finds_pictures_that_look_like_it(hybrid: Hybrid, pictures: list[Item], tmp_path: Path) -> None:
    hybrid.add([*pictures, item("plain", "a picture in words")])
    asked = Query(media=MediaRef(str(tmp_path / "red"), "image/png"))
    assert ids(hybrid.search(asked, 2)) == ["red.png", "rust.png"]
    assert len(hybrid.search(asked, 10)) == 4  # what is no picture cannot look like one
    assert ids(hybrid.search(asked, 9, Where(documents=("rust.png",)))) == ["rust.png"]


def test_words_and_picture_together_are_fused(hybrid: Hybrid, pictures: list[Item], tmp_path: Path) -> None:
    hybrid.add(pictures)
    asked = Query(text="picture b", media=MediaRef(str(tmp_path / "blue"), "image/png"))
    assert ids(hybrid.search(asked, 1)) == ["blue.png"]


def test_a_query_only_goes_where_it_is_read(hybrid: Hybrid) -> None:
    hybrid.add([item("a", "7 7 7 owl"), item("b", "7 fox"), item("c", "8 8 owl")])
    assert ids(hybrid.search(Query(text="owl"), 9)) == ids(
        Hybrid(hybrid.store, hybrid.encoder).search(Query(text="owl"), 9)
    )
    assert ids(hybrid.search(Query(text="77"), 1)) == ["a"]  # no such word: found by its digits alone
    with pytest.raises(Unsupported, match="Nothing in this library reads"):
        Hybrid(hybrid.store, hybrid.encoder).search(Query(media=MediaRef("x", "image/png")), 3)


def test_routes_can_be_chosen(hybrid: Hybrid) -> None:
    hybrid.add([item("a", "7 owl"), item("b", "owl owl 8")])
    words = Hybrid(hybrid.store, hybrid.encoder, hybrid.further, ["lexical"])
    assert ids(words.search(Query(text="77 8"), 5)) == ["b"]
    digits = Hybrid(hybrid.store, hybrid.encoder, hybrid.further, ["digits"])
    assert ids(digits.search(Query(text="77"), 5)) == ["a", "b"]


def test_what_goes_takes_its_vectors_along(hybrid: Hybrid, pictures: list[Item]) -> None:
    hybrid.add(pictures)
    colours, digits = (one.vectors for one in hybrid.further)
    assert (colours.count(), digits.count()) == (4, 4)
    assert hybrid.delete(Where(documents=("red.png",))) == 1
    assert (colours.count(), digits.count()) == (3, 3)


def test_a_picture_that_is_gone_has_no_vector_and_stops_nothing(
    hybrid: Hybrid, pictures: list[Item], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "green").unlink()
    hybrid.add(pictures)
    assert hybrid.further[0].vectors.ids() == ["blue.png", "red.png", "rust.png"]
    assert hybrid.store.count() == 4
    assert [record.getMessage() for record in caplog.records] == ["no vector of root/green.png: `green` is gone."]


def test_pictures_are_read_together_and_one_by_one_only_after_a_broken_one(
    hybrid: Hybrid, pictures: list[Item], tmp_path: Path
) -> None:
    colours = hybrid.further[0].encoder
    assert isinstance(colours, Colours)
    hybrid.add(pictures)
    assert colours.batches == [4]
    (tmp_path / "green").unlink()
    hybrid.add(pictures)
    assert colours.batches == [4, 4, 1, 1, 1, 1]
    asked = Query(media=MediaRef(str(tmp_path / "red"), "image/png"))
    assert ids(hybrid.search(asked, 2)) == ["red.png", "rust.png"]


class Own(Letters):
    """The library's own encoder, in the space of the profile's."""

    space = Space("minilm", "dense", 384)


class Scripted(Stages):
    """Stages with the encoders of this file."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.digits = Digits()
        self.absent = False

    def encoder(self) -> Encoder:
        return Own()

    def encoder_or_none(self) -> Encoder | None:
        return Own()

    def further(self, system_id: str, *, required: bool = False) -> Encoder | None:
        if self.absent:
            if required:
                raise MissingWeights("`digits` is not here.", "Run `triptych pull`.")
            self.missing[system_id] = "absent"
            return None
        return self.digits


class DigitsCard:
    weights = ("digits",)

    def resolve(self) -> type[Encoder]:
        return Digits


@pytest.fixture
def stages(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    real = module.card

    def card(name: str, role: str | None = None) -> Any:
        return DigitsCard() if name == "digits" else real(name, role)

    for place in (module, identity):
        monkeypatch.setattr(place, "card", card)
    known = identity.hash_of
    monkeypatch.setattr(identity, "hash_of", lambda name: marks[name] if name in marks else known(name))
    marks["digits"] = "1"
    return Scripted(Settings.load(spaces="digits"))


marks = {"digits": "1"}


def library(stages: Scripted, tmp_path: Path) -> Collection:
    return Collection.open(tmp_path / "lib", stages)


def write(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def test_a_library_that_its_encoder_reads_gains_nothing(stages: Scripted, tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {f"{n}.txt": "the owl sleeps" for n in "abc"})
    made = library(stages, tmp_path)
    made.index([docs], prune=False, rebuild=False)
    assert made.spaces.marks() == {}
    made.close()


def test_a_library_that_its_encoder_cannot_read_gains_a_space(stages: Scripted, tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {"a.txt": "the owl sleeps", "b.txt": "四七一一 4711 4711", "c.txt": "九九 99 99"})
    made = library(stages, tmp_path)
    made.index([docs], prune=False, rebuild=False)
    assert made.spaces.counts() == {"digits": 3}
    assert made.search(Query(text="9"), 1, None)[0].item.source.uri.endswith("c.txt")
    encoded = stages.digits.encoded
    write(docs, {"d.txt": "123"})
    (docs / "a.txt").unlink()
    made.index([docs], prune=True, rebuild=False)
    assert made.spaces.counts() == {"digits": 3}
    assert stages.digits.encoded == encoded + 1  # only what came
    made.close()


def test_a_space_is_added_to_what_is_there(stages: Scripted, tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {f"{n}.txt": f"owl {n}" for n in "abc"})
    made = library(stages, tmp_path)
    made.index([docs], prune=False, rebuild=False)
    done = made.index([docs], prune=False, rebuild=False, spaces=["digits"])
    assert (done.indexed, done.unchanged) == (0, 3)
    assert made.spaces.counts() == {"digits": 3}
    made.close()
    again = library(stages, tmp_path)
    assert again.spaces.counts() == {"digits": 3}
    assert again.verify().whole
    again.spaces._vectors("digits").erase()
    assert (again.verify().whole, again.verify().spaces) == (False, {"digits": 3})
    again.index([docs], prune=False, rebuild=False)
    assert again.spaces.counts() == {"digits": 3}
    again.index([docs], prune=False, rebuild=True)
    assert again.spaces.counts() == {"digits": 3}
    again.close()


def test_other_weights_are_noticed(stages: Scripted, tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {"a.txt": "1 owl"})
    made = library(stages, tmp_path)
    made.index([docs], prune=False, rebuild=False, spaces=["digits"])
    marks["digits"] = "2"
    made.close()
    again = library(stages, tmp_path)
    with pytest.raises(StoreError, match="other weights"):
        again.search(Query(text="owl"), 1, None)
    again.index([docs], prune=False, rebuild=True)
    assert again.search(Query(text="owl"), 1, None)
    again.close()


def test_a_missing_encoder_is_told_and_its_space_kept(stages: Scripted, tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {"a.txt": "1 owl"})
    made = library(stages, tmp_path)
    made.index([docs], prune=False, rebuild=False, spaces=["digits"])
    stages.absent = True
    made.close()
    again = library(stages, tmp_path)
    assert again.search(Query(text="owl"), 1, None)
    assert "digits" in (stages.note() or "")
    assert again.spaces.counts() == {"digits": 1}
    again.close()


def test_bad_spaces_and_routes_are_named(stages: Scripted, tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {"a.txt": "1 owl"})
    made = library(stages, tmp_path)
    with pytest.raises(BadInput, match="no further space"):
        made.index([docs], prune=False, rebuild=False, spaces=["bm25"])
    with pytest.raises(BadInput, match="no space `dense`"):
        made.index([docs], prune=False, rebuild=False, routes=["dense"])
    made.index([docs], prune=False, rebuild=False, routes=["lexical"])
    assert made.search(Query(text="owls"), 5, None) == made.search(Query(text="owl"), 5, None)
    made.close()


class Many(Encoder):
    """Compares texts of any language by the animals in them."""

    space = Space("many", "dense", 3)
    many_languages = True
    animals = (("owl", "猫头鹰"), ("fox", "狐狸"), ("bee", "蜜蜂"))

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        rows = [[0.01 + sum(name in (one.text or "") for name in names) for names in self.animals] for one in inputs]
        return np.array(rows, np.float32).reshape(-1, 3)


def test_a_question_finds_its_answer_in_another_language(tmp_path: Path) -> None:
    base = MilvusStore(tmp_path / "library", [RandomTerms.space])
    further = Further(Many(), VectorStore(tmp_path / "library", Many.space), lambda media: media)
    hybrid = Hybrid(base, RandomTerms(0), [further])
    hybrid.add(
        [
            item("en-owl", "The owl sleeps in the old barn of the village."),
            item("en-bee", "There was a bee on the sill."),
            item("zh-fox", "狐狸在森林里睡觉。"),
            item("zh-bee", "蜜蜂在花园里。"),
        ]
    )
    assert ids(hybrid.search(Query(text="Where does the fox sleep in the wood?"), 4))[0] == "zh-fox"
    assert ids(hybrid.search(Query(text="猫头鹰在哪里?"), 4))[0] == "en-owl"
    assert ids(hybrid.search(Query(text="Where was the bee on the sill?"), 4))[0] == "en-bee"
    further.vectors.close()
    base.close()


def test_a_question_in_another_language_is_told_how(weights_home: Path, bare_home: Path, tmp_path: Path) -> None:
    (bare_home / "weights").symlink_to(weights_home / "weights", target_is_directory=True)
    docs = write(tmp_path / "docs", {"a.md": "The first lighthouse keeper was called Ruth Amberly."})
    with Triptych("english", Settings.load()) as session:
        session.index(docs)
        assert session.search("Who kept the lighthouse?").note is None
        asked = session.search("第一位灯塔看守人是谁?")
        assert (asked.hits, asked.note and "--space use_multilingual" in asked.note) == ([], True)
        session.index(docs, spaces=["use_multilingual"])
        found = session.retrieve("第一位灯塔看守人是谁?", 400)
        assert found.note is None
        assert "Ruth Amberly" in found.passages[0].text
