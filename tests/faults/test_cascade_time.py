"""Waits and their owners: shares of a short deadline, whole answers, and who is blamed for what."""

from __future__ import annotations

import pytest

from localfirst.errors import CascadeExhausted
from localfirst.settings import CascadeSettings, Settings, TimeoutSettings
from tests.fakes.scripted_backend import HANG, House, ScriptedBackend, refuses, says, view
from tests.fakes.virtual_time import run

HUNG = [HANG]


def within(deadline_s: float, **waits: float) -> Settings:
    return Settings(
        cascade=CascadeSettings(deadline_s=deadline_s), timeouts=TimeoutSettings(**waits)
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("deadline_s", [1.0, 3.0, 6.0, 30.0])
@pytest.mark.parametrize("hung", [1, 2, 3])
def test_a_short_deadline_is_shared_so_that_the_last_one_is_asked(
    hung: int, deadline_s: float, stream: bool
) -> None:
    async def main() -> None:
        names = ["groq", "gemini", "mistral", "openai"][-hung - 1 :]
        backends = {name: ScriptedBackend(HUNG) for name in names}
        backends[names[-1]] = ScriptedBackend([0.02, *says("in time")])
        house = House(backends, settings=within(deadline_s))
        began = house.clock.monotonic()
        assert (await house.ask(stream=stream)).text == "in time"
        assert house.clock.monotonic() - began <= deadline_s

    run(main())


def test_who_was_given_no_time_is_not_blamed_for_it() -> None:
    async def main() -> None:
        names = [f"c{n}" for n in range(40)]
        house = House({name: ScriptedBackend(HUNG) for name in names}, settings=within(4.0))
        with pytest.raises(Exception, match=r"nobody could answer|no answer within"):
            await house.ask()
        # A tenth of a second is nobody's failure; their turn comes again at once.
        assert house.cascade.health.idle
        assert not house.records.cooldowns

    run(main())


def test_who_had_a_fair_time_and_hung_is_left_alone_for_a_while() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend(HUNG), "gemini": ScriptedBackend()}, settings=within(3.0)
        )
        await house.ask()
        await house.ask()
        assert len(house.backends["groq"].asked) == 1

    run(main())


@pytest.mark.parametrize(("takes_s", "route"), [(4.0, "groq/groq-model"), (9.0, "openai/m")])
def test_a_whole_answer_may_take_some_waits_for_a_first_token_but_not_its_whole_share(
    takes_s: float, route: str
) -> None:
    """Nothing shows that a whole answer is on its way; a hang must not eat the deadline."""

    async def main() -> None:
        slow = ScriptedBackend([takes_s, *says("whole")])
        house = House(
            {"groq": slow, "openai": ScriptedBackend()},
            providers={"groq": view("groq"), "openai": view("openai", default_models=("m",))},
            settings=within(120.0, first_token_s=1.0),
        )
        reply = await house.ask(stream=False)
        assert reply.route == route

    run(main())


def test_a_local_model_that_hangs_costs_its_own_limit_however_the_answer_is_wanted() -> None:
    async def main() -> None:
        limited = refuses(429, None, [("retry-after", "600")])
        backends = {"local": ScriptedBackend(HUNG), "groq": ScriptedBackend(limited)}
        house = House(backends, settings=within(120.0, local_first_token_s=30.0))
        with pytest.raises(CascadeExhausted):
            await house.ask(model="groq/groq-model")
        began = house.clock.monotonic()
        with pytest.raises(CascadeExhausted):
            await house.ask(stream=False)
        assert house.clock.monotonic() - began == pytest.approx(30.0, abs=0.1)

    run(main())


def test_a_whole_answer_of_the_only_candidate_may_take_all_the_time_there_is() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend([100.0, *says("whole")])},
            settings=within(120.0, first_token_s=1.0),
        )
        assert (await house.ask(stream=False)).text == "whole"

    run(main())


@pytest.mark.parametrize("stream", [True, False])
def test_a_providers_own_limit_is_kept_for_whole_answers_too(stream: bool) -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend(HUNG), "gemini": ScriptedBackend()},
            providers={"groq": view("groq", timeout_s=2.0), "gemini": view("gemini")},
        )
        began = house.clock.monotonic()
        assert (await house.ask(stream=stream)).route == "gemini/gemini-model"
        assert house.clock.monotonic() - began == pytest.approx(2.0, abs=0.1)

    run(main())


def test_who_is_cooling_down_has_no_share_of_the_deadline() -> None:
    async def main() -> None:
        names = [f"c{number}" for number in range(9)]
        limited = refuses(429, None, [("retry-after", "600")])
        backends = {name: ScriptedBackend(limited) for name in names}
        backends["slow"] = ScriptedBackend(says(), [40.0, *says("at last")])
        house = House(backends, settings=within(120.0))
        await house.ask()
        assert (await house.ask()).text == "at last"

    run(main())


def test_who_is_tried_again_while_cooling_leaves_a_share_to_those_behind() -> None:
    async def main() -> None:
        backends = {"groq": ScriptedBackend(HUNG), "gemini": ScriptedBackend()}
        house = House(backends, settings=within(120.0))
        assert (await house.ask(stream=False)).text == "hello"
        house.clock.advance(20.0)  # more than half of what was only guessed is over
        assert (await house.ask(stream=False)).text == "hello"
        assert len(backends["groq"].asked) == 2

    run(main())
