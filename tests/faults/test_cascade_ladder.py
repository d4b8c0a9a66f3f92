"""The ladder under every fault at every position, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from localfirst.cascade.quota import Quota
from localfirst.errors import (
    Breakage,
    CascadeExhausted,
    ContentFiltered,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    PrivacyRefused,
    StreamInterrupted,
    UpstreamBroken,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.events import (
    Finished,
    FinishReason,
    Opened,
    Progress,
    ReasoningDelta,
    Relayed,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from localfirst.settings import CascadeSettings, EscalationSettings, Settings, TimeoutSettings
from localfirst.types import FailureClass, Needs
from tests.fakes.scripted_backend import (
    HANG,
    House,
    Move,
    ScriptedBackend,
    make_call,
    refuses,
    says,
    view,
)
from tests.fakes.virtual_time import run

OPENED = Opened(200)
ONCE = Settings(cascade=CascadeSettings(attempts_per_provider=1))
RATE = {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}


async def drain(answer: Any, seen: list[Any]) -> None:
    async for event in answer:
        seen.append(event)


FALLS_THROUGH: dict[str, tuple[Sequence[Move], str]] = {
    "refused connection": ([UpstreamBroken(Breakage.CONNECT_REFUSED)], "network"),
    "dns": ([UpstreamBroken(Breakage.DNS)], "network"),
    "tls": ([UpstreamBroken(Breakage.TLS)], "network"),
    "connect timeout": ([UpstreamBroken(Breakage.CONNECT_TIMEOUT)], "timeout"),
    "reset": ([UpstreamBroken(Breakage.RESET)], "network"),
    "os error": ([ConnectionResetError(104, "reset")], "network"),
    "hangs before the status": ([HANG], "timeout"),
    "hangs after the status": ([OPENED, HANG], "timeout"),
    "cut after the status": ([OPENED, UpstreamBroken(Breakage.CUT)], "network"),
    "ends without a terminator": ([OPENED], "network"),
    "role chunk, then cut": ([OPENED, Relayed(b"r"), UpstreamBroken(Breakage.CUT)], "network"),
    "keep-alives without end": ([OPENED, *[Relayed(b":\n\n")] * 5000], "invalid_response"),
    "slow keep-alives": ([OPENED, *[Relayed(b":\n\n"), 5.0] * 100], "timeout"),
    "empty completion": ([OPENED, Finished()], "invalid_response"),
    "empty text": ([OPENED, TextDelta(""), Finished()], "invalid_response"),
    "final without content": ([OPENED, Relayed(b"x", final=True)], "invalid_response"),
    "html": ([OPENED, UpstreamNonsense("html")], "invalid_response"),
    "redirect": ([UpstreamBroken(Breakage.REDIRECT)], "invalid_response"),
    "in-band error": ([OPENED, UpstreamRefused(500, b"", in_band=True)], "unavailable"),
    "429": (refuses(429, RATE), "rate_limit"),
    "402": (refuses(402), "quota"),
    "401": (refuses(401), "auth"),
    "403": (refuses(403, {"error": "forbidden"}), "auth"),
    "404": (refuses(404), "model_not_found"),
    "408": (refuses(408), "timeout"),
    "500": (refuses(500), "unavailable"),
    "502": (refuses(502), "unavailable"),
    "503": (refuses(503), "unavailable"),
    "529": (refuses(529), "unavailable"),
    "region": (refuses(400, {"error": "User location is not supported"}), "config"),
    "a fault of ours": ([ZeroDivisionError()], "unknown"),
}


def virtual(test: Coroutine[Any, Any, None]) -> None:
    run(test)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("fault", FALLS_THROUGH)
def test_a_fault_before_content_falls_through_to_the_next(fault: str, position: int) -> None:
    script, cls = FALLS_THROUGH[fault]

    async def main() -> None:
        names = ["local", "groq", "gemini", "mistral"]
        bad = names[: position + 1]
        house = House(
            {n: ScriptedBackend(script if n in bad else says(n)) for n in names}, settings=ONCE
        )
        answer = await house.cascade.open(make_call(deadline_s=10_000.0))
        reply = await answer.reply()
        assert reply.text == names[position + 1]
        trail = dict(answer.headers())["x-localfirst-trail"]
        assert trail == ",".join([*(f"{n}={cls}" for n in bad), f"{names[position + 1]}=ok"])
        assert dict(answer.headers())["x-localfirst-attempts"] == str(position + 2)
        assert house.unanswered == 0

    virtual(main())


@pytest.mark.parametrize("fault", FALLS_THROUGH)
def test_a_fault_of_everybody_is_reported_with_its_class(fault: str) -> None:
    script, cls = FALLS_THROUGH[fault]

    async def main() -> None:
        house = House({"groq": ScriptedBackend(script), "gemini": ScriptedBackend(script)},
                      settings=ONCE)  # fmt: skip
        with pytest.raises(CascadeExhausted) as caught:
            await house.ask()
        error = caught.value
        assert error.dominating == cls
        assert [one.outcome for one in error.attempts][:2] == [cls, cls]
        assert "groq/groq-model [GROQ_API_KEY]: " + cls in error.message
        assert house.unanswered == 0

    virtual(main())


ENDS = {
    "bad request": (refuses(400, {"error": {"message": "bad"}}), InvalidRequest, 400),
    "unprocessable": (
        refuses(422, {"detail": [{"loc": ["body", "n"], "msg": "no"}]}), InvalidRequest, 422,
    ),
    "content filter": (
        refuses(400, {"error": {"code": "content_filter", "message": "no"}}), ContentFiltered, 400,
    ),
    "filtered answer": (
        [OPENED, Finished(reason=FinishReason.CONTENT_FILTER)], ContentFiltered, 400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", ENDS)
def test_the_requests_own_fault_ends_the_ladder_with_its_status(fault: str) -> None:
    script, kind, status = ENDS[fault]

    async def main() -> None:
        house = House({"groq": ScriptedBackend(script), "gemini": ScriptedBackend()})
        with pytest.raises(kind) as caught:
            await house.ask()
        assert caught.value.http_status == status
        assert [one.provider for one in caught.value.attempts] == ["groq"]
        assert house.backends["gemini"].asked == []
        assert house.cascade.health.idle

    virtual(main())


def test_a_model_that_cannot_do_what_is_asked_is_not_the_requests_fault() -> None:
    async def main() -> None:
        cannot = refuses(400, {"error": "llama2:latest does not support tools"})
        house = House({"local": ScriptedBackend(cannot), "groq": ScriptedBackend(says("tools"))})
        assert (await house.ask()).text == "tools"

    virtual(main())


def test_context_length_goes_only_to_a_larger_window() -> None:
    async def main() -> None:
        long = refuses(400, {"error": {"code": "context_length_exceeded", "message": "long"}})
        house = House(
            {n: ScriptedBackend(long) for n in ("groq", "gemini")} | {"openai": ScriptedBackend()},
            providers={
                "groq": view("groq", context_tokens=8000),
                "gemini": view("gemini", context_tokens=8000),
                "openai": view("openai", context_tokens=128_000),
            },
        )
        reply = await house.ask()
        assert [one.provider for one in reply.attempts] == ["groq", "openai"]

    virtual(main())


def test_context_length_everywhere_is_413() -> None:
    async def main() -> None:
        long = refuses(400, {"error": {"code": "context_length_exceeded", "message": "long"}})
        house = House({"groq": ScriptedBackend(long), "gemini": ScriptedBackend(long)})
        with pytest.raises(ContextTooLong) as caught:
            await house.ask()
        assert caught.value.http_status == 413
        assert len(caught.value.attempts) == 2

    virtual(main())


CONTENT = [TextDelta("a"), ReasoningDelta("a"), ToolCallDelta(0, "c1", "f", "{"),
           Relayed(b"data: x\n\n", content=True)]  # fmt: skip
AFTER = {
    "cut": UpstreamBroken(Breakage.CUT),
    "reset": ConnectionResetError(104, "reset"),
    "stall": HANG,
    "in-band error": UpstreamRefused(500, b"", in_band=True),
    "nonsense": UpstreamNonsense("not json"),
}


@pytest.mark.parametrize("fault", AFTER)
@pytest.mark.parametrize("content", CONTENT, ids=lambda event: type(event).__name__)
def test_a_fault_after_content_is_told_and_never_retried(content: Any, fault: str) -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([OPENED, content, AFTER[fault]]),
                       "gemini": ScriptedBackend()})  # fmt: skip
        answer = await house.cascade.open(make_call())
        seen: list[Any] = []
        with pytest.raises(StreamInterrupted):
            await drain(answer, seen)
        assert seen == [content]
        assert house.backends["gemini"].asked == []
        assert answer.attempts[-1].outcome != "ok"
        assert house.unanswered == 0

    virtual(main())


def test_a_tool_call_cut_in_its_arguments_is_no_answer() -> None:
    async def main() -> None:
        call = ToolCallDelta(0, "c1", "f", '{"a": ')
        house = House({"groq": ScriptedBackend([OPENED, call, Finished()])})
        with pytest.raises(StreamInterrupted):
            await house.ask()

    virtual(main())


def test_what_came_before_content_is_handed_over_with_it() -> None:
    async def main() -> None:
        events = [Relayed(b"1"), Relayed(b"2", content=True), Relayed(b"3", final=True)]
        house = House({"groq": ScriptedBackend([OPENED, *events, Relayed(b"4")])})
        answer = await house.cascade.open(make_call(relay=True))
        assert [event async for event in answer] == events

    virtual(main())


def test_a_long_row_of_empty_events_before_content_is_patience_and_no_fault() -> None:
    async def main() -> None:
        empty = [Relayed(b"data: {}\n\n")] * 600
        last = Relayed(b"data: x\n\n", content=True), Relayed(b"data: [DONE]\n\n", final=True)
        house = House({"groq": ScriptedBackend([OPENED, *empty, *last])})
        answer = await house.cascade.open(make_call())
        assert len([event async for event in answer]) == 602

    virtual(main())


def test_an_answer_that_ended_at_its_length_may_be_empty() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([OPENED, Finished(reason=FinishReason.LENGTH)])})
        assert (await house.ask()).finish_reason is FinishReason.LENGTH

    virtual(main())


# --- time ---------------------------------------------------------------------------------


def test_a_hanging_first_candidate_costs_its_first_token_limit_and_no_more() -> None:
    async def main() -> None:
        settings = Settings(timeouts=TimeoutSettings(first_token_s=7.0))
        house = House(
            {"groq": ScriptedBackend([HANG]), "gemini": ScriptedBackend()}, settings=settings
        )
        began = house.clock.monotonic()
        await house.ask()
        assert house.clock.monotonic() - began == pytest.approx(7.0, abs=0.01)

    virtual(main())


def test_each_hop_gets_its_share_of_the_deadline() -> None:
    async def main() -> None:
        names = ["groq", "gemini", "mistral", "openai"]
        house = House(
            {n: ScriptedBackend([HANG]) for n in names[:3]} | {"openai": ScriptedBackend()}
        )
        began = house.clock.monotonic()
        reply = await house.ask(deadline_s=40.0)
        assert reply.route == "openai/openai-model"
        assert house.clock.monotonic() - began <= 40.0
        assert [backend.limits[0].first_token_s for backend in house.backends.values()][:3] == [
            pytest.approx(10.0, abs=0.1)
        ] * 3

    virtual(main())


def test_the_deadline_ends_the_ladder() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([HANG])})
        began = house.clock.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await house.ask(deadline_s=3.0)
        assert house.clock.monotonic() - began == pytest.approx(3.0, abs=0.1)
        assert [one.outcome for one in caught.value.attempts] == ["timeout"]

    virtual(main())


def test_a_stream_may_take_as_long_as_it_moves() -> None:
    async def main() -> None:
        script: list[Move] = [OPENED]
        for _ in range(50):
            script += [TextDelta("x"), 50.0]
        house = House({"groq": ScriptedBackend([*script, Finished()])})
        assert (await house.ask()).text == "x" * 50

    virtual(main())


def test_a_slow_reader_is_not_a_slow_upstream() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend([OPENED, TextDelta("a"), TextDelta("b"), Finished()])}
        )
        answer = await house.cascade.open(make_call())
        text = ""
        async for event in answer:
            await house.clock.sleep(500.0)
            text += event.text if isinstance(event, TextDelta) else ""
        assert text == "ab"

    virtual(main())


def test_progress_keeps_a_loading_model_alive_and_is_shown_to_a_stream() -> None:
    async def main() -> None:
        loading: list[Move] = [Progress("loading"), 250.0, Progress("loading"), 250.0, *says("up")]
        house = House({"local": ScriptedBackend(loading), "groq": ScriptedBackend()})
        answer = await house.cascade.open(make_call())
        kinds = [type(event).__name__ async for event in answer]
        assert kinds == ["Progress", "Progress", "TextDelta", "Finished"]

    virtual(main())


def test_a_pull_that_fails_after_progress_still_falls_through() -> None:
    async def main() -> None:
        broken: list[Move] = [Progress("pulling"), UpstreamBroken(Breakage.RESET)]
        house = House({"pull": ScriptedBackend(broken), "groq": ScriptedBackend(says("cloud"))},
                      order=("pull", "groq"), local=view_engine())  # fmt: skip
        answer = await house.cascade.open(make_call())
        kinds = [event async for event in answer]
        assert isinstance(kinds[0], Progress) and kinds[1] == TextDelta("cloud")
        assert answer.target.provider == "groq"

    virtual(main())


def test_only_progress_and_then_nobody_is_exhaustion() -> None:
    async def main() -> None:
        broken: list[Move] = [Progress("pulling"), UpstreamBroken(Breakage.RESET)]
        house = House({"pull": ScriptedBackend(broken)}, order=("pull",), local=view_engine())
        answer = await house.cascade.open(make_call())
        with pytest.raises(CascadeExhausted):
            await answer.reply()

    virtual(main())


def view_engine() -> Any:
    from tests.fakes.scripted_backend import engine

    return engine()


# --- attempts, backoff, cooldowns -----------------------------------------------------------


def test_nobody_sleeps_while_another_candidate_is_ready() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(refuses(503)), "gemini": ScriptedBackend()})
        began = house.clock.monotonic()
        await house.ask()
        assert house.clock.monotonic() == began
        assert len(house.backends["groq"].asked) == 1

    virtual(main())


def test_a_transient_fault_of_the_only_candidate_is_tried_again_after_a_backoff() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(refuses(503), says("second"))})
        began = house.clock.monotonic()
        reply = await house.ask()
        assert reply.text == "second"
        assert 0.25 <= house.clock.monotonic() - began <= 0.5
        assert [one.outcome for one in reply.attempts] == ["unavailable", "ok"]

    virtual(main())


def test_at_most_two_attempts_are_made_at_one_provider() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend(refuses(500)), "gemini": ScriptedBackend(refuses(500))}
        )
        with pytest.raises(CascadeExhausted):
            await house.ask()
        assert [len(backend.asked) for backend in house.backends.values()] == [2, 2]

    virtual(main())


def test_a_refused_key_gives_way_to_the_next_and_is_benched() -> None:
    async def main() -> None:
        groq = ScriptedBackend(refuses(401), says("ok"))
        house = House({"groq": groq}, providers={"groq": view("groq", keys=3)})
        reply = await house.ask()
        assert [one.outcome for one in reply.attempts] == ["auth", "ok"]
        first, second = (target.key_label for target in groq.asked)
        assert first != second
        for _ in range(6):
            await house.ask()
        assert first not in {target.key_label for target in groq.asked[1:]}

    virtual(main())


def test_keys_take_turns_while_all_are_healthy() -> None:
    async def main() -> None:
        groq = ScriptedBackend()
        house = House({"groq": groq}, providers={"groq": view("groq", keys=3)})
        for _ in range(9):
            await house.ask()
        labels = [target.key_label for target in groq.asked]
        assert sorted(labels.count(label) for label in set(labels)) == [3, 3, 3]

    virtual(main())


def test_a_rate_limit_with_a_reset_is_kept_to_the_second() -> None:
    async def main() -> None:
        groq = ScriptedBackend(refuses(429, RATE, [("retry-after", "30")]), says("back"))
        house = House({"groq": groq, "gemini": ScriptedBackend(says("gemini"))})
        assert (await house.ask()).text == "gemini"
        house.clock.advance(29.0)
        assert (await house.ask()).text == "gemini"
        assert len(groq.asked) == 1
        house.clock.advance(1.5)
        assert (await house.ask()).text == "back"

    virtual(main())


def test_a_short_cooldown_of_everybody_is_waited_for() -> None:
    async def main() -> None:
        groq = ScriptedBackend(refuses(429, RATE, [("retry-after", "3")]), says("back"))
        house = House({"groq": groq})
        began = house.clock.monotonic()
        assert (await house.ask()).text == "back"
        assert house.clock.monotonic() - began == pytest.approx(3.0, abs=0.01)

    virtual(main())


def test_a_sick_server_that_names_its_recovery_is_not_asked_before() -> None:
    async def main() -> None:
        groq = ScriptedBackend(refuses(503, None, [("retry-after", "60")]), says("back"))
        house = House({"groq": groq})
        for sent in (1, 1):
            with pytest.raises(CascadeExhausted) as caught:
                await house.ask()
            assert caught.value.retry_after_s == pytest.approx(60.0, abs=0.1)
            assert len(groq.asked) == sent
        house.clock.advance(60.0)
        assert (await house.ask()).text == "back"

    virtual(main())


def test_a_long_cooldown_of_everybody_is_told_with_the_soonest_recovery() -> None:
    async def main() -> None:
        house = House(
            {
                "groq": ScriptedBackend(refuses(429, RATE, [("retry-after", "40")])),
                "gemini": ScriptedBackend(refuses(429, RATE, [("retry-after", "20")])),
            }
        )
        for sent in (2, 0):
            with pytest.raises(CascadeExhausted) as caught:
                await house.ask()
            assert caught.value.http_status == 429
            assert caught.value.retry_after_s == pytest.approx(20.0, abs=0.1)
            assert len(caught.value.attempts) == sent

    virtual(main())


def test_when_all_cool_for_long_the_pull_rung_is_taken() -> None:
    async def main() -> None:
        limited = refuses(429, RATE, [("retry-after", "40")])
        house = House({"groq": ScriptedBackend(limited), "pull": ScriptedBackend(says("pulled"))},
                      local=view_engine())  # fmt: skip
        assert (await house.ask()).rung == "pull"

    virtual(main())


def test_the_last_candidate_is_never_ejected_on_a_guess() -> None:
    async def main() -> None:
        groq = ScriptedBackend(*[refuses(500)] * 12, says("alive"))
        house = House({"groq": groq})
        for _ in range(6):
            with pytest.raises(CascadeExhausted):
                await house.ask()
        assert (await house.ask()).text == "alive"

    virtual(main())


def test_this_machines_engine_cools_for_five_seconds_at_most() -> None:
    async def main() -> None:
        house = House({"local": ScriptedBackend([UpstreamBroken(Breakage.CONNECT_REFUSED)]),
                       "groq": ScriptedBackend()})  # fmt: skip
        for _ in range(5):
            await house.ask()
            house.clock.advance(2.6)
        assert max(entry.duration_s for entry in house.records.cooldowns) <= 5.0

    virtual(main())


def test_a_dead_model_gives_way_to_its_providers_next_one() -> None:
    async def main() -> None:
        groq = ScriptedBackend(refuses(404, {"error": "model 'old' not found"}), says("new"))
        views = {"groq": view("groq", default_models=("old", "new"))}
        house = House({"groq": groq, "gemini": ScriptedBackend()}, providers=views)
        reply = await house.ask()
        assert (reply.text, reply.model) == ("new", "new")
        assert (await house.ask()).model == "new"
        assert [target.model for target in groq.asked] == ["old", "new", "new"]

    virtual(main())


def test_a_busy_provider_gives_way_to_the_next_one() -> None:
    async def main() -> None:
        slow = ScriptedBackend([OPENED, 10.0, *says()[1:]])
        house = House(
            {"groq": slow, "gemini": ScriptedBackend(says("free"))},
            quota=Quota(concurrency={"groq": 1}),
        )
        first = asyncio.ensure_future(house.ask())
        await asyncio.sleep(1.0)
        assert (await house.ask()).text == "free"
        await first
        assert house.cascade.quota.in_flight["groq"] == 0

    virtual(main())


def test_a_place_is_waited_for_when_nobody_else_is_there() -> None:
    async def main() -> None:
        slow = ScriptedBackend([OPENED, 10.0, *says()[1:]])
        house = House({"groq": slow}, quota=Quota(concurrency={"groq": 1}))
        replies = await asyncio.gather(house.ask(), house.ask(), house.ask())
        assert [reply.text for reply in replies] == ["hello"] * 3

    virtual(main())


def test_a_spent_limit_learnt_from_headers_is_respected_before_sending() -> None:
    async def main() -> None:
        spent = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "1m0s")]
        groq = ScriptedBackend(says("first", headers=spent), says("later"))
        house = House({"groq": groq, "gemini": ScriptedBackend(says("gemini"))})
        assert (await house.ask()).text == "first"
        assert (await house.ask()).text == "gemini"
        house.clock.advance(61.0)
        assert (await house.ask()).text == "later"

    virtual(main())


# --- doors ----------------------------------------------------------------------------------


def test_local_only_never_asks_a_cloud() -> None:
    async def main() -> None:
        house = House({"local": ScriptedBackend(refuses(500)), "groq": ScriptedBackend()})
        with pytest.raises(CascadeExhausted):
            await house.ask(local_only=True)
        with pytest.raises(PrivacyRefused):
            await house.ask(model="groq/x", local_only=True)
        assert house.backends["groq"].asked == []

    virtual(main())


def test_a_spent_budget_leaves_the_local_rung() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(), "local": ScriptedBackend(says("here"))},
                      budget=lambda target: "the budget of today is spent")  # fmt: skip
        assert (await house.ask()).text == "here"
        assert house.backends["groq"].asked == []

    virtual(main())


def test_fallback_off_asks_the_first_alone() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(refuses(429, RATE)), "gemini": ScriptedBackend()})
        with pytest.raises(CascadeExhausted) as caught:
            await house.ask(fallback=False)
        assert len(caught.value.attempts) == 1
        assert house.backends["gemini"].asked == []

    virtual(main())


def test_an_offline_machine_decides_at_once() -> None:
    async def main() -> None:
        house = House({n: ScriptedBackend() for n in ("groq", "gemini", "openai", "mistral")},
                      online=False)  # fmt: skip
        with pytest.raises(CascadeExhausted) as caught:
            await house.ask()
        assert len(caught.value.skipped) == 4
        assert "network is not reachable" in caught.value.message

    virtual(main())


@pytest.mark.parametrize("stream", [True, False])
def test_history_is_told_what_broke_below_http(stream: bool) -> None:
    async def main() -> None:
        gone = UpstreamBroken(Breakage.CONNECT_TIMEOUT)
        house = House({"groq": ScriptedBackend([gone]), "gemini": ScriptedBackend()})
        await house.ask(stream=stream)
        assert house.records.breakages == ["connect_timeout", ""]

    virtual(main())


# --- hang-ups -------------------------------------------------------------------------------


def test_a_client_that_hangs_up_blames_nobody_and_closes_upstream() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([OPENED, HANG]), "gemini": ScriptedBackend()})
        asking = asyncio.ensure_future(house.ask())
        await asyncio.sleep(1.0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert house.unanswered == 0
        assert house.cascade.health.idle
        assert [(one.provider, one.outcome) for one in house.records.attempts] == [("groq", "left")]
        assert house.cascade.quota.in_flight["groq"] == 0

    virtual(main())


def test_a_stream_that_is_left_after_its_first_word_is_in_the_history_and_no_failure() -> None:
    async def main() -> None:
        seen = Usage(prompt_tokens=7)
        piece = Relayed(b"x", content=True, usage=seen)
        house = House({"groq": ScriptedBackend([OPENED, piece, HANG])})
        answer = await house.cascade.open(make_call())
        assert await anext(answer) is piece
        await answer.aclose()
        (record,) = house.records.attempts
        assert (record.provider, record.outcome, record.sent) == ("groq", "left", True)
        assert house.cascade.health.idle
        assert [one.outcome for one in answer.attempts] == ["left"]

    virtual(main())


def test_closing_an_answer_closes_upstream_also_from_another_task() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([OPENED, TextDelta("a"), HANG])})
        answer = await house.cascade.open(make_call())
        reading = asyncio.ensure_future(answer.reply())
        await asyncio.sleep(1.0)
        await answer.aclose()
        with pytest.raises(StreamInterrupted):
            await reading
        assert house.unanswered == 0
        assert house.cascade.health.idle

    virtual(main())


def test_breaking_off_early_leaves_nothing_open() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend([OPENED, TextDelta("a"), TextDelta("b"), HANG])})
        answer = await house.cascade.open(make_call())
        async for _ in answer:
            break
        await answer.aclose()
        await answer.aclose()
        assert house.unanswered == 0

    virtual(main())


def test_estimates_too_long_for_a_known_window_are_not_sent() -> None:
    async def main() -> None:
        house = House(
            {"groq": ScriptedBackend(), "gemini": ScriptedBackend(says("large"))},
            providers={"groq": view("groq", context_tokens=1000), "gemini": view("gemini")},
        )
        assert (await house.ask()).text == "hello"
        assert (await house.ask(needs=Needs(prompt_tokens=5000))).text == "large"
        assert (await house.ask()).text == "hello"

    virtual(main())


def test_classes_of_cooling_candidates_decide_the_status_too() -> None:
    async def main() -> None:
        house = House({"groq": ScriptedBackend(refuses(402))})
        for _ in range(2):
            with pytest.raises(CascadeExhausted) as caught:
                await house.ask()
            assert caught.value.dominating is FailureClass.QUOTA
            assert caught.value.http_status == 429

    virtual(main())


class Bell:
    """An alarm that keeps what it is told."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def attempted(self, attempt: Any) -> None:
        """Nothing to count."""

    def exhausted(self, attempts: Sequence[Any], prompt: str = "") -> None:
        self.prompts.append(prompt)


