"""The doctor: what it finds, and that each finding names what mends it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from triptych import Settings
from triptych.errors import BadInput, Unsupported
from triptych.manifests import doctor, weights
from triptych.tools.stages import Stages


def named(report: doctor.Report) -> dict[str, doctor.Check]:
    return {check.what: check for check in report.checks}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the look at the processor, which imports torch."""
    monkeypatch.setattr(doctor, "computes_bfloat16", lambda: False)


def test_a_whole_installation_is_healthy(weights_home: Path) -> None:
    report = doctor.examine(Settings.load(home=weights_home), full=True)
    assert report.healthy, [check for check in report.checks if check.status != "ok"]
    found = named(report)
    assert found["weights all_minilm_l6_v2"].detail == "every SHA-256 is right"
    assert found["package torch"].detail == metadata.version("torch")
    assert "bfloat16" in found["processor"].detail
    assert {"python", "home folder", "disk", "package pip", "package mcp"} <= found.keys()
    assert len(found) == len(report.checks)


def test_a_bare_home_lacks_weights_and_says_how_to_get_them(bare_home: Path, quick: None) -> None:
    report = doctor.examine(Settings.load())
    assert not report.healthy
    missing = [check for check in report.checks if check.status != "ok"]
    names = (
        *("all_minilm_l6_v2", "smollm2_135m_instruct", "silero_vad", "moonshine_tiny_en"),
        *("image_tags", "use_multilingual"),
    )
    assert [check.what for check in missing] == [f"weights {name}" for name in names]
    assert {(check.status, check.mend) for check in missing} == {("missing", "triptych pull embedded")}
    assert list(bare_home.iterdir()) == []


def test_weights_that_the_user_brings_are_named_with_their_place(bare_home: Path, quick: None) -> None:
    found = named(doctor.examine(Settings.load("standard")))["weights monobert"]
    assert (found.status, found.mend) == (
        "missing",
        "Put the files of `cross-encoder/ms-marco-MiniLM-L6-v2` into `weights/monobert` of the home folder.",
    )
    (bare_home / "weights" / "monobert").mkdir(parents=True)
    assert named(doctor.examine(Settings.load("standard")))["weights monobert"].status == "ok"


def test_a_home_that_is_not_there_yet_is_fine_and_is_not_made(tmp_path: Path, quick: None) -> None:
    report = doctor.examine(Settings.load(home=tmp_path / "a" / "b"))
    assert named(report)["home folder"] == doctor.Check("home folder", "ok", "will be made")
    assert list(tmp_path.iterdir()) == []


def test_a_home_under_a_file_cannot_be_written(tmp_path: Path, quick: None) -> None:
    (tmp_path / "file").touch()
    check = named(doctor.examine(Settings.load(home=tmp_path / "file" / "home")))["home folder"]
    assert check.status == "damaged"
    assert "TRIPTYCH_HOME" in check.mend


def test_damaged_weights_are_found(bare_home: Path, quick: None) -> None:
    target = bare_home / "weights" / "all_minilm_l6_v2"
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}", "utf-8")
    check = named(doctor.examine(Settings.load()))["weights all_minilm_l6_v2"]
    assert (check.status, check.mend) == ("damaged", "triptych pull embedded")


def test_only_a_full_look_reads_every_byte(weights_home: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(home=weights_home)
    monkeypatch.setattr(weights.carriers, "sha256", lambda path: "0" * 64)
    assert doctor.examine(settings).healthy
    report = doctor.examine(settings, full=True)
    assert {check.status for check in report.checks if check.what.startswith("weights")} == {"damaged"}


def test_packages_missing_or_too_old_are_named_with_the_command(
    weights_home: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires = [
        "triptych-nowhere>=2",
        "packaging>=999",
        "packaging; extra == 'test'",
        "triptych-nothing; extra == 'mcp'",
        "triptych-elsewhere; sys_platform == 'amiga'",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: requires)
    found = named(doctor.examine(Settings.load(home=weights_home)))
    assert found["package triptych-nowhere"].status == "missing"
    assert found["package triptych-nowhere"].mend == "pip install 'triptych-nowhere>=2'"
    assert found["package packaging"].status == "damaged"
    assert found["package triptych-nothing"].status == "optional"
    assert found["package triptych-nothing"].mend == "pip install 'triptych[mcp]'"
    assert "package triptych-elsewhere" not in found


def test_little_space_is_a_warning(weights_home: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    report = doctor.examine(Settings.load(home=weights_home))
    assert named(report)["disk"].status == "optional"
    assert report.healthy


def test_a_python_without_pip_cannot_pull(weights_home: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert named(doctor.examine(Settings.load(home=weights_home)))["pip"].mend == "python -m ensurepip"


def test_a_profile_for_a_graphics_card_says_what_it_needs_and_what_is_there(
    bare_home: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load("mllm")
    for has, status in ((0.0, "missing"), (2.0, "missing"), (80.0, "ok")):
        monkeypatch.setattr(doctor, "graphics_gb", lambda has=has: has)
        found = named(doctor.examine(settings))
        card = found["graphics card"]
        assert (card.status, "gme want" in card.detail) == (status, True)
        assert (card.mend == "") == (status == "ok")
    assert "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct" in found["weights gme"].mend
    assert "graphics card" not in named(doctor.examine(Settings.load()))


def test_a_machine_without_a_graphics_card_says_so_when_it_is_asked_for_one(
    bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "graphics_gb", lambda: 0.0)
    with pytest.raises(Unsupported, match="finds no graphics card") as error:
        Stages(Settings.load("mllm")).reranker()
    assert "triptych doctor --profile mllm" in error.value.hint
    with pytest.raises(BadInput, match="`device` is `tpu`"):
        Stages(Settings.load(device="tpu")).reranker()
    assert Stages(Settings.load("mllm", device="cpu")).device == "cpu"
