"""`localfirst list`: the installed models, and whether each runs on this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from localfirst.cli import render, session
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime import Runtime


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """List what the engine has, else what the store has."""
    async with session.client(given) as client:
        runtime = await client.opened()
        rows = await installed(runtime)
        now_unix = runtime.clock.unix()
    if given.json:
        for row in rows:
            render.as_json(row)
    elif rows:
        render.table(
            [line(row, now_unix) for row in rows],
            head=("NAME", "ID", "SIZE", "FITS HERE", "MODIFIED"),
            right=(2,),
        )
    else:
        render.say("no model is installed; `localfirst pull llama3.2:1b` fetches a small one")
    return 0


async def installed(runtime: Runtime) -> list[dict[str, Json]]:
    """The engine's models; the store's where no engine could list them."""
    status = await runtime.engine.status(max_age_s=0)
    models: list[Any] = list(status.models) or runtime.store.models()
    return [
        {
            "name": model.name,
            "digest": model.digest,
            "size_bytes": model.size_bytes,
            "fit": getattr(model, "fit", "unknown"),
            "loaded": getattr(model, "loaded", False),
            "remote": getattr(model, "remote", False),
            "modified_unix": model.modified_unix,
        }
        for model in models
    ]


def line(row: dict[str, Json], now_unix: float) -> tuple[str, ...]:
    """One model as a row of the table."""
    digest = str(row["digest"]).removeprefix("sha256:")[:12]
    size = "cloud" if row["remote"] else render.size(row["size_bytes"])
    return (row["name"], digest, size, str(row["fit"]), render.ago(row["modified_unix"], now_unix))
