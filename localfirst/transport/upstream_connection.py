"""
One socket of the hot path: an `asyncio.Protocol` around httptools, with one timer.

It knows one exchange at a time and no pool. Headers are bounded, a body is never decoded,
reading pauses while the reader lags behind, and bytes that nobody asked for end the socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from localfirst.errors import Breakage, UpstreamBroken

HEADER_BYTES = 64 * 1024  # nginx and llhttp's own users allow 8–80 KiB; clouds send about 2
HEADER_COUNT = 200
HIGH_WATER_BYTES = 64 * 1024  # one read of the event loop may come on top (256 KiB)
WRITE_STALL_S = 30.0
DRAIN_S = 1.0
WRITE_TOGETHER_BYTES = 64 * 1024  # below, one copy is cheaper than a second system call

_NAMES: dict[bytes, str] = {}
_NAMES_MOST = 1024


def _lower(name: bytes) -> str:
    """Header names repeat in every answer; their lower-case text is made once."""
    text = name.decode("latin-1").lower()
    if len(_NAMES) < _NAMES_MOST:
        _NAMES[name] = text
    return text


def _size(headers: list[tuple[str, str]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)


class Connection(asyncio.Protocol):
    """One socket and the answer that is being read from it; the loop's thread only."""

    __slots__ = (
        "_chunks", "_dry_bytes", "_encoding", "_last", "_limit_kind", "_limit_s", "_loop",
        "_parser", "_paused", "_queued_bytes", "_then", "_timer", "_timer_at", "_unsent_bytes",
        "_waiter", "_writing", "active", "body_done", "closed", "failure", "head_done",
        "head_only", "headers", "idle_since", "keep_alive", "status", "transport",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._paused = self._writing = False
        self.transport: asyncio.Transport | None = None
        self.closed = self.active = False
        self.idle_since = 0.0
        self.failure: UpstreamBroken | None = None
        self._then: Callable[[], None] | None = None
        self._unsent_bytes = 0
        self._limit_s = self._last = 0.0
        self._limit_kind = Breakage.FIRST_BYTE_TIMEOUT
        self._begin(False)

    def _begin(self, head_only: bool) -> None:
        """Forget the last answer; only a socket whose answer was whole comes here again."""
        self.status = self._dry_bytes = self._queued_bytes = 0
        self.headers: list[tuple[str, str]] = []
        self._encoding = ""
        self.head_only = head_only
        self.head_done = self.body_done = self.keep_alive = False

    # --- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket over; small writes leave at once."""
        self.transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Parse; whatever does not fit the exchange ends the socket."""
        if not self.active or self._parser is None or self.failure is not None:
            self.abort()
            return
        self._last = self._loop.time()
        # Bytes that are no body: headers, chunk sizes, trailers. `on_body` starts over.
        self._dry_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(Breakage.PROTOCOL, "the upstream wants another protocol")
        except httptools.HttpParserError as error:
            self.fail(Breakage.PROTOCOL, f"the answer is not HTTP/1.1 ({type(error).__name__})")
        if self._dry_bytes > HEADER_BYTES and not self.body_done:
            self.fail(Breakage.TOO_LARGE, "headers over 64 KiB")
        self._wake()

    def eof_received(self) -> bool:
        """Half-closed is closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Decide what the end means for the exchange, and let go of everything."""
        self.closed = True
        if self.active and not self.body_done and self.failure is None:
            self._end_of_input(exc)
        self._stop_timer()
        self._parser = self.transport = None
        self._wake()

    def _end_of_input(self, error: Exception | None) -> None:
        """A close is an end only for a body that has no other end."""
        framed = any(name in {"content-length", "transfer-encoding"} for name, _ in self.headers)
        if self.head_done and error is None and not framed:
            self.body_done = True
        elif self.status or self._dry_bytes:
            self.failure = UpstreamBroken(Breakage.CUT, "the connection ended inside the answer")
        else:
            self.failure = UpstreamBroken(Breakage.RESET, "the connection closed before an answer")

    def pause_writing(self) -> None:
        """The peer takes our request slower than we send it."""
        self._writing = True

    def resume_writing(self) -> None:
        """The rest of the request fits into the socket."""
        self._writing = False
        self._wake()

    # --- httptools -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Forget the headers of an interim (1xx) answer; refuse a second answer."""
        if self.body_done:
            raise ValueError("an answer that nobody asked for")
        if self.headers:
            self.headers = []
            self._encoding = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect; trailers are left out."""
        if self.head_done:
            return
        if len(self.headers) >= HEADER_COUNT:
            self.fail(Breakage.TOO_LARGE, "more than 200 headers")
            return
        text = value.decode("latin-1")
        known = _NAMES.get(name) or _lower(name)
        if known == "content-encoding" and text.strip().lower() not in {"", "identity"}:
            self._encoding = text
        self.headers.append((known, text))

    def on_headers_complete(self) -> None:
        """The answer has a status now, unless it is an interim one."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        self.status = status
        self.head_done = True
        self.keep_alive = self._parser.should_keep_alive() and not self.head_only
        # Only a read that is larger than the bound can hold so much and the body's start.
        if self._dry_bytes > HEADER_BYTES and _size(self.headers) > HEADER_BYTES:
            self.fail(Breakage.TOO_LARGE, "headers over 64 KiB")
        if self.head_only:
            self.body_done = True
        elif self._encoding:
            self._encoded()

    def _encoded(self) -> None:
        """The body is of no use: identity was asked for."""
        if self.status >= 400:
            # The status says enough; what the body says stays unread.
            self.head_only, self.body_done, self.keep_alive = True, True, False
        else:
            said = f"`{self._encoding[:20]}` came although identity was asked for"
            self.fail(Breakage.ENCODING, said)

    def on_body(self, body: bytes) -> None:
        """Queue a piece, and stop reading when too much waits."""
        if self.failure is not None or self.head_only:
            return
        self._dry_bytes = 0
        self._queued_bytes += len(body)
        if self._then is not None:
            if self._queued_bytes > HIGH_WATER_BYTES:
                self.fail(Breakage.TOO_LARGE, "more behind the end than is worth reading")
            return
        self._chunks.append(body)
        if self._queued_bytes > HIGH_WATER_BYTES and not self._paused and self.transport:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """The body's end, by its own framing."""
        if self.head_done:
            self.body_done = True

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: both sides have said all they had to say."""
        return (
            self.body_done
            and self.keep_alive
            and not self.closed
            and self.failure is None
            and self.transport is not None
            and self.transport.get_write_buffer_size() == 0
        )

    # --- one exchange ----------------------------------------------------------------------

    async def exchange(
        self, head: bytes, body: bytes, first_byte_s: float, stall_s: float, head_only: bool
    ) -> None:
        """Send a request and wait for the answer's headers; raises `UpstreamBroken`."""
        transport = self.transport
        if self.closed or transport is None:
            raise UpstreamBroken(Breakage.RESET, "the connection closed before the request")
        self._begin(head_only)
        self.active = True
        if len(body) <= WRITE_TOGETHER_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        if self._writing:
            await self._written()
        self._watch(first_byte_s, Breakage.FIRST_BYTE_TIMEOUT)
        while not self.head_done and self.failure is None:
            self._waiter = waiter = self._loop.create_future()
            await waiter
        if self.failure is not None:
            raise self.failure
        if not self.body_done:
            self._watch(stall_s, Breakage.STALL_TIMEOUT)

    async def _written(self) -> None:
        """Wait until the request is out, or an answer (a refusal, mostly) came before that."""
        self._watch(WRITE_STALL_S, Breakage.WRITE_TIMEOUT)
        while self._writing and not self.head_done and self.failure is None:
            await self._wait()

    def ready(self) -> bytes:
        """Everything of the body that has come; empty where the next piece must be waited for."""
        return self._take() if self._chunks else b""

    async def chunk(self) -> bytes:
        """Everything of the body that has come; empty at its end. Raises `UpstreamBroken`."""
        while True:
            if self._chunks:
                return self._take()
            if self.failure is not None:
                raise self.failure
            if self.body_done:
                return b""
            await self._wait()

    def whole(self, limit_bytes: int) -> bytes:
        """The body where it came in one piece with its end; else empty, and still to be read."""
        if self.body_done and len(self._chunks) == 1 and self._queued_bytes <= limit_bytes:
            return self._take()
        return b""

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._queued_bytes = 0
        if self._paused:
            # The reader was slow, not the upstream: its clock starts again.
            self._last = self._loop.time()
            self._resume_reading()
        return data

    def drain(self, then: Callable[[], None]) -> None:
        """Throw the rest of the body away, then call *then*; give up after a second."""
        self._then = then
        self._chunks.clear()
        self._queued_bytes = 0
        self._resume_reading()
        self._watch(DRAIN_S, Breakage.STALL_TIMEOUT)

    def _drained(self) -> None:
        """Hand the socket back, whole or failed."""
        then, self._then = self._then, None
        if then is not None:
            then()

    def settle(self, now: float) -> None:
        """Become idle; a body that was not read is thrown away."""
        self.active = False
        self._chunks.clear()
        self.idle_since = now
        self._resume_reading()

    def fail(self, breakage: Breakage, detail: str) -> None:
        """End this exchange and the socket with it; a complete answer stays complete."""
        if self.failure is None and not self.body_done:
            self.failure = UpstreamBroken(breakage, detail)
        self.abort()

    def abort(self) -> None:
        """Close the socket now, unsent bytes and all; whoever waits is told."""
        self._stop_timer()
        if self.transport is not None:
            self.transport.abort()
        if self.active and not self.body_done and self.failure is None:
            self.failure = UpstreamBroken(Breakage.RESET, "the connection was closed")
        self._wake()

    # --- waiting ---------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._waiter = waiter = self._loop.create_future()
        await waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        # Done already where its reader was cancelled.
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._then is not None and (self.body_done or self.failure is not None):
            self._drained()

    def _resume_reading(self) -> None:
        if self._paused and self.transport is not None:
            self.transport.resume_reading()
        self._paused = False

    def _watch(self, limit_s: float, kind: Breakage) -> None:
        """
        Bound the silence from now on.

        One timer serves a connection's whole life: it fires at the earliest instant that
        matters, looks when the last byte came, and goes on. So a request costs no timer.
        """
        self._limit_s, self._limit_kind = limit_s, kind
        self._last = now = self._loop.time()
        if self._timer is None or self._timer_at > now + limit_s:
            self._stop_timer()
            self._set_timer(now, limit_s)

    def _set_timer(self, now: float, rest_s: float) -> None:
        self._timer_at = now + rest_s
        self._timer = self._loop.call_later(rest_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self.active or self.body_done or self.failure is not None:
            return
        now = self._loop.time()
        if self._paused or self._wrote_some():
            self._last = now
        rest_s = self._last + self._limit_s - now
        if rest_s > 0.001:
            self._set_timer(now, rest_s)
            return
        self.fail(self._limit_kind, f"nothing came for {self._limit_s:g} s")

    def _wrote_some(self) -> bool:
        if self._limit_kind is not Breakage.WRITE_TIMEOUT or self.transport is None:
            return False
        before, self._unsent_bytes = self._unsent_bytes, self.transport.get_write_buffer_size()
        return self._unsent_bytes < before or before == 0

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
