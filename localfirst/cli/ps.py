"""`localfirst ps`: the models in memory."""

from __future__ import annotations

import argparse
import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

from localfirst.cli import render, running, session
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime.provision import LocalModel

LOCKED = "the gateway that runs here wants a key that is not in `gateway.keys`: it was not asked"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """Ask the engine that runs and the gateway that runs; starts none."""
    async with session.client(given) as client:
        runtime = await client.opened()
        status = await runtime.engine.status(max_age_s=0)
        found = [of_engine(model) for model in status.models if model.loaded]
        theirs = await asyncio.to_thread(running.models, runtime.settings.gateway)
        if not theirs and await asyncio.to_thread(running.locked, runtime.settings.gateway):
            render.warn(LOCKED)
        now_unix = runtime.clock.unix()
    known = {one["name"] for one in found}
    found += [one for one in map(of_gateway, theirs) if one["name"] not in known]
    if given.json:
        for one in found:
            render.as_json(one)
    elif found:
        render.table(
            [row(one, now_unix) for one in found],
            head=("NAME", "SIZE", "PROCESSOR", "UNTIL"),
            right=(1,),
        )
    else:
        render.say(f"no model is in memory ({status.kind}: {status.reason or status.state})")
    return 0


def of_engine(model: LocalModel) -> dict[str, Json]:
    """A model that this process' own engine tells of."""
    return {
        "name": model.name,
        "size_bytes": model.loaded_bytes or model.size_bytes,
        "vram_bytes": model.loaded_vram_bytes,
        "expires_unix": model.expires_unix or None,
        "gateway": False,
    }


def of_gateway(model: dict[str, Json]) -> dict[str, Json]:
    """A model that the gateway tells of, in Ollama's words."""
    try:
        expires = datetime.fromisoformat(str(model.get("expires_at", ""))).timestamp()
    except ValueError:
        expires = 0.0
    return {
        "name": str(model.get("name", "")),
        "size_bytes": int(model.get("size") or 0),
        "vram_bytes": int(model.get("size_vram") or 0),
        "expires_unix": expires if expires > 0 else None,
        "gateway": True,
    }


def row(one: dict[str, Json], now_unix: float) -> tuple[str, ...]:
    """One model as a row of the table."""
    return (
        one["name"],
        render.size(one["size_bytes"]),
        where(one["vram_bytes"], one["size_bytes"]),
        until(one["expires_unix"] or 0.0, now_unix),
    )


def where(vram_bytes: int, loaded_bytes: int) -> str:
    """The share on the GPU, as `ollama ps` words it."""
    if not loaded_bytes:
        return "unknown"
    share = round(100 * vram_bytes / loaded_bytes)
    if share <= 0:
        return "100% CPU"
    return "100% GPU" if share >= 100 else f"{100 - share}%/{share}% CPU/GPU"


def until(expires_unix: float, now_unix: float) -> str:
    """When an idle model leaves the memory."""
    return f"in {render.span(max(0.0, expires_unix - now_unix))}" if expires_unix else "–"
