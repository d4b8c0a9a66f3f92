"""
What a gateway must remember from one request to the next, as a stranger would try it.

One `localfirst serve` configured by a file; every test has providers and a route of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import House, house
from tests.fakes.stranger import BARE, SURFACES, Told, ask, provider, route

LIMITS = """
[timeouts]
first_token_s = 1.0
[cascade]
deadline_s = 10
wait_for_cooldown_s = 1.5
backoff_s = [0.1, 0.2]
"""
# Tests with one provider and a good one behind it, and those with one alone.
PAIRS = (
    "field", "retry-after", "quota-header", "day-quota", "hangup", "concurrent", "half-open",
    "probe-hang", "fallback", "privacy", "nothing-new", "two-fields", "tokens-header", "schema",
    "unable", "half-whole",
)  # fmt: skip
ALONE = ("short-wait", "never-ejected", "busy", "deadline", "alone-hang")
KEYED = ("rate-keys", "bad-key", "turns", "all-keys", "payment")


class Bench:
    """The gateway and its scripted cloud."""

    def __init__(self, cloud: FakeCloud, at: House) -> None:
        self.cloud = cloud
        self.at = at

    def ask(self, name: str, **more: Any) -> Told:
        return asyncio.run(ask(self.at.url, f"to-{name}", **more))

    def together(self, name: str, count: int, **more: Any) -> list[Told]:
        async def main() -> list[Told]:
            asked = [ask(self.at.url, f"to-{name}", **more) for _ in range(count)]
            return await asyncio.gather(*asked)

        return asyncio.run(main())

    def keys(self, name: str) -> list[str]:
        """Which keys came for a provider, by their number."""
        return [
            one["headers"]["authorization"].removeprefix("Bearer key-")[0]
            for one in self.cloud.requests(name)
        ]

    def sent(self, name: str) -> int:
        return len(self.cloud.requests(name))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ExitStack() as stack:
        cloud = stack.enter_context(fake_cloud())
        config = BARE + LIMITS + provider("good", cloud.base_url("good"))
        for name in PAIRS:
            more = {"concurrency": 1} if name == "concurrent" else {}
            config += provider(name, cloud.base_url(name), **more) + route(
                f"to-{name}", name, "good"
            )
        for name in ALONE:
            config += provider(name, cloud.base_url(name)) + route(f"to-{name}", name)
        for name in KEYED:
            config += provider(name, cloud.base_url(name), keys=3)
            config += route(f"to-{name}", name, "good")
        for name in ("cold-a", "cold-b"):
            config += provider(name, cloud.base_url(name))
        config += route("to-cold", "cold-a", "cold-b")
        yield Bench(cloud, stack.enter_context(house(folder(tmp_path_factory), config=config)))


def folder(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("sequences")


def status(code: int, message: str = "scripted", times: int = 1, **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"do": "status", "status": code, "message": message, "times": times, "headers": named}


def until(what: Callable[[], bool], within_s: float) -> float:
    """Ask again until it is so; how long that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < within_s
    return time.monotonic() - began


# --- fields --------------------------------------------------------------------------------


def refused(*fields: str) -> dict[str, Any]:
    forbidden = [
        {"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted"}
        for field in fields
    ]
    return {"do": "status", "status": 422, "body": {"detail": forbidden}}


@pytest.mark.parametrize("surface", ["openai", "ollama"])
def test_a_field_that_is_refused_by_name_is_left_out_and_every_request_is_counted(
    bench: Bench, surface: str
) -> None:
    name = "field" if surface == "openai" else "nothing-new"
    more: dict[str, Any] = {"seed": 7} if surface == "openai" else {"options": {"seed": 7}}
    bench.cloud.script(refused("seed"), part=name)
    first = bench.ask(name, surface=surface, stream=False, **more)
    assert (first.status, first.attempts) == (200, 2)
    assert first.trail == f"{name}=invalid_request,{name}=ok"
    again = bench.ask(name, surface=surface, **more)
    assert (again.attempts, again.trail) == (1, f"{name}=ok")
    assert ["seed" in one["body"] for one in bench.cloud.requests(name)] == [True, False, False]


def test_a_field_that_is_refused_once_more_ends_the_ladder_with_both_requests_told(
    bench: Bench,
) -> None:
    again = status(400, "temperature is too hot")
    bench.cloud.script(refused("seed"), again, part="two-fields")
    told = bench.ask("two-fields", seed=7)
    assert told.status == 400
    assert told.trail == "two-fields=invalid_request,two-fields=invalid_request"
    assert told.attempts == bench.sent("two-fields") == 2


FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "town",
        "schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def test_a_model_that_takes_no_schema_is_asked_in_words(bench: Bench) -> None:
    no = status(400, "This model does not support response format `json_schema`.")
    bench.cloud.script(no, {"do": "ok", "text": '{"city": "Bonn"}', "times": -1}, part="schema")
    for trail in ("schema=invalid_request,schema=ok", "schema=ok"):
        told = bench.ask("schema", stream=False, response_format=FORM)
        assert (told.status, told.text, told.trail) == (200, '{"city": "Bonn"}', trail)
    asked = [one["body"] for one in bench.cloud.requests("schema")]
    assert [one["response_format"]["type"] for one in asked] == [
        "json_schema", "json_object", "json_object",
    ]  # fmt: skip
    assert all('"city"' in one["messages"][0]["content"] for one in asked[1:])


def test_what_a_model_cannot_do_the_next_one_is_asked(bench: Bench) -> None:
    bench.cloud.script(status(400, "m does not support tool use", times=-1), part="unable")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    told = bench.ask("unable", tools=tools)
    assert told.trail == "unable=invalid_request,good=ok"


# --- keys ----------------------------------------------------------------------------------


def test_a_limited_key_gives_way_to_the_next_one_in_the_same_request(bench: Bench) -> None:
    bench.cloud.script(status(429, retry_after="30"), part="rate-keys")
    told = bench.ask("rate-keys")
    assert told.trail == "rate-keys=rate_limit,rate-keys=ok"
    for _ in range(4):
        bench.ask("rate-keys")
    keys = bench.keys("rate-keys")
    assert keys.count(keys[0]) == 1 and len(set(keys)) == 3


def test_a_refused_key_is_never_used_again(bench: Bench) -> None:
    bench.cloud.script(status(401, "Incorrect API key provided"), part="bad-key")
    assert bench.ask("bad-key").trail == "bad-key=auth,bad-key=ok"
    for _ in range(6):
        assert bench.ask("bad-key").trail == "bad-key=ok"
    keys = bench.keys("bad-key")
    assert keys.count(keys[0]) == 1
    assert sorted(keys.count(key) for key in set(keys[1:])) == [3, 4]


def test_a_key_without_credit_is_left_alone(bench: Bench) -> None:
    bench.cloud.script(status(402, "Insufficient Balance"), part="payment")
    assert bench.ask("payment").trail == "payment=quota,payment=ok"
    for _ in range(4):
        assert bench.ask("payment").trail == "payment=ok"


def test_healthy_keys_take_turns(bench: Bench) -> None:
    for _ in range(6):
        bench.ask("turns")
    keys = bench.keys("turns")
    assert sorted(keys.count(key) for key in set(keys)) == [2, 2, 2]


def test_when_all_keys_are_refused_somebody_else_answers(bench: Bench) -> None:
    bench.cloud.script(status(401, "Incorrect API key provided", times=-1), part="all-keys")
    told = bench.ask("all-keys")
    assert told.trail == "all-keys=auth,all-keys=auth,all-keys=auth,good=ok"
    assert bench.ask("all-keys").trail == "good=ok"
    assert sorted(bench.keys("all-keys")) == ["1", "2", "3"]


# --- waits ---------------------------------------------------------------------------------


def test_a_named_wait_is_kept_to_the_second_and_then_over(bench: Bench) -> None:
    bench.cloud.script(status(429, retry_after="2"), part="retry-after")
    began = time.time()
    assert bench.ask("retry-after").trail == "retry-after=rate_limit,good=ok"
    until(lambda: bench.ask("retry-after").trail == "retry-after=ok", 6.0)
    first, second = (one["at"] for one in bench.cloud.requests("retry-after"))
    assert 1.9 < second - first < 4.0
    assert second - began < 5.0


def test_a_short_wait_of_the_only_candidate_is_waited_for(bench: Bench) -> None:
    bench.cloud.script(status(429, retry_after="1"), part="short-wait")
    told = bench.ask("short-wait")
    assert told.trail == "short-wait=rate_limit,short-wait=ok"
    assert 0.9 < told.seconds < 3.0


def test_the_only_candidate_is_asked_again_although_it_failed_a_moment_ago(bench: Bench) -> None:
    bench.cloud.script(status(500, times=-1), part="never-ejected")
    for count in (2, 4):
        told = bench.ask("never-ejected")
        assert told.status == 503 and told.attempts == 2
        # A server that its user named is this machine's own, also when it fails.
        assert told.headers["x-localfirst-egress"] == "none"
        assert bench.sent("never-ejected") == count


