"""Systems of other packages: the one that docs/adding-a-system.md adds works, and a broken one stops nobody else."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych import BadInput, Settings, Triptych, UnknownSystem
from triptych.errors import Unsupported
from triptych.manifests import doctor, plugins, registry
from triptych.retrievers.base import Query
from triptych.server.cli import main

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "adding-a-system.md").read_text("utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", PAGE, re.S))
CARD = FILES["letter_trigrams/systems.toml"]


def install(site: Path, files: dict[str, str], name: str = "letter-trigrams", value: str = "") -> None:
    """What `pip install` leaves of a package: its files, and a `dist-info` with its entry points."""
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, "utf-8")
    folder = name.replace("-", "_")
    (site / folder).mkdir(exist_ok=True)
    (site / folder / "__init__.py").touch()
    info = site / f"{folder}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    entry = f"[{plugins.GROUP}]\n{folder} = {value or f'{folder}:systems.toml'}\n"
    (info / "entry_points.txt").write_text(entry, "utf-8")


def forget() -> None:
    """As in a process that has not looked yet."""
    importlib.invalidate_caches()
    for cached in (plugins.plugins, registry.cards):
        cached.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    forget()
    yield folder
    monkeypatch.undo()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"letter_trigrams", "toy_one", "toy_two"}:
            del sys.modules[name]
    forget()


def card_of(package: str, **changed: Any) -> str:
    text = CARD.replace("letter_trigrams.encoder", f"{package}.encoder")
    for field, value in changed.items():
        text = re.sub(rf"^{field} = .*$", f"{field} = {json.dumps(value)}", text, flags=re.M)
    return text


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_system_of_the_page_is_one_like_any_other(site: Path, bare_home: Path, tmp_path: Path, capsys: Any) -> None:
    install(site, FILES)
    card = registry.card("letter_trigrams", "retriever")
    assert card.title == "Letter trigrams"
    assert list(registry.cards())[-1] == "letter_trigrams"
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in {"a": "The lighthouse keeper was Ruth.", "b": "A boat for twelve people."}.items():
        (docs / f"{name}.txt").write_text(text, "utf-8")
    with Triptych("mine", Settings.load()) as library:
        library.index(docs, retrievers=["letter_trigrams"])
        assert library.search("lihgthouse keper").note != ""
        assert library.search("lihgthouse keper", 1, retriever="letter_trigrams").hits[0].uri == "docs/a.txt"
        assert library.status().store["retrievers"] == {"letter_trigrams": 2}
        assert library.verify().whole
    assert main(["systems", "show", "letter_trigrams", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entry"] == "letter_trigrams.encoder:LetterTrigrams"
    found = {check.what: check for check in doctor.examine(Settings.load()).checks}
    assert (found["systems of letter-trigrams"].status, found["systems of letter-trigrams"].detail) == (
        "ok",
        "letter_trigrams",
    )


def test_the_system_of_the_page_keeps_the_contract(site: Path) -> None:
    install(site, FILES)
    encoder = registry.card("letter_trigrams").resolve().tiny(0)
    texts = ["The owl", "", "🙂", "\ud800", "owl " * 500]
    together = encoder.encode([Query(text) for text in texts], "query")
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for number, text in enumerate(texts):
        np.testing.assert_array_equal(encoder.encode([Query(text)], "query")[0], together[number])
    assert encoder.encode([], "query").shape == (0, encoder.space.dim)
    with pytest.raises(Unsupported):
        encoder.encode([Query(None)], "query")
    assert doctest.testmod(importlib.import_module("letter_trigrams.encoder")).failed == 0


def test_the_commands_of_the_page_find_it_in_a_process_of_their_own(site: Path, bare_home: Path) -> None:
    install(site, FILES)
    environ = {**os.environ, "PYTHONPATH": str(site)}
    asked = [sys.executable, "-m", "triptych.server.cli", "systems"]
    listed = subprocess.run(asked, env=environ, capture_output=True, text=True, check=True)
    assert "letter_trigrams" in listed.stdout
    code = "import sys; from triptych.manifests import registry; registry.cards(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert "letter_trigrams" not in loaded.stdout.split()  # listing runs none of its code
    assert not {"torch", "numpy"} & set(loaded.stdout.split())


# --- broken packages -------------------------------------------------------------------------------------------------

BROKEN = [
    ({"toy_one/systems.toml": "[retriever"}, "", "cannot be read"),
    ({"toy_one/systems.toml": '[searcher.x]\ntitle = "X"\n'}, "", "`searcher`"),
    ({"toy_one/systems.toml": "[retriever]\nx = 1\n"}, "", "`retriever.x`"),
    ({"toy_one/systems.toml": card_of("toy_one", fidelity="exact")}, "", "`exact`"),
    ({"toy_one/systems.toml": card_of("toy_one", entry="os:system")}, "", "`os:system`"),
    ({"toy_one/systems.toml": card_of("toy_one", entry="toy_onex.m:C")}, "", "`toy_onex.m:C`"),
    ({"toy_one/systems.toml": card_of("toy_one") + 'colour = "blue"\n'}, "", "colour"),
    ({"toy_one/systems.toml": card_of("toy_one") + 'weights = ["none_such"]\n'}, "", "`none_such`"),
    ({"toy_one/systems.toml": card_of("toy_one").replace(".letter_trigrams]", ".bm25]")}, "", "Triptych's own"),
    ({"toy_one/systems.toml": card_of("toy_one").replace(".letter_trigrams]", '."../up"]')}, "", "id `../up`"),
    ({"toy_one/systems.toml": card_of("toy_one").replace(".letter_trigrams]", '.""]')}, "", "id ``"),
    ({}, "", "no file of cards"),
    ({}, "toy_one:systems", "no file of cards `toy_one:systems`"),
    ({}, "no_such_package:systems.toml", "no file of cards"),
    ({"toy_one/.toml": card_of("toy_one")}, "toy_one:.toml", "no file of cards"),
]


@pytest.mark.parametrize(("files", "value", "said"), BROKEN)
def test_a_broken_package_is_named_and_stops_nobody(
    site: Path, bare_home: Path, capsys: Any, files: dict[str, str], value: str, said: str
) -> None:
    install(site, files, "toy-one", value)
    install(site, FILES)
    assert registry.card("letter_trigrams").id == "letter_trigrams"
    assert registry.cards().keys() - {"letter_trigrams"} == registry.packaged().keys()
    [broken] = plugins.plugins().broken
    assert broken.package == "toy-one"
    assert isinstance(broken.error, BadInput)
    assert "`toy-one`" in broken.error.message and said in broken.error.message
    assert "pip uninstall toy-one" in broken.error.hint
    report = doctor.examine(Settings.load())
    [check] = [check for check in report.checks if check.what == "systems of toy-one"]
    assert check.status == "optional" and check.detail.startswith("broken: ")
    assert main(["systems", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "letter_trigrams" in [row["id"] for row in json.loads(out)]
    assert "broken: The systems of the package `toy-one`" in err


def test_of_two_packages_with_one_id_the_first_by_name_has_it(site: Path) -> None:
    install(site, {"toy_two/systems.toml": card_of("toy_two")}, "toy-two")
    install(site, {"toy_one/systems.toml": card_of("toy_one")}, "toy-one")
    assert registry.card("letter_trigrams").entry.startswith("toy_one.")
    [broken] = plugins.plugins().broken
    assert broken.package == "toy-two"
    assert "a system of the package `toy-one`" in broken.error.message


@pytest.mark.parametrize(
    ("code", "said"),
    [("import no_such_module\n", "ModuleNotFoundError"), ("1 / 0\n", "ZeroDivisionError"), ("", "AttributeError"),
     ("LetterTrigrams = 3\n", "doors"), ("class LetterTrigrams:\n    load = 1\n", "doors")],
)  # fmt: skip
def test_code_that_cannot_be_built_is_named_when_it_is_asked_for(site: Path, code: str, said: str) -> None:
    install(site, {"toy_one/systems.toml": card_of("toy_one"), "toy_one/encoder.py": code}, "toy-one")
    card = registry.card("letter_trigrams")
    with pytest.raises(Unsupported, match="of the package `toy-one`") as caught:
        card.resolve()
    assert said in caught.value.message
    assert "pip uninstall toy-one" in caught.value.hint
    assert registry.card("bm25").resolve().__name__ == "BM25"


def test_a_misspelt_plug_in_is_answered_with_the_nearest(site: Path) -> None:
    install(site, FILES)
    with pytest.raises(UnknownSystem) as caught:
        registry.card("letter_trigram")
    assert caught.value.hint == "Did you mean `letter_trigrams`?"


def test_a_package_may_have_systems_of_every_role_below_a_folder(site: Path) -> None:
    own = "[retriever.letter_trigrams]"
    tables = [card_of("toy_one").replace(own, f"[{role}.toy_{role}]") for role in registry.ROLES]
    roles = "\n".join(tables)
    install(site, {"toy_one/inner/systems.toml": roles}, "toy-one", "toy_one.inner:systems.toml")
    assert [registry.card(f"toy_{role}", role).role for role in registry.ROLES] == list(registry.ROLES)
    assert plugins.plugins().broken == ()
