"""What the plan is told of the engine: how old it may be, and what makes it old at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from localfirst.cascade.plan import ProviderView
from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.machine import serverless
from localfirst.machine.connectivity import Connectivity
from localfirst.machine.recommend import Choice
from localfirst.runtime.lookout import FRESH_S, LACKING_S, Lookout
from localfirst.settings import Settings
from localfirst.types import Call, Rung
from tests.fakes.engine_bench import JumpyClock, ask, call_of

CALL: Call = ask()
OPENAI, GROQ = (ProviderView(id=name, rung=Rung.CLOUD) for name in ("openai", "groq"))
TINY = LocalModel(name="tiny:latest")


class Engine:
    """An engine whose looks are counted, and may be held back."""

    def __init__(self) -> None:
        self.looks = 0
        self.held: asyncio.Event | None = None
        self.models = [TINY]
        self.ready = True
        self.partial = False

    async def status(self, *, max_age_s: float = 2.0) -> EngineStatus:
        self.looks += 1
        seen = EngineStatus(
            kind="ollama",
            state="ready",
            ready=self.ready,
            partial=self.partial,
            version=str(self.looks),
            models=tuple(self.models),
        )
        if self.held is not None:
            await self.held.wait()
        return seen


def run(test: Callable[[Lookout, Engine, JumpyClock], Awaitable[None]]) -> None:
    async def main() -> None:
        engine, clock = Engine(), JumpyClock()
        lookout = Lookout(
            Settings(),
            engine=engine,  # type: ignore[arg-type]
            providers=lambda: {"openai": OPENAI, "groq": GROQ},
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


@pytest.mark.parametrize("name", ["auto", "local", "tiny", "local/tiny", "library/tiny:latest"])
def test_a_model_that_is_not_there_is_looked_for_anew(name: str) -> None:
    """After `ollama pull` the first request was told that there is no such model."""

    async def test(lookout: Lookout, engine: Engine, clock: JumpyClock) -> None:
        call = call_of(CALL.chat, model=name)
        engine.models = []
        await lookout.look(call)
        engine.models = [TINY]
        assert list((await lookout.look(call)).installed) == [], "it was looked a moment ago"
        clock.later_s = LACKING_S + 0.1
        assert list((await lookout.look(call)).installed) == ["tiny:latest"]
        clock.later_s += FRESH_S - 0.1
        await lookout.look(call)
        assert engine.looks == 2, "once it is there, nobody waits"

    run(test)


@pytest.mark.parametrize("name", ["auto", "other", "another", "gpt-4o", "groq/tiny"])
def test_nobody_waits_for_a_model_that_is_not_missed(name: str) -> None:
    async def test(lookout: Lookout, engine: Engine, clock: JumpyClock) -> None:
        call = call_of(CALL.chat, model=name)
        # An engine that is gone may be long in saying so, and so may be one of several.
        engine.ready, engine.partial = name != "other", name == "another"
        await lookout.look(call)
        clock.later_s = FRESH_S
        await lookout.look(call)
        assert engine.looks == 1

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
