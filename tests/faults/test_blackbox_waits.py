"""Every spelling of "come back later", and what the client is told of it, on the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any

import pytest

from tests.fakes.cloud_process import fake_cloud
from tests.fakes.house import house
from tests.fakes.stranger import BARE, SURFACES, Told, ask, provider, route

# What the clouds send, and the seconds that must be told: least and most. (0, 0): none.
Said = dict[str, Any]
DAY = 86400.0
GUESS = (50.0, 60.0)


def header(name: str, value: str) -> Said:
    return {"headers": {name: value}}


def limits(**values: str) -> Said:
    return {"headers": {name.replace("_", "-"): value for name, value in values.items()}}


def body(error: dict[str, Any]) -> Said:
    return {"body": {"error": {"message": "limited", "code": 429, **error}}}


def in_s(seconds: float) -> str:
    """A point in time, so many seconds from now, as an HTTP date."""
    return formatdate(time.time() + seconds, usegmt=True)


def epoch(seconds: float, unit: float = 1.0) -> str:
    return str(int((time.time() + seconds) * unit))


def iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


FORMS: dict[str, tuple[Said, tuple[float, float]]] = {
    "seconds": (header("Retry-After", "7"), (6, 7)),
    "float": (header("retry-after", "7.5"), (7, 8)),
    "milliseconds": (header("retry-after-ms", "8500"), (8, 9)),
    "both": (limits(retry_after_ms="8500", retry_after="60"), (8, 9)),
    "unit": (header("retry-after", "20s"), (19, 20)),
    "minutes": (header("retry-after", "2m0s"), (118, 120)),
    "http-date": (header("retry-after", in_s(3600)), (2400, 3600)),
    "iso-date": (header("retry-after", iso(3600)), (2400, 3600)),
    "epoch": (header("retry-after", epoch(3600)), (2400, 3600)),
    "past": (header("retry-after", in_s(-300)), (0, 0)),
    "zero": (header("retry-after", "0"), (0, 0)),
    "negative": (header("retry-after", "-5"), (0, 0)),
    "word": (header("retry-after", "soon"), GUESS),
    "nan": (header("retry-after", "nan"), GUESS),
    "infinite": (header("retry-after", "inf"), GUESS),
    "empty": (header("retry-after", ""), GUESS),
    "nothing": ({}, GUESS),
    "hours": (header("retry-after", "7200"), (7190, 7200)),
    "two-days": (header("retry-after", "172800"), (172700, 172800)),
    "absurd": (header("retry-after", "999999999"), (1, DAY)),
    "absurd-date": (header("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT"), (1, DAY)),
    "go-reset": (
        limits(x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="6m0s"),
        (350, 360),
    ),
    "longer-of-two": (
        limits(
            x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="20s",
            x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="2m",
        ),
        (118, 120),
    ),
    "only-the-spent-one": (
        limits(
            x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="20s",
            x_ratelimit_remaining_requests="99", x_ratelimit_reset_requests="20h",
        ),
        (19, 20),
    ),
    "reset-alone": (limits(x_ratelimit_reset_requests="45s"), (44, 45)),
    "reset-epoch": (limits(x_ratelimit_remaining="0", x_ratelimit_reset=epoch(3600)), (2400, 3600)),
    "reset-epoch-ms": (
        limits(x_ratelimit_remaining="0", x_ratelimit_reset=epoch(3600, 1000)),
        (2400, 3600),
    ),
    "ietf-reset": (limits(ratelimit_remaining="0", ratelimit_reset="30"), (29, 30)),
    "anthropic-reset": (
        limits(
            anthropic_ratelimit_requests_remaining="0",
            anthropic_ratelimit_requests_reset=iso(3600),
        ),
        (2400, 3600),
    ),
    "cerebras-reset": (
        limits(
            x_ratelimit_remaining_tokens_minute="0", x_ratelimit_reset_tokens_minute="33.5",
        ),
        (32, 34),
    ),
    "gemini-delay": (
        body({"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo",
                           "retryDelay": "56s"}]}),
        (55, 56),
    ),
    "openrouter-body": (
        body({"metadata": {"headers": {"X-RateLimit-Reset": epoch(3600, 1000),
                                       "X-RateLimit-Remaining": "0"}}}),
        (2400, 3600),
    ),
    "openrouter-availability": (body({"availability": {"retry_after": 41}}), (40, 41)),
    "text-seconds": (body({"message": "Please try again in 20s. Visit x."}), (19, 20)),
    "text-minutes": (body({"message": "Rate limit. Please try again in 7m12s."}), (430, 432)),
    "text-millis": (body({"message": "Please try again in 6200ms."}), (6, 7)),
    "text-words": (body({"message": "Retry after 40 seconds."}), (39, 40)),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Told]]:
    """What every form was answered with, each by a provider of its own."""
    config = BARE + "[cascade]\nwait_for_cooldown_s = 0\nbackoff_s = [0.05]\n"
    with ExitStack() as stack:
        cloud = stack.enter_context(fake_cloud())
        for name, (said, _) in FORMS.items():
            cloud.script({"do": "status", "status": 429, "times": -1, **said}, part=name)
            config += provider(name, cloud.base_url(name)) + route(f"to-{name}", name)
        at = stack.enter_context(house(tmp_path_factory.mktemp("waits"), config=config))

        async def main() -> list[Told]:
            return await asyncio.gather(
                *(
                    ask(at.url, f"to-{name}", surface=SURFACES[number % 3], stream=bool(number % 2))
                    for number, name in enumerate(FORMS)
                )
            )

        yield dict(zip(FORMS, asyncio.run(main()), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_wait_in_any_spelling_is_told_to_the_client(answers: dict[str, Told], form: str) -> None:
    told, (least, most) = answers[form], FORMS[form][1]
    assert told.status == 429
    if not most:
        assert "retry-after" not in told.headers or int(told.headers["retry-after"]) <= 1
        return
    assert least <= int(told.headers["retry-after"]) <= most + 1
    assert told.attempts == 1
