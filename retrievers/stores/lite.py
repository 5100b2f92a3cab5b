"""Opening a Milvus Lite folder, which only one process can hold, from any number of processes and threads.

The first process to come runs Milvus Lite's server inside itself, on a free loopback port, and writes the address into
a file beside the folder. Whoever comes later and finds the folder held connects to that address. When the holder is
gone, the next call of anyone left fails, and `connect` either takes the folder over or finds the new holder.
Within one process all users of a folder share one server and one client.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import time
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from ...errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOOPBACK = re.compile(r"http://127\.0\.0\.1:\d{1,5}")
_PATIENCE_S = 30.0
_DIAL_S = 1.0
_START_S = 30.0
# pymilvus pings an idle server every ten seconds; Milvus Lite's hangs up on who does so more than every five minutes.
_QUIET_LINE = {"grpc.keepalive_time_ms": 600_000, "grpc.keepalive_permit_without_calls": 0}
_PAUSE_S = 0.05

log = logging.getLogger(__name__)


@dataclass
class Link:
    """A connection.

    Attributes:
        server, database: there when this process holds the folder.
        users: how many share it.
        gate: for calls that must not overlap.
    """

    client: Any
    url: str
    server: Any = None
    database: Any = None
    users: int = 1
    gate: Any = field(default_factory=Lock)
    closed: bool = False

    @property
    def holds(self) -> bool:
        """Whether this process holds the folder."""
        return self.server is not None


# A folder's lock belongs to the process, so who holds what is kept per process.
_links: dict[Path, Link] = {}
# Re-entrant, because a collected store may be closed by the very thread that opens another.
_links_lock = RLock()


def address_file(folder: Path) -> Path:
    """Where the holder of `folder` writes its address."""
    return folder.with_name(folder.name + ".address")


def connect(folder: Path, belongs: Callable[[Any], bool]) -> Link:
    """A shared connection to the Milvus Lite `folder`, opened here if nobody holds it.

    Args:
        belongs: whether a client found through the address file talks to this very folder (a port may have been
            given to somebody else since).

    Raises:
        StoreError: somebody holds the folder and does not answer, or it cannot be read.
    """
    folder = folder.resolve()
    with _links_lock:
        link = _links.get(folder)
        if link is not None:
            link.users += 1
            return link
        link = _links[folder] = _open(folder, belongs)
        return link


def release(folder: Path, link: Link) -> None:
    """Give one share of `link` back; the last one closes it, and the folder is free for others."""
    with _links_lock:
        link.users -= 1
        if link.users == 0:
            _drop(folder.resolve(), link)


def lost(folder: Path, link: Link) -> None:
    """Forget a connection that does not answer any more, so that the next `connect` makes a new one."""
    with _links_lock:
        if _links.get(folder.resolve()) is link:
            _drop(folder.resolve(), link)


def close(folder: Path) -> None:
    """Close `folder` for everybody in this process, if it is open."""
    with _links_lock:
        link = _links.get(folder.resolve())
        if link is not None:
            _drop(folder.resolve(), link)


def _drop(folder: Path, link: Link) -> None:
    if _links.get(folder) is link:
        del _links[folder]
    if link.closed:
        return
    link.closed = True
    link.client.close()
    if link.holds:
        address_file(folder).unlink(missing_ok=True)
        link.server.stop(grace=2).wait()
        link.database.close()


@atexit.register
def _drop_all() -> None:
    with _links_lock:
        for folder, link in list(_links.items()):
            _drop(folder, link)


def _open(folder: Path, belongs: Callable[[Any], bool]) -> Link:
    from milvus_lite.adapter.grpc.server import start_server_in_thread
    from milvus_lite.exceptions import DataDirLockedError

    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            server, database, port = start_server_in_thread(str(folder))
        except DataDirLockedError:
            link = _dial(folder, belongs)
            if link is not None:
                return link
        except OSError as error:
            raise StoreError(
                f"The store cannot be opened: {error.strerror}.", "Check the disk and its rights."
            ) from None
        else:
            return _serve(folder, server, database, f"http://127.0.0.1:{port}")
        if time.monotonic() > until:
            raise StoreError(
                "The store is held by another process that does not answer.",
                "Stop that process, or wait until it has finished, and try again.",
            )
        time.sleep(_PAUSE_S)


def _serve(folder: Path, server: Any, database: Any, url: str) -> Link:
    failures: tuple[type[Exception], ...] = (OSError, *backend_errors())
    try:
        link = Link(client_of(url, _START_S), url, server, database)
        target = address_file(folder)
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        draft.write_text(json.dumps({"url": url, "pid": os.getpid()}), "utf-8")
        draft.replace(target)
    except failures as error:
        server.stop(grace=0).wait()
        database.close()
        raise StoreError(
            f"The store cannot be served: {type(error).__name__}.", "Check the disk; try again."
        ) from error
    return link


def _dial(folder: Path, belongs: Callable[[Any], bool]) -> Link | None:
    """The holder's server, or None while it is starting, stopping or gone."""
    try:
        url = str(json.loads(address_file(folder).read_text("utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not _LOOPBACK.fullmatch(url):
        return None
    try:
        client = client_of(url, _DIAL_S)
    except backend_errors() as error:
        log.debug("no answer at %s: %s", url, error)
        return None
    try:
        if belongs(client):
            return Link(client, url)
    except backend_errors() as error:
        log.debug("%s went away: %s", url, error)
    except BaseException:
        client.close()
        raise
    client.close()
    return None


def backend_errors() -> tuple[type[Exception], ...]:
    """What calls through pymilvus raise: its own errors, gRPC's, and a closed channel's ValueError."""
    import grpc  # type: ignore[import-untyped]
    from pymilvus.exceptions import MilvusException

    return (MilvusException, grpc.RpcError, ValueError)


_GONE = ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED", "Fail connecting", "closed channel")


def is_gone(error: Exception) -> bool:
    """Whether `error` says that nobody answers any more, and not that the backend refused."""
    return any(sign in str(error) for sign in _GONE)


def client_of(url: str, timeout_s: float, token: str = "") -> Any:
    """A client with a connection of its own (pymilvus keeps shared ones open for ever)."""
    from pymilvus import MilvusClient

    # Everything pymilvus logs as an error is also raised, with a traceback on stderr that users need not see.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    logging.getLogger("milvus_lite").addHandler(logging.NullHandler())
    return MilvusClient(url, token=token, dedicated=True, timeout=timeout_s, grpc_options=_QUIET_LINE)
