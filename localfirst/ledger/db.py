"""
The ledger: attempts, cooldowns, usage and errors in one SQLite file, shared by processes.

One thread owns the connection and does everything in the order in which it was asked, so a
request never waits for a disk. Attempts are written behind in batches, cooldowns at once.
While idle the thread looks whether another process changed the file and says so. A file
that cannot be used costs one warning and the history, never an answer; one that another
process holds, or whose disk is full, makes it late.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from localfirst.cascade import health
from localfirst.cascade.health import Cooldown
from localfirst.cascade.quota import Place, Window
from localfirst.events import Usage
from localfirst.ledger import rows, schema, windows
from localfirst.transport import files
from localfirst.types import Attempt, Call, Clock, Target

log = logging.getLogger(__name__)

# What SQLite says, and what Python says of a value that SQLite cannot keep, or that it kept
# for somebody else: any column of it takes a value of any kind.
UNUSABLE = (sqlite3.Error, OverflowError, ValueError, TypeError)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], None]

LOOK_EVERY_S = 0.08  # another process's change is to be noticed within 100 ms
PRUNE_EVERY_S = 6 * 3600.0  # a server that runs for months must not keep all of them
BATCH = 256  # fewer are written as soon as the thread has nothing else to do
BUSY_MS = 2000
OPEN_TRIES, OPEN_AGAIN_S = 60, 0.05
WAITING_AT_MOST = 20_000  # beyond this attempts are dropped: a stuck disk must not eat memory
CLOSE_S = 3.0
FULL_AGAIN_S = 5.0  # until a full disk is tried again


class Ledger:
    """
    History of one state directory.

    Args:
        path: the database; its folder is made, 0700, and the file is 0600.
        clock: the time at which rows are stamped.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._attempts: collections.deque[rows.AttemptRow] = collections.deque()
        self._thread: threading.Thread | None = None
        self._windows: dict[Place, Window] = {}
        self._watchers: list[Callable[[tuple[Cooldown, ...]], None]] = []
        self._window_watchers: list[Callable[[dict[Place, Window]], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._version = 0
        self._looked = 0.0
        self._pruned = float("-inf")
        self._opened = False
        self._late = False
        self._again = float("-inf")
        self.reason = ""
        self.dropped = 0

    @property
    def working(self) -> bool:
        """Whether history is being written; `reason` says why not."""
        return self._thread is not None and not self.reason

    # --- life ------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the thread; the file is opened there. Idempotent."""
        if self._thread is not None:
            return
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="localfirst-ledger", daemon=True)
        self._thread.start()

    def end(self) -> threading.Thread | None:
        """Have what is pending written and the file closed, by a thread that then ends."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._work.put(None)
            self._loop = None
        return thread

    async def aclose(self) -> None:
        """Write what is pending and close the file; bounded in time, idempotent."""
        if thread := self.end():
            await asyncio.to_thread(thread.join, CLOSE_S)

    # --- writing ----------------------------------------------------------------------------

    def record_attempt(
        self,
        attempt: Attempt,
        *,
        call: Call | None = None,
        target: Target | None = None,
        usage: Usage | None = None,
        first_token_s: float = 0.0,
        usd: float | None = None,
    ) -> None:
        """Remember one attempt, within a quarter of a second; returns at once."""
        if self._thread is None or self.reason:
            return
        if len(self._attempts) >= WAITING_AT_MOST:
            self.dropped += 1
            return
        self._attempts.append((attempt, call, target, usage, first_token_s, usd))
        if len(self._attempts) == BATCH:
            self._work.put(self._flush)

    def save_cooldown(self, entry: Cooldown) -> asyncio.Future[None] | None:
        """Write a cooldown now; the future is done when it is committed (or has failed)."""
        if self._thread is None or self.reason:
            return None
        return asyncio.wrap_future(self._do(lambda db: rows.save_cooldown(db, entry)))

    def drop_cooldowns(self, places: Sequence[health.Place]) -> None:
        """Forget cooldowns that ended early; returns at once."""
        if self._thread is not None and not self.reason:
            self._do(lambda db: rows.drop_cooldowns(db, places))

    def save_windows(self, found: Mapping[Place, Window]) -> None:
        """Remember quota windows, within a tenth of a second; returns at once."""
        if self._thread is not None and not self.reason:
            self._windows.update(found)

    async def flush(self) -> None:
        """Wait until everything recorded so far is written."""
        await self.run(self._flush)

    # --- reading ----------------------------------------------------------------------------

    async def load_cooldowns(self) -> tuple[Cooldown, ...]:
        """Every cooldown in the file, the expired ones too; () when there is no file."""
        return await self.run(rows.load_cooldowns) or ()

    async def load_windows(self) -> dict[Place, Window]:
        """Every quota window in the file; {} when there is no file."""
        return await self.run(windows.load) or {}

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do *work* on the ledger's thread after all that was asked before; None if broken."""
        if self._thread is None or self.reason:
            return None
        return await asyncio.wrap_future(self._do(work))

    def watch(self, changed: Callable[[tuple[Cooldown, ...]], None]) -> None:
        """Call *changed* on the opening loop with all cooldowns when another process wrote."""
        self._watchers.append(changed)

    def watch_windows(self, changed: Callable[[dict[Place, Window]], None]) -> None:
        """The same for quota windows."""
        self._window_watchers.append(changed)

    def data_version(self) -> int:
        """A number that changes, within 100 ms, when another process has written."""
        return self._version

    # --- on the thread ----------------------------------------------------------------------

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> concurrent.futures.Future[T | None]:
        done: concurrent.futures.Future[T | None] = concurrent.futures.Future()

        def step(db: sqlite3.Connection) -> None:
            if not done.set_running_or_notify_cancel():
                return
            result: T | None = None
            try:
                result = work(db)
            except UNUSABLE as error:
                self._broken(error)
            finally:
                done.set_result(result)

        self._work.put(step)
        return done

    def _run(self) -> None:
        db = self._connect()
        try:
            while (work := self._await_work(db)) is not None:
                if db is not None and self._removed():
                    db.close()
                    db = self._connect()
                if db is not None:
                    work(db)
                else:
                    # Nothing can be written; whoever waits is released all the same.
                    with contextlib.suppress(sqlite3.Error), _nowhere() as nothing:
                        work(nothing)
            if db is not None:
                self._again = float("-inf")
                self._flush(db)
        finally:
            if db is not None:
                db.close()

    def _await_work(self, db: sqlite3.Connection | None) -> Work | None:
        """The next piece of work; look for others' changes meanwhile, however much there is."""
        while True:
            try:
                work = self._work.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                self._look(db)
                continue
            if self._clock.monotonic() - self._looked >= LOOK_EVERY_S:
                self._look(db)
            return work

    def _look(self, db: sqlite3.Connection | None) -> None:
        self._looked = self._clock.monotonic()
        if db is None or self.reason:
            return
        if (self._attempts or self._windows) and self._removed():
            self._work.put(self._flush)
            return
        self._flush(db)
        try:
            if self._looked - self._pruned >= PRUNE_EVERY_S:
                self._prune(db)
            version = db.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version:
                return
            self._version = version
            cooldowns, limits = rows.load_cooldowns(db), windows.load(db)
        except UNUSABLE as error:
            self._broken(error)
            return
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop closed a moment ago
                loop.call_soon_threadsafe(self._tell, cooldowns, limits)

    def _tell(self, cooldowns: tuple[Cooldown, ...], limits: dict[Place, Window]) -> None:
        for changed in self._watchers:
            changed(cooldowns)
        for told in self._window_watchers:
            told(limits)

    def _flush(self, db: sqlite3.Connection) -> None:
        if self._clock.monotonic() < self._again:
            return
        # Appended to by the loop meanwhile: taken one by one, so that none falls between.
        batch = [self._attempts.popleft() for _ in range(len(self._attempts))]
        limits, self._windows = self._windows, {}
        limits = dict(limits)  # the loop may still hold the one that was swapped out
        if not (batch or limits) or self.reason:
            return
        try:
            if batch:
                rows.save_attempts(db, batch, self._clock.unix())
                batch = []
            windows.save(db, limits)
            self._late = False
        except UNUSABLE as error:
            if _passing(error):
                self._attempts.extendleft(reversed(batch))
                self._windows = limits | self._windows
            self._broken(error)

    def _connect(self) -> sqlite3.Connection | None:
        try:
            files.ensure_dir(self.path.parent, mode=0o700)
            db = connect_patiently(self.path)
            self._opened = True
            self._version = db.execute("PRAGMA data_version").fetchone()[0]
        except (sqlite3.Error, OSError, schema.NewerFile) as error:
            self._broken(error)
            return None
        return db

    def _removed(self) -> bool:
        """Whether somebody removed the file: what is written to it now nobody will read."""
        try:
            return not self.path.exists()
        except OSError:  # a folder that may not be looked into
            return False

    def _prune(self, db: sqlite3.Connection) -> None:
        """Forget a few rows; the next look goes on where there may be more."""
        more, now_unix = False, self._clock.unix()
        with contextlib.suppress(sqlite3.OperationalError):  # busy: another time will do
            more = rows.prune(db, now_unix)
            windows.prune(db, now_unix)
        if not more:
            self._pruned = self._looked

    def _broken(self, error: Exception) -> None:
        """One warning, and history is off; answers go on."""
        if self._opened and (why := _passing(error)):
            if why == FULL:
                self._again = self._clock.monotonic() + FULL_AGAIN_S
            if not self._late:
                self._late = True
                log.warning("history is late: %s (`%s`)", why, self.path)
            return
        if not self.reason:
            self.reason = f"{type(error).__name__}: {error}"
            log.warning("history is off: `%s` cannot be used (%s)", self.path, error)


FULL = "the disk is full"


def _passing(error: Exception) -> str:
    """Why nothing can be written now although it may be later, or ""."""
    if _locked(error):
        return "another process holds the ledger"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where it happened
    return FULL if code == sqlite3.SQLITE_FULL else ""


def _locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def connect_patiently(path: Path) -> sqlite3.Connection:
    """`connect`, again while others are opening the file too: WAL begins without waiting."""
    pause = threading.Event()
    for _ in range(OPEN_TRIES - 1):
        try:
            return connect(path)
        except sqlite3.OperationalError as error:
            if not _locked(error):
                raise
            pause.wait(OPEN_AGAIN_S)
    return connect(path)


def connect(path: Path) -> sqlite3.Connection:
    """
    Open the file as every process does: WAL, short waits, tables made.

    Raises:
        sqlite3.Error, OSError: it cannot be used.
        NewerFile: a later version wrote it.
    """
    path.touch(mode=0o600, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        # WAL lets readers and one writer of several processes work side by side; NORMAL
        # syncs at checkpoints, so a power cut may lose the last rows, never the file.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        schema.prepare(db)
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def _nowhere():  # type: ignore[no-untyped-def]
    db = sqlite3.connect(":memory:")
    try:
        yield db
    finally:
        db.close()
