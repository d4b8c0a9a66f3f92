"""A plan for people: one line a step, as `explain` prints it."""

from __future__ import annotations

from localfirst.cascade.plan_steps import Plan, Step, StepState


def lines(plan: Plan, now_unix: float) -> list[str]:
    """One line for each step: where, whether, why."""
    if plan.error is not None and not plan.steps:
        return [plan.error.message]
    return [_line(number, step, now_unix) for number, step in enumerate(plan.steps, 1)]


def _line(number: int, step: Step, now_unix: float) -> str:
    target = step.target
    where = target.route if target.model else target.provider
    when = ""
    if step.state is StepState.COOLING and step.ready_at_unix < float("inf"):
        when = f", back in {max(1, round(step.ready_at_unix - now_unix))} s"
    stand_in = f" (stands in for `{target.requested}`)" if target.requested else ""
    return f"{number}. {where}{stand_in}: {step.state}: {step.reason}{when}"
