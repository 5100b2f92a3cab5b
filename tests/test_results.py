"""Figures in README and on the cards are those of the result files."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from triptych.manifests.registry import Card, cards

ROOT = Path(__file__).resolve().parent.parent
MEASURED = [card for card in cards().values() if card.evidence != "pending"]


def tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_readme_are_made_from_the_results() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert tables().with_tables(text) == text, "Run `python benchmarks/tables.py`."
    assert "| stage | p50 | p95 |" in text


def test_other_prose_of_the_readme_claims_no_figures() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    before, _, rest = text.partition("<!-- results:start -->")
    prose = before + rest.partition("<!-- results:end -->")[2]
    assert re.findall(r"nDCG|\d ?ms\b|\d+(?:\.\d+)? ?times (?:faster|better)", prose) == []


@pytest.mark.parametrize("card", MEASURED, ids=lambda card: card.id)
def test_a_card_with_evidence_quotes_its_file(card: Card) -> None:
    path = ROOT / card.evidence
    figures = json.dumps(json.loads(path.read_text("utf-8")))
    quoted = re.findall(r"\d+\.\d+", card.result)
    assert quoted
    known = {round(float(number), 3) for number in re.findall(r"\d+\.\d+", figures)}
    assert {round(float(number), 3) for number in quoted} <= known


def test_the_bars_that_are_claimed_are_met() -> None:
    results = tables()
    latency, handshake = results.result("latency"), results.result("handshake")
    total = latency["retrieve"]["ms"]["total"]
    assert total["p50"] <= latency["retrieve"]["bar_ms"]["p50"]
    assert total["p95"] <= latency["retrieve"]["bar_ms"]["p95"]
    assert latency["throughput"]["ratio"] >= latency["throughput"]["bar"]
    assert max(handshake["legacy"]["ratio"], handshake["auto"]["ratio"]) <= handshake["bar"]
