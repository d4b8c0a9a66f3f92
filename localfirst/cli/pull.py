"""`localfirst pull`: models into Ollama's store, one after the other, unattended."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from localfirst.cli import render, session
from localfirst.cli.progress import Ticker
from localfirst.errors import InsufficientResources, LocalFirstError, ModelNameInvalid
from localfirst.models import names
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime import Runtime
    from localfirst.runtime.provision import PullJob, PullPlan, Snapshot

JSON_EVERY_S = 0.5
LAST_WORDS_S = 5.0
ETA_BYTES_S = 12.5e6  # 100 Mbit/s, the line that most estimates are made for


class Wanted(msgspec.Struct, frozen=True):
    """A model to fetch; `digest` pins the bytes."""

    name: str
    digest: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="such as `llama3.2:3b`")
    parser.add_argument("-f", "--file", metavar="LOCK", help="fetch exactly what a lock names")
    parser.add_argument("--update", action="store_true", help="move the lock to today's tags")
    parser.add_argument("--dry-run", action="store_true", help="only tell what it would take")
    parser.add_argument("--connections", metavar="N", help="parallel ranges")
    parser.add_argument("--limit-rate", metavar="RATE", help="bytes a second, such as `2M`")
    parser.add_argument("--insecure", action="store_true", help="allow http beyond this machine")
    parser.add_argument("--no-fit-check", action="store_true", help="do not ask the memory")
    parser.add_argument("--force", action="store_true", help="ask neither memory nor disk")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")


async def run(given: argparse.Namespace) -> int:
    """Pull each; goes on after a failure and ends with the first one's exit code."""
    from localfirst.runtime import provision

    locked = provision.read_file(Path(given.file)).models if given.file else ()
    pinned = [Wanted(model.name, model.digest) for model in locked]
    if not (given.models or pinned):
        render.problem(
            "nothing to pull", hint="name a model, for example `llama3.2:1b`", code="usage"
        )
        return 2
    flags = {"pull.connections": given.connections, "pull.limit_rate": given.limit_rate}
    code = 0
    async with session.client(given, flags) as client:
        runtime = await client.opened()
        if given.update and given.file:
            pinned = await moved(runtime, pinned, given)
        for want in [Wanted(name) for name in given.models] + pinned:
            try:
                await (dry_run if given.dry_run else fetch)(runtime, want, given)
            except LocalFirstError as error:
                code = code or error.exit_code
                failed(want, error, as_json=given.json)
    return code


async def moved(runtime: Runtime, pinned: list[Wanted], given: argparse.Namespace) -> list[Wanted]:
    """What the registries have now, of which the lock is written anew unless nothing is done."""
    from localfirst.runtime import provision

    lock = await provision.resolve(
        [want.name for want in pinned],
        store=runtime.store,
        registry=runtime.puller.registry,
        latest=True,
        insecure=given.insecure,
        any_host=True,
    )
    if not given.dry_run:
        provision.write_file(Path(given.file), lock)
    return [Wanted(model.name, model.digest) for model in lock.models]


async def fetch(runtime: Runtime, want: Wanted, given: argparse.Namespace) -> None:
    """One model, with its progress; raises why it could not be had."""
    job = runtime.puller.start(
        want.name,
        digest=want.digest,
        insecure=given.insecure,
        any_host=True,
        force=given.force,
        fit_check=not given.no_fit_check,
    )
    await follow(job, runtime, as_json=given.json)


async def follow(job: PullJob, runtime: Runtime, *, as_json: bool = False) -> None:
    """See a download through; whoever leaves early is told that it goes on where it stopped."""
    try:
        if as_json:
            await tell_lines(job, runtime)
        else:
            await tell(job, runtime)
    except asyncio.CancelledError:
        render.say(f"interrupted; `localfirst pull {job.name}` goes on where it stopped")
        raise
    finally:
        await given_up(job)
    if not as_json:
        render.say(f"{job.name}: {render.size(job.total_bytes)}, verified")


