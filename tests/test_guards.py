"""What must stay true of the code as a whole, read from the source without running it wherever that is possible."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import triptych
from triptych.manifests import registry

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES: list[str] = PYPROJECT["tool"]["setuptools"]["packages"]
ROOT_MODULES = {"__init__", "errors", "progress", "settings"}
LAYERS = ("", "manifests", "retrievers", "rerankers", "refiners", "tools", "server")
NOT_SHIPPED = {"benchmarks", "build", "dist", "docs", "tests"}
ONLY_IN = {
    "mcp": "triptych.server",
    "langchain_core": "triptych.tools.langchain",
    "pymilvus": "triptych.retrievers.stores",
    "milvus_lite": "triptych.retrievers.stores",
}
HEAVY = {
    *("torch", "transformers", "sentence_transformers", "llmlingua", "pymilvus", "milvus_lite", "langchain_core"),
    *("mcp", "numpy", "pandas", "PIL", "pypdfium2", "rapidocr", "onnxruntime", "pydantic", "nltk", "jieba", "click"),
}
FETCHERS = {"aiohttp", "httpx", "huggingface_hub", "requests", "urllib.request", "http.client", "ftplib", "smtplib"}
CONVERTS = "triptych.tools.converting"
"""The only module that may read a pickle, and only of tensors."""
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PUBLIC = [
    *("Triptych", "Settings", "Budget", "Hit", "Item", "MediaRef", "Passage", "Piece", "Query", "Ranking", "Refined"),
    *("Source", "BadInput", "Cancelled", "EndpointError", "Forbidden", "MissingExtra", "MissingWeights", "NotFound"),
    *("StaleId", "StoreError", "TimedOut", "TriptychError", "UnknownSystem", "UnreadableFile", "Unsupported"),
]


def folder_of(package: str) -> Path:
    if package == "triptych.sample":
        return ROOT / "docs" / "sample"
    return ROOT.joinpath(*package.split(".")[1:])


def name_of(path: Path) -> str:
    return ".".join(("triptych", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


FILES = sorted(path for package in PACKAGES if package != "triptych.sample" for path in folder_of(package).glob("*.py"))
MODULES = {name_of(path): path for path in FILES}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Everything that `module` imports anywhere in its text, as absolute dotted names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            inside = {f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES}
            found |= inside or {base}
    return frozenset(found)


def layer_of(module: str) -> int:
    part = module.split(".")[1] if module.count(".") else ""
    return LAYERS.index(part) if part in LAYERS else 0


def calls_in(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


# --- the direction of imports ----------------------------------------------------------------------------------------


def test_imports_flow_one_way() -> None:
    back = [
        f"{module} imports {name}"
        for module in MODULES
        if module != "triptych"  # the public face names later layers for type checkers; its own test shows it is lazy
        for name in imports_of(module)
        if name.partition(".")[0] == "triptych" and layer_of(name) > layer_of(module)
    ]
    assert back == []


def test_systems_import_one_another_only_where_their_card_says_so() -> None:
    cards = registry.cards()
    home = {card.entry.partition(":")[0]: card.id for card in cards.values()}
    sideways = [
        f"{home[module]} imports {home[name]}, which its card does not name in `builds_on`"
        for module in MODULES.keys() & home.keys()
        for name in imports_of(module) & home.keys()
        if name != module and home[name] not in cards[home[module]].builds_on
    ]
    assert sideways == []


def test_imports_inside_the_package_are_relative() -> None:
    absolute = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "triptych" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "triptych")
    ]
    assert absolute == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_place(library: str) -> None:
    place = ONLY_IN[library]
    elsewhere = [
        module
        for module in MODULES
        if any(name.split(".")[0] == library for name in imports_of(module))
        and not (module == place or module.startswith(f"{place}."))
    ]
    assert elsewhere == []


# --- what code may not do --------------------------------------------------------------------------------------------


def test_no_call_that_prints_evaluates_or_trusts_too_much() -> None:
    found = []
    for module, path in MODULES.items():
        for call in calls_in(path):
            name = ast.unparse(call.func)
            options = {key.arg: ast.unparse(key.value) for key in call.keywords if key.arg}
            restricted = module == CONVERTS and name == "torch.load" and options.get("weights_only") == "True"
            if name in ("print", "eval", "exec", "os.system", "os.popen", "torch.load") and not restricted:
                found.append(f"{module}:{call.lineno} calls {name}")
            found += [
                f"{module}:{call.lineno} passes {option}"
                for option in ("trust_remote_code", "shell", "allow_pickle")
                if options.get(option, "False") != "False"
            ]
    assert found == []


def test_no_unsafe_format_and_no_downloader_is_imported() -> None:
    found = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imports_of(module)
        if name.split(".")[0] in UNSAFE_MODULES or name in FETCHERS or name.split(".")[0] in FETCHERS
    ]
    assert found == []


def test_no_exception_is_swallowed_in_silence() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or all(isinstance(line, ast.Pass) for line in node.body))
    ]
    assert found == []


HOST = re.compile(r"(pypi|pythonhosted|npmjs|anaconda|debian)\.(org|com|io|net)", re.IGNORECASE)
MACHINE = re.compile(r"""["'`( =](/(home|root|work|Users|tmp|opt|mnt)/|[A-Z]:\\\\?Users)""")
LINK = re.compile(r"https?://(?!127\.0\.0\.1|localhost|\[::1\]|\{|[\w-]+\.example\b)[\w.-]+\.\w")


