"""
Hedging: when the first candidate takes long to begin, a second one is asked beside it.

Off by default, because it sends some requests twice. Whoever has something to hand over
first answers; the other is closed at once, and nobody is blamed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from localfirst.cascade.answer import Answer
from localfirst.cascade.climb import Climb
from localfirst.errors import LocalFirstError
from localfirst.types import Attempt

Avoid = frozenset[tuple[str, str]]
Start = Callable[[Avoid], Climb]
"""A new way down the ladder, without certain `(provider, model)`s."""

HEDGED = "hedged"
"""The outcome, in trails, of a request that was sent and given up for a faster one."""


async def open(start: Start, after_s: float, *, never: Avoid) -> Answer:
    """
    The first of two ways down; the second begins after *after_s* without news.

    *never* is left out of the second one (a download is not begun on a suspicion).
    """
    first = start(frozenset())
    race = [(first, asyncio.ensure_future(first.open()))]
    try:
        done, _ = await asyncio.wait([race[0][1]], timeout=after_s)
        if not done:
            # Another model of a provider that hangs would hang beside it.
            beside = start(never | {(first.target.provider, "")})
            race.append((beside, asyncio.ensure_future(beside.open())))
        answer = await _winner(race)
    except BaseException:
        await _close([task for _, task in race], None)
        raise
    try:
        await _close([task for _, task in race], answer)
    except BaseException:
        await answer.aclose()
        raise
    return answer


async def _winner(race: list[tuple[Climb, asyncio.Task[Answer]]]) -> Answer:
    """Whoever is first with an answer; the first one's error when nobody has one."""
    pending = {task for _, task in race}
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for climb, task in race:
            if task.done() and not task.cancelled() and task.exception() is None:
                _adopt(climb, [other for other, _ in race if other is not climb])
                return task.result()
    error = race[0][1].exception()
    if isinstance(error, LocalFirstError):
        error.attempts = tuple(attempt for climb, _ in race for attempt in climb.attempts)
        error.egress = tuple(dict.fromkeys(name for climb, _ in race for name in climb.egress))
    return race[0][1].result()


def _adopt(winner: Climb, losers: list[Climb]) -> None:
    """The trail tells of both ways, what was sent and given up included."""
    for loser in losers:
        tried = list(loser.attempts)
        if loser.asking is not None:
            target = loser.asking
            tried.append(
                Attempt(
                    provider=target.provider,
                    model=target.model,
                    key_label=target.key_label,
                    outcome=HEDGED,
                )
            )
        winner.attempts[:0] = tried
        winner.egress[:0] = loser.egress


async def _close(tasks: list[asyncio.Task[Answer]], kept: Answer | None) -> None:
    """Give up whoever still runs; an answer that came too late is closed."""
    late = [task for task in tasks if not task.done()]
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)
    for task in tasks:
        if not task.cancelled() and task.exception() is None and task.result() is not kept:
            await task.result().aclose()
