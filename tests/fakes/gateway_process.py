"""
A gateway as a process of its own, over a scripted runtime, to be signalled by a test.

Commands on stdin are no part of it: a test speaks HTTP and signals. `slow` in a model's
name makes a stream that never ends by itself. With the key `gated` a runtime starts once
the file `gate` is there, beside the one of the keys; `reading` tells that it waits. Where
the file `hangup` is, a process that starts sends itself that signal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from localfirst.errors import ConfigError
from localfirst.events import Finished, TextDelta
from localfirst.gateway.server import serve
from localfirst.settings import GatewaySettings, Secret, Settings
from localfirst.types import Call
from tests.fakes.scripted_runtime import Gate, ScriptedRuntime, Step


def steps(call: Call) -> list[Step]:
    if "slow" in call.model:
        return [TextDelta("x"), Gate(), Finished()]
    return [TextDelta("Hello"), Finished()]


class GatedRuntime(ScriptedRuntime):
    """Takes its time to start when its key says so."""

    async def start(self) -> None:
        await super().start()
        if (hangup := Path(sys.argv[3]).with_name("hangup")).exists():
            hangup.unlink()
            os.kill(os.getpid(), signal.SIGHUP)
        if "gated" in [key.reveal() for key in self.settings.gateway.keys]:
            folder = Path(sys.argv[3]).parent
            (folder / "reading").touch()
            while not (folder / "gate").exists():
                await asyncio.sleep(0.01)


def make(settings: Settings) -> ScriptedRuntime:
    runtime = GatedRuntime(steps)
    runtime.settings = settings
    return runtime


def main() -> int:
    workers, drain_s, keys = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    settings = Settings(gateway=GatewaySettings(port=0, workers=workers, drain_s=drain_s))

    def reload() -> Settings:
        found = keys.read_text().split()
        if "broken" in found:
            raise ConfigError("`gateway.keys` is broken")
        secrets = tuple(Secret(key, "gateway.keys") for key in found)
        door = msgspec.structs.replace(settings.gateway, keys=secrets)
        return msgspec.structs.replace(settings, gateway=door)

    return serve(
        settings,
        say=lambda line: print(line, flush=True),
        access=lambda lines: print(lines, end="", file=sys.stderr, flush=True),
        reload=reload,
        make=make,
    )


if __name__ == "__main__":
    sys.exit(main())
