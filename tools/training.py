"""Systems that learn from a file of the user's (`triptych train`): its rows, where they begin, what they came to.

**Pairs**, for most systems: JSON Lines of `{"query", "right", "wrong"?, "group"?}`. A query is a text or
`{"text"?, "image"?, "page"?, "instruction"?}`, an item a text or `{"id"?, "title"?, "text"?, "image"?, "page"?}`,
`wrong` a list of items that do not answer, as long in every row, `group` the data set that the row is of. `image` is a
picture, a video, or a PDF with the number of its `page`, by its path from the file's folder. Items without an id are
the same if their contents are.

**Texts**, for the first stage of `unime`: JSON Lines of `{"text"}`.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import BadInput, Unsupported
from ..manifests.registry import card
from .schemas import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..retrievers.base import MediaRef, Modality
    from ..retrievers.universal._contrastive_training import Lesson
    from ..settings import Settings

LEARN = ("colpali", "dse", "unime", "vlm2vec")
"""Systems that learn from pairs."""
STAGES = (1, 2)
"""Of `unime`: from the vectors of a text encoder, and from pairs."""
TEACHER = "all_minilm_l6_v2"
TAUGHT = "teacher"
"""The folder beside a fit that holds its teacher's vectors."""
NAMED = 5
"""How many wrong rows a message names."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextRow(_Row):
    """A row of texts."""

    text: str = Field(min_length=1)


class Part(_Row):
    """A query or item of a pair."""

    text: str = ""
    image: str = ""
    page: int | None = Field(default=None, ge=1)
    instruction: str = ""
    title: str = ""
    id: str = ""


class PairRow(_Row):
    """A row of pairs."""

    query: Part | str
    right: Part | str
    wrong: list[Part | str] = []
    group: str = ""


class Plan(Shape):
    """How a system is to learn.

    Attributes:
        stage: of `unime`; others have none.
        student: a folder with the model to begin from; none: the system's own weights.
        teacher: the text encoder of stage 1.
        epochs, batch, rate: see `Course`; rank, chunk: see `Adapters`.
        run: rows of one group that stand together in a batch.
    """

    system: str
    stage: int | None = None
    student: Path | None = None
    teacher: str = TEACHER
    epochs: float = Field(1, gt=0)
    batch: int = Field(32, ge=1)
    rate: float = Field(1e-4, gt=0)
    rank: int = Field(16, ge=0)
    chunk: int = Field(8, ge=0)
    run: int = Field(1, ge=1)
    every: int = Field(0, ge=0)
    seed: int = 0


class TrainOut(Shape):
    """What a fit came to.

    Attributes:
        model: the folder's name; `from_folder` of the system reads it.
        loss: the mean of the steps of the last sitting; None where nothing was left to do.
    """

    system: str
    stage: int | None
    rows: int
    steps: int
    loss: float | None
    seconds: float
    model: str


Row = TypeVar("Row", bound=_Row)


def train(plan: Plan, data: Path, out: Path, settings: Settings) -> TrainOut:
    """Train a system on `data`; the model is written into `out`. The same call again goes on where it was stopped.

    Raises:
        Unsupported: a system that does not learn from such files.
        BadInput: no such file, rows that are none (named by their lines), or `out` is something else's.
        UnknownSystem, MissingWeights, MissingExtra, Cancelled, TimedOut.
    """
    checked(plan)
    texts = [row.text for _, row in rows(data, TextRow)] if plan.stage == 1 else []
    lessons = [] if plan.stage == 1 else pairs(data)
    _own(out)
    from ..retrievers.fitting import Course
    from ..retrievers.universal._contrastive_training import Adapters

    course = Course(plan.epochs, plan.batch, plan.rate, every=plan.every, seed=plan.seed)
    adapters = Adapters(plan.rank, 2.0 * plan.rank, chunk=plan.chunk)
    student = _student(plan, settings)
    if plan.stage == 1:
        teacher = _taught(plan.teacher, texts, out, settings)
        student.fit(texts, teacher, out, course=course, adapters=adapters)
    else:
        learn = student.fit_pairs if plan.stage == 2 else student.fit
        learn(lessons, out, course=course, adapters=adapters, run=plan.run)
    return TrainOut(system=plan.system, stage=plan.stage, rows=len(texts) or len(lessons), model=out.name, **_came(out))


def checked(plan: Plan) -> None:
    """Whether there is such a way to learn.

    Raises:
        UnknownSystem: no card has that id.
        Unsupported: it does not learn from files.
        BadInput: `unime` without a stage, or a stage of something else.
    """
    card(plan.system, "retriever")
    if plan.system not in LEARN:
        raise Unsupported(f"`{plan.system}` does not learn by this command.", f"Those that do: {', '.join(LEARN)}.")
    if plan.system == "unime" and plan.stage not in STAGES:
        raise BadInput(f"The stage of `unime` is `{plan.stage}`.", "Use `--stage 1` (texts) or `--stage 2` (pairs).")
    if plan.system != "unime" and plan.stage is not None:
        raise BadInput(f"`{plan.system}` has no stage `{plan.stage}`.", "Leave `--stage` out.")


# --- rows ------------------------------------------------------------------------------------------------------------


def rows(path: Path, kind: type[Row]) -> list[tuple[int, Row]]:
    """The rows of a JSON Lines file with the numbers of their lines; blank lines are passed over.

    Raises:
        BadInput: no such file, nothing in it, or lines that are no such rows.
    """
    try:
        text = path.expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"`{path.name}` is not UTF-8.", "Save the file as UTF-8.") from None
    except OSError as error:
        raise BadInput(f"`{path.name}` cannot be read: {error.strerror}.", "Give a JSON Lines file.") from None
    found: list[tuple[int, Row]] = []
    wrong: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append((number, kind.model_validate(json.loads(line))))
        except (ValueError, RecursionError) as error:
            wrong.append(f"line {number} ({_reason(error)})")
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise BadInput(f"`{path.name}` has a wrong {', '.join(wrong[:NAMED])}{more}.", "See `triptych train --help`.")
    if not found:
        raise BadInput(f"`{path.name}` has no rows.", "See `triptych train --help`.")
    return found


def pairs(path: Path) -> list[Lesson]:
    """The pairs of a file.

    Raises:
        BadInput: as `rows`, or a query or item of nothing, or a picture that is not there.
    """
    from ..retrievers.universal._contrastive_training import Lesson

    found = []
    for number, row in rows(path, PairRow):
        try:
            query, right = _query(_part(row.query), path.parent), _item(_part(row.right), path.parent)
            wrong = tuple(_item(_part(one), path.parent) for one in row.wrong)
        except BadInput as error:
            raise BadInput(f"`{path.name}` has a wrong line {number}: {error.message}", error.hint) from None
        found.append(Lesson(query, right, wrong, row.group))
    return found


def _part(given: Part | str) -> Part:
    part = Part(text=given) if isinstance(given, str) else given
    if not part.text.strip() and not part.image:
        raise BadInput("a query or item has no text and no image.", "Give one of them, or both.")
    return part


def _query(part: Part, folder: Path) -> Any:
    from ..retrievers.base import Query

    return Query(part.text or None, _media(part, folder), part.instruction or None)


def _item(part: Part, folder: Path) -> Any:
    from ..retrievers.base import Item, Source

    media = _media(part, folder)
    content = hashlib.sha256(json.dumps([part.title, part.text, part.image, part.page]).encode()).hexdigest()
    source = Source(part.image or "given", 0, len(part.text), part.page)
    title = part.title or part.text.lstrip(" #")[:40]  # of its own text: nothing else is read of it
    return Item(part.id or content, part.text, source, _modality(media), media, {"title": title})


def _media(part: Part, folder: Path) -> MediaRef | None:
    from ..retrievers.base import PDF, MediaRef

    if not part.image:
        return None
    path = folder / part.image
    if not path.is_file():
        raise BadInput(f"there is no file `{part.image}`.", "Give its path from the folder of the rows.")
    mime = mimetypes.guess_type(path.name)[0] or ""
    if mime.split("/")[0] not in ("image", "video") and mime != PDF:
        raise BadInput(f"`{part.image}` is no picture by its name.", "Give a picture, a video, or a page of a PDF.")
    return MediaRef(str(path), mime, (part.page or 1) if mime == PDF else None)


def _modality(media: MediaRef | None) -> Modality:
    if media is None:
        return "text"
    return "page" if media.page else "video" if media.mime.startswith("video/") else "image"


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "not JSON"
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    return f"`{name}`: {first['msg']}" if name else str(first["msg"])


# --- models ----------------------------------------------------------------------------------------------------------


def _own(out: Path) -> None:
    """Nobody's files are mixed with a model."""
    from ..retrievers.fitting import CLAIM

    if out.exists() and not out.is_dir():
        raise BadInput(f"`{out.name}` is a file.", "Name an empty folder.")
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if inside - {TAUGHT} and CLAIM not in inside:
        raise BadInput(f"`{out.name}` holds something else.", "Name an empty folder.")