@pytest.mark.parametrize(("wanted", "told"), [(False, ""), (True, "user: hi")])
def test_the_prompt_of_an_exhausted_ladder_is_told_only_where_it_is_wanted(
    wanted: bool, told: str
) -> None:
    async def main() -> None:
        settings = Settings(escalation=EscalationSettings(include_prompts=wanted))
        house = House({"groq": ScriptedBackend(refuses(500))}, settings=settings)
        bell = house.cascade.alarm = Bell()
        with pytest.raises(CascadeExhausted):
            await house.ask()
        assert bell.prompts == [told]

    virtual(main())


def test_a_key_whose_spent_limit_is_over_takes_turns_again() -> None:
    async def main() -> None:
        spent = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "30s")]
        groq = ScriptedBackend(says(headers=spent), says())
        house = House(
            {"gemini": ScriptedBackend(refuses(401)), "groq": groq},
            providers={"gemini": view("gemini"), "groq": view("groq", keys=2)},
        )
        for _ in range(5):
            await house.ask()
        first = groq.asked[0].key_label
        assert [target.key_label for target in groq.asked].count(first) == 1
        await house.clock.sleep(31.0)
        for _ in range(4):
            await house.ask()
        assert [target.key_label for target in groq.asked[5:]].count(first) == 2

    virtual(main())


