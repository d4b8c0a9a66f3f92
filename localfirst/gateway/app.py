"""
The application: guard, route, handler, and one line in the log.

`create(runtime)` is all a server needs. The order of the checks is fixed:
(framing and size before it) host, origin, route, method, key, content type, then the body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from localfirst.errors import AccessDenied, LocalFirstError, Unavailable, let_go
from localfirst.gateway.access import AccessLog
from localfirst.gateway.exchange import Exchange
from localfirst.gateway.guard import Guard, check_type
from localfirst.gateway.metrics import Metrics
from localfirst.gateway.refusal import SAFE, rendered
from localfirst.gateway.request import Request
from localfirst.gateway.routes import Table

if TYPE_CHECKING:
    from localfirst.runtime import Runtime

log = logging.getLogger("localfirst.gateway")


class Uses:
    """How many requests one runtime answers; `over` is set when a replaced one has no more."""

    __slots__ = ("count", "over")

    def __init__(self) -> None:
        self.count = 0
        self.over: asyncio.Event | None = None


class Gateway:
    """
    Answers every request from one runtime, which `take_over` may replace while it runs.

    `connections` tells how many sockets are open; the server sets it.
    """

    def __init__(self, runtime: Runtime, *, access: AccessLog | None = None) -> None:
        self.metrics = Metrics()
        self.table = Table()
        self.draining = False
        self._access = access or AccessLog(None)
        self._uses: dict[Runtime, Uses] = {}
        self.connections: Callable[[], int] = lambda: 0
        self.take_over(runtime)

    @property
    def running(self) -> int:
        """Requests being answered."""
        return sum(uses.count for uses in self._uses.values())

    def take_over(self, runtime: Runtime) -> None:
        """Answer what comes from now on with another runtime."""
        self.runtime = runtime
        self.guard = Guard(runtime.settings.gateway)
        self.clock = runtime.clock
        self._now = self._uses.setdefault(runtime, Uses())

    async def unused(self, runtime: Runtime) -> None:
        """Wait until no request uses a runtime that was replaced."""
        uses = self._uses.get(runtime)
        if uses is not None and uses.count:
            uses.over = asyncio.Event()
            await uses.over.wait()
        self._uses.pop(runtime, None)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = Request(exchange, self.clock.monotonic())
        uses = self._now
        uses.count += 1
        try:
            repeat = exchange.repeat
            if repeat.guard is not self.guard:
                await self._let_in(request)
            # Without a route it was answered at the door.
            if (route := repeat.route) is not None:
                request.surface, request.extra_headers = route.name, repeat.extra_headers
                await route.handler(self, request)
        except asyncio.CancelledError:
            request.outcome = "cancelled"
            if exchange.over is None:
                await request.fail(Unavailable("the gateway is stopping", code="stopping"))
            else:
                status, request.outcome = exchange.over
                request.status = request.status or status
            raise
        except Exception as error:  # noqa: BLE001 - the top frame: it is answered, and logged
            await _failed(request, error)
        finally:
            uses.count -= 1
            if uses.over is not None and not uses.count:
                uses.over.set()
            elapsed_s = self.clock.monotonic() - request.began
            self.metrics.note(request, elapsed_s)
            self._access.note(request, elapsed_s)

    async def _let_in(self, request: Request) -> None:
        """Judge a head that was not seen on this connection, or not by this guard."""
        repeat = request.repeat
        repeat.guard = repeat.route = None
        self.guard.enter(request)
        if request.method == "OPTIONS" and b"origin" in request.fields:
            headers = self.guard.preflight(request)
            await request.answer(b"", rendered([*SAFE, *headers]), 204)
            return
        route = self.table.find(request.method, request.path)
        request.surface = route.name
        if not route.open:
            self.guard.authenticate(request)
        if request.method == "POST":
            check_type(request)
        repeat.guard, repeat.route = self.guard, route
        repeat.extra_headers = request.extra_headers


async def _failed(request: Request, error: Exception) -> None:
    """Answer with an error, whatever it is."""
    if isinstance(error, AccessDenied):
        request.surface = request.surface if request.status else "refused"
        await request.fail(error, close=True)
    elif isinstance(error, LocalFirstError):
        await request.fail(error)
        let_go(error)
    else:
        log.error("request %s failed", request.id, exc_info=error)
        await request.fail(
            LocalFirstError(
                "something went wrong inside the gateway",
                code="internal",
                hint="the log has the details; please report them",
            ),
            close=True,
        )


def create(runtime: Runtime, *, access: AccessLog | None = None) -> Gateway:
    """The application that answers from *runtime*, which stays the caller's to close."""
    return Gateway(runtime, access=access)
