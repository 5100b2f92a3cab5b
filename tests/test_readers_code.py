"""Source code cut at its definitions, and readers that other packages bring."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import UnreadableFile
from triptych.retrievers.chunking import chunk
from triptych.retrievers.readers import _grammars, code, plugins, read
from triptych.retrievers.readers.base import Document, Limits

sys.path.append(str(Path(__file__).parent))
from made_files import PYTHON

TYPESCRIPT = """import { x } from "y";

// The rates.
export interface Rates { city: string }
export const night = (city: string): number => {
  return 1;
};
@Injectable()
export class Hotel<T> extends Base {
  /** What it is called. */
  @Input() name: string;
  async stay(n: number) { return n; }
}
namespace Geo {
  export function far() { return 1 }
}
export default function main() {}
enum Color { Red }
"""
JAVA = """package a.b;

/** Rates. */
@Deprecated
public class Rates<T> {
    int x = 1;
    /** One night. */
    @Override
    public int night(String city) { return 1; }
    Rates() {}
    static class Inner {
        void f() {}
    }
    record P(int x) {}
}
interface I { int g(); }
"""
GO = """package rates

// Rates by city.
type Rates struct{ City string }

// Night is what a night costs.
func (r *Rates) Night(n int) int { return n }

func main() {}
"""
RUST = """//! Rates.
use std::fmt;

/// Rates by city.
#[derive(Debug)]
pub struct Rates { city: String }

