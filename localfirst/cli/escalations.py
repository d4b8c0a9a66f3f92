"""`localfirst escalations`: what a human should know, and whether it is over."""

from __future__ import annotations

import argparse

import msgspec

from localfirst.cli import render, session


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--all", action="store_true", help="also those that are over")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """List them, the latest first; exit code 1 while one is open."""
    from localfirst.runtime import past

    async with session.client(given) as client:
        runtime = await client.opened()
        found = await past.escalations(runtime, only_open=not given.all)
        now_unix = runtime.clock.unix()
    if given.json:
        for one in found:
            render.as_json(msgspec.to_builtins(one))
    elif found:
        rows = [
            (
                render.ago(one.at_unix, now_unix),
                "over" if one.resolved_unix else "open",
                one.reason,
                one.file,
            )
            for one in found
        ]
        render.table(rows, head=("WHEN", "STATE", "REASON", "FILE"))
    else:
        render.say("no escalation is open")
    return 1 if any(one.resolved_unix is None for one in found) else 0
