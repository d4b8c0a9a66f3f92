"""
The hot path's HTTP client: asyncio and httptools, keep-alive, four timeouts, back-pressure.

It never follows a redirect, never decodes a body, asks for identity encoding, and bounds
every header. Error statuses are answers; whatever fails below HTTP is `UpstreamBroken`.
The pool grows with demand and keeps idle sockets for a while; nothing waits for a slot.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from urllib.parse import unquote, urlsplit

import msgspec

from localfirst.errors import Breakage, PrivacyRefused, UpstreamBroken
from localfirst.transport.http import is_loopback
from localfirst.transport.upstream_connection import Connection
from localfirst.types import Clock

IDLE_S = 15.0  # below the 20 s and more that servers keep an idle connection
BODY_BYTES = 64 * 2**20
OFFLINE_ERRNOS = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}


class Origin(msgspec.Struct, frozen=True):
    """Where a socket leads: scheme, host, port, and the proxy in between."""

    scheme: str
    host: str
    port: int
    proxy: str = ""


class UpstreamResponse:
    """
    An answer whose headers are in; iterate for the body's pieces, or `read()` it whole.

    `aclose()` gives the socket back when the body was read to its end, else closes it.
    """

    def __init__(self, connection: Connection, pool: UpstreamClient, origin: Origin) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._connection: Connection | None = connection
        self._pool = pool
        self._origin = origin

    def header(self, name: str) -> str:
        """The first value of *name* (lower case), or empty."""
        return next((value for key, value in self.headers if key == name), "")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while self._connection is not None:
                data = await self._connection.chunk()
                if not data:
                    break
                yield data
        finally:
            await self.aclose()

    async def read(self, limit_bytes: int = BODY_BYTES) -> bytes:
        """The whole body; raises `UpstreamBroken(TOO_LARGE)` past *limit_bytes*."""
        pieces: list[bytes] = []
        size = 0
        try:
            while self._connection is not None:
                data = await self._connection.chunk()
                if not data:
                    break
                pieces.append(data)
                size += len(data)
                if size > limit_bytes:
                    raise UpstreamBroken(Breakage.TOO_LARGE, f"a body over {limit_bytes} bytes")
        finally:
            await self.aclose()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def aclose(self) -> None:
        """Idempotent; never waits."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(self._origin, connection)