def test_no_registry_host_and_no_path_of_a_machine_in_the_package() -> None:
    texts = [*FILES, *(ROOT / "manifests").rglob("*.toml"), *(ROOT / "manifests").rglob("*.json")]
    texts += [ROOT / name for name in ("Makefile", ".ci/run", "pyproject.toml")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if HOST.search(line) or MACHINE.search(line)
    ]
    assert found == []


def test_no_code_names_an_address_to_fetch_from() -> None:
    found = [
        f"{module}:{node.lineno} {node.value[:60]!r}"
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and LINK.search(node.value)
    ]
    assert found == []


# --- the public face -------------------------------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    assert triptych.__all__ == PUBLIC
    assert set(dir(triptych)) == {*PUBLIC, "__version__"}
    assert triptych.__version__ == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(triptych, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="tryptich"):
        _ = triptych.tryptich


@pytest.mark.parametrize(
    "code",
    [
        "import triptych; dir(triptych); triptych.TriptychError",
        "from triptych import Settings; Settings.load()",
        "from triptych.manifests import registry; assert registry.cards()",
        "from triptych.manifests import weights; assert weights.models()",
    ],
    ids=["face", "settings", "registry", "weights"],
)
def test_importing_and_listing_load_no_heavy_library(code: str) -> None:
    script = f"import sys; {code}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


# --- the house -------------------------------------------------------------------------------------------------------


def test_the_root_holds_four_modules_and_none_hides_a_standard_one() -> None:
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert modules == ROOT_MODULES
    assert modules & sys.stdlib_module_names == set()


OURS = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in NOT_SHIPPED and path.name[0] != "."]


def test_the_list_of_packages_is_the_folders() -> None:
    inside = {path.parent for folder in OURS for path in folder.rglob("__init__.py")}
    assert {folder_of(package) for package in PACKAGES} == {ROOT, ROOT / "docs" / "sample", *inside}
    assert len(PACKAGES) == len(set(PACKAGES))


def test_every_folder_with_code_is_a_package() -> None:
    with_code = {path.parent for folder in OURS for path in folder.rglob("*.py")}
    assert with_code <= {folder_of(package) for package in PACKAGES}


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


WITH_EXAMPLES = [module for module, path in MODULES.items() if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_hold(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0
