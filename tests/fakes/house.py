"""The whole house as people run it: `localfirst serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_S = 20.0
STOP_S = 15.0


class House:
    """A running gateway: where it listens, and what it has said so far."""

    def __init__(self, child: subprocess.Popen[str], folder: Path) -> None:
        self.child = child
        self.folder = folder
        self.said: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.said.append(line)
            if found := re.search(r"listens on (http://\S+)", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def wait(self) -> None:
        """Until it listens; a test fails with what it said instead."""
        assert self._ready.wait(READY_S), self.said
        assert self.url, "".join(self.said)

    def hears(self, words: str) -> None:
        """Until it has said *words*."""
        end = time.monotonic() + READY_S
        while words not in "".join(self.said):
            assert time.monotonic() < end, self.said
            time.sleep(0.01)

    def stop(self) -> int:
        """End it as a terminal would; its exit code."""
        self.child.terminate()
        try:
            code = self.child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            code = self.child.wait()
        self._reader.join(STOP_S)
        if self.child.stdout is not None:
            self.child.stdout.close()
        return code


@contextmanager
def house(folder: Path, *, config: str = "", **environ: str) -> Iterator[House]:
    """
    Serve from a state and a store under *folder*, with nothing of this machine's user.

    *environ* are further variables; a port is chosen by the system.
    """
    (folder / "config.toml").write_text(config)
    child = subprocess.Popen(
        [sys.executable, "-m", "localfirst", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LOCALFIRST_CONFIG": str(folder / "config.toml"),
            "LOCALFIRST_STATE_DIR": str(folder / "state"),
            "OLLAMA_MODELS": str(folder / "models"),
            "LOCALFIRST_PULL_RESERVE_DISK": "0",
            # No registry outside stands in for a mirror of the tests.
            "LOCALFIRST_PULL_REGISTRIES": "127.0.0.1",
            **environ,
        },
    )
    made = House(child, folder)
    try:
        made.wait()
        yield made
    finally:
        code = made.stop()
    assert code == 0, "".join(made.said)
