"""An event loop whose clock jumps: hours of waiting pass in no time, in the right order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START_UNIX = 1_795_176_000.0  # 2026-11-20T12:00:00Z
NOTHING_HAPPENS_S = 5.0


class _JumpingSelector(selectors.DefaultSelector):
    """Looks at the sockets, and instead of waiting moves the clock."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            # Nothing is scheduled: only another thread can bring news now.
            found = super().select(NOTHING_HAPPENS_S)
            if not found:
                raise AssertionError("everybody waits, and nothing is scheduled")
            return found
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector loop on virtual time."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class VirtualClock:
    """A `types.Clock` on the running virtual loop; `jump` moves the wall clock alone."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.jump = 0.0

    def monotonic(self) -> float:
        return self._loop.now

    def unix(self) -> float:
        return START_UNIX + (self._loop.now - 1000.0) + self.jump

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def advance(self, seconds: float) -> None:
        self._loop.now += seconds


def run(main: Coroutine[Any, Any, T], loop: VirtualLoop | None = None) -> T:
    """Run *main* on virtual time; fails when tasks are left behind."""
    loop = loop or VirtualLoop()
    try:
        result = loop.run_until_complete(main)
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        assert left == [], f"tasks left behind: {left}"
        loop.run_until_complete(loop.shutdown_asyncgens())
        return result
    finally:
        loop.close()
