"""Language models as the prompted systems and the perplexity refiners see them: four abilities, declared in `can`.

A prompt is a list of parts, text or `MediaRef`, joined in order; with `Turn`s in it, it is a conversation. `generate`
and `next_token_logits` ask the model to answer: a local model with a chat template gets a prompt without turns as one
user turn. `logprobs` measures how likely a text is as the plain continuation of another: no template.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import BadInput, Unsupported
from .base import MediaRef

if TYPE_CHECKING:
    from .lm_transformers import TransformersLM as TransformersLM


@dataclass(frozen=True)
class Turn:
    """What one speaker of a conversation says. A last turn of the assistant's is its answer's beginning: it goes on."""

    role: Literal["system", "user", "assistant"]
    text: str


Part = str | MediaRef | Turn
Prompt = Sequence[Part]
Ability = Literal["generate", "logprobs", "logits", "images"]


@dataclass(frozen=True)
class LogProbs:
    """Natural log-probabilities of a target's tokens; `sum` is that of the whole target, 0 for an empty one."""

    tokens: tuple[float, ...]

    @property
    def sum(self) -> float:
        return float(sum(self.tokens))

    @property
    def mean(self) -> float:
        """Per token; 0 for an empty target."""
        return self.sum / len(self.tokens) if self.tokens else 0.0


class LM:
    """A language model. What is not in `can` raises `Unsupported`; the answers stand in the order of the prompts."""

    can: frozenset[Ability] = frozenset()

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Greedy answers of at most `max_tokens` tokens, each ending before the first of `stop` that appears."""
        raise _lacks(self, "generate")

    def logprobs(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[LogProbs]:
        """log P(target | prompt) per token, for each pair."""
        raise _lacks(self, "logprobs")

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        """Float32 (len(prompts), len(candidates)): the logit of each candidate's first token as the next token."""
        raise _lacks(self, "logits")

    def top_next(self, prompts: Sequence[Prompt], k: int) -> list[list[str]]:
        """At most `k` texts of the likeliest next tokens, best first, of each prompt as a plain text (no template)."""
        raise _lacks(self, "logits")


def require(lm: LM, *needs: Ability) -> None:
    """Called when a system is built: raises `Unsupported` unless `lm` can do all of `needs`."""
    for need in needs:
        if need not in lm.can:
            raise _lacks(lm, need)


def _lacks(lm: LM, need: Ability) -> Unsupported:
    return Unsupported(
        f"`{type(lm).__name__}` cannot do `{need}`.", f"It can: {', '.join(sorted(lm.can)) or 'nothing'}."
    )


class ScriptedLM(LM):
    """A language model that follows a script: for tests and offline demonstrations.

    `generate` gives `answers` in turn, or what `answers(prompt)` says. `logprobs` takes words for tokens: a word that
    the prompt holds has log-probability -1, any other -5. A candidate's logit is how often the prompt holds it.

    Args:
        answers: texts, used up one per prompt, or a function of the prompt's text.
        can: the abilities it claims.

    Attributes:
        calls: `(method, number of prompts)` of every call so far.
    """

    def __init__(
        self,
        answers: Sequence[str] | Callable[[str], str] = (),
        can: Sequence[Ability] = ("generate", "logprobs", "logits", "images"),
    ) -> None:
        self.can = frozenset(can)
        self.calls: list[tuple[str, int]] = []
        self._answers = answers if callable(answers) else deque(answers)

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Scripted answers, cut at `max_tokens` words.

        Raises:
            BadInput: the script has run out.
        """
        self._called("generate", "generate", prompts)
        return [" ".join(cut(self._answer(prompt), stop).split(" ")[:max_tokens]) for prompt in prompts]

    def logprobs(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[LogProbs]:
        self._called("logprobs", "logprobs", prompts)
        known = [set(_words(prompt)) for prompt in prompts]
        return [
            LogProbs(tuple(-1.0 if word in words else -5.0 for word in target.casefold().split()))
            for words, target in zip(known, targets, strict=True)
        ]

    def next_token_logits(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> np.ndarray:
        self._called("logits", "next_token_logits", prompts)
        counts = [[float(_words(prompt).count(name.casefold().strip())) for name in candidates] for prompt in prompts]
        return np.array(counts, np.float32).reshape(len(prompts), len(candidates))

    def top_next(self, prompts: Sequence[Prompt], k: int) -> list[list[str]]:
        """The prompt's own words, those that stand in it most often first."""
        self._called("logits", "top_next", prompts)
        return [[f" {word}" for word, _ in Counter(_words(prompt)).most_common(k)] for prompt in prompts]

    def _called(self, need: Ability, method: str, prompts: Sequence[Prompt]) -> None:
        require(self, need)
        self.calls.append((method, len(prompts)))

    def _answer(self, prompt: Prompt) -> str:
        if callable(self._answers):
            return self._answers(" ".join(_texts(prompt)))
        if not self._answers:
            raise BadInput(f"The script has no answer left for `{prompt}`.", "Give one answer per prompt.")
        return self._answers.popleft()


def joined(prompt: Prompt) -> str:
    """The text of a prompt for a model without eyes: a `MediaRef` in it is `Unsupported`.

    A conversation is written as a transcript: `User: …`, a blank line between turns, and `Assistant:` to be answered.
    """
    for part in prompt:
        if isinstance(part, MediaRef):
            raise Unsupported(
                f"The prompt holds media of type `{part.mime}`.", "Use a language model that reads images."
            )
    if any(isinstance(part, Turn) for part in prompt):
        return _transcript(turns(prompt))
    return "".join(_texts(prompt))


def turns(prompt: Prompt) -> list[Turn]:
    """A prompt as a conversation: what stands outside of turns is said by the user.

    >>> turns(["Who ", "are you?"])
    [Turn(role='user', text='Who are you?')]
    """
    said: list[Turn] = []
    plain: list[str] = []
    for part in (*prompt, None):
        if isinstance(part, str):
            plain.append(part)
            continue
        if plain:
            said.append(Turn("user", "".join(plain)))
            plain = []
        if isinstance(part, Turn):
            said.append(part)
    return said or [Turn("user", "")]


def _transcript(said: Sequence[Turn]) -> str:
    spoken = [turn.text if turn.role == "system" else f"{turn.role.capitalize()}: {turn.text}" for turn in said]
    return "\n\n".join(spoken if said[-1].role == "assistant" else [*spoken, "Assistant:"])


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` before the first of `stop`.

    >>> cut("yes. Because", [".", "B"])
    'yes'
    """
    return text[: min((text.find(mark) for mark in stop if mark in text), default=len(text))]


def _words(prompt: Prompt) -> list[str]:
    return " ".join(_texts(prompt)).casefold().split()


def _texts(prompt: Prompt) -> list[str]:
    return [part.text if isinstance(part, Turn) else part for part in prompt if isinstance(part, str | Turn)]


def __getattr__(name: str) -> Any:
    # `lm_transformers` stands on this module, so the name that many import from here is looked up late.
    if name != "TransformersLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .lm_transformers import TransformersLM

    return TransformersLM
