"""
A blocking socket to a name of several addresses, for the threads that fill files.

The standard library tries one after the other and gives each the whole timeout: behind a
network whose IPv6 leads nowhere each connection of a download would begin with ten seconds.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Sequence
from typing import Any, cast

from localfirst.transport.upstream_names import ADDRESSES_MOST, STAGGER_S, alternating

_UNDER_WAY = {0, errno.EINPROGRESS, errno.EWOULDBLOCK}  # Windows says the last


def dial(
    where: tuple[str, int], timeout_s: float | None = None, _source: object = None
) -> socket.socket:
    """A connected socket, its timeout set; called as `socket.create_connection` is."""
    host, port = where
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = alternating([(family, at) for family, _, _, _, at in found])
    return first(addresses[:ADDRESSES_MOST], timeout_s)


def first(addresses: Sequence[tuple[int, Any]], timeout_s: float | None) -> socket.socket:
    """
    The first that connects of addresses that are tried a quarter second apart (RFC 8305).

    Raises:
        OSError: the last failure, or `TimeoutError`.
    """
    with selectors.DefaultSelector() as trying:
        try:
            return _race(addresses, trying, timeout_s)
        finally:
            for key in list(trying.get_map().values()):
                cast(socket.socket, key.fileobj).close()


def _race(
    addresses: Sequence[tuple[int, Any]], trying: selectors.BaseSelector, timeout_s: float | None
) -> socket.socket:
    failed: OSError = TimeoutError("timed out")
    for number, (family, at) in enumerate(addresses, 1):
        more = number < len(addresses)
        code = _begin(family, at, trying)
        if code:
            failed = OSError(code, os.strerror(code))
        while trying.get_map():
            ready = trying.select(STAGGER_S if more else timeout_s)
            for key, _ in ready:
                one = cast(socket.socket, key.fileobj)
                code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                trying.unregister(one)
                if not code:
                    one.settimeout(timeout_s)
                    return one
                one.close()
                failed = OSError(code, os.strerror(code))
            if more or not ready:
                break
    raise failed


def _begin(family: int, at: Any, trying: selectors.BaseSelector) -> int:
    """Have *trying* watch a socket that connects; the system's error where it cannot begin."""
    try:
        one = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        return error.errno or errno.EAFNOSUPPORT
    one.setblocking(False)
    code = one.connect_ex(at)
    if code in _UNDER_WAY:
        trying.register(one, selectors.EVENT_WRITE)
        return 0
    one.close()
    return code
