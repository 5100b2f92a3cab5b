"""What the table of search stands on: halves of passages, profiles with further spaces, languages crossed, its rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from triptych.errors import BadInput, MissingWeights, UnknownSystem, Unsupported
from triptych.manifests.registry import Card
from triptych.retrievers.base import Encoder, Item, Query, Side, Source, Space
from triptych.retrievers.readers.base import Document, Limits, Section
from triptych.server import cli
from triptych.settings import Settings
from triptych.tools.evaluation import datasets, first_stages, passages, retrieval, sides
from triptych.tools.evaluation.first_stages import AsLibrary, Exhaustive, FirstStage
from triptych.tools.evaluation.result import Arm, DataInfo, Result
from triptych.tools.stages import Stages

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
LONG = " ".join(f"Sentence number {n} says that the mast stands on hill {n}." for n in range(60))
ROWS: list[dict[str, Any]] = [
    {"id": "both", "title": "A sign", "text": "What somebody wrote about it.", "image": "timetable_sign.png"},
    {"id": "file", "image": "timetable_sign.png"},
    {"id": "long", "title": "Hills", "text": LONG},
    {"id": "blank", "text": " ", "image": "harbour_blue.png"},
]
QUERIES = {"sign": "harbour timetable", "hill": "the mast on hill 7", "wrote": "what did somebody write"}
QRELS = [("sign", "file", 1), ("sign", "both", 1), ("hill", "long", 1), ("wrote", "both", 2)]


def script(name: str) -> Any:
    """A script of `benchmarks/`, which imports those beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return made


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def collection(folder: Path, rows: Sequence[Mapping[str, Any]], queries: Mapping[str, str], qrels: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(lines(rows), "utf-8")
    asked = [{"id": key, "text": text} for key, text in queries.items()]
    (folder / "queries.jsonl").write_text(lines(asked), "utf-8")
    (folder / "qrels.tsv").write_text("".join(f"{q}\t{p}\t{grade}\n" for q, p, grade in qrels), "utf-8")
    return folder


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """Passages with a text, with a picture, with both."""
    folder = collection(tmp_path / "pictured", ROWS, QUERIES, QRELS)
    picture = Image.new("RGB", (900, 160), "white")
    ImageDraw.Draw(picture).text((20, 40), "Harbour timetable 1937", "black", ImageFont.load_default(size=64))
    picture.save(folder / "timetable_sign.png")
    Image.new("RGB", (64, 64), "navy").save(folder / "harbour_blue.png")
    return folder


# --- halves of passages ----------------------------------------------------------------------------------------------


def test_of_texts_no_file_counts_and_long_ones_are_cut(pictured: Path) -> None:
    data = datasets.collection(pictured, side="text")
    assert data.info.name == "pictured_text"
    assert data.info.sizes == {"queries": 3, "passages": 2}
    made = passages.corpus(data)
    assert made.modalities == {"text"}
    [both] = made.items_of["both"]
    assert (both.text, both.title, both.media, both.modality) == (ROWS[0]["text"], "A sign", None, "text")
    cut = made.items_of["long"]
    assert len(cut) > 2
    assert "".join(item.text for item in cut).replace(" ", "") == LONG.replace(" ", "")
    assert len({item.id for item in made.items}) == len(made.items)
    assert made.passages([item.id for item in reversed(made.items)]) == ["long", "both"]


def test_of_files_neither_text_nor_title_nor_name_counts(pictured: Path) -> None:
    data = datasets.collection(pictured, side="media")
    assert (data.info.name, list(data.passages), list(data.queries)) == (
        "pictured_media",
        ["both", "file", "blank"],
        ["sign", "wrote"],
    )
    assert data.notes == (
        "Of each passage only what is read from its media file counts, without text, title and the file's name. "
        "3 of 4 passages have that; 1 of 3 queries have no relevant one among them and are not asked.",
    )
    made = passages.corpus(data)
    for item in made.items:
        said = f"{item.text} {item.title} {item.source.uri} {item.meta}".lower()
        assert not any(word in said for word in ("somebody", "a sign", "timetable_sign", "blue"))
        assert item.media is not None
        assert (pictured / item.media.uri).is_file()
    assert all("timetable 1937" in made.items_of[key][0].text for key in ("both", "file"))
    assert made.items_of["blank"][0].meta["named"]
    assert len({items[0].source.uri for items in made.items_of.values()}) == 3


def test_the_texts_of_passages_with_files(pictured: Path) -> None:
    data = datasets.collection(pictured, side="media_text")
    assert (list(data.passages), list(data.queries)) == (["both"], ["sign", "wrote"])
    assert data.qrels == {"sign": {"both": 1}, "wrote": {"both": 2}}


def test_a_limit_draws_from_the_queries_that_are_left(pictured: Path) -> None:
    found = {
        key for seed in range(9) for key in datasets.collection(pictured, side="media", limit=1, seed=seed).queries
    }
    assert found == {"sign", "wrote"}


def test_a_half_that_nothing_has_is_named(pictured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictured / "corpus.jsonl").write_text(lines([{"id": key, "text": "t"} for key in ("both", "file", "long")]))
    with pytest.raises(BadInput, match="`pictured` has no passages where only `media` counts"):
        datasets.collection(pictured, side="media")
    with pytest.raises(BadInput, match=r"no half `pictures`.*text, media, media_text"):
        datasets.collection(pictured, side="pictures")
    assert cli.main(["eval", "retrieval", str(pictured), "--passages", "sound"]) == BadInput.exit_code
    assert "no half `sound`" in capsys.readouterr().err


def test_all_passages_of_a_half_are_told_without_a_loss() -> None:
    made = datasets.Passage("p", "", "text")
    _, _, told = sides.halved("text", {"p": made}, {"q": {"p": 1}, "none": {"p": 0}})
    assert told.endswith("1 of 1 passages have that.")


def test_what_was_not_read_of_a_file_is_told(pictured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Limits] = []

    def read(path: Path, uri: str, limits: Limits) -> Document:
        seen.append(limits)
        return Document(uri, uri, "image/png", (Section("seen"),), {"note": "the model is not here."})

    monkeypatch.setattr(passages, "read", read)
    within = Limits(speech="moonshine_tiny_en")
    made = passages.corpus(datasets.collection(pictured, side="media"), within=within)
    assert list(made.notes()) == ["3 media files were read in part; the first: the model is not here."]
    assert seen == [within] * 3


def test_files_are_read_with_the_models_of_a_library(tmp_home: Path) -> None:
    settings = Settings.load()
    found = passages.limits(settings)
    assert (found.weights, found.speech, found.tags) == (settings.weights, settings.speech, settings.tags)


# --- a profile as a library searches it -------------------------------------------------------------------------------

ENGLISH = {"owl": "The owl sleeps in the barn by day.", "boat": "The boat leaves the harbour at nine."}
CHINESE = {"print": "打印机在三楼的会议室旁边。", "tea": "茶在冬天更好喝，因为天气很冷。"}


def mixed(folder: Path, texts: Mapping[str, str], queries: Mapping[str, str]) -> datasets.Collection:
    rows = [{"id": key, "text": text} for key, text in texts.items()]
    return datasets.collection(collection(folder, rows, queries, [(key, key, 1) for key in queries]))


def measured(data: datasets.Collection, retrievers: Sequence[str], settings: Settings) -> Result:
    return retrieval.evaluate(data, retrievers, [], settings=settings, seed=0, command="c")


def test_a_profile_gains_the_spaces_that_a_library_would(tmp_path: Path, tmp_home: Path) -> None:
    settings = Settings.load(spaces="use_multilingual")
    english = mixed(tmp_path / "english", ENGLISH, {"owl": "where does the owl sleep"})
    alone = measured(english, ["embedded", "hybrid"], settings)
    assert [arm.settings for arm in alone.arms] == [{"spaces": "lexical + minilm"}, {}]
    assert alone.arm("embedded").per_query == alone.arm("hybrid").per_query
    both = mixed(
        tmp_path / "both", {**ENGLISH, **CHINESE}, {"print": "Where is the printer?", "owl": "猫头鹰在哪里睡觉？"}
    )
    found = measured(both, ["embedded", "hybrid"], settings)
    assert found.arm("embedded").settings == {"spaces": "lexical + minilm + multilingual"}
    asked_across = [found.arm(name).per_query["recall@10"]["owl"] for name in ("embedded", "hybrid")]
    assert asked_across == [1, 0]


def test_a_space_can_be_asked_for(tmp_path: Path, tmp_home: Path) -> None:
    data = mixed(tmp_path / "english", ENGLISH, {"owl": "猫头鹰在哪里睡觉？"})
    found = measured(data, ["embedded", "embedded+use_multilingual"], Settings.load(spaces="none"))
    assert [arm.settings["spaces"] for arm in found.arms] == ["lexical", "lexical + multilingual"]
    assert [arm.metrics["recall@1"] for arm in found.arms] == [0, 1]
    assert "`embedded` has the space `minilm`, which none of the queries asks." in found.notes
    assert found.comparisons[0].arm == "embedded+use_multilingual (spaces lexical + multilingual)"


def test_a_space_of_pictures_opens_the_files_of_the_data(pictured: Path, tmp_home: Path) -> None:
    data = datasets.collection(pictured, side="media")
    stage = FirstStage.named("embedded", Settings.load(spaces="efficientnet_b0"))
    with stage.opened(Stages(stage.settings), data.folder) as library:
        assert isinstance(library, AsLibrary)
        items: list[Item] = passages.corpus(data).items
        library.add(items)
        assert library._spaces.counts() == {"visual": 3}
        assert library.asked([Query("harbour")]) == (("lexical", "minilm"), ("visual",))
        assert library.search(Query("harbour timetable"), 1)[0].item.meta["ocr"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("bm25+use_multilingual", "`bm25` is no profile"), ("embedded+use_multi", "Unknown retriever `use_multi`")],
)
def test_an_unknown_space_or_profile_is_told(name: str, wanted: str, tmp_home: Path) -> None:
    with pytest.raises(UnknownSystem, match=wanted):
        FirstStage.named(name, Settings.load())


