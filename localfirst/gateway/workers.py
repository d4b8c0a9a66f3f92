"""
Several processes on the same sockets: one parent that only watches.

The parent opens no runtime and no event loop, so forking it is safe. A worker that dies is
started again, a few times a minute at most; one whose parent dies ends itself, since nobody
else would. Where there is no fork there is one worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from localfirst.errors import ConfigError

RESTARTS_PER_WORKER, WITHIN_S = 5, 60.0
"""Deaths that are forgiven in so many seconds; more means that it will never work."""

SHELL_SIGNALLED = 128
"""What a shell adds to a signal's number to make an exit code of it."""

WATCHED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGCHLD")


def run(
    count: int,
    work: Callable[[], int],
    say: Callable[[str], object],
    *,
    shut: Callable[[], object] = lambda: None,
    left: Callable[[], bool] = lambda: False,
    renew: Callable[[], bool] = lambda: True,
) -> int:
    """
    Run *work* in *count* processes until told to stop.

    Args:
        count: how many.
        work: what one does; its result is its exit code.
        say: takes a line when a worker died.
        shut: closes the parent's own listening sockets at the stop, which would otherwise
            take connections that nobody answers for as long as the last worker drains.
        left: whether a SIGHUP means the end, since the terminal was closed.
        renew: called at any other SIGHUP, here where later workers begin; whether those that
            run are told of it.

    Returns:
        0 after an orderly end, else 1.

    Raises:
        ConfigError: this system cannot fork.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError(
            "this system runs one worker only",
            setting="gateway.workers",
            hint="set `gateway.workers = 1`",
        )
    return Crew(count, work, say, shut=shut, left=left, renew=renew).run()


class Crew:
    """The parent's view: who runs, who died how often; *now* gives seconds that only grow."""

    def __init__(
        self,
        count: int,
        work: Callable[[], int],
        say: Callable[[str], object],
        *,
        shut: Callable[[], object] = lambda: None,
        left: Callable[[], bool] = lambda: False,
        renew: Callable[[], bool] = lambda: True,
        now: Callable[[], float] = lambda: os.times().elapsed,
    ) -> None:
        self._work = work
        self._say = say
        self._shut = shut
        self._left = left
        self._renew = renew
        self._now = now
        self._count = count
        self._deaths: deque[float] = deque()
        self._watched = {getattr(signal, name) for name in WATCHED}
        self._members: list[BaseProcess] = []
        # Nothing is ever written: its reading end ends with the last that holds the other,
        # and that is the parent alone.
        self._alive, self._life = os.pipe()

    def run(self) -> int:
        """Start everyone, then do what signals say."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        try:
            self._members = [self._start() for _ in range(self._count)]
            return self._watch()
        finally:
            self._end()
            os.close(self._life)
            os.close(self._alive)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._watched)

    def _watch(self) -> int:
        while True:
            # Synchronous: nothing of ours runs inside a signal handler.
            number = signal.sigwait(self._watched)
            hung_up = number == signal.SIGHUP
            if number in {signal.SIGTERM, signal.SIGINT} or (hung_up and self._left()):
                return self._stop()
            if hung_up:
                if self._renew():
                    self._tell(signal.SIGHUP)
            elif not self._replace():
                return 1

    def _start(self) -> BaseProcess:
        member = multiprocessing.get_context("fork").Process(target=self._member)
        member.start()
        return member

    def _member(self) -> None:
        os.close(self._life)
        threading.Thread(target=self._outlive, daemon=True).start()
        # Ctrl-C reaches the whole group. The parent alone decides: told by both, a worker
        # would take it for the second time, and end the answers that may still finish.
        # SIGHUP waits until it has started and listens.
        told = self._watched - {signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, told)
        sys.exit(self._work())

    def _outlive(self) -> None:
        """End this worker in order once its parent is gone."""
        os.read(self._alive, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _replace(self) -> bool:
        """Start those anew that died; False when that happened too often."""
        alive = [member for member in self._members if member.is_alive()]
        now = self._now()
        while self._deaths and now - self._deaths[0] > WITHIN_S:
            self._deaths.popleft()
        for member in self._members:
            if member not in alive:
                self._deaths.append(now)
                self._say(f"a worker ended with {member.exitcode}")
        missing = self._count - len(alive)
        self._members = alive
        if len(self._deaths) > RESTARTS_PER_WORKER * self._count:
            self._say("workers die too often")
            return False
        self._members += [self._start() for _ in range(missing)]
        return True

    def _stop(self) -> int:
        """Have everyone end, and whoever is told twice end at once."""
        self._shut()
        self._tell(signal.SIGTERM)
        while any(member.is_alive() for member in self._members):
            if signal.sigwait(self._watched) in {signal.SIGTERM, signal.SIGINT}:
                self._tell(signal.SIGTERM)
        # One that was told before its loop listened to signals ends by the signal itself, or
        # as whoever started it would have.
        orderly = {0, -signal.SIGTERM, -signal.SIGHUP, SHELL_SIGNALLED + signal.SIGTERM}
        return 0 if all(member.exitcode in orderly for member in self._members) else 1

    def _tell(self, number: int) -> None:
        for member in self._members:
            if member.is_alive() and member.pid is not None:
                _kill(member.pid, number)

    def _end(self) -> None:
        for member in self._members:
            if member.is_alive():
                member.kill()
            member.join()


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
