"""Proxies of the hot path: which one an origin goes through, and the CONNECT handshake."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from collections.abc import Mapping
from typing import cast
from urllib.parse import unquote, urlsplit

from localfirst.config.loopback import is_loopback
from localfirst.errors import Breakage, UpstreamBroken

HEAD_BYTES = 16 * 1024
DEFAULT_PORT = 80  # that of `http://`, as Go, wget and httpx have it


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """
    What `UpstreamClient(proxies=…)` takes, by the variables that curl knows.

    Keys are "http", "https", "all" and "no". The upper-case `HTTP_PROXY` counts only
    outside CGI, where a client's `Proxy:` header would set it (https://httpoxy.org).
    """
    found: dict[str, str] = {}
    for scheme in ("http", "https", "all", "no"):
        upper = f"{scheme}_proxy".upper()
        if scheme == "http" and "REQUEST_METHOD" in environ:
            upper = ""
        value = environ.get(f"{scheme}_proxy") or environ.get(upper, "")
        if value.strip():
            found[scheme] = value.strip()
    return found


def proxy_of(scheme: str, host: str, port: int, proxies: Mapping[str, str]) -> str:
    """The proxy's URL for an origin, or empty; loopback never goes through one."""
    proxy = proxies.get(scheme) or proxies.get("all", "")
    if not proxy or is_loopback(host) or bypassed(host, port, proxies.get("no", "")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def bypassed(host: str, port: int, rules: str) -> bool:
    """
    Whether a `NO_PROXY` list names *host*: `*`, names, suffixes, networks, `name:port`.

    Blanks divide as commas do: curl and Python's own take both.
    """
    host = host.lower().rstrip(".")
    return any(_matches(host, port, rule) for rule in rules.lower().replace(",", " ").split())


def _matches(host: str, port: int, rule: str) -> bool:
    if rule in {"", "*"}:
        return rule == "*"
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(rule.strip("[]"), strict=False)
    except ValueError:
        pass
    name, colon, number = rule.rpartition(":")
    if colon and number.isdecimal() and "]" not in number:
        return port == int(number) and _matches(host, port, name)
    name = rule.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith("." + name))


def proxy_address(proxy: str) -> tuple[str, int]:
    """Host and port of an `http://` proxy; raises `UpstreamBroken(PROXY)` for another kind."""
    parts = urlsplit(proxy)
    try:
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
    except ValueError:
        host, port = "", 0
    if parts.scheme != "http" or not host:
        raise UpstreamBroken(
            Breakage.PROXY, f"a proxy must be `http://host:port`, not `{parts.scheme}://…`"
        )
    return host, port


def connect_head(proxy: str, authority: str) -> bytes:
    """The CONNECT request, with Basic credentials when the proxy's URL has some."""
    parts = urlsplit(proxy)
    lines = [f"CONNECT {authority} HTTP/1.1", f"host: {authority}"]
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        lines.append(f"proxy-authorization: Basic {base64.b64encode(pair).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Tunnel(asyncio.Protocol):
    """The proxy's side of a socket until its answer to CONNECT is in."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._answer: asyncio.Future[bytes] = loop.create_future()
        self._seen = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to stop reading once the tunnel stands."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect the head; the tunnel's own bytes only come after we spoke."""
        self._seen += data
        if self._answer.done():
            return
        if b"\r\n\r\n" in self._seen or len(self._seen) > HEAD_BYTES:
            self._answer.set_result(bytes(self._seen))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits that no answer will come."""
        if not self._answer.done():
            self._answer.set_result(b"")

    async def opened(self, where: str) -> None:
        """Wait for the tunnel; raises `UpstreamBroken(PROXY)` naming the proxy."""
        answer = await self._answer
        status = [*answer.partition(b"\r\n")[0].split(b" "), b""][1]
        if not answer.startswith(b"HTTP/1.") or not status.isdigit():
            raise UpstreamBroken(Breakage.PROXY, f"`{where}` does not answer as an HTTP proxy")
        if status == b"407":
            raise UpstreamBroken(Breakage.PROXY, f"the proxy `{where}` wants other credentials")
        if not status.startswith(b"2"):
            code = status[:3].decode("ascii")
            raise UpstreamBroken(Breakage.PROXY, f"the proxy `{where}` answered {code}")
        if not answer.endswith(b"\r\n\r\n"):
            raise UpstreamBroken(Breakage.PROXY, f"the proxy `{where}` sent too much")
