"""
The short way: the first candidate of a plan, asked before a ladder is built.

Nearly every whole answer comes by it. What is out of the ordinary is not asked this way (a
key to choose, a breaker that is not closed, a window that is spent), and whatever but a
plain answer comes back is the climb's: it goes on from there as if it had asked itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from localfirst.cascade import report
from localfirst.cascade.health import Gate, HealthView
from localfirst.cascade.plan import Plan, Step, StepState
from localfirst.cascade.shares import limits_of
from localfirst.engines.base import Limits, Replying
from localfirst.events import Event, Opened, Relayed
from localfirst.settings import Settings
from localfirst.types import Attempt, Call, Rung, Target

if TYPE_CHECKING:
    from localfirst.cascade.answer import Events
    from localfirst.cascade.run import Cascade


class ShortWay(msgspec.Struct, frozen=True):
    """Whom a plan asks first, how, and what its answer says of it; good as long as the plan."""

    step: Step
    target: Target
    share: int
    limits: Limits
    backend: Replying
    facts: tuple[tuple[str, str], ...]


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
    share = max(1, sum(not step.alternate for step in steps))
    limits = limits_of(
        settings, first, share=share, left_s=settings.cascade.deadline_s, stream=False
    )
    egress = (target.provider,) if first.leaves_machine else ()
    facts = report.facts(target, f"{target.provider}=ok", 1, egress)
    return ShortWay(first, target, share, limits, backend, facts)


class Asked:
    """One request that went the short way, and what came of it: events, or an error."""

    __slots__ = ("began", "began_unix", "error", "events", "way")

    def __init__(self, way: ShortWay, began: float, began_unix: float) -> None:
        self.way = way
        self.began = began
        self.began_unix = began_unix
        self.events: list[Event] = []
        self.error: Exception | None = None

    @property
    def plain(self) -> tuple[Opened, Relayed] | None:
        """The answer, where it is the caller's own dialect and nothing is left to judge."""
        events = self.events
        if len(events) != 2:
            return None
        opened, last = events
        if type(last) is not Relayed or type(opened) is not Opened:
            return None
        return (opened, last) if last.content and last.final and not opened.before else None

    def record(self, now: float) -> Attempt:
        """The attempt as it stands in trails and in the ledger."""
        target = self.way.target
        return Attempt(
            provider=target.provider,
            model=target.model,
            key_label=target.key_label,
            outcome="ok",
            started_unix=self.began_unix,
            duration_s=now - self.began,
        )


async def ask(cascade: Cascade, call: Call, way: ShortWay) -> Asked:
    """Ask once; only the caller's own cancellation is raised."""
    target, tokens, clock = way.target, call.needs.prompt_tokens, cascade.clock
    asked = Asked(way, clock.monotonic(), clock.unix())
    cascade.quota.reserve(target, tokens)
    watch = cascade.watches.begin(way.limits.first_token_s)
    try:
        asked.events = await way.backend.reply(call, target, way.limits)
    except asyncio.CancelledError:
        asked.error = watch.verdict()
        if asked.error is None:
            raise
    except Exception as error:  # noqa: BLE001 - the climb classifies it, and logs a fault of ours
        asked.error = error
    finally:
        watch.close()
        cascade.quota.release(target, tokens)
    return asked


class Given:
    """What `Answer` shows of an answer that came the short way."""

    __slots__ = ("attempts", "call", "seen", "target", "way")

    def __init__(self, call: Call, way: ShortWay, record: Attempt) -> None:
        self.call = call
        self.way = way
        self.target = way.target
        self.attempts = [record]
        self.seen: list[Event] = []

    def headers(self) -> list[tuple[str, str]]:
        """The `x-localfirst-*` facts."""
        return [*self.way.facts, report.id_fact(self.call.request_id)]

    async def aclose(self, events: Events) -> None:
        """Nothing is open any more."""
        await events.aclose()
