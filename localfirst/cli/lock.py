"""`localfirst lock`: pin models to their exact bytes, for other machines to fetch."""

from __future__ import annotations

import argparse
from pathlib import Path

from localfirst.cli import render, session
from localfirst.models import lock as locks


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all installed when none")
    parser.add_argument("-o", "--output", metavar="FILE", default=locks.FILE_NAME)
    parser.add_argument("--latest", action="store_true", help="pin what the registry has now")
    parser.add_argument("--insecure", action="store_true", help="allow http beyond this machine")


async def run(given: argparse.Namespace) -> int:
    """Write the lock; a model that is not installed is looked up in its registry."""
    from localfirst.runtime import provision

    async with session.client(given) as client:
        runtime = await client.opened()
        names = given.models or [stored.name for stored in runtime.store.models()]
        if not names:
            render.problem("no model is installed", hint="name one", code="usage")
            return 2
        lock = await provision.resolve(
            names,
            store=runtime.store,
            registry=runtime.puller.registry,
            latest=given.latest,
            insecure=given.insecure,
            any_host=True,
        )
    provision.write_file(Path(given.output), lock)
    total = sum(model.size_bytes for model in lock.models)
    render.say(f"{given.output}: {render.count(len(lock.models), 'model')}, {render.size(total)}")
    return 0
