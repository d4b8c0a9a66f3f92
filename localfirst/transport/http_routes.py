"""
What stands between an httpx client and its sockets: each request by its own way out.

httpx reads the proxies' variables by rules of its own: a `NO_PROXY` with an IPv6 network makes
it raise, one with an IPv4 network is not understood, and an `ALL_PROXY` of SOCKS wants a package
even where `HTTPS_PROXY` says the way. Here they mean what they mean to clouds and to a model's
bytes. Imported lazily, since httpx is slow to import.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx

from localfirst.errors import UpstreamBroken
from localfirst.transport.upstream_proxy import proxy_address, proxy_of


class Routes(httpx.AsyncBaseTransport):
    """Connections straight and through proxies; *proxies* as `from_environment` finds them."""

    def __init__(
        self, proxies: Mapping[str, str], context: ssl.SSLContext, limits: httpx.Limits
    ) -> None:
        self._proxies = proxies
        self._context = context
        self._limits = limits
        self._ways: dict[str, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* by its way; raises `httpx.ProxyError` for a proxy of another kind."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        proxy = proxy_of(url.scheme, url.host, port, self._proxies)
        return await self._way(proxy).handle_async_request(request)

    async def aclose(self) -> None:
        """Close every connection."""
        ways, self._ways = list(self._ways.values()), {}
        for way in ways:
            await way.aclose()

    def _way(self, proxy: str) -> httpx.AsyncHTTPTransport:
        way = self._ways.get(proxy)
        if way is None:
            if proxy:
                _check(proxy)
            way = self._ways[proxy] = httpx.AsyncHTTPTransport(
                verify=self._context,
                trust_env=False,
                limits=self._limits,
                proxy=httpx.Proxy(proxy) if proxy else None,
            )
        return way


def _check(proxy: str) -> None:
    try:
        proxy_address(proxy)
    except UpstreamBroken as error:
        raise httpx.ProxyError(error.detail) from None
