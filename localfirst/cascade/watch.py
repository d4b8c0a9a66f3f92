"""
One watchdog for one attempt, on one timer: to the first token, then between events.

It does what a fresh `asyncio.timeout` around every event would do, at the price of two
attribute writes an event: the timer looks when it fires how long the reader has really
been waiting, and winds itself up for the rest.
"""

from __future__ import annotations

import asyncio

from localfirst.errors import Breakage, UpstreamBroken

LONGEST_S = 86400.0  # event loops do not take infinity


class Watch:
    """
    Cancels the reading task when nothing came for too long; `expired` tells it from a hang-up.

    The clock stands while `since` is None: the reader sets it before it hands an event
    over, so a slow reader is never taken for a slow upstream. Written only by the reader of
    one attempt and by its own timer.
    """

    __slots__ = (
        "_cancelling", "_handle", "_loop", "_task",
        "abandoned", "expired", "kind", "limit_s", "since",
    )  # fmt: skip

    def __init__(self, limit_s: float) -> None:
        limit_s = min(limit_s, LONGEST_S)
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancelling = 0
        self.limit_s = limit_s
        self.kind = Breakage.FIRST_TOKEN_TIMEOUT
        self.expired = False
        self.abandoned = False
        self.since: float | None = self._loop.time()
        self._handle = self._loop.call_later(limit_s, self._look)

    def restart(self, limit_s: float, kind: Breakage) -> None:
        """Begin anew with another limit."""
        limit_s = min(limit_s, LONGEST_S)
        self.kind = kind
        self.since = self._loop.time()
        if limit_s < self.limit_s:
            # A longer limit needs no new timer: the old one winds itself up when it fires.
            self._handle.cancel()
            self._handle = self._loop.call_later(limit_s, self._look)
        self.limit_s = limit_s

    def resume(self) -> None:
        """The reader waits for the next event."""
        self._task = asyncio.current_task()
        self.since = self._loop.time()

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._handle.cancel()
        self.since = None

    def abandon(self) -> None:
        """Stop the reader from another task; it sees `abandoned` instead of a hang-up."""
        self.abandoned = True
        self._fire()

    def verdict(self) -> UpstreamBroken | None:
        """
        What a `CancelledError` in the reader meant: the breakage, or None for a real one.

        Call it once, from the reader.
        """
        if not self.expired or self._task is None:
            return None
        self.expired = False
        if self._task.uncancel() > self._cancelling:
            return None
        return UpstreamBroken(self.kind, f"nothing for {self.limit_s:g} s")

    def _look(self) -> None:
        since = self.since
        waited_s = self._loop.time() - since if since is not None else 0.0
        rest_s = self.limit_s - waited_s
        if since is None or rest_s > 0.0005:
            self._handle = self._loop.call_later(max(rest_s, 0.001), self._look)
        else:
            self._fire()

    def _fire(self) -> None:
        if self._task is None or self._task.done():
            return
        self.expired = True
        self._cancelling = self._task.cancelling()
        self._task.cancel()
