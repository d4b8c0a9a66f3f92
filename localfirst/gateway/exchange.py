"""
One request and its answer on a connection: the body that comes, the bytes that go.

There is one server and one application here, so nothing stands between them: a whole answer
is one write, and a header block that repeats is handed over rendered.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from localfirst.errors import StreamInterrupted, Unavailable
from localfirst.gateway.body import Body
from localfirst.gateway.hub import Hub, Limits

if TYPE_CHECKING:
    from localfirst.gateway.connection import Connection
    from localfirst.gateway.repeat import Repeat

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

HUNG_UP = 499
"""What logs and counts say of an answer that its client did not wait for, as nginx does."""

WRITE_TOGETHER_BYTES = 64 * 2**10
"""Below, one copy is cheaper than a second system call."""


class Exchange:
    """
    What a handler's `Request` needs of the wire.

    `started` once the answer's head was written, `complete` once its last byte was; `body`
    is shared with the connection, which feeds it. `over` is the status and the outcome of a
    request that nobody waits for any more; nothing is written to it.
    """

    started = complete = _chunked = False
    over: tuple[int, str] | None = None
    _head_bytes = b""
    _reserved_bytes = 0
    _waiter: asyncio.Future[None] | None = None

    def __init__(
        self,
        connection: Connection,
        hub: Hub,
        body: Body,
        repeat: Repeat,
    ) -> None:
        self._connection = connection
        self._hub = hub
        self.head = head = repeat.head
        self.body = body
        self.repeat = repeat
        self.keep_alive = head.keep_alive
        if not body.done:
            self._began = hub.loop.time()

    @property
    def server(self) -> tuple[str, int]:
        """Address and port at which the client found us."""
        return self._connection.server

    # --- the request's body ----------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Bytes of the body; returns what comes behind it."""
        rest = self.body.feed(data)
        self.reserve(self.body.held_bytes)
        if self.body.done:
            self._wake()
        return rest

    async def receive(self) -> bytes:
        """
        The whole body.

        Raises:
            StreamInterrupted: the client hung up before its end.
        """
        if not self.body.done:
            if self.head.expects and not self.started:
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            while not self.body.done and self.over is None:
                await self._woken()
        if self.over is not None:
            raise StreamInterrupted("the client hung up before its request was whole")
        return self.body.take()

    def body_too_slow(self, now: float, limits: Limits) -> bool:
        """Whether the body comes slower than the limits allow."""
        if self.body.done or self.started:
            return False
        elapsed_s = now - self._began
        if elapsed_s < limits.body_grace_s:
            return False
        return self.body.held_bytes < elapsed_s * limits.body_bytes_s

    def lost(self, status: int = HUNG_UP, outcome: str = "cancelled") -> None:
        """The client hung up, or was refused and told so."""
        self.over = status, outcome
        self._wake()

    def release(self) -> None:
        """Give back the memory that was counted for the body."""
        self._hub.bodies_bytes -= self._reserved_bytes
        self._reserved_bytes = 0

    def reserve(self, size_bytes: int) -> None:
        """Count the memory that the body takes; raises `Unavailable` when all do too much."""
        self._hub.bodies_bytes += size_bytes - self._reserved_bytes
        self._reserved_bytes = size_bytes
        if self._hub.bodies_bytes > self._hub.limits.max_bodies_bytes:
            raise Unavailable(
                "too many large bodies at once", code="too-many-bodies", retry_after_s=1.0
            )

    async def _woken(self) -> None:
        self._waiter = self._hub.loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- the answer ------------------------------------------------------------------------

    async def answer(self, status: int, lines: bytes, data: bytes) -> None:
        """
        Write a whole answer.

        Args:
            status: of HTTP.
            lines: rendered headers; length, date and connection are added here.
            data: the body.
        """
        if self.started or self.over is not None:
            return
        sized = b"" if status == 204 else b"content-length: %d\r\n" % len(data)
        head = self._head(status, lines, sized)
        self.started = self.complete = True
        write = self._connection.write
        if self.head.method == "HEAD":
            write(head)
        elif len(data) <= WRITE_TOGETHER_BYTES:
            write(head + data)
        else:
            write(head)
            write(data)
        if self._connection.writable is not None:
            await self._caught_up()

    def start(self, status: int, lines: bytes) -> None:
        """Begin an answer of unknown length; its head leaves with the first piece."""
        if self.started:
            return
        self._chunked = self.head.http_11 and self.head.method != "HEAD"
        self.keep_alive = self.keep_alive and self.head.http_11
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self._head_bytes = self._head(status, lines, framing)

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Write a piece of the answer that was started; waits while the client is behind."""
        if self.over is not None:
            return
        if self.head.method == "HEAD":
            data = b""
        self._connection.write(self._framed(data, last))
        self.started = True
        self.complete = last
        if self._connection.writable is not None:
            await self._caught_up()

    async def _caught_up(self) -> None:
        writable = self._connection.writable
        if writable is not None and self.over is None:
            await asyncio.shield(writable)

    def _head(self, status: int, lines: bytes, framing: bytes) -> bytes:
        hub = self._hub
        if hub.draining or not self.body.done:
            self.keep_alive = False
        if not self.keep_alive:
            end = b"connection: close\r\n\r\n"
        else:
            end = b"\r\n" if self.head.http_11 else b"connection: keep-alive\r\n\r\n"
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return b"%b%b%bdate: %b\r\n%b" % (line, lines, framing, hub.date, end)

    def _framed(self, data: bytes, last: bool) -> bytes:
        head, self._head_bytes = self._head_bytes, b""
        if not self._chunked:
            return head + data if head else data
        end = b"0\r\n\r\n" if last else b""
        if not data:
            return head + end
        return b"%b%x\r\n%b\r\n%b" % (head, len(data), data, end)
