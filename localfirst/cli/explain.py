"""`localfirst explain`: the plan that a request would run, with a reason for each step."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from localfirst.cli import render, session
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.cascade.plan import Plan


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", nargs="?", default="auto", help="as a request would name it")
    parser.add_argument("--local-only", action="store_true", help="as if nothing may leave")
    parser.add_argument("--no-fallback", action="store_true", help="as if only the first may try")
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Print the plan; sends nothing. Exit code 3 when nobody could be asked."""
    async with session.client(given) as client:
        plan = await client.explain(
            given.model, local_only=given.local_only, fallback=not given.no_fallback
        )
        now_unix = (await client.opened()).clock.unix()
    if given.json:
        render.as_json({"model": given.model, **document(plan)})
    else:
        rows(plan, now_unix)
    if plan.error is not None:
        if not given.json:
            render.say()
            render.problem(plan.error.message, hint=plan.error.hint, code=plan.error.code)
        return plan.error.exit_code
    return 0 if plan.ready else 3


def rows(plan: Plan, now_unix: float) -> None:
    """The plan as a table."""
    render.table(
        [
            (
                str(number),
                step.target.provider,
                step.target.model,
                str(step.state),
                step.reason + again(step.ready_at_unix, now_unix),
            )
            for number, step in enumerate(plan.steps, 1)
        ],
        head=("", "RUNG", "MODEL", "STATE", "WHY"),
        right=(0,),
    )


def again(ready_at_unix: float, now_unix: float) -> str:
    """When a cooling step is tried again."""
    if not now_unix < ready_at_unix < float("inf"):
        return ""
    return f", back in {render.span(ready_at_unix - now_unix)}"


def document(plan: Plan) -> dict[str, Json]:
    """The plan as JSON."""
    error = plan.error
    return {
        "steps": [
            {
                "rung": str(step.target.rung),
                "provider": step.target.provider,
                "model": step.target.model,
                "route": step.target.route,
                "state": str(step.state),
                "reason": step.reason,
                "ready_at_unix": step.ready_at_unix
                if 0 < step.ready_at_unix < float("inf")
                else None,
                "leaves_machine": step.leaves_machine,
                "requested": step.target.requested,
            }
            for step in plan.steps
        ],
        "error": {"code": error.code, "message": error.message, "hint": error.hint}
        if error
        else None,
    }
