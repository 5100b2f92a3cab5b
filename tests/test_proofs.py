"""The proofs of single systems: each belongs to a card, and their own data is what they say it is."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triptych.errors import BadInput
from triptych.manifests.registry import cards
from triptych.retrievers.base import Item, MediaRef, Source
from triptych.retrievers.universal.unime import UniME
from triptych.settings import Settings
from triptych.tools.evaluation.result import Arm, Result

PROOFS = Path(__file__).resolve().parent.parent / "benchmarks" / "proofs"
SCRIPTS = sorted(path.stem for path in PROOFS.glob("[!_]*.py"))
FURTHER = {"unime_pictures", "uniir_blip_ff"}
"""Second experiments of cards' systems."""


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
    assert name in cards() or name in FURTHER
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


# the larger course

LEARNING: dict[str, tuple[str, dict[str, Any]]] = {
    "ance": ("data", {"LEARNED": 14, "TUNED": 2, "HELD": 6, "VOCABULARY": 300}),
    "colbert": ("data", {"FULL": {"limit": None, "lessons": 9, "epochs": 1, "batch": 4, "centroids": 16}}),
    "deepct": ("train", {"MEASURED": 4, "TUNED": 4}),
    "dpr": ("train", {"LEARNED": 14, "TUNED": 2, "HELD": 6}),
    "hdct": ("data", {"CHOSEN": 4}),
    "poly_encoder": (
        "train",
        {"LEARNED": 14, "TUNED": 2, "HELD": 6, "EXAMPLES": 8, "TIMES": 1, "CODES": (1, 2), "FACETS": (2,)}
        | {"CROSS_QUERIES": 4, "SEARCHED": 2, "SIZES": (50,)},
    ),
}
"""What each learns from, and sizes for a test."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT's folder."""
    from triptych.retrievers.text.colbert import ColBERT

    folder, tiny = tmp_path_factory.mktemp("bert"), ColBERT.tiny()
    tiny.network.bert.save_pretrained(folder)
    tiny.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with a part `train`, and the same as questions with their passages."""
    folder, rng = tmp_path_factory.mktemp("toy"), random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(40)]
    rows = [[rng.choices(words, k=6), rng.choices(words, k=3)] for _ in range(24)]
    passages = [{"id": f"p{n}", "title": " ".join(b), "text": " ".join([*a, *b])} for n, (a, b) in enumerate(rows)]
    asked = [{"id": f"q{n}", "text": " ".join(a[:3])} for n, (a, _) in enumerate(rows)]
    learned = [
        {"id": one["id"], "question": one["text"], "answers": [one["text"].split()[0]], "passage": passage}
        for one, passage in zip(asked, passages, strict=True)
    ]
    files: dict[str, list[Any]] = {"corpus": passages, "queries": asked, "train": learned}
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    for name, numbers in {"qrels": range(8), "qrels.train": range(8, 24)}.items():
        (folder / f"{name}.tsv").write_text("".join(f"q{n}\tp{n}\t1\n" for n in numbers), "utf-8")
    return folder


@pytest.mark.parametrize("name", LEARNING)
def test_the_larger_course_has_a_result_of_its_own(
    module: Any, name: str, start: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, (source, sizes) = module(name), LEARNING[name]
    monkeypatch.setattr(made._proof.plots, "draw", lambda result, out: [])
    if name != "ance":
        monkeypatch.setattr(made, "folder", lambda *_: start)
    for course in ("FULL", "FULL_WARM") if name != "colbert" else ():
        if hasattr(made, course):
            monkeypatch.setattr(made, course, replace(getattr(made, course), epochs=1, batch=4))
    for key, size in sizes.items():
        monkeypatch.setattr(made, key, size)
    given = toy if source == "data" else toy / "train.jsonl"
    monkeypatch.setattr(
        sys, "argv", [name, f"--{source}", str(given), "--full", "--seeds", "1", "--out", str(tmp_path)]
    )
    made.main()
    assert [path.name for path in tmp_path.glob("*.json")] == [f"{name}_full.json"]
    told = json.loads((tmp_path / f"{name}_full.json").read_text("utf-8"))
    assert told["command"].endswith("FULL=1")
    assert {"processor", "gpu", "cores"} <= told["environment"].keys()
    assert any(arm["system"].startswith(name) for arm in told["arms"])
    assert told["comparisons"]


@pytest.mark.parametrize("name", ["bm25", "tfidf", "prompt_saw", "monobert", "cpc"])
def test_what_learns_nothing_has_no_larger_course(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--full"])
    with pytest.raises(BadInput, match=f"`{name}` has no larger course"):
        made.main()


# UniME on photographs


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A collection of six plain pictures, each with two captions."""
    colours = ("red", "green", "blue", "white", "black", "yellow")
    files: dict[str, list[dict[str, str]]] = {"corpus": [], "queries": []}
    for colour in colours:
        Image.new("RGB", (80, 60), colour).save(tmp_path / f"{colour}.png")
        files["corpus"].append({"id": colour, "image": f"{colour}.png"})
        files["queries"] += [
            {"id": f"{colour}#{n}", "text": f"{start} {colour}"} for n, start in enumerate(("a", "the"))
        ]
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    judged = "".join(f"{colour}#{n}\t{colour}\t1\n" for colour in colours for n in range(2))
    (tmp_path / "qrels.tsv").write_text(judged, "utf-8")
    return tmp_path


