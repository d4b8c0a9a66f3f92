"""
One socket of the hot path: an asyncio.Protocol around httptools, with its own timer.

Reading pauses while the reader lags behind, headers are bounded, a body is never decoded.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import cast

import httptools

from localfirst.errors import Breakage, UpstreamBroken

HEADER_BYTES = 64 * 1024
HEADER_COUNT = 200
HIGH_WATER = 256 * 1024


class Connection(asyncio.Protocol):
    """One socket and the answer that is being read from it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        self.reused = False
        self.idle_since = 0.0
        self.closed = False
        self._parser: httptools.HttpResponseParser | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.head_done = self.body_done = self.keep_alive = False
        self.failure: UpstreamBroken | None = None
        self._header_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._queued = 0
        self._paused = False
        self._seen_bytes = False
        self._waiter: asyncio.Future[None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self._limit_s = 0.0
        self._limit_kind = Breakage.FIRST_BYTE_TIMEOUT
        self._last = 0.0

    # --- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != getattr(socket, "AF_UNIX", None):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.abort()  # bytes that nobody asked for
            return
        self._last = self._loop.time()
        self._seen_bytes = True
        if not self.head_done:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(Breakage.PROTOCOL, "the upstream wants another protocol")
        except httptools.HttpParserError as error:
            self.fail(Breakage.PROTOCOL, type(error).__name__)
        if not self.head_done and self._header_bytes > HEADER_BYTES:
            self.fail(Breakage.TOO_LARGE, "headers over 64 KiB")
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._parser is not None and not self.body_done and self.failure is None:
            self._end_of_input(error)
        self._stop_timer()
        self._wake()
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    def _end_of_input(self, error: Exception | None) -> None:
        """A close is an end only for a body that has no other end."""
        names = {name for name, _ in self.headers}
        if self.head_done and error is None and not names & {"content-length", "transfer-encoding"}:
            self.body_done = True
        elif self._seen_bytes:
            self.failure = UpstreamBroken(Breakage.CUT, "the connection ended inside the answer")
        else:
            self.failure = UpstreamBroken(Breakage.RESET, "closed before an answer")

    def pause_writing(self) -> None:
        self._drain = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        self._drain = None

    # --- httptools -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # A 1xx answer precedes the real one; start over.
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADER_COUNT:
            self.fail(Breakage.TOO_LARGE, "more than 200 headers")
            return
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        self.status = status
        self.head_done = True
        self.keep_alive = self._parser.should_keep_alive()
        for name, value in self.headers:
            if name == "content-encoding" and value.strip().lower() not in {"", "identity"}:
                self.fail(Breakage.ENCODING, f"content-encoding `{value[:20]}` was not asked for")

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._queued += len(body)
        if self._queued > HIGH_WATER and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.head_done:
            self.body_done = True
            self._stop_timer()

    def settle(self, now: float) -> None:
        """Become idle: no parser, so that unasked bytes close the socket."""
        self._parser = None
        self.idle_since = now
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    # --- one exchange ----------------------------------------------------------------------

    def fail(self, breakage: Breakage, detail: str) -> None:
        """End this exchange and the socket with it."""
        if self.failure is None and not self.body_done:
            self.failure = UpstreamBroken(breakage, detail)
        self.abort()

    def abort(self) -> None:
        """Close the socket now, unsent bytes and all."""
        self._stop_timer()
        if self.transport is not None:
            self.transport.abort()
        self._wake()

    async def exchange(self, head: bytes, body: bytes, first_byte_s: float, stall_s: float) -> None:
        """Send a request and wait for the answer's headers."""
        assert self.transport is not None
        self._reset()
        self._parser = httptools.HttpResponseParser(self)
        self._watch(first_byte_s, Breakage.FIRST_BYTE_TIMEOUT)
        self.transport.write(head + body if len(body) < HIGH_WATER else head)
        if len(body) >= HIGH_WATER:
            self.transport.write(body)
        if self._drain is not None:
            await self._drain
        while not self.head_done and self.failure is None:
            await self._wait()
        if self.failure is not None:
            raise self.failure
        if not self.body_done:
            self._watch(stall_s, Breakage.STALL_TIMEOUT)

    async def chunk(self) -> bytes:
        """The next piece of the body; empty at its end."""
        while True:
            if self._chunks:
                data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._queued = 0
                if self._paused and self.transport is not None:
                    self._paused = False
                    self._last = self._loop.time()
                    self.transport.resume_reading()
                return data
            if self.failure is not None:
                raise self.failure
            if self.body_done:
                return b""
            await self._wait()

    async def _wait(self) -> None:
        if self.closed and self.failure is None and not self.body_done:
            self.failure = UpstreamBroken(Breakage.RESET, "the connection is closed")
            return
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _watch(self, limit_s: float, kind: Breakage) -> None:
        """One timer a connection: it looks how long ago the last byte came, and goes on."""
        self._limit_s, self._limit_kind = limit_s, kind
        self._last = self._loop.time()
        self._stop_timer()
        self._timer = self._loop.call_later(limit_s, self._look)

    def _look(self) -> None:
        rest = self._last + self._limit_s - self._loop.time()
        if self._paused or rest > 0.001:
            self._timer = self._loop.call_later(self._limit_s if self._paused else rest, self._look)
            return
        self.fail(self._limit_kind, f"nothing came for {self._limit_s:g} s")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
