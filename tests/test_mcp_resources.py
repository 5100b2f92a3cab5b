"""Resources, prompts and completion: what a client may read without calling a tool."""

from __future__ import annotations

import base64
import io
import re
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ResourceTemplateReference

from triptych import NotFound, Triptych, Unsupported
from triptych.refiners.tokens import count
from triptych.retrievers.readers.clip import clip
from triptych.server import documents, reading, resources
from triptych.server.prompts import PROMPTS, RULES
from triptych.settings import Settings

sys.path.append(str(Path(__file__).parent))
from fake_library import FakeTriptych
from served import HIDDEN, MODES, app_over, library, shelf, spoken, tone

DOC, PASSAGE, PAGE, CLIP = (one.address for one in resources.TEMPLATES)
BERLIN = "shelf/travel notes/Berlin & 50% off.md"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triptych]:
    made = library(tmp_path_factory.mktemp("home"), shelf(tmp_path_factory.mktemp("files")))
    yield made
    made.close()


def read(session: Any, address: str, mode: str = "auto") -> Any:
    async def conversation(client: Any) -> Any:
        return (await client.read_resource(address)).contents[0]

    return spoken(app_over(session), conversation, mode)


def refused(session: Any, address: str, mode: str = "auto") -> Any:
    async def conversation(client: Any) -> Any:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(address)
        return caught.value.error

    return spoken(app_over(session), conversation, mode)


def first_id(session: Triptych, uri: str) -> str:
    return next(hit.id for hit in session.search("berlin printer ferry tide bolts tone", 100).hits if hit.uri == uri)


# --- listing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_documents_are_listed_and_what_is_listed_can_be_read(session: Triptych, mode: str) -> None:
    async def conversation(client: Any) -> Any:
        listed = (await client.list_resources()).resources
        return listed, [(await client.read_resource(one.uri)).contents[0].text for one in listed]

    listed, texts = spoken(app_over(session), conversation, mode)
    assert [one.name for one in listed] == sorted(one.name for one in listed)
    assert {one.name for one in listed} >= {BERLIN, "shelf/rates.pdf", "shelf/zh.txt"}
    assert all(texts)
    assert texts[[one.name for one in listed].index(BERLIN)].strip() == "The daily allowance in Berlin is 120 euro."


def test_a_long_list_comes_in_pages(session: Triptych, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "LISTED", 3)

    async def conversation(client: Any) -> list[list[str]]:
        pages, cursor = [], None
        while True:
            page = await client.list_resources(cursor=cursor)
            pages.append([one.name for one in page.resources])
            cursor = page.next_cursor
            if cursor is None:
                return pages

    pages = spoken(app_over(session), conversation)
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [name for page in pages for name in page] == [row.uri for row in documents.listed(session)]


def test_a_cursor_of_ones_own_is_an_error(session: Triptych) -> None:
    async def conversation(client: Any) -> Any:
        with pytest.raises(MCPError) as caught:
            await client.list_resources(cursor="not a cursor")
        return caught.value.error

    error = spoken(app_over(session), conversation)
    assert error.code == -32602
    assert "`not a cursor`" in error.message


def test_a_library_that_is_not_there_is_neither_listed_nor_made(tmp_path: Path) -> None:
    empty = Triptych("nothing", Settings(home=tmp_path))

    async def conversation(client: Any) -> Any:
        return (await client.list_resources()).resources

    assert spoken(app_over(empty), conversation) == []
    assert not (tmp_path / "libraries").exists()


def test_templates_name_the_four_kinds(session: Triptych) -> None:
    async def conversation(client: Any) -> Any:
        return (await client.list_resource_templates()).resource_templates

    assert [one.uri_template for one in spoken(app_over(session), conversation)] == [DOC, PASSAGE, PAGE, CLIP]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_document_is_whole_and_in_order(session: Triptych) -> None:
    text = read(session, "triptych://doc/shelf/tides.md").text
    days = [int(day) for day in re.findall(r"tide of day (\d+)", text)]
    assert days == list(range(300))


def test_a_document_never_exceeds_the_cap_and_says_where_it_was_cut(session: Triptych) -> None:
    made = documents.text(session, "shelf/tides.md", 400, 100_000)
    assert count(made.text, session.settings.tokenizer) <= 400
    assert 0 < made.shown < made.passages
    assert f"Cut after {made.shown} of {made.passages} passages" in made.text
    short = documents.text(session, "shelf/tides.md", 20_000, 3000)
    assert len(short.text) <= 3000
    assert short.shown < short.passages


def test_pages_of_a_pdf_follow_each_other(session: Triptych) -> None:
    text = read(session, "triptych://doc/shelf/rates.pdf").text
    assert text.index("9 crowns") < text.index("84 newton")