impl fmt::Display for Rates {
    fn fmt(&self) -> i32 { 1 }
}
mod inner {
    pub fn f() {}
}
macro_rules! m { () => {} }
"""
C = """#include <stdio.h>
/* A point. */
typedef struct { int x; } point_t;
struct node { int v; struct node *next; };
static int *find(struct node *n) {
  return &n->v;
}
#define MAX(a, b) ((a) > (b))
int main(void) { return 0; }
"""
CPP = """#pragma once
namespace geo {
// Rates.
template <typename T>
class Rates : public Base {
 public:
  Rates() {}
  int night(int n) const { return n; }
  T operator+(const T& o) { return o; }
};
}
int geo::Rates<int>::other(int x) { return 1; }
"""
JAVASCRIPT = """const f = () => 1;
class A {
  m() { return 1 }
}
function* gen() {}
module.exports = { f };
"""
Expected = list[tuple[tuple[str, ...], int, str]]
FILES: dict[str, tuple[str, str, Expected]] = {
    "a.py": (
        "text/x-python",
        PYTHON,
        [
            ((), 1, '"""Rates."""\n\nimport'),
            (("Rates",), 8, "# What a night costs.\n@cached\nclass Rates:"),
            (("Rates", "night"), 13, "    def night("),
            (("total",), 17, "def total(nights):"),
        ],
    ),
    "a.ts": (
        "text/x-typescript",
        TYPESCRIPT,
        [
            ((), 1, "import"),
            (("Rates",), 3, "// The rates.\nexport interface"),
            (("night",), 5, "export const night"),
            (("Hotel",), 8, "@Injectable()\nexport class"),
            (("Hotel", "stay"), 12, "  async stay"),
            (("Geo",), 14, "namespace Geo {"),
            (("Geo", "far"), 15, "  export function far"),
            (("main",), 17, "export default function main"),
            (("Color",), 18, "enum Color"),
        ],
    ),
    "a.java": (
        "text/x-java",
        JAVA,
        [
            ((), 1, "package a.b;"),
            (("Rates",), 3, "/** Rates. */\n@Deprecated\npublic class"),
            (("Rates", "night"), 7, "    /** One night. */\n    @Override"),
            (("Rates", "Rates"), 10, "    Rates() {}"),
            (("Rates", "Inner"), 11, "    static class Inner"),
            (("Rates", "Inner", "f"), 12, "        void f()"),
            (("Rates", "P"), 14, "    record P"),
            (("I",), 16, "interface I"),
            (("I", "g"), 16, "int g();"),
        ],
    ),
    "a.go": (
        "text/x-go",
        GO,
        [
            ((), 1, "package rates"),
            (("Rates",), 3, "// Rates by city.\ntype Rates"),
            (("Rates.Night",), 6, "// Night is what a night costs.\nfunc"),
            (("main",), 9, "func main"),
        ],
    ),
    "a.rs": (
        "text/x-rust",
        RUST,
        [
            ((), 1, "//! Rates.\nuse"),
            (("Rates",), 4, "/// Rates by city.\n#[derive(Debug)]\npub struct"),
            (("impl fmt::Display for Rates",), 8, "impl fmt"),
            (("impl fmt::Display for Rates", "fmt"), 9, "    fn fmt"),
            (("inner",), 11, "mod inner"),
            (("inner", "f"), 12, "    pub fn f"),
            (("m",), 14, "macro_rules! m"),
        ],
    ),
    "a.c": (
        "text/x-c",
        C,
        [
            ((), 1, "#include"),
            (("point_t",), 2, "/* A point. */\ntypedef"),
            (("node",), 4, "struct node"),
            (("find",), 5, "static int *find"),
            ((), 8, "#define MAX"),
            (("main",), 9, "int main"),
        ],
    ),
    "a.hpp": (
        "text/x-c++",
        CPP,
        [
            ((), 1, "#pragma once"),
            (("geo",), 2, "namespace geo"),
            (("geo", "Rates"), 3, "// Rates.\ntemplate"),
            (("geo", "Rates", "Rates"), 7, "  Rates() {}"),
            (("geo", "Rates", "night"), 8, "  int night"),
            (("geo", "Rates", "operator+"), 9, "  T operator+"),
            (("geo::Rates<int>::other",), 12, "int geo::Rates"),
        ],
    ),
    "a.mjs": (
        "text/javascript",
        JAVASCRIPT,
        [
            (("f",), 1, "const f"),
            (("A",), 2, "class A {"),
            (("A", "m"), 3, "  m()"),
            (("gen",), 5, "function* gen"),
            ((), 6, "module.exports"),
        ],
    ),
}


def make(folder: Path, name: str, content: bytes | str) -> Document:
    path = folder / name
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return read(path, f"box/{name}")


def text_of(document: Document) -> str:
    return "".join(section.text for section in document.sections)


@pytest.mark.parametrize("name", FILES)
def test_code_is_cut_at_definitions(tmp_path: Path, name: str) -> None:
    mime, source, expected = FILES[name]
    document = make(tmp_path, name, source)
    assert (document.mime, document.title, text_of(document)) == (mime, name, source)
    found = [(section.headings, section.meta["line"], section.text) for section in document.sections]
    assert [(titles, line) for titles, line, _ in found] == [(titles, line) for titles, line, _ in expected]
    for (_, line, text), (_, _, beginning) in zip(found, expected, strict=True):
        assert text.startswith(beginning)
        assert "\n".join(source.split("\n")[line - 1 :]).find(text.split("\n")[0]) >= 0


@pytest.mark.parametrize("name", FILES)
def test_passages_know_their_lines(tmp_path: Path, name: str) -> None:
    source = FILES[name][1]
    lines = source.split("\n")
    for limit in (8, 40, 180):
        for item in chunk(make(tmp_path, name, source), "hash", limit):
            assert item.text == source[item.source.start : item.source.end]
            spanned = "\n".join(lines[item.meta["line"] - 1 : item.meta["last_line"]])
            assert item.text in spanned
            assert spanned.count("\n") == item.text.count("\n")


def test_a_long_function_is_cut_at_those_inside_it(tmp_path: Path) -> None:
    inner = "    def inner():\n        return 1\n"
    assert [s.headings for s in make(tmp_path, "a.py", f"def outer():\n{inner}").sections] == [("outer",)]
    filled = "".join(f"    value_{n} = compute(value_{n - 1}, {n})\n" for n in range(1, 60))
    found = make(tmp_path, "a.py", f"def outer():\n{filled}{inner}{filled}").sections
    assert [section.headings for section in found] == [("outer",), ("outer", "inner"), ("outer",)]


def test_offsets_and_lines_of_text_that_is_not_ascii(tmp_path: Path) -> None:
    source = '# Größe 字 👩‍🚀\nGRÖSSE = "字"\n\n\ndef größe():\n    return "👩‍🚀"\n\f\nclass 字:\n    pass\n'
    document = make(tmp_path, "a.py", source)
    assert [(s.headings, s.meta["line"]) for s in document.sections] == [((), 1), (("größe",), 5), (("字",), 8)]
    assert text_of(document) == source.replace("\f", " ")


def test_the_language_is_that_of_the_name_or_the_first_line(tmp_path: Path) -> None:
    for first in ("#!/usr/bin/env python3\n", "#!/usr/bin/python\n", "#!/usr/bin/env -S node --x\n"):
        found = make(tmp_path, "tool", first + "x = 1\n").mime
        assert found == ("text/javascript" if "node" in first else "text/x-python")
    assert make(tmp_path, "tool", "#!/bin/sh\necho\n").mime == "text/plain"
    assert make(tmp_path, "a.py", "<!DOCTYPE html><p>words").mime == "text/html"
    assert make(tmp_path, "a.txt", PYTHON).mime == "text/plain"
    assert make(tmp_path, "a.TSX", "const A = () => <p>hello</p>;\n").mime == "text/x-tsx"


def test_what_is_not_in_its_language_is_plain_text(tmp_path: Path) -> None:
    prose = "The committee met on Tuesday; it agreed, at last, that the (old) rates should rise.\n" * 20
    for name in ("a.py", "a.java", "a.rs", "a.go", "a.cpp"):
        document = make(tmp_path, name, prose)
        assert (document.mime, text_of(document)) == ("text/plain", prose)
    half = make(tmp_path, "a.py", PYTHON + "\ndef broken(:\n    return\n")
    assert half.mime == "text/x-python" and ("Rates", "night") in [s.headings for s in half.sections]
    large = "x = 1\n" * 200_000
    assert make(tmp_path, "a.py", large).mime == "text/plain"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.java", "a<" * 30_000),  # a grammar takes memory by the square of it
        ("a.c", "lambda =>" * 20_000),
        ("a.ts", "->" * 40_000),  # another takes time by the square of it
        ("a.cpp", "...*/" * 20_000),
        ("a.py", '[,f"' * 20_000),
        ("a.py", "(" * 200_000),
        ("a.rs", '"' * 100_001),
    ],
)
def test_code_that_is_made_to_hurt_the_parser(tmp_path: Path, name: str, source: str) -> None:
    start = time.monotonic()
    assert text_of(make(tmp_path, name, source)) == source
    assert time.monotonic() - start < code._SECONDS + 5
    assert make(tmp_path, "b.py", PYTHON).mime == "text/x-python"  # the next file is not harmed


def test_a_parser_that_dies_or_hangs_costs_one_file_its_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for program in ("import os; os._exit(3)", "import time; time.sleep(60)"):
        (tmp_path / "program.py").write_text(program)
        parser = code._Parser()
        with monkeypatch.context() as changed:
            changed.setattr(code, "_parser", lambda parser=parser: parser)
            changed.setattr(_grammars, "__file__", str(tmp_path / "program.py"))
            changed.setattr(code, "_SECONDS", 0.5)
            assert make(tmp_path, "a.py", PYTHON).mime == "text/plain"
        assert "takes too much to parse" in caplog.text
        caplog.clear()
        parser.close()


def test_the_grammars_are_packages_and_answer_alike_in_this_process() -> None:
    for mime in _grammars.LANGUAGES:
        assert _grammars.definitions(mime, b"") == []
    found = _grammars.definitions("text/x-python", PYTHON.encode())
    assert found is not None and [title for _, _, title, _ in found] == ["Rates", "night", "total"]


KEYWORDS = "def class fn func impl struct enum namespace template interface x = -> => :: @ # // /* */".split()
TOKENS = st.sampled_from([*KEYWORDS, *"()[]{}<>;:,.'\"`", "\n", "\n    ", "字", "👩‍🚀", "\r\n", "\x0c", "'''", '"""'])


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.lists(TOKENS, min_size=1, max_size=60))
def test_any_code_keeps_its_text(tmp_path_factory: pytest.TempPathFactory, name: str, tokens: list[str]) -> None:
    source = " ".join(tokens)
    try:
        document = make(tmp_path_factory.getbasetemp(), name, source)
    except UnreadableFile as error:
        assert error.hint
        return
    assert text_of(document) == source.replace("\r\n", "\n").replace("\x0c", " ")
    for item in chunk(document, "hash"):
        assert item.text == text_of(document)[item.source.start : item.source.end]


