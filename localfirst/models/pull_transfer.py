"""
One blob's way into its partial file: connections, a hasher and a keeper, in threads.

    workers   fetch stretches of the board with range requests and write them in place
    hasher    reads what is contiguous from the page cache, right behind the writers
    keeper    flushes to the disk and notes it in the journal: at 8 MB a part, or after 2 s

Threads, because reading sockets, writing files and SHA-256 all let others run meanwhile.
The transfer owns its threads and its connections and ends them before `run` returns.
"""

from __future__ import annotations

import errno
import hashlib
import ssl
import threading
from collections.abc import Callable, Mapping

from localfirst.errors import DigestMismatch, LocalFirstError, PullCancelled, PullError
from localfirst.models.manifest import Layer
from localfirst.models.pull_errors import broken
from localfirst.models.pull_partial import Partial
from localfirst.models.pull_ranges import Board
from localfirst.models.pull_worker import NOTE_BYTES, Limiter, Worker
from localfirst.models.registry import Location
from localfirst.transport import files
from localfirst.transport.bulk import tls_context
from localfirst.types import Clock

SYNC_BYTES = 8 * 2**20
SYNC_S = 2.0
# On a fast link 8 MB are nothing, and a flush for each would be all the disk does. Only a
# power cut can take what was written since the last one; a killed process loses none of it.
SYNC_PAUSE_S = 0.5
HASH_BYTES = 2**20
# Between tries that brought nothing; after the last, some five minutes on, the transfer
# gives up. Any byte that any connection brings begins the ladder anew.
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 60.0, 60.0, 60.0)


