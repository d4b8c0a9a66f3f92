"""
Threads that a loop of ours gives blocking work to, until that loop itself ends.

Those of the standard library take nothing more once the main thread has ended
(`concurrent.futures.thread._python_exit`), although other threads may still ask then, and
whoever was not closed is closed only after that.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

MOST = 8


class Hands(ThreadPoolExecutor):
    """An executor that an event loop accepts; its threads end with it or with the process."""

    def __init__(self) -> None:
        super().__init__(MOST)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._hands: list[threading.Thread] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have *fn* called by the next free thread."""
        future: Future[Any] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  whoever asked gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(job)
        if not self._idle.acquire(blocking=False) and len(self._hands) < MOST:
            self._add()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once the work that waits is done."""
        for _ in self._hands:
            self._jobs.put(None)
        if wait:
            for hand in self._hands:
                hand.join()

    def _add(self) -> None:
        hand = threading.Thread(target=self._work, name="localfirst-hand", daemon=True)
        try:
            hand.start()
        except RuntimeError:
            # Python 3.12 starts no thread at its very end; those that there are take over.
            if not self._hands:
                raise
        else:
            self._hands.append(hand)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._idle.release()
