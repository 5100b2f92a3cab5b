"""Which files change on disk, as it happens: what `index --watch` stays for.

Events come from the operating system through watchfiles. File systems that give none (network and shared folders, for
instance) are looked through again and again instead, which sees the same changes later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, Cancelled, TimedOut, TriptychError
from ..progress import step
from .roots import is_wanted

if TYPE_CHECKING:
    from .schemas import IndexOut

DEBOUNCE_MS = 1_600
"""Changes are gathered for at most this long: a copied folder is one round, not hundreds."""
QUIET_MS = 200
"""After this long without a change the round begins."""
TICK_MS = 500
"""How often the wait looks whether it should end."""
POLL_MS = 2_000
"""How long a file system without events is left alone between two looks."""
AGAIN_S = 1.5
"""So much later, what was found by looking is looked at once more: two changes within a second look like one."""
RETRY_S = 10.0
"""After this long a round that failed is tried again."""

_SILENT = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "glusterfs", "lustre", "vboxsf", "prl_fs", "virtiofs", "fuse")

log = logging.getLogger(__name__)

Changed = dict[Path, set[Path]]
"""Paths that are new, changed or gone, by the watched folder or file that they are in."""


def changes(tops: Sequence[Path], *, poll: bool | None = None, apart: Sequence[Path] = ()) -> Iterator[Changed]:
    """What changes below `tops` (resolved), round by round; an empty round every `TICK_MS` while nothing does.

    The first round is empty and comes when watching has begun: whatever changes after it will be seen.

    Args:
        poll: look through the files again and again; default: where the file system tells no events.
        apart: folders whose changes do not count.

    Raises:
        BadInput: nothing can be watched there.
        Cancelled: see `progress`.
    """
    wanted = poll if poll is not None else any(is_silent(top) for top in tops) or None
    due: dict[Path, float] = {}
    with closing(_events(tops, wanted)) as events:
        for found, polled in events:
            step(0, None, "watching")
            now = time.monotonic()
            again = {path for path, at in due.items() if at <= now}
            due = {path: at for path, at in due.items() if at > now}
            due |= dict.fromkeys(found, now + AGAIN_S) if polled else {}
            paths = found | again
            seen = [path for path in paths if not any(path.is_relative_to(folder) for folder in apart)]
            by_top = {top: {path for path in seen if is_wanted(path, top)} for top in tops}
            yield {top: own for top, own in by_top.items() if own}


def followed(rounds: Iterator[Changed], bring: Callable[[Changed], IndexOut]) -> Iterator[IndexOut]:
    """`bring` what changes, round by round; a round that fails as a whole is tried again after `RETRY_S`.

    What changes in a watched folder that is gone itself waits until it is back: its passages stay.
    """
    waiting: Changed = {}
    not_before = 0.0
    for changed in rounds:
        for top, own in changed.items():
            waiting.setdefault(top, set()).update(own)
        there = {top: own for top, own in waiting.items() if top.exists()}
        if not there or time.monotonic() < not_before:
            continue
        try:
            result = bring(there)
        except (Cancelled, TimedOut):
            raise
        except (TriptychError, OSError) as error:
            log.warning("a round failed and is tried again in %.0f s: %s", RETRY_S, error)
            not_before = time.monotonic() + RETRY_S
            continue
        waiting = {top: own for top, own in waiting.items() if top not in there}
        if result.indexed or result.removed or result.problems:
            yield result


def _events(tops: Sequence[Path], poll: bool | None) -> Generator[tuple[set[Path], bool], None, None]:
    """What changed, and whether that was found by looking."""
    events, polled = _notified(tops, poll), bool(poll)
    try:
        yield next(events), polled
    except (OSError, RuntimeError) as error:  # the system's limit of watched folders, for instance
        if poll:
            raise BadInput(f"`{tops[0].name}` cannot be watched: {error}.", "Index it without --watch.") from error
        log.warning("no events to be had (%s): looking through the files every %s s", error, POLL_MS / 1000)
        events, polled = _notified(tops, True), True
    for found in events:
        yield found, polled


def _notified(tops: Sequence[Path], poll: bool | None) -> Iterator[set[Path]]:
    from watchfiles import Change, watch

    options: dict[str, Any] = {"debounce": DEBOUNCE_MS, "step": QUIET_MS, "rust_timeout": TICK_MS}
    options |= {"force_polling": poll, "poll_delay_ms": POLL_MS, "ignore_permission_denied": True}
    for found in watch(*tops, watch_filter=None, yield_on_timeout=True, **options):
        # A folder is modified when something in it comes or goes, which is told too; only looking again notices both.
        yield {Path(path) for kind, path in found if kind != Change.modified or not Path(path).is_dir()}


def is_silent(path: Path) -> bool:
    """Whether the file system of `path` may change without telling: others change it, over a network or from a host."""
    import psutil

    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    kind = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype.lower() if mounts else ""
    return kind.startswith(_SILENT)
