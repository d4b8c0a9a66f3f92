"""The short way to an answer: the same outcome as the climb's, whatever comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from localfirst.cascade.climb import Climb
from localfirst.engines.base import Limits
from localfirst.errors import (
    Breakage,
    InvalidRequest,
    LocalFirstError,
    UpstreamBroken,
    UpstreamRefused,
)
from localfirst.events import Event, FinishReason, Opened, Relayed
from localfirst.settings import CascadeSettings, Settings, TimeoutSettings
from localfirst.types import Call, FailureClass, Rung, Target
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

RELAYED: list[Move] = [Opened(200), Relayed(b'{"said":1}', True, True)]
SCRIPTS: Mapping[str, Sequence[Move]] = {
    "relayed": RELAYED,
    "decoded": says(),
    "slow": [7.0, *RELAYED],
    "empty": [Opened(200), Relayed(b"{}", False, True)],
    "at its limit": [Opened(200), Relayed(b"{}", False, True, None, FinishReason.LENGTH)],
    "filtered": [Opened(200), Relayed(b"{}", False, True, None, FinishReason.CONTENT_FILTER)],
    "nothing": [Opened(200)],
    "limits": [Opened(200, (("x-ratelimit-remaining-requests", "0"),)), RELAYED[1]],
    "hangs": [HANG],
    "hangs behind its status": [Opened(200), HANG],
    "429": refuses(429, headers=[("retry-after", "20")]),
    "401": refuses(401),
    "402": refuses(402),
    "404": refuses(404, {"error": {"code": "model_not_found", "message": "no such model"}}),
    "400": refuses(400, {"error": {"message": "bad"}}),
    "500": refuses(500),
    "503 soon": refuses(503, headers=[("retry-after", "2")]),
    "refused": [UpstreamBroken(Breakage.CONNECT_REFUSED, "nobody")],
    "cut": [Opened(200), UpstreamBroken(Breakage.CUT, "cut")],
    "wrong": [InvalidRequest("wrong in itself", field="n")],
    "a fault of ours": [RuntimeError("bug")],
}
PIECE = Relayed(b'data: {"said":1}\n\n', True)
STREAMS: Mapping[str, Sequence[Move]] = SCRIPTS | {
    "relayed": [Opened(200), PIECE, Relayed(b"data: [DONE]\n\n", False, True)],
    "in pieces": [Opened(200), Relayed(b": hi\n\n"), 1.0, PIECE, 4.0, PIECE, RELAYED[1]],
    "breaks off": [Opened(200), PIECE, UpstreamBroken(Breakage.CUT, "cut")],
    "stalls": [Opened(200), PIECE, HANG],
    "taught": [Opened(200, (), (UpstreamRefused(400, b"seed"),)), PIECE, RELAYED[1]],
}


class Replying(ScriptedBackend):
    """The same scripts, given in one piece: what takes the short way."""

    async def reply(self, call: Call, target: Target, limits: Limits) -> list[Event]:
        return [event async for event in self.answer(call, target, limits)]


def outcome(house: House, asked: Sequence[Any]) -> dict[str, Any]:
    """Everything that may not depend on the way."""
    return {
        "asked": list(asked),
        "targets": {name: backend.asked for name, backend in house.backends.items()},
        "at": {name: backend.asked_at for name, backend in house.backends.items()},
        "limits": {name: backend.limits for name, backend in house.backends.items()},
        "recorded": house.records.attempts,
        "cooldowns": house.cascade.health.snapshot(),
        "saved": house.records.cooldowns,
        "in flight": dict(house.cascade.quota.in_flight),
        "measured": dict(house.cascade.health.first_token_s),
    }


async def ask(house: House, *, stream: bool = False) -> Any:
    told: list[Any] = []
    try:
        answer = await house.cascade.open(make_call(stream=stream))
        told.append(answer.headers())
        async for event in answer:
            told.append((event, house.loop.time()))
        await answer.aclose()
    except LocalFirstError as error:
        outcomes = [one.outcome for one in error.attempts]
        return told, type(error), error.code, outcomes, error.message
    return told, answer.headers(), answer.target


def played(
    kind: type[ScriptedBackend], scripts: Sequence[Sequence[str]], *, stream: bool = False
) -> dict[str, Any]:
    """Three requests in a row to a house of such backends."""

    async def main() -> dict[str, Any]:
        names = ["groq", "gemini", "mistral"]
        known = STREAMS if stream else SCRIPTS
        backends = {
            name: kind(*[known[one] for one in script])
            for name, script in zip(names, scripts, strict=True)
        }
        spent: list[str] = []

        def budget(target: Target) -> str:
            if len(spent) == 5:
                return "the day's 5 cloud requests are used"
            spent.append(target.provider)
            return ""

        settings = Settings(
            # Without jitter: it would be another one with every ladder.
            cascade=CascadeSettings(backoff_s=(0.0,)),
            timeouts=TimeoutSettings(first_token_s=5.0, stall_s=5.0),
        )
        house = House(backends, settings=settings, budget=budget)
        found = outcome(house, [await ask(house, stream=stream) for _ in range(3)])
        return found | {"spent": spent, "now": house.loop.time()}

    return run(main())


@pytest.mark.parametrize("first", SCRIPTS)
def test_the_short_way_and_the_climb_come_to_the_same(first: str) -> None:
    for second in ("relayed", "429", "hangs"):
        scripts = [[first], [second, "relayed"], ["decoded"]]
        assert played(Replying, scripts) == played(ScriptedBackend, scripts)


@pytest.mark.parametrize("seed", range(40))
def test_they_come_to_the_same_in_sequences_at_random(seed: int) -> None:
    choose = random.Random(seed)
    scripts = [choose.choices(list(SCRIPTS), k=3) for _ in range(3)]
    assert played(Replying, scripts) == played(ScriptedBackend, scripts)


def test_who_is_cooling_down_takes_no_share_of_the_time_of_a_whole_answer() -> None:
    scripts = [["503 soon", "relayed"], ["401"], ["404"]]
    found = played(Replying, scripts)
    assert [limits.first_token_s for limits in found["limits"]["groq"]] == [25.0, 118.0, 120.0]
    assert found == played(ScriptedBackend, scripts)


@pytest.mark.parametrize("first", STREAMS)
def test_streams_come_to_the_same_either_way(first: str) -> None:
    for second in ("relayed", "429", "hangs", "breaks off"):
        scripts = [[first], [second, "relayed"], ["decoded"]]
        found = played(Replying, scripts, stream=True)
        assert found == played(ScriptedBackend, scripts, stream=True)


@pytest.mark.parametrize("seed", range(40))
def test_streams_come_to_the_same_in_sequences_at_random(seed: int) -> None:
    choose = random.Random(seed)
    scripts = [choose.choices(list(STREAMS), k=3) for _ in range(3)]
    found = played(Replying, scripts, stream=True)
    assert found == played(ScriptedBackend, scripts, stream=True)


def test_a_plain_stream_needs_no_ladder() -> None:
    async def main() -> None:
        house = House({"groq": Replying(STREAMS["relayed"]), "gemini": Replying()})
        answer = await house.cascade.open(make_call(stream=True))
        assert [event async for event in answer] == STREAMS["relayed"][1:]
        climb = answer._climb
        assert isinstance(climb, Climb)
        assert not {"candidates", "skipped"} & vars(climb.ladder).keys()

    run(main())


def test_a_plain_answer_needs_no_climb_and_says_who_gave_it() -> None:
    async def main() -> None:
        house = House({"groq": Replying(RELAYED), "gemini": Replying(RELAYED)})
        answer = await house.cascade.open(make_call(stream=False))
        assert await answer.read() == [RELAYED[1]]
        assert (answer.target.rung, answer.target.route) == (Rung.CLOUD, "groq/groq-model")
        told = dict(answer.headers())
        assert told["x-localfirst-trail"] == "groq=ok"
        assert told["x-localfirst-attempts"] == "1"
        assert told["x-localfirst-egress"] == "groq"
        assert told["x-localfirst-request-id"] == "lf-1"
        assert not dict(house.cascade.quota.in_flight)["groq"]

    run(main())


def test_a_caller_who_leaves_blames_nobody_and_gives_everything_back() -> None:
    async def main() -> None:
        house = House({"groq": Replying([HANG])})
        task = asyncio.ensure_future(house.cascade.open(make_call(stream=False)))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert house.unanswered == 0
        assert [(one.provider, one.outcome) for one in house.records.attempts] == [("groq", "left")]
        assert house.cascade.health.idle
        assert not dict(house.cascade.quota.in_flight)["groq"]

    run(main())


def test_one_request_at_a_time_tries_whoever_was_cooling_down() -> None:
    async def main() -> None:
        house = House({"groq": Replying(refuses(503), [1.0, *RELAYED]), "gemini": Replying()})
        await ask(house)
        await asyncio.sleep(4.0)
        asked = len(house.backends["groq"].asked)
        await asyncio.gather(*[ask(house) for _ in range(5)])
        assert len(house.backends["groq"].asked) - asked <= 1

    run(main())


def test_keys_take_turns_although_the_way_is_short() -> None:
    async def main() -> None:
        house = House({"groq": Replying(RELAYED)}, providers={"groq": view("groq", keys=3)})
        for _ in range(6):
            await ask(house)
        labels = [target.key_label for target in house.backends["groq"].asked]
        assert {labels.count(label) for label in labels} == {2}

    run(main())


def test_a_whole_answer_that_breaks_off_is_followed_by_the_next_candidate() -> None:
    async def main() -> None:
        half: list[Move] = [*says("half an ans")[:2], UpstreamBroken(Breakage.CUT, "cut")]
        for kind in (Replying, ScriptedBackend):
            settings = Settings(cascade=CascadeSettings(attempts_per_provider=1))
            house = House({"groq": kind(half), "gemini": kind(says("whole"))}, settings=settings)
            reply = await house.ask(stream=False)
            assert reply.text == "whole"
            trail = [one.outcome for one in reply.attempts]
            assert trail == [FailureClass.NETWORK, "ok"]

    run(main())
