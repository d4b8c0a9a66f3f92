"""A caller may leave at any await: nothing stays open, held, or blamed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from localfirst.cascade import structured
from localfirst.errors import Breakage, CascadeExhausted, StreamInterrupted, UpstreamBroken
from localfirst.events import Finished, Opened, Progress, TextDelta
from localfirst.settings import CascadeSettings, Settings
from tests.fakes.scripted_backend import HANG, House, ScriptedBackend, make_call, refuses, says
from tests.fakes.virtual_time import run


class CancelAt:
    """Drives a coroutine by hand, and cancels it at its n-th suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int) -> None:
        self._coroutine = coroutine
        self._left = n
        self.reached = False

    def __await__(self) -> Any:
        inner = self._coroutine.__await__()
        try:
            waited = next(inner)
            while True:
                if self._left == 0:
                    self.reached = True
                    waited.cancel() if waited is not None else None
                    waited = inner.throw(asyncio.CancelledError())
                    continue
                self._left -= 1
                try:
                    sent = yield waited
                except BaseException as error:  # the loop's own cancellation
                    waited = inner.throw(error)
                else:
                    waited = inner.send(sent)
        except StopIteration as done:
            return done.value


LIMITED = refuses(429, {"error": {"message": "Rate limit reached"}}, [("retry-after", "2")])
SCENES: dict[str, dict[str, list[list[Any]]]] = {
    "an answer": {"groq": [says()]},
    "falls through": {"groq": [refuses(500)], "gemini": [says()]},
    "waits for a backoff": {"groq": [refuses(503), says()]},
    "waits for a cooldown": {"groq": [LIMITED, says()]},
    "hangs, then another": {"groq": [[Opened(200), HANG]], "gemini": [says()]},
    "loads": {"local": [[Progress("loading"), 3.0, Progress("loading"), *says()]]},
    "cut, then another": {"local": [[UpstreamBroken(Breakage.CUT)]], "groq": [says()]},
    "a long stream": {"groq": [[Opened(200), *[TextDelta("x")] * 5, 1.0, Finished()]]},
}


async def whole(house: House) -> None:
    await house.ask()


async def piece_by_piece(house: House) -> None:
    answer = await house.cascade.open(make_call())
    try:
        async for _ in answer:
            await asyncio.sleep(0)
    finally:
        await answer.aclose()


@pytest.mark.parametrize("read", [whole, piece_by_piece], ids=["whole", "pieces"])
@pytest.mark.parametrize("scene", SCENES)
def test_leaving_at_any_await_leaves_nothing_behind(
    scene: str, read: Callable[[House], Awaitable[None]]
) -> None:
    for points in range(500):
        house, reached = run(once(scene, read, points))
        assert house.unanswered == 0
        assert all(count == 0 for count in house.cascade.quota.in_flight.values())
        assert house.cascade.health.view().probing == {}
        if not reached:
            assert points > 2
            return
    raise AssertionError("it never came to an end")


HEDGED = Settings(cascade=CascadeSettings(hedge_after_s=1.0))
CONTINUED = Settings(cascade=CascadeSettings(continue_cut_streams=True))
CUT = UpstreamBroken(Breakage.CUT)
SLOW = [Opened(200), 5.0, *says("slow")[1:]]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def by_schema(house: House) -> None:
    with contextlib.suppress(CascadeExhausted):
        await structured.reply(house.cascade, make_call(), SCHEMA)


OPTIONS: dict[str, tuple[Settings | None, dict[str, list[list[Any]]]]] = {
    "hedged": (HEDGED, {"groq": [SLOW], "gemini": [says()]}),
    "both answer": (HEDGED, {"groq": [[1.0, *says("a")]], "gemini": [says("b")]}),
    "hedged in vain": (HEDGED, {"groq": [SLOW], "gemini": [refuses(500)]}),
    "continued": (CONTINUED, {"groq": [[Opened(200), TextDelta("x"), CUT]], "gemini": [says()]}),
    "continued in vain": (
        CONTINUED, {"groq": [[Opened(200), TextDelta("x"), CUT]], "gemini": [refuses(500)]},
    ),
    "by schema": (None, {"groq": [says("no"), says("no")], "gemini": [says('{"a": 1}')]}),
}  # fmt: skip


@pytest.mark.parametrize("scene", OPTIONS)
def test_leaving_an_option_at_any_await_leaves_nothing_behind(scene: str) -> None:
    settings, scripts = OPTIONS[scene]
    read = by_schema if scene == "by schema" else piece_by_piece

    async def once_more(n: int) -> tuple[House, bool]:
        house = House({name: ScriptedBackend(*all) for name, all in scripts.items()},
                      settings=settings)  # fmt: skip
        stepper = CancelAt(read(house), n)  # type: ignore[arg-type]
        with contextlib.suppress(asyncio.CancelledError, StreamInterrupted, CascadeExhausted):
            await stepper
        for _ in range(5):  # who was told to stop does so in its next turns
            await asyncio.sleep(0)
        assert house.unanswered == 0
        assert not any(house.cascade.quota.in_flight.values())
        assert len(asyncio.all_tasks()) == 1
        for backend in house.backends.values():
            backend.scripts = [says("again")]
        assert (await house.ask()).text == "again"
        return house, stepper.reached

    for points in range(500):
        house, reached = run(once_more(points))
        assert house.cascade.health.view().probing == {}
        if not reached:
            assert points > 2
            return
    raise AssertionError("it never came to an end")


async def once(scene: str, read: Callable[[House], Awaitable[None]], n: int) -> tuple[House, bool]:
    """Play *scene*, leave at the n-th await, then ask again in peace."""
    house = House({name: ScriptedBackend(*scripts) for name, scripts in SCENES[scene].items()})
    before = house.cascade.health.snapshot()
    stepper = CancelAt(read(house), n)  # type: ignore[arg-type]
    try:
        await stepper
    except asyncio.CancelledError:
        blamed = {one.provider for one in house.records.attempts if one.outcome != "ok"}
        cooling = {one.provider for one in house.cascade.health.snapshot()}
        assert cooling <= blamed, before
        for backend in house.backends.values():
            backend.scripts = [says("again")]
        assert (await house.ask()).text == "again"
    return house, stepper.reached
