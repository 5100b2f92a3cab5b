"""One collection that stays reachable: on Milvus Lite in the library's folder, whoever holds it, or on a server.

The folder has a description of each of its collections, such as `store.json` (the collection's name, which no text of
a user ever enters, its spaces, and what its backend was seen to do), and the lock files by which writers, and creators
of collections, take turns.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from ...errors import BadInput, StoreError, Unsupported
from . import lite
from .capabilities import Capabilities, probed
from .layouts import TENANT
from .lite import backend_errors, is_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .layouts import Layout

FORMAT = 2
LITE = "milvus.db"
"""The Milvus Lite folder inside the library's folder."""

LOCK_S = 60.0
_DIAL_S = 10.0

_URI = re.compile(r"(https?|tcp)://[^\s/]+(/\S*)?")
_SHARED = re.compile(r"[A-Za-z_]\w{0,59}", re.ASCII)
_REPLACED = ("does not exist", "can't find collection", "collection not found")
_FULL = ("No space left", "Errno 28", "File too large", "Errno 27")
_REBUILD = "Build the library anew: `triptych index --rebuild PATH…`."

T = TypeVar("T")


@dataclass(frozen=True)
class Description:
    """What the file beside a collection says of it.

    Attributes:
        collection: its name in the backend.
        spaces: name, dim and metric of each.
        lexical: whether rows have the field of that name: the backend had sparse vectors when the collection was made.
        backend: what the backend was seen to do.
        tenant: `""`, or the random name of this library's rows in a collection that others share.
    """

    collection: str
    spaces: list[list[Any]]
    lexical: bool
    backend: Capabilities
    tenant: str = ""


