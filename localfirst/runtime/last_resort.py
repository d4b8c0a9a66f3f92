"""Which model the last rung would download: the configured one, or the best that fits."""

from __future__ import annotations

from localfirst.machine import recommend
from localfirst.machine.recommend import Choice
from localfirst.runtime.gauge import Gauge
from localfirst.settings import Settings
from localfirst.types import Clock

CHOSEN_S = 60.0
"""How long a choice stands; memory and disk change slowly enough for a download."""


class LastResort:
    """Calls give the choice; it is made anew once a minute, from the last measurement."""

    def __init__(self, settings: Settings, gauge: Gauge, clock: Clock) -> None:
        self._settings = settings
        self._gauge = gauge
        self._clock = clock
        self._made = float("-inf")
        self._choice = Choice(name="", reason="")

    def __call__(self) -> Choice:
        """The model to download, "" when none fits, and why."""
        now = self._clock.monotonic()
        if now - self._made > CHOSEN_S:
            self._made = now
            self._choice = recommend.last_resort(
                self._gauge.now(),
                self._settings.local.last_resort,
                reserve_disk_bytes=self._settings.pull.reserve_disk_bytes,
            )
        return self._choice
