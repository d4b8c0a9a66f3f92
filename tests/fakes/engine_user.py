"""
A localfirst with nothing but its local engine, as a process of its own that does as told.

`python -m tests.fakes.engine_user JSON` reads commands from standard input, a line each, and
answers each with lines of JSON: `ask` (`{"began": …}` at the first word, then `{"text": …}`),
`state` (whether it looks after the daemon, and why it is as it is) and `close`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 20.0


class User:
    """Such a process, from outside."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child

    def tell(self, command: str) -> None:
        """Have it begin with *command*."""
        assert self.child.stdin is not None
        self.child.stdin.write(command + "\n")
        self.child.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next line of its answer; the program itself bounds the wait."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, "it ended without an answer"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self) -> str:
        """The text of one whole answer."""
        self.tell("ask")
        while "text" not in (heard := self.hear()):
            assert "error" not in heard, heard
        return str(heard["text"])

    def state(self) -> dict[str, Any]:
        """Whether it `owned` the daemon, and the `reason` of its state."""
        self.tell("state")
        return self.hear()

    def close(self) -> None:
        """End it in order."""
        self.tell("close")
        assert self.hear() == {"closed": True}
        assert self.child.wait(WAIT_S) == 0

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.child.kill()
        self.child.wait(WAIT_S)


@contextmanager
def user(folder: Path, port: int, *, programs: Path, **settings: Any) -> Iterator[User]:
    """
    A process on the store in *folder* and on *port*, which finds its Ollama in *programs*.

    *settings* are those of `local`, and `state` the name of its state folder.
    """
    script = {"folder": str(folder), "port": port, "state": "state"} | settings
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.engine_user", json.dumps(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder)},
    )
    with child:
        try:
            yield User(child)
        finally:
            child.kill()


async def _work(script: dict[str, Any]) -> None:
    from localfirst.engines.local import LocalEngine
    from localfirst.machine.fit import Cpu, Hardware
    from localfirst.models.store import Store
    from localfirst.settings import LocalSettings, Settings
    from localfirst.transport.clock import SystemClock
    from localfirst.transport.upstream import UpstreamClient

    folder, port, state = (script.pop(name) for name in ("folder", "port", "state"))
    store = Path(folder) / "models"
    usual = {"engine": "ollama", "host": f"127.0.0.1:{port}", "models_dir": str(store)}
    upstream = UpstreamClient(SystemClock())
    hardware = Hardware(
        ram_total_bytes=2**34, ram_available_bytes=2**33, cpu=Cpu(cores=os.cpu_count() or 1)
    )
    engine = LocalEngine(
        Settings(state_dir=str(Path(folder) / state), local=LocalSettings(**usual | script)),
        store=Store(store),
        upstream=upstream,
        clock=SystemClock(),
        environ=dict(os.environ),
        hardware=lambda: hardware,
        measure=lambda: hardware,
        places=(),
    )
    loop = asyncio.get_running_loop()
    while (command := (await loop.run_in_executor(None, sys.stdin.readline)).strip()) in COMMANDS:
        async with asyncio.timeout(WAIT_S):
            await COMMANDS[command](engine)
    await engine.aclose()
    await upstream.aclose()
    _say(closed=True)


async def _ask(engine: Any) -> None:
    from localfirst.engines.base import Limits
    from localfirst.errors import LocalFirstError
    from localfirst.events import TextDelta
    from tests.fakes.engine_bench import ask, target

    text = ""
    try:
        async for event in engine.answer(ask(), target(), Limits()):
            if isinstance(event, TextDelta):
                if not text:
                    _say(began=True)
                text += event.text
    except LocalFirstError as error:
        _say(error=str(error))
    else:
        _say(text=text)


async def _state(engine: Any) -> None:
    status = await engine.status(max_age_s=0)
    _say(owned=not status.adopted, reason=status.reason)


COMMANDS = {"ask": _ask, "state": _state}


def _say(**found: Any) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_work(json.loads(sys.argv[1])))