class Connection:
    """A collection of the library in `folder`. Opened by the first call; safe from many threads.

    Args:
        layout: what the collection looks like.
        folder, uri, token, shared, dense_index: as for `MilvusStore`.

    Raises:
        BadInput: a URI that no server has, or a shared collection that has no good name or no server.
    """

    def __init__(
        self, folder: Path, layout: Layout, uri: str, dense_index: str, token: str = "", shared: str = ""
    ) -> None:
        if shared and not (uri and _SHARED.fullmatch(shared)):
            raise BadInput(
                f"Libraries cannot share the collection `{shared}`{'' if uri else ' without a server'}.",
                "Set `store_uri`, and give letters, digits and `_`, at most 60.",
            )
        if uri and not _URI.fullmatch(uri):
            raise BadInput(
                f"The store's URI is `{_without_password(uri)}`.", "Give `http://HOST:19530` or `https://…`."
            )
        self.folder = folder
        self._found: Description | None = None
        self._layout = layout
        self._uri = uri
        self._token = token
        self._shared = shared
        self._dense_index = dense_index
        self._lock = RLock()
        self._writing = Lock()
        self._link: lite.Link | None = None

    @property
    def collection(self) -> str:
        """The collection's name, `""` before there is one."""
        return self._found.collection if self._found else ""

    @property
    def tenant(self) -> str:
        """`""`, or what this library's rows are marked with in a shared collection."""
        return self._described().tenant

    @property
    def backend(self) -> Capabilities:
        """What the backend does."""
        return self._described().backend

    @property
    def lexical(self) -> bool:
        """Whether rows can be searched by words."""
        return self._described().lexical

    @property
    def is_lite(self) -> bool:
        """Whether the backend is Milvus Lite."""
        return self.backend.is_lite

    @property
    def link(self) -> lite.Link:
        """The connection, made now if there is none.

        Raises:
            StoreError: the store cannot be opened, is damaged, or has other spaces or a newer format.
        """
        with self._lock:
            if self._link is None:
                self._link = self._open()
            return self._link

    def open(self) -> None:
        """Connect now; otherwise the first call does."""
        self.link  # noqa: B018

    def close(self) -> None:
        """Release the connection; the next call makes a new one."""
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                self._let_go(link)

    def call(self, what: str, work: Callable[[Any, str], T]) -> T:
        """`work(client, collection)`, once more on a new connection when whoever held the folder is gone.

        Raises:
            StoreError: "The store could not `what`", and why.
        """
        link = self.link
        try:
            return work(link.client, self.collection)
        except backend_errors() as error:
            gone = is_gone(error)
            if not gone and not _says(error, _REPLACED):
                raise self.failure(what, error) from error
        with self._lock:
            if self._link is link:
                self._link = None
                self._let_go(link, lost=gone)
        try:
            return work(self.link.client, self.collection)
        except backend_errors() as error:
            raise self.failure(what, error) from error

    def replay(self) -> None:
        """Open Milvus Lite's folder anew: after a failed write its memory may lack rows that its log has."""
        with self._lock:
            link = self._link
            if link is not None and link.holds:
                self._link = None
                self._let_go(link, lost=True)

    def failure(self, what: str, error: Exception) -> StoreError:
        """The error for a user: first line, no absolute path, a remedy."""
        reason = str(getattr(error, "message", "") or error).strip().split("\n")[0][:300]
        for path in (self.folder.resolve(), self.folder):
            reason = reason.replace(str(path), self.folder.name)
        if self._token:
            reason = reason.replace(self._token, "…")
        hint = "Try again; `triptych status` says what the store has."
        if _says(error, _FULL):
            hint = "Free some disk space and run it again; what was acknowledged is kept."
        elif any(sign in reason.lower() for sign in ("manifest", "corrupt", "parquet")):
            hint = _REBUILD
        return StoreError(f"The store could not {what}: {reason}.", hint)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The right to write, one at a time over all threads and processes (Milvus Lite does not order writers)."""
        self._make_folder()
        with self._writing, _file_lock(self.folder / "store.lock"):
            yield

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep searches of Milvus Lite off its flushes: rows on their way to a segment are in neither place."""
        link = self.link
        if not self.is_lite:
            yield
            return
        with link.gate:
            yield

    def erase(self) -> None:
        """Drop the collection, whatever state it is in; the next call makes a new one. Only inside `turn`."""
        try:
            old = self.description()
        except StoreError as error:
            lite.log.warning("the old store has no usable description: %s", error)
            old = None
        self.close()
        link = self._dial()
        damaged = old is None
        try:
            if old is not None and old.tenant:
                link.client.delete(old.collection, filter=f'{TENANT} == "{old.tenant}"')
            elif old is not None:
                link.client.drop_collection(old.collection)
        except backend_errors() as error:
            damaged = True
            if not link.holds:
                raise self.failure("be erased", error) from error
        finally:
            self._let_go(link)
        if damaged and link.holds:
            shutil.rmtree(self.folder / LITE)
        (self.folder / self._layout.file).unlink(missing_ok=True)

    def description(self) -> Description | None:
        """What the folder says of the collection, None where none was made yet."""
        path = self.folder / self._layout.file
        return _described_in(path) if path.exists() else None

    def _seen(self, version: str) -> Capabilities | None:
        """What another collection of the library knows of this backend."""
        for path in sorted(self.folder.glob("store*.json")):
            with suppress(StoreError):  # a damaged one is the business of its own collection
                found = _described_in(path).backend
                if found.version == version:
                    return found
        return None

    def _open(self) -> lite.Link:
        self._make_folder()
        self._read_description()
        link = self._dial()
        try:
            self._ready(link)
        except backend_errors() as error:
            self._let_go(link)
            raise self.failure("be opened", error) from error
        except BaseException:
            self._let_go(link)
            raise
        return link

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The folder `{self.folder.name}` cannot be made: {error.strerror}.", "Choose another."
            ) from error

    def _dial(self) -> lite.Link:
        if not self._uri:
            return lite.connect(self.folder / LITE, self._belongs)
        try:
            return lite.Link(lite.client_of(self._uri, _DIAL_S, self._token), self._uri)
        except backend_errors() as error:
            shown = _without_password(self._uri)
            if "UNAUTHENTICATED" in f"{error} {error.__cause__}":
                raise StoreError(
                    f"The Milvus server at `{shown}` refuses this user.",
                    "Set TRIPTYCH_STORE_TOKEN to `USER:PASSWORD`, or to the key that the service gave you.",
                ) from None
            raise StoreError(f"No Milvus server answers at `{shown}`.", "Start it, or correct `store_uri`.") from None

    def _let_go(self, link: lite.Link, *, lost: bool = False) -> None:
        if self._uri:
            link.client.close()
        elif lost:
            lite.lost(self.folder / LITE, link)
        else:
            lite.release(self.folder / LITE, link)

    def _belongs(self, client: Any) -> bool:
        self._read_description()
        return bool(self.collection) and bool(client.has_collection(self.collection))

    def _read_description(self) -> None:
        self._found = self.description()
        if self._found is not None and self._found.spaces != self._own_spaces():
            names = ", ".join(str(space[0]) for space in self._found.spaces) or "none"
            raise StoreError(f"The store was built with other spaces than asked for: `{names}`.", _REBUILD)

    def _own_spaces(self) -> list[list[Any]]:
        return [[space.name, space.dim, space.metric] for space in self._layout.spaces]

    def _described(self) -> Description:
        self.open()
        return self._described_now()

    def _described_now(self) -> Description:
        if self._found is None:
            raise StoreError("The store has been erased.", "Open it again.")
        return self._found

    def _ready(self, link: lite.Link) -> None:
        """The collection exists and is loaded (Milvus Lite opens it unloaded)."""
        client = link.client
        version = client.get_server_version()
        known = self._found is not None and self._found.backend.version == version
        if not (known and client.has_collection(self.collection)):
            with _file_lock(self.folder / "create.lock"):
                self._read_description()
                self._describe(client, version)
                if not client.has_collection(self.collection):
                    self._create(client)
        client.load_collection(self.collection)
        if link.holds and link.users == 1:
            # Rows that a killed process left in the log become a segment, or every search would index them anew.
            client.flush(self.collection)

    def _describe(self, client: Any, version: str) -> None:
        """Write down what the backend does, and a name for the collection where it has none."""
        old = self._found
        if old is not None and old.backend.version == version:
            return
        backend = self._seen(version) or probed(client, version)
        if old is None:
            lexical = backend.sparse and self._layout.has_words
            tenant = uuid4().hex if self._shared else ""
            found = Description(self._new_name(), self._own_spaces(), lexical, backend, tenant)
        else:
            found = replace(old, backend=backend)
        if not (found.lexical or found.spaces):
            raise Unsupported(
                f"The Milvus server ({version}) has no sparse vectors, and the library has no others.",
                "Use Milvus 2.4 or newer, or a library with a dense encoder.",
            )
        target = self.folder / self._layout.file
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        draft.write_text(json.dumps({"format": FORMAT, **asdict(found)}), "utf-8")
        draft.replace(target)
        self._found = found

    def _new_name(self) -> str:
        if not self._shared:
            return f"{self._layout.prefix}_{uuid4().hex}"
        spaces = "_".join(f"{name}_{dim}_{metric}" for name, dim, metric in self._own_spaces())
        return "_".join(filter(None, (self._shared, self._layout.prefix, spaces)))

    def _create(self, client: Any) -> None:
        found = self._described_now()
        schema, index = self._layout.build(
            client, found.backend, lexical=found.lexical, shared=bool(found.tenant), dense_index=self._dense_index
        )
        try:
            # Strong: bookkeeping and counts see what every process has written. Searches ask for less, see `table`.
            client.create_collection(self.collection, schema=schema, consistency_level="Strong")
        except backend_errors():
            if not (found.tenant and client.has_collection(self.collection)):
                raise
            return  # another library was first
        # Waiting for the index of an empty collection would only cost half a second for each field.
        client.create_index(self.collection, index, sync=False)


def _without_password(uri: str) -> str:
    return re.sub(r"//[^@/]*@", "//", uri)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=LOCK_S):
            yield
    except Timeout:
        raise StoreError(
            f"Another process has been writing to this library for {LOCK_S:.0f} s.", "Try again when it has finished."
        ) from None


def _says(error: Exception, signs: tuple[str, ...]) -> bool:
    return any(sign in str(error) for sign in signs)


def _described_in(path: Path) -> Description:
    try:
        found = json.loads(path.read_text("utf-8"))
        version = found.pop("format")
        if version == FORMAT:
            return Description(**{**found, "backend": Capabilities(**found["backend"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"The store's description `{path.name}` is damaged.", _REBUILD) from error
    raise StoreError(f"The store has format `{version}`, this version reads {FORMAT}.", _REBUILD)
