"""`localfirst providers`: the clouds, in the ladder's order, with the state of their keys."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from localfirst.cli import render, session
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime import Runtime


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--all", action="store_true", help="also those outside the ladder")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """List them; asks nobody."""
    async with session.client(given) as client:
        rows = describe(await client.opened())
    rows = [row for row in rows if given.all or row["in_order"] or row["ready"]]
    if given.json:
        for row in rows:
            render.as_json(row)
        return 0
    show(rows)
    if not any(row["ready"] for row in rows):
        render.say()
        render.say("no cloud can be asked; the free tiers of groq and gemini need only a key")
    return 0


def show(rows: list[dict[str, Json]]) -> None:
    """The providers as a table."""
    render.table(
        [
            (row["id"], row["state"], ", ".join(row["keys"]) or "–", row["model"], row["reason"])
            for row in rows
        ],
        head=("PROVIDER", "STATE", "KEYS", "MODEL", "WHAT TO DO"),
    )


def describe(runtime: Runtime) -> list[dict[str, Json]]:
    """Every provider as JSON, the ladder's first; names of keys, never their values."""
    order = {name: place for place, name in enumerate(runtime.settings.order)}
    known = sorted(runtime.providers.values(), key=lambda one: order.get(one.id, len(order)))
    return [
        {
            "id": one.id,
            "title": one.title,
            "state": str(one.state),
            "ready": one.ready,
            "reason": one.reason or cooling(runtime, one.id) or one.wanting,
            "keys": list(one.key_labels),
            "model": one.default_models[0] if one.default_models else "",
            "models": list(one.default_models),
            "base_url": one.base_url,
            "dialect": str(one.dialect),
            "in_order": one.id in order,
            "free_tier": one.spec.free_tier,
            "docs": one.spec.docs,
        }
        for one in known
    ]


def cooling(runtime: Runtime, provider: str) -> str:
    """What is left alone at a provider for the moment."""
    now_unix = runtime.clock.unix()
    found = [
        f"{entry.model or entry.key_label or 'all of it'} {rest(entry.until_unix, now_unix)}"
        f" ({entry.cls})"
        for entry in runtime.cascade.health.snapshot()
        if entry.provider == provider and entry.until_unix > now_unix
    ]
    return ", ".join(found)


def rest(until_unix: float, now_unix: float) -> str:
    """How long something is left alone."""
    if until_unix == float("inf"):
        return "is left alone until its key changes"
    return f"is left alone for {render.span(until_unix - now_unix)}"
