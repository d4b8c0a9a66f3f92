"""How long one candidate may take: its own waits, and its share of the deadline. Pure."""

from __future__ import annotations

from localfirst.cascade.health_view import HealthView
from localfirst.cascade.plan import Step
from localfirst.engines.base import Limits
from localfirst.settings import Settings, TimeoutSettings
from localfirst.types import Rung

# What a candidate keeps back for each one behind it, where the deadline is long enough.
LEAST_SHARE_S = 5.0
# A whole answer shows nothing until its end: it may take so many waits for a first token.
WHOLE_WAITS = 5.0


def own_wait_s(waits: TimeoutSettings, step: Step) -> float:
    """The wait for a first token that the settings give a candidate."""
    mine = step.target.rung is not Rung.CLOUD
    return step.timeout_s or (waits.local_first_token_s if mine else waits.first_token_s)


def is_open(step: Step, health: HealthView, now_unix: float, wait_s: float) -> bool:
    """Whether any key of a candidate may be asked now, or within *wait_s*: it wants its share."""
    return any(
        (entry := health.blocker(target, now_unix)) is None or entry.until_unix <= now_unix + wait_s
        for target in step.keys or (step.target,)
    )


def limits_of(
    settings: Settings,
    step: Step,
    *,
    share: int,
    left_s: float,
    stream: bool,
    strict: bool = False,
) -> Limits:
    """
    The waits of one attempt, its share of the deadline among them.

    Content of a whole (not streamed) answer comes with its end, so it may take longer than
    a first token, but never what the others need at least. A model of this machine always
    streams to us: it is bounded by its own limit, and by the deadline only when the caller
    set one. A stream that moves may outlast the deadline: it bounds the way to an answer.

    Args:
        settings: their waits.
        step: who is asked.
        share: how many candidates, this one included, still want a turn.
        left_s: seconds to the deadline.
        stream: whether the caller streams.
        strict: whether the deadline is the caller's own.
    """
    waits = settings.timeouts
    mine, first_s = step.target.rung is not Rung.CLOUD, own_wait_s(waits, step)
    share_s = left_s / share
    if stream and not mine:
        first_s = min(first_s, share_s)
    elif not mine and not step.timeout_s:
        most_s = share_s if share == 1 else first_s * WHOLE_WAITS
        first_s = max(first_s, min(share_s, most_s))
    left_s -= min(LEAST_SHARE_S, share_s) * (share - 1)
    return Limits(
        connect_s=waits.connect_s,
        first_token_s=min(first_s, left_s) if strict or not mine else first_s,
        stall_s=waits.stall_s,
        load_s=waits.load_s,
    )
