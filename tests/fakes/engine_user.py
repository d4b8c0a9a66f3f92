"""
A localfirst with nothing but its local engine, as a process of its own that does as told.

`python -m tests.fakes.engine_user JSON` reads commands from standard input, a line each, and
answers each with lines of JSON: `ask` (`{"began": …}` at the first word, then `{"text": …}`),
`state` (whether it looks after the daemon, and why it is as it is), `reload` (go on as after
a SIGHUP, with another `keep_alive_s`) and `close`, which the end of input is, too.
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

from localfirst.engines.base import Limits
from localfirst.engines.local import LocalEngine
from localfirst.errors import LocalFirstError
from localfirst.events import TextDelta
from localfirst.machine.fit import Cpu, Hardware
from localfirst.models.store import Store
from localfirst.settings import LocalSettings, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from tests.fakes.engine_bench import ROOT, ask, target

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

    def reload(self) -> None:
        """Have a new engine take over from its own, by other settings."""
        self.tell("reload")
        assert self.hear() == {"reloaded": True}

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


def _engine(script: dict[str, Any], upstream: UpstreamClient) -> LocalEngine:
    local = {name: script[name] for name in script if name not in {"folder", "port", "state"}}
    store = Path(script["folder"]) / "models"
    local |= {
        "engine": "ollama",
        "host": f"127.0.0.1:{script['port']}",
        "models_dir": str(store),
    }
    hardware = Hardware(ram_total_bytes=2**34, ram_available_bytes=2**33, cpu=Cpu(cores=2))
    return LocalEngine(
        Settings(
            state_dir=str(Path(script["folder"]) / script["state"]), local=LocalSettings(**local)
        ),
        store=Store(store),
        upstream=upstream,
        clock=SystemClock(),
        environ=dict(os.environ),
        hardware=lambda: hardware,
        measure=lambda: hardware,
        places=(),
    )


async def _work(script: dict[str, Any]) -> None:
    upstream = UpstreamClient(SystemClock())
    engine = _engine(script, upstream)
    loop = asyncio.get_running_loop()
    while command := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if command == "close":
            break
        async with asyncio.timeout(WAIT_S):
            if command == "ask":
                await _ask(engine)
            elif command == "state":
                status = await engine.status(max_age_s=0)
                _say(owned=not status.adopted, reason=status.reason)
            else:
                new = _engine(script | {"keep_alive_s": 7.0}, upstream)
                new.take_over(engine)
                await engine.aclose()
                engine = new
                _say(reloaded=True)
    await engine.aclose()
    await upstream.aclose()
    _say(closed=True)


async def _ask(engine: LocalEngine) -> None:
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


def _say(**found: Any) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_work(json.loads(sys.argv[1])))
