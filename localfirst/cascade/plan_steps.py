"""The steps of a plan, and how health and quota settle whether one may be taken now."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from localfirst.cascade.health import NEVER, Gate
from localfirst.cascade.plan_names import Named
from localfirst.cascade.plan_world import World
from localfirst.errors import LocalFirstError
from localfirst.types import Target


class StepState(StrEnum):
    """Whether a step may be taken now."""

    READY = "ready"
    COOLING = "cooling"
    SKIPPED = "skipped"


class Skip(StrEnum):
    """What would have to change before a skipped step is taken."""

    LATER = "later"
    """Nothing that we know of: it is down, out of reach, or over its budget now."""
    SHUT = "shut"
    """The configuration: it is no candidate."""
    LACKS = "lacks"
    """The request: its models are known not to do what is asked."""
    SMALL = "small"
    """The request: its window is known to be too small."""


class No(msgspec.Struct, frozen=True):
    """Why somebody is not asked; `lacks` are the abilities that are missing, in words."""

    reason: str
    skip: Skip = Skip.LATER
    lacks: str = ""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """
    One candidate, with why it is where it is.

    `keys` are the same target with each healthy key; they are used in turns, and from
    `again_unix` on there may be more of them. `alternate`
    steps stand by for a model that its provider does not have any more. `ready_at_unix` is
    set while cooling, `skip` and `lacks` while skipped; `window_tokens` is 0 when unknown.
    """

    target: Target
    state: StepState
    reason: str
    skip: Skip = Skip.LATER
    lacks: str = ""
    keys: tuple[Target, ...] = ()
    alternate: bool = False
    ready_at_unix: float = 0.0
    again_unix: float = NEVER
    fact: bool = False
    window_tokens: int = 0
    timeout_s: float = 0.0
    leaves_machine: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """
    Steps in the order in which they are tried; `error` when there is nothing to try.

    Good until `until_unix`, and for requests of at most `fits_tokens`. `named` is the model
    that the request named, if it named one.
    """

    steps: tuple[Step, ...] = ()
    error: LocalFirstError | None = None
    until_unix: float = NEVER
    fits_tokens: float = NEVER
    named: Named | None = None

    @property
    def ready(self) -> tuple[Step, ...]:
        """The steps that may be taken now."""
        return tuple(step for step in self.steps if step.state is StepState.READY)


def with_health(
    step: Step, world: World, key_labels: tuple[str, ...] = (), tokens: int = 0
) -> Step:
    """*step* with its keys sorted into healthy and cooling ones."""
    labels = key_labels or ("",)
    ready: list[Target] = []
    waiting: list[tuple[float, str, bool]] = []
    for label in labels:
        target = msgspec.structs.replace(step.target, key_label=label) if label else step.target
        wait = _standing_in_the_way(target, world, tokens)
        if wait is None:
            ready.append(target)
        else:
            waiting.append(wait)
    if ready:
        again = min((until for until, _, _ in waiting), default=NEVER)
        return msgspec.structs.replace(step, target=ready[0], keys=tuple(ready), again_unix=again)
    until_unix, reason, fact = min(waiting)
    every = tuple(
        msgspec.structs.replace(step.target, key_label=label) if label else step.target
        for label in labels
    )
    return msgspec.structs.replace(
        step,
        target=every[0],
        keys=every,
        state=StepState.COOLING,
        reason=reason,
        ready_at_unix=until_unix,
        fact=fact,
    )


def _standing_in_the_way(
    target: Target, world: World, tokens: int
) -> tuple[float, str, bool] | None:
    gate, entry = world.health.gate(target, world.now_unix)
    if gate is Gate.COOLING and entry is not None:
        if entry.until_unix <= world.now_unix:
            return world.now_unix, f"one request is trying it after {entry.cls}", False
        return entry.until_unix, f"cooling down after {entry.cls}", entry.fact
    refusal = world.quota.refusal(target, tokens, world.now_unix) if world.quota else None
    if refusal is not None and refusal.ready_unix is not None:
        return refusal.ready_unix, refusal.reason, True
    return None


def skipped(target: Target, no: No) -> Step:
    """A step that is there only to say why it is not taken."""
    return Step(
        target=target,
        state=StepState.SKIPPED,
        reason=no.reason,
        skip=no.skip,
        lacks=no.lacks,
    )
