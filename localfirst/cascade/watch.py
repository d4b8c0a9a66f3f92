"""
One watchdog for each attempt: to the first token, then between events.

It does what a fresh `asyncio.timeout` around every event would do, at the price of two
attribute writes an event. All attempts of a cascade share one timer, so that a request costs
none: it fires at the earliest instant that can matter, looks how long each reader has really
been waiting, and winds itself up for the rest.
"""

from __future__ import annotations

import asyncio

from localfirst.errors import Breakage, UpstreamBroken

LONGEST_S = 86400.0  # event loops do not take infinity
SOON_S = 0.0005  # what is due within this is due: timers fire on whole milliseconds


class Watches:
    """The running watches of one cascade, and their timer; the loop's thread only."""

    __slots__ = ("_at", "_handle", "_running", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[Watch, None] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0.0

    def begin(self, limit_s: float) -> Watch:
        """A watch of the running task; `Watch.close` ends it."""
        loop = self.loop
        if loop is None or loop.is_closed():
            loop = self.loop = asyncio.get_running_loop()
            self._running.clear()
            self._handle = None
        limit_s = min(limit_s, LONGEST_S)
        now = loop.time()
        watch = Watch(self, loop, now, limit_s)
        self._running[watch] = None
        if self._handle is None or now + limit_s < self._at - SOON_S:
            self.due(now + limit_s)
        return watch

    def due(self, at: float) -> None:
        """Look at *at*, in the loop's time, or before."""
        if self._handle is None or at < self._at - SOON_S:
            if self._handle is not None:
                self._handle.cancel()
            assert self.loop is not None, "a watch has begun"
            self._at = at
            self._handle = self.loop.call_at(at, self._look)

    def end(self, watch: Watch) -> None:
        """Forget *watch*; the last one takes the timer with it a little later."""
        self._running.pop(watch, None)

    def _look(self) -> None:
        self._handle = None
        if not self._running or self.loop is None:
            return
        now = self.loop.time()
        rest_s = min([watch.look(now) for watch in list(self._running)])
        self.due(now + max(rest_s, 0.001))


class Watch:
    """
    Cancels the reading task when nothing came for too long; `expired` tells it from a hang-up.

    The clock stands while `since` is None: the reader sets it before it hands an event
    over, so a slow reader is never taken for a slow upstream. Written only by the reader of
    one attempt and by its own timer.
    """

    kind = Breakage.FIRST_TOKEN_TIMEOUT
    abandoned = expired = False
    _cancelling = 0

    def __init__(
        self, watches: Watches, loop: asyncio.AbstractEventLoop, now: float, limit_s: float
    ) -> None:
        self._watches = watches
        self._loop = loop
        self._task = asyncio.current_task(loop)
        self.limit_s = limit_s
        self.since: float | None = now

    def restart(self, limit_s: float, kind: Breakage) -> None:
        """Begin anew with another limit."""
        limit_s = min(limit_s, LONGEST_S)
        self.kind = kind
        self.since = now = self._loop.time()
        self.limit_s = limit_s
        self._watches.due(now + limit_s)

    def resume(self) -> None:
        """The reader waits for the next event."""
        self._task = asyncio.current_task(self._loop)
        self.since = self._loop.time()

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._watches.end(self)
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

    def look(self, now: float) -> float:
        """The timer's visit: stop a reader that waited too long; seconds until the next."""
        if self.since is None:
            return self.limit_s
        rest_s = self.since + self.limit_s - now
        if rest_s > SOON_S:
            return rest_s
        self._watches.end(self)
        self._fire()
        return LONGEST_S

    def _fire(self) -> None:
        if self._task is None or self._task.done():
            return
        self.expired = True
        self._cancelling = self._task.cancelling()
        self._task.cancel()
