"""Markdown: the source as it is, cut into sections at its headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from .base import Document, Limits, Reader, by_headings, file_name, one_line
from .text import read_text

SUFFIXES = (".md", ".markdown", ".mdown", ".mkd", ".mdx")
_HASHES = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_NOT_A_TITLE = re.compile(r"\s*(?:[-*+>|]\s|\d+[.)]\s|$)|(?: {4}|\t)")
_FRONT = re.compile(r"---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+)$", re.MULTILINE)
_MARKUP = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])|<[^>]+>|\{#[^}]*\}|[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}")


class MarkdownReader(Reader):
    """One section per heading; its text is the source itself, marks included."""

    mimes = frozenset({"text/markdown"})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        text, stripped = read_text(file, uri)
        front = _FRONT.match(text)
        headings = list(headings_of(text, front.end() if front else 0))
        stated = _FRONT_TITLE.search(front.group()) if front else None
        first = next((title for _, level, title in headings if level == 1), "")
        title = one_line(stated[1].strip("\"' ")) if stated else first
        return Document(uri, title or file_name(uri), mime, tuple(by_headings(text, headings)), {"stripped": stripped})


def headings_of(text: str, start: int = 0) -> Iterator[tuple[int, int, str]]:
    """Offset, level and title of each heading outside code."""
    fence = before = ""
    position = start
    for line in text[start:].splitlines(keepends=True):
        bare = line.rstrip("\n")
        mark = _FENCE.match(bare)
        if fence:
            if mark and mark[1].startswith(fence) and not bare[mark.end() :].strip():
                fence = ""
        elif mark:
            fence = mark[1]
        elif (hashes := _HASHES.match(bare)) and hashes[2]:
            yield position, len(hashes[1]), _plain(hashes[2])
        elif (under := _UNDERLINE.match(bare)) and not _NOT_A_TITLE.match(before) and not _HASHES.match(before):
            yield position - len(before), 1 if under[1].startswith("=") else 2, _plain(before)
        before = "" if fence or mark else line
        position += len(line)


def _plain(title: str) -> str:
    return one_line(_MARKUP.sub(lambda match: match[1] or "", title))
