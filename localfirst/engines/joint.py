"""
The use of a daemon that another localfirst started.

While that one lives it looks after the daemon, and after it whichever user comes first; the
last one ends it.
"""

from __future__ import annotations

import asyncio
import contextlib

from localfirst.engines import launch
from localfirst.engines.launch import Seen
from localfirst.engines.life import Pace
from localfirst.engines.record import Record, Started
from localfirst.transport import process
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Clock


class Joint:
    """From the moment that it is used, with *record*'s leave, until nobody here does."""

    def __init__(
        self,
        record: Record,
        started: Started,
        *,
        upstream: UpstreamClient,
        clock: Clock,
        pace: Pace,
        doubt: asyncio.Event,
    ) -> None:
        self.mine = record.may_own()
        """Whether its starter is gone and we look after it."""
        self.upstream = upstream
        self._record = record
        self._started = started
        self._clock = clock
        self._pace = pace
        self._doubt = doubt

    async def see_through(self) -> str:
        """Why it is no more. Cancelled, it is left to others, or ended if there are none."""
        ends = False
        try:
            why = await self._watch()
            ends = self.mine  # what is left of it is of no use to anybody
        except asyncio.CancelledError:
            ends = self._record.last()
            raise
        finally:
            if ends:
                await asyncio.shield(asyncio.ensure_future(self._end()))
            self._record.release()
        return why

    async def _watch(self) -> str:
        """Nobody but its own parent is told of its end, so it is looked at."""
        strikes = 0
        while self._started.alive:
            if strikes >= self._pace.strikes:
                return f"the daemon did not answer {strikes} times in a row"
            await self._pause()
            if not self.mine:
                self.mine = self._record.may_own()
            if self.mine:
                self._record.log().shorten()
            elif not self._doubt.is_set():
                continue
            seen = await launch.look(self._started.endpoint, self.upstream, self._pace.try_s)
            strikes = 0 if seen is Seen.OLLAMA else strikes + 1
            if not strikes:
                self._doubt.clear()
        return "the daemon ended"

    async def _pause(self) -> None:
        if self._doubt.is_set():
            await self._clock.sleep(self._pace.poll_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace.health_s):
                await self._doubt.wait()

    async def _end(self) -> None:
        started = self._started
        process.end(started.pid, started.birth)
        deadline = self._clock.monotonic() + self._pace.grace_s
        while started.alive and self._clock.monotonic() < deadline:
            await self._clock.sleep(self._pace.poll_s)
        process.end(started.pid, started.birth, force=True)
        self._record.end_orphans()
        self._record.forget()
