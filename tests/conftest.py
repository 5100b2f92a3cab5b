"""Shared fixtures. The suite needs pulled weights (`make weights`) and never skips for the lack of them.

Sockets other than loopback are blocked, warnings are errors (an exception in a thread is one), and nobody's own home
or settings are read.
"""

from __future__ import annotations

import os
from pathlib import Path

# Libraries read these while they are imported, so they stand before any test module is collected. Two threads: neither
# time nor rounding should depend on how many cores a machine has.
os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1", OMP_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE"
)

import hypothesis
import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "milvus: needs the server that `make test-milvus` installs")
    config.addinivalue_line("markers", "ui: needs the browser that `make check-ui` drives")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `milvus` or `ui` run only when they are asked for: `-m milvus`, `-m ui`."""
    if not config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("milvus") or item.get_closest_marker("ui")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


hypothesis.settings.register_profile("suite", deadline=None, max_examples=50)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes every `TRIPTYCH_…` variable of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("TRIPTYCH_") and name != "TRIPTYCH_TEST_HOME"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def weights_home() -> Path:
    """A home with the embedded profile's weights: `TRIPTYCH_TEST_HOME`, else `.triptych` in the checkout.

    Read only: libraries and settings of a test belong into `tmp_home`.
    """
    from triptych.manifests import weights

    home = Path(os.environ.get("TRIPTYCH_TEST_HOME") or CHECKOUT / ".triptych").absolute()
    for name in weights.models():
        if (found := weights.state(name, home / "weights")) != "present":
            pytest.fail(f"The weights `{name}` are {found}. Run `make weights`.", pytrace=False)
    return home


@pytest.fixture
def tmp_home(tmp_path: Path, weights_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh `TRIPTYCH_HOME` for one test: no libraries yet, the pulled weights linked in."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "weights").symlink_to(weights_home / "weights", target_is_directory=True)
    monkeypatch.setenv("TRIPTYCH_HOME", str(home))
    return home


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh `TRIPTYCH_HOME` without weights: what a user has before the first pull."""
    home = tmp_path / "bare"
    home.mkdir()
    monkeypatch.setenv("TRIPTYCH_HOME", str(home))
    return home