class UpstreamClient:
    """A pool of keep-alive sockets by origin, bound to the loop that first uses it."""

    def __init__(
        self,
        clock: Clock,
        *,
        connections_per_origin: int = 1024,
        ssl_context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str] = {},
    ) -> None:
        self._clock = clock
        self._ssl = ssl_context
        self._proxies = dict(proxies)
        self._idle: dict[Origin, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._keep = connections_per_origin

    async def send(
        self,
        url: str,
        *,
        method: str = "POST",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        connect_s: float = 5.0,
        first_byte_s: float = 60.0,
        stall_s: float = 60.0,
        local_only: bool = False,
    ) -> UpstreamResponse:
        """
        Send one request and return once its headers are in.

        Raises:
            UpstreamBroken: below HTTP, a redirect, a bound.
            PrivacyRefused: *local_only*, and the host is not this machine.
        """
        origin, target, host = self._route(url)
        if local_only and not is_loopback(origin.host):
            raise PrivacyRefused(f"`{origin.host}` is not this machine")
        head = request_head(method, target, host, headers, len(body))
        while True:
            connection = await self._connection(origin, connect_s)
            try:
                await connection.exchange(head, body, first_byte_s, stall_s)
            except UpstreamBroken as error:
                self._drop(connection)
                # The server closed a kept socket while we wrote: nobody saw the request.
                if connection.reused and error.breakage is Breakage.RESET:
                    continue
                raise
            except BaseException:
                self._drop(connection)
                raise
            break
        response = UpstreamResponse(connection, self, origin)
        if 300 <= response.status < 400:
            where = urlsplit(response.header("location")).hostname or "itself"
            self._drop(connection)
            raise UpstreamBroken(Breakage.REDIRECT, f"answered {response.status} towards `{where}`")
        return response

    def _route(self, url: str) -> tuple[Origin, str, str]:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        proxy = (
            "" if is_loopback(host) or self._bypassed(host) else self._proxies.get(parts.scheme, "")
        )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Origin(parts.scheme, host, port, proxy), target, parts.netloc.rpartition("@")[2]

    def _bypassed(self, host: str) -> bool:
        for entry in self._proxies.get("no", "").split(","):
            name = entry.strip().lstrip("*").lstrip(".").lower()
            if entry.strip() == "*" or (name and (host == name or host.endswith("." + name))):
                return True
        return False

    async def _connection(self, origin: Origin, connect_s: float) -> Connection:
        idle = self._idle.get(origin, [])
        now = self._clock.monotonic()
        while idle:
            connection = idle.pop()
            if not connection.closed and now - connection.idle_since < IDLE_S:
                connection.reused = True
                self._busy.add(connection)
                return connection
            connection.abort()
        try:
            async with asyncio.timeout(connect_s):
                connection = await self._open(origin)
        except TimeoutError:
            raise UpstreamBroken(
                Breakage.CONNECT_TIMEOUT, f"no connection in {connect_s:g} s"
            ) from None
        self._busy.add(connection)
        return connection

    async def _open(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        made = lambda: Connection(loop)  # noqa: E731
        context = None
        if origin.scheme == "https":
            self._ssl = self._ssl or ssl.create_default_context()
            context = self._ssl
        try:
            if origin.proxy:
                return await self._through_proxy(origin, context)
            _, connection = await loop.create_connection(
                made,
                origin.host,
                origin.port,
                ssl=context,
                server_hostname=origin.host if context else None,
            )
        except ssl.SSLError as error:
            raise UpstreamBroken(Breakage.TLS, error.reason or "handshake failed") from None
        except socket.gaierror:
            raise UpstreamBroken(Breakage.DNS, f"`{origin.host}` does not resolve") from None
        except ConnectionRefusedError:
            raise UpstreamBroken(
                Breakage.CONNECT_REFUSED, f"`{origin.host}:{origin.port}` refused"
            ) from None
        except OSError as error:
            kind = Breakage.OFFLINE if error.errno in OFFLINE_ERRNOS else Breakage.CONNECT_REFUSED
            raise UpstreamBroken(kind, error.strerror or type(error).__name__) from None
        return connection

    async def _through_proxy(self, origin: Origin, context: ssl.SSLContext | None) -> Connection:
        """CONNECT through an HTTP proxy, then TLS inside the tunnel."""
        loop = asyncio.get_running_loop()
        parts = urlsplit(origin.proxy if "://" in origin.proxy else f"http://{origin.proxy}")
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 3128)
        except OSError as error:
            raise UpstreamBroken(
                Breakage.PROXY, f"the proxy `{parts.hostname}` cannot be reached: {error.strerror}"
            ) from None
        try:
            authority = f"{origin.host}:{origin.port}"
            lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
            if parts.username:
                pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
                lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}")
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            answer = await reader.readuntil(b"\r\n\r\n")
            status = answer.split(b" ", 2)[1][:3].decode("latin-1")
            if status != "200":
                raise UpstreamBroken(
                    Breakage.PROXY, f"the proxy `{parts.hostname}` answered {status}"
                )
            connection = Connection(loop)
            transport = writer.transport
            if context is not None:
                upgraded = await loop.start_tls(
                    transport, connection, context, server_hostname=origin.host
                )
                assert upgraded is not None
                transport = upgraded
            else:
                transport.set_protocol(connection)
            connection.connection_made(transport)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError) as error:
            writer.transport.abort()
            raise UpstreamBroken(Breakage.PROXY, "the proxy's answer is not HTTP") from error
        except BaseException:
            writer.transport.abort()
            raise
        return connection

    def release(self, origin: Origin, connection: Connection) -> None:
        """Take a socket back: kept when its answer was read to the end, closed otherwise."""
        self._busy.discard(connection)
        whole = connection.body_done and not connection._chunks
        idle = self._idle.setdefault(origin, [])
        if whole and connection.keep_alive and not connection.closed and len(idle) < self._keep:
            connection.settle(self._clock.monotonic())
            idle.append(connection)
        else:
            connection.abort()

    def _drop(self, connection: Connection) -> None:
        self._busy.discard(connection)
        connection.abort()

    async def aclose(self) -> None:
        """Close every socket."""
        for connections in (*self._idle.values(), list(self._busy)):
            for connection in list(connections):
                connection.abort()
        self._idle.clear()
        self._busy.clear()
        await asyncio.sleep(0)


def request_head(
    method: str, target: str, host: str, headers: Sequence[tuple[str, str]], length: int
) -> bytes:
    """The request's head; refuses values that would end a line."""
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method == "POST":
        lines.append(f"content-length: {length}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header holds a line end")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
