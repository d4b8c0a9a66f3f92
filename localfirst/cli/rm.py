"""
`localfirst rm`: remove models, and the blobs that no other model needs.

What lies in a store that is not ours to write, as that of an Ollama that is a service, is
removed by the Ollama that lists it.
"""

from __future__ import annotations

import argparse

from localfirst.cli import render, session


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL")


async def run(given: argparse.Namespace) -> int:
    """Remove each, in the order named; stops at the first that is unknown."""
    async with session.client(given) as client:
        runtime = await client.opened()
        for name in given.models:
            ours = runtime.store.find(name) is not None and not runtime.store.writable()
            if not ours and await runtime.engine.delete(name):
                render.say(f"removed `{name}` from Ollama's store")
                continue
            stored = runtime.store.get(name)
            sizes = {layer.digest: layer.size_bytes for layer in stored.manifest.blobs}
            await runtime.engine.unload(stored.name)
            removed = runtime.store.remove(stored.name)
            freed = sum(sizes.get(digest, 0) for digest in removed)
            kept = len(sizes) - len(removed)
            shared = f", {kept} shared blobs kept" if kept else ""
            render.say(f"removed `{stored.name}`: {render.size(freed)} freed{shared}")
    return 0
