"""Hedging and continuing: off unless asked for, and clean when they happen."""

from __future__ import annotations

import asyncio

import pytest

from localfirst.errors import (
    Breakage,
    CascadeExhausted,
    DeadlineExceeded,
    StreamInterrupted,
    UpstreamBroken,
)
from localfirst.events import Opened, TextDelta, ToolCallDelta
from localfirst.settings import CascadeSettings, Settings
from tests.fakes.scripted_backend import (
    HANG,
    House,
    ScriptedBackend,
    make_call,
    refuses,
    says,
    view,
)
from tests.fakes.virtual_time import run

HEDGE = Settings(cascade=CascadeSettings(hedge_after_s=2.0))
CONTINUE = Settings(cascade=CascadeSettings(continue_cut_streams=True))
CUT = UpstreamBroken(Breakage.CUT)
SLOW = [Opened(200), 30.0, *says("slow")[1:]]


def test_a_slow_first_candidate_is_hedged_and_closed() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(SLOW), "gemini": ScriptedBackend(says("quick"))},
                      settings=HEDGE)  # fmt: skip
        began = house.clock.monotonic()
        answer = await house.cascade.open(make_call())
        assert house.clock.monotonic() - began == pytest.approx(2.0, abs=0.01)
        assert house.backends["groq"].open == 0
        assert (await answer.reply()).text == "quick"
        assert dict(answer.headers())["x-localfirst-trail"] == "groq=hedged,gemini=ok"
        assert dict(answer.headers())["x-localfirst-egress"] == "groq,gemini"
        assert house.cascade.health.idle
        assert not any(house.cascade.quota.in_flight.values())

    run(main())


def test_a_quick_first_candidate_is_not_hedged() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(), "gemini": ScriptedBackend()}, settings=HEDGE)
        await house.ask()
        assert house.backends["gemini"].asked == []

    run(main())


def test_the_first_may_still_win_when_the_second_fails() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(SLOW), "gemini": ScriptedBackend(refuses(400))},
                      settings=HEDGE)  # fmt: skip
        assert (await house.ask()).text == "slow"

    run(main())


def test_a_download_is_not_begun_on_a_suspicion() -> None:
    async def main() -> None:
        from tests.fakes.scripted_backend import engine

        house = House({"groq": ScriptedBackend(SLOW), "pull": ScriptedBackend()},
                      settings=HEDGE, local=engine())  # fmt: skip
        assert (await house.ask()).text == "slow"
        assert house.backends["pull"].asked == []

    run(main())


def test_nobody_is_left_behind_when_a_hedged_request_is_cancelled_or_fails() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([HANG]), "gemini": ScriptedBackend([HANG])},
                      settings=HEDGE)  # fmt: skip
        asking = asyncio.ensure_future(house.ask())
        await asyncio.sleep(10.0)
        assert house.unanswered == 2
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert house.unanswered == 0
        with pytest.raises((CascadeExhausted, DeadlineExceeded)):
            await house.ask()
        assert house.unanswered == 0

    run(main())


def test_two_answers_at_once_leave_one_open() -> None:
    async def main() -> None:
        both = [Opened(200), 2.0, *says("first")[1:]]
        house = House({"groq": ScriptedBackend([Opened(200), 4.0, *both[2:]]),
                       "gemini": ScriptedBackend(both)}, settings=HEDGE)  # fmt: skip
        await house.ask()
        assert house.unanswered == 0

    run(main())


def test_a_cut_stream_is_continued_by_the_next_candidate() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([Opened(200), TextDelta("Once upon "), CUT]),
                       "gemini": ScriptedBackend(says("a time"))}, settings=CONTINUE)  # fmt: skip
        answer = await house.cascade.open(make_call(relay=True))
        reply = await answer.reply()
        assert reply.text == "Once upon a time"
        assert [one.outcome for one in reply.attempts] == ["network", "ok"]
        (asked,) = house.backends["gemini"].calls
        assert [message.role for message in asked.chat.messages] == ["user", "assistant", "user"]
        assert asked.chat.messages[1].text == "Once upon "
        assert house.unanswered == 0

    run(main())


@pytest.mark.parametrize("first", [TextDelta("a"), ToolCallDelta(0, "c", "f", "{")])
def test_a_stream_that_cannot_be_continued_says_that_it_was_cut(first: object) -> None:
    async def main() -> None:
        bad = ScriptedBackend(refuses(500))
        house = House({"groq": ScriptedBackend([Opened(200), first, CUT]), "gemini": bad},
                      settings=CONTINUE)  # fmt: skip
        with pytest.raises(StreamInterrupted):
            await house.ask()
        assert house.unanswered == 0

    run(main())


def test_leaving_a_continued_stream_closes_it() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([Opened(200), TextDelta("a"), CUT]),
                       "gemini": ScriptedBackend([Opened(200), TextDelta("b"), HANG])},
                      settings=CONTINUE)  # fmt: skip
        answer = await house.cascade.open(make_call())
        async for event in answer:
            if event == TextDelta("b"):
                break
        await answer.aclose()
        assert house.unanswered == 0

    run(main())


def test_a_hedge_never_asks_another_model_of_the_provider_that_hangs() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend([HANG]), "gemini": ScriptedBackend(says("quick"))},
            providers={"groq": view("groq", default_models=("a", "b")), "gemini": view("gemini")},
            settings=HEDGE,
        )
        assert (await house.ask()).text == "quick"
        assert [target.model for target in house.backends["groq"].asked] == ["a"]

    run(main())
