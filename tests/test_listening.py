"""`view` of what is heard: the address of its clip, which clients read, and the clip itself where it is asked for."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters

from triptych import Settings, Triptych
from triptych.errors import BadInput
from triptych.refiners.tokens import count
from triptych.server.cli import cli
from triptych.tools.langchain import triptych_tools
from triptych.tools.listening import TOKENS_PER_S

sys.path.append(str(Path(__file__).parent))
from media_files import RATE, subtitled
from served import MODES, app_over, spoken, tone

LONGEST_S = 6


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triptych]:
    """Sound of three and of twenty seconds, a film with sound and one without; no weights."""
    files = tmp_path_factory.mktemp("files") / "box"
    files.mkdir()
    (files / "tone.wav").write_bytes(tone(3.0))
    (files / "long.wav").write_bytes(tone(20.0))
    hum = np.sin(np.arange(6 * RATE) / 20) * 0.4
    (files / "film.mkv").write_bytes(subtitled("matroska", (), sound=hum))
    (files / "silent.mkv").write_bytes(subtitled("matroska", ()))
    home = tmp_path_factory.mktemp("home")
    with Triptych("box", Settings(home=home, image_bytes=LONGEST_S * 2 * RATE + 44)) as made:
        made.index([files])
        yield made


@pytest.fixture(scope="module")
def ids(session: Triptych) -> dict[str, str]:
    found = session.search("tone long film silent", 50).hits
    return {Path(hit.uri).stem: hit.id for hit in reversed(found)}


def viewed(session: Triptych, mode: str = "auto", **given: Any) -> Any:
    async def conversation(client: Any) -> Any:
        answer = await client.call_tool("view", given)
        links = [block for block in answer.content if block.type == "resource_link"]
        return answer, [(await client.read_resource(link.uri)).contents[0] for link in links]

    return spoken(app_over(session), conversation, mode)


def seconds_of(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as file:
        return file.getnframes() / file.getframerate()


@pytest.mark.parametrize("mode", MODES)
def test_sound_comes_as_a_link_that_can_be_followed(session: Triptych, ids: dict[str, str], mode: str) -> None:
    answer, [heard] = viewed(session, mode, id=ids["tone"])
    assert not answer.is_error
    assert answer.structured_content is None  # or some assistants would show nothing but that
    words, link = answer.content
    told = json.loads(words.text)
    assert told["clip"] == link.uri == f"triptych://clip/{ids['tone']}?library=box"
    assert (told["seconds"], link.mime_type, heard.mime_type) == (3.0, "audio/wav", "audio/wav")
    assert not {"tokens", "sound_tokens", "note"} & told.keys()
    assert seconds_of(base64.b64decode(heard.blob)) == pytest.approx(3.0, abs=0.1)


def test_sound_that_is_asked_for_comes_along(session: Triptych, ids: dict[str, str]) -> None:
    answer, _ = viewed(session, id=ids["tone"], sound=True)
    assert [block.type for block in answer.content] == ["text", "audio", "resource_link"]
    words, sound, _ = answer.content
    assert sound.mime_type == "audio/wav"
    assert seconds_of(base64.b64decode(sound.data)) == pytest.approx(3.0, abs=0.1)
    told = json.loads(words.text)
    assert told["sound_tokens"] == pytest.approx(3 * TOKENS_PER_S, abs=2)
    used = answer.meta["triptych"]["tokens"]["used"]
    assert used == told["sound_tokens"] + count(words.text, session.settings.tokenizer)


def test_sound_that_is_too_long_or_too_dear_stays_a_link_and_says_so(session: Triptych, ids: dict[str, str]) -> None:
    long, [cut] = viewed(session, id=ids["long"], sound=True)
    assert [block.type for block in long.content] == ["text", "resource_link"]
    assert f"longer than the {LONGEST_S} s" in json.loads(long.content[0].text)["note"]
    assert seconds_of(base64.b64decode(cut.blob)) == pytest.approx(LONGEST_S, abs=0.1)
    dear, _ = viewed(session, id=ids["tone"], sound=True, max_tokens=150)
    assert [block.type for block in dear.content] == ["text", "resource_link"]
    assert "more than half of max_tokens" in json.loads(dear.content[0].text)["note"]
    refused, _ = viewed(session, id=ids["tone"], max_tokens=10)
    assert refused.is_error and "smallest answer takes" in refused.content[0].text


def test_a_film_is_a_picture_and_a_link_and_a_silent_one_a_picture(session: Triptych, ids: dict[str, str]) -> None:
    film, [heard] = viewed(session, id=ids["film"], max_edge=64)
    assert [block.type for block in film.content] == ["text", "image", "resource_link"]
    told = json.loads(film.content[0].text)
    assert told["tokens"] > 0 and told["seconds"] == pytest.approx(seconds_of(base64.b64decode(heard.blob)), abs=0.2)
    whole, _ = viewed(session, id=ids["film"], sound=True)
    assert [block.type for block in whole.content] == ["text", "image", "audio", "resource_link"]
    used = whole.meta["triptych"]["tokens"]
    assert used["used"] <= used["budget"]
    silent, _ = viewed(session, id=ids["silent"], sound=True)
    assert [block.type for block in silent.content] == ["text", "image"]
    assert "clip" not in json.loads(silent.content[0].text)


@pytest.mark.parametrize("given", [{}, {"sound": True}, {"sound": True, "max_tokens": 150}])
@pytest.mark.parametrize("name", ["tone", "long", "film", "silent"])
def test_langchain_gives_the_same_text_picture_and_sound(
    session: Triptych, ids: dict[str, str], name: str, given: dict[str, Any]
) -> None:
    asked = {"id": ids[name], **given}
    [tool] = triptych_tools(session, ["view"])
    here = tool.invoke({"name": "view", "args": asked, "id": "1", "type": "tool_call"})
    there, _ = viewed(session, **asked)
    blocks = [here.content] if isinstance(here.content, str) else [one["text"] for one in here.content[:1]]
    media = [] if isinstance(here.content, str) else here.content[1:]
    assert blocks == [there.content[0].text]
    theirs = [(one.type, one.data) for one in there.content if one.type in ("image", "audio")]
    kinds = {"image": "image", "file": "audio"}
    assert [(kinds[one["type"]], one["base64"]) for one in media] == theirs
    assert all(one["mime_type"] == "audio/wav" for one in media if one["type"] == "file")
    assert not {"image", "sound"} & here.artifact.keys()


def test_over_stdio_a_client_hears_what_a_server_of_its_own_sends(session: Triptych, ids: dict[str, str]) -> None:
    home = {"TRIPTYCH_HOME": str(session.settings.home)}
    command = ["-m", "triptych.server.cli", "mcp", "--library", "box"]

    async def conversation() -> Any:
        started = StdioServerParameters(command=sys.executable, args=command, env={**os.environ, **home})
        async with Client(started) as client:
            answer: Any = await client.call_tool("view", {"id": ids["tone"], "sound": True})
            return answer, (await client.read_resource(answer.content[-1].uri)).contents[0]

    answer, read = asyncio.run(conversation())
    assert [block.type for block in answer.content] == ["text", "audio", "resource_link"]
    assert read.blob == answer.content[1].data


def test_the_command_line_writes_the_sound(session: Triptych, ids: dict[str, str], tmp_path: Path) -> None:
    common = ["--library", "box", "--home", str(session.settings.home), "--out", str(tmp_path / "a.wav")]
    done = CliRunner().invoke(cli, ["view", ids["tone"], *common])
    assert done.exit_code == 0, done.output
    assert seconds_of((tmp_path / "a.wav").read_bytes()) == pytest.approx(3.0, abs=0.1)
    assert "audio/wav" in done.output


def test_a_library_known_by_its_folder_is_named_in_no_address(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "tone.wav").write_bytes(tone(1.0))
    with Triptych(tmp_path / "somewhere", Settings(home=tmp_path / "home")) as made:
        made.index([tmp_path / "files"])
        [hit] = made.search("tone", 1).hits
        assert made.view(hit.id).clip == f"triptych://clip/{hit.id}"
        with pytest.raises(BadInput, match="max_edge"):
            made.view(hit.id, 1)
