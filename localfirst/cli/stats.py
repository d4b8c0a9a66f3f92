"""`localfirst stats`: who answered, what it took, and what failed lately."""

from __future__ import annotations

import argparse

import msgspec

from localfirst.cli import render, session

DAY_S = 86400.0
ERRORS_SHOWN = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--days", type=float, default=30.0, metavar="N", help="how far back")
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Read the ledger; every process of this user writes into the same one."""
    from localfirst.runtime import past

    async with session.client(given) as client:
        runtime = await client.opened()
        now_unix = runtime.clock.unix()
        since = now_unix - given.days * DAY_S
        rows = await past.used(runtime, since)
        errors = await past.errors(runtime, since, ERRORS_SHOWN)
    if given.json:
        built = {"usage": msgspec.to_builtins(rows), "errors": msgspec.to_builtins(errors)}
        render.as_json({"days": given.days, **built})
        return 0
    if not rows:
        render.say("nothing was asked yet")
        return 0
    render.table(
        [
            (
                f"{row.provider}/{row.model}",
                str(row.requests),
                str(row.failures),
                f"{row.prompt_tokens:,}",
                f"{row.completion_tokens:,}",
                "–" if row.usd is None else f"{row.usd:.4f}",
                render.span(row.first_token_s) if row.first_token_s else "–",
            )
            for row in rows
        ],
        head=("ROUTE", "REQUESTS", "FAILED", "TOKENS IN", "TOKENS OUT", "USD", "FIRST TOKEN"),
        right=(1, 2, 3, 4, 5, 6),
    )
    if errors:
        print()
        told = [
            (render.ago(one.started_unix, now_unix), one.provider, one.outcome, one.message)
            for one in errors
        ]
        render.table(told, head=("WHEN", "PROVIDER", "FAILURE", "MESSAGE"))
    return 0
