"""`localfirst list`: the installed models, and whether each runs on this machine."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from localfirst.cli import render, session
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime import Runtime


HEAD = ("NAME", "ID", "SIZE", "MEMORY", "FITS", "TOKENS/S", "MODIFIED")
RIGHT = (2, 3, 5)
FIELDS = (
    "name", "digest", "size_bytes", "fit", "needed_bytes", "measured_bytes", "tokens_per_s",
    "measured_tokens_per_s", "loaded", "remote", "modified_unix",
)  # fmt: skip
"""Of a model as JSON."""
NARROW, NARROWER = 76, 64
"""Terminals below this width go without the age, and then without the id."""


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
        kept = columns()
        render.table(
            [tuple(line(row, now_unix)[at] for at in kept) for row in rows],
            head=tuple(HEAD[at] for at in kept),
            right=tuple(place for place, at in enumerate(kept) if at in RIGHT),
        )
    else:
        render.say("no model is installed; `localfirst pull llama3.2:1b` fetches a small one")
    return 0


def columns() -> tuple[int, ...]:
    """The places of `HEAD` that the terminal has room for; all of them in a file or pipe."""
    width = render.columns() if render.is_terminal(sys.stdout) else NARROW
    if width >= NARROW:
        return tuple(range(len(HEAD)))
    return (0, 1, 2, 3, 4, 5) if width >= NARROWER else (0, 2, 3, 4, 5)


async def installed(runtime: Runtime) -> list[dict[str, Json]]:
    """The engine's models; the store's where no engine could list them."""
    from localfirst.runtime import provision

    status = await runtime.engine.status(max_age_s=0)
    models = status.models or map(provision.local_model, runtime.store.models())
    return [{field: getattr(model, field) for field in FIELDS} for model in models]


def line(row: dict[str, Json], now_unix: float) -> tuple[str, ...]:
    """One model as a row of the table."""
    digest = str(row["digest"]).removeprefix("sha256:")[:12]
    changed = render.ago(row["modified_unix"], now_unix)
    if row["remote"]:
        return (row["name"], digest, "cloud", "–", "–", "–", changed)
    return (
        row["name"],
        digest,
        render.size(row["size_bytes"]),
        render.size(row["needed_bytes"]) if row["needed_bytes"] else "–",
        "loaded" if row["loaded"] else str(row["fit"]),
        render.speed(row["tokens_per_s"], row["measured_tokens_per_s"]),
        changed,
    )