def test_a_space_without_weights_or_that_is_none_is_told(tmp_path: Path, bare_home: Path) -> None:
    data = mixed(tmp_path / "english", ENGLISH, {"owl": "owl"})
    with pytest.raises(MissingWeights):
        measured(data, ["embedded+use_multilingual"], Settings.load())
    with pytest.raises(BadInput, match="`bm25` gives no further space"):
        measured(data, ["embedded+bm25"], Settings.load())


# --- languages crossed ------------------------------------------------------------------------------------------------


@pytest.fixture
def xquad(tmp_path: Path) -> Path:
    """Two languages with the same ids, in the data set's folder."""
    for code, texts, asked in (
        ("en", ENGLISH, "Where is the owl?"),
        ("zh", {"owl": "猫头鹰", "boat": "船"}, "猫头鹰呢？"),
    ):
        rows = [{"id": key, "title": "Owls", "text": text} for key, text in texts.items()]
        collection(tmp_path / "data" / "xquad" / code, rows, {"q": asked}, [("q", "owl", 1)])
    return tmp_path / "data" / "xquad"


def test_questions_of_one_language_about_paragraphs_of_another(xquad: Path, tmp_path: Path) -> None:
    script("prepare_xquad").main([str(xquad), str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "xquad_en_en", "xquad_en_zh", "xquad_zh_en", "xquad_zh_zh",
    ]  # fmt: skip
    data = datasets.collection(tmp_path / "out" / "xquad_zh_en")
    assert data.info.name == "xquad_zh_en"
    assert data.queries["q"].text == "猫头鹰呢？"
    assert data.passages["owl"].text == ENGLISH["owl"]
    assert not any(passage.title for passage in data.passages.values())  # English in every language


# --- all measurements, one after the other ----------------------------------------------------------------------------

ENVIRONMENT = {"commit": "0" * 40, "processor": "Some Processor", "threads": 2, "date": "2026-11-25"}


def result(name: str, command: str = "c", passages: int = 200, **figures: float) -> Result:
    metrics = ("nDCG@10", "recall@10")
    arms = [Arm(system=key.replace("__", "+"), metrics=dict.fromkeys(metrics, value)) for key, value in figures.items()]
    data = DataInfo(name=name.removeprefix("retrieval_"), sha256="0" * 64, sizes={"queries": 9, "passages": passages})
    return Result(
        name=name, kind="retrieval", title=name, command=command, seed=0, data=(data,), environment=ENVIRONMENT,
        arms=tuple(arms),
    )  # fmt: skip


def test_what_is_there_is_not_measured_again(
    tmp_path: Path, xquad: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = script("measure")
    monkeypatch.setattr(measure, "PREPARED", tmp_path / "prepared")
    ran: list[str] = []

    def measured(one: Any, folder: Path, out: Path) -> bool:
        ran.append(one.name)
        if one.name == "cranfield":
            return False
        result(f"retrieval_{one.name}", one.command(folder, out), bm25=0.5).write(out)
        return True

    monkeypatch.setattr(measure, "measured", measured)
    out = tmp_path / "results"
    words = [str(xquad.parent), "--out", str(out), "--only", "xquad_zh_en", "--only", "cranfield", "--only", "scifact"]
    assert measure.main(words) == 1
    assert ran == ["scifact", "cranfield", "xquad_zh_en"]
    assert (tmp_path / "prepared" / "xquad_zh_en" / "corpus.jsonl").is_file()
    assert "Failed: cranfield." in capsys.readouterr().out
    result("retrieval_scifact", "another command", bm25=0.5).write(out)
    assert measure.main(words) == 1
    assert ran[3:] == ["scifact", "cranfield"]
    assert measure.main([*words, "--fresh"]) == 1
    assert ran[5:] == ["scifact", "cranfield", "xquad_zh_en"]


def test_measurements_have_the_names_of_their_results_and_rows_in_the_table() -> None:
    measure, tables = script("measure"), script("tables")
    names = [one.name for one in measure.MEASUREMENTS]
    assert len(set(names)) == len(names)
    assert {f"retrieval_{name}" for name in names} == {row.result for row in tables.SEARCHED}
    for one in measure.MEASUREMENTS:
        assert one.side in ("", *sides.SIDES)
        told = one.command(Path("/somewhere") / one.data, Path("/else/results"))
        assert told.startswith(f"triptych eval retrieval {one.data} --retriever ") and told.endswith("--out results")


def test_a_measurement_is_a_run_of_the_command_line(tmp_path: Path) -> None:
    measure = script("measure")
    data = mixed(tmp_path / "owls", ENGLISH, {"owl": "owl"})
    one = measure.Measurement("owls", ("bm25",), side="text", limit=1)
    assert measure.measured(one, data.folder, tmp_path / "out")
    assert measure.is_there(one, data.folder, tmp_path / "out")
    assert not measure.is_there(measure.Measurement("owls", ("bm25",), side="text"), data.folder, tmp_path / "out")
    assert not measure.measured(measure.Measurement("none", ("bm25",)), tmp_path / "none", tmp_path / "out")


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_result_that_is_there() -> None:
    tables = script("tables")
    assert tables.search_rows([]) == []
    scifact = result("retrieval_scifact", bm25=0.5, all_minilm_l6_v2=0.25, hybrid=0.75)
    photos = result(
        "retrieval_flickr8k_100_media", bm25=0.1, use_multilingual=0.2, embedded=0.3, embedded__use_multilingual=0.4
    )
    rows = tables.search_rows([photos, scifact, result("retrieval_other", bm25=1.0)])
    assert rows == [
        ["claims → abstracts", "`scifact` (9 queries, 200 passages)", "nDCG@10", "0.500", "0.250", "", "0.750", "", ""],
        [
            "captions → photos", "`flickr8k_100_media` (9 queries, 200 passages)", "recall@10",
            "0.100", "", "0.200", "0.300", "0.400", "0.050",
        ],
    ]  # fmt: skip
    text = "\n\n".join(tables.parts([photos, scifact]))
    assert text.count("**Search**") == 1
    assert "esc50" not in text
    assert "| asked → searched" in text


def test_what_has_rerankers_or_no_row_keeps_a_table_of_its_own() -> None:
    tables = script("tables")
    reranked = result("retrieval_scifact", bm25=0.5)
    arm = Arm(system="bm25 + maxsim", metrics={"nDCG@10": 0.75, "rerank_ms_p50": 1.0})
    reranked = reranked.model_copy(update={"arms": (*reranked.arms, arm)})
    assert "bm25 + maxsim" in "\n".join(tables.parts([reranked]))
    assert "**Search** on `other`" in "\n".join(tables.parts([result("retrieval_other", bm25=0.5)]))


# --- encoders of many vectors ----------------------------------------------------------------------------------------


def test_a_multi_vector_encoder_is_measured_alone(tmp_path: Path, bare_home: Path, monkeypatch: Any) -> None:
    class Letters(Encoder):
        """One vector for each letter."""

        space = Space("letters", "multi", 26, "cosine")

        def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> list[np.ndarray]:
            seen = [[ord(one) - 97 for one in (given.text or "").lower() if "a" <= one <= "z"] for given in inputs]
            return [3 * np.eye(26, dtype=np.float32)[rows] for rows in seen]

        @classmethod
        def load(cls, card: Any, parts: Any) -> Letters:
            return cls()

    monkeypatch.setattr(Card, "resolve", lambda card: Letters)
    texts = {"one": "zebra quartz", "two": "owl barn", "three": "fjord"}
    data = mixed(tmp_path / "data", texts, {"one": "zq", "three": "jf"})
    found = measured(data, ["tfidf"], Settings.load())
    assert found.arm("tfidf").metrics["nDCG@10"] == 1
    assert any("MaxSim with every passage" in note for note in found.notes)
    made = Exhaustive(Letters())
    made.add([Item(key, text, Source(key)) for key, text in texts.items()])
    assert [(hit.item.id, hit.score) for hit in made.search(Query("zow"), 2)] == [("two", 2.0), ("one", 1.0)]
    monkeypatch.setattr(first_stages, "MOST_VECTOR_BYTES", 100)
    with pytest.raises(Unsupported, match="`letters` take more than"):
        made.add([Item("four", "x", Source("four"))])
    with pytest.raises(BadInput, match="NaN"):
        broken = Letters()
        monkeypatch.setattr(broken, "encode", lambda inputs, side: [np.full((1, 26), np.nan)] * len(inputs))
        Exhaustive(broken).add([Item("five", "x", Source("five"))])
