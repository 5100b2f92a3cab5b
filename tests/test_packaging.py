"""The wheel: built from a clean export, holding what the list of packages says and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "triptych"
    run(ROOT / ".ci" / "export.py", target)
    return target


@pytest.fixture(scope="module")
def wheel(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--wheel-dir")
    run("-m", "pip", "wheel", *options, target, export)
    [built] = target.glob("*.whl")
    return built


def expected(export: Path) -> set[str]:
    """Every module and data file of the listed packages, under the name it has in the wheel."""
    found = set()
    for package in SETUPTOOLS["packages"]:
        folder = export.joinpath(*package.split(".")[1:])
        if package in SETUPTOOLS["package-dir"]:
            folder = export / SETUPTOOLS["package-dir"][package]
        patterns = ["*.py", *SETUPTOOLS["package-data"].get(package, [])]
        files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
        found |= {f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}" for path in files}
    return found


def test_the_export_is_what_git_would_commit(export: Path) -> None:
    assert (export / "pyproject.toml").is_file()
    ignored = {".venv", ".triptych", ".types", ".git", "build", "dist", "triptych.egg-info"}
    assert not ignored & {path.name for path in export.iterdir()}
    assert not list(export.rglob("__pycache__"))


def test_the_wheel_holds_the_listed_packages_and_nothing_else(export: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == expected(export)
    assert {"triptych/py.typed", "triptych/manifests/weights.toml", "triptych/sample/__init__.py"} <= shipped
    assert not {name for name in shipped if re.match(r"triptych/(tests|benchmarks|docs|build)/", name)}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_export_leaves_out_what_is_stale_or_deleted(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("kept.py", "deleted.py", "new.py", "build/lib/triptych/stale.py", "pkg/a.toml"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    for name in (".ci/export.py", ".gitignore"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    for command in (["init", "--quiet"], ["add", "kept.py", "deleted.py", ".ci"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    (checkout / "deleted.py").unlink()
    run(checkout / ".ci" / "export.py", tmp_path / "out")
    exported = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert exported == {".ci/export.py", ".gitignore", "kept.py", "new.py", "pkg/a.toml"}


def test_the_metadata_says_what_is_needed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
        [scripts] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "triptych = triptych.server.cli:main" in archive.read(scripts).decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    requires = metadata.get_all("Requires-Dist") or []
    assert "torch<2.14,>=2.8" in requires
    assert any(line.startswith("milvus-lite>=") for line in requires)
    assert any(line.startswith("pip>=") for line in requires)
    assert any(re.match(r"mcp<3,>=2\.1; extra == .mcp.", line) for line in requires)
    assert not [line for line in requires if line.startswith("mcp") and "extra" not in line]


def test_an_installed_wheel_finds_its_data(export: Path, wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = """
        import sys
        from importlib.resources import files
        import triptych
        from triptych.manifests import registry, weights
        assert triptych.__file__.startswith(sys.argv[1]), triptych.__file__
        assert registry.cards() and weights.models()
        assert triptych.Settings.load(environ={}).profile == "embedded"
        sample = files("triptych.sample")
        print(sum(path.is_file() for path in sample.rglob("*")))
    """
    script = "\n".join(line.strip() for line in script.splitlines())
    site = str(tmp_path / "site")
    environ = {**os.environ, "PYTHONPATH": site}
    done = run("-P", "-B", "-c", script, site, cwd=tmp_path, env=environ)
    assert int(done.stdout) == sum(name.startswith("triptych/sample/") for name in expected(export))
