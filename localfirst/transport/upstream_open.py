"""
How a socket of the hot path is opened: resolve, race the addresses, tunnel, TLS.

Every failure is an `UpstreamBroken` that says which of these it was.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Sequence

import msgspec

from localfirst.errors import Breakage, PrivacyRefused, UpstreamBroken
from localfirst.transport.http import is_loopback
from localfirst.transport.upstream_connection import Connection
from localfirst.transport.upstream_names import STAGGER_S, Address, Names
from localfirst.transport.upstream_proxy import Tunnel, connect_head, proxy_address

_OFFLINE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}
# X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT(_LOCALLY) and the self-signed ones, by x509_vfy.h
_UNKNOWN_AUTHORITY = {2, 18, 19, 20}
_RESET = {errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}


class Origin(msgspec.Struct, frozen=True):
    """Where a socket leads: scheme, host, port, and the proxy in between (empty for none)."""

    scheme: str
    host: str
    port: int
    proxy: str = ""


async def open_connection(
    origin: Origin, context: ssl.SSLContext | None, names: Names, *, local_only: bool
) -> Connection:
    """
    A connected socket to *origin*, TLS done when *context* is given.

    Raises:
        UpstreamBroken: OFFLINE, DNS, CONNECT_REFUSED, RESET, TLS or PROXY.
        PrivacyRefused: *local_only*, and an address or a proxy is not this machine.
    """
    if local_only and (origin.proxy or not is_loopback(origin.host)):
        raise PrivacyRefused(f"`{origin.host}` is not this machine")
    if origin.proxy:
        return await _through_proxy(origin, context, names)
    try:
        raw = await connect(origin.host, origin.port, names)
        return await _over(raw, origin.host, context)
    except OSError as error:
        raise broken(error, f"{origin.host}:{origin.port}") from None


def broken(error: OSError, where: str) -> UpstreamBroken:
    """What an operating system's error means for an attempt."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = f"the certificate of `{where}` is refused: {error.verify_message}"
        if error.verify_code in _UNKNOWN_AUTHORITY:
            said += "; `SSL_CERT_FILE` names the authorities of an inspecting proxy"
        return UpstreamBroken(Breakage.TLS, said)
    if isinstance(error, ssl.SSLError):
        return UpstreamBroken(Breakage.TLS, f"no TLS with `{where}`: {error.reason or 'failed'}")
    if isinstance(error, socket.gaierror):
        return UpstreamBroken(Breakage.DNS, f"`{where}` does not resolve")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    said = f"`{where}`: {reason.lower()}"
    if error.errno in _OFFLINE:
        return UpstreamBroken(Breakage.OFFLINE, said)
    if error.errno == errno.ETIMEDOUT:
        return UpstreamBroken(Breakage.CONNECT_TIMEOUT, said)
    if error.errno in _RESET or isinstance(error, ConnectionResetError | ConnectionAbortedError):
        return UpstreamBroken(Breakage.RESET, said)
    return UpstreamBroken(Breakage.CONNECT_REFUSED, said)


async def connect(host: str, port: int, names: Names) -> socket.socket:
    """A connected socket; several addresses are tried a quarter second apart (RFC 8305)."""
    addresses = await names.addresses(host, port)
    if len(addresses) == 1:
        return await _connect(addresses[0])
    return await _race(addresses)


async def _connect(address: Address) -> socket.socket:
    family, where = address
    raw = socket.socket(family, socket.SOCK_STREAM)
    raw.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(raw, where)
    except BaseException:
        raw.close()
        raise
    return raw


async def _race(addresses: Sequence[Address]) -> socket.socket:
    """The first socket that connects; the others are closed. Raises the first failure."""
    failures: list[OSError] = []
    pending: set[asyncio.Task[socket.socket]] = set()
    try:
        for number, address in enumerate(addresses, 1):
            pending.add(asyncio.ensure_future(_connect(address)))
            more = number < len(addresses)
            while pending:
                done, _ = await asyncio.wait(
                    pending,
                    timeout=STAGGER_S if more else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                pending -= done
                if won := _winner(done, failures):
                    return won
                if more:
                    break
    finally:
        for task in pending:
            task.cancel()
    raise failures[0]


def _winner(
    done: set[asyncio.Task[socket.socket]], failures: list[OSError]
) -> socket.socket | None:
    won: socket.socket | None = None
    for task in done:
        error = task.exception()
        if isinstance(error, OSError):
            failures.append(error)
        elif error is not None:
            raise error
        elif won is None:
            won = task.result()
        else:
            task.result().close()
    return won


async def _over(raw: socket.socket, host: str, context: ssl.SSLContext | None) -> Connection:
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(
            lambda: Connection(loop),
            sock=raw,
            ssl=context,
            server_hostname=host if context else None,
        )
    except BaseException:
        raw.close()
        raise
    return connection


async def _through_proxy(
    origin: Origin, context: ssl.SSLContext | None, names: Names
) -> Connection:
    """CONNECT through an HTTP proxy (RFC 9110 §9.3.6), then TLS inside the tunnel."""
    loop = asyncio.get_running_loop()
    host, port = proxy_address(origin.proxy)
    try:
        raw = await connect(host, port, names)
        transport, tunnel = await loop.create_connection(lambda: Tunnel(loop), sock=raw)
    except OSError as error:
        said = broken(error, f"{host}:{port}").detail
        raise UpstreamBroken(Breakage.PROXY, f"the proxy cannot be reached: {said}") from None
    try:
        named = f"[{origin.host}]" if ":" in origin.host else origin.host
        transport.write(connect_head(origin.proxy, f"{named}:{origin.port}"))
        await tunnel.opened(f"{host}:{port}")
        connection = Connection(loop)
        if context is None:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return connection
        secured = await loop.start_tls(transport, connection, context, server_hostname=origin.host)
        assert secured is not None
        connection.connection_made(secured)
    except OSError as error:
        transport.abort()
        raise broken(error, f"{origin.host}:{origin.port}") from None
    except BaseException:
        transport.abort()
        raise
    return connection
