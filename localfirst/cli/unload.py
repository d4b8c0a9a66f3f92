"""`localfirst unload`: take models out of memory; they stay installed."""

from __future__ import annotations

import argparse
import asyncio

from localfirst.cli import render, running, session
from localfirst.cli.ps import LOCKED


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL")


async def run(given: argparse.Namespace) -> int:
    """Unload each; exit code 1 when none of them was in memory."""
    gone = 0
    async with session.client(given) as client:
        runtime = await client.opened()
        for name in given.models:
            here = await runtime.engine.unload(name)
            there = await asyncio.to_thread(running.unload, runtime.settings.gateway, name)
            if here or there:
                gone += 1
                render.say(f"unloaded `{name}`")
            else:
                render.say(f"`{name}` was not in memory")
        if not gone and await asyncio.to_thread(running.locked, runtime.settings.gateway):
            render.warn(LOCKED)
    return 0 if gone else 1
