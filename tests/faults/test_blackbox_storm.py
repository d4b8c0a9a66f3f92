"""
Many requests at once against clouds that fail at random, and connections that end unsaid.

`LOCALFIRST_TORTURE` multiplies the size; the seed of a failing run is in its message.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cloud_process import fake_cloud
from tests.fakes.house import house
from tests.fakes.stranger import BARE, SURFACES, Told, ask, provider, route

SCALE = max(1, int(os.environ.get("LOCALFIRST_TORTURE", "1")))
TEXT = "Hello from the cloud."
LIMITS = """
[timeouts]
first_token_s = 2
stall_s = 2
[cascade]
deadline_s = 30
"""
FAULTS: tuple[dict[str, Any], ...] = (
    {"do": "status", "status": 429, "headers": {"retry-after": "1"}},
    {"do": "status", "status": 500},
    {"do": "status", "status": 503, "headers": {"retry-after": "1"}},
    {"do": "status", "status": 404, "message": "model not found"},
    {"do": "reset"},
    {"do": "close"},
    {"do": "hang"},
    {"do": "empty"},
    {"do": "html"},
    {"do": "malformed"},
    {"do": "error_event"},
    {"do": "headers_cut"},
    {"do": "bad_chunk"},
    {"do": "ok_and_close"},
    {"do": "ok"},
    {"do": "ok", "delay_s": 0.2},
)


def script(seed: int, count: int) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    return [dict(dice.choice(FAULTS)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20261121, 20261121 + SCALE))
def test_every_request_of_a_storm_gets_a_whole_answer(tmp_path: Path, seed: int) -> None:
    count = 100
    with fake_cloud() as cloud:
        config = BARE + LIMITS
        for name in ("wild", "wilder", "good"):
            config += provider(name, cloud.base_url(name), keys=2)
        config += route("storm", "wild", "wilder", "good")
        cloud.script(*script(seed, count), part="wild")
        cloud.script(*script(seed + 1, count), part="wilder")
        with house(tmp_path, config=config) as at:

            async def one(number: int) -> Told:
                await asyncio.sleep(number * 0.01)
                surface, stream = SURFACES[number % 3], bool(number % 2)
                return await ask(at.url, "storm", surface=surface, stream=stream)

            async def main() -> list[Told]:
                return await asyncio.gather(*(one(number) for number in range(count)))

            answers = asyncio.run(main())
            sent = len(cloud.requests())
            # Whoever hung was closed, and nothing else is open but sockets that wait for more.
            assert cloud.state()["open"] <= count
        strange = [
            (told.surface, told.status, told.trail, told.message)
            for told in answers
            if (told.status, told.text, told.finished, told.framed) != (200, TEXT, True, True)
        ]
        assert not strange, f"seed {seed}: {strange[:5]}"
        # A kept socket that its server had closed is tried anew without a word.
        assert sum(told.attempts for told in answers) <= sent <= count * 4


def test_a_server_that_closes_after_every_answer_is_never_blamed(tmp_path: Path) -> None:
    with fake_cloud() as cloud:
        config = BARE + provider("closes", cloud.base_url("closes"))
        config += provider("good", cloud.base_url("good")) + route("it", "closes", "good")
        cloud.script({"do": "ok_and_close", "times": -1}, part="closes")
        with house(tmp_path, config=config) as at:
            for number in range(30):
                surface, stream = SURFACES[number % 3], bool(number % 2)
                told = asyncio.run(ask(at.url, "it", surface=surface, stream=stream))
                assert (told.trail, told.text) == ("closes=ok", TEXT)
