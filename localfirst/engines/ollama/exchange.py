"""
One generation by Ollama: sent, waited for while the model loads, read to its terminator.

The daemon sends its first byte with the first token, so a load and a hang look alike from
the socket. They are told apart by asking beside it: while the daemon answers and the model
is not in `/api/ps`, it is loading.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

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
from localfirst.wire.ollama.events import StreamReader

LOOK_EVERY_S = 1.0
STRIKES = 3
ERROR_BYTES = 2**20


class Exchange:
    """One request to one daemon; `events` is read once."""

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
        started = self._clock.monotonic()
        loaded_at: float | None = None
        strikes = 0
        while True:
            await asyncio.wait({sending}, timeout=LOOK_EVERY_S)
            if sending.done():
                return
            seen = await self._look()
            now = self._clock.monotonic()
            strikes = strikes + 1 if seen is None else 0
            if strikes >= STRIKES:
                raise UpstreamBroken(Breakage.ENGINE_DIED, "the daemon no longer answers")
            if seen == "loading" and loaded_at is None:
                if now - started > self._limits.load_s:
                    waited = f"`{self._model}` was not loaded after {self._limits.load_s:g} s"
                    raise UpstreamBroken(Breakage.FIRST_BYTE_TIMEOUT, waited)
                yield Progress("loading", self._model)
            elif loaded_at is None:
                loaded_at = now
            elif now - loaded_at > self._limits.first_token_s:
                waited = f"no token {self._limits.first_token_s:g} s after the load"
                raise UpstreamBroken(Breakage.FIRST_TOKEN_TIMEOUT, waited)

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
            reader = StreamReader(relay=self._relay)
            async for chunk in response:
                for event in reader.feed(chunk):
                    yield event
            for event in reader.close():
                yield event
        finally:
            await response.aclose()


async def _abandon(sending: asyncio.Future[UpstreamResponse]) -> None:
    """Give a request up whose answer nobody will read."""
    sending.cancel()
    await asyncio.wait({sending})
    if not sending.cancelled() and sending.exception() is None:
        await sending.result().aclose()
