"""The one request that tries a cooling place again: who may send it, and what becomes of it."""

from __future__ import annotations

import pytest

from localfirst.errors import InvalidRequest, PrivacyRefused
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
