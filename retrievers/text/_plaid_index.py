"""The files of `plaid`: token vectors of passages by item id, compressed once there are many.

In a folder stand `plaid.npz`, the index as `settle` left it, and in `plaid/` what came since, a file for each call of
`put`, with whole vectors. `settle` brings all into the one file:

- up to `whole` token vectors stay as they are and are searched exactly;
- with more, centroids and buckets are learned (see `_residual`) and the vectors become codes (for a search before that,
  in memory);
- later passages are compressed with the centroids that are there, until the index has `GROWN` times the vectors that
  these were learned from. Then all is learned anew from whole vectors; those of passages that are codes by now have to
  be made again from their texts.

A file is replaced whole or not at all, and the one file says up to which number the others are in it: whatever stops
the work, what was put stays. Everything that is searched is held in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np

from ...errors import StoreError
from ...progress import step
from ..stores.table import batched
from ._plaid import Plaid, read_arrays, unreadable, write_arrays
from ._plaid_parts import Coded, Whole, checked, learned, opened, packed, unpacked

if TYPE_CHECKING:
    from pathlib import Path

    from ..fusion import Ranked
    from ._plaid import Depth

FILE, LATER, AGAIN = "plaid.npz", "plaid", "plaid-again"
GROWN = 2
BATCH = 256
"""Passages whose vectors are made again at once."""

Again = Callable[[Sequence[str]], tuple[list[str], list[np.ndarray]]]
"""Makes vectors anew: from ids those that are still there, and float32 (n, dim) of each."""


@dataclass(frozen=True)
class State:
    """What the files hold.

    Attributes:
        main: of the one file; None where there is none, or nothing in it.
        through: the number of the last later file that is in it.
        later: number → ids and vectors' count of the files that are not.
    """

    main: Whole | Coded | None
    through: int
    later: dict[int, tuple[tuple[str, ...], int]]

    @cached_property
    def ids(self) -> frozenset[str]:
        own = self.main.ids if self.main is not None else ()
        return frozenset(own).union(*(ids for ids, _ in self.later.values()))

    @property
    def vectors(self) -> int:
        """How many there are."""
        own = int(self.main.lengths.sum()) if self.main is not None else 0
        return own + sum(count for _, count in self.later.values())


@dataclass
class Index:
    """See the module. Nothing is read before the first call; of several threads one at a time changes it.

    Args:
        whole: token vectors that may stand uncompressed.

    Raises:
        StoreError: from every method: a file is damaged.
    """

    folder: Path
    whole: int
    _state: State | None = None
    _seen: Whole | Coded | None = None
    _read_at: tuple[int, int] | None = None
    _lock: RLock = field(default_factory=RLock)

    def state(self) -> State:
        """What is there."""
        with self._lock:
            while self._state is None:
                self._read_at = self._written()
                try:
                    self._state = self._read()
                except StoreError:
                    if self._written() == self._read_at:
                        raise
            return self._state

    def put(self, ids: Sequence[str], vectors: Sequence[np.ndarray]) -> None:
        """Add passages that are not there; each has float32 (≥ 1, dim) of unit length."""
        with self._lock:
            state, part = self.state(), Whole.of(ids, vectors)
            number = max([state.through, *state.later]) + 1
            (self.folder / LATER).mkdir(parents=True, exist_ok=True)
            write_arrays(self._path(number), part.arrays())
            self._become(State(state.main, state.through, {**state.later, number: (part.ids, len(part.vectors))}))

    def remove(self, ids: Iterable[str]) -> None:
        """Take passages out; ids that are not there are no matter."""
        with self._lock:
            state = self.state()
            gone = state.ids & set(ids)
            if not gone:
                return
            main, later = state.main, dict(state.later)
            if main is not None and not gone.isdisjoint(main.ids):
                main = main.without(set(gone)) if not gone.issuperset(main.ids) else None
                self._write(main, state.through)
            for number, (own, _) in state.later.items():
                if gone.issuperset(own):
                    self._path(number).unlink(missing_ok=True)
                    del later[number]
                elif not gone.isdisjoint(own):
                    part = opened(self._path(number)).without(set(gone))
                    write_arrays(self._path(number), part.arrays())
                    later[number] = part.ids, len(part.vectors)
            self._become(State(main, state.through, later))

    def search(self, query: np.ndarray, k: int, depth: Depth | None, allowed: set[str] | None) -> Ranked:
        """The best `k` ids with their scores, ties by id.

        Args:
            query: float32 (q, dim), of unit length.
            depth: see `Plaid.search`.
            allowed: ids that count; None for all.
        """
        seen = self._all()
        if seen is None:
            return []
        among = None if allowed is None else np.array([id_ in allowed for id_ in seen.ids], bool)
        return seen.search(query, k, depth, among)

    def settle(self, again: Again) -> None:
        """All in one file, compressed by the module's rule.

        Raises:
            Cancelled, TimedOut: see `progress`; everything is as it was then.
        """
        with self._lock:
            state = self.state()
            if not state.later:
                return
            main, through = state.main, max(state.later)
            stale = isinstance(main, Coded) and state.vectors > GROWN * main.learned
            made = self._anew(state, again) if stale else self._all()
            self._write(made, through)
            self._become(State(made, through, {}))
            shutil.rmtree(self.folder / LATER, ignore_errors=True)

    def copy(self, folder: Path) -> None:
        """Write the settled index into another folder."""
        with self._lock:
            main = self.state().main
            shutil.rmtree(folder / LATER, ignore_errors=True)
            Index(folder, self.whole)._write(main, 0)

    @property
    def nbytes(self) -> int:
        """Of all files."""
        files = [self.folder / FILE, *(self._path(number) for number in self.state().later)]
        return sum(path.stat().st_size for path in files if path.is_file())

    def _all(self) -> Whole | Coded | None:
        """What is searched: everything, as `settle` would write it, but never with new centroids for old codes."""
        with self._lock:
            if self._seen is None:
                try:
                    self._seen = self._together(self.state())
                except StoreError:
                    if self._written() == self._read_at:
                        raise
                    self._state = None  # another process has settled it meanwhile
                    self._seen = self._together(self.state())
            return self._seen

    def _together(self, state: State) -> Whole | Coded | None:
        main, paths = state.main, [self._path(number) for number in state.later]
        if not paths:
            return main
        if not isinstance(main, Coded) and state.vectors > self.whole:
            return learned([*([main] if main is not None else []), *paths])
        first, *rest = [opened(path) for path in paths]
        return first.joined(rest) if main is None else main.joined([first, *rest])

    def _anew(self, state: State, again: Again) -> Coded:
        """Everything with new centroids, though some of it is codes."""
        scratch = self.folder / AGAIN
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        try:
            made_again = self._made_again(state.main.ids if state.main is not None else (), scratch, again)
            return learned([*made_again, *(self._path(number) for number in state.later)])
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _made_again(self, ids: Sequence[str], scratch: Path, again: Again) -> Iterator[Path]:
        scratch.mkdir()
        for number, part in enumerate(batched(ids, BATCH)):
            step(number * BATCH, len(ids), "passages compressed anew")
            found, vectors = again(part)
            if found:
                path = scratch / f"{number:08d}.npz"
                write_arrays(path, Whole.of(found, vectors).arrays())
                yield path

    def _become(self, state: State) -> None:
        self._state, self._seen, self._read_at = state, None, self._written()

    def _written(self) -> tuple[int, int] | None:
        """What tells one writing of the one file from the next."""
        path = self.folder / FILE
        if not path.exists():
            return None
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_ino

    def _write(self, main: Whole | Coded | None, through: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = main.arrays() if main is not None else {"ids": packed(())}
        write_arrays(self.folder / FILE, {**arrays, "through": np.array(through)})

    def _read(self) -> State:
        path, through = self.folder / FILE, 0
        main: Whole | Coded | None = None
        if path.exists():
            arrays = read_arrays(path)
            try:
                through, ids = int(arrays["through"]), unpacked(arrays["ids"])
                if "vectors" in arrays:
                    main = checked(path, Whole(ids, arrays["lengths"], arrays["vectors"]))
                elif ids:
                    main = checked(path, Coded(ids, Plaid.of(arrays), int(arrays["learned"])))
            except (KeyError, ValueError, TypeError) as error:
                raise unreadable(path, error) from None
        later = {}
        for number in sorted(int(one.stem) for one in (self.folder / LATER).glob("*.npz") if one.stem.isdecimal()):
            if number > through:
                part = opened(self._path(number))
                later[number] = part.ids, len(part.vectors)
        return State(main, through, later)

    def _path(self, number: int) -> Path:
        return self.folder / LATER / f"{number:08d}.npz"