HALF: list[Move] = [OPENED, TextDelta("half of it")]
HALVES: dict[str, list[Move]] = {
    "cut": [*HALF, UpstreamBroken(Breakage.CUT)],
    "stalled": [*HALF, HANG],
    "ended": HALF,
    "error": [*HALF, UpstreamRefused(500, b"", in_band=True)],
    "cut in arguments": [
        OPENED,
        ToolCallDelta(0, "c", "f", '{"city": "Par'),
        Finished(reason=FinishReason.TOOL_CALLS),
    ],
}


@pytest.mark.parametrize("fault", HALVES)
def test_who_waits_for_a_whole_answer_gets_one_from_the_next(fault: str) -> None:
    """Nothing was handed over: half an answer of one who died is no reason to give up."""

    async def main() -> None:
        house = House({"local": ScriptedBackend(HALVES[fault]), "groq": ScriptedBackend()})
        reply = await house.ask(stream=False)
        assert (reply.text, reply.tool_calls, reply.route) == ("hello", (), "groq/groq-model")
        assert house.unanswered == 0

    virtual(main())


def test_a_whole_answer_that_came_in_pieces_is_whole() -> None:
    async def main() -> None:
        pieces = [ReasoningDelta("hm"), TextDelta("a"), 40.0, TextDelta("b"), Finished()]
        house = House({"local": ScriptedBackend([OPENED, *pieces])})
        reply = await house.ask(stream=False)
        assert (reply.text, reply.reasoning) == ("ab", "hm")
        (record,) = house.records.attempts
        assert record.outcome == "ok"

    virtual(main())


