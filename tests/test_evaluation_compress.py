"""What survives compression: the rules, the baselines, and the measurement."""

from __future__ import annotations

import json
import mmap
import re
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BadInput, Cancelled, MissingWeights, UnknownSystem
from triptych.manifests import weights
from triptych.manifests.registry import cards
from triptych.progress import reporting
from triptych.refiners.base import Budget, Passage, Piece, plain
from triptych.refiners.tokens import count
from triptych.retrievers.base import Hit, Item, Query, Source
from triptych.server import cli
from triptych.settings import Settings
from triptych.tools.evaluation import compress, datasets
from triptych.tools.evaluation.baselines import NO_COMPRESSION, BestSentences, Everything, RandomWords, baselines
from triptych.tools.evaluation.datasets import Context
from triptych.tools.evaluation.memory import EVERY_S, PeakMemory
from triptych.tools.evaluation.positions import Places
from triptych.tools.evaluation.survival import (
    Facts,
    evidence_kept,
    evidence_whole,
    names,
    normalised,
    numbers,
    read,
    survives,
)
from triptych.tools.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from triptych.tools.evaluation.result import Result

BASELINES = {"truncate", "random_words", "bm25_sentences", "dense_sentences"}
TIMES = {"ms_p50", "ms_p95", "tokens_per_s", "peak_rss_mb"}

LAMP = (
    "The lighthouse on Vessey Holm was lit in 1871. Its lamp burned rape oil at first. "
    "Keeper Ada Lindqvist counted 1,945 puffins that summer. Paraffin came later, in 1889."
)
FERRY = (
    "The ferry Sula leaves at 9:30 on weekdays. It carries twelve people and no cars. "
    "Tickets are sold on board, for cash only. In winter there is one crossing a week."
)
KITCHEN = (
    "Bread is baked on Mondays. The oven needs an hour to get hot. Porridge is served at seven. "
    "Nobody has ever asked for a second helping of it. The salt stands by the door."
)
GOLD = "Its lamp burned rape oil at first."


def question(key: str, text: str, answers: Sequence[str], evidence: bool = False) -> dict[str, Any]:
    contexts: list[dict[str, Any]] = [
        {"id": "kitchen", "title": "Kitchen", "text": KITCHEN},
        {"id": "ferry", "title": "Ferry", "text": FERRY},
        {"id": "lamp", "title": "Lighthouse", "text": LAMP},
    ]
    if evidence:
        contexts[2]["evidence"] = [[LAMP.index(GOLD), LAMP.index(GOLD) + len(GOLD)]]
    return {"id": key, "question": text, "answers": list(answers), "contexts": contexts}


QUESTIONS = [
    question("lit", "When was the lighthouse lit?", ["1871", "in the year 1871"]),
    question("lamp", "What did the lamp of the lighthouse burn at first?", ["rape oil"], evidence=True),
    question("summary", "What is told of the lighthouse lamp?", []),
]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    file = tmp_path / "Island Questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), "utf-8")
    return file


def evaluated(file: Path, refiners: Sequence[str] = ("extractive",), **given: Any) -> Result:
    options: dict[str, Any] = {"budgets": (), "rates": (), "reranker": None, "seed": 0, "command": "made by a test"}
    return compress.evaluate(datasets.questions(file), refiners, settings=Settings.load(), **{**options, **given})


def hits(texts: Sequence[str]) -> list[Hit]:
    return [Hit(Item(f"p{n}", text, Source(f"notes/{n}.md")), 0.0) for n, text in enumerate(texts)]


def kept(text: str, *spans: tuple[int, int], key: str = "p") -> Passage:
    """What is left of `text`: `spans`, with a space between."""
    pieces: list[Piece] = []
    for start, end in spans:
        pieces += [Piece(" ", None, "joiner")] if pieces else []
        pieces.append(Piece(text[start:end], (start, end), "kept"))
    return Passage(Item(key, text, Source("p.md")), tuple(pieces))


# --- answers ----------------------------------------------------------------------------------------------------------

FOUND = [
    ("1871", LAMP),
    ("the Rape Oil", LAMP),
    ("US", "The U.S. army"),
    ("U.S.", "the US army"),
    ("1945", "In the war (1939-1945)."),
    ("1939", "In the war of 1939–1945."),
    ("John", "It was John's boat."),
    ("Smith Jones", "Ms Smith-Jones came."),
    ("1000", "It has 1,000 seats."),
    ("$5", "It was about 5 dollars."),
    ("A", "She got an A in it."),
    ("C++", "Written in C++."),
    ("cafe\u0301", "A café by the sea."),
    ("北京", "他在北京市工作。"),
    ("308", "共308分"),
    ("서울", "서울에서 왔다"),
]
LOST = [
    ("4", "It was 1945."),
    ("4", "It was 3.4 on the scale."),
    ("945", "She counted 1,945."),
    ("art", "The party starts."),
    ("New York", "It is New … York is a town."),
    ("rape oil", "Rape seed and oil."),
    ("北京", "北\n京"),
    ("A", "Bananas."),
]


