"""`triptych eval pipeline`: the product's main job on a library of its own, and where each lost answer was lost.

Every passage becomes a file, the files are indexed by `Triptych.index` into a temporary library, and every query that
has answers is asked with `Triptych.retrieve` at each budget. An answer is looked for as `survival` says, in passages
one by one, and lost at the first stage that explains it:

- **not indexed**: no passage of the library holds it (it was never there, could not be read, or was cut in two);
- **not found**: none of the `depth` hits of the first stage holds it;
- **ranked out**: hits hold it, and nothing of any of them is in the block (below the floor, or no room);
- **compressed away**: of a hit that holds it something is in the block, but the answer is not.

Beside it stands `search_only`: the hits of the first stage whole, in order, as many as fit. Each arm has models and
caches of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput, Cancelled, MissingWeights, TimedOut
from ...manifests import weights
from ...progress import step
from ...refiners.tokens import count
from ...retrievers.stores.milvus import MilvusStore
from .. import answers
from .. import operations as op
from ..library import Triptych
from ..stages import Stages
from .compare import against
from .datasets import Asked, Collection, Passage, Questions
from .environment import environment
from .result import Arm, Result, file_name
from .retrieval import precision_of
from .survival import Reading, read, survives

if TYPE_CHECKING:
    from ...settings import Settings
    from ..answers import Answer
    from ..schemas import IndexOut
    from .result import Comparison

KEPT = "answers_kept"
NOT_INDEXED, NOT_FOUND = "lost_not_indexed", "lost_not_found"
RANKED_OUT, COMPRESSED_AWAY = "lost_ranked_out", "lost_compressed_away"
FATES = (KEPT, NOT_INDEXED, NOT_FOUND, RANKED_OUT, COMPRESSED_AWAY)
SEARCH_ONLY = "search_only"


@dataclass(frozen=True)
class _Library:
    """The library that is asked.

    Attributes:
        texts: passage id → its text as answers are looked for in it.
        hits: query id → ids of the passages that the first stage finds.
    """

    folder: Path
    texts: Mapping[str, Reading]
    hits: Mapping[str, Sequence[str]]
    indexed: IndexOut


@dataclass(frozen=True)
class _Told:
    """One answer of the product.

    Attributes:
        fate: one of `FATES`.
        used: tokens of the block, counted anew.
        seconds: of the call and of rendering the block.
    """

    fate: str
    used: int
    seconds: float


Ask = Callable[[Triptych, Asked, int], "Answer"]
"""`ask(session, query, budget)`: the block that an agent sees."""


def evaluate(
    source: Collection | Questions, *, budgets: Sequence[int], settings: Settings, seed: int, command: str
) -> Result:
    """Two arms for each budget: the profile of `settings`, and `search_only`.

    Args:
        source: a collection whose queries have answers, or questions, whose contexts together are the library.
        budgets: in tokens of `settings.tokenizer`, over the block that an agent sees.

    Raises:
        BadInput: no query has answers, a query is too long, or a budget is out of range; before any model is loaded.
        MissingWeights: of any stage of the profile. Nothing is measured without them.
    """
    asked = _asked(source)
    sizes = [op.checked_budget(budget, settings.max_tokens, settings.max_tokens_cap) for budget in budgets]
    for name in weights.wanted_by(settings):
        weights.folder(name, settings.weights)
    own = replace(settings, store_uri="")
    arms: list[Arm] = []
    comparisons: list[Comparison] = []
    with TemporaryDirectory(prefix="triptych-") as scratch:
        library = _indexed(source, asked, Path(scratch), own)
        for budget in dict.fromkeys(sizes):
            ours, search = (
                _arm(name, ask, library, asked, budget, own)
                for name, ask in ((settings.profile, _retrieved), (SEARCH_ONLY, _searched))
            )
            arms += [ours, search]
            comparisons += against([ours], search, [KEPT], seed)
    return Result(
        name=file_name("pipeline", source.info.name),
        kind="pipeline",
        title=f"Answers that reach the agent, and where the others were lost: {source.info.name}",
        command=command,
        seed=seed,
        data=(source.info,),
        environment=environment(("llmlingua",), precision_of(settings)),
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        notes=tuple(_notes(library, asked, source, settings)),
    )


def _asked(source: Collection | Questions) -> list[Asked]:
    """The queries that have answers."""
    if isinstance(source, Questions):
        rows = [Asked(row.id, row.text, row.answers) for row in source.rows]
    else:
        rows = list(source.queries.values())
    asked = [row for row in rows if row.answers]
    if not asked:
        raise BadInput(
            f"No query of `{source.info.name}` has answers.", 'Give queries "answers": ["…"], or use `eval retrieval`.'
        )
    for row in asked:
        op.checked_query(row.text)
    return asked


def _indexed(source: Collection | Questions, asked: Sequence[Asked], scratch: Path, settings: Settings) -> _Library:
    """Write the passages as files, index them, and look what the first stage finds.

    Raises:
        BadInput: no file could be read.
    """
    files, folder = scratch / "data", scratch / "library"
    files.mkdir()
    for number, passage in enumerate(_passages(source)):
        _write(passage, files / f"{number:06d}")
    hits: dict[str, list[str]] = {}
    with Triptych(folder, settings) as session:
        indexed = session.index(files)
        for done, row in enumerate(asked):
            step(done, len(asked), "queries, search")
            hits[row.id] = [hit.id for hit in session.search(row.text, _depth(settings)).hits]
    if not indexed.items:
        first = indexed.problems[0].message if indexed.problems else "The passages are empty."
        raise BadInput(f"Nothing of `{source.info.name}` could be indexed.", first)
    # past the session, which has no way to list a library; it is closed, so that nobody else holds the store
    with MilvusStore.existing(folder) as store:
        return _Library(folder, {item.id: read(item.text) for item in store.items()}, hits, indexed)


def _passages(source: Collection | Questions) -> Iterator[Passage]:
    """Each passage once: contexts of different questions can be the same, whatever their ids."""
    if isinstance(source, Collection):
        yield from source.passages.values()
        return
    distinct = dict.fromkeys((context.title, context.text) for row in source.rows for context in row.contexts)
    yield from (Passage(str(n), title, text) for n, (title, text) in enumerate(distinct))


def _write(passage: Passage, stem: Path) -> None:
    """A Markdown file under its title; where there is no text, the media file; where there is neither, nothing."""
    if passage.text.strip():
        title = " ".join(passage.title.split())
        heading = f"# {title}\n\n" if title else ""
        stem.with_suffix(".md").write_text(heading + passage.text + "\n", "utf-8")
    elif passage.media is not None:
        stem.mkdir()
        copyfile(passage.media, stem / passage.media.name)


def _searched(session: Triptych, row: Asked, budget: int) -> Answer:
    """The first stage's hits whole, in order, as many as fit."""
    result = session.search(row.text, _depth(session.settings))
    try:
        return answers.of_hits(result, budget, session.settings.tokenizer)
    except BadInput:  # not even the first passage fits: whoever only searches has nothing to show
        return answers.nothing("")


