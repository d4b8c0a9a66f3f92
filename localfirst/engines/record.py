"""
Who started the daemon: a small file and a lock, so that localfirst processes agree.

The lock is held by the process that owns the daemon and is freed by its death. The file
outlives both and says which process to take over, or whose runners to end.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import msgspec

from localfirst.engines.launch import MARKER
from localfirst.errors import EngineUnavailable
from localfirst.transport import files, process
from localfirst.wire.forgiving import UNREADABLE

log = logging.getLogger("localfirst.engines")

LIMIT_BYTES = 2**16
RUNNERS = ("llama-server", "ollama", "ollama_llama_server")


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon that a localfirst started; `birth` tells its pid from a recycled one."""

    pid: int
    birth: str
    endpoint: str

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
        self._folder = state_dir
        self.marker = hashlib.sha256(os.fsencode(state_dir or "")).hexdigest()[:16]
        self._lock = files.FileLock(state_dir / "ollama.lock") if state_dir else None

    @property
    def log_file(self) -> Path:
        """Where a daemon's output goes."""
        return self._path.with_name("logs") / "ollama.log"

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

    def release(self) -> None:
        """Give the right back."""
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
        self._path.unlink(missing_ok=True)

    def end_orphans(self) -> int:
        """
        End what a dead daemon of ours left behind; returns how many.

        A daemon that is killed leaves its runners alive with all their memory
        (ollama/ollama `llm/llm_linux.go` sets no parent-death signal). Only processes that
        carry our marker are touched, and only by the owner of the lock.
        """
        import psutil

        ended = 0
        for found in psutil.process_iter(["name"]):
            if not any(name in (found.info["name"] or "") for name in RUNNERS):
                continue
            mark = process.birth(found.pid)
            try:
                ours = found.environ().get(MARKER) == self.marker
            except (psutil.Error, OSError):
                continue
            if ours and process.end(found.pid, mark, force=True):
                log.warning("ended %s (pid %d), an orphan of ours", found.info["name"], found.pid)
                ended += 1
        return ended
