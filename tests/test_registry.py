"""Cards: the packaged ones are sound, and a wrong one says what is wrong."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

from triptych import BadInput, UnknownSystem
from triptych.manifests import registry, weights
from triptych.refiners.base import Refiner
from triptych.rerankers.base import Reranker
from triptych.retrievers.base import Encoder, Retriever

ROOT = Path(__file__).resolve().parent.parent
CARDS = registry.cards()
CONTRACTS: dict[str, tuple[type, ...]] = {
    "retriever": (Retriever, Encoder),
    "reranker": (Reranker,),
    "refiner": (Refiner,),
}
LINES = range(60, 401)


def path_of(card: registry.Card) -> Path:
    return ROOT.joinpath(*card.entry.partition(":")[0].split(".")[1:]).with_suffix(".py")


def entry(**changed: Any) -> dict[str, Any]:
    whole = {
        "title": "T",
        "entry": "triptych.refiners.hard.truncate:Truncate",
        "family": "hard",
        "paper": "none",
        "kind": "truncation",
        "modalities": ["text"],
        "licence_code": "Apache-2.0",
        "licence_weights": "none",
        "fidelity": "baseline",
        "evidence": "pending",
    }
    return {key: value for key, value in {**whole, **changed}.items() if value is not None}


# --- every packaged card ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", registry.ROLES)
def test_cards_stand_in_alphabetical_order(role: str) -> None:
    table = tomllib.loads((ROOT / "manifests" / "systems" / f"{role}s.toml").read_text("utf-8"))
    assert list(table) == sorted(table)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_and_its_file_agree(card: registry.Card) -> None:
    path = path_of(card)
    assert path.stem == card.id
    assert path.parent.name == card.family
    head = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
    if card.paper == "none":
        assert "arXiv:" not in head
        assert "doi:" not in head
    else:
        assert card.paper in head


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_names_what_exists(card: registry.Card) -> None:
    assert set(card.weights) <= set(weights.models())
    assert set(card.builds_on) <= set(CARDS) - {card.id}
    for point in card.checkpoints:
        if point["name"] in weights.models():
            hashes = {f"sha256:{file.sha256}" for file in weights.model(point["name"]).files}
            assert point["revision"] in hashes
    if card.evidence == "pending":
        assert card.result == ""
    else:
        json.loads((ROOT / card.evidence).read_text("utf-8"))
        assert card.result


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_an_entry_is_a_class_of_its_role_with_every_door(card: registry.Card) -> None:
    system = card.resolve()
    assert inspect.isclass(system)
    assert issubclass(system, CONTRACTS[card.role])
    assert not inspect.isabstract(system)
    assert all(callable(getattr(system, door, None)) for door in ("load", "tiny"))
    assert system.__module__ == card.entry.partition(":")[0]


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_system_fits_into_one_file(card: registry.Card) -> None:
    lines = len(path_of(card).read_text("utf-8").splitlines())
    if lines not in LINES:
        warnings.warn(f"{card.id} has {lines} lines; 60 to 250 are usual, 400 the most", stacklevel=1)
    assert lines > 10


def test_cards_are_json() -> None:
    listed = json.loads(json.dumps([card.as_dict() for card in CARDS.values()]))
    assert [card["id"] for card in listed] == list(CARDS)


# --- wrong cards -----------------------------------------------------------------------------------------------------


def test_a_right_card_is_read() -> None:
    card = registry.parse("truncate", "refiner", entry(extras=["mcp"]))
    assert (card.id, card.role, card.modalities, card.extras) == ("truncate", "refiner", ("text",), ("mcp",))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"colour": "blue"}, "colour"),
        ({"kind": None}, "kind"),
        ({"extras": ["gpu"]}, "gpu"),
        ({"fidelity": "exact"}, "exact"),
        ({"modalities": ["text", "smell"]}, "smell"),
        ({"paper": "2310.05736"}, "2310.05736"),
        ({"entry": "os:system"}, "os:system"),
        ({"entry": "triptych.refiners.hard.truncate"}, "truncate"),
        ({"checkpoints": [{"name": "m", "format": "safetensors", "native": True}]}, "checkpoints"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match="`truncate`") as caught:
        registry.parse("truncate", "refiner", entry(**changed))
    assert named in caught.value.message


def test_an_id_on_two_cards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [registry.parse("truncate", role, entry()) for role in ("reranker", "refiner")]
    monkeypatch.setattr(registry, "_read", lambda: iter(twice))
    with pytest.raises(BadInput, match="`truncate` stands on two cards"):
        registry.packaged.__wrapped__()


def test_a_misspelt_id_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownSystem) as caught:
        registry.card("llmlinga")
    assert caught.value.message == "Unknown system `llmlinga`."
    assert caught.value.hint == "Did you mean `llmlingua`?"
    assert caught.value.exit_code == 2


def test_an_id_of_another_role_is_unknown_in_this_one() -> None:
    assert registry.card("bm25").role == "retriever"
    with pytest.raises(UnknownSystem, match="Unknown reranker `bm25`") as caught:
        registry.card("bm25", "reranker")
    assert "maxsim" in caught.value.hint


def test_an_entry_is_imported_only_when_asked_for() -> None:
    card = registry.parse("nowhere", "refiner", entry(entry="triptych.refiners.hard.nowhere:Nowhere"))
    with pytest.raises(ModuleNotFoundError):
        card.resolve()
    assert importlib.util.find_spec("triptych.refiners.hard.nowhere") is None