def test_a_passage_is_what_fetch_gives(session: Triptych) -> None:
    one = first_id(session, "shelf/printers.txt")
    assert read(session, f"triptych://passage/{one}").text == session.fetch(one).text


@pytest.mark.parametrize("mode", MODES)
def test_a_page_is_a_picture(session: Triptych, mode: str) -> None:
    shown = read(session, f"triptych://page/{first_id(session, 'shelf/rates.pdf')}", mode)
    assert shown.mime_type == "image/png"
    assert base64.b64decode(shown.blob).startswith(b"\x89PNG")
    assert shown.meta["triptych"]["where"].startswith("shelf/rates.pdf p.")


def test_a_picture_is_made_smaller_until_it_fits(session: Triptych) -> None:
    name = first_id(session, "shelf/rates.pdf")
    whole = resources.small_enough(session, name, 1024, None, 10**9)
    most = len(whole.image) // 2
    small = resources.small_enough(session, name, 1024, None, most)
    assert len(small.image) <= most
    assert small.width < whole.width


def test_a_clip_is_sound(session: Triptych) -> None:
    heard = read(session, f"triptych://clip/{first_id(session, 'shelf/tone.wav')}")
    assert heard.mime_type == "audio/wav"
    with wave.open(io.BytesIO(base64.b64decode(heard.blob))) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        assert file.getnframes() == pytest.approx(48_000, abs=600)


def test_a_clip_is_the_stretch_asked_for_and_cut_to_size(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(tone(12.0))
    part = clip(tmp_path / "a.wav", "a.wav", "audio/wav", 5.0, 7.5, 10**6)
    assert (part.start_s, part.end_s) == (5.0, pytest.approx(7.5, abs=0.05))
    cut = clip(tmp_path / "a.wav", "a.wav", "audio/wav", 1.0, None, 64_044)
    assert len(cut.wav) <= 64_044
    assert cut.end_s == pytest.approx(3.0, abs=0.05)
    with pytest.raises(Unsupported, match="no sound there"):
        clip(tmp_path / "a.wav", "a.wav", "audio/wav", 60.0, 70.0, 10**6)


def test_what_cannot_be_seen_or_heard_says_so(session: Triptych) -> None:
    words = first_id(session, "shelf/printers.txt")
    assert "nothing to look at" in refused(session, f"triptych://page/{words}").message
    assert "nothing to listen to" in refused(session, f"triptych://clip/{words}").message


def test_invisible_characters_are_gone_and_counted(session: Triptych) -> None:
    shown = read(session, "triptych://doc/shelf/orders.txt")
    assert shown.meta["triptych"]["stripped"] == HIDDEN
    assert not re.search("[\u200b\u202e\u202c\U000e0000-\U000e007f]", shown.text)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "address",
    [
        "triptych://doc/shelf/nothing.md",
        "triptych://doc/..%2f..%2fetc/passwd",
        "triptych://doc/../../etc/passwd",
        "triptych://doc/shelf/../../etc/passwd",
        "triptych://doc/shelf%2f..%2f..%2fetc%2fpasswd",
        "triptych://doc/%2fetc%2fpasswd",
        "triptych://doc//etc/passwd",
        "triptych://doc/shelf\\..\\x",
        "triptych://doc/shelf/printers.txt%00",
        "triptych://doc/shelf/printers.txt?library=..%2f..%2fx",
        "triptych://passage/nope",
        "triptych://page/..%2fx",
        "triptych://clip/%ff%fe",
        "triptych://doc/",
        "triptych://other/x",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "triptych://doc/" + "a" * 5000,
    ],
)
def test_what_is_not_there_is_an_invalid_parameter_and_shows_nothing(
    session: Triptych, address: str, mode: str
) -> None:
    def opened(name: str | None = None) -> Triptych:
        if name not in (None, "shelf"):
            raise NotFound(f"Unknown library `{name}`.", "")
        return session

    async def conversation(client: Any) -> Any:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(address)
        return caught.value.error

    from triptych.server.app import build

    error = spoken(build(opened, session.settings), conversation, mode)
    assert error.code == -32602
    assert "root:" not in error.message
    assert str(session.settings.home) not in f"{error.message} {error.data}"


def test_a_crash_shows_nothing_of_itself() -> None:
    class Broken(FakeTriptych):
        def fetch(self, id: str, span: tuple[int, int] | None = None) -> Any:
            raise ValueError("password=hunter2 in /home/me")

    error = refused(Broken(), "triptych://passage/p1")
    assert error.code == -32603
    assert "hunter2" not in f"{error.message} {error.data}"


