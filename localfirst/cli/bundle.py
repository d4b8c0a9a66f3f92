"""`localfirst bundle`: models in one file, for machines without a network."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from localfirst.cli import progress, render, session
from localfirst.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; flags may stand anywhere among them."""
    parser.add_argument("action", choices=sorted(ACTIONS))
    parser.add_argument("names", nargs="+", metavar="NAME", help="models to export, else a file")
    parser.add_argument("-o", "--output", metavar="FILE", default="models.lfb", help="to export to")
    parser.add_argument("--split", metavar="SIZE", default="", help="export parts, such as `4G`")
    parser.add_argument("--json", action="store_true", help="info: one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Do one of the four."""
    if given.action != "export" and len(given.names) > 1:
        render.problem(f"`bundle {given.action}` takes one file", hint="name one", code="usage")
        return 2
    given.file = given.output if given.action == "export" else given.names[0]
    try:
        await ACTIONS[given.action](given)
    except OSError as error:
        error.filename = error.filename or given.file
        raise
    return 0


async def export(given: argparse.Namespace) -> None:
    """Write a bundle; it appears when it is whole."""
    from localfirst.runtime import provision

    async with session.client(given) as client:
        runtime = await client.opened()
        split = size_of(given.split)
        target = Path(given.output)
        work = provision.Export(runtime.store, given.names, target, split_bytes=split)
        await progress.watch(work, target.name)
    render.say(
        f"{work.result}: {render.count(len(work.models), 'model')}, {render.size(work.total_bytes)}"
    )


async def bring(given: argparse.Namespace) -> None:
    """Import: every digest is checked before anything is listed."""
    from localfirst.runtime import provision

    async with session.client(given) as client:
        runtime = await client.opened()
        reserve = runtime.settings.pull.reserve_disk_bytes
        work = provision.Import(runtime.store, Path(given.file), reserve_bytes=reserve)
        await progress.watch(work, Path(given.file).name)
    for model in work.index.models:
        render.say(f"imported `{model.name}`: {render.size(model.size_bytes)}, verified")


async def verify(given: argparse.Namespace) -> None:
    """Check a bundle."""
    from localfirst.runtime import provision

    work = provision.BundleCheck(Path(given.file))
    await progress.watch(work, Path(given.file).name)
    render.say(f"{given.file}: {render.size(work.total_bytes)} match their digests")


async def info(given: argparse.Namespace) -> None:
    """Tell what a bundle says it holds."""
    from localfirst.runtime import provision

    index = provision.bundle_info(Path(given.file))
    if given.json:
        render.as_json(msgspec.to_builtins(index))
        return
    rows = [
        (model.name, model.digest.removeprefix("sha256:")[:12], render.size(model.size_bytes))
        for model in index.models
    ]
    render.table(rows, head=("NAME", "ID", "SIZE"), right=(2,))


def size_of(text: str) -> int:
    """`4G` in bytes; 0 for none."""
    from localfirst.config import values

    try:
        return values.size(text) if text else 0
    except ValueError as error:
        raise ConfigError(
            f"`--split {text}` is no size: expected {error}", hint="such as `4G`", code="usage"
        ) from None


ACTIONS: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, None]]] = {
    "export": export,
    "import": bring,
    "verify": verify,
    "info": info,
}