@pytest.mark.parametrize("surface", SURFACES)
def test_when_all_are_cooling_the_soonest_is_told(bench: Bench, surface: str) -> None:
    if not bench.sent("cold-a"):
        bench.cloud.script(status(429, retry_after="60"), part="cold-a")
        bench.cloud.script(status(429, retry_after="30"), part="cold-b")
        assert bench.ask("cold").status == 429
    told = bench.ask("cold", surface=surface, stream=surface == "ollama")
    assert told.status == 429
    assert 20 < int(told.headers["retry-after"]) <= 30
    assert told.attempts == 0
    assert "cold-a" in told.message and "cold-b" in told.message
    assert bench.sent("cold-a") == bench.sent("cold-b") == 1


def test_a_sick_provider_with_a_short_named_wait_is_asked_again_after_it(bench: Bench) -> None:
    bench.cloud.script(status(503, retry_after="1"), part="busy")
    told = bench.ask("busy")
    assert told.trail == "busy=unavailable,busy=ok"
    assert told.seconds > 0.9


# --- limits known ahead --------------------------------------------------------------------


def test_a_spent_limit_is_respected_before_anything_is_sent(bench: Bench) -> None:
    spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}
    bench.cloud.script({"do": "ok", "headers": spent}, part="quota-header")
    assert bench.ask("quota-header").trail == "quota-header=ok"
    assert bench.ask("quota-header").trail == "good=ok"
    assert bench.sent("quota-header") == 1


def test_spent_tokens_are_respected_before_anything_is_sent(bench: Bench) -> None:
    spent = {
        "x-ratelimit-limit-tokens": "8000",
        "x-ratelimit-remaining-tokens": "3",
        "x-ratelimit-reset-tokens": "45.2s",
    }
    bench.cloud.script({"do": "ok", "headers": spent}, part="tokens-header")
    assert bench.ask("tokens-header", stream=False).trail == "tokens-header=ok"
    assert bench.ask("tokens-header", content="word " * 100).trail == "good=ok"
    assert bench.sent("tokens-header") == 1


def test_a_provider_takes_only_so_many_requests_at_once(bench: Bench) -> None:
    bench.cloud.script({"do": "ok", "pause_s": 0.1, "times": -1}, part="concurrent")
    told = bench.together("concurrent", 4)
    assert sorted(one.trail for one in told) == ["concurrent=ok", *["good=ok"] * 3]


# --- half-open -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stream"), [("half-open", True), ("half-whole", False)])
def test_a_provider_that_hung_is_tried_by_one_of_many(
    bench: Bench, name: str, stream: bool
) -> None:
    bench.cloud.script(status(500), {"do": "hang", "times": -1}, part=name)
    assert bench.ask(name, stream=stream).trail == f"{name}=unavailable,good=ok"
    # Its wait of five seconds is over: one of many finds out what became of it.
    until(lambda: not cooling(bench, name), 8.0)
    told = bench.together(name, 8, stream=stream)
    assert bench.sent(name) == 2
    assert sorted(one.trail for one in told) == ["good=ok"] * 7 + [f"{name}=timeout,good=ok"]


def cooling(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The cooldowns of a provider, as the gateway shows them."""
    with urllib.request.urlopen(f"{bench.at.url}/localfirst/state", timeout=5) as answer:
        return [one for one in json.load(answer)["cooldowns"] if one["provider"] == name]


# --- asked for -----------------------------------------------------------------------------


def test_fallback_off_asks_the_first_alone(bench: Bench) -> None:
    bench.cloud.script(status(500, times=-1), part="fallback")
    told = bench.ask("fallback", headers={"x-localfirst-fallback": "off"})
    assert (told.status, told.attempts) == (503, 2)
    assert set(told.trail.split(",")) == {"fallback=unavailable"}


@pytest.mark.parametrize("surface", SURFACES)
def test_a_hung_ladder_is_answered_within_its_deadline(bench: Bench, surface: str) -> None:
    name = {"openai": "deadline", "anthropic": "alone-hang", "ollama": "probe-hang"}[surface]
    bench.cloud.script({"do": "hang", "times": -1}, part=name)
    told = bench.ask(name, surface=surface)
    assert told.seconds < 10.5
    assert told.status == (504 if name in ALONE else 200)


def test_a_client_that_hangs_up_closes_the_upstream_and_blames_nobody(bench: Bench) -> None:
    bench.cloud.script({"do": "hang"}, part="hangup")

    async def leave() -> None:
        asking = asyncio.ensure_future(ask(bench.at.url, "to-hangup"))
        while not bench.sent("hangup"):
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait({asking})

    asyncio.run(leave())
    until(lambda: bench.cloud.requests("hangup")[0]["ended"] == "aborted", 1.0)
    assert bench.ask("hangup").trail == "hangup=ok"