@pytest.mark.parametrize(("answer", "text"), FOUND)
def test_an_answer_is_found_as_whole_words(answer: str, text: str) -> None:
    assert survives([answer], [read(text)])


@pytest.mark.parametrize(("answer", "text"), LOST)
def test_an_answer_is_not_found_inside_words_or_across_gaps(answer: str, text: str) -> None:
    assert not survives([answer], [read(text)])


def test_normalisation_is_that_of_squad() -> None:
    assert normalised(" The quick,  brown\nFox's “den” — an A.") == "quick brown foxs den"


def test_any_spelling_counts_and_blank_ones_do_not() -> None:
    assert survives(["never said", "rape oil"], [read(KITCHEN), read(LAMP)])
    assert not survives([" ", ""], [read(LAMP)])
    assert not survives([], [read(LAMP)])


WORDS = st.lists(st.text("abcxyzéß0123456789", min_size=1, max_size=6), min_size=1, max_size=8)


@given(WORDS, WORDS, WORDS)
def test_whole_words_of_a_text_survive_in_it(before: list[str], answer: list[str], after: list[str]) -> None:
    assert survives([" ".join(answer)], [read(" ".join([*before, *answer, *after]))])


@given(st.text("bc019 ", max_size=12), st.text("bc019", min_size=1, max_size=3))
def test_an_answer_is_a_run_of_whole_words(text: str, answer: str) -> None:
    assert survives([answer], [read(f"x{answer}x {text} {answer}x")]) == (answer in text.split())


@given(st.text(max_size=60), st.text(max_size=12))
def test_any_text_can_be_read(text: str, answer: str) -> None:
    assert survives([answer], [read(text)]) in (True, False)
    assert survives([text], [read(text)]) == bool(text.strip())


# --- evidence, numbers, names -----------------------------------------------------------------------------------------


def test_evidence_is_counted_in_characters_of_spans() -> None:
    context = Context("p", "", "abcd efgh ijkl", ((0, 4), (5, 9)))
    assert evidence_kept([context], [kept(context.text, (0, 4))]) == 0.5
    assert evidence_kept([context], [kept(context.text, (2, 7))]) == 0.5
    assert evidence_kept([context], [kept(context.text, (10, 14))]) == 0
    assert evidence_kept([context], [kept(context.text, (0, 4), key="another")]) == 0
    assert evidence_kept([context], []) == 0
    assert evidence_kept([Context("p", "", "abcd")], [kept("abcd", (0, 4))]) is None


def test_evidence_without_spans_is_counted_by_sentences() -> None:
    context = Context("p", "", f"{KITCHEN} {GOLD} Yes.", ((len(KITCHEN) + 1, len(KITCHEN) + len(GOLD) + 6),))
    made = Item("q", "", Source("p.md"))
    [share] = {evidence_kept([context], [Passage(made, (Piece(f"x. {GOLD.upper()} y.", None, "generated"),))])}
    assert share == pytest.approx(1 - 4 / len(GOLD.replace(" ", "") + "Yes."))


def test_a_row_is_kept_whole_when_number_and_label_are() -> None:
    row = "Total assets $ 2,605 $ 2,921"
    context = Context("p", "", f"{row} Inventories 7", ((0, len(row)), (len(row) + 1, len(row) + 14)))
    assert evidence_whole([context], [kept(context.text, (0, 28))]) == 0.5
    assert evidence_whole([context], [kept(context.text, (0, 12), (13, 28))]) == 0.5, "white space may be lost"
    assert evidence_whole([context], [kept(context.text, (0, 20), (29, 42))]) == 0.5
    assert evidence_whole([context], [kept(context.text, (13, 42))]) == 0.5
    assert evidence_whole([context], []) == 0
    assert evidence_whole([Context("p", "", "abcd  ", ((4, 6),))], []) is None
    told = Passage(Item("q", "", Source("p.md")), (Piece("total assets $2,605 $2,921.", None, "generated"),))
    assert evidence_whole([context], [told]) == 0.5


