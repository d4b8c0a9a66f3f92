"""
The signals of one process of the server, from its first moment to its last.

A SIGHUP that comes while it starts is kept until somebody listens: by itself it would end
the process, and whoever reloads a service does not wait for its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Stoppable(Protocol):
    """What SIGTERM and SIGINT stop."""

    def stop(self) -> None:
        """End in order; asked twice, at once."""
        ...


@contextlib.contextmanager
def hangups_held() -> Iterator[None]:
    """Keep SIGHUP waiting until `signals` listens, at most for as long as the block runs."""
    _mask("SIG_BLOCK")
    try:
        yield
    finally:
        _mask("SIG_UNBLOCK")


@contextlib.contextmanager
def signals(server: Stoppable, again: Callable[[Any], Any]) -> Iterator[None]:
    """Stop at SIGTERM and SIGINT, reload at SIGHUP, for as long as the block runs."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(again(server))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    handlers: dict[str, Callable[[], None]] = {
        "SIGTERM": server.stop,
        "SIGINT": server.stop,
        "SIGHUP": reload,
    }
    for name, handler in handlers.items():
        _handle(loop, name, handler)
    _mask("SIG_UNBLOCK")
    try:
        yield
    finally:
        for name in handlers:
            with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
                loop.remove_signal_handler(getattr(signal, name))


def _handle(loop: asyncio.AbstractEventLoop, name: str, handler: Callable[[], None]) -> None:
    number = getattr(signal, name, None)
    if number is None:
        return
    try:
        loop.add_signal_handler(number, handler)
    except NotImplementedError:
        # Windows has no signal handlers in the loop; Ctrl-C comes as one of the interpreter's.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler))


def _mask(how: str) -> None:
    """Windows has neither the signal nor masks."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(getattr(signal, how), {signal.SIGHUP})
