"""What the plan is told of the engine: how old it may be, and what makes it old at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from localfirst.engines.base import EngineStatus
from localfirst.machine import serverless
from localfirst.machine.connectivity import Connectivity
from localfirst.machine.recommend import Choice
from localfirst.runtime.lookout import FRESH_S, Lookout
from localfirst.settings import Settings
from localfirst.types import Call
from tests.fakes.engine_bench import JumpyClock, ask

CALL: Call = ask()


class Engine:
    """An engine whose looks are counted, and may be held back."""

    def __init__(self) -> None:
        self.looks = 0
        self.held: asyncio.Event | None = None

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        self.looks += 1
        seen = EngineStatus(kind="ollama", state="ready", ready=True, version=str(self.looks))
        if self.held is not None:
            await self.held.wait()
        return seen


def run(test: Callable[[Lookout, Engine, JumpyClock], Awaitable[None]]) -> None:
    async def main() -> None:
        engine, clock = Engine(), JumpyClock()
        lookout = Lookout(
            Settings(),
            engine=engine,  # type: ignore[arg-type]
            providers=dict,
            connectivity=Connectivity(clock, environ={}, offline=True),
            verdict=serverless.verdict({}),
            clock=clock,
            over_budget=lambda: "",
            last_resort=lambda: Choice(name="tiny", reason=""),
        )
        await test(lookout, engine, clock)
        await lookout.aclose()

    asyncio.run(main())


async def version(lookout: Lookout) -> str:
    world = await lookout.look(CALL)
    assert isinstance(world.local, EngineStatus)
    return world.local.version


def test_a_fresh_look_serves_many_requests_and_an_older_one_is_renewed_beside_them() -> None:
    async def test(lookout: Lookout, engine: Engine, clock: JumpyClock) -> None:
        assert [await version(lookout) for _ in range(3)] == ["1", "1", "1"]
        clock.later_s = FRESH_S + 1
        assert await version(lookout) == "1"
        while engine.looks < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await version(lookout) == "2"

    run(test)


def test_after_a_suspend_nothing_that_was_seen_before_is_believed() -> None:
    async def test(lookout: Lookout, engine: Engine, clock: JumpyClock) -> None:
        await version(lookout)
        clock.jumped_s = 8 * 3600.0
        assert await version(lookout) == "2"
        assert await version(lookout) == "2"

    run(test)


def test_a_change_during_a_look_makes_that_look_old() -> None:
    async def test(lookout: Lookout, engine: Engine, clock: JumpyClock) -> None:
        engine.held = asyncio.Event()
        looking = asyncio.ensure_future(version(lookout))
        while engine.looks < 1:
            await asyncio.sleep(0)
        lookout.forget()  # a model arrived that this look cannot know of
        engine.held.set()
        assert await looking == "1"
        assert await version(lookout) == "2"

    run(test)


def test_what_models_can_do_that_are_not_here_yet_is_known_by_the_catalogue() -> None:
    async def test(lookout: Lookout, engine: Engine, clock: JumpyClock) -> None:
        del engine, clock
        world = await lookout.look(CALL)
        assert world.abilities["llama2:7b"] == {"completion"}
        assert "tools" in world.abilities["qwen3:4b"]
        assert world.windows["llama2:7b"] == 4096

    run(test)
