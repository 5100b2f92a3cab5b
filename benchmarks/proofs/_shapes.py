"""Small worlds that proofs of encoders of pictures draw for themselves, the same for the same seed: pages of words in
cells with a table below (a word is one letter, so that toys can learn to read), and coloured shapes with what can be
said of them. Beside them, how rankings are judged and a result is written.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import _proof
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.tools.evaluation import compare
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result

SEEDS = 3


def asked(description: str | None) -> argparse.Namespace:
    """`--seeds N`, `--share F` of the steps, `--out FOLDER`, `--work FOLDER`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how often each arm is trained")
    parser.add_argument("--share", type=float, default=1.0, help="learn for this share of the epochs, to try")
    parser.add_argument("--out", type=Path, default=_proof.RESULTS)
    parser.add_argument("--work", type=Path, help="where fits are kept, to go on from")
    return parser.parse_args()


@contextmanager
def workplace(given: argparse.Namespace) -> Iterator[Path]:
    """A folder for pictures and fits: the one that was named, or one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        yield given.work or Path(scratch)


# --- pages -----------------------------------------------------------------------------------------------------------

WORDS = tuple("bcdfghjklmnpqrstvwxyz123456789")
SIDE, CELL, SHIFT = 4, 28, 1
"""Cells of a page's side, pixels of a cell's, and how far a word is moved in it at most."""
LINES, ROWS = 3, 3
"""Words in the upper half, at drawn places, and in the table of the lower half."""


@dataclass(frozen=True)
class Page:
    """A page and the words on it, each once."""

    item: Item
    lines: tuple[str, ...]
    table: tuple[str, ...]

    @property
    def words(self) -> frozenset[str]:
        return frozenset(self.lines + self.table)


def pages(folder: Path, count: int, seed: int) -> list[Page]:
    """Drawn into `folder` as PNG."""
    drawn, made = random.Random(f"pages {seed}"), []
    for number in range(count):
        chosen = drawn.sample(WORDS, LINES + ROWS)
        half = SIDE * SIDE // 2
        places = [*sorted(drawn.sample(range(half), LINES)), *sorted(drawn.sample(range(half, 2 * half), ROWS))]
        picture = _written(list(zip(chosen, places, strict=True)), drawn)
        shown = _kept(folder / f"{seed}_{number}.png", picture, f"page {seed} {number}")
        made.append(Page(shown, tuple(chosen[:LINES]), tuple(chosen[LINES:])))
    return made


def primer(folder: Path, times: int) -> list[tuple[Query, Item]]:
    """What reading is learned from first: each word, and so often a page with nothing else on it, in all cells, half of
    them, or three. All pages of a word are one item: none of them is wrong for it."""
    drawn, made = random.Random("primer"), []
    for word in WORDS:
        for number in range(times):
            cells = (SIDE * SIDE, SIDE * SIDE // 2, 3)[number % 3]
            picture = _written([(word, place) for place in drawn.sample(range(SIDE * SIDE), cells)], drawn)
            made.append((Query(word), _kept(folder / f"primer_{word}_{number}.png", picture, f"primer {word}")))
    return made


def _written(words: Sequence[tuple[str, int]], drawn: random.Random) -> Image.Image:
    """Words at places; those of the lower half have a frame."""
    picture = Image.new("RGB", (SIDE * CELL, SIDE * CELL), "white")
    pen = ImageDraw.Draw(picture)
    for word, place in words:
        x, y = place % SIDE * CELL, place // SIDE * CELL
        if place >= SIDE * SIDE // 2:
            pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline="gray")
        moved = (x + 8 + drawn.randint(-SHIFT, SHIFT), y + 2 + drawn.randint(-SHIFT, SHIFT))
        pen.text(moved, word, fill="black", font=_font())
    return picture


def questions(found: Sequence[Page], seed: int, count: int, of: str = "words") -> list[tuple[Query, Page]]:
    """One for each page, in their order: `count` of its words, which stand on no other page together. A page that
    has no such words has no question.

    Args:
        of: where they stand on it: `lines`, `table`, or anywhere (`words`).
    """
    drawn = random.Random(f"questions {seed} {of}")
    made = []
    for page in found:
        for _ in range(20):
            asked = drawn.sample(sorted(getattr(page, of)), count)
            if sum(other.words.issuperset(asked) for other in found) == 1:
                made.append((Query(" ".join(asked)), page))
                break
    return made


def recognised(page: Page, seed: int, errors: float, *, tables: bool) -> Item:
    """What a poor reader makes of it: every letter is another with the chance `errors`; the table is there or not."""
    drawn = random.Random(f"errors {seed} {page.item.id}")
    text = " ".join(page.lines + (page.table if tables else ()))
    read = "".join(drawn.choice(WORDS) if one != " " and drawn.random() < errors else one for one in text)
    return Item(page.item.id, read, Source(page.item.id, 0, len(read)))


@cache
def _font() -> Any:
    return ImageFont.load_default(20)


# --- shapes ----------------------------------------------------------------------------------------------------------

COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
CORNERS = ("north", "south", "east", "west")
EDGE = 32


@dataclass(frozen=True)
class Thing:
    """What is to be drawn or told: a colour, a shape, and where it stands; in the middle without."""

    colour: str
    shape: str
    corner: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.colour, self.shape, self.corner)))


def things(*, corners: bool = False) -> list[Thing]:
    """All there are, in a drawn order that is always the same."""
    made = [
        Thing(colour, shape, corner)
        for colour in COLOURS
        for shape in SHAPES
        for corner in (CORNERS if corners else ("",))
    ]
    return random.Random("things").sample(made, len(made))


def picture(folder: Path, thing: Thing, seed: int, edge: int = EDGE) -> MediaRef:
    """`thing`, drawn; its size, its exact place and the grey behind it are drawn by the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{thing.name.replace(' ', '_')}_{seed}.png"
    drawn = random.Random(f"{thing.name} {seed}")
    shades = tuple(drawn.randint(200, 235) for _ in range(3))
    made = Image.new("RGB", (edge, edge), shades)
    radius = edge * drawn.uniform(0.18, 0.26)
    far = edge * 0.22
    ways = {"": (0, 0), "north": (0, -far), "south": (0, far), "east": (far, 0), "west": (-far, 0)}
    x, y = (edge / 2 + moved + drawn.uniform(-2, 2) for moved in ways[thing.corner])
    _draw(ImageDraw.Draw(made), thing, x, y, radius, shades)
    made.save(path)
    return MediaRef(str(path), "image/png")


