"""Weights: the table, the carriers, and a pull that leaves either a whole model or none."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from triptych import BadInput, Cancelled, MissingWeights, Settings, progress
from triptych.manifests import carriers, prepare, weights
from triptych.manifests.weights import Carrier, File, Model

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = ("all_minilm_l6_v2", "smollm2_135m_instruct")
SEEN = ("image_tags", "use_multilingual")
EMBEDDED = (*STAGES, "silero_vad", "moonshine_tiny_en", *SEEN)
FURTHER = ("whisper_base",)
CONTENT = {"model.safetensors": b"weights" * 300_000, "sub/config.json": b'{"dim": 3}'}
PACKAGE, VERSION, INSIDE = "triptych-test-tiny", "1.0", "triptych_test_tiny/model"
WHEEL = f"triptych_test_tiny-{VERSION}-py3-none-any.whl"


def tiny_model() -> Model:
    files = tuple(File(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in CONTENT.items())
    carrier = Carrier("wheel", PACKAGE, VERSION, INSIDE, sum(map(len, CONTENT.values())))
    return Model("tiny", "Tiny", "Apache-2.0", "none", 0, (Carrier("hub", "someone/tiny", "unseen"), carrier), files)


def write_wheel(folder: Path, content: dict[str, bytes] = CONTENT, extra: dict[str, bytes] | None = None) -> Path:
    """A wheel that pip accepts, with `content` where the table says, and whatever else in `extra`."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"triptych_test_tiny-{VERSION}.dist-info"
    members = {f"{INSIDE}/{path}": data for path, data in content.items()}
    members |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in {**members, **(extra or {})}.items():
            archive.writestr(name, data)
    return folder / WHEEL