def test_each_photograph_is_held_back_once_and_never_learned_from_then(
    module: Any, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module("unime_pictures")
    monkeypatch.setattr(made, "PARTS", 3)
    (tmp_path / "small").mkdir()
    world = made.World(made.datasets.collection(photographs), tmp_path / "small")
    turns = list(world.turns())
    assert sorted(key for _, held in turns for key in held) == sorted(world.photographs)
    for known, held in turns:
        assert sorted([*known, *held]) == sorted(world.photographs)
        lessons = world.lessons(known)
        assert len(lessons) == 8
        assert all(one.query.text.endswith(one.right.id) and one.right.id not in held for one in lessons)
    with Image.open(world.photographs["red"].media.uri) as picture:
        assert max(picture.size) == made.EDGE


def test_the_network_on_photographs_knows_words_and_sees(module: Any, photographs: Path, weights_home: Path) -> None:
    made = module("unime_pictures")
    settings = Settings.load("embedded", home=weights_home)
    one, again, other = (made.network(settings, seed) for seed in (0, 0, 1))
    words = one.backbone.model.language_model.embed_tokens.weight.detach()
    dog, puppy, snow = (words[one.backbone.token(word)] for word in ("dog", "puppy", "snow"))
    assert dog @ puppy > 2 * abs(dog @ snow)
    shown = [
        Item(key, "", Source(key), "image", MediaRef(str(photographs / f"{key}.png"), "image/png"))
        for key in ("red", "blue")
    ]
    first, same, different = (system.encode(shown, "document") for system in (one, again, other))
    assert first == pytest.approx(same) and first[0] != pytest.approx(first[1]) and first != pytest.approx(different)


def test_unime_on_photographs_at_toy_size(
    module: Any, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module("unime_pictures")
    monkeypatch.setattr(made._proof.plots, "draw", lambda result, out: [])
    monkeypatch.setattr(made, "network", lambda settings, seed: UniME.tiny(seed))
    for key, size in {"PARTS": 2, "BATCH": 4, "FIRST": (1, 1e-3), "THEN": (1, 1e-3)}.items():
        monkeypatch.setattr(made, key, size)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["proof", "--data", str(photographs), "--seeds", "1", "--out", str(out)])
    made.main()
    told = Result.read(out / "unime_pictures.json")
    captions = {f"{path.stem}#{n}" for path in photographs.glob("*.png") for n in range(2)}
    ways = ("info_nce", "hard_negatives", "hard_negatives_filtered")
    arms = {(one.system, one.settings["start"]) for one in told.arms}
    assert arms == {*((way, start) for way in ways for start in made.STARTS), ("random_order", "none")}
    assert len(told.arms) == 2 * len(arms)
    assert all(one.per_query["MRR"].keys() == captions for one in told.arms)
    means = [one for one in told.arms if "seed" not in one.settings]
    assert len(means) == len(arms) and all(len(one.per_query["MRR of a photograph"]) == 6 for one in means)
    assert len(told.comparisons) == (6 + 2 * 2) * len(made.METRICS)
