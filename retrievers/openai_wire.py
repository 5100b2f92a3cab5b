"""What an OpenAI-compatible endpoint answers, checked and read; `name` is what errors call the endpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ..errors import BadInput, EndpointError

FLOOR = 1.0
"""A candidate that is not among the tokens shown is given the log-probability of the least likely, less this."""


def counts(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    told = answer.get("usage")
    found = [told.get(name, 0) for name in ("prompt_tokens", "completion_tokens")] if isinstance(told, dict) else []
    if not found or not all(isinstance(one, int) and one >= 0 for one in found):
        return None
    return found[0], found[1]


def _odd(name: str, what: str) -> EndpointError:
    return EndpointError(f"`{name}` answers without `{what}`.", "It is not compatible in this.", shape=True)


def choice(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _odd(name, "choices")
    first: dict[str, Any] = choices[0]
    return first


def content(name: str, choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else 0
    if content is None:
        return ""
    if not isinstance(content, str):
        raise _odd(name, "choices[0].message.content")
    return content


def shown(name: str, answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Tokens that may come next, with their log-probabilities, likeliest first."""
    try:
        tops = choice(name, answer)["logprobs"]["content"][0]["top_logprobs"]
        found = [(str(one["token"]), float(one["logprob"])) for one in tops]
    except (KeyError, IndexError, TypeError, ValueError):
        found = []
    if not found or any(math.isnan(value) for _, value in found):
        raise _odd(name, "choices[0].logprobs.content[0].top_logprobs")
    return sorted(found, key=lambda one: -one[1])


def of_candidates(shown: Sequence[tuple[str, float]], names: Sequence[str]) -> list[float]:
    """Each candidate's log-probability.

    >>> of_candidates([(" Yes", -0.1), ("N", -2.5), ("yes", -3.0), ("maybe", -4.0)], ["Yes", "No", "Perhaps"])
    [-0.1, -2.5, -5.0]
    """
    found: dict[str, float] = {}
    for token, value in shown:
        word = token.strip()
        meant = [name for name in names if name == word] or [name for name in names if word and name.startswith(word)]
        if len(meant) > 1:
            raise BadInput(f"The candidates `{meant}` share a first token, `{word}`.", "Use ones that differ there.")
        if meant:
            found.setdefault(meant[0], value)
    return [found.get(name, shown[-1][1] - FLOOR) for name in names]


def echoed(name: str, answer: Mapping[str, Any], text: str, start: int) -> tuple[float, ...]:
    """Log-probabilities of the tokens of `text[start:]`."""
    told = choice(name, answer).get("logprobs")
    told = told if isinstance(told, dict) else {}
    tokens, values = told.get("tokens"), told.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        raise _odd(name, "choices[0].logprobs.token_logprobs")
    tokens = [str(token) for token in tokens]
    places = _places(tokens, told.get("text_offset"), text)
    ends = [place + max(1, len(token)) for place, token in zip(places, tokens, strict=True)]
    kept = [value for value, at, end in zip(values, places, ends, strict=True) if end > start and at < len(text)]
    if not kept or not all(value is None or isinstance(value, int | float) for value in kept):
        raise _odd(name, "an echo of the prompt in choices[0].logprobs")
    if None in kept:
        raise BadInput("The prompt is `` and a text's first token has no probability.", "Give a prompt.")
    return tuple(float(value) for value in kept)


def _places(tokens: Sequence[str], offsets: Any, text: str) -> list[int]:
    """Where each token begins in `text`.

    By the tokens themselves where they spell the text (a token in front that begins it does not move the others), else,
    where characters are split into several tokens, by what the endpoint says.
    """
    shift = "".join(tokens).find(text)
    if shift >= 0:
        return [place - shift for place in accumulate(map(len, tokens[:-1]), initial=0)]
    if isinstance(offsets, list) and len(offsets) == len(tokens) and all(isinstance(one, int) for one in offsets):
        return offsets
    return [len(text)] * len(tokens)
