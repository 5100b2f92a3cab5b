"""Settings: which layer wins, and what a wrong value says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triptych import BadInput, Settings
from triptych.manifests import registry


def load(home: Path, environ: dict[str, str] | None = None, profile: str | None = None, **overrides: Any) -> Settings:
    return Settings.load(profile, environ={"TRIPTYCH_HOME": str(home), **(environ or {})}, **overrides)


@pytest.mark.parametrize("profile", [None, "standard"])
def test_a_profile_names_systems_that_exist(profile: str | None, tmp_path: Path) -> None:
    settings = load(tmp_path, profile=profile)
    assert settings.profile == (profile or "embedded")
    assert settings.home == tmp_path
    assert settings.libraries == tmp_path / "libraries"
    assert settings.weights == tmp_path / "weights"
    assert registry.card(settings.encoder, "retriever").id == settings.encoder
    assert settings.reranker == "none" or registry.card(settings.reranker, "reranker").id == settings.reranker
    assert registry.card(settings.refiner, "refiner").id == settings.refiner
    assert 0 < settings.max_tokens <= settings.max_tokens_cap


def test_each_layer_wins_over_the_weaker_ones(tmp_path: Path) -> None:
    packaged = load(tmp_path).depth
    (tmp_path / "profiles.toml").write_text("[embedded]\ndepth = 11\nthreads = 3\n", "utf-8")
    assert load(tmp_path).depth == 11 != packaged
    assert load(tmp_path).encoder == "all_minilm_l6_v2"  # what the home's file leaves out stays
    assert load(tmp_path, {"TRIPTYCH_DEPTH": "22"}).depth == 22
    assert load(tmp_path, {"TRIPTYCH_DEPTH": "22"}, depth=33).depth == 33
    assert load(tmp_path, {"TRIPTYCH_DEPTH": "22"}, depth=None).depth == 22
    assert load(tmp_path, {"TRIPTYCH_DEPTH": ""}).depth == 11
    assert load(tmp_path, {"TRIPTYCH_DEPTH": "22"}).threads == 3


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text('[quick]\nreranker = "none"\nrefiner = "truncate"\n', "utf-8")
    settings = load(tmp_path, {"TRIPTYCH_PROFILE": "quick"})
    assert (settings.profile, settings.reranker, settings.refiner) == ("quick", "none", "truncate")
    assert load(tmp_path, {"TRIPTYCH_PROFILE": "quick"}, profile="embedded").profile == "embedded"


def test_home_comes_from_the_argument_then_the_environment_then_the_platform(tmp_path: Path) -> None:
    environ = {"TRIPTYCH_HOME": str(tmp_path)}
    assert Settings.load(environ=environ).home == tmp_path
    assert Settings.load(environ=environ, home=tmp_path / "other").home == tmp_path / "other"
    assert Settings.load(environ=environ, home=None).home == tmp_path
    default = Settings.load(environ={}).home
    assert default.name == "triptych"
    assert default.is_absolute()
    assert load(Path("~/shelf")).home == Path("~/shelf").expanduser()


def test_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        load(tmp_path).depth = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"profile": "embeded"}, "Unknown profile `embeded`.", "embedded"),
        ({"dept": 3}, "Unknown setting `dept`.", "Did you mean `depth`?"),
        ({"zzzz": 3}, "Unknown setting `zzzz`.", ""),
        ({"depth": "many"}, "Setting `depth` is `many`.", "whole number"),
        ({"depth": -1}, "Setting `depth` is `-1`.", "negative"),
        ({"environ": {"TRIPTYCH_MAX_TOKENS": "6k"}}, "Setting `max_tokens` is `6k`.", "whole number"),
    ],
)
def test_a_wrong_value_is_shown_with_a_remedy(
    tmp_path: Path, arguments: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, **arguments)
    assert caught.value.message == message
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", [b"[embedded\n", b"\xff\xfe[embedded]"])
def test_a_damaged_profiles_file_is_bad_input(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "profiles.toml").write_bytes(text)
    with pytest.raises(BadInput, match=r"`profiles\.toml` in the home folder is not valid TOML") as caught:
        load(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_a_profiles_file_with_an_unknown_setting_names_it(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text("[embedded]\nrefinery = 1\n", "utf-8")
    with pytest.raises(BadInput, match="Unknown setting `refinery`"):
        load(tmp_path)


def test_a_profile_that_is_no_table_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text("embedded = 3\n", "utf-8")
    with pytest.raises(BadInput, match="`embedded`"):
        load(tmp_path)
