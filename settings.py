"""Settings: which models each stage uses (a profile), where things live, and the limits.

Precedence, weakest first: the packaged `manifests/profiles.toml`, `profiles.toml` in the home folder, environment
variables `TRIPTYCH_<FIELD>`, keyword arguments of `Settings.load`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import BadInput

QUALITIES = ("default", "high")
_PATHS = ("home",)
_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_SWITCHES = ("archives", "encode_images", "rerank_strict")
_INTEGERS = (
    *("max_tokens", "max_tokens_cap", "depth", "rerank_depth", "threads"),
    *("lm_timeout", "lm_concurrency", "lm_rpm", "rerank_timeout", "encode_dim"),
    *("call_rate", "calls_at_once", "call_timeout", "message_bytes", "result_chars", "image_bytes"),
)


@dataclass(frozen=True)
class Settings:
    """One resolved configuration.

    Attributes:
        home: folder of `libraries/` and `weights/`.
        profile: the profile these settings came from.
        encoder, reranker, refiner: system ids (see `triptych systems`), `"none"` where a stage is off.
        lm: the weights of the small language model that perplexity systems use: their name, or the path of a gguf file
            or of a folder of safetensors or gguf with a tokenizer; a folder beside the caller is `./FOLDER`.
        lm_endpoint: `""` for that one, else the address of an OpenAI-compatible endpoint (usually up to `/v1`) whose
            model `lm_model` the prompted systems use; its key stands in the environment, as `TRIPTYCH_LM_KEY`.
        lm_can: some of `generate, logprobs, logits, images`; `""`: the endpoint is asked once.
        lm_prices: `"PROMPTS, ANSWERS"`, what a million tokens cost, for reports of the cost.
        lm_timeout: seconds that one attempt may take; a request with all its attempts takes at most three times that.
        lm_concurrency: requests under way at once.
        lm_rpm: requests begun in a minute, 0 for no limit.
        encode_endpoint: `""`, or the address of an OpenAI-compatible endpoint (usually up to `/v1`) whose model
            `encode_model` makes the vectors of the system `endpoint_encoder`; its key stands in the environment, as
            `TRIPTYCH_ENCODE_KEY`. Timeout, concurrency and pace are those of `lm_*`.
        encode_dim: how many numbers a vector there shall have; 0: as many as it gives.
        encode_images: whether that model reads pictures, sent as vLLM's pooling models take them.
        bm25: how the retriever `bm25` weighs: `""` as a library does, else by a formula of the literature with the
            collection's true mean length, such as `bm25plus` or `lucene k1=0.9 b=0.4` (see `retrievers.text.bm25`).
        pruning: how these decide about words: `"exact"` as published, `"fast"` an approximation.
        pruning_reach: what `llmlingua` prunes: `"edge"`, sentences at the edge of the budget, or `"all"`, the whole
            context, as published.
        speech: the weights that recognise speech in sound and video: `moonshine_tiny_en` (English) or `whisper_base`
            (99 languages, extra `whisper`).
        tags: the weights that name what pictures show.
        spaces: comma-separated ids of encoders whose spaces a library gains when its contents call for them.
        store_uri: `""` for Milvus Lite inside the library's folder, else the URI of a Milvus server.
        store_collection: `""` for collections of each library's own on that server, else how the names of those begin
            that all libraries share, each as a tenant of a random name.
        store_token: `user:password` or the key that this server asks for; never shown, logged or written.
        tokenizer: what budgets are counted in.
        image_tokens: the formula that pictures are counted by: `anthropic`, `anthropic_area`, `openai_tiles`,
            `openai_patches`, `openai_mini`, `openai_nano`, `gemini` or `gemini_3` (see `tools.image_cost`).
        max_tokens, max_tokens_cap: default and largest budget of tools that return evidence.
        depth: how many hits are searched; the first `rerank_depth` of them are reranked.
        rerank_strict: a reranker whose language model fails, or gives no usable verdict, is an error; otherwise the
            best order so far stands, and a note says so.
        rerank_timeout: seconds after which a reranker that asks an endpoint begins no further call, 0 for no limit;
            what it had ordered by then stands. A call's own deadline shortens it.
        protect: regular expressions, one a line: what they match is never torn by compression, and reported where it
            is lost.
        quality: `"default"` keeps the latency bar, `"high"` takes the better and slower systems.
        precision: `"float32"`, `"bfloat16"`, `"int8"` (the text encoder; other models as in `"auto"`), or `"auto"`:
            each model in the fastest of these that it has and the processor computes in.
        device: what models compute on, `"cpu"` or `"cuda"` (a graphics card).
        threads: how many threads models compute with, 0 for torch's own choice.
        call_rate: calls that one client of the MCP server may make in a minute, a tenth of them at once; 0 for no
            limit.
        calls_at_once: calls that the server takes in at the same time; one more is refused.
        call_timeout: seconds after which a call is given up, 0 for none.
        message_bytes: the longest message a client may send: a line on stdio, a body over HTTP.
        result_chars: the longest text of one result.
        image_bytes: the largest picture or sound in one result.
        archives: what is in archives (zip, tar, gzip, bzip2, xz) is indexed too; an archive that a library has opened
            once is opened again whatever this says.
    """

    home: Path
    profile: str = "embedded"
    encoder: str = "all_minilm_l6_v2"
    reranker: str = "maxsim"
    refiner: str = "llmlingua"
    lm: str = "smollm2_135m_instruct"
    lm_endpoint: str = ""
    lm_model: str = ""
    lm_can: str = ""
    lm_prices: str = ""
    lm_timeout: int = 60
    lm_concurrency: int = 4
    lm_rpm: int = 0
    encode_endpoint: str = ""
    encode_model: str = ""
    encode_dim: int = 0
    encode_images: bool = False
    bm25: str = ""
    pruning: str = "exact"
    pruning_reach: str = "edge"
    speech: str = "moonshine_tiny_en"
    tags: str = "image_tags"
    spaces: str = ""
    store_uri: str = ""
    store_collection: str = ""
    store_token: str = field(default="", repr=False)
    tokenizer: str = "o200k_base"
    image_tokens: str = "anthropic"
    max_tokens: int = 6000
    max_tokens_cap: int = 20000
    depth: int = 50
    rerank_depth: int = 25
    rerank_strict: bool = False
    rerank_timeout: int = 60
    protect: str = ""
    quality: str = "default"
    precision: str = "auto"
    device: str = "cpu"
    threads: int = 0
    call_rate: int = 600
    calls_at_once: int = 32
    call_timeout: int = 120
    message_bytes: int = 16_777_216
    result_chars: int = 160_000
    image_bytes: int = 1_000_000
    archives: bool = False

    @property
    def further(self) -> tuple[str, ...]:
        """The ids in `spaces`."""
        return tuple(name.strip() for name in self.spaces.split(",") if name.strip() not in ("", "none"))

    @property
    def protected(self) -> tuple[str, ...]:
        """The patterns in `protect`."""
        return tuple(line.strip() for line in self.protect.splitlines() if line.strip())

    @property
    def lm_path(self) -> Path | None:
        """What `lm` is the path of; None where it is the name of weights."""
        is_path = any(mark in self.lm for mark in "/\\") or self.lm.endswith(".gguf")
        return Path(self.lm).expanduser() if is_path else None

    @property
    def libraries(self) -> Path:
        """The folder that holds named libraries."""
        return self.home / "libraries"

    @property
    def weights(self) -> Path:
        """The folder that holds pulled model files."""
        return self.home / "weights"

    @classmethod
    def load(cls, profile: str | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings of `profile` (default: `TRIPTYCH_PROFILE`, else `embedded`) with everything laid over it.

        Raises:
            BadInput: an unknown profile or field, or a value of the wrong type.
        """
        environ = os.environ if environ is None else environ
        home = Path(overrides.pop("home", None) or environ.get("TRIPTYCH_HOME") or _default_home()).expanduser()
        name = profile or environ.get("TRIPTYCH_PROFILE") or "embedded"
        table = _profile_table(home)
        if name not in table:
            raise BadInput(f"Unknown profile `{name}`.", f"Use one of: {', '.join(sorted(table))}.")
        given = {key: value for key, value in overrides.items() if value is not None}
        laid_over = {**_from_environment(environ), **given}
        chosen: dict[str, Any] = {**_of_quality(table[name], laid_over), **laid_over}
        return replace(cls(home=home, profile=name), **{key: _typed(key, value) for key, value in chosen.items()})


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("triptych", appauthor=False)


