"""The command `localfirst` run as people run it: with pipes, or on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

LONGEST_S = 30.0


class Ran(NamedTuple):
    """What came of a command."""

    code: int
    out: str
    err: str


def environ(folder: Path, **more: str) -> dict[str, str]:
    """Variables of a machine that has the embedded engine, a folder, and nothing else."""
    (folder / "config.toml").touch()
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "LOCALFIRST_CONFIG": str(folder / "config.toml"),
        "LOCALFIRST_STATE_DIR": str(folder / "state"),
        "LOCALFIRST_LOCAL_ENGINE": "llamacpp",
        "LOCALFIRST_LOCAL_AUTO_PULL": "false",
        "LOCALFIRST_PULL_RESERVE_DISK": "0",
        # No registry outside stands in for a mirror of the tests.
        "LOCALFIRST_PULL_REGISTRIES": "127.0.0.1",
        "OLLAMA_MODELS": str(folder / "models"),
        **more,
    }


def run(folder: Path, *words: str, stdin: str | None = None, **variables: str) -> Ran:
    """Run it with pipes to its end."""
    argv = [sys.executable, "-m", "localfirst", *words]
    return finished(folder, argv, stdin=stdin, **variables)


def finished(
    folder: Path, argv: Sequence[str], *, stdin: str | None = None, **variables: str
) -> Ran:
    """Any program in the environment of a machine of the tests, run to its end."""
    done = subprocess.run(
        list(argv),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        env=environ(folder, **variables),
        cwd=folder,
        timeout=LONGEST_S,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


class Terminal:
    """A command on a terminal; `seen` is all that it has shown so far."""

    def __init__(self, child: subprocess.Popen[bytes], screen: int) -> None:
        self.child = child
        self.seen = ""
        self._at = 0
        self._screen = screen
        self._open = True

    def type(self, keys: str) -> None:
        """Press keys; `\\x03` is Ctrl-C, `\\x04` Ctrl-D."""
        os.write(self._screen, keys.encode())

    def until(self, words: str) -> str:
        """Read until *words* come after what was waited for before; returns all up to them."""
        while (found := self.seen.find(words, self._at)) < 0:
            assert self._read(), f"`{words}` never came: {self.seen[self._at :]!r}"
        shown = self.seen[self._at : found]
        self._at = found + len(words)
        return shown

    def close(self) -> None:
        """Close the window."""
        if self._open:
            os.close(self._screen)
        self._open = False

    def end(self) -> int:
        """Read to the end; its exit code."""
        while self._read():
            pass
        return self.child.wait(LONGEST_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], LONGEST_S)
        if not ready:
            return False
        try:
            data = os.read(self._screen, 2**16)
        except OSError:  # Linux: the other end is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(
    folder: Path, *words: str, columns: int = 100, before: Sequence[str] = (), **variables: str
) -> Iterator[Terminal]:
    """Run it, by the words *before* it, on a terminal *columns* wide; ended with the block."""
    screen, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    child = subprocess.Popen(
        [*before, sys.executable, "-m", "localfirst", *words],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=environ(folder, **variables),
        cwd=folder,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    made = Terminal(child, screen)
    try:
        yield made
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(LONGEST_S)
        made.close()