async def given_up(job: PullJob) -> None:
    """End a job that we leave early, and let it write down what it has."""
    job.cancel()
    with contextlib.suppress(LocalFirstError, TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await job.wait()


async def tell(job: PullJob, runtime: Runtime) -> None:
    """Progress for people, until the job ends."""
    ticker, told = Ticker(job.name), 0
    try:
        async for snapshot in job.snapshots():
            for note in snapshot.notes[told:]:
                ticker.interrupt(f"{job.name}: {note}")
            told = len(snapshot.notes)
            ticker.show(
                job.completed_bytes,
                job.total_bytes,
                runtime.clock.monotonic(),
                note=note_of(snapshot),
            )
    finally:
        ticker.close()


def note_of(snapshot: Snapshot) -> str:
    """What the bytes do not say."""
    state = str(snapshot.state)
    if state in {"queued", "done", "failed", "cancelled"}:
        return ""
    if state != "pulling":
        return state
    rate = f"{render.size(snapshot.rate_bytes_s)}/s" if snapshot.rate_bytes_s else ""
    eta = f"{render.span(snapshot.eta_s)} left" if snapshot.eta_s is not None else ""
    return "" if render.is_terminal(sys.stderr) else ", ".join(filter(None, (rate, eta)))


async def tell_lines(job: PullJob, runtime: Runtime) -> None:
    """Progress for programs: a line a state, and at most two a second."""
    last, said_at = "", float("-inf")
    async for snapshot in job.snapshots():
        if str(snapshot.state) == "failed":
            continue  # told with its error, in one line
        now = runtime.clock.monotonic()
        if str(snapshot.state) != last or now - said_at >= JSON_EVERY_S:
            last, said_at = str(snapshot.state), now
            render.as_json(line(job, snapshot))


def line(job: PullJob, snapshot: Snapshot) -> dict[str, Json]:
    """One progress line."""
    return {
        "model": job.name,
        "state": str(snapshot.state),
        "completed_bytes": job.completed_bytes,
        "total_bytes": job.total_bytes,
        "rate_bytes_s": round(snapshot.rate_bytes_s),
        "eta_s": None if snapshot.eta_s is None else round(snapshot.eta_s, 1),
        "notes": list(snapshot.notes),
        "digest": job.manifest.digest if job.manifest else None,
    }


def failed(want: Wanted, error: LocalFirstError, *, as_json: bool) -> None:
    """Tell a failure in both languages."""
    if as_json:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        render.as_json({"model": full(want.name), "state": "failed", "error": told})
    named = error.message if want.name in error.message else f"`{want.name}`: {error.message}"
    render.problem(named, hint=error.hint, code=error.code)


def full(name: str) -> str:
    """A model's name as every line has it; as it was typed where it is none."""
    try:
        return names.parse(name).display
    except ModelNameInvalid:
        return name


# --- before the first byte ---------------------------------------------------------------


def refuse_full_disk(plan: PullPlan) -> None:
    """What a download would be refused for, where none is begun."""
    if not plan.disk_fits:
        raise InsufficientResources(
            f"`{plan.name}` needs {render.size(plan.needed_bytes)} more on disk and "
            f"{render.size(plan.reserve_bytes)} in reserve, "
            f"{render.size(plan.free_bytes)} are free",
            kind="disk",
            needed_bytes=plan.needed_bytes + plan.reserve_bytes,
            available_bytes=plan.free_bytes,
        )


async def dry_run(runtime: Runtime, want: Wanted, given: argparse.Namespace) -> None:
    """Tell what it would take; raises what would refuse it."""
    from localfirst.runtime import fitness

    plan = await runtime.puller.plan(want.name, insecure=given.insecure, any_host=True)
    hardware, context = runtime.hardware(), runtime.settings.local.num_ctx
    fit = fitness.predict(plan.manifest, plan.header, hardware, context_tokens=context)
    rate = runtime.settings.pull.limit_rate_bytes_s or ETA_BYTES_S
    eta_s = round(plan.needed_bytes / rate, 1)
    told: dict[str, Json] = {
        "model": plan.name,
        "digest": plan.manifest.digest,
        "total_bytes": plan.total_bytes,
        "needed_bytes": plan.needed_bytes,
        "free_bytes": plan.free_bytes,
        "disk": "fits" if plan.disk_fits else "no",
        "fit": str(fit.verdict),
        "fit_reason": fit.reason,
        "memory_bytes": fit.needed_bytes,
        "eta_s": eta_s,
    }
    if given.json:
        render.as_json(told)
    else:
        moved = " (the lock pins other bytes)" if wrong(want, plan) else ""
        print(f"{plan.name}{moved}")
        print(f"  download  {render.size(plan.needed_bytes)} of {render.size(plan.total_bytes)}")
        print(f"  time      {render.span(eta_s)} at {render.size(rate)}/s")
        print(f"  disk      {told['disk']}: {render.size(plan.free_bytes)} free")
        print(f"  memory    {fit.verdict}: {fit.reason}")
    if not given.force:
        refuse_full_disk(plan)
        if not given.no_fit_check:
            fitness.refuse(fit, hardware)


def wrong(want: Wanted, plan: PullPlan) -> bool:
    """Whether the tag is not what the lock pins."""
    return bool(want.digest) and want.digest != plan.manifest.digest
