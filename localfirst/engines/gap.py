"""Noticing that the machine slept: what was true before has to be looked at again."""

from __future__ import annotations

from localfirst.types import Clock

GAP_S = 5.0
"""More than a busy loop is ever late, less than any sleep."""


class Gap:
    """
    Whether time went by that nobody lived through.

    The monotonic clock stands still during a suspend on Linux and the wall clock does not;
    a wall clock that was set by hand looks alike and costs one needless look.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.unix() - clock.monotonic()

    def passed(self) -> bool:
        """True once after each gap."""
        offset = self._clock.unix() - self._clock.monotonic()
        jumped = abs(offset - self._offset) > GAP_S
        self._offset = offset
        return jumped
