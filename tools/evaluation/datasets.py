"""Data sets: BEIR-style folders, TREC runs, and questions with contexts. Everything is checked before a model loads.

A **collection** is a folder with `corpus.jsonl` (`{"id" | "_id", "text", "title"?, "image"? | "audio"? | "video"?}`,
media as paths relative to the folder), `queries.jsonl` (`{"id" | "_id", "text", "answers"? | "answer"?}`) and
`qrels.tsv` or `qrels/test.tsv` (query id, passage id, grade, tab-separated, with or without a header). A part `NAME`
is `qrels.NAME.tsv` or `qrels/NAME.tsv`, with `queries.NAME.jsonl` where there is one.

A **question file** is JSONL, one `{"id", "question", "answers", "contexts": [{"id", "title"?, "text", "evidence"?}]}`
a line; `evidence` are half-open character spans `[[start, end], …]` of gold evidence in the context's text.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ...errors import BadInput
from ...retrievers.base import Hit, Item, Modality, Source
from . import sides
from .result import DataInfo

MEDIA: tuple[Modality, ...] = ("image", "audio", "video")
MAX_GRADE = 1000
"""trec_eval reserves memory for every grade up to the highest."""
Span = tuple[int, int]
Run = dict[str, list[tuple[str, float]]]
"""Query id → (passage id, score), best first."""


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


@dataclass(frozen=True)
class Passage:
    """A row of the corpus: text, or a media file that is there, or both. Old collections hold a few empty texts."""

    id: str
    title: str
    text: str
    modality: Modality = "text"
    media: Path | None = None


@dataclass(frozen=True)
class Asked:
    """A query, with its gold answers where the data has them."""

    id: str
    text: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Corpus, queries that have a judgement above 0, and their graded judgements.

    Attributes:
        side: `""`, or which half of the passages counts (see `sides`).
        notes: what of the data was left out.
    """

    info: DataInfo
    folder: Path
    passages: Mapping[str, Passage]
    queries: Mapping[str, Asked]
    qrels: Mapping[str, Mapping[str, int]]
    side: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """One passage of a question. `evidence`: gold spans of its text."""

    id: str
    title: str
    text: str
    evidence: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question over contexts, in the order that the data gives."""

    id: str
    text: str
    answers: tuple[str, ...]
    contexts: tuple[Context, ...]

    def hits(self) -> list[Hit]:
        """The contexts as hits that all score the same."""
        return [
            Hit(Item(c.id, c.text, Source(f"given/{c.id}", 0, len(c.text)), meta={"title": c.title}), 0.0)
            for c in self.contexts
        ]


@dataclass(frozen=True)
class Questions:
    """A question file's questions."""

    info: DataInfo
    rows: tuple[Question, ...]


def collection(folder: Path, *, part: str = "", side: str = "", limit: int | None = None, seed: int = 0) -> Collection:
    """Read and check a collection.

    Args:
        part: `""`, or the name of a part (`"train"`).
        side: `""`, or the half of the passages that counts (`"media"`, see `sides`).
        limit: that many queries, drawn at random with `seed` and in the order of the file; the corpus stays whole.

    Raises:
        BadInput: whatever is wrong with the data, with file and line.
    """
    if not folder.is_dir():
        raise BadInput(
            f"`{folder.name}` is no folder.", "Give a folder with corpus.jsonl, queries.jsonl and qrels.tsv."
        )
    corpus_file = _existing(folder, "corpus.jsonl")
    queries_file = _existing(folder, *([f"queries.{part}.jsonl"] if part else []), "queries.jsonl")
    qrels_file = _existing(
        folder, *([f"qrels.{part}.tsv", f"qrels/{part}.tsv"] if part else ["qrels.tsv", "qrels/test.tsv"])
    )
    passages = {row.id: row for row in _unique(corpus_file, _passages(corpus_file, folder))}
    everything = {row.id: row for row in _unique(queries_file, _queries(queries_file))}
    qrels = _qrels(qrels_file, passages, everything)
    notes: tuple[str, ...] = ()
    if side:
        passages, qrels, told = sides.halved(side, passages, qrels)
        notes = (told,)
    judged = {key: row for key, row in everything.items() if sides.is_judged(qrels.get(key, {}))}
    if not passages or not judged:
        what = "no passages" if not passages else "no query with a judgement above 0"
        of = f" where only `{side}` counts" if side else ""
        raise BadInput(f"`{folder.name}` has {what}{of}.", "Check corpus.jsonl, queries.jsonl and qrels.tsv.")
    chosen = {key: judged[key] for key in _sampled(list(judged), limit, seed)}
    name = "_".join(filter(None, (_name(folder), part, side)))
    sizes = {"queries": len(chosen), "passages": len(passages)}
    info = DataInfo(name=name, sha256=_sha256(corpus_file, queries_file, qrels_file), sizes=sizes)
    return Collection(info, folder, passages, chosen, {key: qrels[key] for key in chosen}, side, notes)


