"""The systems behind the three stages of one profile: built late, once, and shared.

Missing weights are never a crash and never silent: the stage falls back to a system that needs none, `missing` names
the models, and `note` the command that fetches them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any

from ..errors import MissingWeights
from ..manifests.doctor import require
from ..manifests.registry import card, cards

if TYPE_CHECKING:
    from ..refiners.base import Refiner
    from ..rerankers.base import Reranker
    from ..retrievers.base import Encoder
    from ..retrievers.lm import LM
    from ..retrievers.lm_transformers import TransformersLM
    from ..settings import Settings

STAGES = ("encoder", "reranker", "refiner")
"""The settings that name the systems of the three panels."""
WITHOUT_WEIGHTS = {"reranker": "no_rerank", "refiner": "extractive"}


class Stages:
    """Encoder, language model, rerankers and refiners of `settings` (a `retrievers.parts.Parts`).

    Safe from many threads: one lock guards building, so that a model is loaded once.
    """

    def __init__(self, settings: Settings, device: str = "") -> None:
        self._settings = settings
        self._device = device or settings.device
        self.missing: dict[str, str] = {}
        self._built: dict[str, Any] = {}
        self._marks: dict[str, str] = {}
        self._lock = RLock()

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def device(self) -> str:
        return self._device

    def encoder(self) -> Encoder:
        """The dense encoder of the profile, or `MissingWeights`."""
        return self._encoder(self.settings.encoder)

    def lm(self) -> LM:
        """The language model behind `lm_endpoint`, else `local_lm`."""
        if not self.settings.lm_endpoint:
            return self.local_lm()
        from ..retrievers.lm_endpoint import EndpointLM

        made: LM = self._once(f"lm {self.settings.lm_model}", lambda: EndpointLM.load(self.settings))
        return made

    def local_lm(self) -> TransformersLM:
        """The small language model of the profile, for what needs a model in this process, or `MissingWeights`."""
        from ..retrievers.lm_transformers import TransformersLM

        wanted = self.settings.lm
        made: TransformersLM = self._once(f"lm {wanted}", lambda: TransformersLM.load(self.settings, self.device))
        return made

    def encoder_or_none(self) -> Encoder | None:
        """The dense encoder, or None where its weights are missing (then `note` says so)."""
        try:
            found = self.encoder()
        except MissingWeights as error:
            self.missing[self.settings.encoder] = error.message
            return None
        self.missing.pop(self.settings.encoder, None)
        return found

    def further(self, system_id: str, *, required: bool = False) -> Encoder | None:
        """The encoder of a further space, or None where its weights are missing (then `note` says so).

        Raises:
            MissingWeights: they are, and it is `required`.
        """
        try:
            found = self._encoder(system_id)
        except MissingWeights as error:
            if required:
                raise
            self.missing[system_id] = error.message
            return None
        self.missing.pop(system_id, None)
        return found

    def reranker(self, system_id: str | None = None) -> Reranker:
        """The reranker asked for, else the profile's, else (weights missing) the one that needs none."""
        made: Reranker = self._chosen("reranker", system_id, self.settings.reranker)
        return made

    def refiner(self, system_id: str | None = None) -> Refiner:
        """The refiner asked for, else the profile's, else (weights missing) the one that needs none."""
        made: Refiner = self._chosen("refiner", system_id, self.settings.refiner)
        return made

    def warm(self) -> None:
        """Load every model of the profile now."""
        self.encoder_or_none()
        self.reranker()
        self.refiner()

    def loaded(self) -> dict[str, str]:
        """What is built so far: role and id → class."""
        # Not under the lock: whoever asks what is loaded must not wait for a model that is loading now.
        return {key: type(system).__name__ for key, system in tuple(self._built.items())}

    def note(self, of: Sequence[str] = STAGES, *, short: bool = False) -> str | None:
        """What is missing and the command that mends it, or None.

        Args:
            of: the stages that take part; what others lack is not told.
            short: only that something is, without names and effects.
        """
        settings = self.settings
        others = {getattr(settings, stage) for stage in STAGES if stage not in of}
        missing = [name for name in self.missing if name not in others]
        if not missing:
            return None
        known = cards()
        pulled = any(known[name].weights for name in missing if name in known)
        command = f"triptych {'pull' if pulled else 'doctor --profile'} {settings.profile}"
        if short:
            return f"Weights missing: run `{command}`."
        stages = [name for name in missing if name not in settings.further]
        names = ", ".join(sorted(stages or missing))
        effects = {
            "search is BM25 only": settings.encoder in missing,
            "compression keeps whole sentences": settings.refiner in missing,
            "hits are not reranked": settings.reranker in missing,
        }
        effect = ", ".join(what for what, holds in effects.items() if holds) or "some spaces are not searched"
        return f"Weights missing ({names}): {effect}. Run `{command}`."

    def _chosen(self, role: str, asked: str | None, default: str) -> Any:
        wanted = asked or default
        try:
            found = self._once(f"{role} {wanted}", lambda: self._load(role, wanted))
        except MissingWeights as error:
            if asked is not None:
                raise
            self.missing[wanted] = error.message
        else:
            self.missing.pop(wanted, None)
            return found
        plain = WITHOUT_WEIGHTS[role]
        return self._once(f"{role} {plain}", lambda: self._load(role, plain))

    def _encoder(self, system_id: str) -> Encoder:
        """Of the weights that are there now: those that the user brought may have been put there since."""
        from .given import mark_of

        key = f"retriever {system_id}"
        with self._lock:
            mark = mark_of(system_id, self.settings)
            if self._marks.get(key, mark) != mark:
                self._built.pop(key, None)
            made: Encoder = self._once(key, lambda: self._load("retriever", system_id))
            self._marks[key] = mark
            return made

    def _once(self, key: str, build: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._built:
                self._built[key] = build()
            return self._built[key]

    def _load(self, role: str, system_id: str) -> Any:
        system = card(system_id, role)
        if self.device != "cpu":
            require(self.device, self.settings.profile)
        return system.resolve().load(system, self)
