"""A language model behind an OpenAI-compatible endpoint: chat completions, and completions where these give echoes.

Answers come from `/chat/completions`, so the endpoint applies the model's template. Log-probabilities of a text come
from `/completions` with `echo`, which only some servers have. What one endpoint has is set by `lm_can`, or found out
once by four or five small requests; that it takes a picture and does not look at it cannot be found out.
"""

from __future__ import annotations

import os
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ..errors import BadInput, EndpointError, Unsupported
from . import openai_wire
from .base import MediaRef
from .endpoint import Endpoint
from .lm import LM, Ability, LogProbs, Prompt, Turn, cut, joined, require
from .loading import encodable

if TYPE_CHECKING:
    from ..settings import Settings

KEY = "TRIPTYCH_LM_KEY"
"""The environment variable of the key: the only place it is read from."""
TOPS = (20, 5)
"""How many of the likeliest next tokens are asked for: the most that services give, else what fewer give."""
STOPS = 4
"""As many `stop` texts as services take; all of them are looked for here as well."""
IMAGE_EDGE = 1024
"""Pixels of the longer side of a picture."""
PROBE = "Say yes."


@dataclass(frozen=True)
class Usage:
    """What an endpoint was asked for so far.

    Attributes:
        requests, retries: attempts sent, and how many of these were repeated ones.
        prompt_tokens, completion_tokens: as the endpoint counts them.
        uncounted: answers that came without such counts.
        cost: of these tokens by the setting `lm_prices`, in its currency; None without prices.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float | None = None


class EndpointLM(LM):
    """A model of an OpenAI-compatible endpoint, at temperature 0. Safe from many threads.

    Whether the same prompt always has the same answer is up to the endpoint.

    Args:
        can: what the endpoint has; nothing is asked when this is built.
        prices: of a million tokens of prompts and of answers.
        top: how many next tokens are asked for.

    Raises:
        BadInput: no model is named.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        can: Sequence[Ability] = ("generate",),
        prices: tuple[float, float] | None = None,
        top: int = TOPS[0],
    ) -> None:
        if not model:
            raise BadInput(f"No model is named for `{endpoint.name}`.", "Set `lm_model` (TRIPTYCH_LM_MODEL).")
        self.can = frozenset(can)
        self._endpoint = endpoint
        self._model = model
        self._prices = prices
        self._top = top
        self._limit = "max_tokens"
        self._lock = threading.Lock()
        self._usage = Usage()

    @classmethod
    def load(cls, settings: Settings, environ: Mapping[str, str] | None = None) -> EndpointLM:
        """The model `lm_model` of `lm_endpoint`, with the key in `TRIPTYCH_LM_KEY`; what it can is asked, if not set.

        Raises:
            BadInput: a setting that cannot be used.
            EndpointError, TimedOut: the endpoint is asked and gives no answer.
        """
        endpoint = Endpoint(
            settings.lm_endpoint,
            (os.environ if environ is None else environ).get(KEY, "").strip(),
            timeout_s=settings.lm_timeout,
            at_once=settings.lm_concurrency,
            per_minute=settings.lm_rpm,
        )
        made = cls(endpoint, settings.lm_model, abilities(settings.lm_can), prices(settings.lm_prices))
        if not settings.lm_can:
            made._ask_what_it_can()
        return made

    def __repr__(self) -> str:
        return f"EndpointLM({self._model!r} of {self._endpoint.name!r}, can {', '.join(sorted(self.can))})"

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost so far."""
        with self._lock:
            told = self._usage
        spent = (told.prompt_tokens, told.completion_tokens)
        cost = None if self._prices is None else sum(p * n for p, n in zip(self._prices, spent, strict=True)) / 1e6
        return replace(told, requests=self._endpoint.requests, retries=self._endpoint.retries, cost=cost)

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Answers at temperature 0; an answer without text, such as a refusal or a call of a tool, is empty.

        Raises:
            Unsupported: media for a model without eyes, or a begun answer for an endpoint that does not go on with it.
            EndpointError, TimedOut: see `Endpoint.post`.
        """
        if max_tokens < 1:
            raise BadInput(f"max_tokens is `{max_tokens}`.", "Ask for at least 1.")
        stops = {"stop": list(stop[:STOPS])} if stop else {}
        answers = [openai_wire.choice(self._endpoint.name, one) for one in self._chat(prompts, max_tokens, **stops)]
        return [cut(openai_wire.content(self._endpoint.name, answer), stop) for answer in answers]

    def logprobs(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[LogProbs]:
        """log P(target | prompt) per token of the endpoint's own; one that spans the border counts to the target.

        Raises:
            BadInput: as many targets as prompts are not given, or a target follows on nothing.
            Unsupported, EndpointError, TimedOut: as `generate`.
        """
        require(self, "logprobs")
        if len(prompts) != len(targets):
            raise BadInput(f"`{len(targets)}` targets for `{len(prompts)}` prompts.", "Give one for each.")
        before = [encodable(joined(prompt)) for prompt in prompts]
        texts = [prompt + encodable(target) for prompt, target in zip(before, targets, strict=True)]
        asked = [n for n, target in enumerate(targets) if target]
        found = [LogProbs(())] * len(targets)
        for n, answer in zip(asked, self._echo([texts[n] for n in asked]), strict=True):
            found[n] = LogProbs(openai_wire.echoed(self._endpoint.name, answer, texts[n], len(before[n])))
        return found

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        """Float32 (len(prompts), len(candidates)): **log-probabilities**, and only of what the endpoint shows.

        It shows the likeliest tokens, at most 20. The likeliest of these that is a candidate, or its beginning, counts
        for it; white space in front is ignored. A candidate that is not among them is given the log-probability of the
        least likely token shown, less 1: where none is among them, all are equal.

        Raises:
            BadInput: a candidate is empty, or two cannot be told apart.
            Unsupported, EndpointError, TimedOut: as `generate`.
        """
        require(self, "logits")
        names = [candidate.lstrip() for candidate in candidates]
        if not all(names) or len(set(names)) < len(names):
            raise BadInput(f"The candidates `{list(candidates)}` cannot be told apart.", "Use different words.")
        answers = self._chat(prompts, 1, logprobs=True, top_logprobs=self._top)
        rows = [openai_wire.of_candidates(openai_wire.shown(self._endpoint.name, one), names) for one in answers]
        return np.array(rows, np.float32).reshape(len(prompts), len(names))

    def top_next(self, prompts: Sequence[Prompt], k: int) -> list[list[str]]:
        """No endpoint does this.

        Raises:
            Unsupported: always.
        """
        raise Unsupported("`EndpointLM` cannot list what follows a plain text.", "Use a local language model.")

    def _chat(self, prompts: Sequence[Prompt], max_tokens: int, **more: Any) -> list[dict[str, Any]]:
        told = [self._messages(prompt) for prompt in prompts]
        bodies = [{"model": self._model, "messages": one, "temperature": 0, **more, **_begun(one)} for one in told]
        try:
            return self._ask("/chat/completions", [{**body, self._limit: max_tokens} for body in bodies])
        except EndpointError as error:
            if error.status in (400, 422) and "max_completion_tokens" in error.message and self._limit == "max_tokens":
                self._limit = "max_completion_tokens"  # newer models of one service know it by this name only
                return self._chat(prompts, max_tokens, **more)
            if error.status in (400, 422) and any(_begun(one) for one in told):
                message = f"The endpoint does not go on with a begun answer. {error.message}"
                raise Unsupported(message, "Use a system that begins none, or another endpoint.") from None
            raise

    def _echo(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        # One token more than nothing: to some servers 0 means no limit.
        more = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        return self._ask("/completions", [{"model": self._model, "prompt": text, **more} for text in texts])

    def _ask(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answers = self._endpoint.post(path, bodies)
        counts = [openai_wire.counts(answer) for answer in answers]
        with self._lock:
            old = self._usage
            self._usage = replace(
                old,
                prompt_tokens=old.prompt_tokens + sum(one[0] for one in counts if one),
                completion_tokens=old.completion_tokens + sum(one[1] for one in counts if one),
                uncounted=old.uncounted + counts.count(None),
            )
        return answers

    def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Turns as they are; what stands outside of turns is said by the user, pictures as data URLs."""
        said: list[dict[str, Any]] = []
        open_parts: list[dict[str, Any]] = []
        for part in prompt:
            if isinstance(part, Turn):
                said += _spoken(open_parts)
                open_parts = []
                said.append({"role": part.role, "content": encodable(part.text)})
            elif isinstance(part, MediaRef):
                require(self, "images")
                open_parts.append({"type": "image_url", "image_url": {"url": data_url(part)}})
            else:
                open_parts.append({"type": "text", "text": encodable(part)})
        return [*said, *_spoken(open_parts)] or [{"role": "user", "content": ""}]

    def _ask_what_it_can(self) -> None:
        """Sets `can`: what a small request is answered to as it should be. That there is an answer at all is needed."""
        self.generate([[PROBE]], 1)
        found: set[Ability] = {"generate"}
        self.can = frozenset(get_args(Ability))
        for top in TOPS:
            self._top = top
            if _works(lambda: self.next_token_logits([[PROBE]], ["yes"])):
                found.add("logits")
                break
        if _works(lambda: self.logprobs([[PROBE]], [" Yes, I do."])):
            found.add("logprobs")
        picture = {"type": "image_url", "image_url": {"url": _small_picture()}}
        message = {"role": "user", "content": [{"type": "text", "text": PROBE}, picture]}
        body = {"model": self._model, "messages": [message], "temperature": 0, self._limit: 1}
        if _works(lambda: self._ask("/chat/completions", [body])):
            found.add("images")
        self.can = frozenset(found)


def _works(ask: Callable[[], object]) -> bool:
    """Whether a request is answered as it should be.

    Raises:
        EndpointError, TimedOut: that cannot be told: the endpoint is gone, busy, or wants another key.
    """
    try:
        ask()
    except (BadInput, Unsupported):
        return False
    except EndpointError as error:
        if error.status in (None, 401, 403, 408, 429, 502, 503, 504, 529) and not error.shape:
            raise
        return False
    return True


def abilities(told: str) -> list[Ability]:
    """The setting `lm_can`: words with commas between them; `generate` alone for none.

    >>> abilities("generate, logits")
    ['generate', 'logits']

    Raises:
        BadInput: a word that is no ability.
    """
    words = [word.strip() for word in told.split(",") if word.strip()]
    known: dict[str, Ability] = {word: word for word in get_args(Ability)}
    for word in words:
        if word not in known:
            raise BadInput(f"Setting `lm_can` names `{word}`.", f"Use some of: {', '.join(known)}.")
    return [known[word] for word in words] or ["generate"]


def prices(told: str) -> tuple[float, float] | None:
    """The setting `lm_prices`: what a million tokens of prompts and of answers cost.

    >>> prices("0.15, 0.6")
    (0.15, 0.6)

    Raises:
        BadInput: these are not two numbers from 0 upwards.
    """
    if not told.strip():
        return None
    try:
        one, other = (float(part) for part in told.split(","))
    except ValueError:
        one = other = float("nan")
    if not (0 <= one < float("inf") and 0 <= other < float("inf")):
        raise BadInput(f"Setting `lm_prices` is `{told}`.", "Give two numbers: `PROMPTS, ANSWERS` per million tokens.")
    return one, other


def data_url(media: MediaRef) -> str:
    """What `media` shows, as the address of a PNG or JPEG in itself; `media.uri` is a path that the caller has allowed.

    Raises:
        UnreadableFile: it shows nothing, or is damaged.
    """
    from .readers.picture import picture

    path = Path(media.uri)
    seen = picture(path, path.name, media.mime, media.page, IMAGE_EDGE, start_s=media.start_s, end_s=media.end_s)
    return f"data:{seen.mime};base64,{b64encode(seen.image).decode()}"


def _small_picture() -> str:
    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _spoken(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One message of the user's: plain text where it has no pictures, which every endpoint takes."""
    if not parts:
        return []
    if all(part["type"] == "text" for part in parts):
        return [{"role": "user", "content": "".join(part["text"] for part in parts)}]
    return [{"role": "user", "content": list(parts)}]


def _begun(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How an endpoint is told to go on with the answer that ends a conversation (vLLM's names for it)."""
    begun = messages[-1]["role"] == "assistant"
    return {"add_generation_prompt": False, "continue_final_message": True} if begun else {}
