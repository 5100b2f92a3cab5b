"""What callers may ask of each tool: one model per tool, shared by the MCP server and the LangChain tools.

The models carry the limits that a client can check by itself; `parse` turns what arrives into a model with errors in
our own words. Rules that need the library (does this id exist, is this budget large enough) are the session's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import BadInput
from .operations import MAX_K, MAX_QUERY
from .schemas import Given, Text

if TYPE_CHECKING:
    from ..settings import Settings

MAX_CANDIDATES = 200
MAX_LISTWISE = 20
MAX_CANDIDATE_CHARS = 8000
MAX_ECHO = 80
SHOWN_IN_MESSAGES = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")


Id = Annotated[str, Field(max_length=200)]
Question = Annotated[str, Field(min_length=1, max_length=MAX_QUERY, description="Question, in plain words.")]
Tokens = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, le=MAX_K)]
Under = Annotated[str, Field(description="Only sources whose uri starts so.")]
Kind = Literal["text", "page", "image", "audio", "video"]
Fields = Annotated[
    dict[str, Any],
    Field(description='Metadata, e.g. {"author": ["Ann", "Bob"], "modified": {"ge": "2024-05"}}.'),
]
Ids = Annotated[list[Id], Field(max_length=MAX_CANDIDATES, description="Ids from earlier answers.")]


class Candidate(Given):
    text: Text = Field(max_length=MAX_CANDIDATE_CHARS)


Texts = Annotated[list[Candidate], Field(max_length=MAX_CANDIDATES, description="Texts instead of ids.")]


class Arguments(BaseModel):
    """Base of all arguments: no unknown names. The text under a subclass' name is the tool's description, whose first
    sentence holds the words a user would type: assistants search tools by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InLibrary(Arguments):
    """Which library; laid over every tool's own arguments where one server holds several."""

    library: str | None = None


class RetrieveArguments(Arguments):
    """Find evidence in the user's files and documents that answers a question, with citations (file, page, time).
    Searches, reranks and compresses in one call; the answer stays inside max_tokens. Call this first."""

    query: Question
    max_tokens: Tokens | None = None
    k: Count | None = None
    uri_prefix: Under | None = None
    modality: Kind | None = None
    where: Fields | None = None


class SearchArguments(Arguments):
    """Search the user's files, documents, PDF pages, images and notes by words and by meaning. Lists whole passages,
    best first, uncompressed."""

    query: Question | None = None
    k: Count = 10
    max_tokens: Tokens | None = None
    uri_prefix: Under | None = None
    modality: Kind | None = None
    where: Annotated[dict[str, Any], Field(description="As for `retrieve`.")] | None = None
    like: Annotated[str, Field(description="Id or uri of a picture: find similar ones.")] | None = None


class RerankArguments(Arguments):
    """Rerank passages by how well they answer a query: ids from `search`, or texts of your own."""

    query: Question
    ids: Ids | None = None
    passages: Texts | None = None
    max_tokens: Tokens | None = None


class LLMRerankArguments(Arguments):
    """Rerank up to 20 passages by asking your own language model (MCP sampling): ids from `search`, or texts of your
    own. Slower than `rerank`; for hard questions."""

    query: Question
    ids: Annotated[list[Id], Field(max_length=MAX_LISTWISE)] | None = None
    passages: Annotated[list[Candidate], Field(max_length=MAX_LISTWISE)] | None = None
    max_tokens: Tokens | None = None


class CompressArguments(Arguments):
    """Compress passages, notes or long texts into a token budget, keeping what matters for the query. Kept words are
    verbatim."""

    query: Question | None = None
    ids: Ids | None = None
    passages: Texts | None = None
    max_tokens: Tokens | None = None


class FetchArguments(Arguments):
    """Fetch the full text of a passage or document part by its id, or only one span of it. Gives back what
    compression dropped."""

    id: Annotated[Id, Field(description="Id from an earlier answer.")]
    span: (
        Annotated[
            list[Annotated[int, Field(ge=0)]],
            Field(min_length=2, max_length=2, description="Start and end character."),
        ]
        | None
    ) = None
    max_tokens: Tokens | None = None


class ViewArguments(Arguments):
    """View the page, picture, table, chart or scan behind a passage id as an image; for sound, the address of its
    clip."""

    id: Id
    max_edge: Annotated[int, Field(ge=64, le=2048, description="Pixels.")] = 1024
    sound: Annotated[bool, Field(description="And the sound itself, if short.")] = False
    max_tokens: Tokens | None = None


class StatusArguments(Arguments):
    """Status of the library: files, documents and passages indexed, models, running jobs."""


class IndexArguments(Arguments):
    """Index files or folders, so that they can be searched; unchanged ones are skipped. Answers at once with a job
    id that `status` reports."""

    paths: Annotated[
        list[str],
        Field(min_length=1, max_length=100, description="Files or folders inside the roots."),
    ]
    prune: Annotated[bool, Field(description="Forget files that no longer exist.")] = False


class DeleteArguments(Arguments):
    """Delete passages from the library by id or by the start of their uri. The files themselves stay."""

    ids: Ids | None = None
    uri_prefix: Annotated[str, Field(min_length=1, description="Start of uris.")] | None = None


class OpenAISearchArguments(Arguments):
    """Search the user's files and documents; returns ids, titles and urls. Call `fetch` with an id to read one."""

    query: Question


class OpenAIFetchArguments(Arguments):
    """Fetch the full text of a search result by its id."""

    id: Annotated[Id, Field(description="Id of a search result.")]


