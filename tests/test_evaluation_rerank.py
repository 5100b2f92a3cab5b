"""`eval rerank` that is stopped and goes on: one line a query, what is taken over, what time allowed, which model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from triptych import progress
from triptych.errors import BadInput, Cancelled
from triptych.manifests import weights
from triptych.manifests.registry import card
from triptych.rerankers.base import Limits, Ranking
from triptych.rerankers.no_rerank import NoRerank
from triptych.rerankers.prompted.rankgpt import RankGPT
from triptych.retrievers.lm import ScriptedLM
from triptych.retrievers.lm_transformers import TransformersLM, weight_files
from triptych.server import cli, evaluate
from triptych.settings import Settings
from triptych.tools.evaluation import datasets, rerank, resume
from triptych.tools.evaluation.result import Result
from triptych.tools.stages import Stages

if TYPE_CHECKING:
    from triptych.retrievers.base import Hit, Query

COLOURS = ("red", "green", "blue", "grey", "pink")
QUERIES = 8
DONE = resume.Done(["red"], 1, 20, 0, True, 0.5, "abc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of one colour each; query n asks for one of them, which the run has last."""
    made = tmp_path_factory.mktemp("data") / "colours"
    made.mkdir()
    queries = {f"q{n}": COLOURS[n % len(COLOURS)] for n in range(QUERIES)}
    rows = [{"id": colour, "text": f"Paint that is {colour}."} for colour in COLOURS]
    asked = [{"id": key, "text": f"{colour} paint number {key}"} for key, colour in queries.items()]
    for name, content in (("corpus", rows), ("queries", asked)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    (made / "qrels.tsv").write_text("".join(f"{key}\t{colour}\t1\n" for key, colour in queries.items()), "utf-8")
    lines = [
        f"{key} Q0 {colour} {n} {9 - n} t\n"
        for key, wanted in queries.items()
        for n, colour in enumerate([*(one for one in COLOURS if one != wanted), wanted])
    ]
    (made / "first.run.trec").write_text("".join(lines), "utf-8")
    return made


class Colours:
    """Puts the passage that shares its colour with the query first, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loaded = 0

    def prepared(self, *given: object) -> Colours:
        self.loaded += 1
        return self

    def rank(self, query: Query, hits: Sequence[Hit], limits: Limits | None = None) -> Ranking:
        text = str(query.text)
        self.asked.append(text)
        best = sorted(hits, key=lambda hit: text.split()[0] not in hit.item.text)
        return Ranking(tuple(best), calls=2, tokens=len(text), repaired=1, complete="q3" not in text)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Colours:
    made = Colours()
    monkeypatch.setattr(rerank, "prepared", made.prepared)
    return made


@pytest.fixture
def settings(tmp_home: Path) -> Settings:
    return Settings.load(precision="float32")


def evaluated(folder: Path, settings: Settings, **given: Any) -> Result:
    collection = datasets.collection(folder, limit=given.pop("limit", None))
    run = datasets.run_file(folder / "first.run.trec", collection)
    options: dict[str, Any] = {"top": 5, "seed": 0, "command": "c", "orders": ["given"]} | given
    return rerank.evaluate(collection, run, "first.run", ["no_rerank"], settings=settings, **options)


def plain(result: Result) -> dict[str, Any]:
    """Without times, and without what is said about earlier runs."""
    made = result.as_dict()
    for arm in made["arms"]:
        arm["metrics"].pop("s_per_query", None)
    made["notes"] = [note for note in made["notes"] if "earlier runs" not in note]
    return made


def stopped_after(n: int, folder: Path, settings: Settings, **given: Any) -> None:
    def on_step(done: int, total: int | None, what: str) -> None:
        if what.startswith("queries") and done == n:
            raise Cancelled("Stopped.")

    with progress.reporting(on_step), pytest.raises(Cancelled):
        evaluated(folder, settings, **given)


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_and_equals_an_unbroken_one(
    folder: Path, settings: Settings, colours: Colours, tmp_path: Path
) -> None:
    whole = evaluated(folder, settings)
    assert whole.arm("no_rerank").metrics["nDCG@10"] == 1
    assert whole.arm("no_rerank").metrics["incomplete"] == pytest.approx(1 / QUERIES)
    colours.asked.clear()
    stopped_after(3, folder, settings, resume=tmp_path)
    assert len(colours.asked) == 3
    kept = tmp_path / "no_rerank-given.jsonl"
    assert len(kept.read_text("utf-8").splitlines()) == 3
    resumed = evaluated(folder, settings, resume=tmp_path)
    assert len(colours.asked) == len(set(colours.asked)) == QUERIES
    assert plain(resumed) == plain(whole)
    assert any(
        note.startswith("Rankings that earlier runs had made") and "3 at commit" in note for note in resumed.notes
    )
    colours.loaded = 0
    again = evaluated(folder, settings, resume=tmp_path)
    assert (colours.loaded, len(colours.asked)) == (0, QUERIES)  # nothing is left to do, so no model is loaded
    assert plain(again) == plain(whole)
    assert again.arm("no_rerank").metrics == resumed.arm("no_rerank").metrics  # times too are those of the first run


def test_half_a_line_is_passed_over_and_done_again(
    folder: Path, settings: Settings, colours: Colours, tmp_path: Path
) -> None:
    evaluated(folder, settings, resume=tmp_path)
    kept = tmp_path / "no_rerank-given.jsonl"
    kept.write_bytes(kept.read_bytes()[:-20])
    colours.asked.clear()
    result = evaluated(folder, settings, resume=tmp_path)
    assert len(colours.asked) == 1
    assert result.arm("no_rerank").metrics["nDCG@10"] == 1
    assert len(kept.read_text("utf-8").splitlines()) == QUERIES + 1
    colours.asked.clear()
    evaluated(folder, settings, resume=tmp_path)
    assert colours.asked == []


def test_what_cannot_be_read_is_no_note(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'[]\n7\n{"key": "k"}\n{"key": "k", "found": [], "more": 1}\n\xff\xfe\n\n')
    notes = resume.Notes(path, "me")
    assert notes.get("q", [("a", 1.0)]) is None
    notes.add("q", [("a", 1.0)], DONE)
    assert resume.Notes(path, "me").get("q", [("a", 1.0)]) == DONE


@pytest.mark.parametrize(
    ("of", "query", "rows"),
    [
        ("other", "q", [("a", 2.0), ("b", 1.0)]),
        ("me", "p", [("a", 2.0), ("b", 1.0)]),
        ("me", "q", [("b", 2.0), ("a", 1.0)]),
        ("me", "q", [("a", 2.0)]),
        ("me", "q", [("a", 3.0), ("b", 1.0)]),
    ],
)
def test_a_note_counts_for_the_same_question_only(
    tmp_path: Path, of: str, query: str, rows: list[tuple[str, float]]
) -> None:
    path = tmp_path / "deep" / "x.jsonl"
    resume.Notes(path, "me").add("q", [("a", 2.0), ("b", 1.0)], DONE)
    assert resume.Notes(path, "me").get("q", [("a", 2.0), ("b", 1.0)]) == DONE
    assert resume.Notes(path, of).get(query, rows) is None


def test_the_identity_is_that_of_what_decides_the_answer(folder: Path, settings: Settings) -> None:
    data = datasets.collection(folder).info
    system = card("rankgpt", "reranker")

    def of(name: str = "rankgpt", **changed: Any) -> str:
        return resume.identity(card(name, "reranker"), replace(settings, **changed), data)

    same = resume.identity(system, settings, data)
    assert same == of(threads=1) == of(reranker="none") == of(max_tokens=9) == of(lm_timeout=3)
    others = [
        of("first"),
        of(precision="bfloat16"),
        of(lm_endpoint="http://127.0.0.1:9", lm_model="m"),
        of(quality="high"),
    ]
    assert len({same, *others}) == 5
    assert resume.identity(system, settings, data.model_copy(update={"sha256": "0" * 64})) != same
    own = settings.weights / "rankgpt"
    assert not own.exists()


def test_weights_of_the_users_own_are_part_of_the_identity(folder: Path, bare_home: Path) -> None:
    data, settings = datasets.collection(folder).info, Settings.load(precision="float32")
    system = card("demorank", "reranker")
    before = resume.identity(system, settings, data)
    (settings.weights / "demorank").mkdir(parents=True)
    (settings.weights / "demorank" / "demonstrations.json").write_text("{}", "utf-8")
    assert resume.identity(system, settings, data) != before


# --- when time is up -------------------------------------------------------------------------------------------------


def test_an_arm_that_was_ended_stands_on_the_queries_it_has_done(
    folder: Path, settings: Settings, colours: Colours, tmp_path: Path
) -> None:
    stopped_after(3, folder, settings, resume=tmp_path)
    result = evaluated(folder, settings, resume=tmp_path, minutes=0)
    assert len(colours.asked) == 3
    arm, before = result.arm("no_rerank"), result.arm("run")
    assert arm.status == "timeout"
    assert arm.reason is not None
    assert arm.reason.startswith("ended after 3 of 8 queries, on which the run has nDCG@10 0.387")
    assert len(arm.per_query["nDCG@10"]) == 3 < len(before.per_query["nDCG@10"]) == QUERIES
    assert arm.metrics["nDCG@10"] == 1
    [compared] = [row for row in result.comparisons if row.metric == "nDCG@10"]
    assert compared.n == 3
    assert compared.difference == pytest.approx(1 - before.per_query["nDCG@10"]["q0"])  # type: ignore[operator]
    assert Result.model_validate_json(json.dumps(result.as_dict())).arm("no_rerank").status == "timeout"


def test_an_arm_without_any_query_says_so(folder: Path, settings: Settings, colours: Colours) -> None:
    result = evaluated(folder, settings, minutes=0)
    arm = result.arm("no_rerank")
    assert (arm.status, arm.reason, arm.metrics) == ("timeout", "ended before the first query", {})
    assert (colours.loaded, result.comparisons) == (0, ())


def test_which_queries_come_first_is_drawn_with_the_seed(folder: Path, settings: Settings, colours: Colours) -> None:
    drawn = []
    for seed in (0, 0, 1):
        colours.asked.clear()
        evaluated(folder, settings, seed=seed)
        drawn.append(tuple(colours.asked))
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == set(drawn[2])
    assert drawn[0] != tuple(sorted(drawn[0], key=lambda text: text.rpartition("q")[2]))


def test_orders_can_be_chosen(folder: Path, settings: Settings, colours: Colours) -> None:
    result = evaluated(folder, settings, orders=["given", "reversed"], name="two")
    assert result.name == "rerank_colours_first_run_two"
    assert [(arm.system, arm.settings["order"]) for arm in result.arms] == [
        *(("run", "given"), ("run", "reversed"), ("no_rerank", "given"), ("no_rerank", "reversed"))
    ]
    pairs = [(row.arm, row.baseline) for row in result.comparisons if row.metric == "nDCG@10"]
    assert pairs[-1] == ("no_rerank (order reversed)", "no_rerank (order given)")
    assert len(pairs) == 4
    for wrong in (["backwards"], []):
        with pytest.raises(BadInput, match="is no order"):
            evaluated(folder, settings, orders=wrong)


def test_from_the_command_line(
    folder: Path, tmp_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("eval", "rerank", str(folder), "--run", str(folder / "first.run.trec"), "--rerank", "no_rerank"),
        *("--resume", str(tmp_path / "kept"), "--orders", "given, shuffled"),
    ]
    out = tmp_path / "out"
    assert cli.main([*arguments, "--name", "lm", "--note", "A loud machine.", "--out", str(out), "--json"]) == 0
    assert {arm["settings"]["order"] for arm in json.loads(capsys.readouterr().out)["arms"]} == {"given", "shuffled"}
    assert Result.read(out / "rerank_colours_first_run_lm.json").notes[-1] == "A loud machine."
    monkeypatch.setattr("sys.argv", ["x", "eval", "rerank", "/a/b/colours", "--note", "A loud machine.", "--out=/c/d"])
    assert evaluate._command() == "triptych eval rerank colours --note 'A loud machine.' --out=d"
    monkeypatch.setattr(NoRerank, "rank", lambda *given: pytest.fail("it ranks again"))
    assert cli.main([*arguments, "--minutes", "0"]) == 0
    assert "no_rerank" in capsys.readouterr().out
    assert cli.main([*arguments, "--minutes", "-1", "--json"]) == 2
    assert "--minutes is `-1`" in capsys.readouterr().out
    assert cli.main([*arguments, "--orders", "up", "--json"]) == 2
    assert "`up` is no order" in capsys.readouterr().out


# --- the language model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model in a folder of the user's."""
    made = tmp_path_factory.mktemp("models") / "my-model"
    tiny = TransformersLM.tiny(3)
    tiny.model.save_pretrained(made)
    tiny.tokenizer.save_pretrained(made)
    return made


def test_a_setting_may_name_a_model_of_the_users_own(model: Path, bare_home: Path) -> None:
    settings = Settings.load(lm=str(model), precision="float32")
    assert settings.lm_path == model
    loaded, made = Stages(settings).local_lm(), TransformersLM.tiny(3)
    [one], [other] = (lm.logprobs([["a b"]], [" c"]) for lm in (loaded, made))
    assert one.tokens == pytest.approx(other.tokens, abs=1e-4)
    assert "smollm2_135m_instruct" not in weights.wanted_by(replace(settings, refiner="truncate"))
    [file] = weight_files(model)
    told = resume.language_model(settings)
    assert told == f"`my-model/model.safetensors` sha256 {resume.sha256(file)}"
    assert str(model.parent) not in told


def test_the_name_of_weights_is_no_path(bare_home: Path) -> None:
    settings = Settings.load()
    assert settings.lm_path is None
    assert resume.language_model(settings).startswith("`SmolLM2-135M-Instruct.Q4_1.gguf` sha256 b179c952")
    assert Settings.load(lm="none").lm_path is None
    assert Settings.load(lm="model.gguf").lm_path == Path("model.gguf")
    endpoint = Settings.load(lm_endpoint="http://127.0.0.1:9", lm_model="big")
    assert resume.language_model(endpoint) == "`big` behind an endpoint"


@pytest.mark.parametrize("name", ["none-such", "empty", "notes.txt", "gone.gguf"])
def test_a_path_without_a_model_is_bad_input(tmp_path: Path, bare_home: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no model", "utf-8")
    with pytest.raises(BadInput, match=f"`{name}` is neither a gguf file nor a folder") as told:
        Stages(Settings.load(lm=str(tmp_path / name))).lm()
    assert str(tmp_path) not in str(told.value)


def test_a_result_of_prompted_rerankers_names_the_model(
    folder: Path, model: Path, tmp_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RankGPT(ScriptedLM(lambda prompt: "[2] > [1]", can=["generate"]))
    monkeypatch.setattr(rerank, "prepared", lambda *given: made)
    collection = datasets.collection(folder)
    run = datasets.run_file(folder / "first.run.trec", collection)
    result = rerank.evaluate(
        collection, run, "first.run", ["rankgpt"], top=3, settings=Settings.load(lm=str(model)), seed=0, command="c",
        orders=["given"],
    )  # fmt: skip
    assert any(note.startswith("Language model: `my-model/model.safetensors` sha256 ") for note in result.notes)
    assert result.arm("rankgpt").metrics["calls"] == 1
    assert result.arm("rankgpt").metrics["repaired"] == 1
