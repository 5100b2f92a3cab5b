"""Vectors from a model that runs elsewhere: OpenAI's `/embeddings`, and vLLM's form of it for pictures. No paper.

The endpoint and its model are named by the user (`encode_endpoint`, `encode_model`); its key stands in the environment
alone, as `TRIPTYCH_ENCODE_KEY`. Texts are sent many at once, as `input`. Where the model reads pictures
(`encode_images`), an item or query that shows something is sent as one chat message, its picture as a data URL, which
is what vLLM's pooling models take; OpenAI's own service has no such form. Instructions and templates are the server's:
an instruction of the query is put in front of its words, and nothing else is added.

Whatever is indexed with it leaves this machine. The licence of the vectors is that of the model there.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import BadInput, EndpointError, MissingWeights, Unsupported
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..endpoint import Endpoint
from ..lm_endpoint import data_url
from ..loading import encodable
from ..searchable import searchable_text
from ..stores.milvus import batched
from ._inputs import READS, shows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...manifests.registry import Card
    from ...settings import Settings
    from ..parts import Parts

KEY = "TRIPTYCH_ENCODE_KEY"
"""The environment variable of the key: the only place it is read from."""
BATCH = 64
"""Texts in one request."""
PATH = "/embeddings"
PROBE = "How long is a vector?"


class Client(Protocol):
    """What it is asked through: an `Endpoint`, or what stands in for one."""

    name: str

    def post(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to `bodies`, in their order."""