def test_a_model_that_is_gone_is_nothing_to_wait_for() -> None:
    async def main() -> None:
        gone = refuses(404, {"error": {"message": "no such model", "code": "model_not_found"}})
        house = House({"groq": ScriptedBackend(gone), "gemini": ScriptedBackend(gone)})
        for _ in range(2):
            with pytest.raises(CascadeExhausted) as caught:
                await house.ask()
            assert (caught.value.http_status, caught.value.retry_after_s) == (404, None)

    virtual(main())


def test_a_spent_limit_of_the_only_candidate_is_told_as_one() -> None:
    async def main() -> None:
        spent = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "30s")]
        house = House({"groq": ScriptedBackend(says(headers=spent))})
        await house.ask()
        for _ in range(2):
            with pytest.raises(CascadeExhausted) as caught:
                await house.ask()
            assert caught.value.http_status == 429
            assert caught.value.retry_after_s == pytest.approx(30.0, abs=1.0)
            assert "its limit of requests is used up" in caught.value.message

    virtual(main())


def test_who_refuses_before_anything_is_sent_counts_as_nobody_asked() -> None:
    async def main() -> None:
        unsent = UpstreamRefused(400, b'{"error":"this backend does not support n"}', unsent=True)
        house = House({"groq": ScriptedBackend([unsent]), "gemini": ScriptedBackend()})
        answer = await house.cascade.open(make_call())
        await answer.reply()
        told = dict(answer.headers())
        assert told["x-localfirst-attempts"] == "1"
        assert told["x-localfirst-egress"] == "gemini"
        assert told["x-localfirst-trail"].startswith("groq=")

    run(main())
