"""OpenTelemetry spans around a call and its stages. Without an exporter they cost next to nothing.

`mcp` opens a span for each message; ours lie below it. Attributes are names, counts and milliseconds: never a query, a
path or a word of a document. The stages tell how long they took, not when they began, so they are drawn one after
another from the call's beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import TriptychError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from ..tools.answers import Answer

NAME = "triptych"


def tracer() -> Tracer:
    """Ours, of whatever provider the process has."""
    from opentelemetry import trace

    return trace.get_tracer(NAME)


def traced(tool: str, work: Callable[[], Answer]) -> Answer:
    """The answer of `work`, in a span; what it raises is noted by its type alone."""
    from opentelemetry.trace import StatusCode

    begun = time.time_ns()
    with tracer().start_as_current_span(
        f"triptych.{tool}", record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            answer = work()
        except Exception as error:
            known = type(error).__name__ if isinstance(error, TriptychError) else "internal"
            span.set_attribute("error.type", known)
            span.set_status(StatusCode.ERROR)
            raise
        if span.is_recording():
            span.set_attributes(facts(answer.data, answer.trace))
            _stages(answer.trace.get("ms", {}), begun)
        return answer


def facts(data: Mapping[str, Any], trace: Mapping[str, Any]) -> dict[str, int]:
    """What may be known of an answer: passages kept and dropped, tokens asked for, used and saved."""
    tokens = trace.get("tokens") or {}
    counted = {f"triptych.tokens.{name}": tokens.get(name) for name in ("budget", "used", "original", "saved")}
    passages = data.get("passages")
    counted["triptych.passages"] = len(passages) if isinstance(passages, list) else None
    counted["triptych.dropped"] = data.get("dropped")
    return {name: value for name, value in counted.items() if isinstance(value, int)}


def _stages(ms: Mapping[str, float], begun: int) -> None:
    at = begun
    for stage, took in ms.items():
        if stage != "total":
            span = tracer().start_span(f"triptych.stage.{stage}", start_time=at)
            at += int(took * 1e6)
            span.end(at)