# -- readers of other packages -----------------------------------------------------------------------------------------

PLUGIN = """
from triptych.retrievers.readers.base import Document, Reader, Section

class Songs(Reader):
    mimes = frozenset({"text/x-song"})

    @classmethod
    def recognise(cls, head, name):
        return head.startswith(b"SONG") or name.endswith(".song")

    def read(self, file, uri, mime, limits):
        if b"boom" in file.read():
            raise RuntimeError("boom")
        return Document(uri, "A song", mime, (Section("la la"),), {"stripped": 0})

class Wrong(Songs):
    @classmethod
    def recognise(cls, head, name):
        return name.endswith(".wrong")

    def read(self, file, uri, mime, limits):
        return "no document"

class Careless(Songs):
    @classmethod
    def recognise(cls, head, name):
        raise ValueError(name)
"""
ENTRIES = """[triptych.readers]
text/x-song = songs_plugin:Songs
text/x-wrong = songs_plugin:Wrong
text/x-careless = songs_plugin:Careless
text/vnd.graphviz = songs_plugin_that_is_gone:Reader
application/pdf = songs_plugin:Wrong
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with readers, installed for the time of a test."""
    site = tmp_path / "site"
    info = site / "songs-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "songs_plugin.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: songs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(site))
    for found in (plugins._entries, plugins._loaded):
        found.cache_clear()
    yield
    sys.modules.pop("songs_plugin", None)
    for found in (plugins._entries, plugins._loaded):
        found.cache_clear()


