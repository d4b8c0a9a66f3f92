"""The one request that tries a cooling place again: who may send it, and what becomes of it."""

from __future__ import annotations

import asyncio

import pytest

from localfirst.errors import CascadeExhausted, InvalidRequest, PrivacyRefused
from localfirst.settings import CascadeSettings, Settings
from tests.fakes.scripted_backend import House, ScriptedBackend, make_call, refuses, says
from tests.fakes.virtual_time import run

ONCE = Settings(cascade=CascadeSettings(attempts_per_provider=1, wait_for_cooldown_s=0))
BAD = {"error": {"message": "bad", "type": "invalid_request_error"}}


def test_a_probe_that_meets_a_wrong_request_frees_its_place() -> None:
    async def main() -> None:
        backend = ScriptedBackend(refuses(500), refuses(400, BAD), says())
        house = House({"groq": backend, "gemini": ScriptedBackend()}, settings=ONCE)
        await house.ask()
        await house.clock.sleep(3.0)  # half of the guessed five seconds
        with pytest.raises(InvalidRequest):
            await house.ask()
        assert (await house.ask()).route == "groq/groq-model"

    run(main())


def test_a_probe_that_the_budget_forbids_frees_its_place() -> None:
    allowed = {"groq": True}

    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend(refuses(500), says()), "gemini": ScriptedBackend()},
            settings=ONCE,
            budget=lambda target: "" if allowed.get(target.provider, True) else "spent",
        )
        await house.ask()
        await house.clock.sleep(3.0)
        allowed["groq"] = False
        assert (await house.ask()).route == "gemini/gemini-model"
        allowed["groq"] = True
        assert (await house.ask()).route == "groq/groq-model"

    run(main())


def test_a_probe_that_may_not_leave_frees_its_place() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend(refuses(500), says()), "gemini": ScriptedBackend()},
            settings=ONCE,
        )
        await house.ask()
        await house.clock.sleep(3.0)
        found = house.cascade.plan(make_call(), house.world)
        climb = house.cascade._climb(make_call(local_only=True), found, house.world, frozenset())
        with pytest.raises(PrivacyRefused):
            await climb.open()
        assert (await house.ask()).route == "groq/groq-model"

    run(main())


def test_a_wait_that_is_over_is_tried_by_one_request_while_the_others_go_on() -> None:
    async def main() -> None:
        backend = ScriptedBackend(refuses(500), [20.0, *says("back")])
        house = House({"groq": backend, "gemini": ScriptedBackend()}, settings=ONCE)
        await house.ask()
        await house.clock.sleep(60.0)
        replies = await asyncio.gather(*(house.ask() for _ in range(20)))
        assert len(backend.asked) == 2
        assert sorted(reply.rung for reply in replies if reply.route.startswith("groq")) == [
            "cloud"
        ]
        # Its answer closed the breaker: everybody comes again.
        await asyncio.gather(*(house.ask() for _ in range(5)))
        assert len(backend.asked) == 7

    run(main())


def test_a_stream_that_has_begun_has_shown_that_the_provider_is_back() -> None:
    async def main() -> None:
        backend = ScriptedBackend(refuses(500), says("back"))
        house = House({"groq": backend, "gemini": ScriptedBackend()}, settings=ONCE)
        await house.ask()
        await house.clock.sleep(60.0)
        answer = await house.cascade.open(make_call())
        assert (await house.ask()).route == "groq/groq-model"
        assert (await answer.reply()).route == "groq/groq-model"

    run(main())


def test_who_alone_is_left_is_asked_although_another_request_tries_it() -> None:
    async def main() -> None:
        backend = ScriptedBackend(refuses(500), [20.0, *says("back")])
        house = House({"groq": backend, "pull": ScriptedBackend()}, settings=ONCE)
        with pytest.raises(CascadeExhausted):
            await house.ask(fallback=False)
        await house.clock.sleep(60.0)
        replies = await asyncio.gather(*(house.ask() for _ in range(5)))
        assert {reply.route for reply in replies} == {"groq/groq-model"}
        assert house.backends["pull"].asked == []

    run(main())


def test_a_wait_that_a_server_named_is_over_for_everybody_at_once() -> None:
    async def main() -> None:
        backend = ScriptedBackend(
            refuses(429, None, [("retry-after", "30")]), [20.0, *says("back")]
        )
        house = House({"groq": backend, "gemini": ScriptedBackend()}, settings=ONCE)
        await house.ask()
        await house.clock.sleep(31.0)
        replies = await asyncio.gather(*(house.ask() for _ in range(5)))
        assert {reply.route for reply in replies} == {"groq/groq-model"}

    run(main())


def test_an_engine_that_is_back_is_asked_by_everybody_at_once() -> None:
    async def main() -> None:
        local = ScriptedBackend(refuses(500), [20.0, *says("back")])
        house = House({"local": local, "gemini": ScriptedBackend()}, settings=ONCE)
        await house.ask()
        await house.clock.sleep(10.0)
        replies = await asyncio.gather(*(house.ask() for _ in range(5)))
        assert {reply.rung for reply in replies} == {"local"}

    run(main())
