"""
Who started the daemon and who uses it: a small file and two locks, so that localfirst
processes agree.

One lock is held by the process that looks after the daemon. The other one is shared by all
that use it; the daemon is ended by whoever leaves and then gets that lock alone, and no new
user comes before this is over. A death frees both. The file outlives them and says which
process to take over, or whose runners to end.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from localfirst.engines.launch import MARKER, STATE_DIR
from localfirst.errors import EngineUnavailable
from localfirst.transport import files, process
from localfirst.transport.childlog import OutlivingFile
from localfirst.wire.forgiving import UNREADABLE

if TYPE_CHECKING:
    import psutil

log = logging.getLogger("localfirst.engines")

LIMIT_BYTES = 2**16
RUNNERS = ("llama-server", "ollama", "ollama_llama_server")


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """
    A daemon that a localfirst started; `birth` tells its pid from a recycled one.

    `by` tells the settings that it runs by from others; "" where they are not known.
    """

    pid: int
    birth: str
    endpoint: str
    by: str = ""

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return process.same(self.pid, self.birth)


class Record:
    """
    The file, the lock and the marker of one state folder, which is made when needed.

    Without a folder nothing can be owned, and nothing is remembered.
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._folder = state_dir = state_dir.absolute() if state_dir else None
        self.marker = hashlib.sha256(os.fsencode(state_dir or "")).hexdigest()[:16]
        self._lock = files.FileLock(state_dir / "ollama.lock") if state_dir else None
        users = state_dir / "ollama.users" if state_dir else None
        self._users = files.FileLock(users, anywhere=True) if users else None

    @property
    def marks(self) -> dict[str, str]:
        """What a daemon carries in its environment, and its runners: whose they are."""
        return {MARKER: self.marker, STATE_DIR: str(self._folder)}

    def log(self) -> OutlivingFile:
        """Where a daemon's output goes."""
        return OutlivingFile(self._path.with_name("logs") / "ollama.log")

    @property
    def _path(self) -> Path:
        assert self._folder is not None, "a daemon is only owned with a state folder"
        return self._folder / "ollama.json"

    def try_own(self) -> bool:
        """
        Take the right to have a daemon; False while another localfirst has it.

        Raises:
            EngineUnavailable: the folder takes no lock, so that two could start one.
        """
        if self._folder is None or self._lock is None:
            return False
        try:
            files.ensure_dir(self._folder)
            return self._lock.try_acquire()
        except OSError as error:
            raise EngineUnavailable(
                f"Ollama is not started: `{error.filename}`: {error.strerror}",
                hint="set `LOCALFIRST_STATE_DIR` to a folder of yours, or start Ollama",
            ) from error

    def may_own(self) -> bool:
        """As `try_own`, for a daemon that runs: False where the folder takes no lock."""
        try:
            return self.try_own()
        except EngineUnavailable:
            return False

    def use(self) -> bool:
        """
        Keep the daemon from being ended; False while another localfirst does that.

        A folder that is not there, or takes no lock, knows of no daemon to keep.
        """
        try:
            return self._users is None or self._users.try_acquire(shared=True)
        except OSError as error:
            log.debug("the use of Ollama is not noted: %s", error)
            return True

    def leave(self) -> None:
        """Use the daemon no longer."""
        if self._users is not None:
            self._users.release()

    def last(self) -> bool:
        """Leave; whether nobody else uses the daemon, nor will before `release`."""
        self.leave()
        try:
            return self._users is not None and self._users.try_acquire()
        except OSError:
            return False

    def release(self) -> None:
        """Give all rights back."""
        self.leave()
        if self._lock is not None:
            self._lock.release()

    def read(self) -> Started | None:
        """What was started last, or None when nothing readable is there."""
        if self._folder is None:
            return None
        try:
            return msgspec.json.decode(files.read_bounded(self._path, LIMIT_BYTES), type=Started)
        except (OSError, *UNREADABLE):
            return None

    def write(self, started: Started) -> None:
        """Remember a daemon of ours; written whole or not at all."""
        files.write_atomic(self._path, msgspec.json.encode(started))

    def forget(self) -> None:
        """Nothing of ours runs."""
        with contextlib.suppress(OSError):  # it is taken for what it is: no process is alive
            self._path.unlink(missing_ok=True)

    def end_orphans(self) -> int:
        """
        End what a dead daemon of ours left behind; returns how many.

        A daemon that is killed leaves its runners alive with all their memory
        (ollama/ollama `llm/llm_linux.go` sets no parent-death signal). Only processes that
        carry our marker are touched, and only by the owner of a lock.
        """
        ended = 0
        for found, mark, environ in _runners():
            if environ.get(MARKER) == self.marker and process.end(found.pid, mark, force=True):
                log.warning("ended %s (pid %d), an orphan of ours", found.info["name"], found.pid)
                ended += 1
        return ended

    def found_at(self, endpoint: str) -> tuple[Record, Started] | None:
        """
        The daemon at *endpoint* if any localfirst of this user started it, and its record.

        It says so itself: another state folder, or a start that was cut short, left no file
        here. Blocks; the daemon answers.
        """
        for found, mark, environ in _daemons(endpoint):
            folder = Path(environ[STATE_DIR])
            record = self if folder == self._folder else Record(folder)
            if environ.get(MARKER) == record.marker:
                return record, Started(pid=found.pid, birth=mark, endpoint=endpoint)
        return None


def contested(endpoint: str, pid: int) -> bool:
    """Whether a daemon that another localfirst started wants *endpoint*, too. Blocks."""
    return any(found.pid != pid for found, _, _ in _daemons(endpoint))


def _daemons(endpoint: str) -> Iterator[tuple[psutil.Process, str, dict[str, str]]]:
    """As `_runners`, those that a localfirst started to serve at *endpoint*."""
    port = urlsplit(endpoint).port
    for found, mark, environ in _runners():
        own = environ.get("OLLAMA_HOST", "").rpartition(":")[2] == str(port)
        if own and environ.get(STATE_DIR) and _serves(found):
            yield found, mark, environ


def _runners() -> Iterator[tuple[psutil.Process, str, dict[str, str]]]:
    """Each of this user's processes of an Ollama, its birth and its environment."""
    import psutil

    for found in psutil.process_iter(["name"]):
        if not any(name in (found.info["name"] or "") for name in RUNNERS):
            continue
        mark = process.birth(found.pid)
        try:
            # What another user's process says of itself is not believed, by root neither.
            if sys.platform != "win32" and found.uids().effective != os.geteuid():
                continue
            yield found, mark, found.environ()
        except (psutil.Error, OSError):
            continue


def _serves(found: psutil.Process) -> bool:
    """Whether it is the daemon itself, whose runners carry its environment, too."""
    import psutil

    try:
        return bool(found.cmdline()[-1:] == ["serve"])
    except (psutil.Error, OSError):
        return False
