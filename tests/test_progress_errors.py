"""Progress, cancellation and deadlines through a context variable; and the exception tree."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context

import pytest

from triptych import Cancelled, TimedOut, TriptychError, errors
from triptych.progress import reporting, step

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TriptychError)]


def test_without_a_listener_a_step_does_nothing() -> None:
    step(1, 2, "files")


def test_a_listener_hears_every_step_and_only_inside() -> None:
    heard: list[tuple[int, int | None, str]] = []
    with reporting(lambda *told: heard.append(told)):
        step(1, 3, "files")
        step(2)
    step(3, 3, "files")
    assert heard == [(1, 3, "files"), (2, None, "")]


def test_the_inner_listener_replaces_the_outer_one_and_gives_way_again() -> None:
    heard: list[str] = []
    with reporting(lambda *_: heard.append("outer")):
        with reporting(lambda *_: heard.append("inner")):
            step(1)
        step(2)
    assert heard == ["inner", "outer"]


def test_a_cancelled_work_stops_at_its_next_step() -> None:
    stop = threading.Event()
    done = []
    with pytest.raises(Cancelled, match="cancelled"), reporting(cancelled=stop):
        for batch in range(5):
            step(batch, 5)
            done.append(batch)
            if batch == 1:
                stop.set()
    assert done == [0, 1]
    step(1)  # the event no longer counts


def test_a_deadline_stops_the_work() -> None:
    with pytest.raises(TimedOut, match="deadline"), reporting(timeout_s=0.01):
        while True:
            step(0)
            time.sleep(0.002)


def test_a_step_is_reported_before_it_raises() -> None:
    stop = threading.Event()
    stop.set()
    heard = []
    with pytest.raises(Cancelled), reporting(lambda *told: heard.append(told), cancelled=stop):
        step(7, 9, "files")
    assert heard == [(7, 9, "files")]


def test_an_error_of_the_listener_ends_the_block_and_is_seen() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"), reporting(broken):
        step(1)
    step(2)


def test_a_thread_sees_the_listener_only_with_a_copied_context() -> None:
    heard: list[int] = []
    with reporting(lambda done, *_: heard.append(done)):
        plain = threading.Thread(target=step, args=(1,))
        copied = threading.Thread(target=copy_context().run, args=(step, 2))
        for thread in (plain, copied):
            thread.start()
            thread.join()
    assert heard == [2]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_says_what_and_what_to_do(error: type[TriptychError]) -> None:
    raised = error("k is `0`.", "Use 1 to 100.")
    assert str(raised) == "k is `0`. Use 1 to 100."
    assert str(error("k is `0`.")) == "k is `0`."
    assert raised.as_dict() == {"error": {"type": error.__name__, "message": "k is `0`.", "hint": "Use 1 to 100."}}
    assert 1 <= error.exit_code <= 130
    assert error.__doc__


def test_exit_statuses_are_stable() -> None:
    assert {error.__name__: error.exit_code for error in ERRORS} == {
        "BadInput": 2,
        "Cancelled": 130,
        "EndpointError": 4,
        "Forbidden": 2,
        "MissingExtra": 3,
        "MissingWeights": 3,
        "NotFound": 2,
        "StaleId": 2,
        "StoreError": 4,
        "TimedOut": 6,
        "TriptychError": 1,
        "UnknownSystem": 2,
        "UnreadableFile": 2,
        "Unsupported": 5,
    }
