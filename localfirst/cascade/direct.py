"""
The short way: the first candidate of a plan, asked before a ladder is built.

Nearly every whole answer comes by it. What is out of the ordinary is not asked this way (a
key to choose, a breaker that is not closed, a window that is spent), and whatever but a
plain answer comes back is the climb's: it goes on from there as if it had asked itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from localfirst.cascade import report
from localfirst.cascade.answer import Answer, Replay
from localfirst.cascade.health import Gate, HealthView
from localfirst.cascade.plan import Plan, Step, StepState
from localfirst.cascade.report import Facts
from localfirst.cascade.shares import is_open, limits_of
from localfirst.engines.base import Limits, Replying
from localfirst.events import Event, Opened, Relayed
from localfirst.settings import Settings
from localfirst.types import Attempt, Call, Rung, Target

if TYPE_CHECKING:
    from localfirst.cascade.climb import Climb
    from localfirst.cascade.run import Cascade


class ShortWay(msgspec.Struct, frozen=True):
    """
    Whom a plan asks first, how, and what its answer says of it; good as long as the plan.

    `limits` are a whole answer's, `stream_limits` a stream's.
    """

    step: Step
    target: Target
    limits: Limits
    stream_limits: Limits
    backend: Replying
    leaves_machine: bool
    facts: Facts


def short_way(
    plan: Plan,
    health: HealthView,
    replying: Mapping[str, Replying],
    settings: Settings,
    now_unix: float,
) -> ShortWay | None:
    """The short way of *plan*; None where its first step is not a plain one."""
    steps = [step for step in plan.steps if step.state is not StepState.SKIPPED]
    if not steps or plan.error is not None:
        return None
    first = steps[0]
    target = first.keys[0] if first.keys else first.target
    backend = replying.get(target.provider)
    plain = first.state is StepState.READY and target.rung is Rung.CLOUD and len(first.keys) < 2
    # A place that is tried again, early or after its wait, is tried by one request alone.
    if backend is None or not plain or health.gate(target, now_unix)[0] is not Gate.READY:
        return None
    wait_s = settings.cascade.wait_for_cooldown_s
    share = 1 + sum(
        not step.alternate and is_open(step, health, now_unix, wait_s) for step in steps[1:]
    )
    limits, stream_limits = (
        limits_of(settings, first, share=share, left_s=settings.cascade.deadline_s, stream=stream)
        for stream in (False, True)
    )
    egress = (target.provider,) if first.leaves_machine else ()
    facts = report.facts(target, f"{target.provider}=ok", 1, egress)
    return ShortWay(first, target, limits, stream_limits, backend, first.leaves_machine, facts)


class Asked(msgspec.Struct, frozen=True):
    """A candidate that was asked the short way, and what came of it: events, or an error."""

    way: ShortWay
    began: float
    began_unix: float
    events: list[Event] = []
    error: Exception | None = None


async def answer(
    cascade: Cascade, call: Call, way: ShortWay, now_unix: float, climb: Callable[..., Climb]
) -> Answer:
    """
    Ask the first candidate, who may be asked, and hand its answer over where that is a plain one.

    Anything else that came of it is left to *climb*, which makes the way down the ladder. Raises
    what `Cascade.open` does.
    """
    target, tokens, quota = way.target, call.needs.prompt_tokens, cascade.quota
    events: list[Event] = []
    error: Exception | None = None
    began = cascade.clock.monotonic()
    quota.reserve(target, tokens)
    watch = cascade.watches.begin(way.limits.first_token_s)
    try:
        events = await way.backend.reply(call, target, way.limits)
    except asyncio.CancelledError:
        error = watch.verdict()
        if error is None:
            cascade.left(call, target, _record(cascade, way, began, now_unix, "left"), None, 0.0)
            raise
    except Exception as fault:  # noqa: BLE001 - the climb classifies it, and logs a fault of ours
        error = fault
    finally:
        watch.close()
        quota.release(target, tokens)
    if len(events) == 2:
        opened, last = events
        # The caller's own dialect, and nothing is left to judge.
        plain = type(last) is Relayed and last.content and last.final
        if plain and type(opened) is Opened and not opened.before:
            return _given(cascade, call, way, began, now_unix, opened, last)  # type: ignore[arg-type]
    return await climb(asked=Asked(way, began, now_unix, events, error)).open()


def may_go(cascade: Cascade, call: Call, way: ShortWay, now_unix: float) -> bool:
    """The last look before a request goes; one that leaves the machine is counted here."""
    if cascade.quota.refusal(way.target, call.needs.prompt_tokens, now_unix) is not None:
        return False
    return not way.leaves_machine or not cascade.over_budget(way.target)


def _given(
    cascade: Cascade,
    call: Call,
    way: ShortWay,
    began: float,
    began_unix: float,
    opened: Opened,
    last: Relayed,
) -> Answer:
    record = _record(cascade, way, began, began_unix, "ok")
    cascade.won(
        call,
        way.target,
        record,
        usage=last.usage,
        headers=opened.headers,
        first_token_s=record.duration_s,
    )
    return Answer(Given(call, way, record), None, Replay([last]))


def _record(
    cascade: Cascade, way: ShortWay, began: float, began_unix: float, outcome: str
) -> Attempt:
    target = way.target
    return Attempt(
        provider=target.provider,
        model=target.model,
        key_label=target.key_label,
        outcome=outcome,
        started_unix=began_unix,
        duration_s=cascade.clock.monotonic() - began,
    )


class Given:
    """What `Answer` shows of an answer that came the short way."""

    __slots__ = ("attempts", "call", "seen", "target", "way")

    def __init__(self, call: Call, way: ShortWay, record: Attempt) -> None:
        self.call = call
        self.way = way
        self.target = way.target
        self.attempts = [record]
        self.seen: list[Event] = []

    def facts(self) -> Facts:
        """The `x-localfirst-*` facts, but for the request's id."""
        return self.way.facts