def visible(root: Path) -> set[str]:
    """What a user of the weights folder can see: everything but the unfinished part."""
    return {path.name for path in root.iterdir()} - {".pull"} if root.exists() else set()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A table with one tiny model, a package index that is a folder, and an empty weights root."""
    table = {"tiny": tiny_model()}
    monkeypatch.setattr(weights, "models", lambda: table)
    index = tmp_path / "index"
    index.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return SimpleNamespace(table=table, index=index, root=tmp_path / "home" / "weights", tmp=tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: Any, *_: Any) -> str:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(carriers, "run", refuse)


# --- the table -------------------------------------------------------------------------------------------------------


def entry(**changed: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "title": "T",
        "licence": "MIT",
        "prepare": "none",
        "prepared_bytes": 0,
        "carriers": [{"kind": "wheel", "name": "p", "revision": "1", "folder": "f", "bytes": 1}],
        "files": {"a.json": {"bytes": 1, "sha256": "0" * 64}},
    }
    return {key: value for key, value in {**whole, **changed}.items() if value is not None}


def test_the_packaged_table_is_sound() -> None:
    assert set(weights.models()) == {*EMBEDDED, *FURTHER}
    for model in weights.models().values():
        assert any(carrier.kind == "wheel" for carrier in model.carriers)
        assert model.licence in ("Apache-2.0", "MIT")


@pytest.mark.parametrize(
    "changed",
    [
        {"colour": "blue"},
        {"files": None},
        {"files": {}},
        {"prepare": "pickle"},
        {"files": {"../a": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/a": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"c:\\a": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"a": {"bytes": 1, "sha256": "0" * 63}}},
        {"files": {"a": {"bytes": 1, "sha256": "0" * 64, "md5": "0"}}},
        {"carriers": [{"kind": "ftp", "name": "p", "revision": "1"}]},
        {"carriers": [{"kind": "wheel", "name": "p", "revision": "1"}]},
        {"carriers": [{"kind": "hub", "name": "a/b", "revision": "main"}]},
    ],
)
def test_a_wrong_table_is_refused(changed: dict[str, Any]) -> None:
    weights.parse("fine", entry())
    with pytest.raises(BadInput, match="`m`"):
        weights.parse("m", entry(**changed))


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadInput) as caught:
        weights.folder("all_minilm_l6", Path("nowhere"))
    assert caught.value.hint == "Did you mean `all_minilm_l6_v2`?"


def test_the_identity_follows_the_bytes_and_the_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert replace(model, title="Other", carriers=()).hash == model.hash
    assert replace(model, files=tuple(reversed(model.files))).hash == model.hash
    assert replace(model, files=model.files[:1]).hash != model.hash
    prepared = replace(model, prepare="gguf")
    before = prepared.hash
    assert before != model.hash
    monkeypatch.setattr(prepare, "RECIPE", "another")
    assert prepared.hash != before


def test_a_profile_wants_the_weights_of_its_stages(bare_home: Path) -> None:
    assert weights.wanted_by(Settings.load()) == EMBEDDED
    off = Settings.load(
        encoder="none", reranker="none", refiner="truncate", lm="none", speech="none", tags="none", spaces="none"
    )
    assert weights.wanted_by(off) == ()
    with pytest.raises(BadInput, match="`smollm3`"):
        weights.wanted_by(Settings.load(lm="smollm3"))
    with pytest.raises(BadInput, match="`moonshine`"):
        weights.wanted_by(Settings.load(speech="moonshine"))


def test_speech_is_wanted_only_where_sound_can_be_decoded(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None if name == "av" else find_spec(name))
    assert weights.wanted_by(Settings.load()) == (*STAGES, *SEEN)


# --- pulling ---------------------------------------------------------------------------------------------------------


def test_pull_takes_the_named_files_out_of_the_wheel_and_nothing_else(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_wheel(
        world.index,
        extra={
            "triptych_test_tiny/__init__.py": b"raise SystemExit('imported')",
            "../escaped.txt": b"out",
            f"{INSIDE}/pytorch_model.bin": b"pickle",
        },
    )
    steps: list[tuple[int, int | None, str]] = []
    with progress.reporting(lambda *step: steps.append(step)):
        [pulled] = weights.pull(["tiny"], world.root)
    assert pulled.carrier == f"wheel {PACKAGE}@{VERSION}"
    folder = weights.folder("tiny", world.root)
    assert folder == pulled.folder
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*CONTENT, "verified.json"}
    assert all((folder / path).read_bytes() == data for path, data in CONTENT.items())
    assert not list(world.tmp.rglob("escaped.txt"))
    assert any(what == "downloading tiny" for _, _, what in steps)
    assert all(total is None or 0 <= done <= total for done, total, _ in steps)
    assert capfd.readouterr().out == ""

    monkeypatch.setattr(carriers, "run", None)  # a second pull starts no process
    [again] = weights.pull(["tiny"], world.root)
    assert again.carrier == "already there"


def test_the_wheel_of_another_platform_will_do(world: SimpleNamespace) -> None:
    tiny = world.table["tiny"]
    world.table["tiny"] = replace(tiny, carriers=(replace(tiny.carriers[1], platform="win_arm64"),))
    write_wheel(world.index).rename(world.index / WHEEL.replace("any", "win_arm64"))
    [pulled] = weights.pull(["tiny"], world.root)
    assert pulled.carrier == f"wheel {PACKAGE}@{VERSION}"
    world.table["tiny"] = replace(tiny, carriers=(replace(tiny.carriers[1], platform="win32"),))
    with pytest.raises(MissingWeights, match="does not offer it") as caught:
        weights.pull(["tiny"], world.tmp / "other")
    assert f"--platform win32 {PACKAGE}=={VERSION}" in caught.value.hint


def spread_model(world: SimpleNamespace) -> dict[str, bytes]:
    """The tiny model in two wheels, its larger file in a piece in each; returns what the second wheel holds."""
    tiny, name = world.table["tiny"], "model.safetensors"
    inside, first = INSIDE.replace("tiny/", "more/"), CONTENT[name][:1_000_000]
    more = {f"{name}.part2": CONTENT[name][len(first) :], "sub/config.json": CONTENT["sub/config.json"]}
    entry = {"kind": "wheel", "name": PACKAGE, "revision": VERSION, "folder": INSIDE, "bytes": 1}
    carrier = Carrier.of({**entry, "rest": [{"name": "triptych-test-more", "folder": inside, "bytes": 2}]})
    assert [(one.name, one.revision, one.bytes) for one in carrier.wheels] == [
        (PACKAGE, VERSION, 1),
        ("triptych-test-more", VERSION, 2),
    ]
    world.table["tiny"] = replace(tiny, carriers=(carrier,))
    write_wheel(world.index, {f"{name}.part1": first})
    return {f"{inside}/{path}": data for path, data in more.items()}


def write_second(folder: Path, members: dict[str, bytes]) -> None:
    """A wheel of another package."""
    name, more = PACKAGE, "triptych-test-more"
    info = f"triptych_test_more-{VERSION}.dist-info"
    with zipfile.ZipFile(folder / WHEEL) as first, zipfile.ZipFile(folder / WHEEL.replace("tiny", "more"), "w") as made:
        for part in ("METADATA", "WHEEL", "RECORD"):
            old = first.read(f"triptych_test_tiny-{VERSION}.dist-info/{part}")
            made.writestr(f"{info}/{part}", old.replace(name.encode(), more.encode()))
        for path, data in members.items():
            made.writestr(path, data)


def test_a_file_in_two_wheels_is_joined(world: SimpleNamespace) -> None:
    members = spread_model(world)
    with pytest.raises(MissingWeights, match="does not offer it") as caught:
        weights.pull(["tiny"], world.root)
    assert f"{PACKAGE}=={VERSION} triptych-test-more=={VERSION}" in caught.value.hint
    with pytest.raises(MissingWeights, match=f"`{PACKAGE}=={VERSION}` and `triptych-test-more=={VERSION}`"):
        weights.pull(["tiny"], world.root, from_dir=world.index)
    write_second(world.index, members)
    for root, source in ((world.root, None), (world.tmp / "other", world.index)):
        [pulled] = weights.pull(["tiny"], root, from_dir=source)
        assert all((pulled.folder / path).read_bytes() == data for path, data in CONTENT.items())
        assert weights.state("tiny", root, full=True) == "present"


def test_pieces_that_do_not_make_the_file_are_refused(world: SimpleNamespace) -> None:
    members = spread_model(world)
    write_second(world.index, {path: data for path, data in members.items() if "part2" not in path})
    with pytest.raises(MissingWeights, match="another SHA-256"):
        weights.pull(["tiny"], world.root)
    write_second(world.index, {path: data for path, data in members.items() if "config" not in path})
    with pytest.raises(MissingWeights, match=r"holds no `sub/config\.json`"):
        weights.pull(["tiny"], world.root)
    assert visible(world.root) == set()


def test_pull_takes_a_profile_by_name(weights_home: Path, no_network: None) -> None:
    pulled = weights.pull("embedded", weights_home / "weights")
    assert [one.name for one in pulled] == [*EMBEDDED]
    assert {one.carrier for one in pulled} == {"already there"}
    with pytest.raises(BadInput, match="Unknown profile `embeded`"):
        weights.pull("embeded", weights_home / "weights")


def test_an_index_without_the_wheel_is_named_with_a_way_out(world: SimpleNamespace) -> None:
    with pytest.raises(MissingWeights) as caught:
        weights.pull(["tiny"], world.root)
    assert "someone/tiny@unseen: its revision is `unseen`" in caught.value.message
    assert "the package index does not offer it" in caught.value.message
    assert "--from-dir" in caught.value.hint
    assert str(world.tmp) not in str(caught.value)
    assert visible(world.root) == set()


WRONG = {
    "other bytes": {**CONTENT, "sub/config.json": b'{"dim": 4}'},
    "cut short": {**CONTENT, "model.safetensors": CONTENT["model.safetensors"][:-1]},
    "too long": {**CONTENT, "model.safetensors": CONTENT["model.safetensors"] + b"x" * 50_000_000},
    "a file missing": {"sub/config.json": CONTENT["sub/config.json"]},
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_wrong_bytes_never_become_visible(world: SimpleNamespace, content: dict[str, bytes], no_network: None) -> None:
    write_wheel(world.index, content)
    with pytest.raises(MissingWeights, match=r"SHA-256|holds no"):
        weights.pull(["tiny"], world.root, from_dir=world.index)
    assert visible(world.root) == set()
    unpacked = [path.stat().st_size for path in (world.root / ".pull").rglob("*") if path.is_file()]
    assert sum(unpacked) <= sum(map(len, CONTENT.values())) + 1


def test_a_damaged_wheel_from_the_index_is_not_kept(world: SimpleNamespace) -> None:
    wheel = write_wheel(world.index, WRONG["other bytes"])
    with pytest.raises(MissingWeights, match="another SHA-256"):
        weights.pull(["tiny"], world.root)
    wheel.unlink()
    write_wheel(world.index)
    assert weights.pull(["tiny"], world.root)[0].carrier.startswith("wheel")


def test_a_truncated_kept_wheel_is_downloaded_again(world: SimpleNamespace) -> None:
    wheel = write_wheel(world.index)
    kept = world.root / ".pull" / "wheels"
    kept.mkdir(parents=True)
    (kept / WHEEL).write_bytes(wheel.read_bytes()[:1000])
    assert weights.pull(["tiny"], world.root)[0].carrier.startswith("wheel")
    assert weights.state("tiny", world.root, full=True) == "present"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_weights import tiny_model
    from triptych import progress
    from triptych.manifests import weights
    weights.models = lambda: {{"tiny": tiny_model()}}

    def die(done, total, what):
        if what.startswith({phase!r}) and done >= {at}:
            os.kill(os.getpid(), signal.SIGKILL)

    with progress.reporting(die):
        weights.pull(["tiny"], Path({root!r}))
"""


