"""
Noticing that a model runs on the CPU that should run on the GPU.

A driver that came late, a suspend or another program's memory make Ollama load a model on
the CPU and keep it there, ten times slower and without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from localfirst.engines.base import LocalModel
from localfirst.engines.ollama.listing import full_name

log = logging.getLogger("localfirst.engines")


class GpuWatch:
    """
    What was seen of loaded models; each one that lost its GPU is reloaded once.

    *expected* says whether a model's layers should be on a GPU. Where there is none,
    nothing is expected: some CPUs' own buffers are counted as GPU memory by Ollama.
    """

    def __init__(self, expected: Callable[[str], bool]) -> None:
        self._expected = expected
        self._told: set[str] = set()
        self._reload: set[str] = set()

    def look(self, models: Sequence[LocalModel]) -> str:
        """Take a listing in; returns a line for people, "" when all is well."""
        lost = [
            model.name
            for model in models
            if model.loaded and not model.loaded_vram_bytes and self._expected(model.name)
        ]
        for name in lost:
            if full_name(name) not in self._told:
                log.warning("`%s` runs on the CPU although the GPU has room for it", name)
                self._told.add(full_name(name))
                self._reload.add(full_name(name))
        self._reload.intersection_update(map(full_name, lost))
        return f"on the CPU although the GPU has room: {', '.join(lost)}" if lost else ""

    def take_reload(self, name: str) -> bool:
        """True once for a model that should be loaded again."""
        if full_name(name) not in self._reload:
            return False
        self._reload.discard(full_name(name))
        return True
