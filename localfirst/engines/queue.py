"""
Waiting for a local model: a bounded line, first come first served, that people can see.

A local engine answers few requests at once and queues the rest without bound and without
a word (ollama/ollama `server/sched.go`; issue 7758). Here the line has an end, and who
stands in it hears how many are ahead.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from localfirst.errors import UpstreamRefused
from localfirst.events import Progress
from localfirst.types import Clock

RETRY_AFTER_MAX_S = 60
TELL_EVERY_S = 1.0


def busy(message: str, retry_after_s: float) -> UpstreamRefused:
    """A 503 as an engine would have answered it, with `Retry-After`."""
    body = msgspec.json.encode({"error": message})
    seconds = str(max(1, math.ceil(retry_after_s)))
    return UpstreamRefused(503, body, [("retry-after", seconds)])


class Line:
    """
    The line in front of one model.

    `width` requests are served at once. Written only from the loop it is used on.
    """

    def __init__(self, clock: Clock, *, width: int, limit: int, spill_s: float = 0.0) -> None:
        self.width = width
        self._limit = limit
        self._spill_s = spill_s
        self._clock = clock
        self._serving = 0
        self._waiting: deque[asyncio.Future[float]] = deque()
        self._usual_s = 1.0

    @property
    def load(self) -> int:
        """Requests being served or waiting."""
        return self._serving + len(self._waiting)

    @property
    def retry_after_s(self) -> float:
        """A guess at when a place is free, from how long requests lately took."""
        rounds = (len(self._waiting) + 1) / max(1, self.width)
        return min(RETRY_AFTER_MAX_S, max(1.0, rounds * self._usual_s))

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Place, None]:
        """
        A place in the line, given up on leaving.

        Raises:
            UpstreamRefused: the line is full: 503 with `Retry-After`.
        """
        if len(self._waiting) >= self._limit and self._serving >= self.width:
            raise busy(
                f"the local queue is full: {self._serving} running, {len(self._waiting)} waiting",
                self.retry_after_s,
            )
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            yield Place(self, turn)
        finally:
            if turn.done():
                self._serving -= 1
                took = max(0.0, self._clock.monotonic() - turn.result())
                self._usual_s += (took - self._usual_s) / 4
            else:
                self._waiting.remove(turn)
            self._admit()

    def widen(self, width: int) -> None:
        """Serve *width* at once from now on; those who are served already stay."""
        self.width = width
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._serving < self.width:
            self._waiting.popleft().set_result(self._clock.monotonic())
            self._serving += 1

    def _ahead_of(self, turn: asyncio.Future[float]) -> int:
        return self._waiting.index(turn) if turn in self._waiting else 0


class Place:
    """One request's place; `turn` tells of the waiting and ends when it is served."""

    def __init__(self, line: Line, turn: asyncio.Future[float]) -> None:
        self._line = line
        self._turn = turn

    async def turn(self) -> AsyncGenerator[Progress, None]:
        """
        Yields `Progress("queued")` about once a second until it is this request's turn.

        Raises:
            UpstreamRefused: it took longer than the configured spill time.
        """
        line = self._line
        started = line._clock.monotonic()
        while not self._turn.done():
            waited = line._clock.monotonic() - started
            left_s = line._spill_s - waited if line._spill_s > 0 else TELL_EVERY_S
            await asyncio.wait({self._turn}, timeout=max(0.0, min(TELL_EVERY_S, left_s)))
            if self._turn.done():
                return
            waited = line._clock.monotonic() - started
            if 0 < line._spill_s <= waited:
                raise busy(f"waited {waited:.0f} s in the local queue", line.retry_after_s)
            yield Progress("queued", f"{line._ahead_of(self._turn) + 1} ahead")
