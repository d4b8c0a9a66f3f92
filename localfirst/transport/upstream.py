"""
The hot path's HTTP client: asyncio and httptools, keep-alive, four timeouts, back-pressure.

It never follows a redirect, never decodes a body, asks for identity encoding, and bounds
every header. Error statuses are answers; whatever fails below HTTP is `UpstreamBroken`.
The pool grows with demand and keeps idle sockets for a while; nothing waits for a slot.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from localfirst.errors import Breakage, PrivacyRefused, UpstreamBroken, let_go
from localfirst.transport.bulk import tls_context
from localfirst.transport.http import is_loopback
from localfirst.transport.upstream_connection import Connection
from localfirst.transport.upstream_names import Names
from localfirst.transport.upstream_open import Origin, open_connection
from localfirst.transport.upstream_proxy import from_environment as from_environment
from localfirst.transport.upstream_proxy import proxy_of
from localfirst.types import Clock

IDLE_S = 15.0  # below the 20 s and more that servers keep an idle connection
STALE_S = 2.0  # a socket that the server had closed already says so within a round trip
BODY_BYTES = 64 * 2**20
ROUTES_MOST = 256

Headers = Sequence[tuple[str, str]]


class UpstreamResponse:
    """
    An answer whose headers are in; iterate for the body's pieces, or `read()` it whole.

    A body that ended early raises `UpstreamBroken` where the next piece was due.
    """

    __slots__ = ("_connection", "_origin", "_pool", "headers", "status")

    def __init__(self, connection: Connection, pool: UpstreamClient, origin: Origin) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._connection: Connection | None = connection
        self._pool = pool
        self._origin = origin

    def header(self, name: str) -> str:
        """The first value of *name* (lower case), or empty."""
        return next((value for key, value in self.headers if key == name), "")

    def __aiter__(self) -> UpstreamResponse:
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        if connection is None:
            raise StopAsyncIteration
        try:
            data = connection.ready() or await connection.chunk()
        except BaseException:
            self.close()
            raise
        if not data:
            self.close()
            raise StopAsyncIteration
        return data

    async def read(self, limit_bytes: int = BODY_BYTES) -> bytes:
        """The whole body; raises `UpstreamBroken(TOO_LARGE)` past *limit_bytes*."""
        connection = self._connection
        if connection is not None and (data := connection.whole(limit_bytes)):
            self._connection = None
            self._pool.release(self._origin, connection)
            return data
        pieces: list[bytes] = []
        size_bytes = 0
        async for data in self:
            pieces.append(data)
            size_bytes += len(data)
            if size_bytes > limit_bytes:
                self.close()
                raise UpstreamBroken(Breakage.TOO_LARGE, f"a body over {limit_bytes} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> None:
        """
        Say that the reader has all it wants: the rest is thrown away in the background.

        The socket is kept when the body ends within a second, as it does right behind a
        stream's terminator; else it is closed.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(self._origin, connection, drain=True)

    async def aclose(self) -> None:
        """`close`, for whoever awaits that."""
        self.close()

    def close(self) -> None:
        """Close the socket, or keep it when the body is whole; idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(self._origin, connection)


class UpstreamClient:
    """
    A pool of keep-alive sockets by origin, bound to the loop that first uses it.

    Args:
        clock: tells how long a socket has been idle.
        connections_per_origin: idle sockets kept for each; more may be open at a time.
        ssl_context: with a custom CA; the system's when None, and always verifying.
        proxies: URLs by "http", "https", "all", and "no" (as `NO_PROXY`).
        local_only: no socket of this client leaves the machine, whatever a request says.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        connections_per_origin: int = 1024,
        ssl_context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str] = {},
        local_only: bool = False,
    ) -> None:
        self._clock = clock
        self._ssl = ssl_context
        self._proxies = dict(proxies)
        self._local_only = local_only
        self._keep = connections_per_origin
        self._closed = False
        self._names = Names()
        self._idle: dict[Origin, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._routes: dict[str, tuple[Origin, str, str]] = {}
        self._heads: dict[tuple[str, str, int], tuple[Headers, bytes]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(
        self,
        url: str,
        *,
        method: str = "POST",
        headers: Headers = (),
        body: bytes = b"",
        connect_s: float = 5.0,
        first_byte_s: float = 60.0,
        stall_s: float = 60.0,
        local_only: bool = False,
    ) -> UpstreamResponse:
        """
        Send one request and return once its headers are in.

        Args:
            url: `http` or `https`, without credentials.
            method: `HEAD` and `GET` send no body.
            headers: lower-case names; host, length and encoding are ours.
            body: the request's bytes.
            connect_s: to open a socket, proxy and TLS included.
            first_byte_s: silence before the answer's headers.
            stall_s: silence inside the body, while somebody reads it.
            local_only: refuse any address but this machine's.

        Raises:
            UpstreamBroken: below HTTP, a redirect, a bound.
            PrivacyRefused: *local_only*, and the host is not this machine.
            ValueError: a URL or header that would break the request's framing.
        """
        local_only = local_only or self._local_only
        origin, target, host = self._routes.get(url) or self._route(url)
        if local_only:
            _check_allowed(origin)
        head = self._head(url, method, target, host, headers, len(body))
        began = self._clock.monotonic()
        kept = self._kept(origin, began)
        while True:
            connection = kept or await self._open(origin, connect_s, local_only)
            self._busy.add(connection)
            try:
                await connection.exchange(head, body, first_byte_s, stall_s, method == "HEAD")
                return self._response(connection, origin)
            except BaseException as error:
                # A socket whose exchange failed, or was cancelled, is gone.
                self._drop(connection)
                if kept is None or not self._stale(error, began):
                    raise
                let_go(error)
            kept = None

    def _head(
        self, url: str, method: str, target: str, host: str, headers: Headers, length_bytes: int
    ) -> bytes:
        """The request's head; all but its length is remembered for a tuple of headers."""
        if not length_bytes or type(headers) is not tuple:
            return request_head(method, target, host, headers, length_bytes)
        # By identity, which the kept tuple holds on to: hashing it costs as much as the head.
        key = (url, method, id(headers))
        known = self._heads.get(key)
        if known is None:
            whole = request_head(method, target, host, headers, length_bytes)
            if len(self._heads) >= ROUTES_MOST:
                self._heads.clear()
            start = whole[: whole.rindex(b": ") + 2]
            known = self._heads[key] = (headers, start)
        return b"%b%d\r\n\r\n" % (known[1], length_bytes)

    def _response(self, connection: Connection, origin: Origin) -> UpstreamResponse:
        response = UpstreamResponse(connection, self, origin)
        if not 300 <= connection.status < 400:
            return response
        try:
            where = urlsplit(response.header("location")[:2048]).hostname or "itself"
        except ValueError:
            where = "nowhere"
        said = f"answered {response.status} towards `{where[:80]}`, which is not followed"
        raise UpstreamBroken(Breakage.REDIRECT, said)

    def _route(self, url: str) -> tuple[Origin, str, str]:
        """Origin, request target and Host header of *url*; remembered."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise ValueError("a URL must be http(s)://host/path, without credentials")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        proxy = proxy_of(parts.scheme, parts.hostname, port, self._proxies)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not target.isascii() or not target.isprintable() or " " in target:
            raise ValueError("a URL must be quoted")
        route = (Origin(parts.scheme, parts.hostname, port, proxy), target, parts.netloc)
        if len(self._routes) < ROUTES_MOST:
            self._routes[url] = route
        return route

    def _kept(self, origin: Origin, now: float) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.closed and now - connection.idle_since < IDLE_S:
                return connection
            connection.abort()
        return None

    async def _open(self, origin: Origin, connect_s: float, local_only: bool) -> Connection:
        context = None
        if origin.scheme == "https":
            context = self._ssl = self._ssl or tls_context({})
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(connect_s):
                found = await open_connection(origin, context, self._names, local_only=local_only)
        except TimeoutError:
            through = f" through {urlsplit(origin.proxy).hostname}" if origin.proxy else ""
            raise UpstreamBroken(
                Breakage.CONNECT_TIMEOUT,
                f"no connection to `{origin.host}`{through} in {connect_s:g} s",
            ) from None
        except UpstreamBroken:
            # A loop may say that it lost the socket where its connect was cancelled: whoever
            # cancelled it must not be taken for a provider that is out.
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError from None
            raise
        if self._closed:
            found.abort()
            raise UpstreamBroken(Breakage.RESET, "this client was closed")
        return found

    def release(self, origin: Origin, connection: Connection, *, drain: bool = False) -> None:
        """Take a socket back: kept when its answer is whole (with *drain* soon), else closed."""
        if drain and not connection.body_done and connection.keep_alive:
            connection.drain(lambda: self.release(origin, connection))
            return
        self._busy.discard(connection)
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = []
        if connection.reusable and len(idle) < self._keep and not self._closed:
            connection.settle(self._clock.monotonic())
            idle.append(connection)
            if self._sweeper is None:
                self._plan_sweep()
        else:
            connection.abort()

    def _plan_sweep(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(IDLE_S, self._sweep)

    def _sweep(self) -> None:
        """Close sockets that nobody has used for a while; runs while there are idle ones."""
        self._sweeper = None
        oldest = self._clock.monotonic() - IDLE_S
        for origin, idle in list(self._idle.items()):
            kept: list[Connection] = []
            for connection in idle:
                if connection.closed or connection.idle_since <= oldest:
                    connection.abort()
                else:
                    kept.append(connection)
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        if self._idle:
            self._plan_sweep()

    def _stale(self, error: BaseException, began: float) -> bool:
        """Whether a kept socket had been closed by its server before it saw the request."""
        reset = isinstance(error, UpstreamBroken) and error.breakage is Breakage.RESET
        return reset and not self._closed and self._clock.monotonic() - began < STALE_S

    def _drop(self, connection: Connection) -> None:
        self._busy.discard(connection)
        connection.abort()

    @property
    def open_sockets(self) -> tuple[int, int]:
        """How many sockets are in use, and how many wait to be."""
        return len(self._busy), sum(len(idle) for idle in self._idle.values())

    async def aclose(self) -> None:
        """Close every socket, answers in progress included, for good; idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connections in (*self._idle.values(), self._busy):
            for connection in list(connections):
                connection.abort()
        self._idle.clear()
        self._busy.clear()
        self._heads.clear()
        # The transports close their sockets on the loop's next round.
        await asyncio.sleep(0)


def request_head(method: str, target: str, host: str, headers: Headers, length_bytes: int) -> bytes:
    """The request's head; raises `ValueError` for a value that would end a line."""
    text = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\naccept-encoding: identity\r\n"
    lines = 4
    for name, value in headers:
        text += f"{name}: {value}\r\n"
        lines += 1
    if length_bytes or method not in {"GET", "HEAD"}:
        text += f"content-length: {length_bytes}\r\n"
        lines += 1
    text += "\r\n"
    if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
        raise ValueError("a header holds a line end")
    return text.encode("latin-1")


def _check_allowed(origin: Origin) -> None:
    """Refuse here what is refused again where the socket opens: a kept one opens nothing."""
    if origin.proxy or not is_loopback(origin.host):
        raise PrivacyRefused(f"`{origin.host}` is not this machine")
