"""ColPali: Efficient Document Retrieval with Vision Language Models. Faysse et al. 2025, arXiv:2407.01449

A page is read as a picture, without any recognition of text: a vision language model is shown it with "Describe the
image.", and the last hidden states of **all** tokens, patches and prompt, each become a vector of 128 numbers and unit
length. A query is text with ten augmentation tokens behind it. The score is MaxSim: the sum, over the query's vectors,
of each one's best match among the page's. Queries are words; passages of text are not read.

Three architectures, told apart by the folder's `config.json`: ColPali (PaliGemma; 1,024 patches and a few tokens of
prompt per page, half a megabyte), ColQwen2 (Qwen2-VL, at most 768 patches at the page's own proportions; Qwen2.5-VL
runs in the same class) and ColSmol (Idefics3). `Options.factor` pools a page's vectors (Clavié, Chaffin and Adams
2024, arXiv:2409.14683): Ward clusters of their cosine distances, each the mean of its vectors, so that 2 or 3 times
fewer are kept. `_colpali_maps` shows where on a page a query's words are found. `fit` trains a copy, see
`_colpali_training` and `_colpali_losses`.

Weights: checkpoints in transformers' own format (`…-hf`; PaliGemma's stand under the Gemma licence, Qwen's under
Apache-2.0), or ColSmol's base with its adapter beside it, in `weights/colpali` of the home folder. Adapters of
colpali-engine for PaliGemma and Qwen have other names of keys and do not load. The code is ours, over transformers'
classes. What differs: pages are drawn with at most 2,048 pixels before the model's own processor; queries of more than
512 tokens are cut; ColQwen2's positions are those that it was trained with (see `_colpali_backbones.Qwen`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadInput, Unsupported
from ...progress import step
from ..base import Encoder, Item, Modality, Query, Side, Space
from ..given import given_folder
from ..loading import CONFIG, batches, encodable, set_threads
from ._inputs import pictured
from ._loading import PROCESSOR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ...manifests.registry import Card
    from ..fitting import Course
    from ..parts import Parts
    from ._colpali_backbones import Backbone, Read
    from ._colpali_training import Objective
    from ._contrastive_training import Adapters, Lesson

DIM = 128
EDGE = 2048
"""Pixels that the longer side of a drawn page has at most."""
BATCH_TOKENS = 4096
"""Padded tokens in one forward pass: four pages of PaliGemma."""
AT_ONCE = 16
"""Inputs whose pixels are held at a time."""
OPTIONS = "colpali.json"
"""Beside the weights: `Options`, where they are not the usual ones."""


@dataclass(frozen=True)
class Options:
    """What is kept of a page's vectors.

    Attributes:
        factor: one of so many, by pooling; 1 keeps all.
        pictures_only: only vectors of patches, none of the prompt.
    """

    factor: int = 1
    pictures_only: bool = False


class ColPali(Encoder):
    """Multi-vector encoder of the space `colpali`. Safe from many threads.

    `media.uri` of a page must be **a path on this machine**, which the caller has resolved and allowed.

    Args:
        backbone: one of `_colpali_backbones`.

    Raises:
        BadInput: a factor below 1.
    """

    space = Space("colpali", "multi", DIM, "cosine")
    modalities: tuple[Modality, ...] = ("page", "image", "video")
    looks = True
    pages = True

    def __init__(self, backbone: Backbone, options: Options | None = None) -> None:
        self.backbone = backbone
        self.options = options or Options()
        if self.options.factor < 1:
            raise BadInput(f"The pooling factor is `{self.options.factor}`.", "Give 1 (no pooling), 2 or 3.")

    # --- doors -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, card: Card, parts: Parts) -> ColPali:
        """From `weights/colpali` of the home folder.

        Raises:
            MissingWeights: a file is not there.
            BadInput: they are of another architecture, or have other keys.
        """
        set_threads(parts.settings.threads)
        folder = given_folder(card, parts.settings, CONFIG, PROCESSOR)
        return cls.from_folder(folder, parts.settings.precision, parts.device)

    @classmethod
    def from_folder(
        cls, folder: Path, precision: str = "auto", device: str = "cpu", options: Options | None = None
    ) -> ColPali:
        """From a local folder with the files and names of the published checkpoints.

        Args:
            precision: see `loading.dtype`.
            options: those of the folder without.

        Raises:
            MissingWeights, BadInput: as `load`.
        """
        from ._colpali_files import read

        return cls(read(folder, precision, device), options or _options(folder))

    @classmethod
    def tiny(cls, seed: int = 0, kind: str = "colpali", options: Options | None = None) -> ColPali:
        """Two random layers over bytes and small pages, with the real processors: for tests.

        Args:
            kind: `colpali`, `colqwen2`, `colqwen2_5` or `idefics3`.
        """
        from ._colpali_files import toy

        return cls(toy(kind, seed), options)

    def save(self, folder: Path) -> None:
        """Write what `from_folder` reads, with the published key names."""
        from ._colpali_files import write

        folder.mkdir(parents=True, exist_ok=True)
        write(folder, self.backbone)
        (folder / OPTIONS).write_text(json.dumps(asdict(self.options)), "utf-8")

    # --- vectors -----------------------------------------------------------------------------------------------------

    def reads(self, query: Query) -> bool:
        """Whether it is words alone."""
        return query.text is not None and query.media is None

    def encode(self, inputs: Sequence[Item] | Sequence[Query], side: Side) -> list[np.ndarray]:
        """Float32 (tokens, 128) of each input, of unit length; what is kept of a page, `options` say.

        Raises:
            Unsupported: a query with a picture or without words, or an item with nothing to show.
            UnreadableFile: a page is gone, damaged, or cannot be shown.
            BadInput: a page that is a line, or a network that gives NaN.
            Cancelled, TimedOut: see `progress`.
        """
        found: list[np.ndarray] = []
        for start in range(0, len(inputs), AT_ONCE):
            step(start, len(inputs), "pages")
            reads = [self.read(one) for one in inputs[start : start + AT_ONCE]]
            found += [self._kept(one, rows) for one, rows in zip(reads, self.vectors(reads), strict=True)]
        return found

    def read(self, given: Item | Query) -> Read:
        """What the network reads of an input.

        Raises:
            Unsupported, UnreadableFile, BadInput: as `encode`.
        """
        if isinstance(given, Query):
            if given.text is None or given.media is not None:
                raise Unsupported("ColPali reads queries of words alone.", "Ask with words, and without a picture.")
            return self.backbone.query(encodable(given.text))
        return self.backbone.page(pictured(given, EDGE))

    def vectors(self, reads: Sequence[Read]) -> list[np.ndarray]:
        """Float32 (tokens, 128) of every token of each, of unit length; pages and queries may stand side by side."""
        from ._vectors import unit

        found: list[np.ndarray] = [np.empty((0, DIM), np.float32)] * len(reads)
        for shown in (True, False):
            rows = [row for row, one in enumerate(reads) if bool(one.pixels) is shown]
            for batch in batches([len(reads[row].ids) for row in rows], BATCH_TOKENS):
                chosen = [rows[place] for place in batch]
                states, mask = self.backbone.vectors([reads[row] for row in chosen])
                for row, one, kept in zip(chosen, states, mask.bool(), strict=True):
                    found[row] = unit(one[kept])
        return found

    def _kept(self, read: Read, rows: np.ndarray) -> np.ndarray:
        if not read.pixels:
            return rows
        if self.options.pictures_only:
            rows = rows[np.sort(read.patches, axis=None)]
        return pooled(rows, self.options.factor)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        lessons: Sequence[Lesson],
        out_dir: Path,
        *,
        held: Sequence[Lesson] = (),
        course: Course | None = None,
        adapters: Adapters | None = None,
        objective: Objective | None = None,
        run: int = 1,
    ) -> ColPali:
        """A copy that learned which page answers which question; saved in `out_dir`, for `from_folder`. A fit that was
        stopped goes on from its last checkpoint. The copy computes in float32. The usual is what was published.

        Args:
            held: other lessons, whose loss tells which checkpoint is kept.
            run: lessons of one group that stand together in a batch.

        Raises:
            BadInput, UnreadableFile, MissingExtra, Cancelled, TimedOut: see `_contrastive_training`.
            Unsupported: as `encode`.
        """
        from ..fitting import Course
        from ._colpali_training import Objective, fit
        from ._contrastive_training import Adapters

        made, _ = fit(
            self.backbone,
            lessons,
            out_dir,
            self.read,
            objective or Objective(),
            course or Course(epochs=1, batch=32, rate=5e-5),
            adapters or Adapters(rank=32, alpha=32.0, dropout=0.1, chunk=4),
            held=held,
            run=run,
        )
        fitted = ColPali(made, self.options)
        fitted.save(out_dir)
        return fitted


def pooled(vectors: np.ndarray, factor: int) -> np.ndarray:
    """The means of clusters of like vectors, of unit length: max(n // factor, 1) of n; at factor 1 all as they are.

    Clusters are Ward's over cosine distances (arXiv:2409.14683, section 3), in the order of their first members.

    Args:
        vectors: float32 (n, dim), of unit length.
        factor: at least 1.
    """
    if factor == 1 or len(vectors) < 2:
        return vectors
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    tree = linkage(pdist(vectors.astype(np.float64), "cosine").clip(0), "ward")
    labels = fcluster(tree, max(len(vectors) // factor, 1), "maxclust")
    means = np.stack([vectors[labels == label].mean(axis=0) for label in dict.fromkeys(labels.tolist())])
    made: np.ndarray = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    return made


def _options(folder: Path) -> Options:
    path = folder / OPTIONS
    if not path.is_file():
        return Options()
    try:
        told: Any = json.loads(path.read_text("utf-8"))
        return Options(int(told["factor"]), bool(told["pictures_only"]))
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"`{folder.name}/{OPTIONS}` cannot be read: {error}.", "Delete it for the usual.") from None
