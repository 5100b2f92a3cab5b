"""Uris and paths: nothing outside the roots is ever read, whatever the way it is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triptych.errors import BadInput, Forbidden, NotFound
from triptych.tools.roots import Roots, existing, files_below


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    for name in ("b.md", "a.md", "sub/c.md", ".hidden.md", ".git/x.md", "node_modules/y.md", "pkg/__init__.py"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text("" if name.endswith(".py") else name, "utf-8")
    (tmp_path / "docs-private").mkdir()
    (tmp_path / "docs-private" / "secret.md").write_text("secret", "utf-8")
    return docs


def test_a_walk_is_sorted_and_leaves_out_what_is_hidden(tree: Path) -> None:
    roots = Roots({"docs": tree})
    assert [found.uri for found in files_below(tree, roots)] == ["docs/a.md", "docs/b.md", "docs/sub/c.md"]


def test_links_that_leave_the_root_are_marked_and_links_inside_are_followed(tree: Path) -> None:
    (tree / "inside.md").symlink_to(tree / "a.md")
    (tree / "leak.md").symlink_to(tree.parent / "docs-private" / "secret.md")
    (tree / "leak-folder").symlink_to(tree.parent / "docs-private")
    found = {one.uri: one for one in files_below(tree, Roots({"docs": tree}))}
    assert found["docs/leak.md"].outside
    assert not found["docs/inside.md"].outside
    assert not any("secret" in uri for uri in found)


def test_pipes_are_not_files(tree: Path) -> None:
    os.mkfifo(tree / "pipe.txt")
    assert "docs/pipe.txt" not in [found.uri for found in files_below(tree, Roots({"docs": tree}))]
    with pytest.raises(BadInput, match="neither a file nor a folder"):
        existing(tree / "pipe.txt")


@pytest.mark.parametrize("uri", ["docs/../docs-private/secret.md", "docs/sub/../../docs-private/secret.md"])
def test_a_uri_cannot_climb_out(tree: Path, uri: str) -> None:
    with pytest.raises(Forbidden, match="leads out"):
        Roots({"docs": tree}).path_of(uri)


def test_a_uri_cannot_leave_through_a_link_or_a_sibling_of_the_same_prefix(tree: Path) -> None:
    (tree / "leak.md").symlink_to(tree.parent / "docs-private" / "secret.md")
    roots = Roots({"docs": tree})
    with pytest.raises(Forbidden):
        roots.path_of("docs/leak.md")
    with pytest.raises(NotFound):
        roots.path_of("docs-private/secret.md")
    with pytest.raises(Forbidden):
        roots.uri_of(tree.parent / "docs-private" / "secret.md")


def test_uris_and_paths_are_inverse_and_the_deepest_root_counts(tree: Path) -> None:
    roots = Roots({"docs": tree, "sub": tree / "sub"})
    assert roots.uri_of(tree / "sub" / "c.md") == "sub/c.md"
    assert roots.path_of("sub/c.md") == tree / "sub" / "c.md"
    assert roots.uri_of(tree / "a.md") == "docs/a.md"


def test_labels_are_unique() -> None:
    assert Roots({"docs": "/x/docs", "docs-2": "/y/docs"}).label_for(Path("/z/docs")) == "docs-3"


def test_a_missing_path_is_named_without_its_place_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"`nothing\.md` does not exist") as caught:
        existing(tmp_path / "nothing.md")
    assert str(tmp_path) not in str(caught.value)


def test_a_loop_of_links_ends(tree: Path) -> None:
    (tree / "loop").symlink_to(tree / "loop")
    with pytest.raises(BadInput):
        existing(tree / "loop")
    assert len(list(files_below(tree, Roots({"docs": tree})))) == 3
