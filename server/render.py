"""Results as people read them in a terminal. One function per result; nothing here decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ..manifests.doctor import Report
    from ..manifests.registry import Card
    from ..tools.schemas import (
        CompressOut,
        DeleteOut,
        DroppedOut,
        Evidence,
        ExplainOut,
        FetchOut,
        FileProblem,
        HitOut,
        IndexOut,
        LibraryOut,
        PassageOut,
        RebuildOut,
        RerankOut,
        SearchOut,
        StatusOut,
        TokensOut,
        VerifyOut,
        ViewOut,
        WatchOut,
    )

MARKS = {"ok": "ok", "optional": "--", "missing": "MISSING", "stale": "STALE", "damaged": "DAMAGED"}


def evidence(to: Console, result: Evidence) -> None:
    """`retrieve`."""
    _passages(to, result.passages)
    _dropped(to, result.dropped)
    _tokens(to, result.tokens)
    _footer(to, result.ms.model_dump(), result.note)


def compressed(to: Console, result: CompressOut) -> None:
    """`compress`."""
    _passages(to, result.passages)
    _dropped(to, result.dropped)
    _tokens(to, result.tokens)
    _footer(to, {**result.ms}, None, f"refiner {result.refiner}")


def found(to: Console, result: SearchOut) -> None:
    """`search`."""
    _hits(to, result.hits)
    _footer(to, result.ms, result.note)


def ranked(to: Console, result: RerankOut) -> None:
    """`rerank`."""
    _hits(to, result.hits)
    reason = f"{'' if result.complete else 'Not complete: '}{result.reason}." if result.reason else None
    _footer(to, result.ms, reason, f"reranker {result.reranker}, {result.calls} calls, {result.tokens:,} tokens")


def document(to: Console, result: FetchOut) -> None:
    """`fetch`."""
    to.print(_seen(f"{result.title} · {result.uri}"), style="bold")
    to.print(_seen(result.text))


def viewed(to: Console, result: ViewOut, file: str) -> None:
    """`view`."""
    to.print(_seen(f"{result.title} · {result.where}"), style="bold")
    size = f"{result.width:,} × {result.height:,} pixels, {result.mime}"
    cost = f"{result.tokens:,} tokens by the formula {result.formula}"
    if not result.image:
        size, cost = f"{result.seconds:,} s, {result.mime}", f"{result.sound_tokens:,} tokens"
    to.print(f"{file}: {size}, {cost}")


def explained(to: Console, result: ExplainOut, file: str) -> None:
    """`explain`."""
    to.print(_seen(f"{file}: where `{result.query}` is found"), style="bold")
    for place, (token, similarity, (x, y)) in enumerate(
        zip(result.tokens, result.similarities, result.peaks, strict=True)
    ):
        to.print(_seen(f"{place:>3} {token!r}: {similarity:.3f} at {x:.0%} from the left, {y:.0%} from the top"))


def indexed(to: Console, result: IndexOut) -> None:
    """`index`."""
    to.print(
        f"{result.library}: {result.files:,} files, {result.indexed:,} indexed, {result.unchanged:,} unchanged, "
        f"{result.removed:,} removed; {result.items:,} passages in all"
    )
    _problems(to, result.problems)
    _footer(to, result.ms, None)


def watched(to: Console, result: WatchOut) -> None:
    """`index --watch`."""
    to.print(
        f"{result.library}: {result.rounds:,} rounds, {result.indexed:,} indexed, {result.removed:,} removed; "
        f"{result.items:,} passages in all"
    )
    _problems(to, result.problems)


def verified(to: Console, result: VerifyOut) -> None:
    """`verify`."""
    to.print(f"{result.library}: {result.files:,} files, {result.passages:,} passages looked at")
    for row in result.damaged:
        what = ", ".join(f"{kind} of {number:,}" for kind, number in row.what.items())
        to.print(f"damaged: {row.uri}, {row.passages:,} passages ({what})", style="red")
    for line in result.catalogue:
        to.print(f"damaged: the catalogue: {line}", style="red")
    if result.extra:
        to.print(f"damaged: {result.extra:,} passages belong to no file", style="red")
    if result.terms:
        to.print("damaged: the term statistics", style="red")
    for space, number in result.spaces.items():
        to.print(f"damaged: the space {space}, of {number:,} passages", style="red")
    for stale in result.stale:
        to.print(f"{stale.why} since it was indexed: {stale.uri}", style="yellow")
    to.print("The library is whole." if result.whole else "The library is damaged: run `triptych rebuild`.")
    _footer(to, result.ms, None)


def rebuilt(to: Console, result: RebuildOut) -> None:
    """`rebuild`."""
    how = "made anew" if result.anew else "mended"
    to.print(
        f"{result.library}: {how}; {result.items:,} passages, {result.kept:,} kept as they were, "
        f"{result.encoded:,} encoded again, {result.files:,} files read"
    )
    _problems(to, result.problems)
    _footer(to, result.ms, None)


def libraries(to: Console, rows: Sequence[LibraryOut]) -> None:
    """`libraries`."""
    if not rows:
        to.print("No libraries yet. Make one with `triptych index PATH`.")
        return
    health = {True: "healthy", False: "DAMAGED"}
    _table(to, ("library", "files", "passages", ""), ((r.name, r.files, r.items, health[r.healthy]) for r in rows))


def status(to: Console, result: StatusOut) -> None:
    """`status`."""
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in result.by_modality.items())
    to.print(f"{result.library}: {result.files:,} files, {result.items:,} passages ({kinds or 'none'})")
    for title, values in (("store", result.store), ("profile", result.profile), ("models", result.models)):
        to.print(f"{title}: " + (", ".join(f"{key} {value}" for key, value in values.items()) or "none loaded"))
    _problems(to, result.problems)
    if not result.healthy:
        to.print("The library is damaged: run `triptych rebuild`.", style="red")
    _note(to, result.note)


def deleted(to: Console, result: DeleteOut) -> None:
    """`delete`."""
    to.print(f"{result.library}: {result.deleted:,} passages deleted")


def cards(to: Console, rows: Iterable[Card]) -> None:
    """`systems`."""
    lines = ((c.id, c.role, c.title, c.paper, c.fidelity, evidence_of(c)) for c in rows)
    _table(to, ("id", "role", "title", "paper", "fidelity", "measured"), lines)


def card(to: Console, shown: Card) -> None:
    """`systems show`."""
    for name, value in shown.as_dict().items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        to.print(f"{name:<16} {evidence_of(shown) if name == 'evidence' else text or '-'}")


def evidence_of(shown: Card) -> str:
    """Where it was measured."""
    return "not yet measured" if shown.evidence == "pending" else shown.evidence


def pulled(to: Console, result: Mapping[str, Any]) -> None:
    """`pull`."""
    for row in result["pulled"]:
        to.print(f"{row['name']}: {row['carrier']}")
    to.print(f"The profile {result['profile']} is ready; nothing else needs the network.")


def report(to: Console, result: Report) -> None:
    """`doctor`."""
    _table(to, ("", "", "", ""), ((MARKS[c.status], c.what, c.detail, c.mend) for c in result.checks))
    to.print("Everything that the profile needs is here." if result.healthy else "Something is missing, see above.")


def _problems(to: Console, rows: Sequence[FileProblem]) -> None:
    for problem in rows:
        to.print(f"problem: {problem.message} {problem.hint}".rstrip(), style="yellow")


def _passages(to: Console, rows: Sequence[PassageOut]) -> None:
    if not rows:
        to.print("Nothing found.")
    for row in rows:
        to.print(_seen(f"[{row.n}] {row.title} · {row.where} · {row.id}"), style="bold")
        to.print(_seen(row.text) + "\n")


def _hits(to: Console, rows: Sequence[HitOut]) -> None:
    if not rows:
        to.print("Nothing found.")
    for row in rows:
        place = row.uri if row.page is None else f"{row.uri} p.{row.page}"
        to.print(_seen(f"[{row.n}] {row.title} · {place} · {row.id} · {row.score:.4f}"), style="bold")
        to.print(_seen(row.text) + "\n")


def _seen(text: str) -> str:
    """`text` without what would steer a terminal; texts that callers bring were cleaned by no reader."""
    from ..retrievers.readers.base import clean

    return clean(text)[0]


def _dropped(to: Console, rows: Sequence[DroppedOut]) -> None:
    if rows:
        reasons = {row.reason: sum(other.reason == row.reason for other in rows) for row in rows}
        to.print("dropped: " + ", ".join(f"{number} ({reason})" for reason, number in reasons.items()), style="dim")


def _tokens(to: Console, tokens: TokensOut) -> None:
    line = f"tokens: {tokens.used:,} of {tokens.budget:,} used, {tokens.original:,} before ({tokens.tokenizer})"
    to.print(line + (f"; unused: {tokens.unused}" if tokens.unused else ""), style="dim")


def _footer(to: Console, ms: Mapping[str, float], note: str | None, first: str = "") -> None:
    times = ", ".join(f"{stage} {value:,.0f} ms" for stage, value in ms.items())
    to.print(" · ".join(part for part in (first, times) if part), style="dim")
    _note(to, note)


def _note(to: Console, note: str | None) -> None:
    if note:
        to.print(f"note: {note}", style="yellow")


def _table(to: Console, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.table import Table

    table = Table(*names, box=None, pad_edge=False, show_header=any(names))
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    to.print(table)
