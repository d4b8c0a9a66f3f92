"""One life of `ollama serve`: started, waited for, watched, ended. Knows no second try."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from localfirst.engines import launch
from localfirst.engines.launch import Seen
from localfirst.errors import EngineUnavailable
from localfirst.transport import process
from localfirst.transport.childlog import LogRing, OutlivingFile
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Clock

log = logging.getLogger("localfirst.engines")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """
    The supervisor's patience, in seconds.

    `start_s` covers GPU discovery, which takes up to 30 s (ollama/ollama discover/);
    `grace_s` what a daemon needs to end its runners. `budget` failures within `window_s`
    make a crash loop, which `rest_s` later is tried again.
    """

    start_s: float = 60.0
    poll_s: float = 0.1
    try_s: float = 1.5
    health_s: float = 5.0
    strikes: int = 3
    grace_s: float = 10.0
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    budget: int = 5
    window_s: float = 120.0
    rest_s: float = 300.0


class Life:
    """A child from its start to its end; `start` is called once, and `end` or `leave` always."""

    def __init__(
        self, endpoint: str, *, upstream: UpstreamClient, clock: Clock, pace: Pace
    ) -> None:
        self.endpoint = endpoint
        self.log = LogRing()
        self.child: process.Child | None = None
        self.upstream = upstream
        self._clock = clock
        self._pace = pace

    def start(self, program: Path, env: Mapping[str, str], file: OutlivingFile) -> process.Child:
        """Start the program; raises `EngineUnavailable`."""
        self._file = file
        try:
            self.child = process.spawn([str(program), "serve"], env=env, log=self.log, file=file)
        except OSError as error:
            raise EngineUnavailable(
                f"`{program}` cannot be started: {error.strerror}", code="ollama-not-executable"
            ) from error
        return self.child

    async def until_ready(self, contested: Callable[[str, int], bool]) -> str:
        """
        Empty once it answers as an Ollama, else why it never will.

        While its address is *contested*, what answers there may be another one, and so may
        what answered before it was found not to be.
        """
        child = self.child
        assert child is not None, "started before it is waited for"
        deadline = self._clock.monotonic() + self._pace.start_s
        while self._clock.monotonic() < deadline:
            if not child.alive:
                return await self._last_words(child)
            self._file.shorten()
            if await self._answers(child):
                rival = await asyncio.to_thread(contested, self.endpoint, child.pid)
                if not rival and await self._answers(child):
                    return ""
            await self._clock.sleep(self._pace.poll_s)
        return f"it did not answer within {self._pace.start_s:g} s"

    async def _answers(self, child: process.Child) -> bool:
        seen = await launch.look(self.endpoint, self.upstream, self._pace.try_s)
        return seen is Seen.OLLAMA and child.alive

    async def watch(self) -> str:
        """Return why a ready child is no more: it exited, or does not answer any longer."""
        child = self.child
        assert child is not None, "started before it is watched"
        strikes = 0
        while strikes < self._pace.strikes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.health_s):
                    await child.wait()
                return await self._last_words(child)
            self._file.shorten()
            seen = await launch.look(self.endpoint, self.upstream, self._pace.try_s)
            strikes = 0 if seen is Seen.OLLAMA else strikes + 1
        return f"it did not answer {strikes} times in a row"

    async def _last_words(self, child: process.Child) -> str:
        await child.drained()
        return f"it {child.ending}"

    def leave(self) -> None:
        """Leave it to others; a thread of ours still waits for its end."""
        self.child = None

    async def end(self) -> None:
        """End it and its group, and give its pipes back; not to be interrupted half-way."""
        if self.child is not None:
            await asyncio.shield(asyncio.ensure_future(self._end(self.child)))

    async def _end(self, child: process.Child) -> None:
        await child.stop(self._pace.grace_s)
        child.close()
        self.child = None
