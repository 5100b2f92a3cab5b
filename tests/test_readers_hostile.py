"""Whatever a file holds, reading it ends soon, within bounds, in a document or in a named error, and others go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych import Settings, Triptych
from triptych.errors import UnreadableFile
from triptych.retrievers.readers import _pdf_watch, read
from triptych.retrievers.readers.base import Limits

sys.path.append(str(Path(__file__).parent))
from hostile_files import HOSTILE, WHOLE

SECONDS = 10.0
MEMORY = 1_500_000_000
READS = """
import json, resource, sys, time
from pathlib import Path
from triptych.errors import TriptychError
from triptych.retrievers.readers import _pdf_watch, read

_pdf_watch._SECONDS = 2.0
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) + 1_000_000_000,) * 2)
for path in sorted(Path(sys.argv[2]).glob("*/*"), key=lambda path: int(path.parent.name)):
    start, told = time.process_time(), {}
    try:
        document = read(path, f"box/{path.name}")
        told = {"kind": "read", "letters": sum(len(section.text) for section in document.sections)}
    except TriptychError as error:
        told = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    except BaseException as error:
        told = {"kind": repr(error)[:300]}
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    peak = int(line.split()[1]) * 1024  # not ru_maxrss: that has what the parent used before exec
    print(json.dumps({**told, "seconds": time.process_time() - start, "peak": peak}), flush=True)
"""
REFUSED = {
    "a.pdf: form that draws itself": "has a page, `1`, that takes too much to read",
    "a.pdf: forms that double": "has a page, `1`, that takes too much to read",
    "a.pdf: page of too many letters": "has a page, `1`, that takes too much to read",
    "a.pdf: page tree that holds itself": "damaged PDF",
    "a.html: a million attributes": "more than `max_values` = 1000000",
    "a.json: millions of values": "more than `max_values` = 1000000",
    "a.eml: parts in parts": "damaged",
    "a.zip: nested": "archives are not opened",
    "a.docx: sizes that lie": "more than `max_ratio` = 200",
    "a.docx: tables in tables": "damaged",
    "a.pptx: groups in groups": "damaged",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each hostile file, read one after the other by one process whose memory is bounded."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, (name, made) in enumerate(HOSTILE.values()):
        (folder / str(number)).mkdir()
        (folder / str(number) / name).write_bytes(made())
    command = [sys.executable, "-c", READS, str(MEMORY), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(HOSTILE), done.stderr[-2000:]
    return dict(zip(HOSTILE, told, strict=True))


@pytest.mark.parametrize("what", HOSTILE)
def test_harm_is_bounded_and_named(outcomes: dict[str, dict[str, Any]], what: str) -> None:
    told = outcomes[what]
    assert told["kind"] in ("read", "UnreadableFile")
    assert told["seconds"] < SECONDS and told["peak"] < MEMORY
    if told["kind"] == "UnreadableFile":
        assert "`box/a." in told["message"] and told["hint"]
        assert REFUSED.get(what, "") in told["message"]
    else:
        assert what not in REFUSED and told["letters"]


@pytest.mark.parametrize("name", WHOLE)
def test_empty_large_and_cut_files_of_every_kind(tmp_path: Path, name: str) -> None:
    path, whole = tmp_path / name, WHOLE[name]()
    assert read(_written(path, whole), f"box/{name}").sections
    with pytest.raises(UnreadableFile, match="is empty"):
        read(_written(path, b""), f"box/{name}")
    with pytest.raises(UnreadableFile, match=r"is too large: .* more than `max_bytes` = 9"):
        read(_written(path, whole), f"box/{name}", Limits(max_bytes=9))
    for share in (0.02, 0.3, 0.6, 0.9, 0.999):
        try:
            assert read(_written(path, whole[: max(1, int(share * len(whole)))]), f"box/{name}").sections
        except UnreadableFile as error:
            assert error.hint and str(tmp_path) not in str(error)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_other_files_are_indexed(tmp_path: Path, bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pdf_watch, "_SECONDS", 1.0)
    folder = tmp_path / "docs"
    folder.mkdir()
    bad = [
        "a.pdf: forms that double",
        "a.docx: tables in tables",
        "a.eml: parts in parts",
        "a.json: millions of values",
    ]
    for what in bad:
        name, made = HOSTILE[what]
        (folder / name).write_bytes(made())
    (folder / "b.pdf").write_bytes(WHOLE["a.pdf"]())
    (folder / "z.txt").write_text("The ferry leaves at nine.")
    with Triptych("harm", Settings.load()) as library:
        done = library.index(folder)
        assert {problem.uri for problem in done.problems} == {f"docs/{what.partition(':')[0]}" for what in bad}
        assert {problem.type for problem in done.problems} == {"UnreadableFile"}
        assert done.indexed == 2
        assert library.search("when does the ferry leave").hits[0].text == "The ferry leaves at nine."


def test_a_dead_probe_is_started_again() -> None:
    for _ in range(2):
        _pdf_watch.check(WHOLE["a.pdf"](), "box/a.pdf", 1, 9)
        process = _pdf_watch._probe()._process
        assert process is not None
        process.kill()
        process.wait()
        with pytest.raises(UnreadableFile, match="takes too much"):
            _pdf_watch.check(WHOLE["a.pdf"](), "box/a.pdf", 1, 9)