@pytest.mark.parametrize(
    ("phase", "at", "downloaded"),
    [("downloading", 0, False), ("verifying model", 1_500_000, True), ("checking model", 1_500_000, True)],
)
def test_a_killed_pull_leaves_nothing_half_and_the_next_goes_on(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, phase: str, at: int, downloaded: bool
) -> None:
    write_wheel(world.index)
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), phase=phase, at=at, root=str(world.root))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert visible(world.root) == set()
    assert weights.state("tiny", world.root) == "missing"
    with pytest.raises(MissingWeights, match="missing") as caught:
        weights.folder("tiny", world.root)
    assert caught.value.hint == "Run `triptych pull embedded`."
    if downloaded:
        monkeypatch.setattr(carriers, "run", None)  # the wheel is there: no second download
    weights.pull(["tiny"], world.root)
    assert weights.state("tiny", world.root, full=True) == "present"
    assert [path.name for path in (world.root / ".pull").iterdir()] == ["lock"]


def test_a_cancelled_pull_ends_its_child_and_the_next_goes_on(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(world.index)
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    stop = threading.Event()

    def stop_the_download(*_: object) -> None:
        if started:
            stop.set()

    with pytest.raises(Cancelled), progress.reporting(stop_the_download, cancelled=stop):
        weights.pull(["tiny"], world.root)
    assert [child.poll() is not None for child in started] == [True]
    assert visible(world.root) == set()
    weights.pull(["tiny"], world.root)
    assert weights.state("tiny", world.root) == "present"


def test_two_pulls_at_once_download_once(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(world.index)
    runs: list[str] = []
    real = carriers.run

    def counted(arguments: Any, *rest: Any) -> str:
        runs.append(arguments[0])
        return real(arguments, *rest)

    monkeypatch.setattr(carriers, "run", counted)
    pulled: list[str] = []
    threads = [
        threading.Thread(target=lambda: pulled.append(weights.pull(["tiny"], world.root)[0].carrier)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == ["pip"]
    assert sorted(pulled) == ["already there", "already there", f"wheel {PACKAGE}@{VERSION}"]


# --- a folder of the user's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["wheel", "", "tiny"])
def test_from_dir_takes_wheels_and_plain_files_without_the_network(
    world: SimpleNamespace, no_network: None, layout: str
) -> None:
    given = world.tmp / "given"
    if layout == "wheel":
        write_wheel(given)
    else:
        for path, data in CONTENT.items():
            (given / layout / path).parent.mkdir(parents=True, exist_ok=True)
            (given / layout / path).write_bytes(data)
    [pulled] = weights.pull(["tiny"], world.root, from_dir=given)
    assert pulled.carrier == (WHEEL if layout == "wheel" else "plain files")
    assert weights.state("tiny", world.root, full=True) == "present"


def test_from_dir_says_what_it_looked_for(world: SimpleNamespace, no_network: None) -> None:
    given = world.tmp / "given"
    given.mkdir()
    (given / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(MissingWeights, match=r"`given` cannot give `tiny`.*`triptych-test-tiny==1.0`") as caught:
        weights.pull(["tiny"], world.root, from_dir=given)
    assert str(world.tmp) not in str(caught.value)
    with pytest.raises(BadInput, match="`nowhere` is not a folder"):
        weights.pull(["tiny"], world.root, from_dir=world.tmp / "nowhere")


# --- damage ----------------------------------------------------------------------------------------------------------


def test_damage_is_noticed_and_mended(world: SimpleNamespace, no_network: None) -> None:
    write_wheel(world.index)
    weights.pull(["tiny"], world.root, from_dir=world.index)
    target = world.root / "tiny" / "model.safetensors"

    target.write_bytes(b"x")
    assert weights.state("tiny", world.root) == "damaged"
    weights.pull(["tiny"], world.root, from_dir=world.index)
    assert weights.state("tiny", world.root, full=True) == "present"

    target.write_bytes(b"W" + CONTENT["model.safetensors"][1:])
    assert weights.state("tiny", world.root) == "present"  # the quick look compares sizes only
    assert weights.state("tiny", world.root, full=True) == "damaged"
    weights.pull(["tiny"], world.root, from_dir=world.index)
    assert weights.state("tiny", world.root, full=True) == "present"

    (world.root / "tiny" / "verified.json").write_text("{", "utf-8")
    assert weights.state("tiny", world.root) == "damaged"
    target.unlink()
    with pytest.raises(MissingWeights, match="damaged"):
        weights.folder("tiny", world.root)


def test_another_version_of_the_table_makes_a_model_stale(world: SimpleNamespace, no_network: None) -> None:
    write_wheel(world.index)
    weights.pull(["tiny"], world.root, from_dir=world.index)
    world.table["tiny"] = replace(tiny_model(), files=tiny_model().files[:1])
    with pytest.raises(MissingWeights, match="stale"):
        weights.folder("tiny", world.root)
    weights.pull(["tiny"], world.root, from_dir=world.index)
    assert visible(world.root) == {"tiny"}
    assert not (world.root / "tiny" / "sub").exists()


def test_a_full_disk_is_noticed_before_and_during_a_pull(
    world: SimpleNamespace, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(world.index)
    with monkeypatch.context() as patch:
        patch.setattr(weights.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(MissingWeights, match="disk with the weights folder is full") as caught:
            weights.pull(["tiny"], world.root, from_dir=world.index)
        assert "TRIPTYCH_HOME" in caught.value.hint
    limited = textwrap.dedent(KILLED).format(
        tests=str(Path(__file__).parent), phase="never", at=0, root=str(world.root)
    )
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
    failed = subprocess.run([sys.executable, "-c", limit + limited], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "MissingWeights" in failed.stderr
    assert visible(world.root) == set()


def test_a_home_that_cannot_be_used_is_a_typed_error(world: SimpleNamespace, no_network: None) -> None:
    world.root.parent.write_text("a file where the home should be", "utf-8")
    with pytest.raises(MissingWeights, match="weights folder cannot be used") as caught:
        weights.pull(["tiny"], world.root, from_dir=world.tmp)
    assert str(world.tmp) not in str(caught.value)


# --- preparation -----------------------------------------------------------------------------------------------------


def test_a_gguf_that_cannot_be_opened_says_so(world: SimpleNamespace) -> None:
    world.table["tiny"] = replace(tiny_model(), prepare="gguf", prepared_bytes=10, files=tiny_model().files[:1])
    write_wheel(world.index)
    with pytest.raises(MissingWeights, match="`tiny` could not be prepared") as caught:
        weights.pull(["tiny"], world.root, from_dir=world.index)
    assert str(world.tmp) not in str(caught.value)
    assert visible(world.root) == set()


def test_the_stamp_records_source_and_result(weights_home: Path) -> None:
    stamp = json.loads((weights_home / "weights" / "smollm2_135m_instruct" / "verified.json").read_text("utf-8"))
    [source] = weights.model("smollm2_135m_instruct").files
    assert stamp["sources"] == {source.path: source.sha256}
    assert stamp["prepared"] == prepare.RECIPE
    assert stamp["hash"] == weights.hash_of("smollm2_135m_instruct")
    assert "model.safetensors" in stamp["files"]
    assert "tokenizer.json" in stamp["files"]


def test_the_prepared_language_model_reads_english(weights_home: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = weights.folder("smollm2_135m_instruct", weights_home / "weights")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.bfloat16).eval()
    assert model.dtype == torch.bfloat16

    def perplexity(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1].float()
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).exp())

    sense = (
        "The heart is a muscular organ that pumps blood through the body. In humans it lies between the lungs, "
        "in the middle of the chest, and it beats about seventy times a minute at rest."
    )
    assert 2 < perplexity(sense) < 25
    assert perplexity(" ".join(reversed(sense.split()))) > 5 * perplexity(sense)


def test_the_sentence_encoder_tells_likeness(weights_home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = weights.folder("all_minilm_l6_v2", weights_home / "weights")
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    near, query, far = model.encode(["A cat rests on a rug.", "The cat lies on the mat.", "Interest rates rose."])
    assert near @ query > 0.5 > 0.2 > far @ query


# --- the hub ---------------------------------------------------------------------------------------------------------

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(content: dict[str, bytes]) -> Iterator[str]:
    """A model hub on loopback that knows one repository at one revision."""

    class Hub(BaseHTTPRequestHandler):
        def _answer(self, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def _handle(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            if path == f"/api/models/someone/tiny/revision/{REVISION}":
                files = [{"rfilename": name} for name in content]
                info = {"id": "someone/tiny", "modelId": "someone/tiny", "sha": REVISION, "siblings": files}
                self._answer(json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
            elif path == f"/api/models/someone/tiny/tree/{REVISION}":
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in content.items()
                ]
                self._answer(json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body)
            elif (name := path.removeprefix(f"/someone/tiny/resolve/{REVISION}/")) in content:
                data = content[name]
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                self._answer(data, {"ETag": tag, "X-Repo-Commit": REVISION}, with_body)
            else:
                self.send_error(404)

        def do_GET(self) -> None:
            self._handle(True)

        def do_HEAD(self) -> None:
            self._handle(False)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("honest", [True, False])
def test_a_hub_at_a_seen_revision_is_asked_first(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    model = tiny_model()
    world.table["tiny"] = replace(model, carriers=(Carrier("hub", "someone/tiny", REVISION), model.carriers[1]))
    write_wheel(world.index)
    with hub(CONTENT if honest else WRONG["other bytes"]) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_HOME", str(world.tmp / "hf"))
        [pulled] = weights.pull(["tiny"], world.root)
    assert pulled.carrier == (f"hub someone/tiny@{REVISION}" if honest else f"wheel {PACKAGE}@{VERSION}")
    assert weights.state("tiny", world.root, full=True) == "present"
