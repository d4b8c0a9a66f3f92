"""One request and its answer on a connection, as ASGI's `scope`, `receive` and `send`."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from localfirst.errors import Unavailable
from localfirst.gateway.body import Body
from localfirst.gateway.head import Head
from localfirst.gateway.hub import Hub, Limits, Message, Scope

if TYPE_CHECKING:
    from localfirst.gateway.connection import Connection

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

_ASGI = {"version": "3.0", "spec_version": "2.4"}


class Exchange:
    """
    What ASGI needs of one request.

    `started` once the answer's head was written, `complete` once its last byte was; `body`
    is shared with the connection, which feeds it.
    """

    __slots__ = (
        "_began",
        "_chunked",
        "_connection",
        "_gone",
        "_head_bytes",
        "_hub",
        "_reserved_bytes",
        "_waiter",
        "body",
        "complete",
        "head",
        "keep_alive",
        "started",
    )

    def __init__(self, connection: Connection, hub: Hub, head: Head, body: Body) -> None:
        self._connection = connection
        self._hub = hub
        self.head = head
        self.body = body
        self.keep_alive = head.keep_alive
        self.started = False
        self.complete = False
        self._began = 0.0 if body.done else hub.loop.time()
        self._chunked = False
        self._gone = False
        self._head_bytes = b""
        self._reserved_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def scope(self) -> Scope:
        """The request as ASGI describes it."""
        head = self.head
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1" if head.http_11 else "1.0",
            "method": head.method,
            "scheme": "http",
            "path": head.path.decode("latin-1"),
            "raw_path": head.path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            "client": self._connection.client,
            "server": self._connection.server,
        }

    # --- the request's body ----------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Bytes of the body; returns what comes behind it."""
        rest = self.body.feed(data)
        self._reserve(len(self.body.data))
        if self.body.done:
            self._wake()
        return rest

    async def receive(self) -> Message:
        """The whole body at once, then the disconnection."""
        if self.head.expects and not self.started and not self.body.done:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.body.done and not self._gone:
            await self._woken()
        if self.body.done and not self._gone:
            data, self.body.data = self.body.data, bytearray()
            return {"type": "http.request", "body": bytes(data), "more_body": False}
        return {"type": "http.disconnect"}

    def body_too_slow(self, now: float, limits: Limits) -> bool:
        """Whether the body comes slower than the limits allow."""
        elapsed_s = now - self._began
        if self.body.done or self.started or elapsed_s < limits.body_grace_s:
            return False
        return len(self.body.data) < elapsed_s * limits.body_bytes_s

    def lost(self) -> None:
        """The client hung up, or was refused."""
        self._gone = True
        self._wake()

    def release(self) -> None:
        """Give back the memory that was counted for the body."""
        self._reserve(0)

    def _reserve(self, size_bytes: int) -> None:
        self._hub.bodies_bytes += size_bytes - self._reserved_bytes
        self._reserved_bytes = size_bytes
        if size_bytes and self._hub.bodies_bytes > self._hub.limits.max_bodies_bytes:
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

    async def send(self, message: Message) -> None:
        """Write a piece of the answer; waits while the client is behind."""
        if message["type"] == "http.response.start":
            self._start(message)
            return
        data: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self.head.method == "HEAD":
            data = b""
        self._connection.write(self._framed(data, more))
        self.started = True
        self.complete = not more
        writable = self._connection.writable
        if writable is not None and not self._gone:
            await asyncio.shield(writable)

    def _start(self, message: Message) -> None:
        if self.started:
            return
        status = message["status"]
        parts = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        sized = False
        for name, value in message["headers"]:
            if name == b"connection":  # written once, below
                self.keep_alive = self.keep_alive and value != b"close"
                continue
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                sized = True
        if self._hub.draining or not self.body.done:
            self.keep_alive = False
        if not sized and status != 204:
            self._chunked = self.head.http_11 and self.head.method != "HEAD"
            self.keep_alive = self.keep_alive and self.head.http_11
            if self._chunked:
                parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"date: %b\r\n" % self._hub.date)
        parts.append(self._connection_line())
        self._head_bytes = b"".join(parts)

    def _connection_line(self) -> bytes:
        if not self.keep_alive:
            return b"connection: close\r\n\r\n"
        return b"\r\n" if self.head.http_11 else b"connection: keep-alive\r\n\r\n"

    def _framed(self, data: bytes, more: bool) -> bytes:
        head, self._head_bytes = self._head_bytes, b""
        if not self._chunked:
            return head + data if head else data
        end = b"" if more else b"0\r\n\r\n"
        if not data:
            return head + end
        return b"%b%x\r\n%b\r\n%b" % (head, len(data), data, end)
