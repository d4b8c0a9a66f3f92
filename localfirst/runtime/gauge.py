"""The last measurement of this machine, renewed beside the work and never in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from localfirst.machine import hardware
from localfirst.machine.fit import Hardware
from localfirst.types import Clock

AGE_S = 5.0
"""How long a measurement of memory and disk is believed."""


class Gauge:
    """Measures in a thread (a sick GPU driver takes seconds); owns that one task."""

    def __init__(self, store: Path, environ: Mapping[str, str], clock: Clock) -> None:
        self._store = store
        self._environ = dict(environ)
        self._clock = clock
        self._last = Hardware()
        self._measured = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def now(self) -> Hardware:
        """The last measurement; an old one starts the next."""
        if self._clock.monotonic() - self._measured > AGE_S and self._idle():
            self._task = asyncio.get_running_loop().create_task(self.renew())
        return self._last

    def _idle(self) -> bool:
        return self._task is None or self._task.done()

    async def renew(self) -> None:
        """Measure, and wait for it."""
        self._last = await asyncio.to_thread(
            hardware.measure, store=self._store, environ=self._environ
        )
        self._measured = self._clock.monotonic()

    async def aclose(self) -> None:
        """End the background measurement."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
