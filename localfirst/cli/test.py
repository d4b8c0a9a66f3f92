"""`localfirst test`: one real question to one provider, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from localfirst.cli import render, session
from localfirst.errors import ConfigError

if TYPE_CHECKING:
    from localfirst.runtime import Runtime


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="`local`, a provider, or `provider/model`")
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Ask it and nobody else; the exit code is the failure's own."""
    loop = asyncio.get_running_loop()
    async with session.client(given) as client:
        runtime = await client.opened()
        model = name_of(runtime, given.name)
        # Whoever was refused is asked all the same: this is how one finds out that it works again.
        runtime.forgive(model.partition("/")[0])
        began = loop.time()
        reply = await client.chat(
            "Answer with the one word: ready", model=model, max_tokens=16, fallback=False
        )
        took = loop.time() - began
    if given.json:
        usage = reply.usage
        render.as_json({"route": reply.route, "took_s": took, "tokens": usage.completion_tokens})
        return 0
    said = render.plain(reply.text.strip().partition("\n")[0][:60])
    print(f"{reply.route} answered in {render.span(took)}: “{said}”")
    return 0


def name_of(runtime: Runtime, name: str) -> str:
    """A provider's id becomes its own default model there; raises for one that has none."""
    known = runtime.providers.get(name)
    if known is None:
        return name
    if not known.ready:
        raise ConfigError(
            f"`{name}` cannot be asked: {known.reason}",
            setting=f"providers.{name}",
            hint=f"{known.reason}, then run `localfirst test {name}`",
            code="provider-not-ready",
        )
    if not known.default_models:
        raise ConfigError(
            f"`{name}` has no default model",
            setting=f"providers.{name}.model",
            hint=f"set `providers.{name}.model`, or test `{name}/MODEL`",
        )
    return f"{name}/{known.default_models[0]}"
