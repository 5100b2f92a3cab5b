"""docs/systems.md has a row for every system, and says what the cards say."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triptych.manifests.registry import packaged

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("systems_page", ROOT / "benchmarks" / "systems_page.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_page_is_made_from_the_cards(script: Any) -> None:
    assert script.PAGE.read_text("utf-8") == script.page(), "Run `make results`."
    assert script.main(["--check"]) == 0


def test_every_system_has_a_row_with_its_files(script: Any) -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(\.\./(\S+?)\) \|(.*)$", script.page(), re.M)
    assert [id_ for id_, _, _ in rows] == list(packaged())
    for id_, file, rest in rows:
        assert (ROOT / file).is_file(), id_
        assert rest.count(" | ") == len(script.COLUMNS) - 2
        for path in re.findall(r"\(\.\./(benchmarks/\S+?)\)", rest):
            assert (ROOT / path).is_file(), id_
        assert f"--{packaged()[id_].role} {id_}`" in rest


def test_what_a_row_says(script: Any) -> None:
    card = packaged()["bm25"]
    brought = {"name": "a/b", "format": "safetensors", "native": True, "revision": "unseen"}
    assert script.paper(replace(card, paper="arXiv:1234.56789")) == "<https://arxiv.org/abs/1234.56789>"
    assert script.paper(replace(card, paper="none")) == "none"
    seen = {"name": "shipped", "format": "onnx", "native": True, "revision": "sha256:0"}
    own = replace(card, checkpoints=(), weights=(), licence_weights="MIT")
    assert script.weights(own) == "none needed"
    assert script.weights(replace(own, checkpoints=(brought,))) == "your own: a/b; licence: MIT"
    assert script.weights(replace(own, checkpoints=(seen,))) == "in the package; licence: MIT"
    either = replace(own, weights=("c",), checkpoints=({**brought, "native": False},))
    assert script.weights(either) == "pulled; your own: a/b (after conversion); licence: MIT"
    assert script.measured(replace(card, evidence="pending")) == "not yet measured"
    assert r"a \| b" in next(iter(list(script.table([["a | b"] * len(script.COLUMNS)]))[2:]))
