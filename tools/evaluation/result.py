"""What a measurement is, as a file: one schema for `triptych eval`, the benchmarks, and every figure in the docs.

A result has arms. An arm is one system under one setting, with its figures and, where there are queries, the value of
each query, so that anybody can test a difference again. An arm that failed or ran out of time stands there with the
reason; none is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import BadInput

SCHEMA = 1
DIGITS = 4
_NAME = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataInfo(_Part):
    """The data of a result.

    Attributes:
        name: the folder's or file's name.
        sha256: over the bytes of the files that were read.
        sizes: how many of what (`{"queries": 300, "passages": 5183}`), after `--limit`.
        synthetic: made up or copied to reach a size: good for cost, never for quality.
    """

    name: str
    sha256: str
    sizes: dict[str, int] = {}
    synthetic: bool = False


class Arm(_Part):
    """One system under one setting.

    Attributes:
        system: an id of ours or a rival's name with its version.
        settings: what tells this arm from others of the same system (`{"rate": 0.5}`, `{"items": 10000}`).
        status: `"timeout"` keeps the figures reached by then; `"failed"` and `"timeout"` have a `reason`.
        metrics: name → figure; shares and scores lie between 0 and 1, times are milliseconds unless the name says else.
        per_query: metric → query id → value; a query that the metric is not defined for is None.
    """

    system: str
    settings: dict[str, str | int | float | bool] = {}
    status: Literal["ok", "failed", "timeout"] = "ok"
    reason: str | None = None
    metrics: dict[str, float | int | None] = {}
    per_query: dict[str, dict[str, float | None]] = {}

    @property
    def label(self) -> str:
        """System and settings in one line."""
        told = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.system} ({told})" if told else self.system


class Comparison(_Part):
    """A paired test of one metric between two arms, on the queries that both have (see `compare.paired`).

    Attributes:
        arm, baseline: labels of arms.
        difference: mean of arm minus baseline.
        interval: 95 % bootstrap interval of the difference.
        p: two-sided, of the paired randomisation test.
    """

    arm: str
    baseline: str
    metric: str
    n: int
    difference: float
    interval: tuple[float, float]
    p: float


class Result(_Part):
    """One result file.

    Attributes:
        name: its file name without `.json`: lower case, `_` between words.
        kind: what made it (`"retrieval"`, `"rerank"`, `"compress"`, `"pipeline"`, or a group of `make bench`).
        title: one line for people.
        command: makes it again; folders are named by what they hold, never by their path.
        environment: see `environment.environment`.
        notes: what a reader must know to read the figures rightly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: int = Field(default=SCHEMA, alias="schema")
    name: str
    kind: str
    title: str
    command: str
    seed: int
    data: tuple[DataInfo, ...] = ()
    environment: dict[str, Any]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()

    def arm(self, system: str, **settings: Any) -> Arm:
        """The one arm of `system` whose settings include `settings`; `KeyError` when there is none or several."""
        found = [arm for arm in self.arms if arm.system == system and settings.items() <= arm.settings.items()]
        if len(found) != 1:
            raise KeyError(f"{len(found)} arms of {system} {settings} in {self.name}")
        return found[0]

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable, figures rounded to 4 digits after the point."""
        return {key: _rounded(value) for key, value in self.model_dump(mode="json", by_alias=True).items()}

    def write(self, folder: Path) -> Path:
        """Write `folder/NAME.json` in one step; answers its path.

        Raises:
            BadInput: a name that is no file name of this kind.
        """
        if not _NAME.fullmatch(self.name):
            raise BadInput(f"The result's name is `{self.name}`.", "Use lower case, digits and `_`.")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        scratch = path.with_suffix(".part")
        scratch.write_text(_text(self.as_dict()) + "\n", "utf-8")
        return scratch.replace(path)

    @classmethod
    def read(cls, path: Path) -> Result:
        """The result in a file; anything else is `BadInput` that says what is wrong with it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BadInput(f"`{path.name}` is no result: {where}: {first['msg']}.", "Make it again.") from None


def file_name(*words: str) -> str:
    """The name of a result made of `words`, such as its kind and its data's name.

    A word without an ASCII letter or digit is told by its hash.

    >>> file_name("rerank", "trec_dl19", "run.bm25")
    'rerank_trec_dl19_run_bm25'
    """
    plain = ["_".join(re.findall(r"[a-z0-9]+", word.lower())) for word in words]
    return "_".join(
        told or hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        for told, word in zip(plain, words, strict=True)
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def _text(data: dict[str, Any]) -> str:
    """Indented JSON, with the values of the queries in one line per metric, since nobody reads them one by one."""
    held: list[str] = []

    def hold(values: dict[str, Any]) -> str:
        held.append(json.dumps(values, ensure_ascii=False, separators=(",", ":")))
        return f"\0{len(held) - 1}\0"

    arms = [
        {**arm, "per_query": {metric: hold(values) for metric, values in arm["per_query"].items()}}
        for arm in data["arms"]
    ]
    text = json.dumps({**data, "arms": arms}, ensure_ascii=False, indent=1)
    return re.sub(r'"\\u0000(\d+)\\u0000"', lambda match: held[int(match[1])], text)
