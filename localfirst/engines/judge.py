"""Verdicts for listed models: does each fit this machine as it is now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.engines.llamacpp.about import Shelf
from localfirst.errors import LocalFirstError
from localfirst.machine import fit
from localfirst.machine.fit import Hardware, ModelShape

CONTEXT_TOKENS = 4096


class Judge:
    """Reads the models' files where it may; *hardware* gives the last measurement at once."""

    def __init__(self, shelf: Shelf | None, hardware: Callable[[], Hardware]) -> None:
        self._shelf = shelf
        self._measure = hardware
        self._on_gpu: set[str] = set()

    def expects_gpu(self, name: str) -> bool:
        """Whether the last look found room for *name* on a GPU."""
        return name in self._on_gpu

    async def judged(self, status: EngineStatus) -> EngineStatus:
        """*status* with a verdict for every model."""
        if not status.models:
            return status
        return await asyncio.to_thread(self._judged, status, self._measure())

    def _judged(self, status: EngineStatus, hardware: Hardware) -> EngineStatus:
        models = tuple(self._with_verdict(model, hardware) for model in status.models)
        return msgspec.structs.replace(status, models=models)

    def _with_verdict(self, model: LocalModel, hardware: Hardware) -> LocalModel:
        if model.remote:
            return model
        found = fit.predict(self._shape(model), hardware, context_tokens=CONTEXT_TOKENS)
        if found.placement is fit.Placement.CPU:
            self._on_gpu.discard(model.name)
        else:
            self._on_gpu.add(model.name)
        verdict = fit.Verdict.FITS if model.loaded else found.verdict
        return msgspec.structs.replace(model, fit=str(verdict))

    def _shape(self, model: LocalModel) -> ModelShape:
        """From the model's own file when it is the very one that is listed, else by size."""
        if self._shelf is not None:
            try:
                if self._shelf.digest(model.name) == model.digest:
                    return self._shelf.get(model.name).shape
            except (LocalFirstError, OSError):
                pass
        return fit.shape_from_size(model.size_bytes)
