"""The sockets a gateway listens on, and the rule about who may listen where."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

from localfirst.config.loopback import is_loopback
from localfirst.errors import ConfigError, Unavailable
from localfirst.settings import GatewaySettings

Address = tuple[object, ...]

BACKLOG = 1024
"""Connections the kernel holds while one batch of requests is started."""

SPARE_DESCRIPTORS = 512
"""For all that is no client's stream: the ledger, downloads, children, kept sockets."""


def check_exposure(settings: GatewaySettings) -> None:
    """
    Refuse to be reachable from outside without a key.

    Raises:
        ConfigError: `key-required-off-loopback`.
    """
    if settings.keys or is_loopback(settings.host):
        return
    raise ConfigError(
        f"`gateway.host` is `{settings.host}`, which others can reach, and no key is set",
        setting="gateway.host",
        code="key-required-off-loopback",
        hint="set `LOCALFIRST_GATEWAY_KEYS`, or listen on 127.0.0.1",
    )


def listen(settings: GatewaySettings) -> list[socket.socket]:
    """
    Bound, listening sockets for every address of `gateway.host`.

    Raises:
        Unavailable: the port is taken, or the address is not this machine's.
    """
    host = settings.host.strip("[]")
    try:
        found = socket.getaddrinfo(
            host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise _unusable(settings, error) from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    try:
        sockets = listen_at(addresses)
    except OSError as error:
        raise _unusable(settings, error) from error
    if settings.port:
        return sockets
    # Two families got two ports, and only one can be told.
    close_all(sockets[1:])
    return sockets[:1]


def listen_at(addresses: Iterable[tuple[int, Address]]) -> list[socket.socket]:
    """
    A listening socket for each pair of family and address that this machine has.

    `localhost` often means `::1` too where IPv6 is switched off, as in most containers.

    Raises:
        OSError: it has none of them, or another program listens at one.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in addresses:
        try:
            sockets.append(_listening(family, address))
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                close_all(sockets)
                raise
            absent = error
    if absent is not None and not sockets:
        raise absent
    return sockets


def more_descriptors(max_connections: int) -> None:
    """
    Raise this process' soft limit of open files to what so many connections can take.

    A login shell's is 1024, which half as many streams exhaust: each has a socket on either
    side. What the system does not allow is not asked for.
    """
    try:
        import resource
    except ImportError:
        # Windows has no such limit.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * max_connections + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def close_all(sockets: list[socket.socket]) -> None:
    """Close every socket."""
    for one in sockets:
        one.close()


def url_of(one: socket.socket) -> str:
    """How a client on this machine spells the address."""
    host, port = one.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listening(family: int, address: Address) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # On Windows this option would let another program take the port over.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _unusable(settings: GatewaySettings, error: OSError) -> Unavailable:
    place = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return Unavailable(
            f"another program listens on `{place}`",
            code="port-in-use",
            hint="stop it, or set `gateway.port` (`LOCALFIRST_GATEWAY_PORT`)",
        )
    return Unavailable(
        f"cannot listen on `{place}`: {error.strerror or error}",
        code="address-unusable",
        hint="set `gateway.host` and `gateway.port`",
    )