@given(st.data())
def test_more_pieces_never_keep_less_evidence(data: st.DataObject) -> None:
    text = data.draw(st.text("ab c", min_size=2, max_size=30))
    spans = st.tuples(st.integers(0, len(text) - 1), st.integers(1, len(text))).filter(lambda span: span[0] < span[1])
    context = Context("p", "", text, tuple(data.draw(st.lists(spans, max_size=3))))
    chosen = data.draw(st.lists(spans, min_size=1, max_size=4))
    found = [evidence_kept([context], [kept(text, *chosen[:n])]) for n in range(1, len(chosen) + 1)]
    if found[0] is None:
        assert found == [None] * len(found)
    else:
        assert found == sorted(found)  # type: ignore[type-var]
        assert evidence_kept([context], [kept(text, (0, len(text)))]) == 1
        assert evidence_whole([context], [kept(text, (0, len(text)))]) == 1


def test_numbers_are_told_apart_by_what_joins_them() -> None:
    text = "From 1939-1945, at 9:30 on 2024-04-20 it cost 1,945.50 for 12kg, no. 7. B2B, nq600 and x_5 are names."
    assert numbers(text) == {"1939-1945", "9:30", "2024-04-20", "1,945.50", "12", "7"}
    assert numbers("共308分，12月") == {"308", "12"}


def test_names_are_capitals_that_no_sentence_start_explains() -> None:
    text = (
        'Yesterday the Bank of England met John\'s wife. COVID-19 spread, McDonald said: "The end of NASA". '
        "I think the U.S. sold an iPhone to New York City. Then I left.\nTHE LAST CHAPTER\nBarack Obama spoke."
    )
    wanted = {"Bank of England", "John", "COVID-19", "McDonald", "NASA", "U.S.", "iPhone", "New York City", "Obama"}
    assert names(text) == wanted
    assert names("他在北京市工作。") is None
    assert names("nothing here") == frozenset()


def test_facts_of_a_question_compare_with_what_is_left(asked: Path) -> None:
    row = datasets.questions(asked).rows[1]
    facts = Facts.of(row)
    whole = Everything().refine(None, row.hits(), Budget(1)).passages
    assert set(facts.kept(whole).values()) == {1.0}
    assert facts.kept([]) == dict.fromkeys(compress.KEPT, 0)
    half = facts.kept([kept(LAMP, (0, LAMP.index(GOLD)), key="lamp")])
    assert half == dict.fromkeys(compress.KEPT, 0) | {"numbers_kept": 1 / 4, "entities_kept": 1 / 4}


def test_places_are_thirds_of_the_contexts_in_the_order_they_are_given(asked: Path) -> None:
    row = datasets.questions(asked).rows[1]
    places = Places.of(row, row.hits())
    assert places.answer == "late"
    assert [context.id for contexts in places.contexts.values() for context in contexts] == ["kitchen", "ferry", "lamp"]
    assert Places.of(row, row.hits()[::-1]).answer == "early"
    assert Places.of(row, row.hits()[2:]).answer == "early", "fewer contexts than thirds"
    told = {name: value for name, value in places.kept(0.0, []).items() if value is not None}
    assert told == {"answers_kept_late": 0.0, "evidence_kept_late": 0.0}


def test_an_answer_in_two_thirds_has_no_place(tmp_path: Path) -> None:
    row = question("twice", "When?", ["1871"])
    row["contexts"][0]["text"] += " In 1871 it was new."
    file = tmp_path / "twice.jsonl"
    file.write_text(json.dumps(row), "utf-8")
    [found] = datasets.questions(file).rows
    assert Places.of(found, found.hits()).answer is None


# --- baselines --------------------------------------------------------------------------------------------------------


def longest(query: str, sentences: Sequence[str]) -> Any:
    import numpy as np

    return np.array([len(sentence) for sentence in sentences], float)


@pytest.mark.parametrize("refiner", [RandomWords(1), BestSentences(longest)], ids=["words", "sentences"])
@pytest.mark.parametrize("tokens", [1, 7, 20, 60, 500])
def test_a_baseline_keeps_to_its_budget_and_tells_its_spans(refiner: Any, tokens: int) -> None:
    given = hits([KITCHEN, FERRY, "", "他在北京市工作。火车每十分钟一班。", LAMP])
    refined = refiner.refine(Query("the lamp"), given, Budget(tokens))
    assert count(plain(refined.passages, 0)) == refined.used <= tokens
    assert refined.original == sum(count(hit.item.text) for hit in given)
    for passage in refined.passages:
        spans = [piece.span for piece in passage.pieces if piece.span]
        assert spans == sorted(spans)
        assert all(piece.text == passage.item.text[slice(*piece.span)] for piece in passage.pieces if piece.span)
    assert refiner.refine(Query("the lamp"), given, Budget(tokens)) == refined


