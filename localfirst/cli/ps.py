"""`localfirst ps`: the models in memory."""

from __future__ import annotations

import argparse

import msgspec

from localfirst.cli import render, session


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """Ask the engine that runs; starts none."""
    async with session.client(given) as client:
        runtime = await client.opened()
        status = await runtime.engine.status(max_age_s=0)
        now_unix = runtime.clock.unix()
    models = [model for model in status.models if model.loaded]
    if given.json:
        for model in models:
            render.as_json(msgspec.to_builtins(model))
        return 0
    if not models:
        render.say(f"no model is in memory ({status.kind}: {status.reason or status.state})")
        return 0
    render.table(
        [
            (
                model.name,
                render.size(model.loaded_bytes or model.size_bytes),
                where(model.loaded_vram_bytes, model.loaded_bytes),
                until(model.expires_unix, now_unix),
            )
            for model in models
        ],
        head=("NAME", "SIZE", "PROCESSOR", "UNTIL"),
        right=(1,),
    )
    return 0


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
