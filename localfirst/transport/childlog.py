"""What a child wrote: the last lines in memory, more of it in files of bounded size."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from localfirst.transport import files

LOG_BYTES = 64 * 2**10
LINE_BYTES = 4 * 2**10

# C0 and C1 controls, line separators and direction overrides: a log line stays one line.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class LogRing:
    """The last `limit_bytes` of a child's output, in whole lines; older lines are dropped."""

    def __init__(self, limit_bytes: int = LOG_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._open = b""
        self.total_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take output as it comes; returns the lines it completed, cut at 4 KiB each."""
        self.total_bytes += len(data)
        *whole, self._open = (self._open + data[-self._limit_bytes :]).split(b"\n")
        lines = [line[:LINE_BYTES].rstrip(b"\r") for line in whole]
        self._open = self._open[:LINE_BYTES]
        for line in lines:
            self._lines.append(line)
            self._size += len(line) + 1
        while self._size > self._limit_bytes:
            self._size -= len(self._lines.popleft()) + 1
        return lines

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines as text, control characters shown as spaces, the unfinished one too."""
        last = [*self._lines, self._open] if self._open else list(self._lines)
        return [_CONTROL.sub(" ", line.decode("utf-8", "replace")) for line in last[-lines:]]


class RotatedFile:
    """
    A log file that is renamed to `NAME.1` … `NAME.keep` when it has grown full.

    Its folder is made when needed; where nothing can be written there is no log, and no error.
    """

    def __init__(self, path: Path, *, limit_bytes: int = 2**20, keep: int = 5) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._keep = keep
        self._size = 0
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._size = path.stat().st_size

    def write(self, data: bytes) -> None:
        """Append; a full disk or a lost folder costs the log, never the child."""
        with contextlib.suppress(OSError):
            if self._size + len(data) > self._limit_bytes and self._size:
                self.rotate()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                self._size += file.write(data[-self._limit_bytes :])

    def rotate(self) -> None:
        """Move each file one number up; the last falls off."""
        self._shift()
        if self._path.exists():
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._size = 0

    def _shift(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))


class OutlivingFile(RotatedFile):
    """
    A log that its program writes by itself, and goes on writing when we are gone.

    A pipe to a dead parent ends a Go program at its next word (os/signal, "SIGPIPE"). The
    file keeps its name while it is written, so what is too much of it is copied to `NAME.1`
    and cut off, whenever somebody calls `shorten`.
    """

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor to start the program with, which always writes at the end."""
        try:
            descriptor = files.open_appending(self._path)
            self._size = os.fstat(descriptor).st_size
        except OSError:
            descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def words(self) -> bytes:
        """The last of what was written since `opened`."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - LOG_BYTES, min(self._size, end)))
            return file.read(LOG_BYTES)
        return b""

    def shorten(self) -> None:
        """Keep the last of a file that has grown too long, under another name."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size <= self._limit_bytes:
                return
            with self._path.open("rb") as file:
                file.seek(-self._limit_bytes, os.SEEK_END)
                last = file.read(self._limit_bytes)
            self._shift()
            files.write_atomic(self._path.with_name(f"{self._path.name}.1"), last)
            os.truncate(self._path, 0)
            self._size = 0
