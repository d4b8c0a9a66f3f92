"""
One client's connection: bytes to requests, answers to bytes, and every wait bounded.

An `asyncio.Protocol` that hands requests to the application. They are answered one after
the other; a client that hangs up cancels its request at once; a refused one is told why,
and its connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from typing import cast

from localfirst.errors import AccessDenied, LocalFirstError, Unavailable
from localfirst.gateway import head as heads
from localfirst.gateway.body import NO_BODY, Body, Chunked, Counted, Whole, too_large
from localfirst.gateway.exchange import HUNG_UP, Exchange
from localfirst.gateway.hub import Hub
from localfirst.gateway.refusal import refusal
from localfirst.gateway.repeat import Repeat

log = logging.getLogger("localfirst.gateway")

READ_AHEAD_BYTES = 64 * 2**10
"""What may wait unread behind a running request before the socket is left alone."""


KEPT_HEAD_BYTES = 4 * 2**10
"""Larger heads are read anew each time: thousands of idle clients must not fill memory."""


SMALL_BODY_BYTES = 64 * 2**10
"""Bodies that come whole and are no larger are bounded by the number of connections."""


class Phase(StrEnum):
    """Where a connection stands."""

    IDLE = "idle"
    HEAD = "head"
    BUSY = "busy"
    LINGER = "linger"
    CLOSED = "closed"


class Connection(asyncio.Protocol):
    """One accepted socket; owned by the `Hub` it is listed in."""

    __slots__ = (
        "_answering",
        "_buffer",
        "_deadline",
        "_exchange",
        "_hub",
        "_next",
        "_paused_reading",
        "_queued_bytes",
        "_repeat",
        "_stalled_at",
        "_task",
        "_transport",
        "_writable",
        "client",
        "phase",
        "server",
    )

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused_reading = self._answering = False
        self._repeat: Repeat | None = None
        self._deadline = 0.0
        self._stalled_at = 0.0
        self._queued_bytes = 0
        self.phase = Phase.HEAD
        self.client: tuple[str, int] = ("", 0)
        self.server: tuple[str, int] = ("", 0)

    # --- life ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or turn away when the house is full."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.client = _address(self._transport, "peername")
        self.server = _address(self._transport, "sockname")
        full = self._hub.full
        self._hub.connections.add(self)
        self._wait(Phase.HEAD, self._hub.limits.head_s)
        if full:
            self._refuse(
                Unavailable("too many connections", code="too-many-connections", retry_after_s=1.0)
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whatever runs for it is cancelled."""
        self.phase = Phase.CLOSED
        self._hub.left(self)
        self.resume_writing()
        self._lose()

    def eof_received(self) -> None:
        """Half a connection is none: nobody waits for the answer."""

    def look(self, now: float) -> None:
        """The sweep's visit: end what takes too long."""
        if self._writable is not None and self._stalled(now):
            log.info("client %s reads nothing: its connection is closed", self.client[0])
            self.abort()
        elif self.phase is Phase.BUSY:
            if self._exchange is not None and self._exchange.body_too_slow(now, self._hub.limits):
                self._refuse(heads.malformed("the body came too slowly", code="slow", status=408))
        elif now >= self._deadline:
            self._close()

    def close_if_idle(self) -> None:
        """Close unless a request runs."""
        if self.phase is not Phase.BUSY:
            self._close()

    def cancel(self) -> None:
        """End the running request; its answer ends with an error as far as it can."""
        if self._task is not None:
            self._task.cancel()
        if self.phase is Phase.BUSY and not self._answering:
            # Cancelled before its first step, a task never comes to closing anything.
            self._close()

    def abort(self) -> None:
        """Drop the connection and what was not sent."""
        if self._transport is not None:
            self._transport.abort()

    # --- reading ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, or of a request behind the running one."""
        if self.phase is Phase.LINGER:
            return
        try:
            if self.phase is Phase.BUSY:
                self._more(data)
            else:
                self._buffer = self._buffer + data if self._buffer else data
                self._read_head()
        except LocalFirstError as error:
            self._refuse(error)

    def _more(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.body.done:
            data = exchange.feed(data)
        if data:
            self._buffer += data
            if len(self._buffer) > READ_AHEAD_BYTES and self._transport is not None:
                self._paused_reading = True
                self._transport.pause_reading()

    def _read_head(self) -> None:
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            if self.phase is Phase.IDLE:
                self._wait(Phase.HEAD, self._hub.limits.head_s)
            heads.check_unfinished(buffer)
            return
        data, repeat = buffer[:end], self._repeat
        length = -1 if repeat is None else repeat.again(data)
        if repeat is None or length < 0:
            repeat = self._new_head(data)
            length = repeat.head.length or 0
        body = self._body(repeat.head, length, buffer[end : end + length])
        rest = buffer[end + len(body.data) :]
        self._buffer = b""
        self.phase = Phase.BUSY
        self._exchange = exchange = Exchange(self, self._hub, body, repeat)
        if length > SMALL_BODY_BYTES and body.data:
            exchange.reserve(length)
        if rest:
            self._more(rest)
        if self._task is None:
            self._task = self._hub.loop.create_task(self._serve())
        elif self._next is not None and not self._next.done():
            self._next.set_result(None)

    def _new_head(self, data: bytes) -> Repeat:
        repeat = Repeat(data, heads.parse(data))
        self._repeat = repeat if len(data) <= KEPT_HEAD_BYTES else None
        return repeat

    def _body(self, head: heads.Head, length: int, begin: bytes) -> Body:
        """The body, whole where *begin* is all of it."""
        limit_bytes = self._hub.limits.max_body_bytes
        if head.chunked:
            return Chunked(limit_bytes)
        if length > limit_bytes:
            raise too_large(limit_bytes)
        if len(begin) == length:
            return Whole(begin) if length else NO_BODY
        return Counted(length)

    async def _serve(self) -> None:
        """
        Answer one request after the other: a task for each would cost as much as its socket.

        Whoever cancels it ends the connection; it goes on for nobody.
        """
        hub, create_future = self._hub, self._hub.loop.create_future
        exchange = self._exchange
        try:
            while exchange is not None:
                self._answering = True
                try:
                    await hub.app(exchange)
                except Exception:
                    # The top frame of a request: the server outlives whatever went wrong inside.
                    log.exception("a request failed")
                    exchange.keep_alive = False
                self._answered(exchange)
                # Nothing of a request stays while the next one is waited for.
                exchange = self._exchange
                if self.phase is Phase.IDLE:
                    self._next = create_future()
                    await self._next
                    exchange = self._exchange
        except asyncio.CancelledError:
            if (exchange := self._exchange) is not None:
                exchange.keep_alive = False
                self._answered(exchange)
        finally:
            self._task = None

    def _answered(self, exchange: Exchange) -> None:
        exchange.release()
        self._exchange = None
        self._answering = False
        if self.phase is not Phase.BUSY or self._transport is None:
            return
        if not exchange.complete:
            # An answer that was cut must look cut: no last chunk, no next request.
            self._close()
        elif not exchange.body.done or not exchange.keep_alive:
            self._linger()
        elif self._hub.draining:
            self._close()
        else:
            self._become_idle()

    def _become_idle(self) -> None:
        self._wait(Phase.IDLE, self._hub.limits.idle_s)
        if self._paused_reading and self._transport is not None:
            self._paused_reading = False
            self._transport.resume_reading()
        if self._buffer:
            try:
                self._read_head()
            except LocalFirstError as error:
                self._refuse(error)

    # --- writing ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue bytes for the client; none are sent to one that is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def writable(self) -> asyncio.Future[None] | None:
        """What to wait for before more is written; None when there is room."""
        return self._writable

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        if self._writable is None:
            self._writable = self._hub.loop.create_future()
            self._stalled_at = self._hub.loop.time()
            self._queued_bytes = 0

    def resume_writing(self) -> None:
        """The client has caught up."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _stalled(self, now: float) -> bool:
        assert self._transport is not None
        queued_bytes = self._transport.get_write_buffer_size()
        if queued_bytes != self._queued_bytes:
            self._queued_bytes, self._stalled_at = queued_bytes, now
        return now - self._stalled_at >= self._hub.limits.stall_s

    # --- ending ----------------------------------------------------------------------------

    def _refuse(self, error: LocalFirstError) -> None:
        """Answer what is no request to be run, and hear no more from this client."""
        self._hub.refused += 1
        exchange = self._exchange
        if exchange is not None and exchange.started:
            self._close()
            return
        tls = isinstance(error, AccessDenied) and self._buffer[:1] == b"\x16"
        if not tls:
            path = exchange.head.path if exchange else _guess_path(self._buffer)
            self.write(refusal(error, path, date=self._hub.date))
        self._lose(error.http_status, error.code)
        if tls:
            self._close()
        else:
            self._linger()

    def _lose(self, status: int = HUNG_UP, outcome: str = "cancelled") -> None:
        """Nobody waits for an answer any more."""
        if (exchange := self._exchange) is not None:
            exchange.lost(status, outcome)
            if not self._answering:
                # Lost before anybody could answer it: nobody else gives its memory back.
                exchange.release()
                self._exchange = None
        if self._task is not None:
            self._task.cancel()

    def _linger(self) -> None:
        """
        Say no more, but keep reading a while.

        Closing with unread bytes makes the kernel reset the connection, and the client may
        lose the answer it was about to read (RFC 9112 §9.6).
        """
        self._buffer = b""
        self._wait(Phase.LINGER, self._hub.limits.linger_s)
        if self._transport is None or self._transport.is_closing():
            return
        if self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def _wait(self, phase: Phase, seconds: float) -> None:
        self.phase = phase
        self._deadline = self._hub.loop.time() + seconds


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int]:
    found = transport.get_extra_info(name)
    if isinstance(found, tuple) and len(found) >= 2:
        return str(found[0]), int(found[1])
    return "", 0


def _guess_path(data: bytes) -> bytes:
    """The path of a head that was refused, only to choose the shape of the refusal."""
    words = data[:2048].split(b" ", 2)
    return words[1] if len(words) > 1 else b""


__all__ = ["Connection", "Phase"]