# --- completion -------------------------------------------------------------------------------------------------------


def completed(session: Any, reference: Any, name: str, value: str, known: dict[str, str] | None = None) -> Any:
    async def conversation(client: Any) -> Any:
        answer = await client.complete(reference, {"name": name, "value": value}, context_arguments=known)
        return answer.completion

    return spoken(app_over(session), conversation)


def template(address: str) -> Any:
    return ResourceTemplateReference(uri=address)


def test_uris_are_completed_by_their_beginning_and_by_what_is_in_them(session: Triptych) -> None:
    assert completed(session, template(DOC), "uri", "shelf/r").values[0] == "shelf/rates.pdf"
    assert completed(session, template(DOC), "uri", "BERLIN").values == [BERLIN]
    assert completed(session, template(DOC), "uri", "nothing").values == []


def test_ids_are_completed_for_what_the_template_can_show(session: Triptych, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_COMPLETIONS", 20)
    everything = completed(session, template(PASSAGE), "id", "")
    pages = completed(session, template(PAGE), "id", "").values
    clips = completed(session, template(CLIP), "id", "").values
    assert len(everything.values) == 20
    assert everything.has_more
    assert {session.fetch(one).uri for one in pages} == {"shelf/rates.pdf"}
    assert {session.fetch(one).uri for one in clips} == {"shelf/tone.wav"}
    assert completed(session, template(PASSAGE), "id", pages[0][:6]).values[0].startswith(pages[0][:6])


def test_libraries_and_budgets_are_completed(session: Triptych) -> None:
    assert completed(session, template(DOC), "library", "sh").values == ["shelf"]
    answer = PromptReference(name="answer")
    assert completed(session, answer, "max_tokens", "2").values == ["2000", "20000"]
    assert completed(session, answer, "question", "w").values == []
    assert completed(session, PromptReference(name="summarise"), "uri", "shelf/z").values == ["shelf/zh.txt"]
    assert completed(session, PromptReference(name="nope"), "uri", "").values == []
    assert completed(session, template("triptych://nope/{x}"), "x", "").values == []


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompted(session: Any, name: str, given: dict[str, str], mode: str = "auto") -> str:
    async def conversation(client: Any) -> str:
        return str((await client.get_prompt(name, given)).messages[0].content.text)

    return str(spoken(app_over(session), conversation, mode))


def names_of(session: Any, **options: Any) -> list[str]:
    async def conversation(client: Any) -> list[str]:
        return [one.name for one in (await client.list_prompts()).prompts]

    return list(spoken(app_over(session, **options), conversation))


def test_prompts_are_shown_where_their_tools_are(session: Triptych) -> None:
    assert names_of(session) == names_of(session, toolset="minimal") == ["answer", "compare", "summarise"]
    assert names_of(session, toolset="chatgpt") == []


@pytest.mark.parametrize("mode", MODES)
def test_prompts_say_which_calls_to_make(session: Triptych, mode: str) -> None:
    answer = prompted(session, "answer", {"question": 'Is "x" ok?', "max_tokens": "900"}, mode)
    assert '`retrieve` with query = "Is \\"x\\" ok?", max_tokens = 900' in answer
    compare = prompted(session, "compare", {"question": "rates", "first": "shelf/rates", "second": BERLIN}, mode)
    assert f'uri_prefix = "{BERLIN}"' in compare
    summary = prompted(session, "summarise", {"uri": "shelf/tides.md", "library": "shelf"}, mode)
    assert 'uri_prefix = "shelf/tides.md", library = "shelf"' in summary
    assert all(text.endswith(RULES) for text in (answer, compare, summary))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("nope", {}, "Unknown prompt `nope`"),
        ("answer", {}, "Argument `question` is missing"),
        ("answer", {"question": "x" * 5000}, "has `5000` characters"),
        ("answer", {"question": "x", "max_tokens": "many"}, "is `many`"),
        ("answer", {"question": "x", "max_tokens": "99999"}, "max_tokens is `99999`"),
        ("answer", {"question": "x", "colour": "red"}, "Unknown argument `colour`"),
        ("summarise", {"uri": "shelf/none.md"}, "No document's uri begins with `shelf/none.md`"),
    ],
)
def test_wrong_arguments_are_named(session: Triptych, name: str, given: dict[str, str], words: str) -> None:
    async def conversation(client: Any) -> Any:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt(name, given)
        return caught.value.error

    error = spoken(app_over(session), conversation)
    assert error.code == -32602
    assert words in error.message


def test_every_prompt_names_tools_that_are_there() -> None:
    assert {tool for prompt in PROMPTS for tool in prompt.tools} <= {"retrieve", "fetch"}