@pytest.mark.usefixtures("installed")
def test_a_reader_of_another_package_is_found(tmp_path: Path) -> None:
    for name, content in (("a.song", b"words"), ("noname", b"SONG words"), ("b.bin", b"SONG\0\x01\x02\xff")):
        document = make(tmp_path, name, content)
        assert (document.mime, document.title, text_of(document)) == ("text/x-song", "A song", "la la")
    assert make(tmp_path, "a.md", "SONG").mime == "text/markdown"  # kinds that are read here stay here
    assert make(tmp_path, "a.txt", "words").mime == "text/plain"


@pytest.mark.usefixtures("installed")
def test_a_broken_reader_of_another_package_fails_for_its_own_files_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        for name, content, what in (
            ("a.song", "boom", "failed with RuntimeError"),
            ("a.wrong", "words", "gave `str` instead of a document"),
            ("a.dot" if _known(".dot") else "a.gv", "graph {}", "cannot be loaded (ModuleNotFoundError)"),
        ):
            with pytest.raises(UnreadableFile) as caught:
                make(tmp_path, name, content)
            assert what in caught.value.message and "plugin" in caught.value.message and caught.value.hint
        assert make(tmp_path, "a.txt", "words").mime == "text/plain"
        with pytest.raises(UnreadableFile, match="not of a readable kind"):
            make(tmp_path, "a.bin", bytes(range(256)))


def _known(extension: str) -> bool:
    import mimetypes

    return mimetypes.guess_type(f"a{extension}")[0] == "text/vnd.graphviz"


def test_without_plug_ins_nothing_is_asked() -> None:
    assert plugins.plugin_for(b"words", "a.txt") is None
    with pytest.raises(KeyError):
        plugins.read(io.BytesIO(), "a", "text/x-none", Limits())
