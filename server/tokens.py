"""Bearer tokens of a server over HTTP: static ones, kept as SHA-256, each with its client, scopes and audience.

They come from the environment variable `TRIPTYCH_MCP_TOKEN` (one token, for this server, all scopes) or from a TOML
file that holds no token at all:

    [laptop]
    sha256 = "…"                             # of the token, 64 hexadecimal digits
    scopes = ["read"]                        # default; "write" as well for `index` and `delete`
    audience = "https://host.example/mcp"    # default: this server's own address
    expires = 2030-01-31                     # default: never

Never from an argument: those show in the list of processes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from ..errors import BadInput, Forbidden

VARIABLE = "TRIPTYCH_MCP_TOKEN"
READ, WRITE = "triptych:read", "triptych:write"
SCOPES = {"read": READ, "write": WRITE}
LEAST_TOKEN = 24
"""Characters: a shorter one may be guessed."""
LONGEST_TOKEN = 4096
_KEYS = {"sha256", "scopes", "audience", "expires"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
HINT = "Make one with `triptych token NAME`."


@dataclass(frozen=True)
class Holder:
    """Whose token it is; `audience` "" stands for this server, `expires` is in seconds since 1970."""

    client: str
    digest: bytes
    scopes: tuple[str, ...] = (READ,)
    audience: str = ""
    expires: int | None = None


def known(environ: Mapping[str, str], file: Path | None) -> tuple[Holder, ...]:
    """The tokens that this server accepts, from environment and file; none where neither is given.

    Raises:
        BadInput: a token that is too short, or a file that is not what the module says.
        Forbidden: the file cannot be read.
    """
    found = _of_file(file) if file is not None else []
    token = environ.get(VARIABLE, "")
    if token:
        if not LEAST_TOKEN <= len(token) <= LONGEST_TOKEN or not token.isascii() or token != token.strip():
            raise BadInput(f"`{VARIABLE}` holds no token of at least `{LEAST_TOKEN}` ASCII characters.", HINT)
        found.append(Holder("environment", digest_of(token), (READ, WRITE)))
    return tuple(found)


def digest_of(token: str) -> bytes:
    """SHA-256 of a token. Tokens are random and long, so that nothing slower is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def holder_of(token: str, holders: tuple[Holder, ...], now: float) -> Holder | None:
    """Whose token it is. Every holder is compared, in constant time, so that the time taken tells nothing."""
    if len(token) > LONGEST_TOKEN:
        return None
    digest, found = digest_of(token), None
    for holder in holders:
        if hmac.compare_digest(holder.digest, digest):
            found = holder
    return None if found is None or (found.expires is not None and found.expires <= now) else found


def made(client: str, scopes: tuple[str, ...], audience: str, expires: date | None) -> tuple[str, str]:
    """A new token, and the lines that a server's token file needs for it.

    Raises:
        BadInput: a name with other characters than letters, digits, `-` and `_`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", client):
        raise BadInput(f"`{client[:80]}` is no client's name.", "Use letters, digits, `-` and `_`.")
    token = secrets.token_urlsafe(32)
    lines = [f"[{client}]", f'sha256 = "{digest_of(token).hex()}"']
    lines.append(f"scopes = {json.dumps(list(scopes))}")
    if audience:
        lines.append(f'audience = "{_checked_audience(client, audience)}"')
    if expires is not None:
        lines.append(f"expires = {expires.isoformat()}")
    return token, "\n".join(lines) + "\n"


def _of_file(file: Path) -> list[Holder]:
    try:
        table = tomllib.loads(file.expanduser().read_text("utf-8"))
    except OSError as error:
        raise Forbidden(f"The token file `{file.name}` cannot be read: {error.strerror}.", HINT) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise BadInput(f"The token file `{file.name}` is not valid TOML.", HINT) from None
    holders = [_holder(client, row) for client, row in table.items()]
    if not holders:
        raise BadInput(f"The token file `{file.name}` holds no client.", HINT)
    if len({holder.digest for holder in holders}) < len(holders):
        raise BadInput(f"Two clients in `{file.name}` have the same token.", "Give each its own.")
    return holders


def _holder(client: str, row: Any) -> Holder:
    unknown = sorted(row.keys() - _KEYS) if isinstance(row, dict) else [client]
    if unknown:
        raise BadInput(f"The token file has an unknown key `{unknown[0]}`.", f"Use: {', '.join(sorted(_KEYS))}.")
    digest, scopes = str(row.get("sha256", "")), row.get("scopes", ["read"])
    if not _SHA256.fullmatch(digest):
        raise BadInput(f"`sha256` of the client `{client}` is not 64 hexadecimal digits.", HINT)
    if not isinstance(scopes, list) or not scopes or any(scope not in SCOPES for scope in scopes):
        raise BadInput(f"`scopes` of the client `{client}` is `{scopes}`.", f"Use some of: {', '.join(SCOPES)}.")
    audience = _checked_audience(client, str(row["audience"])) if row.get("audience") else ""
    named = tuple(SCOPES[scope] for scope in scopes)
    return Holder(client, bytes.fromhex(digest), named, audience, _seconds(client, row.get("expires")))


def _checked_audience(client: str, audience: str) -> str:
    if not re.fullmatch(r"https?://[^\s\"\\]+", audience):
        raise BadInput(f"`audience` of the client `{client}` is `{audience[:80]}`.", "Give an http(s) address.")
    return audience


def _seconds(client: str, expires: Any) -> int | None:
    if expires is None:
        return None
    if isinstance(expires, datetime):
        return int((expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp())
    if isinstance(expires, date):
        return int(datetime.combine(expires, time.max, UTC).timestamp())
    raise BadInput(f"`expires` of the client `{client}` is `{expires}`.", "Give a date such as 2030-01-31.")


def with_audience(holders: tuple[Holder, ...], own: str) -> tuple[Holder, ...]:
    """`holders` with this server's address where none is named."""
    return tuple(replace(holder, audience=holder.audience or own) for holder in holders)
