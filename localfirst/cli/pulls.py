"""`localfirst pulls`: downloads that are not finished, and `pulls rm` to give one up."""

from __future__ import annotations

import argparse

import msgspec

from localfirst.cli import render, session


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", nargs="?", choices=("list", "rm"), default="list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what `rm` gives up")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """List them, or remove what they fetched so far."""
    from localfirst.runtime import provision

    async with session.client(given) as client:
        runtime = await client.opened()
        for name in given.names if given.action == "rm" else ():
            freed = provision.remove_pending(runtime.store, name)
            render.say(f"gave up `{name}`: {render.size(freed)} freed")
        if given.action == "rm":
            return 0
        found = provision.pending(runtime.store)
        now_unix = runtime.clock.unix()
    if given.json:
        for item in found:
            render.as_json(msgspec.to_builtins(item))
    elif found:
        rows = [
            (
                item.name,
                f"{render.size(item.completed_bytes)} of {render.size(item.size_bytes)}",
                "now" if item.active else render.ago(item.modified_unix, now_unix),
            )
            for item in found
        ]
        render.table(rows, head=("NAME", "FETCHED", "LAST"))
    else:
        render.say("no download is unfinished")
    return 0