Model = TypeVar("Model", bound=Arguments)


def description(model: type[Arguments]) -> str:
    """What assistants read about the tool that takes `model`.

    >>> description(StatusArguments)
    'Status of the library: files, documents and passages indexed, models, running jobs.'
    """
    return " ".join((model.__doc__ or "").split())


def schema(model: type[Arguments]) -> dict[str, Any]:
    """The JSON Schema of `model` as clients like it: no `$ref`, no titles, no `null` alternatives.

    >>> schema(StatusArguments)
    {'type': 'object', 'properties': {}, 'additionalProperties': False}
    """
    full = model.model_json_schema()
    plain = _plain(full, full.get("$defs", {}))
    order = ("type", "properties", "required", "additionalProperties")
    return {key: plain[key] for key in order if key in plain}


def input_schema(model: type[Arguments], settings: Settings, *, scoped: bool = True) -> dict[str, Any]:
    """`schema`, with this installation's default and largest budget, and with `library` where a tool is `scoped`."""
    made = schema(model)
    properties = {**made["properties"], **(schema(InLibrary)["properties"] if scoped else {})}
    if "max_tokens" in properties:
        limits = {"maximum": settings.max_tokens_cap, "default": min(settings.max_tokens, settings.max_tokens_cap)}
        properties["max_tokens"] = {**properties["max_tokens"], **limits}
    return {**made, "properties": properties}


def _plain(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_plain(part, definitions) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _plain(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    choices = [part for part in node.get("anyOf", ()) if part != {"type": "null"}]
    if len(choices) == 1:
        node = {**{key: value for key, value in node.items() if key != "anyOf"}, **choices[0]}
    return {
        key: {name: _plain(part, definitions) for name, part in value.items()}
        if key == "properties"
        else _plain(value, definitions)
        for key, value in node.items()
        if key not in ("title", "$defs")
        and (key != "default" or value is not None)
        and (key != "additionalProperties" or value is not True)
    }


def parse(model: type[Model], given: Mapping[str, Any]) -> Model:
    """`given` as a `model`.

    Lists and numbers that a client sent as JSON text are read as what they are.

    Raises:
        BadInput: an unknown name, a missing value, or one outside its limits; the message holds name and value.
    """
    fields = schema(model)["properties"]
    for name in given:
        if name not in fields:
            raise _unknown(name, list(fields))
    values = {name: _unquoted(value, fields[name]) for name, value in given.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, bool) and fields[name].get("type") == "integer":
            raise BadInput(f"Argument `{name}` is `{_short(value)}`.", f"It must be {expected(fields[name])}.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explained(error, model) from None


def _unquoted(value: Any, field: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or field.get("type") == "string" or "enum" in field:
        return value
    try:
        read = json.loads(value)
        json.dumps(read, ensure_ascii=False).encode()
    except ValueError:  # no JSON, or half of a surrogate pair in it
        return value
    return read


def explained(error: ValidationError, model: type[Arguments]) -> BadInput:
    """The first thing that is wrong, in our own words."""
    fields = schema(model)["properties"]
    first = error.errors(include_url=False)[0]
    *parents, last = first["loc"]
    if first["type"] == "extra_forbidden":
        return _unknown(str(last), list(Given.model_fields) if parents else list(fields))
    known = {*fields, *Given.model_fields}
    location = [part for part in first["loc"] if isinstance(part, int) or part in known]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    field: Mapping[str, Any] = {"properties": fields}
    for part in location:
        field = field.get("items", {}) if isinstance(part, int) else field.get("properties", {}).get(part, {})
    if first["type"] == "missing":
        return BadInput(f"Argument `{name}` is missing.", f"It must be {expected(field)}.")
    value = first["input"]
    if isinstance(value, str) and len(value) > MAX_ECHO:
        return BadInput(f"Argument `{name}` has `{len(value)}` characters.", f"It must be {expected(field)}.")
    return BadInput(f"Argument `{name}` is `{_short(value)}`.", f"It must be {expected(field)}.")


def _unknown(name: str, known: Sequence[str]) -> BadInput:
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Use: {', '.join(known) or 'none'}."
    return BadInput(f"Unknown argument `{_short(name)}`.", hint)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_ECHO else text[: MAX_ECHO - 1] + "…"


def expected(field: Mapping[str, Any]) -> str:
    """What a value must be, in words.

    >>> expected({"type": "integer", "minimum": 1, "maximum": 100})
    'a whole number from 1 to 100'
    """
    if "enum" in field:
        return "one of: " + ", ".join(field["enum"])
    kind = field.get("type", "value")
    low, high = (_limit(field, end) for end in ("min", "max"))
    reach = f" from {low:,} to {high:,}" if low is not None and high is not None else ""
    reach = reach or (
        f" of at least {low:,}" if low is not None else f" of at most {high:,}" if high is not None else ""
    )
    if kind == "integer":
        return f"a whole number{reach}"
    if kind == "string":
        return f"text{_of(reach, 'characters')}"
    if kind == "array":
        if low == high and low is not None:
            return f"a list of {low} values"
        return f"a list{_of(reach, 'values')}"
    return {"boolean": "true or false", "object": "an object"}.get(str(kind), "a value of the documented type")


def _of(reach: str, unit: str) -> str:
    return f"{reach.replace(' from ', ' of ')} {unit}" if reach else ""


def _limit(field: Mapping[str, Any], end: Literal["min", "max"]) -> int | None:
    found = [field[key] for key in SHOWN_IN_MESSAGES if key.startswith(end) and key in field]
    return int(found[0]) if found else None
