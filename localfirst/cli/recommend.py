"""`localfirst recommend`: the best models that this machine can run, and how well."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from localfirst.cli import pull, render, session
from localfirst.errors import InsufficientResources, InvalidRequest
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime.checkup import Recommendation

SHOWN = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--pull", action="store_true", help="fetch the first")
    parser.add_argument("--all", action="store_true", help="also those that do not fit")
    parser.add_argument(
        "--for",
        dest="needs",
        action="append",
        default=[],
        metavar="ABILITY",
        help="such as tools, vision, thinking, embedding; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(given: argparse.Namespace) -> int:
    """Rank the catalogue for this machine; exit code 4 when nothing in it fits."""
    from localfirst.runtime import checkup

    async with session.client(given) as client:
        runtime = await client.opened()
        dated, ranked = await checkup.recommended(
            runtime, needs=tuple(given.needs) or ("completion",), everything=given.all
        )
        if not ranked and (odd := sorted(set(given.needs) - checkup.abilities())):
            raise InvalidRequest(
                f"no model of the catalogue has the ability `{odd[0]}`",
                field="--for",
                hint=f"one of {', '.join(sorted(checkup.abilities()))}",
            )
        if not ranked:
            raise InsufficientResources(
                "no model of the catalogue fits this machine",
                kind="memory",
                needed_bytes=0,
                available_bytes=runtime.hardware().ram_available_bytes,
                hint="`localfirst recommend --all` tells what each would need",
            )
        if given.json:
            for one in ranked:
                render.as_json(document(one))
        else:
            show(ranked if given.all else ranked[:SHOWN], dated)
        if given.pull:
            job = runtime.puller.start(ranked[0].model.name, any_host=True)
            await pull.follow(job, runtime)
    return 0


def show(ranked: list[Recommendation], dated: str) -> None:
    """The models as a table, the best first."""
    render.table(
        [
            (
                one.model.name,
                str(one.fit.verdict),
                render.size(one.model.size_bytes),
                render.size(one.fit.needed_bytes),
                render.speed(one.fit.tokens_per_s, one.fit.measured_tokens_per_s),
                note(one),
            )
            for one in ranked
        ],
        head=("NAME", "FITS", "DISK", "MEMORY", "TOKENS/S", ""),
        right=(2, 3, 4),
    )
    render.say()
    if str(ranked[0].fit.verdict) != "no":
        render.say(f"{ranked[0].model.name}: {ranked[0].why}")
    render.say(f"catalogue of {dated}; `localfirst recommend --pull` fetches the first")


def note(one: Recommendation) -> str:
    """What the numbers of its row do not say."""
    if str(one.fit.verdict) == "no":
        return one.fit.reason
    notes = {
        "installed": one.installed,
        "slower than reading": one.slow,
        "fast for its size": not one.slow and one.model.active_parameters < one.model.parameters,
    }
    return ", ".join(word for word, holds in notes.items() if holds)


def document(one: Recommendation) -> dict[str, Json]:
    """One recommendation as JSON."""
    return {
        "name": one.model.name,
        "why": one.why,
        "slow": one.slow,
        "installed": one.installed,
        "size_bytes": one.model.size_bytes,
        "fit": msgspec.to_builtins(one.fit),
        "model": msgspec.to_builtins(one.model),
    }
