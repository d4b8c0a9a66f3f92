"""`localfirst outdated`: which installed models' tags name other bytes by now."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from localfirst.cli import render, session

if TYPE_CHECKING:
    from localfirst.runtime.provision import Moved


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all when none is named")
    parser.add_argument("--insecure", action="store_true", help="allow http beyond this machine")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """Ask the registries; exit code 3 when none of them could be asked."""
    from localfirst.runtime import provision

    async with session.client(given) as client:
        runtime = await client.opened()
        store = runtime.store
        models = [store.get(name) for name in given.models] or store.models()
        found = await provision.compare(models, runtime.puller.registry, insecure=given.insecure)
    if given.json:
        for moved in found:
            render.as_json({"outdated": moved.outdated, **msgspec.to_builtins(moved)})
    elif found:
        rows = [
            (moved.name, moved.digest[:12], moved.latest[:12] or "–", state(moved))
            for moved in found
        ]
        render.table(rows, head=("NAME", "HERE", "REGISTRY", "STATE"))
    else:
        render.say("no model is installed")
    return 3 if found and all(moved.error for moved in found) else 0


def state(moved: Moved) -> str:
    """A word, or why the registry could not be asked."""
    return moved.error or ("outdated" if moved.outdated else "up to date")
