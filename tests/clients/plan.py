"""The library that every client is shown, the calls it makes, and what it has to see of the answers.

A client's script gets the plan as JSON and writes a report: {"tools", "retrieve", "images", "heard", "error", "long"},
each as that client's model would see it. This module judges the report, in one place for all of them.
"""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
import wave
from array import array
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from environments import Failed
from PIL import Image, ImageDraw, ImageFont

from triptych.refiners.tokens import count
from triptych.server.service import LOADING
from triptych.settings import Settings

TOOLS = ["retrieve", "search", "fetch", "view", "rerank", "compress", "status"]
QUESTION = "How many litres of oil does the harbour lamp burn in a night?"
FACT, SOURCE = "seventeen litres", "harbour.txt"
CLIP = "triptych://clip/"
NOWHERE = "nothing-has-this-id"
CAP = 20_000
LONG_TOKENS = 25_000
PARAGRAPHS = 900


@dataclass(frozen=True)
class Plan:
    """One server and the five calls that clients make.

    Attributes:
        command, args: how it is started over stdio.
        calls: name of a call → tool and arguments.
        loading: what an answer says while the models are not there yet; a client asks again then, as an agent would.
    """

    command: str
    args: list[str]
    calls: dict[str, dict[str, Any]]
    loading: str = LOADING

    def json(self) -> str:
        return json.dumps(asdict(self))


def made(folder: Path, weights: Path) -> Plan:
    """Index the four documents into a home of its own, and plan the calls."""
    files, home = folder / "files", folder / "home"
    files.mkdir()
    home.mkdir()
    (home / "weights").symlink_to(weights, target_is_directory=True)
    (files / SOURCE).write_text(
        f"The harbour lamp burns {FACT} of oil in a night. It is lit an hour before sunset.\n", "utf-8"
    )
    _picture(files / "timetable.png")
    _sound(files / "foghorn.wav")
    long = _long_text()
    assert count(long, "o200k_base") >= LONG_TOKENS
    (files / "ledger.txt").write_text(long, "utf-8")
    common = ["--home", str(home), "--library", "checks"]
    _triptych("index", str(files), *common)

    def found(words: str, modality: str) -> str:
        hits = json.loads(_triptych("search", words, "--json", "--modality", modality, *common))["hits"]
        if not hits:
            raise Failed(f"The {modality} of the check library was not found.")
        return str(hits[0]["id"])

    calls = {
        "retrieve": {"tool": "retrieve", "arguments": {"query": QUESTION, "max_tokens": 400}},
        "view": {"tool": "view", "arguments": {"id": found("timetable", "image"), "max_edge": 512}},
        "heard": {"tool": "view", "arguments": {"id": found("foghorn", "audio")}},
        "error": {"tool": "fetch", "arguments": {"id": NOWHERE}},
        "long": {"tool": "search", "arguments": {"query": "ledger entry of oil", "k": 100, "max_tokens": CAP}},
    }
    return Plan(sys.executable, ["-m", "triptych.server.cli", "mcp", *common], calls)


def judge(report: dict[str, Any], *, shortened: bool = False, pictures: int = 1) -> None:
    """Raise `Failed` unless the report shows what it has to.

    Args:
        shortened: the client itself cuts long results, so that theirs is no JSON.
        pictures: how many the client passes on from `view`.
    """
    _must(sorted(report["tools"]) == sorted(TOOLS), f"it lists the tools {report['tools']}")
    block = _json_in(report["retrieve"])
    cited = [row for row in block["passages"] if FACT in row["text"]]
    _must(bool(cited) and SOURCE in cited[0]["where"], f"`retrieve` came as {report['retrieve'][:300]!r}")
    _must(len(report["images"]) == pictures, f"`view` gave {len(report['images'])} pictures")
    for image in report["images"]:
        with Image.open(BytesIO(base64.b64decode(image))) as picture:
            _must(picture.width > 64, f"the picture is {picture.width} pixels wide")
    _must(CLIP in report["heard"], f"the clip came as {report['heard'][:300]!r}")
    _must(NOWHERE in report["error"], f"the error came as {report['error'][:300]!r}")
    _must("Traceback" not in report["error"] and str(Path.home()) not in report["error"], "the error tells too much")
    used = count(report["long"], "o200k_base")
    if shortened:
        _must(used <= CAP, f"the long document came as {used} tokens")
        return
    long = _json_in(report["long"])
    size = count(json.dumps(long, ensure_ascii=False, separators=(",", ":")), "o200k_base")
    _must(size <= CAP and long["dropped"] > 0, f"the long document came as {size} tokens, {long['dropped']} dropped")
    _must(size >= CAP // 2, f"only {size} tokens of the long document came")


def _must(true: bool, otherwise: str) -> None:
    if not true:
        raise Failed(otherwise)


def _json_in(text: str) -> Any:
    """The block of passages in what a client shows, whatever it puts around it."""
    start = text.find('{"passages"')
    found = re.search(r'\{\s*"passages"', text)
    try:
        return json.JSONDecoder().raw_decode(text[start if start >= 0 or not found else found.start() :])[0]
    except ValueError:
        raise Failed(f"no block of passages in {text[:300]!r}") from None


def _picture(path: Path) -> None:
    picture = Image.new("RGB", (1200, 400), "white")
    ImageDraw.Draw(picture).text((40, 140), "Ferry timetable: 14:15", "black", ImageFont.load_default(size=80))
    picture.save(path)


def _sound(path: Path) -> None:
    rate = 16_000
    tone = array("h", (int(8000 * math.sin(n * 2 * math.pi * 180 / rate)) for n in range(2 * rate)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(tone.tobytes())


def _long_text() -> str:
    lines = [
        f"Ledger entry {number}: on day {number % 365 + 1} the keeper of tower {number % 7} poured {number % 40 + 3} "
        f"litres of oil and wrote down the height of the tide, {number % 60 / 10} metres, in the book."
        for number in range(PARAGRAPHS)
    ]
    return "\n\n".join(lines)


def _triptych(*words: str) -> str:
    command = [sys.executable, "-m", "triptych.server.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Failed(f"`triptych {words[0]}` failed: {done.stderr[-1000:]}")
    return done.stdout


def weights_folder() -> Path:
    return Settings.load().weights.resolve()
