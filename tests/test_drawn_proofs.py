"""Proofs of encoders of pictures: their drawn worlds are the same each time and hold nothing back, and all of them run
to their end, small."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych.tools.evaluation.result import Result

PROOFS = Path(__file__).resolve().parent.parent / "benchmarks" / "proofs"


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A proof, imported as `make prove` would run it."""
    monkeypatch.syspath_prepend(str(PROOFS))

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"drawn_{name}", PROOFS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, made)
        spec.loader.exec_module(made)
        return made

    yield load
    for name in ("_proof", "_shapes"):
        sys.modules.pop(name, None)


def test_pages_are_drawn_alike_and_a_question_has_one_page(proof: Any, tmp_path: Path) -> None:
    world = proof("_shapes")
    one, other = (world.pages(tmp_path / name, 40, 3) for name in ("a", "b"))
    for first, second in zip(one, other, strict=True):
        assert (first.lines, first.table) == (second.lines, second.table)
        assert Path(first.item.media.uri).read_bytes() == Path(second.item.media.uri).read_bytes()
        assert len(first.words) == world.LINES + world.ROWS
    for of in ("words", "table", "lines"):
        asked = world.questions(one, 0, 3, of)
        assert len(asked) > 20
        for query, page in asked:
            assert set(query.text.split()) <= set(getattr(page, of))
            assert sum(set(query.text.split()) <= other.words for other in one) == 1


def test_a_poor_reader_is_as_poor_as_it_says(proof: Any, tmp_path: Path) -> None:
    world = proof("_shapes")
    pages = world.pages(tmp_path, 100, 0)
    assert [world.recognised(page, 0, 0.0, tables=False).text.split() for page in pages] == [
        list(page.lines) for page in pages
    ]
    read = [world.recognised(page, 1, 0.2, tables=True).text.split() for page in pages]
    wrong = [a != b for page, words in zip(pages, read, strict=True) for a, b in zip(page.lines + page.table, words)]  # noqa: B905
    assert 0.12 < sum(wrong) / len(wrong) < 0.28


def test_things_differ_in_what_they_are_called_and_how_they_look(proof: Any, tmp_path: Path) -> None:
    from PIL import Image

    world = proof("_shapes")
    things = world.things(corners=True)
    assert len({thing.name for thing in things}) == len(things) == 120
    assert things == world.things(corners=True) and len(world.things()) == 30
    north, south = (np.asarray(Image.open(world.picture(tmp_path, world.Thing("red", "square", where), 0).uri), int)
                    for where in ("north", "south"))  # fmt: skip
    reds = [(one[..., 0] > 240) & (one[..., 1] < 30) for one in (north, south)]
    assert reds[0][:16].sum() > reds[0][16:].sum() and reds[1][16:].sum() > reds[1][:16].sum()


def test_places_are_the_worst_of_equals(proof: Any) -> None:
    world = proof("_shapes")
    found = np.array([[0.5, 0.9, 0.1], [0.5, 0.5, 0.5], [0.2, 0.3, 0.1]])
    assert world.places(found, [[0], [1], [0, 1]]) == [1, 2, 0]
    assert [round(world.ndcg(place), 4) for place in (0, 1, 4, 5)] == [1.0, 0.6309, 0.3869, 0.0]


def small(made: Any, name: str) -> None:
    """Sizes that only show that it runs."""
    if name in ("colpali", "dse"):
        made.LEARNED, made.HELD, made.PRIMER, made.READING = 16, 24, 1, 1
        made.COURSE = replace(made.COURSE, epochs=1, batch=8)
    elif name == "uniir":
        made.SHOTS, made.FITTING = 1, replace(made.FITTING, epochs=1)
    elif name == "gme":
        made.TIMES, made.COURSE = 1, replace(made.COURSE, batch=30)
    elif name == "ovis":
        made.SHOTS, made.COURSE = 1, replace(made.COURSE, epochs=1)
    else:
        made.TIMES, made.TEXTS, made.PICTURES = 3, replace(made.TEXTS, epochs=1), replace(made.PICTURES, epochs=1)


@pytest.mark.parametrize("name", ["colpali", "dse", "uniir", "gme", "ovis", "vista"])
def test_it_runs_to_its_end(name: str, proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proof(name)
    small(made, name)
    monkeypatch.setattr(sys, "argv", [name, "--seeds", "1", "--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    made.main()
    told = Result.read(tmp_path / "out" / f"{name}.json")
    assert told.name == name and told.kind == "proof" and all(one.synthetic for one in told.data)
    assert all(arm.status == "ok" and arm.per_query for arm in told.arms)
    assert len({arm.label for arm in told.arms}) == len(told.arms) > 2
    assert {test.metric for test in told.comparisons} == set(made.METRICS)