def test_random_words_use_the_budget_and_depend_on_seed_and_query() -> None:
    given, budget = hits([KITCHEN, FERRY, LAMP]), Budget(60)
    first = RandomWords(1).refine(Query("a"), given, budget)
    assert first.used >= 55
    assert first.passages != RandomWords(2).refine(Query("a"), given, budget).passages
    assert first.passages != RandomWords(1).refine(Query("b"), given, budget).passages
    assert RandomWords(1).refine(Query("a"), [], budget).passages == ()


def test_best_sentences_are_whole_and_in_reading_order(weights_home: Path) -> None:
    stages = Stages(Settings.load(home=weights_home))
    for name in ("bm25_sentences", "dense_sentences"):
        refiner = baselines(0)[name](stages)
        refined = refiner.refine(Query("What oil did the lamp burn?"), hits([KITCHEN, FERRY, LAMP]), Budget(30))
        assert GOLD in refined.passages[-1].text
        for passage in refined.passages:
            assert all(piece.text.endswith((".", "…", " ")) for piece in passage.pieces)


# --- the measurement --------------------------------------------------------------------------------------------------


def test_every_system_is_measured_at_every_size(asked: Path, tmp_home: Path) -> None:
    result = evaluated(asked, ["extractive", "truncate"], budgets=[40], rates=[0.5, 0.5])
    assert result.name == "compress_island_questions"
    assert result.kind == "compress"
    assert {arm.system for arm in result.arms} == {NO_COMPRESSION, "extractive", *BASELINES}
    assert len(result.arms) == 1 + 2 * 5
    assert {arm.status for arm in result.arms} == {"ok"}

    whole = result.arm(NO_COMPRESSION)
    assert whole.settings == {}
    assert (whole.metrics["answers_kept"], whole.metrics["rate_achieved"], whole.metrics["over_budget"]) == (1, 1, None)
    for arm in result.arms[1:]:
        assert arm.metrics["over_budget"] == 0
        assert 0 < float(arm.metrics["rate_achieved"] or 0) <= float(arm.metrics["rate_requested"] or 0) < 1
        assert all(float(arm.metrics[name] or 0) > 0 for name in TIMES)
    best = result.arm("extractive", max_tokens=40)
    assert best.per_query["answers_kept"] == {"lit": 1, "lamp": 1, "summary": None}
    assert best.per_query["evidence_kept"] == {"lit": None, "lamp": 1, "summary": None}
    assert best.metrics["answers_kept"] == best.metrics["evidence_kept"] == 1
    assert set(best.per_query) == set(compress.COMPARED)
    assert (
        best.metrics["answers_kept_late"] == best.metrics["evidence_kept_late"] == best.metrics["evidence_whole"] == 1
    )
    assert not {"answers_kept_early", "evidence_kept_middle"} & set(best.metrics)
    assert "Questions by place, where gold evidence: early 0, middle 0, late 1." in result.notes
    assert result.arm("truncate", max_tokens=40).metrics["answers_kept"] == 0

    rows = [row for row in result.comparisons if row.metric == "answers_kept"]
    assert {row.baseline for row in rows} == {"extractive (max_tokens 40)", "extractive (rate 0.5)"}
    assert {row.n for row in rows} == {2}
    assert len(rows) == 2 * 5
    assert {row.n for row in result.comparisons if row.metric == "evidence_kept"} == {1}


def without_times(result: Result) -> dict[str, Any]:
    told = result.as_dict()
    for arm in told["arms"]:
        arm["metrics"] = {name: value for name, value in arm["metrics"].items() if name not in TIMES}
    return told


def test_the_same_seed_gives_the_same_result(asked: Path, tmp_home: Path) -> None:
    first, again = (evaluated(asked, ["truncate"], budgets=[30], seed=3) for _ in range(2))
    assert without_times(first) == without_times(again)


def test_a_reranker_orders_the_contexts_for_every_arm(asked: Path, tmp_home: Path) -> None:
    result = evaluated(asked, ["truncate"], budgets=[40], reranker="maxsim")
    assert result.name == "compress_island_questions_maxsim"
    assert result.arm("truncate").metrics["answers_kept"] == 1
    assert "in the order of `maxsim`" in result.notes[0]


