"""JSON over HTTP to one endpoint that the user has named: with patience, at a pace, so many requests at once.

On urllib3, which the base install has in any case: its pool of connections is safe from many threads, it follows no
redirect and takes no proxy from the environment unless told to, and it needs no event loop.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, EndpointError, TimedOut, TriptychError
from ..progress import left_s, step

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

ATTEMPTS = 5
AGAIN = frozenset({408, 429, 500, 502, 503, 504, 529})
"""The states that pass: with these a request is sent again."""
CONNECT_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
LARGEST = 16 * 2**20
"""Bytes of an answer."""
SAID = 200
"""Characters of what an endpoint says that an error shows."""
TICK_S = 0.1
"""How often whoever waits looks whether it has to stop."""
GRACE_S = 1.0


@dataclass
class _Job:
    path: str
    body: Mapping[str, Any]
    stop: threading.Event
    latest: float = math.inf
    """When it has to be over whatever its patience, for its caller to have time left."""
    ends: float | None = field(default=None)
    """When its patience is over; None until it has begun."""


class _Again(Exception):
    """A failure that may pass: the error to raise if it does not, and how long the endpoint asks to wait."""

    def __init__(self, error: TriptychError, after_s: float | None = None) -> None:
        self.error = error
        self.after_s = after_s


class Endpoint:
    """Posts JSON below one address. Safe from many threads, which share the pace and the number at once.

    A request that fails in a way that may pass (no connection, no answer in time, half an answer, 408, 429, 5xx) is
    sent again, at most five times: after what `Retry-After` says, else after half a second, doubled each time, less a
    random part. Redirects are refused.

    Args:
        url: `http://…` or `https://…`, as far as the paths of the requests begin (usually to `/v1`).
        key: sent as a bearer token; never shown, logged or part of an error.
        timeout_s: seconds that one attempt may take.
        patience_s: seconds that all attempts of one request and the pauses may take; None: three times `timeout_s`.
        at_once: requests under way at the same time.
        per_minute: requests begun in a minute, evenly spaced; 0: no limit.
        pause_s: the first pause.

    Attributes:
        requests, retries: attempts sent so far, and how many of these were repeated ones.

    Raises:
        BadInput: an address that cannot be used, or a key that no header can carry.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        timeout_s: float = 60.0,
        patience_s: float | None = None,
        at_once: int = 4,
        per_minute: int = 0,
        pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        from urllib3 import PoolManager

        self._base, self.name = _checked(url)
        if not key.isascii() or not key.isprintable():
            raise BadInput("The endpoint's key has characters that a header cannot carry.", "Set it without them.")
        if at_once < 1 or timeout_s <= 0:
            raise BadInput(f"`{at_once}` requests at once, `{timeout_s:g}` s each.", "Both have to be above 0.")
        self._key = key
        self._timeout_s = timeout_s
        self._patience_s = 3 * timeout_s if patience_s is None else patience_s
        self._pause_s = pause_s
        self._interval_s = 60 / per_minute if per_minute > 0 else 0.0
        self._next_start = 0.0
        self._lock = threading.Lock()
        self._http = PoolManager(maxsize=at_once, retries=False)
        self._threads = ThreadPoolExecutor(at_once, "endpoint")
        self.requests = 0
        self.retries = 0

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"

    def post(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to `bodies`, in their order. The first failure ends the whole call.

        A caller's deadline shortens the patience (see `progress.left_s`): it is over before the deadline passes, so
        that the caller can still make something of what it has.

        Raises:
            EndpointError: the endpoint cannot be reached, refuses, or answers with something else than a JSON object.
            TimedOut: it did not answer in time; or the caller's deadline has passed.
            Cancelled: the caller asked to stop.
            BadInput: a prompt is longer than the model's context.
        """
        stop, left = threading.Event(), left_s()
        jobs = [_Job(path, body, stop, time.monotonic() + left) for body in bodies]
        futures = [self._threads.submit(self._patiently, job) for job in jobs]
        waiting = set(futures)
        try:
            while waiting:
                step(len(futures) - len(waiting), len(futures), "prompts")
                finished, waiting = wait(waiting, TICK_S, FIRST_COMPLETED)
                for one in finished:
                    one.result()
                # An answer whose header comes byte by byte keeps its thread; whoever waits is not kept.
                late = [job for job, one in zip(jobs, futures, strict=True) if one in waiting and _over(job)]
                if late:
                    raise self._late(min(self._patience_s, left), hurried=left < self._patience_s)
            return [one.result() for one in futures]
        finally:
            stop.set()
            for one in futures:
                one.cancel()

    def _patiently(self, job: _Job) -> dict[str, Any]:
        self._keep_pace(job.stop)
        job.ends = min(time.monotonic() + self._patience_s, job.latest)
        for attempt in range(ATTEMPTS):
            try:
                return self._once(job, attempt)
            except _Again as failure:
                pause_s = failure.after_s
                if pause_s is None:
                    longest_s = min(LONGEST_PAUSE_S, self._pause_s * 2**attempt)
                    pause_s = random.uniform(longest_s / 2, longest_s)
                rest_s = job.ends - time.monotonic()
                if attempt + 1 == ATTEMPTS or pause_s >= rest_s or job.stop.wait(pause_s):
                    raise failure.error from None
            self._keep_pace(job.stop)
        raise AssertionError

    def _keep_pace(self, stop: threading.Event) -> None:
        if not self._interval_s:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + self._interval_s
        stop.wait(start - time.monotonic())

    def _once(self, job: _Job, attempt: int) -> dict[str, Any]:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError, NewConnectionError, TimeoutError

        begun = time.monotonic()
        end = begun + self._timeout_s
        if job.ends is not None:
            end = min(end, max(job.ends, begun + TICK_S))
        with self._lock:
            self.requests += 1
            self.retries += attempt > 0
        try:
            response = self._http.request(
                "POST",
                f"{self._base}{job.path}",
                body=json.dumps(job.body).encode(),
                headers=self._headers(),
                timeout=Timeout(connect=min(CONNECT_S, end - begun), read=end - begun),
                redirect=False,
                preload_content=False,
            )
            data = self._read(response, job, begun, end)
        except HTTPError as error:
            if isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError):
                raise _Again(self._late(*self._waited(job, end - begun))) from None
            # The library's own words name addresses and objects; its class says what happened.
            message = f"`{self.name}` cannot be reached, or breaks off: {type(error).__name__}."
            raise _Again(EndpointError(message, "Is it running, and the address right?")) from None
        return self._answer(response.status, response.headers, data)

    def _headers(self) -> dict[str, str]:
        told = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "triptych"}
        return {**told, "Authorization": f"Bearer {self._key}"} if self._key else told

    def _read(self, response: BaseHTTPResponse, job: _Job, begun: float, end: float) -> bytes:
        data = bytearray()
        try:
            while part := response.read1(2**16):
                data += part
                if len(data) > LARGEST:
                    raise EndpointError(f"`{self.name}` answers with more than `{LARGEST:,}` bytes.", _WRONG)
                if time.monotonic() > end:
                    raise _Again(self._late(*self._waited(job, end - begun)))
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return bytes(data)

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes) -> dict[str, Any]:
        """The JSON object of a good answer.

        Raises:
            _Again: what came may pass.
            EndpointError: it will not.
            BadInput: the prompt is too long.
        """
        if status != 200:
            raise self._refusal(status, headers, data)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            if _is_page(headers, data):
                raise EndpointError(f"`{self.name}` answers with a web page, not with JSON.", _WRONG) from None
            error = EndpointError(f"`{self.name}` answers with broken JSON: `{self._said(data)}`.", _WRONG)
            raise _Again(error) from None
        if not isinstance(found, dict):
            raise EndpointError(f"`{self.name}` answers with a `{type(found).__name__}`, not an object.", _WRONG)
        return found

    def _refusal(self, status: int, headers: Mapping[str, str], data: bytes) -> Exception:
        said = "a web page" if _is_page(headers, data) else self._said(data)
        message = f"`{self.name}` answers with status `{status}`: `{said}`."
        if status in AGAIN:
            after_s = _seconds(headers.get("Retry-After"))
            hint = (
                f"It asks to wait {after_s:.0f} s." if after_s else "Try again later, or with fewer requests at once."
            )
            return _Again(EndpointError(message, hint, status), after_s)
        if status in (400, 413, 422) and "context" in said and ("length" in said or "exceed" in said):
            return BadInput(f"A prompt is too long for `{self.name}`: `{said}`.", "Give a shorter one.")
        hints = {
            401: "Set the right key in TRIPTYCH_LM_KEY.",
            403: "Set the right key in TRIPTYCH_LM_KEY.",
            404: "The address usually ends in `/v1`; and is the setting `lm_model` a model that it has?",
        }
        hint = "It wants to send the request elsewhere: give its own address." if 300 <= status < 400 else ""
        return EndpointError(message, hints.get(status, hint), status)

    def _said(self, data: bytes) -> str:
        """What a body says, as a short line that holds no key."""
        text = data.decode("utf-8", "replace")
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, dict):
            inner = told.get("error", told)
            inner = inner.get("message", inner) if isinstance(inner, dict) else inner
            text = inner if isinstance(inner, str) else text
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text).replace("`", "'").split())
        return line if len(line) <= SAID else f"{line[:SAID]}…"

    def _waited(self, job: _Job, waited_s: float) -> tuple[float, bool]:
        """How long an attempt was waited for, and whether that was less than usual because of the caller's deadline."""
        hurried = job.ends == job.latest and waited_s < self._timeout_s
        return (waited_s if hurried else self._timeout_s), hurried

    def _late(self, seconds: float, hurried: bool) -> TimedOut:
        hint = "It had to be done before the call's own deadline." if hurried else "Raise the setting `lm_timeout`."
        return TimedOut(f"`{self.name}` did not answer within `{round(seconds, 2):g}` s.", hint)


_WRONG = "Is this the address of an OpenAI-compatible endpoint? It usually ends in `/v1`."


def _over(job: _Job) -> bool:
    now = time.monotonic()
    return now > job.latest or (job.ends is not None and now > job.ends + GRACE_S)


def _checked(url: str) -> tuple[str, str]:
    """The address without a slash at its end, and what errors call it: scheme, host and port."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        parts = parse_url(url.strip())
    except LocationParseError:
        raise BadInput("The endpoint's address cannot be read.", "Give one such as `http://host:8000/v1`.") from None
    if parts.auth is not None or parts.query is not None or parts.fragment is not None:
        # Not shown: what stands there may be a secret.
        raise BadInput(
            f"The endpoint's address on `{parts.host}` holds more than a path.", "Put the key into TRIPTYCH_LM_KEY."
        )
    if parts.scheme not in ("http", "https") or not parts.host:
        raise BadInput(f"The endpoint is `{url}`.", "Give an address that begins with `http://` or `https://`.")
    return parts.url.rstrip("/"), f"{parts.scheme}://{parts.netloc}"


def _is_page(headers: Mapping[str, str], data: bytes) -> bool:
    return "html" in headers.get("Content-Type", "").lower() or data.lstrip()[:1] == b"<"


def _seconds(after: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, as a number or a date; None where it says nothing.

    >>> _seconds("2"), _seconds("soon"), _seconds("Thu, 01 Jan 1970 00:00:00 GMT")
    (2.0, None, 0.0)
    """
    if after is None:
        return None
    try:
        return max(0.0, float(after))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except ValueError:
            return None
