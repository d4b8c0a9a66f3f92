"""
What the connections of one server share: its limits, who is connected, and the sweep.

One timer looks at every connection a few times a second. A timer each would cost every
request two more calls into the event loop, and slow clients are caught early enough so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from localfirst.gateway.connection import Connection
    from localfirst.gateway.exchange import Exchange

App = Callable[["Exchange"], Awaitable[None]]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a client may take of the server, in seconds, bytes and sockets.

    `head_s` counts from the accept (or the first byte of a later request), not from the
    last byte: a drip does not prolong it. A body must come at `body_bytes_s` on average
    once `body_grace_s` are over. `stall_s` bounds a client that reads nothing, `linger_s`
    the time a refused client gets to read why.
    """

    head_s: float = 10.0
    idle_s: float = 15.0
    body_grace_s: float = 30.0
    body_bytes_s: float = 1024.0
    stall_s: float = 60.0
    linger_s: float = 2.0
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_connections: int = 2048


class Hub:
    """
    Every open connection of one server, and what they all need.

    Args:
        app: answers one request.
        limits: see `Limits`.
        unix: seconds since 1970, for the `date` header.
        sweep_s: seconds between two looks at the connections.
    """

    def __init__(
        self, app: App, *, limits: Limits, unix: Callable[[], float], sweep_s: float = 0.5
    ) -> None:
        self.app = app
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.bodies_bytes = 0
        self.refused = 0
        self.draining = False
        self.drained = asyncio.Event()
        self.date = b""
        self._unix = unix
        self._sweep_s = sweep_s
        self._timer: asyncio.TimerHandle | None = None
        self._sweep()

    def protocol(self) -> Connection:
        """A protocol for one accepted socket."""
        from localfirst.gateway.connection import Connection

        return Connection(self)

    @property
    def full(self) -> bool:
        """Whether one more connection would be too many."""
        return len(self.connections) >= self.limits.max_connections

    def left(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self.drained.set()

    async def drain(self, drain_s: float) -> None:
        """
        Let what runs finish for *drain_s*, then end it with an error, then close.

        Idle connections are closed at once.
        """
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()
        await self._emptied(drain_s)
        for connection in list(self.connections):
            connection.cancel()
        await self._emptied(self.limits.linger_s)
        for connection in list(self.connections):
            connection.abort()
        await self._emptied(1.0)
        if self._timer is not None:
            self._timer.cancel()

    async def _emptied(self, seconds: float) -> None:
        if not self.connections:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.drained.wait()
        except TimeoutError:
            return

    def _sweep(self) -> None:
        now = self.loop.time()
        self.date = formatdate(self._unix(), usegmt=True).encode()
        for connection in list(self.connections):
            connection.look(now)
        self._timer = self.loop.call_later(self._sweep_s, self._sweep)