def _student(plan: Plan, settings: Settings) -> Any:
    from .stages import Stages

    if plan.student is None:
        return Stages(settings).further(plan.system, required=True)
    if not plan.student.is_dir():
        raise BadInput(f"There is no folder `{plan.student.name}`.", "Give the folder of a model.")
    return card(plan.system).resolve().from_folder(plan.student, "float32", settings.device)


def _taught(teacher: str, texts: Sequence[str], out: Path, settings: Settings) -> Path:
    """The teacher's vectors of `texts`, made once."""
    from ..retrievers.fitting import CLAIM
    from ..retrievers.universal._unime_training import TEACHES, lesson_of, taught
    from .stages import Stages

    encoder, made = Stages(replace(settings, encoder=teacher)).encoder(), out / TAUGHT / TEACHES
    if made.is_file() and made.read_text("utf-8") == lesson_of(encoder, texts):
        return made.parent
    if (out / CLAIM).is_file():
        raise BadInput(f"`{out.name}` holds a fit with other settings or data.", "Name an empty folder.")
    return taught(encoder, texts, made.parent)


def _came(out: Path) -> dict[str, Any]:
    """The last summary in the fit's log."""
    from ..retrievers.fitting import LOG

    lines = [json.loads(line) for line in (out / LOG).read_text("utf-8").splitlines()]
    last = [line for line in lines if "train_loss" in line][-1]
    return {"steps": last["step"], "loss": last["train_loss"] or None, "seconds": last["train_runtime"]}
