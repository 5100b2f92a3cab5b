"""The proofs of UniME, UniME-V2 and VLM2Vec: their made-up worlds are what they say, and they run at toy size."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triptych.tools.evaluation.result import Result

PROOFS = Path(__file__).resolve().parent.parent / "benchmarks" / "proofs"
OWN = ("_words", "_dense", "_proof", "unime", "unime_v2", "vlm2vec")


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a proof as `make prove` would run it."""
    monkeypatch.syspath_prepend(str(PROOFS))
    yield importlib.import_module
    for name in OWN:
        sys.modules.pop(name, None)


def run(made: Any, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Result:
    monkeypatch.setattr(sys, "argv", ["proof", "--seeds", "2", "--out", str(out), *more])
    made.main()
    [path] = out.glob("*.json")
    return Result.read(path)


# --- worlds ----------------------------------------------------------------------------------------------------------


def test_no_word_is_of_two_languages_and_twins_differ_in_one(proof: Any) -> None:
    words = proof("_words")
    languages = [words.Language(number, 3) for number in range(4)]
    every = [word for language in languages for row in language.words for word in row]
    assert len(set(every)) == len(every) == 4 * words.PROPERTIES * words.VALUES
    thing = words.things(0)[0]
    near = words.twins(thing)
    assert len(set(near)) == len(near) == words.PROPERTIES * (words.VALUES - 1)
    assert all(sum(a != b for a, b in zip(thing, one, strict=True)) == 1 for one in near)
    assert sorted(words.things(0)) == sorted(words.things(1)) != words.things(1)


def test_planted_duplicates_are_right_and_held_things_stand_in_no_lesson(proof: Any) -> None:
    made, words = proof("unime"), proof("_words")
    world = made.Planted(0)
    assert len(world.lessons) == made.GROUPS * made.IN_GROUP
    assert len(world.damaged) == len(world.clean) == made.DUPLICATES
    assert 0.05 <= made.DUPLICATES / len(world.lessons) <= 0.1
    held = {world.told.says(thing) for thing in world.held}
    assert not held & {lesson.right.text for lesson in world.lessons}
    for lesson, clean in zip(world.damaged, world.clean, strict=True):
        own, told = (set(item.text.split()) for item in (lesson.right, clean))
        assert len(own & told) == words.PROPERTIES - 1
        [other] = [one for one in world.lessons if one.group == lesson.group and one.right == clean]
        assert sorted(other.query.text.split()) == sorted(lesson.query.text.split())
        assert lesson.right.id != clean.id


def test_what_answers_is_what_the_judge_is_asked(proof: Any) -> None:
    made = proof("unime_v2")
    world = made.World(1)
    assert not {one.query.text for one in world.learned} & {one.query.text for one in world.held}
    for one in world.held[:20]:
        assert one.right.id in one.answers
        answer = {item.id for item in world.items if world.answers(one.query.text, item.text)}
        assert answer == one.answers
    [judge] = [made.Judge(world)]
    one = world.held[0]
    prompt = ["?", "Query:", one.query.text, "Candidate:", one.right.text]
    first, again = (judge.next_token_logits([prompt], ("Yes", "No")) for _ in range(2))
    assert first[0, 0] == again[0, 0] > -made.SURE


# --- runs ------------------------------------------------------------------------------------------------------------


def test_unime_at_toy_size(proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proof("unime")
    for name, value in {"GROUPS": 4, "DUPLICATES": 2, "HELD": 3, "BATCH": 8, "EPOCHS": 1}.items():
        monkeypatch.setattr(made, name, value)
    result = run(made, tmp_path, monkeypatch)
    assert result.name == "unime_stage_2" and result.data[0].synthetic
    for way in made.WAYS:
        arm = next(one for one in result.arms if one.system == way and "seed" not in one.settings)
        assert arm.metrics["planted"] == 2 and len(arm.per_query["recall@1"]) >= 3
    assert {one.metric for one in result.comparisons} == set(made.METRICS)


def test_unime_v2_at_toy_size(proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proof("unime_v2")
    short = {"FIRST": replace(made.FIRST, epochs=1), "THEN": replace(made.THEN, epochs=1)}
    for name, value in {"PASSAGES": 60, "LEARNED": 40, "HELD": 4, "KEPT": 2, **short}.items():
        monkeypatch.setattr(made, name, value)
    result = run(made, tmp_path, monkeypatch)
    start = next(one for one in result.arms if one.system == "start" and not one.settings)
    assert start.metrics["judge_right"] is not None and start.metrics["judge_right"] > 0.8
    assert [one.system for one in result.arms[:3]] == ["start", "one_hot", "judge"]


def test_vlm2vec_at_toy_size(proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proof("vlm2vec")
    small = {"LEARNED": 8, "HELD": 3, "EPOCHS": 1, "SHOWN": 12, "HELD_SHOWN": 4, "SHOWN_EPOCHS": 1}
    for name, value in small.items():
        monkeypatch.setattr(made, name, value)
    result = run(made, tmp_path, monkeypatch)
    without = next(one for one in result.arms if one.system == "no_instruction" and "seed" not in one.settings)
    assert without.metrics["recall@1"] is not None and without.metrics["recall@1"] <= 0.5
    pools = {(one.system, one.settings["pool"]) for one in result.arms}
    assert {(way, pool) for way in made.WAYS for pool in ("one_task", "all_tasks")} < pools
