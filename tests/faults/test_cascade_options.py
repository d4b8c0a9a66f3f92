"""Hedging and continuing: off unless asked for, and clean when they happen."""

from __future__ import annotations

import asyncio

import pytest

from localfirst.cascade import continued
from localfirst.errors import (
    Breakage,
    CascadeExhausted,
    DeadlineExceeded,
    LocalFirstError,
    StreamInterrupted,
    UpstreamBroken,
)
from localfirst.events import Opened, ReasoningDelta, TextDelta, ToolCallDelta
from localfirst.settings import CascadeSettings, Settings
from localfirst.types import Call, ChatRequest, Message, Needs, Tool
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
        given_up = answer.attempts[0]
        assert (given_up.model, given_up.key_label) == ("groq-model", "GROQ_API_KEY")
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


def test_an_error_of_two_ways_tells_of_both() -> None:
    async def main() -> None:
        groq = ScriptedBackend([Opened(200), 5.0, *refuses(503)])
        gemini = ScriptedBackend(refuses(503))
        house = House({"groq": groq, "gemini": gemini}, settings=HEDGE)
        with pytest.raises(LocalFirstError) as caught:
            await house.ask()
        tried = [one.provider for one in caught.value.attempts]
        assert tried.count("groq") == len(groq.asked)
        assert tried.count("gemini") == len(gemini.asked)
        assert caught.value.egress == ("groq", "gemini")

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
        begun = [Opened(200), ReasoningDelta("hm"), TextDelta("Once "), TextDelta("upon "), CUT]
        house = House({"groq": ScriptedBackend(begun),
                       "gemini": ScriptedBackend(says("a time"))}, settings=CONTINUE)  # fmt: skip
        answer = await house.cascade.open(make_call(relay=True, body=b"the caller's own"))
        reply = await answer.reply()
        assert reply.text == "Once upon a time"
        assert reply.route == "gemini/gemini-model"
        assert [one.outcome for one in reply.attempts] == ["network", "ok"]
        (asked,) = house.backends["gemini"].calls
        assert [message.role for message in asked.chat.messages] == ["user", "assistant", "user"]
        # What was thought is nothing that was said, and the caller's bytes hold no beginning.
        assert asked.chat.messages[1].text == "Once upon "
        assert asked.chat.messages[2].text == continued.CONTINUE
        assert (asked.relay, asked.body, asked.decode) == (False, b"", None)
        assert house.unanswered == 0

    run(main())


def test_whoever_reads_a_continued_stream_gets_every_word_once() -> None:
    async def main() -> None:
        begun = [Opened(200), TextDelta("Once "), TextDelta("upon "), TextDelta("a "), CUT]
        house = House({"groq": ScriptedBackend(begun), "gemini": ScriptedBackend(says("time"))},
                      settings=CONTINUE)  # fmt: skip
        answer = await house.cascade.open(make_call())
        words = [event.text async for event in answer if isinstance(event, TextDelta)]
        await answer.aclose()
        assert words == ["Once ", "upon ", "a ", "time"]

    run(main())


def test_a_stream_that_is_cut_before_its_first_word_is_asked_for_as_it_was() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([Opened(200), ReasoningDelta("hm"), CUT]),
                       "gemini": ScriptedBackend(says("hello"))}, settings=CONTINUE)  # fmt: skip
        assert (await house.ask()).text == "hello"
        (asked,) = house.backends["gemini"].calls
        assert [message.text for message in asked.chat.messages] == ["hi"]

    run(main())


SAID = (Message(role="user", content="hi"),)


@pytest.mark.parametrize(
    "call",
    [
        make_call(stream=False),
        make_call(needs=Needs(tools=True)),
        make_call(needs=Needs(schema=True)),
        make_call(request=ChatRequest(messages=SAID, tools=(Tool(name="f"),))),
        make_call(request=ChatRequest(messages=SAID, schema={"type": "object"})),
        make_call(request=ChatRequest(messages=SAID, json_mode=True)),
        make_call(request=ChatRequest(messages=(), prompt="def f(")),
        make_call(request=ChatRequest(messages=SAID, generate=True, suffix="end")),
        make_call(request=ChatRequest(messages=SAID, generate=True, extra={"context": [1]})),
    ],
)
def test_what_has_a_form_to_keep_is_never_continued(call: Call) -> None:
    assert not continued.possible(call)
    assert continued.possible(make_call())
    assert continued.possible(make_call(request=ChatRequest(messages=SAID, generate=True)))
    assert continued.possible(make_call(request=ChatRequest(messages=SAID, extra={"x": 1})))


def test_a_call_of_a_tool_that_nobody_asked_for_is_not_continued_either() -> None:
    async def main() -> None:
        begun = [Opened(200), TextDelta("I look"), ToolCallDelta(0, "c", "f", "{"), CUT]
        house = House({"groq": ScriptedBackend(begun), "gemini": ScriptedBackend()},
                      settings=CONTINUE)  # fmt: skip
        with pytest.raises(StreamInterrupted):
            await house.ask()
        assert house.backends["gemini"].asked == []

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