def _profile_table(home: Path) -> dict[str, dict[str, Any]]:
    packaged = tomllib.loads((resources.files(__package__) / "manifests" / "profiles.toml").read_text("utf-8"))
    own = home / "profiles.toml"
    if not own.is_file():
        return packaged
    try:
        extra = tomllib.loads(own.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"`profiles.toml` in the home folder is not valid TOML: {error}."
        raise BadInput(message, "Mend or remove it.") from None
    for name, profile in extra.items():
        if not isinstance(profile, dict):
            message = f"`{name}` in the home folder's `profiles.toml` is not a profile."
            raise BadInput(message, "Settings stand under a heading such as `[embedded]`.")
    return {name: {**packaged.get(name, {}), **extra.get(name, {})} for name in {*packaged, *extra}}


def _of_quality(profile: Mapping[str, Any], laid_over: Mapping[str, Any]) -> dict[str, Any]:
    """The profile's settings for the quality asked for: `[PROFILE.high]` over `[PROFILE]`.

    Raises:
        BadInput: a quality other than `QUALITIES`.
    """
    quality = str(laid_over.get("quality") or profile.get("quality") or QUALITIES[0])
    if quality not in QUALITIES:
        raise BadInput(f"Unknown quality `{quality}`.", f"Use one of: {', '.join(QUALITIES)}.")
    plain = {key: value for key, value in profile.items() if not isinstance(value, dict)}
    better = profile.get(quality, {}) if quality != QUALITIES[0] else {}
    return {**plain, **better}


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    names = {one.name for one in fields(Settings)} - {"home", "profile"}
    return {name: environ[f"TRIPTYCH_{name.upper()}"] for name in names if environ.get(f"TRIPTYCH_{name.upper()}")}


def _typed(name: str, value: Any) -> Any:
    known = [one.name for one in fields(Settings)]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise BadInput(f"Unknown setting `{name}`.", f"Did you mean `{near[0]}`?" if near else "")
    if name in _PATHS:
        return Path(value)
    if name in _SWITCHES:
        if str(value).lower() not in _FLAGS:
            raise BadInput(f"Setting `{name}` is `{value}`.", "It must be 1 or 0.")
        return _FLAGS[str(value).lower()]
    if name not in _INTEGERS:
        return str(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise BadInput(f"Setting `{name}` is `{value}`.", "It must be a whole number.") from None
    if number < 0:
        raise BadInput(f"Setting `{name}` is `{number}`.", "It cannot be negative.")
    return number
