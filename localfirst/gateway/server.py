"""
The server: sockets, one runtime, one event loop, and an orderly end.

`serve` blocks until a signal. SIGTERM and SIGINT drain (a second one does not wait), and so
does the end of the terminal; any other SIGHUP reads the configuration again. With more
workers each is a process of its own on the same sockets, and what they learn is shared
through the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from localfirst.errors import LocalFirstError
from localfirst.gateway.access import AccessLog
from localfirst.gateway.app import Gateway, create
from localfirst.gateway.hub import Hub, Limits
from localfirst.gateway.listener import (
    BACKLOG,
    check_exposure,
    close_all,
    listen,
    more_descriptors,
    url_of,
)
from localfirst.gateway.memory import return_large_buffers
from localfirst.gateway.signals import hangups_held, signals
from localfirst.gateway.terminal import Terminal
from localfirst.settings import GatewaySettings, Settings

log = logging.getLogger("localfirst.gateway")

Say = Callable[[str], object]
MakeRuntime = Callable[[Settings], Any]

ACCESS_FLUSH_S = 0.25
STOPPING = "stopping: running answers may finish"
READ_AGAIN = "the configuration was read again"

FIXED = ("host", "port", "workers")
"""What a running server cannot change: its sockets are bound, its processes started."""

YOUNG = 10_000
"""Objects between two looks for garbage: a request makes a few dozen, nearly none in cycles."""


def serve(
    settings: Settings,
    *,
    say: Say = lambda line: None,
    access: Callable[[str], object] | None = None,
    reload: Callable[[], Settings] | None = None,
    make: MakeRuntime | None = None,
) -> int:
    """
    Answer until told to stop.

    Args:
        settings: from `config.load()`.
        say: takes the line that tells where the gateway listens, and later ones.
        access: takes whole lines of the access log; None means the logger `localfirst.access`.
        reload: reads the configuration again at SIGHUP; host, port and workers stay.
        make: builds a runtime; `localfirst.runtime.Runtime` when None.

    Returns:
        The exit code: 0 after an orderly end.

    Raises:
        ConfigError: off loopback without a key.
        Unavailable: the port is taken.
    """
    check_exposure(settings.gateway)
    more_descriptors(settings.gateway.max_connections)
    return_large_buffers()
    sockets = listen(settings.gateway)
    job = Job(settings, sockets, say=say, access=access, reload=reload, make=make or _runtime)
    try:
        if settings.gateway.workers > 1:
            from localfirst.gateway import workers

            def shut() -> None:
                say(STOPPING)
                close_all(sockets)

            say(started_line(sockets, workers=settings.gateway.workers))
            return workers.run(
                settings.gateway.workers,
                lambda: job.run(told=True),
                say,
                shut=shut,
                left=Terminal().gone,
                renew=job.renew,
            )
        return job.run()
    finally:
        close_all(sockets)


class Job:
    """What one process of the server does, from its first to its last request."""

    def __init__(
        self,
        settings: Settings,
        sockets: list[socket.socket],
        *,
        say: Say,
        access: Callable[[str], object] | None,
        reload: Callable[[], Settings] | None,
        make: MakeRuntime,
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._say = say
        self._access = access
        self._reload = reload
        self._make = make
        self._terminal: Terminal | None = None
        self._told = False
        self._reading = asyncio.Lock()
        self._ended = False

    def run(self, *, told: bool = False) -> int:
        """
        Serve on a fresh event loop until a signal; returns the exit code.

        *told*: a parent says where it listens and when it stops, and looks after the terminal.
        """
        self._terminal = None if told else Terminal()
        self._told = told
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner, hangups_held():
                return runner.run(self._main())
        except KeyboardInterrupt:
            if self._ended:
                # An interrupt was still on its way when the loop gave its handlers back.
                return 0
            raise

    def renew(self) -> bool:
        """
        For the parent of workers, at SIGHUP: those that start from now on begin with the
        configuration as it is; whether those that run are to read it, too.
        """
        if self._reload is None:
            return False
        try:
            self._settings, told = self._read(self._reload)
        except LocalFirstError as error:
            self._say(refused(error))
            return False
        self._say(told)
        return True

    async def _main(self) -> int:
        runtime = await self._opened(self._settings)
        server = Server(runtime, access=self._access)
        # To the very end: one signal more, and what was started would be left behind.
        with signals(server, self._again):
            try:
                await self._serve(server)
            finally:
                await server.gateway.runtime.aclose()
        self._ended = True
        return 0

    async def _serve(self, server: Server) -> None:
        await server.start(self._sockets)
        if not self._told:
            self._say(started_line(self._sockets))
        # What exists now lives as long as the process: never scan it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, 20, 20)
        # Loops list every generator that begins, only to close at their end what is left.
        # Here each has an owner that closes it; one that is lost is finalized as ever.
        sys.set_asyncgen_hooks(firstiter=None)
        await server.stopping.wait()
        if not self._told:
            self._say(STOPPING)
        await server.aclose(server.gateway.runtime.settings.gateway.drain_s)

    async def _opened(self, settings: Settings) -> Any:
        """A started runtime; what could not start is closed again."""
        runtime = self._make(settings)
        try:
            await runtime.start()
            runtime.keep_fresh()
        except BaseException:
            await runtime.aclose()
            raise
        return runtime

    async def _again(self, server: Server) -> None:
        """Answer with the configuration as it is now; a broken one changes nothing."""
        if self._terminal is not None and self._terminal.gone():
            server.stop()
            return
        # One after the other: of several, the one that read last is the one that stays.
        async with self._reading:
            if self._reload is not None and not server.stopping.is_set():
                await self._renew(server, self._reload)

    async def _renew(self, server: Server, reload: Callable[[], Settings]) -> None:
        try:
            settings, told = self._read(reload)
            runtime = await self._opened(settings)
        except LocalFirstError as error:
            self._say(refused(error))
            return
        if server.stopping.is_set():
            await runtime.aclose()
            return
        runtime.go_on_with(server.gateway.runtime)
        await server.take_over(runtime)
        if not self._told:
            self._say(told)

    def _read(self, reload: Callable[[], Settings]) -> tuple[Settings, str]:
        """
        The configuration as it is now, with the sockets as they are; and what to tell of it.

        Raises:
            LocalFirstError: it is broken, or would open a door to everybody.
        """
        now, read = self._settings.gateway, reload()
        kept = {name: getattr(now, name) for name in FIXED}
        changed = [name for name in FIXED if getattr(read.gateway, name) != kept[name]]
        door = msgspec.structs.replace(read.gateway, **kept)
        check_exposure(door)
        stay = ", ".join(f"`gateway.{name}`" for name in changed)
        told = f"{READ_AGAIN}; {stay} can change at the next start only" if stay else READ_AGAIN
        return msgspec.structs.replace(read, gateway=door), told


class Server:
    """
    One gateway on given sockets, inside a running event loop.

    The runtime stays the caller's to close, except one that `take_over` replaced.
    """

    def __init__(
        self,
        runtime: Any,
        *,
        access: Callable[[str], object] | None = None,
        limits: Limits | None = None,
        sweep_s: float = 0.5,
    ) -> None:
        self._access = AccessLog(access, runtime.clock.unix)
        self._limits = limits or limits_of(runtime.settings.gateway)
        self._sweep_s = sweep_s
        self._servers: list[asyncio.Server] = []
        self._flushing: asyncio.TimerHandle | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self.gateway: Gateway = create(runtime, access=self._access)
        self.stopping = asyncio.Event()
        self.hub: Hub | None = None

    async def start(self, sockets: list[socket.socket]) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        unix = self.gateway.clock.unix
        hub = Hub(self.gateway, limits=self._limits, unix=unix, sweep_s=self._sweep_s)
        self.hub = hub
        self.gateway.connections = lambda: len(hub.connections)
        for one in sockets:
            found = await loop.create_server(hub.protocol, sock=one, backlog=BACKLOG)
            self._servers.append(found)
        self._flush()

    def stop(self) -> None:
        """Ask for an orderly end; asked twice, running answers are ended too."""
        if self.stopping.is_set() and self.hub is not None:
            for connection in list(self.hub.connections):
                connection.cancel()
        self.gateway.draining = True
        self.stopping.set()

    async def aclose(self, drain_s: float = 0.0) -> None:
        """Accept no more, let running answers finish for *drain_s*, end the rest with an error."""
        self.gateway.draining = True
        for one in self._servers:
            one.close()
        if self.hub is not None:
            await self.hub.drain(drain_s)
        if self._flushing is not None:
            self._flushing.cancel()
        self._access.flush()
        for task in list(self._retiring):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def take_over(self, runtime: Any) -> None:
        """Answer what comes from now on with *runtime*; close the old one when it is free."""
        old = self.gateway.runtime
        self.gateway.take_over(runtime)
        if self.hub is not None:
            door = runtime.settings.gateway
            more_descriptors(door.max_connections)
            self.hub.limits = msgspec.structs.replace(
                self.hub.limits,
                max_connections=door.max_connections,
                max_body_bytes=door.max_body_bytes,
            )
        task = asyncio.create_task(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, runtime: Any) -> None:
        try:
            await self.gateway.unused(runtime)
        finally:
            await runtime.aclose()

    def _flush(self) -> None:
        self._access.flush()
        loop = asyncio.get_running_loop()
        self._flushing = loop.call_later(ACCESS_FLUSH_S, self._flush)


def refused(error: LocalFirstError) -> str:
    """A configuration that was not taken over, for people."""
    hint = f"; {error.hint}" if error.hint else ""
    return f"the configuration was not taken over: {error.message}{hint}"


def limits_of(settings: GatewaySettings) -> Limits:
    """The limits that settings can change; the others are facts about clients."""
    return Limits(max_connections=settings.max_connections, max_body_bytes=settings.max_body_bytes)


def started_line(sockets: list[socket.socket], *, workers: int = 1) -> str:
    """Where the gateway listens, for people."""
    many = f" with {workers} workers" if workers > 1 else ""
    return f"localfirst listens on {url_of(sockets[0])}{many}"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Uvloop's loop where it exists: it halves the cost of a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _runtime(settings: Settings) -> Any:
    from localfirst.runtime import Runtime

    return Runtime(settings)
