"""
One long body over a blocking socket, for threads that fill files.

A model is gigabytes. `http.client` reads a body straight into a buffer and lets other
threads run meanwhile: 1.6 GB/s from a loopback server on one core, where httpx's event
loop managed 0.4. Everything short goes through `transport.http`. Proxies, TLS and their
variables follow the same rules as there; redirects are answered, never followed.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from localfirst.config.loopback import is_loopback
from localfirst.errors import ConfigError
from localfirst.transport.dial import dial
from localfirst.transport.upstream_proxy import DEFAULT_PORT, from_environment, proxy_of

BUFFER_BYTES = 256 * 2**10


def tls_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The system's CAs and `SSL_CERT_FILE`/`SSL_CERT_DIR`'s; certifi's where a system has none."""
    return _tls_context(environ.get("SSL_CERT_FILE", ""), environ.get("SSL_CERT_DIR", ""))


@lru_cache(maxsize=4)
def _tls_context(file: str, folder: str) -> ssl.SSLContext:
    """Made once: reading a system's CAs takes 20 ms, and a pull opens many connections."""
    context = ssl.create_default_context()
    if file or folder:
        try:
            context.load_verify_locations(file or None, folder or None)
        except (OSError, ssl.SSLError) as error:
            setting = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
            raise ConfigError(
                f"`{setting}` names `{file or folder}`, which holds no readable certificates",
                setting=setting,
                source="environment",
                hint="give a PEM file with the CA's certificates, or unset it",
            ) from error
    elif not context.get_ca_certs() and not context.cert_store_stats()["x509_ca"]:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def is_private(host: str) -> bool:
    """Whether *host* is literally a private or loopback address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_private
    except ValueError:
        return is_loopback(host)


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """The proxy's URL for *url* by the customary variables, or ""; never for loopback."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return proxy_of(parts.scheme, parts.hostname or "", port, from_environment(environ))


class BodyReader:
    """
    A connection that answers range requests of one origin, one at a time.

    `ask` sends a request, `readinto` fills a buffer with its body. Both raise `OSError`
    (timeouts, resets, TLS) or `http.client.HTTPException`. `abort` may be called from
    another thread and ends a read that waits.
    """

    def __init__(
        self,
        url: str,
        *,
        environ: Mapping[str, str],
        context: ssl.SSLContext,
        connect_s: float = 10.0,
        stall_s: float = 30.0,
    ) -> None:
        self.origin = origin(url)
        self._stall_s = stall_s
        self._proxy_headers: dict[str, str] = {}
        self._absolute = False
        self._response: http.client.HTTPResponse | None = None
        self._left: int | None = None
        self._aborted = False
        self._connection = self._connect(url, proxy_for(url, environ), context, connect_s)

    def _connect(
        self, url: str, proxy: str, context: ssl.SSLContext, connect_s: float
    ) -> http.client.HTTPConnection:
        scheme, host, port = self.origin
        via, via_port = host, port
        if proxy:
            parts = urlsplit(proxy)
            if parts.scheme != "http" or not parts.hostname:
                raise OSError("Tunnel connection failed: only http:// proxies are understood")
            via, via_port = parts.hostname, parts.port or DEFAULT_PORT
            if parts.username:
                pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                encoded = base64.b64encode(pair.encode()).decode()
                self._proxy_headers = {"Proxy-Authorization": f"Basic {encoded}"}
        if scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                via, via_port, timeout=connect_s, context=context
            )
            if proxy:
                connection.set_tunnel(host, port, headers=self._proxy_headers)
                self._proxy_headers = {}
        else:
            connection = http.client.HTTPConnection(via, via_port, timeout=connect_s)
            self._absolute = bool(proxy)
        # What `connect` of http.client calls, in every Python so far; TLS and tunnels follow it.
        connection._create_connection = dial  # type: ignore[attr-defined]
        return connection

    def ask(self, url: str, headers: Sequence[tuple[str, str]] = ()) -> tuple[int, dict[str, str]]:
        """GET *url*, which is of this connection's origin: its status and headers, lower-cased."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self._connection.sock is None:
            self._connection.connect()
            _socket(self._connection).settimeout(self._stall_s)
        if self._aborted:
            raise ConnectionAbortedError("the transfer was cancelled")
        sent = {"Accept-Encoding": "identity", "User-Agent": "localfirst", **self._proxy_headers}
        self._connection.request(
            "GET", url if self._absolute else target, headers={**sent, **dict(headers)}
        )
        self._response = self._connection.getresponse()
        self._left = self._response.length
        return self._response.status, {k.lower(): v for k, v in self._response.getheaders()}

    def readinto(self, view: memoryview) -> int:
        """What has come, at most *view* full; 0 at the body's end, early or not."""
        response = self._response
        assert response is not None, "ask before reading"
        if self._left is None:
            return response.readinto(view)
        if not self._left:
            return 0
        # HTTPResponse.readinto waits until the whole buffer is full; a slow link would show
        # its progress in jumps, and a stall would lose what had come.
        count = response.fp.readinto1(view[: self._left])
        self._left -= count
        if not self._left:
            response.close()
        return count

    @property
    def drained(self) -> bool:
        """Whether the body was read to its end, so that the connection can be used again."""
        return self._response is not None and self._response.isclosed()

    def abort(self) -> None:
        """End whatever read is waiting; from any thread."""
        self._aborted = True
        sock = self._connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def close(self) -> None:
        """Close the socket."""
        if self._response is not None:
            self._response.close()
        self._connection.close()


def _socket(connection: http.client.HTTPConnection) -> socket.socket:
    connected = connection.sock
    assert isinstance(connected, socket.socket)
    return connected


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL; equal origins may share connection and authorization."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port
