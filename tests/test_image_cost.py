"""Pictures in the budget: what they cost by the vendors' formulas, and `view` in every door."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mcp import Client
from PIL import Image

from triptych.errors import BadInput
from triptych.refiners.tokens import count
from triptych.retrievers.base import Item, MediaRef, Source
from triptych.retrievers.readers import picture
from triptych.server import cli, sessions
from triptych.server.app import build
from triptych.settings import Settings
from triptych.tools.image_cost import FORMULAS, SMALLEST_EDGE, formula_of, largest_edge, scaled
from triptych.tools.library import Triptych
from triptych.tools.operations import view_block
from triptych.tools.viewing import viewed

sys.path.append(str(Path(__file__).parent))
from fake_library import PIXEL, FakeTriptych

if TYPE_CHECKING:
    from collections.abc import Iterator

    from triptych.tools.schemas import ViewOut

BY_HAND = [
    ("anthropic", 200, 200, 64),  # 8 × 8
    ("anthropic", 1075, 1520, 2145),  # 39 × 55
    ("anthropic", 2576, 1449, 4784),  # 92 × 52
    ("anthropic", 4000, 4000, 4761),  # 69 × 69: 70 × 70 would be 4,900
    ("anthropic_area", 100, 75, 10),
    ("anthropic_area", 1568, 784, 1600),  # 1,640 before the limit
    ("anthropic_area", 3136, 75, 79),  # 1568 × 37.5
    ("openai_tiles", 512, 512, 255),
    ("openai_tiles", 513, 512, 425),
    ("openai_tiles", 4096, 1024, 765),  # 2048 × 512, 4 tiles
    ("openai_tiles", 1536, 1536, 765),  # 768 × 768, 4 tiles
    ("openai_patches", 256, 256, 77),  # 8 × 8 × 1.2
    ("openai_patches", 4096, 512, 2458),  # 128 × 16 × 1.2
    ("openai_patches", 33, 65, 8),  # 2 × 3 × 1.2
    ("openai_mini", 32, 32, 2),
    ("openai_mini", 512, 512, 415),  # 16 × 16 × 1.62
    ("openai_mini", 2048, 768, 2489),  # 64 × 24 × 1.62, at the limit
    ("openai_nano", 32, 32, 3),
    ("openai_nano", 512, 512, 630),
    ("openai_nano", 2048, 768, 3779),
    ("gemini", 385, 385, 1032),  # 2 × 2 tiles of 256 pixels
    ("gemini", 1000, 1000, 1032),  # 2 × 2 tiles of 666 pixels
    ("gemini", 1980, 1380, 1548),  # 3 × 2 tiles of 768 pixels
    ("gemini_3", 64, 64, 1120),
    ("gemini_3", 640, 480, 1120),
    ("gemini_3", 2048, 1, 1120),
]
sides = st.integers(1, 2048)
names = st.sampled_from(list(FORMULAS))
WORDS = 30


# --- the formulas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width", "height", "tokens"), BY_HAND)
def test_formulas_give_what_was_computed_by_hand(name: str, width: int, height: int, tokens: int) -> None:
    assert FORMULAS[name](width, height) == tokens
    if name != "gemini_3":
        assert FORMULAS[name](height, width) == tokens


def test_the_examples_of_the_vendors_hold() -> None:
    done = doctest.testmod(importlib.import_module("triptych.tools.image_cost"))
    assert done.attempted >= len(FORMULAS)
    assert done.failed == 0


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), name=names)
def test_every_picture_has_a_price_with_a_ceiling(width: int, height: int, name: str) -> None:
    ceiling = {"openai_patches": 12_000, "openai_nano": 3779, "gemini": 258 * 80 * 27}.get(name, 4784)
    assert 1 <= FORMULAS[name](width, height) <= ceiling


@given(width=sides, height=sides, name=st.sampled_from(["anthropic", "openai_tiles", "openai_mini", "openai_patches"]))
def test_within_its_limits_a_larger_picture_costs_no_less(width: int, height: int, name: str) -> None:
    wide, high = min(width, 700), min(height, 700)
    assert FORMULAS[name](wide, high) <= FORMULAS[name](wide + 28, high + 28)


def test_an_unknown_formula_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"`antropic`.*anthropic, "):
        formula_of("antropic")
    with pytest.raises(BadInput, match="`antropic`"):
        Triptych("x", replace(Settings(home=tmp_path), image_tokens="antropic"))


# --- the largest picture that fits ------------------------------------------------------------------------------------


def fitted(width: int, height: int, name: str, budget: int) -> int:
    """The longer side that `view` ends with."""

    def spent(wide: int, high: int) -> int:
        return FORMULAS[name](wide, high) + WORDS

    whole = max(width, height)
    edge = whole if spent(width, height) <= budget else largest_edge(width, height, spent, budget)
    assert spent(*scaled(width, height, edge)) <= budget
    return edge


@given(width=sides, height=sides, name=names, budget=st.integers(1, 7000))
def test_the_largest_edge_fits_and_none_larger_does(width: int, height: int, name: str, budget: int) -> None:
    try:
        edge = fitted(width, height, name, budget)
    except BadInput as error:
        least = int(error.hint.split()[-1].rstrip(".").replace(",", ""))
        assert least > budget
        fitted(width, height, name, least)
        with pytest.raises(BadInput, match="smallest picture takes"):
            fitted(width, height, name, least - 1)
        return
    assert edge >= min(SMALLEST_EDGE, max(width, height))
    larger = range(edge + 1, max(width, height) + 1)
    assert all(FORMULAS[name](*scaled(width, height, one)) + WORDS > budget for one in larger)


@given(width=sides, height=sides, name=names, budget=st.integers(1, 6000), more=st.integers(0, 3000))
def test_a_larger_budget_never_gives_a_smaller_picture(
    width: int, height: int, name: str, budget: int, more: int
) -> None:
    try:
        edge = fitted(width, height, name, budget)
    except BadInput:
        assume(False)
    assert fitted(width, height, name, budget + more) >= edge


def shown(path: Path, budget: int, name: str = "anthropic", max_edge: int = 1024) -> ViewOut:
    """What `view` makes of the picture at `path`; what it spends is checked."""
    media = MediaRef(path.name, "image/png")
    item = Item("a" * 16, "", Source(path.name), "image", media)
    chosen = replace(Settings(home=path.parent), image_tokens=name)
    seen = viewed(item, media, path, max_edge, budget, chosen)
    assert (seen.tokens, seen.formula) == (FORMULAS[name](seen.width, seen.height), name)
    assert seen.tokens + count(view_block(seen)) <= budget
    with Image.open(io.BytesIO(seen.image)) as picture:
        assert picture.size == (seen.width, seen.height)
    return seen


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 900), height=st.integers(1, 900), name=names, budget=st.integers(1, 1500))
def test_real_pictures_keep_budget_and_shape(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, name: str, budget: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.png"
    Image.new("RGB", (width, height), "teal").save(path)
    try:
        seen = shown(path, budget, name)
    except BadInput as error:
        assert f"`{budget}`" in error.message
        return
    share = max(seen.width, seen.height) / max(width, height)
    assert abs(seen.width - width * share) <= 1
    assert abs(seen.height - height * share) <= 1


def test_what_fits_is_shown_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "teal").save(tmp_path / "a.png")
    assert [shown(tmp_path / "a.png", 6000).width, shown(tmp_path / "a.png", 6000, max_edge=200).width] == [400, 200]
    seen = shown(tmp_path / "a.png", 120)
    assert SMALLEST_EDGE <= seen.width < 400


def test_a_picture_that_does_not_fit_is_drawn_once_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (900, 700), "teal").save(tmp_path / "a.png")
    drawn: list[int] = []
    draw = picture._drawn

    def counted(path: Path, media: MediaRef, max_edge: int, limits: Any) -> Any:
        drawn.append(max_edge)
        return draw(path, media, max_edge, limits)

    monkeypatch.setattr(picture, "_drawn", counted)
    assert shown(tmp_path / "a.png", 150).width < 900
    assert drawn == [1024]


# --- the doors --------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(bare_home: Path) -> Iterator[Triptych]:
    """A library of one picture, without weights."""
    (bare_home / "box").mkdir()
    Image.new("RGB", (800, 600), "teal").save(bare_home / "box" / "harbour.png")
    with Triptych("pictures", Settings.load()) as session:
        session.index(bare_home / "box")
        yield session


def picture_of(library: Triptych) -> str:
    return library.search("harbour").hits[0].id


def test_view_in_every_door(library: Triptych, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    wanted = picture_of(library)
    whole, small = library.view(wanted), library.view(wanted, max_tokens=300)
    assert (whole.width, whole.height, whole.tokens, whole.formula) == (800, 600, 29 * 22, "anthropic")
    assert small.width < 800 and small.tokens < 300
    with pytest.raises(BadInput, match=r"`20`.*smallest picture takes"):
        library.view(wanted, max_tokens=20)
    for wrong in (0, -1, 20_001):
        with pytest.raises(BadInput, match=f"`{wrong}`"):
            library.view(wanted, max_tokens=wrong)

    async def conversation() -> Any:
        async with Client(build(lambda name=None: library, library.settings)) as client:
            return await client.call_tool("view", {"id": wanted, "max_tokens": 300})

    said = asyncio.run(conversation())
    block = said.content[0].text
    assert json.loads(block)["formula"] == "anthropic"
    report = said.meta["triptych"]["tokens"]
    assert report == {"tokenizer": "o200k_base", "budget": 300, "used": count(block) + small.tokens}
    assert report["used"] <= 300

    monkeypatch.chdir(tmp_path)
    library.close()
    assert cli.main(["view", wanted, "--library", "pictures", "--max-tokens", "300", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {**small.model_dump(exclude={"image", "sound"}), "file": f"{wanted}.png"}
    assert (tmp_path / told["file"]).read_bytes() == small.image


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, bare_home: Path) -> FakeTriptych:
    session = FakeTriptych()

    def opened(name: str, chosen: Settings, stages: Any = None) -> FakeTriptych:
        session.settings = chosen
        return session

    monkeypatch.setattr(sessions, "open_library", opened)
    return session


def test_the_command_writes_where_it_is_told(fake: FakeTriptych, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "page.png"
    assert cli.main(["view", "p1", "--out", str(out), "--formula", "gemini"]) == 0
    assert out.read_bytes() == PIXEL
    told = capsys.readouterr().out
    assert "1 × 1 pixels" in told and "gemini" in told
    assert cli.main(["view", "p1", "--out", str(tmp_path / "nowhere" / "a.png"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "BadInput" and "`a.png` cannot be written" in error["message"]
    assert str(tmp_path) not in error["message"] + error["hint"]


def test_formulas_can_be_chosen_for_every_door(bare_home: Path) -> None:
    assert Settings.load().image_tokens == "anthropic"
    assert Settings.load(environ={"TRIPTYCH_IMAGE_TOKENS": "gemini"}).image_tokens == "gemini"