class Transfer:
    """
    Fetches one blob into *partial*; `run` blocks until it is whole and verified.

    *locate* says where the blob is (called from worker threads; its argument is a location
    that no longer works), without asking those that were `left`, of which *on_leaving* is
    told. `completed_bytes` may be read from any thread and never falls.
    """

    def __init__(
        self,
        partial: Partial,
        *,
        locate: Callable[[Location | None], Location],
        clock: Clock,
        environ: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
        connections: int = 4,
        stall_s: float = 30.0,
        limiter: Limiter | None = None,
        pauses_s: tuple[float, ...] = PAUSES_S,
        on_progress: Callable[[], None] = lambda: None,
        on_leaving: Callable[[Location, PullError], None] = lambda *_: None,
    ) -> None:
        self.partial = partial
        self.layer: Layer = partial.layer
        self.clock = clock
        self.environ = environ
        self.stall_s = stall_s
        self.pauses_s = pauses_s
        self.limiter = limiter or Limiter(0, clock)
        self.tls = tls or tls_context(environ)
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.moved = threading.Condition(self.lock)
        self.board = Board(self.layer.size_bytes, partial.done.copy())
        self.serial = False
        self.fetched_bytes = 0
        self._connections = max(1, connections)
        self._locate = locate
        self._locating = threading.Lock()
        self._location: Location | None = None
        self.left: frozenset[str] = frozenset()
        self._on_leaving = on_leaving
        self._on_progress = on_progress
        self._highest = self.board.done.total
        self._unsynced = 0
        self._error: LocalFirstError | None = None
        self._cancelled = False
        self._workers: list[Worker] = []
        self._digest = ""

    # --- from outside ------------------------------------------------------------------

    @property
    def completed_bytes(self) -> int:
        """Bytes in the file, as shown: it never falls, even if false bytes are thrown away."""
        return self._highest

    def cancel(self) -> None:
        """Stop; what was written is kept. From any thread."""
        self._cancelled = True
        self._stop()

    def run(self) -> None:
        """
        Fetch, write, hash and flush until the blob is whole.

        Raises:
            PullCancelled, DigestMismatch (the bytes were false and are gone), and what
            `pull_errors.broken` makes of the rest.
        """
        hasher = threading.Thread(target=self._hash, name="pull-hash", daemon=True)
        keeper = threading.Thread(target=self._keep, name="pull-keep", daemon=True)
        threads = [hasher, keeper]
        self._workers = [Worker(self, number) for number in range(self._useful_connections())]
        try:
            for thread in (*threads, *self._workers):
                thread.start()
            for worker in self._workers:
                worker.join()
            if not self.board.complete and not self.stopped.is_set():
                self.fail(PullError("every connection left before the blob was whole"))
            if not self.stopped.is_set():
                hasher.join()
        finally:
            self._stop()
            for thread in (*self._workers, *threads):
                thread.join()
            self._last_sync()
        self._judge()

    # --- from workers ------------------------------------------------------------------

    def location(self, stale: Location | None) -> Location:
        """Where to ask; resolved anew, by one worker for all, when *stale* is the present one."""
        with self._locating:
            if self._location is None or self._location is stale:
                self._location = self._locate(stale)
            return self._location

    def leave(self, location: Location | None, error: PullError) -> bool:
        """Go on elsewhere than at *location*; False where nobody else may have it."""
        with self._locating:
            if location is None or not location.others:
                return False
            if location.source not in self.left:
                self.left |= {location.source}
                self._on_leaving(location, error)
            if self._location is location:
                self._location = None
            return True

    def wrote(self, start: int, end: int) -> None:
        """Called under the lock after each write; wakes the hasher."""
        self.fetched_bytes += end - start
        self._unsynced += end - start
        self._highest = max(self._highest, self.board.done.total)
        self.moved.notify_all()

    def progressed(self) -> None:
        """Called without the lock after each write."""
        self._on_progress()

    def whole(self) -> None:
        """Called by the worker that finds every byte here: nobody needs to read on."""
        for worker in self._workers:
            worker.abort()

    def free_the_robbed(self) -> None:
        """Called after a claim: a connection that was too slow for its stretch begins anew."""
        for worker in self._workers:
            worker.free_if_robbed()

    def fail(self, error: LocalFirstError) -> None:
        """End the whole transfer with *error*; the first one counts."""
        with self.lock:
            if self._error is None:
                self._error = error
        self._stop()

    # --- inside ------------------------------------------------------------------------

    def _useful_connections(self) -> int:
        stretches = -(-(self.layer.size_bytes - self._highest) // NOTE_BYTES)
        return max(1, min(self._connections, stretches))

    def _stop(self) -> None:
        self.stopped.set()
        for worker in self._workers:
            worker.abort()
        with self.lock:
            self.moved.notify_all()

    def _hash(self) -> None:
        """Hash in order, from the page cache, as far as the file is contiguous."""
        size, sha, at = self.layer.size_bytes, hashlib.sha256(), 0
        buffer = memoryview(bytearray(HASH_BYTES))
        try:
            while at < size and not self.stopped.is_set():
                with self.moved:
                    ready = self.board.done.frontier
                    if ready - at < HASH_BYTES and ready < size:
                        self.moved.wait(1.0)
                        continue
                while at < ready and not self.stopped.is_set():
                    wanted = buffer[: min(HASH_BYTES, ready - at)]
                    count = files.read_at(self.partial.descriptor, wanted, at)
                    if not count:
                        raise OSError(errno.EIO, "the file ended early", str(self.partial.data))
                    sha.update(buffer[:count])
                    at += count
            if at >= size:
                self._digest = "sha256:" + sha.hexdigest()
        except OSError as error:
            self.fail(broken(error, "store"))

    def _keep(self) -> None:
        """Flush and journal until stopped."""
        last = self.clock.monotonic()
        try:
            while not self.stopped.wait(0.1):
                with self.lock:
                    waiting = self._unsynced
                    done = self.board.done.copy()
                now = self.clock.monotonic()
                much = waiting >= SYNC_BYTES * len(self._workers)
                due = now - last >= (SYNC_PAUSE_S if much else SYNC_S)
                if not waiting or not due:
                    continue
                last = now
                with self.lock:
                    self._unsynced -= waiting
                self.partial.sync(done)
        except OSError as error:
            self.fail(broken(error, "store"))

    def _last_sync(self) -> None:
        try:
            self.partial.sync(self.board.done.copy())
        except OSError as error:
            self.fail(broken(error, "store"))

    def _judge(self) -> None:
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise PullCancelled(f"the download of {self.layer.short} was cancelled")
        if self._digest != self.layer.digest:
            self.partial.forget()
            raise DigestMismatch(f"want {self.layer.digest}, got {self._digest or 'nothing'}")
