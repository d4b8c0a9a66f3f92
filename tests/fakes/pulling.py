"""
A pull in a process of its own, to be killed, doubled, or given a tiny disk.

    python tests/fakes/pulling.py STORE NAME [--connections N] [--reserve BYTES]

prints one JSON line per change (`{"state": …, "completed": …}`) and last `{"end": CODE}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from localfirst.errors import LocalFirstError
from localfirst.models.pull import Puller
from localfirst.models.store import Store
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock


def say(**words: object) -> None:
    # One write, so that a kill leaves whole lines only.
    os.write(1, json.dumps(words).encode() + b"\n")


async def main(options: argparse.Namespace) -> int:
    if options.file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_limit, options.file_limit))
    settings = PullSettings(
        connections=options.connections, reserve_disk_bytes=options.reserve, stall_s=5.0
    )
    puller = Puller(
        store=Store(options.store),
        settings=settings,
        clock=SystemClock(),
        environ=dict(os.environ),
        pauses_s=(0.01, 0.02, 0.05, 0.1),
    )
    try:
        async for shot in puller.start(
            options.name, force=options.force, any_host=True
        ).snapshots():
            done = sum(layer.completed_bytes for layer in shot.layers)
            say(state=shot.state, completed=done)
    except LocalFirstError as error:
        say(end=error.code, hint=error.hint)
        return error.exit_code
    finally:
        await puller.aclose()
    say(end="ok")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("name")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--reserve", type=int, default=0)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--file-limit", type=int, default=0, help="largest file in bytes")
    sys.exit(asyncio.run(main(parser.parse_args())))
