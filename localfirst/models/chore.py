"""
A long piece of work on files, done in a thread, that shows its progress and can be given up.

`watch()` does the work and yields progress; leaving the iteration stops the work at its
next block. `result` is there afterwards. `run()` does the same without a loop.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from localfirst.errors import PullCancelled
from localfirst.events import Progress

T = TypeVar("T")
BLOCK_BYTES = 2**20
SAY_EVERY_BYTES = 16 * 2**20


class Chore(ABC, Generic[T]):
    """Base of the work; a subclass does it in `work` and calls `advance` on its way."""

    stage = "verifying"

    def __init__(self, total_bytes: int = 0) -> None:
        self.total_bytes = total_bytes
        self.completed_bytes = 0
        self.detail = ""
        self.result: T | None = None
        self._stop = threading.Event()
        self._unsaid = 0
        self._say: Callable[[], None] = lambda: None

    @abstractmethod
    def work(self) -> T:
        """Do it, blocking."""

    def run(self) -> T:
        """Do it here and now, and return what it gives."""
        self.result = self.work()
        return self.result

    async def watch(self) -> AsyncIterator[Progress]:
        """Do it in a thread; progress in bytes until it is done. Raises what `work` raises."""
        loop = asyncio.get_running_loop()
        moved = asyncio.Event()

        def say() -> None:
            loop.call_soon_threadsafe(moved.set)

        self._say = say
        working = asyncio.ensure_future(asyncio.to_thread(self.run))
        working.add_done_callback(lambda _: moved.set())
        try:
            while not working.done():
                await moved.wait()
                moved.clear()
                if not working.done():
                    yield self.progress
            working.result()
            yield self.progress
        finally:
            self._stop.set()
            await asyncio.wait({working})
            if not working.cancelled():
                working.exception()  # seen: whoever gave the work up does not ask
            self._say = lambda: None

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.stage, self.detail, self.completed_bytes, self.total_bytes)

    def advance(self, count: int) -> None:
        """Note *count* bytes as done; raises `PullCancelled` when the work was given up."""
        self.completed_bytes += count
        self._unsaid += count
        if self._unsaid >= SAY_EVERY_BYTES:
            self._unsaid = 0
            self._say()
        if self._stop.is_set():
            raise PullCancelled("the work was given up", hint="start it again: it goes on")

    def turn(self, detail: str) -> None:
        """Say what is being worked on now."""
        self.detail = detail
        self._say()