def questions(path: Path, *, limit: int | None = None, seed: int = 0) -> Questions:
    """Read and check a question file, or the one question file in a folder.

    Raises:
        BadInput: whatever is wrong with the data, with file and line.
    """
    if path.is_dir():
        found = sorted(path.glob("*.jsonl"))
        if len(found) != 1:
            raise BadInput(f"`{path.name}` holds {len(found)} JSONL files.", "Name the question file itself.")
        [path] = found
    if not path.is_file():
        raise BadInput(f"There is no file `{path.name}`.", "Give a JSONL file of questions with contexts.")
    rows = list(_unique(path, _questions(path)))
    if not rows:
        raise BadInput(f"`{path.name}` has no questions.", "Each line is one JSON object; see docs/evaluation.md.")
    chosen = {row.id: row for row in rows}
    picked = tuple(chosen[key] for key in _sampled(list(chosen), limit, seed))
    contexts = len({context.id for row in picked for context in row.contexts})
    info = DataInfo(name=path.stem, sha256=_sha256(path), sizes={"questions": len(picked), "contexts": contexts})
    return Questions(info, picked)


def run_file(path: Path, data: Collection) -> Run:
    """A TREC run (`query Q0 passage rank score tag`): the collection's queries only, by score, then as they stand.

    Raises:
        BadInput: a malformed line, a passage that the corpus lacks or that stands twice, or none of the queries.
    """
    if not path.is_file():
        raise BadInput(f"There is no run `{path.name}`.", "Give a file in TREC's run format.")
    found: dict[str, dict[str, float]] = {}
    for number, line in _lines(path):
        cells = line.split()
        if len(cells) != 6:
            raise _wrong(path, number, f"has {len(cells)} columns instead of 6", "query Q0 passage rank score tag")
        query, passage, score = cells[0], cells[2], _number(path, number, cells[4])
        if query not in data.queries:
            continue
        if passage not in data.passages:
            raise _wrong(
                path, number, f"names the passage `{passage}`, which the corpus lacks", "Use the run's corpus."
            )
        if passage in found.setdefault(query, {}):
            raise _wrong(path, number, f"names `{passage}` a second time for `{query}`", "Each passage stands once.")
        found[query][passage] = score
    if not found:
        raise BadInput(f"`{path.name}` has none of the {len(data.queries)} queries.", "Is it a run of this collection?")
    return {query: sorted(rows.items(), key=lambda row: -row[1]) for query, rows in found.items()}


def _passages(path: Path, folder: Path) -> Iterator[tuple[int, Passage]]:
    for number, row in _objects(path):
        kinds = [kind for kind in MEDIA if isinstance(row.get(kind), str) and row[kind]]
        media = _media(path, number, folder, str(row[kinds[0]])) if kinds else None
        text = _text(path, number, row, "text", needed=not kinds)
        title = _text(path, number, row, "title", needed=False)
        yield number, Passage(_id(path, number, row), title, text, kinds[0] if kinds else "text", media)


def _queries(path: Path) -> Iterator[tuple[int, Asked]]:
    for number, row in _objects(path):
        text = _text(path, number, row, "text", needed=True)
        if not text.strip():
            raise _wrong(path, number, f"has an empty query `{_id(path, number, row)}`", "Give every query a text.")
        yield number, Asked(_id(path, number, row), text, _answers(path, number, row))


def _questions(path: Path) -> Iterator[tuple[int, Question]]:
    for number, row in _objects(path):
        text = _text(path, number, row, "question", needed=True)
        if not text.strip():
            raise _wrong(path, number, "has an empty question", "Give every question a text.")
        given = row.get("contexts")
        if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
            raise _wrong(path, number, "has no list of contexts", 'Give "contexts": [{"id", "text"}].')
        contexts = tuple(_context(path, number, one) for one in given)
        if len({one.id for one in contexts}) < len(contexts):
            raise _wrong(path, number, "has a context id twice", "Ids are unique inside a question.")
        yield number, Question(_id(path, number, row), text, _answers(path, number, row), contexts)


def _context(path: Path, number: int, row: Mapping[str, Any]) -> Context:
    text = _text(path, number, row, "text", needed=True)
    given = row.get("evidence") or []
    whole = isinstance(given, list) and all(isinstance(one, list) and len(one) == 2 for one in given)
    if not whole or not all(isinstance(a, int) and isinstance(b, int) and 0 <= a < b <= len(text) for a, b in given):
        raise _wrong(path, number, "has evidence that is no list of spans of its text", "Spans are [start, end].")
    title = _text(path, number, row, "title", needed=False)
    return Context(_id(path, number, row), title, text, tuple((a, b) for a, b in given))


