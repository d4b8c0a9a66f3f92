"""
One generation by Ollama: sent, waited for while the model loads, read to its terminator.

The daemon sends its first byte with the first token, so a load and a hang look alike from
the socket. They are told apart by asking beside it: while the daemon answers and the model
is not in `/api/ps`, it is loading.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import Any

from localfirst.engines.base import Limits
from localfirst.engines.ollama.daemon import QUICK_S, Daemon
from localfirst.engines.ollama.listing import full_name
from localfirst.errors import (
    Breakage,
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
)
from localfirst.events import Event, Opened, Progress
from localfirst.transport.upstream import UpstreamClient, UpstreamResponse
from localfirst.types import Clock
from localfirst.wire.conclusion import Stops
from localfirst.wire.ollama.events import StreamReader

LOOK_EVERY_S = 1.0
STRIKES = 3
ERROR_BYTES = 2**20


class Exchange:
    """
    One request to one daemon; `events` is read once.

    *stops* tells the stop sequences that its caller asked for.
    *others_moved_at* tells the monotonic instant at which the daemon last said something
    to another request for the same model: it answers few at once, and the rest wait in it.
    """

    def __init__(
        self,
        daemon: Daemon,
        upstream: UpstreamClient,
        clock: Clock,
        *,
        model: str,
        path: str,
        body: bytes,
        limits: Limits,
        local_only: bool,
        relay: bool,
        stops: Stops = tuple,
        others_moved_at: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        self._daemon = daemon
        self._upstream = upstream
        self._clock = clock
        self._model = model
        self._path = path
        self._body = body
        self._limits = limits
        self._local_only = local_only
        self._relay = relay
        self._stops = stops
        self._others_moved_at = others_moved_at

    async def events(self) -> AsyncGenerator[Event, None]:
        """
        `Progress("loading")` while the model loads, then the answer.

        Raises:
            UpstreamRefused: the daemon's error, before or inside the stream.
            UpstreamBroken: the daemon is gone, the load took too long, the answer was cut.
        """
        sending = asyncio.ensure_future(self._send())
        try:
            async for progress in self._while_loading(sending):
                yield progress
        except BaseException:
            await _abandon(sending)
            raise
        async for event in self._read(await sending):
            yield event

    async def _send(self) -> UpstreamResponse:
        limits = self._limits
        return await self._upstream.send(
            self._daemon.endpoint + self._path,
            headers=[("content-type", "application/json")],
            body=self._body,
            connect_s=limits.connect_s,
            first_byte_s=limits.load_s + limits.first_token_s,
            stall_s=limits.stall_s,
            local_only=self._local_only,
        )

    async def _while_loading(
        self, sending: asyncio.Future[UpstreamResponse]
    ) -> AsyncGenerator[Progress, None]:
        watch = _Watch(self._model, self._limits, self._clock, self._others_moved_at)
        while True:
            await asyncio.wait({sending}, timeout=LOOK_EVERY_S)
            if sending.done():
                return
            looking = asyncio.ensure_future(self._look())
            both: set[asyncio.Future[Any]] = {sending, looking}
            try:
                # A list that is held back must not hold back an answer that has come.
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    return
                progress = watch.judged(looking.result())
            finally:
                looking.cancel()
            if progress is not None:
                yield progress

    async def _look(self) -> str | None:
        """Either "loading", "loaded", "silent" (a runner holds the list back) or no daemon."""
        try:
            loaded = await self._daemon.ps(QUICK_S)
        except UpstreamError:
            return "silent" if await self._daemon.alive() else None
        wanted = full_name(self._model)
        return "loaded" if any(full_name(m.name) == wanted for m in loaded) else "loading"

    async def _read(self, response: UpstreamResponse) -> AsyncGenerator[Event, None]:
        try:
            if response.status >= 400:
                body = await response.read(ERROR_BYTES)
                raise UpstreamRefused(response.status, body, response.headers)
            yield Opened(response.status, tuple(response.headers))
            reader = StreamReader(relay=self._relay, stops=self._stops)
            async for chunk in response:
                for event in reader.feed(chunk):
                    yield event
            for event in reader.close():
                yield event
        finally:
            await response.aclose()


class _Watch:
    """What the looks beside a request that waits add up to; raises when waiting is in vain."""

    def __init__(
        self, model: str, limits: Limits, clock: Clock, others_moved_at: Callable[[], float]
    ) -> None:
        self._model = model
        self._limits = limits
        self._clock = clock
        self._others_moved_at = others_moved_at
        self._started = clock.monotonic()
        self._looked = self._started
        self._loaded_at: float | None = None
        self._strikes = 0

    def judged(self, seen: str | None) -> Progress | None:
        """
        Take in what `Exchange._look` saw; something to tell, or None.

        Raises:
            UpstreamBroken: no daemon, a load or a first token that takes too long.
        """
        before, self._looked = self._looked, self._clock.monotonic()
        self._strikes = self._strikes + 1 if seen is None else 0
        if self._strikes >= STRIKES:
            raise UpstreamBroken(Breakage.ENGINE_DIED, "the daemon no longer answers")
        if seen == "loading":  # perhaps again: a dead runner is listed until it is needed
            self._loaded_at = None
            return self._loading()
        if self._loaded_at is None:
            self._loaded_at = self._looked
        moved_at = self._others_moved_at()
        self._loaded_at = max(self._loaded_at, moved_at)
        if self._looked - self._loaded_at > self._limits.first_token_s:
            waited = f"no token {self._limits.first_token_s:g} s after the load"
            raise UpstreamBroken(Breakage.FIRST_TOKEN_TIMEOUT, waited)
        return Progress("queued", "others are answered first") if moved_at > before else None

    def _loading(self) -> Progress:
        if self._looked - self._started > self._limits.load_s:
            waited = f"`{self._model}` was not loaded after {self._limits.load_s:g} s"
            raise UpstreamBroken(Breakage.FIRST_BYTE_TIMEOUT, waited)
        return Progress("loading", self._model)


async def _abandon(sending: asyncio.Future[UpstreamResponse]) -> None:
    """Give a request up whose answer nobody will read."""
    sending.cancel()
    await asyncio.wait({sending})
    if not sending.cancelled() and sending.exception() is None:
        await sending.result().aclose()
