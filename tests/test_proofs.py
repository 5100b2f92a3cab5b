"""The proofs of single systems: each belongs to a card, and their own data is what they say it is."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.manifests.registry import cards
from triptych.tools.evaluation.result import Arm

PROOFS = Path(__file__).resolve().parent.parent / "benchmarks" / "proofs"
SCRIPTS = sorted(path.stem for path in PROOFS.glob("[!_]*.py"))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proof, imported as `make prove` would run it."""
    monkeypatch.syspath_prepend(str(PROOFS))

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"proof_{name}", PROOFS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, made)  # dataclasses look their module up
        spec.loader.exec_module(made)
        return made

    yield load
    sys.modules.pop("_proof", None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_proof_belongs_to_a_card(module: Any, name: str) -> None:
    assert name in cards()
    made = module(name)
    assert f"make prove ID={name}" in made.__doc__
    assert callable(made.main)


def test_evidence_never_names_its_subject(module: Any) -> None:
    made = module("cpc")
    for theme, docs in zip(made.THEMES, made.documents(), strict=True):
        for names, sentences in zip(theme[2], docs, strict=True):
            subject = names.split(";")[0]
            assert len(sentences) == 4
            assert subject in sentences[0]
            assert not any(word in " ".join(sentences[1:]).split() for word in subject.split())
            assert all(subject in question.format(*names.split(";")) for question in theme[1])


def test_the_rule_is_right_more_often_than_not_on_what_it_was_not_mended_on(module: Any) -> None:
    made = module("prompt_saw")
    found = made.rule(held_out=True).metrics
    assert found["precision"] > 0.85
    assert found["recall"] > 0.55
    rows = [json.loads(line) for line in made.GOLD.read_text("utf-8").splitlines()]
    assert len({row["sentence"] for row in rows}) == len(rows)
    assert found["sentences"] == sum(row["held_out"] for row in rows)


def test_verbatim_counts_words_of_the_source(module: Any) -> None:
    made = module("llmlingua2")
    assert made.verbatim("a b b", "a b c") == pytest.approx(2 / 3)
    assert made.verbatim("", "a") == 0
    assert made.plain("x-1, (y)") == "x 1 y"
    assert made.agreement([("a", True), ("b", False)], [("a", True), ("b", True)]) == (1, 2)


def test_seeds_are_averaged_metric_by_metric_and_query_by_query(module: Any) -> None:
    module("cpc")  # puts the shared module in reach
    import _proof

    arms = [
        Arm(
            system="a",
            settings={"seed": seed, "size": 2},
            metrics={"nDCG@10": value, "none": None},
            per_query={"nDCG@10": {"q": value, "r": None if seed else 1.0}},
        )
        for seed, value in enumerate((0.2, 0.4, 0.9))
    ]
    one = _proof.over_seeds(arms)
    assert one.settings == {"size": 2}
    assert one.metrics == {"nDCG@10": pytest.approx(0.5), "nDCG@10_sd": pytest.approx(0.3606, abs=1e-4), "none": None}
    assert one.per_query == {"nDCG@10": {"q": pytest.approx(0.5), "r": None}}