def test_a_system_that_fails_stands_there_with_its_reason(
    asked: Path, tmp_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Stages, system_id: str | None = None) -> Any:
        raise RuntimeError(f"{system_id} has a fault")

    monkeypatch.setattr(Stages, "refiner", broken)
    result = evaluated(asked, ["extractive"], budgets=[40])
    failed = result.arm("extractive")
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: extractive has a fault")
    assert failed.metrics == {}
    assert result.arm("bm25_sentences").status == "ok"
    assert result.comparisons == ()


def test_questions_without_answers_and_evidence_measure_numbers(tmp_path: Path, tmp_home: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text(json.dumps(QUESTIONS[2]), "utf-8")
    arm = evaluated(file, ["truncate"], rates=[0.5]).arm("truncate")
    assert (arm.metrics["answers_kept"], arm.metrics["evidence_kept"]) == (None, None)
    assert set(arm.per_query) == {"numbers_kept"}


def test_wrong_ids_and_missing_weights_are_told_before_anything_is_measured(asked: Path, bare_home: Path) -> None:
    with pytest.raises(UnknownSystem, match=r"`extractiv`.*`extractive`"):
        evaluated(asked, ["extractiv"], budgets=[40])
    with pytest.raises(UnknownSystem, match="reranker `truncate`"):
        evaluated(asked, ["truncate"], budgets=[40], reranker="truncate")
    with pytest.raises(MissingWeights, match=r"`all_minilm_l6_v2` are missing.*triptych pull embedded"):
        evaluated(asked, ["truncate"], budgets=[40])


def test_all_refiners_are_those_whose_weights_are_here(asked: Path, tmp_home: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(weights, "state", lambda name, root: "missing" if name.startswith("smollm") else "present")
    result = evaluated(asked, ["truncate", compress.ALL], budgets=[40])
    measured = {arm.system for arm in result.arms}
    known = {name for name, card in cards().items() if card.role == "refiner" and card.family == "hard"}
    assert {"truncate", "extractive"} <= measured & known
    assert "llmlingua" in known - measured
    assert re.match(r"Not measured, their weights are not here: .*`llmlingua`", result.notes[0])
    assert {row.baseline for row in result.comparisons} == {"truncate (max_tokens 40)"}


def test_the_profiles_refiner_comes_first_of_all(asked: Path, tmp_home: Path) -> None:
    chosen, left_out = compress._chosen([compress.ALL], Settings.load(refiner="extractive"))
    assert chosen[0] == "extractive"
    assert len(set(chosen)) == len(chosen) and not set(chosen) & set(left_out)
    assert compress._chosen(["truncate", "truncate"], Settings.load()) == (("truncate",), ())


def test_it_reports_and_stops_when_asked(asked: Path, tmp_home: Path) -> None:
    seen: list[tuple[int, int | None, str]] = []

    def on_step(done: int, total: int | None, what: str) -> None:
        seen.append((done, total, what))
        if what == "compressions" and done == 4:
            raise Cancelled("Enough.")

    with pytest.raises(Cancelled), reporting(on_step):
        evaluated(asked, ["truncate"], budgets=[40])
    assert [row for row in seen if row[2] == "compressions"] == [(n, 15, "compressions") for n in range(5)]


def test_peak_memory_sees_what_is_gone_by_the_end() -> None:
    size = 64 * 2**20
    with PeakMemory() as memory:
        before = psutil.Process().memory_info().rss
        with mmap.mmap(-1, size) as block:  # pages of its own: the heap could give what it holds already
            block.write(b"x" * size)
            time.sleep(5 * EVERY_S)
    assert memory.mb * 2**20 >= before + 0.9 * size


def test_the_command_shows_what_survives(asked: Path, tmp_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = [str(asked), "--limit", "1", "--seed", "1", "--json"]
    named = ["--name", "small", "--note", "A loud machine."]
    assert cli.main(["eval", "compress", *limited, "--max-tokens", "40", "--rate", "0.3", *named]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"].endswith("_small"), told["notes"][-1]) == (True, "A loud machine.")
    assert told["data"][0]["sizes"] == {"questions": 1, "contexts": 3}
    assert [arm["system"] for arm in told["arms"][:2]] == [NO_COMPRESSION, "llmlingua"]  # the profile's refiner
    assert {arm["metrics"]["over_budget"] for arm in told["arms"][1:]} == {0}


@pytest.mark.parametrize("options", [[], ["--max-tokens", "0"], ["--rate", "1.5"]])
def test_the_command_wants_a_size(options: list[str], asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "compress", str(asked), "--json", *options]) == BadInput.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "BadInput"