def _draw(pen: Any, thing: Thing, x: float, y: float, radius: float, behind: tuple[int, ...]) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "square":
        pen.rectangle(box, fill=thing.colour)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=thing.colour)
    elif thing.shape == "cross":
        thin = radius / 3
        pen.rectangle((x - radius, y - thin, x + radius, y + thin), fill=thing.colour)
        pen.rectangle((x - thin, y - radius, x + thin, y + radius), fill=thing.colour)
    else:
        pen.ellipse(box, fill=thing.colour)
        if thing.shape == "ring":
            half = radius / 2
            pen.ellipse((x - half, y - half, x + half, y + half), fill=behind)


def shown(folder: Path, thing: Thing, seed: int, text: str = "") -> Item:
    """A picture as an item, with its words."""
    media = picture(folder, thing, seed)
    return Item(f"picture {thing.name} {seed} {text}", text, Source(Path(media.uri).name), "image", media)


def told(key: str, text: str) -> Item:
    """A text as an item."""
    return Item(f"text {key}", text, Source(key, 0, len(text)))


def _kept(path: Path, made: Image.Image, key: str) -> Item:
    """A page as an item."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return Item(key, "", Source(path.name), "page", MediaRef(str(path), "image/png"))


def data(name: str, items: Sequence[Item], /, **sizes: int) -> DataInfo:
    """What a world is, by the bytes of all that was drawn and told in it."""
    digest = hashlib.sha256()
    for one in items:
        digest.update(one.id.encode() + one.text.encode())
        if one.media is not None:
            digest.update(Path(one.media.uri).read_bytes())
    return DataInfo(name=name, sha256=digest.hexdigest(), sizes=sizes, synthetic=True)


# --- how they are judged ---------------------------------------------------------------------------------------------


def scores(queries: Any, items: Any) -> np.ndarray:
    """(queries, items): inner products of single vectors, MaxSim of several."""
    if isinstance(queries, np.ndarray):
        made: np.ndarray = queries @ items.T
        return made
    return np.array([[float((one @ other.T).max(axis=1).sum()) for other in items] for one in queries])


def places(found: np.ndarray, right: Sequence[Sequence[int]]) -> list[int]:
    """At which place, from 0, each query's first right item stands; among equal scores the last.

    Args:
        found: scores (queries, items).
        right: columns of each query.
    """
    best = [row[list(own)].max() for row, own in zip(found, right, strict=True)]
    wrong = found.copy()
    for row, own in enumerate(right):
        wrong[row, list(own)] = -np.inf
    return [int((row >= most).sum()) for row, most in zip(wrong, best, strict=True)]


def ndcg(place: int, depth: int = 5) -> float:
    """nDCG of the one right item."""
    return 1 / math.log2(place + 2) if place < depth else 0.0


def arm(
    system: str,
    values: Mapping[str, Sequence[float]],
    costs: Mapping[str, float] | None = None,
    **settings: str | int | float | bool,
) -> Arm:
    """Of values per query, by metric; queries are numbered."""
    by_query: dict[str, dict[str, float | None]] = {
        metric: {str(number): float(value) for number, value in enumerate(own)} for metric, own in values.items()
    }
    means = {metric: float(np.mean(own)) for metric, own in values.items()}
    return Arm(system=system, settings=settings, metrics={**means, **(costs or {})}, per_query=by_query)


def conclude(
    given: argparse.Namespace,
    name: str,
    title: str,
    every: Sequence[Arm],
    ours: Mapping[str, str | int | float | bool],
    metrics: Sequence[str],
    world: DataInfo,
    notes: Sequence[str],
) -> None:
    """Write the result: means over seeds, the arms of each seed, and tests of our arms against all others that have
    the same `split`.

    Args:
        every: with their setting `seed`.
        ours: `system`, and settings that our arms have.
    """
    wanted = dict(ours)
    system = wanted.pop("system")
    means = averages(every)
    own = [arm for arm in means if arm.system == system and wanted.items() <= arm.settings.items()]
    tests = [
        test
        for arm in own
        for other in means
        if other is not arm and other.settings.get("split") == arm.settings.get("split")
        for test in compare.against([arm], other, metrics)
    ]
    result = Result(
        name=name,
        kind="proof",
        title=title,
        command=f"make prove ID={name}",
        seed=0,
        data=(world,),
        environment=environment((), "float32"),
        arms=(*means, *(every if given.seeds > 1 else ())),
        comparisons=tuple(tests),
        notes=tuple(notes),
    )
    _proof.write(result, given.out)


def averages(every: Sequence[Arm]) -> list[Arm]:
    """One arm for all that differ in nothing but the seed, in the order of the first of them."""
    groups: dict[str, list[Arm]] = {}
    for arm in every:
        groups.setdefault(str((arm.system, [one for one in arm.settings.items() if one[0] != "seed"])), []).append(arm)
    return [_proof.over_seeds(own) for own in groups.values()]