def _answers(path: Path, number: int, row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row.get("answers", row.get("answer")) or []
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise _wrong(path, number, "has answers that are no list of texts", 'Give "answers": ["…"].')
    return tuple(one for one in found if one.strip())


def _qrels(path: Path, passages: Mapping[str, Passage], queries: Mapping[str, Asked]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if number == 1 and cells[-1].strip().lower() in ("score", "rel", "relevance", "grade", "label"):
            continue
        if len(cells) == 4:  # TREC's own form has an unused second column
            cells = [cells[0], *cells[2:]]
        if len(cells) != 3:
            raise _wrong(path, number, f"has {len(cells)} columns instead of 3", "query id, passage id, grade")
        query, passage = cells[0].strip(), cells[1].strip()
        grade = _number(path, number, cells[2])
        if not grade.is_integer() or abs(grade) > MAX_GRADE:
            raise _wrong(path, number, f"has the grade `{cells[2]}`", f"Grades are whole numbers up to {MAX_GRADE:,}.")
        for what, key, known, file in (("query", query, queries, "queries"), ("passage", passage, passages, "corpus")):
            if key not in known:
                raise _wrong(
                    path, number, f"names the {what} `{key}`, which {file}.jsonl lacks", "Remove it, or add it."
                )
        if passage in found.setdefault(query, {}):
            raise _wrong(path, number, f"judges `{passage}` for `{query}` a second time", "Judge each pair once.")
        found[query][passage] = int(grade)
    return found


def _existing(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"`{folder.name}` has no `{names[0]}`.", f"Looked for: {', '.join(names)}.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1."""
    try:
        with path.open(encoding="utf-8-sig") as lines:  # a byte-order mark is no part of the first id
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise BadInput(f"`{path.name}` is not UTF-8.", "Convert it to UTF-8.") from None
    except OSError as error:
        raise BadInput(f"`{path.name}` cannot be read: {error.strerror}.", "Check the file's permissions.") from None


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _wrong(path, number, f"is not JSON: {error}", "Each line is one JSON object.") from None
        if not isinstance(row, dict):
            raise _wrong(path, number, "is no JSON object", "Each line is one JSON object.")
        yield number, row


def _unique(path: Path, rows: Iterator[tuple[int, T]]) -> Iterator[T]:
    seen: dict[str, int] = {}
    for number, row in rows:
        key = str(row.id)
        if key in seen:
            raise _wrong(path, number, f"has the id `{key}` of line {seen[key]}", "Ids are unique.")
        seen[key] = number
        yield row


def _id(path: Path, number: int, row: Mapping[str, Any]) -> str:
    found = row.get("id", row.get("_id"))
    if not isinstance(found, str | int) or isinstance(found, bool) or not str(found).strip():
        raise _wrong(path, number, "has no id", 'Give every row an "id" (or "_id").')
    key = str(found)
    if "\0" in key or not _is_unicode(key):  # trec_eval's C code cuts an id at the first and crashes on the second
        raise _wrong(path, number, f"has the id `{key!a}`", "Ids are valid Unicode without NUL.")
    return key


def _text(path: Path, number: int, row: Mapping[str, Any], key: str, *, needed: bool) -> str:
    found = row.get(key)
    if found is None and not needed:
        return ""
    if not isinstance(found, str):
        raise _wrong(path, number, f"has no `{key}`", f'Give every row a text "{key}".')
    if not _is_unicode(found):
        raise _wrong(path, number, f"has half a character (a lone surrogate) in `{key}`", "Write it as valid Unicode.")
    return found


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _media(path: Path, number: int, folder: Path, name: str) -> Path:
    try:
        found = (folder / name).resolve()
        is_file = found.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with NUL in it
        raise _wrong(path, number, f"names the media file `{name[:80]!a}`", "Give a path in the folder.") from None
    if not found.is_relative_to(folder.resolve()):
        raise _wrong(path, number, f"names the media file `{name}`, outside the folder", "Keep media inside it.")
    if not is_file:
        raise _wrong(path, number, f"names the media file `{name}`, which is not there", "Add it, or drop the row.")
    return found


def _number(path: Path, number: int, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise _wrong(path, number, f"has `{text}` where a number belongs", "Give a finite number.")
    return found


def _wrong(path: Path, number: int, what: str, hint: str) -> BadInput:
    return BadInput(f"`{path.name}` line {number} {what}.", hint)


def _sampled(keys: Sequence[str], limit: int | None, seed: int) -> list[str]:
    if limit is not None and limit < 1:
        raise BadInput(f"The limit is `{limit}`.", "Use at least 1.")
    if limit is None or limit >= len(keys):
        return list(keys)
    chosen = set(random.Random(seed).sample(list(keys), limit))
    return [key for key in keys if key in chosen]


def _name(folder: Path) -> str:
    """The folder's name; with its parent's where it is as short as a language code."""
    whole = folder.resolve()
    return whole.name if len(whole.name) > 2 else f"{whole.parent.name}_{whole.name}"


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