class EndpointEncoder(Encoder):
    """Dense encoder of the space `endpoint_encoder`, unit length. Safe from many threads.

    Args:
        client: where the model is.
        model: its name there.
        dim: of its vectors.
        images: whether it reads pictures.
        shorter: ask for vectors of `dim` numbers, of a model that has longer ones.

    Raises:
        BadInput: no model is named, or no dimension.
    """

    space = Space("endpoint_encoder", "dense", 1536)

    def __init__(self, client: Client, model: str, dim: int, *, images: bool = False, shorter: bool = False) -> None:
        if not model or dim < 1:
            told = f"The encoder's endpoint has the model `{model}` with `{dim}` dimensions."
            raise BadInput(told, "Set `encode_model` (TRIPTYCH_ENCODE_MODEL) to the name it has there.")
        self.space = Space("endpoint_encoder", "dense", dim)
        self.looks = self.mixed = images
        self.modalities: tuple[Modality, ...] = READS if images else Encoder.modalities
        self._client, self._model = client, model
        self._more = {"dimensions": dim} if shorter else {}

    @classmethod
    def load(cls, card: Card, parts: Parts) -> EndpointEncoder:
        """The model `encode_model` of `encode_endpoint`; how long its vectors are is asked, where `encode_dim` is 0.

        Raises:
            MissingWeights: no endpoint is named.
            BadInput: a setting that cannot be used.
            EndpointError, TimedOut: the endpoint is asked and gives no vector.
        """
        settings = parts.settings
        if not settings.encode_endpoint:
            hint = (
                "Set TRIPTYCH_ENCODE_ENDPOINT to its address (up to `/v1`) and TRIPTYCH_ENCODE_MODEL to its name there."
            )
            raise MissingWeights("`endpoint_encoder` has no model: `encode_endpoint` is ``.", hint)
        client = Endpoint(
            settings.encode_endpoint,
            os.environ.get(KEY, "").strip(),
            timeout_s=settings.lm_timeout,
            at_once=settings.lm_concurrency,
            per_minute=settings.lm_rpm,
        )
        asked = settings.encode_dim
        body = {"model": settings.encode_model, "input": [PROBE]}
        dim = asked or len(_rows(client.name, client.post(PATH, [body])[0], 1)[0])
        return cls(client, settings.encode_model, dim, images=settings.encode_images, shorter=bool(asked))

    @classmethod
    def tiny(cls, seed: int = 0) -> EndpointEncoder:
        """A stand-in without a network: which letters follow each other, mixed at random."""
        return cls(_Letters(seed), "tiny", _Letters.DIM)

    @classmethod
    def mark(cls, settings: Settings) -> str:
        """The model and the length of its vectors; not where it stands, which may change."""
        return f"{settings.encode_model} {settings.encode_dim}"

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> np.ndarray:
        """Float32 (n, dim) of unit length, in the order of `inputs`.

        Raises:
            Unsupported: a query without text and, where the model reads them, without media.
            UnreadableFile: a picture is gone or damaged.
            EndpointError, TimedOut: see `Endpoint.post`; or a vector has another length, `nan` or `inf`.
        """
        vectors = np.zeros((len(inputs), self.space.dim), np.float32)
        shown = [number for number in range(len(inputs)) if self.mixed and shows(inputs[number])]
        plain = sorted(set(range(len(inputs))) - set(shown))
        texts = {number: encodable(_text(inputs[number])) for number in plain}
        groups = [[number] for number in shown] + [list(part) for part in batched(plain, BATCH)]
        bodies = [self._of_media(inputs[number]) for number in shown]
        bodies += [{"input": [texts[number] for number in part]} for part in batched(plain, BATCH)]
        answers = self._client.post(PATH, [{"model": self._model, **body, **self._more} for body in bodies])
        for numbers, answer in zip(groups, answers, strict=True):
            vectors[numbers] = self._checked(_rows(self._client.name, answer, len(numbers)))
        return vectors

    def _of_media(self, given: Item | Query) -> dict[str, Any]:
        assert given.media is not None
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(given.media)}}]
        said = [_text(given)] if isinstance(given, Item) and given.modality != "page" else []
        if isinstance(given, Query):
            said = [part for part in (given.instruction, given.text) if part]
        words = encodable("\n".join(said))
        if words.strip():
            parts.append({"type": "text", "text": words})
        return {"messages": [{"role": "user", "content": parts}]}

    def _checked(self, rows: list[list[float]]) -> np.ndarray:
        for row in rows:
            if len(row) != self.space.dim:
                message = f"`{self._client.name}` gives vectors of `{len(row)}` numbers, not of `{self.space.dim}`."
                raise EndpointError(message, "Set `encode_dim`, or index anew: `triptych index PATH --rebuild`.")
        made = np.array(rows, np.float32)
        lengths = np.linalg.norm(made, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise EndpointError(f"`{self._client.name}` gives a vector with `nan`, `inf` or only zeros.", "Ask it why.")
        unit: np.ndarray = made / lengths
        return unit


def _text(given: Item | Query) -> str:
    if isinstance(given, Item):
        return searchable_text(given)
    if given.text is None and given.media is None:
        raise Unsupported("The query has no text and no media.", "Ask with words.")
    if given.text is None:
        raise Unsupported("The query has no text.", "Ask with words; for pictures, set `encode_images`.")
    return f"{given.instruction}\n{given.text}" if given.instruction else given.text


def _rows(name: str, answer: Mapping[str, Any], count: int) -> list[list[float]]:
    """The vectors of one answer, in the order of its request.

    Raises:
        EndpointError: it has not one for each input.
    """
    try:
        told = sorted(answer["data"], key=lambda one: one["index"])
        found = [[float(value) for value in one["embedding"]] for one in told]
        whole = [one["index"] for one in told] == list(range(count))
    except (KeyError, TypeError, ValueError):
        found, whole = [], False
    if not whole or not all(found):
        hint = "It is not compatible in this."
        raise EndpointError(f"`{name}` answers without `data` of `{count}` vectors.", hint, shape=True)
    return found


class _Letters:
    """Answers as an endpoint does."""

    DIM = 64
    name = "tiny"

    def __init__(self, seed: int) -> None:
        self._mix = np.random.default_rng(seed).normal(size=(4096, self.DIM))

    def post(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        from ...progress import step

        answers = []
        for done, body in enumerate(bodies):
            step(done, len(bodies), "prompts")
            rows = [{"index": place, "embedding": self._vector(text)} for place, text in enumerate(body["input"])]
            answers.append({"data": rows})
        return answers

    def _vector(self, text: str) -> list[float]:
        counts = np.zeros(4096)
        padded = f" {text}\n"
        for one, two in pairwise(padded):
            counts[(ord(one) * 131 + ord(two)) % 4096] += 1
        vector: list[float] = (np.sqrt(counts) @ self._mix).tolist()
        return vector