def _retrieved(session: Triptych, row: Asked, budget: int) -> Answer:
    return answers.of_passages(session.retrieve(row.text, budget), budget)


def _arm(name: str, ask: Ask, library: _Library, asked: Sequence[Asked], budget: int, settings: Settings) -> Arm:
    """One system at one budget; a system that fails is reported with its error."""
    told: dict[str, _Told] = {}
    try:
        with Triptych(library.folder, settings, stages=Stages(settings)) as session:
            session.warm()
            for done, row in enumerate(asked):
                step(done, len(asked), f"queries, {name}, {budget:,} tokens")
                start = time.perf_counter()
                block = ask(session, row, budget)
                seconds = time.perf_counter() - start
                used = count(block.text, settings.tokenizer)
                shown = {passage["id"]: passage["text"] for passage in block.data["passages"]}
                end = fate(row.answers, shown, library.hits[row.id], library.texts)
                told[row.id] = _Told(end, used, seconds)
    except (Cancelled, TimedOut, MissingWeights):
        raise
    except Exception as error:  # a system's own fault must not stop the others; it is reported by name
        reason = f"{type(error).__name__}: {error}"
        return Arm(system=name, settings={"max_tokens": budget}, status="failed", reason=reason)
    low, high = np.percentile([one.seconds for one in told.values()], (50, 95)) * 1000
    return Arm(
        system=name,
        settings={"max_tokens": budget},
        metrics={
            **{end: fmean(one.fate == end for one in told.values()) for end in FATES},
            "tokens_used": fmean(one.used for one in told.values()),
            "over_budget": fmean(one.used > budget for one in told.values()),
            "ms_p50": float(low),
            "ms_p95": float(high),
        },
        per_query={KEPT: {key: float(one.fate == KEPT) for key, one in told.items()}},
    )


def fate(wanted: Sequence[str], shown: Mapping[str, str], hits: Sequence[str], texts: Mapping[str, Reading]) -> str:
    """Whether an answer is shown, else where it was lost: one of `FATES`.

    Args:
        wanted: its spellings.
        shown: passage id → what is left of it in the block.
        hits: ids of the passages that the first stage found.
        texts: all passages of the library by id.
    """
    if survives(wanted, map(read, shown.values())):
        return KEPT
    holders = {key for key in hits if survives(wanted, [texts[key]])}
    if holders:
        return COMPRESSED_AWAY if holders & shown.keys() else RANKED_OUT
    return NOT_FOUND if survives(wanted, texts.values()) else NOT_INDEXED


def _depth(settings: Settings) -> int:
    return min(settings.depth, op.MAX_K)


def _notes(library: _Library, asked: Sequence[Asked], source: Collection | Questions, own: Settings) -> Iterator[str]:
    indexed = library.indexed
    everything = len(source.queries if isinstance(source, Collection) else source.rows)
    yield (
        f"{len(asked):,} of {everything:,} queries have answers. The library: {indexed.files:,} files, "
        f"{indexed.items:,} passages, indexed in {indexed.ms['total'] / 1000:,.0f} s."
    )
    yield (
        f"`{own.profile}`: search {own.encoder} + BM25 (depth {own.depth}), rerank {own.reranker} (the first "
        f"{own.rerank_depth}), compress {own.refiner} ({own.lm}). `{SEARCH_ONLY}`: its hits whole, as many as fit."
    )
    yield (
        f"An answer is kept when a spelling of it, normalised as in SQuAD, stands in one passage of the block as whole "
        f"words. The block is counted in `{own.tokenizer}`, its JSON included. The five shares sum to 1."
    )
    if indexed.problems:
        yield f"{len(indexed.problems):,} files could not be read; the first: {indexed.problems[0].message}"
    if own.store_uri:
        yield "Measured with Milvus Lite, not with the server that the settings name."
