"""
Names into addresses, without the event loop's executor.

A resolver that hears nobody takes many seconds to say so, and a program waits at its end for
the executor's threads. So each look-up has a daemon thread of its own that nobody waits for;
one name is looked up once at a time, however many ask, and believed for a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Sequence
from typing import TypeVar

BELIEVED_S = 10.0  # bursts of new sockets share a look-up; a moved name is noticed soon
NAMES_MOST = 256
ADDRESSES_MOST = 8
STAGGER_S = 0.25  # RFC 8305 §5: "Connection Attempt Delay", recommended value

Address = tuple[socket.AddressFamily, tuple[str, int]]
Found = list[tuple[socket.AddressFamily, str]]
Family = TypeVar("Family")
Where = TypeVar("Where")


class Names:
    """The look-ups of one event loop."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Found]] = {}
        self._asking: dict[str, asyncio.Future[Found]] = {}

    async def addresses(self, host: str, port: int) -> list[Address]:
        """
        The addresses of *host*, families alternating; raises `socket.gaierror`.

        `localhost` is this machine without asking anybody: a resolver could say otherwise.
        """
        if host == "localhost" or host.endswith(".localhost"):
            return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
        try:
            version = ipaddress.ip_address(host).version
            return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]
        except ValueError:
            pass
        found = alternating(await self._look_up(host))[:ADDRESSES_MOST]
        return [(family, (address, port)) for family, address in found]

    async def _look_up(self, host: str) -> Found:
        loop = asyncio.get_running_loop()
        until, found = self._known.get(host, (0.0, []))
        if loop.time() < until:
            return found
        asking = self._asking.get(host)
        if asking is None:
            asking = self._asking[host] = loop.create_future()
            name = f"resolve {host}"[:40]
            threading.Thread(
                target=self._ask, args=(loop, host, asking), name=name, daemon=True
            ).start()
        # Whoever leaves must not end the look-up for the others.
        return await asyncio.shield(asking)

    def _ask(
        self, loop: asyncio.AbstractEventLoop, host: str, asking: asyncio.Future[Found]
    ) -> None:
        """In a thread: the system's resolver, as long as it takes."""
        found: Found = []
        failure: OSError | None = None
        try:
            for family, _, _, _, where in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
                if family in {socket.AF_INET, socket.AF_INET6}:
                    found.append((family, str(where[0])))
        except OSError as error:
            failure = error
        except UnicodeError:
            failure = socket.gaierror(socket.EAI_NONAME, "no valid name")
        if not found and failure is None:
            failure = socket.gaierror(socket.EAI_NONAME, "no address")
        # The loop may have ended meanwhile; then nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._answered, host, asking, found, failure)

    def _answered(
        self, host: str, asking: asyncio.Future[Found], found: Found, failure: OSError | None
    ) -> None:
        self._asking.pop(host, None)
        if failure is None:
            if len(self._known) >= NAMES_MOST:
                self._known.clear()
            self._known[host] = (asyncio.get_running_loop().time() + BELIEVED_S, found)
            asking.set_result(found)
            return
        asking.set_exception(failure)
        # Everybody may have left; an exception that nobody fetched would be logged.
        asking.exception()


def alternating(found: Sequence[tuple[Family, Where]]) -> list[tuple[Family, Where]]:
    """The resolver's order, with the families taking turns (RFC 8305 §4)."""
    first = found[0][0]
    same = [each for each in found if each[0] == first]
    other = [each for each in found if each[0] != first]
    mixed: list[tuple[Family, Where]] = []
    while same or other:
        mixed += same[:1] + other[:1]
        same, other = same[1:], other[1:]
    return mixed
