"""`localfirst verify`: hash the installed models again, and fetch anew what is damaged."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from localfirst.cli import progress, render, session
from localfirst.cli.pull import tell

if TYPE_CHECKING:
    from localfirst.runtime import Runtime
    from localfirst.runtime.provision import Report

DAMAGED = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all when none is named")
    parser.add_argument("--repair", action="store_true", help="fetch what is bad anew")
    parser.add_argument(
        "--prune", action="store_true", help="remove blobs older than an hour that no model needs"
    )
    parser.add_argument("--insecure", action="store_true", help="allow http beyond this machine")
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Verify; exit code 5 while anything is damaged."""
    async with session.client(given) as client:
        runtime = await client.opened()
        report = await check(runtime, given.models)
        if given.repair and report.bad:
            if not given.json:
                tell_faults(report)
            await repair(runtime, report, insecure=given.insecure)
            report = await check(runtime, given.models)
        if given.prune:
            prune(runtime, report)
    if given.json:
        render.as_json({"ok": report.ok, **msgspec.to_builtins(report)})
    else:
        tell_faults(report)
        tell_sum(report)
    return 0 if report.ok else DAMAGED


async def check(runtime: Runtime, names: list[str]) -> Report:
    """Hash everything, with a bar."""
    from localfirst.runtime import provision

    verification = provision.Verification(runtime.store, names)
    await progress.watch(verification, "verifying")
    assert verification.result is not None, "a finished check has a report"
    return verification.result


async def repair(runtime: Runtime, report: Report, *, insecure: bool) -> None:
    """Fetch the bad blobs, model by model."""
    from localfirst.errors import LocalFirstError
    from localfirst.runtime import provision

    async for job in provision.repair(runtime.store, runtime.puller, report, insecure=insecure):
        try:
            await tell(job, runtime)
        except LocalFirstError as error:
            render.problem(f"`{job.name}`: {error.message}", hint=error.hint, code=error.code)


def prune(runtime: Runtime, report: Report) -> None:
    """Remove what no model needs."""
    from localfirst.runtime import provision

    now_unix = runtime.clock.unix()
    freed = provision.remove_orphans(runtime.store, report, now_unix=now_unix)
    render.say(f"{render.size(freed)} freed")


def tell_faults(report: Report) -> None:
    """Each thing that is wrong."""
    for blob in report.bad:
        told = f"{blob.digest[7:19]} {blob.kind or 'blob'}: {blob.state}"
        sizes = f"{blob.actual_bytes:,} of {blob.size_bytes:,} bytes"
        print(f"{told}, {sizes}, needed by {', '.join(blob.models)}")
    for path, reason in report.damaged:
        print(f"{render.plain(path)}: {render.plain(reason)}")


def tell_sum(report: Report) -> None:
    """What it comes to."""
    good = sum(str(blob.state) == "ok" for blob in report.blobs)
    render.say(f"{good} blobs match their digests, {len(report.bad)} do not")
    if report.orphaned:
        idle = sum(blob.actual_bytes for blob in report.orphaned)
        render.say(f"{render.size(idle)} are needed by no model; `--prune` removes them")
    if report.bad:
        render.say()
        render.say("hint: run `localfirst verify --repair`")
